"""What the command line fixes of a kernel: `--arg BLOCK_S=64` a constant of its tuning space, `--pin warps=8` a field
of its schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tessera.cli.target import Target, Targets
from tessera.errors import ArgumentError, SourceError, did_you_mean
from tessera.frontend.annotations import ListAnnotation
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.inference import Actual, is_bare
from tessera.ir.core import Kernel, Module
from tessera.ir.opdef import TILE
from tessera.runtime import inputs


def read_args(args: Sequence[str]) -> dict[str, str]:
    """The options `--arg` as texts by name. Raises ArgumentError TS605."""
    return {name: value for text in args for name, value in inputs.parse_assignments(text, "--arg").items()}


def constants_of(definition: KernelDefinition | None) -> tuple[str, ...]:
    return tuple(definition.space.candidates) if definition is not None and definition.space else ()


def read_pins(texts: Sequence[str]) -> dict[str, str]:
    """The options `--pin` as texts by field, empty for a value that is. Raises ArgumentError TS605."""
    return {name: value for text in texts for name, value in inputs.parse_assignments(text, "--pin", True).items()}


def pin(
    targets: Targets,
    args: Mapping[str, str],
    shapes: Mapping[str, Actual] | None = None,
    pins: Mapping[str, str] | None = None,
) -> Targets:
    """The targets with the constants that `args` gives and the fields of schedules that `pins` does, and for functions
    with `shapes`; names of anything else are left alone.

    Raises ArgumentError TS605 for a value of the wrong type, for a shape of what is no open parameter, and for pins
    where nothing has a schedule to choose.
    """
    items = [_given(item, args, shapes or {}) for item in targets.items]
    if pins:
        items = _all_scheduled(items, pins)
    known = list(dict.fromkeys(name for item in items for name in _open(item)))
    for name in shapes or {}:
        if name.split("[")[0] not in known:
            listed, hint = ", ".join(known) or "none", did_you_mean(name, known)
            raise ArgumentError("TS605", f"there is no open parameter '{name}' (there are {listed}){hint}")
    return replace(targets, items=items)


def _given(item: Target, args: Mapping[str, str], shapes: Mapping[str, Actual]) -> Target:
    if item.definition is not None:
        return replace(item, definition=_pinned(item.definition, args), args=dict(args))
    if item.function is not None:
        own = _open(item)
        return replace(
            item, args=dict(args), shapes={n: shape for n, shape in shapes.items() if n.split("[")[0] in own}
        )
    return item


def _open(item: Target) -> tuple[str, ...]:
    """The parameters of a function for which `--shape` may say what their annotations do not."""
    try:
        return tuple(p.name for p in item.function.parameters if is_bare(p.annotation)) if item.function else ()
    except SourceError:  # of an annotation that cannot be read: compiling the function says so
        return ()


def read_shapes(texts: Sequence[str]) -> dict[str, Actual]:
    """The options `--shape` by parameter. Raises ArgumentError TS605."""
    if not texts:
        return {}
    from tessera.frontend.function_inference import parse_shape

    return dict(parse_shape(text) for text in texts)


def _pinned(definition: KernelDefinition, args: Mapping[str, str]) -> KernelDefinition:
    space = definition.space
    if space is None:
        return definition
    try:
        return definition.pinned({name: space.parse(name, args[name]) for name in space.candidates if name in args})
    except SourceError as error:
        raise ArgumentError("TS605", f"--arg of {definition.name}: {error.message}") from None


def _all_scheduled(items: Sequence[Target], pins: Mapping[str, str]) -> list[Target]:
    """The targets with their kernels' schedules pinned; functions of a file are left alone."""
    found = [_scheduled(item, pins) for item in items]
    if all(new is old for new, old in zip(found, items, strict=True)):
        names = ", ".join(item.name for item in items)
        raise ArgumentError("TS605", f"--pin fixes the schedule of a kernel, and {names} is none")
    return found


def _scheduled(item: Target, pins: Mapping[str, str]) -> Target:
    from tessera.target.schedules import check_pins, parse_pin

    try:
        if item.definition is not None:
            space = item.definition.space
            names = space.candidates if space else ()
            constants = {n: space.parse(n, text) for n, text in pins.items() if space and n in names}
            fields = {name: parse_pin(name, text) for name, text in pins.items() if name not in names}
            return replace(item, definition=item.definition.pinned(constants).scheduled(fields))
        if item.module is not None:
            if item.module.level != TILE:
                raise ArgumentError("TS605", f"--pin of {item.name}: this IR is past the tile level")
            kernel = item.module.kernel(item.name)
            fixed = check_pins({name: parse_pin(name, text) for name, text in pins.items()})
            attributes = {**kernel.attributes, "pins": {**(kernel.attributes.get("pins") or {}), **fixed}}
            made = Kernel(kernel.name, kernel.body, attributes, kernel.origin)
            return replace(item, module=Module(item.module.level, [made]))
    except SourceError as error:
        raise ArgumentError("TS605", f"--pin of {item.name}: {error.message}") from None
    return item


def check_names(target: str, found: Iterable[Target], args: Mapping[str, str]) -> None:
    """Raises ArgumentError TS605 for a name that is a constant, or a list, of none of the kernels of a target."""
    known = list(dict.fromkeys(name for item in found for name in _names(item)))
    for name in args:
        if name not in known:
            listed, hint = ", ".join(known) or "none", did_you_mean(name, known)
            raise ArgumentError("TS605", f"{target} has no list or tuning constant {name} (there are {listed}){hint}")


def _names(item: Target) -> tuple[str, ...]:
    definition = item.definition or item.function
    if definition is None:
        return ()
    try:
        lists = [p.name for p in definition.parameters if isinstance(p.annotation, ListAnnotation)]
    except SourceError:  # of an annotation that cannot be read: compiling the kernel says so
        lists = []
    return (*lists, *constants_of(item.definition))


__all__ = ["check_names", "constants_of", "pin", "read_args", "read_pins", "read_shapes"]
