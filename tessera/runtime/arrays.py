"""One way to look at the arrays of every library, without importing a library that the caller has not.

An adapter is chosen by the type of the caller's own object. It reads plain Python values (tuples, ints), because
converting between libraries (`cupy.asarray(tensor)`) costs more than a launch. Libraries with an adapter of their own
are here and in `arrays_exchange`, which also takes any object with `__cuda_array_interface__` or `__dlpack__`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.dtypes import DType
from tessera.errors import ArgumentError

# What a warm call compares for one array, and the address that it launches with. Equal first items mean that
# everything a cold call checked is the same, except which bytes the array occupies.
Reader = Callable[[Any], tuple[Hashable, int]]
OVERLAP_WORK = 100_000  # steps that NumPy may take to find a common byte; it needs far fewer for slices
ALIGNED = 15  # the low bits of an address that decide how wide an access may be


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array as a launch sees it. `dtype` is None when the dtype table lacks it; `device` None means the host.

    `strides` count elements; they are None where one is no whole number of elements. `owner` keeps borrowed memory.
    """

    adapter: Adapter
    dtype: DType | None
    dtype_text: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    writable: bool
    pointer: int
    device: int | None
    owner: Any = field(default=None, compare=False, repr=False)

    @property
    def contiguous(self) -> bool:
        """True when the elements lie in row-major order without gaps; the stride of an axis of size 1 says nothing."""
        if 0 in self.shape:
            return True
        return self.strides is not None and all(
            size == 1 or stride == step
            for size, stride, step in zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        )

    @property
    def alignment(self) -> int:
        """The largest of 16, 8, 4, 2, 1 that divides the address."""
        return alignment_class(self.pointer)

    @property
    def extent(self) -> tuple[int, int]:
        """The first byte, and the one past the last, counted from `pointer`: negative strides reach below it."""
        item = self.dtype.bytes if self.dtype else 1
        if 0 in self.shape:
            return 0, 0
        reach = [(size - 1) * stride * item for size, stride in zip(self.shape, self.strides or (), strict=False)]
        return sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + item

    @property
    def folded(self) -> bool:
        """True when two elements may be one and the same memory, as with a stride of 0. Exact but for odd strides."""
        covered = 1
        axes = [(abs(s), n) for n, s in zip(self.shape, self.strides or (), strict=False) if n != 1]
        for stride, size in sorted(axes):
            if stride < covered:
                return 0 not in self.shape
            covered += (size - 1) * stride
        return False

    def overlaps(self, other: ArrayInfo) -> bool:
        """True when the two share a byte. Views that interleave, as two halves of each row, share none."""
        if self.device != other.device or not self._ranges_meet(other):
            return False
        if self.contiguous and other.contiguous:
            return True
        views = [as_numpy(info.pointer, info.shape, info.strides, info.dtype) for info in (self, other)]
        try:
            return np.shares_memory(*views, max_work=OVERLAP_WORK)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True

    def _ranges_meet(self, other: ArrayInfo) -> bool:
        (low, high), (other_low, other_high) = self.extent, other.extent
        return (
            low < high
            and other_low < other_high
            and self.pointer + low < other.pointer + other_high
            and other.pointer + other_low < self.pointer + high
        )


class Adapter(ABC):
    """What a launch asks of an array library. `device` is a CUDA ordinal, or None for host memory."""

    library: str
    immutable = ""  # why the library's arrays cannot be outputs, as a clause; empty where they can
    keeps_captured = False  # whether memory made while a graph is captured stays with the graph
    read: Reader | None = None  # for warm calls; None where the library has no cheap way to tell

    @abstractmethod
    def matches(self, value: Any) -> bool:
        """Whether this adapter reads the object."""

    @abstractmethod
    def describe(self, array: Any) -> ArrayInfo:
        """Raises ArgumentError TS604 for memory that is neither the host's nor a CUDA device's."""

    @abstractmethod
    def host(self, array: Any) -> np.ndarray:
        """A NumPy array of the same memory. Raises ArgumentError TS604 for an array on a GPU."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        """A new contiguous array with undefined contents, which a kernel can write."""

    @abstractmethod
    def stream(self, device: int) -> int:
        """The CUDA stream (as an integer handle) on which the caller's work is queued."""

    def seen_as(self, info: ArrayInfo, wanted: DType) -> ArrayInfo:
        """The array as a parameter of dtype `wanted` sees it: where the library carries that dtype under another."""
        return info

    def returned(self, made: Any, device: int | None) -> Any:
        """What the caller gets for an array of `empty` once its kernel is queued."""
        return made

    def after(self, array: Any, stream: int, device: int) -> None:
        """Orders what is queued on `stream` from now on after the array's own work, where that is queued elsewhere."""
        return


