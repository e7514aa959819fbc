"""The arguments of a call by the names of a kernel's parameters, before anything is checked: which optional tensors are
there, and what sizes the arrays have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.errors import ArgumentError
from tessera.frontend.definition import ParameterDefinition
from tessera.ir.types import length_name
from tessera.program import Parameter
from tessera.runtime import arrays
from tessera.runtime.bind import expand, unify


def present(
    parameters: Sequence[ParameterDefinition], optional: frozenset[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], frozenset[str]]:
    """The arguments without optional tensors that are None or left out, and the names of these."""
    names = [p.name for p in parameters]
    if len(args) > len(names):
        return args, kwargs, frozenset()  # one too many, as `bind` says
    given = dict(zip(names, args, strict=False))
    passed = {name for name, value in (*given.items(), *kwargs.items()) if value is not None}
    absent = optional - passed
    if not absent:
        return args, kwargs, absent
    repeated = {name: value for name, value in kwargs.items() if name not in absent or name in given}
    kept = {name: value for name, value in given.items() if name not in absent}
    return tuple(kept.values()), {n: v for n, v in repeated.items() if v is not None or n not in absent}, absent


def paired(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments by parameter name, the positional ones in order."""
    return [*zip(names, args, strict=False), *((name, kwargs[name]) for name in names if name in kwargs)]


def dims_of(parameters: Sequence[Parameter], given: Mapping[str, Any], lenient: bool = False) -> dict[str, int]:
    """The dims that the shapes of these arguments give, and the lengths of lists.

    Raises what `unify` raises; `lenient`: no dims but lengths then, since a check of all arguments follows.
    """
    lengths = {p.name: len(given[p.name]) for p in parameters if p.kind == "list" and is_list(given.get(p.name))}
    shapes = {}
    for parameter in parameters:
        value = given.get(parameter.name)
        items: Any = value if parameter.kind == "list" and is_list(value) else [value]
        for element, item in zip(expand([parameter], lengths), items, strict=False):
            info = arrays.describe(item)
            if info is not None and len(info.shape) == len(parameter.shape):
                shapes[element.name] = info.shape
    try:
        dims = unify(expand(parameters, lengths), shapes)
    except ArgumentError:
        if not lenient:
            raise
        dims = {}
    return {**dims, **{length_name(name): length for name, length in lengths.items()}}


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
