"""What the cost model says of warpgroups, copies by TMA, rings and roles: counts, and times that were measured."""

import functools

import pytest

from tessera.compiler import compile_kernel, find_arch
from tessera.ir.programs import persistent_loops
from tessera.target.cost import cost
from tessera.target.cost_constants import CONSTANTS
from tessera.target.cost_counts import RingUse, Stall, Work
from tessera.target.cost_launch import Launch, RolesLaunch
from tests.suite import load

ARCH = find_arch("sm_90a")
LANE = {"family": "wgmma"}
SM = ARCH.typical_sm_count


@functools.cache
def aggregation(width, layers, **point):
    """F12 over 32768 rows on the lane: what `cost` takes."""
    dims = {"B": 16, "S": 2048, "D": width, "L": layers, "len(source_layers)": layers, "len(gate_params)": layers}
    kernel = load("fused_delta_gating_kernel").pinned({"BLOCK_S": 128, "num_warps": 8})
    return compile_kernel(kernel.scheduled({**LANE, **point}), dims, "sm_90a").target.kernel(), ARCH, dims


@functools.cache
def gemm(size, **point):
    kernel = load("gemm_nt")
    dims = {"M": size, "N": size, "K": size}
    return compile_kernel(kernel.scheduled({**LANE, **point}), dims, "sm_90a").target.kernel(), ARCH, dims


# Kernels written by hand for the same work on an H100 (one producer, two warpgroups, weights in shared memory or in a
# ring, slots as here), whose harness reads 4 us for an empty kernel.
@pytest.mark.parametrize(
    ("width", "layers", "stages", "measured"),
    [(128, 1, 4, 15.0), (256, 1, 2, 24.5), (128, 4, 3, 27.5), (256, 4, 5, 74.0), (512, 1, 3, 57.5)],
)
def test_predictions_are_near_what_was_measured(width, layers, stages, measured):
    found = cost(*aggregation(width, layers, stages=stages))
    assert found.seconds == pytest.approx(measured * 1e-6, rel=0.35)
    assert found.registers <= 1.1 * found.registers_left and found.blocks_per_sm == 1


def test_a_large_product_is_as_fast_as_the_library():
    best = cost(*gemm(8192, stages=4))
    assert best.flops == 2 * 8192**3 and best.terms["mma"] == pytest.approx(
        best.flops / (ARCH.typical_bf16_rate * CONSTANTS.wgmma)
    )
    assert best.flops / best.terms["mma"] == pytest.approx(742e12, rel=0.01)  # cuBLAS: 717 to 779
    assert best.limit == "l2"  # of tiles of 128 by 128


def test_each_role_has_a_persistent_loop():
    kernel, *_ = gemm(8192, stages=4)
    loops = persistent_loops(kernel)
    (roles,) = [op for op in kernel.body.ops if op.name == "roles"]
    assert len(loops) == 2 and all(loop in region.ops for loop, region in zip(loops, roles.regions, strict=True))


def test_bytes_of_copies_by_tma_are_exact():
    size = 2048
    found = cost(*gemm(size))
    tiles = (size // 128) ** 2
    assert found.bytes_l2 == tiles * (2 * 128 * size + 128 * 128) * 2  # operands of every tile, and the result
    assert found.bytes_dram == 3 * size * size * 2


def test_what_stays_is_loaded_once():
    """The weights of a layer stay in shared memory: each program of the launch loads them, not each of their turns."""
    kept, streamed = (cost(*aggregation(256, 1, stages=2, persistent=persistent)) for persistent in (True, False))
    rows, weights = 3 * 32768 * 256 * 2, 256 * 256 * 2
    scalar = SM * 2
    assert kept.bytes_l2 - rows - SM * weights == pytest.approx(scalar, abs=2 * scalar)
    assert streamed.bytes_l2 - rows - 256 * weights == pytest.approx(scalar, abs=2 * scalar)


def test_more_slots_hide_more():
    few, more, most = (cost(*aggregation(256, 4, stages=stages)) for stages in (2, 3, 4))
    assert few.seconds > 1.2 * more.seconds > 1.2 * most.seconds
    assert few.bytes_l2 == more.bytes_l2 == most.bytes_l2 and few.terms["fill"] > more.terms["fill"]


# ---- one launch, by its parts ----------------------------------------------------------------------------------------


def launch(rings=(), warps=8, resident=1, stall=None, uneven=1.0, **work):
    found = SM * resident, resident, warps, 1.0, uneven, Work(**work), stall or Stall()
    return (RolesLaunch(ARCH, CONSTANTS, *found, tuple(rings)) if rings else Launch(ARCH, CONSTANTS, *found)).time(
        0, 0, 0
    )


def beside(seconds):
    """What a launch takes besides its start."""
    return seconds - CONSTANTS.launch - CONSTANTS.memory_latency


RATE = ARCH.typical_bf16_rate / SM * CONSTANTS.wgmma
LANES = CONSTANTS.lanes * CONSTANTS.clock


def test_the_slower_of_producer_and_consumers_decides():
    quick, slow = RingUse(4, 100, 4096.0, kept=False), RingUse(4, 1000, 4096.0, kept=False)
    _, consumers = launch([quick], wgmma=RATE * 100e-6)
    assert beside(consumers) == pytest.approx(100e-6)
    terms, producer = launch([slow], wgmma=RATE * 100e-6)
    assert beside(producer) == pytest.approx((1000 * CONSTANTS.round_trip + 100e-6) / 4)
    assert terms["fill"] == pytest.approx(1000 * CONSTANTS.round_trip / 4)


def test_a_kept_slot_is_waited_for_and_comes_round_never():
    size = 1 << 17
    terms, _ = launch([RingUse(1, 1, size), RingUse(4, 10, 4096.0, kept=False)], wgmma=RATE * 100e-6)
    assert terms["latency"] == pytest.approx(CONSTANTS.memory_latency + size / (CONSTANTS.l2_bytes * CONSTANTS.clock))


def test_other_warpgroups_hide_what_is_computed_from_sums():
    ring = RingUse(6, 1, 1.0, kept=False)
    alone, two = (
        beside(launch([ring], warps=warps, wgmma=RATE * 100e-6, instructions=LANES * 40e-6 * warps / 8)[1])
        for warps in (4, 8)
    )
    assert alone == pytest.approx(140e-6) and two == pytest.approx(120e-6)


def test_operands_in_shared_memory_bound_products():
    bandwidth = CONSTANTS.shared_bytes * CONSTANTS.clock
    ring = RingUse(6, 1, 1.0, kept=False)
    terms, seconds = launch([ring], wgmma=RATE * 10e-6, operands=bandwidth * 30e-6, bulk=bandwidth * 20e-6)
    assert terms["mma"] == pytest.approx(30e-6) and beside(seconds) == pytest.approx(50e-6)


def test_narrow_operands_are_twice_as_fast():
    wide, narrow = (launch(**{kind: RATE * 10e-6})[0]["mma"] for kind in ("wgmma", "narrow"))
    assert wide == pytest.approx(2 * narrow)
