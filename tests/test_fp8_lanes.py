"""The fp8 product of the examples: right on every lane, and by warpgroups with the instruction that was meant."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel, trace_kernel
from tessera.frontend.document import load_document
from tessera.runtime.check import examine_kernel
from tessera.runtime.nvrtc import compile_cubin, count_instructions, entry_text
from tests.passes.test_pipeline import arguments_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "gemm_fp8.py"
KERNELS = ("gemm_fp8", "gemm_fp8_fast")
DIMS = {"M": 130, "N": 40, "K": 288}  # ragged in each way
SMALL = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3}


def compiled(name, dims=DIMS, arch="sm_90a", constants=None, **pins):
    module = trace_kernel(load_document(EXAMPLE)[name], dims, constants=constants)
    module.kernels[0].attributes["pins"] = pins
    return compile_kernel(module, dims, arch)


@pytest.mark.parametrize("name", KERNELS)
def test_a_call_scales_the_product(name):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((DIMS[d], DIMS["K"])).astype(ml_dtypes.float8_e4m3fn) for d in "MN")
    out = np.full((DIMS["M"], DIMS["N"]), np.nan, ml_dtypes.bfloat16)
    load_document(EXAMPLE)[name](a, b, 0.5, 0.25, out)
    expected = 0.125 * (a.astype(np.float64) @ b.astype(np.float64).T)
    assert (np.abs(out.astype(float) - expected) <= 2.0**-8 * np.abs(expected) + 1e-6).all()


@pytest.mark.parametrize("arch, pins", [("sm_80", {}), ("sm_90a", {"family": "wgmma"})])
def test_the_emitted_text_is_right(arch, pins):
    name = "gemm_fp8"
    compilation = compiled(name, arch=arch, constants=SMALL, **pins)
    report = examine_kernel(compilation, arguments_of(compilation.stages[0].module.kernel(), DIMS), DIMS, seeds=(1,))
    assert report.ok, report.findings
    inexact = [stage.name for stage in compilation.stages if not stage.exact]
    assert (inexact, report.bounded) == (([], ()) if arch == "sm_80" else (["choose_formats"], ("output",)))


@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles_for_warpgroups_without_spills(name):
    text = compiled(name, {"M": 8192, "N": 8192, "K": 8192}, family="wgmma").cuda[0]
    result = compile_cubin(text.text, "sm_90a", text.name, want_ptx=True)
    resources = result.resources[text.name]
    assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0) and "C75" not in result.log
    assert result.ptx is not None
    entry = entry_text(result.ptx, text.name)
    assert entry.count(".m64n128k32.f32.e4m3.e4m3 ") == 4 and "setmaxnreg" in entry
    counts = count_instructions(entry)
    assert (counts["wgmma"], counts["mma.sync"], counts["cp.async"]) == (4, 0, 0)
