"""Prints, assertions and atomic updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import c_string
from tessera.codegen_cuda.statements.common import coordinate_texts, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.dtypes import DType
from tessera.ir.core import Op, Value
from tessera.ir.ops.effects import format_pieces
from tessera.ir.programs import program_text, scales_of
from tessera.ir.types import BufferType, buffer_layout, dtype_of, int_shape

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter

PRINT_ARGUMENTS = 24  # of one call; a device printf takes at most 32


def _conversion(dtype: DType) -> str:
    return "%s" if dtype.is_bool else "%lld" if dtype.is_int else "%g"


def _identifiers(emitter: Emitter) -> list[str]:
    """The ids of the running program, an expression per grid axis."""
    rank = len(emitter.kernel.attributes.get("grid", (1,)))
    scales = scales_of(emitter.kernel)
    return [f"ts_block_id({axis})" + (f" * {scales[axis]}" if scales[axis] != 1 else "") for axis in range(rank)]


@statement("print")
def _print(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Thread 0 prints everything, so lines of a program come in program order."""
    identifiers = _identifiers(emitter)
    text, arguments = f"[{program_text(['%lld'] * len(identifiers))}] ", identifiers
    parts: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal text, arguments
        if text:
            parts.append({"buffer": "", "arguments": [c_string(text), *arguments]})
        text, arguments = "", []

    operands = iter(op.operands)
    for piece in format_pieces(op.attributes["format"]):
        if piece is not None:
            text += piece.replace("%", "%%")
            continue
        value = next(operands)
        code = _conversion(dtype_of(value.type))
        if not isinstance(value.type, BufferType):
            if len(arguments) == PRINT_ARGUMENTS:
                flush()
            text, arguments = text + code, [*arguments, f"ts_printed({emitter.name(value)})"]
            continue
        text += "["
        flush()
        parts.append(_printed_buffer(emitter, value, code))
        text = "]"
    text += "\n"
    flush()
    return {"parts": parts}


def _printed_buffer(emitter: Emitter, value: Value, code: str) -> dict[str, Any]:
    shape: tuple[int, ...] = int_shape(value.type)
    return {
        "buffer": emitter.name(value),
        "shared": emitter.layouts.buffer(buffer_layout(value.type)),
        "rows": shape[0] if len(shape) > 1 else 1,
        "cols": shape[len(shape) - 1],
        "nested": len(shape) > 1,
        "ctype": dtype_of(value.type).cuda,
        "code": code,
    }


def _element_loop(emitter: Emitter, tile: Value) -> dict[str, Any]:
    """What a template needs to visit each element of a tile once: `inside` leaves out the padding."""
    info = tile_info(emitter, tile)
    names = [f"c{axis}" for axis in range(len(info["shape"]))]
    padded = [
        f"{name} < {size}"
        for name, size, reach in zip(names, info["shape"], info["physical"], strict=True)
        if reach > size
    ]
    return {
        "count": info["count"],
        "names": names,
        "coordinates": coordinate_texts(info["layout"], len(names), "r"),
        "owner": f"{info['layout']}_owner",
        "inside": " && ".join(padded),
        "physical": info["physical"],
    }


@statement("assert")
def _assert(emitter: Emitter, op: Op) -> dict[str, Any]:
    condition, loc = op.operands[0], op.loc
    file, line = (loc.file.replace("\\", "/").rsplit("/", 1)[-1], loc.line) if loc is not None else ("", 0)
    identifiers = _identifiers(emitter)
    message = c_string(op.attributes["message"])
    arguments = [c_string(file), str(line), message, str(len(identifiers)), *(identifiers + ["0", "0"])[:3]]
    each = _element_loop(emitter, condition) if emitter.is_tile(condition) else {"count": 0}
    return {**each, "condition": emitter.name(condition), "arguments": arguments}


@statement("atomic")
def _atomic(emitter: Emitter, op: Op) -> dict[str, Any]:
    view, value = emitter.views[op.operand("view")], op.operand("value")
    common = {"kind": op.attributes["kind"], "pointer": view.pointer, "value": emitter.name(value)}
    if not emitter.is_tile(value):
        return {**common, "count": 0, "inside": view.inside}
    each = _element_loop(emitter, value)
    names = each["names"]
    conditions = [view.row_condition(names, each["physical"])]
    if view.first[-1] != 0:
        conditions.append(f"{names[-1]} >= {view.first[-1]}")
    if not view.column_is_whole(each["physical"][-1]):
        conditions.append(f"{names[-1]} < {view.valid[-1]}")
    return {**each, **common, "inside": " && ".join(filter(None, conditions)), "offset": view.offset(names)}


@statement("atomic_scatter")
def _atomic_scatter(emitter: Emitter, op: Op) -> dict[str, Any]:
    view, index, value = emitter.views[op.operand("view")], op.operand("index"), op.operand("value")
    return {
        **_element_loop(emitter, index),
        "kind": op.attributes["kind"],
        "pointer": view.pointer,
        "index": emitter.name(index),
        "value": emitter.name(value),
        "first": view.first[0],
        "valid": view.valid[0],
        "stride": view.strides[0],
    }
