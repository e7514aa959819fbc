"""Types of IR values. Shapes hold `Size`s (int or symbolic); layouts appear at Target level only.

Text forms, which the parser reads back: `f32`, `weak f32`, `tile<[128, D], bf16>`, `tile<[128, 64], f32, #L0>`,
`buffer<[128, D], bf16>`, `buffer<[128, 64], bf16, #S0>`, `view<[B, S, D], bf16>`, `list<view<[B, S, D], bf16>, 3>`,
`token`, `ring<4>`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tessera.dtypes import DType
from tessera.errors import InternalError
from tessera.ir.dims import Dim, Size, substitute, to_text

if TYPE_CHECKING:
    from tessera.ir.layout import RegisterLayout, SharedLayout

Shape = tuple[Size, ...]
BARRIER_BYTES = 8  # of a barrier in shared memory that counts arrivals


@dataclass(frozen=True)
class ScalarType:
    """One number per program. `weak` marks a Python literal, which never widens the dtype of a result."""

    dtype: DType
    weak: bool = False


@dataclass(frozen=True)
class TileType:
    """An SSA tile, a value of every program. `layout` places its elements in registers (Target IR).

    At graph level there are no programs and a value is a whole tensor; its text there is `tensor<[B, S, D], bf16>`.
    """

    shape: Shape
    dtype: DType
    layout: RegisterLayout | None = None


@dataclass(frozen=True)
class BufferType:
    """A reference to a per-program buffer. `layout` places it in shared memory (Target IR)."""

    shape: Shape
    dtype: DType
    layout: SharedLayout | None = None


@dataclass(frozen=True)
class ViewType:
    """A reference to global memory: a kernel parameter or a window of one. Outside its tensor it reads as zero."""

    shape: Shape
    dtype: DType


@dataclass(frozen=True)
class ListType:
    """A kernel parameter that is a list of tensors, all of one shape and dtype. Its `length` is compiled in."""

    element: ViewType
    length: int


@dataclass(frozen=True)
class TokenType:
    """Proof that an asynchronous op was issued; `wait` consumes it."""


@dataclass(frozen=True)
class RingType:
    """A reference to the barriers of a ring of `stages` slots, which a producer fills and consumers empty in turn."""

    stages: int

    @property
    def bytes(self) -> int:
        """Of shared memory: for each slot a barrier that says full, behind all of those one that says empty."""
        return 2 * BARRIER_BYTES * self.stages


Type = ScalarType | TileType | BufferType | ViewType | ListType | TokenType | RingType
ShapedType = (TileType, BufferType, ViewType)


def length_name(parameter: str) -> str:
    """What the length of a list parameter is called among the dims that a kernel is compiled for."""
    return f"len({parameter})"


def tensor_type(type_: Type) -> ViewType | None:
    """The type of the tensors that a parameter stands for: its own, or that of a list's elements; None for a scalar."""
    found = type_.element if isinstance(type_, ListType) else type_
    return found if isinstance(found, ViewType) else None


def shape_of(type_: Type) -> Shape:
    """The shape, `()` for a scalar. Raises TypeError for a token, a ring and a list."""
    if isinstance(type_, ScalarType):
        return ()
    if isinstance(type_, ShapedType):
        return type_.shape
    raise TypeError(f"a {_kind(type_)} has no shape")


def dtype_of(type_: Type) -> DType:
    if isinstance(type_, (TokenType, RingType, ListType)):
        raise TypeError(f"a {_kind(type_)} has no dtype")
    return type_.dtype


def _kind(type_: Type) -> str:
    return {ListType: "list", RingType: "ring"}.get(type(type_), "token")


def int_shape(type_: Type) -> tuple[int, ...]:
    """The shape of a type whose sizes are all bound. Raises TypeError for a token or a size that is still symbolic."""
    sizes = []
    for size in shape_of(type_):
        if isinstance(size, Dim):
            raise TypeError(f"the size {to_text(size)} is not bound")
        sizes.append(int(size))
    return tuple(sizes)


def tile_layout(type_: Type) -> RegisterLayout:
    """Where a Target tile lies in registers. Raises InternalError TS901 for a type without a register layout."""
    if not isinstance(type_, TileType) or type_.layout is None:
        raise InternalError("TS901", f"a value of type {type_text(type_)} has no register layout")
    return type_.layout


def buffer_layout(type_: Type) -> SharedLayout:
    """Where a Target buffer lies in shared memory. Raises InternalError TS901 for a type without a shared layout."""
    if not isinstance(type_, BufferType) or type_.layout is None:
        raise InternalError("TS901", f"a value of type {type_text(type_)} has no shared layout")
    return type_.layout


def shape_text(shape: Shape) -> str:
    return "[" + ", ".join(to_text(size) for size in shape) + "]"


def type_text(type_: Type, layout_name: dict[object, str] | None = None) -> str:
    """The text of a type; `layout_name` maps a layout to its alias (without it, layouts print in full in quotes)."""
    if isinstance(type_, TokenType):
        return "token"
    if isinstance(type_, RingType):
        return f"ring<{type_.stages}>"
    if isinstance(type_, ListType):
        return f"list<{type_text(type_.element)}, {type_.length}>"
    if isinstance(type_, ScalarType):
        return f"weak {type_.dtype.name}" if type_.weak else type_.dtype.name
    kind = {TileType: "tile", BufferType: "buffer", ViewType: "view"}[type(type_)]
    text = f"{kind}<{shape_text(type_.shape)}, {type_.dtype.name}"
    layout = getattr(type_, "layout", None)
    if layout is not None:
        text += ", " + (layout_name[layout] if layout_name is not None else f'"{layout}"')
    return text + ">"


def strides(shape: Shape) -> Shape:
    """Element strides of a contiguous row-major tensor."""
    result: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        result.insert(0, step)
        step = step * size
    return tuple(result)


def substitute_type(type_: Type, values: dict[str, Size]) -> Type:
    """The same type with dim symbols replaced."""
    if isinstance(type_, ListType):
        element = substitute_type(type_.element, values)
        assert isinstance(element, ViewType)
        return replace(type_, element=element)
    if not isinstance(type_, ShapedType):
        return type_
    shape = tuple(substitute(size, values) for size in type_.shape)
    return replace(type_, shape=shape)
