"""Operators of torch: right answers, whole graphs under torch.compile, sizes without data, and no gradients."""

import sys

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import EnvironmentProblem, TesseraError
from tessera.frontend.definition import notice_torch
from tessera.runtime import launch


@ts.kernel
def scale(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * t, out[row : row + 16])


@ts.kernel
def accumulate(x: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(out[row : row + 16] + x[row : row + 16], out[row : row + 16])


@ts.function
def gated(
    x: Tensor["B", "S", "D", ts.f32], w: Tensor["D", "D", ts.f32], n: int, t: float = 1.0
) -> Tensor["B", "S", "D", ts.f32]:
    return x * ts.sigmoid(ts.gemm(x, w) * n / t)


@ts.function
def total(xs: list[Tensor], y: Tensor):
    result = y
    for x in xs:
        result = result + x
    return result, ts.sum(result, axis=-1)


def model(torch, x, w):
    """What `layer` computes, by torch itself."""
    r = torch.relu(x)
    a = r * torch.sigmoid(r @ w * 2 / 0.5)
    b = x[0] + a + x
    return b[0] * 2 + 1, b.sum(-1)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "torch.library", None)
    with pytest.raises(EnvironmentProblem, match="makes an operator of torch") as caught:
        ts.torch_op(gated, name="without_torch")
    assert caught.value.code == "TS517"


def test_what_is_no_operator():
    for given, part in ((len, "not <built-in"), (ts.compile(lambda x: x), "whose parameters have no annotations")):
        with pytest.raises(TesseraError, match=part) as caught:
            ts.torch_op(given)
        assert caught.value.code == "TS203"


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    notice_torch()
    return found


@pytest.fixture
def backend(torch):
    """A backend of torch.compile that keeps its graphs in `backend.graphs`."""
    torch._dynamo.reset()

    def keep(graph, examples):
        keep.graphs.append(graph)
        return graph.forward

    keep.graphs = []
    return keep


def operators(graph):
    return [str(node.target) for node in graph.graph.nodes if "tessera" in str(node.target)]


def layer(torch):
    """A function of torch over operators that were made by hand."""
    g, s, k = ts.torch_op(gated), ts.torch_op(total), ts.torch_op(scale)

    def run(x, w):
        b, c = s([g(torch.relu(x), w, 2, t=0.5), x], x[0])
        return k(b[0], 2.0) + 1, c

    return run


def plain_layer(torch):
    """The same that calls the functions themselves."""

    def run(x, w):
        b, c = total([gated(torch.relu(x), w, 2, t=0.5), x], x[0])
        return scale(b[0], 2.0) + 1, c

    return run


def inputs(torch, rows=2):
    torch.manual_seed(rows)
    return torch.randn(rows, 3, 4), torch.randn(4, 4)


def close(torch, found, expected):
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("make", [layer, plain_layer])
def test_eager_calls(torch, make):
    x, w = inputs(torch)
    close(torch, make(torch)(x, w), model(torch, x, w))


@pytest.mark.parametrize("make", [layer, plain_layer])
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_whole_graph(torch, backend, make, dynamic):
    run = torch.compile(make(torch), fullgraph=True, backend=backend, dynamic=dynamic)
    for rows in (2, 3, 5, 7):
        x, w = inputs(torch, rows)
        close(torch, run(x, w), model(torch, x, w))
    if dynamic:
        assert len(backend.graphs) == 1, "sizes are symbols in all of it"
    assert all(len(operators(graph)) == 3 for graph in backend.graphs)


def test_under_aot_autograd(torch, backend):
    x, w = inputs(torch)
    run = torch.compile(plain_layer(torch), fullgraph=True, backend="aot_eager")
    close(torch, run(x, w), model(torch, x, w))


def test_export(torch):
    class Module(torch.nn.Module):
        def forward(self, x, w):
            return layer(torch)(x, w)

    x, w = inputs(torch)
    exported = torch.export.export(Module(), (x, w))
    assert len(operators(exported.graph_module)) == 3
    close(torch, exported.module()(x, w), model(torch, x, w))