class NumpyAdapter(Adapter):
    library = "numpy"

    def matches(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(
            self,
            dtypes.from_numpy(array.dtype),
            str(array.dtype),
            array.shape,
            element_strides(array.strides, array.dtype.itemsize),
            array.flags.writeable,
            array.__array_interface__["data"][0],
            None,
        )

    def host(self, array: Any) -> np.ndarray:
        return array

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return np.empty(shape, dtype.numpy) if device is None else CUPY.empty(shape, dtype, device)

    def stream(self, device: int) -> int:
        return 0


def _read_cupy(array: Any) -> tuple[Hashable, int]:
    memory = array.data
    pointer = memory.ptr
    return (array.dtype, array.shape, array.strides, memory.device_id, pointer & ALIGNED), pointer


def cupy_storage(dtype: DType) -> np.dtype:
    """The NumPy dtype under which CuPy holds a dtype: it has no fp8, whose bytes it carries as uint8."""
    return np.dtype(np.uint8) if dtype.is_float and dtype.bits == 8 else dtype.numpy


class CupyAdapter(Adapter):
    library = "cupy"
    read = staticmethod(_read_cupy)

    def matches(self, value: Any) -> bool:
        return is_of(value, "cupy", "ndarray")

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(
            self,
            dtypes.from_numpy(array.dtype),
            str(array.dtype),
            array.shape,
            element_strides(array.strides, array.dtype.itemsize),
            True,
            array.data.ptr,
            array.data.device_id,
        )

    def seen_as(self, info: ArrayInfo, wanted: DType) -> ArrayInfo:
        carried = cupy_storage(wanted) != wanted.numpy and info.dtype_text == "uint8"
        return replace(info, dtype=wanted) if carried else info

    def host(self, array: Any) -> np.ndarray:
        raise on_gpu(array.data.device_id)

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        import cupy  # a launch needs it in any case

        with cupy.cuda.Device(device):
            return cupy.empty(shape, cupy_storage(dtype))

    def stream(self, device: int) -> int:
        # Handles are as CUDA defines them: 0 the legacy default stream, 2 the per-thread one where CuPy was told so.
        return sys.modules["cupy"].cuda.get_current_stream(device).ptr


def _read_torch(tensor: Any) -> tuple[Hashable, int]:
    pointer = tensor.data_ptr()
    return (tensor.dtype, tensor.shape, tensor.stride(), tensor.device, pointer & ALIGNED), pointer


class TorchAdapter(Adapter):
    library = "torch"
    keeps_captured = True  # `torch.cuda.graph` gives each graph a pool of its own
    read = staticmethod(_read_torch)

    def __init__(self) -> None:
        self._current_stream: Callable[[int], int] | None = None

    def matches(self, value: Any) -> bool:
        return is_of(value, "torch", "Tensor")

    def describe(self, array: Any) -> ArrayInfo:
        if "strided" not in str(array.layout):
            raise ArgumentError("TS604", f"a torch tensor of layout {array.layout} has no strides; pass a dense one")
        return ArrayInfo(
            self,
            _torch_dtype(array),
            str(array.dtype),
            tuple(array.shape),
            tuple(array.stride()),
            True,
            array.data_ptr(),
            _torch_device(array),
        )

    def host(self, array: Any) -> np.ndarray:
        device = _torch_device(array)
        if device is not None:
            raise on_gpu(device)
        array, dtype = array.detach(), _torch_dtype(array)
        if dtype is not None and dtype.numpy.isbuiltin != 1:  # 1: one of NumPy's own
            # torch gives NumPy only the dtypes that NumPy itself has; other bits travel as integers, in place.
            carrier = getattr(sys.modules["torch"], {1: "uint8", 2: "int16"}[dtype.bytes])
            return array.view(carrier).numpy().view(dtype.numpy)
        return array.numpy()

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        torch = sys.modules["torch"]
        where = "cpu" if device is None else f"cuda:{device}"
        return torch.empty(shape, dtype=getattr(torch, dtype.numpy.name), device=where)

    def stream(self, device: int) -> int:
        return (self._current_stream or self.stream_reader())(device)

    def stream_reader(self) -> Callable[[int], int]:
        """What `stream` asks, looked up once."""
        read = self._current_stream
        if read is None:
            torch = sys.modules["torch"]
            # The handle alone costs a tenth of a Stream object; torch's own compiler reads it in this way.
            raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
            read = self._current_stream = raw or (lambda index: torch.cuda.current_stream(index).cuda_stream)
        return read


def _torch_dtype(tensor: Any) -> DType | None:
    name = str(tensor.dtype).removeprefix("torch.")
    return next((row for row in dtypes.TYPES.values() if row.numpy.name == name), None)


def _torch_device(tensor: Any) -> int | None:
    where = tensor.device
    if where.type == "cpu":
        return None
    if where.type != "cuda":
        raise ArgumentError("TS604", f"a torch tensor on device '{where}' cannot be used; pass one on cpu or cuda")
    return where.index or 0


NUMPY, CUPY, TORCH = NumpyAdapter(), CupyAdapter(), TorchAdapter()
ADAPTERS: list[Adapter] = [NUMPY, CUPY, TORCH]  # the first that matches reads an object


def adapter(value: Any) -> Adapter | None:
    """The adapter of an array, or None for anything else."""
    return next((found for found in ADAPTERS if found.matches(value)), None)


def describe(value: Any) -> ArrayInfo | None:
    """What a launch needs to know about an array, or None when `value` is no array of a known library."""
    found = adapter(value)
    return None if found is None else found.describe(value)


def any_without_memory(values: Iterable[Any]) -> bool:
    """Whether one of these, or one in a list, is a tensor that stands for one while torch traces."""
    several = (item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,)))
    return any(type(item).__name__ == "FakeTensor" for item in several)


