"""What `tessera bench` prints: a table per row when the row is done, and a line for each of ours at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tessera.cli import report
from tessera.runtime.bench import OK, Result, Row, ratio
from tessera.runtime.bench_case import FLOOR, RIVAL, Case, dims_text
from tessera.runtime.bench_device import Peaks

NONE = "-"
_VERDICTS = {"ok": "", "wrong": "WRONG", "failed": "FAILED"}


def show_list(cases: Sequence[Case], as_json: bool) -> int:
    if as_json:
        found = [
            {"name": case.name, "title": case.title, "rows": [dict(row) for row in case.rows], "rivals": case.rivals}
            for case in cases
        ]
        report.print_json({"ok": True, "cases": found})
        return report.OK
    rows = [[case.name, str(len(case.rows)), ", ".join(case.rivals), case.title] for case in cases]
    report.table(["case", "rows", "rivals", ""], rows)
    return report.OK


def show_machine(facts: Mapping[str, Any], peaks: Peaks) -> None:
    print("  ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    print(f"copy {peaks.copy / 1e12:.2f} TB/s, product {peaks.product / 1e12:.0f} Tflop/s ({peaks.product_by})")


def show_row(row: Row) -> None:
    """Everybody of one row; ratios are to the first of ours."""
    print(f"\n{row.case}  {dims_text(row.dims)}  {_work(row)}", flush=True)
    if row.message:
        print(f"FAILED: {row.message}")
    else:
        lead = next(iter(row.ours), None)
        report.table(
            ["", "us", "spread", "ratio", "roofline", "error", ""], [_cells(row, r, lead) for r in row.results]
        )
        for result in row.results:
            if result.message:
                print(f"  {result.name}: {result.message}")
    sys.stdout.flush()  # what is done must be seen, even where the output is a pipe and the machine goes away


def _work(row: Row) -> str:
    work = f"{row.bytes / 1e6:.1f} MB" + (f", {row.flops / 1e9:.1f} Gflop" if row.flops else "")
    return f"{work}, at least {row.peaks.least_us(row.bytes, row.flops):.1f} us  ({row.seconds:.1f} s)"


def _cells(row: Row, result: Result, lead: Result | None) -> list[str]:
    return [
        _shown(result),
        number(result.us, ".1f"),
        number(result.spread, ".1%"),
        number(ratio(result, lead), ".2f"),
        number(row.roofline(result), ".0%"),
        number(result.error.norm if result.error else None, ".1e"),
        _VERDICTS[result.status] or _facts(result),
    ]


def _facts(result: Result) -> str:
    """The schedule of a rival, and how it was found."""
    facts = result.facts
    if not facts.get("schedule"):
        return ""
    chosen = " ".join(f"{name}={value}" for name, value in facts["schedule"].items())
    return f"{chosen} (stored)" if facts["stored"] else f"{chosen} ({facts['wrong']} of {facts['tried']} wrong)"


def show_summary(rows: Sequence[Row]) -> None:
    """A line for each of ours, with how many times as long everybody else took."""
    others = list(dict.fromkeys(_shown(r) for row in rows for r in row.results if r.kind in (RIVAL, FLOOR)))
    lines = []
    for row in rows:
        where = [row.case, dims_text(row.dims)]
        if row.message:
            lines.append([*where, "FAILED", *[NONE] * (3 + len(others))])
        lines += [[*where, *_summary(row, own, others)] for own in row.ours]
    print()
    report.table(["case", "row", "ours", "us", "roofline", "untuned", *others], lines)
    print("untuned and others: their time over ours; * does a part of the work, or moves as many bytes")


def _summary(row: Row, own: Result, others: Sequence[str]) -> list[str]:
    shown = {_shown(result): ratio(result, own) for result in row.results}
    share = row.roofline(own)
    return [
        own.name,
        number(own.us, ".1f") if own.status == OK else _VERDICTS[own.status],
        number(share, ".0%"),
        number(ratio(row.untuned(own.name), own), ".2f"),
        *(number(shown.get(name), ".2f") for name in others),
    ]


def _shown(result: Result) -> str:
    return f"{result.name} *" if result.kind == FLOOR else result.name


def number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


__all__ = ["show_list", "show_machine", "show_row", "show_summary"]
