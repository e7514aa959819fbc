"""Slots that come in shares, one for the rows of each warpgroup: where they do, and what may be done with them."""

from __future__ import annotations

import re

import pytest

from tessera.errors import SourceError
from tessera.ir.core import Module
from tessera.ir.layout import RegisterLayout
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.rings import Ring
from tessera.ir.values import Token
from tessera.ir.verify import verify
from tessera.ir.verify_shares import each_has_its_rows
from tests.passes import lane_kernels
from tests.passes.lane_kernels import LISTS, make_deltas
from tests.passes.lane_running import Ready, compiled, emulate, keeps_every_bit, needs_compiler, ops

WHOLE = {"rows": 0, "subtile": 0, "blocks": 1}  # stores are not cut


def shares(definition, dims, **fields) -> list[int]:
    kernel = compiled(definition, dims, **{**WHOLE, **fields}).target.kernel()
    return [op.attributes["shares"] for op in kernel.body.ops if op.name == "ring"]


def test_rows_of_each_warpgroup_come_by_themselves():
    assert shares(lane_kernels.halves, {"M": 700}, warps=8, stages=3) == [1, 1, 2]  # two panels of weights, and rows
    assert shares(make_deltas(192), {"M": 700, **LISTS}, warps=12) == [1, 3]


def test_other_slots_come_whole():
    one_warpgroup = shares(lane_kernels.differences, {"M": 330}, stages=3)
    both_operands = shares(lane_kernels.gemm_rows, {"M": 264, "N": 128, "K": 264}, warps=8)
    few_rows = shares(lane_kernels.scaled_sum, {"M": 330}, warps=8)
    assert {*one_warpgroup, *both_operands, *few_rows} == {1}


def test_programs_of_a_cluster_share_what_they_load_whole():
    kernel = compiled(lane_kernels.halves, {"M": 700}, warps=8, stages=3, cluster=2).target.kernel()
    loads = {(op.attributes["multicast"], op.attributes["share"]) for op in ops(kernel, "tma_load")}
    assert loads == {(2, 0), (1, 0), (1, 1)}


def test_each_share_brings_its_rows():
    kernel = compiled(lane_kernels.halves, {"M": 700}, warps=8, stages=3, **WHOLE).target.kernel()
    ring = kernel.body.ops[-1].regions[0]
    announced = [(op.attributes["share"], op.attributes["bytes"]) for op in ring.walk() if op.name == "ring_expect"]
    assert announced == [(0, 16384), (0, 16384), (1, 16384), (0, 16384), (1, 16384), (0, 16384)]


@needs_compiler
@pytest.mark.parametrize("rows, warps", [(128, 8), (192, 12)])
def test_every_bit_stays(rows, warps):
    dims = {"M": 2 * rows + 74, **LISTS}
    compilation = compiled(make_deltas(rows), dims, warps=warps, **WHOLE)
    emulate([Ready(compilation, dims, keeps_every_bit(compilation, dims))])


# ---- the verifier ----------------------------------------------------------------------------------------------------


def edited(find: str, replacement: str) -> Module:
    compilation = compiled(lane_kernels.halves, {"M": 700}, warps=8, stages=3)
    text = print_module(compilation.stages[-1].module)
    new = re.sub(find, replacement, text)
    assert new != text
    return parse_module(new)


@pytest.mark.parametrize(
    "find, replacement, message",
    [
        ("share = 1", "share = 2", "ring_acquire of share 2 of 2 of 'ring_2'"),
        ("shares = 2", "shares = 16", "'ring_2' comes in 16 shares for 8 consumer warps"),
        ("shares = 2", "shares = 3", "a share of 3 of a buffer .128, 64.: its rows do not divide"),
    ],
)
def test_a_share_that_does_not_exist(find, replacement, message):
    with pytest.raises(SourceError, match=message):
        verify(edited(find, replacement))


def test_a_load_of_rows_of_another_share():
    module = edited(r"warps\[\[16,0\],\[32,0\],\[64,0\]\]", "warps[[64,0],[16,0],[32,0]]")
    with pytest.raises(SourceError, match="which comes in shares, reads rows of another"):
        verify(module)


def test_rows_apart():
    by_rows = RegisterLayout.parse(
        "regs[[0,1]] lanes[[0,2],[0,4],[1,0],[2,0],[4,0]] warps[[8,0],[16,0],[32,0]] rep[1,1]"
    )
    assert each_has_its_rows(by_rows, 0, 64, 2) and each_has_its_rows(by_rows, 0, 64, 8)
    assert not each_has_its_rows(by_rows, 1, 8, 2) and not each_has_its_rows(by_rows, 0, 64, 2, first=8)


# ---- the protocol ----------------------------------------------------------------------------------------------------


def fill(ring: Ring, share: int, landed: list[int]) -> None:
    ring.acquire(0, 0, share)
    ring.expect(0, 8, share)
    ring.slot(0, share).copies.append(Token(lambda: landed.append(share)))
    ring.slot(0, share).brought += 8


def test_consumers_wait_for_all_shares():
    ring, landed = Ring.new("rows", stages=1, shares=2), []
    fill(ring, 0, landed)
    assert not ring.is_full(0, 0)
    with pytest.raises(SourceError, match="round 0 of share 1 of slot 0 of 'rows' is waited for, and nobody fills it"):
        ring.wait(0, 0)
    fill(ring, 1, landed)
    ring.wait(0, 0)
    assert landed == [0, 1]
    with pytest.raises(SourceError, match="round 1 of share 1 of slot 0 of 'rows' cannot be filled: nobody releases"):
        ring.acquire(0, 1, 1)
    ring.release(0)
    assert ring.is_empty(0, 1, 0) and ring.is_empty(0, 1, 1)
    with pytest.raises(SourceError, match="slots of 'rows' have 2 shares and no number 2"):
        ring.acquire(0, 1, 2)
