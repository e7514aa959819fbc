"""`ts.compile`: a kernel, a function or a plain Python function, with settings of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import update_wrapper
from types import FunctionType
from typing import Any, overload

import numpy as np

from tessera.config import BACKENDS, TUNES, Config, config, in_force, using
from tessera.errors import ArgumentError, did_you_mean
from tessera.frontend import definition
from tessera.frontend.annotations import Tensor
from tessera.frontend.definition import MISSED, Definition, FunctionDefinition, KernelDefinition, LaunchOn, Wrapper
from tessera.runtime import api, arrays
from tessera.runtime.api import Run
from tessera.runtime.function_state import FunctionRun

AnyDefinition = FunctionDefinition | KernelDefinition


@overload
def compile(
    function: Callable[..., Any],
    *,
    backend: str | None = None,
    arch: str | None = None,
    tune: str | None = None,
    graphs: bool | None = None,
) -> Compiled: ...


@overload
def compile(
    function: None = None,
    *,
    backend: str | None = None,
    arch: str | None = None,
    tune: str | None = None,
    graphs: bool | None = None,
) -> Callable[[Callable[..., Any]], Compiled]: ...


def compile(
    function: Any = None,
    *,
    backend: str | None = None,
    arch: str | None = None,
    tune: str | None = None,
    graphs: bool | None = None,
) -> Any:
    """A callable that computes what `function` does: a `@ts.function`, a `@ts.kernel`, or a plain Python function over
    `ts` operations, of which parameters without an annotation become what the call passes for them.

    Nothing is compiled yet. A call whose arguments look like none before compiles for them (dtypes, shapes, strides,
    alignment), later ones find that; `function` itself stays as it is. Options left out are those of the environment:
    `backend` is "auto", "interpret", "emulate" or "cuda", `arch` what to compile for where no GPU decides, as
    "sm_90a", `tune` "auto", "cached" or "off", and `graphs` whether repeated calls are replayed as CUDA graphs. Raises
    ArgumentError TS203 for what is no function, TS508 for an unknown architecture and TS605 for another option.
    """
    options = {"backend": backend, "arch": arch, "tune": tune, "graphs": graphs}
    changes = _checked({name: value for name, value in options.items() if value is not None})
    if function is None:
        return lambda decorated: Compiled(decorated, changes)
    return Compiled(function, changes)


def _checked(options: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the settings that the options change."""
    for name, allowed in (("backend", BACKENDS), ("tune", TUNES)):
        if name in options and options[name] not in allowed:
            hint = did_you_mean(str(options[name]), allowed)
            message = f"{name}= of ts.compile is {options[name]!r} and must be one of {', '.join(allowed)}{hint}"
            raise ArgumentError("TS605", message)
    changes = dict(options)
    if "arch" in changes:
        changes["arch"] = api.choose_arch(changes["arch"])
    if "graphs" in changes:
        if not isinstance(changes["graphs"], bool):
            raise ArgumentError("TS605", f"graphs= of ts.compile is True or False, not {changes['graphs']!r}")
        changes["graphs"] = "auto" if changes["graphs"] else "off"
    return changes


