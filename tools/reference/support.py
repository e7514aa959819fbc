"""The support matrix, by asking: a kernel with one op is traced, interpreted and lowered for every dtype."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel, trace_kernel
from tessera.dtypes import TYPES, DType
from tessera.errors import TesseraError
from tessera.frontend.document import execute, parse_document
from tessera.frontend.language import FUNCTION
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN, TILE, table
from tessera.ir.products import PRECISIONS
from tessera.ir.types import ViewType, int_shape
from tessera.runtime.interpreter import interpret
from tessera.target.arch import ARCHS
from tools.reference import language, text

DTYPES = tuple(dtype for dtype in TYPES.values() if dtype.name != "f64")  # f64 is for references on the host only
SHOWN_ARCHS = ("sm_80", "sm_90a")
LANES = ("interpret", "emulate", *SHOWN_ARCHS)
PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}
YES, BROKEN = "yes", "**broken**"
# Areas of codes that say nothing about what the author wrote: IR that a pass made, and internal errors.
UNFOUNDED = ("TS7", "TS9")

INTRODUCTION = f"""
Made by asking the compiler: for every op and dtype a kernel with just that op is type-checked, run on the interpreter,
and lowered to CUDA text for {" and ".join(SHOWN_ARCHS)}. The `cuda` lane compiles that text with NVRTC, the `emulate`
lane runs it on a CPU. Columns are the dtypes of the operands.

- **{YES}**: accepted on every lane.
- **TSxxx**: refused with that [error](errors.md) on every lane.
- Names of lanes: accepted there, refused on the others.
"""

# The kernel's body for ops that are no plain call of `tile.<op>` on tiles of one dtype. `a` and `b` are tiles of the
# dtype, `first`, `second` and `third` tensors, `x` is a window of the first, `c` a tile of f32.
RECIPES = {
    **{op: f"result = {written}" for op, written in language.OPERATORS.items()},
    "where": "result = tile.where(c > 0.0, a, b)",
    "cast": "result = tile.cast(a, ts.f32)",
    "load": "result = tile.load(x)",
    "read": "buffer = tile.alloc_shared([16, 32], ts.{dtype})\nbuffer[:] = a\nresult = buffer[:]",
    "write": "buffer = tile.alloc_shared([16, 32], ts.{dtype})\nbuffer[:] = a\nresult = buffer[:]",
    "copy_async": "buffer = tile.alloc_shared([16, 32], ts.{dtype})\ntile.copy_async(buffer, x)\n"
    "tile.cp_commit_group()\ntile.cp_wait_group(0)\nresult = buffer[:]",
    "broadcast": "result = tile.broadcast_to(x[0:1], [16, 32])",
    "reshape": "result = tile.reshape(tile.reshape(a, [32, 16]), [16, 32])",
    "transpose": "result = tile.transpose(tile.transpose(a))",
    "full": "result = tile.full([16, 32], 1, ts.{dtype})",
    "iota": "result = tile.iota([16, 32], dtype=ts.{dtype})",
    "extract": "half = a[0:8, 0:16]\nresult = tile.broadcast_to(half[0:1, 0:1], [16, 32])",
    "atomic": "tile.atomic_add(second[0:16, 0:32], a)\nresult = c",
    "atomic_scatter": "tile.atomic_add(second[0], first[1], tile.cast(third[0], ts.i32))\nresult = c",
}  # fmt: skip

# Ops without a dtype of their own: numbers that count and index, control flow, and what waits or ends.
DTYPELESS = {
    "constant", "size", "program_id", "num_programs", "for", "while", "if", "yield", "window", "limit", "element",
    "wait", "async_commit", "no_copy", "alloc_shared", "stage", "barrier", "assert", "print",
    "ring", "ring_acquire", "ring_expect", "ring_wait", "ring_release", "roles",
    "tma_load", "tma_store", "tma_store_wait",
}  # fmt: skip

KERNEL = """
@ts.kernel(grid=lambda d: (1,))
def one_op(first: Tensor[16, 32, ts.{dtype}], second: Tensor[16, 32, ts.{dtype}], third: Tensor[16, 32, ts.f32],
           out: Tensor[16, 32, ts.f32]):
"""
# What a body may use, in the order in which it is defined.
DEFINED = {
    "x": "x = first[0:16, 0:32]",
    "a": "a = tile.load(first[0:16, 0:32])",
    "b": "b = tile.load(second[0:16, 0:32])",
    "c": "c = tile.load(third[0:16, 0:32])",
}
PRODUCT = """
@ts.kernel(grid=lambda d: (1,))
def one_op(a: Tensor[16, 32, ts.{a}], b: Tensor[32, 16, ts.{b}], out: Tensor[16, 16, ts.f32]):
    tile.store(tile.mma(a[0:16], b[0:32], precision={precision!r}), out[0:16])
