"""Lists of tensors as the author sees them: Python sequences of known length, whose elements become ops when asked for.

`len`, iteration, `zip`, `enumerate` and slices are Python's own. An index that is known only at run time gives an
element too, because all tensors of a list have one shape and dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, TensorSequence, Window, describe, describe_type, plain
from tessera.ir import dims
from tessera.ir.affine import Cache, expression, loop_progression
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import Dim, Size
from tessera.ir.opdef import CONSTANT, COUNTED, ELEMENTWISE, PURE
from tessera.ir.ops.elementwise import result_dtype
from tessera.ir.types import ListType, ScalarType, ViewType


class TensorList(TensorSequence):
    """A list parameter. Elements come into being where they are taken, in the region that is open there."""

    def __init__(self, emit: Emitter, value: Value) -> None:
        assert isinstance(value.type, ListType)
        self._emit, self._value, self._type = emit, value, value.type

    @property
    def name(self) -> str:
        return self._value.name

    def __len__(self) -> int:
        return self._type.length

    def __iter__(self) -> Iterator[Handle]:
        return (self._element(self._emit.number(index, i64)) for index in range(len(self)))

    def __reversed__(self) -> Iterator[Handle]:
        return (self._element(self._emit.number(index, i64)) for index in reversed(range(len(self))))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self.at(index, str(index))

    def at(self, index: Any, text: str) -> Handle:
        """The element at an index, `text` in the author's words. Raises SourceError TS203, or TS504 outside."""
        index = plain(index)
        if isinstance(index, Handle) and index.is_view and not index.shape:
            index = self._emit.load(index)
        if isinstance(index, Handle) and index.is_int and type(index.size) is int:
            index = index.size  # a run-time integer whose value is known
        if isinstance(index, Dim):
            index = self._emit.concrete(index, text, "the index of a list is known at compile time or runs in a loop")
        if isinstance(index, Handle) and index.is_int:
            return self._element(index)
        if type(index) is not int:
            raise SourceError(
                "TS203",
                f"'{text}' is no index of the list '{self.name}': {describe(index)} where an integer is needed",
                self._emit.place,
            )
        if not -len(self) <= index < len(self):
            raise self.outside(index, text)
        return self._element(self._emit.number(index % len(self), i64))

    def outside(self, index: int, text: str) -> SourceError:
        shown = f"index {index}" if str(index) == text else f"index '{text}', which is {index},"
        return SourceError(
            "TS504", f"the {shown} is outside the list '{self.name}', whose length is {len(self)}", self._emit.place
        )

    def _element(self, index: Handle) -> Handle:
        element = self._emit.emit("element", self._value, index)
        shape = self._type.element.shape
        element.window = Window(element.value, (0,) * len(shape), shape, (True,) * len(shape))
        return element

    def __str__(self) -> str:
        return f"a list of {len(self)}, each {describe_type(self._type.element)}"

    def __repr__(self) -> str:
        return f"<list '{self.name}' of {len(self)} tensors>"


class NamedTensors(list[Any]):
    """The tensors of a list parameter of a function: a Python list that knows what the author calls it."""

    def __init__(self, items: Iterable[Any] = (), name: str = "") -> None:
        super().__init__(items)
        self.name = name

    def __getitem__(self, index: Any) -> Any:
        if type(index) is int and not -len(self) <= index < len(self):
            length = f"whose length is {len(self)}" if self else "which is empty"
            raise SourceError("TS504", f"index {index} is outside the list '{self.name}', {length}")
        return super().__getitem__(index)


def check_lengths(first: TensorList | NamedTensors, second: Any, text: str = "", how: str = "") -> None:
    """Raises SourceError TS308 unless two sequences that are used together are of one length."""
    if len(first) == len(second):
        return
    other = f"'{second.name}'" if isinstance(second, (TensorList, NamedTensors)) else f"'{text}'"
    raise SourceError(
        "TS308",
        f"'{first.name}' and {other} are used together{how}, but '{first.name}' has the length {len(first)} and "
        f"{other} {len(second)}",
        first._emit.place if isinstance(first, TensorList) else None,
    )


def check_zip(arguments: Sequence[Any], texts: Sequence[str]) -> None:
    """`zip` would stop at the shortest: of lists of tensors that is a mistake. Raises SourceError TS308."""
    lists = [value for value in arguments if isinstance(value, (TensorList, NamedTensors))]
    for first in lists[:1]:
        for value, text in zip(arguments, texts, strict=True):
            if hasattr(value, "__len__"):
                check_lengths(first, value, text, " in zip")


class SharedIndices:
    """Which lists the variables of the loops around a statement index: lists with one index must be equally long."""

    def __init__(self) -> None:
        self._first: dict[str, TensorList] = {}

    def use(self, name: str, tensors: TensorList) -> None:
        """Raises SourceError TS308 for the second of two lists of different lengths."""
        check_lengths(self._first.setdefault(name, tensors), tensors, how=f" with the index '{name}'")


