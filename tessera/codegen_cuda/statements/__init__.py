"""What the templates need to know of each op. Importing this package registers every family of statements."""

from tessera.codegen_cuda.statements import (
    basic,
    control,
    effects,
    global_memory,
    matrix,
    reductions,
    roles,
    shared_memory,
    tma,
)
from tessera.codegen_cuda.statements.registry import QUIET, statement_of

__all__ = [
    "QUIET",
    "basic",
    "control",
    "effects",
    "global_memory",
    "matrix",
    "reductions",
    "roles",
    "shared_memory",
    "statement_of",
    "tma",
]