"""


@dataclass(frozen=True)
class Answer:
    """The lanes on which a kernel works, and the code of the error that the first other one gives."""

    lanes: tuple[str, ...]
    code: str = ""
    cuda: str = ""  # the text for the last architecture, where it works on every lane

    def __str__(self) -> str:
        if self.code == BROKEN:
            return BROKEN
        return YES if self.lanes == LANES else ", ".join(self.lanes) or self.code


def page() -> str:
    rows = [[f"`{op}`", *(str(answers[dtype.name]) for dtype in DTYPES)] for op, answers in matrix().items()]
    heads = ["op", *(dtype.name for dtype in DTYPES)]
    parts = [text.table(heads, rows), "## Casts\n\nFrom the dtype of the row to that of the column.", _casts()]
    parts += ["## Matrix products\n\nThe dtypes of both operands and `precision=`; the result is f32.", _products()]
    parts += [f"Ops without a dtype of their own: {', '.join(f'`{op}`' for op in sorted(DTYPELESS & set(table())))}."]
    parts += [f"Architectures that the compiler knows: {', '.join(ARCHS)}."]
    return text.page("What is supported", INTRODUCTION, *parts)


@cache
def matrix() -> dict[str, dict[str, Answer]]:
    """By op and dtype name: where it works."""
    return {op: {dtype.name: ask(body, dtype) for dtype in DTYPES} for op, body in recipes()}


def recipes() -> Iterator[tuple[str, str]]:
    """Every Tile op with a dtype, and the body that tries it."""
    declared = [intrinsic for intrinsic in reversed(language.declared()) if intrinsic.scope != FUNCTION]
    calls = {intrinsic.op: intrinsic.name for intrinsic in declared if intrinsic.op}
    for op, definition in table().items():
        if TILE not in definition.levels or op in DTYPELESS or op in ("mma", "store"):
            continue  # every kernel stores; products have their own table
        call = calls.get(op, f"tile.{op}")
        if op in RECIPES:
            yield op, RECIPES[op]
        elif definition.has(REDUCTION) or definition.has(SCAN):
            kept = "axis=-1" if definition.has(SCAN) else "axis=-1, keepdims=True"
            yield op, f"result = tile.broadcast_to({call}(a, {kept}), [16, 32])"
        elif definition.has(ELEMENTWISE):
            yield op, f"result = {call}({', '.join('ab'[: len(definition.operands)])})"


def untried() -> set[str]:
    """Tile ops that the page says nothing about: they need a recipe."""
    tried = {op for op, _ in recipes()} | DTYPELESS | {"mma", "store"}
    return {op for op, definition in table().items() if TILE in definition.levels} - tried


def ask(body: str, dtype: DType) -> Answer:
    """Tries a body whose `result` is a tile [16, 32]."""
    name = _spelled(dtype)
    lines = body.format(dtype=name).splitlines()
    used = set(re.findall(r"\w+", body))
    lines = [*(line for variable, line in DEFINED.items() if variable in used), *lines, STORE]
    return attempt(KERNEL.format(dtype=name) + "".join(f"    {line}\n" for line in lines))


STORE = "tile.store(tile.cast(result, ts.f32), out[0:16, 0:32])"


def attempt(source: str) -> Answer:
    """On which lanes a kernel without dims works."""
    kernel = execute(parse_document("one_op.py", source), PRELUDE)["one_op"]
    lanes: list[str] = []
    cuda = ""
    try:
        traced = trace_kernel(kernel, {})
        arguments = {value.name: _ones(value.type) for value in traced.kernel().parameters}
        interpret(traced.kernel(), arguments, {})
        lanes.append("interpret")
        for arch in SHOWN_ARCHS:
            cuda = compile_kernel(traced, {}, arch).cuda[0].text
            lanes += ["emulate", arch] if arch == SHOWN_ARCHS[0] else [arch]
    except TesseraError as error:
        return Answer(tuple(lanes), error.code if error.code[:3] not in UNFOUNDED else BROKEN)
    except Exception:  # whatever an op that is not whole raises: the page says so, and a test refuses it
        return Answer(tuple(lanes), BROKEN)
    return Answer(tuple(lanes), cuda=cuda)


def _spelled(dtype: DType) -> str:
    return "bool_" if dtype.is_bool else dtype.name


def translation_unit() -> tuple[str, dict[str, str]]:
    """The CUDA text of every kernel that works, as one text for one compiler, and what each kernel tries by name."""
    tried = {f"{op} of {dtype}": answer for op, answers in matrix().items() for dtype, answer in answers.items()}
    tried |= {f"cast of {a} to {b}": answer for (a, b), answer in casts().items()}
    tried |= {f"mma of {a}, {b}, precision {p}": answer for (a, b, p), answer in products().items()}
    include, parts, names = "", [], {}
    for number, (what, answer) in enumerate(tried.items()):
        if answer.cuda:
            include, body = answer.cuda.split("\n", 1)
            names[f"one_op_{number}"] = what
            # Helper functions have the same names in every text; kernels, which have C linkage, must not.
            parts.append(f"namespace n{number} {{\n{body.replace('(one_op,', f'(one_op_{number},')}\n}}")
    return "\n".join([include, *parts]), names


def _ones(type_: object) -> np.ndarray:
    assert isinstance(type_, ViewType)
    return np.ones(int_shape(type_), type_.dtype.numpy)


@cache
def casts() -> dict[tuple[str, str], Answer]:
    """By source and result dtype; to bool is a comparison, and no cast."""
    targets = [dtype for dtype in DTYPES if not dtype.is_bool]
    return {(a.name, b.name): ask(f"result = tile.cast(a, ts.{b.name})", a) for a in DTYPES for b in targets}


def _casts() -> str:
    targets = [dtype.name for dtype in DTYPES if not dtype.is_bool]
    return text.table(["from", *targets], [[a, *(str(casts()[a, b]) for b in targets)] for a in _names()])


def _names() -> list[str]:
    return [dtype.name for dtype in DTYPES]


@cache
def products() -> dict[tuple[str, str, str | None], Answer]:
    floats = [dtype.name for dtype in DTYPES if dtype.is_float]
    return {
        (a, b, precision): attempt(PRODUCT.format(a=a, b=b, precision=precision))
        for a in floats
        for b in floats
        for precision in PRECISIONS
    }


def _products() -> str:
    rows = [
        [a, b, "`None`" if precision is None else f'`"{precision}"`', str(answer)]
        for (a, b, precision), answer in products().items()
        if answer.lanes
    ]
    return text.table(["a", "b", "precision", ""], rows) + "\n\nEvery other pair is refused with TS204 or TS402."
