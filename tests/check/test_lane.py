"""The lane of producers and warpgroups, broken on purpose: each mistake is found, and nothing in what is right."""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest

from tessera.codegen_cuda.emit import CudaKernel
from tessera.compiler import Compilation
from tessera.runtime import emulator
from tessera.runtime.execute import emulated_arguments
from tests.check.lane_mutations import ARRIVE, MUTATIONS, RELEASE, LaneMutation
from tests.check.mutations import mutated
from tests.fuzz.running import joined
from tests.passes import lane_kernels
from tests.passes.lane_running import arguments_of, compiled, needs_compiler

pytestmark = needs_compiler

SEEDS = (0, 1, 2, 3, 4, 5)
DIMS = {  # several programs a block, and more tiles along K than there are slots
    "gemm_bias": {"M": 264, "N": 128, "K": 264},
    "scaled_sum": {"M": 1100},
    "own_scratch": {"M": 136},
    "differences": {"M": 330},
    "halves": {"M": 700},
}
FIELDS = {"halves": {"warps": 8}}


@functools.cache
def right(kernel: str) -> Compilation:
    return compiled(getattr(lane_kernels, kernel), DIMS[kernel], stages=3, **FIELDS.get(kernel, {}))


def name_of(case: LaneMutation) -> str:
    return f"{case.kernel}_{MUTATIONS.index(case)}"


def wrong(case: LaneMutation) -> CudaKernel:
    """The edited text, whose kernel has a name of its own."""
    compilation = right(case.kernel)
    release, *_ = re.findall(ARRIVE, compilation.cuda[0].text) or [""]
    edits = tuple(dataclasses.replace(e, replace=e.replace.replace(RELEASE, release)) for e in case.edits)
    (cuda,) = mutated(compilation, edits).cuda
    text = re.sub(rf"(TS_KERNEL\w*)\({case.kernel},", rf"\1({name_of(case)},", cuda.text)
    return dataclasses.replace(cuda, text=text, name=name_of(case))


@functools.cache
def library() -> emulator.Library:
    """All mutations, and the kernels that they are of, as one unit."""
    texts = [right(kernel).cuda[0] for kernel in DIMS] + [wrong(case) for case in MUTATIONS]
    return emulator.build(joined(texts), [text.name for text in texts])


def kinds_of(kernel: str, name: str, seed: int) -> set[str]:
    """What the emulator finds in the kernel of that name, an edition of `kernel`."""
    compilation, dims = right(kernel), DIMS[kernel]
    (step,) = compilation.program.launches
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    packed = emulated_arguments(compilation.program, step, arguments, {**compilation.program.static, **dims})
    try:
        library().launch(name, step.extents(dims), step.threads, step.shared_bytes, packed, seed)
    except emulator.EmulatorFault as fault:
        return {found.kind for found in fault.faults}
    return set()


@pytest.mark.parametrize("kernel", DIMS)
def test_nothing_is_found_in_what_is_right(kernel: str) -> None:
    assert [kinds_of(kernel, kernel, seed) for seed in SEEDS[:3]] == [set()] * 3


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda case: f"{case.kernel}: {case.name}")
def test_a_mistake_is_found(case: LaneMutation) -> None:
    for seed in SEEDS:
        found = kinds_of(case.kernel, name_of(case), seed)
        if found:
            assert found <= set(case.kinds)
            return
    pytest.fail("nothing was found")
