"""Copies that arrive together: those that one wait waits for, and how their buffers are used."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.opdef import LOOP
from tessera.ir.stages import allocation, stage_count
from tessera.ir.types import BufferType, dtype_of, int_shape


@dataclass(eq=False)
class CopyGroup:
    """The copies of one `wait`, in a block that is in a loop or not.

    `last`: the op of that block after which nothing uses what the copies brought; `read`: tiles that were read into
    registers by then, which products do not take from the buffers themselves. `kept`: each iteration of its loop fills
    a stage of its own, of so many, which stays for what comes behind the loop.
    """

    wait: Op
    copies: list[Op]
    block: Block
    in_loop: bool
    last: Op
    read: list[Value] = field(default_factory=list)
    kept: int = 0

    @property
    def buffers(self) -> list[Value]:
        """What is allocated for the copies."""
        return [allocation(copy.operands[0]) for copy in self.copies]

    @property
    def in_turn(self) -> bool:
        """Whether what comes later takes the same slots."""
        return self.in_loop and not self.kept

    @property
    def bytes(self) -> int:
        return sum(_bytes(buffer) for buffer in self.buffers)

    @property
    def signature(self) -> tuple[object, ...]:
        """Groups of one signature can take turns in the same buffers."""
        return tuple((int_shape(buffer.type), dtype_of(buffer.type)) for buffer in self.buffers)


def _bytes(buffer: Value) -> int:
    size = dtype_of(buffer.type).bytes
    for extent in int_shape(buffer.type):
        size *= extent
    return size


def copy_groups(kernel: Kernel) -> list[CopyGroup] | str:
    """All copies of a kernel in groups, in program order, or why they do not form any, in one sentence.

    Each copy fills a whole buffer of its own, is waited for once, in its block, and read there or deeper.
    """
    used = uses(kernel.body)
    groups: list[CopyGroup] = []
    counted = sum(op.name == "copy_async" for op in kernel.body.walk())
    problem = _collect(kernel.body, used, False, groups)
    if problem is None and sum(len(group.copies) for group in groups) != counted:
        problem = "a copy is waited for in another block than it is started in"
    return groups if problem is None else problem


def _collect(block: Block, used: dict[Value, list[Op]], in_loop: bool, groups: list[CopyGroup]) -> str | None:
    for op in block.ops:
        for region in op.regions:
            problem = _collect(region, used, in_loop or op.definition.has(LOOP), groups)
            if problem:
                return problem
        if op.name == "async_commit":
            return "its copies are in groups of the author's"
        if op.name != "wait":
            continue
        copies = [token.defining_op for token in op.operands]
        if any(copy is None or copy.name != "copy_async" or copy not in block.ops for copy in copies):
            return "a wait is for copies of another block"
        if any(len(used[token]) != 1 for token in op.operands):
            return "a copy is waited for twice"
        group = _group(op, [copy for copy in copies if copy is not None], block, used, in_loop)
        if isinstance(group, str):
            return group
        groups.append(group)
    return None


def _group(wait: Op, copies: list[Op], block: Block, used: dict[Value, list[Op]], in_loop: bool) -> CopyGroup | str:
    stages = {_kept(copy, block, used) for copy in copies}
    if stages != {0}:
        (kept,) = stages if len(stages) == 1 else (0,)
        return CopyGroup(wait, copies, block, in_loop, wait, kept=kept) if kept else "a copy fills a stage of a buffer"
    place = {id(inner): index for index, op in enumerate(block.ops) for inner in _walk(op)}
    last, read = block.ops.index(wait), []
    for copy in copies:
        buffer = copy.operands[0]
        if not isinstance(buffer.type, BufferType) or buffer.defining_op is None:
            return "a copy fills a part of a buffer"
        if buffer.defining_op.name != "alloc_shared" or (buffer.defining_op.get("stages") or 1) > 1:
            return "a copy fills a stage of a buffer"
        for user in used[buffer]:
            if user is copy:
                continue
            if user.name != "read" or place.get(id(user), -1) <= block.ops.index(wait):
                return f"'{buffer.name}' is used otherwise than by reading it after its copy"
            for final in used.get(user.result, ()):
                taken = final.name == "mma" and user.result in final.operands[:2]
                if not taken and user in block.ops and user.result not in read:
                    read.append(user.result)
                if not taken and user not in block.ops and in_loop:
                    return f"a part of '{buffer.name}' is read in a loop that its copy is not in"
                last = max(last, place.get(id(final), -1) if taken else place[id(user)])
            last = max(last, place[id(user)])
    return CopyGroup(wait, copies, block, in_loop, block.ops[last], read)


def _kept(copy: Op, block: Block, used: dict[Value, list[Op]]) -> int:
    """How many stages the buffer of a copy has, each of which one iteration alone fills; 0 of another one."""
    stage, buffer = copy.operands[0].defining_op, allocation(copy.operands[0])
    if stage is None or stage.name != "stage" or stage not in block.ops:
        return 0
    others = [user for user in used[buffer] if user is not stage]
    reads = all(user.name == "stage" and all(r.name == "read" for r in used.get(user.result, ())) for user in others)
    fills = [user for user in used[stage.result] if user is not copy]
    return stage_count(buffer) if reads and not fills and not any(user in block.ops for user in others) else 0


def _walk(op: Op) -> list[Op]:
    return [op, *(inner for region in op.regions for inner in region.walk())]
