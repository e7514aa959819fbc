"""What functions become: how many kernels the document's are, attention, and why ops share a kernel or do not."""

import numpy as np
import pytest

from tessera.cli.functions import choose, load_function
from tessera.cli.target import resolve_one
from tessera.compiler import compile_function, lower_function
from tessera.dtypes import bf16, f32, i64
from tessera.ir.core import Kernel, uses
from tessera.ir.dims import symbol, symbols
from tessera.ir.types import TileType
from tessera.passes.fuse import fuse
from tessera.passes.plan_fusion import plan_fusion
from tessera.runtime import execute, nvrtc
from tessera.runtime.function_interpreter import interpret_function
from tests.fuzz.graph_program import GraphProgram
from tests.fuzz.graph_programs import graph_program
from tests.fuzz.graph_running import PlanRun, assert_same, emulate
from tests.passes.graphs import Graph, held, plan_of
from tests.suite import DOCUMENT

B, H, T, D, M, K, N = (symbol(name) for name in "BHTDMKN")


def compiled(name, lengths=None, **dims):
    """A function of the document with lists of these lengths; dims that it lacks are left out."""
    subject = load_function(resolve_one(f"{DOCUMENT}::{name}"))
    if lengths is not None:
        target = resolve_one(f"{DOCUMENT}::{name}")
        lists = {p.name: str(lengths) for p in subject.signature if p.kind == "list"}
        subject = load_function(type(target)(**{**vars(target), "args": {**target.args, **lists}}))
    chosen = choose(subject, {name: dims[name] for name in subject.dims})
    return subject.trace(chosen), subject.static(chosen)


def launches(name, lengths=None, **dims):
    trace, static = compiled(name, lengths, **dims)
    return len(lower_function(trace.function, static, called=trace.collected.kernels).launches)


SMALL = {"B": 2, "S": 150, "D": 64, "G": 16, "L": 4}
LARGE = {"B": 4, "S": 1024, "D": 512, "G": 64, "L": 4}

COUNTS = {  # kernels at SMALL and at LARGE; F2, F6 and F12 are kernels, F4 is a number
    "delta_connection": (1, 1),  # F1
    "adaptive_gating_mechanism": (1, 1),  # F3
    "multi_scale_delta_aggregation": (1, 1),  # F5
    "delta_layer_with_checkpointing": (3, 9),  # F7
    "distributed_gdn_layer": (3, 8),  # F8: its deltas, and the layer's seven
    "safe_delta_computation": (1, 1),  # F9
    "stable_gating_computation": (1, 1),  # F10
    "mixed_precision_gdn_layer": (1, 1),  # F11
    "optimized_delta_memory_access": (1, 1),  # F13
}


@pytest.mark.parametrize("name", COUNTS)
def test_how_many_kernels_the_functions_of_the_document_are(name):
    assert (launches(name, **SMALL), launches(name, **LARGE)) == COUNTS[name]


@pytest.mark.parametrize("depth", [64, 128])
@pytest.mark.parametrize("name", COUNTS)
def test_fusion_changes_no_bit_of_a_strict_function(name, depth):
    """F7 and F8 among them, with their attention: of the graph before fusion, after it, and of the plan."""
    dims = {"B": 2, "S": 70, "D": depth, "G": 24, "L": 3}
    trace, static = compiled(name, **dims)
    function = trace.function
    attributes = {**function.attributes, "precision": "strict"}
    strict = Kernel(function.name, function.body, attributes, function.origin)
    graphs = {}
    plan = lower_function(strict, static, keep=lambda stage: graphs.update({stage.name: stage.module.kernel()}))
    program = GraphProgram(graphs["fuse"], static, 0)
    before, after = (
        interpret_function(graphs[name], program.arguments(), static) for name in ("simplify_casts", "fuse")
    )  # fmt: skip
    assert all(np.isfinite(np.asarray(result, np.float32)).all() for result in before)
    assert_same(before, after, "fusion")
    assert not plan.reordered and not any(rounding.skipped for rounding in plan.roundings)
    assert_same(before, PlanRun(program, plan).run(execute.interpret), "the plan")


@pytest.mark.parametrize("length", [1, 8])
def test_a_sum_over_any_number_of_layers_is_one_kernel(length):
    assert launches("multi_scale_delta_aggregation", length, **{**SMALL, "L": 16}) == 1


@pytest.mark.parametrize("rows", [100, 128, 1000, 4000])
def test_slices_of_rows_are_one_kernel_whatever_their_number(rows):
    assert launches("optimized_delta_memory_access", **{**SMALL, "S": rows}) == 1


@pytest.mark.parametrize(("name", "dims"), [("delta_connection", 256), ("multi_scale_delta_aggregation", 256)])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_fused_products_compile_without_spills(name, dims, arch):
    trace, static = compiled(name, B=8, S=4096, D=dims, L=4)
    assert_compiles(compile_function(trace, static, arch), arch)


