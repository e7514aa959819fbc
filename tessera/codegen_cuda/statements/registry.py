"""Which function turns an op into the variables of its template; one family of ops a file beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter
    from tessera.ir.core import Op

# A function of (emitter, op) gives the template's variables, or None for an op that needs no statement.
Statement = Callable[["Emitter", "Op"], "dict[str, Any] | None"]
_STATEMENTS: dict[str, Statement] = {}

# Ops whose one short line needs no comment above it.
QUIET = frozenset(("constant", "size", "yield", "shared", "stage", "barrier"))


def statement(*names: str) -> Callable[[Statement], Statement]:
    """Decorator: the function says the ops of these names."""

    def register(function: Statement) -> Statement:
        _STATEMENTS.update(dict.fromkeys(names, function))
        return function

    return register


def statement_of(name: str) -> Statement | None:
    """The function of an op; None for one that is said by its expression alone."""
    return _STATEMENTS.get(name)
