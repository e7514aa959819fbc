"""Which matrix products there are: the format in which their operands are multiplied, and the k-block that it implies.

A *format* is what the matrix unit takes: "bf16", "f16", "tf32", "fp8", or "f32" for products in true f32. It follows
from the dtypes of both operands and the `precision` that the author asked for. Two passes change it: fp8 operands,
which are multiplied as f16, become operands of the fp8 format where warpgroups have an instruction for them
(`choose_formats`), and f32 times what was cast from bf16 becomes "bf16x3" (`precision`).

The 24 bits of an f32 are those of three bf16 values, so "bf16x3" multiplies f32 and bf16 operands exactly, by three
instructions of bf16: each k-block adds the lowest parts first.

Instructions of the fp8 format keep about 14 bits of what they add up. So their sums go into f32 after every FP8_PART of
k, unless the author lets them stay in the matrix unit ("fast_accum"). Which lane runs is not the author's choice, so
the error bars of fp8 products always allow for it.
"""

from __future__ import annotations

from itertools import product

from tessera.dtypes import DType

TF32 = "tf32"  # the `precision` that rounds f32 operands to tf32
FAST_ACCUM = "fast_accum"  # the `precision` that leaves sums of fp8 operands in the matrix unit, whatever bits it keeps
# What authors may ask for: of f32 operands, None being "f32", products in true f32, and of fp8 operands the last one.
PRECISIONS = (None, "f32", TF32, FAST_ACCUM)
# What becomes of None and of FAST_ACCUM where operands are multiplied as fp8.
FP8, FP8_FAST = "fp8", "fp8_fast"
AS_FP8 = {None: FP8, FAST_ACCUM: FP8_FAST}
SPLIT, SPLIT_PARTS = "bf16x3", 3  # the `precision`, and the format, of f32 in parts
FP8_PART = 128  # of k, after which sums of the fp8 format go into f32

_FP8 = ("fp8_e4m3", "fp8_e5m2")

FORMATS: dict[tuple[str, str, str | None], str] = {
    ("bf16", "bf16", None): "bf16",
    ("f16", "f16", None): "f16",
    # Every fp8 value is an f16 value, so widening is exact and one f16 instruction serves all four pairs.
    **{(a, b, asked): "f16" for asked in AS_FP8 for a, b in product(_FP8, _FP8)},
    **{(a, b, given): FP8 for given in AS_FP8.values() for a, b in product(_FP8, _FP8)},
    ("f32", "f32", None): "f32",
    ("f32", "f32", TF32): TF32,
    ("f32", "bf16", SPLIT): SPLIT,
}

# How many products are summed before the sum is rounded into the accumulator: the depth of the instruction that runs,
# mma.m16n8k16 for 16-bit formats (and so for fp8 operands, which it multiplies as f16), wgmma.m64nNk32 for fp8 and
# mma.m16n8k8 for tf32; true f32 runs in blocks of 8 fused multiply-adds.
K_BLOCKS = {"bf16": 16, SPLIT: 16, "f16": 16, FP8: 32, TF32: 8, "f32": 8}


def product_format(a: DType, b: DType, precision: str | None = None) -> str | None:
    """The format of a product of operands of these dtypes; None when there is no such product."""
    return FORMATS.get((a.name, b.name, precision))


def is_fp8(a: DType, b: DType) -> bool:
    """Whether both operands of a product are fp8, of either kind."""
    return a.name in _FP8 and b.name in _FP8


def operand_dtypes() -> str:
    """The pairs of dtypes that can be multiplied, for messages."""
    same = [a for a, b, precision in FORMATS if a == b and precision is None]
    return f"two tiles of {', '.join(same[:-1])} or {same[-1]}, or one of {' and one of '.join(_FP8)}"
