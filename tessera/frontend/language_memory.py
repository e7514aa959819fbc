"""Memory: shared buffers, copies into them, and loads and stores of windows of global tensors.

The order of arguments follows each operation's own habit (a copy names its destination first, a store its value
first), so the kinds of the arguments are checked: a swap is an error, never a wrong program.
"""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_arithmetic import elementwise
from tessera.frontend.evaluator_copies import Copy
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.ir.core import Value
from tessera.ir.types import Shape, dtype_of, shape_text

SWIZZLES = ("none", "xor")


def is_view(value: Any) -> bool:
    return isinstance(value, Handle) and value.is_view


def is_buffer(value: Any) -> bool:
    return isinstance(value, Handle) and value.is_buffer


@intrinsic("tile.alloc_shared")
def alloc_shared(emit: Emitter, shape: Any, dtype: Any, swizzle: Any = "none") -> Handle:
    """A buffer of the program, undefined until written. Where it lives is the compiler's choice; swizzle is a hint."""
    sizes, kind = emit.shape(shape), emit.dtype(dtype)
    if swizzle not in SWIZZLES:
        emit.fail("TS203", f"swizzle= is {' or '.join(repr(s) for s in SWIZZLES)}, not {swizzle!r}", "swizzle")
    return emit.emit("alloc_shared", shape=sizes, dtype=kind, swizzle=swizzle)


def _copy(emit: Emitter, name: str, dst: Any, src: Any, bypass_l1: Any) -> None:
    if is_view(dst) and is_buffer(src):
        emit.fail(
            "TS203",
            f"{name} takes the destination first: '{emit.text('dst')}' is {describe(dst)} and "
            f"'{emit.text('src')}' is {describe(src)}",
            "dst",
        )
    if not is_buffer(dst):
        emit.fail(
            "TS203", f"the destination of {name} is a shared buffer, but '{emit.text('dst')}' is {describe(dst)}", "dst"
        )
    if not is_view(src):
        emit.fail(
            "TS203",
            f"the source of {name} is a window of a global tensor, but '{emit.text('src')}' is {describe(src)}",
            "src",
        )
    if type(bypass_l1) is not bool:
        emit.fail("TS203", f"bypass_l1= is True or False, not {describe(bypass_l1)}", "bypass_l1")
    if dst.shape != src.shape:
        emit.fail(
            "TS301",
            f"'{emit.text('dst')}' is {shape_text(dst.shape)}, but '{emit.text('src')}' is {shape_text(src.shape)}",
            "src",
        )
    if dst.dtype != src.dtype:
        emit.fail(
            "TS204",
            f"'{emit.text('dst')}' holds {dst.dtype.name}, but '{emit.text('src')}' is {src.dtype.name}; an "
            "asynchronous copy does not convert",
            "src",
        )
    emit.check_landed(dst)
    (token,) = emit.make("copy_async", dst, src, bypass_l1=bypass_l1)
    emit.copies = emit.copies.issue(Copy(token, dst.value, emit.place))


@intrinsic("tile.copy_async")
def copy_async(emit: Emitter, dst: Any, src: Any, bypass_l1: Any = False) -> None:
    """Starts copying the window `src` into the buffer `dst`, zero outside the tensor; it joins the open copy group."""
    _copy(emit, "tile.copy_async", dst, src, bypass_l1)


@intrinsic("tile.cp_async.shared.global")
def cp_async_shared_global(emit: Emitter, dst: Any, src: Any, bypass_l1: Any = False) -> None:
    """The same as `tile.copy_async`, in the words of the hardware; `bypass_l1` keeps the data out of the L1 cache."""
    _copy(emit, "tile.cp_async.shared.global", dst, src, bypass_l1)


@intrinsic("tile.cp_commit_group")
def cp_commit_group(emit: Emitter) -> None:
    """Closes the open copy group: what was started since the last commit is waited for together."""
    emit.copies = emit.copies.commit()


@intrinsic("tile.cp_wait_group")
def cp_wait_group(emit: Emitter, n: Any = 0) -> None:
    """Waits until at most the `n` newest committed copy groups are in flight."""
    newest = emit.concrete(n, emit.text("n"), "tile.cp_wait_group counts groups at compile time")
    if newest < 0:
        emit.fail("TS203", f"the number of groups cannot be {newest}", "n")
    done, emit.copies = emit.copies.wait(newest)
    if done:
        emit.make("wait", *(copy.token for copy in done))


@intrinsic("tile.barrier")
def barrier(emit: Emitter) -> None:
    """Waits for every thread of the block. A right result never needs it: operations take effect in program order."""
    emit.make("barrier")


def _load(emit: Emitter, ref: Any, mask: Any = None, other: Any = 0) -> Handle:
    """The elements of a window as a tile, zero outside the tensor; a window without axes gives a scalar.

    With `mask`, a tile of bools, an element is the number `other` where that does not hold.
    """
    if is_view(ref) or is_buffer(ref):
        loaded = emit.load(ref) if is_view(ref) else emit.read(ref)
        if mask is None:
            return loaded
        chosen = _mask(emit, mask, loaded.shape)
        rest = plain(other)
        if not is_number(rest):
            rest = emit.operand(rest, emit.text("other"))
            if not rest.is_scalar:
                emit.fail("TS203", f"other= is one number, but '{emit.text('other')}' is {describe(rest)}", "other")
            rest = emit.cast(rest, loaded.dtype)
        return elementwise(emit, "where", (chosen, loaded, rest), (emit.text("mask"), emit.text("ref"), "other"))
    emit.fail("TS203", f"a load takes a window of a tensor, but '{emit.text('ref')}' is {describe(ref)}", "ref")


