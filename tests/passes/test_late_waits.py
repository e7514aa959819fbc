"""What stays through a persistent loop: where it is copied, where it is waited for, and that nobody leaves before."""
# ruff: noqa: F821  (the names of dims)

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import SourceError
from tessera.ir.core import Block, Kernel
from tessera.ir.rings import Ring
from tessera.runtime.check import examine_kernel
from tests.passes.lane_kernels import CASES, differences, gemm_nn
from tests.passes.lane_running import arguments_of, compiled, needs_compiler, ops, outputs_of, reached, stage


@ts.kernel
def guarded(x: Tensor["M", 128, ts.bf16], y: Tensor["M", 128, ts.bf16], w: Tensor[128, 128, ts.bf16], limit: int,
            out: Tensor["M", 128, ts.bf16]):  # fmt: skip
    """What programs from a number on leave out."""
    m = tile.program_id(0) * 64
    if m < limit:
        tile.store(tile.mma(x[m : m + 64] - y[m : m + 64], w), out[m : m + 64])


def order(block: Block, depth: int = 0) -> list[str]:
    """Ring ops with the names of their rings, and the regions round them."""
    found = []
    for op in block.ops:
        if op.name in ("ring_acquire", "ring_wait"):
            found.append(f"{op.name[5:]} {op.operand('ring').name}")
        for region in op.regions:
            inner = order(region, depth + 1)
            found += [f"{op.name} (", *inner, ")"] if inner else []
    return found


def roles_of(kernel: Kernel) -> list[str]:
    (roles,) = ops(kernel, "roles")
    return [" ".join(order(region)) for region in roles.regions]


def test_copies_are_started_with_those_that_they_are_used_with():
    """Those that are needed first, before the producer has found out what else to copy."""
    (kernel,) = reached(differences, CASES["differences"], "split_roles", stages=2)
    producer, consumers = roles_of(kernel)
    assert producer == "acquire ring_0 for ( acquire ring_2 acquire ring_2 if ( acquire ring_1 ) )"
    assert consumers == "for ( wait ring_2 wait ring_0 wait ring_2 wait ring_1 )"


def test_all_are_started_in_front_of_a_copy_that_may_have_to_wait():
    wide = make_wide(4)
    (kernel,) = reached(wide, {"M": 330}, "split_roles", stages=2)
    producer, consumers = roles_of(kernel)
    rest = "if ( acquire ring_1 acquire ring_2 acquire ring_3 )"
    assert producer == f"acquire ring_0 for ( acquire ring_4 acquire ring_4 {rest} acquire ring_4 acquire ring_4 )"
    assert consumers == f"for ( {' '.join(f'wait ring_4 wait ring_{panel}' for panel in range(4))} )"


def make_wide(panels):
    columns = 64 * panels

    @ts.kernel
    def wide(t: Tensor["M", columns, ts.bf16], s: Tensor["M", columns, ts.bf16], w: Tensor[columns, 64, ts.bf16],
             out: Tensor["M", 64, ts.bf16]):  # fmt: skip
        m = tile.program_id(0) * 64
        tile.store(tile.mma(t[m : m + 64] - s[m : m + 64], w), out[m : m + 64])

    return wide


def test_the_other_side_of_a_guard_starts_them_and_everybody_waits_at_the_end():
    (kernel,) = reached(guarded, {"M": 330}, "split_roles", stages=2)
    producer, consumers = roles_of(kernel)
    rest = "if ( acquire ring_1 )"
    assert producer == f"acquire ring_0 for ( if ( acquire ring_2 acquire ring_2 {rest} ) if ( {rest} ) )"
    assert consumers == "for ( if ( wait ring_2 wait ring_0 wait ring_2 wait ring_1 ) ) wait ring_0 wait ring_1"


def test_teams_wait_at_the_end_and_the_first_one_has_the_copies_made():
    (kernel,) = reached(differences, CASES["differences"], "split_roles", stages=2, pingpong=True)
    producer, *teams = roles_of(kernel)
    assert producer.count("ring_0") == producer.count("ring_1") == 1
    assert all(team.endswith(") wait ring_0 wait ring_1") for team in teams)


def test_nothing_moves_that_a_loop_needs_as_well_as_others():
    """What is used in the persistent loop alone is late; a ring that comes round again is not."""
    (kernel,) = reached(gemm_nn, CASES["gemm_nn"], "split_roles")
    assert roles_of(kernel) == ["for ( for ( acquire ring_0 ) )", "for ( for ( wait ring_0 ) )"]


@pytest.mark.parametrize("limit", [0, 128, 400])
def test_every_stage_gives_the_same(limit):
    dims = {"M": 330}
    compilation = compiled(guarded, dims, stages=2)
    given = {"limit": limit}
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, scalars=given)
    for step, level in (("split_roles", "tile"), ("interleave", "target")):
        for seed in (None, 1):
            got = outputs_of(stage(compilation, step), dims, level, seed=seed, scalars=given)
            np.testing.assert_array_equal(got["out"].view(np.uint16), expected["out"].view(np.uint16), f"{step} {seed}")


@needs_compiler
@pytest.mark.parametrize("limit", [0, 128])
def test_an_examination_finds_nothing_but_what_the_author_leaves_out(limit):
    dims = {"M": 330}
    compilation = compiled(guarded, dims, stages=2)
    arguments = {**arguments_of(compilation.stages[0].module.kernel(), dims), "limit": limit}
    report = examine_kernel(compilation, arguments, dims, seeds=(1, 2))
    assert [seen.finding.kind for seen in report.findings] == ["unwritten"]


def test_a_round_is_waited_for_again_until_it_is_released():
    ring = Ring.new("ring", 1)
    ring.acquire(0, 0)
    ring.expect(0, 0)
    for _ in range(3):
        ring.wait(0, 0)
    assert ring.slot(0).waited == 1 and ring.unfinished() is None
    ring.release(0)
    with pytest.raises(SourceError, match="waited for in a round of phase 0, and the next one is round 1"):
        ring.wait(0, 0)
