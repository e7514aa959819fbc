"""Reductions and scans: down the columns, over a bound known at run time, running along a row, and with the position.

tessera run examples/reductions.py --dims M=100,N=96
"""

import tessera as ts
from tessera import Tensor, tile

ROWS, COLUMNS = 32, 64


@ts.kernel
def column_sum(x: Tensor["M", "N", ts.f32], output: Tensor["N", ts.f32]):
    """output[n] = sum of x[:, n]: a program owns some columns and walks down all rows, however many there are"""
    ctx = tile.context()
    column = tile.program_id(0) * COLUMNS
    total = tile.zeros([COLUMNS], ts.f32)
    for row in tile.range(0, ctx.M, ROWS):
        total = total + tile.sum(x[row : row + ROWS, column : column + COLUMNS], axis=0)
    tile.store(total, output[column : column + COLUMNS])


@ts.kernel
def sum_of_first(x: Tensor["M", "N", ts.f32], count: int, output: Tensor["M", ts.f32]):
    """output[m] = sum of the first `count` elements of row m; `count` is an argument of the launch"""
    first = tile.program_id(0) * ROWS
    total = tile.zeros([ROWS], ts.f32)
    for column in tile.range(0, count, COLUMNS):
        part = tile.window(x[first : first + ROWS], (0, column), (ROWS, COLUMNS), limit=(None, count))
        total = total + tile.sum(part, axis=1)
    tile.store(total, output[first : first + ROWS])


@ts.kernel
def cumulative_max(x: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
    """output[m, n] = max of x[m, 0..n]"""
    first = tile.program_id(0) * ROWS
    tile.store(tile.cummax(x[first : first + ROWS], axis=1), output[first : first + ROWS])


@ts.kernel
def top_1(x: Tensor["M", "N", ts.bf16], value: Tensor["M", ts.bf16], index: Tensor["M", ts.i32]):
    """The largest element of every row and where it is (the first one, if several are equal)"""
    first = tile.program_id(0) * ROWS
    rows = x[first : first + ROWS]
    tile.store(tile.max(rows, axis=1), value[first : first + ROWS])
    tile.store(tile.argmax(rows, axis=1), index[first : first + ROWS])
