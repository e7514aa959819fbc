"""Bare parameters of functions: their axes from what a function does, or from a call; lists of equal lengths."""

import pytest

from tessera.dtypes import bf16, f32, fp8_e4m3
from tessera.errors import ArgumentError, SourceError
from tessera.frontend.annotations import ListAnnotation
from tessera.frontend.document import execute, parse_document
from tessera.frontend.function import trace_function
from tessera.frontend.function_inference import (
    dims_of_function,
    parameters_of_function,
    parse_shape,
    resolve_function,
)
from tessera.frontend.inference import Actual
from tests.frontend.test_errors import span_of, unmark
from tests.lanes import PRELUDE
from tests.suite import load

SIZES = {"B": 2, "S": 150, "D": 64}


def define(text):
    return execute(parse_document("case.py", text), PRELUDE)["f"]


def function(signature, *lines, returns="", before=""):
    arrow = f" -> {returns}" if returns else ""
    return define(before + f"@ts.function\ndef f({signature}){arrow}:\n" + "".join(f"    {line}\n" for line in lines))


def lengths(definition, number):
    lists = (p.name for p in definition.parameters if isinstance(p.annotation, ListAnnotation))
    return {f"len({name})": number for name in lists}


def inferred(definition, sizes=(), number=3):
    """The annotations as text; a list is the set of those of its tensors."""
    bare, own = resolve_function(definition, {**lengths(definition, number), **dict(sizes)})
    assert own == {}
    found = {}
    for name, annotation in bare.items():
        found.setdefault(name.split("[")[0], set()).add(str(annotation).removeprefix("Tensor").replace('"', ""))
    return {name: shapes.pop() if len(shapes) == 1 else shapes for name, shapes in found.items()}


# -- the document

SOURCE, GATE = "[B, S, D, ts.bf16]", "[D, D, ts.bf16]"
DOCUMENT = {
    "multi_scale_delta_aggregation": {"source_layers": SOURCE, "gate_networks": GATE},
    "delta_layer_with_checkpointing": {
        "previous_layers": SOURCE,
        "layer_params": "[D, 12*D, ts.bf16]",
        "gate_params": GATE,
    },
    "distributed_gdn_layer": {"previous_layers": SOURCE, "gate_params": GATE},
    "mixed_precision_gdn_layer": {"previous_layers": SOURCE, "gate_params": GATE},
    "optimized_delta_memory_access": {"layer_activations": SOURCE, "gate_parameters": GATE},
}


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("name", DOCUMENT)
def test_the_functions_of_the_document(name, number):
    definition = load(name)
    sizes = {} if name.startswith("optimized") else {**SIZES, "L": number + 1}
    assert inferred(definition, sizes, number) == DOCUMENT[name]
    static = {**lengths(definition, number), **sizes}
    bare, _ = resolve_function(definition, static)
    names = dims_of_function(definition, bare)
    assert names == (("B", "S", "D", "L") if name.startswith("multi") else ("B", "S", "D"))
    trace = trace_function(definition, {**static, **SIZES}, bare)
    kinds = {p.name: (p.kind, p.length) for p in parameters_of_function(trace) if p.name in DOCUMENT[name]}
    assert kinds == {p: ("tensor", 0) if p == "layer_params" else ("list", number) for p in DOCUMENT[name]}


@pytest.mark.parametrize("name", DOCUMENT)
def test_calls_of_the_document(name):
    definition, number = load(name), 3
    extents = {SOURCE: (2, 150, 64), GATE: (64, 64), "[D, 12*D, ts.bf16]": (64, 768)}
    given = {
        parameter if parameter == "layer_params" else f"{parameter}[{i}]": Actual(extents[text], bf16)
        for parameter, text in DOCUMENT[name].items()
        for i in range(1 if parameter == "layer_params" else number)
    }
    static = {**lengths(definition, number), **({} if name.startswith("optimized") else {**SIZES, "L": 4})}
    bare, own = resolve_function(definition, static, given)
    assert own == (SIZES if name.startswith("optimized") else {})
    trace = trace_function(definition, {**static, **own}, bare)
    assert dims_of_function(definition, trace.bare)[:3] == ("B", "S", "D")


def test_a_call_whose_tensors_differ_names_both():
    definition = load("multi_scale_delta_aggregation")
    given = {f"source_layers[{i}]": Actual((2, 150, 24 if i else 64), bf16) for i in range(2)}
    given["gate_networks"] = Actual((64, 64), bf16)
    static = {**SIZES, "L": 3, **lengths(definition, 2)}
    bare, own = resolve_function(definition, static, given)
    assert own == {f"source_layers[1].{axis}": size for axis, size in enumerate((2, 150, 24))}
    with pytest.raises(SourceError, match="24") as caught:
        trace_function(definition, {**static, **own}, bare)
    assert caught.value.code == "TS302" and "64" in caught.value.message and "x_source" in caught.value.message


