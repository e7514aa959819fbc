"""Fragments and matrix instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import coordinate_texts, offset_text, register_count, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op
from tessera.ir.types import buffer_layout, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("ldmatrix")
def _ldmatrix(emitter: Emitter, op: Op) -> dict[str, Any]:
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
    row_name, column_name = (offset_text(emitter, v) for v in op.operands[1:])
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


@statement("ld_operand")
def _ld_operand(emitter: Emitter, op: Op) -> dict[str, Any]:
    info = tile_info(emitter, op.result)
    row, column = (offset_text(emitter, v) for v in op.operands[1:])
    coordinates = coordinate_texts(info["layout"], 2, "r")
    if op.attributes["transposed"]:
        coordinates.reverse()
    return {
        "out": info,
        "buffer": emitter.name(op.operands[0]),
        "shared": emitter.layouts.buffer(buffer_layout(op.operands[0].type)),
        "row": row + coordinates[0],
        "column": column + coordinates[1],
    }


@statement("mma_sync")
def _mma_sync(emitter: Emitter, op: Op) -> dict[str, Any]:
    a, b, acc = op.operands
    rows = register_count(a) // 8
    columns = register_count(b) // 4
    return {
        "out": tile_info(emitter, op.result),
        "a": emitter.name(a),
        "b": emitter.name(b),
        "acc": emitter.name(acc),
        "rows": rows,
        "columns": columns,
    }


@statement("fma_block")
def _fma_block(emitter: Emitter, op: Op) -> dict[str, Any]:
    a, b, acc = op.operands
    layout = tile_layout(acc.type)
    rows, columns = layout.slice(1), layout.slice(0)
    a_step, b_step = rows.block_registers, columns.block_registers * columns.repeats[1]
    lines = []
    for register, (i, j) in enumerate(zip(layout.slice_map(1), layout.slice_map(0), strict=True)):
        a_index = i // rows.block_registers * 8 * rows.block_registers + i % rows.block_registers
        lines.append((register, a_index, j))
    return {
        "out": tile_info(emitter, op.result),
        "a": emitter.name(a),
        "b": emitter.name(b),
        "acc": emitter.name(acc),
        "terms": lines,
        "a_step": a_step,
        "b_step": b_step,
    }
