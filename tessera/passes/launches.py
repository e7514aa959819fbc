"""What passes share that make several launches of a kernel, which hand workspaces to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tessera.dtypes import i64
from tessera.ir.core import Builder, Kernel, Value
from tessera.ir.dims import Size
from tessera.passes.canonicalise import canonicalise
from tessera.target.reuse import written_names
from tessera.target.schedule import Schedule


def free_stem(kernel: Kernel, stem: str) -> str:
    """A name for workspaces that no parameter begins with."""
    while any(parameter.name.startswith(stem) for parameter in kernel.parameters):
        stem += "_"
    return stem


def finished(new: Kernel, old: Kernel, name: str, workspaces: Sequence[str], role: str, schedule: Schedule) -> Kernel:
    """A launch that was made of `old`, without what nothing uses; `role`: that of its workspaces. All launches keep the
    signature that a call has.
    """
    new = canonicalise(new)
    new.name = name
    changed = written_names(new)
    roles = [(name, given if name in changed else "in") for name, given in old.attributes["parameters"]]
    new.attributes["parameters"] = (*roles, *((space, role) for space in workspaces))
    new.attributes["workspaces"] = tuple(workspaces)
    new.attributes["schedule"] = asdict(schedule)
    return new


def constant(builder: Builder, number: int) -> Value:
    return builder.value("constant", value=number, dtype=i64)


def size_value(builder: Builder, size: Size) -> Value:
    return constant(builder, size) if isinstance(size, int) else builder.value("size", size=size)


def divided(builder: Builder, value: Value, by: int) -> Value:
    return value if by == 1 else builder.value("floordiv", value, constant(builder, by))


__all__ = ["constant", "divided", "finished", "free_stem", "size_value"]
