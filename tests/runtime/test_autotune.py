"""The policy of tuning on a make-believe GPU: what wins, what is cut, and that nothing that is wrong ever wins."""

import numpy as np
import pytest

from tessera.errors import InternalError
from tessera.runtime import autotune, autotune_check
from tessera.runtime.autotune_report import CUT, FAILED, MEASURED, OK, PRUNED, UNTRIED, WRONG, Report
from tests.runtime.fake_tuning import (
    LIMITED,
    Behaviour,
    Device,
    Pruned,
    Setup,
    added,
    cubin_of,
    make_add,
    make_double,
    right,
)


def verdicts(report):
    return [row.verdict for row in report.rows]


def test_the_fastest_right_candidate_wins():
    setup = Setup(make_double(), pruned=(Pruned({"BLOCK": 256}, {}, "needs 300000 bytes"),))
    setup.behave(Behaviour(right, 3e-3), Behaviour(right, 2e-3), Behaviour(right, 2.5e-3))
    before = {name: array.memory.copy() for name, array in setup.arrays.items()}
    heard = []
    report = setup.tune(progress=lambda *state: heard.append(state))
    assert verdicts(report) == [OK, OK, OK, PRUNED] and report.winner == 1
    assert report.choice.constants == {"BLOCK": 64} and report.choice.origin == MEASURED and report.measured
    assert report.choice.schedule["warps"] == 4 and report.gpu == "Fake GPU" and "Fake GPU" in report.choice.note
    row = report.rows[1]
    assert (row.seconds, row.registers, row.spill_bytes, row.predicted) == (2e-3, 40, 12, 64e-6)
    assert report.rows[3].reason == "needs 300000 bytes" and report.counts() == {OK: 3, PRUNED: 1}
    assert report.checked.startswith("error bars at N=") and setup.compiler.closed
    assert heard[0] == (0, 3, None) and heard[-1] == (3, 3, 2e-3)
    for name, array in setup.arrays.items():  # what the caller passed stays as it was, outputs too
        assert array.memory.tobytes() == before[name].tobytes()
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("first", [False, True])
def test_a_wrong_candidate_never_wins(first):
    def wrong(memory):
        right(memory)
        memory["out"][-1] += 1e-3

    setup = Setup(make_double())
    others = [Behaviour(right, 3e-3), Behaviour(right, 3e-3)]
    setup.behave(*([Behaviour(wrong, 1e-6), *others] if first else [*others, Behaviour(wrong, 1e-6)]))
    report = setup.tune()
    assert verdicts(report) == ([WRONG, OK, OK] if first else [OK, OK, WRONG])
    bad = report.rows[0 if first else 2]
    assert bad.seconds is None and "'out' at [" in bad.reason and "is allowed" in bad.reason
    assert report.choice.constants["BLOCK"] != (32 if first else 128)


def test_wrong_where_only_the_full_problem_shows_it(monkeypatch):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 1000)

    def wrong(memory):
        right(memory)
        if memory["out"].size > 500:  # the small problem has fewer
            memory["out"][700] += 1e-3

    setup = Setup(make_double())
    setup.behave(Behaviour(right), Behaviour(wrong, 1e-6), Behaviour(right))
    report = setup.tune()
    assert (
        verdicts(report) == [OK, WRONG, OK] and "differs from the right answer by up to 0.001" in report.rows[1].reason
    )


def test_elements_that_nobody_writes_are_wrong():
    def partial(memory):
        memory["out"][1:] = memory["x"][1:] * 2

    setup = Setup(make_double())
    setup.behave(Behaviour(right), Behaviour(partial, 1e-6), Behaviour(right))
    report = setup.tune()
    assert verdicts(report) == [OK, WRONG, OK] and "'out' at [0] is inf off" in report.rows[1].reason


class Allowed:
    ok = True


