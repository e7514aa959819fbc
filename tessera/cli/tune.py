"""`tessera tune`: measures the candidates of a kernel on the GPU and keeps the fastest right one, or predicts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tessera.cli import report
from tessera.cli.constants import constants_of, pin, read_args, read_pins
from tessera.cli.schedule import kind_of
from tessera.cli.target import Target, Targets, resolve_one
from tessera.errors import ArgumentError
from tessera.frontend.grid import check_coverage, launch_grid
from tessera.runtime import api, autotune, gpu, inputs, launch
from tessera.runtime.autotune import Budget, Subject
from tessera.runtime.autotune_calls import Bench, Compiled, gpu_name
from tessera.runtime.autotune_progress import shown
from tessera.runtime.autotune_report import CUT, OK, PRUNED, Report, Row, settings_text
from tessera.runtime.autotune_store import Question, Store
from tessera.target.schedule import FIXED_BY_CONSTANTS

MOST_SHOWN = 40  # rows of the table; `--json` has all
ALIGNED = 16  # bytes, of what an allocator of a GPU gives


@dataclass(frozen=True)
class Plan:
    """What is to be tuned. `sizes` are the dims and the lengths of lists; `ordinal` is the GPU, None without one."""

    state: api.KernelState
    dims: dict[str, int]
    sizes: dict[str, int]
    scalars: dict[str, int | float]
    subject: Subject
    question: Question | None
    ordinal: int | None
    seed: int


def tune(
    target: str,
    dims: str | None,
    args: tuple[str, ...],
    pins: tuple[str, ...],
    budget: float | None,
    candidates: int | None,
    retune: bool,
    arch: str | None,
    seed: int,
    as_json: bool,
) -> int:
    texts = read_args(args)
    item = pin(Targets([resolve_one(target)]), texts, pins=read_pins(pins)).items[0]
    plan = make_plan(item, None if dims is None else inputs.parse_dims(dims), texts, arch, seed)
    own = plan.subject.budget
    limits = Budget(own.seconds if budget is None else budget, own.candidates if candidates is None else candidates)
    plan = replace(plan, subject=replace(plan.subject, budget=limits))
    kept = None if retune else _kept(plan)
    found = kept or _tuned(plan)
    stored = kept is not None
    if as_json:
        body = {"ok": True, "target": target, "lane": "cuda" if found.measured else None, **found.to_json()}
        body |= {"dims": plan.dims, "measured": found.measured, "stored": stored, "paste": _paste(plan, found)}
        report.print_json(body)
    else:
        _show(plan, found, stored)
    return report.OK


def make_plan(
    item: Target, given: dict[str, int] | None, texts: Mapping[str, str], arch: str | None, seed: int
) -> Plan:
    """Raises ArgumentError TS605 for what has no candidates, and for what was given and does not fit."""
    definition = item.definition
    if definition is None:
        what = "a function; name a kernel that it calls" if item.function is not None else "textual IR"
        raise ArgumentError("TS605", f"tune takes a kernel of a Python file or document, and {item.name} is {what}")
    state = api.KernelState(definition)
    signature, constants = state.signature, constants_of(definition)
    lists = {p.name for p in signature if p.kind == "list"}
    numbers = {name: text for name, text in texts.items() if name not in (*constants, *lists)}
    scalars = inputs.choose_scalars(item.name, signature, numbers, state.defaults, constants)
    dims = inputs.choose_dims(item.name, inputs.dims_of(signature), given)
    sizes = {**dims, **inputs.choose_lengths(item.name, signature, texts)}
    kernel = state.kernel(sizes)
    check_coverage(kernel, sizes, launch_grid(kernel, sizes))
    ordinal = launch.current_device() if launch.device_count() else None
    chosen = api.choose_arch(arch) if arch is not None or ordinal is None else api.device_arch(ordinal)
    if ordinal is not None and chosen != api.device_arch(ordinal):
        ordinal = None  # another architecture can only be predicted
    alignment = {p.name: ALIGNED for p in signature if p.kind != "scalar"}
    compiled = Compiled(sizes, chosen, alignment, api.innermost_divisors(signature, sizes), {})
    values = {**scalars, **sizes}
    question = state.chooser.question(compiled, values)
    return Plan(state, dims, sizes, scalars, state.chooser.subject(compiled, values), question, ordinal, seed)


def _kept(plan: Plan) -> Report | None:
    """What was measured before, with its candidates."""
    if plan.question is None or plan.ordinal is None:
        return None
    return Store().read(plan.question, gpu_name(plan.ordinal))


def _tuned(plan: Plan) -> Report:
    if plan.ordinal is None:
        return autotune.tune_unmeasured(plan.subject)

    def bound() -> Any:
        parameters = plan.state.parameters_of(plan.subject.kernel)
        arrays = inputs.make_arrays(parameters, plan.sizes, plan.seed)
        return gpu.bound(plan.subject.definition.name, parameters, {**arrays, **plan.scalars}, plan.sizes)

    bench = Bench(plan.ordinal, 0, bound)
    with shown(plan.subject.definition.name, plan.subject.key) as progress:
        return plan.state.chooser.measure(plan.subject, plan.question, bench, progress)


def _paste(plan: Plan, found: Report) -> str | None:
    """What an author may write for a kernel without a tuning space; None where that is nothing."""
    if plan.state.definition.space is not None or found.choice.schedule is None:
        return None
    own = autotune.predict(plan.subject).schedule or {}
    changed = {name: value for name, value in found.choice.schedule.items() if value != own.get(name)}
    return f"schedule=dict({', '.join(f'{n}={v!r}' for n, v in changed.items())})" if changed else None


# ---- text --------------------------------------------------------------------------------------------------------


def _show(plan: Plan, found: Report, stored: bool) -> None:
    where = found.gpu or "no GPU: predicted, unmeasured"
    print(f"{found.kernel}  {report.dims_text(plan.sizes)}  {found.arch}  {where}")
    tried = [row for row in found.rows if row.verdict != PRUNED]
    order = sorted(range(len(tried)), key=lambda place: _rank(tried[place], place))
    fields = _telling_fields(tried)
    best = None if found.winner is None else tried[found.winner]
    rows = [_row(tried[place], place == found.winner, best, fields) for place in order[:MOST_SHOWN]]
    print()
    report.table(["", "candidate", "predicted", "measured", "of best", "registers", "spills", "shared", ""], rows)
    if len(order) > MOST_SHOWN:
        print(f"and {len(order) - MOST_SHOWN} more")
    reasons = Counter(kind_of(row.reason) for row in found.rows if row.verdict == PRUNED)
    if reasons:
        print()
        report.table(["pruned", "because"], [[str(count), reason] for reason, count in reasons.most_common()])
    print()
    _show_choice(plan, found, stored)


def _show_choice(plan: Plan, found: Report, stored: bool) -> None:
    choice = found.choice
    print(f"choice {settings_text(choice.constants or choice.schedule or {})}, {choice.origin}: {choice.note}")
    paste = _paste(plan, found)
    if paste is not None:
        print(f"paste {paste}")
    if found.measured:
        print(f"answers compared by {found.checked}")
        action = "read from" if stored else "kept in" if plan.question is not None else "not kept in"
        print(f"{action} {Store().cache.folder}; it took {report.seconds_text(found.seconds)}")
        return
    calls = "choose from a short list" if plan.state.definition.space is not None else "take the default schedule"
    print(f"nothing is kept: calls {calls}; it took {report.seconds_text(found.seconds)}")


def _rank(row: Row, place: int) -> tuple[int, float, int]:
    """The timed ones first, the fastest of them first, then the others as they were predicted."""
    timed = row.verdict in (OK, CUT) and row.seconds is not None
    return (0 if timed else 1, row.seconds or 0.0, place)


def _telling_fields(rows: Sequence[Row]) -> tuple[str, ...]:
    """The fields of the schedule in which candidates differ, and that no constant of theirs decides."""
    decided = {field for row in rows for name, field in FIXED_BY_CONSTANTS.items() if name in row.constants}
    names = dict.fromkeys(name for row in rows for name in row.schedule)
    return tuple(n for n in names if n not in decided and len({_text(row.schedule.get(n)) for row in rows}) > 1)


def _row(row: Row, wins: bool, best: Row | None, fields: Sequence[str]) -> list[str]:
    # What a field leaves out, such as a walk, is not worth a word.
    point = {**row.constants, **{name: row.schedule[name] for name in fields if row.schedule.get(name)}}
    share = "-"
    if row.seconds is not None and best is not None and best.seconds:
        share = f"{row.seconds / best.seconds:.2f}"
    return [
        "*" if wins else "",
        settings_text(point),
        "-" if row.predicted is None else report.seconds_text(row.predicted),
        "-" if row.seconds is None else report.seconds_text(row.seconds),
        share,
        _text(row.registers),
        _text(row.spill_bytes),
        "-" if row.shared_bytes is None else report.bytes_text(row.shared_bytes),
        f"{row.verdict}: {row.reason}" if row.reason else row.verdict,
    ]


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


__all__ = ["Plan", "make_plan", "tune"]
