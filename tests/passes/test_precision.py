"""`precision`: every rounding is an op of its own, no bit changes, and exact f32 products are multiplied narrow."""

import numpy as np
import pytest

from tessera.dtypes import bf16, f16, f32, fp8_e4m3, fp8_e5m2, i32
from tessera.errors import TesseraError
from tessera.ir.core import Builder, Module
from tessera.ir.dims import symbol
from tessera.ir.numeric import in_bf16_parts
from tessera.ir.opdef import ELEMENTWISE, GRAPH, REDUCTION, SCAN, table
from tessera.ir.printer import print_module
from tessera.ir.products import SPLIT
from tessera.ir.types import dtype_of
from tessera.ir.verify import verify
from tessera.passes.precision import precision
from tessera.runtime.function_interpreter import interpret_function
from tests.fuzz.graph_running import assert_same, emulate
from tests.passes.graphs import Graph, held

M, K, N = (symbol(name) for name in "MKN")
NARROW = (bf16, f16, fp8_e4m3, fp8_e5m2)
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.5, 1e-7, 448.0, 3e4, -2e-3, 17.0)


def lines(function):
    """Each op with its dtypes: what goes in, what comes out, and whether a cast is implicit."""
    found = []
    for op in function.body.ops[:-1]:
        inside = " ".join(dtype_of(value.type).name for value in op.operands)
        mark = " implicit" if op.get("implicit") else ""
        found.append(f"{op.name} {inside} -> {dtype_of(op.result.type).name}{mark}")
    return found


def after(function):
    new = precision(function)
    verify(Module(GRAPH, [new]))
    return new


def test_an_op_of_narrow_floats_becomes_widening_casts_the_op_in_f32_and_one_implicit_cast():
    graph = Graph()
    x, y = graph.tensor("x", M), graph.tensor("y", M, dtype=f16)
    function = graph.function(graph.op("exp", x), graph.op("max", y, y))
    assert lines(after(function)) == [
        "cast bf16 -> f32 implicit",
        "exp f32 -> f32",
        "cast f32 -> bf16 implicit",
        "cast f16 -> f32 implicit",
        "max f32 f32 -> f32",
        "cast f32 -> f16 implicit",
    ]


def test_weak_scalars_stay_and_decide_nothing():
    graph = Graph()
    x, scale = graph.tensor("x", M), graph.scalar("scale")
    function = graph.function(graph.op("mul", x, scale), graph.op("add", x, graph.number(2)))
    new = after(function)
    assert lines(new)[:3] == ["cast bf16 -> f32 implicit", "mul f32 f32 -> f32", "cast f32 -> bf16 implicit"]
    assert new.body.ops[1].operands[1].type.weak
    assert [value.type for value in new.body.ops[-1].operands] == [
        value.type for value in function.body.ops[-1].operands
    ]


def test_what_rounds_nothing_narrow_stays():
    graph = Graph()
    x, number, narrow = graph.tensor("x", M, dtype=f32), graph.tensor("n", M, dtype=i32), graph.tensor("b", M)
    function = graph.function(
        graph.op("exp", x),
        graph.op("add", number, number),
        graph.op("add", narrow, number),  # f32
        graph.op("lt", narrow, x),  # bool
        graph.op("reshape", narrow, shape=(M, 1)),
        graph.cast(x, bf16),  # the author's
        graph.op("argmax", narrow, axis=0),
    )
    assert lines(after(function)) == lines(function)


def test_an_operand_is_widened_once():
    graph = Graph()
    x = graph.tensor("x", M)
    new = after(graph.function(graph.op("mul", x, x), graph.op("exp", x)))
    assert [op.name for op in new.body.ops].count("cast") == 3


def test_a_second_time_changes_nothing():
    graph = Graph()
    x = graph.tensor("x", M, K)
    function = after(graph.function(graph.softmax(x), graph.normalised(x)))
    assert print_module(Module(GRAPH, [after(function)])) == print_module(Module(GRAPH, [function]))


