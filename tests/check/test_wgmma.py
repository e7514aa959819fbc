"""Products of warpgroups on the emulator: each form of operand gives the defined bits, and each misuse is named."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tessera.runtime.emulator import build
from tessera.runtime.emulator_twin import EmulatorBuildError
from tests.check.rings import assert_named, lines_by_kind
from tests.check.wgmma_forms import Form
from tests.check.wgmma_rings import MISTAKES, TEXT, VARIANTS, Edit, edit_names, examine

ALONG_K, ALONG_MN = (False, True), (True, False)  # which operands lie transposed
WIDTHS = [(8, 8), (4, 2), (2, 4), (1, 1)]  # chunks of a panel of a and of b
FORMS = [
    *(Form("bf16", 64, False, t, w) for t in (ALONG_K, ALONG_MN, (False, False), (True, True)) for w in WIDTHS),
    *(Form("bf16", 256, False, t, (8, 8)) for t in (ALONG_K, ALONG_MN)),
    *(Form("bf16", 192, True, (False, t), (8, w)) for t in (False, True) for w in (8, 4, 1)),
    *(Form("bf16", 8, t, ALONG_K, (4, 8)) for t in (False, True)),
    Form("bf16", 8, False, ALONG_MN, (4, 1)),
    *(Form("f16", 128, r, t, (8, 8)) for r, t in ((False, ALONG_K), (False, ALONG_MN), (True, (False, False)))),
    *(Form("fp8_e4m3", 32, False, ALONG_K, w) for w in WIDTHS),
    *(Form("fp8_e5m2", 256, r, ALONG_K, (8, 8)) for r in (False, True)),
    *(Form("fp8_e4m3", 32, r, ALONG_K, (8, 8), "fp8_e5m2") for r in (False, True)),
    *(Form("fp8_e5m2", 64, r, ALONG_K, (8, 4), "fp8_e4m3") for r in (False, True)),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.kernel}-{f.chunks[0]}-{f.chunks[1]}")
def test_a_form_is_bit_equal(form: Form) -> None:
    for seed in (0, 5):
        faults, out, expected = form.run(seed)
        assert faults == []
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("field, change", [("leading", 16), ("stride", 16), ("swizzle", -64)])
def test_a_wrong_field_gives_wrong_numbers(field: str, change: int) -> None:
    form = Form("bf16", 192, False, ALONG_MN, (8, 8))  # three panels of b: every field counts
    faults, out, expected = form.run(0, {field: change})
    assert all(fault.kind in ("uninitialised", "shared-out-of-bounds") for fault in faults)
    assert not np.array_equal(out, expected)


def test_the_leading_distance_along_k_is_not_used() -> None:
    faults, out, expected = Form("bf16", 64, False, ALONG_K, (8, 8)).run(0, {"leading": 4096})
    assert faults == []
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda e: f"{e.kernel}-{e.name}")
def test_a_right_kernel_has_no_findings(variant: Edit) -> None:
    for seed, tiles in ((0, 2), (1, 1), (2, 1), (3, 2), (4, 1)):
        faults, output, expected = examine(variant, tiles, seed)
        assert faults == [], f"seed {seed}"
        np.testing.assert_array_equal(output, expected)


def test_each_edit_is_tried() -> None:
    assert {edit.name for edit in MISTAKES + VARIANTS} == set(edit_names())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda e: f"{e.kernel}-{e.name}")
def test_a_mistake_is_named_at_its_line(mistake: Edit) -> None:
    """With every seed: a finding depends on what orders two accesses, not on luck with the schedule."""
    allowed = lines_by_kind(TEXT, mistake.expected)
    for seed in (0, 1, 2):
        faults, _, _ = examine(mistake, 1, seed)
        assert_named(faults, allowed, seed)


@pytest.mark.parametrize("count", [44, 264])
def test_a_number_of_registers_that_there_is_not(count: int) -> None:
    source = f'#include "tessera_device.h"\nTS_KERNEL(k, 128)() {{ ts_registers_increase<{count}>(); }}\n'
    with pytest.raises(EmulatorBuildError, match="multiples of 8"):
        build(source, ["k"])


def test_a_product_in_flight_goes_on_through_a_block_barrier() -> None:
    """A barrier orders what threads did, not what the asynchronous unit still reads."""
    source = """#include "tessera_device.h"
