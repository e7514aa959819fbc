"""Computing with tiles: elementwise functions, reductions, shapes, and the matrix product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessera.dtypes import bf16, f32
from tessera.frontend.evaluator_arithmetic import FOLDS, elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.frontend.language_memory import is_buffer
from tessera.ir.dims import Size
from tessera.ir.types import shape_text

# Named functions by the op that they build.
BINARY = {"add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "maximum": "max", "minimum": "min"}
UNARY = {
    "negative": "neg",
    "abs": "abs",
    "exp": "exp",
    "exp2": "exp2",
    "log": "log",
    "log2": "log2",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


def to_destination(emit: Emitter, result: Any, dst: Any) -> Any:
    """The result, also written to the buffer `dst` (rounded to its dtype) where one is given."""
    if dst is None:
        return result
    if not is_buffer(dst):
        emit.fail("TS203", f"the destination is a shared buffer, but '{emit.text('dst')}' is {describe(dst)}", "dst")
    tile = emit.full(dst.shape, result, dst.dtype, "the result") if result.is_scalar else result
    if tile.shape != dst.shape:
        emit.fail(
            "TS301",
            f"the result is {shape_text(tile.shape)}, but '{emit.text('dst')}' is {shape_text(dst.shape)}",
            "dst",
        )
    emit.write(dst, tile)
    return result


def _binary(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, a: Any, b: Any, dst: Any = None) -> Any:
        """with `dst`, a shared buffer, the result is also written there, rounded to its dtype"""
        return to_destination(emit, elementwise(emit, op, (a, b), (emit.text("a"), emit.text("b"))), dst)

    return build


def _unary(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, a: Any, dst: Any = None) -> Any:
        """with `dst`, a shared buffer, the result is also written there, rounded to its dtype"""
        return to_destination(emit, elementwise(emit, op, (a,), (emit.text("a"),)), dst)

    return build


def _on_numbers(op: str) -> Callable[..., Any]:
    def host(a: Any, b: Any = None, dst: Any = None) -> Any:
        fold = FOLDS.get(op) or _fold_by_table(op)
        return fold(a) if b is None else fold(a, b)

    return host


def _fold_by_table(op: str) -> Callable[..., float]:
    """The op on Python numbers by its entry in the op table, in float64."""
    import numpy as np

    from tessera.ir.opdef import lookup

    function = lookup(op).on_numbers
    assert function is not None, op

    def fold(*numbers: float) -> float:
        with np.errstate(all="ignore"):
            return float(function(*(np.float64(number) for number in numbers)))

    return fold


for _name, _op in BINARY.items():
    Intrinsic(f"tile.{_name}", _binary(_op), _on_numbers(_op), _op)
for _name, _op in UNARY.items():
    Intrinsic(f"tile.{_name}", _unary(_op), _on_numbers(_op), _op)


# Ops of the table that have another spelling: an operator, or a function declared in this file.
_SPELLED = frozenset([*BINARY.values(), *UNARY.values(), "floordiv", "mod", "where", "cast", "and", "or", "not"]) | {
    "eq", "ne", "lt", "le", "gt", "ge"
}  # fmt: skip


def from_table(name: str) -> Intrinsic | None:
    """`tile.<name>` for an elementwise op of the table that is declared nowhere else, or None."""
    from tessera.ir.opdef import ELEMENTWISE, table  # here, so that importing the package stays light

    definition = table().get(name)
    if definition is None or name in _SPELLED or not definition.has(ELEMENTWISE) or len(definition.operands) > 2:
        return None
    build = _unary(name) if len(definition.operands) == 1 else _binary(name)
    return Intrinsic(f"tile.{name}", build, _on_numbers(name), name)


@intrinsic("tile.where")
def where(emit: Emitter, condition: Any, a: Any, b: Any) -> Handle:
    """`a` where the condition holds, else `b`, element by element."""
    texts = [emit.text(name) for name in ("condition", "a", "b")]
    chosen = emit.operand(condition, texts[0])
    if not chosen.dtype.is_bool:
        emit.fail(
            "TS204", f"the condition of tile.where must be bool, but '{texts[0]}' is {describe(chosen)}", "condition"
        )
    return elementwise(emit, "where", (chosen, a, b), texts)


@intrinsic("tile.cast")
def cast(emit: Emitter, x: Any, dtype: Any) -> Handle:
    """`x` rounded to `dtype`: a rounding that no optimization skips."""
    kind = emit.dtype(dtype)
    operand = emit.operand(x, emit.text("x"))
    return emit.emit("cast", operand, dtype=kind, known=operand.size if kind.name == "i64" else None)


@intrinsic("tile.zeros")
def zeros(emit: Emitter, shape: Any, dtype: Any = f32) -> Handle:
    """A tile of zeros."""
    return emit.full(emit.shape(shape), 0.0, emit.dtype(dtype), "0")


@intrinsic("tile.full")
def full(emit: Emitter, shape: Any, value: Any, dtype: Any = f32) -> Handle:
    """A tile whose every element is `value`, a number or a scalar."""
    return emit.full(emit.shape(shape), value, emit.dtype(dtype), emit.text("value"))


@intrinsic("tile.broadcast_to")
def broadcast_to(emit: Emitter, x: Any, shape: Any) -> Handle:
    """`x` repeated to `shape`: axes of size 1 repeat, missing leading axes are added."""
    sizes = emit.shape(shape)
    operand = emit.operand(x, emit.text("x"))
    if operand.is_scalar:
        return emit.full(sizes, operand, operand.dtype, emit.text("x"))
    tail = sizes[len(sizes) - len(operand.shape) :]
    fits = len(operand.shape) <= len(sizes) and all(s in (1, t) for s, t in zip(operand.shape, tail, strict=True))
    if not fits:
        emit.fail(
            "TS301",
            f"'{emit.text('x')}' is {shape_text(operand.shape)}, which does not broadcast to {shape_text(sizes)}",
            "x",
        )
    return emit.spread(operand, sizes)


@intrinsic("tile.reshape")
def reshape(emit: Emitter, x: Any, shape: Any) -> Handle:
    """The elements of `x` in row-major order under another shape with as many elements."""
    return emit.reshape(emit.tile(x, "x"), emit.shape(shape))


@intrinsic("tile.transpose")
def transpose(emit: Emitter, x: Any) -> Handle:
    """`x` with its last two axes exchanged; `x.T` is the same."""
    return transposed(emit, emit.tile(x, "x"), emit.text("x"))


def transposed(emit: Emitter, tile: Handle, text: str) -> Handle:
    if len(tile.shape) < 2:
        emit.fail("TS304", f"'{text}' has {len(tile.shape)} axes {shape_text(tile.shape)}; a transpose needs two")
    return emit.emit("transpose", tile)


def _reduction(op: str) -> Callable[..., Any]:
    def build(emit: Emitter, x: Any, axis: Any = None, keepdims: Any = False) -> Handle:
        """the axis is dropped unless `keepdims`"""
        tile = emit.tile(x, "x")
        rank, text = len(tile.shape), emit.text("x")
        if axis is None and rank != 1:
            emit.fail("TS202", f"'{text}' has {rank} axes {shape_text(tile.shape)}: say which one, as in axis=-1")
        number = emit.concrete(-1 if axis is None else axis, emit.text("axis"), "axis= is a compile-time constant")
        if not -rank <= number < rank:
            emit.fail(
                "TS304", f"'{text}' has {rank} axes {shape_text(tile.shape)}, so there is no axis {number}", "axis"
            )
        if not tile.dtype.is_float:
            emit.fail("TS204", f"'{text}' is {describe(tile)}; reductions take floats", "x")
        number %= rank
        reduced = emit.emit(op, tile, axis=number - rank)
        shape: tuple[Size, ...] = (*tile.shape[:number], *tile.shape[number + 1 :])
        return reduced if keepdims else emit.reshape(reduced, shape)

    return build


for _name in ("sum", "max", "min"):
    Intrinsic(f"tile.{_name}", _reduction(f"reduce_{_name}"), op=f"reduce_{_name}")


@intrinsic("tile.mma")
def mma(
    emit: Emitter,
    a: Any,
    b: Any,
    acc: Any = None,
    accumulator_type: Any = f32,
    precision_policy: Any = None,
    transpose_a: Any = False,
    transpose_b: Any = False,
) -> Handle:
    """acc + a @ b on the matrix unit, an f32 tile: a is [M, K] (or [K, M] with `transpose_a`), b is [K, N] (or [N, K]).

    `precision_policy` is None or "mixed_<input>_<accumulator>", which must agree with the operands' dtypes.
    """
    left, right = emit.tile(a, "a"), emit.tile(b, "b")
    for tile, argument in ((left, "a"), (right, "b")):
        if len(tile.shape) != 2:
            emit.fail(
                "TS304",
                f"tile.mma takes tiles of two axes, but '{emit.text(argument)}' is {shape_text(tile.shape)}",
                argument,
            )
    for flag, argument in ((transpose_a, "transpose_a"), (transpose_b, "transpose_b")):
        if type(flag) is not bool:
            emit.fail("TS203", f"{argument}= is True or False, not {describe(flag)}", argument)
    if left.dtype != right.dtype or left.dtype not in (bf16, f32):
        emit.fail(
            "TS204",
            f"tile.mma takes two tiles of bf16 or two of f32, but '{emit.text('a')}' is {left.dtype.name} and "
            f"'{emit.text('b')}' is {right.dtype.name}",
        )
    _check_policy(emit, left, accumulator_type, precision_policy)
    m, k = reversed(left.shape) if transpose_a else left.shape
    inner, n = reversed(right.shape) if transpose_b else right.shape
    if k != inner:
        emit.fail(
            "TS301",
            f"the inner sizes of '{emit.text('a')}' {shape_text(left.shape)} and '{emit.text('b')}' "
            f"{shape_text(right.shape)} are {k} and {inner}",
        )
    operands = [left, right]
    if acc is not None:
        operands.append(_accumulator(emit, acc, (m, n)))
    return emit.emit("mma", *operands, transpose_a=transpose_a, transpose_b=transpose_b)


def _accumulator(emit: Emitter, acc: Any, shape: tuple[Size, Size]) -> Handle:
    tile = emit.tile(acc, "acc")
    if tile.shape != shape:
        emit.fail(
            "TS301",
            f"the accumulator '{emit.text('acc')}' is {shape_text(tile.shape)}, but the product is {shape_text(shape)}",
            "acc",
        )
    if tile.dtype != f32:
        emit.fail("TS204", f"the accumulator '{emit.text('acc')}' is {tile.dtype.name}; it must be f32", "acc")
    return tile


def _check_policy(emit: Emitter, operand: Handle, accumulator_type: Any, policy: Any) -> None:
    accumulator = emit.dtype(accumulator_type, "accumulator_type")
    if accumulator != f32:
        emit.fail(
            "TS402",
            f"products of {operand.dtype.name} are accumulated in f32, not in {accumulator.name}",
            "accumulator_type",
        )
    if policy is None:
        return
    parts = policy.split("_") if isinstance(policy, str) else []
    if len(parts) != 3 or parts[0] != "mixed":
        emit.fail(
            "TS402", f"{policy!r} is no precision policy; the form is mixed_<input>_<accumulator>", "precision_policy"
        )
    if parts[1] != operand.dtype.name:
        emit.fail(
            "TS402",
            f"{policy!r} asks for {parts[1]} operands, but '{emit.text('a')}' is {operand.dtype.name}",
            "precision_policy",
        )
    if parts[2] != accumulator.name:
        emit.fail(
            "TS402",
            f"{policy!r} accumulates in {parts[2]}, but accumulator_type is {accumulator.name}",
            "precision_policy",
        )
