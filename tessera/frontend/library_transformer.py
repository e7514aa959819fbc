"""One transformer layer: attention and an MLP, each after a root-mean-square norm and added to what came in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tessera.dtypes import DType, bf16, f32, i32
from tessera.frontend.evaluator_values import Handle, describe, plain
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language_tensor_products import matmul_of
from tessera.frontend.language_tensor_shapes import permuted, tensor_function
from tessera.frontend.library_norms import floats, math_of, number, respelled, rms_normalized, shown, softmax_of
from tessera.ir import dims
from tessera.ir.dims import Size
from tessera.ir.types import Shape

NAMES = ("Wq", "Wk", "Wv", "Wo", "W1", "W2")
PACKING = "Wq | Wk | Wv | Wo [D, D] each, W1 [D, 4*D], W2 transposed [D, 4*D]"
NARROWEST_HEAD = 64  # features of a head, unless there is one head alone


@dataclass(frozen=True)
class Weights:
    """The matrices of a layer over D features: four [D, D], `up` [D, F] and `down` [F, D]."""

    query: Handle
    key: Handle
    value: Handle
    out: Handle
    up: Handle
    down: Handle


@tensor_function("ops.transformer_layer")
def transformer_layer(
    emit: TensorEmitter,
    x: Any,
    params: Any = None,
    *,
    causal: Any = False,
    heads: Any = None,
    eps: Any = 1e-6,
) -> Handle:
    """A transformer layer over `x` [B, S, D], in its dtype: y = x + attention(rms(x)), then y + mlp(rms(y)).

    `params` is one matrix [D, 12*D], Wq | Wk | Wv | Wo | W1 [D, 4*D] | W2 transposed [D, 4*D]; or a dict of Wq, Wk, Wv,
    Wo, W1 [D, F] and W2 [F, D], or a tuple of them in that order. Without it, the layer has a bf16 matrix of the
    parameter store. rms(x) is x / sqrt(mean(x^2) + eps); scores are scaled by 1 / sqrt(head size); the MLP is
    gelu_tanh(y @ W1) @ W2. `heads` is the largest divisor of D that leaves heads of 64 features or more, or 1, and
    `causal` lets a row attend to itself and those before it.
    """
    tensor = floats(emit, x, "x")
    if len(tensor.shape) != 3:
        given = shown(emit, tensor.shape)
        emit.fail("TS304", f"'x' takes three axes [B, S, D], but '{emit.text('x')}' is {given}", "x")
    if type(plain(causal)) is not bool:
        emit.fail("TS203", f"'causal' takes True or False, but '{emit.text('causal')}' is {describe(causal)}", "causal")
    features, eps = tensor.shape[-1], number(emit, eps, "eps")
    count, size = _heads(emit, heads, features)
    # Heads split the features, so these are written as the number that they are in this call.
    inner: Size = features if count == 1 else count * size
    weights = _weights(emit, params, features, inner)
    dtype = tensor.dtype if tensor.dtype.bits >= 16 else bf16
    given = emit.cast(respelled(emit, tensor, (*tensor.shape[:-1], inner)), f32)
    normed = emit.cast(rms_normalized(emit, given, eps), dtype, implicit=True)
    attended = _attention(emit, normed, weights, count, dtype, causal, size)
    middle = emit.cast(math_of(emit, "add", given, _product(emit, attended, weights.out)), dtype, implicit=True)
    normed = emit.cast(rms_normalized(emit, middle, eps), dtype, implicit=True)
    hidden = math_of(emit, "gelu_tanh", _product(emit, normed, weights.up))
    out = _product(emit, emit.cast(hidden, dtype, implicit=True), weights.down)
    result = math_of(emit, "add", emit.cast(middle, f32), out)
    return respelled(emit, emit.cast(result, tensor.dtype, implicit=True), tensor.shape)


def _attention(
    emit: TensorEmitter, x: Handle, weights: Weights, heads: int, dtype: DType, causal: bool, head_size: int
) -> Handle:
    """softmax(q @ k transposed / sqrt(head size)) @ v of each head, heads side by side: [B, S, D] in `dtype`."""
    batch, length, features = x.shape
    width: Size = features if heads == 1 else head_size

    def split(matrix: Handle, order: tuple[int, ...]) -> Handle:
        projected = emit.cast(_product(emit, x, matrix), dtype, implicit=True)
        return permuted(emit, emit.reshape(projected, (batch, length, heads, width)), order)

    query, value = (split(matrix, (0, 2, 1, 3)) for matrix in (weights.query, weights.value))
    scores = _product(emit, query, split(weights.key, (0, 2, 3, 1)))
    scores = math_of(emit, "mul", scores, 1 / math.sqrt(head_size))
    if causal:
        row, column = (emit.emit("iota", shape=(length, length), axis=axis, dtype=i32) for axis in (0, 1))
        scores = math_of(emit, "where", math_of(emit, "ge", row, column), scores, -math.inf)
    chosen = emit.cast(softmax_of(emit, scores, -1), dtype, implicit=True)
    mixed = emit.cast(_product(emit, chosen, value), dtype, implicit=True)
    return emit.reshape(permuted(emit, mixed, (0, 2, 1, 3)), x.shape)


def _product(emit: TensorEmitter, a: Handle, b: Handle) -> Handle:
    """a @ b in f32, not rounded."""
    return matmul_of(emit, a, b, (emit.text("x"), emit.text("params")), wide=True)


def _heads(emit: TensorEmitter, heads: Any, features: Size) -> tuple[int, int]:
    """How many heads, and how many features each has. Raises SourceError TS203, TS205 or TS301."""
    text = emit.text("x")
    total = emit.concrete(features, text, f"the heads of ts.ops.transformer_layer divide the last axis of '{text}'")
    heads = plain(heads)
    if heads is None:
        most = max(1, total // NARROWEST_HEAD)
        heads = max(count for count in range(1, most + 1) if total % count == 0)
    if type(heads) is not int or heads < 1:
        emit.fail("TS203", f"'heads' takes a positive int, but '{emit.text('heads')}' is {describe(heads)}", "heads")
    if total % heads:
        emit.fail("TS301", f"{heads} heads do not divide the {total} features of '{text}'", "heads")
    return heads, total // heads


# Weights --------------------------------------------------------------------------------------------------------------


def _weights(emit: TensorEmitter, params: Any, features: Size, inner: Size) -> Weights:
    """The matrices of the layer, D written as `inner`. Raises SourceError TS203, TS204, TS301 or TS304."""
    if params is None:
        key = emit.parameter_key("transformer_layer")
        return _unpacked(emit, emit.ambient(key, (features, features * 12), bf16, "normal"), inner)
    if isinstance(params, (Mapping, list, tuple)):
        return _named(emit, params, features, inner)
    packed = floats(emit, params, "params")
    if len(packed.shape) != 2:
        _refuse_packing(emit, packed, features, "TS304")
    if not (_is(emit, packed.shape[0], features) and _is(emit, packed.shape[1], features * 12)):
        _refuse_packing(emit, packed, features, "TS301")
    return _unpacked(emit, packed, inner)


def _is(emit: TensorEmitter, size: Size, wanted: Size) -> bool:
    """Whether two sizes are one, by name or, where both are known, by value."""
    if emit.unify(size, wanted):
        return True
    if (dims.symbols(size) | dims.symbols(wanted)) - emit.static.keys():
        return False
    why = "the sizes say how the weights of ts.ops.transformer_layer are packed"
    return emit.concrete(size, emit.text("params"), why) == emit.concrete(wanted, emit.text("x"), why)


def _refuse_packing(emit: TensorEmitter, packed: Handle, features: Size, code: str) -> NoReturn:
    wanted = shown(emit, (features, features * 12))
    emit.fail(
        code,
        f"'{emit.text('params')}' is {shown(emit, packed.shape)}, but the weights of a transformer layer over "
        f"'{emit.text('x')}' are packed as [D, 12*D] = {wanted}: {PACKING}",
        "params",
    )


def _unpacked(emit: TensorEmitter, packed: Handle, inner: Size) -> Weights:
    packed = respelled(emit, packed, (inner, inner * 12))

    def part(start: int, width: int) -> Handle:
        return emit.emit("extract", packed, starts=(0, inner * start), extents=(inner, inner * width))

    query, key, value, out = (part(position, 1) for position in range(4))
    return Weights(query, key, value, out, part(4, 4), permuted(emit, part(8, 4), (1, 0)))


def _named(emit: TensorEmitter, params: Any, features: Size, inner: Size) -> Weights:
    text = emit.text("params")
    given = dict(params) if isinstance(params, Mapping) else dict(zip(NAMES, params, strict=False))
    if set(given) != set(NAMES) or len(params) != len(NAMES):
        what = f"has {', '.join(map(str, given))}" if isinstance(params, Mapping) else f"has {len(params)} items"
        emit.fail("TS203", f"the weights of a transformer layer are {', '.join(NAMES)}, but '{text}' {what}", "params")
    matrices = {name: _matrix(emit, given[name], f"{text}[{name!r}]") for name in NAMES}
    hidden = matrices["W1"].shape[1]
    shapes: dict[str, Shape] = dict.fromkeys(NAMES, (features, features))
    shapes.update(W1=(features, hidden), W2=(hidden, features))
    for name, matrix in matrices.items():
        if not all(map(emit.unify, matrix.shape, shapes[name])):
            wanted = {"W1": "[D, F]", "W2": "[F, D]"}.get(name, "[D, D]") + f" = {shown(emit, shapes[name])}"
            emit.fail(
                "TS301",
                f"{name} of a transformer layer over '{emit.text('x')}' is {wanted}, but {text}[{name!r}] is "
                f"{shown(emit, matrix.shape)}",
                "params",
            )
        sizes = tuple(inner if size == features else size for size in shapes[name])
        matrices[name] = respelled(emit, matrix, sizes)
    return Weights(*(matrices[name] for name in NAMES))


def _matrix(emit: TensorEmitter, value: Any, text: str) -> Handle:
    if not isinstance(value, Handle) or not value.is_tile:
        emit.fail("TS203", f"{text} is {describe(value)}, where a matrix is needed", "params")
    if not value.dtype.is_float:
        emit.fail("TS204", f"{text} is {describe(value)}, where floats are needed", "params")
    if len(value.shape) != 2:
        emit.fail("TS304", f"{text} is {shown(emit, value.shape)}, where a matrix is needed", "params")
    return value


__all__ = ["PACKING", "transformer_layer"]
