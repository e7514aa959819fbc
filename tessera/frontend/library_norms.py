"""Norms, softmax and dropout: composed of reductions and elementwise maths in f32, rounded at most once, at the end."""

from __future__ import annotations

import math
from typing import Any

from tessera.dtypes import f32, i64
from tessera.frontend.evaluator_arithmetic import elementwise
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language_math import product
from tessera.frontend.language_tensor import mean, reduced
from tessera.frontend.language_tensor_shapes import axis_of, tensor_function
from tessera.ir import dims
from tessera.ir.dims import Size
from tessera.ir.types import Shape, shape_text

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of f32


# What every function of the library does ------------------------------------------------------------------------------


def math_of(emit: TensorEmitter, op: str, *values: Any) -> Handle:
    """An elementwise op whose operands have no words of the author's."""
    return elementwise(emit, op, values, ["an operand"] * len(values))


def floats(emit: TensorEmitter, value: Any, argument: str) -> Handle:
    """A tensor of floats. Raises SourceError TS203 or TS204."""
    tensor = emit.tile(value, argument)
    if not tensor.dtype.is_float:
        emit.fail("TS204", f"'{argument}' takes floats, but '{emit.text(argument)}' is {describe(tensor)}", argument)
    return tensor


def number(emit: TensorEmitter, value: Any, argument: str) -> Any:
    """One number of the author's, or of the call. Raises SourceError TS203."""
    value = plain(value)
    if is_number(value) and type(value) is not bool or isinstance(value, Handle) and value.is_scalar:
        return value
    emit.fail("TS203", f"'{argument}' takes one number, but '{emit.text(argument)}' is {describe(value)}", argument)


def shown(emit: TensorEmitter, shape: Shape) -> str:
    """A shape for a message, in numbers where this call's are known."""
    if any(dims.symbols(size) - emit.static.keys() for size in shape):
        return shape_text(shape)
    return shape_text(tuple(dims.evaluate(size, emit.static) for size in shape))


def respelled(emit: TensorEmitter, tensor: Handle, shape: Shape) -> Handle:
    """The whole of a tensor with its sizes written as `shape`: the same numbers, as the caller has made sure."""
    if tensor.shape == shape:
        return tensor
    return emit.emit("extract", tensor, starts=(0,) * len(shape), extents=shape)


def vector(emit: TensorEmitter, value: Any, argument: str, size: Size) -> Handle:
    """A tensor of one axis as long as the last axis of `x`, in f32. Raises SourceError TS203, TS204, TS301 or TS304."""
    given = floats(emit, value, argument)
    if len(given.shape) != 1:
        emit.fail(
            "TS304", f"'{argument}' takes one axis, but '{emit.text(argument)}' is {shown(emit, given.shape)}", argument
        )
    if not emit.unify(given.shape[0], size):
        emit.fail(
            "TS301",
            f"'{emit.text(argument)}' is {shown(emit, given.shape)}, but the last axis of '{emit.text('x')}' has the "
            f"size {shown(emit, (size,))[1:-1]}",
            argument,
        )
    return emit.cast(given, f32)


def with_features(emit: TensorEmitter, value: Any) -> Handle:
    """The argument `x`, a tensor of floats of at least one axis. Raises SourceError TS203, TS204 or TS304."""
    tensor = floats(emit, value, "x")
    if not tensor.shape:
        emit.fail("TS304", f"'{emit.text('x')}' has no axis to normalize along", "x")
    return tensor


# Norms ----------------------------------------------------------------------------------------------------------------


