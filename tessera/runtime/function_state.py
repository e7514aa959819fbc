"""What is known about a function: its traces, the plans that were made of them, and what its calls need of both.

A trace serves every call with lists of these lengths, open tensors of these ranks and dtypes, this mode (training or
evaluation) and these values of the dims that the author's code decided by; numbers and all other sizes are its
arguments. A plan serves every call with the values of dims that its kernels are made for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera import modes
from tessera.buffers import Footprint
from tessera.errors import ArgumentError
from tessera.frontend.definition import FunctionDefinition
from tessera.frontend.function import FunctionTrace, trace_function
from tessera.ir.dims import evaluate
from tessera.ir.types import TileType
from tessera.program import Parameter
from tessera.runtime.bind import Binding, unify
from tessera.runtime.execute import KernelRun
from tessera.runtime.function_arguments import Given, check, declared_parameters, read_arguments, traced_parameters
from tessera.runtime.function_plans import PlanPrograms
from tessera.runtime.parameters import ParameterSpec
from tessera.runtime.warm_code import WrittenCalls


@dataclass(frozen=True)
class FunctionRun:
    """What a call did: its lane, its launches and what they needed (nothing on the interpreter), and the compiler's
    notes to the author. `seconds` without compilation, where measured. `replayed`: the launches were a CUDA graph.
    """

    lane: str
    kernels: tuple[KernelRun, ...] = ()
    footprint: Footprint = Footprint()
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    replayed: bool = False

    @property
    def workspace(self) -> int:
        """The bytes of memory that the launches needed beside arguments and results."""
        return self.footprint.workspace


class TraceState:
    """A trace, and the plans that were made of it."""

    def __init__(self, trace: FunctionTrace, static: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.trace = trace
        self.parameters: tuple[Parameter, ...] = traced_parameters(trace)
        self.tensors = [parameter for parameter in self.parameters if parameter.kind == "tensor"]
        attributes = trace.function.attributes
        known = {**static, **unify(self.tensors, shapes)}
        self.decided = {name: known[name] for name in attributes["shape_dims"] if name in known}
        self.notes = tuple(attributes.get("notes", ()))
        self._plans: list[PlanPrograms] = []
        self._planning = threading.RLock()

    def serves(self, static: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a call of these shapes, and lengths of lists, does what this trace does."""
        try:
            dims = {**static, **unify(self.tensors, shapes)}
        except ArgumentError:  # open axes that were one size here are not always
            return False
        return all(dims.get(name) == value for name, value in self.decided.items())

    def plan(self, dims: Mapping[str, int]) -> PlanPrograms:
        """The plan for these dims, made now or before."""
        with self._planning:
            for known in self._plans:
                if all(dims.get(name) == value for name, value in known.plan.static.items()):
                    return known
            from tessera.compiler import lower_function

            made = PlanPrograms(lower_function(self.trace.function, dims, called=self.trace.collected.kernels))
            self._plans.append(made)
            return made

    def ambient(self, dims: Mapping[str, int]) -> dict[str, ParameterSpec]:
        """The parameters of the store, by hidden parameter."""
        types = {value.name: value.type for value in self.trace.function.parameters}
        found = {}
        for name, known in self.trace.collected.ambient.items():
            type_ = types[name]
            assert isinstance(type_, TileType)
            shape = tuple(evaluate(size, dims) for size in type_.shape)
            found[name] = ParameterSpec(known.key, shape, type_.dtype, known.init, known.value)
        return found

    def check_guards(self, scalars: Mapping[str, int | float]) -> None:
        """Raises SourceError TS403 for a number that the function cannot take."""
        for guard in self.trace.collected.guards:
            guard.check(scalars[guard.parameter])

    @property
    def seed(self) -> str | None:
        """The hidden scalar parameter that random ops read."""
        return self.trace.collected.seed

    def result_types(self) -> list[TileType]:
        types = [value.type for value in self.trace.function.body.ops[-1].operands]
        return [type_ for type_ in types if isinstance(type_, TileType)]


@dataclass
class Call:
    """A checked call, ready for any lane: `specs` are the parameters of the store, `lengths` those of its lists.

    `seed` is what random ops read; a call draws a fresh one unless it is set.
    """

    name: str
    state: TraceState
    binding: Binding
    specs: dict[str, ParameterSpec]
    scalars: dict[str, int | float] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    seed: int | None = None

    def all_scalars(self) -> dict[str, int | float]:
        """The numbers of a run, the seed among them."""
        if self.state.seed is None:
            return self.scalars
        return {**self.scalars, self.state.seed: modes.next_seed() if self.seed is None else self.seed}

    @property
    def dims(self) -> dict[str, int]:
        return self.binding.dims


class FunctionState:
    """What is known about one function, and everything that was traced and compiled for it."""

    def __init__(self, definition: FunctionDefinition) -> None:
        self.definition = definition
        self.last_run: FunctionRun | None = None
        self.warm: dict[Any, Any] = {}  # what `function_launch` keeps for calls that look alike
        self.written = WrittenCalls(definition)
        self._traces: dict[tuple[Any, ...], list[TraceState]] = {}
        self._tracing = threading.RLock()

    @property
    def traces(self) -> list[TraceState]:
        return [state for states in self._traces.values() for state in states]

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Checks a call and finds its trace, without drawing a seed. Raises what a call raises."""
        given = read_arguments(self.definition, args, kwargs)
        state = self.trace_for(given)
        binding = check(self.definition.name, state.parameters, given)
        binding.dims |= given.static
        state.check_guards(binding.scalars)
        specs = state.ambient(binding.dims)
        return Call(self.definition.name, state, binding, specs, dict(binding.scalars), given.lengths)

    def trace_for(self, given: Given) -> TraceState:
        """The trace that serves a call, made now or before."""
        with self._tracing:
            known = self._traces.setdefault(given.key, [])
            declared = check(self.definition.name, declared_parameters(self.definition, given), given)
            shapes = {name: info.shape for name, info in declared.infos.items()}
            for state in known:
                if state.serves(given.static, shapes):
                    return state
            static = {**declared.dims, **given.static}
            state = TraceState(trace_function(self.definition, static, given.bare), static, shapes)
            known.append(state)
            return state


_making = threading.Lock()


def state_of(definition: FunctionDefinition) -> FunctionState:
    """The state of a definition, kept in it, so that what was compiled for a function goes when the function goes."""
    found = vars(definition).get("_function_state")
    if found is None:
        with _making:
            found = vars(definition).setdefault("_function_state", FunctionState(definition))
    return found


__all__ = ["Call", "FunctionRun", "FunctionState", "TraceState", "state_of"]
