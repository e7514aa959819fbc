"""One op of the table on its own: made by the builder, applied to arrays or bars."""

from __future__ import annotations

import numpy as np

from tessera.ir.bounds import Bar
from tessera.ir.core import Block, Builder, Op
from tessera.ir.opdef import lookup


def make(name, *types, **attributes) -> Op:
    block = Block()
    operands = [block.add_argument(type_, f"v{index}") for index, type_ in enumerate(types)]
    return Builder(block).op(name, operands, **attributes)


def evaluate(op: Op, *operands):
    """`evaluate` of the op on operands that have a leading program axis."""
    return lookup(op.name).evaluate(op, *operands)


def bar(r, e=0.0) -> Bar:
    r = np.asarray(r, np.float64)
    return Bar(r, np.broadcast_to(np.asarray(e, np.float64), r.shape).copy())


def bound(op: Op, *operands: Bar) -> Bar:
    return lookup(op.name).bound(op, *operands)