def test_attributes_and_places_stay():
    graph = Graph()
    x = graph.tensor("x", M)
    function = graph.function(graph.op("exp", x), precision="strict")
    new = after(function)
    assert new.attributes == function.attributes
    assert {op.origin for op in new.body.ops[:-1]} == {function.body.ops[0].origin}


def test_a_region_makes_its_own_casts():
    graph = Graph()
    x = graph.tensor("x", M)
    region = type(graph.body)()
    inner = Builder(region, (function_place(graph),))
    inner.op("yield", [inner.value("exp", x)])
    made = graph.builder.op("checkpoint", (), [region], ["y"], region="once").result
    new = after(graph.function(made, graph.op("tanh", x)))
    assert [op.name for op in new.body.walk()] == [
        "checkpoint", "cast", "exp", "cast", "yield", "cast", "tanh", "cast", "return",
    ]  # fmt: skip


def function_place(graph):
    graph.op("constant", value=0.0, dtype=f32)
    graph.body.ops.clear()
    return graph.builder.origin[0]


ROUNDING = [n for n, d in table().items() if GRAPH in d.levels and d.traits & {ELEMENTWISE, REDUCTION, SCAN}]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", [name for name in ROUNDING if name not in ("cast", "where")])
def test_no_bit_changes_for_special_values(name, dtype):
    """Of every op that takes narrow floats."""
    graph, definition = Graph(), table()[name]
    x, y = graph.tensor("x", 12, 12, dtype=dtype), graph.tensor("y", 12, 12, dtype=dtype)
    attributes = {"axis": -1} if "axis" in definition.attributes else {}
    try:
        result = graph.op(name, *(x, y)[: len(definition.operands)], **attributes)
    except TesseraError as error:
        assert error.code == "TS204"  # not defined for floats
        return
    function = graph.function(result)
    values = np.array(SPECIAL, np.float32)
    rows, columns = (v.astype(dtype.numpy) for v in np.meshgrid(values, values))
    arguments = {"x": rows, "y": columns} if len(definition.operands) == 2 else {"x": rows}
    if len(arguments) == 1:
        function.body.arguments.pop()
    with np.errstate(all="ignore"):
        expected = interpret_function(function, arguments, {})
        assert_same(expected, interpret_function(after(function), arguments, {}), name)


def test_the_branches_of_where_round_to_its_dtype():
    graph = Graph()
    x, condition = graph.tensor("x", M), graph.op("lt", graph.tensor("y", M), graph.number(0.5))
    function = graph.function(graph.op("where", condition, x, graph.number(0.1)))
    assert lines(after(function))[-2:] == ["where bool f32 f32 -> f32", "cast f32 -> bf16 implicit"]
    held(function, M=40)


# Products -------------------------------------------------------------------------------------------------------------

# The dtypes that two operands were cast from, and those that are multiplied.
EXACT = [
    ((bf16, bf16), "bf16 bf16"),
    ((f16, f16), "f16 f16"),
    ((fp8_e4m3, fp8_e5m2), "fp8_e4m3 fp8_e5m2"),
    ((fp8_e4m3, bf16), "bf16 bf16"),
    ((f16, fp8_e5m2), "f16 f16"),
    ((f16, bf16), "f32 f32"),  # neither holds the other's values
    ((f32, bf16), "f32 bf16"),  # in parts of bf16
    ((f32, f16), "f32 f32"),
]


@pytest.mark.parametrize("dtypes, multiplied", EXACT, ids=lambda value: str(value))
@pytest.mark.parametrize("implicit", [False, True])
def test_an_f32_product_of_narrow_values_multiplies_those(dtypes, multiplied, implicit):
    graph = Graph()
    a, b = graph.tensor("a", M, K, dtype=dtypes[0]), graph.tensor("b", K, N, dtype=dtypes[1])
    wide = [x if dtype_of(x.type) == f32 else graph.cast(x, f32, implicit) for x in (a, b)]
    function = graph.function(graph.op("matmul", *wide))
    products = [line for line in lines(after(function)) if line.startswith("matmul")]
    assert products == [f"matmul {multiplied} -> f32"]
    held(function, M=20, K=33, N=9)


