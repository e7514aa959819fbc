"""`tessera run`: kernels on made-up inputs, with every output checked against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.cli import report
from tessera.cli.target import Target, resolve, split
from tessera.config import config
from tessera.errors import ArgumentError, TesseraError, did_you_mean, to_json
from tessera.frontend.grid import check_coverage, launch_grid
from tessera.ir.core import Kernel
from tessera.ir.opdef import TILE
from tessera.program import Parameter, Program
from tessera.runtime import api, execute, inputs
from tessera.runtime.arrays import alignment_class
from tessera.runtime.compare import Comparison
from tessera.runtime.execute import Outcome

TIMED_REPEATS = 20


@dataclass
class Options:
    """What the command line said; `dims` is None when it gave none."""

    dims: dict[str, int] | None
    args: dict[str, str]
    backend: str
    arch: str | None
    seed: int


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


@dataclass
class Subject:
    """A kernel with its ways to run: `kernel` gives its IR of `level` for dims, `program` compiles it.

    `signature` holds the parameters, with roles that only the IR knows for certain.
    """

    name: str
    level: str
    signature: tuple[Parameter, ...]
    defaults: Mapping[str, Any]
    kernel: Callable[[dict[str, int]], Kernel]
    program: Callable[[dict[str, int], str, dict[str, int]], Program]


def run(
    target: str,
    dims: str | None,
    args: tuple[str, ...],
    backend: str | None,
    arch: str | None,
    seed: int,
    as_json: bool,
) -> int:
    options = Options(
        None if dims is None else inputs.parse_dims(dims),
        {name: value for text in args for name, value in inputs.parse_assignments(text, "--arg").items()},
        backend or config().backend,
        None if arch is None else api.choose_arch(arch),
        seed,
    )
    targets = resolve(target)
    api.choose_lane(options.backend)  # a GPU that is asked for and absent is one error, not one per kernel
    if split(target)[1] is not None:
        result = run_one(targets.items[0], options)
        _show_one(result, target, as_json)
        return report.OK if result.ok else report.FAILED
    subjects = _load_all(targets.items)
    _check_names(target, [subject for subject in subjects if isinstance(subject, Subject)], options)
    results = [_run_row(subject, options) for subject in subjects]
    ok = all(result.ok for result in results) and not targets.failures
    _show_all(results, targets.failures, ok, target, options.dims, as_json)
    return report.OK if ok else report.FAILED


def run_one(target: Target, options: Options) -> Result:
    """Runs one kernel and checks its outputs; raises what keeps it from running."""
    if target.error is not None:
        raise target.error
    return run_subject(load(target), options)


def load(target: Target) -> Subject:
    """The kernel behind a target, ready to run."""
    if target.definition is not None:
        state = api.KernelState(target.definition)

        def compiled(dims: dict[str, int], arch: str, alignment: dict[str, int]) -> Program:
            return state.program(dims, arch, None, alignment)

        return Subject(target.name, TILE, state.signature, state.defaults, state.kernel, compiled)
    assert target.module is not None
    module = target.module
    kernel = module.kernel(target.name)
    parameters = execute.parameters_of(kernel)

    def emitted(dims: dict[str, int], arch: str, alignment: dict[str, int]) -> Program:
        from tessera.compiler import compile_kernel

        divisors = api.innermost_divisors(parameters, dims)
        program = compile_kernel(module, dims, arch, None, alignment, divisors).program
        assert program is not None
        return program

    return Subject(target.name, module.level, parameters, {}, lambda dims: kernel, emitted)


def run_subject(subject: Subject, options: Options) -> Result:
    dims = inputs.choose_dims(subject.name, inputs.dims_of(subject.signature), options.dims)
    scalars = inputs.choose_scalars(subject.name, subject.signature, options.args, subject.defaults)
    kernel = subject.kernel(dims)
    parameters = execute.parameters_of(kernel)
    _check_divisors(kernel, dims)
    extents = launch_grid(kernel, dims)
    if subject.level == TILE:
        check_coverage(kernel, dims, extents)
    original = inputs.make_arrays(parameters, dims, options.seed)
    result = Result(subject.name, dims, scalars, notes=tuple(kernel.attributes.get("notes", ())))
    lane = _lane(subject, options)
    bound = {**(kernel.attributes.get("static") or {}), **dims}  # textual IR may have dims bound already
    arguments = {**{name: array.copy() for name, array in original.items()}, **scalars}
    if lane == "interpret":
        result.outcome = execute.interpret(kernel, arguments, bound, extents, subject.level)
    else:
        result.arch = api.device_arch(0) if lane == "cuda" else api.choose_arch(options.arch)
        result.outcome = _run_program(subject, lane, result.arch, bound, arguments)
    outputs = result.outcome.outputs
    result.comparisons = execute.verify_outputs(kernel, {**original, **scalars}, bound, outputs, extents, subject.level)
    if lane == "cuda" and subject.level == TILE:
        result.roofline = _roofline(kernel, result, bound, extents)
    return result


def _lane(subject: Subject, options: Options) -> str:
    # Target-level text says how a GPU runs the kernel; where there is none, running its CUDA shows the most.
    lane = api.choose_lane(options.backend)
    return "emulate" if subject.level != TILE and options.backend == "auto" and lane == "interpret" else lane


def _run_program(subject: Subject, lane: str, arch: str, dims: dict[str, int], arguments: dict[str, Any]) -> Outcome:
    on_host = {
        name: alignment_class(value.ctypes.data) for name, value in arguments.items() if isinstance(value, np.ndarray)
    }
    alignment = on_host if lane == "emulate" else dict.fromkeys(on_host, 16)
    program = subject.program(dims, arch, alignment)
    if lane == "emulate":
        return execute.emulate(program, arguments, dims)
    return execute.cuda(api.with_cubin(program), arguments, dims, TIMED_REPEATS)


def _roofline(kernel: Kernel, result: Result, dims: dict[str, int], extents: tuple[int, ...]) -> float | None:
    from tessera.compiler import find_arch
    from tessera.runtime.roofline import roofline_seconds

    assert result.outcome is not None and result.arch is not None
    least = roofline_seconds(kernel, execute.parameters_of(kernel), dims, extents, find_arch(result.arch))
    return least / result.outcome.seconds if result.outcome.seconds > 0 else None


def _check_divisors(kernel: Kernel, dims: Mapping[str, int]) -> None:
    """IR that was specialised assumes divisors of its dims; other sizes would be wrong answers or faults."""
    for name, divisor in (kernel.attributes.get("divisors") or {}).items():
        if name in dims and dims[name] % divisor:
            message = f"'{kernel.name}' was compiled for a {name} that {divisor} divides, and {dims[name]} is none"
            raise ArgumentError("TS605", message)


# ---- whole files -------------------------------------------------------------------------------------------------


def _load_all(targets: list[Target]) -> list[Subject | Result]:
    """A subject per kernel, and for one that cannot be read its result already."""
    loaded: list[Subject | Result] = []
    for target in targets:
        try:
            if target.error is not None:
                raise target.error
            loaded.append(load(target))
        except TesseraError as error:
            loaded.append(Result(target.name, error=error))
    return loaded


def _check_names(target: str, subjects: list[Subject], options: Options) -> None:
    """Raises ArgumentError TS605 for a dim or a scalar that no kernel of the file has."""
    dims = list(dict.fromkeys(name for subject in subjects for name in inputs.dims_of(subject.signature)))
    scalars = list(dict.fromkeys(p.name for subject in subjects for p in subject.signature if p.kind == "scalar"))
    for kind, given, known in (("dim", options.dims or {}, dims), ("scalar parameter", options.args, scalars)):
        for name in given:
            if name not in known:
                listed = ", ".join(known) or "none"
                hint = did_you_mean(name, known)
                raise ArgumentError("TS605", f"no kernel of {target} has a {kind} {name} (there are {listed}){hint}")


def _run_row(subject: Subject | Result, options: Options) -> Result:
    if isinstance(subject, Result):
        return subject
    dims = inputs.dims_of(subject.signature)
    scalars = {p.name for p in subject.signature if p.kind == "scalar"}
    own = Options(
        None if options.dims is None else {name: size for name, size in options.dims.items() if name in dims},
        {name: value for name, value in options.args.items() if name in scalars},
        options.backend,
        options.arch,
        options.seed,
    )
    try:
        return run_subject(subject, own)
    except TesseraError as error:
        if error.code == "TS605":
            raise  # a dim without a size is a mistake in the command, not in one of the kernels
        return Result(subject.name, error=error)


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
