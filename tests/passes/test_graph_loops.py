"""Unrolled sums over lists: one body for all iterations, with the bits that the function has."""

import pytest

from tessera.dtypes import bf16, f32, i64
from tessera.ir.dims import symbol
from tessera.passes.graph_loops import progression
from tests.fuzz.graph_running import emulate
from tests.passes.graphs import Graph, held, plan_of

M, K = symbol("M"), symbol("K")
SIZES = {"M": 37, "K": 24}


def gated_sum(terms, first=True, dtype=bf16, offsets=None, **attributes):
    """total + sigmoid((y - x_i) @ W_i * exp(-0.1 * (n - i))) * A[i, 2] of a few tensors, term after term."""
    graph = Graph()
    y, weights = graph.tensor("y", M, K, dtype=dtype), graph.tensor("weights", terms + 1, 3)
    total = graph.op("full", graph.number(0.0), shape=(M, K), dtype=dtype) if first else None
    for i in range(terms):
        x = graph.tensor(f"x{i}", M, K, dtype=dtype)
        delta = graph.op("sub", y, x)
        product = graph.op("matmul", delta, graph.tensor(f"w{i}", K, K, dtype=dtype))
        distance = graph.number(terms - i if offsets is None else offsets[i])
        scale = graph.op("exp", graph.op("mul", distance, graph.number(-0.1)))
        gate = graph.op("sigmoid", graph.op("mul", product, scale))
        one = graph.op("extract", weights, starts=(i, 2), extents=(1, 1))
        term = graph.op("mul", graph.op("mul", graph.cast(delta, f32), gate), graph.cast(graph.spread(one, y), f32))
        if total is not None and first and dtype != f32:
            total = graph.cast(total, f32, implicit=True)
        total = term if total is None else graph.op("add", total, term)
        if first and dtype != f32:
            total = graph.cast(total, dtype, implicit=True)
    return graph.function(total, **attributes)


def products(plan):
    return [sum(op.name == "mma" for op in kernel.body.walk()) for kernel in plan.kernels]


def lists(plan):
    (launch,) = plan.launches
    return {name: len(given) for name, given in launch.tensors.items() if isinstance(given, tuple)}


@pytest.mark.parametrize("first", [True, False], ids=["from zeros", "from its first term"])
@pytest.mark.parametrize("terms", [2, 3, 8])
def test_a_sum_of_any_length_is_one_kernel_with_one_product(terms, first):
    function = gated_sum(terms, first)
    plan = plan_of(function, **SIZES)
    assert products(plan) == [1] and list(lists(plan).values()) == [terms, terms]
    held(function, **SIZES)


@pytest.mark.parametrize("dtype", [bf16, f32])
def test_the_emitted_loop_has_the_bits_of_the_plan(dtype):
    emulate(held(gated_sum(3, dtype=dtype), **SIZES))


def test_code_does_not_grow_with_the_list():
    sizes = [len(list(plan_of(gated_sum(terms), **SIZES).kernels[0].body.walk())) for terms in (2, 9)]
    assert sizes[0] == sizes[1]


def test_numbers_that_are_no_progression_stay_unrolled():
    function = gated_sum(3, offsets=(1, 2, 4))
    plan = plan_of(function, **SIZES)
    assert products(plan) == [2] and list(lists(plan).values()) == [2, 2]  # two numbers always are one
    held(function, **SIZES)


def test_a_value_that_leaves_an_iteration_keeps_it_out_of_a_loop():
    graph = Graph()
    total, kept = None, None
    for i in range(3):
        product = graph.op("matmul", graph.tensor(f"x{i}", M, K), graph.tensor(f"w{i}", K, K))
        term = graph.op("tanh", product)
        kept = term if i == 1 else kept
        total = term if total is None else graph.op("add", total, term)
    function = graph.function(total, kept)
    assert all(not any(op.name == "for" for op in kernel.body.walk()) for kernel in plan_of(function, **SIZES).kernels)
    held(function, **SIZES)


def test_iterations_that_differ_in_an_op_stay_unrolled():
    graph = Graph()
    total = graph.op("full", graph.number(0.0), shape=(M, K), dtype=f32)
    for i, name in enumerate(("tanh", "tanh", "exp")):
        product = graph.op("matmul", graph.tensor(f"x{i}", M, K), graph.tensor(f"w{i}", K, K))
        total = graph.op("add", total, graph.op(name, graph.op("mul", product, graph.number(0.01))))
    function = graph.function(total)
    plan = plan_of(function, **SIZES)
    assert products(plan) == [3] or products(plan) == [2]  # the two that are alike may be a loop
    held(function, **SIZES)


def test_a_carried_value_of_another_kind_than_a_sum():
    graph = Graph()
    x = graph.tensor("x", M, K, dtype=f32)
    for i in range(3):
        product = graph.op("matmul", graph.tensor(f"y{i}", M, K), graph.tensor(f"w{i}", K, K))
        x = graph.op("max", graph.op("mul", x, graph.number(0.5)), product)
    function = graph.function(x)
    plan = plan_of(function, **SIZES)
    assert products(plan) == [1] and list(lists(plan).values()) == [3, 3]
    held(function, **SIZES)


def test_parts_of_one_tensor_are_iterations():
    """The weights lie side by side in one matrix: the loop moves its window."""
    graph = Graph()
    packed, total = graph.tensor("packed", 24, 72), None
    for i in range(3):
        part = graph.op("extract", packed, starts=(0, 24 * i), extents=(24, 24))
        term = graph.op("tanh", graph.op("matmul", graph.tensor(f"x{i}", M, 24), part))
        total = term if total is None else graph.op("add", total, term)
    function = graph.function(total)
    plan = plan_of(function, M=20)
    assert products(plan) == [1] and len(lists(plan)) == 1
    emulate(held(function, M=20))


def test_progressions():
    assert progression([3, 2, 1]) == (3, -1) and progression([5, 5]) == (5, 0) and progression([7]) == (7, 0)
    assert progression([1, 2, 4]) is None and progression([1, K]) is None


def test_numbers_of_a_loop_that_would_widen_a_tile_stay_unrolled():
    """An index of a loop is no weak number: with a bf16 tile it would give f32."""
    graph = Graph()
    total = None
    for i in range(3):
        product = graph.cast(graph.op("matmul", graph.tensor(f"x{i}", M, K), graph.tensor(f"w{i}", K, K)), bf16)
        number = graph.op("mul", graph.number(i + 1), graph.number(0.5))
        term = graph.op("mul", product, number)
        total = term if total is None else graph.op("add", total, term)
    held(graph.function(total), **SIZES)
    assert i64.is_int
