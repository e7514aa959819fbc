"""`tessera compile`: CUDA text, PTX, cubins, SASS and resources of kernels, on a machine with or without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tessera.buffers import Footprint
from tessera.cli import report
from tessera.cli.constants import check_names, pin, read_args, read_pins, read_shapes
from tessera.cli.ir import compile_target
from tessera.cli.opt import write
from tessera.cli.target import Target, resolve, split
from tessera.compiler import Compilation, FunctionCompilation
from tessera.errors import ArgumentError, TesseraError, did_you_mean, to_json
from tessera.program import Launch
from tessera.runtime import api, inputs, nvrtc, programs
from tessera.runtime.autotune_calls import note_of
from tessera.runtime.autotune_report import Choice

KINDS = ("cuda", "ptx", "cubin", "sass", "resources")
SUFFIXES = {"cuda": "cu", "ptx": "ptx", "cubin": "cubin", "sass": "sass", "resources": "json"}
TEXTS = {"cuda": "c++", "ptx": "text", "sass": "text"}  # what can be printed, with the language to colour it as


@dataclass
class Built:
    """One kernel for one architecture. `products` holds the texts and bytes that were asked for, by kind.

    `cached`: NVRTC's part was read from the disk cache; None where nothing of NVRTC's was asked for. `choice`: the
    point of an autotuned kernel. `function` is the one that the kernel is a part of, `footprint` what a call of that
    needs.
    """

    name: str
    arch: str
    dims: dict[str, int]
    resources: list[dict[str, Any]]
    times: dict[str, float]
    products: dict[str, str | bytes]
    cached: bool | None = None
    files: list[str] = field(default_factory=list)
    choice: Choice | None = None
    function: str | None = None
    footprint: Footprint | None = None


def compile_(
    target: str,
    dims: str | None,
    archs: str | None,
    emit: str | None,
    directory: str | None,
    timed: bool,
    args: tuple[str, ...],
    shapes: tuple[str, ...],
    pins: tuple[str, ...],
    as_json: bool,
) -> int:
    given = None if dims is None else inputs.parse_dims(dims)
    names = [api.choose_arch(name.strip()) for name in archs.split(",")] if archs else [api.choose_arch(None)]
    kinds = _kinds(emit, directory)
    if "sass" in kinds:
        from tessera.runtime.sass import find_nvdisasm

        find_nvdisasm()  # before minutes of compiling, not after
    built: list[Built] = []
    failures: list[tuple[str, TesseraError]] = []
    single = split(target)[1] is not None
    constants = read_args(args)
    targets = pin(resolve(target), constants, read_shapes(shapes), read_pins(pins))
    check_names(target, targets.items, constants)
    failures += [("", error) for error in targets.failures]
    for item in targets.items:
        try:
            for arch in dict.fromkeys(names):
                built += build(item, given, arch, kinds, timed)
        except TesseraError as error:
            if single or error.code == "TS605":
                raise
            failures.append((item.name, error))
    if directory is not None:
        for item in built:
            _write(item, kinds, Path(directory))
    _show(target, built, failures, kinds, directory is not None, timed, as_json)
    return report.FAILED if failures else report.OK


def _kinds(emit: str | None, directory: str | None) -> list[str]:
    if emit is None:
        return ["cuda", "ptx", "cubin", "resources"] if directory is not None else ["resources"]
    kinds = [kind.strip() for kind in emit.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS)
            raise ArgumentError("TS605", f"--emit knows no '{kind}' (it knows {', '.join(KINDS)}){hint}")
    if kinds == ["cubin"] and directory is None:
        raise ArgumentError("TS605", "a cubin is no text; name a folder for it with -o DIR")
    return kinds


def build(
    target: Target, given: dict[str, int] | None, arch: str, kinds: Sequence[str], timed: bool = False
) -> list[Built]:
    """Compiles a kernel, or every kernel of a function, for one architecture as far as `kinds` need.

    `timed` reads nothing from the disk cache.
    """
    if target.error is not None:
        raise target.error
    compilation, dims, choice = compile_target(target, given, arch)
    if isinstance(compilation, FunctionCompilation):
        made = [
            _built(one.stages[0].module.kernel().name, one, dims, arch, kinds, timed) for one in compilation.kernels
        ]
        return [replace(one, function=target.name, footprint=compilation.footprint) for one in made]
    return [replace(_built(target.name, compilation, dims, arch, kinds, timed), choice=choice)]


def _built(
    name: str, compilation: Compilation, dims: dict[str, int], arch: str, kinds: Sequence[str], timed: bool
) -> Built:
    program = compilation.program
    assert program is not None
    times = dict(compilation.times)
    products: dict[str, str | bytes] = {"cuda": program.cuda}
    resources: list[dict[str, Any]] = [_entry(step, arch) for step in program.launches]
    cached = None
    if set(kinds) - {"cuda"}:
        compiled, cached = programs.compile_texts(program, fresh=timed)
        assert compiled.ptx is not None
        times["nvrtc"] = compiled.seconds
        products |= {"ptx": compiled.ptx, "cubin": compiled.cubin}
        resources = [_measured(step, arch, compiled) for step in program.launches]
        if "sass" in kinds:
            from tessera.runtime.sass import disassemble

            products["sass"] = disassemble(compiled.cubin)
    return Built(name, arch, dims, resources, times, {k: v for k, v in products.items() if k in kinds}, cached)


def _entry(step: Launch, arch: str) -> dict[str, Any]:
    return {"name": step.kernel, "arch": arch, "threads": step.threads, "shared_bytes": step.shared_bytes}


def _measured(step: Launch, arch: str, compiled: nvrtc.Compiled) -> dict[str, Any]:
    found = compiled.resources.get(step.kernel)
    assert compiled.ptx is not None
    entry = _entry(step, arch)
    entry |= {"registers": None, "spill_bytes": None, "stack_bytes": None}
    if found is not None:  # an NVRTC that answers from its own cache repeats no measurements
        entry["registers"] = found.registers
        entry["shared_bytes"] = step.shared_bytes + found.shared_bytes
        entry["spill_bytes"] = found.spill_stores + found.spill_loads
        entry["stack_bytes"] = found.stack
    text = nvrtc.entry_text(compiled.ptx, step.kernel)
    return entry | {"instructions": {k: n for k, n in nvrtc.count_instructions(text).items() if n}}


def _write(built: Built, kinds: Sequence[str], folder: Path) -> None:
    import json

    contents = dict(built.products)
    if "resources" in kinds:
        body = {"schema": report.SCHEMA, "dims": built.dims, "kernels": built.resources, "seconds": built.times}
        contents["resources"] = json.dumps(report.strict(body), indent=2, allow_nan=False) + "\n"
    for kind, content in contents.items():
        path = folder / f"{built.name}.{built.arch}.{SUFFIXES[kind]}"
        write(path, content)
        built.files.append(str(path))


def _show(
    target: str,
    built: list[Built],
    failures: list[tuple[str, TesseraError]],
    kinds: Sequence[str],
    written: bool,
    timed: bool,
    as_json: bool,
) -> None:
    if as_json:
        _show_json(target, built, failures, written)
        return
    for item in built:
        for kind, language in TEXTS.items():
            if kind in item.products and not written:
                text = item.products[kind]
                assert isinstance(text, str)
                report.code(text, language)
        for path in item.files:
            print(path)
    if "resources" in kinds:
        report.table(
            ["kernel", "arch", "threads", "registers", "shared", "spills", "instructions"],
            [_row(entry) for item in built for entry in item.resources],
        )
    if "resources" in kinds:
        for (function, arch), found in _footprints(built).items():
            print(f"{function} for {arch}: workspace {report.memory_text(found)}")
    for item in built:
        if item.choice is not None and "resources" in kinds:
            print(f"note: {item.name} for {item.arch}: {note_of(item.choice)}")
    if timed:
        _show_times(built)
    for name, error in failures:
        print(f"\n{name}: {report.error_text(error)}" if name else f"\n{report.error_text(error)}")


def _footprints(built: list[Built]) -> dict[tuple[str, str], Footprint]:
    """What calls of functions need, by name and architecture."""
    return {
        (item.function, item.arch): item.footprint
        for item in built
        if item.function is not None and item.footprint is not None
    }


def _row(entry: dict[str, Any]) -> list[str]:
    counted = ", ".join(f"{name} {count}" for name, count in entry.get("instructions", {}).items())
    found = [entry.get(key) for key in ("threads", "registers", "shared_bytes", "spill_bytes")]
    numbers = ["-" if number is None else str(number) for number in found]
    return [entry["name"], entry["arch"], *numbers, counted]


def _show_times(built: list[Built]) -> None:
    """A row per stage in seconds, a column per kernel and architecture."""
    stages = list(dict.fromkeys(name for item in built for name in item.times))
    heads = [item.arch if len({b.name for b in built}) == 1 else f"{item.name} {item.arch}" for item in built]
    rows = [
        [stage, *(f"{item.times[stage]:.4f}" if stage in item.times else "-" for item in built)] for stage in stages
    ]
    rows.append(["total", *(f"{sum(item.times.values()):.4f}" for item in built)])
    report.table(["stage (seconds)", *heads], rows)


def _show_json(target: str, built: list[Built], failures: list[tuple[str, TesseraError]], written: bool) -> None:
    kernels = []
    for item in built:
        for entry in item.resources:
            texts = {} if written else {k: v for k, v in item.products.items() if isinstance(v, str)}
            facts = {"dims": item.dims, "seconds": item.times, "cached": item.cached, "files": item.files}
            facts |= {"choice": asdict(item.choice)} if item.choice is not None else {}
            kernels.append({**entry, **facts, **texts})
    archs = list(dict.fromkeys(item.arch for item in built))
    body: dict[str, Any] = {
        "ok": not failures,
        "target": target,
        "lane": None,
        "arch": archs[0] if len(archs) == 1 else archs,
        "dims": built[0].dims if built else {},
        "kernels": kernels,
    }
    if memory := _footprints(built):
        body["memory"] = [{"name": n, "arch": a, **report.memory_json(found)} for (n, a), found in memory.items()]
    if failures:
        body["functions"] = [{"name": n or None, "ok": False, "error": to_json(error)} for n, error in failures]
    report.print_json(body)


__all__ = ["Built", "build", "compile_"]
