"""Fragments and matrix instructions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.shared_addresses import Coordinate, shared_address, thread_bits
from tessera.codegen_cuda.statements.common import offset_text, register_count, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op
from tessera.ir.types import buffer_layout, dtype_of, tile_layout
from tessera.target.fragments import multiplying_instruction, vector_registers

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("ldmatrix")
def _ldmatrix(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Fragment loads: four 8x8 matrices an instruction, that is one atom of a, or two atoms of b (one for an odd last).

    Lanes 8q..8q+7 give the row addresses of matrix q. The matrices follow the order of the fragment's words in the
    PTX ISA: a: (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15); b: per atom k 0-7, then k 8-15; of 4-byte
    elements, half as many k's. The instruction transposes where the buffer's rows run across k.
    """
    layout = tile_layout(op.result.type)
    role, transposed = op.attributes["role"], op.attributes["transposed"]
    item = dtype_of(op.result.type).bytes
    words = layout.registers_per_thread * item // 4
    names = emitter.layouts.tile(layout)
    outer = 0 if role == "a" else 1  # the axis that is not K
    per_atom = 4 if role == "a" else 2
    origins = [layout.coordinates(word * 4 // item, 0, 0)[outer] for word in range(0, words, per_atom)]
    steps = []
    if role == "a":
        steps = [(4 * index, 4, origin, 0) for index, origin in enumerate(origins)]
    else:
        for index in range(0, len(origins), 2):
            pair = index + 1 < len(origins)
            steps.append(
                (2 * index, 4 if pair else 2, origins[index], origins[index + 1] - origins[index] if pair else 0)
            )
    trans = transposed if role == "a" else not transposed
    assert item == 2 or not trans, "the lowering loads such operands by elements"
    k_bit, other_bit = (">> 4", ">> 3 & 1") if role == "a" else (">> 3 & 1", ">> 4")
    warp_bits = thread_bits(layout, outer, "warp")
    loads = []
    for word, count, origin, gap in steps:
        step = 8 if role == "a" else gap
        k = Coordinate(f"(ts_lane() {k_bit}) * {16 // item}", 16 // item)
        other = Coordinate(f"{names}_w{outer}", warp_bits, origin)
        other = other.plus(f"(ts_lane() {other_bit}) * {step}", step) if step else other
        inner = ("(ts_lane() & 7)", 7)
        # Buffer rows run along the outer axis and columns along k, or the other way.
        row, column = (other.plus(*inner), k) if (role == "a") != transposed else (k.plus(*inner), other)
        address = shared_address(emitter, op, op.operands[0], row.at(op.operands[1]), column.at(op.operands[2]))
        loads.append({"word": word, "count": count, "address": address})
    return {
        "out": emitter.name(op.result),
        "words": words,
        "loads": loads,
        "buffer": emitter.name(op.operands[0]),
        "suffix": "_trans" if trans else "",
    }


@statement("ld_operand")
def _ld_operand(emitter: Emitter, op: Op) -> dict[str, Any]:
    """One access for each group of registers that lie side by side in a row of the buffer.

    The coordinates of a group are constants beside those of the thread. 16-bit fragments are packed in pairs.
    """
    layout, dtype = tile_layout(op.result.type), dtype_of(op.result.type)
    source = dtype_of(op.operands[0].type)
    transposed = op.attributes["transposed"]
    width = op.attributes["vector"] // source.bytes
    groups = vector_registers(layout, 0 if transposed else 1, width)
    assert groups is not None, "the lowering chose the vector"
    alias = emitter.layouts.tile(layout)
    offsets = [offset_text(emitter, v) for v in op.operands[1:]]
    loads = []
    for group in groups:
        place = [f"{alias}_t{axis} + {c}" for axis, c in enumerate(layout.coordinates(group[0], 0, 0))]
        row, column = reversed(place) if transposed else place
        adjacent = group == tuple(range(group[0], group[0] + width))
        loads.append({"registers": group, "adjacent": adjacent, "row": offsets[0] + row, "column": offsets[1] + column})
    out = emitter.name(op.result)
    packed = dtype.bits == 16
    return {
        "out": out,
        "loaded": emitter.fresh(f"{out}_elements") if packed else out,
        "packed": packed,
        "count": layout.registers_per_thread,
        "ctype": source.cuda,
        "width": width,
        "loads": loads,
        "buffer": emitter.name(op.operands[0]),
        "shared": emitter.layouts.buffer(buffer_layout(op.operands[0].type)),
    }


@statement("fragment")
def _fragment(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Atoms lie row by row in a whole operand: one of each row of atoms makes up a k-block."""
    whole, part = tile_layout(op.operands[0].type), tile_layout(op.result.type)
    inner = part.block_registers
    return {
        "out": emitter.name(op.result),
        "a": emitter.name(op.operands[0]),
        "rows": part.repeats[0],
        "words": inner // 2,
        "step": inner * whole.repeats[1],
        "first": op.attributes["offset"] // part.shape[1] * inner,
    }


@statement("columns")
def _columns(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Blocks lie row by row in a tile: those of the columns follow one another in each row of blocks."""
    whole, part = tile_layout(op.operands[0].type), tile_layout(op.result.type)
    rows = math.prod(part.repeats[:-1])
    return {
        "out": emitter.name(op.result),
        "a": emitter.name(op.operands[0]),
        "ctype": dtype_of(op.result.type).cuda,
        "rows": rows,
        "count": part.registers_per_thread // rows,
        "whole": whole.registers_per_thread // rows,
        "first": op.attributes["offset"] // whole.repeat_shape[-1] * whole.block_registers,
    }


@statement("round_tf32")
def _round_tf32(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {"out": emitter.name(op.result), "a": emitter.name(op.operands[0]), "count": register_count(op.result)}


@statement("mma_sync")
def _mma_sync(emitter: Emitter, op: Op) -> dict[str, Any]:
    a, b, acc = op.operands
    instruction = multiplying_instruction(op.name, dtype_of(a.type))
    atom = instruction.atom
    assert atom is not None, op.name
    rows = register_count(a) // atom.a.size("register")
    columns = register_count(b) // atom.b.size("register")
    return {
        "function": instruction.function,
        "a_words": atom.a_words,
        "b_words": atom.b_words,
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
