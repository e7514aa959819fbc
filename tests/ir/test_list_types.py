"""Lists of tensors in the IR: their text, what their elements are to the analyses, and what is refused."""

import numpy as np
import pytest

from tessera.dtypes import bf16, f32
from tessera.errors import SourceError
from tessera.ir.affine import window_of
from tessera.ir.compare import difference
from tessera.ir.dims import symbol
from tessera.ir.locality import row_dependence
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import (
    ListType,
    ViewType,
    dtype_of,
    length_name,
    shape_of,
    substitute_type,
    tensor_type,
    type_text,
)
from tessera.passes.canonicalise import canonicalise
from tessera.runtime.interpreter import interpret
from tessera.target.schedule import root

N, D = symbol("N"), symbol("D")
ROWS = ListType(ViewType((N, D), bf16), 3)

TEXT = """tessera 1 tile

kernel @k(
  %xs: list<view<[N, 8], f32>, 3>,
  %out: view<[N, 8], f32>
) attributes {parameters = (("xs", "in"), ("out", "out")), dims = ("N",), grid = (cdiv(N, 4),)} {
  %p: i64 = program_id {axis = 0}
  %zero: i64 = constant {value = 0, dtype = i64}
  %four: i64 = constant {value = 4, dtype = i64}
  %row: i64 = mul %p, %four
  %i: i64 = INDEX
  %x: view<[N, 8], f32> = element %xs, %i
  %w: view<[4, 8], f32> = window %x, %row, %zero {extents = (4, 8), kept = (true, true)}
  %t: tile<[4, 8], f32> = load %w
  %o: view<[4, 8], f32> = window %out, %row, %zero {extents = (4, 8), kept = (true, true)}
  store %o, %t
}
"""


def module(index="constant {value = 2, dtype = i64}"):
    return parse_module(TEXT.replace("INDEX", index))


def the(kernel, name):
    return next(op for op in kernel.body.walk() if op.name == name)


def test_types():
    assert type_text(ROWS) == "list<view<[N, D], bf16>, 3>"
    assert tensor_type(ROWS) == tensor_type(ROWS.element) == ROWS.element and length_name("xs") == "len(xs)"
    assert substitute_type(ROWS, {"D": 8}) == ListType(ViewType((N, 8), bf16), 3)
    for ask in (shape_of, dtype_of):
        with pytest.raises(TypeError, match="a list has no"):
            ask(ROWS)


def test_text():
    assert difference(module(), parse_module(print_module(module()))) is None
    assert module().kernel().parameters[0].type == ListType(ViewType((N, 8), f32), 3)


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("list<tile<[N, 8], f32>, 3>", "a list holds views"),
        ("list<list<view<[N, 8], f32>, 3>, 3>", "a list holds views"),
        ("rows<view<[N, 8], f32>, 3>", "'rows' is not a kind of type"),
        ("list<view<[N, 8], f32>>", "stands where"),
        ("list<view<[N, 8], f32>, N>", "stands where"),
        ("list<view<[N, 8], f32>, 99999999999999999999999>", "has more than 20 digits"),
        ("list<[N, 8], f32>", "'list' is not a kind of type"),
        ("view<[N, 8], f32>", "'xs' is not a list of tensors"),
    ],
)
def test_texts_that_are_refused(type_, message):
    with pytest.raises(SourceError, match=message):
        parse_module(
            TEXT.replace("list<view<[N, 8], f32>, 3>", type_).replace("INDEX", "constant {value = 2, dtype = i64}")
        )


@pytest.mark.parametrize("line", ["load %xs", "cast %xs {dtype = f32}", "window %xs, %row, %zero {extents = (4, 8)}"])
def test_a_list_is_no_tensor(line):
    with pytest.raises(SourceError) as caught:
        parse_module(TEXT.replace("INDEX", "constant {value = 2, dtype = i64}").replace("load %w", line))
    assert caught.value.code == "TS703"


def test_an_element_is_a_window_of_its_list():
    kernel = module().kernel()
    xs = kernel.parameters[0]
    window = window_of(the(kernel, "load").operands[0])
    assert window.parameter is xs and window.shape == (N, 8) and window.extents == (4, 8)
    assert root(the(kernel, "load").operands[0]) is xs


def test_rows_of_elements_stay_apart():
    kernel = module().kernel()
    assert row_dependence(kernel, the(kernel, "store")).local
    kernel = module("add %p, %zero").kernel()
    found = row_dependence(kernel, the(kernel, "store"))
    assert not found.local and "program_id(0)" in found.reason


def test_equal_elements_are_one():
    text = TEXT.replace("INDEX", "constant {value = 2, dtype = i64}").replace(
        "  %t: tile", "  %y: view<[N, 8], f32> = element %xs, %i\n"
        "  %v: view<[4, 8], f32> = window %y, %row, %zero {extents = (4, 8), kept = (true, true)}\n"
        "  %u: tile<[4, 8], f32> = load %v\n  %t: tile",
    ).replace("load %w", "add %u, %u")  # fmt: skip
    kernel = canonicalise(parse_module(text).kernel())
    assert [op.name for op in kernel.body.walk()].count("element") == 1


def test_programs_that_take_different_tensors():
    kernel = module("mod %p, %four").kernel()
    xs = [np.full((10, 8), number, np.float32) for number in range(3)]
    out = np.full((10, 8), np.nan, np.float32)
    interpret(kernel, {"xs": xs, "out": out}, {"N": 10})
    assert np.array_equal(out[:, 0], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    with pytest.raises(SourceError, match="the index 3 is outside the list 'xs', whose length is 3"):
        interpret(kernel, {"xs": [np.zeros((16, 8), np.float32)] * 3, "out": np.zeros((16, 8), np.float32)}, {"N": 16})


def test_a_loop_that_never_runs_is_dropped():
    text = TEXT.replace("INDEX", "constant {value = 2, dtype = i64}").replace(
        "  store", "  %r: tile<[4, 8], f32> = for %zero, %zero, %four, %t (%j: i64, %c: tile<[4, 8], f32>) {\n"
        "    %e: tile<[4, 8], f32> = neg %c\n    yield %e\n  }\n  store",
    ).replace("store %o, %t", "store %o, %r")  # fmt: skip
    kernel = canonicalise(parse_module(text).kernel())
    assert not any(op.name == "for" for op in kernel.body.walk())
    assert the(kernel, "store").operands[1] is the(kernel, "load").result
