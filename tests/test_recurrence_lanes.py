"""What kernels of recurrences are made of, on every lane that runs without a GPU: scans from behind, loops whose bounds
lie in memory, loops that run down, states that loops carry through products, parts of tiles put together.
"""

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera.compiler import compile_kernel
from tests.lanes import define, run
from tests.passes.test_register_operands import ops

RNG = np.random.default_rng(5)
BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("shape, axis, dtype", [((64,), 0, "f32"), ((5, 40), 1, "bf16"), ((33, 8), 0, "i32")], ids=str)
def test_cumsum_from_behind(shape, axis, dtype):
    window, sizes = ", ".join(f"0:{n}" for n in shape), ", ".join(map(str, shape))
    text = f"""
        @ts.kernel(grid=lambda d: (1,))
        def k(x: Tensor[{sizes}, ts.{dtype}], out: Tensor[{sizes}, ts.{dtype}]):
            tile.store(tile.cumsum(x[{window}], axis={axis}, reverse=True), out[{window}])
    """
    made = {"f32": np.float32, "bf16": BF16, "i32": np.int32}[dtype]
    x = (RNG.integers(-50, 50, shape) if dtype == "i32" else RNG.standard_normal(shape)).astype(made)
    outputs, _ = run(text, {"x": x, "out": np.zeros(shape, made)}, {})
    wide = np.flip(np.cumsum(np.flip(x.astype(np.float64), axis), axis=axis), axis)
    most = {"f32": 1e-5, "bf16": 0.05, "i32": 0}[dtype]
    np.testing.assert_allclose(outputs["out"].astype(np.float64), wide, atol=most, rtol=0)


def test_reverse_is_a_bool():
    text = """
        @ts.kernel
        def k(x: Tensor[8, ts.f32], out: Tensor[8, ts.f32]):
            tile.store(tile.cumsum(x[0:8], reverse=1), out[0:8])
    """
    with pytest.raises(ts.TesseraError, match="reverse= is True or False, not") as caught:
        compile_kernel(define(text), {})
    assert caught.value.code == "TS203" and caught.value.loc is not None


def test_a_scan_over_packed_sequences_forwards_and_backwards():
    """Bounds from memory, windows that end with a sequence, a loop that runs down, a program that has nothing to do."""
    text = """
        @ts.kernel(grid=lambda d: (d.N,))
        def k(x: Tensor["T", 16, ts.f32], bounds: Tensor["N + 1", ts.i32], out: Tensor["T", 16, ts.f32],
              back: Tensor["T", 16, ts.f32]):
            n = tile.program_id(0)
            first, last = tile.load_scalar(bounds[n]), tile.load_scalar(bounds[n + 1])
            if first < last:
                blocks = tile.cdiv(last - first, 8)
                total = tile.zeros([1, 16])
                for i in tile.range(blocks):
                    block = tile.load(tile.window(x, first + i * 8, 8, limit=last))
                    tile.store(tile.cumsum(block, axis=0) + total, tile.window(out, first + i * 8, 8, limit=last))
                    total = total + tile.sum(block, axis=0, keepdims=True)
                rest = tile.zeros([1, 16])
                for i in tile.range(blocks - 1, -1, -1):
                    block = tile.load(tile.window(x, first + i * 8, 8, limit=last))
                    tile.store(tile.cumsum(block, axis=0, reverse=True) + rest,
                               tile.window(back, first + i * 8, 8, limit=last))
                    rest = rest + tile.sum(block, axis=0, keepdims=True)
    """
    bounds = np.array([0, 19, 19, 20, 41], np.int32)
    x = RNG.standard_normal((41, 16)).astype(np.float32)
    poison = {name: np.full_like(x, np.nan) for name in ("out", "back")}
    outputs, _ = run(text, {"x": x, "bounds": bounds, **poison}, {"T": 41, "N": 4})
    for first, last in zip(bounds, bounds[1:], strict=False):
        part = x[first:last].astype(np.float64)
        np.testing.assert_allclose(outputs["out"][first:last], np.cumsum(part, 0), atol=1e-5)
        np.testing.assert_allclose(outputs["back"][first:last], np.cumsum(part[::-1], 0)[::-1], atol=1e-5)


