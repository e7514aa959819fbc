"""Which ops of a function share a kernel: chains of rows are one, no product is computed twice."""

import pytest

from tessera.compiler import compile_function
from tessera.dtypes import bf16, f32, i64
from tessera.ir.dims import symbol
from tessera.passes.graph_walks import WIDEST_REDUCED_PRODUCT
from tessera.passes.plan_fusion import plan_fusion
from tests.fuzz.graph_programs import graph_program
from tests.passes.graphs import Graph, held, names_of, plan_of

B, M, K, N = (symbol(name) for name in "BMKN")
SIZES = {"B": 3, "M": 20, "K": 24, "N": 40}


def launches(function, **dims):
    plan = plan_of(function, **(dims or SIZES))
    return len(plan.launches)


def products_in(kernel):
    return sum(op.name == "mma" for op in kernel.body.walk())


def emitted_products(function, **dims):
    """Products in the code of all launches, after tiles were cut and fused."""
    made = compile_function(function, dims)
    return sum(products_in(made.kernels[number].tile.kernel()) for number in made.chosen)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_softmax_is_one_kernel(rank):
    graph = Graph()
    x = graph.tensor("x", *(B, M, K)[-rank:])
    function = graph.function(graph.softmax(x))
    assert launches(function) == 1
    held(function, **SIZES)


def test_a_normalisation_with_its_weight_is_one_kernel():
    graph = Graph()
    x, weight = graph.tensor("x", B, M, K), graph.tensor("weight", K)
    row = graph.op("reshape", weight, shape=(1, 1, K))
    function = graph.function(graph.op("mul", graph.normalised(x), graph.spread(row, x)))
    assert launches(function) == 1
    held(function, **SIZES)


def test_elementwise_ops_of_several_results_are_one_kernel():
    graph = Graph()
    x, y = graph.tensor("x", M, K), graph.tensor("y", M, K)
    total = graph.op("add", x, y)
    function = graph.function(total, graph.op("tanh", total), graph.op("mul", total, y))
    assert launches(function) == 1
    held(function, **SIZES)


def test_a_product_with_what_feeds_it_and_what_follows_is_one_kernel():
    graph = Graph()
    x, w, bias = graph.tensor("x", B, M, K), graph.tensor("w", K, N), graph.tensor("bias", N)
    logits = graph.cast(graph.op("matmul", graph.normalised(x), w), bf16, implicit=True)
    row = graph.op("reshape", bias, shape=(1, 1, N))
    function = graph.function(graph.op("silu", graph.op("add", logits, graph.spread(row, logits))))
    assert launches(function) == 1
    assert emitted_products(function, B=2, M=100, K=256, N=512) == 1
    held(function, **SIZES)


@pytest.mark.parametrize("columns, expected", [(24, [2]), (WIDEST_REDUCED_PRODUCT, [1, 1])])
def test_a_product_of_a_product_shares_its_kernel_where_all_of_a_row_fits(columns, expected):
    graph = Graph()
    x, w = graph.tensor("x", M, K), graph.tensor("w", K, columns)
    first = graph.cast(graph.op("matmul", x, w), bf16, implicit=True)
    function = graph.function(graph.op("matmul", graph.op("tanh", first), graph.tensor("v", columns, columns)))
    plan = plan_of(function, M=5, K=24)
    assert [names.count("mma") for names in names_of(plan)] == expected
    held(function, M=5, K=24)


@pytest.mark.parametrize("columns, expected", [(64, 1), (WIDEST_REDUCED_PRODUCT, 1), (1032, 2)])
def test_rows_of_a_narrow_product_are_reduced_in_its_kernel(columns, expected):
    graph = Graph()
    x, w = graph.tensor("x", M, K), graph.tensor("w", K, columns)
    function = graph.function(graph.softmax(graph.op("matmul", x, w)))
    assert launches(function, M=5, K=8) == expected
    held(function, M=5, K=8)


