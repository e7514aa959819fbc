"""Offsets past 2^31: every product in an address is 64 bits wide, in the text and on the interpreter."""

import re

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import f32
from tessera.ir.values import Tensor, View
from tessera.runtime.interpreter import interpret
from tests.lanes import define

HUGE = 3 << 30

KERNEL = """
@ts.kernel(grid=lambda d: (d.B, 4))
def k(x: Tensor["B", "N", 40, ts.f32], w: Tensor["B", "N", ts.bf16], wide: Tensor["N", 1048576, ts.f32],
      index: Tensor["N", ts.i32], hist: Tensor["B", "N", ts.i64],
      bins: Tensor["B", 64, ts.i64], out: Tensor["B", "N", 40, ts.f32]):
    b, p = tile.program_id(0), tile.program_id(1)
    row = tile.load_scalar(index[p])
    staged = tile.alloc_shared([16, 32], ts.bf16)
    tile.copy_async(staged, w[0:16, row : row + 32])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    t = x[b, row : row + 16] + wide[5000, 2:3] + wide[row, 0:1]
    tile.atomic_add(hist[b, p * 16 : p * 16 + 16], 1)
    tile.atomic_add(bins[row], 1, index=index[p * 16 : p * 16 + 16])
    for i in tile.range(row, row + 4):
        t = t + x[b, i, 0:40]
    tile.store(t + tile.sum(staged[0:16, 0:32] * 1.0, axis=1, keepdims=True), out[b, row : row + 16], mask=t > 0.0)
"""

PRODUCT = re.compile(r"(\(ts_i64\)\([^()]*\)|\(ts_i64\)\w+|\w+) \* (\(ts_i64\)\w+|\w+)")


def products(text):
    """(line, left, right) of every product in an address of global memory."""
    for line in text.split("\n"):
        window = re.match(r"\s*(const )?\w+\* \w+ = (.*);", line)
        access = re.search(r"(ts_ld_global|ts_st_global|ts_cp_async|ts_atomic)\w*(<[^>]*>)?\(", line)
        if window or access:
            for left, right in PRODUCT.findall(window[2] if window else line):
                yield line, left, right


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_products_in_addresses_are_64_bit(arch):
    text = compile_kernel(define(KERNEL), {"B": 2, "N": HUGE}, arch=arch).cuda[0].text
    wide = set(re.findall(r"ts_i64 (\w+)", text))
    found = list(products(text))
    assert len(found) >= 8
    for line, left, right in found:
        if left == "sizeof" or "count" in left:
            continue  # bytes inside one access
        ok = any(f.startswith("(ts_i64)") or f in wide or re.fullmatch(r"\d+LL", f) for f in (left, right))
        assert ok, line
    # A constant row of a wide tensor is multiplied here, where nothing overflows.
    assert f"{5000 * 1048576}LL" in text


def test_parameters_of_dims_and_indices_are_64_bit():
    text = compile_kernel(define(KERNEL), {"B": 2, "N": HUGE}).cuda[0].text
    signature = re.search(r"TS_KERNEL\(.*", text)[0]
    assert "ts_i64 dim_N" in signature and "int dim_" not in signature.replace("ts_i64 dim_", "")
    assert not re.search(r"\bint \w+ = ts_block_id", text)


def test_the_interpreter_indexes_with_64_bits():
    big = np.broadcast_to(np.float32(2), (HUGE, 4))
    view = View.whole(Tensor(big, f32)).narrow([np.array([HUGE - 3]), np.array([1])], (8, 2), (True, True))
    index, inside = view.positions()
    assert index[0].dtype == np.int64 and index[0].max() == HUGE + 4 and inside.sum() == 6
    kernel = """
    @ts.kernel(grid=lambda d: (2,))
    def k(x: Tensor["N", ts.f32], at: Tensor[2, ts.i64], out: Tensor[2, 8, ts.f32]):
        p = tile.program_id(0)
        start = tile.load_scalar(at[p])
        tile.store(x[start : start + 8], out[p])
    """
    arguments = {
        "x": np.broadcast_to(np.float32(2), (HUGE,)),
        "at": np.array([HUGE - 5, -(2**40)]),
        "out": np.full((2, 8), np.nan, np.float32),
    }
    interpret(compile_kernel(define(kernel), {"N": HUGE}).stages[0].module.kernel(), arguments, {"N": HUGE})
    assert arguments["out"].tolist() == [[2.0] * 5 + [0.0] * 3, [0.0] * 8]
