"""What the templates need to know of each op: one function per family that gives the values its template prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import literal, size_text
from tessera.codegen_cuda.reductions import reduction_lines
from tessera.codegen_cuda.views import ViewNames, is_nonnegative
from tessera.errors import InternalError
from tessera.ir.core import Op, Value
from tessera.ir.ops.elementwise import computes_in_float
from tessera.ir.types import TileType, ViewType, buffer_layout, dtype_of, int_shape, shape_of, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import _Emitter

# Ops whose one short line needs no comment above it.
QUIET = frozenset(("constant", "size", "yield", "shared", "barrier"))


def context(emitter: _Emitter, op: Op) -> dict[str, Any] | None:
    """The template's variables; None when the op needs no statement."""
    family = _FAMILIES.get(op.name, _elementwise)
    return family(emitter, op)


def _tile(emitter: _Emitter, value: Value) -> dict[str, Any]:
    """A register tile as templates see it."""
    layout = tile_layout(value.type)
    return {
        "name": emitter.name(value),
        "ctype": dtype_of(value.type).cuda,
        "count": layout.registers_per_thread,
        "layout": emitter.layouts.tile(layout),
        "shape": shape_of(value.type),
        "physical": layout.shape,
    }


def _elementwise(emitter: _Emitter, op: Op) -> dict[str, Any]:
    lower = op.definition.lower
    assert lower is not None
    in_float = op.name != "cast" and computes_in_float(op)
    terms = []
    for value in op.operands:
        element = emitter.name(value) + ("[r]" if emitter.is_tile(value) else "")
        terms.append(f"ts_to_f32({element})" if in_float and not dtype_of(value.type).is_bool else element)
    text = (lower.expression if in_float or op.name == "cast" else lower.integer).format(*terms)
    result = op.result
    ctype = dtype_of(result.type).cuda
    return {
        "out": emitter.name(result),
        "ctype": ctype,
        "expression": f"ts_cast<{ctype}>({text})",
        "count": _tile(emitter, result)["count"] if emitter.is_tile(result) else 0,
    }


def _constant(emitter: _Emitter, op: Op) -> dict[str, Any]:
    dtype = op.attributes["dtype"]
    ctype = "float" if dtype.is_float else dtype.cuda
    return {"out": emitter.name(op.result), "ctype": ctype, "value": literal(op.attributes["value"], dtype)}


def _size(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "value": size_text(op.attributes["size"])}


def _program_id(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "axis": op.attributes["axis"], "scale": op.attributes["scale"]}


def _full(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {"out": _tile(emitter, op.result), "value": emitter.name(op.operands[0])}


def _broadcast(emitter: _Emitter, op: Op) -> dict[str, Any]:
    """Register r of the result is a register of the operand: spread axes leave the index one by one."""
    layout, source = tile_layout(op.result.type), op.operands[0]
    index = list(range(layout.registers_per_thread))
    for axis, (small, large) in enumerate(zip(shape_of(source.type), shape_of(op.result.type), strict=True)):
        if small == 1 and large != 1:
            step = layout.slice_map(axis)
            index = [step[i] for i in index]
            layout = layout.slice(axis)
    return {"out": _tile(emitter, op.result), "source": emitter.name(source), "index": index}


def _reshape(emitter: _Emitter, op: Op) -> None:
    """The same registers: the result is another name of the operand."""
    emitter.names.of_value[op.result] = emitter.name(op.operands[0])


def _window(emitter: _Emitter, op: Op) -> None | dict[str, Any]:
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
        number = _known(offset)
        text = str(number) if number is not None else emitter.name(offset)
        if number != 0:
            terms.append(f"{text} * {stride}" if stride != 1 else text)
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


def _known(value: Value) -> int | None:
    op = value.defining_op
    return int(op.attributes["value"]) if op is not None and op.name == "constant" else None


def _coordinates(layout: str, rank: int, register: str) -> list[str]:
    return [f"{layout}_t{axis} + {layout}_r{axis}({register})" for axis in range(rank)]


def _global_access(emitter: _Emitter, op: Op, tile: Value) -> dict[str, Any]:
    view = emitter.views[op.operand("view")]
    info = _tile(emitter, tile)
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
        "coordinates": _coordinates(info["layout"], len(names), "r"),
        "pointer": view.pointer,
        "offset": view.offset(names),
        "ctype": type_.dtype.cuda,
        "condition": condition,
        "whole": whole,
        "valid": valid if not condition else f"({condition}) ? {valid} : 0",
    }


