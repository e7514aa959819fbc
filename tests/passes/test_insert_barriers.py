"""Fences: what threads write to shared memory is made visible to wgmma before the barrier that orders the two; and
barriers that parts of a buffer do without.
"""
# ruff: noqa: F821  (the names of dims)

import itertools

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.verify import verify
from tests.lanes import define, run
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm
from tests.passes.lane_running import ops, reached


def between(kernel, first, last):
    """The names of barriers and fences between each op called `first` and the next one called `last`."""
    names = [op.name for op in kernel.body.walk() if op.name in (first, last, "barrier", "fence_async")]
    found = []
    for place, name in enumerate(names):
        if name == first and last in names[place:]:
            found.append(tuple(n for n in names[place : place + names[place:].index(last)] if n != first))
    return found


def blocks(block):
    return [block, *(inner for op in block.ops for region in op.regions for inner in blocks(region))]


def lowered(definition, dims, **fields):
    (kernel,) = reached(definition, dims, "insert_barriers", **fields)
    return kernel


def test_what_threads_compute_is_fenced():
    kernel = lowered(lane_kernels.own_scratch, CASES["own_scratch"])
    assert set(between(kernel, "st_shared", "wgmma")) == {("fence_async", "barrier")}
    assert between(kernel, "async_wait", "wgmma")[-1] == ("fence_async", "barrier")


def test_copies_of_threads_are_fenced_and_those_of_tma_are_not():
    dims = {"M": 72, "N": 72, "K": 129}
    kernel = lowered(make_gemm(), dims)
    assert between(kernel, "async_wait", "wgmma")[0] == ("fence_async", "barrier")
    following = [op.name for block in blocks(kernel.body) for op in block.ops]
    assert all(b == "barrier" for a, b in itertools.pairwise(following) if a == "fence_async")
    kernel = lowered(lane_kernels.gemm_nn, CASES["gemm_nn"])
    assert not ops(kernel, "fence_async", "barrier")


def test_the_fence_of_a_computed_operand_is_the_consumers():
    """A right operand is always in shared memory, whoever has computed it."""

    @ts.kernel
    def computed(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
        m = tile.program_id(0) * 64
        tile.store(tile.mma(a[m : m + 64], b[0:64] * 0.5), out[m : m + 64])

    kernel = lowered(computed, {"M": 330})
    (roles,) = ops(kernel, "roles")
    inside = list(roles.regions[1].walk())
    fences = [place for place, op in enumerate(inside) if op.name == "fence_async"]
    assert fences and all(inside[place + 1].name == "barrier" for place in fences)
    assert {op.attributes["threads"] for op in inside if op.name == "barrier"} == {128}


@pytest.mark.parametrize("fields", [{"family": ""}, {"family": "", "copies": ""}])
def test_no_fence_where_threads_read(fields):
    """mma.sync reads through the threads' own path: a barrier is enough."""
    kernel = lowered(lane_kernels.own_scratch, CASES["own_scratch"], **fields)
    assert not ops(kernel, "fence_async") and ops(kernel, "barrier")


PARTS = """
    @ts.kernel(grid=lambda d: (1,))
    def k(x: Tensor[64, 32, ts.f32], out: Tensor[64, 32, ts.f32]):
        whole = tile.alloc_shared([64, 32], ts.f32)
        parts = [tile.load(x[i : i + 32]) for i in ({starts})]
        for i, part in zip(({starts}), parts):
            whole[i : i + 32] = part
        tile.store(whole[:], out)
"""


@pytest.mark.parametrize(("starts", "together"), [((0, 32), 2), ((0, 16, 32), 1)], ids=str)
def test_windows_that_do_not_overlap_need_no_barrier_between(starts, together):
    text = PARTS.format(starts=", ".join(map(str, starts)))
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    outputs, _ = run(text, {"x": x, "out": np.full_like(x, np.nan)}, {})
    np.testing.assert_array_equal(outputs["out"], x)
    body = compile_kernel(define(text), {}).target.kernel().body
    stores = [op.name for op in body.walk() if op.name in ("st_shared", "barrier")]
    assert stores[: stores.index("barrier") + 1].count("st_shared") == together


MIXED = """
    @ts.kernel(grid=lambda d: (1,))
    def k(x: Tensor[8, 20, ts.f32], out: Tensor[8, 20, ts.f32]):
        whole = tile.alloc_shared([8, 20], ts.f32)
        tile.multiply(x[:], 0.5, whole)
        whole[0:1, 0:1] = 0.25
        whole[0:1, {column}:{end}] = whole[0:1, {column}:{end}] * -0.5
        tile.store(whole[:], out)
"""


@pytest.mark.parametrize("column", [0, 19])
def test_what_is_read_beside_a_part_that_was_written(column):
    """The verifier of the pass knows parts too; the whole buffer was written before, behind a barrier of its own."""
    x = np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)
    expected = x * np.float32(0.5)
    expected[0, 0] = 0.25
    expected[0, column] *= -0.5
    text = MIXED.format(column=column, end=column + 1)
    outputs, _ = run(text, {"x": x, "out": np.full_like(x, np.nan)}, {})
    np.testing.assert_array_equal(outputs["out"], expected)


def test_a_part_that_is_read_without_a_barrier_is_refused():
    """Without its barriers the kernel does not verify where parts overlap, and does where they do not."""
    for column, right in ((0, False), (19, True)):
        module = compile_kernel(define(MIXED.format(column=column, end=column + 1)), {}).target
        kernel = module.kernel()
        stores = [op for op in kernel.body.ops if op.name == "st_shared"]
        behind = kernel.body.ops.index(stores[1])
        load = next(op for op in kernel.body.ops[behind:] if op.name == "ld_shared")
        between = kernel.body.ops[behind : kernel.body.ops.index(load)]
        assert any(op.name == "barrier" for op in between) is not right
        kernel.body.ops[:] = [op for op in kernel.body.ops if op not in between or op.name != "barrier"]
        if right:
            verify(module, barriers=True, placed=True)
        else:
            with pytest.raises(SourceError, match="no barrier lies between the st_shared"):
                verify(module, barriers=True, placed=True)
