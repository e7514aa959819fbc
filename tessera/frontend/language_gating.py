"""Gated deltas: what a gate lets through of a tile, and sums of it in a buffer.

Decompositions into casts, a product, elementwise functions and buffer accesses; no op of their own. `weight` and
`distance` stand in another order in each function, so their kinds are checked: a weight is a float, a distance an int.
"""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_arithmetic import elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.frontend.language import intrinsic
from tessera.frontend.language_memory import is_buffer, is_view
from tessera.frontend.language_ops import scaled_distance
from tessera.ir.dims import Dim
from tessera.ir.products import operand_dtypes, product_format
from tessera.ir.types import shape_text

SUM_PRECISIONS = (None, "mixed", "high", "f32")
NEEDS_F32 = ("mixed",)  # of these: bf16 terms into an f32 accumulator


@intrinsic("tile.apply_gating")
def apply_gating(emit: Emitter, x: Any, W: Any, distance: Any = 1, weight: Any = 1.0) -> Handle:  # noqa: N803
    """weight * x * sigmoid(exp(-0.1 * distance) * (x @ W)), an f32 tile of the shape of `x`.

    `x` is [..., D], its leading axes flattened to the rows of the product; `W` is [D, D]. `distance` is an integer,
    `weight` a float or one element of a tensor of floats.
    """
    return _gated(emit, x, W, distance, weight, "tile.apply_gating(x, W, distance, weight)")


@intrinsic("tile.accumulate")
def accumulate(emit: Emitter, acc: Any, value: Any, precision: Any = None) -> None:
    """Adds a tile to the buffer `acc`: the sum in f32, rounded once to the dtype of `acc`.

    `precision="mixed"` is for terms of any float dtype into an f32 accumulator and asks for one; "high" and "f32" name
    what is done in any case.
    """
    if precision not in SUM_PRECISIONS:
        known = ", ".join(repr(name) for name in SUM_PRECISIONS)
        emit.fail("TS402", f"precision= is one of {known}, not {precision!r}", "precision")
    buffer = _accumulator(emit, acc, value)
    if precision in NEEDS_F32 and buffer.dtype != f32:
        emit.fail(
            "TS402",
            f"precision={precision!r} accumulates in f32, but '{emit.text('acc')}' holds {buffer.dtype.name}; allocate "
            "it as ts.f32",
            "acc",
        )
    _add(emit, buffer, emit.operand(value, emit.text("value")), "value")


@intrinsic("tile.fused_gating_accumulate")
def fused_gating_accumulate(emit: Emitter, x: Any, W: Any, weight: Any, distance: Any, acc: Any) -> Handle:  # noqa: N803
    """`acc += tile.apply_gating(x, W, distance, weight)`; the f32 tile that was added.

    `weight` comes before `distance` here.
    """
    buffer = _accumulator(emit, acc, None)
    call = "tile.fused_gating_accumulate(x, W, weight, distance, acc)"
    gated = _gated(emit, x, W, distance, weight, call)
    _add(emit, buffer, gated, "x")
    return gated


# Parts ----------------------------------------------------------------------------------------------------------------


def _gated(emit: Emitter, x: Any, matrix: Any, distance: Any, weight: Any, call: str) -> Handle:
    """`call` is the author's function with its order of arguments, for messages."""
    _check_roles(emit, distance, weight, call)
    tile = emit.tile(x, "x")
    if len(tile.shape) < 2:
        emit.fail(
            "TS304",
            f"gating takes a tile of rows [..., D], but '{emit.text('x')}' is {shape_text(tile.shape)}",
            "x",
        )
    gate = _matrix(emit, matrix, tile)
    columns = tile.shape[-1]
    rows: Any = 1
    for size in tile.shape[:-1]:
        rows = rows * size
    logits = emit.emit(
        "mma", emit.reshape(tile, (rows, columns)), gate, transpose_a=False, transpose_b=False, precision=None
    )
    logits = emit.reshape(logits, tile.shape)
    factor, place = emit.operand(distance, emit.text("distance")), len(emit.block.ops)
    scale = scaled_distance(emit, factor, emit.text("distance"))
    emit.singles.update(result for op in emit.block.ops[place:] for result in op.results)
    opened = elementwise(emit, "mul", (logits, scale), ("x @ W", emit.text("distance")))
    opened = elementwise(emit, "sigmoid", (opened,), ("x @ W",))
    kept = emit.cast(tile, f32)
    if not is_number(plain(weight)):
        factor = emit.cast(emit.operand(weight, emit.text("weight")), f32)
        kept = elementwise(emit, "mul", (factor, kept), (emit.text("weight"), emit.text("x")))
    elif plain(weight) != 1.0:
        kept = elementwise(emit, "mul", (plain(weight), kept), (emit.text("weight"), emit.text("x")))
    return elementwise(emit, "mul", (kept, opened), (emit.text("x"), "the gate"))


