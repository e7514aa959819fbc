"""TMA in the twin: boxes against NumPy, a ring in many orders, and each way of breaking it named at its line."""

from __future__ import annotations

import re
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from tessera.runtime.emulator import EmulatorFault, Fault, Library, build
from tessera.runtime.emulator_maps import TwinMap, twin_map
from tests.check.ring_mutations import Mutation, Variant
from tests.check.rings import assert_named, blocked_product, edited, lines_by_kind, text
from tests.check.tma import box_of, box_run, joined, ring_run, stored, swizzled
from tests.check.tma_mutations import MUTATIONS, VARIANTS

STAGES = (1, 2, 5)
SEEDS = (0, 1, 2, 3)

# ---- boxes -----------------------------------------------------------------------------------------------------

BF16 = np.dtype(ml_dtypes.bfloat16)
# Element, shape (outermost first), box (innermost first), swizzle, from, to.
BOXES = {
    "the whole": (np.float32, (8, 32), (32, 8), 128, (0, 0), (0, 0)),
    "inside": (BF16, (40, 96), (64, 24), 128, (16, 8), (8, 16)),
    "no swizzle": (np.float32, (16, 40), (40, 16), 0, (0, 0), (0, 0)),
    "64 bytes": (BF16, (32, 64), (32, 32), 64, (32, 0), (0, 0)),
    "32 bytes": (np.uint8, (64, 64), (32, 64), 32, (32, 0), (0, 0)),
    "past the end": (np.float32, (13, 36), (32, 8), 128, (20, 9), (28, 7)),
    "before the start": (np.float32, (13, 36), (32, 8), 128, (-5, -3), (-31, -7)),
    "all outside": (np.float32, (8, 32), (32, 8), 128, (32, 0), (0, 8)),
    "far outside": (np.float32, (8, 32), (32, 8), 128, (2**31 - 1, -(2**31)), (-(2**31), 2**31 - 1)),
    "rank 3": (BF16, (5, 9, 72), (64, 8, 3), 128, (3, -2, 3), (16, 4, -1)),
    "rank 4": (np.uint8, (3, 4, 5, 48), (16, 3, 2, 2), 0, (40, -1, 3, 2), (-8, 4, 0, 1)),
    "rank 5": (np.float32, (2, 3, 3, 4, 8), (8, 2, 2, 3, 2), 32, (1, -1, 2, 1, 1), (-2, 3, -1, 0, -1)),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_box(name: str, seed: int) -> None:
    dtype, shape, box, swizzle, source, target = BOXES[name]
    x = np.random.default_rng(len(name)).standard_normal(shape).astype(dtype)
    y = np.zeros_like(x)
    values = box_of(x, box, source)
    found, raw = box_run(x, y, box, swizzle, (source, target), seed)
    assert found.faults == []
    np.testing.assert_array_equal(raw, swizzled(values, swizzle))
    np.testing.assert_array_equal(y, stored(np.zeros_like(x), values, target))


def test_strides_are_those_of_the_map() -> None:
    """[B, T, H, D] seen as B x H x T x D: the rows of a box lie apart."""
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 32), np.float32)
    y = np.zeros_like(x)
    heads = x.transpose(0, 2, 1, 3)
    found, raw = box_run(heads, y.transpose(0, 2, 1, 3), (32, 8, 1, 1), 128, ((0, 2, 1, 1), (0, 0, 2, 0)))
    assert found.faults == []
    values = box_of(heads, (32, 8, 1, 1), (0, 2, 1, 1))
    np.testing.assert_array_equal(raw, swizzled(values, 128))
    np.testing.assert_array_equal(y[0, :, 2], values[0, 0, :6])
    assert not y[1].any()


def test_sectors_are_counted_at_the_copies() -> None:
    x = np.zeros((12, 36), np.float32)
    found, _ = box_run(x, np.zeros_like(x), (32, 8), 128, ((0, 8), (0, 0)), count=True)
    # Rows of 144 bytes begin at a sector or in the middle of one, and take 4 or 5.
    (read,) = [c.global_read for c in found.lines.values() if c.global_read.bytes]
    assert (read.requests, read.sectors, read.bytes) == (1, 18, 4 * 128)
    (written,) = [c.global_write for c in found.lines.values() if c.global_write.requests == 1]
    assert (written.sectors, written.bytes) == (36, 8 * 128)


