"""The op table, one file per family. Importing this package declares every op."""

from tessera.ir.ops import (
    control,
    division,
    effects,
    elementwise,
    graph,
    interleave,
    memory,
    reductions,
    roles,
    scaled,
    target,
    target_flat,
    tiles,
    tma,
    wgmma,
)

__all__ = [
    "control",
    "division",
    "effects",
    "elementwise",
    "graph",
    "interleave",
    "memory",
    "reductions",
    "roles",
    "scaled",
    "target",
    "target_flat",
    "tiles",
    "tma",
    "wgmma",
]
