"""Tensors of a function of which nothing is known yet, and what each op would ask of them.

See `function_inference`. What is computed from such a tensor without a word about its axes (a cast, a slice) is unknown
as well, and remembers how it came about: what is asked of it is asked of the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from tessera.dtypes import DType, bf16
from tessera.errors import SourceError
from tessera.frontend.evaluator_values import Handle, TensorSequence
from tessera.frontend.evaluator_windows import Slice, Subscript
from tessera.ir.dims import Size
from tessera.location import Loc

if TYPE_CHECKING:
    from tessera.frontend.function_inference_evaluator import InferenceEmitter


class Axis(NamedTuple):
    """What is asked of one axis: its size, where one is known, and what the one who asks calls it."""

    size: Size | None = None
    name: str = ""


Axes = tuple[Axis, ...]
ANY = Axis()


class Step(Protocol):
    """How an unknown tensor came out of another one."""

    def forward(self, emit: InferenceEmitter, tensor: Handle) -> Handle:
        """The same of a tensor that is known."""
        ...

    def back(self, emit: InferenceEmitter, axes: Axes) -> Axes | None:
        """The axes of the other one, where these are those of the result; None where they cannot be."""
        ...


class Unknown(TensorSequence):
    """An unknown tensor: the parameter `name`, or what `steps` make of it.

    Without `steps` nothing that is asked of it can be asked of the parameter. `sure`: whether the axes of the parameter
    follow from those that are asked of it; else they are likely.
    """

    def __init__(
        self, emit: InferenceEmitter, name: str, steps: tuple[Step, ...] | None = (), sure: bool = True
    ) -> None:
        self.emit, self.name, self.steps, self.sure = emit, name, steps, sure

    def then(self, step: Step, sure: bool = True) -> Unknown:
        steps = None if self.steps is None else (*self.steps, step)
        return Unknown(self.emit, self.name, steps, self.sure and sure)

    def lost(self) -> Unknown:
        """What is computed from it in a way that says nothing about its axes."""
        return Unknown(self.emit, self.name, None)

    @property
    def shape(self) -> Any:
        known = self.emit.settle(self)
        return known.shape if isinstance(known, Handle) else UnknownShape(self)

    @property
    def ndim(self) -> int:
        known = self.emit.settle(self)
        if not isinstance(known, Handle):
            fail(self, "'.ndim'", self.emit.place)
        return len(known.shape)

    @property
    def dtype(self) -> DType:
        known = self.emit.settle(self)
        return known.dtype if isinstance(known, Handle) else bf16

    @property
    def T(self) -> Unknown:  # noqa: N802 the author's spelling
        self.emit.need(self, "'.T'")
        return self.lost()

    def __str__(self) -> str:
        return f"the tensor '{self.name}', whose axes are not annotated"


def parameter_of(name: str) -> str:
    """The parameter that a tensor is, or is an element of."""
    return name.split("[")[0]


class UnknownShape(TensorSequence):
    """The shape of an unknown tensor: each size is a dim of its own."""

    def __init__(self, tensor: Unknown) -> None:
        self.tensor = tensor

    def size(self, axis: int) -> Size:
        return self.tensor.emit.wild(f"shape {axis} of {self.tensor.name}")

    def __getitem__(self, index: Any) -> Size:
        if type(index) is not int:
            fail(self.tensor, "this part of its shape", self.tensor.emit.place)
        return self.size(index)

    def __len__(self) -> int:
        fail(self.tensor, "the length of its shape", self.tensor.emit.place)

    def __iter__(self) -> Iterator[Size]:
        fail(self.tensor, "its shape", self.tensor.emit.place)

    def __str__(self) -> str:
        return f"the shape of {self.tensor}"


def fail(unknown: Unknown, where: str, loc: Loc) -> NoReturn:
    """Raises SourceError TS206: nothing tells the axes of a parameter."""
    raise undetermined(unknown.name, where, loc)


def undetermined(name: str, where: str, loc: Loc) -> SourceError:
    parameter = parameter_of(name)
    return SourceError(
        "TS206",
        f"the axes of '{parameter}' are not annotated, and {where} does not tell them; write them out, as in "
        f'Tensor["M", "N", ts.bf16], or give them, as in --shape {parameter}=2,150,64:bf16',
        loc,
    )


def unknowns(value: Any) -> Iterator[Unknown]:
    """The unknown tensors in a value, inside containers too."""
    if isinstance(value, Unknown):
        yield value
    elif isinstance(value, UnknownShape):
        yield value.tensor
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from unknowns(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from unknowns(item)


# Steps ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alike:
    """An op whose result has the axes of its operand; `dtype` where it has another one."""

    dtype: DType | None = None

    def forward(self, emit: InferenceEmitter, tensor: Handle) -> Handle:
        return emit.placeholder(tensor.shape, self.dtype or tensor.dtype)

    def back(self, emit: InferenceEmitter, axes: Axes) -> Axes:
        return axes


@dataclass(frozen=True)
class Chosen:
    """A subscript, `text` of the author's."""

    items: tuple[Subscript, ...]
    text: str

    def forward(self, emit: InferenceEmitter, tensor: Handle) -> Handle:
        return emit.choose(tensor, self.text, self.items)

    def back(self, emit: InferenceEmitter, axes: Axes) -> Axes | None:
        gaps = [place for place, item in enumerate(self.items) if item.value is Ellipsis]
        place = gaps[0] if gaps else len(self.items)
        head, tail = self.items[:place], self.items[place + 1 :]
        first = sum(isinstance(item.value, Slice) for item in head)
        last = sum(isinstance(item.value, Slice) for item in tail)
        if first + last > len(axes):
            return None
        middle = axes[first : len(axes) - last]
        before = self._filled(emit, head, axes[:first])
        return (*before, *middle, *self._filled(emit, tail, axes[len(axes) - last :]))

    def _filled(self, emit: InferenceEmitter, items: Sequence[Subscript], axes: Axes) -> Iterator[Axis]:
        rest = iter(axes)
        for item in items:
            if not isinstance(item.value, Slice):
                yield ANY
                continue
            axis = next(rest)
            yield axis if whole(item.value) else Axis(emit.cut_from(axis.size, part_of(item.value)), axis.name)


