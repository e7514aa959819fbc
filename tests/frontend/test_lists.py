"""Lists of tensors in kernels: indexing, iteration, lengths, and static loops that stay loops."""

import numpy as np
import pytest

from tessera.errors import SourceError, render
from tessera.frontend.document import read_source_line
from tessera.frontend.evaluator import trace
from tessera.ir.compare import difference
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import ListType
from tessera.runtime.interpreter import interpret
from tests.frontend.test_errors import span_of, traced_error
from tests.frontend.traced import names
from tests.lanes import define

HEAD = """
@ts.kernel
def k(a: list[Tensor["N", ts.f32]], b: list[Tensor["N", ts.f32]], w: Tensor["L", ts.f32], out: Tensor["N", ts.f32]):
    p = tile.program_id(0) * 64
    acc = tile.zeros([64])
"""
TAIL = "    tile.store(acc, out[p : p + 64])\n"


def source(*lines):
    return HEAD + "".join(f"    {line}\n" for line in lines) + TAIL


def traced(*lines, a=3, b=3, **static):
    module = trace(define(source(*lines)), {"len(a)": a, "len(b)": b, **static})
    again = parse_module(print_module(module))
    assert difference(module, again) is None and print_module(again) == print_module(module)
    return module.kernel()


def indices(kernel):
    """What each element is taken at: a number, or the name of a value."""
    found = []
    for op in kernel.body.walk():
        if op.name == "element":
            index = op.operand("index")
            constant = index.defining_op is not None and index.defining_op.name == "constant"
            found.append(index.defining_op.attributes["value"] if constant else index.name)
    return found


def loops(kernel):
    return [op for op in kernel.body.walk() if op.name == "for"]


def test_a_list_is_a_parameter_of_its_own_type():
    kernel = traced("acc = a[0][p : p + 64]")
    assert isinstance(kernel.parameters[0].type, ListType) and kernel.parameters[0].type.length == 3
    assert "%a: list<view<[N], f32>, 3>" in print_module(parse_module(print_module_of(kernel)))
    assert kernel.attributes["parameters"] == (("a", "in"), ("b", "in"), ("w", "in"), ("out", "out"))
    assert kernel.attributes["shape_dims"] == ("len(a)", "len(b)") and kernel.attributes["dims"] == ("N", "L")


def print_module_of(kernel):
    from tessera.ir.core import Module

    return print_module(Module("tile", [kernel]))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["acc = a[1][p : p + 64] + a[-1][p : p + 64]"], [1, 2]),
        (["for x in a:", "    acc = acc + x[p : p + 64]"], [0, 1, 2]),
        (["for x, y in zip(a, b):", "    acc = acc + x[p : p + 64] * y[p : p + 64]"], [0, 0, 1, 1, 2, 2]),
        (["for i, x in enumerate(a):", "    acc = acc + x[p : p + 64] * float(i)"], [0, 1, 2]),
        (["for x in reversed(a[1:]):", "    acc = acc + x[p : p + 64]"], [1, 2]),
        (["for i in range(len(a) - 1):", "    acc = acc + a[i + 1][p : p + 64]"], [1, 2]),
        (["acc = sum([x[p : p + 64] for x in a])"], [0, 1, 2]),
        (["first, *rest = a", "acc = first[p : p + 64] + rest[-1][p : p + 64]"], [0, 2]),
        (["for i in tile.range(len(a)):", "    acc = acc + a[i][p : p + 64]"], ["i"]),
        (["for i in tile.range(len(a)):", "    acc = acc + a[len(a) - 1 - i][p : p + 64]"], [""]),
        (["acc = a[tile.program_id(0)][p : p + 64]"], [""]),
    ],
)
def test_elements(lines, expected):
    assert indices(traced(*lines)) == expected


def test_a_helper_takes_a_list():
    text = source("acc = total(a, p)") + (
        "\ndef total(tensors, p):\n"
        "    acc = tile.zeros([64])\n"
        "    for i in tile.range(len(tensors)):\n"
        "        acc = acc + tensors[i][p : p + 64]\n"
        "    return acc\n"
    )
    kernel = trace(define(text), {"len(a)": 2, "len(b)": 2}).kernel()
    assert indices(kernel) == ["i"]


def test_an_empty_list_has_loops_that_never_run():
    for loop in ("tile.range", "tile.static_range", "range"):
        kernel = traced(f"for i in {loop}(len(a)):", "    acc = acc + a[i][p : p + 64]", a=0, b=0)
        assert len(indices(kernel)) == (1 if loop == "tile.range" else 0)


