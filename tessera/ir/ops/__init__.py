"""The op table, one file per family. Importing this package declares every op."""

from tessera.ir.ops import control, elementwise, memory, target, tiles

__all__ = ["control", "elementwise", "memory", "target", "tiles"]
