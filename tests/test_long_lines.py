"""Kernels whose lines are shared by warps: the same bits at every stage and as emulated CUDA, and no spills."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.runtime.nvrtc import compile_cubin
from tests.lanes import define, run

RNG = np.random.default_rng(11)

SOFTMAX = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
        first = tile.program_id(0) * 4
        rows = tile.cast(x[first : first + 4], ts.f32) * 1.25
        weights = tile.exp2(rows - tile.max(rows, axis=-1, keepdims=True))
        tile.store(weights * (1.0 / tile.sum(weights, axis=-1, keepdims=True)), output[first : first + 4])
"""
NORM = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.{dtype}], weight: Tensor["N", ts.{dtype}], bias: Tensor["N", ts.{dtype}],
          output: Tensor["M", "N", ts.{dtype}]):
        first = tile.program_id(0) * 4
        rows = tile.cast(x[first : first + 4], ts.f32)
        centred = rows - tile.mean(rows, axis=-1, keepdims=True)
        scaled = centred * tile.rsqrt(tile.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        tile.store(scaled * weight[:] + bias[:], output[first : first + 4])
"""
INDICES = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.f32], top: Tensor["M", ts.i32], low: Tensor["M", ts.f32],
          output: Tensor["M", "N", ts.f32]):
        row = tile.program_id(0)
        rows = x[row : row + 1]
        tile.store(tile.argmax(rows, axis=-1), top[row : row + 1])
        tile.store(tile.min(rows, axis=-1), low[row : row + 1])
        tile.store(rows * tile.sum(rows, axis=-1, keepdims=True), output[row : row + 1])
"""
TWICE = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.bf16], twice: Tensor["M", "N", ts.bf16], output: Tensor["M", "N", ts.bf16]):
        first = tile.program_id(0) * 4
        rows = tile.cast(x[first : first + 4], ts.f32) * 2.0
        tile.store(rows, twice[first : first + 4])
        tile.store(rows * tile.rsqrt(tile.mean(rows * rows, axis=-1, keepdims=True)), output[first : first + 4])
"""


def lines(m, n, dtype=ml_dtypes.bfloat16):
    return RNG.standard_normal((m, n)).astype(dtype)


@pytest.mark.parametrize("n", [3000, 4096])
def test_softmax(n):
    x = lines(6, n)  # the last program finds no row to begin with
    outputs, _ = run(SOFTMAX, {"x": x, "output": np.zeros_like(x)}, {"M": 6, "N": n}, seeds=(0, 7))
    wide = np.exp2(x.astype(np.float64) * 1.25 - np.max(x.astype(np.float64) * 1.25, -1, keepdims=True))
    np.testing.assert_allclose(
        outputs["output"].astype(float), wide / wide.sum(-1, keepdims=True), rtol=0.02, atol=1e-5
    )


@pytest.mark.parametrize("n, dtype", [(2048, "bf16"), (5000, "bf16"), (4096, "f32"), (4100, "f16"), (9216, "bf16")])
def test_norms(n, dtype):
    kind = {"bf16": ml_dtypes.bfloat16, "f32": np.float32, "f16": np.float16}[dtype]
    x, weight, bias = lines(5, n, kind), *(lines(1, n, kind)[0] for _ in range(2))
    arguments = {"x": x, "weight": weight, "bias": bias, "output": np.zeros_like(x)}
    outputs, _ = run(NORM.format(dtype=dtype), arguments, {"M": 5, "N": n}, seeds=(3,))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight.astype(float) + bias.astype(
        float
    )
    np.testing.assert_allclose(outputs["output"].astype(float), expected, rtol=0.02, atol=0.03)


def test_indices_and_extrema_of_a_line_that_warps_share():
    x = lines(3, 4096, np.float32)
    x[0, 1234] = x[0, 4000] = 9.0
    x[1, 3333] = -np.inf
    outputs, _ = run(
        INDICES,
        {"x": x, "top": np.zeros(3, np.int32), "low": np.zeros(3, np.float32), "output": np.zeros_like(x)},
        {"M": 3, "N": 4096},
        archs=("sm_90a",),
        seeds=(1,),
    )
    np.testing.assert_array_equal(outputs["top"], np.argmax(x, -1))
    np.testing.assert_array_equal(outputs["low"], np.min(x, -1))


def compiled(text, n, arch="sm_90a"):
    return compile_kernel(define(text), {"M": 64, "N": n}, arch)


def schedule(text, n):
    chosen = compiled(text, n).target.kernel().attributes["schedule"]
    return chosen["warps"], chosen["rows"], chosen["subtile"]


def test_the_default_point_shares_lines_that_fill_registers():
    norm = NORM.format(dtype="bf16")
    assert schedule(SOFTMAX, 1024)[1:] == schedule(norm, 1024)[1:] == (0, 0), "a warp has a short line to itself"
    assert schedule(SOFTMAX, 2048) == (4, 0, 0), "and one of 64 registers"
    assert schedule(norm, 2048) == (2, 1, 0), "more live at once in a norm"
    assert schedule(SOFTMAX, 4096) == schedule(norm, 4096) == (4, 1, 0)
    assert schedule(SOFTMAX, 16384) == schedule(norm, 16384) == (16, 1, 0)
    assert schedule(TWICE, 4096)[1] == 0, "each store would load the lines again"
    assert schedule(SOFTMAX, 5000) == (4, 1, 0), "an eighth warp would hold padding"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("text, most", [(SOFTMAX, 64), (NORM.format(dtype="bf16"), 64)], ids=["softmax", "norm"])
def test_registers_leave_room_for_many_lines(text, most, arch):
    compilation = compiled(text, 4096, arch)
    found = compile_cubin(compilation.cuda[0].text, arch, "k").resources["k"]
    assert found.registers <= most
    assert not found.spill_stores


@pytest.mark.parametrize("text, count", [(SOFTMAX, 2), (NORM.format(dtype="bf16"), 2)], ids=["softmax", "norm"])
def test_barriers_of_a_line(text, count):
    """One for each reduction: every thread combines what the warps have, which lies in bytes of its own."""
    (kernel,) = compiled(text, 4096).target.kernels
    assert [op.name for op in kernel.body.walk()].count("barrier") == count


@pytest.mark.parametrize(
    "n, parts, fold", [(4096, 4, "fold_blocks"), (5120, 20, "fold_blocks"), (9216, 36, "fold_lines")]
)
def test_parts_of_a_line_are_as_large_as_no_two_warps_share_one(n, parts, fold):
    (kernel,) = compiled(NORM.format(dtype="bf16"), n).target.kernels
    folds = [op for op in kernel.body.walk() if op.name.startswith("fold_")]
    assert [(op.name, op.operands[0].type.shape) for op in folds] == 2 * [(fold, (1, parts))]


@pytest.mark.parametrize("n", [1024, 4096])
def test_sums_that_meet_across_lanes_are_shared_out(n):
    """Of 4 sums a thread: 2 and 1 shuffles, one for each of 3 bits of lanes, and 2 for what lanes have shared out."""
    text = compiled(NORM.format(dtype="bf16"), n).cuda[0].text
    assert text.count("ts_shfl_xor") == 2 * (2 + 1 + 3 + 2)
