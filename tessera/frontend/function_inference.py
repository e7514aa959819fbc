"""Bare parameters of a function, `Tensor` and `list[Tensor]`: their axes and dtype, from a call or from what it does.

The function is evaluated with such parameters unknown. The first op that tells the axes of one gives it those from
there on, and the evaluation starts again with what was found, until nothing is found any more. What only makes some
axes likely counts when nothing else tells them. Dims that stay open are those of the first annotated tensor of that
rank, axis by axis; where there is none, they are called as the annotation that the tensor was passed to calls them. The
dtype is bf16. A size that nothing tells is a dim of its own during all of that, and a `range` over it is entered once.

A call knows more: rank, dtype and sizes. Where they do not fit what was found, or nothing was, every axis of a tensor
gets a dim of its own, and tracing unifies those that must be one or says which differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tessera.dtypes import TYPES, bf16
from tessera.errors import ArgumentError, SourceError, TesseraError
from tessera.frontend.annotations import ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import FunctionDefinition, ParameterDefinition
from tessera.frontend.function import MAX_UNIFICATIONS, FunctionTrace, element_name, free_shape
from tessera.frontend.function_emit import Unify
from tessera.frontend.function_inference_evaluator import Findings, InferenceAttempt
from tessera.frontend.function_unknown import parameter_of
from tessera.frontend.inference import Actual, tensor_of
from tessera.ir import dims
from tessera.ir.core import Value
from tessera.ir.dims import Size
from tessera.ir.types import ScalarType, Shape, TileType, length_name
from tessera.program import Parameter


def resolve_function(
    definition: FunctionDefinition, static: Mapping[str, int], given: Mapping[str, Actual] | None = None
) -> tuple[dict[str, TensorAnnotation], dict[str, int]]:
    """The annotations of bare parameters, as `trace_function` takes them, and values of dims that only they have.

    `static` as for `trace_function`: sizes of dims and the lengths of lists. `given` holds what is known of bare
    parameters: of all of them in a call, of those that the user names on a command line; of a list by the name of each
    element ("x[0]"), or of all by that of the list. The dims of the others have no value: `dims_of_function` names
    them. Raises SourceError TS206 for a parameter whose axes nothing tells and what evaluating the function raises,
    ArgumentError TS605 for a name in `given` that is no bare parameter.
    """
    bare = _bare_tensors(definition, static)
    given = given or {}
    _check_given(definition, bare, given)
    known = {name: given[key] for name in bare for key in (parameter_of(name), name) if key in given}
    half = {
        name: TensorAnnotation(annotation.shape, known[name].dtype if name in known else bf16)
        for name, annotation in bare.items()
        if annotation.shape is not None  # only the dtype is open
    }
    if len({**half, **known}) == len(bare):
        return _fitted(definition, static, list(bare), half, known)
    found, sizes = _own(half, known)
    return _infer(definition, {**static, **sizes}, list(bare), found, frozenset(sizes)), sizes


def _own(
    half: Mapping[str, TensorAnnotation], known: Mapping[str, Actual]
) -> tuple[dict[str, TensorAnnotation], dict[str, int]]:
    """Annotations with dims of its own for every tensor that is known, and the values of these dims."""
    found, sizes = dict(half), dict[str, int]()
    for name, actual in known.items():
        if name not in half:
            shape = free_shape(name, len(actual.shape))
            found[name] = TensorAnnotation(shape, actual.dtype)
            sizes.update((str(size), extent) for size, extent in zip(shape, _extents(actual), strict=True))
    return found, sizes


def _fitted(
    definition: FunctionDefinition,
    static: Mapping[str, int],
    names: Sequence[str],
    half: Mapping[str, TensorAnnotation],
    known: Mapping[str, Actual],
) -> tuple[dict[str, TensorAnnotation], dict[str, int]]:
    """What is inferred, for tensors whose sizes fit that; dims of its own for each of the others."""
    try:
        inferred = _infer(definition, dict(static), names, half, frozenset()) if len(half) < len(names) else {}
    except TesseraError:  # tracing with the sizes of the call goes further, or raises it again
        inferred = {}
    found, sizes = _own(half, known)
    values: dict[str, int] = dict(static)
    fitting: dict[str, tuple[Shape, Actual]] = {
        name: (inferred[name].shape or (), known[name])
        for name in names
        if name not in half and name in inferred and len(inferred[name].shape or ()) == len(known[name].shape)
    }
    for shape, actual in fitting.values():
        for size, extent in zip(shape, _extents(actual), strict=True):
            if dims.symbols(size) == {str(size)}:
                values.setdefault(str(size), extent)
    for name, (shape, actual) in fitting.items():
        if all(_is(size, extent, values) for size, extent in zip(shape, _extents(actual), strict=True)):
            found[name] = TensorAnnotation(shape, actual.dtype)
    used = {symbol for annotation in found.values() for size in annotation.shape or () for symbol in dims.symbols(size)}
    values.update(sizes)
    return found, {name: values[name] for name in sorted(used - static.keys()) if name in values}


def _extents(actual: Actual) -> tuple[int, ...]:
    return tuple(dims.evaluate(size, {}) for size in actual.shape)


def _is(size: Size, extent: int, values: Mapping[str, int]) -> bool:
    return dims.symbols(size) <= values.keys() and dims.evaluate(size, values) == extent


def _bare_tensors(definition: FunctionDefinition, static: Mapping[str, int]) -> dict[str, TensorAnnotation]:
    """The tensors whose shape or dtype is open, those of lists one by one."""
    result: dict[str, TensorAnnotation] = {}
    for parameter in definition.parameters:
        tensor = tensor_of(parameter.annotation)
        if tensor is None or (tensor.shape is not None and tensor.dtype is not None):
            continue
        names = [parameter.name]
        if isinstance(parameter.annotation, ListAnnotation):
            length = static.get(length_name(parameter.name), 0)  # tracing says it where none is given
            names = [element_name(parameter.name, index) for index in range(length)]
        result.update(dict.fromkeys(names, tensor))
    return result


def _check_given(
    definition: FunctionDefinition, bare: Mapping[str, TensorAnnotation], given: Mapping[str, Actual]
) -> None:
    parameters = [p.name for p in definition.parameters if (t := tensor_of(p.annotation)) is not None and not t.shape]
    for name in given:
        if name not in bare and name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ArgumentError(
                "TS605", f"'{name}' is no parameter of '{definition.name}' whose shape is open; those are {known}"
            )


def _infer(
    definition: FunctionDefinition,
    static: dict[str, int],
    names: Sequence[str],
    found: Mapping[str, TensorAnnotation],
    told: frozenset[str],
) -> dict[str, TensorAnnotation]:
    state = Findings(dict(found))
    for _ in range(MAX_UNIFICATIONS):
        before = len(state.found)
        problem: TesseraError | None = None
        try:
            InferenceAttempt(definition, dict(static), state).look()
        except Unify as unified:
            state.unify(unified)
            continue
        except TesseraError as error:
            problem = error  # what is found later may solve it
        if len(state.found) > before or state.adopt():
            continue
        if problem is not None:
            raise problem
        break
    else:
        raise SourceError("TS302", f"the sizes of '{definition.name}' cannot be unified", definition.loc)
    for name in names:
        if name not in state.found:
            other = next((a for other, a in state.found.items() if parameter_of(other) == parameter_of(name)), None)
            if other is None and name in state.needs:
                raise state.needs[name]
            # A tensor that nothing uses is as the others of its list, or as small as can be.
            state.found[name] = other or TensorAnnotation(free_shape(parameter_of(name), 1), bf16)
    return _named(definition, {name: state.found[name] for name in names}, state.names, told)


def _named(
    definition: FunctionDefinition,
    found: Mapping[str, TensorAnnotation],
    names: Mapping[str, str],
    told: frozenset[str],
) -> dict[str, TensorAnnotation]:
    """Annotations whose open dims have names that an author could have given; `told` are dims that have a value."""
    shapes = [tensor.shape for p in definition.parameters if (tensor := tensor_of(p.annotation)) is not None]
    models = [shape for shape in shapes if shape is not None]
    fixed = {name for shape in models for size in shape for name in dims.symbols(size)} | told
    chosen: dict[str, Size] = {}
    for name, annotation in found.items():
        shape = annotation.shape or ()
        model = next((model for model in models if len(model) == len(shape)), None)
        for axis, size in enumerate(shape):
            text = str(size)
            if dims.symbols(size) != {text} or text in fixed or text in chosen:
                continue
            own = dims.symbol(names.get(text) or f"{parameter_of(name)}.{axis}")
            chosen[text] = own if model is None else model[axis]
    return {
        name: TensorAnnotation(
            tuple(dims.substitute(size, chosen) for size in annotation.shape or ()), annotation.dtype
        )
        for name, annotation in found.items()
    }


def dims_of_function(definition: FunctionDefinition, bare: Mapping[str, TensorAnnotation]) -> tuple[str, ...]:
    """The names of a function's dims, in the order of their parameters and axes."""
    names: dict[str, None] = {}
    for parameter in definition.parameters:
        for shape in _shapes_of(parameter, bare):
            for size in shape:
                names.update(dict.fromkeys(sorted(dims.symbols(size))))
    return tuple(names)


