"""Kernels and functions as operators of other frameworks: a schema, and the results of a call without running it.

Nothing here knows a framework. A `MetaArray` stands for an array that has no memory: sizes, dtype, and where it lives.
Sizes may be symbols of a framework, numbers that know the relations that are asked of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.dtypes import DType, parse
from tessera.errors import ArgumentError, did_you_mean
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation
from tessera.frontend.definition import REQUIRED, FunctionDefinition, KernelDefinition
from tessera.frontend.evaluator import trace
from tessera.frontend.inference import resolve
from tessera.ir.dims import Size, evaluate, substitute
from tessera.ir.dims import symbols as symbols_of
from tessera.program import Parameter
from tessera.runtime import api, arrays, inputs
from tessera.runtime.arrays import Adapter, ArrayInfo, contiguous_strides, on_gpu
from tessera.runtime.bind import _plain_symbol, expand
from tessera.runtime.function_state import state_of
from tessera.runtime.functions import is_native

AnyDefinition = FunctionDefinition | KernelDefinition

# ---- schema ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpParameter:
    """`kind` is "tensor", "list", "int" or "float"; `default` is `REQUIRED` where there is none."""

    name: str
    kind: str
    default: Any = REQUIRED
    mutated: bool = False


@dataclass(frozen=True)
class OpSignature:
    """What an operator takes and gives. `results` is how many tensors it returns, None for a list of any length."""

    name: str
    parameters: tuple[OpParameter, ...]
    results: int | None

    @property
    def mutated(self) -> tuple[str, ...]:
        """The tensors that it writes."""
        return tuple(p.name for p in self.parameters if p.mutated)

    def schema(self) -> str:
        """In the language of torch's operator schemas, without the name: `(Tensor x, int n=1) -> Tensor`."""
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        written = []
        for parameter in self.parameters:
            kind = {"tensor": "Tensor", "list": "Tensor[]"}.get(parameter.kind, parameter.kind)
            if parameter.mutated:
                kind = f"Tensor({next(letters)}!)"
            default = "" if parameter.default is REQUIRED else f"={parameter.default}"
            written.append(f"{kind} {parameter.name}{default}")
        if self.results is None:
            returned = "Tensor[]"
        elif self.results == 1:
            returned = "Tensor"
        else:
            returned = f"({', '.join(['Tensor'] * self.results)})"
        return f"({', '.join(written)}) -> {returned}"


def signature_of(definition: AnyDefinition, mutates: Sequence[str] = ()) -> OpSignature:
    """The operator of a function or kernel.

    A kernel's outputs are results, but for those that `mutates` names, which the caller passes, as it does every tensor
    that the kernel reads and writes. Raises ArgumentError TS201 for a name in `mutates` that is no output and TS203 for
    a function of numbers alone.
    """
    if isinstance(definition, FunctionDefinition):
        if mutates:
            raise ArgumentError("TS201", f"the function '{definition.name}' writes none of its arguments: {mutates[0]}")
        if is_native(definition):
            raise ArgumentError("TS203", f"'{definition.name}' computes a number of numbers; call it from Python")
        parameters = tuple(_op_parameter(p.name, p.annotation, p.default) for p in definition.parameters)
        return OpSignature(definition.name, parameters, None if definition.returns is None else 1)
    roles = roles_of(definition)
    outputs = [name for name, role in roles.items() if role == "out"]
    for name in mutates:
        if name not in outputs:
            hint = did_you_mean(name, outputs)
            has = ", ".join(outputs) or "none"
            raise ArgumentError("TS201", f"the kernel '{definition.name}' has no output '{name}' (it has {has}){hint}")
    parameters = tuple(
        _op_parameter(p.name, p.annotation, p.default, roles.get(p.name, "in") != "in")
        for p in resolve(definition).parameters
        if p.name not in outputs or p.name in mutates
    )
    return OpSignature(definition.name, parameters, sum(name not in mutates for name in outputs))


def _op_parameter(name: str, annotation: Annotation, default: Any, mutated: bool = False) -> OpParameter:
    if isinstance(annotation, ScalarAnnotation):
        return OpParameter(name, "float" if annotation.dtype.is_float else "int", default)
    return OpParameter(name, "list" if isinstance(annotation, ListAnnotation) else "tensor", default, mutated)


def roles_of(definition: KernelDefinition) -> dict[str, str]:
    """Whether the kernel reads ("in"), writes ("out") or does both ("inout") to each parameter.

    Where the author's code decides by a size, those of a call with default sizes.
    """
    state = api._state(definition)
    kernel = state.symbolic
    if kernel is None:
        lengths = inputs.choose_lengths(definition.name, state.signature, {})
        sizes = {**inputs.choose_dims(definition.name, inputs.dims_of(state.signature), None), **lengths}
        kernel = trace(resolve(definition, sizes), sizes).kernel()
    return dict(kernel.attributes["parameters"])


