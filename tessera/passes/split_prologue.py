"""Compute an operand of a product by a launch of its own, where many programs would compute it again and again.

With `Schedule.prologue` = "launch" a kernel of the first form becomes the two others, which run one after the other:

    for i in range(n):                          @name_prologue, on n times as many programs:
        d = f(loads)                                i, block = id % n, id // n
        acc = mma(d, w[i])                          store f(loads) to deltas[block, i, ...]
        store g(acc, d)                         @name, on the programs of the kernel:
                                                    for i in range(n):
                                                        d = load deltas[block, i, ...]
                                                        acc = mma(d, w[i])
                                                        store g(acc, d)

A product in tiles computes its operand once for each tile of its columns, and loads all that it is computed from as
often. Here it is computed once, for one pass through memory more. `deltas` (whatever the operand is called) is a
workspace with the dtype of the operand (`_Space`). Iterations count fastest among programs, so that those side by side
share what they load. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Value, clone_op, clone_with_regions, uses
from tessera.ir.dims import Size
from tessera.ir.types import ViewType, dtype_of, int_shape
from tessera.passes.computed_operands import Operand, computed_operands, part_of
from tessera.passes.launches import LaunchMaker, constant, divided, free_stem, size_value
from tessera.target.reuse import ops_behind
from tessera.target.schedule import Schedule
from tessera.target.schedules import pins_of

WARPS, ELEMENTS_PER_THREAD = 4, 16  # of the prologue, which only moves memory


def split_prologue(kernel: Kernel, schedule: Schedule) -> list[Kernel]:
    """The kernel alone, or behind a launch for each computed operand.

    Where no operand of a product is computed, or only by what another launch cannot do, it stays alone; raises
    SourceError TS512 then if the launch is pinned.
    """
    if schedule.prologue != "launch":
        return [kernel]
    reasons: list[str] = []
    operands = computed_operands(kernel, reasons)
    if not operands and "prologue" not in pins_of(kernel):
        return [kernel]
    if not operands:
        why = reasons[0] if reasons else f"'{kernel.name}' computes no operand of a product"
        raise SourceError("TS512", f"prologue = 'launch': {why}", kernel.loc)
    stem = free_stem(kernel, operands[0].value.name or "operand")
    names = [stem if len(operands) == 1 else f"{stem}_{number}" for number in range(len(operands))]
    spaces = [_Space(kernel, operand, name) for operand, name in zip(operands, names, strict=True)]
    suffixes = [""] if len(spaces) == 1 else [f"_{number}" for number in range(len(spaces))]
    prologues = [
        _Prologue(kernel, space).kernel(f"prologue{suffix}") for space, suffix in zip(spaces, suffixes, strict=True)
    ]
    return [*prologues, _Rest(kernel, spaces, schedule).kernel()]


class _Space:
    """The workspace of an operand: its tiles by grid index and iteration or, where they are parts of a tensor, tensors
    like that one by iteration. Those take no more memory than it, and what lies outside of it is not computed.
    """

    def __init__(self, kernel: Kernel, operand: Operand, name: str):
        self.operand, self.name = operand, name
        first, self.second, third = (*kernel.attributes["grid"], 1, 1, 1)[:3]
        self.tile = int_shape(operand.value.type)
        self.part = part_of(operand.value)
        shape: tuple[Size, ...]
        if self.part is not None:
            shape = (operand.count, *self.part.shape)
        else:  # the slower grid axes are one axis: tensor maps have five
            shape = (self.second * third, first * operand.count, *self.tile)
        self.type = ViewType(shape, dtype_of(operand.value.type))

    def window(self, builder: Builder, workspace: Value, leading: Sequence[Value], offsets: Sequence[Value]) -> Value:
        return builder.value(
            "window",
            workspace,
            *leading,
            *offsets,
            extents=(*[1] * len(leading), *self.tile),
            kept=(*[False] * len(leading), *[True] * len(self.tile)),
        )


class _Rewriter(LaunchMaker):
    """Knows where the tiles of a program lie."""

    def window(self, builder: Builder, space: _Space, number: Value, turn: Value) -> Value:
        """Where a program has its tile. `number`: of the program and the iteration along grid axis 0; `turn`: of the
        iteration.
        """
        workspace = self.workspaces[space.name]
        if space.part is not None:
            return space.window(builder, workspace, [turn], [self.mapping[value] for value in space.part.offsets])
        zero = constant(builder, 0)
        return space.window(builder, workspace, [self._outer(builder, space), number], [zero] * len(space.tile))

    def _outer(self, builder: Builder, space: _Space) -> Value:
        """The index along the slower grid axes."""
        grid = (*self.old.attributes["grid"], 1, 1, 1)[:3]
        if grid[1] == 1 and grid[2] == 1:
            return constant(builder, 0)
        if grid[2] == 1:
            return self.grid_index(builder, 1)
        above = builder.value("mul", self.grid_index(builder, 2), size_value(builder, space.second))
        return builder.value("add", self.grid_index(builder, 1), above)


class _Prologue(_Rewriter):
    """Each program computes one tile of an operand, of one iteration of the loops around it."""

    def __init__(self, kernel: Kernel, space: _Space):
        super().__init__(kernel, {space.name: space.type})
        self.space = space
        self.behind = ops_behind([space.operand.value], uses(kernel.body))

    def kernel(self, suffix: str) -> Kernel:
        operand = self.space.operand
        made = operand.value.defining_op
        assert made is not None, "an operand that is computed"
        builder = self.builder.at(made)
        number = builder.value("program_id", axis=0)
        count = operand.count
        block = divided(builder, number, count)
        scale = self.scales.get(0, 1)
        self.first = block if scale == 1 else builder.value("mul", block, constant(builder, scale))
        self._indices(builder, number, operand)
        self._ops(self.old.body, builder)
        builder.at(made)
        turn = builder.value("mod", number, constant(builder, count))
        window = self.window(builder, self.space, number, turn)
        builder.op("store", [window, self.mapping[operand.value]])
        first, *others = (*self.old.attributes["grid"],)
        self.new.attributes["grid"] = (first * count, *others)
        width = self.space.tile[-1]
        rows = max(1, WARPS * 32 * ELEMENTS_PER_THREAD // width)
        schedule = Schedule(WARPS, rows=min(rows, self.space.tile[-2]))
        return self.finish(f"{self.old.name}_{suffix}", "out", schedule)

    def _indices(self, builder: Builder, number: Value, operand: Operand) -> None:
        """The iteration of each loop around the operand, the innermost counting fastest."""
        rest = number
        for loop, indices in reversed(list(zip(operand.around, operand.ranges, strict=True))):
            turn = builder.value("mod", rest, constant(builder, len(indices)))
            rest = divided(builder, rest, len(indices))
            step = constant(builder, indices.step)
            index = builder.value("add", constant(builder, indices.start), builder.value("mul", turn, step))
            self.mapping[loop.regions[0].arguments[0]] = index

    def _ops(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            if op in self.behind:
                builder.at(op)
                if op.name == "program_id" and op.attributes["axis"] == 0:
                    self.mapping[op.result] = self.first
                elif op.name == "num_programs" and op.attributes["axis"] == 0:
                    self.mapping[op.result] = size_value(builder, self.old.attributes["grid"][0])
                else:
                    clone_op(builder, op, self.mapping)
            for region in op.regions if op in self.space.operand.around else ():
                self._ops(region, builder)


class _Rest(_Rewriter):
    """Everything else, with loads of the operands in the place of what they were computed by."""

    def __init__(self, kernel: Kernel, spaces: Sequence[_Space], schedule: Schedule):
        super().__init__(kernel, {space.name: space.type for space in spaces})
        self.schedule = schedule
        self.by_value = {space.operand.value: space for space in spaces}

    def kernel(self) -> Kernel:
        self._block(self.old.body, self.builder)
        return self.finish(self.old.name, "in", replace(self.schedule, prologue=""))

    def _block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            space = self.by_value.get(op.result) if len(op.results) == 1 else None
            if space is not None:
                self.mapping[op.result] = self._loaded(builder, space)
            elif op.regions:
                clone_with_regions(builder, op, self.mapping, self._block)
            else:
                clone_op(builder, op, self.mapping)

    def _loaded(self, builder: Builder, space: _Space) -> Value:
        turn = constant(builder, 0)
        for inner, count in zip(self.turns(builder, space.operand), space.operand.trips, strict=True):
            turn = builder.value("add", builder.value("mul", turn, constant(builder, count)), inner)
        before = builder.value("mul", self.grid_index(builder, 0), constant(builder, space.operand.count))
        window = self.window(builder, space, builder.value("add", before, turn), turn)
        return builder.value("load", window, hint=space.operand.value.name)


__all__ = ["split_prologue"]
