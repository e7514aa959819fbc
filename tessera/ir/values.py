"""Run-time values of the interpreters: tensors, views, buffers and tokens. Tiles and scalars are plain arrays.

Every array has a leading axis that counts programs of the grid (size 1 when all programs share the value). In reference
mode an array is a `Bar` instead; the classes here hold either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera.dtypes import DType, from_storage, to_storage
from tessera.errors import SourceError
from tessera.ir import bounds
from tessera.ir.bounds import Bar

Array = np.ndarray


@dataclass(eq=False)
class Tensor:
    """Global memory behind a parameter: an array of the storage dtype, or in reference mode a `Bar`."""

    data: Any
    dtype: DType
    sums: Any = None  # in reference mode, of elements that atomics add to: how often, and the sum of the magnitudes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def read(self, index: tuple[Array, ...]) -> Any:
        if isinstance(self.data, Bar):
            return self.data.map(lambda x: x[index])
        return from_storage(self.dtype, self.data[index])

    def write(self, index: tuple[Array, ...], value: Any) -> None:
        if isinstance(self.data, Bar):
            rounded = bounds.round_explicit(self.dtype, value)
            self.data.r[index], self.data.e[index] = rounded.r, rounded.e
        else:
            self.data[index] = to_storage(self.dtype, value)


@dataclass(eq=False)
class View:
    """A window of a tensor: per tensor axis an offset per program (int64, [P]) and an extent.

    An axis that is not kept has extent 1 and does not show in tiles; where it is not `masked` either, its index must
    lie inside the tensor. `limits` holds, by tensor axis, where elements begin to count as outside (int64, [P]).
    """

    tensor: Tensor
    offsets: tuple[Array, ...]
    extents: tuple[int, ...]
    kept: tuple[bool, ...]
    masked: frozenset[int] = frozenset()
    limits: tuple[tuple[int, Array], ...] = ()

    @staticmethod
    def whole(tensor: Tensor) -> View:
        zero = np.zeros(1, np.int64)
        return View(tensor, (zero,) * len(tensor.shape), tuple(tensor.shape), (True,) * len(tensor.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(extent for extent, keep in zip(self.extents, self.kept, strict=True) if keep)

    def narrow(
        self, offsets: list[Array], extents: tuple[int, ...], kept: tuple[bool, ...], masked: Sequence[bool] = ()
    ) -> View:
        """A window of this view; `offsets` has an entry per kept axis, and so has `masked` where it is given."""
        new_offsets, new_extents, new_kept, new_masked = [], [], [], set(self.masked)
        rest = iter(zip(offsets, extents, kept, masked or (False,) * len(offsets), strict=True))
        for axis, (offset, extent, keep) in enumerate(zip(self.offsets, self.extents, self.kept, strict=True)):
            if keep:
                shift, extent, keep, mask = next(rest)
                offset = offset + shift
                new_masked |= {axis} if mask else set()
            new_offsets.append(offset)
            new_extents.append(extent)
            new_kept.append(keep)
        return View(
            self.tensor,
            tuple(new_offsets),
            tuple(new_extents),
            tuple(new_kept),
            frozenset(new_masked),
            self.limits,
        )

    def limit(self, limits: list[Array]) -> View:
        """The same view; elements at `limits` (an entry per kept axis, from its start) and beyond are outside."""
        axes = [axis for axis, keep in enumerate(self.kept) if keep]
        added = tuple((axis, self.offsets[axis] + limit) for axis, limit in zip(axes, limits, strict=True))
        return replace(self, limits=(*self.limits, *added))

    def end(self, axis: int) -> Array:
        """Where the elements that count as inside end along a tensor axis: [P] or [1]."""
        least = np.array([self.tensor.shape[axis]], np.int64)
        for limited, limit in self.limits:
            if limited == axis:
                least = np.minimum(least, limit)
        return least

    def positions(self) -> tuple[tuple[Array, ...], Array]:
        """Tensor indices of every element and where they are inside, both [P, *extents].

        Raises SourceError TS504 when a single index (an axis that is neither kept nor masked) is outside the tensor.
        """
        rank = len(self.extents)
        index, inside = [], np.ones((1,) * (rank + 1), bool)
        for axis, (offset, extent, limit) in enumerate(zip(self.offsets, self.extents, self.tensor.shape, strict=True)):
            shape = [1] * (rank + 1)
            shape[0], shape[axis + 1] = len(offset), extent
            position = (offset[:, None] + np.arange(extent)).reshape(shape)
            checked = not self.kept[axis] and axis not in self.masked
            if checked and not np.all((position >= 0) & (position < limit)):
                outside = position[(position < 0) | (position >= limit)]
                where = f"axis {axis} of the tensor, whose size is {limit}"
                raise SourceError("TS504", f"the index {int(outside.flat[0])} is outside {where}")
            inside = inside & (position >= 0) & (position < self.end(axis).reshape((-1, *(1,) * rank)))
            index.append(position)
        return tuple(index), inside

    def load(self) -> Any:
        """The elements as a tile [P, *shape], zero outside the tensor."""
        index, inside = self.positions()
        programs = inside.shape[0]
        tile_shape = (programs, *self.shape)
        if 0 in self.tensor.shape:
            if isinstance(self.tensor.data, Bar):
                return Bar(np.zeros(tile_shape), np.zeros(tile_shape))
            return np.zeros(tile_shape, self.dtype.carrier)
        clipped = tuple(np.clip(i, 0, limit - 1) for i, limit in zip(index, self.tensor.shape, strict=True))
        full = (programs, *self.extents)

        def mask(x: Array) -> Array:
            return (
                np.where(inside, x, x.dtype.type(0))
                if x.shape == full
                else np.where(inside, np.broadcast_to(x, full), x.dtype.type(0))
            )

        return bounds.lift(lambda x: mask(x).reshape(tile_shape), self.tensor.read(clipped))

    def store(self, tile: Any, mask: Any = None) -> None:
        """Writes [P, *shape] where it is inside the tensor and `mask` holds; of programs that overlap, the last stays.

        In reference mode an element whose mask is open has an unbounded error.
        """
        index, inside = self.positions()
        programs = max([inside.shape[0], tile.shape[0]] + ([mask.shape[0]] if mask is not None else []))
        full = (programs, *self.extents)
        inside = np.broadcast_to(inside, full)
        if mask is not None:
            holds = mask.r != 0 if isinstance(mask, Bar) else mask
            everywhere = inside
            inside = inside & np.broadcast_to(holds, (programs, *holds.shape[1:])).reshape(full)
        chosen = tuple(np.broadcast_to(i, full)[inside] for i in index)

        def pick(x: Array) -> Array:
            expanded = np.broadcast_to(x, (programs, *x.shape[1:])).reshape(full)
            return expanded[inside]

        self.tensor.write(chosen, bounds.lift(pick, tile))
        if isinstance(mask, Bar) and mask.e.any():
            doubtful = np.broadcast_to(mask.e > 0, (programs, *mask.shape[1:])).reshape(full) & everywhere
            self.tensor.data.e[tuple(np.broadcast_to(i, full)[doubtful] for i in index)] = np.inf

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype


@dataclass(eq=False)
class Buffer:
    """A per-program buffer [P, *shape]. `defined` marks written elements, `in_flight` holds copies not waited for,
    `leaving` asynchronous stores that may still read it.
    """

    dtype: DType
    data: Any
    defined: Array
    in_flight: list[Token] = field(default_factory=list)
    leaving: list[Token] = field(default_factory=list)

    @staticmethod
    def new(programs: int, shape: tuple[int, ...], dtype: DType, reference: bool) -> Buffer:
        full = (programs, *shape)
        if reference:
            data: Any = Bar(np.full(full, np.nan), np.zeros(full))
        else:
            data = np.full(full, np.nan, dtype.carrier) if dtype.is_float else np.zeros(full, dtype.carrier)
        return Buffer(dtype, data, np.zeros(full, bool))

    def window(self, offsets: list[Array], extents: tuple[int, ...]) -> tuple[Array, ...]:
        """Index arrays [P, *extents] of a window. Raises IndexError when it leaves the buffer."""
        rank = len(extents)
        programs = np.arange(self.defined.shape[0]).reshape((-1, *(1,) * rank))
        index = [programs]
        for axis, (offset, extent) in enumerate(zip(offsets, extents, strict=True)):
            if np.any(offset < 0) or np.any(offset + extent > self.defined.shape[axis + 1]):
                limit = self.defined.shape[axis + 1]
                wrong = offset[(offset < 0) | (offset + extent > limit)]
                raise IndexError(f"axis {axis}: offset {int(wrong[0])} + {extent} of {limit}")
            shape = [1] * (rank + 1)
            shape[0], shape[axis + 1] = len(offset), extent
            index.append((offset[:, None] + np.arange(extent)).reshape(shape))
        return tuple(index)


@dataclass(eq=False)
class Token:
    """An asynchronous op: `complete` makes its data land, once."""

    complete: Callable[[], None]
    done: bool = False

    def wait(self) -> None:
        if not self.done:
            self.done = True
            self.complete()
