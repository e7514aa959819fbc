"""Tensor maps as the CPU twin takes them: what a descriptor of the hardware says, in fields that can be read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_RANK = 5


class TensorMapFields(ctypes.Structure):
    """``ts_tensor_map`` of tessera_twin_tma.h: axes innermost first, strides in bytes."""

    _fields_ = [
        ("base", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
        ("box", ctypes.c_int * MAX_RANK),
        ("rank", ctypes.c_int),
        ("item", ctypes.c_int),
        ("swizzle", ctypes.c_int),
    ]


@dataclass(frozen=True, eq=False)
class TwinMap:
    """A map into `array`'s memory, as an argument of a launch on the emulator; axes innermost first.

    Size 0 of the tensor is that of the innermost axis, in elements; `strides` are bytes, the first one the element's;
    `box` is in elements; `swizzle` is 0, 32, 64 or 128 bytes. The launch checks them as the hardware's encoder would.
    """

    array: np.ndarray
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    def fields(self, address: int) -> TensorMapFields:
        """The twin's structure, for a tensor that begins at `address`."""
        rest = MAX_RANK - len(self.sizes)
        return TensorMapFields(
            address,
            (*self.sizes, *[1] * rest),
            (*self.strides, *[0] * rest),
            (*self.box, *[1] * rest),
            len(self.sizes),
            self.array.itemsize,
            self.swizzle,
        )


def twin_map(
    array: np.ndarray,
    sizes: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    box: Sequence[int] = (),
    swizzle: int = 0,
) -> TwinMap:
    """A map of `array`, by default with its own sizes and strides (bytes); all sequences innermost axis first.

    Raises ValueError where the ranks differ or are not 2 to 5.
    """
    sizes = tuple(map(int, array.shape[::-1] if sizes is None else sizes))
    strides = tuple(map(int, array.strides[::-1] if strides is None else strides))
    if not 2 <= len(sizes) <= MAX_RANK or len(strides) != len(sizes) or len(box) != len(sizes):
        raise ValueError(f"a map of {len(sizes)} sizes, {len(strides)} strides and a box of {len(box)}")
    return TwinMap(array, sizes, strides, tuple(map(int, box)), swizzle)
