"""The emulator against NumPy, bit for bit, and its findings on kernels that are wrong on purpose."""

from __future__ import annotations

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tessera.runtime import emulator
from tessera.runtime.cache import Cache
from tessera.runtime.emulator import EmulatorFault, build
from tessera.runtime.emulator_twin import EmulatorBuildError
from tests.pace import within

TEXTS = Path(__file__).parent / "texts"
STAGE_BYTES = 64 * 80 + 32 * 144


def text(name: str) -> str:
    return (TEXTS / f"{name}.cu").read_text()


def kernel(body: str, parameters: str = "float* out", threads: int = 64) -> emulator.Library:
    """A kernel named k with the given body."""
    head = f'#include "tessera_device.h"\nTS_KERNEL(k, {threads})({parameters}) {{\n    TS_SHARED(shared);\n'
    return build(f"{head}    {body}\n}}\n", ["k"])


def faults(library: emulator.Library, *args, threads: int = 64, shared: int = 1024, **options) -> list[emulator.Fault]:
    with pytest.raises(EmulatorFault) as caught:
        library.launch("k", (1,), threads, shared, list(args), **options)
    return caught.value.faults


# ---- right kernels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 511, 512, 1027])
def test_vector_add_with_tail(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y, out = rng.standard_normal(n, np.float32), rng.standard_normal(n, np.float32), np.zeros(n, np.float32)
    library = build(text("vector_add"), ["vadd"])
    assert library.signature("vadd") == "pppl"
    library.launch("vadd", (-(-n // 512),), 128, 0, [x, y, out, n])
    np.testing.assert_array_equal(out, x + y)


def blocked_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f32 product of bf16 arrays by the rule of the emulated mma: blocks of 16 in float64, one rounding each."""
    acc = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(0, a.shape[1], 16):
        total = np.zeros(acc.shape)
        for i in range(k, k + 16):
            total += a[:, i : i + 1].astype(np.float64) * b[i : i + 1].astype(np.float64)
        acc = (acc.astype(np.float64) + total).astype(np.float32)
    return acc


def matmul_inputs(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m + n + k)
    a = rng.standard_normal((m, k)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((k, n)).astype(ml_dtypes.bfloat16)
    return a, b, np.full((m, n), np.nan, np.float32)


@pytest.mark.parametrize(("m", "n", "k", "seed"), [(64, 64, 64, 0), (128, 192, 160, 0), (128, 128, 96, 7)])
def test_matmul_is_bit_equal(m: int, n: int, k: int, seed: int) -> None:
    a, b, c = matmul_inputs(m, n, k)
    build(text("matmul"), ["matmul"]).launch("matmul", (m // 64, n // 64), 128, 2 * STAGE_BYTES, [a, b, c, n, k], seed)
    np.testing.assert_array_equal(c, blocked_product(a, b))


def test_portable_fibers_give_the_same_answers() -> None:
    a, b, c = matmul_inputs(64, 64, 64)
    library = build("#define TS_TWIN_UCONTEXT 1\n" + text("matmul"), ["matmul"])
    assert b"swapcontext" in library.path.read_bytes(), "what the text says of the twin has come too late"
    library.launch("matmul", (1, 1), 128, 2 * STAGE_BYTES, [a, b, c, 64, 64])
    np.testing.assert_array_equal(c, blocked_product(a, b))
    with pytest.raises(EmulatorFault, match="global-out-of-bounds"):
        library.launch("matmul", (2, 1), 128, 2 * STAGE_BYTES, [a, b, c, 64, 64])


def test_matmul_of_128_128_256_is_fast() -> None:
    a, b, c = matmul_inputs(128, 128, 256)
    library = build(text("matmul"), ["matmul"])
    with within(0.5):  # about 0.03 s
        library.launch("matmul", (2, 2), 128, 2 * STAGE_BYTES, [a, b, c, 128, 256])


def test_shuffles() -> None:
    x = np.random.default_rng(0).integers(-100, 100, 128).astype(np.float32)
    out = np.zeros(256, np.float32)
    build(text("warps"), ["shuffles"]).launch("shuffles", (1,), 128, 0, [x, out])
    warps = x.reshape(4, 32)
    np.testing.assert_array_equal(out[:128], np.repeat(warps.sum(1), 32))
    np.testing.assert_array_equal(out[128:], np.repeat(warps[:, 5], 32))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_list_and_block_barriers(seed: int) -> None:
    rows = [np.random.default_rng(i).standard_normal(128, np.float32) for i in range(3)]
    out = np.zeros(128, np.float32)
    library = build(text("warps"), ["reverse_sum"])
    library.launch("reverse_sum", (1,), 128, 512, [rows, 3, out, 0.5], seed)
    half = np.float32(0.5)
    expected = (half * rows[0][::-1] + half * rows[1][::-1]) + half * rows[2][::-1]
    np.testing.assert_array_equal(out, expected)


def test_warp_barrier_orders_the_warp() -> None:
    x = np.arange(1024, dtype=np.float32).astype(ml_dtypes.bfloat16)
    out = np.zeros_like(x)
    build(text("warps"), ["rotate"]).launch("rotate", (1,), 64, 2048, [x, out])
    expected = np.roll(x.reshape(2, 32, 16), -1, axis=1).reshape(-1)
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))


def test_each_form_of_ldmatrix() -> None:
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((6, 4, 32), np.uint32)
    build(text("warps"), ["matrices"]).launch("matrices", (1,), 32, 512, [x, out])
    pairs = {
        False: np.ascontiguousarray(x).view(np.uint32).reshape(4, 32),
        True: np.ascontiguousarray(x.transpose(0, 2, 1)).view(np.uint32).reshape(4, 32),
    }
    for form, (count, transposed) in enumerate([(n, t) for t in (False, True) for n in (1, 2, 4)]):
        np.testing.assert_array_equal(out[form, :count], pairs[transposed][:count])
        assert not out[form, count:].any()


@pytest.mark.parametrize("valid", [0, 1, 3, 4])
def test_partial_cp_async_fills_with_zero(valid: int) -> None:
    x = np.arange(1, 5, dtype=np.float32)
    out = np.full(7, -1, np.float32)
    build(text("warps"), ["partial_copies"]).launch("partial_copies", (1,), 32, 28, [x[:valid], out, valid])
    four = np.where(np.arange(4) < valid, x, 0)
    np.testing.assert_array_equal(out, np.concatenate([four, four[:2], [0]]))


# ---- f32 maths: the rule of tessera_twin_math.h, written in NumPy ----------------------------------------------


def rounded_once(function, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = np.asarray(function(x.astype(np.float64)))
        distance = (y.view(np.int64) & 0x1FFFFFFF) - 0x10000000
        unsure = (np.abs(distance) <= 4) & np.isfinite(y) | (np.abs(y) < 2.0**-126) & (y != 0)
        result = y.astype(np.float32)
        result[unsure] = function(x[unsure].astype(np.longdouble)).astype(np.float32)
    return result


def sigmoid(x: np.ndarray) -> np.ndarray:
    one = x.dtype.type(1)
    return np.where(x >= 0, one / (one + np.exp(-x)), np.exp(x) / (one + np.exp(x)))


FUNCTIONS = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
    "floor": np.floor,
    "abs": np.abs,
}


@pytest.fixture(scope="module")
def function_values() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-45, -1e-45, 1e-38, 3.4e38, 88.72283, 88.72284, 128.0]
    subnormal_results = np.linspace(-104.0, -86.0, 1000)  # of exp and sigmoid; of exp2 below
    every_scale = rng.integers(0, 2**32, 3000, np.uint32).view(np.float32)
    # Near 0, sigmoid is 1/2 + x/4 - x^3/48: an odd multiple of 2^-23 lies just beside a midpoint, where float64 alone
    # often lands on the midpoint or beyond it.
    beside_midpoints = np.arange(-201, 202, 2) * 2.0**-23
    parts = special, beside_midpoints, subnormal_results, 1.45 * subnormal_results, rng.standard_normal(6000) * 4
    x = np.concatenate([np.float32(part) for part in parts] + [every_scale])
    out = np.zeros((10, x.size), np.float32)
    library = build(text("elementwise"), ["functions", "pairs", "narrow", "integers"])
    library.launch("functions", (-(-x.size // 128),), 128, 0, [x, out, x.size])
    return x, out


@pytest.mark.parametrize(("row", "name"), list(enumerate(FUNCTIONS)))
def test_functions_are_bit_equal_to_numpy(function_values, row: int, name: str) -> None:
    x, out = function_values
    assert x.size > 10_000
    # A NaN has many patterns and the rule names none.
    expected = rounded_once(FUNCTIONS[name], x)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(out[row]), ~numbers)
    np.testing.assert_array_equal(out[row][numbers].view(np.uint32), expected[numbers].view(np.uint32))
    # And the rule is what it says: one rounding of the true value, here from long double throughout.
    with np.errstate(all="ignore"):
        true = FUNCTIONS[name](x.astype(np.longdouble)).astype(np.float32)
    np.testing.assert_array_equal(out[row][numbers].view(np.uint32), true[numbers].view(np.uint32))


def test_pairs() -> None:
    rng = np.random.default_rng(3)
    special = np.array([0.0, -0.0, 0.0, -0.0, np.nan, 1.0, np.inf, -np.inf, 1e-40], np.float32)
    x = np.concatenate([special, rng.standard_normal(1000).astype(np.float32)])[16:]
    x = np.concatenate([rng.standard_normal(16).astype(np.float32), np.repeat(special, 9), x])
    y = np.concatenate([rng.standard_normal(16).astype(np.float32), np.tile(special, 9), np.roll(x[97:], 1)])
    out = np.zeros((4, x.size), np.float32)
    library = build(text("elementwise"), ["functions", "pairs", "narrow", "integers"])
    library.launch("pairs", (-(-x.size // 128),), 128, 0, [x, y, out, x.size])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(out[:3], [np.maximum(x, y), np.minimum(x, y), x / y])
    zeros = (x == 0) & (y == 0)
    np.testing.assert_array_equal(np.signbit(out[0][zeros]), np.signbit(x[zeros]) & np.signbit(y[zeros]))
    np.testing.assert_array_equal(np.signbit(out[1][zeros]), np.signbit(x[zeros]) | np.signbit(y[zeros]))
    total = 0.0
    for k in range(8):
        total += float(x[k]) * float(x[7 - k])
    np.testing.assert_array_equal(out[3], (y.astype(np.float64) + total).astype(np.float32))


def test_bf16_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(4)
    ties = (rng.integers(0, 2**16, 500).astype(np.uint32) << 16 | 0x8000).view(np.float32)
    x = np.concatenate([ties, rng.integers(0, 2**32, 5000, np.uint32).view(np.float32), np.float32([np.inf, -np.inf])])
    out, back = np.zeros(x.size, np.uint16), np.zeros(x.size, np.float32)
    library = build(text("elementwise"), ["functions", "pairs", "narrow", "integers"])
    library.launch("narrow", (-(-x.size // 128),), 128, 0, [x, out, back, x.size])
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    bits = np.where(np.isnan(x), 0x7FFF, expected.view(np.uint16))
    np.testing.assert_array_equal(out, bits)
    np.testing.assert_array_equal(back, expected.astype(np.float32))


@pytest.mark.parametrize("divisor", [1, -1, 7, -7, 2**40])
def test_integers_follow_python(divisor: int) -> None:
    x = np.array([0, 1, -1, 6, 7, 8, -6, -7, -8, 2**62, -(2**62) + 1, 2**24 + 1], np.int64)
    out, converted = np.zeros((3, x.size), np.int64), np.zeros(x.size, np.float32)
    library = build(text("elementwise"), ["functions", "pairs", "narrow", "integers"])
    library.launch("integers", (1,), 32, 0, [x, out, converted, x.size, divisor])
    values = [int(value) for value in x]
    expected = [(v // divisor, v % divisor, -(-v // divisor)) for v in values]
    assert out.T.tolist() == [list(row) for row in expected]
    np.testing.assert_array_equal(converted, np.where(x != 0, x.astype(np.float32), -1))


# ---- wrong kernels ---------------------------------------------------------------------------------------------


def test_missing_wait_is_reported_and_shows_as_nan() -> None:
    lines = [line for line in text("matmul").splitlines() if "// WAIT" not in line]
    library = build("\n".join(lines), ["matmul"])
    a, b, c = matmul_inputs(64, 64, 64)
    with pytest.raises(EmulatorFault) as caught:
        library.launch("matmul", (1, 1), 128, 2 * STAGE_BYTES, [a, b, c, 64, 64])
    assert [fault.kind for fault in caught.value.faults] == ["in-flight"]
    c[:] = 0
    library.launch("matmul", (1, 1), 128, 2 * STAGE_BYTES, [a, b, c, 64, 64], races=False)
    assert np.isnan(c).all()


@pytest.mark.parametrize("mark", ["// ARRIVED", "// CONSUMED"])
def test_missing_barrier_is_reported(mark: str) -> None:
    lines = [line for line in text("matmul").splitlines() if mark not in line]
    a, b, c = matmul_inputs(64, 64, 128)
    with pytest.raises(EmulatorFault) as caught:
        build("\n".join(lines), ["matmul"]).launch("matmul", (1, 1), 128, 2 * STAGE_BYTES, [a, b, c, 64, 128])
    assert caught.value.faults[0].kind in ("race", "in-flight")
    assert np.isnan(c).all()  # outputs of a faulty launch are left alone


def test_missing_warp_barrier_is_a_race() -> None:
    lines = [line for line in text("warps").splitlines() if "// WRITTEN" not in line]
    x = np.zeros(1024, ml_dtypes.bfloat16)
    with pytest.raises(EmulatorFault, match="race: .* with no barrier between"):
        build("\n".join(lines), ["rotate"]).launch("rotate", (1,), 64, 2048, [x, np.zeros_like(x)])


def test_shared_memory_starts_as_nan_and_reading_it_is_a_finding() -> None:
    out = np.zeros(64, np.float32)
    library = kernel(
        "float v[1]; ts_ld_shared<float, 1>(v, shared + ts_thread() * 4); ts_st_global<float, 1>(out + ts_thread(), v);"
    )
    library.launch("k", (1,), 64, 1024, [out], races=False)
    assert np.isnan(out).all()
    (fault,) = faults(library, out)
    assert (fault.kind, fault.plain) == ("uninitialised", "reads shared byte 0, which nobody wrote")


@pytest.mark.parametrize(("offset", "shared"), [(-16, 1024), (1024, 1024), (1016, 1024), (0, 0)])
def test_shared_out_of_bounds(offset: int, shared: int) -> None:
    library = kernel("float v[4]; if (ts_thread() == 3) ts_ld_shared<float, 4>(v, shared + offset);", "ts_i64 offset")
    (fault,) = faults(library, offset, shared=shared)
    assert (fault.kind, fault.block, fault.thread) == ("shared-out-of-bounds", (0, 0, 0), 3)
    assert fault.message == f"reads 16 bytes at offset {offset} of a shared block of {shared} bytes"


@pytest.mark.parametrize("index", [-1, 10])
def test_global_out_of_bounds(index: int) -> None:
    library = kernel("float v[1] = {1.0f}; ts_st_global<float, 1>(out + i, v);", "const float* x, float* out, ts_i64 i")
    base = np.zeros(30, np.float32)  # neighbours on both sides belong to the same allocation, not to the argument
    fault = faults(library, base[:10], base[10:20], index)[0]
    assert fault.kind == "global-out-of-bounds"
    assert fault.plain == f"writes 4 bytes at byte {index * 4} of argument 1, which has 40 bytes"
    assert not base.any()


def test_misaligned_accesses() -> None:
    shared = kernel("float v[4]; ts_ld_shared<float, 4>(v, shared + 8);", "ts_i64 unused")
    assert faults(shared, 0)[0].message == "reads 16 bytes at shared offset 8, which is not a multiple of 16"
    library = kernel("ts_bf16 v[8]; ts_ld_global<ts_bf16, 8>(v, x);", "const ts_bf16* x")
    raw = np.zeros(256, np.uint8)
    start = -raw.ctypes.data % 16
    library.launch("k", (1,), 64, 0, [raw[start : start + 16]])
    fault = faults(library, raw[start + 2 : start + 18])[0]
    assert (fault.kind, "not a multiple of 16" in fault.message) == ("misaligned", True)


def test_misaligned_cp_async_and_too_many_source_bytes() -> None:
    body = "ts_cp_async<16>(shared + ts_thread() * 16, x + 1, (int)n);"
    library = kernel(body, "const float* x, ts_i64 n", threads=32)
    x = np.zeros(8, np.float32)
    x = x if x.ctypes.data % 16 == 0 else x[(-x.ctypes.data % 16) // 4 :]
    assert faults(library, x, 16, threads=32)[0].kind == "misaligned"
    assert "asks for 20 source bytes" in faults(library, x, 20, threads=32)[0].message


def test_copy_in_flight_overwrites_what_was_there() -> None:
    body = (
        "float v[4] = {1, 1, 1, 1}; char* mine = shared + ts_thread() * 16; ts_st_shared<float, 4>(mine, v);"
        "ts_cp_async<16>(mine, v, 0); ts_cp_async_commit(); ts_cp_async_commit(); ts_cp_async_wait<1 + LATE>();"
        "ts_ld_shared<float, 4>(v, mine); ts_st_global<float, 1>(out + ts_thread(), v + 3);"
    )
    out = np.full(64, 7, np.float32)
    kernel("#define LATE 0\n" + body).launch("k", (1,), 64, 1024, [out])
    assert (out == 0).all()
    late = kernel("#define LATE 1\n" + body)
    assert faults(late, out)[0].kind == "in-flight"
    late.launch("k", (1,), 64, 1024, [out], races=False)
    assert np.isnan(out).all()


def test_read_only_array_is_not_written() -> None:
    library = kernel("float v[1] = {1.0f}; ts_st_global<float, 1>(out, v);")
    out = np.zeros(4, np.float32)
    out.flags.writeable = False
    assert faults(library, out)[0].kind == "read-only"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (
            "if (ts_thread() < 32) ts_barrier();",
            "32 threads (warp 0) wait in ts_barrier at line 4; 32 threads have returned",
        ),
        (
            "if (ts_lane() < 20) ts_warp_barrier();",
            "40 threads (warps 0-1) wait in ts_warp_barrier at line 4; 24 threads have returned",
        ),
        (
            "if (ts_lane() < 20) ts_barrier(); else ts_warp_barrier();",
            "24 threads (warps 0-1) wait in ts_warp_barrier at line 4",
        ),
        (
            "if (ts_lane() < 20) ts_shfl(1.0f, 0); else ts_warp_barrier();",
            "enters ts_warp_barrier while thread 0 of the same warp waits in a shuffle",
        ),
        (
            "ts_u32 r[4]; if (ts_lane() < 20) ts_ldmatrix_x1(r, shared); else ts_ldmatrix_x2(r, shared);",
            "different ldmatrix instructions",
        ),
    ],
)
def test_divergence(body: str, part: str) -> None:
    (fault,) = faults(kernel(body, "ts_i64 unused"), 0)
    assert fault.kind == "divergent"
    assert part in fault.plain


def test_collective_in_a_partial_warp_is_divergent() -> None:
    library = kernel("ts_warp_barrier();", "ts_i64 unused")
    assert faults(library, 0, threads=40)[0].kind == "divergent"


def test_write_write_race_needs_different_values() -> None:
    body = "float v[1] = {(float)(ts_thread() * factor)}; ts_st_shared<float, 1>(shared, v);"
    library = kernel(body, "ts_i64 factor")
    library.launch("k", (1,), 64, 1024, [0])
    assert faults(library, 1)[0].kind == "race"


def test_unchecked_write_past_the_block_is_found() -> None:
    fault = faults(kernel("shared[1024 + ts_thread()] = 0;", "ts_i64 unused"), 0)[0]
    assert fault.kind == "guard-overwritten"
    assert fault.message == "wrote past the end of the shared block through an unchecked pointer"


def test_division_by_zero() -> None:
    assert faults(kernel("if (ts_floordiv(5, n)) ts_barrier();", "ts_i64 n"), 0)[0].kind == "division-by-zero"


def test_each_block_reports_and_only_the_first_are_kept() -> None:
    library = kernel("float v[1]; if (ts_block_id(1) == 1) ts_ld_shared<float, 1>(v, shared + 4096);", "ts_i64 unused")
    with pytest.raises(EmulatorFault) as caught:
        library.launch("k", (20, 2), 64, 1024, [0])
    assert caught.value.count == 20
    assert [fault.block for fault in caught.value.faults] == [(x, 1, 0) for x in range(emulator.MAX_FAULTS)]
    with pytest.raises(EmulatorFault) as shuffled:
        library.launch("k", (20, 2), 64, 1024, [0], seed=9)
    blocks = [fault.block for fault in shuffled.value.faults]
    assert blocks != [fault.block for fault in caught.value.faults] and len(set(blocks)) == len(blocks)


def test_seed_changes_the_order_of_warps() -> None:
    """Without the race check, the last warp to write decides; only a random order can change who that is."""
    library = kernel("float v[1] = {(float)ts_warp()}; ts_st_global<float, 1>(out, v);", threads=256)
    winners = set()
    for seed in range(8):
        out = np.full(1, -1, np.float32)
        library.launch("k", (1,), 256, 0, [out], seed, races=False)
        winners.add(float(out[0]))
        if seed == 0:
            assert winners == {7.0}
    assert len(winners) > 1


# ---- arguments, launches, building -----------------------------------------------------------------------------


def test_bad_launches() -> None:
    library = kernel("", "ts_i64 unused")
    for grid, threads, shared in [((1,), 65, 0), ((1,), 0, 0), ((0,), 64, 0), ((1,), 64, 300_000)]:
        with pytest.raises(EmulatorFault, match="bad-launch"):
            library.launch("k", grid, threads, shared, [0])


def test_scalars_are_converted_and_checked() -> None:
    parameters = "float* out, ts_i64 wide, ts_i32 narrow, float real, bool flag"
    body = (
        "float v[4] = {(float)wide, (float)narrow, real, flag ? 1.0f : 0.0f};"
        "if (ts_thread() == 0) ts_st_global_n<float, 4>(out, v, 4);"
    )
    library = kernel(body, parameters)
    assert library.signature("k") == "plifb"
    out = np.zeros(4, np.float32)
    library.launch("k", (1,), 64, 0, [out, 2**40, ctypes.c_int32(-3), np.float32(0.25), True])
    assert out.tolist() == [2.0**40, -3.0, 0.25, 1.0]
    good = [out, 1, 1, 0.0, False]
    for bad in (
        good[:1],
        [*good, 1],
        [1, *good[1:]],
        [out, out, *good[2:]],
        [out, 1.5, *good[2:]],
        [out, 1, 2**31, 0.0, 0],
    ):
        with pytest.raises(TypeError):
            library.launch("k", (1,), 64, 0, bad)


def test_lists_are_passed_by_value() -> None:
    body = (
        "float v[3]; ts_ld_global_n<float, 3>(v, ts_element(xs, which, 2), 3); v[0] += scale;"
        "v[2] = ys.at[0] ? 1.0f : 2.0f; ts_st_global_n<float, 3>(out, v, 3);"
    )
    parameters = "TS_TABLE(const float, 2) xs, float* out, ts_i64 which, TS_TABLE(const float, 1) ys, float scale"
    library = kernel(body, parameters, 1)
    assert library.signature("k") == "t2plt1f"
    xs, out = [np.arange(3, dtype=np.float32) + 10 * i for i in range(2)], np.zeros(3, np.float32)
    for which, ys, expected in ((0, xs[:1], [0.5, 1, 1]), (1, (), [10.5, 11, 2])):
        library.launch("k", (1,), 1, 0, [tuple(xs), out, which, ys, 0.5])
        assert out.tolist() == expected
    good = [xs, out, 0, [], 0.0]
    for bad, message in (
        ([xs[:1], *good[1:]], "argument 0 of k is a list: pass a list of 2 arrays"),
        ([[], *good[1:]], "argument 0 of k is a list: pass a list of 2 arrays"),
        ([xs[0], *good[1:]], "argument 0 of k is a list: pass a list of 2 arrays"),
        ([*good[:3], xs, 0.0], "argument 3 of k is a list: pass a list of 1 arrays"),
        ([xs, xs, *good[2:]], "argument 1 of k is a pointer: pass an array"),
        ([*good[:4], xs], "argument 4 of k is a scalar: pass a number"),
        (good[:4], "k takes 5 arguments and got 4"),
    ):
        with pytest.raises(TypeError, match=message):
            library.launch("k", (1,), 1, 0, bad)
    with pytest.raises(EmulatorFault, match="takes the tensor at index 2 from a list of 2 tensors"):
        library.launch("k", (1,), 1, 0, [xs, out, 2, [], 0.0])


def test_overlapping_and_strided_arguments_share_memory() -> None:
    body = (
        "float v[1]; ts_ld_global<float, 1>(v, x + ts_thread() * 2); v[0] += 1.0f;"
        "ts_st_global<float, 1>(out + ts_thread() * 2, v);"
    )
    library = kernel(body, "const float* x, float* out", threads=8)
    base = np.arange(20, dtype=np.float32)
    library.launch("k", (1,), 8, 0, [base[2:18:2], base[3:19:2]])
    expected = np.arange(20, dtype=np.float32)
    expected[3:19:2] = expected[2:18:2] + 1
    np.testing.assert_array_equal(base, expected)


def test_uninitialised_registers_are_not_zero() -> None:
    library = kernel("float v[4]; ts_st_global<float, 1>(out + ts_thread(), v + 2);", threads=32)
    out = np.zeros(32, np.float32)
    library.launch("k", (1,), 32, 0, [out])
    assert np.isnan(out).all()
    library.launch("k", (1,), 32, 0, [out], seed=3)
    assert len(np.unique(out)) > 8


def test_build_is_cached_and_a_damaged_file_is_rebuilt(tmp_path, monkeypatch) -> None:
    cache = Cache(tmp_path, 1 << 30)
    monkeypatch.setattr(emulator, "open_cache", lambda: cache)
    source = text("vector_add")
    first = build(source, ["vadd"])
    assert [entry.path for entry in cache.entries()] == [first.path]
    before = first.path.stat().st_mtime_ns
    assert build(source, ["vadd"]).path.stat().st_mtime_ns == before
    other = build(source + "\n", ["vadd"])
    assert other.path != first.path
    other.path.unlink()  # writing into a mapped library would change the loaded one
    other.path.write_bytes(b"not a library")
    assert build(source + "\n", ["vadd"]).signature("vadd") == "pppl"
    assert cache.verify() == []


def test_without_a_cache_a_library_lives_as_long_as_the_process(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(emulator, "open_cache", lambda: Cache(tmp_path, 0))
    source = text("vector_add") + "// of no cache\n"
    first = build(source, ["vadd"])
    assert first.signature("vadd") == "pppl" and not first.path.exists() and list(tmp_path.iterdir()) == []
    assert build(source, ["vadd"]) is first


def test_rejected_text_and_missing_compiler(monkeypatch) -> None:
    with pytest.raises(EmulatorBuildError, match="ts_nonsense"):
        kernel("ts_nonsense();")
    with pytest.raises(emulator.EmulatorUnavailable, match="no-such-compiler.*install it"):
        emulator._compiler("no-such-compiler")


def test_a_loop_without_end_is_found() -> None:
    near = "ts_twin::state.steps = ts_twin::MAX_STEPS - 1000; "
    body = near + "float v[1] = {1.0f}; while (true) {\nts_st_shared<float, 1>(shared + ts_thread() * 4, v); }"
    (fault,) = faults(kernel(body, "ts_i64 unused", threads=32), 0, threads=32)
    assert (fault.kind, fault.line) == ("deadlock", 5)
    assert "goes on without end" in fault.message
