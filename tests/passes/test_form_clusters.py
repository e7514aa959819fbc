"""Clusters of programs: the same bits at every stage and in the emulator, and what is loaded for all of one."""

from __future__ import annotations

import pytest

from tessera.compiler import Compilation, compile_kernel
from tessera.errors import SourceError
from tessera.ir.clusters import differing
from tessera.ir.core import Kernel, Op
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.programs import persistent_loop
from tessera.ir.verify import verify
from tessera.program import Program
from tessera.runtime.execute import emulate
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.arch import arch
from tessera.target.cost import cost
from tests.passes.test_persist import needs_compiler
from tests.passes.test_pipeline import arguments_of, assert_same_bits, outputs_of
from tests.suite import load

LANE = {"family": "wgmma", "copies": "tma", "persistent": True, "panels": 64, "warps": 4}
TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}
# Rows of five tiles: with any cluster a program runs behind the last one.
DIMS = {"M": 272, "N": 136, "K": 136}
REASON_DIMS = {
    "vector_add": {"N": 5000},
    "gather_rows": {"M": 20, "N": 100, "K": 30},
    "batched_matmul": {"B": 3, "M": 70, "N": 100, "K": 50},
}


def named(kernel: Kernel, name: str) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name == name]


def compiled(name: str, cluster: int, dims: dict[str, int] = DIMS, **fields: object) -> Compilation:
    definition = load(name).scheduled({**LANE, "cluster": cluster, **fields})
    return compile_kernel(definition, dims, "sm_90a", constants=TILES)


def program_of(compilation: Compilation) -> Program:
    assert compilation.program is not None
    return compilation.program


def stage(compilation: Compilation, name: str) -> Kernel:
    return next(stage.module.kernel() for stage in compilation.stages if stage.name == name)


@needs_compiler
@pytest.mark.parametrize(("name", "cluster", "blocks"), [("gemm_nn", 2, 1), ("gemm_nt", 4, 2), ("gemm_tn", 2, 2)])
def test_every_stage_and_the_emulator_keep_every_bit(name: str, cluster: int, blocks: int) -> None:
    compilation = compiled(name, cluster, group=4, blocks=blocks)
    kernel = stage(compilation, "frontend")
    expected = outputs_of(kernel, DIMS, "tile")
    for step, level in (
        ("form_clusters", "tile"),
        ("persist", "tile"),
        ("split_roles", "tile"),
        ("interleave", "target"),
    ):
        assert_same_bits(expected, outputs_of(stage(compilation, step), DIMS, level), step)
    (launch,) = program_of(compilation).launches
    assert launch.extents(DIMS, 4) == (4 * blocks,) and launch.extents(DIMS, 1) == (cluster,)
    assert launch.extents(DIMS, 132) == (-(-5 // cluster) * 3 * cluster,)
    for seed in (0, 1):
        given = arguments_of(kernel, DIMS)
        emulate(program_of(compilation), given, {**program_of(compilation).static, **DIMS}, seed)
        assert_same_bits(expected, {"output": given["output"]}, f"emulator, seed {seed}")


def test_the_right_operand_is_loaded_for_all() -> None:
    compilation = compiled("gemm_nn", 2)
    kernel = stage(compilation, "split_roles")
    (ring,), (roles,) = named(kernel, "ring"), named(kernel, "roles")
    assert (ring.attributes["arrivals"], ring.attributes["cluster"], roles.attributes["cluster"]) == (4, 2, 2)
    assert [op.attributes["multicast"] for op in named(kernel, "tma_load")] == [1, 2]
    assert persistent_loop(stage(compilation, "persist")) is not None
    source = program_of(compilation).cuda
    assert "TS_KERNEL_CLUSTER(gemm, 256, 2, 2)" in source and source.count("ts_cluster_barrier();") == 2
    maps = {a.name: a.box for a in program_of(compilation).launches[0].arguments if a.kind == "map"}
    assert (maps["a"], maps["b"]) == ((64, 64), (64, 32))
    resources = compile_cubin(source, "sm_90a", "gemm").resources["gemm"]
    assert (resources.spill_stores, resources.spill_loads) == (0, 0)


def test_what_depends_on_the_place_differs() -> None:
    kernel = stage(compiled("gemm_nn", 2), "persist")
    values = differing(kernel)
    windows = {op.operands[0].name: op.result in values for op in named(kernel, "window")}
    assert (windows["a"], windows["b"], windows["output"]) == (True, False, True)


@pytest.mark.parametrize(
    ("fields", "name", "reason"),
    [
        ({"copies": ""}, "gemm_nn", "programs load for each other where they are persistent and copies = 'tma'"),
        ({"persistent": False}, "gemm_nn", "programs load for each other where they are persistent and copies = 'tma'"),
        ({}, "vector_add", "its programs load nothing alike"),
        (
            {},
            "gather_rows",
            "programs along axis 0 are not known to be a multiple, and what they choose by it is more than tiles",
        ),
        ({}, "batched_matmul", "the grid has 3 axes"),
    ],
)
def test_reasons(fields: dict[str, object], name: str, reason: str) -> None:
    dims = REASON_DIMS.get(name, DIMS)
    definition = load(name).scheduled({**LANE, "cluster": 2, **fields})
    constants = TILES if name == "gemm_nn" else {}
    program = program_of(compile_kernel(definition, dims, "sm_90a", constants=constants))
    assert any(note == f"cluster = 2 has no effect: {reason}" for note in program.notes), program.notes
    assert "CLUSTER" not in program.cuda


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arrivals = 4, cluster = 2", "arrivals = 4", "tma_load for several programs, into a slot that one hands back"),
        ("arrivals = 4, cluster = 2", "arrivals = 4, cluster = 4", "ring of a cluster of 4, and roles of 2"),
        ("multicast = 2", "multicast = 3", "tma_load of a cluster of 3, and roles of 2"),
        ("tma_load %operand_0.1", "", "tma_load for several programs, of a window that differs between them"),
    ],
)
def test_rules(old: str, new: str, message: str) -> None:
    compilation = compiled("gemm_nn", 2)
    module = next(stage.module for stage in compilation.stages if stage.name == "split_roles")
    text = print_module(module)
    if not new:  # the first load, of the left operand
        line = next(line for line in text.splitlines() if "tma_load" in line)
        old, new = line, line.replace(" @", " {multicast = 2} @", 1)
    assert old in text
    with pytest.raises(SourceError, match=message) as caught:
        verify(parse_module(text.replace(old, new)))
    assert caught.value.code == "TS703"


def test_a_cluster_that_was_none_is_predicted_to_do_all_the_work() -> None:
    """Its programs still share iterations of the persistent loop, where none of them loads for another."""
    sizes = {"B": 16, "S": 2048, "D": 1024, "L": 1, "len(source_layers)": 1, "len(gate_params)": 1}
    constants = {"BLOCK_B": 64, "BLOCK_S": 256, "num_warps": 8, "num_stages": 2}
    found = []
    for cluster in (1, 2):
        definition = load("fused_delta_gating_kernel").scheduled({"cluster": cluster})
        compilation = compile_kernel(definition, sizes, "sm_90a", constants=constants)
        found.append(cost(compilation.target.kernel(), arch("sm_90a"), sizes).flops)
    assert "load nothing alike" in " ".join(compilation.program.notes)
    assert found[0] == found[1] == 2 * 16 * 2048 * 1024 * 1024
