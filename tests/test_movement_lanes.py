"""Ops that move elements, and tiles of up to four axes, on every lane that runs without a GPU."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.errors import TesseraError
from tessera.runtime.interpreter import interpret
from tessera.target.schedule import Schedule
from tests.lanes import define, run

RNG = np.random.default_rng(4)
NUMPY = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "i32": np.int32, "i64": np.int64}


def random(shape, dtype):
    if dtype in ("i32", "i64"):
        return RNG.integers(-1000, 1000, shape).astype(NUMPY[dtype])
    return RNG.standard_normal(shape).astype(NUMPY[dtype])


def moves(body, source, results, dtype="f32", archs=(), **more):
    """Runs `body`, which stores to r0, r1, ... of the shapes `results`; their contents."""
    names = [f"r{number}" for number in range(len(results))]
    tensors = {"x": source, **{name: np.zeros(shape, NUMPY[dtype]) for name, shape in zip(names, results, strict=True)}}
    shapes = {name: ", ".join(map(str, array.shape)) for name, array in tensors.items()}
    parameters = ", ".join(f"{name}: tile.Tensor[{shape}, ts.{dtype}]" for name, shape in shapes.items())
    text = f"@ts.kernel(grid=lambda d: (1,))\ndef k({parameters}):\n"
    text += "".join(f"    {line}\n" for line in body.strip().splitlines())
    outputs, _ = run(text, tensors, {}, archs=archs, **more)
    return [outputs[name] for name in names]


@pytest.mark.parametrize("dtype", ["bf16", "i64"])
def test_reshapes(dtype):
    x = random((6, 20), dtype)
    r = moves(
        """
        tile.store(tile.reshape(x[0:6], [8, 15]), r0)
        tile.store(tile.reshape(x[0:6] + x[0:6], [2, 3, 4, 5]), r1)
        tile.store(tile.reshape(tile.reshape(x[0:6], [-1]), [30, -1]), r2)
        """.replace("        ", ""),
        x,
        [(8, 15), (2, 3, 4, 5), (30, 4)],
        dtype,
        archs=("sm_90a",),
    )
    for result, expected in zip(r, (x, x + x, x), strict=True):
        np.testing.assert_array_equal(result.ravel(), expected.ravel())


@pytest.mark.parametrize("shape, dtype", [((64, 48), "bf16"), ((33, 25), "f32"), ((3, 10, 20), "i32")], ids=str)
def test_transposes(shape, dtype):
    x = random(shape, dtype)
    swapped = (*shape[:-2], shape[-1], shape[-2])
    window = ", ".join(f"0:{size}" for size in shape)
    r = moves(
        f"""
tile.store(x[{window}].T, r0)
tile.store(tile.transpose(x[{window}].T) + x[{window}], r1)
tile.store(tile.sum(x[{window}].T, axis=-1), r2)
""",
        x,
        [swapped, shape, swapped[:-1]],
        dtype,
        archs=("sm_80",),
    )
    np.testing.assert_array_equal(r[0], np.swapaxes(x, -1, -2))
    np.testing.assert_array_equal(r[1], x + x)


def test_a_transpose_that_feeds_a_product_is_a_flag_of_it():
    text = """
        @ts.kernel(grid=lambda d: (1,))
        def k(a: tile.Tensor[32, 16, ts.bf16], b: tile.Tensor[24, 32, ts.bf16], out: tile.Tensor[16, 24, ts.f32]):
            tile.store(tile.mma(a[0:32].T, b[0:24].T), out)
    """
    arguments = {"a": random((32, 16), "bf16"), "b": random((24, 32), "bf16"), "out": np.zeros((16, 24), np.float32)}
    outputs, _ = run(text, arguments, {}, archs=())
    a, b = (arguments[name].astype(np.float64) for name in "ab")
    np.testing.assert_allclose(outputs["out"], a.T @ b.T, atol=1e-4)
    names = [op.name for op in compile_kernel(define(text), {}).target.kernel().body.walk()]
    assert "transpose" not in names


def test_parts_of_tiles():
    x = random((40, 50), "bf16")
    r = moves(
        """