def is_of(value: Any, module: str, type_name: str) -> bool:
    """Whether `value` is of that type. A library that nobody imported cannot have made it, so none is imported."""
    array_type = getattr(sys.modules.get(module), type_name, None)
    return isinstance(array_type, type) and isinstance(value, array_type)


def alignment_class(pointer: int) -> int:
    """The largest power of two up to 16 that divides an address; 16 for the null pointer of an empty array."""
    return min(pointer & -pointer, 16) or 16


def element_strides(strides: tuple[int, ...], item: int) -> tuple[int, ...] | None:
    """Strides in elements from strides in bytes, or None where one is no whole number of elements."""
    if any(stride % item for stride in strides):
        return None
    return tuple(stride // item for stride in strides)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a row-major array without gaps."""
    result, step = [], 1
    for size in reversed(shape):
        result.append(step)
        step *= size
    return tuple(reversed(result))


class _Memory:
    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__, self.owner = interface, owner


def as_numpy(
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: DType | None,
    writable: bool = True,
    owner: Any = None,
) -> np.ndarray:
    """Memory at an address as a NumPy array, which keeps `owner`; `strides` count elements (None: contiguous)."""
    item = dtype.bytes if dtype else 1
    steps = tuple(step * item for step in (contiguous_strides(shape) if strides is None else strides))
    data = (pointer or 1, not writable)  # NumPy wants an address even where there is nothing to address
    interface = {"version": 3, "shape": shape, "strides": steps, "typestr": f"<u{item}", "data": data}
    bits = np.asarray(_Memory(interface, owner))
    return bits.view(dtype.numpy) if dtype else bits


def host_view(value: Any) -> np.ndarray:
    """The array's memory as NumPy sees it, without a copy. Raises ArgumentError TS604 for one on a GPU."""
    found = adapter(value)
    if found is None:
        raise ArgumentError("TS604", f"{type(value).__name__} is not an array of a library that Tessera knows")
    return found.host(value)


def on_gpu(device: int | None) -> ArgumentError:
    return ArgumentError("TS604", f"an array on GPU {device} cannot be read by a lane that runs on the CPU")


from tessera.runtime import arrays_exchange  # noqa: E402  it builds on the names above

ADAPTERS += arrays_exchange.ADAPTERS
