"""Lists of tensors as the author sees them: Python sequences of known length, whose elements become ops when asked for.

`len`, iteration, `zip`, `enumerate` and slices are Python's own. An index that is known only at run time gives an
element too, because all tensors of a list have one shape and dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, TensorSequence, Window, describe, describe_type, plain
from tessera.ir import dims
from tessera.ir.affine import Cache, expression, loop_progression
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import Dim, Size
from tessera.ir.opdef import COUNTED, PURE
from tessera.ir.types import ListType, ScalarType


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


def check_lengths(first: TensorList, second: Any, text: str = "", how: str = "") -> None:
    """Raises SourceError TS308 unless two sequences that are used together are of one length."""
    if len(first) == len(second):
        return
    other = f"'{second.name}'" if isinstance(second, TensorList) else f"'{text}'"
    raise SourceError(
        "TS308",
        f"'{first.name}' and {other} are used together{how}, but '{first.name}' has the length {len(first)} and "
        f"{other} {len(second)}",
        first._emit.place,
    )


def check_zip(arguments: Sequence[Any], texts: Sequence[str]) -> None:
    """`zip` would stop at the shortest: of lists of tensors that is a mistake. Raises SourceError TS308."""
    lists = [value for value in arguments if isinstance(value, TensorList)]
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


def rolls(loop: Op) -> bool:
    """Whether a static loop may stay a loop: its index takes tensors from lists, and is else a number in arithmetic or
    the place of a single element.

    It decides about nothing inside, no tile starts at it, and no iteration hands a number made of it to the next.
    """
    (body,) = loop.regions
    derived, lists = {body.arguments[0]}, False
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
        derived.update(result for result in op.results if isinstance(result.type, ScalarType))
    return lists


# Indices that are shown to leave a list ------------------------------------------------------------------------------


def check_elements(kernel: Kernel) -> None:
    """Raises SourceError TS504 for an element that a loop with known bounds is certain to take from outside its list.

    Only loops count of which every iteration runs; what a condition may keep from running is left to the run.
    """
    _check_block(kernel.body, {}, {})


def _check_block(block: Block, ranges: dict[str, range], cache: Cache) -> None:
    for op in block.ops:
        if op.name == "element":
            _check_element(op, ranges, cache)
        if op.definition.has(COUNTED):
            index, progression = loop_progression(op, cache)
            values = progression.evaluate({})
            if values is not None and len(values):
                _check_block(op.regions[0], {**ranges, index: values}, cache)


def _check_element(op: Op, ranges: dict[str, range], cache: Cache) -> None:
    tensors, index = op.operands
    assert isinstance(tensors.type, ListType)
    size: Size = expression(index, cache)
    length = tensors.type.length
    names = dims.symbols(size)
    if len(names) > 1 or not names <= ranges.keys():
        return
    values = ranges[next(iter(names))] if names else range(1)
    for ends in (values[0], values[-1]):
        try:
            number = dims.evaluate(size, dict.fromkeys(names, ends))
        except ZeroDivisionError:  # an error of the run
            return
        if not 0 <= number < length:
            how = f"'{index.name}' takes the value {number}, which" if index.name else f"the index {number}"
            raise SourceError("TS504", f"{how} is outside the list '{tensors.name}', whose length is {length}", op.loc)


__all__ = ["SharedIndices", "TensorList", "check_elements", "check_lengths", "check_zip", "rolls"]
