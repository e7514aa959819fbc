"""Ops of the Graph level: whole tensors, most of them moved or multiplied, and what a function says about placement.

Elementwise ops, broadcasts, reshapes, reductions and scans are those of the Tile level: a tensor there is a value of
`TileType` with the shape of the whole tensor. Everything here is pure; arrays have a leading axis of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.ir import numeric
from tessera.ir.bounds import Bar, lift
from tessera.ir.core import Op
from tessera.ir.dims import Size
from tessera.ir.opdef import BRANCH, GRAPH, PURE, REQUIRED, STRUCTURAL, TERMINATOR, Lowering, define
from tessera.ir.ops.control import yielded_types
from tessera.ir.ops.tiles import expect_tile, format_of, in_parts, k_block, negative_axis, product_bound, round_tf32
from tessera.ir.products import TF32, operand_dtypes, product_format
from tessera.ir.types import Shape, TileType, Type, dtype_of, shape_of, shape_text

GRAPH_ONLY = frozenset((GRAPH,))
BY_GROUPING = Lowering(decomposed_by="lower_graph")

define("return", "*values", lambda op: (), "ends a function with its results", TERMINATOR, levels=GRAPH_ONLY,
       lower=BY_GROUPING)  # fmt: skip


def _matmul_type(op: Op) -> tuple[Type, ...]:
    a, b = expect_tile(op, "a"), expect_tile(op, "b")
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise SourceError(
            "TS304", f"matmul takes tensors of at least two axes, not {shape_text(a.shape)} and {shape_text(b.shape)}"
        )
    known = product_format(a.dtype, b.dtype, op.attributes["precision"]) is not None
    if not known and product_format(a.dtype, b.dtype) is None:
        raise SourceError("TS204", f"matmul takes {operand_dtypes()}, not {a.dtype.name} and {b.dtype.name}")
    if not known:
        raise SourceError(
            "TS402", f"products of {a.dtype.name} and {b.dtype.name} have no precision {op.attributes['precision']!r}"
        )
    if a.shape[-1] != b.shape[-2]:
        raise SourceError(
            "TS301",
            f"matmul of {shape_text(a.shape)} and {shape_text(b.shape)}: the inner sizes {a.shape[-1]} and "
            f"{b.shape[-2]} differ",
        )
    batch = a.shape[:-2]
    if b.shape[:-2] not in ((), batch):
        raise SourceError(
            "TS301",
            f"matmul of {shape_text(a.shape)} and {shape_text(b.shape)}: the second operand has two axes, or the "
            "leading axes of the first",
        )
    return (TileType((*batch, a.shape[-2], b.shape[-1]), f32),)


def _operands(op: Op, a: Any, b: Any) -> tuple[Any, Any]:
    if format_of(op) == TF32:
        a, b = round_tf32(a), round_tf32(b)
    if len(b.shape) == 3:  # one matrix for all: the leading axes of a are rows like its own
        a = lift(lambda x: x.reshape(1, -1, x.shape[-1]), a)
    return a, b


def _matmul(op: Op, a: Any, b: Any) -> Any:
    shape = (*a.shape[:-1], b.shape[-1])
    a, b = _operands(op, a, b)
    start = np.zeros((1,) * (a.ndim - 2) + (a.shape[-2], b.shape[-1]), np.float32)
    return numeric.matmul(*in_parts(op, a, b), start, k_block(op)).reshape(shape)


def _matmul_bound(op: Op, a: Bar, b: Bar) -> Bar:
    shape = (*a.shape[:-1], b.shape[-1])
    a, b = _operands(op, a, b)
    return product_bound(op, a, b, None).map(lambda x: x.reshape(shape))


define(
    "matmul",
    "a b",
    _matmul_type,
    "a @ b over the last two axes, accumulated in f32; b has two axes, or the leading axes of a",
    PURE,
    attributes={"precision": None},
    levels=GRAPH_ONLY,
    evaluate=_matmul,
    bound=_matmul_bound,
    lower=BY_GROUPING,
)


def _permute_type(op: Op) -> tuple[Type, ...]:
    source, order = expect_tile(op, "a"), op.attributes["permutation"]
    if sorted(order) != list(range(len(source.shape))):
        raise SourceError("TS304", f"{order} does not order the {len(source.shape)} axes of {shape_text(source.shape)}")
    return (TileType(tuple(source.shape[axis] for axis in order), source.dtype),)


define(
    "permute",
    "a",
    _permute_type,
    "a with its axes in another order: axis i of the result is axis permutation[i] of a",
    PURE,
    STRUCTURAL,
    attributes={"permutation": REQUIRED},
    levels=GRAPH_ONLY,
    evaluate=lambda op, a: lift(lambda x: x.transpose(0, *(axis + 1 for axis in op.attributes["permutation"])), a),
    lower=BY_GROUPING,
)


def _concatenate_type(op: Op) -> tuple[Type, ...]:
    if not op.operands:
        raise SourceError("TS203", "concatenate of no tensors")
    first = op.operands[0].type
    if not isinstance(first, TileType):
        raise SourceError("TS203", "concatenate takes tensors")
    axis = negative_axis(op, len(first.shape)) + len(first.shape)
    total: Size = 0
    for value in op.operands:
        shape = shape_of(value.type)
        if len(shape) != len(first.shape) or _without(shape, axis) != _without(first.shape, axis):
            raise SourceError(
                "TS301",
                f"concatenate along axis {axis} of {shape_text(first.shape)} and {shape_text(shape)}: the other axes "
                "differ",
            )
        if dtype_of(value.type) != first.dtype:
            raise SourceError("TS204", f"concatenate of {first.dtype.name} and {dtype_of(value.type).name}")
        total = total + shape[axis]
    return (TileType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype),)


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _concatenate(op: Op, *parts: Any) -> Any:
    axis = negative_axis(op, len(parts[0].shape) - 1)
    if isinstance(parts[0], Bar):
        return Bar(np.concatenate([p.r for p in parts], axis), np.concatenate([p.e for p in parts], axis))
    return np.concatenate(parts, axis)


define(
    "concatenate",
    "*parts",
    _concatenate_type,
    "tensors one after the other along `axis`",
    PURE,
    STRUCTURAL,
    attributes={"axis": REQUIRED},
    levels=GRAPH_ONLY,
    evaluate=_concatenate,
    lower=BY_GROUPING,
)


def _scope_type(op: Op) -> tuple[Type, ...]:
    return tuple(yielded_types(op, op.regions[0]))


define(
    "checkpoint",
    "",
    _scope_type,
    "runs its region; a backward pass computes what is in it again instead of keeping it. `region` names it",
    BRANCH,
    regions=1,
    attributes={"region": REQUIRED},
    levels=GRAPH_ONLY,
    lower=BY_GROUPING,
)

define(
    "fused",
    "",
    _scope_type,
    "runs its region, which becomes one kernel; `region` says what kind of kernel that is",
    BRANCH,
    regions=1,
    attributes={"region": REQUIRED},
    levels=GRAPH_ONLY,
    lower=BY_GROUPING,
)


def _same(op: Op) -> tuple[Type, ...]:
    return (expect_tile(op, "a"),)


def _declare_placement(name: str, doc: str, **attributes: Any) -> None:
    """An op that says where a value lives: no effect on the value."""
    define(
        name,
        "a",
        _same,
        doc,
        PURE,
        STRUCTURAL,
        attributes=attributes,
        levels=GRAPH_ONLY,
        evaluate=lambda op, a: a,
        lower=BY_GROUPING,
    )


_declare_placement("shard", "a, split along `axis` over `mesh_axis`; its value is the whole", axis=REQUIRED,
                   mesh_axis=REQUIRED)  # fmt: skip
_declare_placement("own", "a, computed by the devices at `coordinate` of `mesh_axis` alone", mesh_axis=REQUIRED,
                   coordinate=REQUIRED)  # fmt: skip
_declare_placement("all_gather", "a, whole on every device along `mesh_axis`", mesh_axis=REQUIRED)
_declare_placement("prefetch", "a, which is wanted on `device` soon; a hint", device="gpu", overlap="compute")


def _launch_type(op: Op) -> tuple[Type, ...]:
    return tuple(
        TileType(shape, dtype) for shape, dtype in zip(op.attributes["shapes"], op.attributes["dtypes"], strict=True)
    )


define(
    "launch",
    "*arguments",
    _launch_type,
    "what the kernel `callee` writes, of these shapes and dtypes, where its dims are `dims` and it reads the arguments",
    attributes={"callee": REQUIRED, "dims": REQUIRED, "shapes": REQUIRED, "dtypes": REQUIRED},
    levels=GRAPH_ONLY,
    lower=BY_GROUPING,
)

__all__ = ["GRAPH_ONLY"]
