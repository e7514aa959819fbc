"""Names that a run-time loop assigns and that are used after it: what is the same in every iteration is moved out.

    for j in tile.range(n):
        start = tile.program_id(1) * 64
        ...
    tile.store(tile_, out[start : start + 64])

`start` does not depend on the iteration, so its ops go in front of the loop, and only when the name is asked for. It
then has its value after a loop of no iterations too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tessera.frontend.evaluator_values import RUN_TIME, Handle, Lost, is_number
from tessera.ir import dims
from tessera.ir.core import Block, Op, Value
from tessera.ir.dims import Dim
from tessera.ir.opdef import PURE


@dataclass(frozen=True)
class Assigned(Lost):
    """What a loop's `body`, a region of an op in `parent`, last assigned to a name."""

    value: Any = None
    body: Block | None = None
    parent: Block | None = None

    def moved_out(self) -> Any:
        """The value in `parent`, its ops moved in front of the loop; this itself where it depends on the iteration."""
        value = self.value.moved_out() if isinstance(self.value, Assigned) else self.value
        assert self.body is not None and self.parent is not None
        if is_number(value) or isinstance(value, Dim) and _is_static(value):
            return value
        if not isinstance(value, Handle):
            return self
        chain = _invariant_ops(_values_of(value), self.body)
        if chain is None:
            return self
        place = next(i for i, op in enumerate(self.parent.ops) if any(region is self.body for region in op.regions))
        self.body.ops[:] = [op for op in self.body.ops if op not in chain]
        self.parent.ops[place:place] = chain
        return _moved(value, self.body, self.parent)


def _is_static(size: Dim) -> bool:
    return not any(name.startswith(RUN_TIME) for name in dims.symbols(size))


def _values_of(handle: Handle) -> list[Value]:
    """The IR values that a handle refers to: its own, and the offsets of the window that it is."""
    offsets = handle.window.offsets if handle.window else ()
    return [handle.value, *(offset.value for offset in offsets if isinstance(offset, Handle))]


def _invariant_ops(values: list[Value], body: Block) -> list[Op] | None:
    """The ops of a loop's body that `values` are computed by, in order; None where one is not pure or varies.

    What is made outside of the body is the same in every iteration.
    """
    here = {result: op for op in body.ops for result in op.results}
    inside = {result for op in body.walk() for result in op.results}
    inside |= {argument for op in body.walk() for region in op.regions for argument in region.arguments}
    needed: set[Op] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        op = here.get(value)
        if op is None:
            if value in body.arguments or value in inside:
                return None
            continue
        if op.regions or not op.definition.has(PURE):
            return None
        if op not in needed:
            needed.add(op)
            pending += op.operands
    return [op for op in body.ops if op in needed]


def _moved(handle: Handle, body: Block, parent: Block) -> Handle:
    """The handle, and those in its window, as values of the outer region."""
    window = handle.window
    if window is not None:
        offsets = tuple(_moved(o, body, parent) if isinstance(o, Handle) else o for o in window.offsets)
        window = replace(window, offsets=offsets)
    return Handle(handle.value, parent if handle.block is body else handle.block, handle.size, window)
