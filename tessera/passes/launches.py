"""What passes share that make several launches of a kernel, which hand workspaces to one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from tessera.dtypes import i64
from tessera.ir.core import Builder, Kernel, Value, new_kernel_like
from tessera.ir.dims import Size
from tessera.ir.types import ViewType
from tessera.passes.canonicalise import canonicalise
from tessera.passes.sum_loops import InLoops
from tessera.target.reuse import written_names
from tessera.target.schedule import Schedule


class LaunchMaker:
    """A copy of a kernel in the making, which has workspaces of these names and types. `old`: the kernel; `mapping`:
    what the copy has for its values.
    """

    def __init__(self, kernel: Kernel, types: Mapping[str, ViewType]):
        self.old = kernel
        self.new, self.builder, self.mapping = new_kernel_like(kernel)
        self.workspaces = {name: self.new.body.add_argument(type_, name) for name, type_ in types.items()}
        # The ids of one axis have one scale in a kernel.
        self.scales = {
            op.attributes["axis"]: op.attributes["scale"] for op in kernel.body.walk() if op.name == "program_id"
        }

    def grid_index(self, builder: Builder, axis: int) -> Value:
        """The index of the program in the grid."""
        scale = self.scales.get(axis, 1)
        return divided(builder, builder.value("program_id", axis=axis, scale=scale), scale)

    def turns(self, builder: Builder, inside: InLoops) -> list[Value]:
        """The number, from 0, of the iteration of each loop around something."""
        found = []
        for loop, indices in zip(inside.around, inside.ranges, strict=True):
            index = self.mapping[loop.regions[0].arguments[0]]
            if indices.start:
                index = builder.value("sub", index, constant(builder, indices.start))
            found.append(divided(builder, index, indices.step))
        return found

    def finish(self, name: str, role: str, schedule: Schedule) -> Kernel:
        """The copy without what nothing uses; `role`: that of its workspaces. All launches keep the signature that a
        call has.
        """
        new = canonicalise(self.new)
        new.name = name
        changed = written_names(new)
        roles = [(name, given if name in changed else "in") for name, given in self.old.attributes["parameters"]]
        new.attributes["parameters"] = (*roles, *((space, role) for space in self.workspaces))
        new.attributes["workspaces"] = tuple(self.workspaces)
        new.attributes["schedule"] = asdict(schedule)
        return new


def free_stem(kernel: Kernel, stem: str) -> str:
    """A name for workspaces that no parameter begins with."""
    while any(parameter.name.startswith(stem) for parameter in kernel.parameters):
        stem += "_"
    return stem


def constant(builder: Builder, number: int) -> Value:
    return builder.value("constant", value=number, dtype=i64)


def size_value(builder: Builder, size: Size) -> Value:
    return constant(builder, size) if isinstance(size, int) else builder.value("size", size=size)


def divided(builder: Builder, value: Value, by: int) -> Value:
    return value if by == 1 else builder.value("floordiv", value, constant(builder, by))


__all__ = ["LaunchMaker", "constant", "divided", "free_stem", "size_value"]
