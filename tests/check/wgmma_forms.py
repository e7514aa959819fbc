"""Operands of wgmma as bytes, and the products that they must give: what runs the kernels of texts/wgmma_forms.cu."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np

from tessera.ir.layout_shared import SharedLayout
from tessera.runtime.emulator import Fault, Library, build
from tessera.target.matrix_descriptors import MatrixDescriptor, Role, matrix_descriptor
from tessera.target.wgmma import WGMMA_INSTRUCTIONS
from tests.check.rings import text

DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
ROWS = 64
STEPS = 4


def kernels() -> list[str]:
    forms = {"16": ("ss_00", "ss_01", "ss_10", "ss_11", "rs_00", "rs_01"), "8": ("ss_00", "rs_00")}
    found = re.findall(r"^FORMS_(\d+)\((\w+), (\d+)\)", text("wgmma_forms"), re.MULTILINE)
    return [f"{type_}_{n}_{form}" for bits, type_, n in found for form in forms[bits]]


@cache
def library() -> Library:
    return build(text("wgmma_forms"), kernels())


def product(a: np.ndarray, b: np.ndarray, k_block: int) -> np.ndarray:
    """f32 product by the rule of k-blocks: each summed in float64 in ascending k, and added with one rounding."""
    acc = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], k_block):
        total = np.zeros(acc.shape)
        for k in range(start, start + k_block):
            total += a[:, k : k + 1].astype(np.float64) * b[k : k + 1].astype(np.float64)
        acc = (acc.astype(np.float64) + total).astype(np.float32)
    return acc


def stored(matrix: np.ndarray, layout: SharedLayout) -> np.ndarray:
    """The bytes of a buffer that holds `matrix`."""
    rows, columns = np.indices(matrix.shape)
    image = np.zeros(layout.bytes // layout.itemsize, matrix.dtype)
    image[layout.offset_array(rows, columns) // layout.itemsize] = matrix
    return image.view(np.uint8)


def fragments(a: np.ndarray) -> np.ndarray:
    """Words of A by step, thread and register: register i of a lane holds row lane / 4 + 8 (i % 2) of its warp's 16,
    and four bytes of k from 4 (lane % 4) + 16 (i / 2) on.
    """
    step, thread, i = np.ogrid[: a.shape[1] * a.itemsize // 32, :128, :4]
    row = thread // 32 * 16 + thread % 32 // 4 + i % 2 * 8
    word = step * 8 + thread % 4 + i // 2 * 4
    return np.ascontiguousarray(a).view(np.uint32)[row, word]


@dataclass(frozen=True)
class Form:
    """A product of STEPS steps of k. `chunks` are those of a panel of a and of b; `right` is the dtype of b where it is
    another one.
    """

    dtype: str
    n: int
    registers: bool
    transposed: tuple[bool, bool]
    chunks: tuple[int, int]
    right: str = ""

    @property
    def dtypes(self) -> tuple[str, str]:
        return self.dtype, self.right or self.dtype

    @property
    def kernel(self) -> str:
        bits = f"{int(self.transposed[0])}{int(not self.transposed[1])}"
        name = WGMMA_INSTRUCTIONS[self.dtypes].name
        return f"{name}_{self.n}_{'rs' if self.registers else 'ss'}_{bits}"

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.n)
        k = STEPS * WGMMA_INSTRUCTIONS[self.dtypes].k
        a, b = rng.standard_normal((ROWS, k)), rng.standard_normal((k, self.n))
        left, right = (DTYPES[name] for name in self.dtypes)
        return a.astype(left), b.astype(right)

    def descriptor(self, role: Role, matrix: np.ndarray) -> MatrixDescriptor:
        index = 0 if role == "a" else 1
        layout = SharedLayout(*matrix.shape, matrix.itemsize, self.chunks[index], True)
        return matrix_descriptor(layout, role, self.transposed[index], WGMMA_INSTRUCTIONS[self.dtypes], self.n)

    def run(self, seed: int, damage: dict[str, int] | None = None) -> tuple[list[Fault], np.ndarray, np.ndarray]:
        """What was found, the product, and what it should be. `damage` adds to the fields of b's descriptor."""
        a, b = self.operands()
        held_a, held_b = (x.T if t else x for x, t in zip((a, b), self.transposed, strict=True))
        first, second = self.descriptor("a", held_a), self.descriptor("b", held_b)
        base = -(-first.layout.bytes // 1024) * 1024
        image = np.zeros(base + second.layout.bytes, np.uint8)
        image[: first.layout.bytes] = stored(held_a, first.layout)
        image[base:] = stored(held_b, second.layout)
        starts = [first.offset(step, 0) for step in range(STEPS)]
        starts += [base + second.offset(step, 0) for step in range(STEPS)]
        fields = {"leading": second.leading, "stride": second.stride, "swizzle": second.swizzle}
        for name, change in (damage or {}).items():
            fields[name] += change
        fields = np.array([first.leading, first.stride, first.swizzle, *fields.values()], np.int32)
        out = np.full((ROWS, self.n), np.nan, np.float32)
        arguments = [image.view(np.uint32), image.size // 4, np.array(starts, np.int32), fields, fragments(a), out]
        found = library().examine(self.kernel, (1,), 128, image.size, arguments, seed, outputs=(5,))
        return found.faults, out, product(a, b, WGMMA_INSTRUCTIONS[self.dtypes].k)
