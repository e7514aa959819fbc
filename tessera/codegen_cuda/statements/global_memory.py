"""Windows of global tensors, loads and stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import integer_text, size_text
from tessera.codegen_cuda.statements.common import coordinate_texts, index_text, known_number, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.codegen_cuda.views import ViewNames, is_nonnegative
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.types import ListType, TileType, ViewType, dtype_of

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


def _product(number: int | None, text: str, stride: int | str) -> str:
    """An offset in elements, 64 bits wide: numbers are multiplied here, anything else has a ts_i64 factor."""
    if number is not None and isinstance(stride, int):
        return integer_text(number * stride)
    return text if stride == 1 else f"{text} * {stride}"


@statement("element")
def _element(emitter: Emitter, op: Op) -> dict[str, Any]:
    """One pointer of the `ts_table` that a list is passed as."""
    tensors, index = op.operands
    assert isinstance(tensors.type, ListType)
    name, table = emitter.fresh(op.result.name or tensors.name), emitter.name(tensors)
    number = known_number(index)
    known = number is not None and 0 <= number < tensors.type.length
    pointer = f"{table}.at[{number}]"
    if not known:
        pointer = f"ts_element({table}, {index_text(emitter, index)}, {tensors.type.length})"
    whole = emitter.elements[tensors]
    emitter.views[op.result] = replace(whole, pointer=name)
    return {"lines": [f"{whole.dtype}* {name} = {pointer};"]}


@statement("limit")
def _limit(emitter: Emitter, op: Op) -> dict[str, Any]:
    """The same pointer; along each axis that has a limit, fewer elements remain."""
    source = emitter.views[op.operands[0]]
    name = emitter.fresh(op.result.name or "limited")
    lines: list[str] = []
    remaining: list[int | str] = []
    axes = zip(op.operands[1:], source.remaining, source.valid, source.extents, strict=True)
    valid: list[int | str] = []
    for axis, (limit, left, inside, extent) in enumerate(axes):
        number = known_number(limit)
        if number is not None and isinstance(left, int) and number >= left or _is_size(limit, extent):
            remaining.append(left)
            valid.append(inside)
            continue
        remaining.append(f"{name}_left{axis}")
        lines.append(f"const ts_i64 {name}_left{axis} = ts_imin({left}, {index_text(emitter, limit)});")
        valid.append(f"{name}_valid{axis}")
        lines.append(f"const ts_i64 {name}_valid{axis} = ts_imax(ts_imin({inside}, {name}_left{axis}), 0);")
    emitter.views[op.result] = replace(source, remaining=tuple(remaining), valid=tuple(valid))
    return {"lines": lines}


def _is_size(limit: Value, extent: Size) -> bool:
    op = limit.defining_op
    return op is not None and op.name == "size" and op.attributes["size"] == extent


@statement("window")
def _window(emitter: Emitter, op: Op) -> None | dict[str, Any]:
    source = emitter.views[op.operands[0]]
    name = emitter.fresh(op.result.name or "window")
    lines, terms, conditions = [], [], [source.inside] if source.inside else []
    kept: list[tuple[Any, ...]] = []
    axes = zip(
        op.operands[1:],
        op.attributes["extents"],
        op.attributes["kept"],
        source.remaining,
        source.first,
        source.strides,
        source.valid,
        strict=True,
    )
    for axis, (offset, extent, keep, remaining, first, stride, _) in enumerate(axes):
        number = known_number(offset)
        text = index_text(emitter, offset)
        if number != 0:
            terms.append(_product(number, text, stride))
        low = number is not None and number >= 0 or is_nonnegative(offset, emitter.loops)
        if not keep:
            if not low or first != 0:
                conditions.append(f"{text} >= {first}")
            if not (number is not None and isinstance(remaining, int) and number < remaining):
                conditions.append(f"{text} < {remaining}")
            continue
        left: int | str
        if isinstance(remaining, int) and number is not None:
            left = remaining - number
        elif number == 0:
            left = remaining
        else:
            left = f"{name}_left{axis}"
            lines.append(f"const ts_i64 {left} = {remaining} - {text};")
        start: int | str = 0
        if not low or first != 0:
            start = f"{name}_first{axis}"
            lines.append(f"const int {start} = (int)ts_imin(ts_imax({first} - {text}, 0), {size_text(extent)});")
        kept.append((axis, left, start, stride, extent))
    lines.append(f"{source.dtype}* {name} = {source.pointer}{''.join(' + ' + term for term in terms)};")
    inside = " && ".join(conditions)
    if inside:
        lines.append(f"const bool {name}_inside = {inside};")
        inside = f"{name}_inside"
    valid: list[int | str] = []
    for position, (axis, left, _, _, extent) in enumerate(kept):
        if isinstance(left, int) and isinstance(extent, int) and not (inside and position == 0):
            valid.append(max(0, min(left, extent)))
            continue
        count = f"(int)ts_imin(ts_imax({left}, 0), {size_text(extent)})"
        if isinstance(left, int) and isinstance(extent, int):
            count = str(max(0, min(left, extent)))
        if inside and position == 0:
            count = f"{inside} ? {count} : 0"
        valid.append(f"{name}_valid{axis}")
        lines.append(f"const int {valid[-1]} = {count};")
    emitter.views[op.result] = ViewNames(
        name,
        source.dtype,
        tuple(k[1] for k in kept),
        tuple(valid),
        tuple(k[2] for k in kept),
        tuple(k[3] for k in kept),
        tuple(k[4] for k in kept),
        inside if not kept else "",
    )
    return {"lines": lines}


def _all_inside(view: ViewNames, physical: tuple[int, ...]) -> str:
    """A condition, the same for every thread, under which no access of a tile needs a mask; empty where none is known.

    One branch round all loads of a tile lets them fly together, where a branch round each makes each wait.
    """
    parts = []
    for valid, first, reach in zip(view.valid, view.first, physical, strict=True):
        if isinstance(valid, int) and valid < reach:
            return ""
        if first != 0:
            parts.append(f"{first} == 0")
        if not isinstance(valid, int):
            parts.append(f"{valid} >= {reach}")
    return " && ".join(parts)


def _global_access(emitter: Emitter, op: Op, tile: Value) -> dict[str, Any]:
    view = emitter.views[op.operand("view")]
    info = tile_info(emitter, tile)
    type_ = op.operand("view").type
    assert isinstance(type_, ViewType)
    names = [f"c{axis}" for axis in range(len(info["shape"]))]
    last = names[-1] if names else "0"
    condition = view.row_condition(names, info["physical"])
    whole = view.column_is_whole(info["physical"][-1])
    valid = f"{view.valid[-1]} - {last}"
    if view.first[-1] != 0:
        condition = " && ".join(filter(None, (condition, f"{last} >= {view.first[-1]}")))
    return {
        "tile": info,
        "vector": max(1, op.attributes["vector"] // type_.dtype.bytes),
        "names": names,
        "coordinates": coordinate_texts(info["layout"], len(names), "r"),
        "pointer": view.pointer,
        "offset": view.offset(names),
        "ctype": type_.dtype.cuda,
        "condition": condition,
        "whole": whole,
        "all_inside": _all_inside(view, info["physical"]),
        "valid": valid if not condition else f"({condition}) ? {valid} : 0",
    }


@statement("ld_global")
def _ld_global(emitter: Emitter, op: Op) -> dict[str, Any]:
    if isinstance(op.result.type, TileType):
        return {"scalar": False, **_global_access(emitter, op, op.result)}
    view = emitter.views[op.operands[0]]
    return {
        "scalar": True,
        "out": emitter.name(op.result),
        "ctype": dtype_of(op.result.type).cuda,
        "pointer": view.pointer,
        "inside": view.inside,
    }


@statement("st_global")
def _st_global(emitter: Emitter, op: Op) -> dict[str, Any]:
    mask = emitter.name(op.operands[2]) if len(op.operands) > 2 else ""
    return {**_global_access(emitter, op, op.operand("value")), "mask": mask}
