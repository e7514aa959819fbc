"""F6 and F12 of the document, verbatim, through the whole pipeline: right, without findings, without spills."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.frontend.grid import launch_grid
from tessera.ir.dims import to_text
from tessera.runtime import emulator
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.schedule import Schedule
from tests.suite import load
from tests.test_document_blocks import GATES, given_to, made_up

SHAPES = [  # N, B, S, D: each value of the domain at least once
    (0, 3, 127, 64), (1, 1, 1, 16), (3, 3, 129, 60), (3, 1, 150, 100), (8, 1, 127, 128),
    (1, 33, 20, 64), (3, 1, 129, 256), (1, 3, 20, 512), (1, 1, 20, 1024), (1, 1, 20, 1000),
]  # fmt: skip
FULL = pytest.mark.full


def names(name, n, dims):
    return {**dims, "len(source_layers)": n, f"len({GATES[name]})": n}


def emulated(compilation, name, arguments, symbols, seed):
    text, given = compilation.cuda[0], given_to(name, arguments)
    values = [
        *(given[key] for key in text.pointers),
        *(symbols[key] for key in text.sizes),
        *(given[key] for key in text.scalars),
    ]
    library = emulator.build(text.text, [text.name])
    grid = launch_grid(compilation.target.kernel(), symbols)
    outputs = [text.pointers.index("output")]
    found = library.examine(text.name, grid, text.threads, text.shared_bytes, values, seed, outputs=outputs)
    assert not found.count, str(found.faults[0])
    return given["output"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", GATES)
def test_the_emitted_cuda_equals_the_interpreter(name, shape):
    n, b, s, d = shape
    arguments, dims = made_up(n, b, s, d)
    symbols = names(name, n, dims)
    compilation = compile_kernel(load(name), symbols)
    expected = given_to(name, arguments)
    interpret(compilation.stages[0].module.kernel(), expected, symbols)
    for seed in (0, 5):
        output = emulated(compilation, name, arguments, symbols, seed)
        np.testing.assert_array_equal(output.view(np.uint16), expected["output"].view(np.uint16))


@pytest.mark.parametrize("d", [16, 60, 64, *(pytest.param(d, marks=FULL) for d in (100, 128, 512)), 256, 1000, 1024])
@pytest.mark.parametrize("name", GATES)
def test_megabytes_of_logical_buffers_take_what_a_block_has(name, d):
    symbols = names(name, 3, {"B": 16, "S": 2048, "D": d, "L": 4})
    for arch, limit in (("sm_80", 166912), ("sm_90a", 232448)):
        compilation = compile_kernel(load(name), symbols, arch=arch)
        text, kernel = compilation.cuda[0], compilation.target.kernel()
        assert text.shared_bytes <= limit
        assert d == 16 or limit < sum(kernel.attributes["logical_bytes"].values())
        assert not any(op.result.name == "smem_workspace" for op in kernel.body.walk() if op.name == "shared")
        resources = compile_cubin(text.text, arch, text.name).resources[text.name]
        assert resources.spill_stores == resources.spill_loads == 0, arch


@pytest.mark.parametrize("d, columns", [(16, 1), (60, 1), (100, 1), (256, 1), (1000, 16), (1024, 8)])
@pytest.mark.parametrize("name", GATES)
def test_every_width_is_distributed(name, d, columns):
    """One program for `rows` rows of one batch, or all of a block, and one part of the columns, the last of which may
    end early.
    """
    compilation = compile_kernel(load(name), names(name, 3, {"B": 16, "S": 2048, "D": d, "L": 4}))
    kernel, schedule = compilation.target.kernel(), compilation.schedule
    rows = {"parallel_delta_aggregation_kernel": 128, "fused_delta_gating_kernel": 64}[name]
    programs = (1 if schedule.walk == "rows" else rows // schedule.rows) * columns
    assert [to_text(size) for size in kernel.attributes["grid"]] == [
        f"{programs}*B" if programs > 1 else "B", f"cdiv(S, {rows})"
    ]  # fmt: skip
    assert not any(op.get("parallel") for op in kernel.body.walk())


@pytest.mark.parametrize("constants", [
    {}, {"num_stages": 3}, {"num_stages": 4, "num_warps": 8}, {"BLOCK_B": 64, "BLOCK_S": 256, "num_warps": 16},
], ids=str)  # fmt: skip
def test_no_point_of_the_space_changes_a_bit(constants):
    name = "fused_delta_gating_kernel"
    arguments, dims = made_up(2, 1, 70, 64)
    symbols = names(name, 2, dims)
    plain = compile_kernel(load(name), symbols)
    expected = given_to(name, arguments)
    interpret(plain.stages[0].module.kernel(), expected, symbols)
    output = emulated(compile_kernel(load(name), symbols, constants=constants), name, arguments, symbols, 1)
    np.testing.assert_array_equal(output.view(np.uint16), expected["output"].view(np.uint16))


SCHEDULES = [
    Schedule(4, subtile=32, block_k=32, rows=16, stages=1),
    Schedule(8, subtile=48, block_k=16, rows=64, stages=4),
    Schedule(4, subtile=64, block_k=64, rows=32, stages=3, blocks=2),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", GATES)
def test_no_sub_tiling_changes_a_bit(name, schedule):
    arguments, dims = made_up(2, 2, 40, 80)
    symbols = names(name, 2, dims)
    compilation = compile_kernel(load(name), symbols, schedule=schedule)
    bits = set()
    for stage in compilation.stages:
        given = given_to(name, arguments)
        interpret(stage.module.kernel(), given, symbols, level=stage.module.level)
        bits.add(given["output"].tobytes())
    bits.add(emulated(compilation, name, arguments, symbols, 2).tobytes())
    assert len(bits) == 1


def test_a_dead_buffer_is_named():
    symbols = names("fused_delta_gating_kernel", 2, {"B": 1, "S": 70, "D": 64, "L": 3})
    notes = compile_kernel(load("fused_delta_gating_kernel"), symbols).target.kernel().attributes["notes"]
    assert any("'smem_workspace' is never read" in note for note in notes)


@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.full] * bool(n % 16)) for n in range(81)])
def test_the_points_of_the_space_lower(number):
    name = "fused_delta_gating_kernel"
    point = list(load(name).points())[number]
    compilation = compile_kernel(load(name), names(name, 4, {"B": 16, "S": 2048, "D": 256, "L": 5}), constants=point)
    assert compilation.schedule is not None and compilation.schedule.warps == point["num_warps"]
