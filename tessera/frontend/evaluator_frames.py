"""Where names are looked up: one frame per function that is being evaluated, the kernel or a helper that it calls."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable
from types import FunctionType
from typing import Any

from tessera.errors import SourceError, did_you_mean
from tessera.frontend.document import Block as DocumentBlock
from tessera.frontend.document import Document, FunctionSource, function_source
from tessera.frontend.evaluator_invariants import Assigned
from tessera.frontend.evaluator_lists import SharedIndices
from tessera.frontend.evaluator_values import Lost
from tessera.ir.core import Block
from tessera.location import Loc

_INNER_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Frame:
    """A function under evaluation. `call_site` is where it was called from, None for the kernel itself."""

    def __init__(
        self,
        function: FunctionType,
        source: FunctionSource,
        arguments: dict[str, Any],
        block: Block,
        call_site: Loc | None = None,
    ) -> None:
        self.function = function
        self.source = source
        self.call_site = call_site
        self.block = block  # the run-time region that the function's body belongs to
        self.locals: dict[str, Any] = arguments
        self.assigned_at: dict[str, Loc] = {}
        self.indices: dict[str, SharedIndices] = {}  # of the loops around the current statement, by variable
        self.local_names = frozenset(assigned_names(source.node.body))
        self._lines = source.text.split("\n")
        self._closure: dict[str, Any] = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._closure[name] = cell.cell_contents
            except ValueError:  # the enclosing function has not assigned it yet
                continue

    def loc(self, node: ast.AST) -> Loc:
        return self.source.loc(node).inlined(self.call_site)

    def text(self, node: ast.AST) -> str:
        """The author's text of an expression, on one line."""
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        if not first:
            return ""
        lines = self._lines[first - 1 : last]
        lines[-1] = lines[-1][: getattr(node, "end_col_offset", None)]
        lines[0] = lines[0][getattr(node, "col_offset", 0) :]
        return " ".join(line.strip() for line in lines).strip()

    def lookup(self, node: ast.Name) -> Any:
        """The value of a name. Raises SourceError TS201 when it has none here."""
        name = node.id
        if name in self.locals:
            value = self.locals[name]
            if isinstance(value, Assigned):
                value = self.locals[name] = value.moved_out()
            if isinstance(value, Lost):
                raise SourceError(value.code, f"'{name}' {value.reason}", self.loc(node))
            return value
        if name in self.local_names:
            raise SourceError("TS201", f"'{name}' is used before it is assigned", self.loc(node))
        for scope in (self._closure, self.function.__globals__, vars(builtins)):
            if name in scope:
                return scope[name]
        elsewhere = self._elsewhere(name)
        if elsewhere is not None:
            where = f"block {elsewhere.number} (line {elsewhere.first_line})"
            raise SourceError("TS106", f"'{name}' is defined in {where}, which did not define it here", self.loc(node))
        known = [*self.locals, *self._closure, *self.function.__globals__, *vars(builtins)]
        raise SourceError("TS201", f"there is no '{name}' here{did_you_mean(name, known)}", self.loc(node))

    def _elsewhere(self, name: str) -> DocumentBlock | None:
        """Another block of the function's document that defines a name."""
        document = self.function.__globals__.get("__document__")
        if not isinstance(document, Document):
            return None
        line = self.function.__code__.co_firstlineno
        own = max((block.first_line for block in document.blocks if block.first_line <= line), default=0)
        return next((block for block in document.blocks_defining(name) if block.first_line != own), None)


def open_function(
    function: FunctionType, arguments: dict[str, Any], block: Block, call_site: Loc | None = None
) -> Frame:
    return Frame(function, function_source(function), arguments, block, call_site)


def assigned_names(body: Iterable[ast.AST]) -> list[str]:
    """Names that statements bind in their own scope, in the order of their first appearance."""
    found: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, _INNER_SCOPES):
            if not isinstance(node, ast.Lambda):
                found[node.name] = None
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        if isinstance(node, _COMPREHENSIONS):
            return  # their targets live inside them
        for child in ast.iter_child_nodes(node):
            visit(child)

    for statement in body:
        visit(statement)
    return list(found)
