"""Parameters that no call passes, the transformer layer, and where the library can be called."""

import math

import numpy as np
import pytest

import tessera as ts
from tessera.errors import TesseraError
from tessera.ir.types import dtype_of, shape_of
from tessera.modes import eval as evaluation
from tessera.modes import train
from tessera.runtime.function_interpreter import interpret_function
from tests.frontend.functions import (  # noqa: F401  the fixture
    bf16,
    definition,
    fp8,
    isolated,
    near,
    normal,
    refused,
    run,
    sigmoid,
    the_ops,
    trace,
    wide,
)

SIZES = {"B": 2, "S": 5, "D": 24}

NORM = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}]):
    return {1}
"""

DROPOUT = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}], p: float, n: int):
    return {1}
"""
MANY = {"B": 4, "S": 32, "D": 64}


# Parameters of the store ----------------------------------------------------------------------------------------------


def test_a_learnable_scale_is_a_number_of_the_store():
    text = """
    @ts.function
    def inner(x: Tensor["N", ts.bf16]) -> Tensor["N", ts.bf16]:
        return x * ts.ops.learnable_scale_parameter()

    @ts.function
    def f(x: Tensor["N", ts.bf16]):
        return inner(inner(x)) * ts.ops.learnable_scale_parameter() * ts.ops.learnable_scale_parameter()
    """
    x = normal(6)
    values = {f"parameter{i}": np.array(v, bf16) for i, v in enumerate((2, 4, 0.5, 8))}
    result, traced = run(text, {"N": 6}, x=x, **values)
    assert (result == 32 * wide(x)).all()
    ambient = traced.collected.ambient
    assert {name: (a.key, a.init) for name, a in ambient.items()} == {
        "parameter0": ("f/inner/learnable_scale_parameter#0", "ones"),
        "parameter1": ("f/inner/learnable_scale_parameter#1", "ones"),
        "parameter2": ("f/learnable_scale_parameter#0", "ones"),
        "parameter3": ("f/learnable_scale_parameter#1", "ones"),
    }
    assert all(dtype_of(p.type) == ts.bf16 and shape_of(p.type) == () for p in traced.function.parameters[1:])


AGGREGATE = """
@ts.function
def weigh(weights: Tensor["L", "L", ts.bf16], sources: list[Tensor], target: Tensor["B", "D", ts.bf16]):
    total = ts.zeros_like(target)
    for i, source in enumerate(sources):
        total = total + source * weights[i, -1]
    return total

@ts.function
def f(target: Tensor["B", "D", ts.bf16], sources: list[Tensor]):
    weights = ts.ops.learned_attention_weights()
    return {}
"""


def sources_of(number):
    arrays = {f"sources[{i}]": normal(2, 4) for i in range(number)}
    return arrays, {"len(sources)": number, "B": 2, "D": 4}


def run_list(text, number, **more):
    arrays, static = sources_of(number)
    traced = trace(text, static, arrays)
    target = normal(2, 4)
    dims = {name: static.get(name, 0) for name in traced.function.attributes["dims"]}
    (result,) = interpret_function(traced.function, {"target": target, **arrays, **more}, dims)
    return wide(result), traced, arrays


@pytest.mark.parametrize("number", [0, 1, 3])
def test_attention_weights_get_their_shape_from_the_annotation(number):
    weights = normal(number + 1, number + 1)
    text = AGGREGATE.format("weigh(weights, sources, target)")
    result, traced, arrays = run_list(text, number, parameter0=weights)
    assert [str(size) for size in shape_of(traced.function.parameters[-1].type)] == [str(number + 1)] * 2
    (ambient,) = traced.collected.ambient.values()
    assert (ambient.key, ambient.init) == ("f/learned_attention_weights#0", "constant")
    assert ambient.value == 1 / (number + 1)
    wanted = sum((wide(a) * wide(weights)[i, -1] for i, a in enumerate(arrays.values())), np.zeros((2, 4)))
    near(result, wanted, absolute=0.1)


def test_one_deferred_parameter_is_one_parameter_for_each_shape():
    arrays, static = sources_of(3)
    same = trace(AGGREGATE.format("weigh(weights, sources, target) + weigh(weights, sources, target)"), static, arrays)
    assert len(same.collected.ambient) == 1
    text = AGGREGATE.format("weigh(weights, sources, target) + weigh(weights, sources[:2], target)")
    other = trace(text, static, arrays)
    assert [a.key for a in other.collected.ambient.values()] == ["f/learned_attention_weights#0"] * 2
    assert [shape_of(p.type) for p in other.function.parameters[-2:]] == [(4, 4), (3, 3)]


