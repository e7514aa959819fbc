"""How the language is declared: an intrinsic is one Python function that builds IR, and its signature is the author's.

    @intrinsic("tile.zeros")
    def zeros(emit, shape, dtype=f32): ...

The first parameter is the emitter; the rest is what the author passes. Everything else derives from that: the check of
arguments, the message that shows the signature, the reference page. An intrinsic that also means something for Python
numbers has a `host` function, which folds calls at compile time and serves calls from ordinary code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tessera.dtypes import DType
from tessera.errors import SourceError, did_you_mean
from tessera.frontend.evaluator_values import Handle

if TYPE_CHECKING:
    from tessera.frontend.evaluator_emit import Emitter

INTRINSICS: dict[str, Intrinsic] = {}
KERNEL, FUNCTION, EVERYWHERE = "kernel", "function", ""  # where a name of the language may be called


class Intrinsic:
    """A function of the language. Inside a kernel the evaluator calls `build`; elsewhere only `host` can answer."""

    def __init__(
        self,
        name: str,
        build: Callable[..., Any],
        host: Callable[..., Any] | None = None,
        op: str | None = None,
        scope: str | None = None,
    ) -> None:
        self.name = name
        self.build = build
        self.host_function = host
        self.scope = scope if scope is not None else KERNEL if name.startswith("tile.") else EVERYWHERE
        self.op = op  # the op that it stands for, where it is just that
        signature = inspect.signature(build)
        self.signature = signature.replace(
            parameters=list(signature.parameters.values())[1:], return_annotation=inspect.Signature.empty
        )
        self.__name__ = name.rsplit(".", 1)[-1]
        self.__doc__ = build.__doc__
        INTRINSICS[name] = self

    @property
    def documentation(self) -> str:
        """What it does, in a sentence or two: its docstring, after the sentence of the op table."""
        parts = []
        if self.op is not None:
            from tessera.ir.opdef import lookup  # only a reference page needs the op table

            parts.append(lookup(self.op).doc)
        return "; ".join([*parts, *filter(None, [inspect.getdoc(self)])])

    @property
    def spelling(self) -> str:
        """The call as a reference shows it: `tile.zeros(shape, dtype=f32)`."""
        parts = []
        for parameter in self.signature.parameters.values():
            default = parameter.default
            if parameter.kind == parameter.KEYWORD_ONLY and "*" not in parts:
                parts.append("*")
            if default is parameter.empty:
                parts.append(parameter.name if parameter.kind != parameter.VAR_POSITIONAL else f"*{parameter.name}")
            else:
                shown = f"ts.{default.name}" if isinstance(default, DType) else repr(default)
                parts.append(f"{parameter.name}={shown}")
        return f"{self.name}({', '.join(parts)})"

    def bind(self, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, defaults filled in. Raises SourceError TS202 and shows the signature."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            names = list(self.signature.parameters)
            hint = next((did_you_mean(name, names) for name in kwargs if name not in names), "")
            raise SourceError("TS202", f"{self.name}: {error}; it is {self.spelling}{hint}") from None
        bound.apply_defaults()
        return bound.arguments

    def host(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: what the intrinsic means for Python numbers."""
        self.host_function = function
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.bind(list(args), kwargs)
        if self.host_function is None or any(isinstance(value, Handle) for value in bound.values()):
            where = " or ".join(f"@ts.{kind}" for kind in (KERNEL, FUNCTION) if self.scope in (kind, EVERYWHERE))
            raise SourceError("TS203", f"{self.name} works only inside a function decorated with {where}")
        return self.host_function(**bound)

    def __repr__(self) -> str:
        return f"<tessera {self.spelling}>"


def intrinsic(name: str) -> Callable[[Callable[..., Any]], Intrinsic]:
    """Declares the decorated function as the intrinsic `name`, the author's spelling with `tile.` or `ts.ops.`."""
    return lambda build: Intrinsic(name, build)


def build_call(emit: Emitter, callee: Intrinsic, arguments: dict[str, Any]) -> Any:
    """Calls `build` with bound arguments, spreading the one that takes the rest."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in callee.signature.parameters.items():
        value = arguments[name]
        if parameter.kind == parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional += value if parameter.kind == parameter.VAR_POSITIONAL else [value]
    return callee.build(emit, *positional, **named)