CARRIED = """
    @ts.kernel(grid=lambda d: (1,), schedule=dict(warps=2))
    def k(x: Tensor["T", 32, ts.bf16], w: Tensor["T", 32, ts.bf16], out: Tensor["T", 32, ts.bf16],
          last: Tensor[32, 32, ts.f32]):
        ctx = tile.context()
        state = tile.zeros([32, 32])
        for t in tile.range(0, ctx.T, 16):
            rows = tile.load(w[t : t + 16])
            scale = tile.reshape(tile.cast(x[t : t + 16, 0], ts.f32), [1, 16])
            seen = tile.mma(tile.cast(state, ts.bf16), rows, transpose_b=True)
            rest = tile.transpose(tile.cast(x[t : t + 16], ts.f32)) - seen * scale
            tile.store(tile.transpose(rest), out[t : t + 16])
            state = tile.mma(tile.cast(rest, ts.bf16), rows, state * 0.5)
        tile.store(state, last)
"""


def test_a_carried_state_goes_from_registers_to_products():
    """The state, and what is computed from it and from a transposed load, are left operands where they are."""
    length = 48
    x, w = ((RNG.standard_normal((length, 32)) * 0.3).astype(BF16) for _ in range(2))
    arguments = {"x": x, "w": w, "out": np.full_like(x, np.nan), "last": np.full((32, 32), np.nan, np.float32)}
    outputs, _ = run(CARRIED, arguments, {"T": length})
    state, out = np.zeros((32, 32)), np.zeros((length, 32))
    for t in range(0, length, 16):
        a, b = x[t : t + 16].astype(np.float64), w[t : t + 16].astype(np.float64)
        rest = a.T - (state @ b.T) * a[:, 0]
        out[t : t + 16] = rest.T
        state = state * 0.5 + rest @ b
    assert np.abs(outputs["out"].astype(np.float64) - out).max() < 0.02
    assert np.abs(outputs["last"] - state).max() < 0.02
    target = compile_kernel(define(CARRIED), {"T": 4096}).target.kernel()
    (turn,) = next(op for op in target.body.ops if op.name == "for").regions
    assert len(ops(turn, "fragment")) == 3  # two k-blocks of the state, one of the rest
    assert len(ops(turn, "st_shared")) <= 1  # the output on its way to memory


def test_one_barrier_for_operands_that_are_there_at_once():
    """Computed operands are written when they are there: four products that do not need each other wait together."""
    text = """
        @ts.kernel(grid=lambda d: (1,), schedule=dict(warps=2))
        def k(x: Tensor[64, 16, ts.f16], y: Tensor[64, 16, ts.f16], out: Tensor[64, 16, ts.f32]):
            a = [x[16 * i : 16 * i + 16] * 0.5 for i in range(4)]
            b = [y[16 * i : 16 * i + 16] + 1.0 for i in range(4)]
            for i in range(4):
                tile.store(tile.mma(a[i], b[i]), out[16 * i : 16 * i + 16])
    """
    x, y = (RNG.standard_normal((64, 16)).astype(np.float16) for _ in range(2))
    outputs, _ = run(text, {"x": x, "y": y, "out": np.full((64, 16), np.nan, np.float32)}, {})
    for i in range(4):
        part = slice(16 * i, 16 * i + 16)
        exact = (x[part] * np.float16(0.5)).astype(np.float64) @ (y[part] + np.float16(1)).astype(np.float64)
        np.testing.assert_allclose(outputs["out"][part], exact, atol=1e-5)
    body = compile_kernel(define(text), {}).target.kernel().body
    assert len(ops(body, "barrier")) == 1


def test_parts_of_a_tile_are_put_together_in_a_buffer():
    text = """
        @ts.kernel
        def k(x: Tensor[32, 32, ts.f32], out: Tensor[32, 32, ts.f32]):
            block = tile.load(x)
            whole = tile.alloc_shared([32, 32], ts.f32)
            for i in range(2):
                for j in range(2):
                    part = block[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
                    whole[16 * j : 16 * j + 16, 16 * i : 16 * i + 16] = part
            row, column = tile.iota([32, 1], axis=0), tile.iota([1, 32], axis=1)
            tile.store(tile.where(row > column, whole[:] * 2.0, 0.0), out)
    """
    x = RNG.standard_normal((32, 32)).astype(np.float32)
    outputs, _ = run(text, {"x": x, "out": np.full_like(x, np.nan)}, {})
    whole = x.reshape(2, 16, 2, 16).transpose(2, 1, 0, 3).reshape(32, 32)
    np.testing.assert_array_equal(outputs["out"], np.tril(2 * whole, -1))
