"""How many registers a thread of a Target kernel holds at once: an estimate from the tiles that are live together.

A chain of elementwise ops is computed element by element, so that only its ends are tiles; what waits for the end of a
chain is live until then. A reduction takes what nothing else needs element by element, too; what is needed before and
after one is a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.opdef import ELEMENTWISE, REDUCTION
from tessera.ir.types import TileType, TokenType, ViewType, dtype_of

# Addresses, indices, predicates and what the assembler keeps in flight; from what NVRTC reports for the test suite.
BASE = 30
PER_VIEW = 1
# Ops besides elementwise ones that take a tile register by register, or some of its registers.
_BY_ELEMENTS = ("reshape", "broadcast", "columns", "st_shared", "st_matrices", "st_global")
FOLD = 16  # of a thread that folds blocks of a line: those that it has loaded
PER_COPY = 8  # of a copy in a loop: both addresses, and what says whether it is inside


def live_registers(kernel: Kernel) -> int:
    """32-bit registers of a thread, not limited by what it can have."""
    copies = sum(op.name == "cp_async" for loop in kernel.body.walk() if _carries_copies(loop) for op in _inside(loop))
    return BASE + PER_COPY * copies + _Pressure().block(kernel.body, {})


def _carries_copies(op: Op) -> bool:
    return any(isinstance(argument.type, TokenType) for region in op.regions for argument in region.arguments)


def _inside(op: Op) -> Iterator[Op]:
    return (inner for region in op.regions for inner in region.walk())


class _Pressure:
    def block(self, block: Block, after: dict[Value, int]) -> int:
        """The most that values of a block, and of its regions, take; `after`: what is live around all of it."""
        last, streamed = _last_uses(block)
        live = {argument: size for argument in block.arguments if (size := registers_of(argument))}
        most = _total(live, after)
        for place, op in enumerate(block.ops):
            dead = [value for value in live if last.get(value, -1) <= place]
            if op.name == "interleave":
                # What is made inside exists for a part of the registers at a time.
                inside = -(-self.block(op.regions[0], {}) // op.attributes["parts"])
                most = max(most, _total(live, after) + inside)
            elif op.regions:
                # What the loop starts from becomes what it carries.
                around = {v: size for v, size in live.items() if v not in dead}
                most = max(most, *(self.block(region, {**after, **around}) for region in op.regions))
            for value in dead:
                live.pop(value, None)
            for result in op.results:
                size = registers_of(result)
                if size and last.get(result, -1) > place and result not in streamed:
                    live[result] = size
            most = max(most, _total(live, after))
        return most


def registers_of(value: Value) -> int:
    """32-bit registers of a tile in a thread; narrow elements share them."""
    if isinstance(value.type, TileType) and value.type.layout is not None:
        if _is_number(value):
            return 0
        return -(-value.type.layout.registers_per_thread * dtype_of(value.type).bytes // 4)
    return PER_VIEW if isinstance(value.type, ViewType) else 0


def _is_number(value: Value) -> bool:
    """Whether the elements of a tile are numbers that other registers hold, or none has to."""
    op = value.defining_op
    return op is not None and op.name in ("full", "broadcast")


def _total(*lives: dict[Value, int]) -> int:
    return sum({value: size for live in lives for value, size in live.items()}.values())


def _last_uses(block: Block) -> tuple[dict[Value, int], set[Value]]:
    """The position of the last op that needs each value, chains of elementwise ops taken as one with their last, and
    the tiles inside such chains.
    """
    last: dict[Value, int] = {}
    first: dict[Value, int] = {}
    for place, op in enumerate(block.ops):
        for value in (*op.operands, *(value for inner in _inside(op) for value in inner.operands)):
            last[value] = place
            first.setdefault(value, place)
    reductions = [place for place, op in enumerate(block.ops) if _adds_up(op)]
    # Used by something that takes all of a tile at once, or on both sides of a reduction.
    kept = {value for value, place in first.items() if any(place <= between < last[value] for between in reductions)}
    for op in block.ops:
        if not _by_elements(op):
            kept.update(value for value in op.operands if not _adds_up(op))
            kept.update(value for inner in _inside(op) for value in inner.operands)
    streamed: set[Value] = set()
    for op in reversed(block.ops):
        for result in op.results:
            if result in last and result not in kept and _by_elements(op):
                streamed.add(result)
                for operand in op.operands:
                    last[operand] = max(last.get(operand, -1), last[result])
    return last, streamed


def _adds_up(op: Op) -> bool:
    return op.definition.has(REDUCTION) or op.name == "reduce_blocks"


def _by_elements(op: Op) -> bool:
    """Whether an op takes its operands element by element."""
    return op.definition.has(ELEMENTWISE) or op.name in _BY_ELEMENTS


__all__ = ["FOLD", "live_registers", "registers_of"]
