"""Every error of the language: its code, its sentence, and its exact place in the author's text.

In each case «...» marks the span that the error must underline; the marks are removed before the kernel is read.
"""

import textwrap

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import SourceError, TesseraError, render
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.document import execute, parse_document, read_source_line
from tessera.frontend.evaluator import trace

PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}
SIGNATURE = """\
@ts.kernel
def k(x: Tensor["M", "N", ts.bf16], y: Tensor["M", "N", ts.bf16], w: Tensor["N", "N", ts.f32], v: Tensor[4, ts.f32],
      n: int, s: float, out: Tensor["M", "N", ts.bf16]):
    ctx = tile.context()
    i = tile.program_id(0)
    p = i * 16
"""


def unmark(text: str) -> tuple[str, tuple[int, int, int, int]]:
    """The text without its marks, and the span (line, column, end line, end column) between them."""
    positions = []
    for mark in "«»":
        before, mark, after = text.partition(mark)
        assert mark, "the case marks no span"
        positions += [before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1]
        text = before + after
    return text, tuple(positions)


def traced_error(text: str, static: dict[str, int] | None = None) -> tuple[TesseraError, tuple[int, int, int, int]]:
    source, span = unmark(text)
    loaded = execute(parse_document("case.py", source), PRELUDE)
    with pytest.raises(TesseraError) as caught:
        trace(loaded["k"], static)
    return caught.value, span


def span_of(error: TesseraError) -> tuple:
    loc = error.loc
    assert loc is not None and loc.file == "case.py"
    return loc.line, loc.column, loc.end_line, loc.end_column


