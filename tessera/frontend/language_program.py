"""The program and its control: which program this is, the kernel's sizes, and loops."""

from __future__ import annotations

import ast
from typing import Any

from tessera.frontend.evaluator_arithmetic import binary
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import RUN_TIME, Handle, RunTimeRange, StaticRange, describe
from tessera.frontend.evaluator_windows import loaded_index
from tessera.frontend.language import intrinsic
from tessera.ir import dims
from tessera.ir.dims import Dim, Size

GRID_AXES = 3


@intrinsic("tile.context")
def context(emit: Emitter) -> Any:
    """The kernel's dims and constants as attributes: `ctx.D` is the size of the dim "D", symbolic until it is bound."""
    return emit.context


@intrinsic("tile.program_id")
def program_id(emit: Emitter, axis: Any = 0) -> Handle:
    """The index of this program along a grid axis (0, 1 or 2), a run-time integer from 0."""
    number = emit.concrete(axis, emit.text("axis"), "the axis of tile.program_id is a compile-time constant")
    if not 0 <= number < GRID_AXES:
        emit.fail("TS203", f"a grid has the axes 0, 1 and 2, not {number}", "axis")
    return emit.emit("program_id", axis=number, known=dims.symbol(f"{RUN_TIME}pid{number}"))


@intrinsic("tile.range")
def range_(emit: Emitter, start: Any, stop: Any = None, step: Any = 1) -> RunTimeRange:
    """A loop on the device over the numbers of Python's `range`; its bounds and step may be run-time integers."""
    first, last = (0, start) if stop is None else (start, stop)
    bounds = []
    for bound, argument in ((first, "start"), (last, "start" if stop is None else "stop"), (step, "step")):
        bound = loaded_index(emit, bound)
        if not (type(bound) is int or isinstance(bound, Dim) or isinstance(bound, Handle) and bound.is_int):
            emit.fail("TS203", f"tile.range takes integers, but '{emit.text(argument)}' is {describe(bound)}", argument)
        bounds.append(bound)
    if bounds[2] == 0:
        emit.fail("TS203", "the step of tile.range must not be 0", "step")
    return RunTimeRange(*bounds)


@intrinsic("tile.static_range")
def static_range(emit: Emitter, start: Any, stop: Any = None, step: Any = 1) -> StaticRange:
    """A loop over numbers that are known at compile time.

    It is unrolled, its index a Python int, unless its body takes tensors from lists with the index and else uses it in
    arithmetic and to load single elements only: then one copy of the body runs as often.
    """
    why = "the bounds of tile.static_range are known at compile time"
    first, last = (0, start) if stop is None else (start, stop)
    last_text = emit.text("start" if stop is None else "stop")
    numbers = [
        emit.concrete(value, text, why)
        for value, text in ((first, emit.text("start")), (last, last_text), (step, emit.text("step")))
    ]
    if numbers[2] == 0:
        emit.fail("TS203", "the step of tile.static_range must not be 0", "step")
    return StaticRange(range(*numbers))


@intrinsic("tile.cdiv")
def cdiv(emit: Emitter, a: Any, b: Any) -> Any:
    """a / b of integers, rounded up: how many blocks of b cover a."""
    for value, argument in ((a, "a"), (b, "b")):
        if not (type(value) is int or isinstance(value, Dim) or isinstance(value, Handle) and value.is_int):
            emit.fail("TS203", f"tile.cdiv takes integers, but '{emit.text(argument)}' is {describe(value)}", argument)
    if not isinstance(a, Handle) and not isinstance(b, Handle):
        return dims.cdiv(a, b)
    texts = (emit.text("a"), emit.text("b"))
    below = binary(emit, ast.Sub, b, 1, (texts[1], "1"))
    return binary(emit, ast.FloorDiv, binary(emit, ast.Add, a, below, texts), b, texts)


@cdiv.host
def cdiv_on_host(a: Size, b: Size) -> Size:
    return dims.cdiv(a, b)
