"""Effects that leave the program: prints, assertions, and atomic updates of tensors that programs share.

None of them is pure, so passes neither drop nor merge them, and no pass moves an op that is not pure: they happen in
program order.
"""

from __future__ import annotations

from typing import Any

from tessera.dtypes import DType, f32, i32, i64
from tessera.errors import SourceError
from tessera.ir import atomics
from tessera.ir.core import Kernel, Op
from tessera.ir.opdef import ALIGNED, ORDERED, REQUIRED, STRUCTURAL, UNORDERED, Lowering, define
from tessera.ir.ops.memory import expect_view
from tessera.ir.types import BufferType, ScalarType, TileType, Type, ViewType, dtype_of, shape_of, shape_text

PRINTED_ELEMENTS = 1024  # of one tile in one print: beyond this a mistake is likelier than a wish
ATOMIC_DTYPES = (i32, i64, f32)
ATOMIC_KINDS = ("add", "max")


def format_pieces(text: str) -> list[str | None]:
    """The literal parts of a format and None for each `{}`; `{{` and `}}` are braces. Raises SourceError TS203."""
    pieces: list[str | None] = [""]
    position = 0
    while position < len(text):
        pair, letter = text[position : position + 2], text[position]
        if pair in ("{{", "}}"):
            pieces[-1] = (pieces[-1] or "") + letter
        elif pair == "{}":
            pieces += [None, ""]
        elif letter in "{}":
            raise SourceError("TS203", f"the format {text!r} has a '{letter}' that is neither {{}} nor doubled")
        else:
            pieces[-1] = (pieces[-1] or "") + letter
            position -= 1
        position += 2
    return [piece for piece in pieces if piece != ""]


def number_text(number: Any, dtype: DType) -> str:
    """A number as every lane prints it: six significant digits of a float."""
    if dtype.is_bool:
        return "True" if number else "False"
    return str(int(number)) if dtype.is_int else format(float(number), "g")


def nested_text(values: Any, dtype: DType) -> str:
    """An array of any rank on one line, axes in brackets."""
    if values.ndim == 0:
        return number_text(values[()], dtype)
    return "[" + ", ".join(nested_text(row, dtype) for row in values) + "]"


def _print_type(op: Op) -> tuple[Type, ...]:
    for value in op.operands:
        if not isinstance(value.type, (ScalarType, TileType, BufferType)):
            raise SourceError("TS203", f"print takes scalars and tiles, but '{value.name or '?'}' is neither")
        if isinstance(value.type, TileType) and value.type.layout is not None:
            raise SourceError("TS703", "print of a register tile: at Target level it comes in a buffer")
    wanted = format_pieces(op.attributes["format"]).count(None)
    if wanted != len(op.operands):
        raise SourceError("TS202", f"the format {op.attributes['format']!r} takes {wanted}, not {len(op.operands)}")
    return ()


define(
    "print",
    "*values",
    _print_type,
    "prints a line: the program's ids, then the format with a value for each {}; at Target level a tile is in a buffer",
    ORDERED,
    effects={"*values": "reads"},
    attributes={"format": REQUIRED},
    lower=Lowering(template="print"),
)


def _assert_type(op: Op) -> tuple[Type, ...]:
    type_ = op.operand("condition").type
    if not isinstance(type_, (ScalarType, TileType)) or not type_.dtype.is_bool:
        raise SourceError("TS204", "an assertion takes a bool or a tile of bools; compare first")
    return ()


define(
    "assert",
    "condition",
    _assert_type,
    "stops the launch with `message` unless the condition, or every element of it, holds",
    attributes={"message": REQUIRED},
    lower=Lowering(template="assert"),
)


def _atomic_view(op: Op) -> ViewType:
    view = expect_view(op, "view")
    if view.dtype not in ATOMIC_DTYPES:
        raise SourceError(
            "TS204",
            f"atomic updates work on i32, i64 and f32, but '{op.operand('view').name or '?'}' is {view.dtype.name}",
        )
    return view


def _atomic_type(op: Op) -> tuple[Type, ...]:
    view, value = _atomic_view(op), op.operand("value").type
    if not isinstance(value, (ScalarType, TileType)) or shape_of(value) != view.shape:
        raise SourceError("TS301", f"an atomic update of a window {shape_text(view.shape)} takes a value of that shape")
    if dtype_of(value) != view.dtype:
        raise SourceError("TS204", f"an atomic update of {view.dtype.name} takes {view.dtype.name}")
    return ()


define(
    "atomic",
    "view value",
    _atomic_type,
    "combines each element of a window with that of the value (`kind`: add or max), in one step that nothing parts",
    STRUCTURAL,
    UNORDERED,
    effects={"view": "accumulates"},
    attributes={"kind": REQUIRED},
    evaluate=lambda op, view, value: atomics.accumulate(view, op.attributes["kind"], value),
    lower=Lowering(template="atomic"),
)


def _scatter_type(op: Op) -> tuple[Type, ...]:
    view, index, value = _atomic_view(op), op.operand("index").type, op.operand("value").type
    if len(view.shape) != 1:
        raise SourceError("TS304", f"an indexed atomic update takes a tensor of one axis, not {shape_text(view.shape)}")
    if not isinstance(index, TileType) or not index.dtype.is_int:
        raise SourceError("TS203", "the index of an atomic update must be a tile of integers")
    if not isinstance(value, TileType) or value.shape != index.shape or value.layout != index.layout:
        raise SourceError("TS301", "the value and the index of an atomic update must be tiles of one shape")
    if value.dtype != view.dtype:
        raise SourceError("TS204", f"an atomic update of {view.dtype.name} takes {view.dtype.name}")
    return ()


define(
    "atomic_scatter",
    "view index value",
    _scatter_type,
    "combines element index[i] of a tensor with value[i] for all i (`kind`: add or max); an index outside does nothing",
    STRUCTURAL,
    UNORDERED,
    ALIGNED,
    effects={"view": "accumulates"},
    attributes={"kind": REQUIRED},
    evaluate=lambda op, view, index, value: atomics.scatter(view, op.attributes["kind"], index, value),
    lower=Lowering(template="atomic_scatter"),
)


def order_dependent(kernel: Kernel) -> set[str]:
    """Names of the parameters whose bits depend on the order in which programs meet: sums of floats by atomics."""
    found = set()
    for op in kernel.body.walk():
        if op.definition.has(UNORDERED) and op.attributes["kind"] == "add":
            view = op.operand("view")
            if dtype_of(view.type).is_float:
                while view.defining_op is not None:
                    view = view.defining_op.operands[0]
                found.add(view.name)
    return found