load = Intrinsic("tile.load", _load)
load_global = Intrinsic("tile.load_global", _load)


@intrinsic("tile.load_scalar")
def load_scalar(emit: Emitter, ref: Any) -> Handle:
    """One element of a tensor, as in `tile.load_scalar(weights[i, -1])`: an f32 scalar, or i64 of an integer tensor."""
    if not is_view(ref) or ref.shape:
        emit.fail(
            "TS203",
            f"tile.load_scalar takes one element of a tensor, but '{emit.text('ref')}' is {describe(ref)}",
            "ref",
        )
    element = emit.load(ref)
    return emit.cast(element, f32) if element.dtype.is_float else element


def _mask(emit: Emitter, mask: Any, shape: Shape) -> Handle:
    """The `mask` argument of the call being built as a tile of bools of `shape`."""
    text = emit.text("mask")
    tile = emit.operand(mask, text)
    if not tile.dtype.is_bool:
        emit.fail("TS204", f"a mask is a tile of bools, but '{text}' is {describe(tile)}; compare it first", "mask")
    fits = len(tile.shape) == len(shape) and all(
        have in (1, want) for have, want in zip(tile.shape, shape, strict=True)
    )
    if tile.is_tile and not fits:
        emit.fail(
            "TS301", f"the mask '{text}' is {shape_text(tile.shape)}, but the window is {shape_text(shape)}", "mask"
        )
    if not shape:
        emit.fail("TS203", f"the mask '{text}' goes with a window of at least one axis; use an if statement", "mask")
    return emit.spread(tile, shape) if tile.is_tile else emit.full(shape, tile, tile.dtype, text)


def _store(emit: Emitter, value: Any, ref: Any, coalesce: Any = False, mask: Any = None) -> None:
    """Rounds a tile to the tensor's dtype and writes what lies inside the tensor.

    With `mask`, a tile of bools, it writes only where that holds. `coalesce` is a hint.
    """
    if not is_view(ref):
        swapped = f"; the value comes first, and '{emit.text('value')}' is {describe(value)}" if is_view(value) else ""
        emit.fail(
            "TS203",
            f"a store goes to a window of a tensor, but '{emit.text('ref')}' is {describe(ref)}{swapped}",
            "ref",
        )
    if type(coalesce) is not bool:
        emit.fail("TS203", f"coalesce= is True or False, not {describe(coalesce)}", "coalesce")
    tile = None if is_number(plain(value)) else emit.operand(value, emit.text("value"))
    if tile is None or tile.is_scalar:
        tile = emit.full(ref.shape, value if tile is None else tile, ref.dtype, emit.text("value"))
    if tile.dtype.is_bool and not ref.dtype.is_bool:
        emit.fail("TS204", f"'{emit.text('value')}' is {describe(tile)}; choose numbers with tile.where first", "value")
    if ref.dtype.is_bool and not tile.dtype.is_bool:
        emit.fail(
            "TS204",
            f"'{emit.text('value')}' is {describe(tile)}, but '{emit.text('ref')}' holds bools; compare it first",
            "value",
        )
    if tile.shape != ref.shape:
        emit.fail(
            "TS301",
            f"'{emit.text('value')}' is {shape_text(tile.shape)}, but the window '{emit.text('ref')}' is "
            f"{shape_text(ref.shape)}",
            "value",
        )
    emit.make("store", ref, tile, *([] if mask is None else [_mask(emit, mask, ref.shape)]))


store = Intrinsic("tile.store", _store)
store_global = Intrinsic("tile.store_global", _store)


@intrinsic("tile.fill")
def fill(emit: Emitter, buffer: Any, value: Any) -> None:
    """Writes one number to every element of a buffer, of a window of it (`buffer[0:16]`), or of a tensor's window."""
    text = emit.text("value")
    if is_buffer(buffer):
        emit.write(buffer, emit.full(buffer.shape, value, buffer.dtype, text))
        return
    if is_view(buffer):
        emit.make("store", buffer, emit.full(buffer.shape, value, buffer.dtype, text))
        return
    place = _written_in_place(emit, buffer)
    if place is None:
        emit.fail(
            "TS203",
            f"tile.fill takes a shared buffer or a window first, but '{emit.text('buffer')}' is {describe(buffer)}",
            "buffer",
        )
    reference, offsets, extents = place
    emit.make("write", reference, emit.full(extents, value, dtype_of(reference.type), text), *offsets)


def _written_in_place(emit: Emitter, tile: Any) -> tuple[Value, list[Value], Shape] | None:
    """Buffer, offsets and extents of `buffer[...]` as it stands in a call, whose read is taken back; else None."""
    chain = []
    op = tile.value.defining_op if isinstance(tile, Handle) else None
    while op is not None and op.name == "reshape":
        chain.append(op)
        op = op.operands[0].defining_op
    named = isinstance(tile, Handle) and tile.value.name
    if op is None or op.name != "read" or op not in emit.block.ops or named:
        return None
    chain.append(op)
    emit.block.ops[:] = [other for other in emit.block.ops if other not in chain]
    return op.operands[0], op.operands[1:], op.attributes["extents"]
