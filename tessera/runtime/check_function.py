"""Examines the kernels of a function on this CPU: each launch of its plan, on what the launches before it wrote.

A launch is examined as a kernel is (`runtime.check`). What it hands on is what the interpreter makes of it, so that a
finding of one launch is not one of every later launch too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tessera.compiler import Compilation, FunctionCompilation, launch_dims
from tessera.plan import PlanLaunch
from tessera.runtime import execute
from tessera.runtime.check import SEEDS, Blocks, Report, examine_kernel
from tessera.runtime.check_counters import total
from tessera.runtime.function_plans import PlanPrograms, as_tuple, launch_arguments, poisoned


def examine_function(
    compilation: FunctionCompilation,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    seeds: Sequence[int] = SEEDS,
    blocks: Blocks = None,
    sample_seed: int = 0,
) -> Report:
    """What `examine_kernel` finds in each launch, in order.

    `arguments`: arrays and numbers by parameter of the traced function, hidden ones too. Raises what `examine_kernel`
    raises.
    """
    start = time.perf_counter()
    programs, plan = PlanPrograms(compilation.plan), compilation.plan
    memory = dict(arguments)
    for buffer in plan.buffers.values():
        if not buffer.alias and buffer.name not in memory:
            memory[buffer.name] = poisoned(programs.shape(buffer.name, dims), buffer.dtype)
    writers = Counter(root for launch in plan.launches for root in _written(programs, launch))
    reports = []
    for launch, chosen in zip(plan.launches, compilation.chosen, strict=True):
        steps = programs.steps_of([launch], dims)
        if not steps:
            continue
        (step,) = steps
        given = launch_arguments(programs, step, memory)
        shared = {
            name
            for name, given_ in launch.tensors.items()
            if any(writers[programs.root(buffer).name] > 1 for buffer in as_tuple(given_))
        }
        made = _partial(compilation.kernels[chosen], shared)
        found = examine_kernel(made, given, launch_dims(launch, dims), seeds, blocks, sample_seed)
        reports.append(_named(found, launch))
        execute.interpret(step.kernel, given, step.dims)
    return _joined(reports, tuple(seeds), time.perf_counter() - start)


def _written(programs: PlanPrograms, launch: PlanLaunch) -> set[str]:
    """The buffers, those that have the memory, that a launch writes."""
    roles = dict(programs.plan.kernels[launch.kernel].attributes["parameters"])
    written = [given for name, given in launch.tensors.items() if roles[name] != "in"]
    return {programs.root(buffer).name for given in written for buffer in as_tuple(given)}


def _partial(compilation: Compilation, shared: set[str]) -> Compilation:
    """The compilation of a launch that may leave elements of these tensors to other launches."""
    program = compilation.program
    if program is None or not shared:
        return compilation
    parameters = [replace(p, role="inout") if p.name in shared and p.role == "out" else p for p in program.parameters]
    return replace(compilation, program=replace(program, parameters=tuple(parameters)))


def _named(found: Report, launch: PlanLaunch) -> Report:
    """A report that calls tensors as the plan calls them."""
    names = {name: given for name, given in launch.tensors.items() if isinstance(given, str)}
    compared, bounded = (tuple(names.get(name, name) for name in group) for group in (found.compared, found.bounded))
    return replace(found, compared=compared, bounded=bounded)


def _joined(reports: Sequence[Report], seeds: tuple[int, ...], seconds: float) -> Report:
    counters = tuple(row for report in reports for row in report.counters)
    return Report(
        tuple(kernel for report in reports for kernel in report.kernels),
        seeds,
        tuple(seen for report in reports for seen in report.findings),
        counters,
        total([row.counters for row in counters]),
        tuple(dict.fromkeys(name for report in reports for name in report.compared)),
        tuple(dict.fromkeys(name for report in reports for name in report.bounded)),
        tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        seconds,
    )


__all__ = ["examine_function"]
