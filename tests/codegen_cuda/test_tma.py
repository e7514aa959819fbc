"""TMA through NVRTC, without a GPU: every form is accepted, and no map is copied to local memory."""

from __future__ import annotations

import pytest

from tests.check.rings import text

pytest.importorskip("cupy", reason="CuPy brings NVRTC")

from tessera.runtime.nvrtc import compile_cubin

FORMS = """#include "tessera_device.h"
TS_KERNEL(forms, 32)(TS_MAP x, TS_MAPS(3) list, TS_MAP y, ts_i32 n, ts_i64 column) {
    TS_SHARED(shared);
    char* slot = shared + 1024;
    const int c = (int)column;
    if (ts_thread() == 0) {
        ts_prefetch_map(list.at[n]);
        ts_mbarrier_init(shared, 1);
        ts_mbarrier_fence();
        ts_mbarrier_expect(shared, 4 * 1024);
        TS_ROLLED
        for (int i = 0; i < n; ++i) {
            ts_tma_load(slot, list.at[i], shared, c, i);
            ts_tma_load(slot, list.at[i % 2], shared, c, 1, i);
            ts_tma_load(slot, x, shared, c, 1, 2, i);
            ts_tma_load(slot, x, shared, c, 1, 2, 3, i);
        }
        ts_mbarrier_wait(shared, 0);
        ts_tma_store(list.at[n], slot, c, 1);
        ts_tma_store(y, slot, c, 1, 2);
        ts_tma_commit();
        ts_tma_wait_read<1>();
        ts_tma_store(y, slot, c, 1, 2, 3);
        ts_tma_store(y, slot, c, 1, 2, 3, n);
        ts_tma_commit();
        ts_tma_wait_read<0>();
        ts_tma_wait<0>();
    }
}
"""


def test_every_form_compiles_and_no_map_is_copied() -> None:
    compiled = compile_cubin(FORMS, "sm_90a", "forms", want_ptx=True)
    resources = compiled.resources["forms"]
    assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
    ptx = compiled.ptx or ""
    for rank in (2, 3, 4, 5):
        assert f"cp.async.bulk.tensor.{rank}d.shared::cluster.global" in ptx
        assert f"cp.async.bulk.tensor.{rank}d.global.shared::cta" in ptx
    # A map's address is that of the parameter itself, at any index.
    assert ".local" not in ptx and "cvta.param" in ptx
    assert ".param .align 64 .b8 forms_param_1[384]" in ptx


@pytest.mark.parametrize(("name", "kernels"), [("tma_ring", 3), ("tma_box", 4), ("tma_product", 1)])
def test_a_text_compiles_without_spills(name: str, kernels: int) -> None:
    compiled = compile_cubin(text(name), "sm_90a", name)
    assert len(compiled.resources) == kernels
    for resources in compiled.resources.values():
        assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)


def test_the_base_lane_takes_texts_without_copies() -> None:
    source = '#include "tessera_device.h"\nTS_KERNEL(k, 32)(TS_MAP x, TS_MAPS(2) list) {}\n'
    assert compile_cubin(source, "sm_80", "k").cubin
