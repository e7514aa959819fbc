"""Shared-memory layouts: where the elements of a buffer lie, and what an access to them costs in bank conflicts.

Shared memory has 32 banks of 4 bytes.  ldmatrix reads 8 rows of 16 bytes in one go, and so do the quarter warps of a
16-byte access; they are free of conflicts when the 8 pieces fall on 8 different groups of 4 banks.  In plain row-major
order with a pitch of 128 bytes all 8 fall on one group, so the 16-byte chunks of a row are permuted by an XOR with the
row (the swizzle).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tessera.ir.layout_linear import LinearLayout, bit_count

__all__ = ["CHUNK_BYTES", "SharedLayout", "bank_wavefronts", "draw_shared", "ldmatrix_wavefronts", "shared_layout"]

CHUNK_BYTES = 16
BANKS = 32
BANK_BYTES = 4
# The rows whose chunks must not collide: one 8x8 matrix of ldmatrix.
SWIZZLE_ROWS = 8
MAX_PANEL_CHUNKS = 8

_TEXT = re.compile(r"shared rows=(\d+) cols=(\d+) item=(\d+) w=(\d+) swizzle=([01])")


@dataclass(frozen=True)
class SharedLayout:
    """A buffer of `rows` x `cols` elements (physical extents) of `itemsize` bytes.

    The columns are cut into panels of `chunks` 16-byte chunks.  A panel is row-major with a pitch of chunks * 16
    bytes, and panels follow each other.  With `swizzle`, `chunks` is 1, 2, 4 or 8 and chunk c of row r lies at
    c ^ (r / (8 / chunks)) % chunks of its row.  The base address must be a multiple of 16 bytes.

    One row whose panels are narrow is scattered `panel_stride` apart: with chunks = 1, a warp that writes along a row
    conflicts where one that writes along columns does not.
    """

    rows: int
    cols: int
    itemsize: int
    chunks: int
    swizzle: bool

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.chunks) < 1 or self.itemsize not in (1, 2, 4, 8, 16):
            raise ValueError(f"not a shared layout: {self}")
        if self.cols * self.itemsize % self.pitch:
            raise ValueError(f"{self.cols} columns of {self.itemsize} bytes are not whole panels of {self.pitch} bytes")
        if self.swizzle and self.chunks not in (1, 2, 4, 8):
            raise ValueError(f"a swizzled panel has 1, 2, 4 or 8 chunks, not {self.chunks}")

    @property
    def pitch(self) -> int:
        """Bytes from one row of a panel to the next."""
        return self.chunks * CHUNK_BYTES

    @property
    def panel_columns(self) -> int:
        return self.pitch // self.itemsize

    @property
    def panels(self) -> int:
        return self.cols // self.panel_columns

    @property
    def panel_stride(self) -> int:
        """Bytes from one panel to the next."""
        return self.rows * self.pitch

    @property
    def bytes(self) -> int:
        return self.panels * self.panel_stride

    def offset(self, row: int, col: int) -> int:
        """The byte offset of one element."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise ValueError(f"element ({row}, {col}) is outside {self.rows} x {self.cols}")
        return int(self.offset_array(np.array(row), np.array(col)))

    def offset_array(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """`offset` on broadcastable integer arrays, unchecked; int64."""
        panel, within = np.divmod(np.asarray(col, dtype=np.int64), self.panel_columns)
        chunk, byte = np.divmod(within * self.itemsize, CHUNK_BYTES)
        row = np.asarray(row, dtype=np.int64)
        if self.swizzle:
            chunk = chunk ^ row // (SWIZZLE_ROWS // self.chunks) % self.chunks
        return panel * self.panel_stride + row * self.pitch + chunk * CHUNK_BYTES + byte

    @property
    def is_permuted(self) -> bool:
        """Whether the chunks of a row are anywhere but in order."""
        return self.swizzle and self.chunks > 1

    def split(self, row: int, col: int) -> tuple[int, int]:
        """The chunk bits of an offset and the rest of it, which add up to it.

        Of places whose bits are disjoint, the rests add up and the chunk bits of a permuted layout are crossed (XOR).
        """
        offset = int(self.offset_array(np.array(row), np.array(col)))
        crossed = offset % self.pitch // CHUNK_BYTES * CHUNK_BYTES if self.is_permuted else 0
        return crossed, offset - crossed

    def linear(self) -> LinearLayout:
        """The block of 8 rows of one panel: from the offset, counted in elements, to (row, column).

        Row blocks (8 * pitch bytes apart) and panels (panel_stride bytes apart) are plain strides.  Raises ValueError
        where the panel is not a power of two wide.
        """
        first_row_bit = bit_count(SWIZZLE_ROWS // self.chunks) if self.swizzle else 0
        bases = [(0, 1 << bit) for bit in range(bit_count(self.panel_columns))]
        for bit in range(bit_count(SWIZZLE_ROWS)):
            swizzled = self.swizzle and bit >= first_row_bit
            bases.append((1 << bit, CHUNK_BYTES // self.itemsize << bit - first_row_bit if swizzled else 0))
        return LinearLayout.of(2, offset=bases)

    def __str__(self) -> str:
        return f"shared rows={self.rows} cols={self.cols} item={self.itemsize} w={self.chunks} swizzle={self.swizzle:d}"

    @staticmethod
    def parse(text: str) -> SharedLayout:
        """The inverse of `str`."""
        if not (match := _TEXT.fullmatch(text.strip())):
            raise ValueError(f"a shared layout is shared rows= cols= item= w= swizzle=, not {text!r}")
        rows, cols, itemsize, chunks, swizzle = map(int, match.groups())
        return SharedLayout(rows, cols, itemsize, chunks, bool(swizzle))


def shared_layout(
    rows: int, cols: int, itemsize: int, row_multiple: int = 1, col_multiple: int = 1, swizzle: bool = True
) -> SharedLayout:
    """The layout of a `rows` x `cols` buffer of `itemsize`-byte elements.

    A buffer of more than two axes is passed with its leading axes multiplied into `rows`.  Rows are padded to
    `row_multiple` and columns to `col_multiple` and to whole 16-byte chunks.  A panel is as wide as the largest power
    of two of chunks, at most 8 (128 bytes), that divides a row; without `swizzle` it is the whole row, plain row-major.
    """
    rows = -(-rows // row_multiple) * row_multiple
    column_step = math.lcm(col_multiple, CHUNK_BYTES // itemsize)
    cols = -(-cols // column_step) * column_step
    chunks = cols * itemsize // CHUNK_BYTES
    if swizzle:
        chunks = math.gcd(chunks, MAX_PANEL_CHUNKS)
    return SharedLayout(rows, cols, itemsize, chunks, swizzle)


def _wavefronts(addresses: Sequence[int | None], width_bytes: int) -> int:
    """The most distinct words that one bank must serve."""
    words = {a // BANK_BYTES + i for a in addresses if a is not None for i in range(max(1, width_bytes // BANK_BYTES))}
    per_bank = [0] * BANKS
    for word in words:
        per_bank[word % BANKS] += 1
    return max(per_bank)


def bank_wavefronts(addresses_per_lane: Sequence[int | None], width_bytes: int) -> int:
    """The exact number of shared-memory wavefronts of one access by a warp.

    `addresses_per_lane` holds a byte address for each of 32 lanes, None for an inactive one.  Lanes that read one word
    share it.  A warp goes at once for up to 4 bytes a lane, in halves for 8 and in quarters for 16.
    """
    if len(addresses_per_lane) != 32 or width_bytes not in (1, 2, 4, 8, 16):
        raise ValueError(f"{len(addresses_per_lane)} lanes of {width_bytes} bytes are not one access of a warp")
    if any(address is not None and address % width_bytes for address in addresses_per_lane):
        raise ValueError(f"an address is not a multiple of the access width, {width_bytes} bytes")
    group = 32 * BANK_BYTES // max(width_bytes, BANK_BYTES)
    return sum(_wavefronts(addresses_per_lane[at : at + group], width_bytes) for at in range(0, 32, group))


def ldmatrix_wavefronts(row_addresses: Sequence[int]) -> int:
    """The wavefronts of ldmatrix .x1, .x2 or .x4, given the byte address of each 16-byte row (8 a matrix)."""
    if len(row_addresses) not in (8, 16, 32) or any(address % CHUNK_BYTES for address in row_addresses):
        raise ValueError(f"ldmatrix takes 8, 16 or 32 rows at multiples of 16 bytes, not {row_addresses}")
    return sum(_wavefronts(row_addresses[at : at + 8], CHUNK_BYTES) for at in range(0, len(row_addresses), 8))


def draw_shared(layout: SharedLayout, rows: int = SWIZZLE_ROWS) -> str:
    """A text grid of the first rows: for each 16-byte chunk, its byte offset and the first of its four banks."""
    step = CHUNK_BYTES // layout.itemsize
    lines = []
    for row in range(min(rows, layout.rows)):
        offsets = [layout.offset(row, col) for col in range(0, layout.cols, step)]
        lines.append(" ".join(f"{offset:6d}/b{offset // BANK_BYTES % BANKS:<2d}" for offset in offsets).rstrip())
    return "\n".join(lines)