def test_torch_checks_the_operators(torch):
    x, w = inputs(torch)
    check = torch.library.opcheck
    check(ts.torch_op(gated).overload, (x, w, 2))
    check(ts.torch_op(total).overload, ([x, x], x[0]))
    check(ts.torch_op(scale).overload, (x[0], 2.0))
    check(ts.torch_op(accumulate).overload, (x[0], torch.zeros(3, 4)))
    check(ts.torch_op(scale, name="tests::scale_into", mutates=["out"]).overload, (x[0], 2.0, torch.zeros(3, 4)))


def test_outputs_that_the_caller_passes(torch, backend):
    into = ts.torch_op(scale, name="tests::scale_into", mutates=["out"])
    adds = ts.torch_op(accumulate)

    def run(x):
        out = torch.empty_like(x)
        assert into(x, 3.0, out) is None
        adds(x, out)
        return out + 1

    x = inputs(torch)[0][0]
    assert torch.equal(run(x), x * 3 + x + 1)
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(x), x * 3 + x + 1)


def test_tensors_without_memory(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, w = torch.empty(2, 3, 4), torch.empty(4, 4)
        for found in (gated(x, w, 1), ts.torch_op(gated)(x, w, 1)):
            assert found.shape == (2, 3, 4) and type(found).__name__ == "FakeTensor"
        assert scale(x[0], 2.0).shape == (3, 4)
        with pytest.raises(TesseraError, match="TS302"):
            gated(x, torch.empty(5, 5), 1)


def test_compiled_functions(torch, backend):
    settings = ts.compile(gated, backend="interpret")

    op = ts.torch_op(settings, name="tests::settings")

    def run(x, w):
        return settings(x, w, 2) + op(x, w, 2)

    x, w = inputs(torch)
    found = torch.compile(run, fullgraph=True, backend=backend)(x, w)
    assert torch.equal(found, 2 * gated(x, w, 2)) and settings.last_run.lane == "interpret"


def test_a_name_is_one_function_s(torch):
    @ts.function
    def twin(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x * 2.0

    first, op = twin, ts.torch_op(twin)
    assert ts.torch_op(twin) is op and op.name == "tessera::twin"

    @ts.function
    def twin(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
        return x * 3.0

    with pytest.raises(TesseraError, match="an operator tessera::twin of another function") as caught:
        ts.torch_op(twin)
    assert caught.value.code == "TS605"
    both = torch.compile(lambda x: first(x) + twin(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(both(torch.ones(4)), torch.full((4,), 5.0))
    for name in ("a b", "a::b::c", "", 3):
        with pytest.raises(TesseraError, match="is an identifier or space::identifier"):
            ts.torch_op(gated, name=name)


def test_there_is_no_gradient(torch):
    x, w = inputs(torch)
    result = ts.torch_op(gated)(x.requires_grad_(), w, 1)
    with pytest.raises(TesseraError, match="tessera::gated has no gradient") as caught:
        result.sum().backward()
    assert caught.value.code == "TS612" and caught.value.loc.file == __file__
    with torch.no_grad():
        assert not ts.torch_op(gated)(x, w, 1).requires_grad


def test_inside_of_a_function(torch):
    op = ts.torch_op(scale)

    @ts.function
    def outer(x: Tensor["M", "N", ts.f32]):
        return op(x, 2.0) + 1.0

    x = inputs(torch)[0][0]
    assert torch.allclose(outer(x), x * 2 + 1)


class TestOnGpu:
    pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not launch.device_count(), reason="needs a GPU")]

    @pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
    def test_torch_compile(self, torch, mode):
        """Inductor's own kernels around ours; "reduce-overhead" captures both in one CUDA graph."""
        torch._dynamo.reset()
        x, w = (one.cuda() for one in inputs(torch))
        plain_layer(torch)(x, w)
        run = torch.compile(plain_layer(torch), fullgraph=True, mode=mode)
        for _ in range(4):
            close(torch, run(x, w), model(torch, x, w))
