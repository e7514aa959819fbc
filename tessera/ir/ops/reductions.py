"""Reductions and scans along an axis, and at Target level the steps that they take when warps share the axis.

Sums pair neighbours, then pairs, and so on, and scans work in blocks of 32 (`tessera.ir.numeric`), so a step that
reduces or scans inside blocks and one that combines blocks give the same bits however the axis lies over registers,
lanes and warps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tessera.dtypes import DType, f32, i32, round_to
from tessera.errors import SourceError
from tessera.ir import bounds, numeric, values
from tessera.ir.bounds import Bar, lift
from tessera.ir.core import Op
from tessera.ir.layout import block_layout
from tessera.ir.opdef import EVERY_LEVEL, GRAPH, PURE, REDUCTION, REQUIRED, SCAN, TARGET, TILE, Lowering, define
from tessera.ir.ops.memory import expect_buffer, read_buffer, write_window
from tessera.ir.ops.tiles import expect_tile, negative_axis
from tessera.ir.types import Shape, TileType, Type, dtype_of, int_shape, shape_of

Array = np.ndarray
TILE_ONLY, TARGET_ONLY = frozenset((TILE,)), frozenset((TARGET,))
KINDS = ("sum", "max", "min")


def _source(op: Op) -> tuple[TileType, int]:
    """The tile that is reduced and the axis, counted from the first."""
    source = expect_tile(op, "a")
    if source.dtype.is_bool:
        raise SourceError("TS204", f"{op.name} takes numbers; cast the bool tile '{op.operands[0].name or '?'}' first")
    return source, negative_axis(op, len(source.shape)) + len(source.shape)


def _kept(shape: Shape, axis: int, size: Any = 1) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _reduce_type(op: Op) -> tuple[Type, ...]:
    source, axis = _source(op)
    layout = source.layout.slice(axis) if source.layout is not None else None
    return (TileType(_kept(source.shape, axis), source.dtype, layout),)


def _along(op: Op, a: Any) -> int:
    """The axis counted from the last: arrays have a leading axis of programs."""
    return negative_axis(op, len(a.shape) - 1)


def _declare_reduction(kind: str, doc: str, function: Callable[..., Any], bound: Callable[..., Bar]) -> None:
    define(
        f"reduce_{kind}",
        "a",
        _reduce_type,
        doc,
        PURE,
        REDUCTION,
        attributes={"axis": REQUIRED},
        evaluate=lambda op, a: round_to(dtype_of(op.result.type), function(a, axis=_along(op, a))),
        bound=lambda op, a: bound(op, a, axis=_along(op, a)),
        levels=EVERY_LEVEL,
        lower=Lowering(template="reduce"),
    )


_declare_reduction("sum", "sum along `axis`, kept with size 1, in f32", numeric.reduce_sum, bounds.reduce_sum)
_declare_reduction(
    "max",
    "maximum along `axis`, kept with size 1; NaN when any element is",
    numeric.reduce_max,
    bounds.reduce_extremum(np.max),
)
_declare_reduction(
    "min",
    "minimum along `axis`, kept with size 1; NaN when any element is",
    numeric.reduce_min,
    bounds.reduce_extremum(np.min),
)


def _index_type(op: Op) -> tuple[Type, ...]:
    source, axis = _source(op)
    return (TileType(_kept(source.shape, axis), i32),)


def _declare_index(name: str, doc: str, function: Callable[..., Array], sign: int) -> None:
    def evaluate(op: Op, a: Array) -> Array:
        return function(a, axis=_along(op, a), keepdims=True).astype(np.int32)  # NumPy: the first, and NaN wins

    define(
        name,
        "a",
        _index_type,
        doc,
        PURE,
        REDUCTION,
        attributes={"axis": REQUIRED},
        levels=frozenset((GRAPH, TILE)),
        evaluate=evaluate,
        bound=lambda op, a: _index_bound(a, _along(op, a), sign),
        lower=Lowering(decomposed_by="lower_to_target"),
    )


def _index_bound(a: Bar, axis: int, sign: int) -> Bar:
    """The index of the largest sign * a, and how far the furthest element that may be it is away.

    An element may be it when its bar reaches the lower end of the largest bar; an exact tie goes to the lowest index.
    """
    r = sign * a.r
    best = np.argmax(r, axis=axis, keepdims=True)
    with np.errstate(all="ignore"):
        floor = np.max(r - a.e, axis=axis, keepdims=True)
        candidate = r + a.e >= floor
    exact_tie = (a.e == 0) & (np.take_along_axis(a.e, best, axis) == 0)
    shape = [1] * r.ndim
    shape[axis] = r.shape[axis]
    index = np.arange(r.shape[axis]).reshape(shape)
    distance = np.where(candidate & ~exact_tie, np.abs(index - best), 0)
    distance = np.where(np.isnan(r).any(axis=axis, keepdims=True), 0, distance)
    return Bar(best.astype(np.float64), distance.max(axis=axis, keepdims=True).astype(np.float64))


_declare_index(
    "argmax", "index (i32) of the maximum along `axis`, kept with size 1; the lowest of equals, NaN wins", np.argmax, 1
)
_declare_index(
    "argmin", "index (i32) of the minimum along `axis`, kept with size 1; the lowest of equals, NaN wins", np.argmin, -1
)


def _scan_type(op: Op) -> tuple[Type, ...]:
    source, _ = _source(op)
    return (TileType(source.shape, source.dtype),)


def _sum_scan_bound(op: Op, a: Bar, axis: int) -> Bar:
    """Errors add; an element passes 5 additions in its block and one for each block before it."""
    with np.errstate(all="ignore"):
        r, e, magnitude = (np.cumsum(x, axis=axis) for x in (a.r, a.e, np.abs(a.r)))
        if not dtype_of(op.operands[0].type).is_float:
            return Bar(r, e)
        blocks = -(-a.r.shape[axis] // numeric.BLOCK)
        return bounds.widen(r, e, (blocks + 5) * bounds.HALF_ULP_F32 * magnitude)


def _max_scan_bound(op: Op, a: Bar, axis: int) -> Bar:
    with np.errstate(all="ignore"):
        r, low, high = (np.maximum.accumulate(x, axis=axis) for x in (a.r, a.r - a.e, a.r + a.e))
        e = np.maximum(high - r, r - low)
    return bounds.widen(r, np.where(np.isnan(e), 0.0, e))


def _declare_scan(name: str, kind: str, doc: str, bound: Callable[..., Bar]) -> None:
    define(
        name,
        "a",
        _scan_type,
        doc,
        PURE,
        SCAN,
        attributes={"axis": REQUIRED},
        levels=frozenset((GRAPH, TILE)),
        evaluate=lambda op, a: round_to(dtype_of(op.result.type), numeric.scan(kind, a, _along(op, a))),
        bound=lambda op, a: bound(op, a, _along(op, a)),
        lower=Lowering(decomposed_by="lower_to_target"),
    )


_declare_scan("cumsum", "sum", "sum of each element and those before it along `axis`, in f32", _sum_scan_bound)
_declare_scan("cummax", "max", "maximum of each element and those before it along `axis`; NaN stays", _max_scan_bound)


# Steps of the Target level --------------------------------------------------------------------------------------------


def accumulate_dtype(dtype: DType) -> DType:
    """In what partial results are held: f32, or the integer type itself."""
    return f32 if dtype.is_float else dtype


def _block_size(op: Op) -> int:
    size = op.get("size") or numeric.BLOCK
    if size % numeric.BLOCK or size & (size - 1):
        raise SourceError("TS703", f"the blocks of {op.name} are of a power of two of at least {numeric.BLOCK}")
    return size


def _kind(op: Op) -> str:
    kind = op.attributes["combine"]
    if kind not in KINDS:
        raise SourceError("TS703", f"the kind of {op.name} is one of {', '.join(KINDS)}, not {kind!r}")
    return kind


def _partial_type(op: Op) -> tuple[Type, ...]:
    source, axis = _source(op)
    size = _block_size(op)
    layout = block_layout(source.layout, axis, size) if source.layout is not None else None
    shape = _kept(source.shape, axis, -(-int_shape(source)[axis] // size))
    return (TileType(shape, accumulate_dtype(source.dtype), layout),)


def _reduce_blocks_bound(op: Op, a: Bar) -> Bar:
    axis, kind = _along(op, a), _kind(op)
    if kind == "sum":
        size = _block_size(op)
        r, e, magnitude = (numeric.reduce_blocks("sum", x, axis, size) for x in (a.r, a.e, np.abs(a.r)))
        levels = bounds.pair_levels(size)
        return bounds.widen(r, e, levels * bounds.HALF_ULP_F32 * magnitude if _in_floats(op) else 0.0)
    return _hull(lambda x: numeric.reduce_blocks(kind, x, axis, _block_size(op)), a)


def _in_floats(op: Op) -> bool:
    return dtype_of(op.operands[0].type).is_float


def _hull(function: Callable[[Array], Array], a: Bar) -> Bar:
    """The bar of a function that grows with every element."""
    with np.errstate(all="ignore"):
        r, low, high = function(a.r), function(a.r - a.e), function(a.r + a.e)
        e = np.maximum(high - r, r - low)
    return bounds.widen(r, np.where(np.isnan(e), 0.0, e))


define(
    "reduce_blocks",
    "a",
    _partial_type,
    "the `combine` (sum, max, min) of each block of `size` along `axis`, which becomes the number of blocks",
    PURE,
    attributes={"axis": REQUIRED, "combine": REQUIRED, "size": numeric.BLOCK},
    levels=TARGET_ONLY,
    evaluate=lambda op, a: round_to(
        dtype_of(op.result.type), numeric.reduce_blocks(_kind(op), a, _along(op, a), _block_size(op))
    ),
    bound=_reduce_blocks_bound,
    lower=Lowering(template="reduce"),
)


def _fold_type(op: Op) -> tuple[Type, ...]:
    buffer = expect_buffer(op, "buffer")
    axis = negative_axis(op, len(buffer.shape)) + len(buffer.shape)
    return (TileType(_kept(buffer.shape, axis), op.attributes["dtype"], op.attributes["layout"]),)


def _contents(op: Op, buffer: values.Buffer) -> Any:
    """All of a buffer's logical elements."""
    shape = int_shape(op.operand("buffer").type)
    zero = np.zeros(1, np.int64)
    return read_buffer(op, buffer, (zero,) * len(shape), shape)