CASES = [
    # constructs
    ("TS102", "while «True»:\n    pass", "its loop would be unrolled more than"),
    ("TS102", "f = «lambda a: a»", "a lambda"),
    ("TS102", "«import math»", "import"),
    ("TS102", "«with ts.scope():»\n    pass", "a with block"),
    ("TS102", "«try:»\n    pass\nfinally:\n    pass", "try"),
    ("TS102", "«def f():»\n    return 1", "a function defined"),
    ("TS102", "«return p»", "a kernel returns nothing"),
    ("TS102", "for j in tile.range(4):\n    «return»", "return inside a run-time loop"),
    ("TS102", "for j in tile.range(4):\n    «break»", "break that depends on run-time values"),
    ("TS102", "a = [j for j in «tile.range(4)»]", "tile.range is a loop statement"),
    ("TS102", "a = «x[0:16] @ y[0:16]»", "'@' is not supported on 'x[0:16]' and 'y[0:16]'; call tile.mma"),
    ("TS205", "a = tile.load(x[p:p + 16])\nb = «a[p:p + 8]»",
     "'a' is a tile [16, N] of bf16, whose elements lie in registers"),
    ("TS102", "a = x[«p:p + 16:2»]", "has a step"),
    ("TS102", "«x[0:16]» = 1.0", "use tile.store(value, x[0:16])"),
    ("TS102", "b = tile.alloc_shared([16], ts.f32)\n«b += 1.0»", "'b' is a shared buffer [16] of f32"),
    ("TS102", "a = []\nfor j in tile.range(4):\n    «a.append(j)»", "'a.append(j)' changes inside a run-time loop"),
    ("TS102", "a = {}\nif n > 1:\n    «a['k']» = 1", "changes inside a run-time loop or branch"),
    ("TS102", "a = [1]\nif n > 1:\n    «a += [2]»", "changes inside a run-time loop or branch"),
    ("TS102", "a = «1 if n > 0 else 2»", "'n > 0' is known only at run time"),
    ("TS102", "«other(x, out)»", "'other' is a @ts.kernel; a kernel cannot call it"),
    ("TS102", "«tensors(x)»", "'tensors' is a @ts.function; a kernel cannot call it"),
    ("TS102", "a = «wrapped(p)»", "'wrapped' is wrapped by a decorator; only plain functions are inlined"),
    ("TS102", "for j in tile.range(4):\n    «kept().append(j)»", "changes inside a run-time loop"),
    ("TS102", "for j in «range(20000)»:\n    pass", "unrolled more than 10000 times"),
    ("TS102", "b = tile.alloc_shared([16, ctx.N], ts.bf16)\nfor j in tile.range(4):\n"
     "    «tile.copy_async(b, x[p:p + 16])»\n    tile.cp_commit_group()", "is not waited for in the iteration"),
    # Python's own exceptions
    ("TS105", "a = «1 // 0»", "ZeroDivisionError: integer division or modulo by zero"),
    ("TS105", "a = «[1, 2][5]»", "IndexError: list index out of range"),
    ("TS105", "a = «int('x')»", "ValueError: invalid literal"),
    ("TS105", "a = «broken(3)»", "RuntimeError: broken for 3"),
    ("TS105", "«a, b» = 1, 2, 3", "ValueError: 3 values for the 2 names in 'a, b'"),
    ("TS105", "«assert 1 > 2, 'no'»", "the assertion '1 > 2' does not hold: no"),
    # names
    ("TS201", "a = «tilee».load(x)", "there is no 'tilee' here; did you mean 'tile'?"),
    ("TS201", "a = tile.«laod»(x)", "tile has no 'laod'; did you mean 'load'?"),
    ("TS201", "a = tile.cp_async.shared.«globl»(x, y)", "tile.cp_async.shared has no 'globl'"),
    ("TS201", "a = ts.«bf61»", "tessera has no 'bf61'; did you mean 'bf16'?"),
    ("TS201", "a = ctx.«BLOCK_B»", "the context has no 'BLOCK_B'; it has the dims M, N"),
    ("TS201", "a = «x.shap»",
     "'x' is a tensor in global memory [M, N] of bf16 and has no 'shap'; did you mean 'shape'?"),
    ("TS201", "a = «b»\nb = 1", "'b' is used before it is assigned"),
    ("TS201", "for j in tile.range(4):\n    a = x[0:16] * 2.0\nb = «a»",
     "'a' is assigned inside the loop on line 7 and does not exist after it; assign it before the loop"),
    ("TS201", "for j in tile.range(4):\n    pass\nb = «j»", "'j' is assigned inside the loop on line 7"),
    ("TS201", "if n > 0:\n    a = 1\nb = «a»", "'a' is assigned in one branch only of the if on line 7"),
    ("TS201", "b = x\nfor j in tile.range(4):\n    c = «b»\n    b = y",
     "'b' is a tensor in global memory [M, N] of bf16 before the loop on line 8 and is assigned inside it"),
    ("TS201", "b = x\nfor j in tile.range(4):\n    b = y\nc = «b»", "only tiles and numbers pass from one iteration"),
    ("TS205", "c = []\nif n > 1:\n    d = [x[0:4] + 1.0]\n    c = d\nelse:\n    c = 2\ne = «c»",
     "'c' is a Python list"),
    # calls
    ("TS202", "a = «tile.zeros()»",
     "tile.zeros: missing a required argument: 'shape'; it is tile.zeros(shape, dtype=ts.f32)"),
    ("TS202", "a = «tile.zeros([4], dtyp=ts.f32)»", "did you mean 'dtype'?"),
    ("TS202", "a = «tile.exp(1.0, 2, 3)»", "it is tile.exp(a, dst=None)"),
    ("TS202", "a = «helper(p, p, p)»", "it is helper(value, factor=2)"),
    ("TS204", "a = tile.sum(«x[0:16] > 0.0»)", "count with tile.cast"),
    # kinds
    ("TS203", "b = tile.alloc_shared([16, ctx.N], ts.bf16)\ntile.copy_async(«x[p:p + 16]», b)",
     "tile.copy_async takes the destination first: 'x[p:p + 16]' is a tensor in global memory [16, N] of bf16 and "
     "'b' is a shared buffer [16, N] of bf16"),
    ("TS203", "tile.cp_async.shared.global(«x[p:p + 16]», x)",
     "the destination of tile.cp_async.shared.global is a shared buffer"),
    ("TS203", "tile.store(out[p:p + 16], «x[p:p + 16] * 2.0»)", "the value comes first, and 'out[p:p + 16]' is"),
    ("TS203", "tile.store(1.0, «p»)", "a store goes to a window of a tensor, but 'p' is an i64 scalar"),
    ("TS203", "a = tile.load(«p»)", "a load takes a window of a tensor, but 'p' is an i64 scalar"),
    ("TS203", "a = tile.load_scalar(«x[0]»)", "takes one element of a tensor"),
    ("TS203", "a = tile.zeros([4], «'f32'»)", "'dtype' takes a dtype such as ts.bf16, but 'f32' is a Python str"),
    ("TS203", "a = tile.alloc_shared([4], ts.f32, swizzle=«'xo'»)", "swizzle= is 'none' or 'xor', not 'xo'"),
    ("TS203", "a = x[«1.5»]", "'1.5' is no index: 1.5 where an integer is needed"),
    ("TS203", "a = x[«s»]", "'s' is no index: a f32 scalar"),
    ("TS203", "a = «x(3)»", "'x' is a tensor in global memory [M, N] of bf16 and cannot be called"),
    ("TS203", "a = «tile(3)»", "'tile' is <tessera tile> and cannot be called"),
    ("TS203", "a = «x[0:16] + 'a'»", "'a' is a Python str, where a tile or a number is needed"),
    ("TS203", "for j in «n»:\n    pass", "'n' is an i64 scalar; a loop runs over tile.range"),
    ("TS203", "for j in tile.range(«s»):\n    pass", "tile.range takes integers, but 's' is a f32 scalar"),
    ("TS203", "for j in tile.range(0, n, «0»):\n    pass", "must not be 0"),
    ("TS203", "a = tile.program_id(«3»)", "a grid has the axes 0, 1 and 2, not 3"),
    ("TS203", "a = «p // 0»", "this divides by zero"),
    ("TS203", "a = tile.mma(«2.0», w)", "'a' takes a tile, but '2.0' is 2.0"),
    ("TS203", "a = ts.ops.distance_scaling(«x[0:16] * 1.0»)", "a layer distance is one number"),
    # dtypes
    ("TS204", "a = «tile.mma(x[0:16], w)»",
     "but 'x[0:16]' is bf16 and 'w' is f32"),
    ("TS204", "b = tile.alloc_shared([16, ctx.N], ts.f32)\ntile.copy_async(b, «x[p:p + 16]»)", "does not convert"),
    ("TS204", "a = «s // 2»", "'floordiv' takes integers, but 's' is a f32 scalar"),
    ("TS204", "if «n»:\n    a = 1", "'n' is an i64 scalar; compare it first"),
    ("TS204", "if «x[0:16] > 0.0»:\n    a = 1", "an if needs one bool; use tile.where"),
    ("TS204", "a = «n > 0 and n»", "'and' takes bools, but 'n' is an i64 scalar"),
    ("TS204", "a = tile.where(«s», 1.0, 2.0)", "must be bool"),
    ("TS204", "a = tile.mma(w, w, «tile.zeros([ctx.N, ctx.N], ts.bf16)»)", "it must be f32"),
    # compile time
    ("TS205", "if «ctx.N == 64»:\n    a = 1", "this comparison decides at compile time, so the dim 'N' must be static"),
    ("TS205", "for j in «range(ctx.M)»:\n    pass", "so the dim 'M' must be static, and it is not"),
    ("TS205", "for j in «range(n)»:\n    pass",
     "'range' is Python code that runs at compile time, but 'n' is an i64 scalar"),
    ("TS205", "for j in «tile.static_range(n)»:\n    pass",
     "the bounds of tile.static_range are known at compile time, but 'n' is"),
    ("TS205", "a = tile.zeros(«[n, 4]»)", "a size in '[n, 4]' is an i64 scalar, known only at run time"),
    ("TS205", "a = [1, 2][«n»]", "a Python container is indexed at compile time"),
    ("TS205", "a = f'{«n»}'", "text is made at compile time"),
    # shapes
    ("TS301", "a = tile.load(x[0:16])\nb = tile.load(x[0:8])\nc = «a + b»",
     "'a' is [16, N] and 'b' is [8, N]: axis 0 is 16 in one and 8 in the other"),
    ("TS301", "a = «tile.where(x[0:16] > 0.0, tile.zeros([4]), 1.0)»",
     "'x[0:16] > 0.0' is [16, N] and 'tile.zeros([4])' is [4]"),
    ("TS301", "tile.store(«x[p:p + 16]», out[p:p + 8])",
     "'x[p:p + 16]' is [16, N], but the window 'out[p:p + 8]' is [8, N]"),
    ("TS301", "b = tile.alloc_shared([8, ctx.N], ts.bf16)\ntile.copy_async(b, «x[p:p + 16]»)", "'b' is [8, N]"),
    ("TS301", "a = «tile.mma(w, w[0:16])»", "the inner sizes of 'w' [N, N] and 'w[0:16]' [16, N] are N and 16"),
    ("TS301", "a = tile.mma(w, w, «tile.zeros([4, 4])»)", "is [4, 4], but the product is [N, N]"),
    ("TS301", "a = tile.broadcast_to(«v», [5])", "'v' is [4], which does not broadcast to [5]"),
    ("TS301", "a = «tile.reshape(v, [3])»", "cannot be reshaped"),
    ("TS301", "a = tile.zeros(«[0]»)", "sizes are positive"),
    ("TS301", "acc = tile.zeros([16, ctx.N])\nfor j in tile.range(4):\n    «acc» = tile.cast(acc + 1.0, ts.bf16)",
     "'acc' is a tile [16, N] of f32 before the loop on line 8 and a tile [16, N] of bf16 after an iteration"),
    ("TS301", "c = 0\nfor j in tile.range(4):\n    «c» = c + 0.5", "'c' is an i64 scalar before the loop on line 8"),
    ("TS301", "if n > 0:\n    a = tile.zeros([4])\nelse:\n    a = tile.zeros([8])\nb = «a»",
     "'a' is a tile [4] of f32 in one"),
    # windows
    ("TS303", "a = x[«p:n»]", "the extent of 'p:n' on axis 0 of 'x' is stop - start = -16*pid0 + n"),
    ("TS303", "a = x[«16:16»]", "has the extent 0"),
    ("TS304", "a = x[0, 1, «2»]", "'x' has 2 axes [M, N], but 3 indices are given"),
    ("TS304", "a = tile.sum(x[0:4], axis=«2»)", "so there is no axis 2"),
    ("TS304", "a = tile.mma(«v», w)", "takes tiles of two axes, but 'v' is [4]"),
    ("TS304", "a = «v.T»", "'v' has 1 axes [4]; a transpose needs two"),
    ("TS504", "a = v[«4»]", "index 4 is outside axis 0 of 'v', whose size is 4"),
    ("TS504", "b = tile.alloc_shared([8], ts.f32)\nc = b[«4:12»]",
     "the window '4:12' leaves axis 0 of 'b', whose size is 8"),
    # numerics
    ("TS401", "a = «n + 9223372036854775808»", "does not fit i64"),
    ("TS402", "a = tile.mma(w, w, precision_policy=«'mixed_bf16_f32'»)", "asks for bf16 operands, but 'w' is f32"),
    ("TS402", "a = tile.mma(w, w, precision_policy=«'fast'»)", "the form is mixed_<input>_<accumulator>"),
    ("TS402", "a = tile.mma(w, w, precision_policy=«'mixed_f32_bf16'»)",
     "accumulates in bf16, but accumulator_type is f32"),
    ("TS402", "a = tile.mma(w, w, accumulator_type=«ts.bf16»)", "accumulated in f32, not in bf16"),
    # copies
    ("TS502", "b = tile.alloc_shared([16, ctx.N], ts.bf16)\ntile.copy_async(b, x[p:p + 16])\ntile.cp_commit_group()\n"
     "tile.cp_wait_group(1)\nc = «b + 1.0»",
     "'b' is used here, but the copy into it on line 8 has not been waited for"),
]  # fmt: skip