value = x[0:40] + x[0:40]
tile.store(value[0:16, 8:24], r0)
tile.store(value[3:, -7:], r1)
tile.store(value[5], r2)
tile.store(value[1:2, 49], r3)
tile.store(tile.exp(value)[8:16] * 0.0 + value[24:32], r4)
""",
        x,
        [(16, 16), (37, 7), (50,), (1,), (8, 50)],
        "bf16",
        archs=("sm_80", "sm_90a"),
    )
    twice = (x + x).astype(ml_dtypes.bfloat16)
    parts = (twice[:16, 8:24], twice[3:, -7:], twice[5], twice[1:2, 49], twice[24:32])
    for result, expected in zip(r, parts, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_indices():
    r = moves(
        """
tile.store(tile.arange(100), r0)
tile.store(tile.iota([5, 40], axis=0) * 100 + tile.iota([5, 40]), r1)
tile.store(tile.cast(tile.iota([3, 4, 5, 6], axis=1, dtype=ts.f32) + tile.arange(6, ts.i64), ts.i32), r2)
""",
        np.zeros(1, np.int32),
        [(100,), (5, 40), (3, 4, 5, 6)],
        "i32",
        archs=("sm_80",),
    )
    np.testing.assert_array_equal(r[0], np.arange(100))
    np.testing.assert_array_equal(r[1], np.arange(5)[:, None] * 100 + np.arange(40))
    np.testing.assert_array_equal(r[2], np.broadcast_to(np.arange(4)[:, None, None] + np.arange(6), (3, 4, 5, 6)))


RANK3 = """
    @ts.kernel(grid=lambda d: (tile.cdiv(d.B, 4), tile.cdiv(d.S, 8)))
    def k(x: tile.Tensor["B", "S", "D", ts.bf16], y: tile.Tensor["B", "S", "D", ts.bf16],
          out: tile.Tensor["B", "S", "D", ts.bf16], top: tile.Tensor["B", "S", ts.bf16]):
        ctx = tile.context()
        b, s = tile.program_id(0) * 4, tile.program_id(1) * 8
        left = tile.alloc_shared([4, 8, ctx.D], ts.bf16)
        right = tile.alloc_shared([4, 8, ctx.D], ts.bf16)
        tile.copy_async(left, x[b : b + 4, s : s + 8])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.multiply(left, y[b : b + 4, s : s + 8], right)
        right[1:3, 0:8] = left[0:2] + right[2:4]
        for i in tile.range(0, 4, 2):
            right[i : i + 2, 4:8] += 1.0
        tile.store(right, out[b : b + 4, s : s + 8])
        tile.store(tile.max(right, axis=-1), top[b : b + 4, s : s + 8])
