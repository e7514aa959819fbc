"""`tessera bench`: cases against their rivals, or a kernel against a copy of its bytes, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tessera.cli import bench_report, report
from tessera.cli.constants import read_pins
from tessera.cli.subject import read_given
from tessera.errors import ArgumentError, SourceError, TesseraError, did_you_mean
from tessera.runtime import bench_device, inputs
from tessera.runtime.bench import Bench, Options, Row
from tessera.runtime.bench import as_json as row_json
from tessera.runtime.bench_case import Case, Dims
from tessera.runtime.bench_plot import write_plot
from tessera.runtime.bench_search import Compilers, load_file
from tessera.runtime.bench_store import Results, Winners, finite
from tessera.target.schedules import parse_pin

CASES = Path("bench") / "cases.py"
WINNERS, RESULTS = "competitors.json", "results"  # beside the file of cases
COMPILED = "compile"  # the rival that --no-compile leaves out


@dataclass(frozen=True)
class Job:
    """One row to measure. `folder`: where the results of its case are kept; None: nowhere."""

    case: Case
    dims: Dims
    folder: Path | None

    @property
    def file(self) -> Path | None:
        return self.folder / f"{self.case.name}.json" if self.folder else None


def bench(
    targets: tuple[str, ...],
    cases: str | None,
    listed: bool,
    rows: tuple[str, ...],
    rivals: str | None,
    retune: bool,
    no_compile: bool,
    repeats: int,
    save: str | None,
    plot: str | None,
    dims: str | None,
    args: tuple[str, ...],
    pins: tuple[str, ...],
    as_json: bool,
) -> int:
    kernels = [target for target in targets if is_kernel(target)]
    if (dims is not None or args) and not kernels:
        raise ArgumentError("TS605", "--dims and --arg are for FILE::NAME; the rows of a case are chosen with --rows")
    path = find_cases(cases, needed=len(kernels) < len(targets) or not targets)
    known = load_cases(path) if path else {}
    if listed:
        return bench_report.show_list(list(known.values()), as_json)
    chosen = choose_cases([t for t in targets if not is_kernel(t)] if targets else list(known), known)
    options = Options(
        repeats, read_rivals(rivals, chosen), frozenset([COMPILED] if no_compile else ()), retune, read_fields(pins)
    )
    jobs = choose_rows(chosen, rows, path.parent / RESULTS if path else None)
    if kernels:
        from tessera.cli.bench_target import case_of

        given = read_given(dims, args, 0)
        own = [case_of(target, given) for target in kernels]
        jobs += [Job(case, case.rows[0], None) for case in own]
    if save:
        jobs = [replace(job, folder=Path(save)) for job in jobs]
    device = bench_device.open_device()
    winners = Winners((path.parent if path else Path()) / WINNERS, device.facts)
    peaks = device.peaks()
    bench_report.show_machine(device.facts, peaks)
    with closing(Compilers()) as compilers:
        done = measure(jobs, Bench(device, peaks, winners, compilers, options))
    if plot:
        write_plot(Path(plot), done, peaks, f"Roofline of {device.facts.get('gpu')}, as measured")
    ok = all(row.ok for row in done)
    if as_json:
        _print_json(ok, done, jobs, device)
    else:
        bench_report.show_summary(done)
    return report.OK if ok else report.FAILED


def measure(jobs: Sequence[Job], bench: Bench) -> list[Row]:
    """Measures the rows in order; each is printed, and in the file of its case, before the next one starts."""
    files = {job.file: Results(job.file, job.case.name) for job in jobs if job.file}
    for job in jobs:
        bench.queue(job.case, job.dims)
    done = []
    for job in jobs:
        row = bench.measure(job.case, job.dims)
        done.append(row)
        bench_report.show_row(row)
        if job.file:
            files[job.file].put(row_json(row), bench.device.facts)
    return done


def _print_json(ok: bool, rows: Sequence[Row], jobs: Sequence[Job], device: bench_device.Device) -> None:
    saved = sorted({str(job.file) for job in jobs if job.file})
    measured = [finite(row_json(row)) for row in rows]
    report.print_json({"ok": ok, "machine": dict(device.facts), "saved": saved, "rows": measured})


# ---- what the command line names ---------------------------------------------------------------------------------


def is_kernel(target: str) -> bool:
    return "::" in target or Path(target).suffix != ""


def find_cases(given: str | None, needed: bool) -> Path | None:
    """The file of cases: the given one, else that of this checkout. Raises ArgumentError TS605 where one is needed."""
    path = Path(given) if given else CASES
    if path.is_file():
        return path.resolve()
    if given or needed:
        raise ArgumentError("TS605", f"there is no file of cases {path}: start in a checkout, or name one with --cases")
    return None


def load_cases(path: Path) -> dict[str, Case]:
    """The cases of a file by name. Raises SourceError TS105 for a file that does not run, ArgumentError TS605."""
    try:
        found = getattr(load_file(path), "CASES", None)
    except TesseraError:
        raise
    except Exception as error:
        raise SourceError("TS105", f"{path} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, (list, tuple)) or not all(isinstance(case, Case) for case in found):
        raise ArgumentError("TS605", f"{path} defines no list CASES of benchmark cases")
    return {case.name: case for case in found}


def choose_cases(names: Iterable[str], known: dict[str, Case]) -> list[Case]:
    """Raises ArgumentError TS605 for a name that no case has."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ArgumentError("TS605", f"there is no case '{name}' (there are {', '.join(known) or 'none'}){hint}")
    return [known[name] for name in names]


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """The options `--pin`. Raises ArgumentError TS605 for a field that no schedule has, or a value that none can have."""
    try:
        return {name: parse_pin(name, text) for name, text in read_pins(texts).items()}
    except SourceError as error:
        raise ArgumentError("TS605", f"--pin: {error.message}") from None


