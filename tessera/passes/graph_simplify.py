"""Simplify Graph IR without changing a bit of any result: merge equal ops, undo moves that undo one another, drop what
nothing uses; and two passes that take the structure away that later stages do not need, scopes and placement.

Rules look at one op and its simplified operands, and build through the simplifier again, so one forward sweep does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tessera.dtypes import DType, f32, promote
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_with_regions, new_kernel_like
from tessera.ir.dead_code import drop_unused, unused_notes
from tessera.ir.opdef import PURE
from tessera.ir.placement import PLACEMENT_OPS
from tessera.ir.types import TileType, dtype_of, shape_of

MAX_TERMS = 128  # stacked tensors whose sum becomes additions: a kernel reads each of them

Rule = Callable[["Simplifier", list[Value], dict[str, Any]], "Value | None"]


def simplify(function: Kernel) -> Kernel:
    """Exact. Tensors with a name that nothing uses are dropped with a note in the attribute `notes`."""
    new, builder, mapping = new_kernel_like(function)
    Simplifier(builder, mapping).block(function.body)
    notes = unused_notes(drop_unused(new.body), new.body)
    known = new.attributes.get("notes", ())
    added = tuple(note for note in notes if note not in known)
    if added:
        new.attributes["notes"] = (*known, *added)
    return new


def inline_scopes(function: Kernel) -> Kernel:
    """Puts the ops of `checkpoint` regions in their place: what a forward pass runs."""
    new, builder, mapping = new_kernel_like(function)

    def copy(block: Block) -> None:
        for op in block.ops:
            if op.name == "checkpoint":
                *_, end = op.regions[0].ops
                copy(Block([], op.regions[0].ops[:-1]))
                for result, value in zip(op.results, end.operands, strict=True):
                    mapping[result] = mapping[value]
            else:
                _copy(op, builder, mapping)

    copy(function.body)
    return new


def drop_placement(function: Kernel) -> Kernel:
    """Takes away `shard`, `own`, `all_gather` and `prefetch`: what one device runs."""
    new, builder, mapping = new_kernel_like(function)

    def fill(block: Block, builder: Builder) -> None:
        for op in block.ops:
            if op.name in PLACEMENT_OPS:
                mapping[op.result] = mapping[op.operands[0]]
            elif op.regions:
                clone_with_regions(builder.at(op), op, mapping, fill)
            else:
                _copy(op, builder, mapping)

    fill(function.body, builder)
    return new


def _copy(op: Op, builder: Builder, mapping: Mapping) -> None:
    names = [result.name for result in op.results]
    copy = builder.at(op).op(op.name, [mapping[v] for v in op.operands], op.regions, names, **op.attributes)
    mapping.update(zip(op.results, copy.results, strict=True))


class Simplifier:
    """One forward sweep. Ops of a region are merged with one another only: what is inside stays inside."""

    def __init__(self, builder: Builder, mapping: Mapping) -> None:
        self.builder, self.mapping = builder, mapping
        self.available: dict[Any, Value] = {}
        self.hint = ""

    def block(self, block: Block) -> None:
        for op in block.ops:
            self.builder.at(op)
            if op.regions:
                clone_with_regions(self.builder, op, self.mapping, self._region)
                continue
            operands = [self.mapping[value] for value in op.operands]
            names = [result.name for result in op.results]
            if len(op.results) == 1 and op.definition.has(PURE):
                self.hint = names[0]
                self.mapping[op.result] = self.make(op.name, *operands, **op.attributes)
                continue
            copy = self.builder.op(op.name, operands, (), names, **op.attributes)
            self.mapping.update(zip(op.results, copy.results, strict=True))

    def _region(self, block: Block, builder: Builder) -> None:
        Simplifier(builder, self.mapping).block(block)

    def make(self, name: str, *operands: Value, **attributes: Any) -> Value:
        """The value of a pure op: a simpler one that is the same, one that exists, or a new op's."""
        rule = _RULES.get(name)
        simpler = rule(self, list(operands), attributes) if rule is not None else None
        if simpler is not None:
            return simpler
        key = (name, tuple(map(id, operands)), repr(attributes))
        if key not in self.available:
            self.available[key] = self.builder.value(name, *operands, hint=self.hint, **attributes)
        return self.available[key]

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        return self.make("reshape", value, shape=tuple(shape), layout=None)

    def cast(self, value: Value, dtype: DType) -> Value:
        """`value` in another dtype, by a rounding that may be skipped."""
        return self.make("cast", value, dtype=dtype, implicit=True)


# -- rules: a simpler value of the op, or None


def _producer(value: Value, name: str) -> Op | None:
    op = value.defining_op
    return op if op is not None and op.name == name else None


