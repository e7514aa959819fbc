"""Windows of global tensors, loads and stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import integer_text, size_text
from tessera.codegen_cuda.statements.common import coordinate_texts, index_text, known_number, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.codegen_cuda.views import ViewNames, WindowAxis
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.layout import RegisterLayout
from tessera.ir.types import ListType, TileType, ViewType, dtype_of, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter

LEAST_WORD = 4  # bytes of a load that is predicated by itself
MOST_BYTES = 128  # of all such loads of a thread: of twice as many, ptxas keeps what they start from apart


def _product(number: int | None, text: str, stride: int | str) -> str:
    """An offset in elements, 64 bits wide: numbers are multiplied here, anything else has a ts_i64 factor."""
    if number is not None and isinstance(stride, int):
        return integer_text(number * stride)
    return text if stride == 1 else f"{text} * {stride}"


@statement("element")
def _element(emitter: Emitter, op: Op) -> dict[str, Any] | None:
    """One pointer of the `ts_table` that a list is passed as."""
    if op.result in emitter.mapped:
        return None
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
def _limit(emitter: Emitter, op: Op) -> dict[str, Any] | None:
    """The same pointer; along each axis that has a limit, fewer elements remain."""
    if op.result in emitter.mapped:
        return None
    source = emitter.views[op.operands[0]]
    name = emitter.fresh(op.result.name or "limited")
    lines: list[str] = []
    remaining, at_least, valid = list(source.remaining), list(source.at_least), list(source.valid)
    for axis, (limit, left, extent) in enumerate(zip(op.operands[1:], source.remaining, source.extents, strict=True)):
        least, _ = emitter.ranges.interval(limit, op)
        if least is not None and isinstance(left, int) and least >= left or _is_size(limit, extent):
            continue
        shown = at_least[axis]
        at_least[axis] = None if shown is None or least is None else min(shown, least)
        lines.append(f"const ts_i64 {name}_left{axis} = ts_imin({left}, {index_text(emitter, limit)});")
        lines.append(f"const ts_i64 {name}_valid{axis} = ts_imax(ts_imin({valid[axis]}, {name}_left{axis}), 0);")
        remaining[axis], valid[axis] = f"{name}_left{axis}", f"{name}_valid{axis}"
    emitter.views[op.result] = replace(source, remaining=tuple(remaining), at_least=tuple(at_least), valid=tuple(valid))
    return {"lines": lines}


def _is_size(limit: Value, extent: Size) -> bool:
    op = limit.defining_op
    return op is not None and op.name == "size" and op.attributes["size"] == extent


def _axis(emitter: Emitter, op: Op, number: int, name: str) -> WindowAxis:
    """One axis of the window that `op` makes, which the text calls `name`."""
    source, offset = emitter.views[op.operands[0]], op.operands[1 + number]
    size, shown = source.extents[number], None
    if source.remaining[number] == size_text(size):  # an axis of the tensor itself
        shown = emitter.ranges.distance(offset, size, op)
    return WindowAxis(
        number,
        op.attributes["extents"][number],
        known_number(offset),
        index_text(emitter, offset),
        emitter.ranges.interval(offset, op),
        shown,
        source,
        name,
    )


@statement("window")
def _window(emitter: Emitter, op: Op) -> dict[str, Any] | None:
    if op.result in emitter.mapped:
        return None
    source = emitter.views[op.operands[0]]
    name = emitter.fresh(op.result.name or "window")
    lines, terms, conditions = [], [], [source.inside] if source.inside else []
    kept: list[WindowAxis] = []
    axes = zip(op.operands[1:], op.attributes["kept"], source.strides, strict=True)
    for number, (offset, keep, stride) in enumerate(axes):
        if known_number(offset) != 0:
            terms.append(_product(known_number(offset), index_text(emitter, offset), stride))
        axis = _axis(emitter, op, number, name)
        if keep:
            kept.append(axis)
            lines += axis.lines
        else:
            conditions += axis.conditions
    lines.append(f"{source.dtype}* {name} = {source.pointer}{''.join(' + ' + term for term in terms)};")
    inside = " && ".join(conditions)
    if inside:
        lines.append(f"const bool {name}_inside = {inside};")
        inside = f"{name}_inside"
    valid: list[int | str] = []
    for position, axis in enumerate(kept):
        count = axis.count()
        if inside and position == 0:
            count = f"{inside} ? {count} : 0"
        if isinstance(count, str):
            lines.append(f"const int {name}_valid{axis.number} = {count};")
            count = f"{name}_valid{axis.number}"
        valid.append(count)
    emitter.views[op.result] = ViewNames(
        name,
        source.dtype,
        tuple(axis.left for axis in kept),
        tuple(axis.at_least for axis in kept),
        tuple(valid),
        tuple(axis.first for axis in kept),
        tuple(source.strides[axis.number] for axis in kept),
        tuple(axis.extent for axis in kept),
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


def _one_row(view: ViewNames, layout: RegisterLayout) -> bool:
    """Whether the masks of rows are the same for all registers of a thread."""
    return all(
        view.row_covers(axis, layout.shape[axis])
        or layout.repeats[axis] == 1
        and not any(vector[axis] for vector in layout.block.group("register"))
        for axis in range(len(layout.repeats) - 1)
    )


@statement("ld_global")
def _ld_global(emitter: Emitter, op: Op) -> dict[str, Any]:
    if isinstance(op.result.type, TileType):
        found = _global_access(emitter, op, op.result)
        layout, item = tile_layout(op.result.type), dtype_of(op.result.type).bytes
        fits = found["vector"] * item >= LEAST_WORD and layout.registers_per_thread * item <= MOST_BYTES
        one_row = fits and found["whole"] and _one_row(emitter.views[op.operand("view")], layout)
        return {"scalar": False, "one_row": one_row, **found}
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