def test_a_dim_that_another_argument_has_is_that():
    text = """
    @ts.function
    def use(w: Tensor["D", ts.f32], x: Tensor["B", "D", ts.f32]):
        return x * w

    @ts.function
    def f(x: Tensor["B", "D", ts.f32]):
        return use(ts.ops.learned_attention_weights(), x)
    """
    traced = trace(text, {"B": 2, "D": 8})
    (ambient,) = traced.collected.ambient.values()
    assert ambient.value == 1 / 8 and traced.function.attributes["shape_dims"] == ("D",)
    assert dtype_of(traced.function.parameters[1].type) == ts.f32


def test_errors_of_deferred_parameters():
    arrays, static = sources_of(2)
    call = "ts.ops.learned_attention_weights()"
    refused("TS205", call, "has no shape yet", text=AGGREGATE.format("weights[0, -1]"), static=static, bare=arrays)
    refused("TS203", "'weights'", text=AGGREGATE.format("ts.add(target, weights)"), static=static, bare=arrays)
    text = """
    @ts.function
    def use(w: Tensor{0}, x: Tensor["B", ts.f32]):
        return x

    @ts.function
    def f(x: Tensor["B", ts.f32]):
        return use(ts.ops.learned_attention_weights(), x)
    """
    refused("TS205", "'w'", call, "annotated", text=text.format(""), static={"B": 2})
    refused("TS205", "'L'", "'w'", "'use' has no list", text=text.format('["L", "L", ts.bf16]'), static={"B": 2})


# The transformer layer ------------------------------------------------------------------------------------------------


def layer(x, packed, heads, causal=False, eps=1e-6):
    """The layer in float64, head by head."""
    features = x.shape[-1]
    wq, wk, wv, wo, *rest = np.split(packed, 12, axis=1)
    up, down = np.concatenate(rest[:4], 1), np.concatenate(rest[4:], 1).T
    size = features // heads

    def rms(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    out = np.zeros_like(x)
    for b in range(x.shape[0]):
        h = rms(x[b])
        parts = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (h @ wq[:, part]) @ (h @ wk[:, part]).T / math.sqrt(size)
            if causal:
                scores[np.triu_indices(len(h), 1)] = -np.inf
            chosen = np.exp(scores - scores.max(-1, keepdims=True))
            parts.append(chosen / chosen.sum(-1, keepdims=True) @ (h @ wv[:, part]))
        y = x[b] + np.concatenate(parts, 1) @ wo
        u = rms(y) @ up
        out[b] = y + 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) @ down
    return out


LAYER = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.{0}], params: Tensor):
    return ts.ops.transformer_layer(x, params{1})