def _cast(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    if not isinstance(value.type, TileType):
        return None
    dtype, implicit = attributes["dtype"], attributes["implicit"]
    if dtype == value.type.dtype and not dtype.saturates:
        # An explicit cast makes sure that a rounding takes place, which after another explicit one it has.
        if implicit or not dtype.is_float or value.defining_op is None or _is_explicit(value):
            return value
        inner = _producer(value, "cast")
        return made.make("cast", inner.operands[0], dtype=dtype, implicit=False) if inner is not None else None
    inner = _producer(value, "cast")
    if inner is None:
        return None
    source = inner.operands[0]
    if not isinstance(source.type, TileType) or not _holds(value.type.dtype, source.type.dtype):
        return None
    if dtype == source.type.dtype and dtype.saturates:
        return None  # infinity becomes the largest value
    return made.make("cast", source, dtype=dtype, implicit=implicit)


def _is_explicit(value: Value) -> bool:
    op = _producer(value, "cast")
    return op is not None and not op.attributes["implicit"]


def _holds(wide: DType, narrow: DType) -> bool:
    """Whether `wide` is another dtype that has every value of `narrow`."""
    same_kind = wide.is_float and narrow.is_float or wide.is_int and narrow.is_int
    return same_kind and wide != narrow and promote(wide, narrow) == wide


def _reshape(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    if shape_of(value.type) == tuple(attributes["shape"]):
        return value
    inner = _producer(value, "reshape")
    return made.reshape(inner.operands[0], attributes["shape"]) if inner is not None else None


def _broadcast(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    if shape_of(value.type) == tuple(attributes["shape"]):
        return value
    inner = _producer(value, "broadcast")
    return made.make("broadcast", inner.operands[0], **attributes) if inner is not None else None


def _permute(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    order = tuple(attributes["permutation"])
    if order == tuple(range(len(order))):
        return value
    inner = _producer(value, "permute")
    if inner is None:
        return None
    return made.make(
        "permute", inner.operands[0], permutation=tuple(inner.attributes["permutation"][axis] for axis in order)
    )


def _extract(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    starts, extents = attributes["starts"], tuple(attributes["extents"])
    if extents == shape_of(value.type):
        return value
    part = _part_of_parts(made, value, tuple(starts), extents)
    if part is not None:
        return part
    inner = _producer(value, "extract")
    if inner is None:
        return None
    moved = tuple(start + more for start, more in zip(inner.attributes["starts"], starts, strict=True))
    return made.make("extract", inner.operands[0], starts=moved, extents=extents)


def _part_of_parts(made: Simplifier, value: Value, starts: Sequence[Any], extents: Sequence[Any]) -> Value | None:
    """A part of concatenated tensors, or of a cast of them, that is one of them."""
    cast = _producer(value, "cast")
    joined = _producer(cast.operands[0] if cast is not None else value, "concatenate")
    if joined is None:
        return None
    shape = shape_of(value.type)
    axis = joined.attributes["axis"] % len(shape)
    if any(starts[i] != 0 or extents[i] != shape[i] for i in range(len(shape)) if i != axis):
        return None
    offset: Any = 0
    for part in joined.operands:
        size = shape_of(part.type)[axis]
        if starts[axis] == offset and extents[axis] == size:
            return part if cast is None else made.make("cast", part, **cast.attributes)
        offset = offset + size
    return None


def _concatenate(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    if len(operands) == 1:
        return operands[0]
    rank = len(shape_of(operands[0].type))
    axis = attributes["axis"] % rank
    parts: list[Value] = []
    for value in operands:
        inner = _producer(value, "concatenate")
        flat = inner is not None and inner.attributes["axis"] % rank == axis
        parts += inner.operands if flat and inner is not None else [value]
    return made.make("concatenate", *parts, axis=axis) if len(parts) > len(operands) else None


def _reduce_extremum(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    (value,) = operands
    return value if shape_of(value.type)[attributes["axis"]] == 1 else None


def _reduce_sum(made: Simplifier, operands: list[Value], attributes: dict[str, Any]) -> Value | None:
    """The sum of stacked tensors as additions, in the order that a reduction has, and the 0 that it adds at last."""
    (value,) = operands
    shape, dtype = shape_of(value.type), dtype_of(value.type)
    axis = attributes["axis"] % len(shape)
    if not dtype.is_float:
        return value if shape[axis] == 1 and dtype.is_int else None
    parts = _stacked(value, axis)
    if parts is None or len(parts) > MAX_TERMS:
        return None
    rest = (*shape[:axis], *shape[axis + 1 :])
    terms = [made.cast(made.reshape(part, rest), f32) for part in parts]
    zero = made.make("constant", value=0.0, dtype=f32, weak=True)
    total = made.make("add", _pairs(made, terms), zero)
    return made.reshape(made.cast(total, dtype), (*rest[:axis], 1, *rest[axis:]))


def _stacked(value: Value, axis: int) -> list[Value] | None:
    """The tensors of size 1 along `axis` that a value consists of, also behind casts that lose nothing."""
    inner = _producer(value, "cast")
    while inner is not None and _holds(dtype_of(value.type), dtype_of(inner.operands[0].type)):
        value = inner.operands[0]
        inner = _producer(value, "cast")
    shape = shape_of(value.type)
    if shape[axis] == 1:
        return [value]
    op = _producer(value, "concatenate")
    if op is None or op.attributes["axis"] % len(shape) != axis:
        return None
    return op.operands if all(shape_of(part.type)[axis] == 1 for part in op.operands) else None


def _pairs(made: Simplifier, terms: list[Value]) -> Value:
    """Neighbours added, and their sums, until there is one; the last of an odd number waits."""
    while len(terms) > 1:
        sums = [made.make("add", *terms[i : i + 2]) for i in range(0, len(terms) - 1, 2)]
        terms = sums + terms[len(terms) - len(terms) % 2 :]
    return terms[0]


_RULES: dict[str, Rule] = {
    "cast": _cast,
    "reshape": _reshape,
    "broadcast": _broadcast,
    "permute": _permute,
    "extract": _extract,
    "concatenate": _concatenate,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_extremum,
    "reduce_min": _reduce_extremum,
}

__all__ = ["drop_placement", "inline_scopes", "simplify"]
