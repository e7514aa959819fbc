"""Kernels that hold lines behind products in registers: their shapes, that every bit is the function's, resources."""

import pytest

from tessera.compiler import compile_function, compile_kernel
from tessera.dtypes import bf16, f32
from tessera.ir.core import Module
from tessera.ir.dims import symbol
from tessera.ir.opdef import REDUCTION, TILE
from tessera.ir.types import shape_of, tile_layout
from tessera.passes import assign_layouts, fusion_cost, held_lines
from tessera.passes.fusion_cost import Programs, Sizes
from tessera.runtime import nvrtc
from tessera.target.arch import ARCHS
from tests.fuzz.graph_running import emulate
from tests.passes.graphs import Graph, held, plan_of
from tests.passes.test_fuse import compiled
from tests.passes.test_graph_lines import product, random_lines

M = symbol("M")


@pytest.fixture
def short(monkeypatch):
    """Lines of 32 columns and more are held, by two warps, which share those of 64."""
    monkeypatch.setattr(held_lines, "LEAST_LINE", 32)
    monkeypatch.setattr(held_lines, "SHAPES", ((16, 2, 1), (16, 1, 1)))
    monkeypatch.setattr(assign_layouts, "SHARED_LINE", 64)


def pins(plan):
    return [kernel.attributes.get("pins") for kernel in plan.kernels]


@pytest.mark.parametrize("columns", [256, 520, 1000])
def test_a_softmax_behind_a_wide_product_is_one_kernel_that_keeps_nothing(columns):
    graph = Graph()
    function = graph.function(graph.softmax(product(graph, graph.tensor("x", M, 24), columns)))
    plan = plan_of(function, M=5)
    (kernel,) = plan.kernels
    assert kernel.attributes["pins"]["warps"] >= 8
    assert not any(op.name == "alloc_shared" for op in kernel.body.walk())
    held(function, M=5)


@pytest.mark.usefixtures("short")
def test_warps_share_a_line_and_reduce_blocks_of_it():
    graph = Graph()
    function = graph.function(graph.softmax(product(graph, graph.tensor("x", M, 40), 96)))
    (kernel,) = plan_of(function, M=50).kernels
    target = compile_kernel(Module(TILE, [kernel]), {"M": 50}, "sm_80").target.kernel()
    (line, *_) = [op.result for op in target.body.walk() if op.name == "mma_sync"]
    layout = tile_layout(line.type)
    assert layout.warps == 2 and layout.registers_per_thread * 64 >= 16 * 96 > layout.registers_per_thread * 32
    assert any(op.name == "fold_blocks" for op in target.body.walk())
    emulate(held(function, M=50))


@pytest.mark.usefixtures("short")
def test_a_line_in_memory_on_both_sides_of_a_product_is_copied_once():
    graph = Graph()
    x = graph.cast(graph.tensor("x", M, 64), f32)
    scaled = graph.op("mul", product(graph, graph.tensor("y", M, 24), 64), graph.spread(
        graph.op("reduce_max", x, axis=-1), x))  # fmt: skip
    hidden = graph.cast(graph.op("tanh", scaled), bf16, implicit=True)
    function = graph.function(graph.op("mul", graph.softmax(product(graph, hidden, 64)), x))
    plan = plan_of(function, M=50)
    (kernel,) = plan.kernels
    names = [op.name for op in kernel.body.ops]
    assert names.count("copy_async") == 1 and names.count("alloc_shared") == 2  # and the left operand
    emulate(held(function, M=50))


@pytest.mark.usefixtures("short")
def test_random_lines_keep_every_bit():
    found, emulated = 0, []
    for seed in range(70):
        runs = held(random_lines(seed, (64, 46, 96)), M=20)
        kernels = [kernel for kernel in runs[1].plan.kernels if "pins" in kernel.attributes]
        found += bool(kernels)
        if kernels and len(emulated) < 9:
            emulated += runs[1:]
    assert found >= 9
    emulate(emulated)


