"""What expressions of a kernel evaluate to: plain Python values, sizes (`Dim`), and handles on IR values.

A handle wraps one SSA value together with what only the front end knows of it: the region in which it exists, its
value as a symbolic size when it is an integer, and for a view the window of the parameter that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from tessera.dtypes import DType
from tessera.errors import SourceError, did_you_mean
from tessera.ir.core import Block, Value
from tessera.ir.dims import Dim, Size, symbol
from tessera.ir.types import (
    BufferType,
    ScalarType,
    Shape,
    TileType,
    Type,
    ViewType,
    dtype_of,
    shape_of,
    shape_text,
)
from tessera.location import Loc

# Symbols for run-time integers start with this, so that they never meet a dim of the author's.
RUN_TIME = "%"


@dataclass(frozen=True)
class Window:
    """Which part of the parameter `base` a view is: an offset and an extent per axis of `base`."""

    base: Value
    offsets: tuple[Any, ...]  # int, Dim or Handle
    extents: tuple[Size, ...]
    kept: tuple[bool, ...]


@dataclass(eq=False)
class Handle:
    """An IR value in the author's hands. `block` is the region it was made in; it does not exist outside of that."""

    value: Value
    block: Block
    size: Size | None = None
    window: Window | None = None

    @property
    def type(self) -> Type:
        return self.value.type

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.type, ScalarType)

    @property
    def is_tile(self) -> bool:
        return isinstance(self.type, TileType)

    @property
    def is_buffer(self) -> bool:
        return isinstance(self.type, BufferType)

    @property
    def is_view(self) -> bool:
        return isinstance(self.type, ViewType)

    @property
    def is_int(self) -> bool:
        """Whether it is one run-time integer."""
        return isinstance(self.type, ScalarType) and self.type.dtype.is_int

    @property
    def is_condition(self) -> bool:
        """Whether it is one run-time bool."""
        return isinstance(self.type, ScalarType) and self.type.dtype.is_bool

    @property
    def shape(self) -> Shape:
        return shape_of(self.type)

    @property
    def dtype(self) -> DType:
        return dtype_of(self.type)


@dataclass(eq=False)
class TensorHandle(Handle):
    """A value in a function: a whole tensor, or a scalar."""


@dataclass(frozen=True)
class RunTimeRange:
    """What `tile.range` gives: the bounds of a loop that runs on the device."""

    start: Any
    stop: Any
    step: Any


@dataclass(frozen=True)
class StaticRange:
    """What `tile.static_range` gives: numbers that are known at compile time."""

    numbers: range

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.numbers[index]


class TensorSequence:
    """A list parameter, `evaluator_lists.TensorList`; its text is what messages call it."""


@dataclass(frozen=True)
class Lost:
    """In place of a variable's value: reading it is an error; `reason` completes the sentence "'name' ..."."""

    reason: str
    code: str = "TS201"


class Context:
    """What `tile.context()` gives: the kernel's dims as symbolic sizes, and its constants."""

    def __init__(self, dims: tuple[str, ...], constants: dict[str, Any]) -> None:
        self._dims = dims
        self._constants = constants
        self._reads: set[str] = set()  # the constants that were asked for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._dims:
            return symbol(name)
        if name in self._constants:
            self._reads.add(name)
            return self._constants[name]
        dims = ", ".join(self._dims) or "none"
        constants = f", the constants {', '.join(self._constants)}" if self._constants else ""
        hint = did_you_mean(name, [*self._dims, *self._constants])
        raise SourceError("TS201", f"the context has no '{name}'; it has the dims {dims}{constants}{hint}")


@dataclass(frozen=True)
class Site:
    """The call of an intrinsic being built: the author's text and place of every argument."""

    intrinsic: str
    loc: Loc
    texts: dict[str, str]
    places: dict[str, Loc]


def is_number(value: Any) -> TypeGuard[int | float | bool]:
    """A compile-time int, float or bool; Python's own types only, so that NumPy scalars do not slip into a shape."""
    return type(value) in (int, float, bool)


def plain(value: Any) -> Any:
    """The value, a NumPy number as the Python number that it is."""
    return value.item() if isinstance(value, np.generic) else value


def is_symbolic(value: Any) -> bool:
    """Whether plain Python code could not compute with the value: a handle, a list of them, or a symbolic size."""
    return isinstance(value, (Handle, Dim, RunTimeRange, TensorSequence))


def holds_symbolic(value: Any) -> bool:
    """`is_symbolic`, also looking inside containers."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(holds_symbolic(item) for item in value)
    if isinstance(value, dict):
        return any(holds_symbolic(item) for item in value.values())
    return is_symbolic(value) or isinstance(value, Context)


def quoted(text: str) -> str:
    """The author's words in quotes; text that has quotes of its own gets no more."""
    return text if text[:1] in "'\"" else f"'{text}'"


def describe_type(type_: Type) -> str:
    """A type as a message says it: `a tile [128, D] of bf16`."""
    if isinstance(type_, ScalarType):
        article = "an" if type_.dtype.name.startswith("i") else "a"
        return f"{article} {type_.dtype.name} scalar"
    kinds = {TileType: "a tile", BufferType: "a shared buffer", ViewType: "a tensor in global memory"}
    kind = kinds.get(type(type_))
    if kind is None:
        return "a pending copy"
    return f"{kind} {shape_text(shape_of(type_))} of {dtype_of(type_).name}"


def describe(value: Any) -> str:
    """A value of a kernel as a message says it."""
    if isinstance(value, TensorHandle):
        return describe_type(value.type).replace("a tile", "a tensor", 1)
    if isinstance(value, Handle):
        return describe_type(value.type)
    if isinstance(value, Dim):
        return f"the size {value}"
    if isinstance(value, RunTimeRange):
        return "a tile.range"
    if isinstance(value, TensorSequence):
        return str(value)
    if isinstance(value, StaticRange):
        return "a tile.static_range"
    if value is None or is_number(value):
        return repr(value)
    if isinstance(value, (str, list, tuple, dict)):
        return f"a Python {type(value).__name__}"
    return f"a {type(value).__name__}" if not callable(value) else "a function"
