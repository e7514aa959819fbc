"""Sums over lists that a function unrolls, found again as loops: code of one iteration serves all of them.

A chain is T_1 .. T_n, where each T_k is computed from T_(k-1) by the same ops: what differs are tensors in memory,
which become the elements of lists, integers in arithmetic progression, and where windows begin. The last iteration is
the template. A sum that begins with its first term begins with -0 instead, to which adding anything changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.dtypes import f32
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import CONSTANT
from tessera.ir.types import ScalarType, TileType, dtype_of
from tessera.passes.graph_groups import is_lazy, is_scalar_op

LEAST = 2  # iterations of a loop


@dataclass(eq=False)
class Chain:
    """`values`: T_0 .. T_n, where T_0 is None for -0. `iterations`: for each, by the value of the template, its own
    value; the template's are the last. `members`: the ops of all iterations but those made where they are needed.
    """

    values: list[Value | None]
    iterations: list[dict[Value, Value]]
    members: set[Op]

    @property
    def template(self) -> dict[Value, Value]:
        return self.iterations[-1]

    @property
    def carried(self) -> Value:
        """What the template takes of the iteration before it."""
        value = self.values[-2]
        assert value is not None
        return value

    @property
    def result(self) -> Value:
        value = self.values[-1]
        assert value is not None
        return value

    def ops(self, order: Sequence[Op]) -> list[Op]:
        """The ops of the template that are in a kernel."""
        return [op for op in order if any(result in self.template for result in op.results)]

    def differing(self, value: Value) -> list[Value]:
        """What a value of the template is in each iteration; empty where it is the same in all."""
        found = [iteration.get(value, value) for iteration in self.iterations]
        return [] if all(one is value for one in found) else found


def progression(numbers: Sequence[Size]) -> tuple[int, int] | None:
    """First term and difference of integers in arithmetic progression."""
    known = [number for number in numbers if isinstance(number, int)]
    if len(known) != len(numbers):
        return None
    step = known[1] - known[0] if len(known) > 1 else 0
    return (known[0], step) if all(n == known[0] + i * step for i, n in enumerate(known)) else None


def find_chain(ops: Sequence[Op], used: dict[Value, list[Op]], outputs: Sequence[Value]) -> Chain | None:
    """The chain of a kernel that covers the most products, two at least, in the most iterations.

    `used`: by value, the ops that use it.
    """
    inside = set(ops)
    if sum(op.name == "matmul" for op in ops) < LEAST:
        return None
    best: Chain | None = None
    for last in reversed(ops):
        if len(last.results) != 1 or not isinstance(last.result.type, TileType) or is_lazy(last):
            continue
        if best is not None and last in best.members:
            continue
        before = [op.result for op in ops[: ops.index(last)] if op.name == last.name and len(op.results) == 1]
        for value in dict.fromkeys((*before, *(last.operands if last.name == "add" else ()))):
            if value.type == last.result.type:
                chain = _chain(last.result, value, inside)
                if chain is not None and _alone(chain, used, outputs) and _worth(chain) > _worth(best):
                    best = chain
    return best


def _worth(chain: Chain | None) -> tuple[int, int]:
    """How many products a loop covers, and in how many iterations."""
    if chain is None:
        return (1, 0)
    return sum(op.name == "matmul" for op in chain.members), len(chain.iterations)


def _chain(last: Value, before: Value, inside: set[Op]) -> Chain | None:
    """The longest chain that ends with `before`, `last`."""
    values: list[Value | None] = [last, before]
    found: list[dict[Value, Value]] = []
    current = before
    while (match := _Match(before, inside)).equal(last, current) and match.taken is not None:
        found.append(match.pairs)
        values.append(current := match.taken)
    begin = _first_term(last, before, current, inside)
    if begin is not None:
        found.append(begin)
        values.append(None)
    if len(found) + 1 < LEAST:
        return None
    names = {value for pairs in found for value in pairs}
    iterations = [{value: pairs.get(value, value) for value in names} for pairs in (*reversed(found), {})]
    members = {
        op
        for iteration in iterations
        for value in iteration.values()
        if (op := value.defining_op) is not None and op in inside and not is_lazy(op)
    }
    chain = Chain(values[::-1], iterations, members)
    return chain if _apart(chain) else None


def _first_term(last: Value, before: Value, first: Value, inside: set[Op]) -> dict[Value, Value] | None:
    """The pairs of an iteration that adds `first` to -0, where that is what the template adds to what it carries."""
    op = last.defining_op
    if op is None or op.name != "add" or dtype_of(last.type) != f32 or before not in op.operands:
        return None
    if dtype_of(before.type) != f32 or len(set(op.operands)) != 2:
        return None
    (term,) = [value for value in op.operands if value is not before]
    match = _Match(None, inside)
    return {**match.pairs, last: first} if match.equal(term, first) else None


class _Match:
    """Compares the template with another iteration: `pairs` says what the template's values are there, and `taken` what
    it carries in the place of `before`.
    """

    def __init__(self, before: Value | None, inside: set[Op]) -> None:
        self.before, self.inside = before, inside
        self.pairs: dict[Value, Value] = {}
        self.taken: Value | None = None

    def equal(self, value: Value, other: Value) -> bool:
        pending = [(value, other)]
        while pending:
            value, other = pending.pop()
            if value is self.before:
                if self.taken not in (None, other) or other.type != value.type:
                    return False
                self.taken = other
                continue
            if value is other:
                continue
            if value in self.pairs:
                if self.pairs[value] is not other:
                    return False
                continue
            self.pairs[value] = other
            a, b = value.defining_op, other.defining_op
            if self._leaf(value, a) and self._leaf(other, b):
                if isinstance(value.type, ScalarType) or value.type != other.type:
                    return False
                continue
            if a is None or b is None or not self._alike(a, b):
                return False
            pending += zip(a.operands, b.operands, strict=True)
        return True

    def _leaf(self, value: Value, op: Op | None) -> bool:
        """Whether a kernel takes a value from outside: a tensor in memory or a parameter."""
        return op is None or op not in self.inside and not is_scalar_op(op)

    def _alike(self, a: Op, b: Op) -> bool:
        if a.name != b.name or len(a.operands) != len(b.operands):
            return False
        if [r.type for r in a.results] != [r.type for r in b.results]:
            return False
        differ = {name for name, value in a.attributes.items() if b.attributes[name] != value}
        if differ and a.definition.has(CONSTANT):
            whole = all(isinstance(op.attributes["value"], int) for op in (a, b))
            return differ <= {"value"} and whole and dtype_of(a.result.type).is_int
        return differ <= ({"starts"} if a.name == "extract" else set())


def _apart(chain: Chain) -> bool:
    """Whether iterations share no op, and what differs in numbers is a progression."""
    seen: set[Op] = set()
    for iteration in chain.iterations:
        ops = {op for value in iteration.values() if (op := value.defining_op) in chain.members and op is not None}
        if ops & seen:
            return False
        seen |= ops
    for value in chain.template:
        op, ops = value.defining_op, [one.defining_op for one in chain.differing(value)]
        if op is None or not ops:
            continue
        if op.name == "extract":
            starts = zip(*(each.attributes["starts"] for each in ops if each is not None), strict=True)
            if any(len(set(axis)) > 1 and progression(axis) is None for axis in starts):
                return False
        if op.definition.has(CONSTANT):
            numbers = [each.attributes["value"] for each in ops if each is not None]
            if len(set(numbers)) > 1 and progression(numbers) is None:
                return False
    return True


def _alone(chain: Chain, used: dict[Value, list[Op]], outputs: Sequence[Value]) -> bool:
    """Whether nothing but the iterations needs what they compute, except for the last result."""
    for number, iteration in enumerate(chain.iterations):
        after = chain.iterations[number + 1] if number + 1 < len(chain.iterations) else {}
        own = {value.defining_op for value in iteration.values()}
        others = {value.defining_op for value in after.values()}
        total = chain.values[number + 1]
        for value in iteration.values():
            op = value.defining_op
            if op not in chain.members or value is chain.result:
                continue
            allowed = own | others if value is total else own
            if value in outputs or any(user not in allowed for user in used.get(value, [])):
                return False
    return True


__all__ = ["Chain", "find_chain", "progression"]