# ---- arrays without memory -------------------------------------------------------------------------------------------

_addresses = itertools.count(1)


class MetaArray:
    """A contiguous array of these sizes that has no memory; `device` as of `ArrayInfo`.

    `sizes` may hold symbols, `shape` is what they are in the case at hand.
    """

    def __init__(
        self, sizes: Sequence[Any], dtype: DType, device: int | None = None, shape: Sequence[int] | None = None
    ) -> None:
        self.sizes = tuple(sizes)
        self.shape: tuple[int, ...] = self.sizes if shape is None else tuple(shape)
        self.dtype, self.device = dtype, device
        self.pointer = next(_addresses) << 44  # no two share a byte


class MetaAdapter(Adapter):
    library = "meta"

    def matches(self, value: Any) -> bool:
        return isinstance(value, MetaArray)

    def describe(self, array: Any) -> ArrayInfo:
        strides = contiguous_strides(array.shape)
        return ArrayInfo(self, array.dtype, array.dtype.name, array.shape, strides, True, array.pointer, array.device)

    def host(self, array: Any) -> Any:
        raise on_gpu(array.device)

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return MetaArray(shape, dtype, device)

    def stream(self, device: int) -> int:
        return 0


arrays.ADAPTERS.append(MetaAdapter())


# ---- results of a call -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A result: its sizes, of symbols where those of the arguments are, and its dtype."""

    shape: tuple[Any, ...]
    dtype: DType


def results_of(definition: AnyDefinition, given: Mapping[str, Any]) -> list[Result]:
    """What a call returns; `given` has a `MetaArray`, a list of them or a number by parameter.

    Nothing is compiled or run. Symbols stay symbols where no decision of the author's needs their values. Raises what a
    call raises.
    """
    if isinstance(definition, FunctionDefinition):
        made = state_of(definition).prepare((), given)
        tensors, attributes = made.state.tensors, made.state.trace.function.attributes
        types = [(type_.shape, type_.dtype) for type_ in made.state.result_types()]
        decided, dims = attributes["shape_dims"], made.dims
    else:
        state = api._state(definition).for_arguments((), given)
        binding, kernel = api._bind(state, None, (), dict(given))
        tensors = [p for p in expand(binding.parameters, _lengths(given)) if p.kind != "scalar"]
        types = [(p.shape, parse(p.dtype)) for p in binding.parameters if p.name in binding.omitted]
        decided, dims = () if state.symbolic is not None else binding.dims, binding.dims
    symbols = _symbols(tensors, dict(_metas(given)), decided)
    return [Result(tuple(_size(size, dims, symbols) for size in shape), dtype) for shape, dtype in types]


def _metas(given: Mapping[str, Any]) -> Iterator[tuple[str, MetaArray]]:
    """The arrays by the tensor that they are, those of lists one by one."""
    for name, value in given.items():
        if isinstance(value, MetaArray):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{number}]", item) for number, item in enumerate(value))


def _lengths(given: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(value) for name, value in given.items() if isinstance(value, (list, tuple))}


def _symbols(tensors: Sequence[Parameter], metas: Mapping[str, MetaArray], decided: Any) -> dict[str, Any]:
    """The size of every dim that stands alone on an axis, as a symbol where it is one.

    Comparing two symbols of one dim asks for them to be equal, and the number of a dim that was decided by asks for
    that number.
    """
    found: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.name not in metas:
            continue
        for size, actual in zip(tensor.shape, metas[tensor.name].sizes, strict=True):
            name = None if isinstance(size, int) else _plain_symbol(size)
            if name is None:
                int(actual)  # a constant, or an expression over other dims
            elif name in found:
                assert found[name] == actual, "unified sizes differ"
            else:
                found[name] = int(actual) if name in decided else actual
    return found


def _size(size: Size, dims: Mapping[str, int], symbols: Mapping[str, Any]) -> Any:
    """A size over dims: a number, or a symbol. Functions such as rounding up are computed in numbers."""
    if isinstance(size, int):
        return size
    functions = any(atom.function for monomial, _ in size.terms for atom, _ in monomial)
    known = {**dims, **symbols}
    if functions:
        return evaluate(size, {name: int(known[name]) for name in symbols_of(size)})
    return substitute(size, known)


__all__ = ["MetaArray", "OpParameter", "OpSignature", "Result", "results_of", "roles_of", "signature_of"]