TS_WGMMA(bf16, 8)
TS_KERNEL(k, 128)(float* out, ts_i32 barriers) {
    TS_SHARED(shared);
    ts_u32 zeros[4] = {0, 0, 0, 0};
    float acc[4];
    for (int i = ts_thread(); i < 192; i += 128) ts_st_shared<ts_u32, 4>(shared + i * 16, zeros);
    ts_fence_async();
    ts_barrier();
    const ts_u64 a = ts_wgmma_descriptor(shared, 1024, 128, 0), b = ts_wgmma_descriptor(shared + 2048, 128, 128, 0);
    ts_wgmma_fence();
    ts_wgmma_bf16_n8_ss<0, 0>(acc, a, b, false);
    ts_wgmma_commit();
    if (barriers == 1) ts_wgmma_wait<0, 4>(acc);
    ts_barrier();
    if (ts_thread() == 40) ts_st_shared<ts_u32, 1>(shared + 2048, zeros + 1);
    if (barriers != 1) ts_wgmma_wait<0, 4>(acc);
    ts_st_global<float, 4>(out + ts_thread() * 4, acc);
}
"""
    library = build(source, ["k"])
    for seed in (0, 1, 2):
        out = np.full(512, np.nan, np.float32)
        assert library.examine("k", (1,), 128, 4096, [out, 1], seed, outputs=(0,)).faults == []
        (fault,) = library.examine("k", (1,), 128, 4096, [out, 0], seed, outputs=(0,)).faults
        assert fault.kind == "race" and "reads, with nothing between that follows its wait" in fault.message
        assert fault.thread == 40 and re.search(r"wgmma of warp \d at \{line 12\}", fault.message)


def test_each_form_of_stmatrix() -> None:
    source = """#include "tessera_device.h"
#define FORM(n) \\
    ts_stmatrix_x##n(shared + at + ts_lane() * 16, words); \\
    at += 512; \\
    ts_stmatrix_x##n##_trans(shared + at + ts_lane() * 16, words); \\
    at += 512;
TS_KERNEL(k, 32)(const ts_u32* x, ts_u32* out) {
    TS_SHARED(shared);
    ts_u32 words[4], zeros[4] = {0, 0, 0, 0};
    int at = 0;
    ts_ld_global<ts_u32, 4>(words, x + ts_thread() * 4);
    for (int i = 0; i < 6; ++i) ts_st_shared<ts_u32, 4>(shared + i * 512 + ts_lane() * 16, zeros);
    FORM(1)
    FORM(2)
    FORM(4)
    ts_warp_barrier();
    for (int i = 0; i < 6; ++i) {
        ts_ld_shared<ts_u32, 4>(words, shared + i * 512 + ts_lane() * 16);
        ts_st_global<ts_u32, 4>(out + (i * 32 + ts_lane()) * 4, words);
    }
}
"""
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    words = np.ascontiguousarray(matrices).view(np.uint32).reshape(4, 32).T  # lane, register
    out = np.zeros((6, 4, 8, 8), np.uint16)
    library = build(source, ["k"], counted=True)
    found = library.examine("k", (1,), 32, 3072, [np.ascontiguousarray(words), out], count=True)
    assert found.faults == []
    for form, (count, turned) in enumerate((n, t) for n in (1, 2, 4) for t in (False, True)):
        expected = matrices.transpose(0, 2, 1) if turned else matrices
        np.testing.assert_array_equal(out[form, :count], expected[:count])
        assert not out[form, count:].any()
    lines = source.splitlines()
    writes = found.lines[1 + lines.index("    FORM(4)")].shared_write
    assert (writes.requests, writes.wavefronts, writes.ideal) == (2, 8, 8)
