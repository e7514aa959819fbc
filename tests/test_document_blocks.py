"""The two aggregation kernels of the language document, as they stand there, on the interpreter.

Both sum, over the layers, a weight times a gated delta; a NumPy model written on its own says what that is.
"""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel, trace_kernel
from tessera.ir import dims as sizes
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.verify import verify
from tessera.runtime.compare import check
from tessera.runtime.execute import reference_bars
from tessera.runtime.interpreter import interpret
from tests.suite import load

BF16 = ml_dtypes.bfloat16
GATES = {"parallel_delta_aggregation_kernel": "gate_networks", "fused_delta_gating_kernel": "gate_params"}


def traced(name, n, **constants):
    lengths = {"len(source_layers)": n, f"len({GATES[name]})": n}
    return trace_kernel(load(name), lengths, constants=constants).kernel()


def made_up(n, b, s, d, seed=0, length=None):
    """Arguments of the first kernel and the dims; the last column of the weights is what counts."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32).astype(BF16)

    length = n + 1 if length is None else length
    arguments = {
        "source_layers": [normal(b, s, d) for _ in range(n)],
        "target_layer": normal(b, s, d),
        "gates": [(normal(d, d) / np.sqrt(d)).astype(BF16) for _ in range(n)],
        "attention_weights": normal(length, length),
    }
    return arguments, {"B": b, "S": s, "D": d, "L": length}


def given_to(name, arguments):
    """The arguments under a kernel's own names, with an output of NaN."""
    own = {GATES[name] if key == "gates" else key: value for key, value in arguments.items()}
    return {**own, "output": np.full(arguments["target_layer"].shape, np.nan, BF16)}


def model(arguments):
    """sum_i A[i, -1] * delta_i * sigmoid(exp(-0.1 (N - i)) delta_i @ W_i), delta_i = bf16(target - source_i)."""
    target, weights = (arguments[name].astype(np.float64) for name in ("target_layer", "attention_weights"))
    total = np.zeros(target.shape)
    layers = list(zip(arguments["source_layers"], arguments["gates"], strict=True))
    for i, (source, gate) in enumerate(layers):
        delta = (target - source.astype(np.float64)).astype(BF16).astype(np.float64)
        logits = np.exp(-0.1 * (len(layers) - i)) * (delta @ gate.astype(np.float64))
        total += weights[i, -1] * delta / (1 + np.exp(-logits))
    return total


def right(kernel, name, arguments, dims):
    """The output on the interpreter, after comparing it with the reference's bars and with the model."""
    given = given_to(name, arguments)
    bars = reference_bars(kernel, given, dims)
    interpret(kernel, given, dims)
    comparison = check(given["output"], bars["output"])
    assert comparison.ok, (name, comparison)
    np.testing.assert_allclose(given["output"].astype(np.float64), model(arguments), rtol=2.0**-8, atol=3e-5)
    return given["output"]


@pytest.mark.parametrize("name", GATES)
def test_the_grid_is_inferred(name):
    blocks = (32, 128) if name == "parallel_delta_aggregation_kernel" else (16, 64)
    kernel = traced(name, 3)
    assert kernel.attributes["grid"] == tuple(
        sizes.cdiv(sizes.symbol(dim), block) for dim, block in zip("BS", blocks, strict=True)
    )
    assert dict(kernel.attributes["parameters"])["output"] == "out"
    assert parse_module(print_module(trace_module(name, 3))).kernel().name == name


def trace_module(name, n):
    module = trace_kernel(load(name), {"len(source_layers)": n, f"len({GATES[name]})": n})
    verify(module)
    return module


@pytest.mark.parametrize(
    ("n", "b", "s", "d"),
    [
        (0, 2, 150, 16),
        (1, 1, 1, 64),
        (1, 3, 127, 16),
        (2, 1, 150, 60),
        (3, 2, 129, 16),
        (3, 1, 150, 64),
        (8, 1, 20, 16),
    ],
)
def test_both_kernels_are_right_and_equal(n, b, s, d):
    arguments, dims = made_up(n, b, s, d)
    outputs = [right(traced(name, n), name, arguments, dims) for name in GATES]
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_more_weights_than_layers_count_from_the_last_column():
    arguments, dims = made_up(2, 1, 40, 16, length=5)
    outputs = [right(traced(name, 2), name, arguments, dims) for name in GATES]
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_every_point_of_the_space_traces_and_the_blocks_do_not_show():
    definition = load("fused_delta_gating_kernel")
    points = definition.points()
    assert len(points) == 81 and points[0] == definition.constants
    arguments, dims = made_up(2, 2, 70, 16)
    bits = set()
    for number, point in enumerate(points):
        kernel = traced("fused_delta_gating_kernel", 2, **point)
        assert kernel.attributes["constants"] == point
        stages = {op.attributes["stages"] for op in kernel.body.walk() if op.name == "copy_async"}
        assert stages == {point["num_stages"]}
        if number % 9 == 0:  # warps and stages are not read by the interpreter
            given = given_to("fused_delta_gating_kernel", arguments)
            interpret(kernel, given, dims)
            bits.add(given["output"].tobytes())
    assert len(bits) == 1


def test_a_small_block_of_the_fused_kernel_compiles_and_keeps_its_bits():
    """Blocks that fit the machine go through every stage of the pipeline."""
    name = "fused_delta_gating_kernel"
    arguments, dims = made_up(2, 1, 40, 16)
    lengths = {"len(source_layers)": 2, "len(gate_params)": 2}
    compiled = compile_kernel(load(name), {**dims, **lengths}, constants={"BLOCK_B": 1, "BLOCK_S": 16})
    outputs = set()
    for stage in compiled.stages:
        given = given_to(name, arguments)
        interpret(stage.module.kernel(), given, dims, level=stage.module.level)
        outputs.add(given["output"].tobytes())
    assert len(outputs) == 1


@pytest.mark.parametrize("d", [256, pytest.param(1024, marks=pytest.mark.full)])
def test_large_blocks_stay_within_a_gigabyte(d):
    """At D = 1024 one f32 block of 32 x 128 rows is 16 MB, and 128 MB as the reference's values and bars."""
    arguments, dims = made_up(1, 1, 20, d)
    for name in GATES:
        kernel = traced(name, 1)
        tracemalloc.start()
        right(kernel, name, arguments, dims)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 30