def _shapes_of(parameter: ParameterDefinition, bare: Mapping[str, TensorAnnotation]) -> Iterable[Shape]:
    tensor = tensor_of(parameter.annotation)
    if tensor is None or isinstance(parameter.annotation, ScalarAnnotation):
        return ()
    if tensor.shape is not None:
        return (tensor.shape,)
    return [a.shape or () for name, a in bare.items() if parameter_of(name) == parameter.name]


def parameters_of_function(trace: FunctionTrace) -> tuple[Parameter, ...]:
    """The parameters of a traced function as data: the author's in order, then the hidden ones.

    A list is one parameter where all its tensors have one shape and dtype; else each of them is one, as "x[0]". An
    empty one has the shape that its annotation gives.
    """
    values = {value.name: value for value in trace.function.parameters}
    lists: Mapping[str, int] = trace.function.attributes.get("lists") or {}
    result: list[Parameter] = []
    for parameter in trace.parameters:
        name = parameter.name
        if name not in lists:
            result.append(_parameter(values.pop(name)))
            continue
        tensors = [_parameter(values.pop(element_name(name, index))) for index in range(lists[name])]
        if len({(tensor.dtype, tensor.shape) for tensor in tensors}) > 1:
            result += tensors
            continue
        tensor = tensor_of(parameter.annotation)
        shape, dtype = (tensor.shape or (), tensor.dtype or bf16) if tensor is not None else ((), bf16)
        if tensors:
            result.append(Parameter(name, "list", tensors[0].dtype, tensors[0].shape, length=len(tensors)))
        else:
            result.append(Parameter(name, "list", dtype.name, shape))
    return (*result, *map(_parameter, values.values()))


