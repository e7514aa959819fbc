"""What a written call (`warm_code`) asks each array library: what an array is like, for a new one, for the stream.

A signature holds what an array was when the call was written; the lines here ask whether another one is the same, and
cost what reading the few attributes costs. Whatever they cannot tell is no reason to fail: the call is then not taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from tessera.dtypes import DType
from tessera.runtime.arrays import (
    ALIGNED,
    Adapter,
    CupyAdapter,
    Reader,
    TorchAdapter,
    adapter,
    contiguous_strides,
    cupy_storage,
)
from tessera.runtime.warm_text import Text


class Dialect:
    """Any library with a reader of signatures: the reader itself is asked, as `plan.read` asks it."""

    def __init__(self, library: Adapter) -> None:
        self.library = library

    def look(self, text: Text, array: str, pointer: str, reader: Reader, part: Hashable) -> str | None:
        """Lines that set `pointer`, or leave where the array is another one than `part` says.

        Returns the pointer if all that is left to ask is that it is aligned: then the caller does.
        """
        known = text.bind("part", part)
        text.line(f"part, {pointer} = {text.bind('read', reader)}({array})")
        text.leave_if(f"part != {known}")
        return None

    def make(self, text: Text, array: str, shape: tuple[int, ...], dtype: DType, device: int) -> str:
        """Lines that set `array` to a new one of these sizes; returns the expression for its address.

        Only written where the driver's current device is `device`.
        """
        library, of = text.bind("library", self.library), text.bind("dtype", dtype)
        text.line(f"{array} = {library}.empty({shape!r}, {of}, {device})")
        return f"{text.bind('address_of', _address_of)}({array})"

    def stream(self, text: Text, device: int) -> str:
        """The expression for the stream of the caller's work on a GPU."""
        return f"{text.bind('library', self.library)}.stream({device})"


class CupyDialect(Dialect):
    def look(self, text: Text, array: str, pointer: str, reader: Reader, part: Any) -> str | None:
        dtype, shape, strides, device, low = part
        text.line(f"memory = {array}.data")
        text.line(f"{pointer} = memory.ptr")
        same = f"{array}._c_contiguous" if _dense(shape, strides, dtype.itemsize) else f"{array}.strides == {strides!r}"
        asked = (
            f"{array}.dtype is not {text.bind('dtype', dtype)}",
            f"{array}.shape != {shape!r}",
            f"not {same}" if " " not in same else same.replace("==", "!="),
            f"memory.device_id != {device}",
        )
        text.leave_if(" or ".join(asked))
        return _aligned(text, pointer, low)

    def make(self, text: Text, array: str, shape: tuple[int, ...], dtype: DType, device: int) -> str:
        made = sys.modules["cupy"].ndarray
        text.line(f"{array} = {text.bind('ndarray', made)}({shape!r}, {text.bind('dtype', cupy_storage(dtype))})")
        return f"{array}.data.ptr"

    def stream(self, text: Text, device: int) -> str:
        return f"{text.bind('current_stream', sys.modules['cupy'].cuda.get_current_stream)}({device}).ptr"


class TorchDialect(Dialect):
    def look(self, text: Text, array: str, pointer: str, reader: Reader, part: Any) -> str | None:
        dtype, shape, strides, device, low = part
        if device.type not in ("cuda", "cpu"):
            return super().look(text, array, pointer, reader, part)
        dense = _dense(tuple(shape), tuple(strides), 1)
        asked = (
            f"{array}.dtype is not {text.bind('dtype', dtype)}",
            f"{array}.shape != {tuple(shape)!r}",
            f"not {array}.is_contiguous()" if dense else f"{array}.stride() != {tuple(strides)!r}",
            f"not {array}.is_{device.type}",
            f"{array}.get_device() != {-1 if device.index is None else device.index}",
        )
        text.leave_if(" or ".join(asked))
        return self.address(text, array, pointer, part)

    def address(self, text: Text, array: str, pointer: str, part: Any) -> str | None:
        """The end of `look`, for an array that is known to be the same."""
        text.line(f"{pointer} = {array}.data_ptr()")
        return _aligned(text, pointer, part[-1])

    def make(self, text: Text, array: str, shape: tuple[int, ...], dtype: DType, device: int) -> str:
        torch = sys.modules["torch"]
        of = text.bind("dtype", getattr(torch, dtype.numpy.name))
        guards = getattr(getattr(getattr(torch, "_C", None), "_dynamo", None), "guards", None)
        quick = getattr(guards, "_empty_strided_cuda", None)
        if quick is None:
            made, where = text.bind("empty", torch.empty), text.bind("device", torch.device("cuda", device))
            text.line(f"{array} = {made}({shape!r}, dtype={of}, device={where})")
        else:
            # What torch's own compiler allocates with, on torch's current device: a fifth of the time of torch.empty.
            strides = contiguous_strides(shape)
            text.line(f"{array} = {text.bind('empty_strided', quick)}({shape!r}, {strides!r}, {of})")
            text.leave_if(f"{array}.get_device() != {device}")
        return f"{array}.data_ptr()"

    def stream(self, text: Text, device: int) -> str:
        assert isinstance(self.library, TorchAdapter)
        return f"{text.bind('current_stream', self.library.stream_reader())}({device})"


