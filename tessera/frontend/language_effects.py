"""What kernels do besides storing tiles: printing, checking, and updating tensors that programs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.frontend.language_memory import is_view
from tessera.ir.types import shape_text


@intrinsic("tile.print")
def print_(emit: Emitter, format: Any, *values: Any) -> None:
    """Prints a line per program: its ids, then the format with a value, a scalar or a small tile, for each `{}`."""
    from tessera.ir.ops.effects import PRINTED_ELEMENTS

    if not isinstance(format, str):
        emit.fail("TS203", f"tile.print takes a format first, but '{emit.text('format')}' is {describe(format)}")
    shown = []
    for number, value in enumerate(values, 1):
        operand = emit.operand(value, f"value {number}")
        count = 1
        for size in operand.shape:
            count = count * size
        if len(operand.shape) > 2 or isinstance(count, int) and count > PRINTED_ELEMENTS:
            emit.fail(
                "TS301",
                f"tile.print shows tiles of at most two axes and {PRINTED_ELEMENTS} elements, but value {number} is "
                f"{describe(operand)}",
            )
        shown.append(operand)
    emit.make("print", *shown, format=format)


@intrinsic("tile.assert_")
def assert_(emit: Emitter, condition: Any, message: Any = "") -> None:
    """Stops the launch, with the message and the program's ids, unless the condition or every element of it holds."""
    if not isinstance(message, str):
        emit.fail("TS203", f"the message of tile.assert_ is text, but it is {describe(message)}", "message")
    text = emit.text("condition")
    operand = emit.operand(condition, text)
    if not operand.dtype.is_bool:
        emit.fail("TS204", f"'{text}' is {describe(operand)}; tile.assert_ takes a bool: compare it first", "condition")
    emit.make("assert", operand, message=message or text)


def _atomic(kind: str) -> Callable[..., Any]:
    def build(emit: Emitter, ref: Any, value: Any, index: Any = None) -> None:
        """of a window with a value of its shape; with `index`, a tile of integers, of the elements that it names"""
        from tessera.ir.ops.effects import ATOMIC_DTYPES

        name = f"tile.atomic_{kind}"
        if not is_view(ref):
            emit.fail(
                "TS203",
                f"{name} updates a window of a tensor, but '{emit.text('ref')}' is {describe(ref)}",
                "ref",
            )
        if ref.dtype not in ATOMIC_DTYPES:
            emit.fail("TS204", f"{name} works on i32, i64 and f32, but '{emit.text('ref')}' is {ref.dtype.name}", "ref")
        if index is None:
            shape = ref.shape
            emit.make("atomic", ref, _shaped(emit, value, shape, ref), kind=kind)
            return
        if len(ref.shape) != 1:
            emit.fail(
                "TS304",
                f"{name} with an index updates a tensor of one axis, but '{emit.text('ref')}' is "
                f"{shape_text(ref.shape)}; index the other axes first",
                "ref",
            )
        chosen = emit.tile(index, "index")
        if not chosen.dtype.is_int:
            emit.fail(
                "TS204", f"the index '{emit.text('index')}' is {describe(chosen)}; it must be of integers", "index"
            )
        emit.make("atomic_scatter", ref, chosen, _shaped(emit, value, chosen.shape, ref), kind=kind)

    return build


def _shaped(emit: Emitter, value: Any, shape: Any, ref: Handle) -> Handle:
    """The value of an atomic update as a tile (or scalar) of `shape` in the tensor's dtype."""
    text = emit.text("value")
    if is_number(plain(value)):
        number = plain(value)
        if ref.dtype.is_int and (type(number) is bool or not float(number).is_integer()):
            emit.fail("TS204", f"'{text}' is {number}, which {ref.dtype.name} cannot hold", "value")
        operand = emit.number(float(number) if ref.dtype.is_float else int(number), ref.dtype)
    else:
        operand = emit.operand(value, text)
    if operand.dtype.is_bool or operand.dtype.is_float and ref.dtype.is_int:
        emit.fail("TS204", f"'{text}' is {describe(operand)}, but '{emit.text('ref')}' is {ref.dtype.name}", "value")
    if operand.is_scalar and shape:
        return emit.full(shape, operand, ref.dtype, text)
    if operand.shape != shape:
        emit.fail("TS301", f"'{text}' is {shape_text(operand.shape)}, but {shape_text(shape)} are updated", "value")
    return emit.cast(operand, ref.dtype)


atomic_add = Intrinsic("tile.atomic_add", _atomic("add"), op="atomic")
atomic_max = Intrinsic("tile.atomic_max", _atomic("max"), op="atomic")


@intrinsic("tile.num_programs")
def num_programs(emit: Emitter, axis: Any = 0) -> Handle:
    """How many programs run along a grid axis (0, 1 or 2)."""
    number = emit.concrete(axis, emit.text("axis"), "the axis of tile.num_programs is a compile-time constant")
    if not 0 <= number < 3:
        emit.fail("TS203", f"a grid has the axes 0, 1 and 2, not {number}", "axis")
    return emit.emit("num_programs", axis=number)


@intrinsic("tile.window")
def window(emit: Emitter, tensor: Any, start: Any, extent: Any, limit: Any = None) -> Handle:
    """The window of `extent` at `start`; what lies at index `limit` or beyond counts as outside the tensor.

    Each of the three is a number for the first axis or a tuple for the first axes; a limit may be None.
    """
    from tessera.frontend.evaluator_windows import window_at

    if not is_view(tensor):
        emit.fail("TS203", f"tile.window takes a tensor, but '{emit.text('tensor')}' is {describe(tensor)}", "tensor")
    starts, extents = _per_axis(start), _per_axis(extent)
    limits = [None] * len(starts) if limit is None else _per_axis(limit)
    if not len(starts) == len(extents) == len(limits) or len(starts) > len(tensor.shape):
        emit.fail(
            "TS304",
            f"tile.window of '{emit.text('tensor')}' {shape_text(tensor.shape)} has {len(starts)} starts, "
            f"{len(extents)} extents and {len(limits)} limits",
        )
    text = emit.text("tensor")
    sizes = [size for one in extents for size in emit.shape(one, "extent")]
    if any(one is not None for one in limits):
        tensor = _limited(emit, tensor, limits)
    return window_at(emit, tensor, text, starts, sizes)


def _per_axis(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _limited(emit: Emitter, tensor: Handle, limits: list[Any]) -> Handle:
    from tessera.frontend.evaluator_values import Window

    bounds = [
        emit.index(size if limit is None else limit, "a limit of tile.window")
        for limit, size in zip([*limits, *[None] * (len(tensor.shape) - len(limits))], tensor.shape, strict=True)
    ]
    made = emit.emit("limit", tensor, *bounds)
    rank = len(tensor.shape)
    made.window = Window(made.value, (0,) * rank, tensor.shape, (True,) * rank)
    return made


__all__ = ["assert_", "atomic_add", "atomic_max", "num_programs", "print_", "window"]
