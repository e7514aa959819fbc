"""Elementwise operations: Python's operators and the named functions, on tiles, scalars, sizes and numbers."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, is_number, plain
from tessera.ir import dims
from tessera.ir.dims import Dim, Size

# What an op does to run-time integers, as symbolic sizes.
_SIZES: dict[str, Callable[..., Size]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": lambda a: a * -1,
    "floordiv": dims.floordiv,
    "mod": dims.mod,
    "max": dims.maximum,
    "min": dims.minimum,
}

BINARY: dict[type[ast.operator], tuple[str, str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", "+", operator.add),
    ast.Sub: ("sub", "-", operator.sub),
    ast.Mult: ("mul", "*", operator.mul),
    ast.Div: ("div", "/", operator.truediv),
    ast.FloorDiv: ("floordiv", "//", operator.floordiv),
    ast.Mod: ("mod", "%", operator.mod),
    ast.Pow: ("", "**", operator.pow),
    ast.MatMult: ("", "@", operator.matmul),
    ast.BitAnd: ("and", "&", operator.and_),
    ast.BitOr: ("or", "|", operator.or_),
    ast.BitXor: ("", "^", operator.xor),
    ast.LShift: ("", "<<", operator.lshift),
    ast.RShift: ("", ">>", operator.rshift),
}
COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("eq", operator.eq),
    ast.NotEq: ("ne", operator.ne),
    ast.Lt: ("lt", operator.lt),
    ast.LtE: ("le", operator.le),
    ast.Gt: ("gt", operator.gt),
    ast.GtE: ("ge", operator.ge),
}


def elementwise(emit: Emitter, op: str, values: Sequence[Any], texts: Sequence[str], **attributes: Any) -> Handle:
    """The op over values of any kind; tiles are broadcast, views loaded, buffers read, sizes and numbers made scalars.

    `texts` are the author's words for the values. Raises SourceError TS203, TS204 or TS301.
    """
    from tessera.ir.opdef import lookup  # here, so that importing the package stays light

    definition = lookup(op)
    floats_only = definition.lower is not None and definition.lower.floats_only
    if floats_only:
        values = [float(value) if type(value) is int else value for value in values]
    operands: list[Handle] = []
    for position, value in enumerate(values):
        same = next((i for i in range(position) if values[i] is value and isinstance(value, Handle)), None)
        operands.append(emit.operand(value, texts[position]) if same is None else operands[same])
    _check_kinds(emit, op, definition.takes, operands, texts)
    from tessera.ir.ops.elementwise import result_dtype

    if floats_only and not result_dtype([operand.type for operand in operands]).is_float:
        operands = [emit.cast(operand, f32) for operand in operands]
    operands = emit.broadcast(operands, texts)
    return emit.emit(op, *operands, known=_known(emit, op, operands), **attributes)


def _check_kinds(
    emit: Emitter, op: str, takes: frozenset[str], operands: Sequence[Handle], texts: Sequence[str]
) -> None:
    """Raises SourceError TS204 for an operand of a kind that the op table does not allow."""
    for operand, text in zip(operands, texts, strict=True):
        if operand.dtype.kind in takes:
            continue
        if takes == {"bool"}:
            kinds, remedy = "bools", "; compare it first"
        elif operand.dtype.is_bool:
            kinds, remedy = "integers" if takes == {"int"} else "numbers", "; use tile.where"
        else:
            kinds, remedy = "integers", ""
        raise SourceError("TS204", f"'{op}' takes {kinds}, but '{text}' is {describe(operand)}{remedy}", emit.place)


def _known(emit: Emitter, op: str, operands: Sequence[Handle]) -> Size | None:
    rule = _SIZES.get(op)
    if rule is None or not all(operand.is_int for operand in operands):
        return None
    sizes = [operand.size for operand in operands]
    if any(size is None for size in sizes):
        return None
    try:
        return rule(*sizes)
    except ZeroDivisionError:
        raise SourceError("TS203", "this divides by zero", emit.place) from None


def binary(emit: Emitter, kind: type[ast.operator], left: Any, right: Any, texts: Sequence[str]) -> Any:
    """Python's binary operator. Sizes stay symbolic, numbers are computed now, anything else becomes an op."""
    name, sign, native = BINARY[kind]
    left, right = plain(left), plain(right)
    symbolic = isinstance(left, Handle) or isinstance(right, Handle)
    if not symbolic and (isinstance(left, Dim) or isinstance(right, Dim)):
        if name in _SIZES and _is_size(left) and _is_size(right):
            return _native(emit, native, left, right)
        symbolic = name in ("add", "sub", "mul", "div") and all(
            is_number(v) or isinstance(v, Dim) for v in (left, right)
        )
        if not symbolic:
            why = f"'{sign}' is computed at compile time here"
            left, right = (
                emit.concrete(v, t, why) if isinstance(v, Dim) else v for v, t in zip((left, right), texts, strict=True)
            )
    if not symbolic:
        return _native(emit, native, left, right)
    if not name:
        remedy = "call tile.mma" if sign == "@" else "write it with + - * / // %"
        raise SourceError("TS102", f"'{sign}' is not supported on '{texts[0]}' and '{texts[1]}'; {remedy}", emit.place)
    return elementwise(emit, name, (left, right), texts)