def _ld_global(emitter: _Emitter, op: Op) -> dict[str, Any]:
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


def _st_global(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return _global_access(emitter, op, op.operand("value"))


def _shared(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "offset": op.attributes["offset"], "bytes": op.attributes["layout"].bytes}


def _cp_async(emitter: _Emitter, op: Op) -> dict[str, Any]:
    buffer, view = op.operand("buffer"), emitter.views[op.operand("view")]
    layout, dtype = buffer_layout(buffer.type), dtype_of(buffer.type)
    vector = op.attributes["vector"]
    step = max(1, vector // dtype.bytes)
    last_valid = view.valid[-1]
    names = ["row", "col"] if len(view.valid) > 1 else ["col"]
    condition = view.row_condition(names, (layout.rows,))
    if view.first[-1] != 0:
        raise InternalError("TS901", "an asynchronous copy from before the start of a tensor has no text", op.loc)
    return {
        "buffer": emitter.name(buffer),
        "shared": emitter.layouts.buffer(layout),
        "rows": layout.rows,
        "chunks": layout.cols // step,
        "step": step,
        "item": dtype.bytes,
        "vector": vector,
        "threads": emitter.threads,
        "pointer": view.pointer,
        "offset": view.offset(names),
        "ctype": dtype.cuda,
        "valid": f"({condition}) ? {last_valid} - col : 0" if condition else f"{last_valid} - col",
        "bypass": "true" if op.attributes["bypass_l1"] and vector == 16 else "false",
    }


def _shared_access(emitter: _Emitter, op: Op, tile: Value) -> dict[str, Any]:
    buffer = op.operand("buffer")
    layout, dtype = buffer_layout(buffer.type), dtype_of(buffer.type)
    info = _tile(emitter, tile)
    rank = len(info["shape"])
    first = 1 if op.definition.operands[1].startswith("*") else 2
    offsets = [_known(v) for v in op.operands[first:]]
    terms = [
        f"c{axis}"
        if number == 0
        else f"c{axis} + {number}"
        if number is not None
        else f"c{axis} + (int){emitter.name(v)}"
        for axis, (number, v) in enumerate(zip(offsets, op.operands[first:], strict=True))
    ]
    limits = (layout.cols,) if rank == 1 else (layout.rows, layout.cols)
    guards = []
    for axis in range(rank):
        number = offsets[axis]
        if number is None and info["physical"][axis] > info["shape"][axis]:
            guards.append(f"c{axis} < {info['shape'][axis]}")
        elif number is not None and number + info["physical"][axis] > limits[axis]:
            guards.append(f"c{axis} < {limits[axis] - number}")
    padded = [
        f"c{axis} < {info['shape'][axis]}" for axis in range(rank) if info["physical"][axis] > info["shape"][axis]
    ]
    whole = shape_of(buffer.type) == info["shape"]
    uncovered = whole and rank == 2 and (layout.rows > info["physical"][0] or layout.cols > info["physical"][1])
    return {
        "tile": info,
        "buffer": emitter.name(buffer),
        "shared": emitter.layouts.buffer(layout),
        "vector": max(1, op.attributes["vector"] // dtype.bytes),
        "names": [f"c{a}" for a in range(rank)],
        "coordinates": _coordinates(info["layout"], rank, "r"),
        "address": ", ".join(["0", *terms][-2:]),
        "guard": " && ".join(guards),
        "ctype": dtype.cuda,
        "inside": " && ".join(padded) if whole else "",
        "last_limit": info["shape"][-1],
        "uncovered": uncovered,
        "rows": layout.rows,
        "cols": layout.cols,
        "covered": info["physical"],
        "threads": emitter.threads,
    }


def _ld_shared(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.result)


def _st_shared(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.operand("value"))


def _ldmatrix(emitter: _Emitter, op: Op) -> dict[str, Any]:
    """Fragment loads: four 8x8 matrices an instruction, that is one atom of a, or two atoms of b (one for an odd last).

    Lanes 8q..8q+7 give the row addresses of matrix q. The matrices follow the order of the fragment's words in the
    PTX ISA: a: (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15); b: per atom k 0-7, then k 8-15. The
    instruction transposes where the buffer's rows run along k for b, or along k for a (a stored transposed).
    """
    layout = tile_layout(op.result.type)
    role, transposed = op.attributes["role"], op.attributes["transposed"]
    words = layout.registers_per_thread // 2
    names = emitter.layouts.tile(layout)
    outer = 0 if role == "a" else 1  # the axis that is not K
    per_atom = 4 if role == "a" else 2
    origins = [layout.coordinates(2 * word, 0, 0)[outer] for word in range(0, words, per_atom)]
    steps = []
    if role == "a":
        steps = [(4 * index, 4, origin, 0) for index, origin in enumerate(origins)]
    else:
        for index in range(0, len(origins), 2):
            pair = index + 1 < len(origins)
            steps.append(
                (2 * index, 4 if pair else 2, origins[index], origins[index + 1] - origins[index] if pair else 0)
            )
    row_name, column_name = (_offset_text(emitter, v) for v in op.operands[1:])
    trans = transposed if role == "a" else not transposed
    k_bit, other_bit = (">> 4", ">> 3 & 1") if role == "a" else (">> 3 & 1", ">> 4")
    loads = []
    for word, count, origin, gap in steps:
        k = f"(ts_lane() {k_bit}) * 8"
        gap_text = 8 if role == "a" else gap
        other = f"{names}_w{outer} + {origin}" + (f" + (ts_lane() {other_bit}) * {gap_text}" if gap_text else "")
        inner = "(ts_lane() & 7)"
        if (role == "a") != transposed:  # buffer rows run along the outer axis, columns along k
            row, column = f"{other} + {inner}", k
        else:
            row, column = f"{k} + {inner}", other
        loads.append({"word": word, "count": count, "row": f"{row_name}{row}", "column": f"{column_name}{column}"})
    return {
        "out": emitter.name(op.result),
        "words": words,
        "loads": loads,
        "buffer": emitter.name(op.operands[0]),
        "shared": emitter.layouts.buffer(buffer_layout(op.operands[0].type)),
        "suffix": "_trans" if trans else "",
    }


def _offset_text(emitter: _Emitter, value: Value) -> str:
    number = _known(value)
    if number is not None:
        return f"{number} + " if number else ""
    return f"(int){emitter.name(value)} + "


def _ld_operand(emitter: _Emitter, op: Op) -> dict[str, Any]:
    info = _tile(emitter, op.result)
    row, column = (_offset_text(emitter, v) for v in op.operands[1:])
    coordinates = _coordinates(info["layout"], 2, "r")
    if op.attributes["transposed"]:
        coordinates.reverse()
    return {
        "out": info,
        "buffer": emitter.name(op.operands[0]),
        "shared": emitter.layouts.buffer(buffer_layout(op.operands[0].type)),
        "row": row + coordinates[0],
        "column": column + coordinates[1],
    }


def _mma_sync(emitter: _Emitter, op: Op) -> dict[str, Any]:
    a, b, acc = op.operands
    rows = _registers(a) // 8
    columns = _registers(b) // 4
    return {
        "out": _tile(emitter, op.result),
        "a": emitter.name(a),
        "b": emitter.name(b),
        "acc": emitter.name(acc),
        "rows": rows,
        "columns": columns,
    }


def _registers(value: Value) -> int:
    return tile_layout(value.type).registers_per_thread


def _fma_block(emitter: _Emitter, op: Op) -> dict[str, Any]:
    a, b, acc = op.operands
    layout = tile_layout(acc.type)
    rows, columns = layout.slice(1), layout.slice(0)
    a_step, b_step = rows.block_registers, columns.block_registers * columns.repeats[1]
    lines = []
    for register, (i, j) in enumerate(zip(layout.slice_map(1), layout.slice_map(0), strict=True)):
        a_index = i // rows.block_registers * 8 * rows.block_registers + i % rows.block_registers
        lines.append((register, a_index, j))
    return {
        "out": _tile(emitter, op.result),
        "a": emitter.name(a),
        "b": emitter.name(b),
        "acc": emitter.name(acc),
        "terms": lines,
        "a_step": a_step,
        "b_step": b_step,
    }


def _reduce(emitter: _Emitter, op: Op) -> dict[str, Any]:
    source = op.operands[0]
    layout, shape = tile_layout(source.type), int_shape(source.type)
    axis = op.attributes["axis"] % len(shape)
    lines = reduction_lines(
        op.name,
        layout,
        axis,
        shape[axis],
        emitter.name(source),
        emitter.layouts.tile(layout),
    )
    out = _tile(emitter, op.result)
    return {
        "out": out,
        "lines": [line.replace("{out}", out["name"]).replace("{ctype}", out["ctype"]) for line in lines],
    }


def _for(emitter: _Emitter, op: Op) -> dict[str, Any]:
    body = op.regions[0]
    carried = []
    for result, initial, argument, final in zip(
        op.results, op.operands[3:], body.arguments[1:], body.ops[-1].operands, strict=True
    ):
        emitter.names.of_value[argument] = emitter.names.of_value[result] = emitter.fresh(
            result.name or argument.name or "carried"
        )
        carried.append(
            {
                "name": emitter.name(result),
                "initial": emitter.name(initial),
                "ctype": dtype_of(result.type).cuda,
                "count": _registers(result) if emitter.is_tile(result) else 0,
                "final": final,
            }
        )
    lower, upper, step = (emitter.name(v) for v in op.operands[:3])
    return {
        "index": emitter.name(body.arguments[0]),
        "lower": lower,
        "upper": upper,
        "step": step,
        "carried": carried,
        "unroll": op.attributes["unroll"],
    }


def _if(emitter: _Emitter, op: Op) -> dict[str, Any]:
    results = [
        {
            "name": emitter.name(r),
            "ctype": dtype_of(r.type).cuda,
            "count": _registers(r) if emitter.is_tile(r) else 0,
        }
        for r in op.results
    ]
    return {"condition": emitter.name(op.operands[0]), "results": results}


def _yield(emitter: _Emitter, op: Op) -> dict[str, Any]:
    """Moves the values of a region to where its op's results live.

    A value that another move overwrites goes by a copy.
    """
    owner = next(o for o in emitter.kernel.body.walk() if any(op in region.ops for region in o.regions))
    moves = []
    targets = [emitter.name(result) for result in owner.results]
    for result, value in zip(owner.results, op.operands, strict=True):
        name, source = emitter.name(result), emitter.name(value)
        if name == source:
            continue
        crossing = source in targets
        moves.append(
            {
                "name": name,
                "source": source,
                "ctype": dtype_of(result.type).cuda,
                "crossing": crossing,
                "count": _registers(result) if emitter.is_tile(result) else 0,
            }
        )
    return {"moves": moves}


def _async_wait(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {"pending": op.attributes["pending"]}


def _nothing(emitter: _Emitter, op: Op) -> dict[str, Any]:
    return {}


_FAMILIES: dict[str, Callable[[Any, Op], dict[str, Any] | None]] = {
    "constant": _constant,
    "size": _size,
    "program_id": _program_id,
    "full": _full,
    "broadcast": _broadcast,
    "reshape": _reshape,
    "window": _window,
    "ld_global": _ld_global,
    "st_global": _st_global,
    "shared": _shared,
    "cp_async": _cp_async,
    "async_commit": _nothing,
    "async_wait": _async_wait,
    "barrier": _nothing,
    "ld_shared": _ld_shared,
    "st_shared": _st_shared,
    "ldmatrix": _ldmatrix,
    "ld_operand": _ld_operand,
    "mma_sync": _mma_sync,
    "fma_block": _fma_block,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "for": _for,
    "if": _if,
    "yield": _yield,
}
