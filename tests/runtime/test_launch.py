"""Binding of arguments, and launches against a driver that only writes down what it is asked to do."""

import ctypes
import struct
from dataclasses import replace

import numpy as np
import pytest

from tessera.dtypes import bf16
from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.ir.dims import cdiv, minimum, symbol
from tessera.ir.programs import MULTIPROCESSORS
from tessera.program import Argument, Launch, Parameter, Program
from tessera.runtime import launch
from tessera.runtime.bind import bind, unify

B, S, D = symbol("B"), symbol("S"), symbol("D")
GATE = (
    Parameter("delta", "tensor", "bf16", (B, S, D)),
    Parameter("params", "tensor", "bf16", (D, D)),
    Parameter("distance", "scalar", "i64"),
    Parameter("output", "tensor", "bf16", (B, S, D), "out"),
)


def tensor(*shape, dtype=bf16.numpy):
    return np.ones(shape, dtype)


def gate(delta=None, params=None, distance=3, **kwargs):
    delta = tensor(2, 5, 8) if delta is None else delta
    return bind("gate", GATE, (delta, tensor(8, 8) if params is None else params, distance), kwargs)


def test_an_output_left_out_is_allocated():
    binding = gate()
    assert binding.dims == {"B": 2, "S": 5, "D": 8} and binding.scalars == {"distance": 3}
    assert binding.omitted == {"output": (2, 5, 8)} and binding.device is None
    made = binding.allocate()
    assert made.shape == (2, 5, 8) and made.dtype == bf16.numpy and made is binding.arrays["output"]


def test_an_output_that_is_passed_is_used():
    output = tensor(2, 5, 8)
    binding = gate(output=output)
    assert binding.allocate() is None and binding.arrays["output"] is output


def test_two_outputs_make_a_tuple_and_may_stand_before_inputs():
    parameters = (
        Parameter("a", "tensor", "f32", (S,), "out"),
        Parameter("x", "tensor", "f32", (S,)),
        Parameter("b", "tensor", "f32", (S * 2,), "out"),
    )
    x = tensor(3, dtype=np.float32)
    for args, kwargs in [((x,), {}), ((), {"x": x})]:
        made = bind("pair", parameters, args, kwargs).allocate()
        assert [a.shape for a in made] == [(3,), (6,)]
    a = tensor(3, dtype=np.float32)
    binding = bind("pair", parameters, (a, x), {})
    assert binding.arrays["a"] is a and list(binding.omitted) == ["b"]


def test_positional_arguments_that_leave_outputs_out():
    x, y = Parameter("x", "tensor", "f32", (S,)), Parameter("y", "tensor", "f32", (S,))
    out, n = Parameter("out", "tensor", "f32", (S,), "out"), Parameter("n", "scalar", "i64")
    a, b, c = (tensor(3, dtype=np.float32) for _ in range(3))
    for parameters, args, expected in [
        ((x, out, y), (a, b), {"x": a, "y": b}),
        ((x, out, y), (a, b, c), {"x": a, "out": b, "y": c}),
        ((x, y, out), (a, b), {"x": a, "y": b}),
        ((x, out), (a, b), {"x": a, "out": b}),
    ]:
        bound = bind("k", parameters, args, {}).arrays
        assert bound.keys() == expected.keys() and all(bound[name] is expected[name] for name in expected)
    assert bind("k", (x, out, n), (a, 4), {}).scalars == {"n": 4}
    bound = bind("k", (x, out, n), (a, b), {}, {"n": 7})
    assert bound.arrays["out"] is b and bound.scalars == {"n": 7}


def test_defaults_of_scalars():
    parameters = (Parameter("x", "tensor", "f32", (S,)), Parameter("scale", "scalar", "f32"))
    x = tensor(3, dtype=np.float32)
    assert bind("k", parameters, (x,), {}, {"scale": 0.5}).scalars == {"scale": 0.5}
    assert bind("k", parameters, (x, 2), {}, {"scale": 0.5}).scalars == {"scale": 2.0}
    with pytest.raises(ArgumentError, match="needs the argument 'scale'"):
        bind("k", parameters, (x,), {})


