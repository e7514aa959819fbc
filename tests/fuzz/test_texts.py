"""Damaged kernels, documents and IR texts on the command line: always an answer, and always one for their author.

The answer is one strict JSON object and the exit code 0, 1 or 2; an error has a code, and a place in the file where
the file is at fault. It is never an internal error, a traceback, the name of one of our own files, or silence.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import resource
import signal
from functools import cache
from pathlib import Path

import pytest

import tessera
from tessera import cli
from tessera.compiler import compile_kernel
from tessera.frontend.document import load_document
from tessera.ir.printer import print_module
from tests.fuzz.mutations import mutated
from tests.fuzz.test_programs import drawn
from tests.passes import kernels

BATCH = 50
SECONDS = 10  # that one text may take; the slowest takes less than one
MEMORY = 6 << 30
ROOT = Path(__file__).parents[2]
PRELUDE = "import tessera as ts\nfrom tessera import Tensor, tile\n\n"
INTERNAL = {path.name for path in Path(tessera.__file__).parent.rglob("*.py")} - {"__init__.py"}
# Errors about the whole of a file or of a command: they have no line.
WITHOUT_LINE = {"TS103", "TS104", "TS605", "TS508"}

DOCUMENT = '''# Two kernels

The first one adds.

```python
{first}
```

Text between, with `code` and a list:

- one
- two

~~~python
BLOCK = 16

@ts.kernel
def scaled(x: Tensor["N", "D", ts.bf16], factor: float, out: Tensor["N", "D", ts.f32]):
    """Says nothing."""
    ctx = tile.context()
    row = tile.program_id(0) * BLOCK
    acc = tile.zeros([BLOCK, ctx.D], ts.f32)
    for k in tile.range(3):
        if k % 2 == 0:
            acc = acc + x[row : row + BLOCK] * factor
    tile.store(acc, out[row : row + BLOCK])
~~~
'''


@cache
def python_texts() -> list[str]:
    # A damaged while may really never end.
    chosen = [program for batch in (1000, 1001) for program in drawn(batch) if "while " not in program.text]
    generated = [PRELUDE + program.source(f"program_{n}") for n, program in enumerate(chosen)]
    return [*generated, *((ROOT / "examples" / f"{name}.py").read_text() for name in ("vector_add", "softmax"))]


@cache
def documents() -> list[str]:
    small = [DOCUMENT.format(first=text) for text in python_texts()[:4]]
    return [*small, (ROOT / "examples" / "gdn" / "gdn_part1.md").read_text()]


@cache
def ir_texts() -> list[str]:
    """Every stage of two kernels, some with locations."""
    texts = []
    vector_add = load_document(str(ROOT / "examples" / "vector_add.py"))["vector_add"]
    small = {"M": 20, "N": 40, "D": 24}
    for kernel, dims in ((vector_add, {"N": 100}), (kernels.two_groups, small), (kernels.running_sum, small)):
        sizes = {name: dims[name] for name in dims if kernel is not kernels.two_groups or name != "N"}
        for number, stage in enumerate(compile_kernel(kernel, sizes).stages):
            texts.append(print_module(stage.module, number % 2 == 1))
    return texts


KINDS = {
    "python": (python_texts, ".py", [["run"], ["ir", "--after", "all"], ["ir", "--stage", "tile"]]),
    "document": (documents, ".md", [["run"], ["run"], ["ir"]]),
    "ir": (ir_texts, ".tsir", [["run"], ["ir"], ["opt"], ["opt", "--pass", "specialise", "--pass", "canonicalise"]]),
}
SMALL = ["--backend", "interpret", "--dims", "B=2,S=3,D=16,G=4,L=4"]  # of the document, all thirteen functions run
CASES = [  # kind, batches, and how many of them always run
    pytest.param(kind, n, marks=[pytest.mark.full] * (n >= always))
    for kind, count, always in (("python", 8, 5), ("document", 4, 2), ("ir", 8, 5))
    for n in range(count)
]


@contextlib.contextmanager
def limits():
    """Stops what hangs, and what asks for more memory than a machine may have."""

    def expired(*_):
        raise TimeoutError(f"nothing was answered within {SECONDS} s")

    before, memory = signal.signal(signal.SIGALRM, expired), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, memory[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGALRM, before)


def answer(arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with limits(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def refuse_constant(name: str):
    raise ValueError(f"{name} is not strict JSON")


def errors_in(value) -> list[dict]:
    """Every error object of an answer, at any depth."""
    if isinstance(value, list):
        return [error for item in value for error in errors_in(item)]
    if not isinstance(value, dict):
        return []
    found = [value["error"]] if isinstance(value.get("error"), dict) else [*value.get("errors", [])]
    return found + [error for item in value.values() for error in errors_in(item)]


def complaint(path: Path, text: str, arguments: list[str]) -> str:
    """What is wrong with the answer to a text; empty when nothing is."""
    try:
        code, out, err = answer(arguments)
    except BaseException as error:  # whatever comes through is a finding
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    if code not in (0, 1, 2):
        return f"the exit code is {code}"
    try:
        result = json.loads(out, parse_constant=refuse_constant)
    except ValueError as error:
        return f"stdout is not one JSON object: {error}: {out[:200]!r}"
    if result.get("ok") != (code == 0):
        return f"ok is {result.get('ok')} with exit code {code}"
    if "Traceback" in out or "Traceback" in err:
        return f"a traceback: {err[-300:]}"
    found = errors_in(result)
    unlike = [output for function in result.get("functions", [result]) for output in function.get("outputs") or []]
    if code and not found and all(output["ok"] for output in unlike):
        return f"the exit code is {code} without an error"
    lines = text.count("\n") + 1
    return next(filter(None, (bad_error(error, path, lines) for error in found)), "")


def bad_error(error: dict, path: Path, lines: int) -> str:
    code, message = error.get("code", ""), str(error.get("message", ""))
    shown = f"{code} {message} at {error.get('file')}:{error.get('line')}"
    if not re.fullmatch(r"TS[1-8]\d\d", code):
        return f"not an error for an author: {shown}"
    if not message.strip():
        return f"no message: {shown}"
    named = {Path(name).name for name in re.findall(r"[\w./\\-]+\.py\b", message)} - {path.name}
    if named & INTERNAL:
        return f"names our own file: {shown}"
    if code in WITHOUT_LINE:
        return ""
    # IR that was printed with locations points at the kernel's source, which is another file.
    if path.suffix != ".tsir" and error.get("file") != str(path):
        return f"another file: {shown}"
    if not isinstance(error.get("line"), int) or (error.get("file") == str(path) and not 1 <= error["line"] <= lines):
        return f"no line in the file: {shown}"
    return ""


@pytest.mark.parametrize("kind, batch", CASES)
def test_a_damaged_text_is_answered(kind, batch, tmp_path, backend):
    texts, suffix, verbs = KINDS[kind]
    backend("interpret" if batch % 2 else "emulate")
    chance = random.Random(f"{kind} {batch}")
    complaints = []
    for number in range(BATCH):
        text = mutated(chance.choice(texts()), chance)
        path = tmp_path / f"text_{number}{suffix}"
        path.write_text(text, encoding="utf-8")
        verb = chance.choice(verbs)
        small = SMALL if verb[0] == "run" and "distributed_gdn_layer" in text else []
        arguments = [verb[0], str(path), *verb[1:], *small, "--json"]
        bad = complaint(path, text, arguments)
        if bad:
            complaints.append(f"{' '.join(arguments)}\n  {bad}\n")
    assert not complaints, f"{len(complaints)} of {BATCH}\n" + "\n".join(complaints)
