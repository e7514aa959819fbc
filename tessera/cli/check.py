"""`tessera check`: the emitted CUDA of kernels and functions, examined on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tessera.cli import report
from tessera.cli.constants import pin, read_pins
from tessera.cli.functions import FunctionSetup, FunctionSubject, set_up_function
from tessera.cli.subject import Given, Loaded, Setup, Subject, at_choice, load, load_all, own, read_given, set_up
from tessera.cli.target import resolve, split
from tessera.compiler import compile_function
from tessera.errors import ArgumentError, EnvironmentProblem, TesseraError, excerpt, to_json
from tessera.frontend.document import read_source_line
from tessera.location import Loc
from tessera.runtime import api, functions
from tessera.runtime.check import Blocks, Report, Seen, examine_kernel
from tessera.runtime.check_counters import Counted, conflicts, global_traffic, scatter
from tessera.runtime.check_function import examine_function
from tessera.runtime.emulator_memory import Counters

LANE = "emulate"
SNIPPET = 36  # characters of a source line in the table of counters


@dataclass(frozen=True)
class Options:
    """What the command line said about the examination."""

    arch: str
    seeds: tuple[int, ...]
    blocks: Blocks


@dataclass(frozen=True)
class Result:
    """The examination of one kernel or function, or the error that kept it from one."""

    name: str
    arch: str
    setup: Setup | FunctionSetup | None = None
    report: Report | None = None
    error: TesseraError | None = None

    @property
    def ok(self) -> bool:
        return self.report is not None and self.report.ok


def check(
    target: str,
    dims: str | None,
    args: tuple[str, ...],
    arch: str | None,
    seeds: int,
    seed: int,
    blocks: str | None,
    shapes: tuple[str, ...],
    pins: tuple[str, ...],
    as_json: bool,
) -> int:
    given = read_given(dims, args, seed, shapes)
    options = Options(api.choose_arch(arch), (0, *range(seed + 1, seed + seeds)), read_blocks(blocks))
    targets = pin(resolve(target), given.args, given.shapes, read_pins(pins))
    if split(target)[1] is not None:
        result = _check_subject(load(targets.items[0]), given, options)
        _show_one(result, target, as_json)
        return report.OK if result.ok else report.FAILED
    results = [_check_row(name, found, given, options) for name, found in load_all(target, targets.items, given)]
    ok = all(result.ok for result in results) and not targets.failures
    _show_all(results, targets.failures, ok, target, options, given.dims, as_json)
    return report.OK if ok else report.FAILED


def read_blocks(text: str | None) -> Blocks:
    """The option `--blocks`. Raises ArgumentError TS605 for what is neither a positive number nor "all"."""
    if text is None or text == "all":
        return text
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentError("TS605", f"--blocks takes a positive number or all, not '{text}'")
    return int(text)


def _check_subject(subject: Subject | FunctionSubject, given: Given, options: Options) -> Result:
    if isinstance(subject, FunctionSubject):
        return _check_function(subject, given, options)
    setup = set_up(subject, given)
    chosen, notes = at_choice(subject, setup.bound, setup.scalars, options.arch)
    compilation = chosen.compilation(setup.bound, options.arch)
    arguments = {**setup.arrays, **setup.scalars}
    examined = examine_kernel(compilation, arguments, setup.bound, options.seeds, options.blocks, given.seed)
    return Result(subject.name, options.arch, setup, replace(examined, notes=notes + examined.notes))


def _check_function(subject: FunctionSubject, given: Given, options: Options) -> Result:
    setup = set_up_function(subject, given)
    compilation = compile_function(setup.call.state.trace, setup.bound, options.arch)
    arguments = functions.host_arguments(setup.call)
    examined = examine_function(compilation, arguments, setup.bound, options.seeds, options.blocks, given.seed)
    return Result(subject.name, options.arch, setup, examined)


def _check_row(name: str, found: Loaded, given: Given, options: Options) -> Result:
    if isinstance(found, TesseraError):
        return Result(name, options.arch, error=found)
    try:
        return _check_subject(found, own(found, given), options)
    except EnvironmentProblem:
        raise  # a machine without a compiler is one error, not one per kernel
    except TesseraError as error:
        if error.code == "TS605":
            raise  # a dim without a size is a mistake in the command, not in one of the kernels
        return Result(name, options.arch, error=error)


# ---- text --------------------------------------------------------------------------------------------------------


def _show_one(result: Result, target: str, as_json: bool) -> None:
    if as_json:
        report.print_json({"ok": result.ok, "target": target, **_as_json(result)})
        return
    setup, examined = result.setup, result.report
    assert setup is not None and examined is not None
    scalars = "".join(f" {name}={value}" for name, value in setup.scalars.items())
    print(f"{result.name}  {report.dims_text(setup.dims)}{scalars}  lane {LANE} ({result.arch})")
    for launch in examined.kernels:
        blocks = f", {launch.blocks_run} of {launch.blocks_total} blocks" if launch.blocks is not None else ""
        print(f"  launch {launch.name}, grid {' x '.join(map(str, launch.grid))}{blocks}")
    for note in (*setup.notes, *examined.notes):
        print(f"  note: {note}")
    for seen in examined.findings:
        print(f"\n{_finding_text(seen)}")
    if examined.counters:
        print()
        _show_counters(examined.counters, examined.totals)
    print(f"\n{_verdict(examined)}" if examined.counters or examined.findings else _verdict(examined))


def _finding_text(seen: Seen) -> str:
    """The finding with its source line, and where it was seen."""
    found = seen.finding
    where = f"{found.file}:{found.line}:{found.column}: " if found.file else ""
    lines = [f"{where}{found.kind}: {found.message}"]
    if found.file and found.line:
        lines += excerpt(Loc(found.file, found.line, found.column or 1), read_source_line(found.file, found.line))
    place = [f"op {found.op}"] if found.op else []
    place += [f"line {found.cuda_line} of the CUDA text"] if found.cuda_line else []
    place += [f"block {found.block}"] if found.thread < 0 else []  # a message about a thread names its block
    place += [f"seed{'s' if len(seen.seeds) > 1 else ''} {', '.join(map(str, seen.seeds))}"]
    times = f" {found.count} times" if found.count > 1 else ""
    lines.append(f"  seen{times}: {', '.join(place)}")
    return "\n".join(lines)


def _verdict(examined: Report) -> str:
    if not examined.ok:
        count = len(examined.findings)
        return f"{count} finding{'s' if count > 1 else ''}"
    runs = f"{len(examined.seeds)} run{'s' if len(examined.seeds) > 1 else ''}"
    some = f" of {_blocks_text(examined)} blocks" if examined.sampled else ""
    seeds = f"seed{'s' if len(examined.seeds) > 1 else ''} {', '.join(map(str, examined.seeds))}"
    bits = "equal to the interpreter bit for bit"
    if examined.bounded:
        others = f"{', '.join(examined.bounded)} within its error bounds"
        bits = f"{bits}, {others}" if examined.compared else others
    elif not examined.compared:
        bits = "nothing was compared"
    return f"ok: no findings in {runs}{some} ({seeds}), {bits}"


_COLUMNS = ("line", "op", "shared", "wavefronts", "", "global", "sectors", "", "bytes", "mma", "barriers", "source")


def _show_counters(rows: Sequence[Counted], totals: Counters) -> None:
    """A row per op and line that costs something; a ratio stands only where more than the ideal was needed."""
    table: list[list[str]] = []
    for row in rows:
        if any(_numbers(row.counters)):
            place, source = _place(row.loc)
            known = any(place == line[0] for line in table)
            table.append([place, row.op, *_numbers_text(row.counters), "" if known else source])
    report.table(_COLUMNS, [*table, ["total", "", *_numbers_text(totals), ""]])


def _place(loc: Loc | None) -> tuple[str, str]:
    """A line as `file:line` and its text, as much of it as fits."""
    if loc is None:
        return "", ""
    source = read_source_line(loc.file, loc.line).strip()
    short = source if len(source) <= SNIPPET else source[: SNIPPET - 3] + "..."
    name = loc.file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{loc.line}", short


def _numbers(counters: Counters) -> list[int]:
    """Shared requests, wavefronts, ideal; global requests, sectors, ideal; bytes that move; mma; barriers."""
    shared, world = (counters.shared_read, counters.shared_write), (counters.global_read, counters.global_write)
    return [
        sum(part.requests for part in shared),
        sum(part.wavefronts for part in shared),
        sum(part.ideal for part in shared),
        sum(part.requests for part in world),
        sum(part.sectors for part in world),
        sum(part.ideal for part in world),
        sum(part.bytes for part in (*shared, *world)),
        counters.mma,
        counters.barriers,
    ]


def _numbers_text(counters: Counters) -> list[str]:
    shared, wavefronts, shared_ideal, world, sectors, ideal, *rest = _numbers(counters)
    head = [_count(shared), _count(wavefronts), _ratio_text(wavefronts, shared_ideal)]
    return [*head, _count(world), _count(sectors), _ratio_text(sectors, ideal), *map(_count, rest)]


def _count(number: int) -> str:
    return str(number) if number else ""


def _ratio_text(needed: int, ideal: int) -> str:
    return f"{needed / ideal:.1f}x" if ideal and needed >= 1.05 * ideal else ""


def _show_all(
    results: list[Result],
    failures: list[TesseraError],
    ok: bool,
    target: str,
    options: Options,
    dims: dict[str, int] | None,
    as_json: bool,
) -> None:
    if as_json:
        body: dict[str, Any] = {"ok": ok, "target": target, "lane": LANE, "arch": options.arch, "dims": dims or {}}
        body["findings"] = [_finding_json(seen, result.name) for result in results for seen in _findings(result)]
        body["functions"] = [_as_json(result) for result in results]
        report.print_json(body | ({"errors": [to_json(error) for error in failures]} if failures else {}))
        return
    rows = []
    for result in results:
        verdict = "ok" if result.ok else "FAILED"
        if result.report is None or result.setup is None:
            rows.append([result.name, "-", "-", "-", "-", "-", verdict])
            continue
        examined = result.report
        worst = [f"{ratio(examined.counters):.1f}x" for ratio in (conflicts, scatter)]
        shape, count = report.dims_text(result.setup.dims), str(len(examined.findings))
        rows.append([result.name, shape, _blocks_text(examined), count, *worst, verdict])
    report.table(["kernel", "dims", "blocks", "findings", "wavefronts", "sectors", ""], rows)
    for result in results:
        if result.error is not None:
            print(f"\n{result.name}: {report.error_text(result.error)}")
        for seen in _findings(result):
            print(f"\n{result.name}: {_finding_text(seen)}")
    for error in failures:
        print(f"\n{report.error_text(error)}")


def _blocks_text(examined: Report) -> str:
    launches = examined.kernels
    return f"{sum(k.blocks_run for k in launches)} of {sum(k.blocks_total for k in launches)}"


def _findings(result: Result) -> tuple[Seen, ...]:
    return result.report.findings if result.report is not None else ()


# ---- JSON --------------------------------------------------------------------------------------------------------


def _as_json(result: Result) -> dict[str, Any]:
    setup, examined = result.setup, result.report
    body: dict[str, Any] = {
        "name": result.name,
        "ok": result.ok,
        "lane": LANE,
        "arch": result.arch,
        "dims": setup.dims if setup else {},
        "scalars": setup.scalars if setup else {},
        "kernels": [],
        "findings": [_finding_json(seen, result.name) for seen in _findings(result)],
    }
    if setup is not None and examined is not None:
        body["kernels"] = [
            {
                "name": launch.name,
                "grid": list(launch.grid),
                "threads": launch.threads,
                "shared_bytes": launch.shared_bytes,
                "blocks_run": launch.blocks_run,
                "blocks_total": launch.blocks_total,
            }
            for launch in examined.kernels
        ]
        body |= {
            "blocks_run": sum(launch.blocks_run for launch in examined.kernels),
            "blocks_total": sum(launch.blocks_total for launch in examined.kernels),
            "seeds": list(examined.seeds),
            "compared": list(examined.compared),
            "compared_by_bound": list(examined.bounded),
            "counters": [_counted_json(row) for row in examined.counters],
            "totals": {**asdict(examined.totals), "global_bytes_moved": global_traffic(examined.totals)},
            "notes": [*setup.notes, *examined.notes],
            "seconds": examined.seconds,
        }
    return body | ({"error": to_json(result.error)} if result.error is not None else {})


def _finding_json(seen: Seen, kernel: str) -> dict[str, Any]:
    found = seen.finding
    return {
        "kind": found.kind,
        "message": found.message,
        "file": found.file or None,
        "line": found.line or None,
        "column": found.column or None,
        "kernel": kernel,
        "op": found.op or None,
        "cuda_line": found.cuda_line or None,
        "block": list(found.block),
        "thread": found.thread if found.thread >= 0 else None,
        "count": found.count,
        "seeds": list(seen.seeds),
    }


def _counted_json(row: Counted) -> dict[str, Any]:
    return {
        "op": row.op or None,
        "file": row.loc.file if row.loc else None,
        "line": row.loc.line if row.loc else None,
        **asdict(row.counters),
    }
