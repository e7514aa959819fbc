"""The texts that the emulator runs, compiled by NVRTC for each architecture; no GPU is needed."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

from tessera.runtime import nvrtc
from tessera.runtime.nvrtc import (
    NvrtcError,
    NvrtcUnavailable,
    Resources,
    compile_cubin,
    count_instructions,
    parse_resources,
)

TEXTS = Path(__file__).parent / "texts"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a")


@pytest.fixture(scope="module", autouse=True)
def needs_nvrtc() -> None:
    try:
        nvrtc.load_nvrtc()
    except NvrtcUnavailable as missing:
        pytest.skip(missing.message)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("vector_add", {"vadd"}),
        ("matmul", {"matmul"}),
        ("elementwise", {"functions", "pairs", "narrow", "integers"}),
        ("warps", {"shuffles", "reverse_sum", "rotate", "matrices", "partial_copies"}),
    ],
)
def test_texts_compile_without_spills(name: str, kernels: set[str], arch: str) -> None:
    compiled = compile_cubin((TEXTS / f"{name}.cu").read_text(), arch, name)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.ptx is None
    assert compiled.resources.keys() == kernels
    for resources in compiled.resources.values():
        assert 0 < resources.registers <= 128
        assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
        assert resources.shared_bytes == 0  # all shared memory is dynamic
    assert 0 < compiled.seconds < 20


def test_vector_accesses_are_single_instructions() -> None:
    ptx = compile_cubin((TEXTS / "warps.cu").read_text(), "sm_80", "warps", want_ptx=True).ptx
    assert ptx is not None and ".target sm_80" in ptx
    rotate = ptx[ptx.index(".entry rotate") : ptx.index(".entry matrices")]
    counts = count_instructions(rotate)  # 32 bytes per lane each way: two words of 16
    assert [counts[name] for name in ("ld.global", "st.shared", "ld.shared", "st.global")] == [2, 2, 2, 2]
    assert rotate.count(".v4.") == 8
    assert count_instructions(ptx)["ldmatrix"] == 6


def test_matmul_instructions_and_precise_maths() -> None:
    compiled = compile_cubin((TEXTS / "matmul.cu").read_text(), "sm_90a", "matmul", want_ptx=True)
    assert compiled.ptx is not None
    counts = count_instructions(compiled.ptx)
    assert counts["mma.sync"] == 2 * 2 * 4  # the loop over k stays rolled
    assert counts["ldmatrix"] == 2 * 2 * 2
    assert counts["cp.async"] == 2 * 4
    assert counts["bar.sync"] == 2
    assert counts["st.global"] == 16
    assert counts["ld.global"] == counts["wgmma"] == 0
    maths = compile_cubin((TEXTS / "elementwise.cu").read_text(), "sm_80", "elementwise", want_ptx=True).ptx
    assert maths is not None
    assert "div.rn.f32" in maths and "sqrt.rn.f32" in maths
    # The core of exp flushes on purpose, on an argument scaled to be normal; plain arithmetic must not.
    assert not re.search(r"\b(add|sub|mul|fma|div|sqrt|max|min)\.\S*ftz", maths)


def test_extra_options_reach_the_compiler() -> None:
    source = '#include "tessera_device.h"\nTS_KERNEL(k, 32)(float* x) { x[0] = VALUE; }\n'
    assert compile_cubin(source, "sm_80", "k", options=("-DVALUE=2.0f",)).resources.keys() == {"k"}
    with pytest.raises(NvrtcError, match="TS901|VALUE") as caught:
        compile_cubin(source, "sm_80", "k")
    assert 'k.cu(2): error: identifier "VALUE" is undefined' in caught.value.log


def test_unknown_architecture_is_an_error() -> None:
    with pytest.raises(NvrtcError, match="sm_1"):
        compile_cubin("", "sm_1", "nothing")


def test_missing_cupy_names_the_remedy(monkeypatch) -> None:
    real = builtins.__import__

    def without_cupy(name, *args):
        if name.startswith("cupy"):
            raise ImportError("No module named 'cupy'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(NvrtcUnavailable, match="pip install") as caught:
        compile_cubin("", "sm_80", "nothing")
    assert caught.value.code == "TS506"


def test_resources_of_a_spilling_kernel_and_a_called_function() -> None:
    log = """\
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for helper
    64 bytes stack frame, 60 bytes spill stores, 52 bytes spill loads
ptxas info    : Function properties for a
    24 bytes stack frame, 20 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 352 bytes cmem[0]
"""
    assert parse_resources(log) == {"a": Resources(255, 512, 20, 12, 24), "b": Resources(8, 0, 0, 0, 0)}


def test_count_instructions_sees_predicates_and_skips_waits() -> None:
    ptx = """
    .reg .b32 %r<4>;
    @%p1 ld.global.nc.v4.u32 {%r1}, [%rd1];
    { ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r2]; }
    cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
    cp.async.commit_group;
    cp.async.wait_group 0;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group.read 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, p, 1, 1;
    barrier.sync 0;
    bar.sync 1;
    // mma.sync in a comment
"""
    expected = dict.fromkeys(nvrtc.COUNTED_OPCODES, 0)
    expected.update({"ld.global": 1, "ldmatrix": 1, "cp.async": 1, "cp.async.bulk": 1, "wgmma": 1, "bar.sync": 2})
    assert count_instructions(ptx) == expected
