"""Division by what many elements share, such as the sum of a softmax: the reciprocal is made once, quotients by fused
multiply-adds, which are correctly rounded too (Markstein, Computation of elementary functions on the IBM RISC
System/6000 processor, IBM Journal of Research and Development 34, 1990).
"""

from __future__ import annotations

import numpy as np

from tessera.dtypes import f32, round_to
from tessera.errors import SourceError
from tessera.ir import bounds
from tessera.ir.bounds import Bar
from tessera.ir.core import Op
from tessera.ir.opdef import ELEMENTWISE, PURE, TARGET, Lowering, define
from tessera.ir.ops.elementwise import align, result_dtype
from tessera.ir.types import ScalarType, TileType, Type, dtype_of

# Divisors whose products with a quotient lose nothing to the ends of f32's range. `ts_divisor` has the same two.
LEAST, MOST = 2.0**-30, 2.0**30


def _divisor_type(op: Op) -> tuple[Type, ...]:
    (value,) = op.operands
    if not isinstance(value.type, (ScalarType, TileType)) or not dtype_of(value.type).is_float:
        raise SourceError("TS703", "divisor takes a float, or a tile of floats")
    if isinstance(value.type, ScalarType):
        return (ScalarType(f32),)
    return (TileType(value.type.shape, f32, value.type.layout),)


def _inverse(op: Op, a: np.ndarray) -> np.ndarray:
    wide = a.astype(np.float32)
    with np.errstate(all="ignore"):
        return np.where((wide >= LEAST) & (wide <= MOST), np.float32(1) / wide, np.float32(0)).astype(np.float32)


define(
    "divisor",
    "a",
    _divisor_type,
    "1 / a, correctly rounded, for an a from 2^-30 to 2^30, and 0 for any other",
    PURE,
    ELEMENTWISE,
    levels=frozenset((TARGET,)),
    evaluate=_inverse,
    bound=lambda op, a: Bar(_inverse(op, a.r).astype(np.float64), np.zeros_like(a.e)),
    lower=Lowering(expression="ts_divisor({0})"),
    takes=frozenset(("float",)),
)


def _quotient_type(op: Op) -> tuple[Type, ...]:
    a = op.operand("a")
    if not isinstance(a.type, TileType) or not a.type.dtype.is_float:
        raise SourceError("TS703", "div_by divides a tile of floats")
    for other in op.operands[1:]:
        if isinstance(other.type, TileType) and (other.type.shape, other.type.layout) != (a.type.shape, a.type.layout):
            raise SourceError("TS703", "div_by of tiles that differ in shape or layout")
    return (TileType(a.type.shape, result_dtype([value.type for value in op.operands[:2]]), a.type.layout),)


def _quotient(op: Op, *values: np.ndarray) -> np.ndarray:
    a, b, _ = align(op, values)
    with np.errstate(all="ignore"):
        return round_to(dtype_of(op.result.type), a.astype(np.float32) / b.astype(np.float32))


def _quotient_bound(op: Op, *values: Bar) -> Bar:
    a, b, _ = align(op, values)
    return bounds.divide(op, a, b)


define(
    "div_by",
    "a b inverse",
    _quotient_type,
    "a / b, of floats; `inverse` is the `divisor` of b",
    PURE,
    ELEMENTWISE,
    levels=frozenset((TARGET,)),
    evaluate=_quotient,
    bound=_quotient_bound,
    lower=Lowering(template="div_by"),
    takes=frozenset(("float",)),
)
