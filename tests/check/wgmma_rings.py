"""Rings that feed wgmma: what texts/wgmma_ring.cu computes, and the mistakes that it can be told to make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import ml_dtypes
import numpy as np

from tessera.runtime.emulator import Fault, Library, build
from tests.check.rings import blocked_product, text

TEXT = "wgmma_ring"
STEPS = 5  # in k: two of the three slots are used twice
SHARED_BYTES = {"ring_ss": 1024 + 3 * (16384 + 4096) + 8192}
SHARED_BYTES["ring_rs"] = SHARED_BYTES["ring_ss"] + STEPS * 4096


@dataclass(frozen=True)
class Edit:
    """A mistake that the text makes when told to, by its name there. `expected` says of each kind of fault at which
    tagged lines it may be found.
    """

    name: str
    expected: Mapping[str, tuple[str, ...]] = field(hash=False)
    kernel: str = "ring_ss"


# fmt: off
MISTAKES = (
    Edit("NO_FENCE_AFTER_STORES", {"unfenced": ("multiply: ss",)}),
    Edit("FENCE_BEFORE_STORES", {"unfenced": ("multiply: ss",)}),
    Edit("FENCE_BY_ONE_LANE", {"unfenced": ("multiply: ss",)}),
    Edit("FENCE_AFTER_ARRIVAL", {"unfenced": ("multiply: ss",)}),
    Edit("NO_FENCE_BEFORE_PRODUCTS", {"unfenced": ("multiply: ss",)}),
    Edit("NO_FENCE_BEFORE_PRODUCTS", {"unfenced": ("multiply: rs",)}, "ring_rs"),
    Edit("NO_WAIT_AT_THE_END", {"in-flight": ("multiply: ss",)}),
    Edit("WAIT_LEAVES_THE_LAST_GROUP", {"in-flight": ("wait: too little",)}),
    Edit("NO_COMMIT", {"in-flight": ("wait: ss",), "race": ("fill",)}),
    Edit("WAIT_NAMES_HALF", {"in-flight": ("wait: ss",)}),
    Edit("WAIT_NAMES_WHAT_IS_IN_FLIGHT", {"in-flight": ("wait: in flight",)}),
    Edit("SLOT_BACK_BEFORE_ITS_PRODUCTS", {"race": ("fill",)}),
    Edit("WAIT_LEAVES_ONE_GROUP_TOO_MANY", {"race": ("fill",)}),
    Edit("NO_WAIT_FOR_DATA",
        {"race": ("multiply: ss", "fill"), "deadlock": ("wait: slot free",), "unfenced": ("multiply: ss",)}),
    Edit("ACCUMULATOR_WRITTEN", {"in-flight": ("multiply: ss", "wait: ss")}),
    Edit("ACCUMULATORS_TAKEN_IN_PART", {"in-flight": ("multiply: part",)}),
    Edit("WORDS_OVERWRITTEN", {"in-flight": ("wait: words",)}, "ring_rs"),
    Edit("NO_WAIT_FOR_WORDS", {"in-flight": ("wait: rs",)}, "ring_rs"),
    Edit("ONE_LANE_HANDS_BACK", {"race": ("fill",)}, "ring_rs"),
    Edit("ARRIVALS_AT_TWO_BARRIERS", {"mbarrier": ("arrive: read",)}, "ring_rs"),
    Edit("A_WARP_WITHOUT_COMMIT", {"divergent": ("commit", "wait: the step before")}),
    Edit("A_WARP_WITH_OTHER_ARGUMENTS", {"divergent": ("multiply: ss",)}),
    Edit("A_WARP_RETURNS", {"divergent": ("fence: ss", "barrier: c")}),
    Edit("A_LANE_WITH_OTHER_ARGUMENTS", {"divergent": ("multiply: ss",)}),
    Edit("A_WARP_KEEPS_ITS_REGISTERS", {"divergent": ("registers: fewer",)}),
    Edit("MORE_REGISTERS_THAN_THERE_ARE", {"deadlock": ("registers: too many",)}),
    Edit("INCREASE_TO_FEWER_REGISTERS", {"bad-launch": ("registers: no increase",)}),
    Edit("DESCRIPTOR_BETWEEN_CHUNKS", {"misaligned": ("describe",)}),
    Edit("DESCRIPTOR_OF_NO_SWIZZLE", {"misaligned": ("describe",)}),
    Edit("DESCRIPTOR_OUT_OF_BLOCK", {"shared-out-of-bounds": ("multiply: ss",)}),
    Edit("NO_NAMED_BARRIER", {"race": ("read: c", "stage: c")}),
    Edit("NAMED_BARRIER_FOR_MORE_THREADS", {"divergent": ("barrier: c",)}),
    Edit("NAMED_BARRIER_FOR_DIFFERENT_THREADS", {"divergent": ("barrier: c",)}),
    Edit("NAMED_BARRIER_ZERO", {"divergent": ("barrier: c",)}),
    Edit("A_WARP_MISSES_NAMED_BARRIER", {"divergent": ("barrier: c",), "race": ("read: c", "stage: c")}),
)
# fmt: on
VARIANTS = (
    *(Edit("RIGHT", {}, kernel) for kernel in SHARED_BYTES),
    *(Edit("OK_WAIT_FOR_ACCUMULATORS_IN_EACH_STEP", {}, kernel) for kernel in SHARED_BYTES),
    Edit("OK_WAIT_FOR_EVERY_PRODUCT", {}),
    Edit("OK_ONE_BARRIER_FOR_ALL_CONSUMERS", {}),
)


def edit_names() -> list[str]:
    """The enumerators of the text, by number."""
    body = re.search(r"enum Edit \{(.*?)\}", text(TEXT), re.DOTALL)
    assert body
    return re.findall(r"\w+", body[1])


@cache
def library() -> Library:
    return build(text(TEXT), list(SHARED_BYTES))


def examine(edit: Edit, tiles: int, seed: int) -> tuple[list[Fault], np.ndarray, np.ndarray]:
    """What was found in tiles x tiles blocks of 128 x 32, and the output beside the values that it should have."""
    rng = np.random.default_rng(tiles)
    rows, columns, k = 128 * tiles, 32 * tiles, STEPS * 64
    a = rng.standard_normal((rows, k)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((k, columns)).astype(ml_dtypes.bfloat16)
    c = np.full((rows, columns), np.nan, ml_dtypes.bfloat16)
    a.flags.writeable = b.flags.writeable = False
    arguments = [a, b, c, columns, k, edit_names().index(edit.name)]
    shared = SHARED_BYTES[edit.kernel]
    found = library().examine(edit.kernel, (tiles, tiles), 384, shared, arguments, seed, outputs=(2,))
    return found.faults, c, blocked_product(a, b).astype(ml_dtypes.bfloat16)
