"""What must hold for a kernel of the lane of producers and warpgroups, and how several share one emulator build."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tessera.compiler import Compilation, compile_kernel, find_arch, make_context, run_pass, trace_kernel
from tessera.frontend.definition import KernelDefinition
from tessera.ir.compare import difference
from tessera.ir.core import Kernel, Op
from tessera.ir.opdef import TILE
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.passes import PIPELINE
from tessera.runtime import emulator
from tessera.runtime.execute import emulated_arguments, parameters_of
from tessera.runtime.inputs import make_arrays
from tessera.runtime.interpreter import Machine, launch
from tests.fuzz.running import joined
from tests.passes.lane_kernels import LANE
from tests.passes.test_pipeline import assert_same_bits

CHECKED = (
    "split_panels",
    "stage_operands",
    "stack_invariants",
    "split_roles",
    "interleave",
)
SEEDS = (0, 3)  # 0: blocks and warps in order; any other: in a random order
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def compiled(definition: KernelDefinition, dims: Mapping[str, int], **fields: Any) -> Compilation:
    """The kernel with the fields of the lane pinned, but for those that are given."""
    return compile_kernel(definition.scheduled({**LANE, **fields}), dict(dims), "sm_90a")


def reached(definition: KernelDefinition, dims: Mapping[str, int], *steps: str, **fields: Any) -> tuple[Kernel, ...]:
    """The kernel behind each of these passes, the last of which ends the pipeline."""
    module = trace_kernel(definition.scheduled({**LANE, **fields}), dict(dims))
    context, found = make_context(module.kernel(), find_arch("sm_90a"), dict(dims)), []
    for step in PIPELINE:
        module = run_pass(step, module, context)
        found += [module.kernel()] if step.name in steps else []
        if step.name == steps[-1]:
            return tuple(found)
    raise KeyError(steps[-1])


def stage(compilation: Compilation, name: str) -> Kernel:
    return next(each.module.kernel() for each in compilation.stages if each.name == name)


def ops(kernel: Kernel, *names: str) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name in names]


def count(compilation: Compilation, *names: str) -> tuple[int, ...]:
    """How many ops of each name the lowered kernel has."""
    return tuple(len(ops(compilation.target.kernel(), name)) for name in names)


def why_not(compilation: Compilation) -> str:
    """Why the kernel has no producer, as its notes say; empty where they do not say so."""
    start = "copies = 'tma' has no effect: "
    return next((note[len(start) :] for note in compilation.program.notes if note.startswith(start)), "")


def arguments_of(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, Any]:
    """Random inputs, NaN outputs, and 1 for each scalar."""
    parameters = parameters_of(kernel)
    scalars = {parameter.name: 1 for parameter in parameters if parameter.kind == "scalar"}
    return {**make_arrays(parameters, dict(dims), 0), **scalars}


def outputs_of(
    kernel: Kernel,
    dims: Mapping[str, int],
    level: str = TILE,
    seed: int | None = None,
    scalars: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """What a kernel writes, on the interpreter; `seed`: of the order in which its roles go on."""
    arguments = {**arguments_of(kernel, dims), **(scalars or {})}
    launch(lambda *given: Machine(*given, seed=seed), kernel, arguments, dims, None, level)
    return {name: arguments[name] for name, role in kernel.attributes["parameters"] if role != "in"}


def keeps_every_bit(compilation: Compilation, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Interprets the kernel behind each pass of the lane that changes it: all give the same, and print what parses to
    the same. Returns what the kernel writes.
    """
    expected, before = outputs_of(compilation.stages[0].module.kernel(), dims), ""
    for each in compilation.stages[1:]:
        text = print_module(each.module)
        if text != before and each.name in CHECKED:
            assert difference(each.module, parse_module(text)) is None, each.name
            assert_same_bits(expected, outputs_of(each.module.kernel(), dims, each.module.level), each.name)
        before = text
    return expected


@dataclass(frozen=True)
class Ready:
    compilation: Compilation
    dims: Mapping[str, int]
    expected: Mapping[str, np.ndarray]


def emulate(batch: Sequence[Ready], seeds: Sequence[int] = SEEDS) -> None:
    """Runs the emitted CUDA of all kernels, whose names differ, built as one unit."""
    texts = [ready.compilation.cuda[0] for ready in batch]
    assert len({text.name for text in texts}) == len(texts)
    library = emulator.build(joined(texts), [text.name for text in texts])
    for ready in batch:
        program = ready.compilation.program
        (step,) = program.launches
        for seed in seeds:
            arguments = arguments_of(ready.compilation.stages[0].module.kernel(), ready.dims)
            packed = emulated_arguments(program, step, arguments, {**program.static, **ready.dims})
            library.launch(step.kernel, step.extents(ready.dims), step.threads, step.shared_bytes, packed, seed)
            assert_same_bits(ready.expected, arguments, f"the emitted CUDA of {step.kernel}, seed {seed},")
