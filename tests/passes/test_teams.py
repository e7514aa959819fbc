"""Ping-pong: two teams of consumers that take the programs of a persistent kernel in turn."""
# ruff: noqa: F821  (the names of dims)

import re

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.core import Module
from tessera.ir.opdef import TILE
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.stages import allocated_bytes
from tessera.ir.verify import verify
from tessera.passes.canonicalise import canonicalise
from tessera.runtime.check import examine_kernel
from tessera.target.arch import arch
from tessera.target.cost import cost
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm
from tests.passes.lane_running import (
    Ready,
    arguments_of,
    compiled,
    emulate,
    keeps_every_bit,
    needs_compiler,
    ops,
    outputs_of,
    reached,
    stage,
)
from tests.passes.test_pipeline import assert_same_bits


@ts.kernel
def through_shared(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.f32]):
    """The sums go through a buffer, and along columns through another one: barriers among the consumers."""
    m = tile.program_id(0) * 64
    line = tile.alloc_shared([64, 64], ts.f32)
    acc = tile.mma(a[m : m + 64], b)
    line[:] = acc
    tile.barrier()
    tile.store(line[:] - tile.max(acc, axis=0, keepdims=True), out[m : m + 64])


@ts.kernel
def counted_rows(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], count: Tensor[1, ts.i32],
                 out: Tensor["M", 64, ts.bf16]):  # fmt: skip
    """A sum over programs that one thread of each adds to."""
    m = tile.program_id(0) * 64
    tile.store(tile.mma(a[m : m + 64], b), out[m : m + 64])
    tile.atomic_add(count[0], 1)


OWN = {
    "through_shared": (through_shared, {"M": 64 * 11 - 5}),
    "counted_rows": (counted_rows, {"M": 64 * 7}),
}
SIZES = {  # more programs than the launch has, in numbers that two teams do not share evenly
    "gemm_nn": {"M": 264, "N": 136, "K": 136},
    "gemm_tt": {"M": 520, "N": 72, "K": 72},
    "gemm_rows": {"M": 330, "N": 128, "K": 72},
    "two_products": {"M": 330, "N": 136, "K": 136},
    "in_branches": {"M": 520, "K": 200},
    "own_buffers": {"M": 456, "K": 136},
    "differences": {"M": 330},
    "layers": {**CASES["layers"], "M": 520},
    "deltas": {**CASES["deltas"], "M": 520},
}
KERNELS = {**{name: (getattr(lane_kernels, name), dims) for name, dims in SIZES.items()}, **OWN}


def in_turn(name, **fields):
    definition, dims = KERNELS[name]
    return compiled(definition, dims, pingpong=True, stages=2, **fields), dims


@pytest.mark.parametrize("name", KERNELS)
def test_every_stage_gives_the_same_in_any_order(name):
    compilation, dims = in_turn(name)
    (roles,) = ops(compilation.target.kernel(), "roles")
    assert roles.attributes["names"] == ("load", "compute", "compute_1") and roles.attributes["warps"] == (1, 4, 4)
    expected = keeps_every_bit(compilation, dims)
    for step, level in (("split_roles", "tile"), ("interleave", "target")):
        for seed in (3, 4):
            found = outputs_of(stage(compilation, step), dims, level, seed)
            assert_same_bits(expected, found, f"{step}, seed {seed}")


@needs_compiler
def test_the_emitted_cuda_keeps_every_bit():
    batch = []
    for name in ("gemm_nn", "gemm_rows", "in_branches", "differences", "deltas", "through_shared", "counted_rows"):
        compilation, dims = in_turn(name)
        batch.append(Ready(compilation, dims, outputs_of(compilation.stages[0].module.kernel(), dims)))
    emulate(batch)


@needs_compiler
@pytest.mark.parametrize("name", ["gemm_nn", "through_shared"])
def test_an_examination_finds_nothing(name):
    compilation, dims = in_turn(name)
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(1, 2))
    assert report.ok and report.compared, [str(seen.finding) for seen in report.findings]


def test_each_team_has_rings_and_buffers_of_its_own_and_shares_what_is_loaded_once():
    (kernel,) = reached(*KERNELS["differences"], "split_roles", pingpong=True, stages=2)
    rings = [(op.attributes["stages"], op.attributes["readers"]) for op in ops(kernel, "ring")]
    assert rings == [(1, 2), (1, 2), (2, 1), (2, 1)]
    (roles,) = ops(kernel, "roles")
    used = [{v for op in region.walk() if op.name == "ring_wait" for v in op.operands[:1]} for region in roles.regions]
    assert not used[0] and len(used[1]) == len(used[2]) == 3 and len(used[1] & used[2]) == 2


