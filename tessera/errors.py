"""Every error a user can meet: one table of codes, four kinds by who must act, and one way to print them.

A message is one sentence that names the author's own names and values. The remedy comes from the table, so it is
written once, and the reference page of error codes is printed from the same table.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tessera.location import Loc


class Code(NamedTuple):
    title: str
    remedy: str


AREAS = {
    "1": "source",
    "2": "names and types",
    "3": "shapes and dims",
    "4": "numerics",
    "5": "resources",
    "6": "launch and arguments",
    "7": "IR text",
    "8": "cache and tuning",
    "9": "internal",
}

CODES: dict[str, Code] = {
    # 1: source
    "TS101": Code("syntax error in source", "correct the line; Python's own grammar applies, except after a dot"),
    "TS102": Code("unsupported construct", "write it with the constructs that kernels support"),
    "TS103": Code("file is not a target", "pass an existing .py file, markdown document or .tsir file"),
    "TS104": Code("no such kernel or function in file", "pass FILE::NAME with one of the names that the file defines"),
    "TS105": Code("module code raised an exception", "correct the named line; it runs when the file is loaded"),
    "TS106": Code("name is defined in another block", "run the whole document, or that block first"),
    "TS107": Code("source text is not available", "define the function in a file or a document"),
    # 2: names and types
    "TS201": Code("unknown name", "correct the spelling, or define the name before its use"),
    "TS202": Code("wrong number of arguments or unknown keyword", "call it with the parameters of its signature"),
    "TS203": Code("argument has the wrong kind", "pass the kind of value that the parameter takes; check the order"),
    "TS204": Code("dtype mismatch", "convert one side with ts.cast"),
    "TS205": Code("not a compile-time constant", "use a Python value, a dim that is static, or a ctx constant"),
    "TS206": Code("annotation not understood", 'annotate with Tensor["B", "S", ts.bf16], list[Tensor], int or float'),
    # 3: shapes and dims
    "TS301": Code("shape mismatch", "make the shapes equal or broadcastable"),
    "TS302": Code("dim has two values", "pass arrays whose sizes agree on every axis that carries the same dim"),
    "TS303": Code("window extent is not constant", "slice as start : start + N where N is a compile-time constant"),
    "TS304": Code("rank mismatch", "pass a value with the number of axes that is declared"),
    "TS305": Code(
        "grid cannot be inferred", "give it: @ts.kernel(grid=lambda d: (tile.cdiv(d.S, 128), d.B)) or kernel[grid](...)"
    ),
    "TS306": Code("grid does not cover an output", "launch more programs, or say kernel[grid].partial(...)"),
    "TS307": Code(
        "programs write the same output element", "make the windows disjoint, or each row depend on its own row only"
    ),
    "TS308": Code("lists of different lengths", "pass lists that have a tensor each for every index that they share"),
    "TS309": Code(
        "shardings do not fit together", 'gather one of the values first, as in dist.all_gather(x, axis="mp")'
    ),
    "TS310": Code(
        "mesh axis does not divide a dim",
        "pass sizes that are multiples of the mesh axis, or give that axis fewer devices",
    ),
    # 4: numerics
    "TS401": Code("integer overflow", "use a smaller value or a wider integer type"),
    "TS403": Code("a scalar is out of range", "pass a value in the range that the message names"),
    "TS402": Code("precision policy conflict", "write mixed_<input>_<accumulator> with the dtypes of both"),
    # 5: resources
    "TS501": Code("buffer cannot be placed", "use a smaller block or another architecture"),
    "TS502": Code("asynchronous copy read before its wait", "wait for the copy group before the first read"),
    "TS503": Code("uninitialised value read", "write the buffer before it is read"),
    "TS504": Code("access out of bounds", "keep the index inside the dim; windows are masked, single elements are not"),
    "TS505": Code("no GPU", "use --backend interpret or --backend auto, or run on a machine with an NVIDIA GPU"),
    "TS506": Code("NVRTC is missing", "pip install 'tessera[cuda12]'"),
    "TS507": Code("g++ is missing", "install a C++ compiler (g++), or use --backend interpret"),
    "TS508": Code("unknown architecture", "name one of the supported architectures, as in --arch sm_80"),
    "TS509": Code("assertion in a kernel failed", "see the values that the program had, as with tile.print"),
    "TS510": Code("kernel is not loaded while a graph is captured", "call it once with such arguments before"),
    "TS511": Code(
        "arguments of a launch take too much room",
        "pass shorter lists, with a part of the tensors in each call, or one tensor that holds them all",
    ),
    "TS512": Code(
        "schedule does not fit the kernel", "leave the named field out of the schedule, or choose another value"
    ),
    "TS513": Code(
        "roles of a kernel wait for each other",
        "fill each slot with all that is announced, and release it, once in each round",
    ),
    "TS514": Code(
        "slot of a ring is used out of turn",
        "in each round acquire, announce and copy, then wait and release, once each",
    ),
    "TS515": Code("cuda-bindings is missing", "pip install 'tessera[cuda12]', or 'tessera[cuda13]' beside its CuPy"),
    "TS516": Code(
        "no memory while a graph is captured", "call it once with such arguments before, on the stream that is captured"
    ),
    "TS517": Code("torch is missing", "pip install torch; other arrays need no operator"),
    # 6: launch and arguments
    "TS601": Code("missing or unexpected argument", "pass every parameter without a default; outputs may be left out"),
    "TS602": Code("output shares memory with another argument", "pass a separate array, or leave the output out"),
    "TS603": Code("array is not contiguous", "copy it first, as with numpy.ascontiguousarray"),
    "TS604": Code("wrong array type or device", "pass arrays of the declared dtype that live where the kernel runs"),
    "TS605": Code("invalid option", "see tessera --help"),
    "TS606": Code(
        "mesh is not valid",
        'name each device and axis once, as in dist.mesh(devices=["cuda:0", "cuda:1"], axes=("dp",), shape=(2,))',
    ),
    "TS607": Code("no such device in the mesh", 'stay below the size of the mesh axis, as in rank % mesh.size("mp")'),
    "TS608": Code(
        "mesh axis of an assignment is not clear",
        'name one that is not assigned around it, as in dist.device_assignment(rank, axis="mp")',
    ),
    "TS609": Code(
        "parameter is not in the store", "call the function once, load a file that has it, or assign store[spec] first"
    ),
    "TS610": Code("file of parameters cannot be loaded", "load a file that ParameterStore.save has written"),
    "TS611": Code("array cannot be copied by TMA", "copy it first, or choose a schedule that copies another way"),
    "TS612": Code(
        "no gradient",
        "call it under torch.no_grad(), or on detached tensors",
    ),
    # 7: IR text
    "TS701": Code("syntax error in IR text", "correct the line; the printed form of any IR is a valid example"),
    "TS702": Code("IR text has the wrong version or level", "print the IR again with this version of Tessera"),
    "TS703": Code("IR is not valid", "if the text was edited, undo the edit; if a pass made it, report it"),
    # 8: cache and tuning
    "TS801": Code("invalid setting", "set the variable to one of the allowed values, or unset it"),
    "TS802": Code("cache cannot be used", "make the folder writable, or set TESSERA_CACHE_DIR to another one"),
    # 9: internal
    "TS901": Code("internal error", "report it with the command and the source that caused it"),
}


class TesseraError(Exception):
    """Base of all errors. `code` is a key of `CODES`; `notes` are further sentences, printed after the remedy.

    Raises KeyError when the code is not in the table: a message without a remedy is never shown.
    """

    def __init__(self, code: str, message: str, loc: Loc | None = None, notes: Iterable[str] = ()) -> None:
        if code not in CODES:
            raise KeyError(f"{code} is not in tessera.errors.CODES")
        super().__init__(code, message, loc, tuple(notes))
        self.code = code
        self.message = message
        self.loc = loc
        self.notes: tuple[str, ...] = tuple(notes)

    @property
    def remedy(self) -> str:
        return CODES[self.code].remedy

    def at(self, loc: Loc | None) -> TesseraError:
        """The same error with `loc` filled in when it has none: for callers that know where the author is."""
        if self.loc is None and loc is not None:
            self.loc = loc
            self.args = (self.code, self.message, loc, self.notes)
        return self

    def __str__(self) -> str:
        place = f"{self.loc}: " if self.loc else ""
        return f"{place}error[{self.code}]: {self.message}"


class SourceError(TesseraError):
    """The author of a kernel, function or IR text must change it."""


class ArgumentError(TesseraError):
    """The caller of a kernel or of the command line must pass something else."""


class EnvironmentProblem(TesseraError):
    """The machine lacks something: a GPU, a compiler, a library."""


class InternalError(TesseraError):
    """Tessera itself is wrong."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A clause to append to a sentence, `; did you mean 'x'?`, or an empty string when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


