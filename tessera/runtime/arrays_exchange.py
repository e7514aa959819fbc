"""Arrays of JAX, and of any library that speaks `__cuda_array_interface__` or DLPack.

JAX arrays never change: their kernels' outputs must be left out, and are handed over to JAX when they are queued.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.dtypes import DType
from tessera.errors import ArgumentError
from tessera.runtime.arrays import CUPY, NUMPY, Adapter, ArrayInfo, as_numpy, element_strides, is_of, on_gpu


def _empty(shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
    return (NUMPY if device is None else CUPY).empty(shape, dtype, device)


def _current_stream(device: int) -> int:
    import cupy  # a launch needs it in any case

    return cupy.cuda.get_current_stream(device).ptr


# ---- JAX -----------------------------------------------------------------------------------------------------------


class JaxAdapter(Adapter):
    library = "jax"
    immutable = "a JAX array cannot change"

    def matches(self, value: Any) -> bool:
        return is_of(value, "jax", "Array")

    def describe(self, array: Any) -> ArrayInfo:
        if isinstance(array, sys.modules["jax"].core.Tracer):
            raise ArgumentError("TS604", "a traced JAX value has no memory yet; call the kernel outside of jax.jit")
        devices = array.devices()
        if len(devices) != 1:
            raise ArgumentError("TS604", f"a JAX array spread over {len(devices)} devices cannot be used; gather it")
        (where,) = devices
        if where.platform not in ("cpu", "gpu", "cuda"):
            raise ArgumentError("TS604", f"a JAX array on device '{where}' cannot be used; pass one on cpu or gpu")
        array.block_until_ready()  # JAX computes on streams of its own, which nobody else can wait for
        shape, layout = tuple(array.shape), getattr(getattr(array, "format", None), "layout", None)
        return ArrayInfo(
            self,
            dtypes.from_numpy(array.dtype),
            str(array.dtype),
            shape,
            _dense_strides(shape, getattr(layout, "major_to_minor", None)),
            False,
            array.unsafe_buffer_pointer(),
            None if where.platform == "cpu" else where.local_hardware_id,
        )

    def host(self, array: Any) -> np.ndarray:
        info = self.describe(array)
        if info.device is not None:
            raise on_gpu(info.device)
        return as_numpy(info.pointer, info.shape, info.strides, info.dtype, writable=False, owner=array)

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return _empty(shape, dtype, device)

    def stream(self, device: int) -> int:
        return _current_stream(device)

    def returned(self, made: Any, device: int | None) -> Any:
        jax = sys.modules["jax"]
        if device is None:
            return jax.device_put(made, jax.devices("cpu")[0])
        sys.modules["cupy"].cuda.get_current_stream(device).synchronize()  # JAX knows nothing of this stream
        if made.dtype.isbuiltin == 1:
            return jax.dlpack.from_dlpack(made)
        # CuPy exports NumPy's own dtypes; the bits of any other travel as integers.
        bits = jax.dlpack.from_dlpack(made.view(f"u{made.dtype.itemsize}"))
        return jax.lax.bitcast_convert_type(bits, made.dtype)


def _dense_strides(shape: tuple[int, ...], major_to_minor: tuple[int, ...] | None) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for axis in reversed(major_to_minor or range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


# ---- __cuda_array_interface__ --------------------------------------------------------------------------------------


class CudaInterfaceAdapter(Adapter):
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, versions 2 and 3."""

    library = "cuda_array_interface"

    def matches(self, value: Any) -> bool:
        return hasattr(type(value), "__cuda_array_interface__") or "__cuda_array_interface__" in _variables(value)

    def describe(self, array: Any) -> ArrayInfo:
        interface = array.__cuda_array_interface__
        dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
        strides = interface.get("strides")
        pointer, read_only = interface["data"]
        if interface.get("mask") is not None:
            raise ArgumentError("TS604", f"a masked {type(array).__name__} cannot be used; fill it first")
        return ArrayInfo(
            self,
            dtypes.from_numpy(dtype),
            str(dtype),
            shape,
            _dense_strides(shape, None) if strides is None else element_strides(tuple(strides), dtype.itemsize),
            not read_only,
            pointer or 0,
            _device_of(pointer),
        )

    def host(self, array: Any) -> np.ndarray:
        raise on_gpu(self.describe(array).device)

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return _empty(shape, dtype, device)

    def stream(self, device: int) -> int:
        return _current_stream(device)

    def after(self, array: Any, stream: int, device: int) -> None:
        """The interface's own stream: 1 and 2 are CUDA's default streams, None asks for nothing."""
        pending = array.__cuda_array_interface__.get("stream")
        if pending is None or pending == (stream or 1):
            return
        runtime = sys.modules["cupy"].cuda.runtime
        event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
        runtime.eventRecord(event, pending)
        runtime.streamWaitEvent(stream, event)
        runtime.eventDestroy(event)  # CUDA keeps it until the wait is over


