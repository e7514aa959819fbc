"""Emitted kernels, broken on purpose: each mutation is reported with the right kind, at the right op and line."""

from __future__ import annotations

import pytest

from tessera.runtime import emulator
from tessera.runtime.check import examine_kernel
from tests import suite
from tests.check import mutations_bounds, mutations_kernels, mutations_order, mutations_values
from tests.check.mutations import Dims, Edit, Mutation, arguments, author_line, compiled, mutated

pytestmark = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")

SEEDS = (0, 1, 2)
MUTATIONS = [*mutations_order.MUTATIONS, *mutations_bounds.MUTATIONS, *mutations_values.MUTATIONS]

# A shape for each kernel of the suite: what it is broken at above, several steps along k for the other products.
SHAPES = {
    **dict(suite.SUITE),
    **{name: {"M": 33, "N": 72, "K": 112} for name in [*suite.MATMULS, "matmul_bias_gelu"]},
    **dict(mutations_kernels.ALL),
    # A fourth step reads the first slot again, which the result is stored over.
    "gemm_nt": {"M": 33, "N": 100, "K": 193},
}
# Kernels whose barriers are dropped in every run, one for each way in which barriers come about; the others take half
# a minute more.
SAMPLE = ("matmul_nt_bf16", "gating_function_kernel", "cumulative_max", "transpose")
# Barriers, by kernel and number, that may go without a finding, and why. So far every one is needed.
REDUNDANT: dict[tuple[str, int], str] = {}


def marked(item: object, full: bool, identity: str) -> object:
    return pytest.param(item, id=identity, marks=[pytest.mark.full] if full else [])


@pytest.mark.parametrize("case", [marked(m, m.full, f"{m.kernel}: {m.name}") for m in MUTATIONS])
def test_a_mutation_is_reported_where_it_is(case: Mutation) -> None:
    right = compiled(case.kernel, case.dims)
    wrong = mutated(right, case.edits, case.launch)
    report = examine_kernel(wrong, arguments(case.kernel, case.dims), dict(case.dims), SEEDS)
    found = [seen.finding for seen in report.findings]
    assert found, "nothing was found"
    place = author_line(right, case.at)
    for finding in found:
        assert finding.kind in case.kinds and finding.op in (case.ops or ("",)), (finding.op, str(finding))
        assert (finding.file, finding.line) == place, (finding.op, str(finding))


def test_the_names_of_mutations_differ() -> None:
    names = [(m.kernel, m.name) for m in MUTATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kernel, dims", sorted({(m.kernel, m.dims) for m in MUTATIONS}), ids=str)
def test_the_unbroken_kernel_has_no_finding(kernel: str, dims: Dims) -> None:
    report = examine_kernel(compiled(kernel, dims), arguments(kernel, dims), dict(dims), SEEDS)
    assert [str(seen.finding) for seen in report.findings] == []


@pytest.mark.parametrize("kernel", [marked(name, name not in SAMPLE, name) for name in SHAPES])
def test_every_barrier_is_needed(kernel: str) -> None:
    """None of them can be dropped without a race, but for those of the table."""
    dims: Dims = tuple(SHAPES[kernel].items())
    right = compiled(kernel, dims)
    barriers = right.cuda[0].text.count("ts_barrier();")
    for number in range(barriers):
        wrong = mutated(right, (Edit("barrier", r"ts_barrier\(\);", ";", number),))
        report = examine_kernel(wrong, arguments(kernel, dims), dict(dims), SEEDS)
        kinds = {seen.finding.kind for seen in report.findings}
        wanted = set() if (kernel, number) in REDUNDANT else {"race", "in-flight"}
        assert kinds <= wanted and bool(kinds) == bool(wanted), (number, kinds)
