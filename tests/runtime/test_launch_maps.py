"""Tensor maps of launches: what is encoded, how often, where it lies among the arguments, and what is refused."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import bf16
from tessera.errors import CODES, ArgumentError, EnvironmentProblem, InternalError
from tessera.ir.dims import symbol
from tessera.ir.parser import parse_module
from tessera.program import Argument, Launch, Parameter, Program, Workspace
from tessera.runtime import launch, tensor_maps
from tessera.runtime.arrays import ADAPTERS
from tessera.runtime.bind import bind
from tessera.runtime.tensor_maps import Encoding, Known, Maps, TensorShape
from tests.runtime import executing_cuda, fake_cuda

M, N = symbol("M"), symbol("N")
PARAMETERS = (
    Parameter("x", "tensor", "bf16", (M, N)),
    Parameter("xs", "list", "bf16", (M, N), length=2),
    Parameter("scale", "scalar", "f32"),
    Parameter("out", "tensor", "f32", (M,), "out"),
)
ARGUMENTS = (
    Argument("pointer", "x"),
    Argument("map", "x", box=(64, 32), swizzle=128),
    Argument("maps", "xs", box=(8, 16)),
    Argument("size", size=M),
    Argument("map", "out", box=(128, 1)),
    Argument("scalar", "scale"),
)


def program(arguments=ARGUMENTS, parameters=PARAMETERS, workspaces=()):
    step = Launch("k", (1,), 32, 0, arguments, ("out",))
    return Program("k", "sm_90a", parameters, ("M", "N"), {}, {}, (step,), "", b"cubin", workspaces=workspaces)


@pytest.fixture
def library():
    """A library whose arrays live on a make-believe GPU."""
    made = fake_cuda.Library()
    ADAPTERS.insert(0, made)
    yield made
    ADAPTERS.remove(made)


def call(x=None, out=None, shape=(300, 64)):
    arrays = [fake_cuda.aligned(shape, bf16.numpy) if value is None else value for value in (x, None, None)]
    out = fake_cuda.aligned(shape[:1]) if out is None else out
    return bind("k", PARAMETERS, (arrays[0], arrays[1:], 0.5, out), {})


def shape(*sizes, item=2):
    """A contiguous tensor, its sizes from the innermost one."""
    return TensorShape.of(sizes[::-1], [int(np.prod(sizes[:n])) for n in range(len(sizes))][::-1], item)


def test_maps_lie_before_the_other_arguments(library):
    driver, made = fake_cuda.Driver(), call()
    prepared = launch.Launcher(driver).launch(program(), made, 7)
    x, first, second, out = (made.infos[name].pointer for name in ("x", "xs[0]", "xs[1]", "out"))
    rows = TensorShape((300, 1), (4, 1200))
    assert driver.encoded == [
        (Encoding(shape(64, 300), (64, 32), 128, 2), x),
        (Encoding(shape(64, 300), (8, 16), 0, 2), first),
        (Encoding(shape(64, 300), (8, 16), 0, 2), second),
        (Encoding(rows, (128, 1), 0, 4), out),
    ]
    ((_, _, slots, _, _),) = driver.launches
    assert slots[:64] == tuple(n for number in range(4) for n in [number] * 16)
    assert slots[64:66] == (x, 300) and len(slots) == 67
    (step,) = prepared.launches
    arguments = step.free[0]
    base = ctypes.addressof(arguments.slots)
    starts = [address - base for address in arguments.addresses]
    assert starts == [512, 0, 128, 520, 384, 528] and base % 64 == 0


def test_an_address_is_encoded_once(library):
    driver, made = fake_cuda.Driver(), call()
    launcher = launch.Launcher(driver)
    prepared = launcher.launch(program(), made, 7)
    values = launch.argument_values(program(), made)
    maps = prepared.launches[0].maps
    everything = [*values, *values[1]]
    assert maps.of(everything) is maps.of(list(everything)) and len(driver.encoded) == 4
    for _ in range(2):
        for new_out in (made.infos["out"].pointer, 1 << 20):
            values[3] = new_out
            prepared.queue(driver, values, 7, 0, library)
    assert [address for _, address in driver.encoded[4:]] == [1 << 20]


def test_the_oldest_addresses_are_forgotten():
    encoded = []
    known = Known(lambda address: encoded.append(address) or str(address).encode())
    maps = Maps([known], [2])
    for address in (1, 2, 1, *range(3, tensor_maps.MOST_KNOWN + 2)):
        assert maps.of([0, 0, address]) == (str(address).encode(),)
    assert encoded == list(range(1, tensor_maps.MOST_KNOWN + 2))
    known.at(1)
    assert encoded[-1] != 1
    known.at(2)
    assert encoded[-1] == 2


def test_maps_of_values_that_lie_elsewhere():
    maps = Maps([Known(lambda a: bytes([a])), Known(lambda a: bytes([a + 1]))], [1, 0])
    assert maps.of([5, 7]) == (b"\7", b"\6")
    assert maps.moved([3, 2]).of([0, 0, 7, 5]) == (b"\7", b"\6")


def test_workspaces_and_empty_lists(library):
    parameters = (Parameter("x", "tensor", "bf16", (M, N)), Parameter("none", "list", "bf16", (M, N)))
    arguments = (Argument("maps", "none", box=(8, 8)), Argument("map", "sums", box=(32, 8), swizzle=128))
    spaces = (Workspace("sums", "f32", (M, N * 2)),)
    made = bind("k", parameters, (fake_cuda.aligned((30, 64), bf16.numpy), []), {})
    driver = fake_cuda.Driver()
    launch.Launcher(driver).launch(program(arguments, parameters, spaces), made, 7)
    ((encoding, address),) = driver.encoded
    assert encoding == Encoding(shape(128, 30, item=4), (32, 8), 128, 4) and address % 16 == 0
    assert driver.launches[0][2] == (*[0] * 16, *[0] * 16)


def test_a_tensor_without_elements_is_a_zero(library):
    driver = fake_cuda.Driver()
    launcher = launch.Launcher(driver)
    for _ in range(2):
        launcher.launch(program(), call(shape=(0, 64)), 7)
    ((zeros, content, _, _),) = driver.written
    assert content == (0,) * 16
    one = TensorShape((1, 1), (2, 16))
    assert {address for _, address in driver.encoded[:3]} == {zeros}
    assert driver.encoded[0][0].shape == one and driver.encoded[3][1] == zeros + 64


def test_no_memory_is_allocated_while_a_graph_is_captured(library):
    driver = fake_cuda.Driver()
    launcher = launch.Launcher(driver)
    launcher.launch(program(), call(), 7)
    driver.captured.add(7)
    with pytest.raises(EnvironmentProblem) as caught:
        launcher.launch(program(), call(shape=(0, 64)), 7)
    assert caught.value.code == "TS510"


@pytest.mark.parametrize(
    ("sizes", "steps", "item", "expected"),
    [
        ((300, 64), (64, 1), 2, ((64, 300), (2, 128))),
        ((2, 300, 8, 64), (153600, 512, 64, 1), 2, ((64, 8, 300, 2), (2, 128, 1024, 307200))),
        ((1, 5, 8), (3, 8, 1), 4, ((8, 5, 1), (4, 32, 160))),
        ((1, 3), (7, 1), 4, ((3, 1), (4, 16))),
        ((100,), (1,), 2, ((100, 1), (2, 208))),
        ((4, 0), (0, 1), 2, ((0, 4), (2, 16))),
    ],
)
def test_shapes(sizes, steps, item, expected):
    found = TensorShape.of(sizes, steps, item)
    assert (found.sizes, found.strides) == expected
    found.check("x")


@pytest.mark.parametrize(
    ("sizes", "steps", "message"),
    [
        ((4, 64), (0, 1), "axis 0 of 'x' has a stride of 0 bytes"),
        ((4, 64), (-64, 1), "axis 0 of 'x' has a stride of -128 bytes"),
        ((2, 64), (1 << 40, 1), "which TMA cannot take"),
        ((1 << 31, 64), (64, 1), "axis 0 of 'x' has 2147483648 elements, and TMA reaches 2147483647"),
    ],
)
def test_tensors_that_no_map_describes(sizes, steps, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        TensorShape.of(sizes, steps, 2).check("x")
    assert caught.value.code == "TS611"


def test_strides_that_no_map_holds():
    """Backwards, and of one row that stands for many: what a program is compiled for calls such strides odd."""
    wide = np.zeros((6, 5, 64), np.float32)
    parameters = (Parameter("x", "tensor", "f32", (symbol("A"), M, N)),)

    def unmapped(x):
        return bind("k", parameters, (x,), {}).unmapped

    assert unmapped(wide) == unmapped(wide[::2, :, :32]) == unmapped(wide[:1, ::2]) == []
    assert unmapped(wide[:, ::-1]) == ["x.stride1"]
    assert unmapped(np.broadcast_to(wide[:1], (4, 5, 64))) == ["x.stride0"]


# ---- the driver's encoder ------------------------------------------------------------------------------------------


class Bindings:
    """The names of cuda-bindings, with an encoder that writes down its arguments."""

    def __init__(self, status=0):
        real = pytest.importorskip("cuda.bindings.driver")
        names = ("CUtensorMapDataType", "CUtensorMapInterleave", "CUtensorMapSwizzle", "CUtensorMapL2promotion",
                 "CUtensorMapFloatOOBfill", "cuuint64_t", "cuuint32_t")  # fmt: skip
        self.__dict__.update({name: getattr(real, name) for name in names})
        self.status, self.calls = status, []
        self.memory = ctypes.create_string_buffer(bytes(range(128)), 128)

    def cuTensorMapEncodeTiled(self, *arguments):  # noqa: N802
        self.calls.append(arguments)
        return self.status, SimpleNamespace(getPtr=lambda: ctypes.addressof(self.memory))


def test_what_the_driver_is_asked_for(monkeypatch):
    bindings = Bindings()
    monkeypatch.setattr(tensor_maps, "_bindings", lambda: bindings)
    for item, swizzle in [(2, 128), (1, 64), (4, 32), (8, 0)]:
        encoding = Encoding(shape(64, 300, item=item), (16, 32), swizzle, item)
        assert launch.CupyDriver().encode(encoding, 4096) == bytes(range(128))
        kind, rank, address, sizes, strides, box, steps, *_ = bindings.calls[-1]
        assert (kind.name, rank, address) == (f"CU_TENSOR_MAP_DATA_TYPE_UINT{8 * item}", 2, 4096)
        numbers = [[int(value) for value in values] for values in (sizes, strides, box, steps)]
        assert numbers == [[64, 300], [64 * item], [16, 32], [1, 1]]
        names = {value.name for value in bindings.calls[-1][7:]}
        assert f"CU_TENSOR_MAP_SWIZZLE_{f'{swizzle}B' if swizzle else 'NONE'}" in names
    monkeypatch.setattr(tensor_maps, "_bindings", lambda: Bindings(status=1))
    with pytest.raises(InternalError, match="the driver makes no tensor map"):
        tensor_maps.encode(Encoding(shape(64, 300), (64, 32), 128, 2), 4096)


def test_without_cuda_bindings(monkeypatch):
    tensor_maps._bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(EnvironmentProblem, match="cuda-bindings, which makes tensor maps, is missing") as caught:
        tensor_maps.encode(Encoding(shape(64, 300), (64, 32), 128, 2), 4096)
    assert caught.value.code == "TS515" and "tessera[cuda12]" in CODES["TS515"].remedy


def test_a_launch_of_an_emitted_kernel():
    """From Target IR to a launch: the maps that the encoder was asked for lead to the right sums."""
    text = (Path(__file__).parents[1] / "codegen_cuda" / "texts" / "tma_add.tsir").read_text(encoding="utf-8")
    made = compile_kernel(parse_module(text), {"M": 150}, "sm_90a").program
    library = executing_cuda.Library()
    driver = executing_cuda.Driver(library)
    driver.programs[made.cubin] = made
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((150, 128)).astype(bf16.numpy) for _ in range(2))
    ADAPTERS.insert(0, library)
    try:
        out = library.empty((150, 128), bf16, 0)
        binding = bind("add", made.parameters, (library.array(x), library.array(y), out), {})
        launch.Launcher(driver).launch(made, binding, 7)
    finally:
        ADAPTERS.remove(library)
    np.testing.assert_array_equal(out.memory, (x.astype(np.float32) + y.astype(np.float32)).astype(bf16.numpy))
