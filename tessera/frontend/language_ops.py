"""`ts.ops`: named operations with a fixed meaning, for tiles and scalars in kernels and for Python numbers anywhere."""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_arithmetic import FOLDS, elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.language import Intrinsic
from tessera.ir.types import ScalarType

DECAY_RATE = 0.1


def _exp(emit: Emitter, x: Any) -> Handle:
    """e to the x."""
    return elementwise(emit, "exp", (x,), (emit.text("x"),))


def _sigmoid_safe(emit: Emitter, x: Any) -> Handle:
    """1 / (1 + exp(-x)), computed so that neither side overflows."""
    return elementwise(emit, "sigmoid", (x,), (emit.text("x"),))


exp = Intrinsic("ts.ops.exp", _exp, lambda x: FOLDS["exp"](x))
sigmoid_safe = Intrinsic("ts.ops.sigmoid_safe", _sigmoid_safe, lambda x: FOLDS["sigmoid"](x))


def scaled_distance(emit: Emitter, distance: Handle, text: str) -> Handle:
    """exp(-0.1 * distance) of a scalar, computed in f32 also where the distance is known at compile time."""
    weak = isinstance(distance.type, ScalarType) and distance.type.weak  # a number of the author's stays one
    operand = distance if weak else emit.cast(distance, f32)
    scaled = elementwise(emit, "mul", (operand, -DECAY_RATE), (text, str(-DECAY_RATE)))
    return elementwise(emit, "exp", (scaled,), (text,))


def _distance_scaling(emit: Emitter, layer_distance: Any) -> Handle:
    """exp(-0.1 * layer_distance): how strongly a layer that far away counts."""
    text = emit.text("layer_distance")
    distance = emit.operand(layer_distance, text)
    if (not distance.is_scalar and distance.shape) or distance.dtype.is_bool:
        emit.fail("TS203", f"a layer distance is one number, but '{text}' is {describe(distance)}", "layer_distance")
    return scaled_distance(emit, distance, text)


def _distance_scaling_on_host(layer_distance: Any) -> float:
    return FOLDS["exp"](-DECAY_RATE * layer_distance)


distance_scaling = Intrinsic("ts.ops.distance_scaling", _distance_scaling, _distance_scaling_on_host)
distance_scaling_function = Intrinsic("ts.ops.distance_scaling_function", _distance_scaling, _distance_scaling_on_host)
