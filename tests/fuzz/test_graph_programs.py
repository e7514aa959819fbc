"""Random functions: the text law, `precision`, the plans on the interpreter and as emitted CUDA.

The first failure is shrunk, so what a report shows is a small program.
"""

from __future__ import annotations

import pytest

from tests.fuzz.graph_program import GraphProgram, smaller
from tests.fuzz.graph_programs import graph_program
from tests.fuzz.graph_running import checked, emulate, failure, report

BATCH, BATCHES = 30, 10
EMULATED, EMULATED_BATCHES = 10, 3
SMALL = 12  # ops, of a program that is built for the emulator
FIRST_EMULATED = 1_000_000  # seeds of those begin here


def pytest_generate_tests(metafunc):
    """Ten times as many batches with `-m full`."""
    for name, count in (("batch", BATCHES), ("emulated_batch", EMULATED_BATCHES)):
        if name in metafunc.fixturenames:
            if "full" in metafunc.config.option.markexpr:
                metafunc.parametrize(name, [pytest.param(n, marks=pytest.mark.full) for n in range(10 * count)])
            else:
                metafunc.parametrize(name, range(count))


def test_random_functions_keep_every_law(batch):
    for number in range(BATCH):
        program = graph_program(batch * BATCH + number)
        if (error := failure(program)) is not None:
            pytest.fail(f"{type(error).__name__}: {report(program, lanes=False, tries=400)}")


def test_emitted_cuda_of_random_functions(emulated_batch):
    first = FIRST_EMULATED + emulated_batch * EMULATED
    runs = [run for seed in range(first, first + EMULATED) for run in checked(graph_program(seed, SMALL))]
    try:
        emulate(runs)
    except Exception as error:
        program = getattr(error, "program", None)
        if program is None:
            raise
        pytest.fail(f"{type(error).__name__}: {report(program, lanes=True, tries=40)}")


def test_a_program_is_a_function_of_its_seed():
    assert str(graph_program(5)) == str(graph_program(5))
    assert len({graph_program(seed).text for seed in range(20)}) == 20


def _weight(program: GraphProgram) -> tuple[int, int, int]:
    ops = program.function.body.ops
    return len(ops[-1].operands), len(ops), sum(program.dims.values())


def test_every_smaller_program_is_legal_and_smaller():
    program = graph_program(4)
    for candidate in smaller(program):
        assert failure(candidate) is None
        assert _weight(candidate) < _weight(program)
