"""Producers and consumers: what each of them does in which order, how many slots there are, and what stays one role."""
# ruff: noqa: F821  (the names of dims)

import dataclasses
import re

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import SourceError
from tessera.passes.split_roles import split_roles
from tessera.runtime.inputs import length_name
from tessera.target.arch import arch
from tessera.target.schedule import schedule_of
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm
from tests.passes.lane_running import compiled, count, ops, outputs_of, reached, stage, why_not
from tests.passes.test_pipeline import assert_same_bits
from tests.suite import load

ROLES = "load", "compute"


def split(name, **fields):
    (kernel,) = reached(getattr(lane_kernels, name), CASES[name], "split_roles", **fields)
    return kernel


def sides(kernel):
    """The names of what each role does with rings, buffers and tensors, with the loops and branches round it."""
    (roles,) = ops(kernel, "roles")
    seen = re.compile("ring_.*|tma_load|read|mma|store|for|if|wait|copy_async|write")
    return [" ".join(op.name for op in region.walk() if seen.fullmatch(op.name)) for region in roles.regions]


def test_the_order_of_both_roles():
    assert sides(split("gemm_nn")) == [
        "for for ring_acquire ring_expect tma_load tma_load",
        "for for ring_wait read read mma ring_release store",
    ]
    assert sides(split("in_branches")) == [
        "for for if ring_acquire ring_expect tma_load tma_load",
        "for for if ring_wait read read mma ring_release store",
    ]


def test_what_arrives_once_is_not_released_and_what_is_read_is_before():
    """The release stands behind the products that take what was read from registers: they have it when they start."""
    producer, consumers = sides(split("differences"))
    stays = "ring_acquire ring_expect tma_load"
    copies = f"{stays} tma_load"
    assert producer == f"{stays} for {copies} {copies} if {stays}"
    panel = "ring_wait read read ring_wait read mma ring_release"
    assert consumers == f"for {panel} {panel} store store"
    producer, consumers = sides(split("scaled_sum"))
    assert consumers == "for ring_wait read ring_release ring_wait read ring_release store"


