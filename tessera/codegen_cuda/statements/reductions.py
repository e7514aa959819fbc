"""Reductions and scans: inside a warp in registers, across warps through blocks in shared memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.reductions import (
    BLOCK,
    Arithmetic,
    Line,
    block_lines,
    finished,
    reduction_lines,
    scan_lines,
    total_lines,
    tree_lines,
)
from tessera.codegen_cuda.statements.common import coordinate_texts, tile_info
from tessera.codegen_cuda.statements.registry import statement
from tessera.codegen_cuda.statements.shared_memory import place_text
from tessera.ir.core import Op, Value
from tessera.ir.layout import LANES
from tessera.ir.ops.target import physical_shape
from tessera.ir.types import BufferType, buffer_layout, dtype_of, int_shape, tile_layout

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


def _line(emitter: Emitter, op: Op, source: Value) -> Line:
    layout, shape = tile_layout(source.type), int_shape(source.type)
    axis = op.attributes["axis"] % len(shape)
    return Line(layout, axis, shape[axis], emitter.name(source), emitter.layouts.tile(layout))


@statement("reduce_sum", "reduce_max", "reduce_min")
def _reduce(emitter: Emitter, op: Op) -> dict[str, Any]:
    source, out = op.operands[0], tile_info(emitter, op.result)
    arithmetic = Arithmetic(op.name.removeprefix("reduce_"), dtype_of(source.type))
    return {"out": out, "lines": reduction_lines(arithmetic, _line(emitter, op, source), out["name"], out["ctype"])}


@statement("reduce_blocks")
def _reduce_blocks(emitter: Emitter, op: Op) -> dict[str, Any]:
    source, out = op.operands[0], tile_info(emitter, op.result)
    arithmetic = Arithmetic(op.attributes["combine"], dtype_of(source.type))
    line = _line(emitter, op, source)
    return {"out": out, "lines": block_lines(arithmetic, line, out["name"], op.attributes["size"])}


@statement("scan_blocks")
def _scan_blocks(emitter: Emitter, op: Op) -> dict[str, Any]:
    source, out = op.operands[0], tile_info(emitter, op.result)
    arithmetic = Arithmetic(op.attributes["combine"], dtype_of(source.type))
    return {"out": out, "lines": scan_lines(arithmetic, _line(emitter, op, source), out["name"])}


@statement("block_totals")
def _block_totals(emitter: Emitter, op: Op) -> dict[str, Any]:
    out = tile_info(emitter, op.result)
    return {"out": out, "lines": total_lines(_line(emitter, op, op.operands[0]), out["name"])}


def _element(emitter: Emitter, buffer: Value, coordinates: list[str]) -> str:
    """The address of an element of a shared buffer."""
    layout = emitter.layouts.buffer(buffer_layout(buffer.type))
    return f"{emitter.name(buffer)} + {layout}({place_text(coordinates, int_shape(buffer.type))})"


def _inside(coordinates: list[str], shape: tuple[int, ...], physical: tuple[int, ...], axis: int) -> list[str]:
    """Conditions that hold for elements of the tile, not of its padding, along all axes but `axis`."""
    return [
        f"{coordinate} < {size}"
        for number, (coordinate, size, reach) in enumerate(zip(coordinates, shape, physical, strict=True))
        if number != axis and reach > size
    ]


@statement("fold_blocks")
def _fold_blocks(emitter: Emitter, op: Op) -> dict[str, Any]:
    buffer, out = op.operands[0], tile_info(emitter, op.result)
    shape = int_shape(buffer.type)
    axis = op.attributes["axis"] % len(shape)
    arithmetic = Arithmetic(op.attributes["combine"], dtype_of(buffer.type))
    names = [f"c{number}" for number in range(len(shape))]

    def block(number: str) -> str:
        return _element(emitter, buffer, [*names[:axis], number, *names[axis + 1 :]])

    elements = [f"x[{number}]" for number in range(shape[axis])]
    return {
        "out": out,
        "names": names,
        "coordinates": coordinate_texts(out["layout"], len(shape), "r"),
        "ctype": arithmetic.ctype,
        "guard": " && ".join(_inside(names, shape, out["physical"], axis)),
        "identity": arithmetic.identity,
        "vector": _blocks_at_once(buffer, axis),
        "at": block("b"),
        "blocks": shape[axis],
        "tree": tree_lines(arithmetic, elements),
        "total": finished(arithmetic, elements[0]),
    }


MOST_BLOCKS = 16  # of a line that a thread folds where other threads can have a part of it


def _blocks_at_once(buffer: Value, axis: int) -> int:
    """How many blocks a thread loads at a time: 16 bytes where they lie side by side, which no swizzle tears apart."""
    shape = int_shape(buffer.type)
    return math.gcd(shape[axis], 16 // dtype_of(buffer.type).bytes) if axis == len(shape) - 1 else 1


@statement("fold_lines")
def _fold_lines(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Some lanes share a line, each with blocks side by side, a power of two; then they combine theirs in a butterfly.
    Lines of the padding, which whoever loads the tile may load too, are zeros.
    """
    buffer, out = op.operands
    assert isinstance(out.type, BufferType)
    shape, dtype = int_shape(buffer.type), dtype_of(buffer.type)
    axis = op.attributes["axis"] % len(shape)
    arithmetic = Arithmetic(op.attributes["combine"], dtype)
    names = [f"c{number}" for number in range(len(shape))]
    physical = [1 if number == axis else size for number, size in enumerate(physical_shape(out.type))]
    lines, left = math.prod(physical), 1
    coordinates = {}
    for number in reversed([n for n in range(len(shape)) if n != axis]):
        text = "line" if left == 1 else f"line / {left}"
        left *= physical[number]
        coordinates[names[number]] = text if left == lines else f"{text} % {physical[number]}"
    vector = _blocks_at_once(buffer, axis)
    lanes, each = _shares(lines, shape[axis], vector, emitter.threads)

    def at(place: Value, number: str) -> str:
        return _element(emitter, place, [*names[:axis], number, *names[axis + 1 :]])

    butterflies = [1 << bit for bit in range(lanes.bit_length() - 1)]
    return {
        "coordinates": coordinates,
        "lines": lines,
        "inside": ["line < " + str(lines), *_inside(names, shape, tuple(physical), axis)],
        "thread": emitter.thread,
        "threads": emitter.threads,
        "lanes": lanes,
        "each": each,
        "ctype": arithmetic.ctype,
        "identity": arithmetic.identity,
        "vector": vector,
        "blocks": shape[axis],
        "at": at(buffer, "b"),
        "tree": [
            *tree_lines(arithmetic, [f"x[{number}]" for number in range(each)]),
            *(f"x[0] = {arithmetic.combine('x[0]', f'ts_shfl_xor(x[0], {mask})')};" for mask in butterflies),
        ],
        "total": finished(arithmetic, "x[0]"),
        "target": at(out, "0"),
    }


