"""Operands that a launch of its own computes: every bit as before, on every lane, and what cannot be cut is refused."""
# ruff: noqa: F821  (the names of dims)

import math

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel, trace_kernel
from tessera.errors import SourceError
from tessera.ir.compare import difference
from tessera.ir.dims import cdiv, evaluate, symbol
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import BufferType
from tessera.passes.split_prologue import split_prologue
from tessera.runtime import execute
from tessera.runtime.check import examine_kernel
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.schedule import Schedule
from tests.passes.test_pipeline import arguments_of, assert_same_bits, outputs_of
from tests.passes.test_split_k import copied, stage
from tests.suite import load


@ts.kernel
def layered(
    x: Tensor["M", 128, ts.bf16], others: list[Tensor["M", 128, ts.bf16]], w: list[Tensor[128, 128, ts.bf16]],
    out: Tensor["M", 128, ts.bf16],
):  # fmt: skip
    """The operand of one product a layer, which the sum meets again."""
    m = tile.program_id(0) * 128
    total = tile.zeros([128, 128], ts.f32)
    for layer in tile.static_range(len(others)):
        delta = x[m : m + 128] - others[layer][m : m + 128]
        total = total + delta * tile.sigmoid(tile.mma(delta, w[layer]))
    tile.store(total, out[m : m + 128])


@ts.kernel
def both(x: Tensor["M", "K", ts.bf16], y: Tensor["K", "N", ts.bf16], out: Tensor["B", "M", "N", ts.f32]):
    """Both operands, on a grid of three axes with and without scale, in a loop that runs down."""
    ctx = tile.context()
    i, n, b = tile.program_id(0), tile.program_id(1) * 16, tile.program_id(2)
    total = tile.zeros([16, 16], ts.f32)
    for k in tile.range(48, -16, -16):
        left = tile.maximum(x[i : i + 16, k : k + 16], 0.0) * tile.cast(b + 1, ts.bf16)
        right = tile.transpose(tile.abs(y[k : k + 16, n : n + 16]))
        total = tile.mma(left, right, total, transpose_b=True)
    tile.store(total + tile.cast(ctx.B, ts.f32), out[b, i : i + 16, n : n + 16])


CASES = [
    (layered, {"M": 150, "len(others)": 3, "len(w)": 3}, {}),
    (layered, {"M": 150, "len(others)": 1, "len(w)": 1}, {"family": "wgmma"}),
    (layered, {"M": 300, "len(others)": 3, "len(w)": 3}, {"family": "wgmma", "persistent": True}),
    (layered, {"M": 70, "len(others)": 2, "len(w)": 2}, {"rows": 64, "subtile": 32, "block_k": 32}),
    (both, {"M": 20, "N": 30, "K": 64, "B": 2}, {}),
]


def prepared(definition, dims, pins):
    compilation = compile_kernel(definition.scheduled({"prologue": "launch", **pins}), dims, "sm_90a")
    return compilation, arguments_of(compilation.stages[0].module.kernel(), dims)


@pytest.mark.parametrize("definition, dims, pins", CASES)
def test_every_bit_stays(definition, dims, pins):
    compilation, arguments = prepared(definition, dims, pins)
    first = compilation.stages[0].module.kernel()
    expected = {name: value for name, value in outputs_of(first, dims, "tile").items()}
    split = stage(compilation, "split_prologue")
    *_, rest = [kernel.name for kernel in split.module.kernels]
    assert rest == definition.name and len(split.module.kernels) == 2 + (definition is both)
    for later in compilation.stages[compilation.stages.index(split) :]:
        found = execute.interpret_all(later.module, copied(arguments), dims).outputs
        assert_same_bits(expected, {name: found[name] for name in expected}, later.name)
        assert difference(later.module, parse_module(print_module(later.module))) is None, later.name


def test_a_workspace_is_a_tensor_where_the_operand_is_a_part_of_one():
    """As long as what it is computed from, for each iteration; else as many tiles as programs."""
    shapes = {}
    for definition, dims, pins in (CASES[0], CASES[4]):
        program = prepared(definition, dims, pins)[0].program
        assert program is not None
        shapes[definition.name] = [space.shape for space in program.workspaces]
    m, n, k, b = (symbol(name) for name in "MNKB")
    tiles = (cdiv(n, 16) * b, cdiv(m, 16) * 4, 16, 16)  # the left operand has the number of its program as a factor
    assert shapes == {"layered": [(3, m, 128)], "both": [tiles, (4, k, n)]}


LARGE = load("fused_delta_gating_kernel").pinned({"BLOCK_B": 16, "BLOCK_S": 128, "num_warps": 8, "num_stages": 4})
WIDE = (LARGE, {"B": 1, "S": 130, "D": 256, "L": 3, "len(source_layers)": 2, "len(gate_params)": 2}, {"subtile": 192})


