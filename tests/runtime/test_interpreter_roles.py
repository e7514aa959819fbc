"""Roles on the interpreter: any order gives the same, and each way to break the protocol of a ring is told apart."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tessera.errors import SourceError
from tessera.runtime.interpreter import Machine, launch
from tessera.runtime.reference import reference
from tests import role_texts as texts
from tests.ir.test_roles import ACQUIRE, EXPECT, READ, RELEASE, WAIT

SEEDS = (None, *range(6))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_every_order_gives_the_same(stages: int) -> None:
    kernel = texts.kernel(stages)
    for seed in SEEDS:
        got, wanted = texts.run(kernel, 100, seed)
        np.testing.assert_array_equal(got, wanted)


def test_programs_of_different_trip_counts_run_apart() -> None:
    given = texts.arguments(7 * texts.ROWS)
    before = threading.active_count()
    result = launch(Machine, texts.kernel(), given, {"M": 7 * texts.ROWS}, None, "tile")[1]
    assert result.batches == 2 and threading.active_count() == before
    np.testing.assert_array_equal(given["out"], texts.expected(given))


def test_reference_mode() -> None:
    given = texts.arguments(40)
    bar = reference(texts.kernel(), given, {"M": 40})["out"]
    wanted = texts.expected(given)
    assert np.all(np.abs(wanted - bar.r) <= bar.e) and bar.e.max() < 1e-3


EARLY = "        ring_release %ring, %t\n"
SLOT = "slot 0 of 'ring' (which holds 'at', 'bt')"
# By name: edits, and the error in the default order.
BROKEN = {
    "no release": (
        {RELEASE: ""},
        "TS513",
        f"no role can go on; 'load': round 1 of {SLOT} cannot be filled: nobody releases it in round 0; "
        f"'compute': round 1 of {SLOT} is waited for, and nobody fills it",
    ),
    "no announcement": ({EXPECT: ""}, "TS513", f"round 0 of {SLOT} is waited for, and no bytes are announced for it"),
    "no acquire": ({ACQUIRE: ""}, "TS514", "bytes are announced for slot 0 of 'ring', which has not been acquired"),
    "more bytes": (
        {EXPECT: EXPECT.replace("4096", "4100")},
        "TS513",
        "4100 bytes are announced, and its copies bring 4096",
    ),
    "fewer bytes": ({EXPECT: EXPECT.replace("4096", "4092")}, "TS514", "bring 4096 bytes, and 4092 are announced"),
    "two announcements": ({EXPECT: EXPECT + EXPECT}, "TS514", "bytes are announced twice in one round"),
    "a wait by parity alone": (
        {WAIT: WAIT.replace("%q", "%zero")},
        "TS514",
        f"{SLOT} is waited for in a round of phase 0, and the next one is round 1, of phase 1",
    ),
    "an acquire by parity alone": (
        {ACQUIRE: ACQUIRE.replace("%q", "%one")},
        "TS514",
        "slot 0 of 'ring' is acquired in a round of phase 1, and the next one is round 0",
    ),
    "two releases": ({RELEASE: RELEASE + RELEASE}, "TS514", f"round 0 of {SLOT} is released twice"),
    "a release in vain": ({WAIT: EARLY + WAIT}, "TS514", f"round 0 of {SLOT} is released and was never waited for"),
    "a read before the wait": ({WAIT: "", RELEASE: WAIT + RELEASE}, "TS502", "'at_' is used while an asynchronous"),
    "a read after the release": ({RELEASE: "", READ: EARLY + READ}, "TS502", "'at_' is used while an asynchronous"),
    "an error of the producer": ({"mul %k, %columns": "floordiv %k, %start"}, "TS401", "divides by zero"),
    "no such slot": ({ACQUIRE: ACQUIRE.replace("%t", "%blocks")}, "TS504", "'ring' has 3 slots and no number 5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_protocols(name: str) -> None:
    """Found in every order, though not always in the same way."""
    edits, code, message = BROKEN[name]
    kernel = texts.kernel(3, edits)
    before = threading.active_count()
    for seed in SEEDS:
        with pytest.raises(SourceError) as caught:
            texts.run(kernel, 100, seed)
        assert threading.active_count() == before
        assert caught.value.loc is not None and caught.value.loc.line > 20
        if seed is None:
            assert caught.value.code == code and message in caught.value.message, caught.value


@pytest.mark.parametrize(
    ("stages", "waited", "code", "message"),
    [
        (5, 4, "TS514", "round 0 of slot 4 of 'ring' (which holds 'at', 'bt') is acquired, and nobody waits for it"),
        (3, 1, "TS513", "cannot be filled: nobody waits for it in round 0; 'compute' has ended"),
    ],
)
def test_slots_that_nobody_waits_for(stages: int, waited: int, code: str, message: str) -> None:
    """Consumers that take fewer blocks of a tile than the producer loads."""
    fewer = f"  %fewer: i64 = constant {{value = {waited}, dtype = i64}}\n"
    edits = {
        "  %tiles: i64": f"{fewer}  %tiles: i64",
        "for %start, %blocks, %step, %empty": "for %start, %fewer, %step, %empty",
    }
    with pytest.raises(SourceError) as caught:
        texts.run(texts.kernel(stages, edits), 3 * texts.ROWS)
    assert caught.value.code == code and message in caught.value.message
