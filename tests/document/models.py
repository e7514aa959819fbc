"""The thirteen functions of the language document as NumPy models, written from the meaning of the document alone.

They are the second opinion that every lane is compared with, so they share nothing with the compiler: no op table, no
rounding code, no reference mode. The numbers of a model:

- Inputs are float64 arrays that hold values of their dtypes exactly (bf16, fp8_e4m3, f32), Python numbers, and lists.
- All maths is float64; it stands for the exact value of what a lane computes in f32. The range of f32 is modelled only
  where the meaning names it: the distance scale, and the difference and the norm of `safe_delta_computation`.
- Rounded to nearest even, each once, are the explicit points (`ts.cast`, stores to tensors and shared buffers, the
  return annotation of the function that is called) and the delta, which the meaning fixes as bf16(target - source).
  Results of other ops are not rounded. The return annotation of a function that is called *inside* another one is
  such an implicit point too: a caller passes `result=None`.
- A kernel's model returns what the kernel stores; it has no `output` parameter.

Ambient parameters (weights that the document creates in place) and the mask of dropout are keyword arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FP8_LARGEST = 448.0
F32_OVERFLOW = 2.0**128 - 2.0**103  # from here on round-to-nearest gives infinity
TILE_SIZE = 128


# Rounding


def round_to(x: Array, dtype: str | None) -> Array:
    """`x` rounded once, to nearest even, to "bf16" or "fp8_e4m3" (saturating, NaN kept); None leaves it alone."""
    if dtype is None:
        return x
    if dtype == "bf16":
        return _sticky_f32(x).astype(ml_dtypes.bfloat16).astype(np.float64)
    if dtype == "fp8_e4m3":
        # ml_dtypes gives NaN for what is too large, and so it must not see it.
        inside = np.clip(x, -FP8_LARGEST, FP8_LARGEST)
        return _sticky_f32(inside).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    raise ValueError(f"no rounding to {dtype!r}")


def _sticky_f32(x: Array) -> NDArray[np.float32]:
    """`x` in f32, inexact values to the neighbour with an odd last bit.

    ml_dtypes rounds float64 to f32 first, and two roundings to nearest are not one: 1 + 2^-8 + 2^-40 would become the
    tie 1 + 2^-8 and then the bf16 value 1. A first rounding to odd keeps such values off the tie.
    """
    with np.errstate(over="ignore", under="ignore"):
        nearest = np.asarray(x, np.float64).astype(np.float32)
    back = nearest.astype(np.float64)
    away = np.abs(back) > np.abs(x)
    truncated = np.where(away, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = (back != x) & ~np.isnan(x)
    return (truncated.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)


def f32_range(x: Array) -> Array:
    """`x` with infinity where f32 would overflow."""
    return np.where(np.abs(x) >= F32_OVERFLOW, np.copysign(np.inf, x), x)


# Operations


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the branch whose exponential cannot overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def softmax(x: Array, axis: int = -1) -> Array:
    """Softmax, shifted by the maximum."""
    with np.errstate(invalid="ignore"):
        raised = np.exp(x - np.max(x, axis=axis, keepdims=True))
        return raised / np.sum(raised, axis=axis, keepdims=True)


def l2_norm(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """amax * sqrt(sum((x / amax)^2)): vanishes only for zeros, and is infinite only above the range of f32."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.max(np.abs(x), axis=axis, keepdims=True)
        unit = np.where((largest == 0) | np.isinf(largest), 1.0, largest)
        norm = unit * np.sqrt(np.sum(np.square(x / unit), axis=axis, keepdims=True))
    norm = f32_range(norm)
    return norm if keepdims else np.squeeze(norm, axis=axis)


def distance_scaling(layer_distance: float) -> float:
    """exp(-0.1 * d); infinity where a float overflows."""
    try:
        return math.exp(-0.1 * layer_distance)
    except OverflowError:
        return math.inf


def device_scale(layer_distance: float) -> float:
    """The same as a tensor's factor: infinite where f32 overflows (d < -887)."""
    scale = distance_scaling(layer_distance)
    return scale if scale < F32_OVERFLOW else math.inf


def gating_function(x: Array, weight: Array, distance: float) -> Array:
    """The gates alone: sigmoid(exp(-0.1 d) * (x @ W)), x [..., D], W [D, D]. The scale multiplies the logit."""
    with np.errstate(invalid="ignore"):
        return sigmoid(device_scale(distance) * (x @ weight))


