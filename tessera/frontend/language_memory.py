"""Memory: shared buffers, copies into them, and loads and stores of windows of global tensors.

The order of arguments follows each operation's own habit (a copy names its destination first, a store its value
first), so the kinds of the arguments are checked: a swap is an error, never a wrong program.
"""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_copies import Copy
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.ir.types import shape_text

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


def _load(emit: Emitter, ref: Any) -> Handle:
    """The elements of a window as a tile, zero outside the tensor; a window without axes gives a scalar."""
    if is_view(ref):
        return emit.load(ref)
    if is_buffer(ref):
        return emit.read(ref)
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


def _store(emit: Emitter, value: Any, ref: Any, coalesce: Any = False) -> None:
    """Rounds a tile to the tensor's dtype and writes what lies inside the tensor. `coalesce` is a hint."""
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
    if tile.dtype.is_bool:
        emit.fail("TS204", f"'{emit.text('value')}' is {describe(tile)}; choose numbers with tile.where first", "value")
    if tile.shape != ref.shape:
        emit.fail(
            "TS301",
            f"'{emit.text('value')}' is {shape_text(tile.shape)}, but the window '{emit.text('ref')}' is "
            f"{shape_text(ref.shape)}",
            "value",
        )
    emit.make("store", ref, tile)


store = Intrinsic("tile.store", _store)
store_global = Intrinsic("tile.store_global", _store)


@intrinsic("tile.fill")
def fill(emit: Emitter, buffer: Any, value: Any) -> None:
    """Writes one number to every element of a buffer."""
    if not is_buffer(buffer):
        emit.fail(
            "TS203",
            f"tile.fill takes a shared buffer first, but '{emit.text('buffer')}' is {describe(buffer)}",
            "buffer",
        )
    emit.write(buffer, emit.full(buffer.shape, value, buffer.dtype, emit.text("value")))