@ts.kernel
def gated(xs: list[Tensor["M", 128, ts.bf16]], ys: list[Tensor["M", 128, ts.bf16]],
          ws: list[Tensor[128, 128, ts.bf16]], out: Tensor["M", 128, ts.bf16]):  # fmt: skip
    """Products of differences, panel by panel, with weights that arrive panel by panel as well."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 128], ts.f32)
    for layer in tile.range(len(xs)):
        delta = xs[layer][m : m + 64] - ys[layer][m : m + 64]
        acc += delta * tile.sigmoid(tile.mma(delta, ws[layer]))
    tile.store(acc, out[m : m + 64])


GATED = {"M": 130, **{length_name(name): 3 for name in ("xs", "ys", "ws")}}


@pytest.mark.parametrize(("stages", "held"), [(2, False), (3, True)])
def test_products_in_a_row_fly_on_where_the_ring_has_slots_to_spare(stages, held):
    """What products read is released behind the last of them, beside which the next operand is computed."""
    compilation = compiled(gated, GATED, stages=stages, persistent=False)
    kernel = stage(compilation, "split_roles")
    (roles,) = ops(kernel, "roles")
    seen = [op for op in roles.regions[1].walk() if op.name in ("ring_wait", "ring_release", "mma")]
    text = " ".join(op.name[5:] + op.operands[0].name[-2:] if op.name != "mma" else "mma" for op in seen)
    early, late = ("", " release_1 release_1") if held else (" release_1", " release_1")
    assert text == f"wait_0 wait_1 mma release_0{early} wait_0 wait_1 mma release_0{late}"
    expected = outputs_of(compilation.stages[0].module.kernel(), GATED)
    for step, level in (("split_roles", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, step), GATED, level, seed=2), step)


def rings_of(kernel):
    """Slots and arrivals of each ring, in order."""
    return [(op.attributes["stages"], op.attributes["arrivals"]) for op in ops(kernel, "ring")]


def test_rings():
    """Groups that are alike share a ring, one that stays has a slot for each time, and one that runs once has one."""
    assert rings_of(split("scaled_sum", stages=3)) == [(3, 16)]
    assert rings_of(split("differences", stages=3)) == [(1, 4), (1, 4), (3, 4)]
    assert rings_of(split("layers", stages=3)) == [(4, 4), (3, 4)]
    assert rings_of(split("gemm_nn", stages=1)) == [(2, 4)]
    assert rings_of(split("gemm_tall", stages=5)) == [(5, 8)]


@ts.kernel
def held(x: Tensor["M", 64, ts.bf16], w: Tensor["K", 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """A tile that is needed while others of its kind come and go."""
    ctx = tile.context()
    m = tile.program_id(0) * 64
    first = tile.alloc_shared([64, 64], ts.bf16)
    tile.copy_async(first, x[m : m + 64])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    acc = tile.zeros([64, 64], ts.f32)
    for k in tile.range(0, ctx.K, 64):
        acc = tile.mma(w[k : k + 64], w[k : k + 64], acc)
    tile.store(tile.mma(first, tile.cast(acc, ts.bf16)), out[m : m + 64])


def test_a_slot_that_is_held_is_of_a_ring_of_its_own():
    """Slots of a ring are taken in turn: with one ring of two slots nobody could go on."""
    dims = {"M": 330, "K": 264}
    compilation = compiled(held, dims, stages=2)
    kernel = stage(compilation, "split_roles")
    assert len(rings_of(kernel)) == 2
    expected = outputs_of(compilation.stages[0].module.kernel(), dims)
    for seed in (None, 1, 2):
        assert_same_bits(expected, outputs_of(kernel, dims, seed=seed), f"seed {seed}")


@pytest.mark.parametrize("name", ["two_products", "in_branches", "deltas", "own_buffers"])
def test_roles_may_go_on_in_any_order(name):
    compilation = compiled(getattr(lane_kernels, name), CASES[name], stages=2)
    expected = outputs_of(compilation.stages[0].module.kernel(), CASES[name])
    for step, level in (("split_roles", "tile"), ("interleave", "target")):
        assert_same_bits(expected, outputs_of(stage(compilation, step), CASES[name], level, seed=5), step)


def test_bytes_are_those_of_the_slot():
    for name, bytes_ in (
        ("gemm_nn", [16384]),
        ("gemm_narrow", [64 * 32 + 16 * 48]),
        ("differences", [16384, 16384, 16384, 16384]),
    ):
        assert [op.attributes["bytes"] for op in ops(split(name), "ring_expect")] == bytes_


@pytest.mark.parametrize(
    ("warps", "blocks", "registers"), [(4, 1, (0, 0)), (8, 1, (24, 240)), (8, 2, (24, 104)), (16, 1, (24, 112))]
)
def test_registers_move_to_the_consumers(warps, blocks, registers):
    dims = {"M": 264, "N": 32, "K": 64}
    compilation = compiled(make_gemm(tiles=(256, 32, 64)), dims, warps=warps, blocks=blocks, stages=2)
    (roles,) = ops(stage(compilation, "split_roles"), "roles")
    assert roles.attributes["names"] == ROLES and roles.attributes["warps"] == (1, warps)
    assert roles.attributes["registers"] == registers
    (text,) = compilation.cuda
    assert text.threads == (warps + 4) * 32
    if registers != (0, 0):  # nobody waits for more than the block has when it starts
        pytest.importorskip("cupy", reason="CuPy brings NVRTC")
        from tessera.runtime.nvrtc import compile_cubin

        start = compile_cubin(text.text, "sm_90a", text.name).resources[text.name].registers
        producer, consumer = registers
        assert 4 * producer + warps * consumer <= (warps + 4) * start


# ---- shared memory ---------------------------------------------------------------------------------------------------

GATING = {"B": 1, "S": 129, "D": 192}


def test_rings_have_as_many_slots_as_shared_memory_holds():
    compilation = compiled(load("gating_function_kernel"), GATING)
    assert schedule_of(stage(compilation, "choose_schedule")).stages > 2 == compilation.schedule.stages
    assert rings_of(stage(compilation, "split_roles")) == [(1, 8), (2, 8)]


def test_rings_have_as_many_slots_as_there_is_a_use_for():
    """64 KiB, 4 slots of 16, if a program fills no more of them; what is pinned stays."""
    (small,) = reached(load("gating_function_kernel"), {**GATING, "D": 64}, "choose_schedule", "split_roles")[1:]
    assert rings_of(small)[1][0] == 4 and schedule_of(small).stages == 4
    (pinned,) = reached(load("gating_function_kernel"), {**GATING, "D": 64}, "split_roles", stages=6)
    assert rings_of(pinned)[1][0] == 6
    assert rings_of(split("gemm_nn"))[0][0] > 4  # a loop in a program fills slots as often as it runs


def test_pinned_stages_are_had_or_refused():
    assert rings_of(split("gemm_nn", stages=7)) == [(7, 4)]
    with pytest.raises(
        SourceError, match="pinned to 4 stages, and the shared memory of sm_90a does not hold"
    ) as caught:
        compiled(load("gating_function_kernel"), GATING, stages=4)
    assert caught.value.code == "TS501"


def test_slots_of_several_blocks():
    """Two blocks of a multiprocessor have half of its memory each."""
    tiles = make_gemm(tiles=(128, 128, 64))
    dims = {"M": 136, "N": 136, "K": 72}
    for blocks, slots in ((1, 6), (2, 2)):
        (kernel,) = reached(tiles, dims, "split_roles", blocks=blocks, warps=8)
        assert rings_of(kernel) == [(slots, 8)], blocks
    compilation = compiled(load("gating_function_kernel"), GATING, blocks=2)
    assert why_not(compilation) == "shared memory does not hold 2 slots of 2 blocks of what is copied"


# ---- what stays one role ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("gemm_nn", {"warps": 2}, "2 warps are no whole warpgroups"),
        ("gemm_nn", {"warps": 32}, "a block has no warpgroup beside 32 warps"),
        ("counted", {}, "what is copied depends on what was computed"),
        ("in_place", {}, "'operand_0': 'x' is also written by this kernel"),
        ("own_scratch", {}, "'state' is used otherwise than by reading it after its copy"),
    ],
)
def test_why_a_kernel_stays(name, fields, reason):
    compilation = compiled(getattr(lane_kernels, name), CASES[name], **fields)
    assert why_not(compilation) == reason
    assert count(compilation, "roles", "tma_load", "tma_store") == (0, 0, 0)
    before, after = stage(compilation, "prefetch_loads"), stage(compilation, "split_roles")
    assert len(ops(before, "copy_async", "wait")) == len(ops(after, "copy_async", "wait")) > 0
    expected = outputs_of(compilation.stages[0].module.kernel(), CASES[name])
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), CASES[name], "target"), reason)


def test_copies_that_fall_back_are_pipelined():
    compilation = compiled(make_gemm(), {"M": 72, "N": 72, "K": 129})
    assert why_not(compilation) == "'operand_0': steps along axis 0 of 'a' are not known to be multiples of 16 bytes"
    assert count(compilation, "cp_async", "wgmma")[1] == 1 and count(compilation, "cp_async")[0] > 2
    assert max(op.attributes["stages"] for op in ops(compilation.target.kernel(), "shared")) > 1


@ts.kernel
def until(x: Tensor["M", 64, ts.bf16], w: Tensor[64, 64, ts.bf16], limit: int, out: Tensor["M", 64, ts.bf16]):
    """A loop that ends when a condition does not hold any more."""
    m = tile.program_id(0) * 64
    acc, rounds = tile.zeros([64, 64], ts.f32), 0
    while rounds < limit:
        acc = tile.mma(x[m + rounds : m + rounds + 64], w, acc)
        rounds += 1
    tile.store(acc, out[m : m + 64])


@ts.kernel
def by_loaded(
    x: Tensor["M", 64, ts.bf16], rows: Tensor["N", ts.i32], w: Tensor[64, 64, ts.bf16], out: Tensor["N", 64, ts.bf16]
):
    """Rows that a tensor names, which nobody writes: the producer loads the number, too."""
    n = tile.program_id(0) * 64
    row = tile.load_scalar(rows[n]) % 8
    tile.store(tile.mma(x[row : row + 64], w), out[n : n + 64])


def test_what_the_producer_can_and_cannot_compute():
    compilation = compiled(until, {"M": 72})
    assert why_not(compilation) == "what is copied depends on what was computed"
    dims = {"M": 72, "N": 136}
    compilation = compiled(by_loaded, dims)
    assert why_not(compilation) == "" and count(compilation, "roles") == (1,)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims)
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), dims, "target"), "roles")


def test_a_kernel_of_other_copies_is_itself():
    (kernel,) = reached(lane_kernels.gemm_nn, CASES["gemm_nn"], "prefetch_loads")
    plain = dataclasses.replace(schedule_of(kernel), copies="")
    assert split_roles(kernel, plain, arch("sm_90a")) is kernel
