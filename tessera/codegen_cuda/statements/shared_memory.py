"""Shared buffers, asynchronous copies and their waits, barriers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.shared_addresses import Coordinate, shared_address, split_offset, thread_bits
from tessera.codegen_cuda.statements.common import coordinate_texts, known_number, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op, Value
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.layout_shared import SWIZZLE_ROWS
from tessera.ir.ops.target import physical_shape
from tessera.ir.stages import allocated_bytes
from tessera.ir.types import BufferType, buffer_layout, dtype_of, int_shape, shape_of, tile_layout
from tessera.target.fragments import matrices_at_once

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("shared")
def _shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    emitter.places[op.result] = "", op.attributes["offset"]
    return {"out": emitter.name(op.result), "offset": op.attributes["offset"], "bytes": allocated_bytes(op)}


@statement("stage")
def _stage(emitter: Emitter, op: Op) -> dict[str, Any]:
    buffer, index = op.operands
    number, size = known_number(index), buffer_layout(buffer.type).bytes
    turn, start = emitter.places[buffer]
    if number is None:
        turn = emitter.fresh(f"{emitter.name(op.result)}_turn")
    emitter.places[op.result] = turn, start + (number or 0) * size
    return {
        "out": emitter.name(op.result),
        "buffer": emitter.name(buffer),
        "turn": turn,
        "index": f"(int){emitter.name(index)}" if number is None else number,
        "bytes": size,
    }


@statement("cp_async")
def _cp_async(emitter: Emitter, op: Op) -> dict[str, Any]:
    buffer, view = op.operand("buffer"), emitter.views[op.operand("view")]
    type_ = buffer.type
    assert isinstance(type_, BufferType)
    layout, dtype = buffer_layout(type_), dtype_of(type_)
    vector = op.attributes["vector"]
    step = max(1, vector // dtype.bytes)
    chunks = layout.cols // step
    last_valid = view.valid[-1]
    leading = physical_shape(type_)[:-1]
    names, rows = _row_axes(leading)
    row_step = emitter.threads // chunks if emitter.threads % chunks == 0 else 0
    along = [axis for axis, size in enumerate(leading) if size != 1]
    steps = bool(row_step) and vector >= 4 and len(along) == 1  # each turn is as far from the one before
    condition = view.row_condition([*names, "col"], leading)
    if steps:
        # All threads share the limit less the rows of a turn, so that it needs no register of each.
        moved = view.moved(along[0], f"turn * {row_step}", leading[along[0]])
        condition = moved.row_condition(["first" if name == "row" else name for name in (*names, "col")], leading)
    names.append("col")
    if view.first[-1] != 0:
        # An access is never half before the start: the offset is a multiple of what it moves.
        condition = " && ".join(filter(None, (condition, f"col >= {view.first[-1]}")))
    return {
        "buffer": emitter.name(buffer),
        "shared": emitter.layouts.buffer(layout),
        "rows": layout.rows,
        "row_axes": rows,
        "whole": op.attributes["whole"],
        "chunks": chunks,
        "turns": -(-layout.rows * chunks // emitter.threads),
        # Each turn is so many rows further on, at the same column, where whole rows share out the threads.
        "row_step": row_step,
        "turn_target": _turn_target(emitter, layout, row_step) if steps else "",
        "turn_stride": f"(ts_i64){row_step} * {view.strides[along[0]]}" if steps else "",
        "first_offset": view.offset([*("first" if axis in along else "0" for axis in range(len(leading))), "col"]),
        "pointee": view.dtype,
        "ragged": layout.rows * chunks % emitter.threads != 0,
        "step": step,
        "item": dtype.bytes,
        "vector": vector,
        "threads": emitter.threads,
        "pointer": view.pointer,
        "offset": view.offset(names),
        "ctype": dtype.cuda,
        "masked": bool(condition) or not view.column_is_whole(layout.cols),
        "valid": f"({condition}) ? {last_valid} - col : 0" if condition else f"{last_valid} - col",
        "bypass": "true" if op.attributes["bypass_l1"] and vector == 16 else "false",
    }


def _turn_target(emitter: Emitter, layout: SharedLayout, row_step: int) -> str:
    """Where a turn writes, from the offset `target` of the first turn; empty where each turn asks the layout."""
    period = SWIZZLE_ROWS if layout.is_permuted else 1  # rows after which chunks lie as before
    if row_step % period == 0:
        return f"target + turn * {row_step * layout.pitch}"
    if row_step & (row_step - 1):  # carries into the bits of the first row
        return ""
    return split_offset(emitter, layout, "target", f"turn * {row_step}", 0)


def _row_axes(leading: tuple[int, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the coordinates that a row number stands for, and the text of each that is not the row itself."""
    if len(leading) < 2:
        return ["row"][: len(leading)], []
    if sum(size != 1 for size in leading) == 1:
        return ["0" if size == 1 else "row" for size in leading], []
    names = [f"row{axis}" for axis in range(len(leading))]
    texts, inner = [], 1
    for axis in reversed(range(len(leading))):
        text = f"row / {inner}" if inner > 1 else "row"
        texts.append((names[axis], f"{text} % {leading[axis]}" if axis else text))
        inner *= leading[axis]
    return names, texts[::-1]


