"""Which matrix products there are: the format in which their operands are multiplied, and the k-block that it implies.

A *format* is what the matrix unit takes: "bf16", "f16", "tf32", or "f32" for products in true f32. It follows from the
dtypes of both operands and the `precision` that the author asked for; no product changes its format on its own.
"""

from __future__ import annotations

from itertools import product

from tessera.dtypes import DType

TF32 = "tf32"  # the `precision` that rounds f32 operands to tf32
PRECISIONS = (None, "f32", TF32)  # of f32 operands; None is "f32", products in true f32

_FP8 = ("fp8_e4m3", "fp8_e5m2")

FORMATS: dict[tuple[str, str, str | None], str] = {
    ("bf16", "bf16", None): "bf16",
    ("f16", "f16", None): "f16",
    # Every fp8 value is an f16 value, so widening is exact and one f16 instruction serves all four pairs.
    **{(a, b, None): "f16" for a, b in product(_FP8, _FP8)},
    ("f32", "f32", None): "f32",
    ("f32", "f32", TF32): TF32,
}

# How many products are summed before the sum is rounded into the accumulator: the depth of the instruction that runs,
# mma.m16n8k16 for 16-bit formats (and so for fp8 operands, which it multiplies as f16) and mma.m16n8k8 for tf32; true
# f32 runs in blocks of 8 fused multiply-adds.
K_BLOCKS = {"bf16": 16, "f16": 16, TF32: 8, "f32": 8}


def product_format(a: DType, b: DType, precision: str | None = None) -> str | None:
    """The format of a product of operands of these dtypes; None when there is no such product."""
    return FORMATS.get((a.name, b.name, precision))


def operand_dtypes() -> str:
    """The pairs of dtypes that can be multiplied, for messages."""
    same = [a for a, b, precision in FORMATS if a == b and precision is None]
    return f"two tiles of {', '.join(same[:-1])} or {same[-1]}, or one of {' and one of '.join(_FP8)}"
