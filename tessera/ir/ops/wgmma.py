"""Products by a warpgroup: asynchronous Target ops whose operands stay in shared memory, or the left one in registers.

A warpgroup is four neighbouring warps. Sums lie in the registers as those of mma.sync do, warps stacked along rows, and
so do fragments of the left operand. The result of `wgmma` is in flight: only another product may add to it before
`wgmma_wait`, and until then nobody may change what the operands lie in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.ir.core import Op, Value
from tessera.ir.opdef import REQUIRED, STRUCTURAL, TARGET, Lowering, define
from tessera.ir.ops.memory import expect_buffer, read_window
from tessera.ir.ops.tiles import expect_tile, mma_bound, mma_evaluate
from tessera.ir.products import FP8, FP8_FAST, is_fp8, product_format
from tessera.ir.types import BufferType, TileType, Type, int_shape

TARGET_ONLY = frozenset((TARGET,))
MMA_ROWS = 16  # of the 64 of one instruction, those of each warp


class Operands(NamedTuple):
    """What `wgmma` multiplies and adds to. `a_offsets` are empty where `a` is a tile, `acc` is None for fresh sums."""

    a: Any
    b: Any
    acc: Any
    a_offsets: Sequence[Any]
    b_offsets: Sequence[Any]


def wgmma_operands(op: Op, given: Sequence[Any] | None = None) -> Operands:
    """The operands of a `wgmma`, or what stands for them, by their meaning."""
    a, b, *rest = op.operands if given is None else given
    acc = None if op.attributes["fresh"] else rest.pop(0)
    in_buffer = isinstance(op.operands[0].type, BufferType)
    return Operands(a, b, acc, rest[:2] if in_buffer else (), rest[2 if in_buffer else 0 :])


def _type(op: Op) -> tuple[Type, ...]:
    (m, n), depth = op.attributes["shape"], op.attributes["depth"]
    b = expect_buffer(op, "b")
    if m % (MMA_ROWS * op.attributes["layout"].warps):
        given = f"{op.attributes['layout'].warps} warps, each of which takes {MMA_ROWS} at a time"
        raise SourceError("TS703", f"wgmma of {m} rows by {given}")
    if n % op.attributes["columns"]:
        raise SourceError("TS703", f"wgmma of {n} columns, {op.attributes['columns']} in each instruction")
    sums = TileType((m, n), f32, op.attributes["layout"])
    counted = 2 + (0 if op.attributes["fresh"] else 1) + 2
    if isinstance(op.operands[0].type, BufferType):
        a_type: Any = expect_buffer(op, "a")
        counted += 2
    else:
        a_type = expect_tile(op, "a")
        if int_shape(a_type) != (m, depth) or op.attributes["transpose_a"]:
            raise SourceError("TS703", "wgmma of a left operand in registers that is of another shape")
    if product_format(a_type.dtype, b.dtype, op.attributes["precision"]) not in ("bf16", "f16", FP8) or (
        is_fp8(a_type.dtype, b.dtype) and op.attributes["precision"] != FP8_FAST
    ):
        given = f"{a_type.dtype.name} and {b.dtype.name} operands in precision {op.attributes['precision']!r}"
        raise SourceError("TS703", f"wgmma of {given}")
    if len(op.operands) != counted or len(b.shape) != 2:
        raise SourceError("TS703", "wgmma needs two offsets into each operand in shared memory, and its sums")
    acc = wgmma_operands(op).acc
    if acc is not None and acc.type != sums:
        raise SourceError("TS703", "wgmma that adds to sums of another shape or in other registers")
    return (sums,)


def operand_extents(op: Op) -> tuple[tuple[int, int], tuple[int, int]]:
    """The windows of the left and of the right operand, as they lie in their buffers."""
    (m, n), depth = op.attributes["shape"], op.attributes["depth"]
    a = (depth, m) if op.attributes["transpose_a"] else (m, depth)
    return a, (n, depth) if op.attributes["transpose_b"] else (depth, n)


def _read(op: Op, given: Sequence[Any]) -> tuple[Any, Any, Any]:
    found = wgmma_operands(op, given)
    a_extents, b_extents = operand_extents(op)
    a, b = op.operands[0].name, op.operands[1].name
    left = read_window(a, found.a, found.a_offsets, a_extents) if found.a_offsets else found.a
    return left, read_window(b, found.b, found.b_offsets, b_extents), found.acc


define(
    "wgmma",
    "a b *rest",
    _type,
    "starts acc + a @ b: `a` is a tile of the fragments' layout or a buffer, `b` a buffer; then come the sums, unless "
    "`fresh`, and the offsets of the windows of [m, depth] and [depth, n], transposed where the buffer holds the "
    "transpose; the result is in flight. `columns` are those of one instruction; `precision` is fp8_fast of fp8 "
    "operands, whose sums stay in the matrix unit",
    effects={"a": "reads", "b": "reads"},
    attributes={
        "shape": REQUIRED,
        "layout": REQUIRED,
        "depth": REQUIRED,
        "columns": REQUIRED,
        "transpose_a": False,
        "transpose_b": False,
        "fresh": False,
        "precision": None,
    },
    levels=TARGET_ONLY,
    evaluate=lambda op, *given: mma_evaluate(op, *_read(op, given)),
    bound=lambda op, *given: mma_bound(op, *_read(op, given)),
    lower=Lowering(template="wgmma"),
)


define(
    "wgmma_wait",
    "acc",
    lambda op: (expect_tile(op, "acc"),),
    "waits until at most the `pending` newest batches of products are in flight; the sums are those that are then "
    "complete",
    STRUCTURAL,
    attributes={"pending": 0},
    levels=TARGET_ONLY,
    evaluate=lambda op, acc: acc,
    lower=Lowering(template="wgmma_wait"),
)


define(
    "fence_async",
    "",
    lambda op: (),
    "makes what this thread has written to shared memory visible to wgmma and to copies by TMA; a barrier behind it "
    "makes it so for all threads",
    STRUCTURAL,
    levels=TARGET_ONLY,
    evaluate=lambda op: None,
    lower=Lowering(template="fence_async"),
)


def in_flight(value: Value) -> bool:
    """Whether a tile is the sums of products that nobody has waited for."""
    return value.defining_op is not None and value.defining_op.name == "wgmma"


def buffers_behind(wait: Op) -> list[Value]:
    """The buffers of the products that a `wgmma_wait` is for: they are read until then."""
    found: list[Value] = []
    op = wait.operands[0].defining_op
    while op is not None and op.name == "wgmma":
        found += [value for value in op.operands[:2] if isinstance(value.type, BufferType)]
        op = None if op.attributes["fresh"] else op.operands[2].defining_op
    return found


__all__ = ["Operands", "buffers_behind", "in_flight", "operand_extents", "wgmma_operands"]