def gating_network(x: Array, weight: Array) -> Array:
    """sigmoid(x @ W), without a distance."""
    with np.errstate(invalid="ignore"):
        return sigmoid(x @ weight)


def mlp_gating(x: Array, weight: Array) -> Array:
    """[..., G + 1] with [D, G]: the tied two-layer MLP, to [..., D]; else [..., D] with [D, G]: x @ W; else ValueError.

    The tied rule comes first, so the meaning does not change where D happens to be G + 1.
    """
    if x.shape[-1] == weight.shape[1] + 1:
        magnitude, context = x[..., :1], x[..., 1:]
        hidden = context + magnitude
        return (hidden * sigmoid(hidden)) @ weight.T
    if x.shape[-1] == weight.shape[0]:
        return x @ weight
    raise ValueError(f"mlp_gating: x {x.shape} fits neither rule of W {weight.shape}")


def dropout(x: Array, p: float, mask: Array) -> Array:
    """Inverted dropout with the keep mask (0 or 1) given: kept values grow by 1 / (1 - p)."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p = {p} is not in [0, 1)")
    return x * mask / (1 - p)


def rms_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """x / sqrt(mean(x^2) + epsilon) over the last axis, without a gain."""
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + epsilon)


def gelu(x: Array) -> Array:
    """GELU in its tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def number_of_heads(features: int) -> int:
    """The largest divisor of D that is at most max(1, D // 64)."""
    return max(n for n in range(1, max(1, features // 64) + 1) if features % n == 0)


def transformer_layer(x: Array, params: Array, *, heads: int | None = None, causal: bool = False) -> Array:
    """A pre-norm transformer layer over x [B, S, D]; params [D, 12 D] = Wq | Wk | Wv | Wo | W1 [D, 4D] | W2^T [D, 4D].

    Head h takes the columns h * head_dim to (h + 1) * head_dim of q, k and v. Nothing is rounded inside.
    """
    batch, length, features = x.shape
    if params.shape != (features, 12 * features):
        raise ValueError(
            f"transformer_layer: params {params.shape}, expected [D, 12*D] = [{features}, {12 * features}]: "
            "Wq | Wk | Wv | Wo | W1 [D, 4D] | W2^T [D, 4D]"
        )
    heads = heads or number_of_heads(features)
    wq, wk, wv, wo = (params[:, i * features : (i + 1) * features] for i in range(4))
    w1, w2 = params[:, 4 * features : 8 * features], params[:, 8 * features :].T

    normed = rms_norm(x)
    q, k, v = (
        (normed @ w).reshape(batch, length, heads, features // heads).transpose(0, 2, 1, 3) for w in (wq, wk, wv)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(features // heads)
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    attended = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape)

    middle = x + attended @ wo
    return middle + gelu(rms_norm(middle) @ w1) @ w2


# The functions of the document, F1 to F13


def delta_connection(
    x_source: Array, x_target: Array, gate_params: Array, layer_distance: float, *, result: str | None = "bf16"
) -> Array:
    """F1: delta * gate(delta), delta = bf16(target - source)."""
    with np.errstate(invalid="ignore"):
        delta = round_to(x_target - x_source, "bf16")
        return round_to(delta * gating_function(delta, gate_params, layer_distance), result)


def gating_function_kernel(
    delta: Array, gate_params: Array, layer_distance: float, *, result: str | None = "bf16"
) -> Array:
    """F2: the tail of F1, as the kernel spells it: product, scale, sigmoid, multiply, store."""
    logits = delta @ gate_params
    with np.errstate(invalid="ignore"):
        gates = sigmoid(logits * device_scale(layer_distance))
        return round_to(delta * gates, result)


def adaptive_gating_mechanism(
    delta: Array,
    context_vector: Array,
    gate_weights: Array,
    layer_distance: float,
    temperature: float = 1.0,
    *,
    result: str | None = "bf16",
) -> Array:
    """F3: delta times a softmax over channels of the tied MLP of (|delta|, context), scaled by the distance."""
    if temperature == 0:
        raise ValueError("adaptive_gating_mechanism: temperature is 0")
    projection = context_vector @ gate_weights
    gating_input = np.concatenate([l2_norm(delta, axis=-1, keepdims=True), projection], axis=-1)
    probabilities = softmax(mlp_gating(gating_input, gate_weights) / temperature)
    return round_to(delta * (probabilities * device_scale(layer_distance)), result)


def distance_scaling_function(layer_distance: float) -> float:
    """F4: a Python number in, a Python float out."""
    base_weight, decay_rate = 1.0, 0.1
    with np.errstate(over="ignore"):
        return base_weight * float(np.exp(-decay_rate * layer_distance))


def multi_scale_delta_aggregation(
    source_layers: Sequence[Array],
    target_layer: Array,
    gate_networks: Sequence[Array],
    attention_weights: Array,
    *,
    result: str | None = "bf16",
) -> Array:
    """F5: the sum over i of A[i, -1] * F1(source i, target, gates i, N - i); zeros without sources."""
    _same_length(source_layers=source_layers, gate_networks=gate_networks)
    number = len(source_layers)
    if number > len(attention_weights):
        raise ValueError(f"attention_weights has {len(attention_weights)} rows, {number} sources")
    total = np.zeros_like(target_layer)
    for i, (source, weight) in enumerate(zip(source_layers, gate_networks, strict=True)):
        connection = delta_connection(source, target_layer, weight, number - i, result=None)
        total = total + connection * attention_weights[i, -1]
    return round_to(total, result)


def parallel_delta_aggregation_kernel(
    source_layers: Sequence[Array],
    target_layer: Array,
    gate_networks: Sequence[Array],
    attention_weights: Array,
    *,
    result: str | None = "bf16",
) -> Array:
    """F6: an accumulator to which each layer's `apply_gating` is added; the subtraction stores bf16."""
    _same_length(source_layers=source_layers, gate_networks=gate_networks)
    accumulator = np.zeros_like(target_layer)
    for index in range(len(source_layers)):
        stored_delta = round_to(target_layer - source_layers[index], "bf16")
        distance = len(source_layers) - index
        accumulator += _apply_gating(stored_delta, gate_networks[index], distance, attention_weights[index, -1])
    return round_to(accumulator, result)


def delta_layer_with_checkpointing(
    x: Array,
    previous_layers: Sequence[Array],
    layer_params: Array,
    gate_params: Sequence[Array],
    *,
    attention_weights: Array,
    result: str | None = "bf16",
) -> Array:
    """F7: a transformer layer plus F5 towards its output. attention_weights [N + 1, N + 1]."""
    _same_length(previous_layers=previous_layers, gate_params=gate_params)
    layer_output = transformer_layer(x, layer_params)
    total = multi_scale_delta_aggregation(previous_layers, layer_output, gate_params, attention_weights, result=None)
    return round_to(layer_output + total, result)


def distributed_gdn_layer(
    x: Array,
    previous_layers: Sequence[Array],
    gate_params: Sequence[Array],
    *,
    transformer_params: Array,
    dp: int = 2,
    result: str | None = "bf16",
) -> Array:
    """F8, in its global view: a transformer layer plus the connections towards its *input*. dp must divide B."""
    _same_length(previous_layers=previous_layers, gate_params=gate_params)
    if not previous_layers:
        raise ValueError("previous_layers is empty")
    if x.shape[0] % dp:
        raise ValueError(f"dp = {dp} does not divide B = {x.shape[0]}")
    number = len(previous_layers)
    connections = [
        delta_connection(previous, x, weight, number - i, result=None)
        for i, (previous, weight) in enumerate(zip(previous_layers, gate_params, strict=True))
    ]
    return round_to(transformer_layer(x, transformer_params) + np.sum(np.stack(connections), axis=0), result)


def safe_delta_computation(
    x_source: Array, x_target: Array, epsilon: float = 1e-8, *, scale: float = 1.0, result: str | None = "bf16"
) -> Array:
    """F9: the unrounded difference over max(norm, epsilon), times the learnable scale."""
    with np.errstate(invalid="ignore"):
        delta = f32_range(x_target - x_source)
        normalized = delta / np.maximum(l2_norm(delta, axis=-1, keepdims=True), epsilon)
    return round_to(normalized * scale, result)


def stable_gating_computation(
    gating_input: Array,
    temperature: float = 1.0,
    gating_dropout: float = 0.1,
    *,
    mask: Array | None = None,
    result: str | None = "bf16",
) -> Array:
    """F10: softmax of the input over the temperature; with a keep mask (training), dropout after it."""
    if temperature == 0:
        raise ValueError("stable_gating_computation: temperature is 0")
    probabilities = softmax(gating_input / temperature)
    if mask is not None:
        probabilities = dropout(probabilities, gating_dropout, mask)
    return round_to(probabilities, result)


def mixed_precision_gdn_layer(
    x: Array, previous_layers: Sequence[Array], gate_params: Sequence[Array], *, result: str | None = "fp8_e4m3"
) -> Array:
    """F11: x plus the sum of fp8 gated deltas, rounded where the listing casts. The others may be fp8, bf16 or f32."""
    _same_length(previous_layers=previous_layers, gate_params=gate_params)
    if not previous_layers:
        raise ValueError("previous_layers is empty")
    total = np.zeros_like(x)
    for previous, weight in zip(previous_layers, gate_params, strict=True):
        delta = round_to(round_to(x, "bf16") - round_to(previous, "bf16"), "bf16")
        total += round_to(delta * gating_network(delta, weight), "fp8_e4m3")
    return round_to(x + round_to(total, "fp8_e4m3"), result)


def fused_delta_gating_kernel(
    source_layers: Sequence[Array],
    target_layer: Array,
    gate_params: Sequence[Array],
    attention_weights: Array,
    *,
    result: str | None = "bf16",
) -> Array:
    """F12: the value of F5 and F6 through `fused_gating_accumulate`, which names the weight before the distance."""
    _same_length(source_layers=source_layers, gate_params=gate_params)
    number = len(source_layers)
    accumulator = np.zeros_like(target_layer)
    for i, source in enumerate(source_layers):
        delta = round_to(target_layer - source, "bf16")
        logits = math.exp(-0.1 * (number - i)) * np.einsum("bsk,kd->bsd", delta, gate_params[i], optimize=True)
        accumulator += attention_weights[i, -1] * delta * sigmoid(logits)
    return round_to(accumulator, result)


def optimized_delta_memory_access(
    layer_activations: Sequence[Array], gate_parameters: Sequence[Array], *, result: str | None = "bf16"
) -> Array:
    """F13: the sum of F1 between neighbouring layers at distance 1, 128 positions of S at a time. Gate 0 is unused."""
    _same_length(layer_activations=layer_activations, gate_parameters=gate_parameters)
    if len(layer_activations) < 2:
        raise ValueError(f"layer_activations holds {len(layer_activations)} layers: no delta between neighbours")
    tiles = []
    for start in range(0, layer_activations[0].shape[1], TILE_SIZE):
        cut = [layer[:, start : start + TILE_SIZE, :] for layer in layer_activations]
        connections = [
            delta_connection(cut[i - 1], cut[i], gate_parameters[i], 1, result=None) for i in range(1, len(cut))
        ]
        tiles.append(np.sum(np.stack(connections), axis=0))
    return round_to(np.concatenate(tiles, axis=1), result)


MODELS: dict[str, Callable[..., Any]] = {
    model.__name__: model
    for model in (
        delta_connection,
        gating_function_kernel,
        adaptive_gating_mechanism,
        distance_scaling_function,
        multi_scale_delta_aggregation,
        parallel_delta_aggregation_kernel,
        delta_layer_with_checkpointing,
        distributed_gdn_layer,
        safe_delta_computation,
        stable_gating_computation,
        mixed_precision_gdn_layer,
        fused_delta_gating_kernel,
        optimized_delta_memory_access,
    )
}


def _apply_gating(x: Array, weight: Array, distance: float = 1, factor: float = 1.0) -> Array:
    """factor * x * sigmoid(exp(-0.1 * distance) * (x @ W)); a rank-3 x is a block of rows."""
    rows = x.reshape(-1, x.shape[-1])
    gated = factor * rows * sigmoid(distance_scaling(distance) * (rows @ weight))
    return gated.reshape(x.shape)


def _same_length(**lists: Sequence[Array]) -> None:
    (first, a), (second, b) = lists.items()
    if len(a) != len(b):
        raise ValueError(f"{first} holds {len(a)} tensors, {second} {len(b)}")
