"""Ways to break what the lane of producers and warpgroups emits, and what must be found then.

Which of two unordered accesses comes second is a matter of order, so some expectations hold several kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.check.mutations import Edit

ARRIVE = r"if \(ts_lane\(\) == 0\) ts_mbarrier_arrive\(.*?\);"
RELEASE = "@release@"  # in an edit: the statement that releases the slot


@dataclass(frozen=True)
class LaneMutation:
    """`kernel`: of tests/passes/lane_kernels.py; `kinds`: what a finding may be."""

    name: str
    kernel: str
    kinds: tuple[str, ...]
    edits: tuple[Edit, ...]


def mutation(kernel: str, name: str, kinds: str, *edits: Edit) -> LaneMutation:
    return LaneMutation(name, kernel, tuple(kinds.split()), edits)


def dropped(op: str, pattern: str, number: int = 0) -> Edit:
    return Edit(op, pattern, ";", number)


# fmt: off
PRODUCT, SUM, OWN, PANELS, HALVES = "gemm_bias", "scaled_sum", "own_scratch", "differences", "halves"
OWN_SHARE = r"\(ts_warp\(\) / 4\)"
UNREAD = r"(ts_mbarrier_wait\((ring_0.*?), \(int\)round\w*\);)"  # the consumers' wait for a slot

MUTATIONS = (
    # Slots.
    mutation(PRODUCT, "no release", "deadlock", dropped("ring_release", ARRIVE)),
    mutation(PRODUCT, "a release by three warps of four", "deadlock",
        Edit("ring_release", r"ts_lane\(\) == 0", "ts_lane() == 0 && ts_warp() > 0")),
    mutation(PRODUCT, "a release before the products have read", "race in-flight",
        Edit("wgmma_wait", "ts_wgmma_wait", f"{RELEASE} ts_wgmma_wait"), dropped("ring_release", ARRIVE)),
    mutation(SUM, "a release before the lanes have read", "race in-flight",
        Edit("ring_wait", UNREAD, r"\1 ts_warp_barrier(); if (ts_lane() == 0) ts_mbarrier_arrive(\2 + 24);"),
        dropped("ring_release", r"ts_mbarrier_arrive_after\(.*\);")),
    mutation(PRODUCT, "no wait for an empty slot", "race in-flight mbarrier",
        dropped("ring_acquire", r"ts_mbarrier_wait\(.*\);")),
    mutation(PRODUCT, "no wait for a full slot", "race in-flight deadlock",
        dropped("ring_wait", r"ts_mbarrier_wait\(.*\);")),
    mutation(PRODUCT, "a wait for another round", "deadlock race in-flight",
        Edit("ring_wait", r"\(int\)round\w*\)", r"1)")),
    mutation(PRODUCT, "fewer bytes announced than come", "race in-flight mbarrier",
        Edit("ring_expect", "24576", "16384")),
    mutation(PRODUCT, "more bytes announced than come", "deadlock", Edit("ring_expect", "24576", "24592")),
    mutation(PANELS, "no wait for a panel that stays", "race in-flight",
        dropped("ring_wait", r"ts_mbarrier_wait\(ring_1, 0\);", 3)),
    mutation(PANELS, "a panel that stays is never copied", "deadlock",
        Edit("if", r"if \(eq\w*\)", "if (false)")),
    mutation(PRODUCT, "a copy that is left out", "deadlock", Edit("tma_load", "ts_tma_load", "if (false) ts_tma_load")),
    # Slots in shares, one for each of two warpgroups.
    mutation(HALVES, "a wait for the rows of the other warpgroup", "race in-flight mbarrier deadlock",
        Edit("ring_wait", OWN_SHARE, "(1 - ts_warp() / 4)")),
    mutation(HALVES, "a release of the rows of the other warpgroup", "race in-flight mbarrier deadlock",
        Edit("ring_release", OWN_SHARE, "(1 - ts_warp() / 4)")),
    mutation(HALVES, "a copy that counts on the barrier of the other share", "race in-flight mbarrier deadlock",
        Edit("tma_load", r"(ring_\d+ \+ \(int\)slot\w* \* 16),", r"\1 + 8,", 1)),
    mutation(HALVES, "a copy of rows into the other share", "race in-flight",
        Edit("tma_load", r"\+ 8192, ", ", ", 3)),
    # Products.
    mutation(PRODUCT, "no wait for products", "race in-flight", dropped("wgmma_wait", r"ts_wgmma_wait<0, 64>\(\w+\);")),
    mutation(PRODUCT, "products that are not committed", "race in-flight", dropped("wgmma", r"ts_wgmma_commit\(\);")),
    mutation(PRODUCT, "no fence in front of products", "unfenced", dropped("wgmma", r"ts_wgmma_fence\(\);")),
    mutation(OWN, "products of what threads wrote, not fenced", "unfenced",
        dropped("fence_async", r"ts_fence_async\(\);", 1)),
    # Stores.
    mutation(PRODUCT, "a store of what threads wrote, not fenced", "unfenced",
        dropped("tma_store", r"ts_fence_async\(\);")),
    mutation(PRODUCT, "a store before all lanes have written", "race unfenced",
        dropped("tma_store", r"ts_warp_barrier\(\);")),
    mutation(PRODUCT, "no wait for a store of the buffer", "race in-flight",
        *(dropped("tma_store_wait", r"ts_tma_wait_read<1>\(\);", number) for number in range(2))),
    mutation(PRODUCT, "a store too many in flight", "race in-flight",
        Edit("tma_store_wait", "<1>", "<2>"), Edit("tma_store_wait", "<1>", "<2>", 1)),
    mutation(PRODUCT, "an end before stores have read", "race in-flight",
        dropped("tma_store_wait", r"ts_tma_wait_read<0>\(\);", 2)),
)
