"""Tensors of which nothing is known yet, and what each op would ask of them: how bare annotations are inferred.

See `inference`. None of these values ever becomes IR: the first op that has to know one says so and stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from tessera.dtypes import DType
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_lists import TensorList
from tessera.frontend.evaluator_values import RUN_TIME, Handle, TensorSequence
from tessera.ir import dims
from tessera.ir.dims import Size
from tessera.ir.opdef import ELEMENTWISE, lookup
from tessera.location import Loc

Axes = tuple["Size | None", ...]  # None: any size


class UnknownTensor(TensorSequence):
    """A tensor of which nothing is known, or any tensor of a list of such."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"the tensor '{self.name}', whose axes are not annotated"


class UnknownList(TensorList):
    """A list of tensors of which nothing is known but how many they are."""

    def __init__(self, emit: Emitter, name: str, length: int) -> None:
        self._emit, self._name, self._length = emit, name, length

    @property
    def name(self) -> str:
        return self._name

    def __len__(self) -> int:
        return self._length

    def _element(self, index: Handle) -> Any:
        return UnknownTensor(self._name)

    def __str__(self) -> str:
        return f"a list of {len(self)} tensors whose axes are not annotated"


class NeedsAxes(Exception):
    """An op cannot go on without the axes of an unknown tensor; `axes` are those that fit it, None where any may."""

    def __init__(self, name: str, axes: Axes | None, dtype: DType | None, where: str, loc: Loc) -> None:
        super().__init__(name)
        self.name, self.axes, self.dtype, self.where, self.loc = name, axes, dtype, where, loc


# What ops ask of a tensor -------------------------------------------------------------------------------------------

# Given the arguments of a call by name, the axes that an argument must have.
Requirement = Callable[[Mapping[str, Any]], "Axes | None"]


def _like(other: str, *axes: int | None) -> Requirement:
    """The axes of another argument: all of them, or those numbered, `None` for one of any size."""

    def requirement(arguments: Mapping[str, Any]) -> Axes | None:
        shape = _known_axes(arguments.get(other))
        if shape is None or not axes:
            return shape
        return tuple(None if axis is None else shape[axis] for axis in axes) if len(shape) >= 2 else None

    return requirement


def _of_rank(rank: int) -> Requirement:
    return lambda arguments: (None,) * rank


_REQUIREMENTS: dict[tuple[str, str], Requirement] = {
    ("tile.load_block", "t"): _of_rank(3),
    ("tile.async_load_block", "t"): _of_rank(3),
    ("tile.store_block", "out"): _of_rank(3),
    ("tile.async_store_block", "out"): _of_rank(3),
    ("tile.apply_gating", "W"): _like("x", -1, -1),
    ("tile.fused_gating_accumulate", "W"): _like("x", -1, -1),
    ("tile.mma", "a"): _like("b", None, -2),
    ("tile.mma", "b"): _like("a", -1, None),
    ("tile.copy_async", "src"): _like("dst"),
    ("tile.cp_async.shared.global", "src"): _like("dst"),
    ("tile.store", "ref"): _like("value"),
    ("tile.store_global", "ref"): _like("value"),
    ("tile.transpose", "x"): _of_rank(2),
}
_SAME_DTYPE = {"src": "dst"}


def check_call(name: str, op: str | None, arguments: Mapping[str, Any], loc: Loc) -> None:
    """Raises NeedsAxes for the first unknown tensor among the arguments of an intrinsic."""
    for argument, value in arguments.items():
        if not isinstance(value, UnknownTensor):
            continue
        requirement = _REQUIREMENTS.get((name, argument))
        axes = requirement(arguments) if requirement else None
        if op is not None and requirement is None and lookup(op).has(ELEMENTWISE):
            shapes = (_known_axes(other) for other in arguments.values())
            axes = next((shape for shape in shapes if shape), None)
        other = arguments.get(_SAME_DTYPE.get(argument, ""))
        dtype = other.dtype if requirement is not None and isinstance(other, Handle) else None
        raise NeedsAxes(value.name, axes, dtype, name, loc)


def check_operands(operands: Sequence[Any], product: bool, loc: Loc) -> None:
    """The same for the operands of an operator; `product`: of `@`."""
    for number, value in enumerate(operands):
        if isinstance(value, UnknownTensor):
            shape = _known_axes(operands[1 - number]) if len(operands) == 2 else None
            if product and shape is not None:
                shape = (shape[-1], None) if number else (None, shape[-2]) if len(shape) >= 2 else None
            raise NeedsAxes(value.name, shape or None, None, "this operator", loc)


def check_subscript(value: UnknownTensor, items: Sequence[Any], loc: Loc) -> NoReturn:
    """As many axes as indices. Raises NeedsAxes."""
    axes = None if any(item is Ellipsis for item in items) else (None,) * len(items)
    raise NeedsAxes(value.name, axes, None, "this subscript", loc)


def _known_axes(value: Any) -> Axes | None:
    if not isinstance(value, Handle) or value.is_scalar:
        return None
    return tuple(None if any(n.startswith(RUN_TIME) for n in dims.symbols(size)) else size for size in value.shape)
