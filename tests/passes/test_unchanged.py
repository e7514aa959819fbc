"""Passes that find nothing to do give back the kernel itself, which is then not verified again."""

import pytest

from tessera.compiler import compile_kernel, find_arch
from tessera.ir.core import Module
from tessera.ir.opdef import TARGET
from tessera.ir.printer import print_module
from tessera.ir.stages import References
from tessera.ir.types import BufferType, TokenType
from tessera.passes.interleave import interleave
from tessera.passes.order_copies import order_copies
from tests.suite import load

CASES = [
    ("fused_delta_gating_kernel", {"B": 1, "S": 129, "D": 256, "L": 3}, "sm_80"),
    ("fused_delta_gating_kernel", {"B": 1, "S": 129, "D": 256, "L": 3}, "sm_90a"),
    ("parallel_delta_aggregation_kernel", {"B": 1, "S": 129, "D": 64, "L": 3}, "sm_80"),
    ("matmul_nn_bf16", {"M": 200, "N": 150, "K": 96}, "sm_80"),
]


def stages_of(name, dims, arch):
    lists = ("source_layers", "gate_params", "gate_networks")
    given = {**dims, **{f"len({values})": dims["L"] for values in lists}} if "L" in dims else dims
    return {stage.name: stage.module.kernel() for stage in compile_kernel(load(name), given, arch).stages}


def text(kernel):
    return print_module(Module(TARGET, [kernel]))


@pytest.mark.parametrize("name, dims, arch", CASES)
def test_the_same_text_is_the_same_kernel(name, dims, arch):
    stages = stages_of(name, dims, arch)
    names, facts = list(stages), find_arch(arch)
    for run, named in ((order_copies, "order_copies"), (lambda kernel: interleave(kernel, facts), "interleave")):
        before = stages[names[names.index(named) - 1]]
        made = run(before)
        assert (made is before) == (text(made) == text(before))


def test_each_pass_is_seen_to_do_something_and_nothing():
    seen = set()
    for name, dims, arch in CASES:
        stages = stages_of(name, dims, arch)
        names = list(stages)
        for named in ("order_copies", "interleave"):
            seen.add((named, stages[named] is stages[names[names.index(named) - 1]]))
    assert len(seen) == 4


@pytest.mark.parametrize("name, dims, arch", CASES)
def test_references_are_all_that_is_derived(name, dims, arch):
    kernel = stages_of(name, dims, arch)["insert_barriers"]
    references = References(kernel.body)
    allocated = [op.result for op in kernel.body.walk() if op.name == "shared"]
    reached = set().union(*(references.of(buffer) for buffer in allocated))
    values = [value for op in kernel.body.walk() if op.operands for value in op.results]
    assert reached >= {value for value in values if isinstance(value.type, (BufferType, TokenType))}
    for buffer in allocated:
        mine = references.of(buffer)
        read = [op for op in kernel.body.walk() if op.name == "stage" and op.operands[0] is buffer]
        assert buffer in mine and all(op.result in mine for op in read)
        assert mine.isdisjoint(set(allocated) - {buffer})
