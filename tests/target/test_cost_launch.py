"""What the cost model says of warpgroups, copies by TMA, rings and roles: counts, and times that were measured."""
# ruff: noqa: F821  (the names of dims)

import functools

import numpy as np
import pytest

from tessera.compiler import compile_kernel, find_arch
from tessera.ir.opdef import COUNTED
from tessera.ir.programs import grid_extents, persistent_loops
from tessera.target.cost import _turns, cost
from tessera.target.cost_constants import CONSTANTS
from tessera.target.cost_counts import Counter, RingUse, Stall, Work
from tessera.target.cost_launch import Launch, RolesLaunch
from tessera.target.cost_scalars import Scalars
from tests.passes.lane_kernels import triangle
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
    assert best.flops / best.terms["mma"] == pytest.approx(771e12, rel=0.01)  # 4096^3, as cuBLAS (H200)
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
    tiles = {"subtile": 64, "block_k": 256}  # of 32 KiB, which the producer waits for rather than the level-2 cache
    few, more, most = (cost(*aggregation(256, 4, stages=stages, **tiles)) for stages in (2, 3, 4))
    assert few.seconds > 1.2 * more.seconds > 1.2 * most.seconds
    assert few.bytes_l2 == more.bytes_l2 == most.bytes_l2 and few.terms["fill"] > more.terms["fill"]


# ---- programs that differ in how long they loop ----------------------------------------------------------------------

ROWS = 400  # of blocks, and so programs: more than three for each multiprocessor


def counted(definition, dims, **pins):
    """A persistent kernel, and the counter of one of its programs."""
    kernel = compile_kernel(definition.scheduled({**LANE, "persistent": True, **pins}), dims, "sm_90a").target.kernel()
    grid = grid_extents(kernel.attributes["grid"], dims, SM)
    counter = Counter(Scalars(dims, grid, grid[0]), kernel.attributes["warps"] * 32, dims)
    _turns(kernel, counter, grid[0])
    counter.block(kernel.body, 1.0)
    return kernel, counter


def inner_loops(kernel):
    """Each loop of the author in a role, with the number of the program there and how many there are."""
    for loop in persistent_loops(kernel):
        (body,) = loop.regions
        yield from ((op, body.arguments[0]) for op in body.walk() if op.definition.has(COUNTED) and op.operands)


def test_iterations_of_every_program_are_known():
    kernel, counter = counted(triangle, {"M": 64 * ROWS})
    found = [counter.scalars.trips_by_program(loop, index, ROWS) for loop, index in inner_loops(kernel)]
    of_programs = [trips for trips in found if trips is not None]
    assert len(of_programs) == 2  # the producer's, and that of the consumers
    assert all(trips.tolist() == list(range(1, ROWS + 1)) for trips in of_programs)
    kernel, counter = counted(load("gemm_nt"), {"M": 4096, "N": 4096, "K": 512})
    assert all(counter.scalars.trips_by_program(*pair, 1024) is None for pair in inner_loops(kernel))


def test_the_busiest_program_decides():
    """Programs take turns in their order: the last of each round has the longest loops of it."""
    _, counter = counted(triangle, {"M": 64 * ROWS})
    trips = np.arange(1, ROWS + 1)
    busiest = max(trips[first::SM].sum() for first in range(SM))
    assert counter.uneven == pytest.approx(busiest / (trips.sum() / SM))
    assert counter.uneven == pytest.approx(808 / (ROWS * (ROWS + 1) / 2 / SM))  # rows 4, 136, 268 and 400
    _, even = counted(load("gemm_nt"), {"M": 4096, "N": 4096, "K": 512})
    assert even.uneven == 1.0


@pytest.mark.parametrize("persistent", [True, False])
def test_products_of_uneven_programs_are_counted_once_each(persistent):
    dims = {"M": 64 * ROWS}
    kernel = compile_kernel(triangle.scheduled({**LANE, "persistent": persistent}), dims, "sm_90a").target.kernel()
    operations = 2 * 64**3 * ROWS * (ROWS + 1) // 2
    # Where programs are not persistent those of the first wave stand for all.
    expected = operations if persistent else pytest.approx(operations, rel=0.7)
    assert cost(kernel, ARCH, dims).flops == expected


def test_uneven_programs_cost_more_where_they_are_persistent():
    """Attention over 4096 keys, of 1024 programs: causal ones differ, and the others save the start of each."""
    dims = {"B": 2, "H": 16, "T": 4096, "D": 128}
    blocks = {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 2}
    seconds = {}
    for name in ("attention", "causal_attention"):
        for persistent in (True, False):
            definition = load(name).pinned(blocks).scheduled({"persistent": persistent})
            seconds[name, persistent] = cost(
                compile_kernel(definition, dims, "sm_90a").target.kernel(), ARCH, dims
            ).seconds
    assert seconds["causal_attention", True] > 1.02 * seconds["causal_attention", False]
    assert seconds["attention", True] < seconds["attention", False]


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


@pytest.mark.parametrize("rings", [[], [RingUse(6, 1, 1.0, kept=False)]], ids=["alone", "with a producer"])
def test_the_launch_ends_with_its_busiest_program(rings):
    (terms, even), (_, uneven) = (launch(rings, uneven=share, wgmma=RATE * 100e-6) for share in (1.0, 1.5))
    assert terms["mma"] == pytest.approx(100e-6) and uneven - even == pytest.approx(50e-6)


def test_narrow_operands_are_twice_as_fast():
    wide, narrow = (launch(**{kind: RATE * 10e-6})[0]["mma"] for kind in ("wgmma", "narrow"))
    assert wide == pytest.approx(2 * narrow)