def _fold(op: Op, buffer: values.Buffer, dtype: DType) -> Any:
    partials, kind = _contents(op, buffer), _kind(op)
    axis = _along(op, partials)
    if not isinstance(partials, Bar):
        return round_to(dtype, numeric.fold_blocks(kind, partials, axis))
    if kind != "sum":
        folded = _hull(lambda x: numeric.fold_blocks(kind, x, axis), partials)
    else:
        r, e, magnitude = (numeric.fold_blocks("sum", x, axis) for x in (partials.r, partials.e, np.abs(partials.r)))
        levels = bounds.pair_levels(partials.r.shape[axis])
        folded = bounds.widen(r, e, levels * bounds.HALF_ULP_F32 * magnitude if _in_floats(op) else 0.0)
    return bounds.round_implicit(dtype, folded)


define(
    "fold_blocks",
    "buffer",
    _fold_type,
    "combines the blocks in a shared buffer along `axis`, which stays with size 1, each thread those of its elements",
    effects={"buffer": "reads"},
    attributes={"axis": REQUIRED, "combine": REQUIRED, "dtype": REQUIRED, "layout": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, buffer: _fold(op, buffer, dtype_of(op.result.type)),
    lower=Lowering(template="fold_blocks"),
)


def _fold_lines_type(op: Op) -> tuple[Type, ...]:
    buffer, out = expect_buffer(op, "buffer"), expect_buffer(op, "out")
    axis = negative_axis(op, len(buffer.shape)) + len(buffer.shape)
    if out.shape != _kept(buffer.shape, axis) or out.dtype != buffer.dtype:
        raise SourceError("TS703", "fold_lines needs a buffer of the dtype of its blocks for one element a line")
    return ()


def _fold_lines(op: Op, buffer: values.Buffer, out: values.Buffer) -> None:
    index = tuple(slice(size) for size in (None, *int_shape(op.operand("out").type)))
    write_window(out, index, _fold(op, buffer, dtype_of(op.operand("out").type)))


define(
    "fold_lines",
    "buffer out",
    _fold_lines_type,
    "combines the blocks in a shared buffer along `axis`, a few threads for each line, into `out`, where that axis has "
    "size 1",
    effects={"buffer": "reads", "out": "writes"},
    attributes={"axis": REQUIRED, "combine": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_fold_lines,
    lower=Lowering(template="fold_lines"),
)


def _scan_blocks_type(op: Op) -> tuple[Type, ...]:
    source, _ = _source(op)
    return (TileType(source.shape, accumulate_dtype(source.dtype), source.layout),)


def _scan_blocks_bound(op: Op, a: Bar) -> Bar:
    axis, kind = _along(op, a), _kind(op)
    if kind == "sum":
        r, e, magnitude = (numeric.scan_blocks("sum", x, axis) for x in (a.r, a.e, np.abs(a.r)))
        return bounds.widen(r, e, 5 * bounds.HALF_ULP_F32 * magnitude if _in_floats(op) else 0.0)
    return _hull(lambda x: numeric.scan_blocks(kind, x, axis), a)


define(
    "scan_blocks",
    "a",
    _scan_blocks_type,
    "running `combine` (sum or max) inside each block of 32 along `axis`",
    PURE,
    SCAN,
    attributes={"axis": REQUIRED, "combine": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, a: round_to(dtype_of(op.result.type), numeric.scan_blocks(_kind(op), a, _along(op, a))),
    bound=_scan_blocks_bound,
    lower=Lowering(template="reduce"),
)


define(
    "block_totals",
    "a",
    _partial_type,
    "the last element of each block of 32 along `axis`, which becomes the number of blocks",
    PURE,
    attributes={"axis": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=lambda op, a: numeric.block_totals(a, _along(op, a)).astype(a.dtype),
    bound=lambda op, a: lift(lambda x: numeric.block_totals(x, _along(op, a)), a),
    lower=Lowering(template="reduce"),
)


def _carry_type(op: Op) -> tuple[Type, ...]:
    source, _ = _source(op)
    if len(shape_of(expect_buffer(op, "buffer"))) != len(source.shape):
        raise SourceError("TS703", "carry_blocks needs totals of the rank of its tile")
    return (TileType(source.shape, op.attributes["dtype"], source.layout),)


def _carry(op: Op, buffer: values.Buffer, a: Any) -> Any:
    totals, kind, dtype = _contents(op, buffer), _kind(op), dtype_of(op.result.type)
    axis = _along(op, a)
    if not isinstance(a, Bar):
        return round_to(dtype, numeric.carry_blocks(kind, a, totals, axis))
    if kind == "sum":
        r, e, magnitude = (
            numeric.carry_blocks("sum", f(a), f(totals), axis)
            for f in (lambda x: x.r, lambda x: x.e, lambda x: np.abs(x.r))
        )
        carried = bounds.widen(r, e, totals.r.shape[axis] * bounds.HALF_ULP_F32 * magnitude if dtype.is_float else 0.0)
    else:
        with np.errstate(all="ignore"):
            r, low, high = (
                numeric.carry_blocks(kind, f(a), f(totals), axis)
                for f in (lambda x: x.r, lambda x: x.r - x.e, lambda x: x.r + x.e)
            )
            e = np.maximum(high - r, r - low)
        carried = bounds.widen(r, np.where(np.isnan(e), 0.0, e))
    return bounds.round_implicit(dtype, carried)


define(
    "carry_blocks",
    "buffer a",
    _carry_type,
    "combines each element of a scan inside blocks with the totals, in shared memory, of the blocks before it",
    effects={"buffer": "reads"},
    attributes={"axis": REQUIRED, "combine": REQUIRED, "dtype": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_carry,
    lower=Lowering(template="reduce"),
)
