"""Let reductions of lines that do not wait for one another meet at the same barriers.

    st_shared a, partials of x              st_shared a, partials of x
    fold_lines a -> sums of x               st_shared b, partials of y
    ld_shared sums of x             ->      fold_lines a -> sums of x
    st_shared b, partials of y              fold_lines b -> sums of y
    fold_lines b -> sums of y               ld_shared sums of x
    ld_shared sums of y                     ld_shared sums of y

Barriers come later, between the writers of a buffer and its readers: two here, where four would be needed. What moves
in front of a fold is pure and gives nothing but partial results: a tile that is used elsewhere, too, would wait at the
barrier, unless it can do so as a narrow one (`rematerialise`). Exact: the same ops run in another order.
"""

from __future__ import annotations

from tessera.ir.core import Block, Builder, Kernel, Mapping, Op, Value, clone_op, clone_with_regions, new_kernel_like
from tessera.ir.core import uses as uses_of
from tessera.ir.opdef import ASYNC, COLLECTIVE, PURE, TERMINATOR
from tessera.ir.types import TileType
from tessera.passes.rematerialise import widens
from tessera.target.cost_registers import registers_of
from tessera.target.row_lines import FOLDS

SMALL = 8  # registers of a tile that may wait at a barrier


def share_barriers(kernel: Kernel) -> Kernel:
    if sum(op.name in FOLDS for op in kernel.body.walk()) < 2:
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy(kernel.body, builder, mapping, uses_of(kernel.body))
    return new


def _copy(block: Block, builder: Builder, mapping: Mapping, used: dict[Value, list[Op]]) -> None:
    for op in _ordered(block.ops, used):
        builder.at(op)
        if op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy(old, inner, mapping, used))
        else:
            clone_op(builder, op, mapping)


def _ordered(ops: list[Op], used: dict[Value, list[Op]]) -> list[Op]:
    """The ops of a block, those that a fold need not come before in front of it, and folds that follow from them behind
    it.
    """
    left, result = list(ops), []
    while left:
        op = left.pop(0)
        if op.name not in FOLDS:
            result.append(op)
            continue
        before: list[Op] = []
        behind: list[Op] = []
        for other in _stretch(left):
            needed = _needed(other, left, before, [op, *behind]) if other.name in FOLDS else None
            if needed is not None and _gives_partials(needed, other, used):
                before += needed
                behind += [*_places(other, left), other]
        result += [*before, op, *behind]
        left = [each for each in left if each not in before and each not in behind]
    return result


def _stretch(ops: list[Op]) -> list[Op]:
    """The ops up to one that nothing moves past."""
    for place, op in enumerate(ops):
        definition = op.definition
        if op.regions or any(definition.has(trait) for trait in (COLLECTIVE, ASYNC, TERMINATOR)):
            return ops[:place]
    return ops


def _needed(fold: Op, ops: list[Op], there: list[Op], later: list[Op]) -> list[Op] | None:
    """What of `ops`, which precede a fold, writes the blocks that it adds, in order; None where not all of that may
    move in front of `later`, or where nothing of it is there to move.
    """
    buffer = fold.operands[0]
    before = ops[: ops.index(fold)]
    writers = [op for op in before if buffer in op.operands]
    if any(op.name != "st_shared" for op in writers):
        return None
    waiting, found = [*writers], set[Op]()
    while waiting:
        op = waiting.pop()
        if op in found or op in there:
            continue
        if op not in writers and not (op.definition.has(PURE) or op.name == "shared"):
            return None
        if any(value.defining_op in later for value in op.operands):
            return None
        found.add(op)
        waiting += [made for value in op.operands if (made := value.defining_op) is not None and made in before]
    return [op for op in before if op in found] if writers else None


def _places(fold: Op, ops: list[Op]) -> list[Op]:
    """The buffer that a fold writes, where it is not there yet."""
    return [op for op in ops if op.name == "shared" and op.result in fold.operands[1:]]


def _gives_partials(moved: list[Op], fold: Op, used: dict[Value, list[Op]]) -> bool:
    """Whether nothing else needs what moves, but for what is small or widened."""
    inside = {*moved, fold}
    wide = [op for op in moved if not (op.name == "cast" and widens(op))]
    tiles = [value for op in wide for value in op.results if isinstance(value.type, TileType)]
    return all(registers_of(value) <= SMALL or inside.issuperset(used.get(value, ())) for value in tiles)


__all__ = ["share_barriers"]