def test_what_teams_allocate_shares_no_bytes():
    compilation, _ = in_turn("through_shared")
    (roles,) = ops(compilation.target.kernel(), "roles")
    first, second = ([op for op in region.walk() if op.name == "shared"] for region in roles.regions[1:])
    assert len(first) == len(second) > 1
    spans = [
        [(op.attributes["offset"], op.attributes["offset"] + allocated_bytes(op)) for op in own]
        for own in (first, second)
    ]
    assert all(end <= other or other_end <= start for start, end in spans[0] for other, other_end in spans[1])


def test_barriers_are_those_of_a_team():
    compilation, _ = in_turn("through_shared")
    (roles,) = ops(compilation.target.kernel(), "roles")
    for number, region in enumerate(roles.regions[1:], 1):
        barriers = {(op.attributes["id"], op.attributes["threads"]) for op in region.walk() if op.name == "barrier"}
        assert barriers == {(number, 128)}
    (text,) = compilation.cuda
    assert text.threads == 384 and "ts_barrier_of(2, 128)" in text.text


def test_registers_and_spills():
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    from tessera.runtime.nvrtc import compile_cubin

    tall = make_gemm(tiles=(64, 256, 64), name="tall")
    compilation = compiled(tall, {"M": 4096, "N": 4096, "K": 4096}, pingpong=True, stages=2, warps=4)
    (roles,) = ops(compilation.target.kernel(), "roles")
    assert roles.attributes["registers"] == (24, 240, 240)
    (text,) = compilation.cuda
    found = compile_cubin(text.text, "sm_90a", text.name).resources[text.name]
    assert found.spill_stores == found.spill_loads == 0 and 24 * 4 + 240 * 8 <= found.registers * 12


REASONS = [
    (64, {"persistent": False}, "programs of the launch do the work of one each"),
    (64, {"copies": ""}, "teams wait for a producer, and copies = 'tma' asks for one"),
    (256, {"warps": 16}, "a block has no room for 2 times 16 warps and a producer"),
]


@pytest.mark.parametrize(("rows", "fields", "reason"), REASONS)
def test_why_there_is_one_team(rows, fields, reason):
    tall = make_gemm(tiles=(rows, 32, 64), name="tall")
    compilation = compiled(tall, {"M": 264, "N": 40, "K": 136}, pingpong=True, **fields)
    assert f"pingpong = true has no effect: {reason}" in compilation.program.notes
    assert all(len(roles.regions) == 2 for roles in ops(compilation.target.kernel(), "roles"))
    assert bool(ops(compilation.target.kernel(), "roles")) == ("copies" not in fields)


def test_an_architecture_without_producers_has_no_teams():
    with pytest.raises(SourceError, match="to have pingpong = True, and sm_80 has no copies by tensor map") as caught:
        compile_kernel(make_gemm().scheduled({"pingpong": True}), {"M": 264, "N": 40, "K": 136}, "sm_80")
    assert caught.value.code == "TS512"


def test_teams_that_meet_are_refused():
    """Of a text that somebody edited: the wait of one team at the ring of the other, and its buffer."""
    kernel = canonicalise(reached(*KERNELS["gemm_nn"], "split_roles", pingpong=True, stages=2)[0])
    text = print_module(Module(TILE, [kernel]))
    head, tail = text.rsplit("ring_wait %ring_1", 1)
    with pytest.raises(SourceError, match="is for 1 readers, and 2 teams wait for it"):
        verify(parse_module(f"{head}ring_wait %ring_0{tail}"))
    line = "  %line: buffer<[64, 64], f32> = alloc_shared {shape = (64, 64), dtype = f32}\n  roles {"
    text = text.replace("  roles {", line)
    text = re.sub(r"( +)(store %\S+, )(%\S+)", r"\1write %line, \3\n\1\2\3", text)
    assert text.count("write %line") == 2
    with pytest.raises(SourceError, match="'line' is written by one team of consumers and used by another"):
        verify(parse_module(text))


def test_a_team_without_programs_gains_nothing():
    """64 programs on 132 multiprocessors: the second team of each block has nothing to do."""
    dims = {"M": 512, "N": 512, "K": 512}
    kernels = [
        compiled(make_gemm(), dims, pingpong=pingpong, stages=4, blocks=1).target.kernel() for pingpong in (False, True)
    ]
    one, two = (cost(kernel, arch("sm_90a"), dims) for kernel in kernels)
    assert two.seconds == pytest.approx(one.seconds, rel=0.01)


def test_the_cost_model_counts_both_teams():
    """The same work and bytes; no slower than one team with as many slots."""
    dims = {"M": 4096, "N": 4096, "K": 4096}
    tall = make_gemm(tiles=(64, 256, 64), name="tall")
    one, two = (
        compiled(tall, dims, pingpong=pingpong, stages=2, warps=4, blocks=1).target.kernel()
        for pingpong in (False, True)
    )
    predicted = [cost(kernel, arch("sm_90a"), dims) for kernel in (one, two)]
    assert predicted[0].flops == predicted[1].flops
    assert predicted[0].bytes_l2 == pytest.approx(predicted[1].bytes_l2, rel=0.05)
    assert predicted[1].seconds <= predicted[0].seconds
