"""Gates: what a learned matrix, and the distance between layers, let through. The gates alone, not what they gate."""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_values import Handle, describe, plain
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language_ops import scaled_distance
from tessera.frontend.language_tensor_products import matmul_of
from tessera.frontend.language_tensor_shapes import permuted, tensor_function
from tessera.frontend.library_norms import floats, math_of, respelled, shown
from tessera.ir.dims import Dim, Size


@tensor_function("ops.gating_function")
def gating_function(emit: TensorEmitter, x: Any, W: Any, d: Any) -> Handle:  # noqa: N803
    """The gates sigmoid(exp(-0.1 * d) * (x @ W)) of a layer at distance `d`, in the dtype of `x`.

    `x` is [..., D] and `W` is [D, D]; the product is accumulated in f32, and everything after it computed there. The
    distance scales the logits: a far layer's gates tend to 0.5.
    """
    rows, matrix = _operands(emit, x, W)
    if not emit.unify(matrix.shape[0], matrix.shape[1]):
        emit.fail("TS301", f"'W' takes a matrix [D, D], but '{emit.text('W')}' is {shown(emit, matrix.shape)}", "W")
    logits = _product(emit, rows, matrix)
    emit.note("the distance scales the logit of a gate: the gates of far layers tend to 0.5, not to 0")
    scaled = math_of(emit, "mul", logits, scaled_distance(emit, _distance(emit, d), emit.text("d")))
    return emit.cast(math_of(emit, "sigmoid", scaled), rows.dtype, implicit=True)


@tensor_function("ops.gating_network")
def gating_network(emit: TensorEmitter, x: Any, W: Any) -> Handle:  # noqa: N803
    """The gates sigmoid(x @ W), in the dtype of `x`: [..., D] and [D, G] give [..., G].

    The product of f32 operands is one in true f32.
    """
    rows, matrix = _operands(emit, x, W)
    return emit.cast(math_of(emit, "sigmoid", _product(emit, rows, matrix)), rows.dtype, implicit=True)


@tensor_function("ops.mlp_gating")
def mlp_gating(emit: TensorEmitter, x: Any, W: Any) -> Handle:  # noqa: N803
    """Logits of gates from `x` and a matrix `W` [D, G], in the dtype of `x`; two rules by the last axis of `x`.

    G + 1: a two-layer MLP with tied weights, silu(x[..., 1:] + x[..., :1]) @ W transposed, which is [..., D]; the first
    feature is a magnitude that every hidden unit sees. Else D: the product x @ W. Computed in f32.
    """
    rows, matrix = _operands(emit, x, W)
    columns, (features, units) = rows.shape[-1], matrix.shape
    if _agree(emit, columns, units + 1) or _agree_on_units(emit, units, columns):
        return emit.cast(_tied(emit, rows, matrix), rows.dtype, implicit=True)
    if _agree(emit, columns, features):
        rows = respelled(emit, rows, (*rows.shape[:-1], features))
        return emit.cast(_product(emit, rows, matrix), rows.dtype, implicit=True)
    wanted = shown(emit, (units + 1, features))[1:-1].split(", ")
    emit.fail(
        "TS301",
        f"ts.ops.mlp_gating: '{emit.text('x')}' is {shown(emit, rows.shape)} and '{emit.text('W')}' is [D, G] = "
        f"{shown(emit, matrix.shape)}; the last axis of '{emit.text('x')}' must be G + 1 = {wanted[0]}, for the tied "
        f"two-layer MLP, or D = {wanted[1]}, for the plain product",
        "x",
    )


def _tied(emit: TensorEmitter, rows: Handle, matrix: Handle) -> Handle:
    leading, units = rows.shape[:-1], matrix.shape[1]
    wide, zeros = emit.cast(rows, f32), (0,) * len(leading)
    magnitude = emit.emit("extract", wide, starts=(*zeros, 0), extents=(*leading, 1))
    context = emit.emit("extract", wide, starts=(*zeros, 1), extents=(*leading, units))
    hidden = math_of(emit, "silu", math_of(emit, "add", context, magnitude))
    return _product(emit, hidden, permuted(emit, emit.cast(matrix, f32), (1, 0)))


# Parts ----------------------------------------------------------------------------------------------------------------


def _operands(emit: TensorEmitter, x: Any, matrix: Any) -> tuple[Handle, Handle]:
    """`x` with at least one axis and `W` with two. Raises SourceError TS203, TS204 or TS304."""
    rows, weights = floats(emit, x, "x"), floats(emit, matrix, "W")
    if not rows.shape:
        emit.fail("TS304", f"'{emit.text('x')}' has no axis of features", "x")
    if len(weights.shape) != 2:
        emit.fail("TS304", f"'W' takes a matrix, but '{emit.text('W')}' is {shown(emit, weights.shape)}", "W")
    return rows, weights


def _product(emit: TensorEmitter, rows: Handle, matrix: Handle) -> Handle:
    """rows @ matrix in f32, not rounded."""
    return matmul_of(emit, rows, matrix, (emit.text("x"), emit.text("W")), wide=True)


def _distance(emit: TensorEmitter, distance: Any) -> Handle:
    """One number: known now, of the call, or an element of a tensor. Raises SourceError TS203."""
    distance, text = plain(distance), emit.text("d")
    if isinstance(distance, (Handle, Dim)) or type(distance) in (int, float):
        operand = emit.operand(distance, text)
        if not operand.shape and not operand.dtype.is_bool:
            return operand
    emit.fail("TS203", f"a layer distance is one number, but '{text}' is {describe(distance)}; the order is "
              "ts.ops.gating_function(x, W, d)", "d")  # fmt: skip


def _agree(emit: TensorEmitter, a: Size, b: Size) -> bool:
    """Whether two sizes are one number: by what they are called, else in this call, which then decides."""
    if emit.unify(a, b):
        return True
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    return emit.concrete(difference, emit.text("x"), "the sizes choose the rule of ts.ops.mlp_gating") == 0


def _agree_on_units(emit: TensorEmitter, units: Size, columns: Size) -> bool:
    """The same test with G alone on one side, where it may be free."""
    hidden = columns - 1
    return not (isinstance(hidden, int) and hidden < 1) and emit.unify(units, hidden)


__all__ = ["gating_function", "gating_network", "mlp_gating"]