# ---- the ring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stages", STAGES)
def test_a_right_ring_has_no_findings(stages: int, seed: int) -> None:
    library = build(text("tma_ring"), [f"tma_{n}" for n in STAGES])
    faults, out, expected = ring_run(library, f"tma_{stages}", stages, seed)
    assert faults == []
    np.testing.assert_array_equal(out, expected)


@cache
def edited_rings() -> Library:
    """The ring of two stages by each variant and each mutation."""
    texts = [edited("tma_ring", edit.edits) for edit in (*VARIANTS, *MUTATIONS)]
    others = re.compile(r"^RING\(tma_[15], \d\)$", re.MULTILINE)
    return joined([others.sub("", source) for source in texts], "tma_2")


def run_edited(edit: Mutation | Variant, seed: int) -> tuple[list[Fault], np.ndarray, np.ndarray]:
    return ring_run(edited_rings(), f"tma_2_{(*VARIANTS, *MUTATIONS).index(edit)}", 2, seed)


def identifier(edit: Mutation | Variant) -> str:
    return edit.name.replace(" ", "-")


@pytest.mark.parametrize("variant", VARIANTS, ids=identifier)
def test_a_right_variant_has_no_findings(variant: Variant) -> None:
    for seed in SEEDS:
        faults, out, expected = run_edited(variant, seed)
        assert faults == [], f"seed {seed}"
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=identifier)
def test_a_mutation_is_named_at_its_line(mutation: Mutation) -> None:
    allowed = lines_by_kind("tma_ring", mutation.expected)
    for seed in SEEDS:
        faults, _, _ = run_edited(mutation, seed)
        assert_named(faults, allowed, seed)


def test_a_deadlock_names_the_bytes() -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "half of the bytes announced")
    faults, _, _ = run_edited(mutation, 0)
    assert "misses 0 of 1 arrivals and has 2048 of the 1024 bytes that it expects" in faults[0].message


