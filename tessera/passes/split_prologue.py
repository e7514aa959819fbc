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
workspace with the dtype of the operand: the grid, the iterations on its first axis, and the tile, all of which is
written. Iterations count fastest among programs, so that those side by side share what they load. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Value, clone_op, clone_with_regions, new_kernel_like, uses
from tessera.ir.dims import Size
from tessera.ir.types import ViewType, dtype_of, int_shape
from tessera.passes.launches import constant, divided, finished, free_stem, size_value
from tessera.target.computed_operands import Operand, computed_operands
from tessera.target.reuse import ops_behind
from tessera.target.schedule import Schedule

WARPS, ELEMENTS_PER_THREAD = 4, 16  # of the prologue, which only moves memory


def split_prologue(kernel: Kernel, schedule: Schedule) -> list[Kernel]:
    """The kernel alone, or behind a launch for each computed operand.

    Raises SourceError TS512 where no operand of a product is computed, or only by what another launch cannot do.
    """
    if schedule.prologue != "launch":
        return [kernel]
    reasons: list[str] = []
    operands = computed_operands(kernel, reasons)
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
    """The workspace of an operand: its tiles by grid index and iteration."""

    def __init__(self, kernel: Kernel, operand: Operand, name: str):
        self.operand, self.name = operand, name
        first, second, third = (*kernel.attributes["grid"], 1, 1, 1)[:3]
        self.tile = int_shape(operand.value.type)
        # The slower grid axes are one axis: tensor maps have five.
        self.lead: tuple[Size, ...] = (second * third, first * operand.count)
        self.second = second
        self.type = ViewType((*self.lead, *self.tile), dtype_of(operand.value.type))

    def window(self, builder: Builder, workspace: Value, outer: Value, inner: Value) -> Value:
        zero = constant(builder, 0)
        return builder.value(
            "window",
            workspace,
            outer,
            inner,
            *[zero] * len(self.tile),
            extents=(1, 1, *self.tile),
            kept=(False, False, *[True] * len(self.tile)),
        )


class _Rewriter:
    """Copies a kernel to one that has the workspaces."""

    def __init__(self, kernel: Kernel, spaces: Sequence[_Space]):
        self.old, self.spaces = kernel, spaces
        self.new, self.builder, self.mapping = new_kernel_like(kernel)
        self.workspaces = {space.name: self.new.body.add_argument(space.type, space.name) for space in spaces}
        self.scales = {
            op.attributes["axis"]: op.attributes["scale"] for op in kernel.body.walk() if op.name == "program_id"
        }

    def grid_index(self, builder: Builder, axis: int) -> Value:
        """The index of the program in the grid of the new kernel."""
        scale = self.scales.get(axis, 1)  # the ids of one axis have one scale in a kernel
        return divided(builder, builder.value("program_id", axis=axis, scale=scale), scale)

    def outer(self, builder: Builder, space: _Space) -> Value:
        """The place along the workspace's first axis."""
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
        super().__init__(kernel, [space])
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
        place = self.outer(builder, self.space)
        window = self.space.window(builder, self.workspaces[self.space.name], place, number)
        builder.op("store", [window, self.mapping[operand.value]])
        first, *others = (*self.old.attributes["grid"],)
        self.new.attributes["grid"] = (first * count, *others)
        width = self.space.tile[-1]
        rows = max(1, WARPS * 32 * ELEMENTS_PER_THREAD // width)
        schedule = Schedule(WARPS, rows=min(rows, self.space.tile[-2]))
        return finished(self.new, self.old, f"{self.old.name}_{suffix}", [self.space.name], "out", schedule)

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
        super().__init__(kernel, spaces)
        self.schedule = schedule
        self.by_value = {space.operand.value: space for space in spaces}

    def kernel(self) -> Kernel:
        self._block(self.old.body, self.builder)
        names = [space.name for space in self.spaces]
        return finished(self.new, self.old, self.old.name, names, "in", replace(self.schedule, prologue=""))

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
        operand = space.operand
        number = self.grid_index(builder, 0)
        for loop, indices in zip(operand.around, operand.ranges, strict=True):
            index = self.mapping[loop.regions[0].arguments[0]]
            if indices.start:
                index = builder.value("sub", index, constant(builder, indices.start))
            turn = divided(builder, index, indices.step)
            number = builder.value("add", builder.value("mul", number, constant(builder, len(indices))), turn)
        window = space.window(builder, self.workspaces[space.name], self.outer(builder, space), number)
        return builder.value("load", window, hint=operand.value.name)


__all__ = ["split_prologue"]