def test_no_sources_ask_for_nothing():
    definition = load("multi_scale_delta_aggregation")
    assert resolve_function(definition, {**SIZES, "L": 1, **lengths(definition, 0)}) == ({}, {})


# -- what tells the axes of a tensor

PART = (
    "@ts.function\n"
    'def part(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "N", ts.f32]) -> Tensor["M", "N", ts.bf16]:\n'
    "    return ts.cast(ts.matmul(ts.cast(a, ts.f32), b), ts.bf16)\n"
)
KNOWN = 'y: Tensor["B", "S", "D", ts.bf16]'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # of a callee's annotation: dims that are bound, others by its names, and its dtype
        (["return part(x, ts.zeros([8, 4]))"], "[M, 8, ts.bf16]"),
        (["return part(y[0], x)"], "[D, N, ts.f32]"),
        (["return part(ts.cast(x, ts.bf16), ts.zeros([8, 4]))"], "[M, 8, ts.bf16]"),
        (["return part(x[0], ts.zeros([8, 4]))"], "[B, S, 8, ts.bf16]"),
        (["return part(x[..., 0], ts.zeros([8, 4]))"], "[B, 8, D, ts.bf16]"),
        (["return part(x[2:, 0, :5], ts.zeros([5, 4]))"], "[B, S, D, ts.bf16]"),
        (["a, = [x]", "return part(b=ts.zeros([8, 4]), a=-a * 2.0)"], "[M, 8, ts.bf16]"),
        # of ops
        (["return ts.gemm(y, x)"], "[D, x.1, ts.bf16]"),
        (["return y @ ts.cast(x, ts.bf16)"], "[D, x.1, ts.bf16]"),
        (["return ts.ops.gating_function(y, x, 1)"], "[D, D, ts.bf16]"),
        (["return y * ts.ops.gating_network(y, x)"], "[D, D, ts.bf16]"),
        (["return ts.ops.transformer_layer(y, x)"], "[D, 12*D, ts.bf16]"),
        (["return ts.layer_norm(y, x)"], "[D, ts.bf16]"),
        (["return ts.transpose(x, (1, 2, 0))"], "[B, S, D, ts.bf16]"),
        # what is likely
        (["return ts.add(y, x)"], "[B, S, D, ts.bf16]"),
        (["return ts.sum(y, axis=-1) - ts.cast(x, ts.f32)"], "[B, S, ts.bf16]"),
        (["return ts.stack([y, x])"], "[B, S, D, ts.bf16]"),
        (["return ts.concatenate([y, x], axis=1)"], "[B, S, D, ts.bf16]"),
        (["return x[0, 0:4]"], "[x.0, x.1, ts.bf16]"),
        (["return ts.matmul(x, ts.zeros([8, 4]))"], "[x.0, 8, ts.bf16]"),
        # the later and surer of two
        (["z = ts.maximum(x, ts.zeros([8]))", "return part(x, ts.zeros([8, 4])) + ts.sum(z)"], "[M, 8, ts.bf16]"),
        (["n = ts.ops.l2_norm(x)", "return part(x, ts.zeros([8, 4])) + n"], "[M, 8, ts.bf16]"),
        # of its shape
        (["b, s, d = x.shape", "return ts.zeros([s, d])"], "[B, S, D, ts.bf16]"),
        (["m = ts.zeros([x.shape[1], 4])", "return part(x, m)"], "[M, K, ts.bf16]"),
        # of the result
        (["return ts.cast(x, ts.f32)"], None),
        (["return y"], "[x.0, ts.bf16]"),
    ],
)
def test_what_tells_the_axes(lines, expected):
    definition = function("x: Tensor, " + KNOWN, *lines, before=PART)
    if expected is None:
        with pytest.raises(SourceError, match="'x'") as caught:
            resolve_function(definition, SIZES)
        assert caught.value.code == "TS206" and "--shape x=" in caught.value.message
    else:
        assert inferred(definition, SIZES)["x"] == expected


def test_the_result_tells():
    definition = function("x: Tensor", "return ts.exp(x)", returns='Tensor["M", "N", ts.f32]')
    assert inferred(definition) == {"x": "[M, N, ts.bf16]"}


def test_a_function_that_hands_on_what_it_gets():
    before = PART + "@ts.function\ndef same(t: Tensor) -> Tensor:\n    return t\n"
    definition = function("x: Tensor", "return part(same(x), ts.zeros([8, 4]))", before=before)
    assert inferred(definition) == {"x": "[M, 8, ts.bf16]"}


def test_two_that_are_unknown():
    definition = function("x: Tensor, w: Tensor", "return part(x, w)", before=PART)
    assert inferred(definition) == {"x": "[M, K, ts.bf16]", "w": "[K, N, ts.f32]"}