def overlapping():
    memory = tensor(3, 5, 8)
    return {"delta": memory[:2], "output": memory[1:]}


def read_only():
    array = tensor(2, 5, 8)
    array.flags.writeable = False
    return array


def unaligned():
    return np.zeros(2 * 5 * 8 * 2 + 1, np.uint8)[1:].view(bf16.numpy).reshape(2, 5, 8)


def between():
    return np.lib.stride_tricks.as_strided(tensor(2, 5, 16), (2, 5, 8), (160, 32, 3))


def folded():
    return np.lib.stride_tricks.as_strided(tensor(2, 5, 8), (2, 5, 8), (80, 0, 2))


WRONG = [
    ({"params": tensor(4, 4)}, "TS302", r"the dim D is 8 on axis 2 of 'delta' but 4 on axis 0 of 'params'"),
    ({"params": tensor(8, 4)}, "TS302", r"the dim D is 8 on axis 2 of 'delta' but 4 on axis 1 of 'params'"),
    ({"output": tensor(2, 6, 8)}, "TS302", r"the dim S is 5 .* but 6 on axis 1 of 'output'"),
    ({"delta": tensor(10, 8)}, "TS304", r"'delta' has 3 axes \[B, S, D\], but .* 2 axes was passed, \[10, 8\]"),
    ({"delta": tensor(2, 5, 8, dtype=np.float32)}, "TS204", "'delta' must have dtype bf16, but .* has f32"),
    ({"delta": tensor(2, 5, 8, dtype=np.complex64)}, "TS204", "must have dtype bf16, but .* has complex64"),
    ({"delta": between()}, "TS603", "'delta' has strides that are no whole number of its 2-byte elements"),
    ({"output": folded()}, "TS602", r"'output' is written .* share memory: its strides are \[40, 0, 1\]"),
    ({"delta": "no"}, "TS604", "'delta' must be an array of NumPy, CuPy, torch or JAX, .* which str has not"),
    ({"delta": [1, 2]}, "TS203", "'delta' is one tensor, but a list of 2 was passed"),
    ({"delta": 1.5}, "TS203", "'delta' is a tensor of bf16, but the number 1.5"),
    ({"delta": unaligned()}, "TS604", "'delta' starts at an address"),
    ({"distance": 1.5}, "TS203", "'distance' takes an int, but the float 1.5 was passed"),
    ({"distance": True}, "TS203", "'distance' takes an int, but the bool True"),
    ({"distance": tensor(3)}, "TS203", "'distance' takes an int, but the ndarray was passed"),
    ({"distance": 2**63}, "TS401", "does not fit 64 bits"),
    ({"output": read_only()}, "TS604", "'output' is written by the kernel, but .* read-only"),
    ({"detla": 1}, "TS601", "gate has no parameter 'detla' .*did you mean 'delta'"),
    (overlapping(), "TS602", "'output' is written by gate and shares memory with 'delta'"),
]


