"""What several families of statements say alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import integer_text
from tessera.ir.core import Value
from tessera.ir.types import dtype_of, shape_of, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


def tile_info(emitter: Emitter, value: Value) -> dict[str, Any]:
    """A register tile as templates see it; `first` and `last` bound the registers that a statement is about."""
    layout = tile_layout(value.type)
    first, last = emitter.span(layout.registers_per_thread)
    return {
        "name": emitter.name(value),
        "ctype": dtype_of(value.type).cuda,
        "count": layout.registers_per_thread,
        "first": first,
        "last": last,
        "layout": emitter.layouts.tile(layout),
        "shape": shape_of(value.type),
        "physical": layout.shape,
    }


def known_number(value: Value) -> int | None:
    op = value.defining_op
    return int(op.attributes["value"]) if op is not None and op.name == "constant" else None


def index_text(emitter: Emitter, value: Value) -> str:
    """An index as a constant or a 64-bit expression."""
    number = known_number(value)
    if number is not None:
        return integer_text(number)
    name = emitter.name(value)
    return name if dtype_of(value.type).bits == 64 else f"(ts_i64){name}"


def coordinate_texts(layout: str, rank: int, register: str) -> list[str]:
    return [f"{layout}_t{axis} + {layout}_r{axis}({register})" for axis in range(rank)]


def register_count(value: Value) -> int:
    return tile_layout(value.type).registers_per_thread


def offset_text(emitter: Emitter, value: Value) -> str:
    number = known_number(value)
    if number is not None:
        return f"{number} + " if number else ""
    return f"(int){emitter.name(value)} + "
