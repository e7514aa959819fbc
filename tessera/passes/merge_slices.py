"""Merge what is computed slice by slice and concatenated into one computation on the whole.

A concatenation along an axis moves up through ops that treat each place of the axis alike (elementwise ops, products
along their rows, reductions along other axes, moves that keep the axis) until it meets the slices: adjacent parts of
one tensor, whose concatenation is a part of that tensor, or all of it. Each element is computed from the same numbers
by the same ops as before, so no bit changes. The work is linear in the number of ops.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.dead_code import drop_unused
from tessera.ir.opdef import ELEMENTWISE, PURE, REDUCTION, SCAN
from tessera.ir.placement import PLACEMENT_OPS
from tessera.ir.types import TileType, dtype_of, shape_of

# Values of one shape but for their size along an axis: what is concatenated along it.
Slices = tuple[Value, ...]
Request = tuple[Slices, int]
# A rule asks for what some slices are when joined and gets it, or None; it returns its own value in the same way.
Joining = Generator[Request, "Value | None", "Value | None"]


def merge_slices(function: Kernel) -> Kernel:
    """Exact. A concatenation whose parts are computed in different ways stays as it is."""
    new, builder, mapping = new_kernel_like(function)
    _Merger(builder, mapping, {}).block(function.body)
    drop_unused(new.body)
    return new


class _Merger:
    """Copies one block; slices are values of the copy, so what is merged already may merge again.

    `numbers`: equal numbers are equal values; those of pure ops come from their operands.
    """

    def __init__(self, builder: Builder, mapping: Mapping, numbers: dict[Any, int]) -> None:
        self.builder, self.mapping, self.numbers = builder, mapping, numbers
        self.done: dict[Request, Value | None] = {}

    def block(self, block: Block) -> None:
        for op in block.ops:
            self.builder.at(op)
            if op.regions:
                clone_with_regions(self.builder, op, self.mapping, self._region)
                continue
            if op.name == "concatenate":
                axis = op.attributes["axis"] % len(shape_of(op.result.type))
                joined = self.joined((tuple(self.mapping[value] for value in op.operands), axis))
                if joined is not None and joined.type == op.result.type:
                    self.mapping[op.result] = joined
                    joined.name = joined.name or op.result.name
                    continue
            clone_op(self.builder, op, self.mapping)

    def _region(self, block: Block, builder: Builder) -> None:
        _Merger(builder, self.mapping, self.numbers).block(block)

    def joined(self, request: Request) -> Value | None:
        """The concatenation of slices as a new value; None where they do not merge. Not recursive: graphs are deep."""
        stack: list[tuple[Request, Joining]] = [(request, self._join(*request))]
        answer: Value | None = None
        while stack:
            asked, rule = stack[-1]
            try:
                wanted = rule.send(answer)
            except StopIteration as finished:
                answer = self.done[asked] = finished.value
                stack.pop()
                continue
            if wanted in self.done:
                answer = self.done[wanted]
            else:
                stack.append((wanted, self._join(*wanted)))
                answer = None
        return answer

    # -- what slices have in common

    def number(self, value: Value) -> int:
        """The same for values that are equal because the same ops compute them from equal values."""
        pending = [value]
        while pending:
            current = pending[-1]
            if current in self.numbers:
                pending.pop()
                continue
            op = current.defining_op
            if op is None or op.regions or not op.definition.has(PURE):
                key: Any = (current,)
            else:
                missing = [operand for operand in op.operands if operand not in self.numbers]
                if missing:
                    pending += missing
                    continue
                key = (op.name, tuple(self.numbers[operand] for operand in op.operands), repr(op.attributes))
            self.numbers[current] = self.numbers.setdefault(key, len(self.numbers))
            pending.pop()
        return self.numbers[value]

    def same(self, values: Iterable[Value]) -> bool:
        return len({self.number(value) for value in values}) == 1

    def _join(self, slices: Slices, axis: int) -> Joining:
        ops = [op for value in slices if (op := value.defining_op) is not None]
        shapes = [shape_of(value.type) for value in slices]
        alike = len({(_without(shape, axis), dtype_of(v.type)) for shape, v in zip(shapes, slices, strict=True)}) == 1
        if len(ops) != len(slices) or not alike or any(op.regions or not op.definition.has(PURE) for op in ops):
            return None
        names = {op.name for op in ops}
        if names - {"broadcast"} and "broadcast" in names:
            names = {"broadcast"}  # a slice of size 1 may lack the broadcast that the others have
        if len(names) != 1:
            return None
        (name,) = names
        rule = _RULES.get(name)
        if rule is None:
            definition = ops[0].definition
            if definition.has(ELEMENTWISE):
                rule = _Merger._elementwise
            elif definition.has(REDUCTION) or definition.has(SCAN):
                rule = _Merger._along_an_axis
            else:
                return None
        return (yield from rule(self, ops, slices, axis))

    def _make(self, ops: list[Op], *operands: Value, **changed: Any) -> Value:
        """The op that all slices share, on the whole."""
        origin, first = self.builder.origin, ops[0]
        value = self.builder.at(*ops).value(
            first.name, *operands, hint=first.result.name, **{**first.attributes, **changed}
        )
        self.builder.origin = origin
        return value

    # -- rules

    def _elementwise(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if not _equal(op.attributes for op in ops):
            return None
        operands: list[Value] = []
        for column in zip(*(op.operands for op in ops), strict=True):
            tiles = {isinstance(value.type, TileType) for value in column}
            if tiles == {True}:
                whole = yield column, axis
                if whole is None:
                    return None
                operands.append(whole)
            elif tiles == {False} and self.same(column):
                operands.append(column[0])
            else:
                return None
        return self._make(ops, *operands)

    def _placement(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if ops[0].attributes.get("axis") == axis:  # parts of a slice are no parts of the whole
            return None
        return (yield from self._elementwise(ops, slices, axis))

    def _along_an_axis(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if ops[0].attributes["axis"] % len(shape_of(slices[0].type)) == axis or not _equal(op.attributes for op in ops):
            return None
        whole = yield _first_operands(ops), axis
        return None if whole is None else self._make(ops, whole)

    def _matmul(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if not _equal(op.attributes for op in ops):
            return None
        left, right = _first_operands(ops), tuple(op.operands[1] for op in ops)
        rank, rank_of_right = len(shape_of(slices[0].type)), len(shape_of(right[0].type))
        if len({len(shape_of(value.type)) for value in right}) != 1:
            return None
        if axis == rank - 1:  # columns
            a = left[0] if self.same(left) else None
            b = (yield right, rank_of_right - 1) if a is not None else None
        else:
            a = yield left, axis
            if axis < rank - 2 and rank_of_right > 2:
                b = (yield right, axis) if a is not None else None
            else:
                b = right[0] if self.same(right) else None
        return None if a is None or b is None else self._make(ops, a, b)

    def _permute(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if not _equal(op.attributes for op in ops):
            return None
        whole = yield _first_operands(ops), ops[0].attributes["permutation"][axis]
        return None if whole is None else self._make(ops, whole)

    def _reshape(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        """An axis of the operand with as many elements before it as `axis` has in the result holds the same runs."""
        sources = _first_operands(ops)
        source, shape = shape_of(sources[0].type), shape_of(slices[0].type)
        before = _product(shape[:axis])
        places = [place for place in range(len(source)) if _product(source[:place]) == before]
        places.sort(key=lambda place: (source[place] != shape[axis], source[place] == 1))
        for place in places:
            whole = yield sources, place
            if whole is not None:
                return self._make(ops, whole, shape=_resized(slices, axis))
        return None

    def _broadcast(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        sources = tuple(
            op.operands[0] if op.name == "broadcast" else value for op, value in zip(ops, slices, strict=True)
        )
        if len({len(shape_of(value.type)) for value in sources}) != 1:
            return None
        sizes = [shape_of(value.type)[axis] for value in sources]
        made = [op for op in ops if op.name == "broadcast"]
        if all(size == 1 for size in sizes) and self.same(sources):
            return self._make(made, sources[0], shape=_resized(slices, axis))
        if any(size != shape_of(value.type)[axis] for size, value in zip(sizes, slices, strict=True)):
            return None
        whole = yield sources, axis
        return None if whole is None else self._make(made, whole, shape=_resized(slices, axis))

    def _full(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if not self.same(_first_operands(ops)):
            return None
        return self._make(ops, ops[0].operands[0], shape=_resized(slices, axis))
        yield  # a rule is a generator

    def _iota(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        if not _equal(op.attributes["axis"] % len(shape_of(slices[0].type)) for op in ops):
            return None
        if ops[0].attributes["axis"] % len(shape_of(slices[0].type)) == axis:
            return None
        return self._make(ops, shape=_resized(slices, axis))
        yield

    def _concatenate(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        along = {op.attributes["axis"] % len(shape_of(slices[0].type)) for op in ops}
        if len(along) != 1 or axis in along or len({len(op.operands) for op in ops}) != 1:
            return None
        parts: list[Value] = []
        for column in zip(*(op.operands for op in ops), strict=True):
            whole = yield column, axis
            if whole is None:
                return None
            parts.append(whole)
        return self._make(ops, *parts)

    def _extract(self, ops: list[Op], slices: Slices, axis: int) -> Joining:
        starts, extents = ([tuple(op.attributes[name]) for op in ops] for name in ("starts", "extents"))
        sources = _first_operands(ops)
        if not _equal(_without(start, axis) for start in starts):
            return None
        if self.same(sources):
            ends = [start[axis] + extent[axis] for start, extent in zip(starts, extents, strict=True)]
            if any(end != start[axis] for end, start in zip(ends, starts[1:], strict=False)):
                return None
            whole, begin = sources[0], starts[0]
        else:
            sizes = [shape_of(value.type)[axis] for value in sources]
            if any(s[axis] != 0 or e[axis] != size for s, e, size in zip(starts, extents, sizes, strict=True)):
                return None
            joined = yield sources, axis
            if joined is None:
                return None
            whole, begin = joined, starts[0]
        shape = _resized(slices, axis)
        return whole if shape_of(whole.type) == shape else self._make(ops, whole, starts=begin, extents=shape)


Rule = Callable[[_Merger, list[Op], Slices, int], Joining]
_RULES: dict[str, Rule] = {
    "matmul": _Merger._matmul,
    "permute": _Merger._permute,
    "reshape": _Merger._reshape,
    "broadcast": _Merger._broadcast,
    "full": _Merger._full,
    "iota": _Merger._iota,
    "concatenate": _Merger._concatenate,
    "extract": _Merger._extract,
    **dict.fromkeys(PLACEMENT_OPS, _Merger._placement),
}


def _first_operands(ops: list[Op]) -> Slices:
    return tuple(op.operands[0] for op in ops)


def _resized(slices: Slices, axis: int) -> tuple[Any, ...]:
    """The shape of the whole."""
    shape: tuple[Any, ...] = shape_of(slices[0].type)
    total: Any = 0
    for value in slices:
        total = total + shape_of(value.type)[axis]
    return (*shape[:axis], total, *shape[axis + 1 :])


def _without(sizes: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (*sizes[:axis], *sizes[axis + 1 :])


def _product(sizes: Iterable[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _equal(things: Iterable[Any]) -> bool:
    """Whether all are one; by their text, in which 0.0 is not -0.0 and 1 not True."""
    return len({repr(thing) for thing in things}) == 1


__all__ = ["merge_slices"]