def _l2_norm(emit: TensorEmitter, x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """The square root of the sum of squares along `axis`, an int, several, or None for all, in the dtype of `x`.

    Computed in f32 as m * sqrt(sum((x * (1 / m))^2)), m the largest magnitude, so that neither large nor small elements
    are lost on the way: it is finite whenever the norm is an f32, and 0 for zeros alone.
    """
    tensor = floats(emit, x, "x")
    wide = emit.cast(tensor, f32)
    # Axis by axis also over all: no kernel has to hold the whole tensor as one row.
    axes = tuple(range(len(tensor.shape))) or None if axis is None else axis
    largest = reduced(emit, "reduce_max", math_of(emit, "abs", wide), axes, True)
    # Any scale of that magnitude serves; kept inside the normal numbers, 0 and infinity become what they are.
    scale = math_of(emit, "min", math_of(emit, "max", largest, SMALLEST), LARGEST)
    unit = math_of(emit, "mul", wide, math_of(emit, "div", 1.0, scale))
    squares = reduced(emit, "reduce_sum", math_of(emit, "mul", unit, unit), axes, True)
    norm = math_of(emit, "mul", scale, math_of(emit, "sqrt", squares))
    if not keepdims:
        kept = _without(emit, tensor.shape, axis)
        norm = emit.reshape(norm, kept)
    return emit.cast(norm, tensor.dtype, implicit=True)


def _without(emit: TensorEmitter, shape: Shape, axis: Any) -> Shape:
    if axis is None:
        return ()
    axes = {axis_of(emit, one, len(shape)) for one in (axis if isinstance(axis, (list, tuple)) else [axis])}
    return tuple(size for position, size in enumerate(shape) if position not in axes)


l2_norm = tensor_function("ops.l2_norm")(_l2_norm)
public_l2_norm = tensor_function("l2_norm")(_l2_norm)


def rms_normalized(emit: TensorEmitter, x: Handle, eps: Any) -> Handle:
    """x / sqrt(mean(x^2) + eps) along the last axis, in f32."""
    wide = emit.cast(x, f32)
    power = mean.build(emit, math_of(emit, "mul", wide, wide), -1, True)
    return math_of(emit, "mul", wide, math_of(emit, "rsqrt", math_of(emit, "add", power, eps)))


@tensor_function("rms_norm")
def rms_norm(emit: TensorEmitter, x: Any, weight: Any = None, eps: Any = 1e-6) -> Handle:
    """weight * x / sqrt(mean(x^2) + eps) along the last axis, computed in f32, in the dtype of `x`.

    `weight` has one axis, as long as the last of `x`; without it there is no gain.
    """
    tensor = with_features(emit, x)
    result = rms_normalized(emit, tensor, number(emit, eps, "eps"))
    if weight is not None:
        result = math_of(emit, "mul", result, vector(emit, weight, "weight", tensor.shape[-1]))
    return emit.cast(result, tensor.dtype, implicit=True)


@tensor_function("layer_norm")
def layer_norm(emit: TensorEmitter, x: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Handle:
    """weight * (x - mean) / sqrt(variance + eps) + bias along the last axis, computed in f32, in the dtype of `x`.

    `weight` and `bias` have one axis, as long as the last of `x`; each may be left out.
    """
    tensor = with_features(emit, x)
    wide = emit.cast(tensor, f32)
    centred = math_of(emit, "sub", wide, mean.build(emit, wide, -1, True))
    result = _scaled_by_deviation(emit, centred, number(emit, eps, "eps"))
    if weight is not None:
        result = math_of(emit, "mul", result, vector(emit, weight, "weight", tensor.shape[-1]))
    if bias is not None:
        result = math_of(emit, "add", result, vector(emit, bias, "bias", tensor.shape[-1]))
    return emit.cast(result, tensor.dtype, implicit=True)


def _scaled_by_deviation(emit: TensorEmitter, centred: Handle, eps: Any) -> Handle:
    variance = mean.build(emit, math_of(emit, "mul", centred, centred), -1, True)
    return math_of(emit, "mul", centred, math_of(emit, "rsqrt", math_of(emit, "add", variance, eps)))


# Softmax --------------------------------------------------------------------------------------------------------------


def softmax_of(emit: TensorEmitter, x: Handle, axis: Any) -> Handle:
    """exp(x - max) / sum(exp(x - max)) along `axis`, in f32.

    The exponentials are powers of 2, which a GPU has an instruction for. A difference d that is multiplied by log2(e)
    is off by |d| 2^-24, as it is by its own rounding.
    """
    wide = emit.cast(x, f32)
    shifted = math_of(emit, "sub", wide, reduced(emit, "reduce_max", wide, axis, True))
    raised = math_of(emit, "exp2", math_of(emit, "mul", shifted, math.log2(math.e)))
    return math_of(emit, "div", raised, reduced(emit, "reduce_sum", raised, axis, True))


def _softmax(emit: TensorEmitter, x: Any, axis: Any = -1) -> Handle:
    """exp(x - max) / sum(exp(x - max)) along `axis`, computed in f32, with powers of 2, in the dtype of `x`."""
    tensor = with_features(emit, x)
    place = axis_of(emit, axis, len(tensor.shape))
    return emit.cast(softmax_of(emit, tensor, place), tensor.dtype, implicit=True)


softmax_safe = tensor_function("ops.softmax_safe")(_softmax)
softmax = tensor_function("softmax")(_softmax)


# Dropout --------------------------------------------------------------------------------------------------------------


@tensor_function("ops.dropout")
def dropout(emit: TensorEmitter, x: Any, p: Any, seed: Any = None) -> Handle:
    """Each element 0 with probability `p`, else divided by 1 - p; `p` is in [0, 1).

    Element number i is dropped where `uniform(i, seed)` is below `p`, so the same seed drops the same elements.
    Without `seed`, each call of the function draws a new one, and each dropout in it has numbers of its own.
    """
    tensor = floats(emit, x, "x")
    probability = number(emit, p, "p")
    emit.require(probability, "probability", emit.text("p"), f"ts.ops.dropout({emit.text('x')}) drops with it")
    if is_number(probability) and probability == 0:
        return tensor
    key, first = emit.random_stream() if seed is None else (_seed(emit, seed), 0)
    index = _element_numbers(emit, tensor.shape)
    if first:
        index = math_of(emit, "add", index, first)
    kept = math_of(emit, "ge", math_of(emit, "uniform", index, key), probability)
    grown = math_of(emit, "mul", emit.cast(tensor, f32), _reciprocal(emit, probability))
    return emit.cast(math_of(emit, "where", kept, grown, 0.0), tensor.dtype, implicit=True)


def _element_numbers(emit: TensorEmitter, shape: Shape) -> Handle:
    """The place of every element in row-major order, i64: that of its row and, within it, that of its column."""
    *leading, columns = shape or (1,)
    rows = product(leading)
    column = emit.emit("iota", shape=(*[1] * len(leading), columns), axis=len(leading), dtype=i64)
    if rows == 1:
        return emit.reshape(column, shape)
    row = emit.reshape(emit.emit("iota", shape=(rows, 1), axis=0, dtype=i64), (*leading, 1))
    return math_of(emit, "add", math_of(emit, "mul", row, columns), column)


def _reciprocal(emit: TensorEmitter, probability: Any) -> Handle:
    """1 / (1 - p) as a scalar, computed in f32 also where p is known now."""
    return math_of(emit, "div", 1.0, math_of(emit, "sub", 1.0, probability))


def _seed(emit: TensorEmitter, seed: Any) -> Any:
    """An integer, known now or with the call. Raises SourceError TS203."""
    seed = plain(seed)
    if type(seed) is int or isinstance(seed, Handle) and seed.is_int:
        return seed
    emit.fail("TS203", f"'seed' takes an integer, but '{emit.text('seed')}' is {describe(seed)}", "seed")


__all__ = ["dropout", "l2_norm", "layer_norm", "rms_norm", "softmax", "softmax_safe"]