def assert_compiles(made, arch):
    try:
        nvrtc.load_nvrtc()
    except nvrtc.NvrtcUnavailable:
        pytest.skip("needs NVRTC")
    for compilation in made.kernels:
        text = compilation.cuda[0]
        resources = nvrtc.compile_cubin(text.text, arch, text.name).resources[text.name]
        assert resources.spill_stores == resources.spill_loads == 0, text.name


# Attention ------------------------------------------------------------------------------------------------------------


def attention(graph, dtype=bf16, causal=False, bias=False, moved=True, powers=False):
    shape, order = (B, T, H, 16), (0, 2, 1, 3)
    q, k, v = (graph.tensor(name, *(shape if moved else (B, H, T, 16)), dtype=dtype) for name in "qkv")
    if moved:
        q, k, v = (graph.op("permute", x, permutation=order) for x in (q, k, v))
    scores = graph.op("matmul", q, graph.op("permute", k, permutation=(0, 1, 3, 2)))
    scores = graph.op("mul", scores, graph.number(0.25))
    if bias:
        scores = graph.op("add", scores, graph.spread(graph.tensor("bias", 1, H, T, T), scores))
    if causal:
        row, column = (graph.op("iota", shape=(T, T), axis=axis, dtype=i64) for axis in (0, 1))
        seen = graph.op("reshape", graph.op("ge", row, column), shape=(1, 1, T, T))
        scores = graph.op("where", graph.spread(seen, scores), scores, graph.number(-np.inf))
    shares = graph.softmax(scores, powers)
    shares = graph.cast(shares, dtype, implicit=True) if dtype != f32 else shares
    mixed = graph.op("matmul", shares, v)
    return graph.op("permute", graph.cast(mixed, dtype, implicit=True), permutation=order) if moved else mixed


def square(plan):
    """Buffers that hold a number for each pair of rows."""
    return [
        b.name
        for b in plan.buffers.values()
        if sum("T" in symbols(size) for size in b.shape) > 1 and b.role != "parameter"
    ]


@pytest.mark.parametrize("length", [2, 33, 64, 100, 200])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"moved": False}, {"dtype": f32}, {"powers": True}], ids=str)
def test_attention_is_one_kernel_without_scores_in_memory(options, length):
    graph = Graph()
    function = graph.function(attention(graph, **options))
    sizes = {"B": 2, "H": 2, "T": length}
    plan = plan_of(function, **sizes)
    assert len(plan.launches) == 1 and not square(plan) and plan.reordered
    assert "T" not in plan.static  # one kernel serves all lengths
    held(function, **sizes)  # and in a strict function every bit is that of the graph


@pytest.mark.parametrize("options", [{"causal": True, "powers": True}, {"bias": True, "dtype": f32}], ids=str)
def test_emitted_attention(options):
    graph = Graph()
    emulate(held(graph.function(attention(graph, **options)), B=1, H=2, T=70))


def test_a_row_that_sees_no_key_of_the_first_blocks():
    """Nothing but the last keys are seen: what came before them counts for nothing, and is no NaN."""
    graph = Graph()
    q, k, v = (graph.tensor(name, B, T, 16) for name in "qkv")
    scores = graph.op("matmul", q, graph.op("permute", k, permutation=(0, 2, 1)))
    column = graph.op("iota", shape=(T, T), axis=1, dtype=i64)
    seen = graph.op("reshape", graph.op("ge", column, graph.number(140)), shape=(1, T, T))
    scores = graph.op("where", graph.spread(seen, scores), scores, graph.number(-np.inf))
    function = graph.function(graph.op("matmul", graph.cast(graph.softmax(scores), bf16, implicit=True), v))
    runs = held(function, B=1, T=150)
    assert len(runs[0].plan.launches) == 1
    assert all(np.isfinite(run.results[0]).all() for run in runs)


def test_what_looks_at_the_scores_keeps_them_in_memory():
    graph = Graph()
    q, k, v = (graph.tensor(name, B, T, 16) for name in "qkv")
    shares = graph.softmax(graph.op("matmul", q, graph.op("permute", k, permutation=(0, 2, 1))))
    function = graph.function(graph.op("matmul", graph.cast(shares, bf16, implicit=True), v), shares)
    plan = plan_of(function, B=1, T=30)
    assert square(plan) and not plan.reordered
    held(function, B=1, T=30)


def test_a_softmax_along_another_product_is_no_attention():
    """The first product's rows are not what the second one multiplies: the values are the shares' own rows."""
    graph = Graph()
    q, k = graph.tensor("q", B, T, 16), graph.tensor("k", B, T, 16)
    shares = graph.softmax(graph.op("matmul", q, graph.op("permute", k, permutation=(0, 2, 1))))
    other = graph.op("exp", graph.op("neg", shares))
    held(graph.function(graph.op("matmul", other, graph.cast(k, f32))), B=1, T=30)


