"""Matrix descriptors: which shared-memory layouts wgmma can read an operand from, and the fields that say so.

An operand is read in chunks of 16 bytes. Eight rows of a panel, 32, 64 or 128 bytes wide and swizzled, or one chunk
wide and plain, form a core; two byte distances lead from one core to the next (PTX ISA, "Canonical layouts"):

    runs along   panel           stride: from 8 rows to the next 8      leading: from one panel to the next
    k            2, 4, 8 chunks  8 rows of m or n                       not used, an instruction stays in a panel
    k            1 chunk         8 rows of m or n                       the next 16 bytes of k
    m or n       2, 4, 8 chunks  8 rows of k                            the next columns of m or n
    m or n       1 chunk         the next columns of m or n             8 rows of k

The hardware crosses (XOR) address bits 4 and on with bits 7 and on: one, two or three of them. Rows of 32, 64 and 128
bytes make bit 7 the row's bit 2, 1 and 0, so chunk c of row r lies at c ^ r / (8 / chunks) % chunks, which is the
swizzle of SharedLayout, where a panel begins at a multiple of 8 rows.

The swizzle of 128 bytes is verified on an H100 in all four orientations; the others follow from the address rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tessera.ir.layout_shared import CHUNK_BYTES, SWIZZLE_ROWS, SharedLayout
from tessera.target.wgmma import WGMMA_K_BYTES, WGMMA_ROWS, WgmmaInstruction

__all__ = ["MatrixDescriptor", "Role", "descriptor_mismatch", "matrix_descriptor"]

Role = Literal["a", "b"]

_FIELD_BYTES = 1 << 18  # a distance is less than this


@dataclass(frozen=True)
class MatrixDescriptor:
    """Fields of the descriptors of one operand: distances and swizzle (0, 32, 64, 128) in bytes.

    `trans` is the transposition bit: 1 where panels run along m or n. `extent` is what one instruction takes along m or
    n: 64, or its N. The buffer begins at a multiple of `alignment` bytes.
    """

    layout: SharedLayout
    extent: int
    trans: int
    leading: int
    stride: int
    swizzle: int

    @property
    def alignment(self) -> int:
        return SWIZZLE_ROWS * self.layout.pitch if self.swizzle else CHUNK_BYTES

    def offset(self, step: int, block: int) -> int:
        """Bytes from the start of the buffer to where an instruction's operand begins: at k-step `step`, and at
        `block * extent` along m or n.

        The chunk at the start of a panel's eight rows is where it would be without a swizzle.
        """
        k, across = step * WGMMA_K_BYTES // self.layout.itemsize, block * self.extent
        row, column = (k, across) if self.trans else (across, k)
        panel, within = divmod(column, self.layout.panel_columns)
        return panel * self.layout.panel_stride + row * self.layout.pitch + within * self.layout.itemsize


def descriptor_mismatch(
    layout: SharedLayout, role: Role, transposed: bool, instruction: WgmmaInstruction, n: int = 0
) -> str | None:
    """Why wgmma cannot read an operand from a buffer of this layout, in one sentence; None where it can.

    Operand a is (m, k) and operand b (k, n); a `transposed` one lies in shared memory as its transpose. `n` is the N of
    the instructions, for operand b.
    """
    along_k = _along_k(role, transposed)
    extent = WGMMA_ROWS if role == "a" else n
    (k, across) = (layout.cols, layout.rows) if along_k else (layout.rows, layout.cols)
    if layout.itemsize != instruction.itemsize:
        return f"elements of {layout.itemsize} bytes are not {instruction.name} operands of {instruction.itemsize}"
    if role == "b" and not instruction.takes_columns(n):
        return f"there is no {instruction.name} instruction of {n} columns"
    if not along_k and not instruction.transposes:
        return f"{instruction.name} operands must run along k, and these rows run along {'m' if role == 'a' else 'n'}"
    if layout.chunks not in (1, 2, 4, 8):
        return f"panels of {layout.pitch} bytes are none of 16, 32, 64 or 128"
    if layout.chunks > 1 and not layout.swizzle:
        return f"panels of {layout.pitch} bytes must be swizzled"
    if layout.rows % SWIZZLE_ROWS:
        return f"{layout.rows} rows are not a multiple of {SWIZZLE_ROWS}"
    if k % instruction.k:
        return f"a depth of {k} is not a multiple of {instruction.k}"
    if across % extent:
        return f"{across} {'rows' if role == 'a' else 'columns'} are not a multiple of {extent}"
    if not along_k and extent % layout.panel_columns and layout.panel_columns % extent:
        return f"blocks of {extent} columns straddle panels of {layout.panel_columns}"
    if max(_distances(layout, along_k)) >= _FIELD_BYTES:
        return f"a distance of {layout.panel_stride} bytes does not fit a descriptor"
    return None


def matrix_descriptor(
    layout: SharedLayout, role: Role, transposed: bool, instruction: WgmmaInstruction, n: int = 0
) -> MatrixDescriptor:
    """The descriptor of an operand, with the arguments of `descriptor_mismatch`; ValueError with what that says."""
    if reason := descriptor_mismatch(layout, role, transposed, instruction, n):
        raise ValueError(reason)
    along_k = _along_k(role, transposed)
    leading, stride = _distances(layout, along_k)
    return MatrixDescriptor(
        layout=layout,
        extent=WGMMA_ROWS if role == "a" else n,
        trans=int(not along_k),
        leading=leading,
        stride=stride,
        swizzle=layout.pitch if layout.is_permuted else 0,
    )


def _along_k(role: Role, transposed: bool) -> bool:
    """Whether the rows of the buffer run along k."""
    return (role == "a") != transposed


def _distances(layout: SharedLayout, along_k: bool) -> tuple[int, int]:
    """The leading and the stride distance in bytes."""
    core = SWIZZLE_ROWS * layout.pitch
    if layout.chunks == 1 and not along_k:
        return core, layout.panel_stride
    if layout.chunks > 1 and along_k:
        return CHUNK_BYTES, core  # the leading one is not used
    return layout.panel_stride, core
