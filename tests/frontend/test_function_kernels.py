"""Kernels called inside functions: one op each, with the same bits on the graph, in a plan, and called alone."""

import textwrap

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import lower_function
from tessera.dtypes import bf16
from tessera.errors import TesseraError
from tessera.frontend.annotations import TensorAnnotation
from tessera.frontend.document import execute, parse_document
from tessera.frontend.evaluator import trace
from tessera.frontend.function import free_shape, trace_function
from tessera.ir.compare import difference
from tessera.ir.core import Kernel
from tessera.ir.dims import evaluate, symbol
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import ScalarType, length_name
from tessera.ir.verify import verify
from tessera.runtime.compare import check
from tessera.runtime.function_interpreter import function_reference, interpret_function
from tessera.runtime.function_plans import PlanPrograms, emulate_plan, interpret_plan
from tessera.runtime.interpreter import interpret
from tests.suite import load

KERNELS = """
@ts.kernel
def rows(x: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16], total: Tensor["M", ts.f32], f: float = 2.0):
    i = tile.program_id(0)
    row = tile.cast(x[i : i + 1], ts.f32)
    tile.store(tile.cast(row * f, ts.bf16), out[i : i + 1])
    tile.store(tile.sum(row, axis=1), total[i : i + 1])

@ts.kernel
def narrow(x: Tensor["M", "2*N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    i = tile.program_id(0)
    ctx = tile.context()
    tile.store(x[i, 0 : ctx.N] + x[i, ctx.N : 2 * ctx.N], out[i])

@ts.kernel
def count(first: int, step: float, out: Tensor["N", ts.f32], like: Tensor["N", ts.f32]):
    i = tile.program_id(0) * 32
    tile.store(tile.cast(tile.arange(32) + first, ts.f32) * step + like[i : i + 32], out[i : i + 32])

@ts.kernel
def accumulate(x: Tensor["M", "N", ts.bf16], y: Tensor["M", "N", ts.bf16]):
    i = tile.program_id(0)
    tile.store(y[i] + x[i], y[i])

@ts.kernel
def decided(x: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    i = tile.program_id(0)
    row = x[i]
    if tile.context().M > 4:
        row = row + row
    tile.store(row, out[i])

@ts.kernel
def plus(x: tile.Tensor, y: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    i = tile.program_id(0)
    tile.store(x[i] + y[i], out[i])

@ts.kernel
def some_rows(x: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    i = tile.program_id(0)
    tile.store(x[i], out[i])

@ts.kernel.autotune(space={"BLOCK": [16, 32]}, key=["N"])
def tuned(x: Tensor["N", ts.bf16], out: Tensor["N", ts.bf16]):
    block = tile.context().BLOCK
    i = tile.program_id(0) * block
    tile.store(x[i : i + block], out[i : i + block])

@ts.kernel
def says(x: Tensor["M", "N", ts.bf16]):
    tile.print("{}", tile.sum(tile.cast(x[tile.program_id(0)], ts.f32), axis=0))
"""
SIGNATURE = 'def f(x: Tensor["B", "D", ts.bf16], v: Tensor["D", ts.f32], n: int, s: float)'


def define(body, signature=SIGNATURE, **names):
    text = KERNELS + f"\n@ts.function\n{signature}:\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return execute(parse_document("case.py", text + "\n"), {"ts": ts, "tile": tile, "Tensor": Tensor, **names})["f"]


def traced(definition, static=None, bare=None):
    made = trace_function(definition, static or {}, bare)
    verify(made.module)
    assert difference(made.module, parse_module(print_module(made.module))) is None
    for kernel in made.collected.kernels.values():
        verify(kernel)
    return made


def launches(made):
    return [op for op in made.function.body.walk() if op.name == "launch"]


def arguments_of(function, dims, **scalars):
    random, values = np.random.default_rng(7), {}
    for parameter in function.parameters:
        if isinstance(parameter.type, ScalarType):
            values[parameter.name] = scalars.get(parameter.name, 3)
        else:
            shape = [evaluate(size, dims) for size in parameter.type.shape]
            values[parameter.name] = random.standard_normal(shape).astype(np.float32).astype(parameter.type.dtype.numpy)
    return values


