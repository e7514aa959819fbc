"""Plans: what they round, what their kernels share, whose memory results have, where temporaries lie."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dtypes import bf16, f16, f32, i32, i64
from tessera.errors import SourceError
from tessera.frontend.function import trace_function
from tessera.ir.dims import symbol
from tessera.passes.graph_kernels import LARGEST_ROW
from tessera.passes.lower_graph import lower_graph
from tessera.passes.precision import precision
from tessera.plan import ALIGNMENT, GraphPlan, PlanBuffer, PlanLaunch
from tessera.runtime import execute
from tessera.runtime.function_interpreter import interpret_function
from tests.fuzz.graph_program import GraphProgram
from tests.fuzz.graph_running import PlanRun, assert_same, check_plan, check_workspace
from tests.passes.graphs import Graph, held, names_of, plan_of

B, M, K, N = (symbol(name) for name in "BMKN")


def assert_graph_bits(function, **dims):
    """The plan after `precision` gives the very bits of the function."""
    program = GraphProgram(function, dims, 0)
    run = PlanRun(program, lower_graph(precision(function), dims))
    expected = interpret_function(precision(function), program.arguments(), dims)
    assert_same(expected, run.run(execute.interpret), "the plan")


def roundings(plan):
    return [(r.value, r.wide.name, r.narrow.name, r.explicit, r.skipped, r.why) for r in plan.roundings]


# Roundings ------------------------------------------------------------------------------------------------------------


def chain(graph):
    """Two roundings inside, one at the end."""
    x = graph.tensor("x", M, K)
    a = graph.op("mul", x, graph.number(0.3), hint="a")
    b = graph.op("add", a, graph.number(0.7), hint="b")
    return graph.op("tanh", b, hint="c")


def test_a_kernel_keeps_wider_values_and_says_so():
    graph = Graph()
    function = graph.function(chain(graph))
    plan = plan_of(function, M=9, K=20)
    wider = "its kernel goes on with the wider value"
    assert roundings(plan) == [
        ("a", "f32", "bf16", False, True, wider),
        ("b", "f32", "bf16", False, True, wider),
        ("c", "f32", "bf16", False, False, "the value is stored"),
    ]
    assert [r.loc.line for r in plan.roundings] == [3, 5, 6]
    assert sum(op.name == "cast" for op in plan.kernels[0].body.walk()) == 2  # x to f32, c to bf16
    held(function, M=9, K=20)


def test_a_strict_function_skips_nothing_and_has_the_bits_of_the_graph():
    graph = Graph()
    function = graph.function(chain(graph), precision="strict")
    plan = plan_of(function, M=9, K=20)
    assert [(r.skipped, r.why) for r in plan.roundings] == [(False, "the function is strict")] * 3
    assert_graph_bits(function, M=9, K=20)


def test_a_strict_function_differs_from_one_that_is_not():
    results = []
    for attributes in ({}, {"precision": "strict"}):
        graph = Graph()
        x = chain(graph)
        for _ in range(3):
            x = graph.op("mul", graph.op("add", x, graph.number(0.37)), graph.number(1.3))
        program = GraphProgram(graph.function(x, **attributes), {"M": 9, "K": 20}, 0)
        results.append(PlanRun(program, plan_of(program.function, M=9, K=20)).run(execute.interpret)[0])
    assert not np.array_equal(*results)


def test_what_the_author_rounds_is_rounded():
    graph = Graph()
    x = graph.tensor("x", M, K, dtype=f32)
    y = graph.op("mul", graph.cast(x, bf16, hint="y"), graph.number(0.3))
    function = graph.function(graph.op("exp", graph.cast(graph.cast(y, f32), f16, hint="z")))
    plan = plan_of(function, M=9, K=20)
    explicit = [r for r in roundings(plan) if r[3]]
    assert explicit == [
        ("y", "f32", "bf16", True, False, "it is written in the program"),
        ("z", "f32", "f16", True, False, "it is written in the program"),
    ]
    held(function, M=9, K=20)


def test_an_operand_of_a_product_is_rounded_for_all_that_use_it():
    graph = Graph()
    x, w = graph.tensor("x", M, K), graph.tensor("w", K, K)
    y = graph.op("mul", x, graph.number(0.3), hint="y")
    product = graph.op("matmul", y, w)
    function = graph.function(graph.op("add", product, y))
    plan = plan_of(function, M=9, K=20)
    assert len(plan.launches) == 1
    assert roundings(plan) == [("y", "f32", "bf16", False, False, "a product takes it")]
    assert_graph_bits(function, M=9, K=20)


def test_an_op_that_takes_a_narrow_value_as_it_is_keeps_its_rounding():
    graph = Graph()
    x = graph.tensor("x", M, K)
    y = graph.op("mul", x, graph.number(0.3), hint="y")
    function = graph.function(graph.op("where", graph.op("lt", y, graph.number(0.1)), y, x))
    assert roundings(plan_of(function, M=9, K=20))[0] == (
        "y", "f32", "bf16", False, False, "an op takes it as it is",
    )  # fmt: skip
    assert_graph_bits(function, M=9, K=20)


# Scalars and sizes ----------------------------------------------------------------------------------------------------


def test_scalars_are_parameters_of_the_kernels_that_need_them_and_stay_weak():
    graph = Graph()
    x = graph.tensor("x", M, K)
    number, scale = graph.scalar("number", i64), graph.scalar("scale")
    factor = graph.op("exp", graph.op("mul", scale, graph.number(-0.1)))
    turned = graph.op("permute", graph.op("mul", x, factor), permutation=(1, 0))
    function = graph.function(graph.op("mul", graph.op("add", turned, number), factor))
    plan = plan_of(function, M=9, K=20)
    assert [sorted(launch.scalars.values()) for launch in plan.launches] == [["scale"], [], ["number", "scale"]]
    assert all(p.type.weak for k in plan.kernels for p in k.parameters if p.name.startswith("scalar"))
    held(function, M=9, K=20)


def test_a_size_is_a_dim_of_the_kernel():
    graph = Graph()
    x = graph.tensor("x", M, K, dtype=f32)
    mean = graph.op("div", graph.op("reduce_sum", x, axis=1), graph.cast(graph.op("size", size=K), f32))
    function = graph.function(mean, graph.op("mul", x, graph.op("size", size=M * K)))
    held(function, M=9, K=20)


def test_only_the_sizes_that_code_is_made_for_are_static():
    graph = Graph()
    x = graph.tensor("x", B, M, K)
    assert plan_of(graph.function(graph.softmax(x)), B=2, M=9, K=20).static == {"K": 20}
    graph = Graph()
    x = graph.tensor("x", B, M, K)
    assert plan_of(graph.function(graph.op("exp", x)), B=2, M=9, K=20).static == {}
    graph = Graph()
    x = graph.tensor("x", B, M, K)
    assert plan_of(graph.function(graph.op("reduce_sum", x, axis=1)), B=2, M=9, K=20).static == {"M": 9}


def test_a_row_that_no_program_holds_is_an_error_at_its_op():
    graph = Graph()
    x = graph.tensor("x", M, K)
    with pytest.raises(SourceError) as error:
        plan_of(graph.function(graph.softmax(x)), M=2, K=LARGEST_ROW + 1)
    assert error.value.code == "TS501" and str(LARGEST_ROW + 1) in error.value.message
    assert error.value.loc is not None


# Kernels and buffers --------------------------------------------------------------------------------------------------


def test_equal_kernels_are_one():
    graph = Graph()
    x, y = graph.tensor("x", M, K), graph.tensor("y", N, K)
    turned = [graph.op("permute", value, permutation=(1, 0)) for value in (x, y)]
    function = graph.function(*turned, graph.softmax(x), graph.softmax(y))
    # Tiles are no larger than a call needs them, so rows that are about as many share a kernel.
    plan = plan_of(function, M=9, K=20, N=12)
    assert len({kernel.name for kernel in plan.kernels}) == 2
    assert [launch.kernel for launch in plan.launches] == [0, 0, 1, 1]
    held(function, M=9, K=20, N=12)


def test_kernels_that_differ_in_a_constant_are_two():
    graph = Graph()
    x, y = graph.tensor("x", M, K), graph.tensor("y", N, K)
    function = graph.function(graph.op("mul", x, graph.number(2.0)), graph.op("mul", y, graph.number(3.0)))
    assert len(plan_of(function, M=9, K=20, N=9).kernels) == 2
    held(function, M=9, K=20, N=9)


def test_results_have_memory_of_their_own():
    graph = Graph()
    x = graph.tensor("x", M, K)
    y = graph.op("exp", x)
    function = graph.function(
        x,
        graph.op("reshape", x, shape=(M * K,)),
        y,
        y,
        graph.op("reshape", y, shape=(K, M)),
        graph.op("reshape", graph.op("tanh", y), shape=(M, K, 1)),
    )
    plan = plan_of(function, M=9, K=20)
    check_plan(plan, {"M": 9, "K": 20})
    assert [plan.buffers[name].index for name in plan.results] == [0, 1, 2, 3, 4, 5]
    assert [plan.buffers[name].shape for name in plan.results] == [(M, K), (M * K,), (M, K), (M, K), (K, M), (M, K, 1)]
    held(function, M=9, K=20)


def test_a_function_of_nothing_but_its_parameter():
    graph = Graph()
    x = graph.tensor("x", dtype=i32)
    function = graph.function(x)
    assert [names_of(plan_of(function))] == [[[]]]
    held(function)


def test_a_result_that_later_ops_read_is_no_temporary():
    graph = Graph()
    x = graph.tensor("x", M, K)
    y = graph.op("permute", x, permutation=(1, 0))
    plan = plan_of(graph.function(y, graph.softmax(y)), M=9, K=20)
    assert plan.lifetimes() == {} and plan.workspace({"M": 9, "K": 20}) == ({}, 0)


# Workspace ------------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    """Launches that touch random temporaries, some of them under a second name."""
    buffers = {"x": PlanBuffer("x", (4,), f32, "parameter")}
    for number in range(draw(st.integers(1, 12))):
        name = f"t{number}"
        shape = (draw(st.integers(0, 400)), draw(st.sampled_from([1, 3, M])))
        buffers[name] = PlanBuffer(name, shape, draw(st.sampled_from([bf16, f32, i64])), "temporary")
        if draw(st.booleans()):
            buffers[f"{name}b"] = replace(buffers[name], name=f"{name}b", alias=name)
    launches = []
    for _ in range(draw(st.integers(1, 15))):
        names = draw(st.lists(st.sampled_from(sorted(buffers)), min_size=1, max_size=4, unique=True))
        launches.append(PlanLaunch(0, {f"in{i}": name for i, name in enumerate(names)}, {}, {}))
    return GraphPlan("f", (), tuple(launches), buffers, ())


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(plans())
def test_temporaries_that_live_together_never_share_memory(plan):
    dims = {"M": 5}
    check_workspace(plan, dims)
    offsets, total = plan.workspace(dims)
    lives, sizes = plan.lifetimes(), {}
    assert set(offsets) == set(lives)
    for name, offset in offsets.items():
        rows, columns = plan.buffers[name].shape
        size = plan.buffers[name].dtype.bytes * rows * (columns if isinstance(columns, int) else dims["M"])
        sizes[name] = -(-size // ALIGNMENT) * ALIGNMENT
        assert offset % ALIGNMENT == 0
    at_once = [
        sum(sizes[name] for name, (first, last) in lives.items() if first <= number <= last)
        for number in range(len(plan.launches))
    ]
    assert max(at_once) <= total <= sum(sizes.values())


def test_memory_is_used_again():
    graph = Graph()
    x = graph.tensor("x", M, K)
    for _ in range(6):
        x = graph.op("permute", graph.op("exp", x), permutation=(1, 0))
    function = graph.function(x)
    dims = {"M": 100, "K": 100}
    plan = lower_graph(function, dims)
    _, total = plan.workspace(dims)
    one = -(-100 * 100 * 2 // ALIGNMENT) * ALIGNMENT
    assert len(plan.lifetimes()) == 11 and total == 2 * one


def test_a_reduction_of_nothing_is_refused_by_name():
    from tests.frontend.functions import definition

    function = definition("@ts.function\ndef f(x: Tensor['M', 'K', ts.f32]):\n    return ts.sum(x, axis=1)\n")
    traced = trace_function(function, {})
    with pytest.raises(SourceError, match="the size K is 0") as caught:
        lower_graph(traced.function, {"M": 5, "K": 0})
    assert caught.value.code == "TS301"