def test_bits_may_differ_within_the_bars_if_they_repeat(monkeypatch):
    def near(memory):
        right(memory)
        memory["out"][...] = np.nextafter(memory["out"], np.float32(np.inf))

    flips = iter(range(10**6))

    def shaky(memory):
        (near if next(flips) % 2 else right)(memory)

    setup = Setup(make_double())
    setup.behave(Behaviour(right), Behaviour(near, 1e-4), Behaviour(shaky, 1e-6))
    # 2 x is exact, and its bar the rounding of a store: no other bits are right.
    monkeypatch.setattr(autotune_check, "check", lambda array, bar: Allowed())
    report = setup.tune()
    assert verdicts(report) == [OK, OK, WRONG]
    assert report.rows[1].reason == "bits differ within the error bars"
    assert report.rows[2].reason == "two runs differ in 'out'"


def test_a_slow_candidate_is_cut():
    setup = Setup(make_double())
    behaviours = Behaviour(right, 1e-3), Behaviour(right, 1.6e-3), Behaviour(right, 1.4e-3)
    setup.behave(*behaviours)
    report = setup.tune()
    assert verdicts(report) == [OK, CUT, OK] and report.rows[1].seconds == 1.6e-3
    # Two runs check an answer; the first ones are timed, and all of them unless it is cut; then come the last rounds.
    assert behaviours[1].runs == 2 + 3 and behaviours[2].runs == 2 + 10 + 15
    assert report.choice.constants == {"BLOCK": 32}


def test_the_budget_counts_what_was_timed():
    setup = Setup(make_double(), budget=autotune.Budget(candidates=1))
    setup.behave(Behaviour(right), Behaviour(right, 1e-6), Behaviour(right))
    report = setup.tune()
    assert verdicts(report) == [OK, UNTRIED, UNTRIED] and "1 candidates" in report.rows[1].reason


def test_wrong_candidates_do_not_count():
    setup = Setup(make_double(), budget=autotune.Budget(candidates=1))
    setup.behave(Behaviour(lambda memory: None), Behaviour(right), Behaviour(right))
    assert verdicts(setup.tune()) == [WRONG, OK, UNTRIED]


def test_the_budget_ends_with_the_time():
    setup = Setup(make_double(), budget=autotune.Budget(seconds=10))

    def slow(memory):
        setup.clock.now += 1
        right(memory)

    setup.behave(Behaviour(slow), Behaviour(right, 1e-6), Behaviour(right))
    report = setup.tune()
    # The default point and the one that is predicted to be the fastest are tried whatever it takes.
    assert verdicts(report) == [OK, OK, UNTRIED] and "the budget of 10 s was used up" in report.rows[2].reason
    assert report.seconds > 10 and report.measured


def test_what_does_not_compile():
    setup = Setup(make_double())
    setup.behave(Behaviour(right), Behaviour(right, 1e-6), Behaviour(right))
    setup.compiler.failing[cubin_of(setup.candidates[1].program)] = "its process ended with signal 11"
    report = setup.tune()
    assert verdicts(report) == [OK, FAILED, OK]
    assert report.rows[1].reason == "it does not compile: its process ended with signal 11"
    assert report.rows[1].registers is None


def limited(setup, *numbers):
    """The behaviours of candidates where their waits have a limit: by default they are right."""
    found = []
    for number in numbers:
        cubin = cubin_of(setup.candidates[number].program)
        setup.compiler.limited.add(cubin)
        found.append(setup.device.driver.behaviours.setdefault(cubin + LIMITED, Behaviour(right)))
    return found


def never(memory):
    raise AssertionError("this launch never returns")


def test_a_candidate_that_never_ends_is_never_started():
    """Its waits are given up in a program of its own, which leaves out what they were for."""
    setup = Setup(make_double())
    setup.behave(Behaviour(right, 3e-3), Behaviour(never, 1e-6), Behaviour(right, 2e-3))
    first, second = limited(setup, 1, 2)
    first.compute = lambda memory: None
    report = setup.tune()
    assert verdicts(report) == [OK, WRONG, OK] and report.choice.constants == {"BLOCK": 128}
    assert report.rows[1].reason.startswith("where waits have a limit, 'out' at [0] is inf off")
    assert (first.runs, second.runs) == (1, 2)  # the small problem, and the full one too where that was right
    assert setup.device.driver.behaviours[cubin_of(setup.candidates[2].program)].runs == 2 + 10 + 15 + 1


