"""Written calls with tensors of torch, on a GPU that is not there: tensors of the host count as its own."""
# ruff: noqa: F821  names of dims are strings in annotations

import ctypes

import numpy as np
import pytest

import tessera as ts
from bench import stub_cuda
from tessera import Tensor, tile
from tessera.errors import ArgumentError, TesseraError
from tessera.frontend.definition import MISSED
from tessera.runtime import functions, warm_arrays, warm_code
from tests.runtime.test_plan import cold, make_scale  # noqa: F401
from tests.runtime.test_warm_code import CALLS, words

torch = pytest.importorskip("torch")
pytest.importorskip("cupy")


@pytest.fixture(params=["compared by torch", "attribute by attribute"])
def stub(request, monkeypatch):
    """A driver; calls ask torch's own check about tensors, or look at what they are."""
    if request.param == "attribute by attribute":
        monkeypatch.setattr(warm_arrays, "_torch_checks", lambda torch: False)
    with stub_cuda.stubbed(stub_cuda.TORCH_DEVICE, records=True) as made:
        made.compares = request.param == "compared by torch"
        yield made


def pointers(*tensors):
    return [tensor.data_ptr() for tensor in tensors]


def new(*shape, **options):
    return torch.ones(shape or (40, 64), **options)


def repeat(kernel, *arguments):
    for _ in range(CALLS):
        result = kernel(*arguments)
    return result


def test_torch_compares_tensors_as_it_should():
    """If not, nothing is wrong but slower: this says that the check of this version is used."""
    assert warm_arrays._torch_checks(torch)


def test_a_torch_without_that_check():
    class Torch:
        empty, int32, bfloat16, nn = torch.empty, torch.int32, torch.bfloat16, torch.nn

    assert warm_arrays._torch_checks(Torch) is warm_arrays._torch_checks(torch)  # which asks the imported one
    assert not warm_arrays._torch_checks(object())


def test_tensors(stub, cold):  # noqa: F811
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    (written,) = scale.written
    assert ("SAME_TENSORS(a0, a1, a2)" in written.source) == stub.compares
    a, b, c = new(), new(), new()
    scale(a, b, c, 5)
    assert words(stub, 5) == [*pointers(a, b, c), 40, 5] and len(cold) == 1 and scale.written == (written,)
    assert written((a, b, c, 5), None) is None
    for other in [
        (new(40, 32), b, c, 5),
        (new(40, 64, 1), b, c, 5),
        (new(dtype=torch.int32), b, c, 5),
        (new(dtype=torch.float64), b, c, 5),
        (new(64, 40).T, b, c, 5),
        (new(40, 128)[:, ::2], b, c, 5),
        (new(40 * 64 + 1)[1:].view(40, 64), b, c, 5),
        (torch.nn.Parameter(a), b, c, 5),
        (a.numpy(), b, c, 5),
        (new(device="meta"), b, c, 5),
        (a.to_sparse(), b, c, 5),
        (None, b, c, 5),
        (3, b, c, 5),
        (a, b, a, 5),
        (a, b, c, 5.0),
        (a, b, c, True),
        (a, b, c, 2**63),
        (a, b, c),
        (a, b, c, 5, 0.5),
    ]:
        assert written(other, None) is MISSED
    assert written((a, b, c, 5), object()) is MISSED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y, out: (new(dtype=torch.int32), y, out, 3), "'x' must have dtype f32"),
        (lambda x, y, out: (new(40, 32), y, out, 3), "the dim D is"),
        (lambda x, y, out: (x, y, x, 3), "shares memory"),
        (lambda x, y, out: (x, y, out, 3.0), "takes an int"),
        (lambda x, y, out: (x, y, out, 2**63), "does not fit"),
        (lambda x, y, out: (x.to_sparse(), y, out, 3), "layout"),
    ],
)
def test_tensors_that_are_wrong(stub, make, message):
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    launched = len(stub.queued)
    with pytest.raises(ArgumentError, match=message):
        scale(*make(x, y, out))
    assert len(stub.queued) == launched


def test_one_tensor_twice(stub, cold):  # noqa: F811
    scale, x, out = make_scale(), new(), new()
    repeat(scale, x, x, out, 3)
    assert len(scale.written) == 1 and "SAME_TENSORS" not in scale.written[0].source
    y = new()
    scale(x, y, out, 3)
    assert words(stub, 3) == pointers(x, y, out) and len(cold) == 1