HELPERS = """
@ts.kernel
def other(x: Tensor["M", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    tile.store(x[0:1], out[0:1])

@ts.function
def tensors(x: Tensor["M", ts.bf16]):
    return x

def broken(value):
    raise RuntimeError(f"broken for {value}")

def kept(result=[]):
    return result

import functools

@functools.wraps(broken)
def wrapped(value):
    return value

wrapped.__name__ = "wrapped"

def helper(value, factor=2):
    return value * factor
"""


@pytest.mark.parametrize(("code", "body", "sentence"), CASES, ids=[f"{code}-{body[:40]}" for code, body, _ in CASES])
def test_error(code, body, sentence):
    error, span = traced_error(SIGNATURE + textwrap.indent(body, "    ") + "\n" + HELPERS)
    assert sentence in error.message
    assert (error.code, *span_of(error)) == (code, *span)
    assert "tessera/" not in render(error, read_source_line)


@pytest.mark.parametrize(
    ("signature", "code", "sentence"),
    [
        ("x: «Tensor['M']», out: Tensor['M', ts.f32]", "TS206", "has no dtype"),
        ("x: «str», out: Tensor['M', ts.f32]", "TS206", "the annotation str of 'x' is not understood"),
        ("x: «list[int]», out: Tensor['M', ts.f32]", "TS206", "'x' is a list of int"),
        ("x: «list[tile.Tensor['M']]», out: Tensor['M', ts.f32]", "TS206", "has no dtype"),
        ("«x», out: Tensor['M', ts.f32]", "TS206", "'x' of 'k' has no annotation"),
        ("*«x: int»", "TS206", "'x' of 'k' takes any number of arguments"),
    ],
)
def test_error_in_a_signature(signature, code, sentence):
    error, span = traced_error(f"@ts.kernel\ndef k({signature}):\n    pass\n")
    assert sentence in error.message
    if code != "TS206" or "any number" not in sentence:
        assert span_of(error) == span
    assert error.code == code


