"""The four kernels on every lane that runs without a GPU: equal bit for bit, and right by the reference."""

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.frontend.grid import apply_grid
from tessera.passes import PIPELINE
from tessera.runtime.compare import check
from tessera.runtime.interpreter import interpret
from tessera.runtime.reference import reference
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of
from tests.suite import GATING, SUITE, identify, load
from tests.text_law import held_to_its_text


@pytest.mark.parametrize("case", SUITE, ids=identify)
def test_interpreter_and_emulated_cuda_agree_and_are_right(case):
    name, dims = case
    compilation = compile_kernel(load(name), dims)
    kernel = compilation.stages[0].module.kernel()
    expected = outputs_of(kernel, dims, "tile")
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), dims, "target"), "lowering")
    assert_same_bits(expected, emulated(compilation, dims), "the emitted CUDA")
    bars = reference(kernel, arguments_of(kernel, dims), dims)
    for output, array in expected.items():
        result = check(array, bars[output])
        assert result.ok and not result.rms_rule, (output, result)


@pytest.mark.parametrize(
    "case",
    [
        GATING[0],
        GATING[-1],
        SUITE[-1],
        ("softmax_bf16", {"M": 17, "N": 25}),
        ("vector_add", {"N": 1000}),
        ("matmul_tn_bf16", {"M": 33, "N": 100, "K": 129}),
    ],
    ids=identify,
)
def test_every_pass_keeps_every_bit_and_the_text_law(case):
    name, dims = case
    compilation = compile_kernel(load(name), dims)
    assert len(compilation.stages) == 1 + len(PIPELINE)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    before = ""
    for stage in compilation.stages:
        text = held_to_its_text(stage.module, stage.name)
        if text != before:
            assert_same_bits(expected, outputs_of(stage.module.kernel(), dims, stage.module.level), stage.name)
        before = text


@pytest.mark.parametrize(
    "dims", [{"B": 1, "S": 150, "D": 64}, {"B": 3, "S": 127, "D": 60}, {"B": 2, "S": 129, "D": 100}], ids=str
)
def test_all_ids_and_strided_ids_give_the_same_bits(dims):
    """The document's windows overlap when every id runs; the inferred grid runs every 128th."""
    definition = load("gating_function_kernel")
    compilation = compile_kernel(definition, dims)
    strided = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    every = apply_grid(compilation.stages[0].module.kernel(), (dims["B"], dims["S"]))
    assert_same_bits(strided, outputs_of(every, dims, "tile"), "running every id")
    if dims["S"] * dims["D"] < 10000:
        full = compile_kernel(definition, dims, grid=(dims["B"], dims["S"]))
        assert_same_bits(strided, emulated(full, dims), "running every id on the emitted CUDA")


def test_the_gate_equals_a_numpy_model():
    """F2 against plain float64 NumPy: gated = delta * sigmoid(exp(-0.1 d) * delta @ W), one rounding at the end."""
    dims = {"B": 2, "S": 150, "D": 128}
    kernel = compile_kernel(load("gating_function_kernel"), dims).stages[0].module.kernel()
    arguments = arguments_of(kernel, dims)
    arguments["gate_params"] = (arguments["gate_params"].astype(np.float32) / 11).astype(arguments["gate_params"].dtype)
    interpret(kernel, arguments, dims)
    delta, weights = (arguments[name].astype(np.float64) for name in ("delta", "gate_params"))
    model = delta / (1 + np.exp(-np.exp(-0.1 * 3) * (delta @ weights)))
    error = np.abs(arguments["output"].astype(np.float64) - model)
    assert (error <= 2.0**-8 * np.abs(model) + 1e-6).all()
