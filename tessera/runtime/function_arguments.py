"""Matches the arguments of a call with a function's parameters; the tensors of lists become tensors by name.

What a kernel's arguments are checked for, `runtime.bind` checks here too: a traced function is, to it, something with
one parameter per tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera import modes
from tessera.errors import ArgumentError
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import REQUIRED, FunctionDefinition
from tessera.frontend.function import FunctionTrace, element_name, free_shape
from tessera.ir.types import ScalarType, TileType, length_name
from tessera.program import ANY_LENGTH, Parameter
from tessera.runtime.arrays import ArrayInfo, describe
from tessera.runtime.bind import Binding, _is_number, _match, bind, scalar


@dataclass(frozen=True)
class Given:
    """The arguments of a call. `tensors` by name, those of a list x as "x[0]", ...; `scalars` are Python numbers.

    `bare` holds an annotation with axes of its own for each tensor that the author left open.
    """

    tensors: dict[str, Any]
    scalars: dict[str, int | float]
    lengths: dict[str, int]
    bare: dict[str, TensorAnnotation]

    @property
    def key(self) -> tuple[Any, ...]:
        """What of a call decides how its function is traced, but for the values of dims."""
        open_ = tuple((name, len(a.shape or ()), a.dtype) for name, a in self.bare.items())
        return (modes.mode_key(), tuple(self.lengths.items()), open_)

    @property
    def static(self) -> dict[str, int]:
        """The lengths of the lists, as dims."""
        return {length_name(name): length for name, length in self.lengths.items()}


def read_arguments(definition: FunctionDefinition, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given:
    """The arguments by name, defaults filled in.

    Raises ArgumentError: TS601 missing or unexpected, TS203 wrong kind, TS204 an array of a dtype that none knows,
    TS401 an integer beyond 64 bits.
    """
    parameters = definition.parameters
    optional = {p.name: p.default for p in parameters if p.default is not REQUIRED}
    given = _match(definition.name, [_as_written(p.name, p.annotation) for p in parameters], args, kwargs, optional)
    found = Given({}, {}, {}, {})
    for parameter in parameters:
        name, annotation = parameter.name, parameter.annotation
        if name not in given and name not in optional:
            needed = ", ".join(p.name for p in parameters)
            raise ArgumentError("TS601", f"{definition.name} needs the argument '{name}' (it takes {needed})")
        value = given[name] if name in given else optional[name]
        if isinstance(annotation, ScalarAnnotation):
            found.scalars[name] = scalar(_as_written(name, annotation), value)
        elif isinstance(annotation, ListAnnotation):
            if not isinstance(value, (list, tuple)):
                kind = f"the number {value}" if _is_number(value) else f"a {type(value).__name__}"
                raise ArgumentError("TS203", f"'{name}' is a list of tensors, but {kind} was passed")
            found.lengths[name] = len(value)
            for number, item in enumerate(value):
                _take(found, element_name(name, number), annotation.element, item)
        else:
            _take(found, name, annotation, value)
    return found


def _take(found: Given, name: str, annotation: TensorAnnotation, value: Any) -> None:
    found.tensors[name] = value
    if annotation.shape is not None and annotation.dtype is not None:
        return
    info = _described(name, value)
    shape = free_shape(name, len(info.shape)) if annotation.shape is None else annotation.shape
    dtype = annotation.dtype or info.dtype
    if dtype is None:
        raise ArgumentError("TS204", f"'{name}' is an array of {info.dtype_text}, which is no dtype of Tessera")
    found.bare[name] = TensorAnnotation(shape, dtype)


def _described(name: str, value: Any) -> ArrayInfo:
    info = describe(value)
    if info is None:
        kind = f"the number {value}" if _is_number(value) else f"a {type(value).__name__}"
        raise ArgumentError("TS203", f"'{name}' is a tensor, but {kind} was passed")
    return info


def _as_written(name: str, annotation: Annotation) -> Parameter:
    if isinstance(annotation, ScalarAnnotation):
        return Parameter(name, "scalar", annotation.dtype.name)
    return Parameter(name, "list" if isinstance(annotation, ListAnnotation) else "tensor", "", length=ANY_LENGTH)


def declared_parameters(definition: FunctionDefinition, given: Given) -> tuple[Parameter, ...]:
    """The parameters as annotated, for the tensors of this call; open axes are dims of their own."""
    found: list[Parameter] = []
    for parameter in definition.parameters:
        name, annotation = parameter.name, parameter.annotation
        if isinstance(annotation, ScalarAnnotation):
            found.append(_as_written(name, annotation))
        elif isinstance(annotation, ListAnnotation):
            names = [element_name(name, number) for number in range(given.lengths[name])]
            found += [_tensor(one, given.bare.get(one, annotation.element)) for one in names]
        else:
            found.append(_tensor(name, given.bare.get(name, annotation)))
    return tuple(found)


def _tensor(name: str, annotation: TensorAnnotation) -> Parameter:
    assert annotation.shape is not None and annotation.dtype is not None
    return Parameter(name, "tensor", annotation.dtype.name, annotation.shape)


def traced_parameters(trace: FunctionTrace) -> tuple[Parameter, ...]:
    """The parameters of a traced function that its calls pass, in order: not those of the store, and not the seed."""
    collected = trace.collected
    hidden = {*collected.ambient, collected.seed}
    found: list[Parameter] = []
    for value in trace.function.parameters:
        if value.name in hidden:
            continue
        if isinstance(value.type, ScalarType):
            found.append(Parameter(value.name, "scalar", value.type.dtype.name))
        else:
            assert isinstance(value.type, TileType)
            found.append(Parameter(value.name, "tensor", value.type.dtype.name, value.type.shape))
    return tuple(found)


def check(name: str, parameters: Iterable[Parameter], given: Given) -> Binding:
    """The checked arguments, with the dims that they give. Raises what `bind` raises."""
    return bind(name, tuple(parameters), (), {**given.tensors, **given.scalars})


__all__ = ["Given", "check", "declared_parameters", "read_arguments", "traced_parameters"]
