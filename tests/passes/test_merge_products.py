"""Products of one tensor with parts of a matrix that lie side by side are one, whose results are read in parts."""

import pytest

from tessera.compiler import find_arch, run_pass
from tessera.dtypes import bf16
from tessera.ir.core import Module, uses
from tessera.ir.dims import symbol
from tessera.ir.opdef import GRAPH
from tessera.ir.types import shape_of
from tessera.passes import GRAPH_PIPELINE, Context
from tessera.passes.merge_products import merge_products
from tessera.passes.plan_fusion import plan_fusion
from tessera.passes.sibling_products import why_apart
from tests.fuzz.graph_running import emulate
from tests.passes.graphs import Graph, held, plan_of

B, S = symbol("B"), symbol("S")
DEPTH = 48
SIZES = {"B": 2, "S": 70}


def projected(graph, x, part, width=16, implicit=True):
    """Heads of x times a part of a matrix: [B, heads, S, width]."""
    value = graph.cast(graph.op("matmul", x, part), bf16, implicit=implicit)
    columns = shape_of(part.type)[-1]
    heads = graph.op("reshape", value, shape=(B, S, columns // width, width))
    return graph.op("permute", heads, permutation=(0, 2, 1, 3))


def attended(graph, query, key, value):
    scores = graph.op("matmul", query, graph.op("permute", key, permutation=(0, 1, 3, 2)))
    return graph.op("matmul", graph.cast(graph.softmax(scores), bf16, implicit=True), value)


def part(graph, matrix, start, columns=32):
    return graph.op("extract", matrix, starts=(0, start), extents=(DEPTH, columns))


def layer(starts, second=None, widths=(16, 16, 16), roundings=(True, True, True)):
    """Attention of three parts of a packed matrix; `second`: those of the last come of another one."""
    graph = Graph()
    x, w = graph.tensor("x", B, S, DEPTH), graph.tensor("w", DEPTH, 160)
    other = w if second is None else graph.tensor("other", DEPTH, 160)
    matrices = (w, w, other)
    parts = [part(graph, matrix, start) for matrix, start in zip(matrices, starts, strict=True)]
    q, k, v = (
        projected(graph, x, piece, width, implicit)
        for piece, width, implicit in zip(parts, widths, roundings, strict=True)
    )
    if widths[2] != widths[0]:
        return graph.function(attended(graph, q, k, q), v)
    return graph.function(attended(graph, q, k, v))


def products(function):
    """The columns of products with matrices."""
    matrices = [op for op in function.body.ops if op.name == "matmul" and len(shape_of(op.operands[1].type)) == 2]
    return [shape_of(op.result.type)[-1] for op in matrices]


@pytest.mark.parametrize("starts", [(0, 32, 64), (64, 32, 96), (16, 80, 48)])
def test_parts_that_lie_side_by_side_are_one_product(starts):
    function = layer(starts)
    merged = merge_products(function, SIZES)
    assert products(function) == [32, 32, 32] and products(merged) == [96]
    assert len(plan_of(merged, **SIZES).launches) == 2  # and attention, which reads the parts in place
    emulate(held(function, **SIZES)[1:])


@pytest.mark.parametrize(
    ("function", "expected", "why"),
    [
        (layer((0, 32, 128)), [64, 32], "do not lie side by side"),
        (layer((0, 64, 128)), [32, 32, 32], "do not lie side by side"),
        (layer((0, 32, 64), second=True), [64, 32], "parts of different tensors"),
        (layer((0, 32, 64), roundings=(True, True, False)), [64, 32], "rounded or cut in different ways"),
    ],
    ids=["apart", "all apart", "other matrix", "other rounding"],
)
def test_others_stay_apart(function, expected, why):
    merged = merge_products(function, SIZES)
    assert products(merged) == expected
    first, *_, last = [op for op in function.body.ops if op.name == "matmul" and op.operands[0].defining_op is None]
    assert why in why_apart(first, last, uses(function.body))
    held(function, **SIZES)


def test_why_is_told_where_a_tensor_is_handed_to_products():
    graph = Graph()
    x = graph.op("cumsum", graph.tensor("x", B, S, DEPTH), axis=1)  # has a kernel of its own
    w = graph.tensor("w", DEPTH, 160)
    first = projected(graph, x, part(graph, w, 0))
    second = projected(graph, x, part(graph, w, 32))
    third = graph.op("tanh", graph.op("matmul", x, part(graph, w, 64)))
    merged = merge_products(graph.function(attended(graph, first, second, first), third), SIZES)
    assert products(merged) == [64, 32]
    whys = [e.why for e in plan_fusion(merged, SIZES).edges if e.consumer.name == "matmul" and not e.fused]
    assert sum("; no product with that of line" in why and "more is done" in why for why in whys) == 2


def test_products_that_share_a_kernel_stay_as_they_are():
    """Their rows are computed there, and are read once."""
    graph = Graph()
    normed = graph.cast(graph.normalised(graph.tensor("x", B, S, DEPTH)), bf16, implicit=True)
    w = graph.tensor("w", DEPTH, 160)
    q, k, v = (projected(graph, normed, part(graph, w, start)) for start in (0, 32, 64))
    function = graph.function(attended(graph, q, k, v))
    assert merge_products(function, SIZES) is function
    assert len(plan_of(function, **SIZES).launches) == 2


def test_the_pass_is_one_of_the_pipeline():
    (step,) = [each for each in GRAPH_PIPELINE if each.name == "merge_products"]
    module = run_pass(step, Module(GRAPH, [layer((0, 32, 64))]), Context(find_arch("sm_80"), SIZES))
    assert products(module.kernel()) == [96]
