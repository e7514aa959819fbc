"""Block operations: windows [BLOCK_B, BLOCK_S, D] of tensors of three axes, at given offsets or at the program's own.

None has an op of its own: a block is a window, and its operation a load, a store or an asynchronous copy of it.
Destinations come first, as in a copy.
"""

from __future__ import annotations

from typing import Any

from tessera.errors import SourceError
from tessera.frontend.evaluator_copies import Copy
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.evaluator_windows import loaded_index, window_at
from tessera.frontend.language import intrinsic
from tessera.frontend.language_memory import is_view
from tessera.frontend.language_memory import store as store_window
from tessera.frontend.language_program import program_id
from tessera.ir.dims import Dim, Size
from tessera.ir.types import Shape, shape_text

BLOCK_SIZES = ("BLOCK_B", "BLOCK_S")  # the ctx constants that say how large a program's own block is


def _tensor(emit: Emitter, value: Any, argument: str, name: str) -> Handle:
    """The argument as a tensor of three axes. Raises SourceError TS203 or TS304."""
    text = emit.text(argument)
    if not is_view(value):
        emit.fail("TS203", f"{name} takes a global tensor, but '{text}' is {describe(value)}", argument)
    if len(value.shape) != 3:
        emit.fail(
            "TS304",
            f"{name} takes a tensor of three axes [batch, sequence, features], but '{text}' is "
            f"{shape_text(value.shape)}",
            argument,
        )
    return value


def _offset(emit: Emitter, value: Any, argument: str, name: str) -> Any:
    """An element offset: an int, a size or a run-time integer. Raises SourceError TS203."""
    offset = loaded_index(emit, value)
    if type(offset) is int or isinstance(offset, Dim) or isinstance(offset, Handle) and offset.is_int:
        return offset
    emit.fail("TS203", f"{name} starts at integer offsets, but '{emit.text(argument)}' is {describe(value)}", argument)


def _size(emit: Emitter, value: Any, argument: str, name: str) -> Size:
    if isinstance(value, Handle):
        emit.fail(
            "TS205",
            f"the sizes of a block come last in {name} and are known at compile time, but '{emit.text(argument)}' is "
            f"{describe(value)}",
            argument,
        )
    (size,) = emit.shape(value if isinstance(value, Dim) else [value], argument)
    return size


def _window(emit: Emitter, tensor: Handle, text: str, starts: list[Any], sizes: list[Size]) -> Handle:
    """The window of `sizes` at `starts` on the first two axes, whole on the third."""
    return window_at(emit, tensor, text, starts, sizes)


@intrinsic("tile.load_block")
def load_block(emit: Emitter, t: Any, batch_start: Any, seq_start: Any, block_b: Any, block_s: Any) -> Handle:
    """The tile [block_b, block_s, D] of a tensor [B, S, D] at two element offsets, zero outside the tensor."""
    name = "tile.load_block"
    tensor = _tensor(emit, t, "t", name)
    starts = [_offset(emit, batch_start, "batch_start", name), _offset(emit, seq_start, "seq_start", name)]
    sizes = [_size(emit, block_b, "block_b", name), _size(emit, block_s, "block_s", name)]
    return emit.load(_window(emit, tensor, emit.text("t"), starts, sizes))


@intrinsic("tile.store_block")
def store_block(emit: Emitter, out: Any, value: Any, batch_start: Any, seq_start: Any) -> None:
    """Rounds a tile [BLOCK_B, BLOCK_S, D] to the dtype of `out` [B, S, D] and writes what lies inside it.

    The destination comes first, then the value, then the element offsets of the block.
    """
    name = "tile.store_block"
    tensor, block = _destination(emit, out, value, name)
    starts = [_offset(emit, batch_start, "batch_start", name), _offset(emit, seq_start, "seq_start", name)]
    window = _window(emit, tensor, emit.text("out"), starts, list(block.shape[:2]))
    store_window.build(emit, block, window)


def _destination(emit: Emitter, out: Any, value: Any, name: str) -> tuple[Handle, Handle]:
    """The tensor to store to and the tile [., ., D] to store. Raises SourceError TS203, TS301 or TS304."""
    if not is_view(out) and is_view(value):
        emit.fail(
            "TS203",
            f"{name} takes the destination first: '{emit.text('out')}' is {describe(out)} and "
            f"'{emit.text('value')}' is {describe(value)}",
            "out",
        )
    tensor = _tensor(emit, out, "out", name)
    block = emit.tile(value, "value")
    if len(block.shape) != 3 or block.shape[2] != tensor.shape[2]:
        emit.fail(
            "TS301",
            f"'{emit.text('value')}' is {shape_text(block.shape)}, but a block of '{emit.text('out')}' "
            f"{shape_text(tensor.shape)} is [BLOCK_B, BLOCK_S, {tensor.shape[2]}]",
            "value",
        )
    return tensor, block


