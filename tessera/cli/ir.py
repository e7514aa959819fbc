"""`tessera ir`: the IR of a kernel at any point of its compilation, and what each pass changed."""

from __future__ import annotations

import difflib
from typing import Any

from tessera.cli import report
from tessera.cli.constants import check_names, pin, read_args
from tessera.cli.target import Target, Targets, resolve_one
from tessera.compiler import Compilation, Stage, compile_kernel
from tessera.errors import ArgumentError, did_you_mean
from tessera.ir.printer import print_module
from tessera.runtime import api, execute, inputs

ALL = "all"
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
    as_json: bool,
) -> int:
    arch, constants = api.choose_arch(arch), read_args(args)
    targets = pin(Targets([resolve_one(target)]), constants)
    check_names(target, targets.items, constants)
    compilation, chosen = compile_target(targets.items[0], None if dims is None else inputs.parse_dims(dims), arch)
    stages = _chosen(compilation, stage, after, diff)
    texts = {id(item): print_module(item.module, locations) for item in compilation.stages}
    changes = _changes(compilation.stages, texts) if diff else {}
    if as_json:
        entries: list[dict[str, Any]] = []
        for item in stages:
            entry = {"name": item.name, "level": item.module.level, "seconds": item.seconds, "text": texts[id(item)]}
            entries.append(entry | ({"diff": changes[id(item)]} if diff else {}))
        body = {"ok": True, "target": target, "lane": None, "arch": arch, "dims": chosen}
        report.print_json(body | {"stages": entries})
        return report.OK
    for item in stages:
        if len(stages) > 1 or diff:
            print(f"// ---- after {item.name}")
        if diff:
            report.code(changes[id(item)] or "// no change\n", "diff")
        else:
            report.code(texts[id(item)], "text")
    return report.OK


def compile_target(target: Target, given: dict[str, int] | None, arch: str) -> tuple[Compilation, dict[str, int]]:
    """Compiles a kernel for the dims that were given, or their defaults; also returns those."""
    if target.definition is not None:
        state = api.KernelState(target.definition)
        dims = inputs.choose_dims(target.name, inputs.dims_of(state.signature), given)
        lengths = inputs.choose_lengths(target.name, state.signature, target.args)
        return compile_kernel(target.definition, {**dims, **lengths}, arch), dims
    assert target.module is not None
    parameters = execute.parameters_of(target.module.kernel(target.name))
    dims = inputs.choose_dims(target.name, inputs.dims_of(parameters), given)
    return compile_kernel(target.module, dims, arch), dims


def _chosen(compilation: Compilation, level: str | None, after: str | None, diff: bool) -> list[Stage]:
    """The stages to show: of one level if it is given; the last one unless a pass, all, or a diff is asked for."""
    stages = [item for item in compilation.stages if level in (None, item.module.level)]
    if not stages:
        raise ArgumentError("TS605", f"this IR is past the {level} level: it has no stage to show")
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