def run(made, dims, lanes=("interpret", "emulate"), **scalars):
    """The results on the graph, right by their bars, and the same as launches; those without other roundings."""
    kernels = made.collected.kernels
    arguments = arguments_of(made.function, dims, **scalars)
    before = {name: np.array(value) for name, value in arguments.items()}
    results = interpret_function(made.function, arguments, dims, kernels)
    bars = function_reference(made.function, arguments, dims, kernels)
    assert all(check(result, bar).ok for result, bar in zip(results, bars, strict=True))
    programs = PlanPrograms(lower_function(made.function, dims, called=kernels))
    for lane in lanes:
        found = programs.empty_results(dims)
        given = {**arguments, **dict(zip(programs.result_roots(), found, strict=True))}
        if lane == "interpret":
            interpret_plan(programs, given, dims)
        else:
            emulate_plan(programs, given, dims, "sm_80", seed=3)
        assert all(check(result, bar).ok for result, bar in zip(found, bars, strict=True)), lane
        for one, other in zip(found, results, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            if len(launches(made)) == len(programs.plan.launches):  # nothing but the kernels themselves
                assert one.tobytes() == other.tobytes(), lane
    assert all(np.array_equal(before[name], value) for name, value in arguments.items())
    return arguments, results


def fails(code, body, *words, static=None, **options):
    with pytest.raises(TesseraError) as caught:
        traced(define(body, **options), static)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.loc is not None and caught.value.loc.file == "case.py"


# -- calls


def test_outputs_are_what_a_call_gives():
    made = traced(define("y, total = rows(x)\nreturn y, total"))
    (launch,) = launches(made)
    assert launch.attributes["callee"] == "rows" and [value.name for value in launch.results] == ["y", "total"]
    assert launch.attributes["dims"] == {"M": symbol("B"), "N": symbol("D")}
    assert made.function.attributes["shape_dims"] == ()
    arguments, (y, total) = run(made, {"B": 5, "D": 24})
    called, sums = load_kernel("rows")(arguments["x"])
    assert y.tobytes() == called.tobytes() and total.tobytes() == sums.tobytes()


def load_kernel(name):
    return execute(parse_document("case.py", KERNELS), {"ts": ts, "tile": tile, "Tensor": Tensor})[name]


@pytest.mark.parametrize("call", ["rows(x, f=4.0)", "rows(x=x, f=4)", "rows(f=4.0, x=x)", "rows(x, 4.0)"])
def test_arguments_by_position_and_by_name(call):
    made = traced(define(f"return {call}"))
    arguments, (y, _) = run(made, {"B": 2, "D": 8}, ("interpret",))
    assert np.array_equal(y.astype(np.float32), arguments["x"].astype(np.float32) * 4)


def test_a_kernel_whose_output_is_not_last():
    made = traced(define("return count(n, 0.5, v)"))
    arguments, (found,) = run(made, {"B": 1, "D": 40}, n=7)
    numbers = np.tile(np.arange(32, dtype=np.float32), 2)[:40] + 7
    assert np.array_equal(found, numbers * np.float32(0.5) + arguments["v"])


def test_one_kernel_for_equal_calls_and_another_for_another_length():
    made = traced(define("a, t = rows(x)\nb, u = rows(a)\nreturn b, t + u, some_rows(b)"))
    assert list(made.collected.kernels) == ["rows", "some_rows"]
    plan = lower_function(made.function, {"B": 4, "D": 16}, called=made.collected.kernels)
    authored = [launch for launch in plan.launches if launch.authored]
    assert len(authored) == 3 and len({launch.kernel for launch in authored}) == 2
    run(made, {"B": 4, "D": 16})


def test_calls_in_functions_that_are_called_and_in_checkpoints():
    helper = define("return rows(x)[0] + x")
    made = traced(define("with ts.checkpoint_scope():\n    y = helper(x, v, n, s)\nreturn y", helper=helper))
    assert len(launches(made)) == 1
    run(made, {"B": 3, "D": 16})


# -- numbers


@pytest.mark.parametrize("first, step", [
    ("n", "s"), ("3", "s"), ("n * 2 + 1", "s * 0.5"), ("n", "n"), ("x.shape[0]", "x.shape[1]"),
    ("n + x.shape[0]", "ts.ops.distance_scaling(n)"),
])  # fmt: skip
def test_numbers_are_parameters_constants_or_computed_by_the_host(first, step):
    made = traced(define(f"return count({first}, {step}, v)"))
    plan = lower_function(made.function, {"B": 6, "D": 40}, called=made.collected.kernels)
    kinds = {name: type(scalar) for name, scalar in plan.launches[0].scalars.items()}
    assert kinds["first"] is (str if first == "n" else int if first == "3" else Kernel)
    assert kinds["step"] is (str if step == "s" else Kernel)
    assert made.function.attributes["shape_dims"] == ()
    run(made, {"B": 6, "D": 40}, n=5, s=0.25)
    run(made, {"B": 2, "D": 64}, n=-5, s=3.0)


def test_a_number_is_not_a_tensor():
    fails("TS203", "return count(n, v[0], v)", "count: 'step' takes one number", "a tensor [] of f32", static={"D": 8})
    fails("TS203", "return count(1.5, s, v)", "'first' takes an int")


# -- sizes


def test_sizes_are_those_of_the_function():
    made = traced(define("y = ts.concatenate([x, x], axis=1)\nreturn narrow(y), rows(y)[0]"))
    assert launches(made)[0].attributes["dims"] == {"M": symbol("B"), "N": symbol("D")}
    run(made, {"B": 3, "D": 20})
    fails("TS302", "return narrow(x)", "'x' axis 1 is D", "2*N")


def test_sizes_that_differ():
    other = 'def f(x: Tensor["B", "D", ts.bf16], y: Tensor["B", "E", ts.bf16])'
    fails("TS302", "return plus(x, y)", "'x' axis 1 (N) is D and 'y' axis 1 is E", signature=other)
    fails("TS304", "return rows(ts.cast(v, ts.bf16))", "takes 2 axes [M, N]")
    fails("TS204", "return rows(ts.cast(x, ts.f32))", "'x' takes bf16", "ts.cast")


def test_sizes_that_the_kernel_decides_by_are_those_of_the_call():
    body = "return decided(x)"
    assert "add" not in [op.name for op in traced(define(body), {"B": 4, "D": 8}).collected.kernels["decided"].body.ops]
    made = traced(define(body), {"B": 5, "D": 8})
    assert "B" in made.function.attributes["shape_dims"]
    arguments, (y,) = run(made, {"B": 5, "D": 8})
    assert np.array_equal(y.astype(np.float32), 2 * arguments["x"].astype(np.float32))
    fails("TS205", body, "decided decides by its sizes at compile time")


def test_bare_parameters_of_both():
    signature = 'def f(x: Tensor, y: Tensor["B", "D", ts.bf16])'
    bare = {"x": TensorAnnotation(free_shape("x", 2), bf16)}
    made = traced(define("return plus(x, y)", signature), {"x.0": 3, "x.1": 8, "B": 3, "D": 8}, bare)
    assert made.function.parameters[0].type == made.function.parameters[1].type
    run(made, {"B": 3, "D": 8})


# -- grids, in-out parameters, tuning


def test_a_grid_of_the_call():
    made = traced(define("return some_rows[x.shape[0],](x)"), {"B": 3, "D": 8})
    assert made.collected.kernels["some_rows"].attributes["grid"] == (3,)
    assert made.function.attributes["shape_dims"] == ("B",)
    run(made, {"B": 3, "D": 8})


def test_a_grid_that_leaves_rows_unwritten():
    made = traced(define("return some_rows[2](x)"))
    arguments, dims = arguments_of(made.function, {"B": 3, "D": 8}), {"B": 3, "D": 8}
    with pytest.raises(TesseraError, match="TS306.*row 2 of 'out'"):
        interpret_function(made.function, arguments, dims, made.collected.kernels)
    with pytest.raises(TesseraError, match="TS306.*row 2 of 'out'"):
        PlanPrograms(lower_function(made.function, dims, called=made.collected.kernels)).steps(dims)
    made = traced(define("return some_rows[2].partial(x)"))
    (y,) = interpret_function(made.function, arguments, dims, made.collected.kernels)
    assert y[:2].tobytes() == arguments["x"][:2].tobytes() and np.isnan(y[2].astype(np.float32)).all()
    assert PlanPrograms(lower_function(made.function, dims, called=made.collected.kernels)).steps(dims)


def test_an_in_out_parameter_starts_as_a_copy():
    made = traced(define("y = accumulate(x, x)\nz = accumulate(x, y)\nreturn y, z, x"))
    arguments, (y, z, x) = run(made, {"B": 3, "D": 16})
    twice = (arguments["x"] + arguments["x"]).astype(np.float32)
    assert np.array_equal(y.astype(np.float32), twice) and x.tobytes() == arguments["x"].tobytes()
    assert np.array_equal(z, (y + arguments["x"]))


def test_a_tuned_kernel_has_its_default_point():
    made = traced(define("return tuned(ts.cast(v, ts.bf16))"))
    assert made.collected.kernels["tuned"].attributes["constants"] == {"BLOCK": 16}
    run(made, {"B": 1, "D": 40})


def test_notes_of_the_kernel_reach_the_author():
    signature = 'def f(x: Tensor["B", "S", "D", ts.bf16], W: Tensor["D", "D", ts.bf16], d: int)'
    made = traced(define("return gate(x, W, d)", signature, gate=load("gating_function_kernel")))
    assert any(note.startswith("gating_function_kernel: program axis 1 coarsened") for note in made.collected.notes)


# -- wrong calls


def test_wrong_calls():
    fails("TS203", "return rows(x, ts.zeros_like(x))", "it writes 'out'", "leave 'out' out")
    fails("TS203", "return rows(x, total=v)", "it writes 'total'")
    fails("TS202", "return count(n, like=v)", "the argument 'step' is missing", "it takes first, step, like")
    fails("TS202", "return rows(x, z=1)", "rows has no parameter 'z'")
    fails("TS202", "return rows(x, 1.0, f=2.0)", "got the argument 'f' twice")
    fails("TS202", "return some_rows(x, x, x)", "takes 2 arguments")
    fails("TS203", "return rows([x])", "'x' takes a tensor, but it is a Python list")
    fails("TS203", "return rows(3)", "'x' takes a tensor, but it is 3")
    fails("TS203", "says(x)\nreturn x", "it writes no tensor")


def test_a_mistake_of_the_kernel_is_at_its_line():
    with pytest.raises(TesseraError) as caught:
        traced(define("return narrow(ts.concatenate([x, x], axis=1)) @ some_rows(x)"))
    assert caught.value.loc is not None and caught.value.loc.line > KERNELS.count("\n")
    with pytest.raises(TesseraError) as caught:
        traced(define("return wrong(x)", wrong=wrong()))
    assert caught.value.loc is not None and caught.value.loc.file == "wrong.py" and caught.value.loc.line == 3


def wrong():
    text = (
        '@ts.kernel\ndef k(x: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):\n    tile.store(x[0], out)\n'
    )
    return execute(parse_document("wrong.py", text), {"ts": ts, "tile": tile, "Tensor": Tensor})["k"]


# -- the document

GATED = """
    delta = ts.subtract(x_target, x_source)
    return gate(delta, gate_params, layer_distance)
"""


@pytest.mark.parametrize("dims", [{"B": 2, "S": 150, "D": 64}, {"B": 1, "S": 130, "D": 48}], ids=str)
def test_the_gating_kernel_is_the_composite_within_its_bars(dims):
    composite = traced(load("delta_connection"))
    signature = (
        'def f(x_source: Tensor["B", "S", "D", ts.bf16], x_target: Tensor["B", "S", "D", ts.bf16], '
        'gate_params: Tensor["D", "D", ts.bf16], layer_distance: int)'
    )
    made = traced(define(GATED, signature, gate=load("gating_function_kernel")))
    arguments, (found,) = run(made, dims, layer_distance=2)
    (bar,) = function_reference(composite.function, arguments, dims)
    assert check(found, bar).ok


AGGREGATION = (
    'def f(layers: list[Tensor], target: Tensor["B", "S", "D", ts.bf16], gates: list[Tensor], '
    'A: Tensor["L", "L", ts.bf16])'
)


@pytest.mark.parametrize("count", [1, 3])
def test_the_aggregation_kernel_takes_lists(count):
    dims = {"B": 1, "S": 40, "D": 32, "L": count + 1}
    bare = {f"layers[{i}]": TensorAnnotation(free_shape(f"layers[{i}]", 3), bf16) for i in range(count)}
    bare |= {f"gates[{i}]": TensorAnnotation(free_shape(f"gates[{i}]", 2), bf16) for i in range(count)}
    lengths = {length_name("layers"): count, length_name("gates"): count}
    kernel = load("parallel_delta_aggregation_kernel")
    made = traced(define("return aggregate(layers, target, gates, A)", AGGREGATION, aggregate=kernel), lengths, bare)
    (launch,) = launches(made)
    assert len(launch.operands) == 2 * count + 2
    plan = lower_function(made.function, dims, called=made.collected.kernels)
    assert plan.launches[0].tensors["source_layers"] == tuple(f"layers[{i}]" for i in range(count))
    arguments, (found,) = run(made, dims)
    given = {
        "source_layers": [arguments[f"layers[{i}]"] for i in range(count)],
        "gate_networks": [arguments[f"gates[{i}]"] for i in range(count)],
        "target_layer": arguments["target"],
        "attention_weights": arguments["A"],
        "output": np.empty_like(found),
    }
    alone = trace(kernel, {length_name("source_layers"): count, length_name("gate_networks"): count}).kernel()
    interpret(alone, given, dims)
    assert found.tobytes() == given["output"].tobytes()


def test_temporaries_of_a_list_live_until_their_launch():
    bare = {f"gates[{i}]": TensorAnnotation(free_shape(f"gates[{i}]", 2), bf16) for i in range(2)}
    lengths = {length_name("layers"): 2, length_name("gates"): 2}
    bare |= {f"layers[{i}]": TensorAnnotation(free_shape(f"layers[{i}]", 3), bf16) for i in range(2)}
    kernel = load("parallel_delta_aggregation_kernel")
    body = "moved = [layer + target for layer in layers]\nreturn aggregate(moved, target, gates, A)"
    made = traced(define(body, AGGREGATION, aggregate=kernel), lengths, bare)
    plan = lower_function(made.function, {"B": 1, "S": 40, "D": 32, "L": 3}, called=made.collected.kernels)
    (last,) = [number for number, launch in enumerate(plan.launches) if launch.authored]
    names = plan.launches[last].tensors["source_layers"]
    assert len(names) == 2 and all(plan.lifetimes()[name][1] == last for name in names)
    run(made, {"B": 1, "S": 40, "D": 32, "L": 3})


def test_a_list_that_is_longer_than_the_weights():
    bare = {f"layers[{i}]": TensorAnnotation(free_shape(f"layers[{i}]", 3), bf16) for i in range(3)}
    bare |= {f"gates[{i}]": TensorAnnotation(free_shape(f"gates[{i}]", 2), bf16) for i in range(3)}
    static = {length_name("layers"): 3, length_name("gates"): 3, "B": 1, "S": 40, "D": 32, "L": 2}
    static |= {f"layers[{i}].{axis}": size for i in range(3) for axis, size in enumerate((1, 40, 32))}
    static |= {f"gates[{i}].{axis}": 32 for i in range(3) for axis in range(2)}
    kernel = load("parallel_delta_aggregation_kernel")
    definition = define("return aggregate(layers, target, gates, A)", AGGREGATION, aggregate=kernel)
    with pytest.raises(TesseraError, match="TS504.*'attention_weights' has the size L = 2"):
        traced(definition, static, bare)
    decided = traced(definition, {**static, "L": 4}, bare).function.attributes["shape_dims"]
    assert decided == ("L", length_name("layers"), length_name("gates"))  # another L is another trace
