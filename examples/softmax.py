"""Softmax of every row of a matrix, in f32 and in bf16.

A program takes a few whole rows, so a row is read once and never leaves the chip between the maximum, the sum and the
division. N is the length of a row; it sizes a tile, so each N is compiled on its own, while M stays open.

    tessera run examples/softmax.py::softmax --dims M=300,N=128
"""

import math

import tessera as ts
from tessera import Tensor, tile

ROWS = 16


def softmax_of_rows(x, output):
    """Shared by both kernels: a plain function is inlined where a kernel calls it."""
    first = tile.program_id(0) * ROWS
    rows = tile.cast(x[first : first + ROWS], ts.f32) * math.log2(math.e)  # exp(x) is exp2(x log2(e)), one instruction
    shifted = rows - tile.max(rows, axis=-1, keepdims=True)  # exp2 of nothing above 0: it cannot overflow
    weights = tile.exp2(shifted)
    scale = 1.0 / tile.sum(weights, axis=-1, keepdims=True)  # one division a row, not one an element
    tile.store(weights * scale, output[first : first + ROWS])


@ts.kernel
def softmax(x: Tensor["M", "N", ts.f32], output: Tensor["M", "N", ts.f32]):
    """output[m] = exp(x[m] - max(x[m])) / sum(exp(x[m] - max(x[m])))"""
    softmax_of_rows(x, output)


@ts.kernel
def softmax_bf16(x: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
    """The same on bf16 rows: computed in f32, rounded once at the store"""
    softmax_of_rows(x, output)