_DIALECTS: dict[type[Adapter], type[Dialect]] = {CupyAdapter: CupyDialect, TorchAdapter: TorchDialect}


def dialect_of(library: Adapter) -> Dialect:
    """How written calls speak to a library."""
    return next((_DIALECTS[kind] for kind in type(library).__mro__ if kind in _DIALECTS), Dialect)(library)


# ---- all arguments of a call -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """An array of a call: the variables that hold it and its address, itself, and its part of the signature."""

    name: str
    pointer: str
    value: Any
    part: Any

    @cached_property
    def library(self) -> Adapter:
        found = adapter(self.value)
        assert found is not None and found.read is not None
        return found


class Arrays:
    """The arrays of a call, those of torch compared by one call of torch's where it has one.

    `compared` are the names of these, whose types nobody needs to ask for.
    """

    def __init__(self, every: Sequence[Seen]) -> None:
        self._every = every
        of_torch = [one for one in every if isinstance(dialect_of(one.library), TorchDialect)]
        self._check = _torch_check(of_torch) if of_torch else None
        self.compared = {one.name for one in of_torch} if self._check else set()

    def look(self, text: Text) -> None:
        """Lines that set the addresses, or leave where an array is another one than its part of the signature says."""
        if self._check:
            names = [one.name for one in self._every if one.name in self.compared]
            text.leave_if(f"not {text.bind('same_tensors', self._check)}({', '.join(names)})")
        aligned = []
        for one in self._every:
            dialect = dialect_of(one.library)
            if one.name in self.compared and isinstance(dialect, TorchDialect):
                pointer = dialect.address(text, one.name, one.pointer, one.part)
            else:
                assert one.library.read is not None
                pointer = dialect.look(text, one.name, one.pointer, one.library.read, one.part)
            aligned += [pointer] if pointer else []
        if aligned:
            every = " | ".join(aligned)
            text.leave_if(f"({every}) & {ALIGNED}" if len(aligned) > 1 else f"{every} & {ALIGNED}")


def _torch_check(tensors: Sequence[Seen]) -> Callable[..., bool] | None:
    """Whether tensors are like these in type, dtype, device, sizes and strides: what torch's own compiler guards with,
    in a third of the time that asking for these takes. None where there is no such thing, or it refuses these tensors:
    it wants each of them once.
    """
    if not _torch_checks(sys.modules["torch"]):
        return None
    given = [one.value for one in tensors]
    try:
        check = _torch_guards(given, [list(one.part[1]) for one in tensors], [list(one.part[2]) for one in tensors])
        return check if check(*given) is True else None
    except (RuntimeError, TypeError):  # of another form than torch's own compiler guards
        return None


def _torch_guards(tensors: Sequence[Any], shapes: Sequence[Any], strides: Sequence[Any]) -> Callable[..., bool]:
    guards = sys.modules["torch"]._C._dynamo.guards
    return guards.TensorGuards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check


@cache
def _torch_checks(torch: Any) -> bool:
    """Whether this torch has such a check that tells apart what it should: it is no public part of torch."""
    try:
        empty = partial(torch.empty, device="cpu")
        like = empty((2, 3))
        check = _torch_guards([like], [[2, 3]], [[3, 1]])
        others = [
            empty((2, 4)),
            empty((3, 3)),
            empty((6,)),
            empty((3, 2)).T,
            empty((2, 6))[:, :3],
            empty((2, 3), dtype=torch.int32),
            empty((2, 3), dtype=torch.bfloat16),
            torch.empty((2, 3), device="meta"),
            torch.nn.Parameter(like),
            like.numpy(),
        ]
        return check(like) is True and check(empty((2, 3))) is True and not any(check(one) for one in others)
    except Exception:  # whatever another version makes of it
        return False


def _dense(shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> bool:
    """Whether the library itself would call the array contiguous, which is quicker to ask than its strides."""
    dense = contiguous_strides(shape)
    return 0 in shape or all(
        size == 1 or stride == item * step for size, stride, step in zip(shape, strides, dense, strict=True)
    )


def _aligned(text: Text, pointer: str, low: int) -> str | None:
    if not low:
        return pointer
    text.leave_if(f"{pointer} & {ALIGNED} != {low}")
    return None


def _address_of(array: Any) -> int:
    found = adapter(array)
    assert found is not None
    return found.describe(array).pointer if found.read is None else found.read(array)[1]


__all__ = ["Arrays", "Dialect", "Seen", "dialect_of"]