"""


@pytest.mark.parametrize("options, heads, causal", [("", 1, False), (", heads=3", 3, False), (", causal=True", 1, True),
                                                    (", heads=4, causal=True, eps=0.5", 4, True)])  # fmt: skip
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_transformer_layer(options, heads, causal, dtype):
    kind = np.float32 if dtype == "f32" else bf16
    x, packed = normal(2, 5, 24, dtype=kind), normal(24, 288, dtype=kind, scale=0.2)
    result, traced = run(LAYER.format(dtype, options), SIZES, ["params"], x=x, params=packed)
    eps = 0.5 if "eps" in options else 1e-6
    wanted = layer(wide(x), wide(packed), heads, causal, eps)
    near(result, wanted, 1e-5 if dtype == "f32" else 2.0**-7, absolute=1e-5 if dtype == "f32" else 0.05)
    function = traced.function
    assert [str(size) for size in shape_of(function.body.ops[-1].operands[0].type)] == ["B", "S", "D"]
    assert [str(size) for size in shape_of(function.parameters[1].type)] == ["D", "12*D"]
    assert function.attributes["shape_dims"] == ("D",)
    assert all(op.attributes["implicit"] for op in the_ops(traced, "cast") if dtype_of(op.result.type) != ts.f32)


@pytest.mark.parametrize("features, heads", [(24, 1), (128, 2), (192, 3), (200, 2), (320, 5), (450, 6)])
def test_the_number_of_heads(features, heads):
    text = LAYER.format("bf16", "").replace(": Tensor)", ': Tensor["D", "12*D", ts.bf16])')
    (chosen,) = [op for op in the_ops(trace(text, {"D": features}), "matmul") if len(shape_of(op.result.type)) == 4][:1]
    assert shape_of(chosen.result.type)[1] == heads


def test_two_heads_of_one_bf16_layer():
    x, packed = normal(1, 3, 128), normal(128, 1536, scale=0.1)
    result, _ = run(LAYER.format("bf16", ""), {"B": 1, "S": 3, "D": 128}, ["params"], x=x, params=packed)
    near(result, layer(wide(x), wide(packed), 2), 2.0**-7, absolute=0.05)


def test_fp8_activations_are_computed_in_bf16():
    x, packed = normal(1, 4, 16, dtype=fp8), normal(16, 192, scale=0.2)
    result, traced = run(LAYER.format("fp8_e4m3", ""), {"B": 1, "S": 4, "D": 16}, ["params"], x=x, params=packed)
    near(result, layer(wide(x), wide(packed), 1), 2.0**-3, absolute=0.05)
    rounded = [dtype_of(op.result.type).name for op in the_ops(traced, "cast") if op.attributes["implicit"]]
    assert set(rounded[:-1]) == {"bf16"} and rounded[-1] == "fp8_e4m3"


def test_a_layer_without_weights_asks_the_store():
    text = '@ts.function\ndef f(x: Tensor["B", "S", "D", ts.bf16]):\n    return ts.ops.transformer_layer(x)\n'
    x, packed = normal(2, 3, 8), normal(8, 96, scale=0.3)
    result, traced = run(text, {"B": 2, "S": 3, "D": 8}, x=x, parameter0=packed)
    near(result, layer(wide(x), wide(packed), 1), 2.0**-7, absolute=0.05)
    (ambient,) = traced.collected.ambient.values()
    assert (ambient.key, ambient.init) == ("f/transformer_layer#0", "normal")
    assert [str(size) for size in shape_of(traced.function.parameters[1].type)] == ["D", "12*D"]


NAMED = """
@ts.function
def f(x: Tensor["B", "S", "D", ts.f32], a: Tensor["D", "D", ts.f32], up: Tensor["D", "F", ts.f32],
      down: Tensor["F", "D", ts.f32]):
    return ts.ops.transformer_layer(x, {}, heads=2)