def read_rivals(text: str | None, cases: Sequence[Case]) -> frozenset[str] | None:
    """The option `--rivals`. Raises ArgumentError TS605 for a name that none of the cases has."""
    if text is None:
        return None
    known = list(dict.fromkeys(name for case in cases for name in case.rivals))
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ArgumentError("TS605", f"there is no rival '{name}' (there are {', '.join(known) or 'none'}){hint}")
    return frozenset(chosen)


def choose_rows(cases: Sequence[Case], texts: Sequence[str], folder: Path | None) -> list[Job]:
    """The rows of the cases that agree with one of the options `--rows`; all without one.

    An option that no row of a case agrees with is a row of its own, as the first row is otherwise. Raises ArgumentError
    TS605 for a name that no case has.
    """
    asked = [inputs.parse_assignments(text, "--rows") for text in texts]
    for item in asked:
        if cases and not any(item.keys() <= case.rows[0].keys() for case in cases):
            known = "; ".join(f"{case.name}: {', '.join(case.rows[0])}" for case in cases)
            raise ArgumentError("TS605", f"no case has rows with all of {', '.join(item)} ({known})")
    jobs = []
    for case in cases:
        fitting = [_typed(case, item) for item in asked if item.keys() <= case.rows[0].keys()]
        rows = list(case.rows) if not asked else []
        for item in fitting:
            agreeing = [row for row in case.rows if item.items() <= row.items()]
            rows += [row for row in agreeing or [{**case.rows[0], **item}] if row not in rows]
        jobs += [Job(case, row, folder) for row in rows]
    return jobs


def _typed(case: Case, item: dict[str, str]) -> dict[str, int | str]:
    typed: dict[str, int | str] = {}
    for name, text in item.items():
        if isinstance(case.rows[0][name], int):
            if not (text.isascii() and text.isdigit() and int(text) > 0):
                raise ArgumentError("TS605", f"--rows gives {name} of {case.name} as '{text}', which is no size")
            typed[name] = int(text)
        else:
            known = list(dict.fromkeys(str(row[name]) for row in case.rows))
            if text not in known:
                raise ArgumentError("TS605", f"--rows gives {name} of {case.name} as '{text}', not {', '.join(known)}")
            typed[name] = text
    return typed


__all__ = ["bench"]
