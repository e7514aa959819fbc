"""Matrix descriptors against a reading of the hardware's rule that knows nothing of SharedLayout."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.ir.layout_shared import SharedLayout, shared_layout
from tessera.target.matrix_descriptors import MatrixDescriptor, descriptor_mismatch, matrix_descriptor
from tessera.target.wgmma import WGMMA_INSTRUCTIONS

BF16, E4M3 = (WGMMA_INSTRUCTIONS[dtype, dtype] for dtype in ("bf16", "fp8_e4m3"))


def hardware_address(
    fields: MatrixDescriptor, start: int, place: np.ndarray, k: np.ndarray, itemsize: int
) -> np.ndarray:
    """Where wgmma looks for element (place along m or n, k) of an operand: cores of 8 rows of 16 bytes.

    As the canonical layouts state it, in units of 16 bytes: along k ((8, n), 2) with strides ((w, stride), 1), or
    ((1, stride), leading) without a swizzle; along m or n ((w, n), (8, k)) with strides ((1, leading), (w, stride)), or
    ((1, n), (8, k)) with ((-, stride), (1, leading)); then bits 4 and on are crossed with bits 7 and on.
    """
    width = fields.swizzle // 16
    if fields.trans == 0:
        chunk, byte = divmod(k * itemsize, 16)
        column = chunk * 16 if width else chunk * fields.leading
        offset = place % 8 * (width or 1) * 16 + place // 8 * fields.stride + column
    else:
        chunk, byte = place * itemsize // 16, place * itemsize % 16
        if width:
            offset = chunk % width * 16 + chunk // width * fields.leading + k % 8 * width * 16 + k // 8 * fields.stride
        else:
            offset = chunk * fields.stride + k % 8 * 16 + k // 8 * fields.leading
    address = start + offset
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[fields.swizzle]
    return (address ^ (address >> 7 & mask) << 4) + byte


# fmt: off
CASES = [
    # role, transposed, n, rows, cols, item, chunks
    *(("a", False, 0, 128, 64, 2, chunks) for chunks in (8, 4, 2, 1)),
    *(("a", True, 0, 32, 128, 2, chunks) for chunks in (8, 4, 2, 1)),
    *(("b", True, 96, 192, 128, 2, chunks) for chunks in (8, 4, 2, 1)),
    *(("b", False, 128, 48, 256, 2, chunks) for chunks in (8, 4, 2, 1)),
    *(("b", False, 32, 16, 128, 2, chunks) for chunks in (8, 4, 1)),
    ("b", False, 8, 16, 8, 2, 1),
    *(("a", False, 0, 64, 128, 1, chunks) for chunks in (8, 4, 2, 1)),
    ("b", True, 256, 256, 64, 1, 4),
]
# fmt: on


@pytest.mark.parametrize("role, transposed, n, rows, cols, item, chunks", CASES)
def test_each_element_is_where_the_hardware_looks(role, transposed, n, rows, cols, item, chunks) -> None:
    instruction = BF16 if item == 2 else E4M3
    layout = SharedLayout(rows, cols, item, chunks, True)
    fields = matrix_descriptor(layout, role, transposed, instruction, n)
    along_k = (role == "a") != transposed
    depth, across = (cols, rows) if along_k else (rows, cols)
    assert fields.trans == (not along_k)
    base = 3 * fields.alignment  # nothing more than it asks for
    for block in range(across // fields.extent):
        for step in range(depth // instruction.k):
            place, k = np.indices((fields.extent, instruction.k))
            seen = hardware_address(fields, base + fields.offset(step, block), place, k, item)
            along, over = step * instruction.k + k, block * fields.extent + place
            row, column = (over, along) if along_k else (along, over)
            np.testing.assert_array_equal(seen, base + layout.offset_array(row, column))


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_the_swizzle_crosses_address_bits(chunks: int) -> None:
    layout = SharedLayout(16, 128, 2, chunks, True)
    plain = SharedLayout(16, 128, 2, chunks, False)
    rows, columns = np.indices((16, 128))
    address = plain.offset_array(rows, columns)
    crossed = address ^ ((address >> 7 & chunks - 1) << 4)
    np.testing.assert_array_equal(layout.offset_array(rows, columns), crossed)


def test_verified_fields() -> None:
    """Those of panels of 128 bytes, checked on an H100."""
    along_k = matrix_descriptor(shared_layout(64, 64, 2), "a", False, BF16)
    assert (along_k.stride, along_k.swizzle, along_k.trans, along_k.alignment) == (1024, 128, 0, 1024)
    assert [along_k.offset(step, 0) for step in range(4)] == [0, 32, 64, 96]
    along_n = matrix_descriptor(shared_layout(64, 128, 2), "b", False, BF16, 128)
    assert (along_n.leading, along_n.stride, along_n.swizzle, along_n.trans) == (8192, 1024, 128, 1)
    assert [along_n.offset(step, 0) for step in range(4)] == [0, 2048, 4096, 6144]


@pytest.mark.parametrize(
    "layout, role, transposed, n, message",
    [
        (SharedLayout(64, 64, 2, 8, False), "a", False, 0, "panels of 128 bytes must be swizzled"),
        (SharedLayout(64, 48, 2, 3, False), "a", False, 0, "panels of 48 bytes are none of 16, 32, 64 or 128"),
        (SharedLayout(64, 64, 1, 4, True), "a", False, 0, "elements of 1 bytes are not bf16 operands of 2"),
        (SharedLayout(60, 64, 2, 8, True), "a", False, 0, "60 rows are not a multiple of 8"),
        (SharedLayout(96, 64, 2, 8, True), "a", False, 0, "96 rows are not a multiple of 64"),
        (SharedLayout(64, 24, 2, 1, True), "a", False, 0, "a depth of 24 is not a multiple of 16"),
        (SharedLayout(64, 128, 2, 8, True), "b", False, 20, "there is no bf16 instruction of 20 columns"),
        (SharedLayout(64, 128, 2, 8, True), "b", False, 96, "128 columns are not a multiple of 96"),
        (SharedLayout(64, 192, 2, 8, True), "b", False, 96, "blocks of 96 columns straddle panels of 64"),
        (SharedLayout(16384, 16, 2, 1, True), "b", False, 16, "a distance of 262144 bytes does not fit a descriptor"),
    ],
)  # fmt: skip
def test_why_a_layout_has_no_descriptor(layout, role, transposed, n, message) -> None:
    assert descriptor_mismatch(layout, role, transposed, BF16, n) == message
    with pytest.raises(ValueError, match=message):
        matrix_descriptor(layout, role, transposed, BF16, n)


def test_8_bit_operands_run_along_k() -> None:
    layout = SharedLayout(32, 64, 1, 4, True)
    assert (
        descriptor_mismatch(layout, "b", False, E4M3, 64)
        == "e4m3 operands must run along k, and these rows run along n"
    )
    assert descriptor_mismatch(SharedLayout(64, 64, 1, 4, True), "a", True, E4M3) is not None