"""


@pytest.mark.parametrize("weights", ["dict(Wq=a, Wk=a, Wv=a, Wo=a, W1=up, W2=down)", "(a, a, a, a, up, down)"])
def test_named_weights(weights):
    a, up = normal(8, 8, dtype=np.float32, scale=0.4), normal(8, 32, dtype=np.float32, scale=0.4)
    x, down = normal(2, 3, 8, dtype=np.float32), normal(32, 8, dtype=np.float32, scale=0.4)
    sizes = {"B": 2, "S": 3, "D": 8, "F": 32}
    result, _ = run(NAMED.format(weights), sizes, x=x, a=a, up=up, down=down)
    packed = np.concatenate([wide(m) for m in (a, a, a, a, up, down.T)], axis=1)
    near(result, layer(wide(x), packed, 2), 1e-5, absolute=1e-5)


def test_errors_of_the_transformer_layer():
    packing = ("Wq | Wk | Wv | Wo", "W1", "W2", "[D, 12*D]")
    for shape, words in (((16, 160), ("[16, 160]", "[16, 192]")), ((24, 288), ("[24, 288]", "[16, 192]"))):
        refused("TS301", "'params'", *packing, *words, text=LAYER.format("bf16", ""), static={"B": 2, "S": 3, "D": 16},
                bare={"params": np.zeros(shape, bf16)})  # fmt: skip
    sizes, weights = {"B": 2, "S": 3, "D": 16}, {"params": np.zeros((16, 192), bf16)}

    def layer_refused(code, *words, options="", text=LAYER, static=sizes, bare=weights):
        refused(code, *words, text=text.format("bf16", options), static=static, bare=bare)

    layer_refused("TS304", *packing, bare={"params": np.zeros(16, bf16)})
    layer_refused("TS301", "5 heads", "16 features", "'x'", options=", heads=5")
    layer_refused("TS203", "'heads'", "0", options=", heads=0")
    layer_refused("TS203", "'causal'", "1", options=", causal=1")
    layer_refused("TS202", "(x, params=None, *, causal=False, heads=None, eps=1e-06)", options=", True")
    layer_refused("TS205", "heads", "'D'", static={"B": 2, "S": 3})
    layer_refused("TS304", "[B, S, D]", "[3, 16]", text=LAYER.replace("(x, params", "(x[0], params"))
    layer_refused("TS203", "'params'", "takes a tensor", text=LAYER.replace("(x, params", "(x, 3"))


def test_errors_of_named_weights():
    sizes = {"B": 2, "S": 3, "D": 8, "F": 32}
    for weights, code, words in (
        ("(a, a, a, a, up)", "TS203", ("Wq, Wk, Wv, Wo, W1, W2", "5 items")),
        ("dict(Wq=a, Wk=a)", "TS203", ("Wq, Wk, Wv, Wo, W1, W2", "has Wq, Wk")),
        ("(a, a, a, up, up, down)", "TS301", ("Wo", "[D, D] = [8, 8]", "[8, 32]")),
        ("(a, a, a, a, up, up)", "TS301", ("W2", "[F, D] = [32, 8]", "[8, 32]")),
        ("(a, a, a, a, x, down)", "TS304", ("['W1']", "[2, 3, 8]")),
        ("(a, a, a, a, 1, down)", "TS203", ("['W1']", "is 1")),
    ):
        refused(code, *words, text=NAMED.format(weights), static=sizes)


# Names and modes ------------------------------------------------------------------------------------------------------


def test_the_mode_is_known_while_a_function_is_traced():
    text = DROPOUT.format("f32", "ts.ops.dropout(x, p) if ts.is_training() else x")
    assert ts.is_training() is False
    with train():
        assert ts.is_training() is True
        assert the_ops(trace(text, MANY), "uniform")
        with evaluation():
            assert not the_ops(trace(text, MANY), "uniform")
    assert not the_ops(trace(text, MANY), "uniform")


def test_a_function_is_an_op_by_its_name_unless_the_language_has_one():
    text = """
    @ts.function
    def twice(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x + x

    @ts.function
    def softmax_safe(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x

    @ts.function
    def f(x: Tensor["N", ts.f32]):
        return ts.ops.twice(x) + ts.ops.softmax_safe(x)
    """
    x = np.array([0, 0, 2], np.float32)
    result, traced = run(text, {"N": 3}, x=x)
    assert the_ops(traced, "reduce_max") and result[2] > 4.5
    with pytest.raises(AttributeError, match="twise"):
        ts.ops.twise  # noqa: B018


@pytest.mark.parametrize("dtype", ["bf16", "f32", "fp8_e4m3"])
def test_sigmoid_safe_keeps_the_dtype(dtype):
    kind = {"bf16": bf16, "f32": np.float32, "fp8_e4m3": fp8}[dtype]
    x = np.array([[[-400, -1, 0, 1, 400]]], kind)
    result, traced = run(NORM.format(dtype, "ts.ops.sigmoid_safe(x)"), {"B": 1, "S": 1, "D": 5}, x=x)
    near(result, sigmoid(wide(x)), 2.0**-3, absolute=2.0**-9)
    assert dtype_of(traced.function.body.ops[-1].operands[0].type).name == dtype


@pytest.mark.parametrize("call", ["ts.ops.gating_network(x, x)", "ts.ops.dropout(x, 0.5)", "ts.softmax(x)",
                                  "ts.is_training()"])  # fmt: skip
def test_kernels_and_plain_code_do_not_have_them(call):
    text = f"@ts.kernel(grid=lambda d: (1,))\ndef k(x: Tensor[4, 4, ts.f32]):\n    {call}\n"
    from tessera.frontend.evaluator import trace as trace_kernel

    with pytest.raises(TesseraError, match="works only inside a @ts.function") as caught:
        trace_kernel(definition(text, "k"))
    assert caught.value.code == "TS102"
    if call != "ts.is_training()":
        with pytest.raises(TesseraError, match="decorated with @ts.function"):
            eval(call, {"ts": ts, "x": np.zeros((4, 4), np.float32)})