@pytest.mark.parametrize("definition, dims, pins", [*CASES, WIDE])
def test_check_finds_nothing(definition, dims, pins):
    compilation, arguments = prepared(definition, dims, pins)
    report = examine_kernel(compilation, arguments, dims, seeds=(0, 3), blocks="all")
    assert report.ok, report.findings
    assert compilation.program is not None
    assert [launch.name for launch in report.kernels] == [step.kernel for step in compilation.program.launches]


def test_the_document():
    """The flagship on the lane of warpgroups: the product reads its operand as it lies in memory."""
    dims = {"B": 2, "S": 150, "D": 256, "L": 3}
    lengths = {"len(source_layers)": 2, "len(gate_params)": 2}
    definition = load("fused_delta_gating_kernel").scheduled({"prologue": "launch", "family": "wgmma"})
    compilation = compile_kernel(definition, {**dims, **lengths}, "sm_90a")
    target = compilation.target.kernels[-1]
    products = [op for op in target.body.walk() if op.name == "wgmma"]
    assert products and all(isinstance(op.operands[0].type, BufferType) for op in products)
    assert compilation.program is not None
    (space,) = compilation.program.workspaces
    assert space.dtype == "bf16" and space.name == "delta"
    made = compile_cubin(compilation.program.cuda, "sm_90a", compilation.program.name)
    assert all(found.spill_stores == 0 for found in made.resources.values())


def test_rows_outside_of_the_tensor_have_no_programs():
    """However large the blocks of the author are: a program of the prologue for each row and layer that there is."""
    dims = {"B": 2, "S": 150, "D": 2048, "L": 3, "len(source_layers)": 2, "len(gate_params)": 2}
    for constants in ({"BLOCK_B": 16, "BLOCK_S": 64}, {"BLOCK_B": 64, "BLOCK_S": 256}):
        definition = load("fused_delta_gating_kernel").pinned({**constants, "num_warps": 8, "num_stages": 2})
        made = compile_kernel(definition.scheduled({"prologue": "launch"}), dims, "sm_90a").program
        assert made is not None
        rows = -(-dims["S"] // constants["BLOCK_S"]) * constants["BLOCK_S"]
        assert math.prod(evaluate(size, dims) for size in made.launches[0].grid) == 2 * 2 * rows


def test_a_launch_that_nobody_pinned_is_left_out_where_it_cannot_be():
    kernel = trace_kernel(load("matmul_nn_bf16"), {"M": 64, "N": 64, "K": 64}).kernel()
    assert split_prologue(kernel, Schedule(prologue="launch")) == [kernel]


@ts.kernel
def chained(x: Tensor["M", 16, ts.bf16], w: Tensor[16, 16, ts.bf16], out: Tensor["M", 16, ts.f32]):
    m = tile.program_id(0) * 16
    first = tile.mma(x[m : m + 16], w)
    tile.store(tile.mma(tile.cast(first, ts.bf16), w), out[m : m + 16])


@ts.kernel
def carried(x: Tensor["M", 16, ts.bf16], w: Tensor[16, 16, ts.bf16], out: Tensor["M", 16, ts.f32]):
    m = tile.program_id(0) * 16
    state = tile.load(x[m : m + 16])
    total = tile.zeros([16, 16], ts.f32)
    for _ in tile.range(0, 4, 1):
        state = state * 0.5
        total = tile.mma(state, w, total)
    tile.store(total, out[m : m + 16])


@ts.kernel
def in_place(x: Tensor["M", 16, ts.bf16], w: Tensor[16, 16, ts.bf16]):
    m = tile.program_id(0) * 16
    tile.store(tile.cast(tile.mma(x[m : m + 16] * 2.0, w), ts.bf16), x[m : m + 16])


REFUSED = [
    (load("matmul_nn_bf16"), {"M": 64, "N": 64, "K": 64}, "'matmul_nn_bf16' computes no operand of a product"),
    (
        load("difference_matmul"),
        {"M": 33, "N": 100, "K": 129},
        "is computed in a branch, or in a loop whose length only the run knows",
    ),
    (chained, {"M": 16}, "is computed from another product"),
    (carried, {"M": 16}, "is computed from what a loop carries"),
    (in_place, {"M": 16}, "is computed from 'x', which the kernel writes"),
]


@pytest.mark.parametrize("definition, dims, why", REFUSED)
def test_what_cannot_be_cut_is_refused(definition, dims, why):
    with pytest.raises(SourceError) as error:
        compile_kernel(definition.scheduled({"prologue": "launch"}), dims, "sm_80")
    assert error.value.code == "TS512" and why in str(error.value) and "prologue = 'launch'" in str(error.value)
