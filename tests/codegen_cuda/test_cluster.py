"""Clusters through NVRTC, without a GPU: every form is accepted and becomes the instruction that it should."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("cupy", reason="CuPy brings NVRTC")

from tessera.runtime.nvrtc import compile_cubin

FORMS = """#include "tessera_device.h"
TS_KERNEL_CLUSTER(forms, 64, 1, 2)(TS_MAP x, TS_MAPS(3) list, ts_i32 n, ts_i64 column) {
    TS_SHARED(shared);
    char* slot = shared + 1024;
    const int c = (int)column, rank = ts_cluster_rank(), mask = 3;
    if (ts_thread() == 0) {
        ts_mbarrier_init(shared, 1);
        ts_mbarrier_init(shared + 8, 4);
        ts_mbarrier_fence();
    }
    ts_barrier();
    ts_cluster_barrier();
    if (ts_thread() == 0) {
        ts_mbarrier_expect(shared, 4 * 1024);
        ts_tma_load_multicast(slot, list.at[n], shared, mask, c, rank * 8);
        ts_tma_load_multicast(slot, list.at[n], shared, mask, c, 1, rank);
        ts_tma_load_multicast(slot, x, shared, mask, c, 1, 2, rank);
        ts_tma_load_multicast(slot, x, shared, n, c, 1, 2, 3, rank);
    }
    ts_mbarrier_wait(shared, 0);
    float v[1];
    ts_ld_shared<float, 1>(v, slot + ts_thread() * 4);
    ts_mbarrier_arrive_cluster_after(shared + 8, ts_register_word(v[0]), 2);
    if (ts_lane() == 0) ts_mbarrier_arrive_cluster(shared + 8, rank ^ 1);
    ts_cluster_barrier();
}
"""


def test_every_form_compiles() -> None:
    compiled = compile_cubin(FORMS, "sm_90a", "forms", want_ptx=True)
    resources = compiled.resources["forms"]
    assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
    ptx = compiled.ptx or ""
    assert ".reqnctapercluster 2, 1, 1" in ptx or ".explicitcluster" in ptx
    for rank in (2, 3, 4, 5):
        form = rf"cp\.async\.bulk\.tensor\.{rank}d\.\S+\.multicast::cluster \[%r\d+\]"
        assert len(re.findall(form, ptx)) == 1
    assert ptx.count("barrier.cluster.arrive.relaxed") == ptx.count("barrier.cluster.wait") == 2
    # An arrival that spells its scope out would wait for all of memory.
    assert ptx.count("mbarrier.arrive.shared::cluster.b64") == 2 and "release.cluster" not in ptx.replace(
        "fence.mbarrier_init.release.cluster", ""
    )
