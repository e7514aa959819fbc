"""Start asynchronous copies early and wait for them late, so that what lies between runs while they fly.

Inside a stretch of ops without regions, barriers, waits or stores to tensors, copies into buffers that nothing before
them in the stretch uses, and what closes their groups, move to the front with what feeds them. A wait moves down to the
first op that uses a buffer that it completes, as long as nothing on the way orders threads or copies. Copies that run
for another iteration, if there is one, move behind the first products of warpgroups: these go on while threads compute
addresses. Exact.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.opdef import ASYNC, COLLECTIVE, PURE, TERMINATOR
from tessera.ir.ops.roles import uses_ring
from tessera.ir.stages import allocation, landing
from tessera.ir.types import BufferType, TileType, TokenType, ViewType
from tessera.passes.lower_copies import count_groups

COPY, COMMIT, WAIT = "cp_async", "async_commit", "async_wait"


def order_copies(kernel: Kernel) -> Kernel:
    """The kernel with its copies and waits in order; itself where they are."""
    behind = landing(kernel.body)
    if _is_ordered(kernel.body, behind):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping, behind)
    count_groups(new)
    return new


def _copy(block: Block, builder: Builder, mapping: Mapping, behind: dict[Value, set[Value]]) -> None:
    for op in _ordered(block.ops, behind):
        builder.at(op)
        if op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, behind))
        else:
            clone_op(builder, op, mapping)


def _ordered(ops: list[Op], behind: dict[Value, set[Value]]) -> list[Op]:
    return _beside_products(_started_early(_waited_late(ops, behind)))


def _is_ordered(block: Block, behind: dict[Value, set[Value]]) -> bool:
    inside = (region for op in block.ops for region in op.regions)
    return _ordered(block.ops, behind) == block.ops and all(_is_ordered(region, behind) for region in inside)


def _waited_late(ops: list[Op], behind: dict[Value, set[Value]]) -> list[Op]:
    result: list[Op] = []
    held: list[Op] = []  # waits that have not found their place
    for op in ops:
        due = held if _orders(op) else [wait for wait in held if _touches(op, wait, behind)]
        if due:  # waits keep their order
            last = held.index(due[-1])
            result += held[: last + 1]
            held = held[last + 1 :]
        # What a loop leaves in flight is waited for at once: its buffers' bytes may serve something else then.
        if op.name == WAIT and all(v.defining_op is not None and v.defining_op.name == COMMIT for v in op.operands):
            held.append(op)
        else:
            result.append(op)
    return [*result, *held]


def _orders(op: Op) -> bool:
    definition = op.definition
    ordered = definition.has(COLLECTIVE) or definition.has(TERMINATOR) or definition.has(ASYNC) or op.name == COMMIT
    return ordered or uses_ring(op)


def _touches(op: Op, wait: Op, behind: dict[Value, set[Value]]) -> bool:
    buffers = set().union(*(behind.get(token, set()) for token in wait.operands))
    tokens = set(wait.operands)
    inner = [op, *(other for region in op.regions for other in region.walk())]
    return any(
        value in tokens or isinstance(value.type, BufferType) and allocation(value) in buffers
        for one in inner
        for value in one.operands
    )


def _beside_products(ops: list[Op]) -> list[Op]:
    """With the first branch that only copies, and the commit behind it, in front of the first wait for products beside
    which others are in flight, or else the first wait for any, if nothing on the way has to do with copies.
    """
    start = next((place for place, op in enumerate(ops) if _only_copies(op)), len(ops))
    commit = next((place for place in range(start, len(ops)) if ops[place].name == COMMIT), len(ops))
    waits = [place for place in range(commit, len(ops)) if ops[place].name == "wgmma_wait"]
    if not waits:
        return ops
    moved = [ops[start], ops[commit]]
    tokens = {value for op in moved for value in op.results}
    end = next((place for place in waits if ops[place].attributes["pending"]), waits[0])
    passed = [op for op in ops[start:end] if op not in moved]
    if any(op.regions or op.name in (COPY, COMMIT, WAIT) or not tokens.isdisjoint(op.operands) for op in passed):
        return ops
    return [*ops[:start], *passed, *moved, *ops[end:]]


def _only_copies(op: Op) -> bool:
    inner = [other for region in op.regions for other in region.walk()]
    plain = all(other.name == COPY or other.definition.has(PURE) or other.definition.has(TERMINATOR) for other in inner)
    tokens = all(isinstance(value.type, TokenType) for value in op.results)
    return op.name == "if" and tokens and plain and any(other.name == COPY for other in inner)


def _started_early(ops: list[Op]) -> list[Op]:
    result: list[Op] = []
    stretch: list[Op] = []
    for op in ops:
        if _ends_stretch(op):
            result += [*_early_first(stretch), op]
            stretch = []
        else:
            stretch.append(op)
    return [*result, *_early_first(stretch)]


def _ends_stretch(op: Op) -> bool:
    stores = any(effect != "reads" and isinstance(v.type, ViewType) for effect, v in op.definition.effects_of(op))
    return bool(op.regions) or op.definition.has(COLLECTIVE) or op.name == WAIT or stores or uses_ring(op)


def _early_first(ops: list[Op]) -> list[Op]:
    """The ops with the copies, and what they need, in front; both in the order in which they stood."""
    made = {result: op for op in ops for result in op.results}
    early: set[int] = set()
    used: set[Value] = set()  # buffers that an op further up uses
    for op in ops:
        buffers = {allocation(v) for v in op.operands if isinstance(v.type, BufferType)}
        if op.name in (COPY, COMMIT):
            needed = _needed(op, made, early)
            if needed is not None and not (op.name == COPY and buffers & used):
                early |= needed
                continue
        if op.id not in early and op.name != "stage":
            used |= buffers
    return [*(op for op in ops if op.id in early), *(op for op in ops if op.id not in early)]


def _needed(op: Op, made: dict[Value, Op], early: set[int]) -> set[int] | None:
    """An op with what it is computed from in its stretch; None where that cannot move in front."""
    found = {op.id}
    for value in op.operands:
        source = made.get(value)
        if source is None or source.id in early:
            continue
        if source.name in (COPY, COMMIT) or isinstance(value.type, TileType):
            return None  # a group whose copies stay
        effects = source.definition.effects_of(source)
        if not source.definition.has(PURE) and not (effects and all(effect == "reads" for effect, _ in effects)):
            return None
        inner = _needed(source, made, early)
        if inner is None:
            return None
        found |= inner
    return found