# Static loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        ["    acc = acc + a[i][p : p + 64]"],
        ["    acc = acc + a[i][p : p + 64] * w[len(a) - i]"],
        ["    acc = acc + a[i][p : p + 64] * tile.load_scalar(w[i]) + b[i][p : p + 64]"],
        ["    x = a[i]", "    acc = acc + x[p : p + 64] * (2 * i)"],
        ["    acc = acc + a[i][p : p + 64] * w[0] * (len(a) - i)"],
        ["    for j in tile.static_range(2):", "        acc = acc + a[i][p : p + 64] * b[j][p : p + 64]"],
    ],
)
def test_a_static_loop_whose_index_is_data_stays_a_loop(body):
    kernel = traced("for i in tile.static_range(len(a)):", *body)
    assert loops(kernel) and all(loop.attributes["static"] for loop in loops(kernel))
    assert "i" in indices(kernel)
    assert not loops(traced("for i in tile.range(3):", *body))[0].attributes["static"]


@pytest.mark.parametrize(
    "body",
    [
        ["    if i % 2 == 0:", "        acc = acc + a[i][p : p + 64]"],
        ["    acc = acc + a[i][p : p + 64] * [1.0, 2.0, 3.0][i]"],
        ["    acc = acc + a[i][p : p + 64] * (0.1 * i)"],
        ["    acc = acc + a[i][p : p + 64] * (i / 3)"],
        ["    acc = acc + a[i][p : p + 64] * tile.exp(i)"],
        ["    acc = acc + a[i][p : p + 64] * ts.ops.distance_scaling(i)"],
        ["    for j in tile.static_range(2):", "        acc = acc + a[i][p : p + 64] * (0.1 * (i * j))"],
        ["    acc = acc + tile.cast(tile.cast(a[i][p : p + 64], ts.bf16) * i, ts.f32)"],
        ["    acc = acc + a[i][p : p + 64] if i else acc"],
        ["    parts.append(a[i][p : p + 64])", "    acc = acc + parts[i]"],
        ["    if i == 2:", "        break", "    acc = acc + a[i][p : p + 64]"],
        ["    count = count + i", "    acc = acc + a[i][p : p + 64] * float(count)"],
        ["    acc = acc + a[next(numbers)][p : p + 64]"],
        ["    acc = acc + a[i][p : p + 64] * w[i : i + 64]"],
        ["    acc = acc + a[0][p : p + 64] * w[i] + a[1][p : p + 64]"],
        ["    last = a[i][p : p + 64]", "    acc = acc + last", "", "acc = acc + last"],
    ],
)
def test_a_static_loop_that_needs_its_index_is_unrolled(body):
    kernel = traced("parts, count, numbers = [], 0, iter(range(9))", "for i in tile.static_range(len(a)):", *body)
    assert not loops(kernel) and set(indices(kernel)) <= {0, 1, 2} and len(indices(kernel)) >= 2


def test_floats_of_a_static_index_have_the_bits_of_python():
    """What is computed in f32 from f32(1.1) is another number."""
    out, values = [], [np.full(64, number, np.float32) for number in (0, 0, 0, 1)]
    for lines in (
        ["for i in tile.static_range(len(a)):", "    acc = acc + a[i][p : p + 64] * (1.1 * i * 1.1)"],
        ["for i in range(len(a)):", "    acc = acc + a[i][p : p + 64] * (1.1 * i * 1.1)"],
    ):
        given = {"a": values, "b": values, "w": np.ones(1, np.float32), "out": np.zeros(64, np.float32)}
        interpret(traced(*lines, a=4, b=4), given, {"N": 64, "L": 1})
        out.append(given["out"].tobytes())
    assert out[0] == out[1]


def test_what_a_static_loop_assigned_last_is_known_after_it():
    kernel = traced("for i in tile.static_range(3):", "    x = a[i]", "acc = x[p : p + 64]")
    assert indices(kernel) == [2]
    kernel = traced(
        "for i in tile.static_range(3):", "    acc = acc + a[i][p : p + 64]", "acc = acc + a[i][p : p + 64]"
    )
    assert indices(kernel) == [0, 1, 2, 2]


def test_a_static_loop_that_fails_leaves_nothing_behind():
    kernel = traced(
        "for i in tile.static_range(2):",
        "    x = a[i][p : p + 64]",
        "    acc = acc + (x if i == 0 else -x)",
    )
    assert names(kernel.body).split().count("load") == 2 and indices(kernel) == [0, 1]


# Errors ---------------------------------------------------------------------------------------------------------------

