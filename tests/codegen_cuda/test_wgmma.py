"""Products of warpgroups compile for sm_90a without a GPU: no spills, and nothing that ptxas serialises or mends."""

from __future__ import annotations

import re

import pytest

from tessera.errors import EnvironmentProblem
from tessera.runtime.nvrtc import Compiled, compile_cubin, count_instructions, entry_text, load_nvrtc
from tessera.runtime.sass import disassemble, find_nvdisasm
from tessera.target.wgmma import WGMMA_INSTRUCTIONS
from tests.check.rings import text
from tests.check.wgmma_forms import STEPS, kernels

# C7508: setmaxnreg ignored. C7510 to C7520: products serialised, or fences added.
REMARK = re.compile(r"\(C75\d\d\)[^\n]*")


def compiled(source: str, name: str) -> Compiled:
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    load_nvrtc()
    result = compile_cubin(source, "sm_90a", name, want_ptx=True)
    assert not REMARK.findall(result.log)
    for resources in result.resources.values():
        assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
    return result


def test_each_form_compiles() -> None:
    result = compiled(text("wgmma_forms"), "wgmma_forms")
    assert result.ptx is not None
    assert set(result.resources) == set(kernels())
    for kernel in kernels():
        operands, n, form, bits = kernel.rsplit("_", 3)
        lines = re.findall(r"wgmma\.mma_async[^;]*;", entry_text(result.ptx, kernel))
        assert len(lines) == STEPS
        k = next(x.k for x in WGMMA_INSTRUCTIONS.values() if x.name == operands)
        left, right = operands.split("_") if "_" in operands else (operands, operands)
        for line in lines:
            assert line.startswith(f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{left}.{right} {{")
            accumulators, rest = line.split("{", 1)[1].split("}", 1)
            assert accumulators.count(",") == int(n) // 2 - 1
            assert ("{" in rest) == (form == "rs")
            immediates = rest.rsplit("p,", 1)[1].rstrip(";").replace(" ", "")
            trans = "" if k == 32 else "," + ",".join(bits[1:] if form == "rs" else bits)
            assert immediates == f"1,1{trans}"


@pytest.mark.parametrize("n", [8, 40, 128, 256])
def test_every_width_declares_its_registers(n: int) -> None:
    """All 32 rows of the macros at once: the operands of a width follow its accumulators."""
    declarations = "\n".join(f"TS_WGMMA(f16, {width})" for width in range(8, 264, 8))
    source = f"""#include "tessera_device.h"
{declarations}
TS_KERNEL(k, 128)(float* out) {{
    TS_SHARED(shared);
    float acc[{n // 2}];
    const ts_u64 operand = ts_wgmma_descriptor(shared, 16, 1024, 128);
    ts_wgmma_fence();
    ts_wgmma_f16_n{n}_ss<0, 0>(acc, operand, operand, false);
    ts_wgmma_commit();
    ts_wgmma_wait<0, {n // 2}>(acc);
    ts_st_global<float, {n // 2}>(out + ts_thread() * {n // 2}, acc);
}}
"""
    result = compiled(source, "k")
    assert result.ptx is not None
    assert count_instructions(result.ptx)["wgmma"] == 1
    assert "0f00000000" not in result.ptx, "a product that does not accumulate needs no zeros"
    try:
        find_nvdisasm()
    except EnvironmentProblem:
        return
    (line,) = re.findall(r"[HQ]GMMA\.[^;]*;", disassemble(result.cubin))
    assert "RZ, !UPT" in line


def test_rings_compile() -> None:
    result = compiled("#define ONLY_RIGHT\n" + text("wgmma_ring"), "wgmma_ring")
    assert result.ptx is not None
    # 168 each at the launch, for 232 and 40 afterwards.
    assert {resources.registers for resources in result.resources.values()} == {168}
    for name in ("setmaxnreg.inc.sync.aligned.u32 232", "setmaxnreg.dec.sync.aligned.u32 40", "fence.proxy.async"):
        assert name in result.ptx
    assert "stmatrix.sync.aligned.m8n8.x4.shared.b16" in entry_text(result.ptx, "ring_ss")
    assert "vote.sync.ballot" in entry_text(result.ptx, "ring_rs")


def test_the_functions_cost_other_architectures_nothing() -> None:
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    source = (
        '#include "tessera_device.h"\nTS_WGMMA(bf16, 64)\nTS_KERNEL(k, 32)(float* out) { out[ts_thread()] = 1.0f; }\n'
    )
    result = compile_cubin(source, "sm_80", "k", want_ptx=True)
    assert result.ptx is not None
    assert "wgmma" not in result.ptx and "setmaxnreg" not in result.ptx