def test_a_kernel_tells():
    before = (
        "@ts.kernel(grid=lambda d: (4,))\n"
        'def k(a: Tensor["M", "N", ts.f32], b: Tensor, out: Tensor["M", "N", ts.f32]):\n'
        "    tile.store(a[0:4] + b[0:4, :], out[0:4])\n"
    )
    for call in ("k(x, w)", "k[4](b=w, a=x)", "k(ts.cast(x, ts.f32), w)"):
        found = inferred(function("x: Tensor, w: Tensor", f"return {call}", before=before))
        assert found == {"x": "[M, N, ts.bf16]" if "cast" in call else "[M, N, ts.f32]", "w": "[M, N, ts.bf16]"}


def test_sizes_decide_with_a_trial():
    definition = function(
        "x: Tensor, " + KNOWN,
        "parts = []",
        "for i in range(0, x.shape[1], 40):",
        "    parts.append(x[:, i:i + 40] + y[:, 0:40])",
        "if x.shape[0] > 3 and x.shape[-1] > 8:",
        "    return ts.concatenate(parts, axis=1) + y",
        "return y",
    )
    assert inferred(definition, SIZES) == {"x": "[B, S, D, ts.bf16]"}


def test_tensors_of_a_list_may_differ():
    definition = function(
        "x: Tensor['B', 'D', ts.bf16], weights: list[Tensor]",
        "for w in weights:",
        "    x = ts.maximum(x @ w, 0)",
        "return x",
    )
    bare, _ = resolve_function(definition, {"B": 4, "D": 8, "len(weights)": 2})
    assert [str(a.shape[0]) for a in bare.values()] == ["D", str(bare["weights[0]"].shape[1])]
    given = {"weights[0]": Actual((8, 20), bf16), "weights[1]": Actual((20, 30), bf16)}
    static = {"B": 4, "D": 8, "len(weights)": 2}
    bare, own = resolve_function(definition, static, given)
    trace = trace_function(definition, {**static, **own}, bare)
    (result,) = trace.function.body.ops[-1].operands
    names = [str(size) for size in result.type.shape]
    assert names[0] == "B" and own[names[1]] == 30
    assert [(p.name, p.kind) for p in parameters_of_function(trace)][1:] == [
        ("weights[0]", "tensor"),
        ("weights[1]", "tensor"),
    ]


def test_a_dtype_alone_may_be_open():
    definition = function("x: Tensor['M']", "return ts.exp(x)")
    assert inferred(definition) == {"x": "[M, ts.bf16]"}
    bare, own = resolve_function(definition, {"M": 3}, {"x": Actual((3,), f32)})
    assert (str(bare["x"]), own) == ('Tensor["M", ts.f32]', {})


def test_nothing_is_open():
    assert resolve_function(load("delta_connection"), SIZES) == ({}, {})


@pytest.mark.parametrize(
    "line", ["return «ts.exp(x)»", "return «ts.sum(x, axis=-1)»", "return ts.zeros([«len(x.shape)»])"]
)
def test_axes_that_nothing_tells(line):
    text, span = unmark("@ts.function\ndef f(x: Tensor) -> Tensor:\n    " + line + "\n")
    with pytest.raises(SourceError, match="the axes of 'x' are not annotated") as caught:
        resolve_function(define(text), {})
    assert caught.value.code == "TS206"
    assert span_of(caught.value) == span or "exp" in line


def test_other_errors_stay_what_they_are():
    definition = function("x: Tensor, y: Tensor['M', ts.bf16]", "return ts.add(y, x) + ts.zeros([3])")
    with pytest.raises(SourceError) as caught:
        resolve_function(definition, {"M": 5})
    assert caught.value.code == "TS301"


# -- the option --shape


def test_shapes_that_are_given():
    assert parse_shape("x=2,150,64:f32") == ("x", Actual((2, 150, 64), f32))
    assert parse_shape("x[1]=4, 5") == ("x[1]", Actual((4, 5), bf16))
    assert parse_shape("x=:fp8_e4m3") == ("x", Actual((), fp8_e4m3))
    for text in ("x", "x=0,3", "x=a", "=3", "x=2:half", "x=-1", "x.y=2", "x=2,,3"):
        with pytest.raises(ArgumentError) as caught:
            parse_shape(text)
        assert caught.value.code == "TS605" and "--shape" in caught.value.message


