"""`tessera ir`: the IR of a kernel or function at any point of its compilation, and what each pass changed."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

from tessera.cli import report
from tessera.cli.constants import check_names, pin, read_args, read_pins, read_shapes
from tessera.cli.functions import choose, load_function
from tessera.cli.fusion import fusion_json, fusion_text
from tessera.cli.plans import plan_json, plan_text, roundings_json, roundings_table
from tessera.cli.schedule import explain
from tessera.cli.sizes import sizes_of
from tessera.cli.target import Target, Targets, resolve_one
from tessera.compiler import Compilation, FunctionCompilation, Stage, compile_function, compile_kernel
from tessera.errors import ArgumentError, did_you_mean
from tessera.ir.opdef import GRAPH
from tessera.ir.printer import print_module
from tessera.runtime import api, inputs
from tessera.runtime.autotune_report import Choice

ALL = "all"
LOWERED = "lower_graph"  # the stage at which a function is kernels for the first time
FUSED = "fuse"  # the stage at which it is known which ops share a kernel
CONTEXT_LINES = 3


def ir(
    target: str,
    dims: str | None,
    stage: str | None,
    after: str | None,
    diff: bool,
    arch: str | None,
    locations: bool,
    args: tuple[str, ...],
    shapes: tuple[str, ...],
    pins: tuple[str, ...],
    precision: bool,
    schedule: bool,
    as_json: bool,
) -> int:
    arch, constants = api.choose_arch(arch), read_args(args)
    targets = pin(Targets([resolve_one(target)]), constants, read_shapes(shapes), read_pins(pins))
    check_names(target, targets.items, constants)
    given = None if dims is None else inputs.parse_dims(dims)
    if schedule:
        return explain(target, targets.items[0], given, arch, as_json)
    compilation, chosen, choice = compile_target(targets.items[0], given, arch)
    if precision:
        return _precision(target, compilation, chosen, arch, as_json)
    stages = _chosen(compilation, stage, after, diff)
    texts = {id(item): print_module(item.module, locations) for item in compilation.stages}
    changes = _changes(compilation.stages, texts) if diff else {}
    if as_json:
        entries: list[dict[str, Any]] = []
        for item in stages:
            entry = {"name": item.name, "level": item.module.level, "seconds": item.seconds, "text": texts[id(item)]}
            entries.append(entry | ({"diff": changes[id(item)]} if diff else {}))
        body = {"ok": True, "target": target, "lane": None, "arch": arch, "dims": chosen}
        plan = plan_json(compilation) if isinstance(compilation, FunctionCompilation) else {}
        if isinstance(compilation, FunctionCompilation) and any(item.name == FUSED for item in stages):
            plan["fusion"] = fusion_json(compilation.fusion, compilation.dims)
        choices = {"choice": asdict(choice)} if choice is not None else {}
        report.print_json(body | plan | choices | {"stages": entries})
        return report.OK
    for item in stages:
        if len(stages) > 1 or diff:
            print(f"// ---- after {item.name}")
        if isinstance(compilation, FunctionCompilation) and item.name == LOWERED:
            print(plan_text(compilation.plan))
            print(f"// workspace {report.memory_text(compilation.footprint)}")
        if isinstance(compilation, FunctionCompilation) and item.name == FUSED and after is not None:
            print(fusion_text(compilation.fusion, compilation.dims))
        if diff:
            report.code(changes[id(item)] or "// no change\n", "diff")
        else:
            report.code(texts[id(item)], "text")
    return report.OK


def _precision(
    target: str, compilation: Compilation | FunctionCompilation, dims: dict[str, int], arch: str, as_json: bool
) -> int:
    """Which values are rounded where, and why."""
    if not isinstance(compilation, FunctionCompilation):
        raise ArgumentError("TS605", f"{target} is a kernel: every rounding of one is written in its tile IR")
    if as_json:
        body = {"ok": True, "target": target, "lane": None, "arch": arch, "dims": dims}
        report.print_json(body | {"roundings": roundings_json(compilation.plan)})
    else:
        report.table(*roundings_table(compilation.plan))
    return report.OK


def compile_target(
    target: Target, given: dict[str, int] | None, arch: str
) -> tuple[Compilation | FunctionCompilation, dict[str, int], Choice | None]:
    """Compiles a kernel or function for the dims that were given, or their defaults; also returns those, and the point
    that was chosen for an autotuned kernel.
    """
    if target.function is not None:
        subject = load_function(target)
        dims = choose(subject, given)
        return compile_function(subject.trace(dims), subject.static(dims), arch), dims, None
    dims, lengths = sizes_of(target, given)
    sizes = {**dims, **lengths}
    if target.definition is not None:
        state = api.KernelState(target.definition)
        scalars = inputs.choose_scalars(target.name, state.signature, {}, state.defaults)
        state, choice = state.chosen(sizes, arch, scalars)
        return compile_kernel(state.definition, sizes, arch, schedule=api.schedule_of(choice)), dims, choice
    assert target.module is not None
    return compile_kernel(target.module, sizes, arch), dims, None


def _chosen(
    compilation: Compilation | FunctionCompilation, level: str | None, after: str | None, diff: bool
) -> list[Stage]:
    """The stages to show: of one level if it is given; the last one unless a pass, all, or a diff is asked for."""
    stages = [item for item in compilation.stages if level in (None, item.module.level)]
    if not stages:
        has = "this is a kernel" if level == GRAPH else f"this IR is past the {level} level"
        raise ArgumentError("TS605", f"{has}: it has no stage to show")
    if after == ALL or (after is None and diff):
        return stages
    if after is None:
        return stages[-1:]
    found = [item for item in stages if item.name == after]
    if not found:
        names = [item.name for item in stages]
        where = f" at the {level} level" if level else ""
        hint = did_you_mean(after, names)
        raise ArgumentError("TS605", f"there is no pass '{after}'{where} (there are {', '.join(names)} and all){hint}")
    return found


def _changes(stages: list[Stage], texts: dict[int, str]) -> dict[int, str]:
    """A unified diff of each stage against the one before; the first against nothing."""
    changes, before, name = {}, "", "nothing"
    for item in stages:
        text = texts[id(item)]
        lines = difflib.unified_diff(
            before.splitlines(), text.splitlines(), name, item.name, n=CONTEXT_LINES, lineterm=""
        )
        changes[id(item)] = "".join(f"{line}\n" for line in lines)
        before, name = text, item.name
    return changes


__all__ = ["compile_target", "ir"]