def _shares(lines: int, blocks: int, vector: int, threads: int) -> tuple[int, int]:
    """How many lanes share a line, and how many blocks each of them folds: as many lanes as there are threads for, and
    so many that none folds more than `MOST_BLOCKS`.
    """
    lanes, each = 1, 1 << (blocks - 1).bit_length()
    while lanes < LANES and each > vector and (2 * lanes * lines <= threads or each > MOST_BLOCKS):
        lanes, each = 2 * lanes, each // 2
    return lanes, each


@statement("carry_blocks")
def _carry_blocks(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Each group of registers in one block folds the totals before it, then takes them in."""
    buffer, source = op.operands
    out, shape, count = tile_info(emitter, op.result), int_shape(source.type), int_shape(buffer.type)
    line = _line(emitter, op, source)
    arithmetic = Arithmetic(op.attributes["combine"], dtype_of(buffer.type))
    high = any(c[line.axis] >= BLOCK for c in (*line.layout.block.group("lane"), *line.layout.warp_steps))
    lines: list[str] = []
    for block, members in line.blocks():
        register = next(iter(members.values()))
        at = line.layout.coordinates(register, 0, 0)
        names = [f"{line.alias}_t{number} + {c}" for number, c in enumerate(at)]
        if not high and block == 0:
            lines += [f"{out['name']}[{r}] = ts_cast<{out['ctype']}>({line.source}[{r}]);" for r in members.values()]
            continue
        guards = [f"0 < block && block < {count[line.axis]}", *_inside(names, shape, line.layout.shape, line.axis)]
        first, later = (
            _element(emitter, buffer, [*names[: line.axis], number, *names[line.axis + 1 :]]) for number in ("0", "b")
        )
        ctype = arithmetic.ctype
        lines += [
            "{",
            f"    const int block = ({line.alias}_t{line.axis} + {at[line.axis]}) / {BLOCK};",
            f"    {ctype} carry = {arithmetic.identity};",
            f"    if ({' && '.join(guards)}) {{",
            f"        ts_ld_shared<{ctype}, 1>(&carry, {first});",
            "        TS_ROLLED for (int b = 1; b < block; ++b) {",
            f"            {ctype} x;",
            f"            ts_ld_shared<{ctype}, 1>(&x, {later});",
            f"            carry = {arithmetic.combine('carry', 'x')};",
            "        }",
            "    }",
            *(
                f"    {out['name']}[{r}] = ts_cast<{out['ctype']}>(block > 0 ? "
                f"{arithmetic.combine('carry', f'{line.source}[{r}]')} : {line.source}[{r}]);"
                for r in members.values()
            ),
            "}",
        ]
    return {"out": out, "lines": lines}