def _is_size(value: Any) -> bool:
    return type(value) is int or isinstance(value, Dim)


def _native(emit: Emitter, function: Callable[..., Any], *values: Any) -> Any:
    try:
        return function(*values)
    except Exception as error:  # Python's own message names the types or values that do not go together
        raise SourceError("TS105", f"{type(error).__name__}: {error}", emit.place) from None


def unary(emit: Emitter, kind: type[ast.unaryop], value: Any, text: str) -> Any:
    if kind is ast.Not and not isinstance(value, Handle):
        return not truth(emit, value, text, "'not' decides at compile time here")
    if isinstance(value, Handle):
        if kind is ast.UAdd:
            return emit.operand(value, text)
        return elementwise(emit, "neg" if kind is ast.USub else "not", (value,), (text,))
    if isinstance(value, Dim):
        if kind is ast.Invert:
            raise SourceError("TS102", f"'~' is not supported on the size '{text}'", emit.place)
        return value if kind is ast.UAdd else value * -1
    return _native(emit, {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}[kind], value)


def compare(emit: Emitter, kind: type[ast.cmpop], left: Any, right: Any, texts: Sequence[str]) -> Any:
    """One comparison: a Python bool, or a bool scalar or tile when a run-time value takes part."""
    if kind in (ast.Is, ast.IsNot):
        return (left is right) == (kind is ast.Is)
    if kind in (ast.In, ast.NotIn):
        if isinstance(left, Handle) or isinstance(right, Handle):
            raise SourceError("TS102", "'in' works on compile-time values only", emit.place)
        return _native(emit, operator.contains, right, left) == (kind is ast.In)
    name, native = COMPARISONS[kind]
    if isinstance(left, Handle) or isinstance(right, Handle):
        return elementwise(emit, name, (left, right), texts)
    if _is_size(left) and _is_size(right):
        difference = left - right
        if isinstance(difference, int):
            return native(difference, 0)
    why = "this comparison decides at compile time"
    left, right = (
        emit.concrete(v, t, why) if isinstance(v, Dim) else v for v, t in zip((left, right), texts, strict=True)
    )
    return _native(emit, native, left, right)


def truth(emit: Emitter, value: Any, text: str, why: str) -> bool:
    """The truth of a compile-time value."""
    if isinstance(value, Dim):
        return bool(emit.concrete(value, text, why))
    if isinstance(value, Handle):
        raise SourceError("TS205", f"{why}, but '{text}' is {describe(value)}, known only at run time", emit.place)
    return _native(emit, bool, value)


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1.0 / (1.0 + _exp(-x))
    return _exp(x) / (1.0 + _exp(x))


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log2(x: float) -> float:
    return math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan


def _exp2(x: float) -> float:
    try:
        return 2.0**x
    except OverflowError:
        return math.inf


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def _rsqrt(x: float) -> float:
    return 1.0 / math.sqrt(x) if x > 0 else math.inf if x == 0 else math.nan


# What the named functions mean for Python numbers: calls on them are computed at compile time.
FOLDS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "abs": abs,
    "max": max,
    "min": min,
    "exp": _exp,
    "exp2": _exp2,
    "log": _log,
    "log2": _log2,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
}
