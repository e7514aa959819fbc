"""Load once per program of the launch what each iteration of an inner loop loads alike for every program.

    for p:                                  for i in 0..n:  w[i] <- tensor[i]; wait
        for i in 0..n:                      for p:
            w <- tensor[i]; wait      ->        for i in 0..n:
            ... w, x[p, i] ...                      ... w[i], x[p, i] ...

The buffer gets a stage for each iteration. So the weights of every layer stay where one program meets all of them again
and again. Only where shared memory holds everything; what the copies are made of must not change from program to
program, and nothing in the kernel writes the tensor. Exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.dtypes import i64
from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.control import loop_range
from tessera.ir.programs import persistent_loop
from tessera.passes.ahead import computed_behind
from tessera.passes.hoist_invariants import cannot_fail, fits
from tessera.target.arch import Arch
from tessera.target.reuse import written_tensors
from tessera.target.schedule import Schedule, root


@dataclass(eq=False)
class _Stack:
    """Copies of one loop that can be done in front: `behind` are the ops that their windows are computed by."""

    loop: Op
    copies: list[Op]
    behind: list[Op]

    @property
    def count(self) -> int:
        indices = loop_range(self.loop.operands[:3])
        assert indices is not None
        return len(indices)


def stack_invariants(kernel: Kernel, schedule: Schedule, arch: Arch) -> Kernel:
    persistent = persistent_loop(kernel)
    if persistent is None or schedule.copies != "tma":
        return kernel
    for stack in _stacks(kernel, persistent):
        new = _rewrite(kernel, persistent, stack)
        if fits(new, schedule, arch):
            return new
    return kernel


def _stacks(kernel: Kernel, persistent: Op) -> list[_Stack]:
    """The loops with such copies, each with all of them."""
    used, written = uses_of(kernel.body), written_tensors(kernel)
    ops = [inner for region in persistent.regions for inner in region.walk()]
    inside, always, found = set(ops), persistent.regions[0].ops, []
    for loop in ops:
        if not loop.definition.has(COUNTED) or not loop_range(loop.operands[:3]):
            continue
        (body,) = loop.regions
        copies, behind = [], dict[Op, None]()
        for op in body.ops:
            if op.name != "copy_async" or root(op.operand("view")) in written:
                continue
            made = computed_behind(op.operand("view"), inside, body.arguments[0])
            if made is not None and loop not in always and not all(map(cannot_fail, made)):
                continue  # in front of a branch it would run where it did not
            buffer = op.operands[0].defining_op
            alone = (
                buffer is not None and buffer.name == "alloc_shared" and _is_read_here(op.operands[0], op, body, used)
            )
            if made is not None and alone and all(user.name == "wait" for user in used.get(op.result, ())):
                copies.append(op)
                behind |= dict.fromkeys(made)
        if copies:
            found.append(_Stack(loop, copies, [op for op in ops if op in behind]))
    return found


def _is_read_here(buffer: Value, copy: Op, body: Block, used: dict[Value, list[Op]]) -> bool:
    """Whether a buffer is filled by one copy alone, and read in the same iteration only."""
    here = {inner for op in body.ops for inner in (op, *(o for region in op.regions for o in region.walk()))}
    return all(user is copy or user.name == "read" and user in here for user in used[buffer])


def _rewrite(kernel: Kernel, persistent: Op, stack: _Stack) -> Kernel:
    new, builder, mapping = new_kernel_like(kernel)
    stacked = [copy.operands[0] for copy in stack.copies]
    for op in kernel.body.ops:
        if op.name == "alloc_shared" and op.result in stacked:
            continue
        if op is not persistent:
            clone_op(builder.at(op), op, mapping)
            continue
        for buffer in stacked:
            made = buffer.defining_op
            assert made is not None
            clone_op(builder.at(made), made, mapping, stages=stack.count)
        _fill(stack, builder, dict(mapping))
        _copy(op, builder.at(op), mapping, stack, stacked)
    return new


def _fill(stack: _Stack, builder: Builder, mapping: Mapping) -> None:
    """The loop that copies what all iterations need."""
    builder.at(stack.loop)
    indices = loop_range(stack.loop.operands[:3])
    assert indices is not None
    zero, count, one = (builder.value("constant", value=value, dtype=i64) for value in (0, stack.count, 1))
    body = Block()
    number = body.add_argument(zero.type, "stage")
    inner = builder.inner(body)
    (index, *_) = stack.loop.regions[0].arguments
    mapping[index] = _from_number(inner, number, indices)
    for op in stack.behind:
        clone_op(inner, op, mapping)
    tokens = []
    for copy in stack.copies:
        target = inner.at(copy).value("stage", mapping[copy.operands[0]], number)
        tokens.append(inner.value("copy_async", target, mapping[copy.operands[1]], **copy.attributes))
    inner.op("wait", tokens)
    inner.op("yield", [])
    builder.op("for", [zero, count, one], [body])


def _from_number(builder: Builder, number: Value, indices: range) -> Value:
    """The index of iteration `number`."""
    if (indices.start, indices.step) == (0, 1):
        return number
    start, step = (builder.value("constant", value=value, dtype=i64) for value in (indices.start, indices.step))
    return builder.value("add", start, builder.value("mul", number, step))


def _copy(op: Op, builder: Builder, mapping: Mapping, stack: _Stack, stacked: list[Value]) -> None:
    """Copies an op without those copies; in their loop a stacked buffer is the stage of the iteration."""
    landed = {copy.result for copy in stack.copies}
    if op in stack.copies or op.name == "alloc_shared" and op.result in stacked:
        return
    if op.name == "wait":
        tokens = [mapping[value] for value in op.operands if value not in landed]
        if tokens:
            builder.op("wait", tokens)
        return
    if not op.regions:
        clone_op(builder, op, mapping)
        return

    def fill(block: Block, inner: Builder) -> None:
        if op is stack.loop:
            number = _number(op, inner, mapping[block.arguments[0]])
            for buffer in stacked:
                mapping[buffer] = inner.value("stage", mapping[buffer], number, hint=buffer.name)
        for one in block.ops:
            _copy(one, inner.at(one), mapping, stack, stacked)

    clone_with_regions(builder, op, mapping, fill)


def _number(loop: Op, builder: Builder, index: Value) -> Value:
    """Which iteration an index is of."""
    indices = loop_range(loop.operands[:3])
    assert indices is not None
    if (indices.start, indices.step) == (0, 1):
        return index
    start, step = (builder.value("constant", value=value, dtype=i64) for value in (indices.start, indices.step))
    return builder.value("floordiv", builder.value("sub", index, start), step)