def _matrix(emit: Emitter, matrix: Any, tile: Handle) -> Handle:
    """The gate's matrix as a tile [D, D] for a product with `tile`. Raises SourceError TS203, TS204, TS301 or TS304."""
    gate = emit.tile(matrix, "W")
    text, columns = emit.text("W"), tile.shape[-1]
    if len(gate.shape) != 2:
        emit.fail("TS304", f"a gate is a matrix [D, D], but '{text}' is {shape_text(gate.shape)}", "W")
    if gate.shape != (columns, columns):
        emit.fail(
            "TS301",
            f"'{emit.text('x')}' is {shape_text(tile.shape)}, so its gate is {shape_text((columns, columns))}, but "
            f"'{text}' is {shape_text(gate.shape)}",
            "W",
        )
    if product_format(tile.dtype, gate.dtype) is None:
        emit.fail(
            "TS204",
            f"gating multiplies {operand_dtypes()}, but '{emit.text('x')}' is {tile.dtype.name} and '{text}' is "
            f"{gate.dtype.name}",
            "W",
        )
    return gate


def _check_roles(emit: Emitter, distance: Any, weight: Any, call: str) -> None:
    """Raises SourceError TS203 unless the distance is one integer and the weight one float."""
    whole, real = _is_integer(distance), _is_float(weight)
    if whole and real:
        return
    if _is_float(distance) and _is_integer(weight):
        emit.fail(
            "TS203",
            f"the weight and the distance are exchanged: the distance '{emit.text('distance')}' is "
            f"{describe(distance)} and the weight '{emit.text('weight')}' is {describe(weight)}; the order is {call}",
            "distance",
        )
    if not whole:
        emit.fail(
            "TS203",
            f"the distance is an integer, but '{emit.text('distance')}' is {describe(distance)}; the order is {call}",
            "distance",
        )
    remedy = f"write it as {float(plain(weight))}" if is_number(plain(weight)) else f"the order is {call}"
    emit.fail(
        "TS203",
        f"the weight is a float or one element of a tensor, but '{emit.text('weight')}' is {describe(weight)}; "
        f"{remedy}",
        "weight",
    )


def _is_integer(value: Any) -> bool:
    value = plain(value)
    if isinstance(value, Handle):
        return not value.is_tile and not value.is_buffer and not value.shape and value.dtype.is_int
    return type(value) is int or isinstance(value, Dim)


def _is_float(value: Any) -> bool:
    value = plain(value)
    if isinstance(value, Handle):
        return not value.is_tile and not value.is_buffer and not value.shape and value.dtype.is_float
    return type(value) is float


def _accumulator(emit: Emitter, acc: Any, value: Any) -> Handle:
    """The buffer that is added to. Raises SourceError TS203 or TS204."""
    text = emit.text("acc")
    if not is_buffer(acc):
        swapped = f"; the accumulator comes first, and '{emit.text('value')}' is a buffer" if is_buffer(value) else ""
        remedy = "; write acc = acc + value" if isinstance(acc, Handle) and acc.is_tile and not swapped else ""
        remedy = "; sums in global memory are made by tile.atomic_add" if is_view(acc) else remedy
        emit.fail(
            "TS203", f"an accumulator is a shared buffer, but '{text}' is {describe(acc)}{swapped}{remedy}", "acc"
        )
    if not acc.dtype.is_float:
        emit.fail("TS204", f"an accumulator holds floats, but '{text}' holds {acc.dtype.name}", "acc")
    return acc


def _add(emit: Emitter, buffer: Handle, value: Handle, argument: str) -> None:
    """buffer += value, added in f32 and rounded once. Raises SourceError TS204 or TS301."""
    text = emit.text(argument)
    if value.dtype.is_bool:
        emit.fail("TS204", f"'{text}' is {describe(value)}; choose numbers with tile.where first", argument)
    if value.is_tile and value.shape != buffer.shape:
        emit.fail(
            "TS301",
            f"'{text}' is {shape_text(value.shape)}, but the accumulator '{emit.text('acc')}' is "
            f"{shape_text(buffer.shape)}",
            argument,
        )
    before = emit.cast(emit.read(buffer), f32)
    emit.write(buffer, elementwise(emit, "add", (before, emit.cast(value, f32)), (emit.text("acc"), text)))


__all__ = ["accumulate", "apply_gating", "fused_gating_accumulate"]
