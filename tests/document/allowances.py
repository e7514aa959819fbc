"""How far a right answer may be from a model, element by element: from the dtypes alone, nothing is measured.

A model rounds where the meaning of the document says so, and the result. A lane may also round every other result of
an op to its dtype. So each allowance counts roundings: n of them move a bf16 number x by at most n * HALF * |x|, where
HALF is the most that half the distance of two neighbours can be; where a sum rounds, |x| is the sum of what is added,
each positive. To that comes what f32 loses: F32 times the sum of |a| |b| in a product of up to 1024 terms (tensor cores
truncate), of which a gate passes on a quarter, the largest slope of a sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.document import models
from tests.document.models import Array

HALF = 2.0**-8 * (1 + 2.0**-5)  # of bf16, with room for a rounding of what is rounded
F32 = 2.0**-15
FP8_STEP, FP8_LEAST = 2.0**-3, 2.0**-9  # fp8_e4m3: neighbours of x are at most 2^-3 |x|, and at least this, apart
LEAST = 2.0**-120  # below it bf16 and f32 have fewer bits
# Root mean square of the difference over that of the model. Errors add up by chance: it is that of 12 roundings, each
# of which has HALF / sqrt(3) for a number just above a power of two, and less for others.
RMS_LIMIT = 0.008

Given = dict[str, Any]


def allowance(function: str, given: Given, expected: Array) -> Array:
    """What |result - model| may be at most, for the arguments and ambient parameters of a case."""
    with np.errstate(invalid="ignore", over="ignore"):
        return ALLOWANCES[function](given, expected) + LEAST


def rms_limit(function: str, given: Given) -> float:
    """RMS_LIMIT; a sum over N layers rounds N times, and a softmax multiplies errors by the size of its logits."""
    lists = [len(value) for value in given.values() if isinstance(value, list)]
    factor = math.sqrt(max([8, *lists]) / 8)
    if function in LOGITS:
        factor = max(1.0, float(np.sqrt(np.mean(np.square(LOGITS[function](given)[0])))))
    return RMS_LIMIT * factor


def _delta(source: Array, target: Array) -> Array:
    return models.round_to(target - source, "bf16")


def _gated(delta: Array, weight: Array, scale: float) -> tuple[Array, Array]:
    """|delta * gate|, and what f32 may lose of it."""
    slope = np.minimum(scale * F32 * (np.abs(delta) @ np.abs(weight)) / 4 + F32, 1.0)
    gates = models.sigmoid(scale * (delta @ weight))
    return np.abs(delta) * gates, np.abs(delta) * np.where(np.isnan(slope), 1.0, slope)


def _connection(given: Given, expected: Array) -> Array:
    delta = _delta(given["x_source"], given["x_target"])
    value, lost = _gated(delta, given["gate_params"], models.device_scale(given["layer_distance"]))
    return 3 * HALF * value + lost  # the gates, the product, the model


def _kernel(given: Given, expected: Array) -> Array:
    value, lost = _gated(given["delta"], given["gate_params"], models.device_scale(given["layer_distance"]))
    return 2 * HALF * value + lost  # the store, the model


def _aggregated(given: Given, gates: str) -> tuple[Array, Array, int]:
    """The sums over layers of |A * delta * gate| and of what f32 may lose of it, and how many layers there are."""
    sources, target, weights = given["source_layers"], given["target_layer"], given["attention_weights"]
    total, lost = np.zeros_like(target), np.zeros_like(target)
    for i, source in enumerate(sources):
        value, error = _gated(_delta(source, target), given[gates][i], math.exp(-0.1 * (len(sources) - i)))
        total += abs(weights[i, -1]) * value
        lost += abs(weights[i, -1]) * (error + F32 * value)
    return total, lost, len(sources)


def _function_of_layers(given: Given, expected: Array) -> Array:
    total, lost, layers = _aggregated(given, "gate_networks")
    return (3 + layers + 1) * HALF * total + lost  # gates, product, weighting; each addition; the model


def _kernel_of_layers(gates: str) -> Callable[[Given, Array], Array]:
    def of(given: Given, expected: Array) -> Array:
        _, lost, _ = _aggregated(given, gates)
        return 2 * HALF * np.abs(expected) + lost  # the store, the model

    return of


def _neighbours(given: Given, expected: Array) -> Array:
    layers, total, lost = given["layer_activations"], 0.0, 0.0
    for before, after, weight in zip(layers[:-1], layers[1:], given["gate_parameters"][1:], strict=True):
        value, error = _gated(_delta(before, after), weight, math.exp(-0.1))
        total, lost = total + value, lost + error
    return 4 * HALF * total + lost  # gates and products, the sum, the model


def _mixed(given: Given, expected: Array) -> Array:
    """Each of the three roundings to fp8 may take the other neighbour, where f32 is on the other side of the middle."""

    def step(value: Array) -> Array:
        return np.maximum(FP8_STEP * np.abs(value), FP8_LEAST)

    x, error, total = given["x"], np.zeros_like(given["x"]), np.zeros_like(given["x"])
    for previous, weight in zip(given["previous_layers"], given["gate_params"], strict=True):
        delta = models.round_to(x - models.round_to(previous, "bf16"), "bf16")
        value = delta * models.gating_network(delta, weight)
        total, error = total + np.minimum(np.abs(value), models.FP8_LARGEST), error + step(value)
    error = error + step(np.minimum(total + error, models.FP8_LARGEST))
    return error + step(np.minimum(np.abs(x) + total + error, models.FP8_LARGEST))


def _safe(given: Given, expected: Array) -> Array:
    return (2 * HALF + F32) * np.abs(expected)  # the result, the model


def _layer(given: Given, expected: Array) -> Array:
    """A transformer layer rounds eight times between its input and its result (norm, q k v, weights, heads, middle,
    norm, hidden, result), which matrices of values of size 1 / sqrt(D) do not enlarge but mix along a row.
    """
    return 2 * 8 * HALF * np.max(np.abs(expected), axis=-1, keepdims=True)


def _stable_logits(given: Given) -> tuple[Array, Array]:
    logits = given["gating_input"] / given.get("temperature", 1.0)
    return logits, HALF * np.abs(logits)


def _adaptive_logits(given: Given) -> tuple[Array, Array]:
    """The logits of the tied MLP over the temperature, and what the roundings before them change: those of the norm, of
    the projection and of their sum through a SiLU, whose slope is at most 1.1; of the logits, of the quotient.
    """
    weight, delta = given["gate_weights"], given["delta"]
    norm, projected = models.l2_norm(delta, -1, True), given["context_vector"] @ weight
    hidden = models.mlp_gating(np.concatenate([norm, projected], axis=-1), weight)
    before = 1.1 * HALF * (np.abs(norm) + np.abs(projected)) @ np.abs(weight.T)
    lost = F32 * (np.abs(given["context_vector"]) @ np.abs(weight)) @ np.abs(weight.T)
    temperature = abs(given.get("temperature", 1.0))
    return hidden / temperature, (before + lost + 2 * HALF * np.abs(hidden)) / temperature


def _softmax(logits: Array, error: Array, roundings: int) -> Array:
    """A factor for each probability: logits that are wrong by e change it by exp(2 e) at most."""
    most = np.max(error, axis=-1, keepdims=True)
    return np.expm1(np.minimum(2 * most, 700.0)) + roundings * HALF


def _stable(given: Given, expected: Array) -> Array:
    kept = given.get("mask", 1.0) / (1 - given["gating_dropout"] if "mask" in given else 1.0)
    probabilities = models.softmax(given["gating_input"] / given.get("temperature", 1.0))
    return kept * np.minimum(probabilities * _softmax(*_stable_logits(given), 3), 1.0)


def _adaptive(given: Given, expected: Array) -> Array:
    factor = _softmax(*_adaptive_logits(given), 4)  # probabilities, gates, the product, the model
    largest = np.abs(given["delta"]) * models.device_scale(given["layer_distance"])
    return np.minimum(np.abs(expected) * factor, largest * (1 + HALF))


LOGITS: dict[str, Callable[[Given], tuple[Array, Array]]] = {
    "adaptive_gating_mechanism": _adaptive_logits,
    "stable_gating_computation": _stable_logits,
}
ALLOWANCES: dict[str, Callable[[Given, Array], Array]] = {
    "delta_connection": _connection,
    "gating_function_kernel": _kernel,
    "adaptive_gating_mechanism": _adaptive,
    "multi_scale_delta_aggregation": _function_of_layers,
    "parallel_delta_aggregation_kernel": _kernel_of_layers("gate_networks"),
    "delta_layer_with_checkpointing": _layer,
    "distributed_gdn_layer": _layer,
    "safe_delta_computation": _safe,
    "stable_gating_computation": _stable,
    "mixed_precision_gdn_layer": _mixed,
    "fused_delta_gating_kernel": _kernel_of_layers("gate_params"),
    "optimized_delta_memory_access": _neighbours,
}
