"""The schedule: what the author leaves open, as data that passes read and never guess.

`default_schedule` is the point that the compiler takes without tuning; it looks at sizes and at the architecture only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.dims import Size
from tessera.ir.types import BufferType, TileType
from tessera.target.arch import Arch

REGISTER_TILE_LIMIT = 128       # f32 registers of one tile per thread: half of the 255 that a thread can have
BLOCK_K = 64                    # K extent of a streamed matrix operand: 128-byte rows of bf16


@dataclass(frozen=True)
class Schedule:
    """`warps` of a block; `streamed`: buffers read from global memory where they are used instead of being resident;
    `subtile`: the largest extent of a store's tile along the axis that is processed in a loop (0: all at once);
    `block_k`: K extent of the tiles in which streamed operands of a product arrive."""

    warps: int = 4
    streamed: tuple[str, ...] = ()
    subtile: int = 0
    block_k: int = BLOCK_K


def elements(shape: tuple[Size, ...]) -> int:
    """Number of elements of a shape whose sizes are all bound."""
    count = 1
    for size in shape:
        assert isinstance(size, int), size
        count *= size
    return count


def buffer_bytes(type_: BufferType) -> int:
    return elements(type_.shape) * type_.dtype.bytes


def plain_copies(kernel: Kernel) -> dict[Value, Op]:
    """Buffers whose only write is one whole asynchronous copy of a tensor that the kernel never writes, at top level."""
    written = {value for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect == "writes"}
    roots = {_root(value) for value in written}
    found: dict[Value, Op] = {}
    counts: dict[Value, int] = {}
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            if effect == "writes" and isinstance(value.type, BufferType):
                counts[value] = counts.get(value, 0) + 1
    for op in kernel.body.ops:
        if op.name == "copy_async":
            buffer, view = op.operands
            if counts[buffer] == 1 and _root(view) not in roots:
                found[buffer] = op
    return found


def _root(value: Value) -> Value:
    """The parameter behind a view; other values are their own root."""
    while value.defining_op is not None and value.defining_op.name == "window":
        value = value.defining_op.operands[0]
    return value


def default_schedule(kernel: Kernel, arch: Arch) -> Schedule:
    """Raises SourceError TS501 when the kernel's buffers fit no placement on `arch`."""
    tiles = [r.type for op in kernel.body.walk() for r in op.results if isinstance(r.type, TileType)]
    products = [op for op in kernel.body.walk() if op.name == "mma"]
    largest = max((elements(t.shape) for t in tiles), default=1)
    product = max((elements(op.result.type.shape) for op in products), default=0)  # type: ignore[union-attr]
    warps = 8 if max(product, largest // 2) >= 128 * 128 or largest > 16384 else 4
    streamed = _streamed(kernel, arch)
    subtile = 0
    stored = [op.operand("value").type for op in kernel.body.walk() if op.name == "store"]
    for type_ in stored:
        assert isinstance(type_, TileType)
        if elements(type_.shape) > REGISTER_TILE_LIMIT * 32 * warps:
            subtile = 128 if products else max(32, REGISTER_TILE_LIMIT * 32 * warps // 4 // elements(type_.shape[:-1]))
    if streamed and not subtile and products:
        subtile = 128
    return Schedule(warps, streamed, subtile)


def _streamed(kernel: Kernel, arch: Arch) -> tuple[str, ...]:
    """Which buffers to stream so that the others fit: the largest plain copies first."""
    buffers = {op.result: op for op in kernel.body.walk() if op.name == "alloc_shared"}
    total = sum(buffer_bytes(value.type) for value in buffers)  # type: ignore[arg-type]
    limit = arch.shared_bytes_per_block
    copies = plain_copies(kernel)
    streamed: list[str] = []
    for value in sorted(copies, key=lambda v: -buffer_bytes(v.type)):  # type: ignore[arg-type]
        if total <= limit:
            break
        total -= buffer_bytes(value.type)  # type: ignore[arg-type]
        streamed.append(value.name)
    if total > limit:
        value = max((v for v in buffers if v.name not in streamed), key=lambda v: buffer_bytes(v.type))  # type: ignore[arg-type]
        rest = total - buffer_bytes(value.type)  # type: ignore[arg-type]
        type_ = value.type
        assert isinstance(type_, BufferType)
        row = buffer_bytes(type_) // max(1, type_.shape[0] if isinstance(type_.shape[0], int) else 1)
        raise SourceError("TS501", f"the shared buffers need {total} bytes, {arch.name} has {limit} per block; with the "
                                   f"others as they are, '{value.name}' fits up to {max(0, limit - rest) // row} rows of its "
                                   f"{type_.shape[0]}", buffers[value].loc)
    return tuple(streamed)
