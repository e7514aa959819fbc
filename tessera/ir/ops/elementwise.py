"""Elementwise ops: over scalars and tiles, in any mix; a scalar is spread over the tile's shape.

The rule for all of them: the result dtype is the widest strong operand, arithmetic is f32 (or int64), one rounding at
the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from tessera.dtypes import DType, boolean, f32, i64, promote, round_to
from tessera.errors import SourceError
from tessera.ir import bounds, numeric, philox, special
from tessera.ir.bounds import Bar
from tessera.ir.core import Op
from tessera.ir.opdef import ELEMENTWISE, EVERY_LEVEL, PURE, REQUIRED, Lowering, define
from tessera.ir.types import ScalarType, TileType, Type, dtype_of, shape_text

Array = np.ndarray


def result_dtype(types: list[Type]) -> DType:
    """The widest strong dtype; a weak (literal) operand decides only between integer and float."""
    strong = [dtype_of(t) for t in types if not _is_weak(t)]
    weak = [t.dtype for t in types if isinstance(t, ScalarType) and t.weak]
    if not strong:
        return reduce(promote, weak)
    widest = reduce(promote, strong)
    if any(t.is_float for t in weak) and not widest.is_float:
        return f32
    return widest


def _typed(op: Op, dtype: DType | None) -> tuple[Type, ...]:
    types = [value.type for value in op.operands]
    for value in op.operands:
        if not isinstance(value.type, (ScalarType, TileType)):
            raise SourceError(
                "TS203", f"{op.name} takes tiles and scalars, but '{value.name or '?'}' is neither; load it first"
            )
    _check_kinds(op)
    dtype = dtype or result_dtype(types)
    tiles = [type_ for type_ in types if isinstance(type_, TileType)]
    if not tiles:
        return (ScalarType(dtype, weak=op.name != "cast" and all(_is_weak(type_) for type_ in types)),)
    first = tiles[0]
    for other in tiles[1:]:
        if other.shape != first.shape:
            raise SourceError(
                "TS301",
                f"{op.name} of {shape_text(first.shape)} and {shape_text(other.shape)}: "
                "the shapes differ and do not broadcast",
            )
        if other.layout != first.layout:
            raise SourceError("TS703", f"{op.name} of two tiles with different register layouts")
    return (TileType(first.shape, dtype, first.layout),)


def _is_weak(type_: Type) -> bool:
    return isinstance(type_, ScalarType) and type_.weak


def _check_kinds(op: Op) -> None:
    """Raises SourceError TS204 for an operand of a kind that the op is not defined for."""
    definition = op.definition
    for value in op.operands:
        dtype = dtype_of(value.type)
        if dtype.kind not in definition.takes:
            kinds = " or ".join(f"{kind}s" for kind in ("float", "int", "bool") if kind in definition.takes)
            raise SourceError("TS204", f"{op.name} takes {kinds}, but '{value.name or '?'}' is {dtype.name}")
    if definition.lower is not None and definition.lower.floats_only and not computes_in_float(op):
        raise SourceError("TS204", f"{op.name} of integers is not defined; cast them to a float first")


def _same_type(op: Op) -> tuple[Type, ...]:
    return _typed(op, None)


def _bool_type(op: Op) -> tuple[Type, ...]:
    return _typed(op, boolean)


def align(op: Op, values: tuple[Any, ...]) -> list[Any]:
    """Gives scalars [P] the rank of the tiles [P, *shape] they meet."""
    rank = max((len(v.type.shape) for v in op.operands if isinstance(v.type, TileType)), default=0)
    return [
        bounds.lift(lambda x: x.reshape(x.shape + (1,) * rank), value) if isinstance(v.type, ScalarType) else value
        for v, value in zip(op.operands, values, strict=True)
    ]


def computes_in_float(op: Op) -> bool:
    return result_dtype([value.type for value in op.operands]).is_float


def _evaluate(on_floats: Callable[..., Array] | None, on_integers: Callable[..., Array] | None) -> Callable[..., Array]:
    def evaluate(op: Op, *values: Array) -> Array:
        aligned = align(op, values)
        if computes_in_float(op):
            with np.errstate(all="ignore"):
                assert on_floats is not None
                result = on_floats(*(x.astype(np.float32) for x in aligned))
        else:
            assert on_integers is not None
            result = on_integers(*(x if x.dtype == np.bool_ else x.astype(np.int64) for x in aligned))
        return round_to(dtype_of(op.result.type), result)

    return evaluate


def _bound(
    on_floats: Callable[..., Array] | None, on_bars: Callable[..., Bar], on_integers: Callable[..., Array] | None
) -> Callable[..., Bar]:
    def bound(op: Op, *values: Bar) -> Bar:
        aligned = align(op, values)
        if computes_in_float(op):
            aligned = [_to_f32(v.type, x) for v, x in zip(op.operands, aligned, strict=True)]
        elif on_floats is not None and on_integers is not None and not dtype_of(op.result.type).is_bool:
            return bounds.integer(on_integers, *aligned)
        with np.errstate(all="ignore"):
            return on_bars(op, *aligned)

    return bound


def _to_f32(type_: Type, value: Bar) -> Bar:
    """An operand of an op that computes in f32: every lane converts an integer alike."""
    return Bar(round_to(f32, value.r).astype(np.float64), value.e) if dtype_of(type_).is_int else value


def _declare(
    name: str,
    operands: str,
    doc: str,
    floats: Callable[..., Array] | None,
    bar: Callable[..., Bar],
    cuda: str = "",
    integers: Callable[..., Array] | None = None,
    integer_cuda: str = "",
    type_rule: Callable[[Op], tuple[Type, ...]] = _same_type,
    ulp: float = 0.5,
    on_numbers: Callable[..., Array] | None = None,
    takes: tuple[str, ...] = ("float", "int"),
) -> None:
    """One elementwise op. A new one whose facets are all here is usable in kernels as `tile.<name>` at once."""
    define(
        name,
        operands,
        type_rule,
        doc,
        PURE,
        ELEMENTWISE,
        levels=EVERY_LEVEL,
        evaluate=_evaluate(floats, integers),
        bound=_bound(floats, bar, integers),
        lower=Lowering(expression=cuda, integer=integer_cuda),
        ulp=ulp,
        on_numbers=on_numbers or floats,
        takes=frozenset(takes),
    )


def _function(
    name: str,
    doc: str,
    function: Callable[[Array], Array],
    cuda: str,
    ulp: float,
    bar: Callable[..., Bar] | None = None,
) -> None:
    """A smooth f32 function: correctly rounded here, within `ulp` on a GPU. `bar` for one that is not monotone."""
    _declare(
        name,
        "a",
        doc,
        numeric.correctly_rounded(function),
        bar or bounds.monotone(function),
        cuda,
        ulp=ulp,
        on_numbers=function,
    )


_declare("add", "a b", "a + b", np.add, bounds.add, "{0} + {1}", numeric.checked(np.add), "{0} + {1}")
_declare("sub", "a b", "a - b", np.subtract, bounds.subtract, "{0} - {1}", numeric.checked(np.subtract), "{0} - {1}")
_declare("mul", "a b", "a * b", np.multiply, bounds.multiply, "{0} * {1}", numeric.checked(np.multiply), "{0} * {1}")
_declare("div", "a b", "a / b, of floats", np.divide, bounds.divide, "ts_div({0}, {1})")
_declare(
    "floordiv",
    "a b",
    "a // b of integers, rounded down as in Python",
    None,
    bounds.exact_integers(numeric.floordiv),
    "",
    numeric.floordiv,
    "ts_floordiv({0}, {1})",
    takes=("int",),
)
_declare(
    "mod",
    "a b",
    "a % b of integers, with the sign of b as in Python",
    None,
    bounds.exact_integers(numeric.mod),
    "",
    numeric.mod,
    "ts_floormod({0}, {1})",
    takes=("int",),
)
_declare("neg", "a", "-a", np.negative, bounds.exact(np.negative), "-{0}", numeric.checked(np.negative), "-{0}")
_declare("abs", "a", "|a|", np.abs, bounds.exact(np.abs), "ts_abs({0})", numeric.checked(np.abs), "ts_iabs({0})")
_declare(
    "max",
    "a b",
    "the larger of a and b; NaN when either is",
    numeric.maximum,
    bounds.extremum(np.maximum),
    "ts_max({0}, {1})",
    np.maximum,
    "ts_imax({0}, {1})",
)
_declare(
    "min",
    "a b",
    "the smaller of a and b; NaN when either is",
    numeric.minimum,
    bounds.extremum(np.minimum),
    "ts_min({0}, {1})",
    np.minimum,
    "ts_imin({0}, {1})",
)

# The stated ulp are the maximum errors of CUDA's f32 functions (CUDA C++ Programming Guide, mathematical functions).
SMALLEST_NORMAL = 2.0**-126


def _of_sigmoid(x: np.ndarray) -> np.ndarray:
    """Ulp of a sigmoid that its exponential's argument is off by."""
    return np.where(x < 0, 0.62 * np.minimum(-x, 128.0), 0.0)