def test_given_shapes_go_before_what_is_inferred():
    definition = function("x: Tensor, w: Tensor", "return ts.gemm(ts.exp(x), w)")
    with pytest.raises(SourceError, match="'x'"):
        resolve_function(function("x: Tensor, w: Tensor", "return ts.exp(x)"), {})
    bare, own = resolve_function(definition, {}, dict([parse_shape("x=3,4,8:f32")]))
    assert own == {"x.0": 3, "x.1": 4, "x.2": 8}
    assert str(bare["w"]) == 'Tensor["x.2", "w.1", ts.bf16]' and bare["x"].dtype == f32
    trace = trace_function(definition, {**own, "w.1": 5}, bare)
    assert dims_of_function(definition, trace.bare) == ("x.0", "x.1", "x.2", "w.1")


def test_one_tensor_of_a_list_goes_before_the_list():
    definition = load("optimized_delta_memory_access")
    given = {"layer_activations[1]": Actual((2, 150, 60), bf16), "layer_activations": Actual((2, 150, 64), bf16)}
    static = lengths(definition, 2)
    bare, own = resolve_function(definition, static, {**given, "gate_parameters": Actual((64, 64), bf16)})
    assert own["layer_activations[1].2"] == 60 and own["D"] == 64
    with pytest.raises(SourceError, match="here 60 and 64"):
        trace_function(definition, {**static, **own}, bare)


def test_a_given_name_must_be_open():
    with pytest.raises(ArgumentError, match="'y'.*those are x$") as caught:
        resolve_function(function("x: Tensor, " + KNOWN, "return y"), SIZES, {"y": Actual((1,), bf16)})
    assert caught.value.code == "TS605"


# -- lists


def zipped(first, second):
    definition = load("mixed_precision_gdn_layer")
    return definition, {**SIZES, "len(previous_layers)": first, "len(gate_params)": second}


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 3), (0, 1), (2, 0)])
def test_lists_of_different_lengths(first, second):
    definition, static = zipped(first, second)
    with pytest.raises(SourceError) as caught:
        resolve_function(definition, static)
    assert caught.value.code == "TS308"
    for word in ("'previous_layers'", "'gate_params'", str(first), str(second)):
        assert word in caught.value.message
    assert caught.value.loc.line > 0


def test_lists_of_different_lengths_inside_a_call():
    before = "@ts.function\ndef g(a: list[Tensor], b: list[Tensor]):\n    return [x + y for x, y in zip(a, b)]\n"
    definition = function("p: list[Tensor], q: list[Tensor]", "return g(p, q)", before=before)
    given = {"p": Actual((4,), f32), "q": Actual((4,), f32)}
    static = {"len(p)": 1, "len(q)": 2}
    with pytest.raises(SourceError, match="'a' and 'b' are used together in zip") as caught:
        trace_function(definition, static, resolve_function(definition, static, given)[0])
    assert caught.value.loc.call_site is not None


def test_plain_lists_are_as_in_python():
    definition = function("x: Tensor['M', ts.f32]", "for a, b in zip([1.0, 2.0], [3]):", "    x = x * a", "return x")
    trace_function(definition, {"M": 4})


def test_an_index_outside_of_a_list():
    definition = function("p: list[Tensor['M', ts.f32]]", "return p[2]")
    for number, message in ((2, "index 2 is outside the list 'p', whose length is 2"), (0, "'p', which is empty")):
        with pytest.raises(SourceError, match=message) as caught:
            trace_function(definition, {"M": 4, "len(p)": number})
        assert caught.value.code == "TS504"


@pytest.mark.parametrize(
    "name", ["distributed_gdn_layer", "mixed_precision_gdn_layer", "optimized_delta_memory_access"]
)
def test_empty_lists_are_named(name):
    definition = load(name)
    first = next(p.name for p in definition.parameters if p.name.endswith(("layers", "activations")))
    static = {**SIZES, **lengths(definition, 0)}
    with pytest.raises(SourceError, match="empty") as caught:
        trace_function(definition, static, resolve_function(definition, static)[0])
    assert first in caught.value.message


def test_one_layer_has_no_neighbours():
    definition = load("optimized_delta_memory_access")
    with pytest.raises(SourceError, match="ts.concatenate of no tensors: the list 'results' is empty"):
        resolve_function(definition, lengths(definition, 1))


def test_empty_lists_as_parameters():
    definition = load("multi_scale_delta_aggregation")
    static = {**SIZES, "L": 1, **lengths(definition, 0)}
    found = parameters_of_function(trace_function(definition, static, {}))
    assert [(p.name, p.kind, p.length) for p in found] == [
        ("source_layers", "list", 0),
        ("target_layer", "tensor", 0),
        ("gate_networks", "list", 0),
        ("attention_weights", "tensor", 0),
    ]


def test_hidden_parameters_come_last():
    definition = function("x: Tensor['M', 'D', ts.bf16], a: int", "return x * ts.ops.learnable_scale_parameter() * a")
    found = parameters_of_function(trace_function(definition, {"M": 3, "D": 4}))
    assert [(p.name, p.kind) for p in found] == [("x", "tensor"), ("a", "scalar"), ("parameter0", "tensor")]
