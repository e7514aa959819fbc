"""Shared buffers, asynchronous copies and their waits, barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import coordinate_texts, known_number, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.errors import InternalError
from tessera.ir.core import Op, Value
from tessera.ir.types import buffer_layout, dtype_of, shape_of

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("shared")
def _shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "offset": op.attributes["offset"], "bytes": op.attributes["layout"].bytes}


@statement("cp_async")
def _cp_async(emitter: Emitter, op: Op) -> dict[str, Any]:
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
        "coordinates": coordinate_texts(info["layout"], rank, "r"),
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


@statement("ld_shared")
def _ld_shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.result)


@statement("st_shared")
def _st_shared(emitter: Emitter, op: Op) -> dict[str, Any]:
    return _shared_access(emitter, op, op.operand("value"))


@statement("async_wait")
def _async_wait(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"pending": op.attributes["pending"]}


@statement("async_commit", "barrier")
def _nothing(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {}
