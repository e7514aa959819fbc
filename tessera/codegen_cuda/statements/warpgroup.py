"""Products of warpgroups: descriptors of the operands in shared memory, and one instruction for each step along k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import known_number, register_count
from tessera.codegen_cuda.statements.registry import statement
from tessera.ir.core import Op, Value
from tessera.ir.layout import SharedLayout
from tessera.ir.ops.wgmma import wgmma_operands
from tessera.ir.types import BufferType, buffer_layout, dtype_of
from tessera.target.warpgroups import GROUP_ROWS, STEP_BYTES, descriptor_of, instruction_columns

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter


@statement("wgmma")
def _wgmma(emitter: Emitter, op: Op) -> dict[str, Any]:
    """The sums take the place of those that are added to, where nobody else uses these."""
    found = wgmma_operands(op)
    (m, n), depth = op.attributes["shape"], op.attributes["depth"]
    item = dtype_of(found.b.type).bytes
    step, columns = STEP_BYTES // item, instruction_columns(n)
    groups = emitter.warps // 4
    rows, parts = m // (GROUP_ROWS * groups), n // columns
    b = _Operand(buffer_layout(found.b.type), not op.attributes["transpose_b"])
    in_shared = isinstance(found.a.type, BufferType)
    a = _Operand(buffer_layout(found.a.type), op.attributes["transpose_a"]) if in_shared else None
    steps = []
    for k in range(0, depth, step):
        for i in range(rows):
            for j in range(parts):
                steps.append(
                    {
                        "acc": (i * parts + j) * (columns // 2),
                        "a": a.moved(i * GROUP_ROWS * groups, k) if a else 4 * (i * (depth // step) + k // step),
                        "b": b.moved(j * columns, k),
                        "adds": "true" if k or not op.attributes["fresh"] else "false",
                    }
                )
    kind = {"bf16": "bf16", "f16": "f16", "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2"}[dtype_of(found.b.type).name]
    emitter.instructions.add(f"TS_WGMMA({kind}, {columns})")
    alone = found.acc is not None and len(emitter.used[found.acc]) == 1
    name = emitter.name(found.acc) if alone else emitter.fresh(op.result.name or "acc")
    emitter.names.of_value[op.result] = name
    transposes = f"{int(b.across)}" if a is None else f"{int(a.across)}, {int(b.across)}"
    return {
        "out": name,
        "count": register_count(op.result),
        "declare_sums": not alone,
        "initial": "" if alone or found.acc is None else emitter.name(found.acc),
        "function": f"ts_wgmma_{kind}_n{columns}_{'ss' if in_shared else 'rs'}<{transposes}>",
        "a": a.descriptor(emitter, found.a, found.a_offsets, f"ts_warp() / 4 * {GROUP_ROWS}" if groups > 1 else "")
        if a
        else emitter.name(found.a),
        "a_words": 0 if in_shared else register_count(found.a) * item // 4,
        "words": emitter.fresh("words"),
        "a_descriptor": emitter.fresh("a_descriptor"),
        "b": b.descriptor(emitter, found.b, found.b_offsets, ""),
        "b_descriptor": emitter.fresh("b_descriptor"),
        "steps": steps,
    }


@dataclass(frozen=True)
class _Operand:
    """An operand in shared memory; `across`: the rows of its buffer run across k, its columns along m or n."""

    layout: SharedLayout
    across: bool

    def moved(self, outer: int, k: int) -> int:
        """What a descriptor grows by, in units of 16 bytes, further along m or n and along k."""
        row, column = (k, outer) if self.across else (outer, k)
        return self._bytes(row, column) // 16

    def _bytes(self, row: int, column: int) -> int:
        panel, within = divmod(column, self.layout.panel_columns)
        return panel * self.layout.panel_stride + row * self.layout.pitch + within * self.layout.itemsize

    def descriptor(self, emitter: Emitter, buffer: Value, offsets: Any, group: str) -> str:
        """The call that makes the descriptor of the window at `offsets`; `group`: the first row of the warpgroup."""
        fields = descriptor_of(self.layout, self.across)
        start, terms = 0, [emitter.name(buffer)]
        for axis, value in enumerate(offsets):
            number = known_number(value)
            if number is not None:
                start += self._bytes(*((number, 0) if axis == 0 else (0, number)))
            else:
                terms.append(self._text(f"(int){emitter.name(value)}", axis))
        if group:
            terms.append(self._text(group, 1 if self.across else 0))
        text = " + ".join([*terms, *([str(start)] if start else [])])
        return f"ts_wgmma_descriptor({text}, {fields.leading}, {fields.stride}, {fields.swizzle})"

    def _text(self, value: str, axis: int) -> str:
        """The bytes that so many rows, or columns, are from the first."""
        layout = self.layout
        if axis == 0:
            return f"({value}) * {layout.pitch}"
        if layout.panels == 1:
            return f"({value}) * {layout.itemsize}"
        columns = layout.panel_columns
        panel = f"({value}) / {columns} * {layout.panel_stride}"
        return f"{panel} + ({value}) % {columns} * {layout.itemsize}"


@statement("wgmma_wait")
def _wgmma_wait(emitter: Emitter, op: Op) -> dict[str, Any]:
    name = emitter.name(op.operands[0])
    emitter.names.of_value[op.result] = name
    return {"acc": name, "pending": op.attributes["pending"], "count": register_count(op.result)}
