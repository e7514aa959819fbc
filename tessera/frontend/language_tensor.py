"""Tensor functions that compute: elementwise maths, casts, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_arithmetic import elementwise
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language import EVERYWHERE, FUNCTION, Intrinsic
from tessera.frontend.language_math import BINARY, UNARY, _on_numbers
from tessera.frontend.language_tensor_shapes import axis_of, stacked, tensor_function, tensors_of

PRECISIONS = (None, "default", "high")


def _binary(name: str, op: str) -> Callable[..., Any]:
    def build(emit: TensorEmitter, a: Any, b: Any, precision: Any = None) -> Handle:
        """broadcasts; computed in f32 and rounded to the widest operand's dtype, with precision="high" kept in f32"""
        if precision not in PRECISIONS:
            emit.fail("TS402", f"the precision of ts.{name} is None, 'default' or 'high', not {precision!r}",
                      "precision")  # fmt: skip
        texts = (emit.text("a"), emit.text("b"))
        if op == "div":
            emit.require(b, "nonzero", texts[1], f"ts.divide({', '.join(texts)}) divides by it")
        if precision == "high":
            a, b = (emit.cast(v, f32) if isinstance(v, Handle) and v.dtype.is_float else v for v in (a, b))
        return elementwise(emit, op, (a, b), texts)

    return build


def _unary(op: str) -> Callable[..., Any]:
    def build(emit: TensorEmitter, a: Any) -> Handle:
        """computed in f32 and rounded to the operand's dtype"""
        return elementwise(emit, op, (a,), (emit.text("a"),))

    return build


for _name, _op in BINARY.items():
    Intrinsic(f"ts.{_name}", _binary(_name, _op), _on_numbers(_op), _op, FUNCTION)
for _name, _op in UNARY.items():
    Intrinsic(f"ts.{_name}", _unary(_op), _on_numbers(_op), _op, FUNCTION)


def from_table(name: str) -> Intrinsic | None:
    """`ts.<name>` for an elementwise op of the table that is declared nowhere else, or None."""
    from tessera.frontend.language_math import _SPELLED
    from tessera.ir.opdef import ELEMENTWISE, GRAPH, table

    definition = table().get(name)
    if definition is None or name in _SPELLED or not definition.has(ELEMENTWISE) or GRAPH not in definition.levels:
        return None
    if len(definition.operands) > 2:
        return None
    build = _unary(name) if len(definition.operands) == 1 else _binary(name, name)
    return Intrinsic(f"ts.{name}", build, _on_numbers(name), name, FUNCTION)


@tensor_function("where")
def where(emit: TensorEmitter, condition: Any, a: Any, b: Any) -> Handle:
    """`a` where the condition holds, else `b`, element by element."""
    texts = [emit.text(name) for name in ("condition", "a", "b")]
    chosen = emit.operand(condition, texts[0])
    if not chosen.dtype.is_bool:
        emit.fail("TS204", f"the condition of ts.where is a bool tensor, but '{texts[0]}' is {describe(chosen)}",
                  "condition")  # fmt: skip
    return elementwise(emit, "where", (chosen, a, b), texts)


def _cast(emit: Any, x: Any, dtype: Any) -> Any:
    """`x` rounded to dtype: a rounding that nothing skips; fp8 saturates, NaN stays NaN."""
    target = emit.dtype(dtype)
    operand = emit.operand(x, emit.text("x"))
    if operand.dtype == target and not isinstance(emit, TensorEmitter):
        return operand
    return emit.emit("cast", operand, dtype=target, known=operand.size if target.is_int else None)


cast = Intrinsic("ts.cast", _cast, scope=EVERYWHERE)


# Reductions -----------------------------------------------------------------------------------------------------------


def reduced(emit: TensorEmitter, op: str, x: Handle, axis: Any, keepdims: bool) -> Handle:
    """`x` reduced along one axis, several, or all of them (None)."""
    rank = len(x.shape)
    given = range(rank) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]
    axes = sorted({axis_of(emit, a, rank) for a in given}, reverse=True)
    for one in axes:  # the last first: that one is the widest in memory
        x = emit.emit(op, x, axis=one)
    return x if keepdims else emit.reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in axes))


def _count(shape: Any) -> Any:
    total: Any = 1
    for size in shape:
        total = total * size
    return total


def _operand(emit: TensorEmitter, x: Any, what: str) -> Handle:
    """A tensor, or a list of tensors, which is stacked along a new first axis."""
    if isinstance(x, (list, tuple)):
        return stacked(emit, tensors_of(emit, x, what, "x"), 0)
    return emit.tile(x, "x")


def _reduction(name: str, op: str) -> None:
    def build(emit: TensorEmitter, x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
        """the axis is dropped unless `keepdims`; several axes, or None for all; a list of tensors is stacked first"""
        return reduced(emit, op, _operand(emit, x, f"ts.{name}"), axis, keepdims)

    Intrinsic(f"ts.{name}", build, None, op, FUNCTION)


for _name, _op in (("sum", "reduce_sum"), ("max", "reduce_max"), ("min", "reduce_min")):
    _reduction(_name, _op)


@tensor_function("mean")
def mean(emit: TensorEmitter, x: Any, axis: Any = None, keepdims: bool = False) -> Handle:
    """The sum along `axis` divided by how many elements it has, computed in f32 and rounded to the dtype of `x`."""
    tensor = _operand(emit, x, "ts.mean")
    total = reduced(emit, "reduce_sum", emit.cast(tensor, f32), axis, keepdims)
    rank = len(tensor.shape)
    given = range(rank) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]
    count = _count([tensor.shape[a] for a in {axis_of(emit, a, rank) for a in given}])
    result = elementwise(emit, "div", (total, emit.cast(emit.operand(count, "the count"), f32)), ("x", "the count"))
    return emit.cast(result, tensor.dtype if tensor.dtype.is_float else f32, implicit=True)


def _index(name: str) -> None:
    def build(emit: TensorEmitter, x: Any, axis: Any = -1, keepdims: bool = False) -> Handle:
        """the axis is dropped unless `keepdims`"""
        tensor = emit.tile(x, "x")
        if axis is None:  # the number of an element in row-major order
            flat = reduced(emit, name, emit.reshape(tensor, (_count(tensor.shape),)), 0, True)
            return emit.reshape(flat, (1,) * len(tensor.shape) if keepdims else ())
        return reduced(emit, name, tensor, axis_of(emit, axis, len(tensor.shape)), keepdims)

    Intrinsic(f"ts.{name}", build, None, name, FUNCTION)


def _scan(name: str) -> None:
    def build(emit: TensorEmitter, x: Any, axis: Any = -1) -> Handle:
        tensor = emit.tile(x, "x")
        return emit.emit(name, tensor, axis=axis_of(emit, axis, len(tensor.shape)))

    Intrinsic(f"ts.{name}", build, None, name, FUNCTION)


for _name in ("argmax", "argmin"):
    _index(_name)
for _name in ("cumsum", "cummax"):
    _scan(_name)
