"""Computing with tiles: elementwise functions, reductions and shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_arithmetic import FOLDS, elementwise
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe, plain
from tessera.frontend.language import Intrinsic, intrinsic
from tessera.frontend.language_memory import is_buffer
from tessera.ir.types import shape_text

MAX_RANK = 4  # axes of a tile that a reshape makes

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
    "eq", "ne", "lt", "le", "gt", "ge", "uniform"
}  # fmt: skip


def from_table(name: str) -> Intrinsic | None:
    """`tile.<name>` for an elementwise op of the table that is declared nowhere else, or None."""
    from tessera.ir.opdef import ELEMENTWISE, TILE, table  # here, so that importing the package stays light

    definition = table().get(name)
    if definition is None or name in _SPELLED or not definition.has(ELEMENTWISE) or TILE not in definition.levels:
        return None
    if len(definition.operands) > 2:
        return None
    build = _unary(name) if len(definition.operands) == 1 else _binary(name)
    return Intrinsic(f"tile.{name}", build, _on_numbers(name), name)


def _uniform(emit: Emitter, index: Any, seed: Any) -> Handle:
    """the same pair gives the same number on every lane, whatever the grid and the tiles"""
    return elementwise(emit, "uniform", (index, seed), (emit.text("index"), emit.text("seed")))


def _uniform_of_numbers(index: int, seed: int) -> float:
    from tessera.ir.philox import uniform_number

    return uniform_number(index, seed)


Intrinsic("tile.uniform", _uniform, _uniform_of_numbers, "uniform")


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
    """The elements of `x` in row-major order under another shape with as many elements; one size may be -1."""
    tile = emit.tile(x, "x")
    wanted = [plain(size) for size in (shape if isinstance(shape, (list, tuple)) else [shape])]
    if any(type(size) is int and size == -1 for size in wanted):
        wanted = _fill_in(emit, tile, wanted)
    sizes = emit.shape(wanted)
    if tile.shape != sizes and len(sizes) > MAX_RANK:
        emit.fail("TS304", f"a tile has at most {MAX_RANK} axes, not {shape_text(sizes)}", "shape")
    return emit.reshape(tile, sizes)


def _fill_in(emit: Emitter, tile: Handle, wanted: list[Any]) -> list[Any]:
    """A shape with its one -1 replaced by what the number of elements leaves."""
    total, rest = product(tile.shape), product([size for size in wanted if size != -1])
    if wanted.count(-1) == 1 and isinstance(rest, int) and rest > 0:
        left = total if rest == 1 else total // rest if isinstance(total, int) and total % rest == 0 else None
        if left is not None:
            return [left if size == -1 else size for size in wanted]
    emit.fail(
        "TS301",
        f"'{emit.text('x')}' is {shape_text(tile.shape)}, from which '{emit.text('shape')}' does not give the size -1",
        "shape",
    )


def product(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


@intrinsic("tile.transpose")
def transpose(emit: Emitter, x: Any) -> Handle:
    """`x` with its last two axes exchanged; `x.T` is the same."""
    return transposed(emit, emit.tile(x, "x"), emit.text("x"))


def transposed(emit: Emitter, tile: Handle, text: str) -> Handle:
    if len(tile.shape) < 2:
        emit.fail("TS304", f"'{text}' has {len(tile.shape)} axes {shape_text(tile.shape)}; a transpose needs two")
    return emit.emit("transpose", tile)
