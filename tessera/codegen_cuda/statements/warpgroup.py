"""Products of warpgroups: descriptors of the operands in shared memory, and one instruction for each step along k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import known_number, register_count
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op, Value
from tessera.ir.layout import SharedLayout
from tessera.ir.ops.wgmma import wgmma_operands
from tessera.ir.types import BufferType, buffer_layout, dtype_of
from tessera.target.matrix_descriptors import MatrixDescriptor, matrix_descriptor
from tessera.target.wgmma import WGMMA_INSTRUCTIONS, WGMMA_ROWS, WGMMA_WARPS

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("wgmma")
def _wgmma(emitter: Emitter, op: Op) -> dict[str, Any]:
    """The sums take the place of those that are added to, where nobody else uses these."""
    found = wgmma_operands(op)
    (m, n), depth = op.attributes["shape"], op.attributes["depth"]
    instruction = WGMMA_INSTRUCTIONS[dtype_of(found.a.type).name, dtype_of(found.b.type).name]
    columns, groups, steps = op.attributes["columns"], emitter.warps // WGMMA_WARPS, depth // instruction.k
    in_shared = isinstance(found.a.type, BufferType)
    b = matrix_descriptor(buffer_layout(found.b.type), "b", op.attributes["transpose_b"], instruction, columns)
    a = None
    if in_shared:
        a = matrix_descriptor(buffer_layout(found.a.type), "a", op.attributes["transpose_a"], instruction)
    calls = [
        {
            "acc": (i * (n // columns) + j) * (columns // 2),
            "a": a.offset(k, i * groups) // 16 if a else 4 * (i * steps + k),
            "b": b.offset(k, j) // 16,
            "adds": "true" if k or not op.attributes["fresh"] else "false",
        }
        for k in range(steps)
        for i in range(m // (WGMMA_ROWS * groups))
        for j in range(n // columns)
    ]
    emitter.instructions.add(instruction.declaration(columns))
    acc = found.acc
    alone = acc is not None and len(emitter.used[acc]) == 1
    name = emitter.name(acc) if acc is not None and alone else emitter.fresh(op.result.name or "acc")
    emitter.names.of_value[op.result] = name
    bits = f"{a.trans}, {b.trans}" if a else f"{b.trans}"
    group = f"{emitter.warp} / {WGMMA_WARPS} * {WGMMA_ROWS}" if groups > 1 else ""
    return {
        "out": name,
        "count": register_count(op.result),
        "declare_sums": not alone,
        "initial": "" if alone or acc is None else emitter.name(acc),
        "function": f"{instruction.function(columns, not in_shared)}<{bits}>",
        "a": _descriptor(emitter, a, found.a, found.a_offsets, group) if a else emitter.name(found.a),
        "a_words": 0 if in_shared else register_count(found.a) * instruction.itemsize // 4,
        "words": emitter.fresh("words"),
        "a_descriptor": emitter.fresh("a_descriptor"),
        "b": _descriptor(emitter, b, found.b, found.b_offsets, ""),
        "b_descriptor": emitter.fresh("b_descriptor"),
        "steps": calls,
    }


def _descriptor(
    emitter: Emitter, descriptor: MatrixDescriptor, buffer: Value, offsets: Sequence[Value], group: str
) -> str:
    """The call that makes the descriptor of the window at `offsets`; `group`: the first row of the warpgroup's own."""
    layout = descriptor.layout
    start, terms = 0, [emitter.name(buffer)]
    for axis, value in enumerate(offsets):
        number = known_number(value)
        if number is None:
            terms.append(_bytes_text(layout, f"(int){emitter.name(value)}", axis))
        elif axis == 0:
            start += number * layout.pitch
        else:
            panel, within = divmod(number, layout.panel_columns)
            start += panel * layout.panel_stride + within * layout.itemsize
    if group:
        terms.append(_bytes_text(layout, group, descriptor.trans))
    text = " + ".join([*terms, *([str(start)] if start else [])])
    return f"ts_wgmma_descriptor({text}, {descriptor.leading}, {descriptor.stride}, {descriptor.swizzle})"


def _bytes_text(layout: SharedLayout, value: str, axis: int) -> str:
    """The bytes that so many rows (axis 0) or columns are from the first; columns begin where the swizzle does."""
    if axis == 0:
        return f"({value}) * {layout.pitch}"
    if layout.panels == 1:
        return f"({value}) * {layout.itemsize}"
    columns = layout.panel_columns
    return f"({value}) / {columns} * {layout.panel_stride} + ({value}) % {columns} * {layout.itemsize}"


@statement("wgmma_wait")
def _wgmma_wait(emitter: Emitter, op: Op) -> dict[str, Any]:
    name = emitter.name(op.operands[0])
    emitter.names.of_value[op.result] = name
    return {"acc": name, "pending": op.attributes["pending"], "count": register_count(op.result)}


@statement("fence_async")
def _fence_async(emitter: Emitter, op: Op) -> dict[str, Any]:
    return {}