def place_text(coordinates: list[str], shape: tuple[int, ...]) -> str:
    """Row and column in a shared layout of an element of a buffer of `shape`: all axes but the last are rows."""
    *leading, column = coordinates
    row = leading[0] if leading else "0"
    for coordinate, size in zip(leading[1:], shape[1:-1], strict=True):
        row = f"({row}) * {size} + {coordinate}"
    return f"{row}, {column}"


def _flat_access(emitter: Emitter, op: Op, tile: Value) -> dict[str, Any]:
    """A tile in row-major order in a buffer of one axis: what is padding is neither stored nor loaded."""
    buffer = op.operand("buffer")
    info = tile_info(emitter, tile)
    shape = info["shape"]
    names = [f"c{axis}" for axis in range(len(shape))]
    place = names[0]
    for name, size in zip(names[1:], shape[1:], strict=True):
        place = f"({place}) * {size} + {name}"
    reached = zip(names, shape, info["physical"], strict=True)
    return {
        "tile": info,
        "buffer": emitter.name(buffer),
        "shared": emitter.layouts.buffer(buffer_layout(buffer.type)),
        "vector": max(1, op.attributes["vector"] // dtype_of(buffer.type).bytes),
        "names": names,
        "coordinates": coordinate_texts(info["layout"], len(shape), "r"),
        "address": f"0, {place}",
        "guard": " && ".join(f"{name} < {size}" for name, size, physical in reached if physical > size),
        "ctype": dtype_of(buffer.type).cuda,
        "inside": "",
        "uncovered": False,
    }


@statement("ld_flat")
def _ld_flat(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _flat_access(emitter, op, op.result)


@statement("st_flat")
def _st_flat(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _flat_access(emitter, op, op.operand("value"))


def _shared_access(emitter: Emitter, op: Op, tile: Value) -> dict[str, Any]:
    buffer = op.operand("buffer")
    layout, dtype = buffer_layout(buffer.type), dtype_of(buffer.type)
    info = tile_info(emitter, tile)
    rank = len(info["shape"])
    first = 1 if op.definition.operands[1].startswith("*") else 2
    offsets = [known_number(v) for v in op.operands[first:]]
    terms = [
        f"c{axis}"
        if number == 0
        else f"c{axis} + {number}"
        if number is not None
        else f"c{axis} + (int){emitter.name(v)}"
        for axis, (number, v) in enumerate(zip(offsets, op.operands[first:], strict=True))
    ]
    assert isinstance(buffer.type, BufferType)
    limits = physical_shape(buffer.type)
    whole = shape_of(buffer.type) == info["shape"]
    part = op.name == "st_shared" and not whole  # what lies beside it stays
    guards = []
    for axis in range(rank):
        number = offsets[axis]
        if (number is None or part) and info["physical"][axis] > info["shape"][axis]:
            guards.append(f"c{axis} < {info['shape'][axis]}")
        elif number is not None and number + info["physical"][axis] > limits[axis]:
            guards.append(f"c{axis} < {limits[axis] - number}")
    padded = [
        f"c{axis} < {info['shape'][axis]}" for axis in range(rank) if info["physical"][axis] > info["shape"][axis]
    ]
    uncovered = whole and rank == 2 and (layout.rows > info["physical"][0] or layout.cols > info["physical"][1])
    return {
        "tile": info,
        "buffer": emitter.name(buffer),
        "shared": emitter.layouts.buffer(layout),
        "vector": max(1, op.attributes["vector"] // dtype.bytes),
        "names": [f"c{a}" for a in range(rank)],
        "coordinates": coordinate_texts(info["layout"], rank, "r"),
        "address": place_text(terms, int_shape(buffer.type)),
        "guard": " && ".join(guards),
        "ctype": dtype.cuda,
        "inside": " && ".join(padded) if whole else "",
        "last_limit": info["shape"][-1],
        "uncovered": uncovered and info["last"] == info["count"],
        "rows": layout.rows,
        "cols": layout.cols,
        "covered": info["physical"],
        "threads": emitter.threads,
    }


@statement("ld_shared")
def _ld_shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.result)


@statement("st_shared")
def _st_shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.operand("value"))


@statement("ld_matrices")
def _ld_matrices(emitter: Emitter, op: Op) -> dict[str, Any]:
    layout = tile_layout(op.result.type)
    return {
        "out": emitter.name(op.result),
        "ctype": dtype_of(op.result.type).cuda,
        "count": layout.registers_per_thread,
        "loads": _matrices(emitter, op, layout, op.operands[1:]),
        "buffer": emitter.name(op.operands[0]),
        **_instruction(layout),
    }


@statement("st_matrices")
def _st_matrices(emitter: Emitter, op: Op) -> dict[str, Any]:
    buffer, value, *offsets = op.operands
    layout = tile_layout(value.type)
    return {
        "value": emitter.name(value),
        "stores": _matrices(emitter, op, layout, offsets),
        "buffer": emitter.name(buffer),
        **_instruction(layout),
    }


def _instruction(layout: RegisterLayout) -> dict[str, Any]:
    """How many matrices an instruction moves, and what its name ends with."""
    count = matrices_at_once(layout)
    return {"matrices": count or matrices_at_once(layout, across=True), "suffix": "" if count else "_trans"}


def _matrices(emitter: Emitter, op: Op, layout: RegisterLayout, offsets: Sequence[Value]) -> list[dict[str, Any]]:
    """The first register of each instruction that moves 8x8 matrices, and the address that a lane gives it.

    Lanes 8q..8q+7 give the row addresses of matrix q, which is the q-th of consecutive words of each lane. A word is
    two registers of the layout, so the bits of q are its second and third register bit.
    """
    buffer = op.operands[0]
    count, rank = _instruction(layout)["matrices"], len(layout.repeats)
    alias = emitter.layouts.tile(layout)
    lane = [Coordinate(f"{alias}_w{axis}", thread_bits(layout, axis, "warp")) for axis in range(rank)]
    lane[rank - 2] = lane[rank - 2].plus("(ts_lane() & 7)", 7)
    for bit, vector in enumerate(layout.block.group("register")[1 : count.bit_length()]):
        for axis, step in enumerate(vector):
            lane[axis] = lane[axis].plus(f"(ts_lane() >> {3 + bit} & 1) * {step}", step) if step else lane[axis]
    lane = [coordinate.at(offset) for coordinate, offset in zip(lane, offsets, strict=True)]
    found = []
    for register in range(*emitter.span(layout.registers_per_thread), 2 * count):
        origin = layout.coordinates(register, 0, 0)
        place = [replace(c, fixed=c.fixed + number) for c, number in zip(lane, origin, strict=True)]
        row = place[0]
        for inner, size in zip(place[1:-1], int_shape(buffer.type)[1:-1], strict=True):
            row = row.below(size, inner)
        found.append({"register": register, "address": shared_address(emitter, op, buffer, row, place[-1])})
    return found


@statement("async_wait")
def _async_wait(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"pending": op.attributes["pending"]}


@statement("no_copy")
def _silent(emitter: Emitter, op: Op) -> None:
    """Only the order of what is emitted knows of copies."""


@statement("async_commit")
def _nothing(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {}


@statement("barrier")
def _barrier(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"id": op.attributes["id"], "threads": op.attributes["threads"]}
