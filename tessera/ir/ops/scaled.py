"""Smooth functions of a product with a number, which goes into the constant that their exponential begins with."""

from __future__ import annotations

import numpy as np

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.ir import bounds, numeric
from tessera.ir.bounds import Bar
from tessera.ir.core import Op
from tessera.ir.opdef import ELEMENTWISE, PURE, TARGET, Lowering, define
from tessera.ir.ops.elementwise import SIGMOID, align
from tessera.ir.types import ScalarType, TileType, Type

# Scales for which no product with the constant of an exponential leaves f32's normal numbers.
LEAST, MOST = 2.0**-100, 2.0**100


def _type(op: Op) -> tuple[Type, ...]:
    a, scale = (value.type for value in op.operands)
    if not isinstance(a, TileType) or not isinstance(scale, ScalarType) or {a.dtype, scale.dtype} != {f32}:
        raise SourceError("TS703", f"{op.name} takes a tile of f32 and an f32 number")
    return (a,)


_sigmoid = numeric.correctly_rounded(numeric.sigmoid)


def _evaluate(op: Op, *values: np.ndarray) -> np.ndarray:
    a, scale = align(op, values)
    with np.errstate(all="ignore"):
        return _sigmoid(a * scale)


def _bound(op: Op, *values: Bar) -> Bar:
    """That of the product and that of the sigmoid: half a unit of the argument that is lost is that of the constant."""
    a, scale = align(op, values)
    return SIGMOID(op, bounds.multiply(op, a, scale))


define(
    "scaled_sigmoid",
    "a scale",
    _type,
    "sigmoid(a * scale), the product rounded first; for a scale from 2^-100 to 2^100 in magnitude",
    PURE,
    ELEMENTWISE,
    levels=frozenset((TARGET,)),
    evaluate=_evaluate,
    bound=_bound,
    lower=Lowering(expression="ts_scaled_sigmoid({0}, {1})"),
    ulp=4,
    takes=frozenset(("float",)),
)

__all__ = ["LEAST", "MOST"]
