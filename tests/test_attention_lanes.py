"""Attention of the examples: right on every lane that runs without a GPU, and what it compiles to."""

import math
import re

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.runtime.check import examine_kernel
from tessera.runtime.execute import check, reference_bars
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin
from tests.passes.test_pipeline import arguments_of
from tests.passes.test_register_operands import ops
from tests.suite import load

CASES = [
    # name, dims, constants, products of 16 x 8 x 16 that all programs take
    ("attention", {"B": 1, "H": 2, "T": 100, "D": 64}, {}, 2048),
    ("causal_attention", {"B": 1, "H": 2, "T": 100, "D": 64}, {}, 1536),
    ("causal_attention", {"B": 1, "H": 1, "T": 70, "D": 128}, {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8}, 2048),
    ("causal_attention_f16", {"B": 2, "H": 1, "T": 70, "D": 40}, {"BLOCK_N": 32, "num_stages": 3}, 880),
    ("attention_f16", {"B": 1, "H": 1, "T": 1, "D": 64}, {"BLOCK_N": 32}, 128),
]


def identify(case):
    name, dims, constants, _ = case
    return "-".join((name, "x".join(map(str, dims.values())), *map(str, constants.values())))


def model(q, k, v, scale, causal):
    """Output and logarithm of the sum, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = scale * np.einsum("bhqd,bhkd->bhqk", q, k)
    if causal:
        scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    largest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bhkd->bhqd", weights / total, v), (largest + np.log(total))[..., 0]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_lanes_agree_and_are_right(case):
    name, dims, constants, products = case
    compilation = compile_kernel(load(name), dims, constants=constants)
    kernel = compilation.stages[0].module.kernel()
    arguments = {**arguments_of(kernel, dims), "scale": 0.2}
    report = examine_kernel(compilation, arguments, dims)
    assert report.ok, [str(seen.finding) for seen in report.findings]
    assert set(report.bounded) == {"output", "lse"} and report.totals.mma == products
    bars = reference_bars(kernel, arguments, dims)
    interpret(kernel, arguments, dims)
    for output in ("output", "lse"):
        comparison = check(arguments[output], bars[output])
        assert comparison.ok and not comparison.rms_rule, (output, comparison)
    output, lse = model(*(arguments[x] for x in ("q", "k", "v", "scale")), causal="causal" in name)
    assert np.abs(arguments["output"].astype(np.float64) - output).max() < 0.02
    assert np.abs(arguments["lse"] - lse).max() < 1e-5


@pytest.mark.usefixtures("lane")
def test_heads_may_lie_inside_the_sequence():
    """Tensors [B, T, H, D] are the same tensors with other strides."""
    generator = np.random.default_rng(0)
    q, k, v, out = (generator.standard_normal((1, 70, 2, 64)).astype(ml_dtypes.bfloat16) for _ in range(4))
    lse = np.full((1, 2, 70), np.nan, np.float32)
    heads = [x.swapaxes(1, 2) for x in (q, k, v, out)]
    load("causal_attention")(*heads[:3], 0.125, heads[3], lse)
    expected, sums = model(*heads[:3], 0.125, causal=True)
    assert np.abs(heads[3].astype(np.float64) - expected).max() < 0.02 and np.abs(lse - sums).max() < 1e-5


BLOCKS = [  # D, constants, most registers
    (64, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}, 168),
    (128, {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8}, 255),
]


@pytest.mark.parametrize("depth, constants, registers", BLOCKS, ids=str)
def test_weights_go_from_registers_to_the_product(depth, constants, registers):
    """A turn of the loop has one barrier, writes nothing but copies to shared memory and shuffles maxima only: on the
    base lane, of which both architectures have the instructions.
    """
    dims = {"B": 1, "H": 1, "T": 1024, "D": depth}
    for arch in ("sm_80", "sm_90a"):
        base = load("causal_attention").scheduled({"family": ""})
        compilation = compile_kernel(base, dims, arch, constants=constants)
        loop = next(op for op in compilation.target.kernel().body.ops if op.name == "for")
        turn = loop.regions[0]
        blocks = constants["BLOCK_N"] // 16
        assert len(ops(turn, "fragment")) == blocks and len(ops(turn, "barrier")) == 1
        assert not ops(turn, "st_shared", "ld_shared", "st_flat")
        source = compilation.cuda[0]
        start = source.text.index("TS_ROLLED for (ts_i64 n")
        text = source.text[start : source.text.index("\n    }\n", start)]
        rows = 2 * constants["BLOCK_M"] // (16 * constants["num_warps"])
        assert len(re.findall(r"ts_shfl\w*\(", text)) == 2 * rows
        resources = compile_cubin(source.text, arch, source.name).resources[source.name]
        assert resources.spill_stores == resources.spill_loads == 0 and resources.registers <= registers
        assert math.ceil(resources.registers / 8) * 8 * constants["num_warps"] * 32 <= 65536


@pytest.mark.parametrize("depth, constants, registers", BLOCKS, ids=str)
def test_weights_go_from_registers_to_the_product_of_warpgroups(depth, constants, registers):
    """Consumers write nothing to shared memory in a turn, and no barrier but those of the ring holds them."""
    dims = {"B": 1, "H": 1, "T": 1024, "D": depth}
    compilation = compile_kernel(load("causal_attention"), dims, "sm_90a", constants=constants)
    assert (compilation.schedule.family, compilation.schedule.copies) == ("wgmma", "tma")
    (roles,) = [op for op in compilation.target.kernel().body.walk() if op.name == "roles"]
    (loop,) = [op for op in roles.regions[-1].walk() if op.name == "for" and ops(op.regions[0], "wgmma")]
    turn = loop.regions[0]
    assert len(ops(turn, "wgmma")) == 2 and not ops(turn, "barrier", "st_shared", "st_flat", "cp_async")
    source = compilation.cuda[0]
    resources = compile_cubin(source.text, "sm_90a", source.name).resources[source.name]
    assert resources.spill_stores == resources.spill_loads == 0 and resources.registers <= registers
