"""Numbers of a kernel as the programs of one wave compute them: window offsets, loop bounds, conditions.

What a program computes from its id is an array over the programs, so that the windows that they share can be counted.
A loop's index has the value of its first iteration unless the caller gives it another one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tessera.ir.core import Op, Value
from tessera.ir.dims import Size, evaluate
from tessera.ir.opdef import CONSTANT, COUNTED
from tessera.ir.types import ScalarType

Number = int | np.ndarray | None  # None: known only when the kernel runs

MOST_ITERATIONS = 64  # of a loop, for which a condition inside is evaluated one by one

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "cast": lambda a: a,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "min": np.minimum,
    "max": np.maximum,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


class Scalars:
    """`grid`: programs by axis; `count`: how many of them, from the first on, the arrays stand for."""

    def __init__(self, dims: Mapping[str, int], grid: Sequence[int], count: int) -> None:
        self.dims = dims
        self.count = count
        self.ids = []
        rest = np.arange(count, dtype=np.int64)
        for extent in (*grid, 1, 1)[:3]:
            self.ids.append(rest % extent)
            rest = rest // extent
        self.grid = (*grid, 1, 1)[:3]
        self.indices: dict[Value, Op] = {}  # of the loops that were entered
        self._known: dict[Value, Number] = {}
        self._behind: dict[Value, frozenset[Value]] = {}

    def enter(self, loop: Op) -> int | None:
        """Goes into a counted loop: its number of iterations, the mean over the programs; None where unknown."""
        lower, upper, step = (self.value(operand) for operand in loop.operands[:3])
        index = loop.regions[0].arguments[0]
        self.indices[index] = loop
        self._known[index] = lower
        if lower is None or upper is None or step is None or np.any(np.equal(step, 0)):
            self._known[index] = None
            return None
        return max(0, int(np.ceil(np.mean(-((lower - upper) // step)))))

    def trips_by_program(self, loop: Op, index: Value, total: int) -> np.ndarray | None:
        """Iterations of `loop` in each of the `total` programs that a persistent loop goes through, whose number is
        `index`; None where they are the same in all, or not known.
        """
        bounds = loop.operands[:3]
        if not any(index in self.behind(bound) for bound in bounds):
            return None
        lower, upper, step = (self.value(bound, {index: np.arange(total)}) for bound in bounds)
        if lower is None or upper is None or step is None or np.any(np.equal(step, 0)):
            return None
        found = np.maximum(0, -((lower - upper) // step))
        return found if isinstance(found, np.ndarray) and found.shape == (total,) else None

    def value(self, value: Value, given: Mapping[Value, Number] | None = None) -> Number:
        """The number that a scalar is; with `given` in the place of what it is computed from."""
        known = dict(given) if given else self._known
        return self._value(value, known)

    def _value(self, value: Value, known: dict[Value, Number]) -> Number:
        if value not in known:
            known[value] = self._computed(value, known)
        return known[value]

    def _computed(self, value: Value, known: dict[Value, Number]) -> Number:
        op = value.defining_op
        if op is None:
            return self._known.get(value)  # an index, or what a loop carries
        if op.definition.has(CONSTANT):
            number = op.attributes["value"]
            return number if isinstance(number, int) else None
        if op.name == "size":
            return self._size(op.attributes["size"])
        if op.name == "program_id":
            return self.ids[op.attributes["axis"]] * op.attributes["scale"]
        if op.name == "num_programs":
            return self.grid[op.attributes["axis"]]
        if op.name not in _ARITHMETIC or not isinstance(value.type, ScalarType):
            return None
        numbers = [n for operand in op.operands if (n := self._value(operand, known)) is not None]
        if len(numbers) < len(op.operands):
            return None
        if op.name in ("floordiv", "mod") and np.any(np.equal(numbers[1], 0)):
            return None
        return _ARITHMETIC[op.name](*numbers)

    def _size(self, size: Size) -> int | None:
        try:
            return evaluate(size, self.dims)
        except KeyError:  # a stride, or the size of an axis that no dim names
            return None

    def behind(self, value: Value) -> frozenset[Value]:
        """The loop indices, and other arguments of regions, that a scalar is computed from."""
        if value not in self._behind:
            op = value.defining_op
            if op is None:
                found = frozenset((value,))
            else:
                found = frozenset[Value]().union(*(self.behind(operand) for operand in op.operands))
            self._behind[value] = found
        return self._behind[value]

    def share(self, condition: Value) -> float:
        """How often a condition holds: over the programs, and over the iterations of the innermost loop behind it.

        1 where it cannot be known: what a guard guards is what usually runs.
        """
        indices = [index for index in self.indices if index in self.behind(condition)]
        held = [self._holds(condition, given) for given in self._iterations(indices[-1] if indices else None)]
        known = [share for share in held if share is not None]
        return sum(known) / len(known) if known and any(known) else 1.0

    def _iterations(self, index: Value | None) -> list[dict[Value, Number]]:
        if index is None:
            return [{}]
        bounds = [self.value(operand) for operand in self.indices[index].operands[:3]]
        numbers = [bound for bound in bounds if isinstance(bound, int)]
        if len(numbers) < 3 or not 0 < len(range(*numbers)) <= MOST_ITERATIONS:
            return [{}]
        return [{index: number} for number in range(*numbers)]

    def _holds(self, condition: Value, given: dict[Value, Number]) -> float | None:
        found = self.value(condition, given)
        return None if found is None else float(np.mean(found))


def trips(scalars: Scalars, loop: Op, otherwise: int) -> int:
    """The iterations of a loop that is entered now: `otherwise` where only the run knows."""
    found = scalars.enter(loop) if loop.definition.has(COUNTED) else None
    return otherwise if found is None else found


__all__ = ["Number", "Scalars", "trips"]
