"""The lane of producers and warpgroups as a whole: every bit is kept on every lane, and sm_90a has what is emitted."""

import functools
import re

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tessera.compiler import compile_kernel
from tessera.runtime.check import examine_kernel
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, LANE
from tests.passes.lane_programs import Program, programs
from tests.passes.lane_running import (
    Ready,
    arguments_of,
    compiled,
    count,
    emulate,
    keeps_every_bit,
    needs_compiler,
    outputs_of,
    stage,
    why_not,
)
from tests.passes.test_pipeline import assert_same_bits
from tests.suite import MATMULS, load

# Roles, products by warpgroups, products by mma.sync, stores by TMA; and why there are no roles.
EXPECTED = {
    "gemm_nn": (1, 1, 0, 1),
    "gemm_tt": (1, 1, 0, 1),
    "gemm_f16": (1, 1, 0, 1),
    "gemm_f32": (1, 0, 0, 0),  # products of f32 are no matrix instructions
    "gemm_f32_out": (1, 1, 0, 0),
    "gemm_bias": (1, 1, 0, 2),
    "gemm_rows": (1, 1, 0, 1),
    "gemm_tall": (1, 1, 0, 1),
    "gemm_short": (1, 0, 1, 0),
    "gemm_narrow": (1, 1, 0, 1),
    "two_products": (1, 2, 0, 1),
    "two_stores": (1, 2, 0, 1),
    "in_branches": (1, 1, 0, 1),
    "own_buffers": (1, 1, 0, 1),
    "own_scratch": (0, 2, 0, 0),
    "differences": (1, 2, 0, 2),
    "layers": (1, 1, 0, 1),
    "deltas": (1, 1, 0, 1),
    "scaled_sum": (1, 0, 0, 0),
    "in_place": (0, 1, 0, 0),
    "counted": (0, 1, 0, 0),
}
REASONS = {
    "own_scratch": "'state' is used otherwise than by reading it after its copy",
    "in_place": "'operand_0': 'x' is also written by this kernel",
    "counted": "what is copied depends on what was computed",
}
EXAMINED = ["gemm_bias", "two_stores", "differences", "own_scratch"]
EMULATED = ["gemm_nn", "gemm_tt", "gemm_f16", "gemm_tall", "gemm_narrow", "two_products", "in_branches", "own_buffers",
            "deltas", "counted"]  # fmt: skip


@functools.cache
def ready(name: str) -> Ready:
    compilation = compiled(getattr(lane_kernels, name), CASES[name])
    return Ready(compilation, CASES[name], keeps_every_bit(compilation, CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_every_pass_keeps_every_bit(name):
    compilation = ready(name).compilation
    assert count(compilation, "roles", "wgmma", "mma_sync", "tma_store") == EXPECTED[name]
    assert why_not(compilation) == REASONS.get(name, "")


@pytest.mark.parametrize("name", EMULATED + EXAMINED)
def test_sm_90a_has_it_without_spills_or_remarks(name):
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    from tessera.runtime.nvrtc import compile_cubin

    (text,) = ready(name).compilation.cuda
    result = compile_cubin(text.text, "sm_90a", text.name)
    resources = result.resources[text.name]
    assert (resources.spill_stores, resources.spill_loads) == (0, 0)
    assert not re.findall(r"\(C75\d\d\)[^\n]*", result.log)  # products serialised, or fences added


@needs_compiler
@pytest.mark.parametrize("name", EXAMINED)
def test_an_examination_finds_nothing(name):
    compilation, dims = ready(name).compilation, CASES[name]
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    report = examine_kernel(compilation, arguments, dims, seeds=(1,))
    assert report.ok and report.compared, [str(seen.finding) for seen in report.findings]


# ---- kernels of the suite -------------------------------------------------------------------------------------------

SUITE = {  # and whether they have roles
    **{name: ({"M": 72, "N": 72, "K": 40}, True) for name in MATMULS if "bf16" in name},
    "matmul_bias_gelu": ({"M": 70, "N": 72, "K": 64}, True),
    "batched_matmul": ({"B": 3, "M": 33, "N": 40, "K": 48}, True),
    "difference_matmul": ({"M": 70, "N": 64, "K": 128}, True),
    "perceptron": ({"M": 70, "D": 64, "H": 64, "N": 48}, True),
    "fp8_matmul": ({"M": 64, "N": 64, "K": 64}, True),
    "gating_function_kernel": ({"B": 2, "S": 129, "D": 64}, True),
    "softmax": ({"M": 33, "N": 100}, True),
    "softmax_bf16": ({"M": 40, "N": 64}, True),
    "layer_norm": ({"M": 16, "N": 512}, True),
    "column_sum": ({"M": 70, "N": 100}, True),
    "cumulative_max": ({"M": 33, "N": 128}, True),
    "top_1": ({"M": 33, "N": 64}, True),
    "vector_add": ({"N": 1000}, False),
    "transpose": ({"M": 40, "N": 100}, False),
    "sum_of_first": ({"M": 40, "N": 128}, False),
    "histogram": ({"N": 100, "K": 12}, False),
}
WITHOUT_PRODUCTS = ["softmax", "softmax_bf16", "layer_norm", "column_sum", "cumulative_max", "top_1"]


@functools.cache
def of_suite(name: str) -> Ready:
    dims, _ = SUITE[name]
    compilation = compiled(load(name), dims)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims)
    for step in ("stage_operands", "split_roles"):
        assert_same_bits(expected, outputs_of(stage(compilation, step), dims), step)
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), dims, "target"), "the last pass")
    return Ready(compilation, dims, expected)


@pytest.mark.parametrize("name", SUITE)
def test_kernels_of_the_suite_keep_every_bit(name):
    compilation = of_suite(name).compilation
    assert count(compilation, "roles") == (int(SUITE[name][1]),)
    assert bool(why_not(compilation)) != SUITE[name][1]


@needs_compiler
def test_the_emitted_cuda_gives_the_same_bits():
    emulate([*map(ready, EMULATED), *map(of_suite, WITHOUT_PRODUCTS)])


# ---- random kernels and schedules -----------------------------------------------------------------------------------


@seed(11)
@settings(
    max_examples=10,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_random_kernels_keep_every_bit_or_say_why_the_lane_has_no_effect(program: Program):
    compilation = compile_kernel(program.kernel().scheduled(program.fields), program.dims, "sm_90a")
    plain = compile_kernel(program.kernel(), program.dims, "sm_90a")
    expected = outputs_of(plain.target.kernel(), program.dims, "target")
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), program.dims, "target"), str(program.fields))
    (roles, wgmma, products) = count(compilation, "roles", "wgmma", "mma_sync")
    if program.fields["copies"] == "tma":
        assert bool(roles) != bool(why_not(compilation))
    if program.fields["family"] == "wgmma" and program.dtype != "f32":
        assert wgmma and not products or any(note.startswith("family") for note in compilation.program.notes)
    assert program.fields["family"] or not wgmma
    assert program.fields["copies"] or not roles


def test_the_lane_is_what_its_pins_ask_for():
    compilation = ready("gemm_nn").compilation
    assert {name: getattr(compilation.schedule, name) for name in LANE} == LANE