"""


def rank3(x, y):
    b, s, d = x.shape
    padded = [np.zeros((-(-b // 4) * 4, -(-s // 8) * 8, d), np.float32) for _ in range(2)]
    for full, part in zip(padded, (x, y), strict=True):
        full[:b, :s] = part.astype(np.float32)

    def bf16(v):
        return v.astype(ml_dtypes.bfloat16).astype(np.float32)

    left, right = padded[0], bf16(padded[0] * padded[1])
    before = right.copy()
    for start in range(0, left.shape[0], 4):
        right[start + 1 : start + 3] = bf16(left[start : start + 2] + before[start + 2 : start + 4])
    for start in range(0, left.shape[1], 8):
        right[:, start + 4 : start + 8] = bf16(right[:, start + 4 : start + 8] + 1.0)
    return right[:b, :s], right[:b, :s].max(axis=-1)


@pytest.mark.parametrize("b, s, d, archs", [(6, 13, 20, ("sm_80", "sm_90a")), (4, 8, 64, ()), (1, 9, 7, ())])
def test_buffers_and_windows_of_three_axes(b, s, d, archs):
    """Ragged along every axis; parts of a buffer are read and written at constant and at run-time places."""
    x, y = random((b, s, d), "bf16"), random((b, s, d), "bf16")
    arguments = {"x": x, "y": y, "out": np.zeros_like(x), "top": np.zeros((b, s), x.dtype)}
    outputs, _ = run(RANK3, arguments, {"B": b, "S": s, "D": d}, archs=archs)
    out, top = rank3(x, y)
    np.testing.assert_array_equal(outputs["out"].astype(np.float32), out)
    np.testing.assert_array_equal(outputs["top"].astype(np.float32), top)


@pytest.mark.parametrize("columns", ["0:24", "8:32", "5:40"])
def test_windows_of_a_buffer_as_operands_of_a_product(columns):
    """What lies beside the window, NaN here, must not reach the product."""
    start, stop = map(int, columns.split(":"))
    text = f"""
        @ts.kernel(grid=lambda d: (1,))
        def k(a: tile.Tensor[48, 64, ts.bf16], b: tile.Tensor[64, 16, ts.bf16], out: tile.Tensor[8, 16, ts.f32]):
            rows = tile.alloc_shared([48, 64], ts.bf16)
            tile.copy_async(rows, a)
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            for i in tile.range(0, 1):
                tile.store(tile.mma(rows[i + 40 : i + 48, {columns}], b[{columns}]), out)
    """
    a = random((48, 64), "bf16")
    a[:, :start] = a[:, stop:] = np.nan
    arguments = {"a": a, "b": random((64, 16), "bf16"), "out": np.zeros((8, 16), np.float32)}
    outputs, _ = run(text, arguments, {}, archs=())
    part, other = a[40:48, start:stop].astype(np.float64), arguments["b"][start:stop].astype(np.float64)
    np.testing.assert_allclose(outputs["out"], part @ other, atol=1e-4)


@pytest.mark.parametrize(
    "code, line, words",
    [
        ("TS504", "y = (x[0:8] + 1.0)[4:12]", "'4:12' leaves axis 0"),
        ("TS205", "p = tile.program_id(0)\n    y = (x[0:8] + 1.0)[p : p + 2]", "known only at run time"),
        ("TS301", "b = tile.alloc_shared([8, 8], ts.f32)\n    b[0:4] = x[0:8, 0:8]", "the window of 'b' is [4, 8]"),
        ("TS504", "b = tile.alloc_shared([8, 8], ts.f32)\n    b[4:12] = 0.0", "leaves axis 0"),
        ("TS301", "y = tile.reshape(x[0:8], [7, -1])", "does not give the size -1"),
        ("TS304", "y = tile.reshape(x[0:8], [2, 2, 2, 2, 8])", "at most 4 axes"),
        ("TS204", "y = tile.sum(x[0:8] > 0.0, axis=0)", "count with tile.cast"),
        ("TS304", "y = tile.argmax(x[0:8], axis=2)", "no axis 2"),
        ("TS304", "y = tile.iota([4, 4], axis=2)", "no axis 2"),
    ],
)
def test_mistakes_are_named(code, line, words):
    text = f"@ts.kernel(grid=lambda d: (1,))\ndef k(x: tile.Tensor[8, 16, ts.f32]):\n    {line}\n"
    with pytest.raises(TesseraError) as raised:
        compile_kernel(define(text), {})
    assert raised.value.code == code and words in str(raised.value), raised.value


@pytest.mark.parametrize(
    "body",
    [
        "tile.store(x[0:64] / tile.sum(x[0:64], axis=1, keepdims=True), out)",
        "tile.store(x[0:64] - tile.max(x[0:64], axis=0, keepdims=True), out)",
        "tile.store(x[0:64] + tile.iota([64, 96], axis=1, dtype=ts.f32), out)",
        "tile.store(x[0:64] + tile.iota([64, 96], axis=0, dtype=ts.f32), out)",
        "tile.store(tile.transpose(x[0:64].T * 2.0) + tile.cumsum(x[0:64], axis=1), out)",
        "tile.store(tile.cumsum(x[0:64], axis=0) + (x[0:64] * 2.0)[:, 0:1], out)",
    ],
)
@pytest.mark.parametrize("subtile", [32, 24])
def test_a_store_in_slices_keeps_every_bit(body, subtile):
    text = f"""
        @ts.kernel(grid=lambda d: (1,))
        def k(x: tile.Tensor[64, 96, ts.f32], out: tile.Tensor[64, 96, ts.f32]):
            {body}
    """
    x = np.abs(random((64, 96), "f32"))
    whole, sliced = ({"x": x, "out": np.zeros_like(x)} for _ in range(2))
    compilation = compile_kernel(define(text), {}, schedule=Schedule(4, subtile=subtile))
    interpret(compilation.stages[0].module.kernel(), whole, {})
    interpret(compilation.target.kernel(), sliced, {}, level="target")
    assert any(op.name == "for" for op in compilation.target.kernel().body.walk()), "it is computed in slices"
    np.testing.assert_array_equal(whole["out"], sliced["out"])
