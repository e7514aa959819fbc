"""Kernels of one memory instruction each, and the addresses to give to them: they settle how the hardware counts.

Each kernel reads an offset in bytes per lane (negative: the lane takes no part), then makes its one access. Patterns
are named after what the lanes do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REGION = 12288  # bytes of shared memory, and of global memory, that the offsets may reach
LANES = np.arange(32)
INACTIVE = -1
# How many bytes an access moves -> the element type and count of the header's templates.
ELEMENTS = {1: ("ts_i8", 1), 2: ("ts_bf16", 1), 4: ("ts_i32", 1), 8: ("ts_i32", 2), 16: ("ts_i32", 4)}


@dataclass(frozen=True)
class Kind:
    """One memory instruction. `size`: bytes per lane; `written`: the kernel's second argument is an output."""

    name: str
    body: str
    size: int
    written: bool
    whole_warp: bool = False  # every lane has to take part
    distinct: bool = False  # two lanes at one byte would be a race
    brief: bool = False  # takes only part of the patterns

    @property
    def kernel(self) -> str:
        return f"micro_{self.name}"


_HEAD = """TS_KERNEL({kernel}, 32)(const ts_i32* TS_RESTRICT offsets, {second}) {{
    TS_SHARED(shared_base);
    ts_i32 at[1];
    ts_ld_global<ts_i32, 1>(at, offsets + ts_lane());
"""
_FILL = f"""    for (int byte = ts_lane() * 16; byte < {REGION}; byte += 512) {{
        const ts_i32 words[4] = {{byte, byte + 4, byte + 8, byte + 12}};
        ts_st_shared<ts_i32, 4>(shared_base + byte, words);
    }}
    ts_barrier();
"""
_LOAD_SHARED = """    if (at[0] >= 0) {{
        {type} value[{count}];
        ts_ld_shared<{type}, {count}>(value, shared_base + at[0]);
        ts_st_global<{type}, {count}>(({type}*)data + {count} * ts_lane(), value);
    }}
"""
_STORE_SHARED = """    if (at[0] >= 0) {{
        {type} value[{count}];
        TS_UNROLL for (int i = 0; i < {count}; ++i) value[i] = {type}();
        ts_st_shared<{type}, {count}>(shared_base + at[0], value);
    }}
"""
# The second half of the offsets holds the source bytes of each lane.
_COPY = """    ts_i32 source_bytes[1];
    ts_ld_global<ts_i32, 1>(source_bytes, offsets + 32 + ts_lane());
    if (at[0] >= 0) {{
        ts_cp_async<{size}, {bypass}>(shared_base + at[0], data + 4 * ts_lane(), source_bytes[0]);
    }}
    ts_cp_async_commit();
    ts_cp_async_wait<0>();
"""
_LDMATRIX = """    ts_u32 value[{count}];
    ts_ldmatrix_x{suffix}(value, shared_base + at[0]);
    ts_st_global<ts_u32, {count}>((ts_u32*)data + {count} * ts_lane(), value);
"""
_LOAD_GLOBAL = """    if (at[0] >= 0) {{
        {type} value[{count}];
        ts_ld_global<{type}, {count}>(value, (const {type}*)((const char*)data + at[0]));
        ts_st_shared<{type}, {count}>(shared_base + {size} * ts_lane(), value);
    }}
"""
_STORE_GLOBAL = """    if (at[0] >= 0) {{
        {type} value[{count}];
        TS_UNROLL for (int i = 0; i < {count}; ++i) value[i] = {type}();
        ts_st_global<{type}, {count}>(({type}*)((char*)data + at[0]), value);
    }}
"""


def _kinds() -> list[Kind]:
    kinds = []
    for size, (type_, count) in ELEMENTS.items():
        names = {"type": type_, "count": count, "size": size}
        brief = size < 4
        kinds += [
            Kind(f"ld_shared_{size}", _FILL + _LOAD_SHARED.format(**names), size, True, brief=brief),
            Kind(f"st_shared_{size}", _STORE_SHARED.format(**names), size, False, brief=brief),
            Kind(f"ld_global_{size}", _LOAD_GLOBAL.format(**names), size, False, brief=True),
            Kind(f"st_global_{size}", _STORE_GLOBAL.format(**names), size, True, brief=True),
        ]
    for suffix, count in (("1", 1), ("2", 2), ("4", 4), ("4_trans", 4)):
        body = _FILL + _LDMATRIX.format(suffix=suffix, count=count)
        kinds.append(Kind(f"ldmatrix_x{suffix}", body, 16, True, whole_warp=True))
    for size, bypass in ((4, "false"), (8, "false"), (16, "false"), (16, "true")):
        name = f"cp_async_{size}_{'cg' if bypass == 'true' else 'ca'}"
        kinds.append(Kind(name, _COPY.format(size=size, bypass=bypass), size, False, distinct=True, brief=size < 16))
    return kinds


KINDS = _kinds()


def text() -> str:
    """The kernels of all `KINDS` in one CUDA text."""
    parts = ['#include "tessera_device.h"\n']
    for kind in KINDS:
        second = "ts_i32* TS_RESTRICT data" if kind.written else "const ts_i32* TS_RESTRICT data"
        parts.append(_HEAD.format(kernel=kind.kernel, second=second) + kind.body + "}\n")
    return "\n".join(parts)