def whole(part: Slice) -> bool:
    return part.stop is None and part.start in (None, 0)


def part_of(part: Slice) -> str:
    """The bounds of a slice: two axes cut by the same ones are taken to be equally long."""
    return f"{0 if part.start is None else part.start}:{'' if part.stop is None else part.stop}"


# What ops ask of a tensor ---------------------------------------------------------------------------------------------

# Given the arguments of a call by name, the axes that an argument must have; None where they do not tell.
Requirement = Callable[[Mapping[str, Any]], "Axes | None"]


def known_axes(value: Any) -> Axes | None:
    if not isinstance(value, Handle) or not value.is_tile:
        return None
    return tuple(Axis(size) for size in value.shape)


def _last_of(other: str, times: tuple[int, ...]) -> Requirement:
    """The last axis of another argument, so many times along each axis."""

    def requirement(arguments: Mapping[str, Any]) -> Axes | None:
        axes = known_axes(arguments.get(other))
        if not axes or axes[-1].size is None:
            return None
        return tuple(Axis(axes[-1].size * factor) for factor in times)

    return requirement


def _rows_of(other: str) -> Requirement:
    """A matrix with as many rows as the last axis of another argument."""

    def requirement(arguments: Mapping[str, Any]) -> Axes | None:
        axes = known_axes(arguments.get(other))
        return (axes[-1], ANY) if axes else None

    return requirement


def _mlp_gates(arguments: Mapping[str, Any]) -> Axes | None:
    """The tied layers of `ts.ops.mlp_gating`: one column fewer than the last axis of x."""
    axes = known_axes(arguments.get("x"))
    return (ANY, Axis(axes[-1].size - 1)) if axes and axes[-1].size is not None else None


def _as_many_as(other: str) -> Requirement:
    def requirement(arguments: Mapping[str, Any]) -> Axes | None:
        order = arguments.get(other)
        return (ANY,) * len(order) if isinstance(order, (list, tuple)) else None

    return requirement


REQUIREMENTS: dict[tuple[str, str], Requirement] = {
    ("ts.gemm", "b"): _rows_of("a"),
    ("ts.matmul", "b"): _rows_of("a"),
    ("ts.transpose", "x"): _as_many_as("axes"),
    ("ts.rms_norm", "weight"): _last_of("x", (1,)),
    ("ts.layer_norm", "weight"): _last_of("x", (1,)),
    ("ts.layer_norm", "bias"): _last_of("x", (1,)),
    ("ts.ops.gating_function", "W"): _last_of("x", (1, 1)),
    ("ts.ops.gating_network", "W"): _rows_of("x"),
    ("ts.ops.mlp_gating", "W"): _mlp_gates,
    ("ts.ops.transformer_layer", "x"): lambda arguments: (ANY,) * 3,
    ("ts.ops.transformer_layer", "params"): _last_of("x", (1, 12)),
}

# Calls whose result has the axes of this argument.
ALIKE: dict[str, str] = {
    "dist.all_gather": "x",
    "dist.shard": "x",
    "ts.cast": "x",
    "ts.cummax": "x",
    "ts.cumsum": "x",
    "ts.layer_norm": "x",
    "ts.ones_like": "x",
    "ts.ops.dropout": "x",
    "ts.ops.exp": "x",
    "ts.ops.gating_function": "x",
    "ts.ops.sigmoid_safe": "x",
    "ts.ops.softmax_safe": "x",
    "ts.ops.transformer_layer": "x",
    "ts.rms_norm": "x",
    "ts.softmax": "x",
    "ts.zeros_like": "x",
}

# Calls that ask nothing of their arguments and give nothing.
HINTS = frozenset({"ts.memory.prefetch"})

# Calls that take several tensors of one shape in a list; those that join them along an axis.
STACKING = frozenset({"ts.max", "ts.mean", "ts.min", "ts.stack", "ts.sum"})
JOINING = frozenset({"ts.concatenate"})


def siblings(name: str, arguments: Mapping[str, Any]) -> Axes | None:
    """The likely axes of an unknown tensor in a list of them: those of a known one."""
    if name not in STACKING | JOINING:
        return None
    for value in arguments.values():
        axes = next(filter(None, map(known_axes, value)), None) if isinstance(value, (list, tuple)) else None
        if axes is None:
            continue
        axis = arguments.get("axis")
        if name in JOINING and type(axis) is int and -len(axes) <= axis < len(axes):
            axes = tuple(ANY if place == axis % len(axes) else one for place, one in enumerate(axes))
        return axes
    return None
