"""Functions made ready to run: from a target to a trace, made-up arguments and a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera.cli.target import Target
from tessera.errors import SourceError
from tessera.frontend.annotations import ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import REQUIRED, FunctionDefinition
from tessera.frontend.function import FunctionTrace, element_name, trace_function
from tessera.frontend.function_inference import dims_of_function, parameters_of_function, resolve_function
from tessera.ir.types import length_name
from tessera.program import ANY_LENGTH, Parameter
from tessera.runtime import inputs
from tessera.runtime.function_arguments import Given as Arguments
from tessera.runtime.function_arguments import check
from tessera.runtime.function_state import Call, TraceState

if TYPE_CHECKING:
    from tessera.cli.subject import Given

CALL_SEED = 1  # what random ops read in a run that is checked


@dataclass(frozen=True)
class FunctionSubject:
    """A function with what its lists and open parameters are. `dims` are those that a size is to be chosen for; `sizes`
    those that `--shape` gave.

    `signature` says the kind of each parameter.
    """

    name: str
    definition: FunctionDefinition
    signature: tuple[Parameter, ...]
    defaults: Mapping[str, Any]
    lengths: dict[str, int]
    bare: dict[str, TensorAnnotation]
    dims: tuple[str, ...]
    sizes: dict[str, int]
    constants: tuple[str, ...] = ()

    def static(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The value of every dim, the lengths of lists among them."""
        return {**dims, **self.sizes, **self.lengths}

    def trace(self, dims: Mapping[str, int]) -> FunctionTrace:
        return trace_function(self.definition, self.static(dims), self.bare)


@dataclass(frozen=True)
class FunctionSetup:
    """A call of a function on made-up arguments. `dims` are those that were chosen, `bound` all of them."""

    subject: FunctionSubject
    dims: dict[str, int]
    bound: dict[str, int]
    scalars: dict[str, int | float]
    call: Call

    @property
    def notes(self) -> tuple[str, ...]:
        return self.call.state.notes


def load_function(target: Target) -> FunctionSubject:
    """Chooses the lengths of lists and infers what is open. Raises what `resolve_function` raises."""
    definition = target.function
    assert definition is not None
    signature = tuple(_parameter(p.name, p.annotation) for p in definition.parameters)
    lengths = inputs.choose_lengths(target.name, signature, target.args)
    bare, sizes = resolve_function(definition, lengths, target.shapes)
    dims = tuple(name for name in dims_of_function(definition, bare) if name not in sizes)
    defaults = {p.name: p.default for p in definition.parameters if p.default is not REQUIRED}
    return FunctionSubject(target.name, definition, signature, defaults, lengths, bare, dims, sizes)


def _parameter(name: str, annotation: Any) -> Parameter:
    if isinstance(annotation, ScalarAnnotation):
        return Parameter(name, "scalar", annotation.dtype.name)
    return Parameter(name, "list" if isinstance(annotation, ListAnnotation) else "tensor", "", length=ANY_LENGTH)


def parameter_names(target: Target) -> tuple[str, ...]:
    """What `--arg` may name of a function, whether or not the rest of it can be read."""
    try:
        return tuple(p.name for p in target.function.parameters) if target.function is not None else ()
    except SourceError:
        return ()


def choose(subject: FunctionSubject, given: Mapping[str, int] | None) -> dict[str, int]:
    """A size per dim, as for kernels. Raises ArgumentError TS605."""
    return inputs.choose_dims(subject.name, subject.dims, given)


def set_up_function(subject: FunctionSubject, given: Given) -> FunctionSetup:
    """Chooses dims and scalars, traces the function and makes arrays.

    Raises ArgumentError TS605 for what was given and does not fit, and what tracing raises.
    """
    dims = choose(subject, given.dims)
    lists = {p.name for p in subject.signature if p.kind == "list"}
    args = {name: text for name, text in given.args.items() if name not in lists}
    scalars = inputs.choose_scalars(subject.name, subject.signature, args, subject.defaults)
    bound, trace = subject.static(dims), subject.trace(dims)
    hidden = {*trace.collected.ambient, trace.collected.seed}
    parameters = tuple(p for p in parameters_of_function(trace) if p.name not in hidden)
    tensors = _flat(inputs.make_arrays(parameters, bound, given.seed))
    lengths = {p.name: subject.lengths[length_name(p.name)] for p in subject.signature if p.kind == "list"}
    state = TraceState(trace, bound, {name: array.shape for name, array in tensors.items()})
    binding = check(subject.name, state.parameters, Arguments(tensors, scalars, lengths, subject.bare))
    binding.dims |= bound
    state.check_guards(binding.scalars)
    call = Call(subject.name, state, binding, state.ambient(bound), dict(binding.scalars), lengths, CALL_SEED)
    return FunctionSetup(subject, dims, bound, scalars, call)


def _flat(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by the parameter of the trace: those of lists one by one."""
    found: dict[str, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, list):
            found |= {element_name(name, number): array for number, array in enumerate(value)}
        else:
            found[name] = value
    return found


__all__ = ["FunctionSetup", "FunctionSubject", "choose", "load_function", "parameter_names", "set_up_function"]
