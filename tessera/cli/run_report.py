"""What `tessera run` prints: outputs with their errors, one by one or as a table of a whole file, or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.buffers import Footprint
from tessera.cli import report
from tessera.errors import TesseraError, to_json
from tessera.runtime.compare import RMS_LIMIT, Comparison
from tessera.runtime.execute import Outcome


@dataclass
class Result:
    """The run of one kernel or function. `roofline` is the fraction of the least time over the measured one, on a GPU;
    `footprint` what a call of a function needs.
    """

    name: str
    dims: dict[str, int] = field(default_factory=dict)
    scalars: dict[str, int | float] = field(default_factory=dict)
    arch: str | None = None
    outcome: Outcome | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    roofline: float | None = None
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None
    error: TesseraError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and all(comparison.ok for comparison in self.comparisons.values())


def show_one(result: Result, target: str, as_json: bool) -> None:
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
    if result.footprint is not None:
        print(f"launches {len(outcome.kernels)}, workspace {report.memory_text(result.footprint)}")
    print(f"time {report.seconds_text(outcome.seconds)}{share}")


def show_all(
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
            rows.append([result.name, "-", "-", "-", "-", "-", "-", verdict])
            continue
        worst = max(result.comparisons.values(), key=_badness, default=None)
        errors = _errors(worst) if worst else ["-", "-"]
        time = report.seconds_text(outcome.seconds)
        dims, launches = report.dims_text(result.dims), str(len(outcome.kernels))
        rows.append([result.name, dims, outcome.lane, launches, *errors, time, verdict])
    report.table(["kernel", "dims", "lane", "launches", "max error", "bound", "time", ""], rows)
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
    if result.footprint is not None:
        body |= report.memory_json(result.footprint)
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
        "rms_ratio": comparison.rms_ratio if comparison.rms_rule else None,
    }


def _dtype(array: np.ndarray) -> str:
    from tessera.dtypes import from_numpy

    found = from_numpy(array.dtype)
    return found.name if found else str(array.dtype)


def _errors(comparison: Comparison) -> list[str]:
    bound = report.number_text(comparison.bound)
    if comparison.rms_rule:  # the bars are wide: the deviation of the whole has the say
        bound = f"{bound}, rms {report.number_text(comparison.rms_ratio)} <= {report.number_text(RMS_LIMIT)}"
    return [report.number_text(comparison.max_error), bound]


def _badness(comparison: Comparison) -> float:
    if comparison.max_error == 0:
        return 0.0
    return comparison.max_error / comparison.bound if comparison.bound else float("inf")