def test_a_tensor_that_requires_a_gradient_and_other_modes(stub, cold):  # noqa: F811
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    needing = new(requires_grad=True)
    for count in range(CALLS):
        scale(needing, y, out, count)
        assert words(stub, 5) == [*pointers(needing, y, out), 40, count]
    with torch.inference_mode():
        for count in range(CALLS):
            scale(x, y, out, count)
            assert words(stub, 5) == [*pointers(x, y, out), 40, count]
    assert len(cold) == 1 and len(scale.written) <= warm_code.MOST_OF_A_PLAN


def test_outputs_that_are_left_out(stub, cold):  # noqa: F811
    scale, x, y = make_scale(), new(), new()
    for _ in range(CALLS + 2):
        made = scale(x, y, 3)
        assert type(made) is torch.Tensor and made.shape == (40, 64) and made.dtype is torch.float32
        assert made.is_contiguous() and not made.requires_grad and words(stub, 3) == pointers(x, y, made)
    assert len(scale.written) == 1 and "EMPTY_STRIDED(" in scale.written[0].source and len(cold) == 1


def test_lists(stub, cold):  # noqa: F811
    @ts.kernel
    def total(xs: list[Tensor["N", ts.f32]], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        p = tile.program_id(0) * 16
        acc = tile.load(y[p : p + 16])
        for i in tile.static_range(len(xs)):
            acc = acc + tile.load(xs[i][p : p + 16])
        tile.store(acc, out[p : p + 16])

    a, b, y, out = (new(64) for _ in range(4))
    repeat(total, [a, b], y, out)
    total([b, a], y, out)
    assert len(total.written) == 1 and len(cold) == 1 and words(stub, 3) == pointers(b, y, out)
    first = ctypes.cast(stub.queued[-1][9], ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))[0]
    assert [first[0], first[1]] == pointers(b, a)
    launched = len(stub.queued)
    for wrong in ([a, 3], [a, out], [a, new(32)], a, 3):
        with pytest.raises(ArgumentError):
            total(wrong, y, out)
    assert len(stub.queued) == launched


def make_steps(count):
    @ts.kernel
    def bend(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(x[row : row + 16] * t, out[row : row + 16])

    @ts.function
    def steps(x: Tensor["M", "N", ts.f32], t: float = 1.5) -> Tensor["M", "N", ts.f32]:
        for _ in range(count):
            x = bend(x, t)
        return x

    return steps


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_functions(stub, count, graphs):
    steps, x = ts.compile(make_steps(count), graphs=graphs), new(16, 64)
    for number in range(CALLS + 4):
        made = steps(x)
        assert type(made) is torch.Tensor and made.shape == (16, 64)
        queued = steps.last_run.replayed or made.data_ptr() in words(stub, 4)
        assert queued, number
    own = steps._definition
    assert len(own.written) == 1 and "EMPTY_STRIDED(" in own.written[0].source
    assert bool(stub.replayed) == (graphs and count > 1)
    with pytest.raises(TesseraError):
        steps(new(16, 64, dtype=torch.int32))
    with pytest.raises(TesseraError):
        steps(new(16))
    view = new(16, 128)[:, ::2]
    launched = len(stub.queued)
    other = steps(new(32, 64))
    assert len(stub.queued) == launched + count and other.shape == (32, 64) and view.shape == x.shape
    assert functions.last_run(own) is not None


def test_the_current_stream_of_torch_is_asked_for_by_every_call(monkeypatch):
    streams = iter(range(100, 200))
    monkeypatch.setattr(stub_cuda.TorchOnHost, "stream_reader", lambda self: lambda device: next(streams))
    monkeypatch.setattr(stub_cuda.TorchOnHost, "stream", lambda self, device: next(streams))
    with stub_cuda.stubbed(stub_cuda.TORCH_DEVICE, records=True) as stub:
        scale, x, y, out = make_scale(), new(), new(), new()
        for _ in range(CALLS + 3):
            scale(x, y, out, 3)
        assert len(scale.written) == 1 and len({one[8] for one in stub.queued}) == CALLS + 3


def test_memory_of_numpy_is_still_refused(stub):
    scale, x, y, out = make_scale(), new(), new(), new()
    repeat(scale, x, y, out, 3)
    with pytest.raises(ArgumentError, match="'x' is on the host"):
        scale(np.ones((40, 64), np.float32), y, out, 3)
