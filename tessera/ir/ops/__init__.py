"""The op table, one file per family. Importing this package declares every op."""

from tessera.ir.ops import (
    control,
    effects,
    elementwise,
    graph,
    interleave,
    memory,
    reductions,
    roles,
    target,
    target_flat,
    tiles,
    tma,
)

__all__ = [
    "control",
    "effects",
    "elementwise",
    "graph",
    "interleave",
    "memory",
    "reductions",
    "roles",
    "target",
    "target_flat",
    "tiles",
    "tma",
]