def _of_gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Ulp of a sigmoid whose argument is off by 2 ulp, and those of its own."""
    argument = special.gelu_tanh_argument(np.clip(x, special.GELU_LOWEST, -special.GELU_LOWEST))
    return 2 * np.abs(argument) + _of_sigmoid(argument)


# Derived beside ts_sigmoid in the device header.
SIGMOID = bounds.monotone(numeric.sigmoid, _of_sigmoid, flushes=SMALLEST_NORMAL)

_function("exp", "e to the a", np.exp, "ts_exp({0})", 2)
_function("exp2", "2 to the a", np.exp2, "ts_exp2({0})", 2, bounds.monotone(np.exp2, flushes=SMALLEST_NORMAL))
_function("log", "natural logarithm", np.log, "ts_log({0})", 1)
_function("log2", "logarithm to base 2", np.log2, "ts_log2({0})", 1)
_function("sqrt", "square root", np.sqrt, "ts_sqrt({0})", 0.5)
_function("rsqrt", "1 / sqrt(a)", lambda x: 1 / np.sqrt(x), "ts_rsqrt({0})", 2)
_function("tanh", "hyperbolic tangent", np.tanh, "ts_tanh({0})", 2)
_function(
    "sigmoid",
    "1 / (1 + exp(-a)): neither side overflows",
    numeric.sigmoid,
    "ts_sigmoid({0})",
    4,
    SIGMOID,
)
_function("softplus", "log(1 + exp(a)): nothing overflows", numeric.softplus, "ts_softplus({0})", 4)
_function("erf", "the error function", special.erf, "ts_erf({0})", 2)
# The device header derives these errors.
_function(
    "silu",
    "a * sigmoid(a); 0 at -infinity",
    special.silu,
    "ts_silu({0})",
    5,
    bounds.unimodal(special.silu, special.SILU_MINIMUM, _of_sigmoid, flushes=128 * SMALLEST_NORMAL),
)
_function(
    "gelu",
    "a * (1 + erf(a / sqrt(2))) / 2; 0 at -infinity",
    special.gelu,
    "ts_gelu({0})",
    13,
    bounds.unimodal(special.gelu, special.GELU_MINIMUM),
)
_function(
    "gelu_tanh",
    "a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a^3))) / 2; 0 at -infinity",
    special.gelu_tanh,
    "ts_gelu_tanh({0})",
    5,
    bounds.unimodal(special.gelu_tanh, special.GELU_TANH_MINIMUM, _of_gelu_tanh, flushes=16 * SMALLEST_NORMAL),
)
_declare("floor", "a", "the largest integer not above a", np.floor, bounds.monotone(np.floor), "ts_floor({0})", ulp=0)
_declare("ceil", "a", "the smallest integer not below a", np.ceil, bounds.monotone(np.ceil), "ts_ceil({0})", ulp=0)

for _name, _sign, _numpy in (
    ("eq", "==", np.equal),
    ("ne", "!=", np.not_equal),
    ("lt", "<", np.less),
    ("le", "<=", np.less_equal),
    ("gt", ">", np.greater),
    ("ge", ">=", np.greater_equal),
):
    _declare(
        _name,
        "a b",
        f"a {_sign} b",
        _numpy,
        bounds.compare(_numpy),
        f"{{0}} {_sign} {{1}}",
        _numpy,
        f"{{0}} {_sign} {{1}}",
        type_rule=_bool_type,
        takes=("float", "int", "bool") if _name in ("eq", "ne") else ("float", "int"),
    )

for _name, _sign, _numpy in (("and", "&&", np.logical_and), ("or", "||", np.logical_or)):
    _declare(
        _name,
        "a b",
        f"a {_name} b, of bools",
        None,
        bounds.logical(_numpy),
        "",
        _numpy,
        f"{{0}} {_sign} {{1}}",
        type_rule=_bool_type,
        takes=("bool",),
    )
_declare(
    "not",
    "a",
    "not a, of a bool",
    None,
    bounds.logical(np.logical_not),
    "",
    np.logical_not,
    "!{0}",
    type_rule=_bool_type,
    takes=("bool",),
)

_declare(
    "uniform",
    "index seed",
    "a random number in [0, 1) by element number and seed, both integers: Philox4x32-10, 24 bits of its first word",
    None,
    philox.uniform_bound,
    "",
    philox.uniform,
    "ts_uniform({0}, {1})",
    type_rule=lambda op: _typed(op, f32),
    ulp=0,
    takes=("int",),
)


def _select_type(op: Op) -> tuple[Type, ...]:
    condition, *branches = op.operands
    given = dtype_of(condition.type)
    if given != boolean:
        raise SourceError("TS204", f"the condition of where must be bool, not {given.name}")
    return _typed(op, result_dtype([value.type for value in branches]))


def _select(op: Op, *values: Array) -> Array:
    condition, *branches = align(op, values)
    a, b = (round_to(dtype_of(op.result.type), x) for x in branches)
    return np.where(condition, a, b)


define(
    "where",
    "condition a b",
    _select_type,
    "a where condition holds, else b",
    PURE,
    ELEMENTWISE,
    levels=EVERY_LEVEL,
    evaluate=_select,
    bound=lambda op, *values: bounds.select(op, *align(op, values)),
    lower=Lowering(expression="{0} ? {1} : {2}", integer="{0} ? {1} : {2}"),
)


def _cast(op: Op, value: Array) -> Array:
    return round_to(op.attributes["dtype"], value)


def _cast_bound(op: Op, a: Bar) -> Bar:
    rounded = bounds.round_implicit if op.attributes["implicit"] else bounds.round_explicit
    return rounded(op.attributes["dtype"], a)


define(
    "cast",
    "a",
    lambda op: _typed(op, op.attributes["dtype"]),
    "a rounded to dtype: a rounding that nothing skips, unless it is `implicit`, as the rounding of an op's result is",
    PURE,
    ELEMENTWISE,
    attributes={"dtype": REQUIRED, "implicit": False},
    levels=EVERY_LEVEL,
    evaluate=_cast,
    bound=_cast_bound,
    lower=Lowering(expression="{0}", integer="{0}"),
)


def is_index(type_: Type) -> bool:
    """Whether a value may serve as an index or a size: an integer scalar."""
    return isinstance(type_, ScalarType) and type_.dtype.is_int


INDEX = ScalarType(i64)
