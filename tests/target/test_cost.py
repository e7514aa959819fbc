"""The cost model: what it counts exactly, how it ranks, and that it always says the same."""
# ruff: noqa: F821  (the names of dims)

import math

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel, find_arch
from tessera.ir.core import Kernel
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.target.cost import CONSTANTS, cost, occupancy
from tessera.target.cost_counts import lanes_apart, sector_share
from tessera.target.cost_registers import live_registers
from tessera.target.role_registers import register_limit
from tessera.target.schedule import Schedule
from tests.suite import load

ARCH = find_arch("sm_90a")


def lowered(definition, dims, **pins):
    """On the base lane; `test_cost_launch` is about the other one."""
    return compile_kernel(definition.scheduled({"family": "", **pins}), dims, "sm_90a").target.kernel()


def predicted(name, dims, **pins):
    definition = load(name) if isinstance(name, str) else name
    return cost(lowered(definition, dims, **pins), ARCH, dims)


def test_elementwise_bytes_are_exact():
    found = predicted("vector_add", {"N": 1 << 20})
    assert found.bytes_dram == found.bytes_l2 == 3 * 4 << 20
    assert (found.flops, found.shared_bytes, found.limit) == (0, 0, "dram")
    assert found.seconds > found.terms["dram"] == found.bytes_dram / (ARCH.typical_dram_bandwidth * CONSTANTS.dram)