class Compiled(Wrapper):
    """What `ts.compile` returns. `last_run` is what the last call did; inside a function its call is `wrapped`'s."""

    __name__: str
    operator: Callable[..., Any]

    def __init__(self, function: Any, changes: Mapping[str, Any]) -> None:
        if isinstance(function, Wrapper):
            function = function.wrapped
        if not isinstance(function, (FunctionDefinition, KernelDefinition, FunctionType)):
            raise ArgumentError("TS203", f"ts.compile takes {EXPECTED}, not {_shown(function)}")
        super().__init__(function)
        update_wrapper(self, function if isinstance(function, FunctionType) else function.function)
        self.number = definition.numbered(self)
        definition.notice_torch()
        self._changes = dict(changes)
        # `config.in_force` and `config` around a call, and the settings of that with the changes.
        self._settings: tuple[Config | None, Config, Config] | None = None
        self._made: dict[tuple[Any, ...], AnyDefinition] = {}
        self._last: AnyDefinition | None = None
        self._parameters: list[inspect.Parameter] = []
        if isinstance(function, (FunctionDefinition, KernelDefinition)):
            self._definition: AnyDefinition | None = copy(function) if changes else function
        else:
            self._parameters = list(inspect.signature(function).parameters.values())
            annotated = all(p.annotation is not p.empty for p in self._parameters)
            self._definition = _Inferred(function, {}) if annotated else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a call of the function; raises what that raises."""
        if definition.tracing is not None and definition.tracing():
            definition.make_operator(self.number)
            return self.operator(*args, **kwargs)
        own = self._definition
        if own is not None and own.written and not kwargs:
            settings, known = in_force(), self._settings
            if known is not None and known[0] is settings:  # None where there are no changes
                settings = known[2]
            for written in own.written:
                result = written(args, settings)
                if result is not MISSED:
                    self._last = own
                    return result
        return self._run(self._definition or self._infer(args, kwargs), args, kwargs)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        """A kernel on a grid of the caller's choice, as `kernel[grid]`."""
        if not isinstance(self._definition, KernelDefinition):
            raise ArgumentError("TS203", f"'{self.__name__}' is no kernel, and has no grid to choose")
        launch = self._definition[grid]
        return lambda *args, **kwargs: self._run(launch, args, kwargs)

    @property
    def last_run(self) -> Run | FunctionRun | None:
        """What the last call did, in whatever thread; None before the first."""
        return None if self._last is None else api.last_run(self._last)

    def __repr__(self) -> str:
        return f"<tessera compiled {self.__name__}>"

    def _run(self, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._last = callee.definition if isinstance(callee, LaunchOn) else callee
        if not self._changes:
            return callee(*args, **kwargs)
        outer = config()
        known = self._settings
        if known is None or known[1] is not outer:  # one object, so that warm calls see that nothing changed
            known = self._settings = in_force(), outer, replace(outer, **self._changes)
        with using(known[2]):
            return callee(*args, **kwargs)

    def _infer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AnyDefinition:
        """The function with annotations of what this call passes where it has none."""
        given = dict(zip((p.name for p in self._parameters), args, strict=False)) | kwargs
        found: dict[str, Any] = {}
        for parameter in self._parameters:
            value = given.get(parameter.name, parameter.default)
            if parameter.annotation is parameter.empty and value is not parameter.empty:
                found[parameter.name] = _annotation_of(self.__name__, parameter.name, value)
            elif parameter.annotation is parameter.empty:
                needed = ", ".join(p.name for p in self._parameters)
                message = f"{self.__name__} needs the argument '{parameter.name}' (it takes {needed})"
                raise ArgumentError("TS601", message)
        key = tuple(found.items())
        made = self._made.get(key)
        if made is None:
            made = self._made.setdefault(key, _Inferred(self.wrapped, found))
        return made


EXPECTED = "a @ts.function, a @ts.kernel or a Python function over ts operations"


class _Inferred(FunctionDefinition):
    """A plain function as a definition that `ts.ops` does not list; `given` has annotations that it lacks."""

    def __init__(self, function: FunctionType, given: Mapping[str, Any]) -> None:
        Definition.__init__(self, function)
        self._given = dict(given)

    def _annotations(self) -> dict[str, Any]:
        return {**self._given, **super()._annotations()}


def _annotation_of(function: str, name: str, value: Any) -> Any:
    if arrays.adapter(value) is not None:
        return Tensor
    if isinstance(value, (list, tuple)) and all(arrays.adapter(item) is not None for item in value):
        return list[Tensor]
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int
    if isinstance(value, (float, np.floating)):
        return float
    shown = f"the bool {value}" if isinstance(value, bool) else f"a {type(value).__name__}"
    message = f"'{name}' of {function} is {shown}; a compiled function takes tensors, lists of tensors, int and float"
    raise ArgumentError("TS203", f"{message}, and finds everything else in the scope around it")


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "forward"):
        return f"the module {type(value).__name__} (compile what its forward computes)"
    return f"a {type(value).__name__}"


__all__: Sequence[str] = ["Compiled", "compile"]