@pytest.mark.parametrize(("change", "code", "message"), WRONG, ids=[f"{number}" for number in range(len(WRONG))])
def test_wrong_calls(change, code, message):
    call = {"delta": tensor(2, 5, 8), "params": tensor(8, 8), "distance": 3, **change}
    with pytest.raises(ArgumentError, match=message) as caught:
        bind("gate", GATE, (), call)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "gate needs the argument 'delta' .it takes delta, params, distance."),
        ((tensor(2, 5, 8), tensor(8, 8)), {}, "needs the argument 'distance'"),
        ((1, 2, 3, 4, 5), {}, "takes 4 arguments .* but 5 were given"),
        ((tensor(2, 5, 8), tensor(8, 8)), {"delta": tensor(2, 5, 8)}, "'delta' twice"),
    ],
)
def test_missing_and_unexpected_arguments(args, kwargs, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        bind("gate", GATE, args, kwargs)
    assert caught.value.code == "TS601"


def test_an_output_whose_dim_is_unknown_must_be_passed():
    parameters = (Parameter("x", "tensor", "f32", (S,)), Parameter("y", "tensor", "f32", (S, D), "out"))
    with pytest.raises(ArgumentError, match="needs the argument 'y': it is an output, but its dim D"):
        bind("k", parameters, (tensor(3, dtype=np.float32),), {})


def test_expressions():
    parameters = (Parameter("x", "tensor", "f32", (S * 2 + 1,)), Parameter("y", "tensor", "f32", (cdiv(S, 4), 3)))
    assert unify(parameters, {"x": (11,), "y": (2, 3)}) == {"S": 5}
    with pytest.raises(ArgumentError, match=r"axis 0 of 'x' has size 10, which 2.S . 1 is for no"):
        unify(parameters, {"x": (10,), "y": (2, 3)})
    with pytest.raises(ArgumentError, match=r"axis 0 of 'y' has size 3, but cdiv.S, 4. is 2 because S is 5 by 2"):
        unify(parameters, {"x": (11,), "y": (3, 3)})
    with pytest.raises(ArgumentError, match="axis 1 of 'y' must have size 3 but has 4") as caught:
        unify(parameters, {"x": (11,), "y": (2, 4)})
    assert caught.value.code == "TS301"
    with pytest.raises(ArgumentError, match="axis 0 of 'x' is B.S, where the dim B is known from no argument"):
        unify((Parameter("x", "tensor", "f32", (B * S,)),), {"x": (6,)})


def test_alignment_is_that_of_the_addresses():
    memory = np.zeros(64, np.float32)
    start = memory[(-memory.ctypes.data // 4) % 4 :]
    parameters = (Parameter("x", "tensor", "f32", (S,)), Parameter("y", "tensor", "f32", (S,), "out"))
    for skip, expected in [(0, 16), (1, 4), (2, 8), (3, 4), (4, 16)]:
        assert bind("k", parameters, (start[skip : skip + 8],), {}).alignment == {"x": expected, "y": 16}


# ---- launches ---------------------------------------------------------------------------------------------------


CAPTURED = 99  # a stream


class FakeDriver:
    def __init__(self):
        self.loaded, self.functions, self.launches = [], [], []

    def load(self, cubin, device):
        self.loaded.append((cubin, device))
        return cubin

    def function(self, module, kernel, shared_bytes, device):
        self.functions.append((kernel, shared_bytes, device))
        return kernel

    def capturing(self, stream, device):
        return stream == CAPTURED

    def launch(self, function, grid, threads, arguments, shared_bytes, stream, device):
        # Each argument as far as the next one begins.
        table = (ctypes.c_void_p * len(arguments.addresses)).from_address(arguments.address)
        ends = [*table[1:], ctypes.addressof(arguments.slots) + len(arguments.slots)]
        slots = [ctypes.string_at(start, end - start) for start, end in zip(table, ends, strict=True)]
        self.launches.append((function, grid, threads, slots, shared_bytes, stream, device))


def program(**changes):
    step = Launch(
        "gate_0",
        (B, cdiv(S, 128)),
        256,
        65536,
        (
            Argument("pointer", "delta"),
            Argument("pointer", "params"),
            Argument("pointer", "output"),
            Argument("size", size=S),
            Argument("scalar", "distance"),
        ),
    )
    fields = {
        "name": "gate",
        "arch": "sm_80",
        "parameters": GATE,
        "dims": ("B", "S", "D"),
        "static": {"D": 8},
        "divisors": {},
        "launches": (step,),
        "cuda": "",
        "cubin": b"cubin",
        **changes,
    }
    return Program(**fields)


def on_gpu(binding, device=0):
    """The binding as if its host arrays lived on a GPU."""
    binding.allocate()
    binding.infos = {name: replace(info, device=device) for name, info in binding.infos.items()}
    return binding


def test_what_is_launched():
    driver = FakeDriver()
    launcher = launch.Launcher(driver)
    binding = on_gpu(gate(delta=tensor(2, 300, 8)), device=1)
    launcher.launch(program(), binding, 77)
    ((kernel, grid, threads, arguments, shared, stream, device),) = driver.launches
    assert (kernel, grid, threads, shared, stream, device) == ("gate_0", (2, 3, 1), 256, 65536, 77, 1)
    pointers = [binding.infos[name].pointer for name in ("delta", "params", "output")]
    assert arguments == [struct.pack("<q", number) for number in (*pointers, 300, 3)]


def test_floats_are_passed_as_f32():
    parameters = (Parameter("x", "tensor", "f32", (S,)), Parameter("scale", "scalar", "f32"))
    step = Launch("k", (1,), 32, 0, (Argument("scalar", "scale"),))
    binding = bind("k", parameters, (tensor(3, dtype=np.float32), 0.1), {})
    driver = FakeDriver()
    launch.Launcher(driver).launch(program(parameters=parameters, launches=(step,)), on_gpu(binding), 0)
    assert driver.launches[0][3] == [np.float32(0.1).tobytes() + bytes(4)]


def test_a_list_is_one_argument():
    parameters = (
        Parameter("xs", "list", "f32", (S,), length=3),
        Parameter("none", "list", "f32", (S,)),
        Parameter("ys", "list", "f32", (S,), length=1),
        Parameter("scale", "scalar", "f32"),
        Parameter("out", "tensor", "f32", (S,), "out"),
    )
    steps = [
        Launch("a", (1,), 32, 0, (Argument("pointers", "none"), Argument("size", size=S), Argument("pointers", "xs"))),
        Launch(
            "b",
            (1,),
            32,
            0,
            (
                Argument("pointers", "xs"),
                Argument("pointer", "out"),
                Argument("pointers", "ys"),
                Argument("size", size=cdiv(S, 2)),
                Argument("scalar", "scale"),
            ),
        ),
    ]
    xs, out = [tensor(6, dtype=np.float32) for _ in range(4)], tensor(6, dtype=np.float32)
    binding = bind("k", parameters, (xs[:3], [], xs[3:], 0.5, out), {})
    driver = FakeDriver()
    launch.Launcher(driver).launch(program(parameters=parameters, launches=steps), on_gpu(binding), 0)
    addresses = struct.pack("<3Q", *(x.ctypes.data for x in xs[:3]))
    assert driver.launches[0][3] == [bytes(8), struct.pack("<q", 6), addresses]
    last = [struct.pack("<Q", x.ctypes.data) for x in (out, xs[3])]
    assert driver.launches[1][3] == [addresses, *last, struct.pack("<q", 3), struct.pack("<f4x", 0.5)]


def test_a_module_is_loaded_once_per_device():
    driver = FakeDriver()
    launcher = launch.Launcher(driver)
    for device in (0, 0, 1):
        launcher.launch(program(), on_gpu(gate(), device), 0)
    assert driver.loaded == [(b"cubin", 0), (b"cubin", 1)]
    assert driver.functions == [("gate_0", 65536, 0), ("gate_0", 65536, 1)]
    assert len(driver.launches) == 3


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_nothing_is_launched_for_empty_tensors(shape):
    driver = FakeDriver()
    launch.Launcher(driver).launch(program(), on_gpu(gate(delta=tensor(*shape))), 0)
    assert driver.launches == [] and driver.loaded == []


def test_a_grid_that_cuda_cannot_hold():
    binding = on_gpu(gate())
    binding.dims["S"] = 128 * 65536
    with pytest.raises(ArgumentError, match="gate_0 needs 65536 programs along grid axis 1, where CUDA allows 65535"):
        launch.Launcher(FakeDriver()).launch(program(), binding, 0)


def test_a_persistent_grid_is_that_of_the_device():
    class Counting(FakeDriver):
        asked = 0

        def multiprocessors(self, device):
            self.asked += 1
            return device + 2

    driver = Counting()
    launcher = launch.Launcher(driver)
    (step,) = program().launches
    grid = minimum(B * cdiv(S, 128), symbol(MULTIPROCESSORS) * 2)
    persistent = program(launches=(replace(step, grid=(grid,)),))
    for device, rows, expected in [(0, 300, 4), (0, 1, 2), (1, 300, 6), (1, 600, 6), (0, 0, None)]:
        binding = on_gpu(gate(delta=tensor(2, rows, 8)), device)
        before = len(driver.launches)
        stream = CAPTURED if rows == 600 else 0  # asks the stream for nothing
        launcher.launch(persistent, binding, stream)
        assert [launched[1] for launched in driver.launches[before:]] == [(expected, 1, 1)] * (expected is not None)
        found = launcher.grids(persistent, binding.dims, device)
        assert found == [("gate_0", (expected,))] * (expected is not None)
    assert driver.asked == 2
    launcher.launch(program(), on_gpu(gate(), 5), 0)
    assert driver.asked == 2, "another grid needs no such number"


def test_arrays_on_the_host_are_not_launched_on():
    with pytest.raises(ArgumentError, match="live on the host"):
        launch.Launcher(FakeDriver()).launch(program(), gate(), 0)


def test_no_code_is_loaded_while_a_graph_is_captured():
    driver = FakeDriver()
    launcher = launch.Launcher(driver)
    with pytest.raises(EnvironmentProblem, match="gate_0 is called for the first time .* captured") as caught:
        launcher.launch(program(), on_gpu(gate()), CAPTURED)
    assert caught.value.code == "TS510" and driver.loaded == []
    launcher.launch(program(), on_gpu(gate()), 0)
    launcher.launch(program(), on_gpu(gate(delta=tensor(3, 7, 8))), CAPTURED)
    assert len(driver.launches) == 2 and len(driver.loaded) == 1


def test_strides_are_arguments():
    parameters = (
        Parameter("x", "tensor", "f32", (S, D), strides=(symbol("x.stride0"), 1)),
        Parameter("y", "tensor", "f32", (S, D), "out"),
    )
    step = Launch("k", (1,), 32, 0, (Argument("pointer", "x"), Argument("size", size=symbol("x.stride0"))))
    memory = tensor(6, 32, dtype=np.float32)
    driver = FakeDriver()
    launcher = launch.Launcher(driver)
    for x, stride in [(memory[:, :8], 32), (memory[::-1, 8:16], -32), (memory[:1, :8], 0), (memory, 32)]:
        binding = on_gpu(bind("k", parameters, (x,), {}))
        launcher.launch(program(parameters=parameters, launches=(step,)), binding, 0)
        assert driver.launches[-1][3] == [struct.pack("<q", x.ctypes.data), struct.pack("<q", stride)]
    with pytest.raises(ArgumentError, match="the rows of 'x' have a stride of 2, where this program needs 1"):
        binding = on_gpu(bind("k", parameters, (memory[:, ::2],), {}))
        launcher.launch(program(parameters=parameters, launches=(step,)), binding, 0)
    with pytest.raises(ArgumentError, match="'y' is not contiguous") as caught:
        binding = on_gpu(bind("k", parameters, (memory[:, :16], memory.copy()[:, ::2]), {}))
        launcher.launch(program(parameters=parameters, launches=(step,)), binding, 0)
    assert caught.value.code == "TS603"


def test_views_that_share_no_element_are_no_aliases():
    parameters = (Parameter("x", "tensor", "f32", (S, D)), Parameter("y", "tensor", "f32", (S, D), "out"))
    memory = tensor(6, 32, dtype=np.float32)
    assert bind("k", parameters, (memory[:, :16], memory[:, 16:]), {}).strides.keys() == {"x", "y"}
    with pytest.raises(ArgumentError, match="'y' is written by k and shares memory with 'x'"):
        bind("k", parameters, (memory[:, :16], memory[:, 15:31]), {})
    with pytest.raises(ArgumentError, match="shares memory"):
        bind("k", parameters, (memory[::-1, :16], memory[:, :16]), {})


def test_mixed_devices(monkeypatch):
    from dataclasses import replace

    from tessera.runtime import bind as module

    real, devices = module.describe, {}

    def describe(value):
        info = real(value)
        return replace(info, device=devices.get(info.shape)) if info else None

    monkeypatch.setattr(module, "describe", describe)
    devices.update({(8, 8): 0})
    with pytest.raises(ArgumentError, match="'delta' is on the host but 'params' is on GPU 0"):
        gate()
    devices.update({(2, 5, 8): 1})
    with pytest.raises(ArgumentError, match="'delta' is on GPU 1 but 'params' is on GPU 0"):
        gate()


def test_no_device(monkeypatch):
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    with pytest.raises(EnvironmentProblem) as caught:
        launch.require_device()
    assert caught.value.code == "TS505"
