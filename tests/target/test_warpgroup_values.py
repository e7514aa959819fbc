"""What is worth trying on the lane of warpgroups: nothing of it elsewhere, and nothing that fails without a reason."""

from dataclasses import replace

import pytest

from tessera.compiler import find_arch
from tessera.search.lowering import Lowering, Setting
from tessera.search.points import Points
from tessera.target.schedules import candidates, own_point
from tessera.target.warpgroup_values import VALUES
from tests.passes.lane_kernels import make_gemm
from tests.suite import load

ARCH, BASE = find_arch("sm_90a"), find_arch("sm_90")
SIZES = {"M": 1024, "N": 1024, "K": 512}
CONSTANTS = {"BLOCK_S": 128, "num_warps": 8}


def aggregation(width, layers):
    dims = {"B": 16, "S": 512, "D": width, "L": layers, "len(source_layers)": layers, "len(gate_params)": layers}
    return load("fused_delta_gating_kernel").pinned(CONSTANTS), dims


def lowering(kernel, dims, **pins):
    points = Points(kernel.scheduled(pins), dims, None, None)
    (request,) = points.requests([points.subject.constants])[0]
    return Lowering(points.modules, Setting("sm_90a", dims, None, None)), request


def prepared(kernel, dims, **pins):
    made, request = lowering(kernel, dims, **pins)
    return made._prepare(request)[0]


def open_fields(kernel, dims, **pins):
    return {name: v for name, v in candidates(prepared(kernel, dims, **pins), ARCH).items() if len(v) > 1}


@pytest.mark.parametrize("make", [lambda: (load("gemm_nn"), SIZES), lambda: aggregation(256, 1)])
def test_nothing_is_offered_on_the_base_lane(make):
    found = candidates(prepared(*make(), family=""), ARCH)
    assert (found["family"], found["copies"], found["panels"], found["persistent"]) == (("",), ("",), (0,), (False,))
    point = own_point(prepared(*make(), family=""), ARCH)
    assert (point.family, point.copies) == ("", "")
    assert replace(own_point(prepared(*make()), BASE), stages=point.stages) == point  # slices by its own memory


def test_what_is_offered():
    found = open_fields(load("gemm_nn"), SIZES, family="wgmma")
    assert found == {
        "blocks": (1, 2), "group": (8, 0, 4, 16), "split_k": (1, 2, 4), "panels": (64, 0), "persistent": (True, False),
        "pingpong": (False, True),
    }  # fmt: skip
    found = open_fields(*aggregation(256, 1), family="wgmma")
    assert (found["subtile"], found["block_k"]) == ((256, 64, 128), (256, 64)) and found.keys() <= VALUES.keys()
    # A sum that a loop carries takes half of the registers; K of 1024 stays in no shared memory.
    found = open_fields(*aggregation(1024, 4), family="wgmma")
    assert found["subtile"] == (128, 64) and "block_k" not in found


def test_a_launch_for_the_operand_is_offered_where_rows_are_wide():
    wide, narrow = (open_fields(*aggregation(width, 4), family="wgmma") for width in (2048, 512))
    assert (wide["prologue"], wide["cluster"]) == (("launch", ""), (1, 2))  # its own value first
    assert open_fields(*aggregation(1024, 1), family="wgmma")["prologue"] == ("", "launch")
    assert not {"prologue", "cluster"} & narrow.keys()


def test_stages_and_warps_where_the_author_leaves_them_open():
    """Without constants that decide them: rows are shared out in 64 of each warpgroup."""
    found = open_fields(load("gating_function_kernel"), {"B": 16, "S": 512, "D": 128}, family="wgmma")
    assert set(found["stages"]) == {2, 3, 4, 5, 6} and set(found["warps"]) == {4, 8}


@pytest.mark.parametrize(
    ("tiles", "warps"), [((192, 64, 64), {4, 12}), ((192, 256, 64), {12}), ((128, 64, 64), {4, 8})]
)
def test_warpgroups_that_share_out_the_rows_and_hold_the_sums(tiles, warps):
    """Of tiles that are not cut: one warpgroup would keep 384 registers a thread for 192 x 256 sums."""
    found = candidates(prepared(make_gemm(tiles=tiles), SIZES), ARCH)
    assert found["rows"] == (0,) and set(found["warps"]) == warps


@pytest.mark.parametrize(
    "make", [lambda: (load("gemm_tn"), SIZES), lambda: aggregation(256, 1), lambda: aggregation(128, 4)]
)
def test_neighbours_lower_or_say_why_not(make):
    made, request = lowering(*make(), family="wgmma")
    own = made.lower(request)
    assert own.error is None and own.schedule.family == "wgmma" and own.schedule.copies == "tma"
    lowered = 0
    for name, values in made.choices(request).items():
        for value in values[1:]:
            changed = replace(request, changes=((name, value),))
            found = made.lower(changed)
            if found.error is None:
                lowered += 1
                assert getattr(found.schedule, name) == value and found.cost.seconds > 0
                made.finish(changed)  # verifies it
            else:
                assert found.error.code == "TS501" and "bytes of shared memory" in found.error.message
    assert lowered >= 4
