"""Bare annotations: the axes and the dtype of a tensor from what the kernel does with it, or from the call."""

import pytest

from tessera.dtypes import bf16, f32
from tessera.errors import SourceError
from tessera.frontend.evaluator import trace
from tessera.frontend.inference import Actual, resolve
from tests.frontend.test_errors import span_of, unmark
from tests.lanes import define
from tests.suite import load


def annotations(definition, *arguments):
    found = resolve(definition, *arguments)
    return {parameter.name: str(parameter.annotation) for parameter in found.parameters}


def kernel(signature, *lines):
    return define("@ts.kernel(grid=lambda d: (4,))\ndef k(" + signature + "):\n" + "".join(f"    {x}\n" for x in lines))


def test_the_kernels_of_the_document():
    source = 'list[Tensor["B", "S", "D", ts.bf16]]'
    gates = 'list[Tensor["D", "D", ts.bf16]]'
    found = annotations(load("parallel_delta_aggregation_kernel"))
    assert (found["source_layers"], found["gate_networks"]) == (source, gates)
    found = annotations(load("fused_delta_gating_kernel"))
    assert (found["source_layers"], found["gate_params"]) == (source, gates)


OUT = 'out: Tensor["M", "N", ts.f32]'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["tile.store(tile.zeros([64, 32]) - x, out[0:64, 0:32])"], "Tensor[64, 32, ts.bf16]"),
        (["tile.store(tile.add(x, out[0:64]), out[0:64])"], 'Tensor[64, "N", ts.bf16]'),
        (["tile.store(x[0:64, 0:32], out[0:64, 0:32])"], 'Tensor["M", "N", ts.bf16]'),
        (["tile.store(x[0, 0:64, 0:32], out[0:64, 0:32])"], 'Tensor["x.0", "x.1", "x.2", ts.bf16]'),
        (["tile.store(tile.mma(tile.cast(out[0:64], ts.bf16), x), out[0:64])"], 'Tensor["N", "N", ts.bf16]'),
        (["tile.store(tile.zeros([64, 32]) @ x, out[0:64])"], 'Tensor[32, "N", ts.bf16]'),
        (["smem = tile.alloc_shared([8, 16], ts.f32)", "tile.copy_async(smem, x)"], "Tensor[8, 16, ts.f32]"),
        (["tile.store(tile.zeros([64, 32]), x)"], "Tensor[64, 32, ts.bf16]"),
        (["pass"], 'Tensor["x.0", ts.bf16]'),
    ],
)
def test_what_ops_ask_of_a_tensor(lines, expected):
    assert annotations(kernel("x: Tensor, " + OUT, *lines))["x"] == expected
    assert annotations(kernel("y: list, " + OUT, "x = y[0]", *lines))["y"] == f"list[{expected.replace('x.', 'y.')}]"


def test_a_call_tells_what_the_kernel_does_not():
    definition = kernel("x: Tensor, " + OUT, "t = tile.load(x)")
    sizes = {"M": 5, "N": 7}
    for shape, expected in [
        ((5, 7), '"M", "N"'),
        ((5, 9), '"M", "N"'),
        ((9, 7), '"M", "N"'),
        ((9, 9), '"x.0", "x.1"'),
        ((5,), '"x.0"'),
    ]:
        assert annotations(definition, sizes, {"x": Actual(shape, f32)})["x"] == f"Tensor[{expected}, ts.f32]"
    assert annotations(definition, {}, {"x": Actual((9, 9), bf16)})["x"] == 'Tensor["M", "N", ts.bf16]'
    definition = kernel("x: Tensor, " + OUT, "t = tile.load(x[0:64])")
    assert annotations(definition, sizes, {"x": Actual((5, 7), f32)})["x"] == 'Tensor["M", "N", ts.f32]'


@pytest.mark.parametrize(
    "line", ["t = «tile.load(x)»", "n = «x.shape»[0]", "t = «x[..., 0:4]»", "t = «tile.exp(x)»", "t = «x + 1.0»"]
)
def test_axes_that_nothing_tells(line):
    text, span = unmark("@ts.kernel\ndef k(x: Tensor, " + OUT + "):\n    " + line + "\n")
    with pytest.raises(SourceError, match="the axes of 'x' are not annotated") as caught:
        trace(define(text))
    assert (caught.value.code, span_of(caught.value)) == ("TS206", span)


def test_a_list_that_is_empty_has_tensors_of_any_axes():
    definition = load("fused_delta_gating_kernel")
    kernel = trace(definition, {"len(source_layers)": 0, "len(gate_params)": 0}).kernel()
    assert not any(op.name == "element" for op in kernel.body.walk())


def test_pinned_constants_stay():
    definition = load("fused_delta_gating_kernel").pinned({"BLOCK_S": 128})
    assert resolve(definition).constants["BLOCK_S"] == 128 and resolve(definition).pinned({"BLOCK_B": 32}).parameters