def _variables(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _device_of(pointer: int) -> int:
    import cupy  # a launch needs it in any case

    return cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else cupy.cuda.runtime.getDevice()


# ---- DLPack --------------------------------------------------------------------------------------------------------


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("axes", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_READ_ONLY = 1  # bit of the flags
# NumPy's name of a DLPack type, by its code and bits: https://dmlc.github.io/dlpack/latest/c_api.html
_KINDS: dict[int, Callable[[int], str]] = {
    0: lambda bits: f"int{bits}",
    1: lambda bits: f"uint{bits}",
    2: lambda bits: f"float{bits}",
    4: lambda bits: "bfloat16",
    6: lambda bits: "bool",
    10: lambda bits: "float8_e4m3fn",
    12: lambda bits: "float8_e5m2",
}


class DlpackAdapter(Adapter):
    """Any object with `__dlpack__`, on the host or on a GPU. The capsule stays with the description of the array."""

    library = "dlpack"

    def matches(self, value: Any) -> bool:
        return hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__")

    def describe(self, array: Any) -> ArrayInfo:
        kind, index = (int(part) for part in array.__dlpack_device__())
        if kind not in (_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED):
            message = f"{type(array).__name__} lives on a device of DLPack type {kind}; pass an array on cpu or cuda"
            raise ArgumentError("TS604", message)
        device = index if kind in (_CUDA, _CUDA_MANAGED) else None
        capsule = _capsule(array, None if device is None else _current_stream(device) or 1)
        tensor, read_only = _open(capsule)
        shape = tuple(tensor.shape[axis] for axis in range(tensor.axes))
        strides = tuple(tensor.strides[axis] for axis in range(tensor.axes)) if tensor.strides else None
        dtype, text = _dlpack_dtype(tensor.dtype)
        return ArrayInfo(
            self,
            dtype,
            text,
            shape,
            _dense_strides(shape, None) if strides is None else strides,
            not read_only,
            (tensor.data or 0) + tensor.byte_offset,
            device,
            capsule,
        )

    def host(self, array: Any) -> np.ndarray:
        info = self.describe(array)
        if info.device is not None:
            raise on_gpu(info.device)
        return as_numpy(info.pointer, info.shape, info.strides, info.dtype, info.writable, owner=info.owner)

    def empty(self, shape: tuple[int, ...], dtype: DType, device: int | None) -> Any:
        return _empty(shape, dtype, device)

    def stream(self, device: int) -> int:
        return _current_stream(device)


def _capsule(array: Any, stream: int | None) -> Any:
    """The exporter's capsule, of the version that can say "read-only" where the exporter knows it."""
    arguments = {} if stream is None else {"stream": stream}
    try:
        return array.__dlpack__(max_version=(1, 0), **arguments)
    except TypeError:  # an exporter from before DLPack 1.0
        return array.__dlpack__(**arguments)


def _open(capsule: Any) -> tuple[_Tensor, bool]:
    """The tensor in a capsule, and whether it must not be written. The capsule keeps the memory."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
    if api.PyCapsule_IsValid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(api.PyCapsule_GetPointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise ArgumentError("TS604", f"an array of DLPack version {managed.major}.{managed.minor} cannot be read")
        return managed.tensor, bool(managed.flags & _READ_ONLY)
    return _Tensor.from_address(api.PyCapsule_GetPointer(capsule, b"dltensor")), False


def _dlpack_dtype(type_: _DataType) -> tuple[DType | None, str]:
    name = _KINDS[type_.code](type_.bits) if type_.code in _KINDS else f"DLPack type {type_.code} of {type_.bits} bits"
    if type_.lanes != 1:
        return None, f"{name} x {type_.lanes}"
    return next((row for row in dtypes.TYPES.values() if row.numpy.name == name), None), name


ADAPTERS: list[Adapter] = [JaxAdapter(), CudaInterfaceAdapter(), DlpackAdapter()]
