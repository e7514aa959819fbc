"""Random typed programs: every pass keeps every bit, the text law holds, answers are right, and the CUDA agrees.

Programs come in batches of twenty that share one build. The first failure of a batch is shrunk by itself, so what a
report shows is a small program.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.generator import ALL_FLOATS, FLOATS, programs
from tests.fuzz.running import emulate, prepared
from tests.fuzz.vocabulary import Program

BATCH = 20
BATCHES = 11  # hypothesis draws a few programs twice: 200 are left
COMMON = settings(deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck))


def dtypes_of(batch: int) -> tuple[str, ...]:
    """Half of the batches keep to the two common dtypes, whose tiles meet more often."""
    return ALL_FLOATS if batch % 2 else FLOATS


def drawn(batch: int, count: int = BATCH) -> list[Program]:
    """The programs of a batch, the same on every run."""
    found: dict[str, Program] = {}

    @seed(batch)
    @settings(COMMON, max_examples=count, phases=[Phase.generate])
    @given(programs(dtypes_of(batch)))
    def collect(program: Program) -> None:
        found[str(program)] = program

    collect()
    return list(found.values())


def shrink(batch: int, count: int = BATCH) -> None:
    """Fails with the smallest program that hypothesis finds from the same draws."""

    @seed(batch)
    @settings(COMMON, max_examples=count, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)
    @given(programs(dtypes_of(batch)))
    def check_alone(program: Program) -> None:
        emulate([prepared(program)])

    check_alone()


def check_batch(batch: int) -> None:
    try:
        emulate([prepared(program, f"program_{number}") for number, program in enumerate(drawn(batch))])
    except Exception:
        shrink(batch)
        raise


def pytest_generate_tests(metafunc):
    """Ten times as many batches with `-m full`."""
    if "full" in metafunc.config.option.markexpr:
        metafunc.parametrize("batch", [pytest.param(n, marks=pytest.mark.full) for n in range(10 * BATCHES)])
    else:
        metafunc.parametrize("batch", range(BATCHES))


def test_random_programs_agree_on_every_lane(batch):
    check_batch(batch)
