"""Evaluates the body of a `@ts.function`: as a kernel's, but values are whole tensors and functions are inlined."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from tessera.errors import SourceError, TesseraError
from tessera.frontend.definition import Definition, FunctionDefinition, KernelDefinition, LaunchOn
from tessera.frontend.evaluator_calls import INLINE_LIMIT
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_frames import open_function
from tessera.frontend.evaluator_statements import Returned, Statements
from tessera.frontend.evaluator_values import Handle, describe, is_number
from tessera.frontend.function_binding import Binder
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.function_kernels import kernel_arguments, launch_kernel
from tessera.frontend.function_unused import CallRecord
from tessera.frontend.language import FUNCTION
from tessera.frontend.language_scopes import RETURNED, Scope, called, scope_of
from tessera.frontend.language_tensor_products import matmul_of
from tessera.frontend.language_tensor_shapes import permuted, subscript_tensor
from tessera.ir.core import Block
from tessera.ir.types import shape_text


class FunctionStatements(Statements):
    """Runs the statements of a function; nothing in it is a run-time loop."""

    scope = FUNCTION
    emit: TensorEmitter

    def __init__(self, emit: Emitter) -> None:
        super().__init__(emit)
        self.calls: list[CallRecord] = []  # of other functions, in the body of the traced one

    def check_mutation(self, container: Any, text: str) -> None:
        """Every region of a function runs exactly once, when it is traced as when it runs."""

    def check_result(self, node: ast.Return) -> None:
        """A function returns what it likes."""

    def _If(self, node: ast.If) -> Any:
        condition = self.evaluate(node.test)
        if isinstance(condition, Handle):
            text = self.frame.text(node.test)
            raise SourceError(
                "TS102",
                f"'{text}' is {describe(condition)}, known only at run time; choose between tensors with "
                "ts.where(condition, a, b)",
                self.frame.loc(node.test),
            )
        return super()._If(node)

    def combine(self, node: ast.AST, kind: type[ast.operator], left: Any, right: Any, texts: tuple[str, str]) -> Any:
        self.at(node)
        if isinstance(left, Handle) or isinstance(right, Handle):
            if kind is ast.MatMult:
                return matmul_of(self.emit, left, right, texts)
            if kind is ast.Div and not (isinstance(left, Handle) and left.is_scalar):
                self.emit.require(right, "nonzero", texts[1], f"'{self.frame.text(node)}' divides by it")
        return super().combine(node, kind, left, right, texts)

    def _handle_attribute(self, owner: Handle, name: str, text: str) -> Any:
        if name == "ndim" and not owner.is_scalar:
            return len(owner.shape)
        if name == "T" and owner.is_tile:
            if len(owner.shape) < 2:
                axes = shape_text(owner.shape)
                raise SourceError("TS304", f"'{text}' is {axes}; a transpose needs two axes", self.emit.place)
            rank = len(owner.shape)
            return permuted(self.emit, owner, (*range(rank - 2), rank - 1, rank - 2))
        return super()._handle_attribute(owner, name, text)

    def chosen(self, node: ast.Subscript, owner: Any) -> Any:
        if isinstance(owner, Handle) and owner.is_tile:
            items = self.subscripts(node.slice)
            self.at(node)
            return subscript_tensor(self.emit, owner, self.frame.text(node.value), items)
        return super().chosen(node, owner)

    # -- with blocks

    def _With(self, node: ast.With) -> Any:
        scopes = []
        for item in node.items:
            value = scope_of(self.evaluate(item.context_expr))
            if not isinstance(value, Scope):
                text = self.frame.text(item.context_expr)
                raise SourceError(
                    "TS102", f"'{text}' is {describe(value)}, which is no scope of a function", self.frame.loc(node)
                )
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
            scopes.append(value)
        entered: list[Scope] = []
        try:
            for scope in scopes:
                self.at(node)
                scope.enter(self)
                entered.append(scope)
            signal = self.execute(node.body)
            if isinstance(signal, Returned):
                self.frame.locals[RETURNED] = signal.value  # a scope finds what leaves it in the variables
            self.at(node)
            while entered:
                entered[-1].leave(self)
                entered.pop()
        finally:
            for scope in reversed(entered):
                scope.abandon()
        self.frame.locals.pop(RETURNED, None)
        return signal

    def _Expr(self, node: ast.Expr) -> None:
        if isinstance(scope_of(self.evaluate(node.value)), Scope):
            text = self.frame.text(node.value)
            raise SourceError("TS102", f"'{text}' alone does nothing; write with {text}:", self.frame.loc(node))

    def _Return(self, node: ast.Return) -> Returned:
        return Returned(None if node.value is None else self.evaluate(node.value))

    def _jump(self, node: ast.stmt, jump: Any) -> Any:
        return jump

    # -- calls of other definitions

    def binder(self, callee: Definition) -> Binder:
        """What binds the arguments of one call."""
        return Binder(self.emit, callee)

    def call_definition(
        self, node: ast.Call, callee: Definition | LaunchOn, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(callee, FunctionDefinition):
            return self.inline(callee, args, kwargs)
        on = callee if isinstance(callee, LaunchOn) else None
        kernel = on.definition if on is not None else callee
        assert isinstance(kernel, KernelDefinition)
        given = bind_arguments(kernel, args, kwargs, self.emit.place)
        return launch_kernel(self.emit, kernel, given, on.grid if on else None, partial=on is not None and not on.whole)

    def inline(self, callee: FunctionDefinition, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Evaluates a function in the place of its call, its arguments checked by its annotations."""
        site = self.emit.place
        if len(self.frames) > INLINE_LIMIT:
            raise SourceError(
                "TS102", f"'{callee.name}' is inlined more than {INLINE_LIMIT} calls deep; it cannot call itself", site
            )
        given = bind_arguments(callee, args, kwargs, site)
        binder = self.binder(callee)
        arguments = binder.bind_all(given)
        with called(self, callee) as close:
            try:
                frame = open_function(callee.function, arguments, self.emit.block, site)
            except TesseraError as error:
                raise error.at(site) from None
            self.frames.append(frame)
            self.emit.callers.append(callee.name)
            try:
                result = self.run_body(frame.source.node.body)
                self.emit.place = site
                result = binder.result(callee.returns, result)
                frame.locals = {RETURNED: result}  # all that a checkpoint hands on of the function's own
                close()
            finally:
                self.emit.callers.pop()
                self.frames.pop()
                self.emit.place = site
        if len(self.frames) == 1:
            self.calls.append(CallRecord(callee.name, result, site))
        return result


