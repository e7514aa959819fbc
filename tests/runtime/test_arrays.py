"""The adapters read what a launch needs from each array library, and import none of them."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tessera import dtypes
from tessera.errors import ArgumentError
from tessera.program import Parameter
from tessera.runtime import arrays
from tessera.runtime.bind import bind
from tessera.runtime.launch import device_count

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(dtypes.TYPES))
def test_numpy(name):
    row = dtypes.TYPES[name]
    array = np.zeros((3, 5), row.numpy)
    info = arrays.describe(array)
    assert info is not None
    assert (info.dtype, info.shape, info.device) == (row, (3, 5), None)
    assert info.contiguous and info.writable and info.adapter.library == "numpy"
    assert info.pointer == array.ctypes.data and info.extent == (0, array.nbytes) and info.strides == (5, 1)
    assert arrays.host_view(array) is array
    made = info.adapter.empty((2, 4), row, None)
    assert made.shape == (2, 4) and made.dtype == row.numpy and made.flags.c_contiguous


def test_numpy_views():
    array = np.zeros((4, 6), np.float32)
    info = arrays.describe(array[:, ::2])
    assert info is not None and not info.contiguous
    array.flags.writeable = False
    info = arrays.describe(array)
    assert info is not None and not info.writable


@pytest.mark.parametrize("dtype", [np.complex64, ">f4"])
def test_a_dtype_outside_the_table_has_no_row_but_a_name(dtype):
    info = arrays.describe(np.zeros(3, dtype))
    assert info is not None and info.dtype is None and info.dtype_text == str(np.dtype(dtype))


@pytest.mark.parametrize("value", [3, 2.5, [1, 2], None, "x", np.float32(1)])
def test_other_values_are_no_arrays(value):
    assert arrays.describe(value) is None
    with pytest.raises(ArgumentError, match="not an array") as caught:
        arrays.host_view(value)
    assert caught.value.code == "TS604"


@pytest.mark.parametrize(("pointer", "alignment"), [(0, 16), (4096, 16), (24, 8), (4100, 4), (6, 2), (7, 1)])
def test_alignment_class(pointer, alignment):
    assert arrays.alignment_class(pointer) == alignment


def test_overlap():
    memory = np.zeros(10, np.float32)
    whole, left, right = (arrays.describe(a) for a in (memory, memory[:5], memory[5:]))
    empty = arrays.describe(memory[2:2])
    assert whole is not None and left is not None and right is not None and empty is not None
    assert whole.overlaps(left) and right.overlaps(whole)
    assert not left.overlaps(right) and not whole.overlaps(empty)


def test_no_array_library_is_imported():
    program = (
        "import sys, numpy; from tessera.runtime import arrays;"
        "arrays.describe(numpy.zeros(3)); arrays.describe(3);"
        "print([m for m in ('torch', 'cupy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_torch_on_the_host():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).to(torch.bfloat16)
    info = arrays.describe(tensor)
    assert info is not None
    assert (info.dtype, info.shape, info.device, info.pointer) == (dtypes.bf16, (2, 3), None, tensor.data_ptr())
    view = arrays.host_view(tensor)
    assert view.dtype == ml_dtypes.bfloat16
    view[1, 2] = 9  # the same memory
    assert float(tensor[1, 2]) == 9
    made = info.adapter.empty((4,), dtypes.bf16, None)
    assert isinstance(made, torch.Tensor) and made.dtype == torch.bfloat16 and made.shape == (4,)
    described = arrays.describe(tensor.t())
    assert described is not None and not described.contiguous


class FakeTorch:
    """The few members of torch that the adapter uses, over NumPy memory: torch itself is not a test dependency."""

    class Device:
        def __init__(self, type_, index=None):
            self.type, self.index = type_, index

        def __str__(self):
            return self.type

    class Tensor:
        def __init__(self, array, dtype, device):
            self.array, self.dtype, self.device = array, dtype, device
            self.shape = array.shape
            self.layout = "torch.strided"

        def stride(self):
            return tuple(step // self.array.itemsize for step in self.array.strides)

        def data_ptr(self):
            return self.array.ctypes.data

        def detach(self):
            return self

        def view(self, dtype):
            assert dtype == "torch.int16"
            return FakeTorch.Tensor(self.array.view(np.int16), dtype, self.device)

        def numpy(self):
            assert self.dtype != "torch.bfloat16", "torch refuses this"
            return self.array

    int16 = "torch.int16"


def fake_tensor(array, dtype, device="cpu", index=None):
    return FakeTorch.Tensor(array, f"torch.{dtype}", FakeTorch.Device(device, index))


@pytest.fixture
def fake_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", FakeTorch)


def test_torch_bf16_shares_memory_with_its_host_view(fake_torch):
    tensor = fake_tensor(np.zeros((2, 3), ml_dtypes.bfloat16), "bfloat16")
    arrays.host_view(tensor)[0, 1] = 2
    assert tensor.array[0, 1] == 2 and arrays.host_view(tensor).dtype == ml_dtypes.bfloat16


def test_torch_devices(fake_torch):
    on_gpu = fake_tensor(np.zeros(3, np.float32), "float32", "cuda", 1)
    info = arrays.describe(on_gpu)
    assert info is not None and info.device == 1
    with pytest.raises(ArgumentError, match="GPU 1"):
        arrays.host_view(on_gpu)
    with pytest.raises(ArgumentError, match="device 'mps'"):
        arrays.describe(fake_tensor(np.zeros(3, np.float32), "float32", "mps"))


@pytest.mark.gpu
def test_cupy():
    if device_count() == 0:
        pytest.skip("needs a GPU")
    import cupy

    array = cupy.zeros((3, 4), cupy.float32)
    info = arrays.describe(array)
    assert info is not None
    assert (info.dtype, info.shape, info.device, info.pointer) == (dtypes.f32, (3, 4), 0, array.data.ptr)
    assert isinstance(info.adapter.empty((2,), dtypes.bf16, 0), cupy.ndarray)
    with cupy.cuda.Stream() as stream:
        assert info.adapter.stream(0) == stream.ptr
    with pytest.raises(ArgumentError, match="GPU 0"):
        arrays.host_view(array)


def cupy_info(dtype_text):
    """What the CuPy adapter says of an array of four bytes on GPU 0."""
    row = dtypes.from_numpy(dtype_text)
    return arrays.ArrayInfo(arrays.CUPY, row, dtype_text, (4,), (1,), True, 4096, 0)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_cupy_carries_fp8_as_uint8(name):
    wanted = dtypes.parse(name)
    assert arrays.cupy_storage(wanted) == np.uint8 and arrays.cupy_storage(dtypes.i8) == np.int8
    assert arrays.CUPY.seen_as(cupy_info("uint8"), wanted).dtype == wanted
    assert arrays.CUPY.seen_as(cupy_info("uint8"), dtypes.i8).dtype is None
    assert arrays.CUPY.seen_as(cupy_info("int8"), wanted).dtype == dtypes.i8


def test_other_libraries_must_say_fp8():
    parameter = Parameter("x", "tensor", "fp8_e4m3", (4,))
    with pytest.raises(ArgumentError, match="'x' must have dtype fp8_e4m3, but .* uint8") as caught:
        bind("k", [parameter], [np.zeros(4, np.uint8)], {})
    assert caught.value.code == "TS204"
    bound = bind("k", [parameter], [np.zeros(4, dtypes.fp8_e4m3.numpy)], {})
    assert bound.infos["x"].dtype == dtypes.fp8_e4m3
