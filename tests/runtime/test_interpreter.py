"""The interpreter on kernels built by hand, against NumPy models of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from interpreter_kernels import (
    BF16,
    Author,
    B,
    D,
    N,
    S,
    gating,
    matmul,
    normal,
    softmax,
    target_gating,
    unwritten,
    vector_add,
)

from tessera.dtypes import bf16, boolean, f32, i64
from tessera.errors import ArgumentError, SourceError
from tessera.ir.dims import cdiv, symbol
from tessera.ir.types import ScalarType, ViewType
from tessera.runtime import interpreter_setup
from tessera.runtime.interpreter import interpret
from tests.pace import within

pytestmark = pytest.mark.filterwarnings("error")


def f64(x):
    return x.astype(np.float64)


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 1000])
def test_vector_add(n):
    arguments = dict(x=normal(n), y=normal(n, seed=1), out=unwritten(n))
    result = interpret(vector_add(), arguments, {"N": n})
    np.testing.assert_array_equal(arguments["out"], (f64(arguments["x"]) + f64(arguments["y"])).astype(BF16))
    assert result.grid == (-(-n // 128),) and list(result.outputs) == ["out"] and result.batches == (n > 0)
    assert result.outputs["out"] is arguments["out"]


def test_softmax():
    arguments = dict(x=normal(7, 150, scale=10), out=unwritten(7, 150))
    interpret(softmax(), arguments, {"M": 7, "N": 150})
    x = f64(arguments["x"])
    e = np.exp(x - x.max(axis=1, keepdims=True))
    probabilities = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(f64(arguments["out"]), probabilities, rtol=2.0**-8 * 1.001, atol=0)


def gating_model(delta, params, distance):
    logits = np.exp(-0.1 * distance) * (f64(delta) @ f64(params))
    return f64(delta) / (1 + np.exp(-logits))


def gating_arguments(b, s, d):
    return dict(
        delta=normal(b, s, d), params=normal(d, d, scale=d**-0.5, seed=1), distance=2, output=unwritten(b, s, d)
    )


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 128, 24), (3, 150, 64)])
def test_gating_with_asynchronous_copies(shape):
    arguments = gating_arguments(*shape)
    interpret(gating(), arguments, dict(zip("BSD", shape, strict=True)))
    model = gating_model(arguments["delta"], arguments["params"], 2)
    np.testing.assert_allclose(f64(arguments["output"]), model, rtol=2.0**-8, atol=1e-6)


def test_every_covering_grid_gives_the_same_bits():
    dims = dict(B=2, S=150, D=16)
    coarse, fine = gating_arguments(2, 150, 16), gating_arguments(2, 150, 16)
    assert interpret(gating(), coarse, dims).grid == (2, 2)
    assert interpret(gating(coarse=False), fine, dims, grid=(2, 150)).grid == (2, 150)
    np.testing.assert_array_equal(coarse["output"].view(np.uint16), fine["output"].view(np.uint16))


def test_a_partial_grid_leaves_the_rest_alone():
    arguments = gating_arguments(1, 300, 16)
    interpret(gating(), arguments, dict(B=1, S=300, D=16), grid=(1, 1))
    assert np.isfinite(f64(arguments["output"][:, :128])).all() and np.isnan(f64(arguments["output"][:, 128:])).all()


def test_batches_do_not_change_the_result(monkeypatch):
    dims = dict(B=3, S=300, D=16)
    whole, cut = gating_arguments(3, 300, 16), gating_arguments(3, 300, 16)
    assert interpret(gating(), whole, dims).batches == 1
    monkeypatch.setattr(interpreter_setup, "BATCH_BYTES", 1)
    assert interpret(gating(), cut, dims).batches == 9
    np.testing.assert_array_equal(whole["output"].view(np.uint16), cut["output"].view(np.uint16))


@pytest.mark.parametrize("d", [16, 24, 64])
def test_a_target_kernel_gives_the_bits_of_its_tile_kernel(d):
    tile, target = gating_arguments(2, 150, d), gating_arguments(2, 150, d)
    interpret(gating(), tile, dict(B=2, S=150, D=d))
    interpret(target_gating(d), target, dict(B=2, S=150), level="target")
    assert np.isfinite(f64(tile["output"])).all()
    np.testing.assert_array_equal(tile["output"].view(np.uint16), target["output"].view(np.uint16))


def test_a_target_kernel_that_does_not_wait_is_an_error():
    with pytest.raises(SourceError, match="TS502.*'smem_delta'"):
        interpret(target_gating(16, wait=False), gating_arguments(1, 128, 16), dict(B=1, S=128), level="target")


def test_a_read_before_the_wait_is_an_error_at_its_line():
    with pytest.raises(SourceError, match="kernel.py:.*TS502.*'smem_delta'") as error:
        interpret(gating(wait=False), gating_arguments(1, 128, 16), dict(B=1, S=128, D=16))
    assert error.value.loc is not None


@pytest.mark.parametrize("shape", [(32, 32, 32), (50, 70, 100), (1, 5, 3), (4, 4, 0)])
@pytest.mark.parametrize("dtype", [bf16, f32])
def test_matmul_loop(shape, dtype):
    m, n, k = shape
    arguments = dict(
        a=normal(m, k, dtype=dtype.numpy),
        b=normal(k, n, dtype=dtype.numpy, seed=1),
        c=unwritten(m, n, dtype=np.float32),
    )
    interpret(matmul(dtype=dtype), arguments, dict(M=m, N=n, K=k))
    model = f64(arguments["a"]) @ f64(arguments["b"])
    allowed = 2.0**-23 * (k / 8 + 1) * (np.abs(f64(arguments["a"])) @ np.abs(f64(arguments["b"])))
    assert (np.abs(arguments["c"] - model) <= allowed).all()


def test_tiling_of_k_does_not_change_the_bits():
    results = []
    for block in (16, 32, 64):
        arguments = dict(a=normal(20, 100), b=normal(100, 24, seed=1), c=unwritten(20, 24, dtype=np.float32))
        interpret(matmul(bm=16, bn=8, bk=block), arguments, dict(M=20, N=24, K=100))
        results.append(arguments["c"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def scalars(name="scalars", **parameters):
    """A kernel of one program per element of out [N], i64, and a store of one number for each."""
    k = Author(name, **parameters, out=ViewType((N,), f32))
    k.kernel.attributes["grid"] = (N,)

    def finish(value):
        k.op("store", k.window(k["out"], [k("program_id", axis=0)], (1,)), k("full", value, shape=(1,), dtype=f32))
        return k.kernel

    return k, finish


def run_scalars(kernel, n=10, **arguments):
    out = np.full(n, np.nan, np.float32)
    result = interpret(kernel, dict(arguments, out=out), {"N": n})
    return out, result


def test_program_ids_count_axis_zero_fastest():
    k = Author("ids", out=ViewType((B, S, D), f32))
    ids = [k("program_id", axis=a) for a in range(3)]
    number = k("add", k("mul", k("program_id", axis=2), k.index(100)), k("program_id", axis=0, scale=3))
    k.op("store", k.window(k["out"], ids, (1, 1, 1)), k("full", number, shape=(1, 1, 1), dtype=f32))
    out = np.zeros((2, 3, 4), np.float32)
    interpret(k.kernel, {"out": out}, dict(B=2, S=3, D=4), grid=(2, 3, 4))
    np.testing.assert_array_equal(out, np.fromfunction(lambda b, s, d: 3 * b + 100 * d, (2, 3, 4)))


def test_loops_of_equal_length_run_together_and_others_apart():
    k, finish = scalars()
    pid = k("program_id", axis=0)

    def add_index(index, total):
        return [k("add", total, index)]

    together = k.loop(pid, k("add", pid, k.index(3)), k.index(1), [k("cast", k.index(0), dtype=i64)], add_index)[0]
    out, result = run_scalars(finish(together))
    np.testing.assert_array_equal(out, [3 * p + 3 for p in range(10)])
    assert result.batches == 1

    k, finish = scalars()
    pid = k("program_id", axis=0)
    apart = k.loop(k.index(0), k("mod", pid, k.index(4)), k.index(1), [k("cast", k.index(0), dtype=i64)], add_index)[0]
    out, result = run_scalars(finish(apart))
    np.testing.assert_array_equal(out, [sum(range(p % 4)) for p in range(10)])
    assert result.batches == 4


def test_a_loop_may_run_zero_times_and_count_down():
    k, finish = scalars()
    start = k("cast", k.index(7), dtype=i64)
    out, _ = run_scalars(finish(k.loop(k.index(5), k.index(5), k.index(1), [start], lambda i, t: [i])[0]))
    assert (out == 7).all()
    k, finish = scalars()
    start = k("cast", k.index(7), dtype=i64)
    out, _ = run_scalars(finish(k.loop(k.index(5), k.index(0), k.index(-2), [start], lambda i, t: [i])[0]))
    assert (out == 1).all()
    k, finish = scalars()
    with pytest.raises(SourceError, match="step of a loop is zero"):
        run_scalars(finish(k.loop(k.index(5), k.index(0), k.index(0), [k.size(N)], lambda i, t: [i])[0]))


def test_branches_split_the_batch():
    k, finish = scalars(limit=ScalarType(i64))
    pid = k("program_id", axis=0)
    inside = k("lt", pid, k["limit"])
    assert inside.type == ScalarType(boolean)
    value = k.branch(inside, lambda: [k("mul", pid, k.index(2))], lambda: [k("neg", pid)])[0]
    kernel = finish(value)
    out, result = run_scalars(kernel, limit=4)
    np.testing.assert_array_equal(out, [p * 2 if p < 4 else -p for p in range(10)])
    assert result.batches == 2
    out, result = run_scalars(kernel, limit=100)
    np.testing.assert_array_equal(out, [p * 2 for p in range(10)])
    assert result.batches == 1


def running_sum():
    """out[p + 1] += out[p]: each program reads what the one before wrote."""
    k = Author("running_sum", out=ViewType((N,), f32))
    pid = k("program_id", axis=0)
    here, following = (k.window(k["out"], [p], (1,)) for p in (pid, k("add", pid, k.index(1))))
    k.op("store", following, k("add", k("load", here), k("load", following)))
    k.kernel.attributes["grid"] = (N - 1,)
    return k.kernel


def test_a_tensor_that_is_read_and_written_runs_program_by_program():
    out = np.arange(1, 9, dtype=np.float32)
    assert interpret(running_sum(), {"out": out}, {"N": 8}).batches == 7
    np.testing.assert_array_equal(out, np.cumsum(np.arange(1, 9)))


def test_arguments_that_share_memory_run_program_by_program():
    memory = normal(1000)
    arguments = dict(x=memory[:900], y=normal(900, seed=1), out=memory[100:])
    assert interpret(vector_add(), arguments, {"N": 900}).batches == 8


def test_overflow_names_the_op_and_the_value():
    k, finish = scalars(big=ScalarType(i64))
    product = k("mul", k["big"], k("program_id", axis=0, hint="pid"))
    line = k.line
    with pytest.raises(SourceError, match=r"TS401.*mul of 'big' and .* is 9223372036854775808") as error:
        run_scalars(finish(product), n=3, big=2**62)
    assert error.value.loc.line == line
    k, finish = scalars(divisor=ScalarType(i64))
    with pytest.raises(SourceError, match="TS401.*divides by zero"):
        run_scalars(finish(k("floordiv", k("program_id", axis=0), k["divisor"])), divisor=0)


def test_errors_of_ops_get_the_line_of_the_op():
    k, finish = scalars(x=ViewType((N,), f32))
    outside = k.window(k["x"], [k("add", k("program_id", axis=0), k.index(1))], (1,), (False,))
    kernel = finish(k("load", outside))
    with pytest.raises(SourceError, match="kernel.py:.*TS504.*index 10 is outside axis 0"):
        run_scalars(kernel, x=np.ones(10, np.float32))
    k = Author("unwritten", out=ViewType((N,), f32))
    k.op("store", k["out"], k("read", k("alloc_shared", hint="buffer", shape=(N,), dtype=f32)))
    with pytest.raises(SourceError, match="kernel.py:2:1.*TS503.*'buffer'"):
        interpret(k.kernel, {"out": np.zeros(4, np.float32)}, {"N": 4}, grid=(1,))


def test_a_buffer_of_a_loop_body_starts_undefined_each_time():
    k = Author("stale", out=ViewType((N,), f32))

    def body(index):
        buffer = k("alloc_shared", hint="buffer", shape=(N,), dtype=f32)
        first = k("eq", index, k.index(0))
        k.branch(first, lambda: k.op("write", buffer, k("load", k["out"])).results, lambda: [])
        k.op("store", k["out"], k("read", buffer))
        return []

    k.loop(k.index(0), k.index(2), k.index(1), [], body)
    with pytest.raises(SourceError, match="TS503"):
        interpret(k.kernel, {"out": np.zeros(4, np.float32)}, {"N": 4}, grid=(1,))


def test_arguments_are_checked():
    good = dict(x=normal(5), y=normal(5), out=unwritten(5))
    kernel = vector_add()

    def fails(code, error=ArgumentError, dims=None, **changed):
        with pytest.raises(error, match=code):
            interpret(kernel, {k: v for k, v in {**good, **changed}.items() if v is not None}, dims or {"N": 5})

    fails("TS601.*'x'", x=None)
    fails("TS601.*'z'", z=1)
    fails("TS601.*dim N", dims={"M": 1})
    fails("TS604.*'x' must be an array of bf16, not of float32", x=np.zeros(5, np.float32))
    fails("TS604.*'x'", x=[1, 2])
    fails(r"TS302.*'y' has the shape \[6\]", y=normal(6))
    kernel.attributes["static"] = {"N": 6}
    fails("TS302.*specialised for N = 6")
    del kernel.attributes["grid"], kernel.attributes["static"]
    fails("TS305", SourceError)
    k, finish = scalars(count=ScalarType(i64))
    with pytest.raises(ArgumentError, match="TS604.*'count' must be a number"):
        run_scalars(finish(k["count"]), count="3")
    with pytest.raises(SourceError, match="TS702.*load is not an op of the target level"):
        interpret(vector_add(), good, {"N": 5}, level="target")


def test_static_dims_and_symbolic_shapes():
    size = cdiv(symbol("K"), 2) * 2
    k = Author("symbolic", out=ViewType((size,), f32))
    k.op("store", k["out"], k("full", k.size(size + 1), shape=(size,), dtype=f32))
    k.kernel.attributes.update(static={"K": 5}, grid=(1,))
    out = np.zeros(6, np.float32)
    interpret(k.kernel, {"out": out}, {})
    assert (out == 7).all()
    assert k.kernel.body.ops[0].attributes["size"] == size + 1  # the kernel itself is left as it was


def test_speed():
    """The flagship shape in a fraction of a second, so that it can be an oracle."""
    arguments = gating_arguments(2, 300, 128)
    with within(1.0):
        interpret(gating(), arguments, dict(B=2, S=300, D=128))


def test_values_are_let_go_after_their_last_use():
    """A loop of many large tiles needs the room of a few: carried values and what an iteration computes."""
    k = Author("chain", out=ViewType((1,), f32))
    tile = k("full", k("constant", value=1.0), shape=(1 << 20,), dtype=f32)
    for _ in range(40):
        tile = k("add", tile, tile)
        tile = k("mul", tile, k("constant", value=0.5))
    k.op("store", k["out"], k("extract", tile, starts=(0,), extents=(1,)))
    k.kernel.attributes.update(grid=(1,))
    out = np.zeros(1, np.float32)
    tracemalloc.start()
    interpret(k.kernel, {"out": out}, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out[0] == 1 and peak < 32 << 20  # of 80 tiles of 4 MB


def test_programs_per_batch_counts_what_is_alive_at_once():
    small = interpreter_setup.concrete(gating(), dict(B=1, S=128, D=64))
    # At the product: smem_delta, its read and the product; the read of smem_params, which itself is gone by then.
    elements = 3 * 128 * 64 + 64 * 64
    assert interpreter_setup.programs_per_batch(small, 4) == interpreter_setup.BATCH_BYTES // (4 * elements)
