"""One way to look at the arrays of NumPy, CuPy and torch, without importing a library that the caller has not.

An adapter is chosen by the type of the caller's own object. Its functions read plain Python values (tuples,
ints), because converting between libraries (`cupy.asarray(tensor)`) costs more than a launch.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.dtypes import DType
from tessera.errors import ArgumentError


class Adapter(ABC):
    """What a launch asks of an array library. `device` is a CUDA ordinal, or None for host memory."""

    library: str

    @abstractmethod
    def dtype(self, array: Any) -> DType | None:
        """The row of the dtype table, or None for a dtype that is not in it."""

    @abstractmethod
    def dtype_text(self, array: Any) -> str:
        """The array's dtype as its library prints it."""

    @abstractmethod
    def shape(self, array: Any) -> tuple[int, ...]: ...

    @abstractmethod
    def contiguous(self, array: Any) -> bool:
        """True when the elements lie in row-major order without gaps."""

    @abstractmethod
    def pointer(self, array: Any) -> int:
        """Address of the first element, on the host or on the device."""

    @abstractmethod
    def device(self, array: Any) -> int | None:
        """Raises ArgumentError TS604 for memory that is neither the host's nor a CUDA device's."""

    @abstractmethod
    def writable(self, array: Any) -> bool: ...

    @abstractmethod
    def host(self, array: Any) -> np.ndarray:
        """A NumPy array of the same memory. Raises ArgumentError TS604 for an array on a GPU."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        """A new contiguous array with undefined contents."""

    @abstractmethod
    def stream(self, device: int) -> int:
        """The CUDA stream (as an integer handle) on which the caller's work is queued."""


class NumpyAdapter(Adapter):
    library = "numpy"

    def dtype(self, array: Any) -> DType | None:
        return dtypes.from_numpy(array.dtype)

    def dtype_text(self, array: Any) -> str:
        return str(array.dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        return array.shape

    def contiguous(self, array: Any) -> bool:
        return array.flags.c_contiguous

    def pointer(self, array: Any) -> int:
        return array.__array_interface__["data"][0]

    def device(self, array: Any) -> int | None:
        return None

    def writable(self, array: Any) -> bool:
        return array.flags.writeable

    def host(self, array: Any) -> np.ndarray:
        return array

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return np.empty(shape, dtype.numpy)

    def stream(self, device: int) -> int:
        return 0


class CupyAdapter(Adapter):
    library = "cupy"

    def dtype(self, array: Any) -> DType | None:
        return dtypes.from_numpy(array.dtype)

    def dtype_text(self, array: Any) -> str:
        return str(array.dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        return array.shape

    def contiguous(self, array: Any) -> bool:
        return array.flags.c_contiguous

    def pointer(self, array: Any) -> int:
        return array.data.ptr

    def device(self, array: Any) -> int | None:
        return array.data.device_id

    def writable(self, array: Any) -> bool:
        return True

    def host(self, array: Any) -> np.ndarray:
        raise _on_gpu(self.device(array))

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.empty(shape, dtype.numpy)

    def stream(self, device: int) -> int:
        return sys.modules["cupy"].cuda.get_current_stream(device).ptr


_TORCH_NAMES = {
    "bool": dtypes.boolean,
    "int32": dtypes.i32,
    "int64": dtypes.i64,
    "bfloat16": dtypes.bf16,
    "float32": dtypes.f32,
    "float64": dtypes.f64,
}


class TorchAdapter(Adapter):
    library = "torch"

    def dtype(self, array: Any) -> DType | None:
        return _TORCH_NAMES.get(str(array.dtype).removeprefix("torch."))

    def dtype_text(self, array: Any) -> str:
        return str(array.dtype)

    def shape(self, array: Any) -> tuple[int, ...]:
        return tuple(array.shape)

    def contiguous(self, array: Any) -> bool:
        return array.is_contiguous()

    def pointer(self, array: Any) -> int:
        return array.data_ptr()

    def device(self, array: Any) -> int | None:
        where = array.device
        if where.type == "cpu":
            return None
        if where.type != "cuda":
            raise ArgumentError("TS604", f"a torch tensor on device '{where}' cannot be used; pass one on cpu or cuda")
        return where.index or 0

    def writable(self, array: Any) -> bool:
        return True

    def host(self, array: Any) -> np.ndarray:
        if self.device(array) is not None:
            raise _on_gpu(self.device(array))
        array = array.detach()
        if self.dtype(array) == dtypes.bf16:
            # torch cannot give bf16 to NumPy; the bits travel as int16, in the same memory.
            return array.view(sys.modules["torch"].int16).numpy().view(dtypes.bf16.numpy)
        return array.numpy()

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        torch = sys.modules["torch"]
        name = next(name for name, row in _TORCH_NAMES.items() if row == dtype)
        where = "cpu" if device is None else f"cuda:{device}"
        return torch.empty(shape, dtype=getattr(torch, name), device=where)

    def stream(self, device: int) -> int:
        return sys.modules["torch"].cuda.current_stream(device).cuda_stream


NUMPY, CUPY, TORCH = NumpyAdapter(), CupyAdapter(), TorchAdapter()


def adapter(value: Any) -> Adapter | None:
    """The adapter of an array, or None for anything else.

    A library that nobody imported cannot have made the object, so `sys.modules` is all that is asked.
    """
    if isinstance(value, np.ndarray):
        return NUMPY
    for module, type_name, found in (("cupy", "ndarray", CUPY), ("torch", "Tensor", TORCH)):
        array_type = getattr(sys.modules.get(module), type_name, None)
        if isinstance(array_type, type) and isinstance(value, array_type):
            return found
    return None


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array as a launch sees it. `dtype` is None when the dtype table lacks it; `device` None means the host."""

    adapter: Adapter
    dtype: DType | None
    dtype_text: str
    shape: tuple[int, ...]
    contiguous: bool
    writable: bool
    pointer: int
    device: int | None

    @property
    def bytes(self) -> int:
        count = self.dtype.bytes if self.dtype else 0
        for size in self.shape:
            count *= size
        return count

    @property
    def alignment(self) -> int:
        """The largest of 16, 8, 4, 2, 1 that divides the address."""
        return alignment_class(self.pointer)

    def overlaps(self, other: ArrayInfo) -> bool:
        """True when the two share a byte; meant for contiguous arrays, whose extent is their size."""
        return (
            self.device == other.device
            and self.pointer < other.pointer + other.bytes
            and other.pointer < self.pointer + self.bytes
        )


def describe(value: Any) -> ArrayInfo | None:
    """What a launch needs to know about an array, or None when `value` is no array of a known library."""
    found = adapter(value)
    if found is None:
        return None
    return ArrayInfo(
        found,
        found.dtype(value),
        found.dtype_text(value),
        found.shape(value),
        found.contiguous(value),
        found.writable(value),
        found.pointer(value),
        found.device(value),
    )


def alignment_class(pointer: int) -> int:
    """The largest power of two up to 16 that divides an address; 16 for the null pointer of an empty array."""
    return min(pointer & -pointer, 16) or 16


def host_view(value: Any) -> np.ndarray:
    """The array's memory as NumPy sees it, without a copy. Raises ArgumentError TS604 for one on a GPU."""
    found = adapter(value)
    if found is None:
        raise ArgumentError("TS604", f"{type(value).__name__} is not an array of NumPy, CuPy or torch")
    return found.host(value)


def _on_gpu(device: int | None) -> ArgumentError:
    return ArgumentError("TS604", f"an array on GPU {device} cannot be read by a lane that runs on the CPU")