def rolls(loop: Op, singles: Set[Value] = frozenset()) -> bool:
    """Whether a static loop may stay a loop: its index takes tensors from lists, and is else a number in arithmetic or
    the place of a single element.

    It decides about nothing inside, no tile starts at it, and no iteration hands a number made of it to the next. What
    it is computed into must be the same for a number known at compile time: Python's floats have 64 bits, so no float
    may be made of it, but for `singles`, which are computed in f32 either way; and no dtype may depend on it.
    """
    (body,) = loop.regions
    derived, lists = {body.arguments[0]}, False
    static = [loop, *(op for op in body.walk() if op.get("static"))]
    numbers = {each.regions[0].arguments[0] for each in static}  # what would be known at compile time
    for op in body.walk():
        if not any(value in derived for value in op.operands):
            continue
        if op.name == "element":
            lists = True
        elif op.name == "window":
            if any(op.attributes["kept"]):
                return False
        elif not (op.definition.has(PURE) and not op.regions):
            return False
        elif not _stays_the_same(op, numbers, singles):
            return False
        derived.update(result for result in op.results if isinstance(result.type, ScalarType))
    return lists


def _stays_the_same(op: Op, numbers: set[Value], singles: Set[Value]) -> bool:
    """Whether an op gives the same for an index that is known at compile time. Adds its result to `numbers` if that is
    a number then.
    """
    types = [value.type for value in op.operands]
    known = [value in numbers or _is_literal(value) for value in op.operands]
    if all(known) and isinstance(op.result.type, ScalarType):
        numbers.add(op.result)
        return not op.result.type.dtype.is_float or op.result in singles
    if not op.definition.has(ELEMENTWISE) or op.name == "cast":
        return True
    literal = [
        replace(t, weak=True) if k and isinstance(t, ScalarType) else t for t, k in zip(types, known, strict=True)
    ]
    return result_dtype(types) == result_dtype(literal)


def _is_literal(value: Value) -> bool:
    return value.defining_op is not None and value.defining_op.definition.has(CONSTANT)


# Indices that are shown to leave a list, or a tensor beside one ------------------------------------------------------


def check_elements(kernel: Kernel, static: Mapping[str, int] | None = None) -> set[str]:
    """Raises SourceError TS504 for an element that a loop with known bounds is certain to take from outside its list,
    or from outside a tensor that it walks beside a list.

    Only loops count of which every iteration runs; what a condition may keep from running is left to the run. `static`
    are sizes of dims; those that the answer depends on are returned: another value asks again.
    """
    checker = _Checker(static or {})
    checker.block(kernel.body, {})
    return checker.used


class _Checker:
    """`lists` holds, by the symbol of a loop's index, a list that the loop takes elements of."""

    def __init__(self, static: Mapping[str, int]) -> None:
        self.static = static
        self.cache: Cache = {}
        self.lists: dict[str, Value] = {}
        self.used: set[str] = set()

    def block(self, block: Block, ranges: dict[str, range]) -> None:
        for op in block.ops:
            if op.name == "element":
                self.element(op, ranges)
            elif op.name == "window":
                self.window(op, ranges)
            elif op.definition.has(COUNTED):
                index, progression = loop_progression(op, self.cache)
                values = progression.evaluate({})
                if values is not None and len(values):
                    for inner in op.regions[0].walk():
                        if inner.name == "element" and index in dims.symbols(expression(inner.operands[1], self.cache)):
                            self.lists.setdefault(index, inner.operands[0])
                    self.block(op.regions[0], {**ranges, index: values})

    def element(self, op: Op, ranges: dict[str, range]) -> None:
        tensors, index = op.operands
        assert isinstance(tensors.type, ListType)
        size: Size = expression(index, self.cache)
        number = _outside(size, tensors.type.length, ranges, {})
        if number is not None:
            how = f"'{index.name}' takes the value {number}, which" if index.name else f"the index {number}"
            message = f"{how} is outside the list '{tensors.name}', whose length is {tensors.type.length}"
            raise SourceError("TS504", message, op.loc)

    def window(self, op: Op, ranges: dict[str, range]) -> None:
        """Single places along an axis; a window of several is masked."""
        view, *offsets = op.operands
        if view.defining_op is not None or not isinstance(view.type, ViewType):
            return
        for axis, (size, offset, kept) in enumerate(zip(view.type.shape, offsets, op.attributes["kept"], strict=True)):
            place = expression(offset, self.cache)
            needed = dims.symbols(size) | dims.symbols(place) - ranges.keys()
            walked = dims.symbols(place) & self.lists.keys()
            if kept or not needed <= self.static.keys() or dims.symbols(place) & ranges.keys() != walked:
                continue
            number = dims.evaluate(size, self.static)
            outside = _outside(place, number, ranges, self.static)
            if walked:
                self.used |= needed
            if outside is None:
                continue
            reader = "this"
            if walked:
                tensors = self.lists[min(walked)]
                assert isinstance(tensors.type, ListType)
                reader = f"the loop over the {tensors.type.length} tensors of '{tensors.name}'"
            extent = f"{size} = {number}" if dims.symbols(size) else f"{number}"
            raise SourceError(
                "TS504",
                f"axis {axis} of '{view.name}' has the size {extent}, but {reader} reads index {outside}",
                op.loc,
            )


def _outside(size: Size, length: int, ranges: dict[str, range], static: Mapping[str, int]) -> int | None:
    """A value of an index outside [0, length), which a loop certainly gives it; None where there is none, or where more
    than one loop decides.
    """
    names = dims.symbols(size) - static.keys()
    if len(names) > 1 or not names <= ranges.keys():
        return None
    values = ranges[next(iter(names))] if names else range(1)
    for end in (values[0], values[-1]):
        try:
            number = dims.evaluate(size, {**static, **dict.fromkeys(names, end)})
        except ZeroDivisionError:  # an error of the run
            return None
        if not 0 <= number < length:
            return number
    return None


__all__ = ["NamedTensors", "SharedIndices", "TensorList", "check_elements", "check_lengths", "check_zip", "rolls"]
