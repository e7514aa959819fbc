"""Fold scalar constants, merge equal pure ops, drop what nothing uses, loops that never run and those that run once.

Exact: no value of any output changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.dtypes import bf16, f16, f32
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, add_notes, clone_op, new_kernel_like, uses
from tessera.ir.opdef import ASYNC, BRANCH, CONSTANT, COUNTED, LOOP, PURE, TERMINATOR
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.ops.roles import uses_ring
from tessera.ir.stages import allocation
from tessera.ir.types import BufferType, ScalarType, TileType, ViewType, dtype_of
from tessera.target.schedule import root


def canonicalise(kernel: Kernel) -> Kernel:
    """One forward sweep (fold, merge) and one backward sweep (drop), which is all that straight producers need."""
    return drop_unused(_fold_and_merge(kernel))


def _fold_and_merge(kernel: Kernel) -> Kernel:
    new, builder, mapping = new_kernel_like(kernel)
    written = {
        root(value) for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect != "reads"
    }
    _sweep(kernel.body.ops, builder, mapping, {}, written)
    return new


def _mergeable(op: Op, written: set[Value]) -> bool:
    """Whether two equal ops give one value: pure ones, and loads of tensors that the kernel never writes."""
    if len(op.results) != 1 or op.definition.has(ASYNC):
        return False
    effects = op.definition.effects_of(op)
    return (
        op.definition.has(PURE)
        or bool(effects)
        and all(
            effect == "reads" and isinstance(value.type, ViewType) and root(value) not in written
            for effect, value in effects
        )
    )


def _sweep(
    ops: Sequence[Op], builder: Builder, mapping: Mapping, outer: dict[Any, Value], written: set[Value]
) -> dict[Any, Value]:
    """Copies ops into the block that `builder` writes; returns, by what they are, the values that it holds then."""
    available = dict(outer)  # an op seen in an enclosing block dominates this one
    for op in ops:
        builder.at(op)
        iterations = _iterations(op, mapping)
        if iterations == 0:
            mapping.update(zip(op.results, (mapping[v] for v in op.operands[3:]), strict=True))
            continue
        if iterations == 1:
            (body,) = op.regions
            mapping.update(zip(body.arguments, (mapping[v] for v in (op.operands[0], *op.operands[3:])), strict=True))
            available = _sweep(body.ops[:-1], builder, mapping, available, written)
            mapping.update(zip(op.results, (mapping[v] for v in body.ops[-1].operands), strict=True))
            continue
        if op.regions:
            regions = []
            for region in op.regions:
                copy = Block()
                for argument in region.arguments:
                    mapping[argument] = copy.add_argument(argument.type, argument.name)
                _sweep(region.ops, builder.inner(copy), mapping, available, written)
                regions.append(copy)
            new = builder.op(
                op.name, [mapping[v] for v in op.operands], regions, [r.name for r in op.results], **op.attributes
            )
            mapping.update(zip(op.results, new.results, strict=True))
            continue
        if not _mergeable(op, written):
            clone_op(builder, op, mapping)
            continue
        folded = _fold(op, [mapping[v] for v in op.operands], builder)
        if folded is None:
            key = (op.name, tuple(map(id, (mapping[v] for v in op.operands))), repr(op.attributes))
            if key not in available:
                available[key] = clone_op(builder, op, mapping).result
            folded = available[key]
        mapping[op.result] = folded
    return available


def _iterations(op: Op, mapping: Mapping) -> int | None:
    """How often a loop runs, where its bounds say so."""
    if not op.definition.has(COUNTED):
        return None
    indices = loop_range([mapping[v] for v in op.operands[:3]])
    return None if indices is None else len(indices)


def _fold(op: Op, operands: list[Value], builder: Builder) -> Value | None:
    """A simpler value for the op, or None: integer constants are computed, x + 0 and x * 1 are x, products read
    transposed operands as they are, and sums of two narrow values are narrow.
    """
    type_ = op.result.type
    if op.name == "mma":
        return _absorb_transposes(op, operands, builder)
    if op.name == "cast" and isinstance(type_, TileType) and type_.dtype in (bf16, f16):
        return _narrow_sum(op, operands[0].defining_op, builder)
    if op.name == "transpose" and (inner := operands[0].defining_op) is not None and inner.name == "transpose":
        return inner.operands[0]
    if not isinstance(type_, ScalarType) or not type_.dtype.is_int or not operands or op.definition.has(CONSTANT):
        return None
    constants = [constant_value(value) for value in operands]
    if all(constant is not None for constant in constants) and op.definition.evaluate is not None:
        try:
            result = op.definition.evaluate(op, *(np.array([constant]) for constant in constants))
        except (OverflowError, ZeroDivisionError, TypeError, ValueError):
            return None  # the run reports it at the op
        value = int(result[0])
        return builder.value("constant", hint=op.result.name, value=value, dtype=type_.dtype, weak=type_.weak)
    if len(operands) == 2:
        neutral = {"add": 0, "sub": 0, "mul": 1, "floordiv": 1}.get(op.name)
        if neutral is not None and constants[1] == neutral and operands[0].type == type_:
            return operands[0]
        if op.name in ("add", "mul") and constants[0] == neutral and operands[1].type == type_:
            return operands[1]
    return None


def _absorb_transposes(op: Op, operands: list[Value], builder: Builder) -> Value | None:
    flags = dict(op.attributes)
    sources = list(operands)
    for index, flag in enumerate(("transpose_a", "transpose_b")):
        producer = operands[index].defining_op
        if producer is not None and producer.name == "transpose":
            sources[index] = producer.operands[0]
            flags[flag] = not flags[flag]
    if flags == op.attributes:
        return None
    return builder.value(op.name, *sources, hint=op.result.name, **flags)


def _narrow_sum(cast: Op, made: Op | None, builder: Builder) -> Value | None:
    """A sum or difference in f32 of two values of the 16-bit dtype that it is rounded to, as one op of that dtype.

    Their bits are the same, as an op of a 16-bit dtype computes in f32 and rounds once. Registers hold such sums in
    pairs, and what is narrow takes half of them.
    """
    if made is None or made.name not in ("add", "sub") or dtype_of(made.result.type) != f32:
        return None
    narrow = cast.result.type
    sources = [v.defining_op.operands[0] for v in made.operands if v.defining_op and v.defining_op.name == "cast"]
    if len(sources) < 2 or any(source.type != narrow for source in sources):
        return None
    return builder.value(made.name, *sources, hint=cast.result.name or made.result.name)


def drop_unused(kernel: Kernel) -> Kernel:
    """Removes ops without effect whose results are unused, and buffers that are written but never read."""
    while True:
        dead = _dead_ops(kernel)
        if not dead:
            return kernel
        new, builder, mapping = new_kernel_like(kernel)
        _note_dead_buffers(new, kernel, dead)
        _copy_without(kernel.body, builder, mapping, dead)
        kernel = new


def _note_dead_buffers(new: Kernel, old: Kernel, dead: set[int]) -> None:
    """Says which of the author's buffers nothing reads; once there is a schedule, buffers are the compiler's own."""
    if "schedule" in old.attributes:
        return
    buffers = [op.result for op in old.body.walk() if op.name == "alloc_shared" and op.id in dead and op.result.name]
    notes = tuple(f"the buffer '{buffer.name}' is never read: it takes no memory" for buffer in buffers)
    if notes:
        add_notes(new, *notes)


def _dead_ops(kernel: Kernel) -> set[int]:
    used = uses(kernel.body)
    dead: set[int] = set()
    for op in kernel.body.walk():
        definition = op.definition
        unused = not any(result in used for result in op.results)
        if not unused or definition.has(TERMINATOR):
            continue
        if definition.has(PURE) or (op.results and not definition.effects and not op.regions):
            dead.add(op.id)
        elif op.results and set(definition.effects.values()) == {"reads"}:
            dead.add(op.id)
        elif op.regions and (definition.has(LOOP) or definition.has(BRANCH)) and not _has_effect(op):
            dead.add(op.id)
    for op in kernel.body.walk():
        for result in op.results:
            if isinstance(result.type, BufferType) and allocation(result) is result and op.id not in dead:
                users = used.get(result, [])
                if users and all(_only_writes(user, result) for user in users):
                    dead |= {user.id for user in users} | {op.id}
    # A token of a dropped copy leaves its wait by `_copy_without`.
    return dead


def _has_effect(op: Op) -> bool:
    return any(
        inner.definition.effects or not inner.definition.has(PURE) and not inner.definition.has(TERMINATOR)
        for region in op.regions
        for inner in region.walk()
    )


def _only_writes(op: Op, buffer: Value) -> bool:
    if uses_ring(op):
        return False  # its bytes are counted
    effects = {effect for effect, value in op.definition.effects_of(op) if value is buffer}
    return effects == {"writes"} and (not op.results or op.definition.has(ASYNC))


def _copy_without(block: Block, builder: Builder, mapping: Mapping, dead: set[int]) -> None:
    for op in block.ops:
        if op.id in dead:
            continue
        builder.at(op)
        variadic = op.definition.operands and op.definition.operands[-1].startswith("*")
        operands = [mapping[v] for v in op.operands if v in mapping] if variadic else [mapping[v] for v in op.operands]
        if op.name == "wait" and not operands:
            continue
        regions = []
        for region in op.regions:
            copy = Block()
            for argument in region.arguments:
                mapping[argument] = copy.add_argument(argument.type, argument.name)
            _copy_without(region, builder.inner(copy), mapping, dead)
            regions.append(copy)
        new = builder.op(op.name, operands, regions, [r.name for r in op.results], **op.attributes)
        mapping.update(zip(op.results, new.results, strict=True))