# The program's own block ----------------------------------------------------------------------------------------------


def _own_sizes(emit: Emitter, name: str) -> list[Size]:
    """BLOCK_B and BLOCK_S of the context. Raises SourceError TS201 where they are missing."""
    sizes: list[Size] = []
    for constant in BLOCK_SIZES:
        try:
            value = getattr(emit.context, constant)
        except SourceError:
            emit.fail(
                "TS201",
                f"{name} takes the size of its block from ctx.BLOCK_B and ctx.BLOCK_S, and the context has no "
                f"{constant}; declare it with @ts.kernel.autotune(space=dict({constant}=[...], ...)), or use "
                f"{name.replace('async_', '')} with explicit offsets",
            )
        if type(value) is not int and not isinstance(value, Dim) or type(value) is int and value < 1:
            emit.fail("TS203", f"{name} takes the size of its block from ctx.{constant}, which is {value!r}")
        sizes.append(value)
    return sizes


def _own_window(emit: Emitter, tensor: Handle, text: str, sizes: list[Size]) -> Handle:
    """The window of `sizes` at (program_id(0) * BLOCK_B, program_id(1) * BLOCK_S)."""
    from tessera.frontend.evaluator_arithmetic import elementwise

    starts = [
        elementwise(emit, "mul", (program_id.build(emit, axis), size), (f"program_id({axis})", constant))
        for axis, (size, constant) in enumerate(zip(sizes, BLOCK_SIZES, strict=True))
    ]
    return _window(emit, tensor, text, starts, sizes)


@intrinsic("tile.async_load_block")
def async_load_block(emit: Emitter, t: Any, stages: Any = None) -> Handle:
    """Starts copying the program's own block of a tensor [B, S, D]; `tile.async_wait()` makes it readable.

    The block is [ctx.BLOCK_B, ctx.BLOCK_S, D] at (program_id(0) * ctx.BLOCK_B, program_id(1) * ctx.BLOCK_S), zero
    outside the tensor. `stages` says how many blocks of a loop may be in flight at once (None: the compiler's choice).
    """
    name = "tile.async_load_block"
    tensor = _tensor(emit, t, "t", name)
    depth = None
    if stages is not None:
        depth = emit.concrete(stages, emit.text("stages"), "the number of stages is a compile-time constant")
        if type(stages) is bool or depth < 1:
            emit.fail("TS203", f"stages= is a positive integer, not {stages!r}", "stages")
    sizes = _own_sizes(emit, name)
    shape: Shape = (*sizes, tensor.shape[2])
    buffer = emit.emit("alloc_shared", shape=shape, dtype=tensor.dtype)
    window = _own_window(emit, tensor, emit.text("t"), sizes)
    (token,) = emit.make("copy_async", buffer, window, stages=depth)
    emit.copies = emit.copies.issue(Copy(token, buffer.value, emit.place))
    return buffer


@intrinsic("tile.async_wait")
def async_wait(emit: Emitter) -> None:
    """Waits for every asynchronous copy that this program has started."""
    done, emit.copies = emit.copies.commit().wait(0)
    if done:
        emit.make("wait", *(copy.token for copy in done))


@intrinsic("tile.async_store_block")
def async_store_block(emit: Emitter, out: Any, value: Any) -> None:
    """Writes the program's own block of a tensor [B, S, D], rounded to its dtype; complete when the kernel ends.

    The destination comes first. The block is that of `tile.async_load_block`.
    """
    name = "tile.async_store_block"
    tensor, block = _destination(emit, out, value, name)
    sizes = _own_sizes(emit, name)
    if block.shape[:2] != tuple(sizes):
        emit.fail(
            "TS301",
            f"'{emit.text('value')}' is {shape_text(block.shape)}, but the program's own block of "
            f"'{emit.text('out')}' is {shape_text((*sizes, tensor.shape[2]))}",
            "value",
        )
    store_window.build(emit, block, _own_window(emit, tensor, emit.text("out"), sizes))


__all__ = ["async_load_block", "async_store_block", "async_wait", "load_block", "store_block"]
