"""Load once per program of the launch what all the programs that a persistent loop runs load alike.

    for p:                                          w <- tensor; wait
        w <- tensor; x <- tensor[p]; wait    ->     for p:
        ... w, x ...                                    x <- tensor[p]; wait
                                                        ... w, x ...

In front of the loop go, where neither the number of the program nor anything that the kernel writes decides them:

- index arithmetic, windows, and numbers that are loaded or computed;
- buffers with one write in the kernel, a copy or a tile, with that write and all that it is computed from, the largest
  ones only as far as shared memory holds everything;
- tiles that are loaded into registers, up to `REGISTERS` a thread together, as if every warp held all of each.

What moves stands in the body of the loop, which runs at least once, or in a guard there that leaves out work beyond the
end of a tensor. Of the latter nothing moves that could fail where it did not run. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import ASYNC, PURE
from tessera.ir.ops.control import constant_value
from tessera.ir.programs import persistent_loop
from tessera.ir.types import ScalarType, TileType, ViewType, dtype_of
from tessera.passes.split_roles import LEAST_STAGES, holds, split_roles
from tessera.target.arch import Arch
from tessera.target.reuse import written_tensors
from tessera.target.schedule import Schedule, buffer_bytes, elements, root
from tessera.target.schedules import pins_of

REGISTERS = 32  # 32-bit registers of hoisted tiles: an eighth of what a thread can have
WORDS_OF_A_WARP = 32  # that one register of each lane holds


def hoist_invariants(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel:
    """The kernel with what its persistent loop repeats in front of that; itself where it has none."""
    loop = persistent_loop(kernel)
    if loop is None:
        return kernel
    found = _Invariants(kernel, loop)
    buffers = sorted(found.buffers(), key=buffer_bytes)
    while True:
        new = _rewrite(kernel, loop, found, buffers, apart=schedule.copies == "tma")
        if not buffers or fits(new, schedule, arch):
            return new
        buffers.pop()


def fits(kernel: Kernel, schedule: Schedule, arch: Arch) -> bool:
    """Whether a multiprocessor holds as many blocks of the kernel as it is to run.

    What stays is loaded once, so rings make do with the fewest slots, unless those are pinned.
    """
    stages = schedule.stages if "stages" in pins_of(kernel) else min(schedule.stages, LEAST_STAGES)
    return holds(split_roles(kernel, replace(schedule, stages=stages), arch, limited=False), schedule, arch)


class _Invariants:
    """What is the same in every iteration of a loop, of the `ops` in its body and in guards round the work in it."""

    def __init__(self, kernel: Kernel, loop: Op):
        (body,) = loop.regions
        self.kernel, self.written, self.used = kernel, written_tensors(kernel), uses_of(kernel.body)
        self.ops = list(_unguarded(body))
        always = set(body.ops)
        self._behind: dict[Value, list[Op] | None] = {value: None for value in body.arguments}
        for op in self.ops:  # operands come first
            for result in op.results:
                self._behind[result] = self._computed(op) if op in always or cannot_fail(op) else None

    def behind(self, value: Value) -> list[Op] | None:
        """The ops of the body that an invariant value is computed by; None for a value that may change."""
        return self._behind.get(value, [])  # from outside

    def _computed(self, op: Op) -> list[Op] | None:
        if op.regions or not (op.definition.has(PURE) or self._loads(op)):
            return None
        return self._all([op], op.operands)

    def _all(self, ops: list[Op], operands: list[Value]) -> list[Op] | None:
        found = dict.fromkeys(ops)
        for value in operands:
            inner = self.behind(value)
            if inner is None:
                return None
            found |= dict.fromkeys(inner)
        return list(found)

    def _loads(self, op: Op) -> bool:
        effects = op.definition.effects_of(op)
        reads = all(e == "reads" and isinstance(v.type, ViewType) and root(v) not in self.written for e, v in effects)
        return bool(effects) and reads and not op.definition.has(ASYNC)

    def numbers(self) -> list[Op]:
        """Ops that give an invariant number or view, with all behind them."""
        found: dict[Op, None] = {}
        for op in self.ops:
            if op.results and all(isinstance(result.type, (ScalarType, ViewType)) for result in op.results):
                found |= dict.fromkeys(self.behind(op.results[0]) or ())
        return list(found)

    def tiles(self) -> list[Op]:
        """The loads of invariant tiles that stay in registers."""
        found, left = [], REGISTERS
        for op in self.ops:
            if len(op.results) != 1 or not isinstance(op.result.type, TileType) or not self._loads(op):
                continue
            words = -(-elements(op.result) * dtype_of(op.result.type).bytes // 4)
            registers = -(-words // WORDS_OF_A_WARP)
            if self.behind(op.result) is not None and registers <= left:
                found.append(op)
                left -= registers
        return found

    def buffers(self) -> dict[Value, list[Op]]:
        """The buffers with one write, which is invariant, each with its write and the ops behind that."""
        writes: dict[Value, list[Op]] = {}
        for op in self.kernel.body.walk():
            for effect, value in op.definition.effects_of(op):
                if effect != "reads":
                    writes.setdefault(value, []).append(op)
        allocated = [op for op in self.kernel.body.walk() if op.name == "alloc_shared" and op.attributes["stages"] == 1]
        found = {}
        for op in allocated:
            (write, *others) = writes.get(op.result, [None])
            if write is None or others or write not in self.ops or not self._moves(write):
                continue
            inputs = [value for value in write.operands if value is not op.result]
            behind = self._all([write], inputs)
            if behind is not None:
                found[op.result] = behind
        return found

    def _moves(self, write: Op) -> bool:
        """Whether a write of a buffer can stand elsewhere: one of a tile, or a copy that waits of the loop complete."""
        if write.name == "write":
            return True
        waits = self.used.get(write.result, []) if write.name == "copy_async" else []
        reads = root(write.operand("view")) not in self.written if waits else False
        return reads and all(op.name == "wait" and op in self.ops for op in waits)


def _rewrite(kernel: Kernel, loop: Op, found: _Invariants, buffers: list[Value], apart: bool) -> Kernel:
    """`apart`: each copy has a wait of its own, which roles put where it is needed."""
    filled = found.buffers()
    tiles, numbers = found.tiles(), found.numbers()
    needed = {op for buffer in buffers for op in filled[buffer]}
    needed |= {inner for op in tiles for inner in found.behind(op.result) or ()}
    # What leads to a buffer through registers is computed there and, for its other users, in the loop.
    moved = {op for op in (*numbers, *tiles) if _is_light(op) or op in tiles}
    moved |= {filled[buffer][0] for buffer in buffers}
    moved |= {op for buffer in buffers if (op := buffer.defining_op) is not None and op in found.ops}
    new, builder, mapping = new_kernel_like(kernel)
    for op in kernel.body.ops:
        if op is not loop:
            clone_op(builder.at(op), op, mapping)
            continue
        outside = dict(mapping)
        tokens = []
        for inner in found.ops:
            if inner in moved or inner in needed or inner in numbers:
                copy = clone_op(builder.at(inner), inner, outside)
                tokens += copy.results if inner.definition.has(ASYNC) else []
        for landing in [[token] for token in tokens] if apart else [tokens] if tokens else []:
            builder.at(loop).op("wait", landing)
        mapping |= {result: outside[result] for inner in moved for result in inner.results}
        landed = {result for inner in moved if inner.definition.has(ASYNC) for result in inner.results}
        _copy_op(op, builder.at(op), mapping, moved, landed)
    return new


def _unguarded(block: Block) -> Iterator[Op]:
    """The ops of a block, and those of branches in it that give nothing and have no other side."""
    for op in block.ops:
        yield op
        if op.name == "if" and not op.results and len(op.regions[1].ops) == 1:
            yield from _unguarded(op.regions[0])


def cannot_fail(op: Op) -> bool:
    """Whether an op is right for any operands: no division by zero, no tensor that a list does not have."""
    if op.name == "element":
        return constant_value(op.operand("index")) is not None
    return op.name not in ("floordiv", "mod") or bool(constant_value(op.operands[1]))


def _is_light(op: Op) -> bool:
    """Whether what an op gives takes no registers that count."""
    return all(isinstance(result.type, (ScalarType, ViewType)) for result in op.results)


def _copy_op(op: Op, builder: Builder, mapping: Mapping, moved: set[Op], landed: set[Value]) -> None:
    """Copies an op without what has moved; `landed`: tokens of copies that were waited for."""
    if op.name == "wait":
        tokens = [mapping[value] for value in op.operands if value not in landed]
        if tokens:
            builder.op("wait", tokens)
    elif op.regions:

        def fill(block: Block, inner: Builder) -> None:
            for one in block.ops:
                if one not in moved:
                    _copy_op(one, inner.at(one), mapping, moved, landed)

        clone_with_regions(builder, op, mapping, fill)
    else:
        clone_op(builder, op, mapping)