_TAB = 4


def render(error: TesseraError, read_line: Callable[[str, int], str] | None = None) -> str:
    """The error as shown to a person: sentence, source line, carets under the span, remedy, notes, call chain.

    `read_line(file, line)` returns the source line, or an empty string when it is not to be had.
    """
    lines = [str(error)]
    if error.loc is not None:
        lines += excerpt(error.loc, (read_line or linecache.getline)(error.loc.file, error.loc.line))
    lines.append(f"  help: {error.remedy}")
    lines += [f"  note: {note}" for note in error.notes]
    if error.loc is not None:
        lines += [f"  called from {site}" for site in error.loc.calls()]
    return "\n".join(lines)


def excerpt(loc: Loc, text: str) -> list[str]:
    """A source line with carets under the span, as two indented lines; nothing for an empty one."""
    text = text.rstrip("\r\n")
    if not text.strip():
        return []
    start = min(max(loc.column - 1, 0), len(text))
    if loc.end_column is None:
        end = start + 1
    elif loc.end_line not in (None, loc.line):
        end = len(text.rstrip())  # the span goes on below: underline the rest of its first line
    else:
        end = loc.end_column - 1
    end = max(min(end, len(text)), start + 1)
    # Expanding the text before the span first makes a tab as wide as it is printed, both in the line and under it.
    before = text[:start].expandtabs(_TAB)
    through = text[:end].expandtabs(_TAB)
    return [f"    {text.expandtabs(_TAB)}", f"    {' ' * len(before)}{'^' * max(len(through) - len(before), 1)}"]


def to_json(error: TesseraError) -> dict[str, object]:
    """The error as the `error` object of the command line's JSON; places that are not known are null."""
    loc = error.loc
    return {
        "code": error.code,
        "message": error.message,
        "file": loc.file if loc else None,
        "line": loc.line if loc else None,
        "column": loc.column if loc else None,
    }
