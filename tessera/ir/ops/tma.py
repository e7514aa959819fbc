"""Copies between windows of tensors and shared buffers by the tensor memory accelerator (TMA): one thread starts each.

What the hardware copies are boxes of a tensor (`tessera.target.tensor_maps`), dense in shared memory: a buffer that is
copied has no padding, and its elements are those of the tensor.
"""

from __future__ import annotations

from typing import Any

from tessera.errors import SourceError
from tessera.ir import values
from tessera.ir.bounds import Bar
from tessera.ir.core import Op
from tessera.ir.opdef import ASYNC, COLLECTIVE, STRUCTURAL, Lowering, define
from tessera.ir.ops.memory import check_landed, expect_buffer, expect_view, read_buffer, whole, write_window
from tessera.ir.ops.roles import expect_ring, integer, shares_of
from tessera.ir.rings import Ring
from tessera.ir.types import Type, int_shape, shape_text

SCOPES = ("role", "warp")
WARP_ROWS = 16  # rows of a buffer that one warp stores: those of a matrix fragment


def window_bytes(op: Op) -> int:
    """Bytes that a copy brings, whatever part of its window is inside the tensor: outside they are zeros."""
    buffer = expect_buffer(op, "buffer")
    count = buffer.dtype.bytes
    for size in int_shape(buffer):
        count *= size
    return count


def axis_of_shares(shape: tuple[int, ...]) -> int | None:
    """The axis of a buffer whose rows come in shares: the only one but the last that has several; None without one."""
    axes = [axis for axis, size in enumerate(shape[:-1]) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _rows_of_share(op: Op) -> tuple[Any, ...]:
    """The index of the rows that a load brings."""
    shape, shares = int_shape(expect_buffer(op, "buffer")), shares_of(op.operand("ring"))
    axis = axis_of_shares(shape)
    assert axis is not None, "its type rule has checked it"
    rows = shape[axis] // shares
    first = op.attributes["share"] * rows
    return (..., slice(first, first + rows), *[slice(None)] * (len(shape) - axis - 1))


def _check_copy(op: Op) -> None:
    buffer, view = expect_buffer(op, "buffer"), expect_view(op, "view")
    name = op.operand("buffer").name or "?"
    if buffer.shape != view.shape:
        raise SourceError(
            "TS301",
            f"{op.name} with '{name}': the shapes {shape_text(buffer.shape)} and {shape_text(view.shape)} differ",
        )
    if buffer.dtype != view.dtype:
        raise SourceError(
            "TS204",
            f"{op.name} with '{name}' of {buffer.dtype.name} and a tensor of {view.dtype.name}: it does not convert",
        )


def _load_type(op: Op) -> tuple[Type, ...]:
    _check_copy(op)
    expect_ring(op)
    shares = shares_of(op.operand("ring"))
    if shares > 1:
        shape = int_shape(expect_buffer(op, "buffer"))
        axis = axis_of_shares(shape)
        if axis is None or shape[axis] % shares:
            text = shape_text(shape)
            raise SourceError("TS703", f"{op.name} of a share of {shares} of a buffer {text}: its rows do not divide")
    return ()


def _load(op: Op, buffer: values.Buffer, view: values.View, ring: Ring, stage: Any) -> None:
    name, share = op.operand("buffer").name or "?", op.attributes["share"]
    if ring.shares == 1:
        check_landed(buffer, name)
        token = values.Token(lambda: write_window(buffer, whole(buffer), view.load()))
    else:  # other shares may be on their way; of this one the ring knows
        rows = _rows_of_share(op)
        token = values.Token(lambda: write_window(buffer, rows, _at(view.load(), rows)))
    ring.copy(integer(stage), name, buffer, token, window_bytes(op) // ring.shares, share)


def _at(value: Any, index: tuple[Any, ...]) -> Any:
    return Bar(value.r[index], value.e[index]) if isinstance(value, Bar) else value[index]


define(
    "tma_load",
    "buffer view ring stage",
    _load_type,
    "the producer starts copying a window into a buffer, zeros outside the tensor; it has landed when slot `stage` of "
    "the ring, which counts its bytes, is full; of a window that is alike in `multicast` programs of a cluster each "
    "loads a part of the rows for all of them; into a slot that comes in shares it copies the rows of one, `share`",
    ASYNC,
    effects={"buffer": "writes", "view": "reads", "ring": "accumulates"},
    attributes={"multicast": 1, "share": 0},
    evaluate=_load,
    lower=Lowering(template="tma_load"),
)


def _check_scope(op: Op) -> None:
    scope, threads = op.attributes["scope"], op.attributes["threads"]
    if scope not in SCOPES or threads < 0 or threads % 32:
        raise SourceError("TS703", f"{op.name} by {threads} threads of scope '{scope}': whole warps, of role or warp")


def _store_type(op: Op) -> tuple[Type, ...]:
    _check_copy(op)
    _check_scope(op)
    rows = [size for size in expect_buffer(op, "buffer").shape[:-1] if size != 1]
    if op.attributes["scope"] == "warp" and (len(rows) != 1 or rows[0] % WARP_ROWS):
        raise SourceError("TS703", f"{op.name} by warps of a buffer whose rows are not multiples of {WARP_ROWS}")
    return ()


def _store(op: Op, view: values.View, buffer: values.Buffer) -> values.Token:
    """Writes at once; the token is done when the buffer may be overwritten."""
    view.store(read_buffer(op, buffer, (), None))
    token = values.Token(lambda: None)
    buffer.leaving.append(token)
    return token


define(
    "tma_store",
    "view buffer",
    _store_type,
    "starts copying a buffer to what lies inside the tensor of a window: by one thread when all `threads` of the role "
    '(0: of the block) have arrived, or with the scope "warp" by each warp for its own rows, '
    f"{WARP_ROWS} at a time in turn",
    STRUCTURAL,
    COLLECTIVE,
    effects={"view": "writes", "buffer": "reads"},
    attributes={"scope": "role", "threads": 0},
    evaluate=_store,
    lower=Lowering(template="tma_store"),
)


def _wait_type(op: Op) -> tuple[Type, ...]:
    _check_scope(op)
    if not 0 <= op.attributes["pending"] < 64:
        raise SourceError("TS703", f"{op.name} that leaves {op.attributes['pending']} stores in flight")
    return ()


def _wait(op: Op, stores: list[values.Token]) -> None:
    """`stores`: those of the programs at hand, in order."""
    done = len(stores) - op.attributes["pending"]
    for token in stores[: max(done, 0)]:
        token.wait()
    del stores[: max(done, 0)]


define(
    "tma_store_wait",
    "",
    _wait_type,
    "waits until at most the `pending` newest stores of `tma_store` are in flight; with `read` until the others have "
    "read their buffers, which may then be overwritten, without until they have written; `scope` and `threads` as of "
    "those stores",
    COLLECTIVE,
    attributes={"pending": 0, "read": True, "scope": "role", "threads": 0},
    evaluate=_wait,
    lower=Lowering(template="tma_store_wait"),
)

__all__ = ["SCOPES", "WARP_ROWS", "window_bytes"]
