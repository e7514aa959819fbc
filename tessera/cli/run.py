"""`tessera run`: kernels on made-up inputs, with every output checked against the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.cli import report
from tessera.cli.constants import pin
from tessera.cli.subject import Given, Setup, Subject, load, load_all, own, read_given, set_up
from tessera.cli.target import resolve, split
from tessera.config import config
from tessera.errors import TesseraError, to_json
from tessera.ir.opdef import TILE
from tessera.runtime import api, execute
from tessera.runtime.arrays import alignment_class
from tessera.runtime.compare import Comparison
from tessera.runtime.execute import Outcome

TIMED_REPEATS = 20


@dataclass(frozen=True)
class Options:
    """What the command line said about where to run."""

    backend: str
    arch: str | None


@dataclass
class Result:
    """One kernel's run. `roofline` is the fraction of the least time over the measured one, on a GPU."""

    name: str
    dims: dict[str, int] = field(default_factory=dict)
    scalars: dict[str, int | float] = field(default_factory=dict)
    arch: str | None = None
    outcome: Outcome | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    roofline: float | None = None
    notes: tuple[str, ...] = ()
    error: TesseraError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and all(comparison.ok for comparison in self.comparisons.values())


def run(
    target: str,
    dims: str | None,
    args: tuple[str, ...],
    backend: str | None,
    arch: str | None,
    seed: int,
    as_json: bool,
) -> int:
    given = read_given(dims, args, seed)
    options = Options(backend or config().backend, None if arch is None else api.choose_arch(arch))
    targets = pin(resolve(target), given.args)
    api.choose_lane(options.backend)  # a GPU that is asked for and absent is one error, not one per kernel
    if split(target)[1] is not None:
        result = run_subject(load(targets.items[0]), given, options)
        _show_one(result, target, as_json)
        return report.OK if result.ok else report.FAILED
    results = [_run_row(name, found, given, options) for name, found in load_all(target, targets.items, given)]
    ok = all(result.ok for result in results) and not targets.failures
    _show_all(results, targets.failures, ok, target, given.dims, as_json)
    return report.OK if ok else report.FAILED


def run_subject(subject: Subject, given: Given, options: Options) -> Result:
    """Runs one kernel and checks its outputs; raises what keeps it from running."""
    setup = set_up(subject, given)
    result = Result(subject.name, setup.dims, setup.scalars, notes=setup.notes)
    lane = _lane(subject, options)
    arguments = {**{name: _copied(value) for name, value in setup.arrays.items()}, **setup.scalars}
    if lane == "interpret":
        result.outcome = execute.interpret(setup.kernel, arguments, setup.bound, setup.extents, subject.level)
    else:
        result.arch = api.device_arch(0) if lane == "cuda" else api.choose_arch(options.arch)
        result.outcome = _run_program(subject, lane, result.arch, setup.bound, arguments)
    original = {**setup.arrays, **setup.scalars}
    result.comparisons = execute.verify_outputs(
        setup.kernel, original, setup.bound, result.outcome.outputs, setup.extents, subject.level
    )
    if lane == "cuda" and subject.level == TILE:
        result.roofline = _roofline(setup, result)
    return result


def _lane(subject: Subject, options: Options) -> str:
    # Target-level text says how a GPU runs the kernel; where there is none, running its CUDA shows the most.
    lane = api.choose_lane(options.backend)
    return "emulate" if subject.level != TILE and options.backend == "auto" and lane == "interpret" else lane


def _run_program(subject: Subject, lane: str, arch: str, dims: dict[str, int], arguments: dict[str, Any]) -> Outcome:
    on_host = {
        name: min((alignment_class(array.ctypes.data) for array in _arrays(value)), default=16)
        for name, value in arguments.items()
        if isinstance(value, (np.ndarray, list))
    }
    alignment = on_host if lane == "emulate" else dict.fromkeys(on_host, 16)
    program = subject.program(dims, arch, alignment)
    if lane == "emulate":
        return execute.emulate(program, arguments, dims)
    return execute.cuda(api.with_cubin(program), arguments, dims, TIMED_REPEATS)


def _copied(value: Any) -> Any:
    return [array.copy() for array in value] if isinstance(value, list) else value.copy()


def _arrays(value: Any) -> list[np.ndarray]:
    return value if isinstance(value, list) else [value]


def _roofline(setup: Setup, result: Result) -> float | None:
    from tessera.compiler import find_arch
    from tessera.runtime.roofline import roofline_seconds

    assert result.outcome is not None and result.arch is not None
    least = roofline_seconds(setup.kernel, setup.parameters, setup.bound, setup.extents, find_arch(result.arch))
    return least / result.outcome.seconds if result.outcome.seconds > 0 else None


