"""When two Target kernels are the same: to the letter, or in everything but how they compute indices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from tessera.ir.core import Block, Kernel, Module, Op, Value
from tessera.ir.opdef import TARGET
from tessera.ir.printer import print_module
from tessera.ir.types import ScalarType, ViewType
from tessera.target.cost import Cost

# Attributes that say how a kernel came about, not what it does.
HISTORY = ("constants", "schedule", "pins", "lane", "notes", "logical_bytes", "shape_dims")
_INDEXING = ("window", "element", "stage")


def code_key(kernel: Kernel) -> str:
    """Equal for kernels whose Target IR is the same text, and whose launch bounds are."""
    attributes = {name: value for name, value in kernel.attributes.items() if name not in HISTORY}
    attributes["blocks"] = (kernel.attributes.get("schedule") or {}).get("blocks", 1)
    plain = Kernel(kernel.name, kernel.body, attributes, kernel.origin)
    return _digest(print_module(Module(TARGET, [plain]), locations=False))


def access_key(kernels: Sequence[Kernel], cost: Cost) -> str:
    """Equal for programs of one predicted cost that do the same to tiles of the same shapes and layouts, one op after
    the other, and differ in index arithmetic only.
    """
    done = [
        (kernel.attributes["warps"], (kernel.attributes.get("schedule") or {}).get("blocks", 1), [*_steps(kernel.body)])
        for kernel in kernels
    ]
    return _digest(repr((cost, done)))


def _steps(block: Block) -> Iterator[tuple[Any, ...]]:
    for op in block.ops:
        if not _is_indexing(op):
            attributes = [(name, str(value)) for name, value in op.attributes.items() if name != "value"]
            yield (op.name, attributes, [_kind(v) for v in op.operands], [str(v.type) for v in op.results])
        for region in op.regions:
            yield ("{",)
            yield from _steps(region)
            yield ("}",)


def _is_indexing(op: Op) -> bool:
    if op.name in _INDEXING:
        return True
    scalar = bool(op.results) and all(isinstance(result.type, ScalarType) for result in op.results)
    return scalar and not op.regions and not any(isinstance(value.type, ViewType) for value in op.operands)


def _kind(value: Value) -> str:
    if not isinstance(value.type, ViewType):
        return str(value.type)
    root = value
    while root.defining_op is not None:
        root = root.defining_op.operands[0]
    return f"{root.name} {value.type}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["access_key", "code_key"]