def test_keyword_attribute_is_underlined_where_the_author_wrote_it():
    body = "    tile.cp_async.shared.global(«x», y)\n"
    error, span = traced_error(SIGNATURE + body)
    assert (error.code, span_of(error)) == ("TS203", span)
    assert "global_" not in render(error, read_source_line)


def test_error_in_a_helper_shows_the_calls():
    text = (
        SIGNATURE
        + "    a = outer(x)\n\n\ndef outer(t):\n    return inner(t)\n\n\ndef inner(t):\n    return «t[0:16] + 'a'»\n"
    )
    error, span = traced_error(text)
    assert span_of(error) == span
    assert [(site.line, site.column) for site in error.loc.calls()] == [(11, 12), (7, 9)]
    assert "called from case.py:7:9" in render(error, read_source_line)


def test_endless_helper():
    text = SIGNATURE + "    a = again(p)\n\n\ndef again(t):\n    return «again(t)»\n"
    error, span = traced_error(text)
    assert (error.code, span_of(error)) == ("TS102", span)
    assert "cannot call itself" in error.message


def test_helper_that_keeps_values_of_a_loop():
    body = "    for j in tile.range(4):\n        keep(kept, x[0:4] + 1.0)\n"
    error, span = traced_error(f"{SIGNATURE}{body}\nkept = []\n\ndef keep(to, a):\n    «to.append(a)»\n")
    assert (error.code, span_of(error)) == ("TS102", span)
    assert "'to.append(a)' changes inside a run-time loop" in error.message


@pytest.mark.parametrize(
    "call", [lambda: tile.zeros([4]), lambda: tile.cp_async.shared.global_(1, 2), lambda: tile.range(3)]
)
def test_intrinsics_outside_a_kernel(call):
    with pytest.raises(TesseraError, match="works only inside a function decorated with @ts.kernel"):
        call()


def test_grid_functions():
    text = "@ts.kernel(grid=lambda d: (d.M, d.Q))\n«def k»(x: Tensor['M', ts.f32]):\n    tile.store(1.0, x[0])\n"
    error, span = traced_error(text)
    assert (error.code, span_of(error)) == ("TS201", span)
    text = text.replace("d.Q", "1.5")
    error, span = traced_error(text)
    assert (error.code, span_of(error)) == ("TS203", span)


def test_a_kernel_decorates_a_function():
    with pytest.raises(SourceError) as caught:
        ts.kernel(3)
    assert caught.value.code == "TS102"
    with pytest.raises(SourceError) as caught:
        ts.kernel(name="a b")(lambda: None)
    assert caught.value.code == "TS203"
    assert isinstance(ts.kernel(name="a_b")(test_endless_helper), KernelDefinition)
