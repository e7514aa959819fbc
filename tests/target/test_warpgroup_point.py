"""The default point of warpgroups: what it asks for kernels of each kind, and which kernels it leaves alone."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel, find_arch
from tessera.target.schedule import default_schedule
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm
from tests.suite import load
from tests.target.test_schedules import prepared

ARCH = find_arch("sm_90a")
LANE = {"blocks": 1, "family": "wgmma", "copies": "tma", "persistent": True, "panels": 64}
LARGE = {"M": 4096, "N": 4096, "K": 4096}


def point(definition, dims, **constants):
    return default_schedule(prepared(definition, dims, **constants), ARCH, "sm_90a")


def fields(schedule, *names):
    return tuple(getattr(schedule, name) for name in names)


@pytest.mark.parametrize(
    ("tiles", "warps", "stages"),
    [
        ((64, 64, 64), 4, 6),
        ((128, 128, 64), 8, 6),
        ((128, 256, 64), 8, 4),
        ((64, 256, 64), 4, 5),
    ],
)
def test_tiles_of_the_author(tiles, warps, stages):
    """As many slots as fit beside the buffers through which panels are stored."""
    found = point(make_gemm(tiles=tiles), LARGE)
    assert {name: getattr(found, name) for name in LANE} == LANE
    assert fields(found, "warps", "stages") == (warps, stages)


def test_constants_of_the_author_decide():
    found = point(load("gemm_nn"), LARGE, BLOCK_M=128, BLOCK_N=128, num_warps=4, num_stages=2)
    assert fields(found, "family", "warps", "stages") == ("wgmma", 4, 2)


def layered(width, layers):
    dims = {"B": 16, "S": 2048, "D": width, "L": layers + 1}
    return point(
        load("fused_delta_gating_kernel"),
        {**dims, "len(source_layers)": layers, "len(gate_params)": layers},
        BLOCK_B=16,
        BLOCK_S=128,
        num_warps=8,
        num_stages=2,
    )


def test_rows_of_a_large_store():
    """A right operand stays where shared memory holds all of its depth; sums that are carried take registers."""
    assert fields(layered(128, 1), "rows", "subtile", "block_k") == (128, 128, 128)
    assert fields(layered(256, 1), "rows", "subtile", "block_k") == (128, 256, 256)
    assert fields(layered(512, 1), "rows", "subtile", "block_k") == (128, 256, 64)
    assert fields(layered(1024, 1), "rows", "subtile", "block_k") == (128, 256, 64)
    assert fields(layered(128, 4), "rows", "subtile", "block_k") == (128, 128, 128)
    assert fields(layered(256, 4), "rows", "subtile", "block_k") == (128, 128, 64)
    assert fields(layered(512, 4), "rows", "subtile", "block_k") == (128, 128, 64)


@ts.kernel
def own_buffers(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 128, ts.bf16], out: Tensor["M", 128, ts.bf16]):
    ctx = tile.context()
    m = tile.program_id(0) * 128
    left, right = tile.alloc_shared([128, 128], ts.bf16), tile.alloc_shared([128, 128], ts.bf16)
    acc = tile.zeros([128, 128], ts.f32)
    for k in tile.range(0, ctx.K, 128):
        tile.copy_async(left, a[m : m + 128, k : k + 128])
        tile.copy_async(right, b[k : k + 128])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        acc = tile.mma(left, right, acc)
    tile.store(acc, out[m : m + 128])


def test_copies_of_the_author_fill_slots():
    """64 KiB a slot, beside 32 KiB through which panels are stored."""
    assert fields(point(own_buffers, LARGE), "family", "warps", "stages") == ("wgmma", 8, 3)


@ts.kernel
def unequal(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """Products of 64 and of 32 rows: no number of warpgroups suits both."""
    m = tile.program_id(0) * 64
    tile.store(tile.mma(a[m : m + 64], b), out[m : m + 64])
    tile.store(tile.mma(a[m : m + 32], b), out[m : m + 32])


@pytest.mark.parametrize(
    ("definition", "dims"),
    [
        (make_gemm(dtype=ts.f32), LARGE),
        (make_gemm(dtype=ts.f32, out=ts.bf16), LARGE),
        (make_gemm(), {"M": 512, "N": 512, "K": 511}),  # rows that no tensor map describes
        (make_gemm(tiles=(32, 64, 64)), LARGE),
        (unequal, {"M": 512}),
        (load("softmax"), {"M": 512, "N": 512}),
        (lane_kernels.scaled_sum, CASES["scaled_sum"]),
    ],
    ids=["f32", "f32 to bf16", "stride", "rows", "unequal", "softmax", "sum"],
)
def test_kernels_that_are_not_for_warpgroups(definition, dims):
    kernel = prepared(definition, dims)
    assert default_schedule(kernel, ARCH, "sm_90a") == default_schedule(kernel, ARCH, "sm_80")


def test_the_point_is_that_of_kernels_that_ask():
    dims = {"M": 72, "N": 72, "K": 72}
    assert compile_kernel(make_gemm(), dims, "sm_90a").schedule.family == ""
    for pins in ({"family": "wgmma"}, {"copies": "tma"}):
        found = compile_kernel(make_gemm().scheduled(pins), dims, "sm_90a").schedule
        assert {name: getattr(found, name) for name in LANE} == LANE
    assert compile_kernel(make_gemm().scheduled({"persistent": True}), dims, "sm_90a").schedule.family == ""


def test_an_operand_beside_a_carried_sum_has_a_launch_of_its_own_where_rows_are_wide():
    assert [layered(width, layers).prologue for width, layers in ((1024, 4), (2048, 1), (2048, 4))] == [
        "",
        "",
        "launch",
    ]
