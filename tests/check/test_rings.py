"""Hand-written pipelines on the emulator: right ones pass, and each way of breaking one is named at its line."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tessera.runtime.nvrtc import compile_cubin, load_nvrtc
from tests.check.ring_mutations import MUTATIONS, VARIANTS, Mutation, Variant
from tests.check.rings import KERNELS, assert_named, edited, examine, lines_by_kind, text

SEEDS = (0, 1, 2, 3)


def identifier(edit: Mutation | Variant) -> str:
    return edit.name.replace(" ", "-")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_right_kernel_has_no_findings(name: str, seed: int) -> None:
    faults, output, expected = examine(name, text(KERNELS[name].text), KERNELS[name].large, seed)
    assert faults == []
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=identifier)
def test_a_right_variant_has_no_findings(variant: Variant) -> None:
    kernel = KERNELS[variant.kernel]
    for seed in SEEDS:
        faults, output, expected = examine(variant.kernel, edited(kernel.text, variant.edits), kernel.small, seed)
        assert faults == [], f"seed {seed}"
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", sorted({kernel.text for kernel in KERNELS.values()}))
def test_a_text_compiles_without_spills(name: str, arch: str) -> None:
    pytest.importorskip("cupy", reason="CuPy brings NVRTC")
    load_nvrtc()
    compiled = compile_cubin(text(name), arch, name, want_ptx=True)
    assert set(compiled.resources) == {kernel for kernel in KERNELS if KERNELS[kernel].text == name}
    for resources in compiled.resources.values():
        assert (resources.spill_stores, resources.spill_loads, resources.stack) == (0, 0, 0)
    assert compiled.ptx is not None
    if "ts_mbarrier_wait" in text(name):
        # The base lane polls; from sm_90 on there is a wait that suspends the thread.
        assert ("mbarrier.try_wait.parity" in compiled.ptx) == (arch != "sm_80")


def test_names_are_unique() -> None:
    for edits in (MUTATIONS, VARIANTS):
        assert len({edit.name for edit in edits}) == len(edits)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=identifier)
def test_a_mutation_is_named_at_its_line(mutation: Mutation) -> None:
    """With every seed: a finding depends on what orders two accesses, not on luck with the schedule."""
    kernel = KERNELS[mutation.kernel]
    source = edited(kernel.text, mutation.edits)
    allowed = lines_by_kind(kernel.text, mutation.expected)
    for seed in SEEDS:
        faults, _, _ = examine(mutation.kernel, source, kernel.small, seed)
        assert_named(faults, allowed, seed)
        for fault in faults:
            if fault.kind == "deadlock":
                waits = {int(line) for line in re.findall(r"\{line (\d+)\}", fault.message)}
                assert len(waits) > 1 and waits <= allowed["deadlock"], f"seed {seed}: {fault}"
