"""ts_cast between every two dtypes: the twin equals the language's rounding on all codes, and NVRTC takes the same."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.dtypes import TYPES, bf16, f16, f32, f64, from_storage, round_to, to_storage
from tessera.runtime import emulator, nvrtc

DTYPES = [dtype for dtype in TYPES.values() if dtype != f64]
PAIRS = [(source, target) for source in DTYPES for target in DTYPES]


def kernel_text(source, target):
    """Every thread converts each 32nd element; the counter is wide enough for any test."""
    return f"""
TS_KERNEL(cast_{source}_{target}, 32)(const {source.cuda}* from, {target.cuda}* to, ts_i64 count) {{
    for (ts_i64 i = ts_thread(); i < count; i += 32) {{
        {source.cuda} x;
        ts_ld_global<{source.cuda}, 1>(&x, from + i);
        const {target.cuda} y = ts_cast<{target.cuda}>(x);
        ts_st_global<{target.cuda}, 1>(to + i, &y);
    }}
}}
"""


PAIRED = [(bf16, f32), (f16, f32), (f32, bf16), (f32, f16)]


def paired_text(source, target):
    """Every thread converts two neighbours at once."""
    return f"""
TS_KERNEL(pair_{source}_{target}, 32)(const {source.cuda}* from, {target.cuda}* to, ts_i64 count) {{
    for (ts_i64 i = 2 * ts_thread(); i < count; i += 64) {{
        {source.cuda} x[2];
        {target.cuda} y[2];
        ts_ld_global<{source.cuda}, 2>(x, from + i);
        ts_cast_pair(y, x);
        ts_st_global<{target.cuda}, 2>(to + i, y);
    }}
}}
"""


TEXT = '#include "tessera_device.h"\n' + "".join(kernel_text(*pair) for pair in PAIRS)
TEXT += "".join(paired_text(*pair) for pair in PAIRED)
NAMES = [f"cast_{source}_{target}" for source, target in PAIRS] + [f"pair_{a}_{b}" for a, b in PAIRED]


def midpoints_of(dtype):
    """Float32 values around every place where the rounding to a narrow float changes."""
    codes = np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.bytes}").view(dtype.numpy)
    values = from_storage(dtype, codes)
    values = np.unique(values[np.isfinite(values)].astype(np.float64))
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    return np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])


def samples(dtype):
    """All codes of a type of at most 16 bits; else random codes and the places where roundings change."""
    rng = np.random.default_rng(1)
    if dtype.is_bool:
        return np.array([False, True])
    if dtype.bits <= 16:
        return np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.bytes}").view(dtype.numpy)
    if dtype.is_int:
        small = np.arange(-70000, 70000, 7)
        powers = np.array([1 << k for k in range(dtype.bits - 1)], np.int64)
        wide = np.concatenate([powers + step for step in (-1, 0, 1)])
        ties = (powers[25:, None] + (powers[25:, None] >> np.arange(1, 26))).ravel()  # and one to either side
        halves = np.concatenate([ties + step for step in (-1, 0, 1)])
        wide = np.concatenate([small, wide, -wide, halves, -halves, [np.iinfo(dtype.numpy).min]])
        return wide[(wide <= dtype.largest) & (wide >= -dtype.largest - 1)].astype(dtype.numpy)
    random = rng.integers(0, 1 << 32, 20000, np.uint64).astype(np.uint32).view(np.float32)
    normal = (rng.standard_normal(20000) * 100).astype(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 465, 57344, 61440, 61441, 65504, 65519, 65520])
    near = [2.0**31, 2.0**31 - 128, -(2.0**31), 2.0**63, -(2.0**63), 127.9, 128, -128.9, -129, 0.5, -0.99, 2.0**-149]
    narrow = [midpoints_of(d) for d in DTYPES if d.is_float and d.bits <= 16]
    return np.concatenate([random, normal, edges.astype(np.float32), np.float32(near), *narrow])


def rounded(source, target, stored):
    """What the interpreter computes; where it raises TS401, the nearest value and 0 for NaN."""
    values = from_storage(source, stored)
    if target.is_int and source != target:
        values = np.where(np.isnan(values), 0, values) if source.is_float else values
        wide = np.trunc(values.astype(np.longdouble))
        values = np.clip(wide, -np.longdouble(target.largest) - 1, np.longdouble(target.largest)).astype(np.int64)
    return to_storage(target, round_to(target, values))


def assert_same(expected, actual, dtype):
    if dtype.is_float:
        nan = np.isnan(from_storage(dtype, expected))
        assert np.array_equal(nan, np.isnan(from_storage(dtype, actual)))
        expected, actual = expected[~nan], actual[~nan]
    codes = f"u{dtype.bytes}"
    different = np.nonzero(expected.view(codes) != actual.view(codes))[0]
    assert not len(different), (len(different), expected[different[:4]], actual[different[:4]])


@pytest.fixture(scope="module")
def library():
    return emulator.build(TEXT, NAMES)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_every_conversion_has_the_language_s_bits(library, source):
    stored = samples(source)
    for target in DTYPES:
        result = np.zeros(len(stored), target.numpy)
        library.launch(f"cast_{source}_{target}", (1,), 32, 0, [stored, result, len(stored)])
        assert_same(rounded(source, target, stored), result, target)


@pytest.mark.parametrize(("source", "target"), PAIRED, ids=str)
def test_pairs_are_converted_like_single_elements(library, source, target):
    """Bit for bit, NaN among them."""
    stored = samples(source)
    stored = stored[: len(stored) // 2 * 2]
    single, pairs = np.zeros(len(stored), target.numpy), np.zeros(len(stored), target.numpy)
    library.launch(f"cast_{source}_{target}", (1,), 32, 0, [stored, single, len(stored)])
    library.launch(f"pair_{source}_{target}", (1,), 32, 0, [stored, pairs, len(stored)])
    codes = f"u{target.bytes}"
    assert np.isnan(from_storage(source, stored)).any()
    np.testing.assert_array_equal(single.view(codes), pairs.view(codes))


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
def test_every_conversion_compiles_and_uses_the_fp8_instruction_where_there_is_one(arch):
    compiled = nvrtc.compile_cubin(TEXT, arch, "conversions", want_ptx=True)
    assert len(compiled.resources) == len(NAMES)
    assert all(not used.spill_stores and not used.stack for used in compiled.resources.values())
    assert compiled.ptx is not None
    assert ("satfinite.e4m3x2" in compiled.ptx) == (arch != "sm_80")