def _parameter(value: Value) -> Parameter:
    if isinstance(value.type, ScalarType):
        return Parameter(value.name, "scalar", value.type.dtype.name)
    assert isinstance(value.type, TileType)
    return Parameter(value.name, "tensor", value.type.dtype.name, value.type.shape)


_SHAPE = re.compile(r"(?P<name>[^\W\d]\w*(?:\[\d+\])?)=(?P<sizes>[\d,\s]*)(?::(?P<dtype>\w+))?")


def parse_shape(text: str) -> tuple[str, Actual]:
    """Reads `NAME=2,150,64:bf16`, the value of the option --shape; the dtype may be left out, it is bf16 then.

    NAME is a bare parameter, a list for all its tensors, or one of them as in `x[0]`. Raises ArgumentError TS605.
    """
    match = _SHAPE.fullmatch(text.strip())
    sizes = [size.strip() for size in match["sizes"].split(",")] if match and match["sizes"].strip() else []
    if match is None or not all(size.isdigit() and int(size) for size in sizes):
        raise ArgumentError("TS605", f"--shape takes NAME=2,150,64:bf16, with positive sizes, not '{text}'")
    dtype = TYPES.get(match["dtype"] or "bf16")
    if dtype is None:
        raise ArgumentError("TS605", f"'{match['dtype']}' is no dtype; --shape takes NAME=2,150,64:bf16")
    return match["name"], Actual(tuple(map(int, sizes)), dtype)


__all__ = ["dims_of_function", "parameters_of_function", "parse_shape", "resolve_function"]
