"""Every kernel of the suite, ragged and aligned, passes an examination: no findings, and the interpreter's bits."""

from __future__ import annotations

import pytest

from tessera.compiler import compile_kernel
from tessera.runtime.check import examine_kernel
from tests.passes.test_pipeline import arguments_of
from tests.suite import SUITE, identify, load


@pytest.mark.parametrize("case", SUITE, ids=identify)
def test_no_findings(case):
    name, dims = case
    compilation = compile_kernel(load(name), dims)
    report = examine_kernel(compilation, arguments_of(compilation.stages[0].module.kernel(), dims), dims)
    assert report.ok, [str(seen.finding) for seen in report.findings]
    assert report.compared or report.bounded
    assert not report.sampled
