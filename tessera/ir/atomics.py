"""Atomic updates on the interpreter: element after element, in the order of programs and of a tile's elements.

Integers and maxima come out alike in any order. A sum of floats does not: reference mode gives it the bar of every
order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tessera.dtypes import round_to
from tessera.ir import bounds
from tessera.ir.bounds import HALF_ULP_F32, Bar
from tessera.ir.values import Tensor, View

Array = np.ndarray


def accumulate(view: View, kind: str, value: Any) -> None:
    """Combines [P, *shape] with the window's elements that lie inside the tensor."""
    index, inside = view.positions()
    programs = max([len(offset) for offset in view.offsets] + [value.shape[0]])
    full = (programs, *view.extents)
    inside = np.broadcast_to(inside, full)
    chosen = tuple(np.broadcast_to(i, full)[inside] for i in index)
    picked = bounds.lift(lambda x: np.broadcast_to(x, (programs, *x.shape[1:])).reshape(full)[inside], value)
    _combine(view.tensor, chosen, kind, picked)


def scatter(view: View, kind: str, index: Any, value: Any) -> None:
    """Combines value[i] with element index[i] of a view of one axis, where that is inside the window and the tensor."""
    wanted = np.asarray(index.r if isinstance(index, Bar) else index).astype(np.int64)
    (axis,) = (axis for axis, keep in enumerate(view.kept) if keep)
    programs = max([len(offset) for offset in view.offsets] + [wanted.shape[0], value.shape[0]])
    full = (programs, *wanted.shape[1:])
    wanted = np.broadcast_to(wanted, full)
    inside = (wanted >= 0) & (wanted < view.extents[axis])
    positions = []
    column = (-1, *(1,) * (wanted.ndim - 1))
    for number in range(len(view.extents)):
        offset = view.offsets[number].reshape(column)
        position = np.broadcast_to(offset + wanted if number == axis else offset, full)
        inside = inside & (position >= 0) & (position < view.end(number).reshape(column))
        positions.append(position)
    picked = bounds.lift(lambda x: np.broadcast_to(x, full)[inside], value)
    _combine(view.tensor, tuple(position[inside] for position in positions), kind, picked)


def _combine(tensor: Tensor, index: tuple[Array, ...], kind: str, value: Any) -> None:
    if index[0].size == 0:
        return
    if isinstance(value, Bar):
        _combine_bars(tensor, index, kind, value)
        return
    data = tensor.data
    value = round_to(tensor.dtype, value)
    with np.errstate(all="ignore"):
        if kind == "add":
            np.add.at(data, index, value)
        elif not tensor.dtype.is_float:
            np.maximum.at(data, index, value)
        else:
            _maximum_at(data, index, value)


def _combine_bars(tensor: Tensor, index: tuple[Array, ...], kind: str, value: Bar) -> None:
    bar = tensor.data
    if kind == "max":
        np.maximum.at(bar.r, index, value.r)
        np.maximum.at(bar.e, index, value.e)
        return
    if tensor.dtype.is_float:
        # n additions in any order, each at most half an ulp of the sum of the magnitudes.
        if tensor.sums is None:
            tensor.sums = (np.zeros(bar.r.shape), np.abs(bar.r) + bar.e)
        count, magnitude = tensor.sums
        touched = tuple(np.unique(np.stack(index), axis=1))
        before = count[touched] * magnitude[touched]
        np.add.at(count, index, 1)
        np.add.at(magnitude, index, np.abs(value.r) + value.e)
        bar.e[touched] += HALF_ULP_F32 * (count[touched] * magnitude[touched] - before)
    np.add.at(bar.r, index, value.r)
    np.add.at(bar.e, index, value.e)


def _maximum_at(data: Array, index: tuple[Array, ...], value: Array) -> None:
    """f32 maxima in the total order of their bits: -0 below +0, a NaN value (with all bits set) above everything."""
    flat, inverse = np.unique(np.ravel_multi_index(index, data.shape), return_inverse=True)
    place = np.unravel_index(flat, data.shape)
    bits = np.where(np.isnan(value), np.int32(0x7FFFFFFF), np.ascontiguousarray(value).view(np.int32))
    keys = _ordered(np.ascontiguousarray(data[place]).view(np.int32))
    np.maximum.at(keys, inverse.reshape(-1), _ordered(bits))
    data[place] = _ordered(keys).view(np.float32)


def _ordered(bits: Array) -> Array:
    """The bits of floats as integers in the floats' order; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