def _shared_logits(graph, cast):
    x, w = graph.tensor("x", M, K), graph.tensor("w", K, N)
    product = graph.op("matmul", x, w)
    return graph.cast(product, bf16, implicit=True) if cast else product


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize(
    "results",
    [
        lambda g, p: [g.op("tanh", p), g.op("exp", p)],
        lambda g, p: [p, g.op("tanh", p)],
        lambda g, p: [q := g.op("tanh", p), g.op("exp", q)],
        lambda g, p: [q := g.op("tanh", p), g.op("exp", q), g.op("mul", q, p)],
        lambda g, p: [g.op("mul", g.op("tanh", p), p)],
        lambda g, p: [q := g.op("mul", g.op("tanh", p), p), g.op("abs", p), g.op("neg", q)],
    ],
    ids=["two", "itself", "chain", "mixed", "diamond", "late"],
)
def test_no_product_is_computed_twice(results, cast):
    graph = Graph()
    function = graph.function(*results(graph, _shared_logits(graph, cast)))
    # Wide enough that each stored tensor would become a nest of loops of its own.
    assert emitted_products(function, M=150, K=512, N=1024) == 1
    held(function, M=20, K=24, N=40)


@pytest.mark.parametrize("cast", [False, True])
def test_a_stored_value_behind_a_product_ends_its_kernel_where_the_least_is_stored(cast):
    graph = Graph()
    product = _shared_logits(graph, cast)
    gate = graph.op("tanh", product)
    plan = plan_of(graph.function(gate, graph.op("exp", gate)), **SIZES)
    assert [("tanh" in names, "exp" in names) for names in names_of(plan)] == [(True, False), (False, True)]
    assert not list(plan.lifetimes())


def test_random_functions_store_one_tensor_behind_a_product():
    found = 0
    for seed in range(150):
        program = graph_program(seed)
        for cluster in plan_fusion(program.function, program.dims).clusters:
            for product in cluster.products:
                found += 1
                behind = {product.result}
                for op in cluster.ops:
                    if any(value in behind for value in op.operands):
                        behind.update(op.results)
                assert sum(value in behind for value in cluster.outputs) <= 1
    assert found > 50


@pytest.mark.parametrize(
    ("depths", "columns", "expected"),
    [((512, 512), 512, 1), ((512, 1024), 512, 2), ((64, 256), 128, 1), ((64, 256), 512, 2)],
)
def test_products_of_different_shapes_share_a_kernel_where_right_operands_stay(depths, columns, expected):
    """Wide ones of one shape are iterations of a loop; others have rings, and warpgroups, in kernels of their own."""
    graph = Graph()
    lefts = [graph.tensor(f"x{number}", M, depth) for number, depth in enumerate(depths)]
    rights = [graph.tensor(f"w{number}", depth, columns) for number, depth in enumerate(depths)]
    first, second = (graph.op("sigmoid", graph.op("matmul", *pair)) for pair in zip(lefts, rights, strict=True))
    function = graph.function(graph.op("add", first, second))
    assert launches(function, M=20) == expected
    refused = [edge.why for edge in plan_fusion(function, {"M": 20}).edges if "no iterations of one loop" in edge.why]
    assert bool(refused) == (expected > 1)
    held(function, M=20)


def test_a_value_is_both_operands_of_a_product():
    graph = Graph()
    x = graph.tensor("x", K, K)
    function = graph.function(graph.op("matmul", x, x), graph.op("matmul", graph.op("tanh", x), x))
    held(function, **SIZES)


def test_a_batch_of_products_has_kernels_of_its_own_rows():
    graph = Graph()
    x, y = graph.tensor("x", B, M, K), graph.tensor("y", B, K, N)
    scores = graph.op("mul", graph.op("matmul", x, y), graph.scalar("scale"))
    function = graph.function(graph.op("tanh", scores))
    assert launches(function) == 1
    held(function, **SIZES)


def test_a_reshape_has_no_kernel_and_what_is_made_of_nothing_is_made_where_it_is_used():
    graph = Graph()
    x = graph.tensor("x", M, K)
    flat = graph.op("reshape", x, shape=(M * K,))
    index = graph.op("iota", shape=(M * K,), axis=0, dtype=i64)
    ones = graph.op("full", graph.number(1.0), shape=(M * K,), dtype=f32)
    kept = graph.op("lt", graph.op("uniform", index, graph.scalar("seed", i64)), graph.number(0.5))
    function = graph.function(graph.op("where", kept, flat, ones))
    assert launches(function) == 1
    held(function, **SIZES)


def test_one_axis_of_any_length_that_nothing_reduces_has_a_kernel():
    graph = Graph()
    index = graph.op("iota", shape=(M,), axis=0, dtype=i64)
    function = graph.function(index, graph.op("mul", index, graph.number(2)), graph.tensor("x", M))
    plan = plan_of(function, M=1_000_000)
    assert not plan.static
    held(function, M=3000)
