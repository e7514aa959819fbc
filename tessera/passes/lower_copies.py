"""Asynchronous copies: they form groups, and a wait counts the groups that may stay in flight.

A copy that the IR puts into no group joins those beside it that are waited for together. The count of a wait follows
from the order of commits alone, on every path: `count_groups` walks it.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.opdef import LOOP
from tessera.ir.types import dtype_of
from tessera.passes.access import access_bytes, in_whole_pieces
from tessera.passes.lowering import Lowering, rule


@rule("copy_async")
def lower_copy_async(lowering: Lowering, op: Op, builder: Builder) -> None:
    buffer, view = op.operands
    if lowering.open and _users(lowering, lowering.open[-1]) != _users(lowering, op.result):
        lowering.close_group(builder)
    vector = access_bytes(view, lowering.kernel, lowering.loops)
    count = max(1, vector // dtype_of(view.type).bytes)
    lowering.mapping[op.result] = builder.value(
        "cp_async",
        lowering.mapping[buffer],
        lowering.mapping[view],
        vector=vector,
        bypass_l1=op.attributes["bypass_l1"],
        whole=in_whole_pieces(view, count, lowering.kernel, lowering.loops),
    )
    lowering.open.append(op.result)


def _users(lowering: Lowering, token: Value) -> tuple[int, ...]:
    return tuple(op.id for op in lowering.used.get(token, ()))


@rule("async_commit")
def lower_async_commit(lowering: Lowering, op: Op, builder: Builder) -> None:
    """A group of the IR's own. Its copies may have been started in a region before it."""
    lowering.mapping[op.result] = builder.value("async_commit", *lowering.operands(op))
    lowering.open.clear()


@rule("wait")
def lower_wait(lowering: Lowering, op: Op, builder: Builder) -> None:
    if set(op.operands) & set(lowering.open):
        lowering.close_group(builder)
    builder.op("async_wait", list(dict.fromkeys(lowering.operands(op))))


def count_groups(kernel: Kernel) -> None:
    """Fills in how many groups each wait may leave in flight: those that are younger than its own on every path."""
    _Counter().block(kernel.body, {})


class _Counter:
    """`counts` holds, by token of a group, the fewest groups closed after it on any path to this point."""

    def __init__(self) -> None:
        self.waits: dict[int, int] = {}

    def block(self, block: Block, counts: dict[Value, int]) -> None:
        for op in block.ops:
            if op.name == "async_commit":
                for token in counts:
                    counts[token] += 1
                counts[op.result] = 0
            elif op.name == "async_wait":
                younger = min((counts.get(token, 0) for token in op.operands), default=0)
                self.waits[op.id] = op.attributes["pending"] = min(younger, self.waits.get(op.id, younger))
            elif op.definition.has(LOOP):
                self._loop(op, counts)
            elif op.regions:
                self._branches(op, counts)

    def _loop(self, op: Op, counts: dict[Value, int]) -> None:
        """Until the counts with which an iteration begins fall no more."""
        (body,) = op.regions
        carried = len(op.results)
        arguments = body.arguments[len(body.arguments) - carried :]
        _rename(counts, arguments, op.operands[len(op.operands) - carried :], counts)
        while True:
            inside = dict(counts)
            self.block(body, inside)
            final = dict(inside)
            _rename(final, arguments, body.ops[-1].operands, inside)
            fewest = {token: min(count, final.get(token, count)) for token, count in counts.items()}
            if fewest == counts:
                break
            counts.update(fewest)
        _rename(counts, op.results, arguments, counts)

    def _branches(self, op: Op, counts: dict[Value, int]) -> None:
        ends = []
        for region in op.regions:
            inside = dict(counts)
            self.block(region, inside)
            final = {token: inside[token] for token in counts}
            _rename(final, op.results, region.ops[-1].operands, inside)
            ends.append(final)
        known = set(ends[0]).intersection(*ends)
        counts.update({token: min(end[token] for end in ends) for token in known})


def _rename(counts: dict[Value, int], new: list[Value], old: list[Value], source: dict[Value, int]) -> None:
    """Gives `new` the counts that `old` have in `source`, all at once."""
    for to, count in [(to, source.get(value)) for to, value in zip(new, old, strict=True)]:
        if count is None:
            counts.pop(to, None)
        else:
            counts[to] = count