def test_the_attention_of_a_transformer_layer_is_one_kernel():
    for dims in (SMALL, LARGE):
        trace, static = compiled("distributed_gdn_layer", **dims)
        plan = lower_function(trace.function, static, called=trace.collected.kernels)
        assert len(plan.reordered) == 1
        for buffer in plan.buffers.values():
            assert sum("S" in symbols(size) for size in buffer.shape) <= 1, f"{buffer.name} holds scores"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_attention_compiles_without_spills(arch):
    graph = Graph()
    function = graph.function(attention(graph, causal=True))
    assert_compiles(compile_function(function, {"B": 2, "H": 2, "T": 150}, arch), arch)


# Why ------------------------------------------------------------------------------------------------------------------


def whys(function, **dims):
    """Why edges were not fused."""
    return [edge.why for edge in plan_fusion(function, dims).edges if not edge.fused]


def test_every_tensor_that_an_op_hands_to_another_is_an_edge():
    for seed in range(60):
        program = graph_program(seed)
        fusion, body = plan_fusion(program.function, program.dims), program.function.body
        wanted = {
            (value, user)
            for value, users in uses(body).items()
            for user in users
            if value.defining_op is not None and isinstance(value.type, TileType) and user.name != "return"
        }
        assert {(edge.value, edge.consumer) for edge in fusion.edges} == wanted
        assert all(edge.why for edge in fusion.edges)
        for edge in fusion.edges:
            homes = [c for c in fusion.clusters if edge.producer in c.ops or edge.consumer in c.ops]
            assert edge.fused or len(homes) == 2, f"{edge.why}: {edge.producer.name} -> {edge.consumer.name}"


def test_rows_that_are_not_the_same():
    graph = Graph()
    total = graph.op("reduce_sum", graph.op("exp", graph.tensor("x", M, K)), axis=0)
    function = graph.function(graph.op("tanh", total))
    assert whys(function, M=5, K=8) == [
        "'reduce_sum' has a kernel of its own: it moves whole tensors",
        "'reduce_sum' has a kernel of its own: it moves whole tensors",
    ]


def test_a_right_operand_is_in_memory():
    graph = Graph()
    x, w = graph.tensor("x", M, M), graph.op("exp", graph.tensor("w", M, M))
    assert whys(graph.function(graph.op("matmul", x, w)), M=16) == [
        "a product reads its right operand whole: it must be in memory"
    ]


def test_a_norm_shares_the_kernel_of_a_narrow_product_and_not_of_a_wide_one():
    for depth, columns, fused in ((64, 64, True), (512, 2048, False)):
        graph = Graph()
        normed = graph.normalised(graph.tensor("x", M, depth, dtype=f32))
        product = graph.op("matmul", graph.cast(normed, bf16, implicit=True), graph.tensor("w", depth, columns))
        (why, *_) = whys(graph.function(product), M=100) or [""]
        assert (why == "") == fused and ("bytes a row as one kernel" in why) != fused


def test_a_value_that_is_stored_behind_a_product_ends_its_kernel():
    graph = Graph()
    gate = graph.op("tanh", graph.op("matmul", graph.tensor("x", M, K), graph.tensor("w", K, K)))
    function = graph.function(gate, graph.op("exp", gate))
    assert whys(function, M=5, K=8) == ["storing it inside of a kernel would compute a product twice"]


def test_independent_ops_on_the_same_rows_read_them_once():
    graph = Graph()
    x = graph.tensor("x", M, K)
    function = graph.function(graph.op("exp", x), graph.op("reduce_max", x, axis=-1), graph.op("tanh", x))
    assert len(plan_of(function, M=5, K=8).launches) == 1
    held(function, M=5, K=8)


def test_a_kernel_ends_where_the_least_is_stored():
    """x * x is f32 and only the norm needs it: that reads x again instead."""
    graph = Graph()
    x = graph.cast(graph.op("matmul", graph.tensor("a", M, 512), graph.tensor("w", 512, 512)), bf16, implicit=True)
    function = graph.function(x, graph.cast(graph.normalised(graph.cast(x, f32, implicit=True)), bf16, implicit=True))
    plan = plan_of(function, M=40)
    assert len(plan.launches) == 2 and not plan.lifetimes()


def test_a_fused_function_stays_as_it_is():
    program = graph_program(7)
    once = fuse(program.function, program.dims)
    assert fuse(once, program.dims) is once


def test_parts_and_orders_of_axes_are_read_in_place():
    graph = Graph()
    x, w = graph.tensor("x", B, M, 48), graph.tensor("w", 32, 16)
    part = graph.op("extract", x, starts=(0, 0, 16), extents=(B, M, 16))
    product = graph.op("matmul", part, graph.op("permute", w, permutation=(1, 0)))
    function = graph.function(graph.op("tanh", product))
    assert len(plan_of(function, B=2, M=20).launches) == 1
    emulate(held(function, B=2, M=20))
