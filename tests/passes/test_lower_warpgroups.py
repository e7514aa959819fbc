"""Products by warpgroups at Target level: one batch each, waited for where something needs the sums, and no sooner."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.ir.types import BufferType, TileType
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES
from tests.passes.lane_running import Ready, compiled, count, emulate, keeps_every_bit, needs_compiler, ops, reached


def consumers(name, *seen, **fields):
    """The names of ops of the consumers, in order."""
    (kernel,) = reached(getattr(lane_kernels, name), CASES[name], "lower_to_target", **fields)
    (roles,) = ops(kernel, "roles")
    return [op.name for op in roles.regions[1].walk() if op.name in seen]


def test_a_slot_is_released_when_the_products_have_read_it():
    assert consumers("gemm_nn", "wgmma", "wgmma_wait", "ring_wait", "ring_release") == [
        "ring_wait", "wgmma", "wgmma_wait", "ring_release",
    ]  # fmt: skip


def test_what_products_take_from_registers_they_have():
    """The slot is released while both products are in flight."""
    assert consumers("differences", "wgmma", "wgmma_wait", "ring_release", "tma_store") == [
        "wgmma", "ring_release", "wgmma", "ring_release", "wgmma_wait", "tma_store", "tma_store",
    ]  # fmt: skip


def test_two_products_fly_together():
    assert consumers("two_stores", "wgmma", "wgmma_wait", "ring_release") == [
        "wgmma", "wgmma", "wgmma_wait", "wgmma_wait", "ring_release", "ring_release",
    ]  # fmt: skip


def test_sums_that_begin_at_zero_are_fresh():
    """Those that a loop carries are not; a chain of panels begins with one that is."""
    for name, fresh in (("gemm_nn", [False]), ("differences", [True, False]), ("layers", [True])):
        (kernel,) = reached(getattr(lane_kernels, name), CASES[name], "lower_to_target")
        assert [op.attributes["fresh"] for op in ops(kernel, "wgmma")] == fresh, name


def test_operands_lie_in_buffers_or_registers():
    for name, type_ in (("gemm_nn", BufferType), ("differences", TileType), ("two_products", BufferType)):
        (kernel,) = reached(getattr(lane_kernels, name), CASES[name], "lower_to_target")
        assert isinstance(ops(kernel, "wgmma")[0].operands[0].type, type_), name
    assert isinstance(ops(kernel, "wgmma")[1].operands[0].type, TileType)  # sums of the first are the second's operand


@pytest.mark.parametrize(("name", "flips"), [("gemm_nn", (False, False)), ("gemm_tt", (True, True))])
def test_what_lies_transposed(name, flips):
    (kernel,) = reached(getattr(lane_kernels, name), CASES[name], "lower_to_target")
    (product,) = ops(kernel, "wgmma")
    assert (product.attributes["transpose_a"], product.attributes["transpose_b"]) == flips
    assert product.attributes["depth"] == 64


def test_a_buffer_that_is_written_waits_for_the_products_that_read_it():
    @ts.kernel
    def written(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
        m = tile.program_id(0) * 64
        state = tile.alloc_shared([64, 64], ts.bf16)
        tile.copy_async(state, a[m : m + 64])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        first = tile.mma(state, b)
        tile.fill(state, 1.0)
        tile.store(tile.mma(state, b, first), out[m : m + 64])

    (kernel,) = reached(written, {"M": 72}, "lower_to_target")
    names = [op.name for op in ops(kernel, "wgmma", "wgmma_wait", "st_shared")]
    first = names.index("wgmma")
    assert names[first : first + 4] == ["wgmma", "wgmma_wait", "st_shared", "wgmma"]


@ts.kernel
def apart(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], c: Tensor[64, 64, ts.bf16],
          out: Tensor["M", 64, ts.f32], more: Tensor["M", 64, ts.f32]):  # fmt: skip
    """The first sums are used while the second ones are made."""
    m = tile.program_id(0) * 64
    left, right, other = (tile.alloc_shared([64, 64], ts.bf16) for _ in range(3))
    for buffer, source in ((left, a[m : m + 64]), (right, b), (other, c)):
        tile.copy_async(buffer, source)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    first, second = tile.mma(left, right), tile.mma(left, other)
    again = tile.mma(tile.cast(tile.silu(first), ts.bf16), right)
    tile.store(second, more[m : m + 64])
    tile.store(again, out[m : m + 64])


@needs_compiler
def test_sums_are_waited_for_when_they_are_needed():
    """The second product flies on while the third one's operand is made of the first one's sums."""
    fields = {"copies": "", "persistent": False, "panels": 0}
    (kernel,) = reached(apart, {"M": 72}, "lower_to_target", **fields)
    found = ops(kernel, "wgmma", "wgmma_wait")
    assert [op.name for op in found] == ["wgmma", "wgmma", "wgmma_wait", "wgmma", "wgmma_wait", "wgmma_wait"]
    assert [op.attributes["pending"] for op in found if op.name == "wgmma_wait"] == [1, 1, 0]
    ready = compiled(apart, {"M": 72}, **fields)
    emulate([Ready(ready, {"M": 72}, keeps_every_bit(ready, {"M": 72}))])


@ts.kernel(schedule=dict(warps=4))
def flipped(x: Tensor["M", 64, ts.bf16], w: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """Sums of a product meet a tile that lies the other way in shared memory, and are stored the other way."""
    m = tile.program_id(0) * 64
    part = tile.alloc_shared([64, 64], ts.bf16)
    tile.copy_async(part, x[m : m + 64])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    sums = tile.mma(w, part, transpose_b=True) + tile.transpose(tile.cast(part[:, :], ts.f32))
    tile.store(tile.transpose(sums), out[m : m + 64])


@needs_compiler
def test_transposes_of_fragments_move_as_matrices():
    """By ldmatrix on both lanes, by stmatrix where there is one."""
    for family in ("", "wgmma"):
        ready = compiled(flipped, {"M": 100}, family=family, copies="", persistent=False, panels=0)
        assert count(ready, "ld_matrices", "st_matrices", "st_shared") == (1, 1, 0), family
        text = ready.cuda[0].text
        assert "ts_ldmatrix_x4_trans(words" in text and "ts_stmatrix_x4_trans(" in text
        emulate([Ready(ready, {"M": 100}, keeps_every_bit(ready, {"M": 100}))])
    assert count(compile_kernel(flipped, {"M": 100}, "sm_80"), "ld_matrices", "st_matrices") == (1, 0)