def _masks() -> dict[str, np.ndarray]:
    return {
        "lower half": LANES < 16,
        "upper half": LANES >= 16,
        "even lanes": LANES % 2 == 0,
        "odd lanes": LANES % 2 == 1,
        "first 8 lanes": LANES < 8,
        "lanes 4 to 11": (LANES >= 4) & (LANES < 12),
        "first 5 lanes": LANES < 5,
        "5 scattered lanes": np.isin(LANES, (0, 7, 15, 18, 30)),
        "every fourth lane": LANES % 4 == 0,
        "all but lane 13": LANES != 13,
        "one lane": LANES == 9,
        "no lane": LANES < 0,
    }


def _swizzled(row: np.ndarray, chunk: np.ndarray | int, pitch: int) -> np.ndarray:
    """Byte of a 16-byte chunk in a tile whose rows of `pitch` bytes are swizzled by XOR, as shared tiles are here."""
    chunks = pitch // 16
    return row * pitch + (chunk ^ (row // (8 // chunks) % chunks)) * 16


def _everywhere(size: int) -> dict[str, np.ndarray]:
    """Patterns that any access size takes part in where they are aligned to it."""
    random = np.random.default_rng(size)
    slots = REGION // size
    found: dict[str, np.ndarray] = {"contiguous": LANES * size}
    for words in (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 33, 36, 64):
        found[f"stride {words} words"] = LANES * 4 * words
    found["same address"] = LANES * 0 + 3 * size
    found["half-warp duplicates"] = LANES % 16 * size
    found["lane / 2"] = LANES // 2 * size
    found["lane / 4"] = LANES // 4 * size
    found["lane % 8"] = LANES % 8 * size
    found["lane % 2, 128 bytes apart"] = LANES % 2 * 128
    found["reversed"] = LANES[::-1] * size
    found["halves swapped"] = (LANES + 16) % 32 * size
    found["even lanes first"] = (LANES // 2 + LANES % 2 * 16) * size
    found["quarters interleaved"] = (LANES % 4 * 8 + LANES // 4) * size
    for trial in range(3):
        found[f"permuted {trial}"] = random.permutation(32) * size
    for pitch in (64, 80, 128, 144, 272):
        found[f"rows of {pitch} bytes"] = LANES * pitch
        found[f"fragment, rows of {pitch} bytes"] = LANES // 4 * pitch + LANES % 4 * max(size, 4)
        found[f"8 x 4 chunks, rows of {pitch} bytes"] = LANES % 8 * pitch + LANES // 8 * 16
    for pitch in (64, 128):
        found[f"8 x 4 chunks, swizzled rows of {pitch} bytes"] = _swizzled(LANES % 8, LANES // 8, pitch)
        found[f"one chunk of 32 swizzled rows of {pitch} bytes"] = _swizzled(LANES, 1, pitch)
        found[f"fragment, swizzled rows of {pitch} bytes"] = _swizzled(LANES // 4, 1, pitch) + LANES % 4 * min(size, 4)
    for trial in range(6):
        found[f"random {trial}"] = random.integers(0, slots, 32) * size
    for trial in range(2):
        found[f"random in 256 bytes {trial}"] = random.integers(0, 256 // size, 32) * size
        found[f"random multiples of 64 bytes {trial}"] = random.integers(0, REGION // 64 - 1, 32) * 64
        found[f"distinct random {trial}"] = random.choice(slots, 32, replace=False) * size
    for count in (2, 4, 8, 16):
        found[f"random choice of {count} addresses"] = random.choice(random.choice(slots, count), 32) * size
    masked = {}
    for base in ("contiguous", "stride 32 words", "random 0"):
        for name, mask in _masks().items():
            masked[f"{base}, {name}"] = np.where(mask, found[base], INACTIVE)
    return found | masked


# What kinds that are counted by simple rules leave out.
_LEFT_OUT = (
    *("fragment", "8 x 4", "permuted 1", "permuted 2", "random 0,", "random 2", "random 3", "random 4", "random 5"),
    *("random multiples", "random in 256 bytes 1", "distinct random 1", "stride 32 words,", "halves", "quarters"),
    *(f"stride {words} words" for words in (3, 5, 6, 12, 16, 20, 24, 36)),
    *(f"rows of {pitch}" for pitch in (80, 128, 272)),
)


def patterns(kind: Kind) -> dict[str, np.ndarray]:
    """The addresses to give to a kind: 64 int32 each, an offset for each lane and then its source bytes."""
    chosen: dict[str, np.ndarray] = {}
    for name, offsets in _everywhere(kind.size).items():
        active = offsets[offsets >= 0]
        if (active % kind.size).any() or (active + kind.size > REGION).any():
            continue
        if kind.whole_warp and len(active) < 32:
            continue
        if kind.distinct and len(set(active.tolist())) < len(active):
            continue
        if kind.brief and name.startswith(_LEFT_OUT):
            continue
        chosen[name] = _pack(offsets, LANES * 0 + kind.size)
    if kind.name.startswith("cp_async"):
        variants: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "no source bytes": lambda lane: lane * 0,
            "odd lanes without source bytes": lambda lane: np.where(lane % 2, 0, kind.size),
            "half of the source bytes": lambda lane: lane * 0 + kind.size // 2,
            "3 source bytes in upper half": lambda lane: np.where(lane < 16, kind.size, 3),
        }
        for name, source_bytes in variants.items():
            for base in ("contiguous", "rows of 64 bytes"):
                offsets = LANES * (kind.size if base == "contiguous" else 64)
                chosen[f"{base}, {name}"] = _pack(offsets, source_bytes(LANES))
    return chosen


def _pack(offsets: np.ndarray, source_bytes: np.ndarray) -> np.ndarray:
    return np.concatenate([offsets, source_bytes]).astype(np.int32)