@pytest.mark.parametrize("shape", [(50, 64, 48), (20, 40, 20), (5, 9, 129)], ids=str)
def test_f32_times_bf16_is_multiplied_in_parts_wherever_these_lie(shape):
    """Right on every lane, with a transposed right operand, too."""
    rows, depth, columns = shape
    for transposed in (False, True):
        graph = Graph()
        x = graph.op("silu", graph.tensor("x", M, depth, dtype=f32))
        w = graph.cast(graph.tensor("w", *((columns, depth) if transposed else (depth, columns))), f32)
        w = graph.op("permute", w, permutation=(1, 0)) if transposed else w
        function = graph.function(graph.op("matmul", x, w))
        runs = held(function, M=rows)
        (product,) = [op for op in runs[1].plan.kernels[0].body.walk() if op.name == "mma"]
        assert product.attributes["precision"] == SPLIT
        emulate(runs[1:2])


def test_a_strict_function_multiplies_f32_as_it_is():
    graph = Graph()
    w = graph.cast(graph.tensor("w", 16, 8), f32)
    function = graph.function(graph.op("matmul", graph.tensor("x", M, 16, dtype=f32), w), precision="strict")
    assert "matmul f32 f32 -> f32" in lines(after(function))


def test_three_parts_of_an_f32_are_all_of_it():
    numbers = np.random.default_rng(0).standard_normal((1, 40, 33)).astype(np.float32)
    numbers[0, 0, :7] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 3e38]
    parts, twice = in_bf16_parts(numbers, np.ones((1, 33, 1), np.float32), 16)
    assert parts.shape == (1, 40, 144) and twice.shape == (1, 144, 1)
    assert np.array_equal(parts.astype(bf16.numpy).astype(np.float32), parts, equal_nan=True)
    blocks = parts.reshape(1, 40, 3, 3, 16).astype(np.float64)
    total = blocks.sum(axis=3).reshape(1, 40, 48)[..., :33]
    assert np.array_equal(total, numbers, equal_nan=True)
    assert (np.abs(blocks[0, 1:, :, 0]) <= np.abs(blocks[0, 1:, :, 2])).all()


@pytest.mark.parametrize("asked", ["f32", "tf32"])
def test_a_product_with_a_precision_is_left_alone(asked):
    graph = Graph()
    a, b = (graph.cast(graph.tensor(name, 8, 8), f32) for name in "ab")
    try:
        function = graph.function(graph.op("matmul", a, b, precision=asked))
    except TesseraError as error:
        assert asked == "f32" and error.code == "TS402"
        return
    assert lines(after(function))[-1] == "matmul f32 f32 -> f32"


def test_a_narrow_product_keeps_the_rounding_of_its_operand():
    graph = Graph()
    x, w = graph.tensor("x", M, K), graph.tensor("w", K, N)
    y = graph.op("mul", x, graph.number(0.3))
    function = graph.function(graph.op("matmul", graph.cast(y, f32), graph.cast(w, f32)))
    assert [line for line in lines(after(function)) if "matmul" in line] == ["matmul bf16 bf16 -> f32"]
    held(function, M=17, K=24, N=8)


def test_a_reduction_along_another_axis_reads_what_is_stored():
    graph = Graph()
    x = graph.tensor("x", M, K)
    function = graph.function(graph.op("reduce_sum", x, axis=0), graph.op("cumsum", x, axis=0))
    assert lines(after(function)) == ["reduce_sum bf16 -> bf16", "cumsum bf16 -> bf16"]
    held(function, M=70, K=9)
