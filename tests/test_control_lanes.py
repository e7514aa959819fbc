"""Run-time control flow and integers on every lane: while, loops with loaded bounds, branches, Python's arithmetic."""

import numpy as np
import pytest

from tessera.errors import SourceError
from tests.lanes import define, run

COLLATZ = """
@ts.kernel(grid=lambda d: (d.N,))
def k(x: Tensor["N", ts.i64], steps: Tensor["N", ts.i64], peak: Tensor["N", ts.i64]):
    i = tile.program_id(0)
    n = tile.load_scalar(x[i])
    count = 0
    top = n
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        top = max(top, n)
        count += 1
    tile.store(count, steps[i : i + 1])
    tile.store(top, peak[i : i + 1])
"""


def test_while_with_a_different_trip_count_in_every_program():
    x = np.array([1, 6, 7, 27, 1, 2, 97], np.int64)
    arguments = {"x": x, "steps": np.zeros(7, np.int64), "peak": np.zeros(7, np.int64)}
    outputs, _ = run(COLLATZ, arguments, {"N": 7})
    assert outputs["steps"].tolist() == [0, 8, 16, 111, 0, 1, 118]
    assert outputs["peak"].tolist() == [1, 16, 52, 9232, 1, 2, 9232]


NESTED = """
@ts.kernel(grid=lambda d: (2,))
def k(x: Tensor[64, ts.f32], limit: Tensor[2, ts.f32], out: Tensor[2, 64, ts.f32]):
    p = tile.program_id(0)
    t = x[0:64]
    stop = tile.load_scalar(limit[p])
    total = tile.zeros([64])
    for j in tile.range(3):
        scale = 1.0
        while tile.max(t * scale) < stop:
            if j == 1:
                total = total + t * scale
            scale = scale * 2.0
        total = total * scale
    tile.store(total, out[p, 0:64])
"""


def test_while_in_a_loop_around_a_branch():
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal(64)).astype(np.float32)
    limit = np.array([20.0, 1e4], np.float32)
    out, _ = run(
        NESTED.replace("tile.max(t * scale)", "scale"),
        {"x": x, "limit": limit, "out": np.full((2, 64), np.nan, np.float32)},
        {},
    )
    for p in range(2):
        total = np.zeros(64, np.float32)
        for j in range(3):
            scale = np.float32(1)
            while scale < limit[p]:
                if j == 1:
                    total = total + x * scale
                scale = scale * np.float32(2)
            total = total * scale
        assert np.array_equal(out["out"][p], total)


RANGES = """
@ts.kernel(grid=lambda d: (d.N,))
def k(bounds: Tensor["N", 3, ts.i32], out: Tensor["N", 3, ts.i64], last: Tensor["N", ts.i64]):
    p = tile.program_id(0)
    total, count, seen = 0, 0, -1
    for i in tile.range(bounds[p, 0], bounds[p, 1], bounds[p, 2]):
        total += i
        count += 1
        seen = i
    for i in tile.range(10, -5, -4):
        total += i * 100
    for i in tile.range(tile.load_scalar(bounds[p, 1]), 3, -1):
        count += 1000
    tile.store(total, out[p, 0:1])
    tile.store(count, out[p, 1:2])
    tile.store(seen, out[p, 2:3])
    tile.store(seen // 2, last[p : p + 1])
"""


def test_loops_with_loaded_bounds_and_negative_steps():
    bounds = np.array([[0, 10, 3], [5, 5, 1], [9, -4, -5], [-3, 4, 2], [4, 0, 1]], np.int32)
    out, _ = run(RANGES, {"bounds": bounds, "out": np.zeros((5, 3), np.int64), "last": np.zeros(5, np.int64)}, {"N": 5})
    for row, last, (low, high, step) in zip(out["out"], out["last"], bounds.tolist(), strict=True):
        numbers = list(range(low, high, step))
        assert row[0] == sum(numbers) + 100 * sum(range(10, -5, -4))
        assert row[1] == len(numbers) + 1000 * max(high - 3, 0)
        assert row[2] == (numbers or [-1])[-1] and last == row[2] // 2


INTEGERS = """
@ts.kernel(grid=lambda d: (d.N,))
def k(a: Tensor["N", ts.i32], b: Tensor["N", ts.i64], out: Tensor["N", 9, ts.i64], f: Tensor["N", 4, ts.f32]):
    p = tile.program_id(0)
    x, y = tile.load_scalar(a[p]), tile.load_scalar(b[p])
    tile.store(x // y, out[p, 0:1])
    tile.store(x % y, out[p, 1:2])
    tile.store(min(x, y, 3), out[p, 2:3])
    tile.store(max(abs(x), abs(y)), out[p, 3:4])
    tile.store(x * 3000000000 - y, out[p, 4:5])
    tile.store(-x // 4, out[p, 5:6])
    if -5 < x <= y or not (x != 7):
        kind = 1
    elif x > 0 and y > 0:
        kind = 2
    else:
        kind = 3
    tile.store(kind, out[p, 6:7])
    tile.store(tile.cdiv(x, 4), out[p, 7:8])
    tile.store(x % 8, out[p, 8:9])
    tile.store(x / y, f[p, 0:1])
    tile.store(x + 0.5, f[p, 1:2])
    tile.store(float(x) * y, f[p, 2:3])
    tile.store(max(x, 0.25), f[p, 3:4])
"""


