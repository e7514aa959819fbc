"""Scalars, elementwise ops and ops that only rearrange registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.names import by_power, literal, size_text
from tessera.codegen_cuda.statements.common import coordinate_texts, known_number, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.dtypes import bf16, boolean, f16, f32
from tessera.ir.core import Op
from tessera.ir.layout import transposed_map
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.ops.elementwise import computes_in_float
from tessera.ir.types import TileType, dtype_of, shape_of, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


HALVES = (bf16, f16)
# Device functions that compute two 16-bit floats at once, with the bits of f32 arithmetic that is rounded after.
PAIRS = {"add": "ts_add_pair", "sub": "ts_sub_pair"}


def elementwise(emitter: Emitter, op: Op) -> dict[str, Any]:
    lower = op.definition.lower
    assert lower is not None
    in_float = op.name != "cast" and computes_in_float(op)
    result = op.result
    ctype = dtype_of(result.type).cuda
    count = tile_info(emitter, result)["count"] if emitter.is_tile(result) else 0
    first, last = emitter.span(count)
    even = first % 2 == last % 2 == 0
    paired = even and not lower.template and _converts_in_pairs(op)
    terms, wide = [], {}
    for value in op.operands:
        element = emitter.name(value)
        if paired and emitter.is_tile(value):
            if dtype_of(value.type) in HALVES:
                element = wide.setdefault(element, f"x{len(wide)}") + "[i]"
            else:
                element += "[r + i]"
        elif emitter.is_tile(value):
            element += "[r]"
        terms.append(f"ts_to_f32({element})" if in_float and not dtype_of(value.type).is_bool else element)
    number = None if in_float or len(op.operands) != 2 else known_number(op.operands[1])
    text = by_power(op.name, terms[0], number) if number is not None else None
    text = text or (lower.expression if in_float or op.name == "cast" else lower.integer).format(*terms)
    narrow = f"x{len(wide)}" if paired and dtype_of(result.type) in HALVES else ""
    return {
        "out": emitter.name(result),
        "ctype": ctype,
        "expression": f"ts_cast<{'float' if narrow else ctype}>({text})",
        "pairs": PAIRS.get(op.name) if even and _comes_in_pairs(op) else None,
        "wide": [(name, source) for source, name in wide.items()],
        "narrow": narrow,
        "operands": [emitter.name(value) for value in op.operands],
        "count": count,
        "first": first,
        "last": last,
    }


def _converts_in_pairs(op: Op) -> bool:
    """Whether an op computes in f32 what is or becomes 16-bit floats, of an even number of registers."""
    tiles = [value.type for value in (op.result, *op.operands) if isinstance(value.type, TileType)]
    dtypes = {tile.dtype for tile in tiles}
    return (
        op.definition.has(ELEMENTWISE)
        and (op.name == "cast" or computes_in_float(op))
        and not dtypes.isdisjoint(HALVES)
        and len(dtypes) + (op.name != "cast") > 1
        and all(dtype in (*HALVES, f32, boolean) for dtype in dtypes)
        and all(tile_layout(tile).registers_per_thread % 2 == 0 for tile in tiles)
    )


def _comes_in_pairs(op: Op) -> bool:
    """Whether all are tiles of one 16-bit float dtype, of an even number of registers."""
    values = [op.result, *op.operands]
    return (
        all(isinstance(value.type, TileType) and dtype_of(value.type) == dtype_of(op.result.type) for value in values)
        and dtype_of(op.result.type) in HALVES
        and tile_layout(op.result.type).registers_per_thread % 2 == 0
    )


@statement("div_by")
def _div_by(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Its operands element by element, in f32. All threads take one branch for a divisor that is a scalar."""
    a, b, inverse = (
        f"ts_to_f32({emitter.name(value)}{'[r]' if emitter.is_tile(value) else ''})" for value in op.operands
    )
    count = tile_info(emitter, op.result)["count"]
    first, last = emitter.span(count)
    shown = {"out": emitter.name(op.result), "ctype": dtype_of(op.result.type).cuda, "count": count}
    uniform = not emitter.is_tile(op.operands[1])
    return {**shown, "first": first, "last": last, "a": a, "b": b, "inverse": inverse, "uniform": uniform}


@statement("constant")
def _constant(emitter: Emitter, op: Op) -> dict[str, Any]:
    dtype = op.attributes["dtype"]
    return {"out": emitter.name(op.result), "ctype": dtype.cuda, "value": literal(op.attributes["value"], dtype)}


@statement("size")
def _size(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "value": size_text(op.attributes["size"])}


@statement("program_id")
def _program_id(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "axis": op.attributes["axis"], "scale": op.attributes["scale"]}


@statement("num_programs")
def _num_programs(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "axis": op.attributes["axis"]}


@statement("hold")
def _hold(emitter: Emitter, op: Op) -> dict[str, Any]:
    """In words of 4 bytes, as elements were loaded, where they come in such."""
    out, step = tile_info(emitter, op.result), 4 // dtype_of(op.result.type).bytes
    return {"out": out, "source": emitter.name(op.operands[0]), "step": 1 if out["count"] % step else step}


@statement("full")
def _full(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": tile_info(emitter, op.result), "value": emitter.name(op.operands[0])}


@statement("broadcast")
def _broadcast(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Register r of the result is a register of the operand: spread axes leave the index one by one."""
    layout, source = tile_layout(op.result.type), op.operands[0]
    index = list(range(layout.registers_per_thread))
    for axis, (small, large) in enumerate(zip(shape_of(source.type), shape_of(op.result.type), strict=True)):
        if small == 1 and large != 1:
            step = layout.slice_map(axis)
            index = [step[i] for i in index]
            layout = layout.slice(axis)
    return {"out": tile_info(emitter, op.result), "source": emitter.name(source), "index": index}


@statement("transpose")
def _transpose(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Every element stays in its thread and gets the register that the exchanged axes give it."""
    source = op.operands[0]
    index = transposed_map(tile_layout(source.type))
    return {"out": tile_info(emitter, op.result), "source": emitter.name(source), "index": index}


@statement("iota")
def _iota(emitter: Emitter, op: Op) -> dict[str, Any]:
    info = tile_info(emitter, op.result)
    axis = op.attributes["axis"] % len(info["shape"])
    index = coordinate_texts(info["layout"], len(info["shape"]), "r")[axis]
    return {
        "out": info["name"],
        "ctype": info["ctype"],
        "count": info["count"],
        "first": info["first"],
        "last": info["last"],
        "expression": f"ts_cast<{info['ctype']}>((ts_i32)({index}))",
    }


@statement("reshape")
def _reshape(emitter: Emitter, op: Op) -> None:
    """The same registers: the result is another name of the operand."""
    emitter.names.of_value[op.result] = emitter.name(op.operands[0])