ERRORS = [
    ("TS504", "acc = «a[3]»[p : p + 64]", "the index 3 is outside the list 'a', whose length is 3"),
    ("TS504", "acc = «a[-4]»[p : p + 64]", "the index -4 is outside the list 'a', whose length is 3"),
    ("TS504", "n = 7\nacc = «a[n]»[p : p + 64]", "the index 'n', which is 7, is outside the list 'a'"),
    ("TS504", "for i in tile.range(5):\n    acc = acc + «a[i]»[p : p + 64]", "'i' takes the value 4, which is outside"),
    ("TS504", "for i in tile.range(3):\n    acc = acc + «a[i + 1]»[p : p + 64]", "the index 3 is outside the list 'a'"),
    (
        "TS504",
        "for i in tile.range(3):\n    acc = acc + «a[i - 1]»[p : p + 64]",
        "the index -1 is outside the list 'a'",
    ),
    ("TS203", "acc = «a[1.5]»[p : p + 64]", "'1.5' is no index of the list 'a'"),
    ("TS304", "acc = a[«0, p : p + 64»]", "takes one index; index the tensor after it, as in a[i][...]"),
    ("TS201", "n = a.«shape»", "'a' is a list of 3, each a tensor in global memory [N] of f32 and has no 'shape'"),
    ("TS203", "acc = tile.load(«a»)", "'a' is a list of 3"),
    ("TS203", "«tile.store(acc, a[0][p : p + 64])»", "'a' is a list of tensors, which a kernel only reads"),
    (
        "TS308",
        "for x, y in «zip(a, c)»:\n    pass",
        "'a' and 'c' are used together in zip, but 'a' has the length 3 and",
    ),
    (
        "TS308",
        "for i in tile.range(len(a)):\n    acc = acc + a[i][p : p + 64] + «c[i]»[p : p + 64]",
        "'a' and 'c' are used together with the index 'i', but 'a' has the length 3 and 'c' 4",
    ),
    (
        "TS308",
        "for i in tile.static_range(len(a)):\n    acc = acc + a[i][p : p + 64] + «c[i]»[p : p + 64]",
        "'a' and 'c' are used together with the index 'i', but 'a' has the length 3 and 'c' 4",
    ),
    (
        "TS308",
        "for i, x in enumerate(a):\n    acc = acc + x[p : p + 64] * a[i][p : p + 64] + «c[i]»[p : p + 64]",
        "'a' and 'c' are used together with the index 'i'",
    ),
]


@pytest.mark.parametrize(("code", "body", "sentence"), ERRORS, ids=[body[:40] for _, body, _ in ERRORS])
def test_errors_with_a_code_and_the_place(code, body, sentence):
    head = HEAD.replace("w: Tensor", 'c: list[Tensor["N", ts.f32]], w: Tensor')
    error, span = traced_error(
        head + "".join(f"    {line}\n" for line in body.split("\n")) + TAIL,
        {"len(a)": 3, "len(b)": 3, "len(c)": 4},
    )
    assert sentence in error.message
    assert (error.code, span_of(error)) == (code, span)
    assert "^" in render(error, read_source_line)


@pytest.mark.parametrize("loop", ["tile.range", "tile.static_range", "range"])
def test_a_tensor_beside_a_list_is_too_short(loop):
    lines = [f"for i in {loop}(len(a)):", "    acc = acc + a[i][p : p + 64] * w[i]"]
    with pytest.raises(SourceError) as caught:
        traced(*lines, L=2)
    reader = "this" if loop == "range" else "the loop over the 3 tensors of 'a'"
    assert caught.value.code == "TS504"
    assert caught.value.message == f"axis 0 of 'w' has the size L = 2, but {reader} reads index 2"
    assert traced(*lines, L=3) and traced(*lines)


def test_the_size_beside_a_list_asks_again_when_it_changes():
    lines = ["for i in tile.range(len(a)):", "    acc = acc + a[i][p : p + 64] * w[i]"]
    assert traced(*lines, L=3).attributes["shape_dims"] == ("L", "len(a)", "len(b)")
    assert traced(*lines[:1], "    acc = acc + a[i][p : p + 64] * w[0]", L=3).attributes["shape_dims"] == (
        "len(a)",
        "len(b)",
    )


def test_what_a_condition_keeps_from_running_is_no_error():
    traced("for i in tile.range(3):", "    if i > 0:", "        acc = acc + a[i - 1][p : p + 64]")
    traced("for i in tile.range(tile.num_programs(0)):", "    acc = acc + a[i][p : p + 64]")
    traced("for i in tile.range(0):", "    acc = acc + a[i + 7][p : p + 64]")


def test_an_index_that_is_assigned_anew_is_another_index():
    traced(
        "for i in tile.range(2):",
        "    acc = acc + a[i][p : p + 64]",
        "    i = i + 1",
        "    acc = acc + b[i][p : p + 64]",
        a=2,
        b=4,
    )


def test_the_length_must_be_known():
    with pytest.raises(SourceError, match="the length of the list 'a' must be known") as caught:
        trace(define(source("acc = a[0][p : p + 64]")), {})
    assert caught.value.code == "TS205"


def test_num_layers_is_the_length_of_the_first_list():
    kernel = traced("ctx = tile.context()", "acc = a[ctx.num_layers - 1][p : p + 64]")
    assert indices(kernel) == [2]