def test_integers_follow_python():
    a = np.array([7, -7, 7, -7, 0, 100, 2**31 - 1, -(2**31)], np.int32)
    b = np.array([3, 3, -3, -3, 5, -1, 2**40, 7], np.int64)
    arguments = {"a": a, "b": b, "out": np.zeros((8, 9), np.int64), "f": np.zeros((8, 4), np.float32)}
    out, _ = run(INTEGERS, arguments, {"N": 8})
    for row, floats, x, y in zip(out["out"].tolist(), out["f"], a.tolist(), b.tolist(), strict=True):
        kind = 1 if -5 < x <= y or x == 7 else 2 if x > 0 and y > 0 else 3
        divided = [-x // 4, kind, -(-x // 4), x % 8]
        assert row == [x // y, x % y, min(x, y, 3), max(abs(x), abs(y)), x * 3000000000 - y, *divided]
        f32 = np.float32
        assert floats.tolist() == [f32(x) / f32(y), f32(x) + f32(0.5), f32(x) * f32(y), max(f32(x), f32(0.25))]


BRANCHES = """
@ts.kernel(grid=lambda d: (4,))
def k(x: Tensor[4, 32, ts.f32], choice: Tensor[4, ts.i32], out: Tensor[4, 32, ts.f32]):
    p = tile.program_id(0)
    t, c = x[p, 0:32], tile.load_scalar(choice[p])
    scale = 1.0
    if c == 0:
        t = t + 1.0
    elif c == 1:
        t = t * t
        scale = 3.0
    elif c < 0:
        if c == -1:
            t = -t
        scale = 0.5
    else:
        t = tile.zeros([32])
    tile.store(t * scale, out[p, 0:32])
"""


def test_branches_join_tiles_and_scalars():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 32)).astype(np.float32)
    arguments = {"x": x, "choice": np.array([1, -1, 5, 0], np.int32), "out": np.full((4, 32), np.nan, np.float32)}
    out, _ = run(BRANCHES, arguments, {})
    assert np.array_equal(out["out"], [x[0] * x[0] * 3, -x[1] * np.float32(0.5), x[2] * 0, x[3] + 1])


STRIDED = """
@ts.kernel(grid=lambda d: (3,))
def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32], count: Tensor[3, ts.i64]):
    for block in tile.range(tile.program_id(0), tile.cdiv(tile.context().N, 16), tile.num_programs(0)):
        tile.store(x[block * 16 : block * 16 + 16] * 2.0, out[block * 16 : block * 16 + 16])
    p = tile.program_id(0)
    tile.store(tile.num_programs(0) * 10 + tile.num_programs(1), count[p : p + 1])
"""


def test_a_grid_stride_loop_over_the_number_of_programs():
    x = np.arange(100, dtype=np.float32)
    arguments = {"x": x, "out": np.full(100, np.nan, np.float32), "count": np.zeros(3, np.int64)}
    out, _ = run(STRIDED, arguments, {"N": 100})
    assert np.array_equal(out["out"], 2 * x) and out["count"].tolist() == [31, 31, 31]


HEAD = """
@ts.kernel(grid=lambda d: (1,))
def k(x: Tensor[4, ts.i64], v: Tensor[4, ts.f32]):
    n = tile.load_scalar(x[0])
"""


@pytest.mark.parametrize(
    "body, code, line, message",
    [
        ("while n > 0:\n    break", "TS102", 5, "break that depends on run-time values"),
        ("while n > 0:\n    n = n - 1\n    continue", "TS102", 6, "continue that depends on run-time values"),
        ("while n:\n    n = n - 1", "TS204", 4, "compare it first"),
        ("while v[0:4] > 0.0:\n    n = n - 1", "TS204", 4, "a while needs one bool"),
        ("while n > 0:\n    n = n * 0.5", "TS301", 5, "'n' is an i64 scalar before the loop"),
        ("while n > 0:\n    n = n - 1\nelse:\n    n = 3", "TS102", 7, "else after a run-time loop"),
        ("while True:\n    n = n - 1", "TS102", 4, "unrolled more than"),
        ("for i in tile.range(0, n, 0):\n    n = n + 1", "TS203", 4, "must not be 0"),
        ("for i in tile.range(v[0]):\n    n = n + 1", "TS203", 4, "tile.range takes integers"),
        ("while n > 0:\n    t = n\n    n = n - 1\ntile.store(t, x[0:1])", "TS201", 7, "does not exist after it"),
    ],
)
def test_errors(body, code, line, message):
    text = HEAD + "".join(f"    {row}\n" for row in body.split("\n"))
    with pytest.raises(SourceError, match=message) as caught:
        from tessera.compiler import compile_kernel

        compile_kernel(define(text), {})
    assert (caught.value.code, caught.value.loc.line) == (code, line)


def test_a_while_on_compile_time_values_is_unrolled_and_then_runs():
    text = """
    @ts.kernel(grid=lambda d: (2,))
    def k(x: Tensor[2, ts.i64], out: Tensor[2, ts.i64]):
        p = tile.program_id(0)
        total, i = 0, 0
        while i < 3:
            i += 1
            total += i
            if total > 100:
                break
        else:
            total += 1000
        while total < 1010:
            total = total + tile.load_scalar(x[p])
        tile.store(total, out[p : p + 1])
    """
    out, _ = run(text, {"x": np.array([3, 100], np.int64), "out": np.zeros(2, np.int64)}, {})
    assert out["out"].tolist() == [1012, 1106]