def _run_row(name: str, found: Subject | TesseraError, given: Given, options: Options) -> Result:
    if isinstance(found, TesseraError):
        return Result(name, error=found)
    try:
        return run_subject(found, own(found, given), options)
    except TesseraError as error:
        if error.code == "TS605":
            raise  # a dim without a size is a mistake in the command, not in one of the kernels
        return Result(name, error=error)


# ---- what is printed ---------------------------------------------------------------------------------------------


def _show_one(result: Result, target: str, as_json: bool) -> None:
    if as_json:
        report.print_json({"ok": result.ok, "target": target, **_as_json(result)})
        return
    outcome = result.outcome
    assert outcome is not None
    where = f"{outcome.lane} ({result.arch})" if result.arch else outcome.lane
    scalars = "".join(f" {name}={value}" for name, value in result.scalars.items())
    print(f"{result.name}  {report.dims_text(result.dims)}{scalars}  lane {where}")
    for launched in outcome.kernels:
        print(f"  launch {launched.name}, grid {' x '.join(map(str, launched.grid))}")
    for note in result.notes:
        print(f"  note: {note}")
    rows = []
    for name, comparison in result.comparisons.items():
        array = outcome.outputs[name]
        verdict = "ok" if comparison.ok else "FAILED"
        rows.append([name, f"{_dtype(array)}{list(array.shape)}", *_errors(comparison), verdict])
    report.table(["output", "type", "max error", "bound", ""], rows)
    share = f", {result.roofline:.0%} of the roofline" if result.roofline is not None else ""
    print(f"time {report.seconds_text(outcome.seconds)}{share}")


def _show_all(
    results: list[Result],
    failures: list[TesseraError],
    ok: bool,
    target: str,
    given: dict[str, int] | None,
    as_json: bool,
) -> None:
    if as_json:
        ran = [result.outcome.lane for result in results if result.outcome]
        archs = [result.arch for result in results if result.arch]
        body: dict[str, Any] = {"ok": ok, "target": target, "lane": next(iter(ran), None)}
        body |= {"arch": next(iter(archs), None), "dims": given or {}, "functions": [_as_json(r) for r in results]}
        report.print_json(body | ({"errors": [to_json(error) for error in failures]} if failures else {}))
        return
    rows = []
    for result in results:
        outcome = result.outcome
        verdict = "ok" if result.ok else "FAILED"
        if outcome is None:
            rows.append([result.name, "-", "-", "-", "-", "-", verdict])
            continue
        worst = max(result.comparisons.values(), key=_badness, default=None)
        errors = _errors(worst) if worst else ["-", "-"]
        time = report.seconds_text(outcome.seconds)
        rows.append([result.name, report.dims_text(result.dims), outcome.lane, *errors, time, verdict])
    report.table(["kernel", "dims", "lane", "max error", "bound", "time", ""], rows)
    for result in results:
        if result.error is not None:
            print(f"\n{result.name}: {report.error_text(result.error)}")
    for error in failures:
        print(f"\n{report.error_text(error)}")


def _as_json(result: Result) -> dict[str, Any]:
    outcome = result.outcome
    body: dict[str, Any] = {
        "name": result.name,
        "ok": result.ok,
        "lane": outcome.lane if outcome else None,
        "arch": result.arch,
        "dims": result.dims,
        "scalars": result.scalars,
        "kernels": [{"name": k.name, "grid": list(k.grid)} for k in outcome.kernels] if outcome else [],
        "outputs": [_output_json(name, comparison, outcome) for name, comparison in result.comparisons.items()],
        "seconds": outcome.seconds if outcome else None,
        "roofline": result.roofline,
        "notes": list(result.notes),
    }
    return body | ({"error": to_json(result.error)} if result.error is not None else {})


def _output_json(name: str, comparison: Comparison, outcome: Outcome | None) -> dict[str, Any]:
    assert outcome is not None
    array = outcome.outputs[name]
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": _dtype(array),
        "max_error": comparison.max_error,
        "bound": comparison.bound,
        "ok": comparison.ok,
        "fraction_bad": comparison.fraction_bad,
        "rule": "rms" if comparison.rms_rule else "bound",
    }


def _dtype(array: np.ndarray) -> str:
    from tessera.dtypes import from_numpy

    found = from_numpy(array.dtype)
    return found.name if found else str(array.dtype)


def _errors(comparison: Comparison) -> list[str]:
    return [report.number_text(comparison.max_error), report.number_text(comparison.bound)]


def _badness(comparison: Comparison) -> float:
    if comparison.max_error == 0:
        return 0.0
    return comparison.max_error / comparison.bound if comparison.bound else float("inf")