@pytest.mark.parametrize("seed", SEEDS)
def test_a_product_of_what_tma_brought(seed: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((100, 136)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((136, 72)).astype(ml_dtypes.bfloat16)
    c = np.full((100, 72), np.nan, np.float32)
    for array in (a, b):
        array.flags.writeable = False
    maps = [twin_map(array, box=(64, 64), swizzle=128) for array in (a, b)]
    args = [*maps, twin_map(c, box=(32, 16), swizzle=128), 4, 2, 3]
    shared = 1024 + 3 * 2 * 64 * 128 + 4 * 4096
    library = build(text("tma_product"), ["tma_product"])
    found = library.examine("tma_product", (3,), 160, shared, args, seed, outputs=(2,))
    assert found.faults == []
    np.testing.assert_array_equal(c, blocked_product(np.pad(a, ((0, 0), (0, 8))), np.pad(b, ((0, 8), (0, 0)))))


# ---- other findings --------------------------------------------------------------------------------------------

SMALL = """#include "tessera_device.h"
TS_KERNEL(k, 64)(TS_MAP x, TS_MAPS(2) y, float* plain, ts_i32 which) {
    TS_SHARED(shared);
    if (ts_thread() == 0) {
        ts_mbarrier_init(shared, 1);
        ts_mbarrier_fence();
    }
    ts_barrier();
    BODY
}
"""

FIRST = "if (ts_thread() == 0) "
LOAD = "ts_mbarrier_expect(shared, 1024); ts_tma_load(shared + 1024, x, shared, 0, 0);"
STORE = "ts_tma_store(y.at[which], shared + 1024, 0, 0); ts_tma_commit();"
WAIT = "ts_mbarrier_wait(shared, 0);"
READ_Y = "float v[1]; ts_ld_global<float, 1>(v, plain + ts_thread());"
READ = "float v[1]; ts_ld_shared<float, 1>(v, shared + 1024 + ts_thread() * 4);"
BEGUN = f"{FIRST}{{ {LOAD} {WAIT} {STORE}"

# Body, and how the one finding begins; empty for none. With every seed.
UNWAITED = "race: reads {argument 2}["
UNREAD = "in-flight: reads {shared 1"
UNFINISHED = "in-flight: ends while the TMA load at {line 9} may be under way: no thread has waited for its phase"
CASES = {
    "a list of maps, indexed": (f"{BEGUN} ts_tma_wait_read<0>(); }}", ""),
    "y read after its source is": (f"{BEGUN} ts_tma_wait_read<0>(); {READ_Y} }}", UNWAITED),
    "y read after a wait that leaves a group": (
        f"{BEGUN} ts_tma_wait<1>(); ts_tma_wait_read<0>(); {READ_Y} }}", UNWAITED),
    "y read behind a block barrier": (f"{BEGUN} ts_tma_wait_read<0>(); }} ts_barrier(); {READ_Y}", UNWAITED),
    "y read after the whole store": (f"{BEGUN} ts_tma_wait<0>(); {READ_Y} }}", ""),
    "y read after the whole store and a block barrier": (f"{BEGUN} ts_tma_wait<0>(); }} ts_barrier(); {READ_Y}", ""),
    "a slot read behind a block barrier": (f"{FIRST}{{ {LOAD} }} ts_barrier(); {READ} {WAIT}", UNREAD),
    "a slot read behind a wait and a block barrier": (f"{FIRST}{{ {LOAD} {WAIT} }} ts_barrier(); {READ}", ""),
    "a load without a wait": (f"{FIRST}{{ {LOAD} }}", UNFINISHED),
    "a load that no phase waits for": (f"{FIRST}{{ {LOAD.split(';')[1]}; ts_mbarrier_arrive(shared); }}",
        (UNFINISHED, "mbarrier: copies 1024 bytes by TMA with the mbarrier at {shared 0}, whose phase completes")),
    "a phase without its bytes": (f"{FIRST}ts_mbarrier_expect(shared, 64);",
        "mbarrier: ends with the mbarrier at {shared 0} in a phase that expects 64 bytes and has 0"),
    "an arrival too many": (f"{FIRST}{{ ts_mbarrier_expect(shared, 64); ts_mbarrier_arrive(shared); }}",
        "mbarrier: arrives at the mbarrier at {shared 0}, whose phase has its 1 arrivals and waits for bytes"),
    "a barrier invalid too early": (f"{FIRST}{{ {LOAD} ts_mbarrier_invalidate(shared); }}",
        "mbarrier: invalidates the mbarrier at {shared 0} while the TMA load at {line 9} is under way"),
    "fewer than no bytes": (f"{FIRST}{{ ts_mbarrier_expect(shared, -1); }}", "mbarrier: announces -1 bytes"),
    "a slot with an ordinary store on its way": (
        f"{FIRST}{{ float v[1] = {{0}}; ts_st_shared<float, 1>(shared + 1536, v); {LOAD} {WAIT} }}",
        "unfenced: copies to {shared 1536}, which thread 0 wrote at {line 9}"),
    "stores that overlap": (
        f"{BEGUN} ts_tma_store(y.at[1], shared + 1024, 0, 4); ts_tma_commit(); ts_tma_wait<0>(); }}",
        "conflicting-writes: writes {argument 2}[4, "),
    "a map that the hardware refuses": (f"{FIRST}{{ {LOAD} {WAIT} }}", ""),
}  # fmt: skip


@cache
def small_kernels() -> Library:
    return joined([SMALL.replace("BODY", body) for body, _ in CASES.values()], "k")


def run_small(name: str, seed: int = 0, which: int = 1, **fields) -> list[str]:
    """The kinds found, for one load and one store of a box."""
    x, y = np.arange(256, dtype=np.float32).reshape(8, 32), np.zeros((8, 32), np.float32)
    x.flags.writeable = False
    good = {"sizes": (32, 8), "strides": (4, 128), "box": (32, 8), "swizzle": 128}
    out = [twin_map(x, box=(32, 8), swizzle=128), twin_map(y, box=(32, 8), swizzle=128)]
    args = [TwinMap(x, **{**good, **fields}), out, y, which]
    found = small_kernels().examine(f"k_{list(CASES).index(name)}", (1,), 64, 4096, args, seed)
    return [f"{fault.kind}: {fault.message}" for fault in found.faults]


@pytest.mark.parametrize("name", CASES)
def test_a_case(name: str) -> None:
    for seed in SEEDS:
        found = run_small(name, seed)
        assert [message.startswith(CASES[name][1]) for message in found] == [True] * bool(CASES[name][1]), found


def test_a_map_is_of_the_list_at_its_index() -> None:
    found = run_small("a list of maps, indexed", which=0)
    assert found == ["read-only: writes 128 bytes at {argument 0}[0, 0], which is read-only"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": (4, 120)}, "misaligned: uses a tensor map whose stride on axis 1 is 120 bytes"),
        ({"strides": (8, 128)}, "bad-launch: uses a tensor map whose innermost stride is 8 bytes, not the 4"),
        ({"strides": (4, -128)}, "bad-launch: uses a tensor map whose stride on axis 1 is -128 bytes"),
        ({"sizes": (32, 0)}, "bad-launch: uses a tensor map of 0 elements on axis 1"),
        ({"sizes": (32, 9), "box": (32, 9)}, "global-out-of-bounds: copies from 128 bytes at byte 1024 of"),
        ({"box": (32, 257)}, "bad-launch: uses a tensor map with a box of 257 elements on axis 1"),
        ({"box": (30, 8), "swizzle": 0}, "misaligned: uses a tensor map whose box has rows of 120 bytes"),
        ({"box": (16, 8)}, "bad-launch: uses a tensor map with rows of 64 bytes in its box and a swizzle of 128"),
        ({"swizzle": 16}, "bad-launch: uses a tensor map with a swizzle of 16 bytes"),
        ({"sizes": (32, 8, 1), "strides": (4, 128, 16), "box": (32, 8, 1)},
         "bad-launch: gives 2 coordinates to a tensor map of rank 3"),
    ],
)  # fmt: skip
def test_a_map_that_the_hardware_refuses(fields: dict, message: str) -> None:
    (found,) = run_small("a map that the hardware refuses", **fields)
    assert found.startswith(message)


def test_a_tensor_that_begins_between_chunks() -> None:
    memory = np.zeros(8 * 32 + 1, np.float32)
    map = twin_map(memory[1:].reshape(8, 32), box=(32, 8), swizzle=128)
    kernel = f"k_{list(CASES).index('a map that the hardware refuses')}"
    with pytest.raises(EmulatorFault, match="misaligned.*whose address is not a multiple of 16"):
        small_kernels().launch(kernel, (1,), 64, 4096, [map, [map, map], memory, 0])


def test_arguments_that_are_no_maps() -> None:
    library = small_kernels()
    assert library.signature("k_0") == "mm2pi"
    x = np.zeros((8, 32), np.float32)
    map = twin_map(x, box=(32, 8), swizzle=128)
    for bad, message in (
        ([x, [map, map], x, 0], "argument 0 of k_0 takes tensor maps: pass one"),
        ([map, [map], x, 0], "argument 1 of k_0 takes tensor maps: pass 2"),
        ([map, map, x, 0], "argument 1 of k_0 takes tensor maps: pass 2"),
        ([map, [map, x], x, 0], "argument 1 of k_0 takes tensor maps: pass 2"),
        ([map, [map, map], map, 0], "argument 2 of k_0 is a pointer: pass an array"),
        ([map, [map, map], x, map], "argument 3 of k_0 is a scalar: pass a number"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            library.launch("k_0", (1,), 64, 4096, bad)
    with pytest.raises(ValueError, match="a map of 2 sizes, 2 strides and a box of 1"):
        twin_map(x, box=(32,))