def test_product_bytes_and_operations_are_exact():
    m, n, k = 512, 384, 256
    found = predicted("matmul_nn_bf16", {"M": m, "N": n, "K": k})
    assert found.flops == 2 * m * n * k
    # Each program copies its rows of A and its columns of B once, a k-block of 32 at a time and none beyond the last.
    blocks = (m // 64) * (n // 64)
    assert found.bytes_l2 == blocks * (2 * 64 * k * 2 + 64 * 2 + 64 * 64 * 2)
    # In DRAM each tensor is counted once.
    assert found.bytes_dram == 2 * (m * k + k * n + n + m * n)


def test_a_tensor_that_every_program_reads_comes_from_dram_once():
    few = predicted("gating_function_kernel", {"B": 1, "S": 1024, "D": 64})
    many = predicted("gating_function_kernel", {"B": 8, "S": 1024, "D": 64})
    weights = 64 * 64 * 2
    assert (many.bytes_dram - weights) == 8 * (few.bytes_dram - weights)
    assert many.bytes_l2 == 8 * few.bytes_l2


def test_lists_are_as_long_as_they_are():
    dims = {"B": 16, "S": 512, "D": 128, "L": 4}
    lengths = [{f"len({name})": n for name in ("source_layers", "gate_params")} for n in (1, 3)]
    kernel = load("fused_delta_gating_kernel")
    one, three = (cost(lowered(kernel, {**dims, **known}), ARCH, {**dims, **known}) for known in lengths)
    assert three.flops == 3 * one.flops
    assert three.bytes_dram - one.bytes_dram == 2 * (16 * 512 * 128 + 128 * 128 + 1) * 2  # source, gates and a weight


@pytest.mark.parametrize("name", ["vector_add", "softmax_bf16", "matmul_nn_bf16", "gating_function_kernel"])
def test_more_work_never_costs_less(name):
    sizes = {
        "vector_add": [{"N": 1 << n} for n in (10, 16, 20, 24)],
        "softmax_bf16": [{"M": m, "N": 1024} for m in (1, 100, 1000, 10000)],
        "matmul_nn_bf16": [{"M": m, "N": 256, "K": k} for m, k in ((64, 64), (64, 512), (512, 512), (4096, 512))],
        "gating_function_kernel": [{"B": b, "S": 256, "D": 64} for b in (1, 8, 64, 512)],
    }[name]
    times = [predicted(name, dims).seconds for dims in sizes]
    assert times == sorted(times) and times[-1] > 2 * times[0] > 2 * CONSTANTS.launch


def test_copies_that_fly_ahead_are_predicted_to_help():
    dims = {"M": 1024, "N": 1024, "K": 2048}
    one, two, three = (predicted("matmul_nn_bf16", dims, stages=stages) for stages in (1, 2, 3))
    assert one.seconds > 1.5 * three.seconds and one.seconds > two.seconds >= three.seconds
    assert one.terms["latency"] > three.terms["latency"]
    assert one.bytes_l2 == two.bytes_l2 == three.bytes_l2
    assert one.shared_bytes < two.shared_bytes < three.shared_bytes


def test_waves():
    small = predicted("matmul_nn_bf16", {"M": 64, "N": 64, "K": 64})
    assert small.waves < 0.01 and small.terms["launch"] == CONSTANTS.launch
    dims = {"M": 4096, "N": 4096, "K": 64}
    large = predicted("matmul_nn_bf16", dims)
    assert large.waves == pytest.approx(64 * 64 / (132 * large.blocks_per_sm)) and large.waves > 1
    # One program more than a wave holds costs another wave.
    at_once = 132 * large.blocks_per_sm
    full, beyond = (predicted("matmul_nn_bf16", {**dims, "M": 64 * n, "N": 64}) for n in (at_once, at_once + 1))
    assert beyond.seconds - full.seconds > full.terms["dram"] / at_once


def test_spilled_registers_are_predicted_to_hurt():
    dims = {"B": 16, "S": 1024, "D": 128}
    fits, spills = (predicted("gating_function_kernel", dims, blocks=blocks) for blocks in (2, 8))
    assert spills.registers == fits.registers > register_limit(ARCH, 256, 8)
    assert spills.terms["alu"] > fits.terms["alu"]


def test_a_block_that_does_not_fit_costs_infinity():
    kernel = lowered(load("vector_add"), {"N": 1024})
    for changed in ({"shared_bytes": ARCH.shared_bytes_per_block + 1}, {"warps": 33}):
        too_large = Kernel(kernel.name, kernel.body, {**kernel.attributes, **changed}, kernel.origin)
        found = cost(too_large, ARCH, {"N": 1024})
        assert math.isinf(found.seconds) and found.blocks_per_sm == 0


@pytest.mark.parametrize(
    ("threads", "shared", "registers", "blocks"),
    [(128, 0, 255, 2), (256, 0, 128, 2), (256, 0, 129, 1), (1024, 0, 64, 1), (128, 0, 32, 16), (32, 0, 16, 32),
     (128, 232448, 32, 1), (128, 115712, 32, 2), (128, 115713, 32, 1), (1025, 0, 16, 0), (128, 232449, 16, 0)],
)  # fmt: skip
def test_occupancy(threads, shared, registers, blocks):
    assert occupancy(ARCH, threads, shared, registers) == blocks


def layouts_of(kernel):
    return {op.name: r.type.layout for op in kernel.body.walk() for r in op.results if getattr(r.type, "layout", None)}


def test_accesses():
    product = layouts_of(lowered(load("matmul_nn_f32"), {"M": 64, "N": 64, "K": 64}))
    rows = layouts_of(lowered(load("softmax_bf16"), {"M": 16, "N": 1024}))
    assert sector_share(rows["ld_global"], 2, 16) == 1.0
    fragments = layouts_of(lowered(load("matmul_nn_bf16"), {"M": 64, "N": 64, "K": 64}))["mma_sync"]
    assert sector_share(fragments, 2, 4) == 0.5  # four lanes of 4 bytes in a row, of sectors of 32
    assert sector_share(fragments, 4, 8) == 1.0
    assert lanes_apart(fragments) == 1.0
    assert lanes_apart(product["ld_operand"]) < 1.0  # lanes of a column of the f32 product share what they read


def test_registers_follow_the_tiles():
    dims = {"M": 64, "N": 64, "K": 64}
    four, eight = (live_registers(lowered(load("matmul_nn_bf16"), dims, warps=warps)) for warps in (4, 8))
    assert four - eight >= 16  # half of the 32 accumulators of a thread
    softmax = [live_registers(lowered(load("softmax_bf16"), {"M": 64, "N": n})) for n in (1024, 2048)]
    assert softmax[0] < softmax[1]


# What 256 MB of rows reached of a copy on an H200 when a warp kept each line to itself, and registers of NVRTC.
A_LINE_A_WARP = {"warps": 4, "rows": 0, "subtile": 4}
MEASURED = [
    ("softmax_bf16", 1024, {}, 0.98, 61),
    ("layer_norm", 1024, {}, 0.92, 64),
    ("softmax_bf16", 4096, A_LINE_A_WARP, 0.90, 167),
    ("layer_norm", 4096, A_LINE_A_WARP, 0.73, 243),
]


def rows_on_hopper(name, columns, **pins):
    dims = {"M": 2**27 // columns, "N": columns}
    kernel = compile_kernel(load(name).scheduled(pins), dims, "sm_90a").target.kernel()
    return cost(kernel, find_arch("sm_90a"), dims)


def test_rows_rank_as_they_were_measured():
    found = [rows_on_hopper(name, columns, **pins) for name, columns, pins, _, _ in MEASURED]
    shares = [each.terms["dram"] / each.seconds for each in found]
    assert shares == sorted(shares, reverse=True)
    for share, each, (*_, measured, registers) in zip(shares, found, MEASURED, strict=True):
        assert measured - 0.25 <= share <= measured + 0.05, "small launches of large blocks look slower than they are"
        assert registers - 8 <= each.registers <= 1.5 * registers


@pytest.mark.parametrize("name", ["softmax_bf16", "layer_norm", "l2_normalise"])
def test_lines_that_warps_share_are_predicted_to_be_faster(name):
    shared, alone = (rows_on_hopper(name, 4096, **pins) for pins in ({}, A_LINE_A_WARP))
    assert shared.seconds < alone.seconds and shared.registers < alone.registers
    assert shared.blocks_per_sm * 8192 >= 40 << 10, "bytes of lines on a multiprocessor, which keep its memory busy"


@ts.kernel
def guarded(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32], n: int):
    start = tile.program_id(0) * 1024
    total = tile.zeros([1024], ts.f32)
    for i in tile.range(0, n):
        total = total + x[start : start + 1024] * i
    tile.store(total, out[start : start + 1024])


def test_a_loop_that_only_the_run_knows_counts_a_few_times():
    found = predicted(guarded, {"N": 1 << 16})
    assert found.bytes_l2 == 9 * 4 << 16 and found.bytes_dram == 2 * 4 << 16  # again from the cache


def test_it_always_says_the_same():
    dims = {"B": 4, "S": 256, "D": 512}
    for pins in ({}, {"family": ""}):
        module = compile_kernel(load("gating_function_kernel").scheduled(pins), dims, "sm_90a").target
        found = cost(module.kernel(), ARCH, dims)
        assert found == cost(module.kernel(), ARCH, dims)
        assert found == cost(parse_module(print_module(module)).kernel(), ARCH, dims)
        assert found.limit in found.terms and all(np.isfinite(list(found.terms.values())))


def test_other_architectures_have_other_rates():
    dims = {"N": 1 << 22}
    kernel = compile_kernel(load("vector_add"), dims, "sm_80", schedule=Schedule(4)).target.kernel()
    times = {name: cost(kernel, find_arch(name), dims).seconds for name in ("sm_80", "sm_86", "sm_90a")}
    assert times["sm_90a"] < times["sm_80"] < times["sm_86"]
