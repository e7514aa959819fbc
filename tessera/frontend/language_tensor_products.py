"""Matrix products of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tessera.dtypes import f32, promote
from tessera.errors import SourceError
from tessera.frontend.evaluator_values import Handle, describe
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language_tensor_shapes import tensor_function
from tessera.ir.products import product_format
from tessera.ir.types import shape_text


def matmul_of(
    emit: TensorEmitter, a: Any, b: Any, texts: Sequence[str], precision: Any = None, wide: bool = False
) -> Handle:
    """a @ b over the last two axes, accumulated in f32 and rounded to the wider operand's dtype.

    `b` has two axes, or as many as `a` with the same leading ones; a vector `a` is one row. `wide`: the f32 result
    without the rounding. Raises TS203, TS204, TS301, TS304 or TS402.
    """
    for value, text in ((a, texts[0]), (b, texts[1])):
        if not isinstance(value, Handle) or not value.is_tile or not value.shape:
            raise SourceError("TS203", f"a product takes tensors, but '{text}' is {describe(value)}", emit.place)
    if precision not in (None, "tf32", "f32"):
        message = f"the precision of a product is None, 'f32' or 'tf32', not {precision!r}"
        raise SourceError("TS402", message, emit.place)
    row = len(a.shape) == 1
    left = emit.reshape(a, (1, *a.shape)) if row else a
    if len(b.shape) < 2:
        raise SourceError("TS304", f"'{texts[1]}' is {shape_text(b.shape)}; a matrix has two axes", emit.place)
    if not emit.unify(left.shape[-1], b.shape[-2]):
        raise SourceError(
            "TS301",
            f"'{texts[0]}' is {shape_text(a.shape)} and '{texts[1]}' is {shape_text(b.shape)}: the inner sizes "
            f"{left.shape[-1]} and {b.shape[-2]} differ{emit.values_text(left.shape[-1], b.shape[-2])}",
            emit.place,
        )
    if len(b.shape) > 2:
        same = len(b.shape) == len(left.shape) and all(map(emit.unify, b.shape[:-2], left.shape[:-2]))
        if not same:
            raise SourceError(
                "TS301",
                f"'{texts[0]}' is {shape_text(a.shape)} and '{texts[1]}' is {shape_text(b.shape)}: their leading axes "
                "differ",
                emit.place,
            )
    dtype = promote(left.dtype, b.dtype)
    if product_format(left.dtype, b.dtype) is None:
        left, b = emit.cast(left, dtype), emit.cast(b, dtype)
    product = emit.emit("matmul", left, b, precision="tf32" if precision == "tf32" else None)
    if not wide:
        product = emit.cast(product, dtype if dtype.is_float else f32, implicit=True)
    return emit.reshape(product, (*product.shape[:-2], product.shape[-1])) if row else product


def _product(emit: TensorEmitter, a: Any, b: Any, precision: Any = None) -> Handle:
    """a @ b over the last two axes, accumulated in f32; f32 operands are multiplied in true f32 unless precision is
    "tf32"."""
    return matmul_of(emit, a, b, (emit.text("a"), emit.text("b")), precision)


matmul = tensor_function("matmul")(_product)
gemm = tensor_function("gemm")(_product)