def test_what_hangs_on_the_full_problem_alone(monkeypatch):
    monkeypatch.setattr(autotune_check, "MOST_ELEMENTS", 1000)
    setup = Setup(make_double())
    setup.behave(Behaviour(right), Behaviour(never), Behaviour(right))
    (found,) = limited(setup, 1)
    found.compute = lambda memory: right(memory) if memory["out"].size < 500 else None
    report = setup.tune()
    assert verdicts(report) == [OK, WRONG, OK] and "'out' differs from the right answer" in report.rows[1].reason
    assert found.runs == 3  # twice the full problem: whether it gives the same again


def test_nobody_votes_without_a_limit(monkeypatch):
    """Where no small problem can be made, the first few candidates run before any of them was checked."""
    monkeypatch.setattr(autotune_check, "small_dims", lambda *given: None)
    setup = Setup(make_double())
    setup.behave(Behaviour(never), Behaviour(right), Behaviour(right))
    (found,) = limited(setup, 0)
    found.compute = lambda memory: None
    report = setup.tune()
    assert verdicts(report) == [WRONG, OK, OK] and found.runs == 3


def test_nothing_right_is_an_error():
    setup = Setup(make_double())
    setup.behave(*[Behaviour(lambda memory: None)] * 3)
    with pytest.raises(InternalError, match="no candidate of double gives a right answer on Fake GPU") as caught:
        setup.tune()
    assert len(caught.value.notes) == 3 and caught.value.notes[0].startswith("BLOCK=32: 'out' at ")


def test_nothing_that_compiles_is_an_error():
    setup = Setup(make_double())
    setup.compiler.failing |= {cubin_of(c.program): "no" for c in setup.candidates}
    with pytest.raises(InternalError, match="no candidate of double compiles on Fake GPU"):
        setup.tune()


def test_the_default_point_says_what_is_right():
    """Without bars (a kernel that reads integers, say) the first one that runs is what others are compared with."""
    setup = Setup(make_double())
    setup.candidates.reverse()
    setup.behave(Behaviour(right), Behaviour(right), Behaviour(right))
    setup.tune()
    assert setup.compiler.submitted[0] == cubin_of(setup.candidates[-1].program)


def test_in_out_parameters_are_restored_before_each_run():
    setup = Setup(make_add())
    before = setup.arrays["total"].memory.copy()
    seen = []

    def watched(memory):
        if memory["total"].size == 1000:
            seen.append(memory["total"].tobytes())
        added(memory)

    setup.behave(Behaviour(watched, 2e-3), Behaviour(added, 1e-3), Behaviour(added, 3e-3))
    report = setup.tune()
    assert verdicts(report)[:2] == [OK, OK] and report.winner == 1
    assert len(seen) > 3 and set(seen) == {before.tobytes()}
    assert setup.arrays["total"].memory.tobytes() == before.tobytes()


def test_a_candidate_that_goes_wrong_while_it_is_timed():
    setup = Setup(make_double())
    behaviour = Behaviour(None, 1e-6)

    def tires(memory):
        right(memory)
        if behaviour.runs > 8:
            memory["out"][3] = 0

    behaviour.compute = tires
    setup.behave(Behaviour(right), behaviour, Behaviour(right))
    report = setup.tune()
    assert verdicts(report)[:2] == [OK, WRONG] and "after it was timed" in report.rows[1].reason


def test_a_gpu_without_room():
    setup = Setup(make_double(), device=Device(room=1000))
    setup.behave(*[Behaviour(right)] * 3)
    with pytest.raises(MemoryError):
        setup.tune()
    assert setup.compiler.closed
