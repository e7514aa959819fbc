"""Symbolic sizes: every operation commutes with evaluation, and text reads back to the same size."""

from __future__ import annotations

import operator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.ir import dims
from tessera.ir.dims import Dim, Size, cdiv, coefficient, divisor, evaluate, floordiv, maximum, minimum, mod, symbol

NAMES = "abc"
VALUES = st.fixed_dictionaries({name: st.integers(-40, 40) for name in NAMES})
LEAVES = st.integers(-9, 9) | st.sampled_from([symbol(name) for name in NAMES])
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "min": minimum, "max": maximum}
DIVISIONS = {"floordiv": floordiv, "mod": mod, "cdiv": cdiv}
MEANING = {
    **OPERATIONS,
    "min": min,
    "max": max,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "cdiv": lambda a, b: -(-a // b),
}


def combine(inner: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
    plain = st.builds(lambda name, a, b: OPERATIONS[name](a, b), st.sampled_from(sorted(OPERATIONS)), inner, inner)
    divided = st.builds(
        lambda name, a, b: DIVISIONS[name](a, b), st.sampled_from(sorted(DIVISIONS)), inner, st.integers(1, 9)
    )
    return plain | divided


SIZES = st.recursive(LEAVES, combine, max_leaves=6)


@settings(deadline=None)
@given(st.sampled_from(sorted(OPERATIONS)), SIZES, SIZES, VALUES)
def test_evaluation_is_a_homomorphism(name: str, a: Size, b: Size, values: dict[str, int]) -> None:
    expected = MEANING[name](evaluate(a, values), evaluate(b, values))
    assert evaluate(OPERATIONS[name](a, b), values) == expected


@settings(deadline=None)
@given(st.sampled_from(sorted(DIVISIONS)), SIZES, SIZES, VALUES)
def test_division_is_that_of_python(name: str, a: Size, b: Size, values: dict[str, int]) -> None:
    below = evaluate(b, values)
    assume(below != 0 and b != 0)
    assert evaluate(DIVISIONS[name](a, b), values) == MEANING[name](evaluate(a, values), below)


@settings(deadline=None)
@given(SIZES)
def test_text_reads_back(size: Size) -> None:
    assert dims.parse(dims.to_text(size)) == size


@settings(deadline=None)
@given(SIZES, SIZES, SIZES)
def test_equal_polynomials_are_equal(a: Size, b: Size, c: Size) -> None:
    assert (a + b) + c == (c + b) + a
    assert a * b == b * a
    assert a * (b + c) == a * b + a * c
    assert a - a == 0
    assert hash(a + b) == hash(b + a)


@settings(deadline=None)
@given(SIZES, VALUES)
def test_substitution_in_steps(size: Size, values: dict[str, int]) -> None:
    first = dims.substitute(size, {"a": values["a"]})
    assert "a" not in dims.symbols(first)
    assert evaluate(first, values) == evaluate(size, values)


@settings(deadline=None)
@given(SIZES, st.sampled_from(NAMES), VALUES)
def test_coefficient(size: Size, name: str, values: dict[str, int]) -> None:
    found = coefficient(size, name)
    if found is None:
        return
    factor, rest = found
    assert name not in dims.symbols(factor) | dims.symbols(rest)
    assert evaluate(factor, values) * values[name] + evaluate(rest, values) == evaluate(size, values)


@settings(deadline=None)
@given(SIZES, VALUES, st.fixed_dictionaries({name: st.sampled_from([1, 2, 8]) for name in NAMES}))
def test_divisor_divides(size: Size, values: dict[str, int], known: dict[str, int]) -> None:
    multiples = {name: value * known[name] for name, value in values.items()}
    assert evaluate(size, multiples) % divisor(size, known) == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (symbol("S") * 2 + 1, "2*S + 1"),
        (symbol("S") - symbol("B") * 3, "-3*B + S"),
        (cdiv(symbol("S"), 128), "cdiv(S, 128)"),
        (floordiv(symbol("S") * 4 + 6, 4), "S + floordiv(6, 4)"),
        (mod(symbol("S") * 8 + 3, 8), "3"),
        (symbol("S") * symbol("S"), "S*S"),
        (minimum(symbol("S"), symbol("S") + 1), "S"),
        (floordiv(symbol("S"), -2), "floordiv(-S, 2)"),
        (0 - symbol("S"), "-S"),
    ],
)
def test_normal_form(size: Size, text: str) -> None:
    assert dims.to_text(size) == dims.to_text(dims.parse(text))


@pytest.mark.parametrize("name", ["x.0", "x.stride0", "long_name.12"])
def test_names_with_dots_read_back(name: str) -> None:
    for size in (symbol(name), cdiv(symbol(name) * 3 + symbol("S"), 128), symbol(name) * symbol("x.1") - 5):
        assert dims.parse(dims.to_text(size)) == size


@pytest.mark.parametrize("text", ["x.", ".0", "x..0", "x.stride", "x.0.1", "x.stride0.", "x.0(1, 2)"])
def test_other_dots_are_no_names(text: str) -> None:
    with pytest.raises(ValueError, match="not a size expression"):
        dims.parse(text)


def test_constants_are_integers() -> None:
    s = symbol("S")
    for size in (s - s, s * 0, (s + 3) - s, cdiv(s * 4, 4) - s, mod(s * 4 + 2, 2), cdiv(s, s)):
        assert type(size) is int
    assert isinstance(s + 0, Dim) and s + 0 == s


def test_a_missing_symbol_is_named() -> None:
    with pytest.raises(KeyError, match="B"):
        evaluate(symbol("S") * symbol("B"), {"S": 2})


@pytest.mark.parametrize(
    "text",
    ["", "S +", "f(S, 1)", "S ** 2", "1.5", "'S'", "cdiv(S)", "floordiv(S, 0)", "S.x", "(" * 500, "S if S else S"],
)
def test_other_text_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError):
        dims.parse(text)