def bind_arguments(callee: Definition, args: list[Any], kwargs: dict[str, Any], site: Any) -> dict[str, Any]:
    """The arguments of a call by parameter name, defaults filled in; outputs of a kernel may be missing.

    Raises SourceError TS202.
    """
    if isinstance(callee, KernelDefinition):
        return kernel_arguments(callee, args, kwargs, site)
    signature = inspect.signature(callee.function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        shown = signature.replace(return_annotation=inspect.Signature.empty)
        names = ", ".join(shown.parameters)
        raise SourceError("TS202", f"{callee.name}(): {error}; it is {callee.name}({names})", site) from None
    bound.apply_defaults()
    return dict(bound.arguments)


def flat_results(value: Any, emit: TensorEmitter) -> list[Handle]:
    """The tensors that a function returns, in order; a number becomes a 0-d tensor."""
    items = value if isinstance(value, (list, tuple)) else [value]
    results = []
    for item in items:
        handle = emit.operand(item, "the result") if is_number(item) else item
        if not isinstance(handle, Handle):
            raise SourceError("TS203", f"a function returns tensors and numbers, not {describe(item)}", emit.place)
        if handle.is_scalar:
            handle = emit.emit("full", handle, shape=(), dtype=handle.dtype)
        results.append(handle)
    return results


__all__ = ["Block", "FunctionStatements", "Scope", "bind_arguments", "flat_results"]
