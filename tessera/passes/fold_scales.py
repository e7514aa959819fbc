"""Multiplies what scales the argument of a sigmoid into the constant that its exponential begins with.

    %x = mul %a, %s
    %y = sigmoid %x          ->     %y = scaled_sigmoid %a, %s

2^(-log2(e) s a) takes one product an element for two, as s is a number that all elements share. Only for a scale of
which it is known that no product with it overflows or loses digits where the author's does not. Exact: the number
that is meant is the same.
"""

from __future__ import annotations

import math

from tessera.dtypes import f32
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    clone_op,
    clone_with_regions,
    new_kernel_like,
    uses,
)
from tessera.ir.opdef import CONSTANT
from tessera.ir.ops.scaled import LEAST, MOST
from tessera.ir.ranges import Ranges
from tessera.ir.types import ScalarType, TileType, dtype_of

Interval = tuple[float, float]


def fold_scales(kernel: Kernel) -> Kernel:
    if not any(op.name == "sigmoid" for op in kernel.body.walk()):
        return kernel
    found = _Scales(kernel)
    if not any(found.parts(op) is not None for op in kernel.body.walk()):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping, found)
    return new


def _copy(block: Block, builder: Builder, mapping: Mapping, found: _Scales) -> None:
    for op in block.ops:
        builder.at(op)
        parts = found.parts(op)
        if parts is not None:
            operands = [mapping[value] for value in parts]
            mapping[op.result] = builder.value("scaled_sigmoid", *operands, hint=op.result.name)
        elif op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, found))
        else:
            clone_op(builder, op, mapping)


class _Scales:
    def __init__(self, kernel: Kernel) -> None:
        self.used, self.ranges = uses(kernel.body), Ranges(kernel)

    def parts(self, op: Op) -> tuple[Value, Value] | None:
        """The tile and the number whose product a sigmoid takes, where nothing else does."""
        product = op.operands[0].defining_op if op.name == "sigmoid" else None
        if product is None or product.name != "mul" or len(self.used[product.result]) != 1:
            return None
        a, scale = sorted(product.operands, key=lambda value: isinstance(value.type, ScalarType))
        if not isinstance(a.type, TileType) or not isinstance(scale.type, ScalarType):
            return None
        if any(dtype_of(value.type) != f32 for value in (a, scale, product.result, op.result)):
            return None
        low, high = self.interval(scale)
        ends = sorted((abs(low), abs(high)))
        return (a, scale) if low * high > 0 and LEAST <= ends[0] and ends[1] <= MOST else None

    def interval(self, value: Value) -> Interval:
        """Where a number lies, but for the roundings of f32."""
        op = value.defining_op
        if dtype_of(value.type).is_int:
            low, high = self.ranges.interval(value)
            return (-math.inf if low is None else low, math.inf if high is None else high)
        if op is None:
            return -math.inf, math.inf
        if op.definition.has(CONSTANT):
            return float(op.attributes["value"]), float(op.attributes["value"])
        rule = _RULES.get(op.name)
        return (-math.inf, math.inf) if rule is None else rule(*map(self.interval, op.operands))


def _products(a: Interval, b: Interval) -> Interval:
    ends = [x * y for x in a for y in b]
    return (-math.inf, math.inf) if any(map(math.isnan, ends)) else (min(ends), max(ends))


def _power(x: float) -> float:
    """e to the x, beyond f32's range as far as that matters here."""
    return math.exp(min(max(x, -700.0), 700.0))


_RULES = {
    "cast": lambda a: a,
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _products,
    "exp": lambda a: (_power(a[0]), _power(a[1])),
}