def line_of(columns, depth=128, dtype=bf16):
    graph = Graph()
    x = graph.tensor("x", M, depth, dtype=dtype)
    graph.function(graph.softmax(graph.op("matmul", x, graph.tensor("w", depth, columns, dtype=dtype))))
    return [op for op in graph.body.ops if op.name != "return"]


@pytest.mark.parametrize(("columns", "warps"), [(256, 16), (512, 8), (1024, 16)])
def test_shapes_fit_registers_and_shared_memory(columns, warps):
    shape = held_lines.held_shape(line_of(columns), columns, Sizes({"M": 4096}))
    assert shape is not None
    threads = 32 * shape.warps
    registers = min(255, 65536 // (threads * shape.blocks))
    assert 2 * shape.rows * columns <= registers * threads
    slices = [depth * (columns + shape.rows) * 2 * shape.stages for depth in shape.depths]
    assert max(slices) <= held_lines.SHARED_BYTES
    assert shape.rows * columns // threads <= 64


def test_what_no_registers_hold_has_no_shape():
    sizes = Sizes({"M": 4096})
    assert held_lines.held_shape(line_of(2048), 2048, sizes) is None
    assert held_lines.held_shape(line_of(128), 128, sizes) is None  # a warp's own
    assert held_lines.held_shape(line_of(512, dtype=f32), 512, sizes) is None  # no tensor cores


def test_the_model_refuses_what_was_measured_to_be_slow():
    """687 us, of which it predicts more than half; as four kernels 470."""
    panels = Programs(rows=32, blocks=2, iterations=24, panels=44)
    assert 32768 * panels.waits / 3e12 > 350e-6
    assert fusion_cost.row_cost(line_of(512), [], [], Sizes({"M": 1}), panels) > 30_000


@pytest.mark.parametrize(("columns", "depth"), [(512, 128), (512, 64), (256, 128)])
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90a"])
def test_adaptive_gating_is_one_kernel_without_spills(columns, depth, arch):
    trace, static = compiled("adaptive_gating_mechanism", B=16, S=2048, D=columns, G=depth)
    (made,) = compile_function(trace, static, arch).kernels
    target = made.target.kernel()
    assert all(shape_of(op.result.type)[1] == 1 for op in target.body.walk() if op.definition.has(REDUCTION))
    assert sum(op.name == "barrier" for op in target.body.walk()) <= 16
    blocks = target.attributes["schedule"]["blocks"]
    if arch != "sm_86":  # whose 49 KiB of a block hold no line beside slices
        assert target.attributes["shared_bytes"] <= ARCHS[arch].shared_bytes_beside(blocks)
    if arch == "sm_90a":
        slices = [op for op in target.body.walk() if op.name == "shared" and (op.get("stages") or 1) > 1]
        assert {op.attributes["stages"] for op in slices} == {3}
    try:
        nvrtc.load_nvrtc()
    except nvrtc.NvrtcUnavailable:
        pytest.skip("needs NVRTC")
    (text,) = made.cuda
    resources = nvrtc.compile_cubin(text.text, arch, text.name).resources[text.name]
    assert resources.spill_stores == resources.spill_loads == 0
    assert resources.registers <= 128


@pytest.mark.parametrize(
    ("columns", "depth"), [(768, 16), (640, 100), (1024, 64), (896, 128), (512, 256), (1024, 256), (448, 100)]
)
def test_shared_memory_of_the_smallest_multiprocessor_holds_any_shape(columns, depth):
    """Padded columns, slices on their way and what reductions want, whatever becomes one kernel."""
    trace, static = compiled("adaptive_gating_mechanism", B=4, S=1024, D=columns, G=depth)
    kernels = compile_function(trace, static, "sm_86").kernels
    assert any("pins" in made.target.kernel().attributes for made in kernels)
