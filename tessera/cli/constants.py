"""Tuning constants on the command line: `--arg BLOCK_S=64` pins a constant of an autotuned kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tessera.cli.target import Target, Targets
from tessera.errors import ArgumentError, SourceError, did_you_mean
from tessera.frontend.annotations import ListAnnotation
from tessera.frontend.definition import KernelDefinition
from tessera.runtime import inputs


def read_args(args: Sequence[str]) -> dict[str, str]:
    """The options `--arg` as texts by name. Raises ArgumentError TS605."""
    return {name: value for text in args for name, value in inputs.parse_assignments(text, "--arg").items()}


def constants_of(definition: KernelDefinition | None) -> tuple[str, ...]:
    return tuple(definition.space.candidates) if definition is not None and definition.space else ()


def pin(targets: Targets, args: Mapping[str, str]) -> Targets:
    """The targets with the constants that `args` gives; names of anything else are left alone.

    Raises ArgumentError TS605 for a value of the wrong type.
    """
    items = [
        replace(item, definition=_pinned(item.definition, args), args=dict(args))
        if item.definition is not None
        else item
        for item in targets.items
    ]
    return replace(targets, items=items)


def _pinned(definition: KernelDefinition, args: Mapping[str, str]) -> KernelDefinition:
    space = definition.space
    if space is None:
        return definition
    try:
        return definition.pinned({name: space.parse(name, args[name]) for name in space.candidates if name in args})
    except SourceError as error:
        raise ArgumentError("TS605", f"--arg of {definition.name}: {error.message}") from None


def check_names(target: str, found: Iterable[Target], args: Mapping[str, str]) -> None:
    """Raises ArgumentError TS605 for a name that is a constant, or a list, of none of the kernels of a target."""
    known = list(dict.fromkeys(name for item in found for name in _names(item.definition)))
    for name in args:
        if name not in known:
            listed, hint = ", ".join(known) or "none", did_you_mean(name, known)
            raise ArgumentError("TS605", f"{target} has no list or tuning constant {name} (there are {listed}){hint}")


def _names(definition: KernelDefinition | None) -> tuple[str, ...]:
    if definition is None:
        return ()
    try:
        lists = [p.name for p in definition.parameters if isinstance(p.annotation, ListAnnotation)]
    except SourceError:  # of an annotation that cannot be read: compiling the kernel says so
        lists = []
    return (*lists, *constants_of(definition))


__all__ = ["check_names", "constants_of", "pin", "read_args"]
