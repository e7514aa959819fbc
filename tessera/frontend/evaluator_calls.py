"""Calls inside a kernel: intrinsics build IR, Python functions run now, helpers on run-time values are inlined."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from tessera.dtypes import f32, i64
from tessera.errors import SourceError, TesseraError
from tessera.frontend.definition import Definition, LaunchOn, Wrapper
from tessera.frontend.evaluator_arithmetic import binary, elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_frames import Frame, open_function
from tessera.frontend.evaluator_lists import check_zip
from tessera.frontend.evaluator_unknown import check_call
from tessera.frontend.evaluator_values import Context, Handle, Site, describe, holds_symbolic, is_number
from tessera.frontend.language import EVERYWHERE, Intrinsic, build_call
from tessera.frontend.namespace import Namespace
from tessera.ir.core import Block
from tessera.ir.dims import Dim, maximum, minimum

INLINE_LIMIT = 64

# Builtins that only look at containers, not at what they hold: run-time values may pass through them.
_CONTAINERS = frozenset(
    {list, tuple, dict, set, frozenset, zip, enumerate, reversed, isinstance, type, id, iter, next, slice}
)
_MUTATING = frozenset(
    {
        "append",
        "extend",
        "insert",
        "pop",
        "remove",
        "clear",
        "update",
        "setdefault",
        "popitem",
        "add",
        "discard",
        "sort",
        "reverse",
        "__setitem__",
        "__delitem__",
    }
)


# Python code that gives the same for the same arguments, however often it is called.
_REPEATABLE = (_CONTAINERS - {iter, next}) | {len, range, min, max, sum, abs, int, float, bool, str, round, divmod, pow}


class Calls:
    """Evaluates calls. `frames` is the stack of functions being evaluated, the kernel's own at the bottom."""

    scope = "kernel"  # what is being evaluated: a kernel or a function

    def __init__(self, emit: Emitter) -> None:
        self.emit = emit
        self.frames: list[Frame] = []
        self.rolling = 0  # how many loops that may still be unrolled are being evaluated once for all iterations
        # Containers by id with the region they were made in; the container is kept so that its id stays its own.
        self._made_in: dict[int, tuple[Any, Block]] = {}

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def at(self, node: ast.AST) -> None:
        """Sets the place of the ops and errors that follow."""
        self.emit.place = self.frame.loc(node)
        self.emit.site = None

    def made(self, container: Any) -> Any:
        """Remembers in which run-time region a container was made."""
        self._made_in[id(container)] = (container, self.emit.block)
        return container

    def check_mutation(self, container: Any, text: str) -> None:
        """Raises SourceError TS102 for a change, inside a run-time region, of a container made outside of it.

        It would happen once, while the region is traced, and not each time that it runs.
        """
        known = self._made_in.get(id(container))
        if self.emit.depth and (known is None or known[1] is not self.emit.block):
            raise SourceError(
                "TS102",
                f"'{text}' changes inside a run-time loop or branch, but a Python container changes "
                "only at compile time",
                self.emit.place,
            )

    def check_repeatable(self, callee: Any, node: ast.Call) -> None:
        """Raises SourceError TS102 for Python code that may do something else each time that it is called, in a loop
        whose body is evaluated once for all iterations.
        """
        if self.rolling and not (_hashable(callee) and callee in _REPEATABLE):
            raise SourceError("TS102", f"'{self.frame.text(node.func)}' runs at compile time", self.emit.place)

    def native(self, node: ast.AST, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs Python code now; what it raises becomes TS105 at `node`."""
        try:
            return function(*args, **kwargs)
        except TesseraError as error:
            raise error.at(self.frame.loc(node)) from None
        except Exception as error:  # the author's code may raise anything
            raise SourceError("TS105", f"{type(error).__name__}: {error}", self.frame.loc(node)) from None

    def _Call(self, node: ast.Call) -> Any:
        callee = self.evaluate(node.func)
        args: list[Any] = []
        nodes: list[ast.expr | None] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                spread = self.iterate(self.evaluate(argument.value), argument.value)
                args += spread
                nodes += [None] * len(spread)
            else:
                args.append(self.evaluate(argument))
                nodes.append(argument)
        kwargs: dict[str, Any] = {}
        named: dict[str, ast.expr] = {}
        for keyword in node.keywords:
            value = self.evaluate(keyword.value)
            if keyword.arg is None:
                kwargs.update(value)
            else:
                kwargs[keyword.arg] = value
                named[keyword.arg] = keyword.value
        self.at(node)
        if isinstance(callee, Wrapper):
            callee = callee.wrapped
        if isinstance(callee, Intrinsic):
            return self._call_intrinsic(node, callee, args, kwargs, nodes, named)
        if isinstance(callee, (Definition, LaunchOn)):
            return self.call_definition(node, callee, args, kwargs)
        if isinstance(callee, (Handle, Namespace, Dim, ModuleType)) or not callable(callee):
            shown = repr(callee) if isinstance(callee, (Namespace, ModuleType)) else describe(callee)
            raise SourceError(
                "TS203", f"'{self.frame.text(node.func)}' is {shown} and cannot be called", self.emit.place
            )
        return self._call_python(node, callee, args, kwargs, nodes)

    def call_definition(
        self, node: ast.Call, callee: Definition | LaunchOn, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        callee = callee.definition if isinstance(callee, LaunchOn) else callee
        raise SourceError("TS102", f"'{callee.name}' is a @ts.{callee.kind}; a kernel cannot call it", self.emit.place)

    # -- intrinsics

    def _call_intrinsic(
        self,
        node: ast.Call,
        callee: Intrinsic,
        args: list[Any],
        kwargs: dict[str, Any],
        nodes: list[ast.expr | None],
        named: dict[str, ast.expr],
    ) -> Any:
        if callee.scope not in (self.scope, EVERYWHERE):
            raise SourceError("TS102", f"{callee.name} works only inside a @ts.{callee.scope}", self.emit.place)
        bound = callee.bind(args, kwargs)
        written = dict(named)
        for parameter, argument in zip(callee.signature.parameters, nodes, strict=False):
            if argument is not None:
                written[parameter] = argument
        given = [bound[name] for name in bound if name in written]
        if callee.host_function is not None and given and all(is_number(value) for value in given):
            return self.native(node, callee.host_function, **bound)
        self.emit.site = Site(
            callee.name,
            self.emit.place,
            {name: self.frame.text(n) for name, n in written.items()},
            {name: self.frame.loc(n) for name, n in written.items()},
        )
        try:
            check_call(callee.name, callee.op, bound, self.emit.place)
            return build_call(self.emit, callee, bound)
        finally:
            self.emit.site = None

    # -- Python

    def _call_python(
        self, node: ast.Call, callee: Any, args: list[Any], kwargs: dict[str, Any], nodes: list[ast.expr | None]
    ) -> Any:
        function = callee
        if isinstance(callee, MethodType) and isinstance(callee.__func__, FunctionType):
            function, args, nodes = callee.__func__, [callee.__self__, *args], [None, *nodes]
        symbolic = holds_symbolic(args) or holds_symbolic(kwargs)
        if isinstance(function, FunctionType):
            if symbolic or _uses_language(function):
                return self._inline(function, args, kwargs)
            self.check_repeatable(callee, node)
            return self.native(node, function, *args, **kwargs)
        if isinstance(callee, BuiltinMethodType) and isinstance(callee.__self__, (list, dict, set, tuple)):
            if callee.__name__ in _MUTATING:
                self.check_mutation(callee.__self__, self.frame.text(node))
            result = self.native(node, callee, *args, **kwargs)
            return self.made(result) if callee.__name__ == "copy" else result
        if callee is zip:
            check_zip(args, [self.frame.text(n) if n is not None else "argument" for n in nodes])
        special = _BUILTINS.get(callee) if symbolic and _hashable(callee) else None
        if special is not None and not kwargs:
            return special(self, node, args, [self.frame.text(n) if n is not None else "argument" for n in nodes])
        self.check_repeatable(callee, node)
        if symbolic and not (_hashable(callee) and callee in _CONTAINERS):
            args, kwargs = self._as_numbers(node, args, kwargs, nodes)
        result = self.native(node, callee, *args, **kwargs)
        return self.made(result) if callee in (list, dict, set, sorted) else result

    def _as_numbers(
        self, node: ast.Call, args: list[Any], kwargs: dict[str, Any], nodes: list[ast.expr | None]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Arguments for native code: sizes as numbers; a run-time value is an error."""
        callee = self.frame.text(node.func)
        why = f"'{callee}' is Python code that runs at compile time"

        def number(value: Any, text: str) -> Any:
            if isinstance(value, (Handle, Dim)):
                return self.emit.concrete(value, text, why)
            if isinstance(value, Context):
                raise SourceError("TS203", f"{why}; it cannot take the context", self.emit.place)
            if isinstance(value, (list, tuple)):
                return type(value)(number(item, text) for item in value)
            return value

        texts = [self.frame.text(argument) if argument is not None else "argument" for argument in nodes]
        return (
            [number(value, text) for value, text in zip(args, texts, strict=True)],
            {name: number(value, name) for name, value in kwargs.items()},
        )

    def _inline(self, function: FunctionType, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Evaluates a helper's body in place of the call."""
        call_site = self.emit.place
        if len(self.frames) > INLINE_LIMIT:
            raise SourceError(
                "TS102",
                f"'{function.__name__}' is inlined more than {INLINE_LIMIT} calls deep; a helper "
                "cannot call itself with run-time values",
                call_site,
            )
        if hasattr(function, "__wrapped__"):
            raise SourceError(
                "TS102", f"'{function.__name__}' is wrapped by a decorator; only plain functions are inlined", call_site
            )
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise SourceError(
                "TS202",
                f"{function.__name__}(): {error}; it is {function.__name__}{inspect.signature(function)}",
                call_site,
            ) from None
        bound.apply_defaults()
        try:
            frame = open_function(function, dict(bound.arguments), self.emit.block, call_site)
        except TesseraError as error:
            raise error.at(call_site) from None
        self.frames.append(frame)
        try:
            return self.run_body(frame.source.node.body)
        finally:
            self.frames.pop()
            self.emit.place = call_site

    # -- builtins on run-time values

    def _extremum(self, node: ast.Call, args: list[Any], texts: list[str]) -> Any:
        name = "max" if self.evaluate(node.func) is builtins.max else "min"
        if len(args) == 1:
            args = self.iterate(args[0], node.args[0])
            texts = texts * len(args)
        self.at(node)
        if not args:
            raise SourceError("TS202", f"{name}() of nothing", self.emit.place)
        result, text = args[0], texts[0]
        for value, other in zip(args[1:], texts[1:], strict=True):
            if isinstance(result, Handle) or isinstance(value, Handle) or type(result) is float or type(value) is float:
                result = elementwise(self.emit, name, (result, value), (text, other))
            elif isinstance(result, Dim) or isinstance(value, Dim):
                result = (maximum if name == "max" else minimum)(result, value)
            else:
                result = max(result, value) if name == "max" else min(result, value)
            text = f"{name}({text}, {other})"
        return result

    def _sum(self, node: ast.Call, args: list[Any], texts: list[str]) -> Any:
        items = self.iterate(args[0], node.args[0])
        self.at(node)
        result = args[1] if len(args) > 1 else None
        for position, item in enumerate(items):
            result = (
                item
                if result is None
                else binary(
                    self.emit, ast.Add, result, item, (f"the sum of {position} items", f"item {position} of {texts[0]}")
                )
            )
        return 0 if result is None else result

    def _abs(self, node: ast.Call, args: list[Any], texts: list[str]) -> Any:
        if len(args) == 1 and isinstance(args[0], Handle):
            return elementwise(self.emit, "abs", args, texts)
        return self.native(node, abs, *self._as_numbers(node, args, {}, list(node.args))[0])

    def _convert(self, node: ast.Call, args: list[Any], texts: list[str]) -> Any:
        to_float = self.evaluate(node.func) is builtins.float
        self.at(node)
        if len(args) != 1 or not isinstance(args[0], (Handle, Dim)):
            return self.native(node, float if to_float else int, *args)
        if isinstance(args[0], Dim) and not to_float:
            return args[0]
        operand = self.emit.operand(args[0], texts[0])
        if not operand.is_scalar:
            raise SourceError(
                "TS203", f"'{texts[0]}' is {describe(operand)}; convert a tile with tile.cast", self.emit.place
            )
        return self.emit.cast(operand, f32 if to_float else i64)

    def _len(self, node: ast.Call, args: list[Any], texts: list[str]) -> Any:
        if len(args) == 1 and isinstance(args[0], Handle) and not args[0].is_scalar and args[0].shape:
            return args[0].shape[0]
        if len(args) == 1 and isinstance(args[0], (Handle, Dim)):
            raise SourceError("TS203", f"'{texts[0]}' is {describe(args[0])} and has no length", self.emit.place)
        return self.native(node, len, *args)

    # Given by the classes that complete the evaluator.

    def evaluate(self, node: ast.expr) -> Any:
        raise NotImplementedError

    def iterate(self, iterable: Any, node: ast.expr) -> list[Any]:
        raise NotImplementedError

    def run_body(self, body: list[ast.stmt]) -> Any:
        raise NotImplementedError


_BUILTINS: dict[Any, Callable[[Calls, ast.Call, list[Any], list[str]], Any]] = {
    builtins.max: Calls._extremum,
    builtins.min: Calls._extremum,
    builtins.sum: Calls._sum,
    builtins.abs: Calls._abs,
    builtins.float: Calls._convert,
    builtins.int: Calls._convert,
    builtins.len: Calls._len,
}


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _uses_language(function: FunctionType, seen: set[CodeType] | None = None) -> bool:
    """Whether a helper names a part of the language, directly or through helpers it names: then it is inlined."""
    code = function.__code__
    seen = set() if seen is None else seen
    if code in seen:
        return False
    seen.add(code)
    values = [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # the enclosing function has not assigned it yet
            continue
    for value in values:
        if isinstance(value, (Intrinsic, Namespace)) or (isinstance(value, ModuleType) and value.__name__ == "tessera"):
            return True
        if isinstance(value, FunctionType) and _uses_language(value, seen):
            return True
    return False
