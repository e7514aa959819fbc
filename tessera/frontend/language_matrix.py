"""The matrix product of tiles, with the policies that say in which precision it runs."""

from __future__ import annotations

from typing import Any

from tessera.dtypes import f32
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.language import intrinsic
from tessera.ir.dims import Size
from tessera.ir.products import FAST_ACCUM, PRECISIONS, TF32, operand_dtypes, product_format
from tessera.ir.types import shape_text


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
    precision: Any = None,
) -> Handle:
    """acc + a @ b on the matrix unit, an f32 tile: a is [M, K] (or [K, M] with `transpose_a`), b is [K, N] (or [N, K]).

    Operands are both bf16, f16 or f32, or fp8 of either kind. f32 operands are multiplied in true f32 unless
    `precision="tf32"` has them rounded to tf32. Where a matrix unit keeps fewer bits of sums of fp8 operands than f32
    has, these are added in f32 after every 128 of K; `precision="fast_accum"` leaves them there to the end.
    `precision_policy` is None, "tf32", or "mixed_<input>_<accumulator>", which must agree with the operands' dtypes;
    <input> may be "tf32", and "fp8" for fp8 of either kind.
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
    if product_format(left.dtype, right.dtype) is None:
        emit.fail(
            "TS204",
            f"tile.mma takes {operand_dtypes()}, but '{emit.text('a')}' is {left.dtype.name} and '{emit.text('b')}' is "
            f"{right.dtype.name}",
        )
    chosen = _precision(emit, left, right, accumulator_type, precision_policy, precision)
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
    return emit.emit("mma", *operands, transpose_a=transpose_a, transpose_b=transpose_b, precision=chosen)


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


def _precision(
    emit: Emitter, left: Handle, right: Handle, accumulator_type: Any, policy: Any, precision: Any
) -> str | None:
    """The `precision` of the op: "tf32" or "fast_accum" where the author asks for it, else None. Raises TS402 for a
    conflict.
    """
    accumulator = emit.dtype(accumulator_type, "accumulator_type")
    if accumulator != f32:
        emit.fail(
            "TS402",
            f"products of {left.dtype.name} are accumulated in f32, not in {accumulator.name}",
            "accumulator_type",
        )
    if precision not in PRECISIONS:
        known = " or ".join(repr(name) for name in PRECISIONS)
        emit.fail("TS402", f"precision= is {known}, not {precision!r}", "precision")
    fast = precision == FAST_ACCUM  # says how to add, and the policy may say more about the operands
    asked = {"precision": "fp8" if fast else precision, "precision_policy": _input_of(emit, policy, accumulator.name)}
    for argument, wanted in asked.items():
        for name, operand in (("a", left), ("b", right)):
            if wanted is not None and not _serves(wanted, operand.dtype.name):
                value = precision if argument == "precision" else policy
                emit.fail(
                    "TS402",
                    f"{value!r} asks for {'f32' if wanted == TF32 else wanted} operands, but '{emit.text(name)}' is "
                    f"{operand.dtype.name}",
                    argument,
                )
    if fast:
        return FAST_ACCUM
    formats = {wanted for wanted in asked.values() if wanted is not None}
    if len(formats) > 1:
        emit.fail(
            "TS402",
            f"precision_policy={policy!r} and precision={precision!r} contradict each other",
            "precision",
        )
    return TF32 if TF32 in formats else None


def _input_of(emit: Emitter, policy: Any, accumulator: str) -> str | None:
    """<input> of the policy mixed_<input>_<accumulator>; "tf32" stands for mixed_tf32_f32."""
    if policy is None:
        return None
    if policy == TF32:
        return TF32
    head, _, rest = policy.partition("_") if isinstance(policy, str) else ("", "", "")
    wanted, _, accumulated = rest.rpartition("_")
    if head != "mixed" or not wanted or not accumulated:
        emit.fail(
            "TS402",
            f"{policy!r} is no precision policy; the form is mixed_<input>_<accumulator>, or 'tf32'",
            "precision_policy",
        )
    if accumulated != accumulator:
        emit.fail(
            "TS402",
            f"{policy!r} accumulates in {accumulated}, but accumulator_type is {accumulator}",
            "precision_policy",
        )
    return wanted


def _serves(wanted: str, dtype: str) -> bool:
    """Whether operands of `dtype` are what a policy's <input> asks for: a dtype, a family of them, or tf32."""
    return wanted == dtype or (wanted == TF32 and dtype == "f32") or dtype.startswith(f"{wanted}_")
