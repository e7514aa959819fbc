"""The command line. This module declares verbs and options; what a verb does is imported when it is called."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from tessera.cli.report import FAILED, OK, USAGE, error_text, exit_code, print_json
from tessera.errors import ArgumentError, InternalError, TesseraError, to_json

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended

_ARGUMENT = "Value of a scalar parameter or tuning constant, or length of a list."
_constants = click.option(
    "--arg", "args", multiple=True, metavar="NAME=VALUE", help="Value of a tuning constant, or length of a list."
)
_target = click.argument("target", metavar="FILE[::NAME]")
_dims = click.option("--dims", metavar="B=2,S=300", help="Size of every dim; without it each has a default.")
_shapes = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=2,150,64:bf16", help="Shape of an open parameter of a function."
)
_pins = click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Fix a field of the schedule, as in warps=8,stages=3 or family=; names of buffers are joined by +.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group(context_settings=_SETTINGS)
def cli() -> None:
    """Compile, run and inspect tile kernels.

    FILE is a Python file, a markdown document or textual IR (.tsir); NAME is a kernel or function in it.
    """


@cli.command()
@_target
@_dims
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help=_ARGUMENT)
@click.option(
    "--backend",
    type=click.Choice(["auto", "interpret", "emulate", "cuda"]),
    help="Where to run: the GPU, the interpreter, or the emitted CUDA on this CPU.",
)
@click.option("--arch", help="Architecture to compile for on the emulate lane, such as sm_80.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the inputs.")
@_shapes
@_pins
@_json
def run(**options: Any) -> int:
    """Run kernels and functions and check every output.

    Inputs are made up from a seed, and outputs compared with the reference within its error bound. Without ::NAME every
    kernel and function of the file runs.
    """
    from tessera.cli.run import run as verb

    return verb(**options)


@cli.command()
@_target
@_dims
@click.option("--stage", type=click.Choice(["graph", "tile", "target"]), help="Level to show; without it, the last.")
@click.option("--after", metavar="PASS|all", help="Show the IR after this pass, or after every pass.")
@click.option("--diff", is_flag=True, help="Show what each pass changed.")
@click.option("--arch", help="Architecture to lower for, such as sm_80.")
@click.option("--locations", is_flag=True, help="Print the source location of every op.")
@click.option("--precision", is_flag=True, help="Print which values of a function are rounded where, and why.")
@click.option("--schedule", is_flag=True, help="Explain the schedule that is chosen, and what else was possible.")
@_constants
@_shapes
@_pins
@_json
def ir(**options: Any) -> int:
    """Print the IR of a kernel or function at any stage."""
    from tessera.cli.ir import ir as verb

    return verb(**options)


@cli.command(name="compile")
@_target
@_dims
@click.option("--arch", "archs", metavar="ARCH,...", help="Architectures, such as sm_80,sm_90a.")
@click.option("--emit", metavar="KIND,...", help="What to make: cuda, ptx, cubin, sass, resources.")
@click.option("-o", "directory", metavar="DIR", help="Write <kernel>.<arch>.{cu,ptx,cubin,sass,json} there.")
@click.option("--time", "timed", is_flag=True, help="Print the seconds that each stage took.")
@_constants
@_shapes
@_pins
@_json
def compile_(**options: Any) -> int:
    """Compile kernels and functions to CUDA text and machine code. Needs no GPU."""
    from tessera.cli.compile import compile_ as verb

    return verb(**options)


@cli.command()
@_target
@_dims
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help=_ARGUMENT)
@click.option("--arch", help="Architecture to compile for, such as sm_80.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Runs, each in another order.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of inputs and orders.")
@click.option("--blocks", metavar="N|all", help="Most blocks of a grid to run; without it, 8 of a grid beyond 64.")
@_shapes
@_pins
@_json
def check(**options: Any) -> int:
    """Examine the emitted CUDA on this CPU. Needs g++ and no GPU.

    Runs each kernel in several adversarial orders and reports, by source line, races, missing waits, accesses out of
    bounds, uninitialised reads and values that differ from the interpreter's; then bank conflicts and uncoalesced
    accesses.
    """
    from tessera.cli.check import check as verb

    return verb(**options)


@cli.command()
@_target
@_dims
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help=_ARGUMENT)
@_pins
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds that it may take.")
@click.option("--candidates", type=click.IntRange(min=1), metavar="N", help="Most candidates to measure.")
@click.option("--retune", is_flag=True, help="Measure again what is kept already.")
@click.option("--arch", help="Architecture to predict for; without it that of the GPU, where the kernel is measured.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the inputs.")
@_json
def tune(**options: Any) -> int:
    """Find the fastest candidate of a kernel on this GPU.

    Candidates are the points of its tuning space, or schedules where it has none. Each answer is checked before it is
    timed, and the result is kept for calls. Without a GPU the cost model ranks them.
    """
    from tessera.cli.tune import tune as verb

    return verb(**options)


@cli.command()
@click.argument("file", metavar="FILE.tsir")
@click.option("--pass", "passes", multiple=True, metavar="NAME", help="Pass to run; repeat for several, in order.")
@_dims
@click.option("--arch", help="Architecture for the passes that need one.")
@click.option("-o", "output", metavar="OUT", help="Write the IR there instead of printing it.")
@_json
def opt(**options: Any) -> int:
    """Run passes on textual IR and print it.

    Without --pass the IR is checked and printed as it is. Dims get their values as in `run`.
    """
    from tessera.cli.opt import opt as verb

    return verb(**options)


@cli.command()
@click.argument("targets", nargs=-1, metavar="[CASE|FILE::NAME]...")
@click.option("--list", "listed", is_flag=True, help="List the cases and measure nothing.")
@click.option("--cases", metavar="FILE", help="File of cases; without it, bench/cases.py.")
@click.option("--rows", multiple=True, metavar="D=256,L=4", help="Rows of the cases to measure; repeat for several.")
@click.option("--rivals", metavar="NAME,...", help="Rivals to time; without it, all.")
@click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which tunes for half a minute a row.")
@click.option("--retune", is_flag=True, help="Search the schedules of rivals again instead of taking stored winners.")
@click.option("--repeats", default=30, show_default=True, type=click.IntRange(min=3), help="Timed runs of each.")
@click.option(
    "--save", metavar="DIR", help="Folder of the results, written after every row; without it, bench/results for cases."
)
@click.option("--plot", metavar="FILE.svg", help="Draw the roofline.")
@_dims
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help=_ARGUMENT)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Time our kernels once more with fields of their schedules fixed, as in family=.",
)
@_json
def bench(**options: Any) -> int:
    """Time kernels on a GPU against their rivals, in one process.

    A case is a kernel with its rivals and rows of sizes; without one all are measured. FILE::NAME is timed against a
    copy of as many bytes. Answers are checked, and wrong ones not timed. The fastest right schedule of each rival is
    kept in competitors.json beside the cases.
    """
    from tessera.cli.bench import bench as verb

    return verb(**options)


@cli.command()
@click.argument("action", type=click.Choice(["list", "stats", "clear", "verify"]))
@click.option("--kind", metavar="KIND", help="Only entries of this kind, such as tuning; for list and clear.")
@_json
def cache(**options: Any) -> int:
    """List, count, empty or check what is kept on disk: compiled programs and results of tuning."""
    from tessera.cli.cache import cache as verb

    return verb(**options)


@cli.command()
@_json
def doctor(**options: Any) -> int:
    """Check what this machine has and can do, and say what to install."""
    from tessera.cli.doctor import doctor as verb

    return verb(**options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code: 0 when all is well, 1 for an error, 2 for a usage error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    # The author's module may print; with --json nothing but the object may reach stdout.
    quiet = _printing_to_stderr() if as_json else contextlib.nullcontext()
    try:
        with quiet:
            return _guarded(lambda: cli.main(arguments, "tessera", standalone_mode=False) or OK, as_json)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return OK
    except KeyboardInterrupt:
        return _INTERRUPTED


def _guarded(call: Callable[[], int], as_json: bool) -> int:
    try:
        return call()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        if as_json:
            _print_error(ArgumentError("TS605", error.format_message()), as_json)
        else:
            error.show()
        return USAGE
    except TesseraError as error:
        _print_error(error, as_json)
        return exit_code(error)
    except click.Abort:
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # nothing may end in a traceback; python -X dev shows it to whoever looks for the cause
        if sys.flags.dev_mode:
            raise
        _print_error(InternalError("TS901", f"{type(error).__name__}: {error}"), as_json)
        return FAILED


def _print_error(error: TesseraError, as_json: bool) -> None:
    if as_json:
        print_json({"ok": False, "error": to_json(error)})
    else:
        print(error_text(error), file=sys.stderr)


@contextlib.contextmanager
def _printing_to_stderr() -> Any:
    """Sends prints to stderr; `print_json` still writes to what stdout was."""
    from tessera.cli import report

    real = sys.stdout
    report.json_stream = real
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        report.json_stream = None
