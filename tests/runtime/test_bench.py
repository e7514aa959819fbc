"""Benchmarks on a machine without a GPU: who is checked, timed, searched and kept, and what the files hold."""

import json
import math
import os
import xml.etree.ElementTree as ElementTree

import ml_dtypes
import numpy as np
import pytest

from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.runtime import bench_device, bench_machine, launch
from tessera.runtime.bench import FAILED, OK, WRONG, Bench, Options, Result, Row, as_json, difference, ratio
from tessera.runtime.bench_case import FLOOR, OURS, RIVAL, UNTUNED, Entrant, WrongAnswer
from tessera.runtime.bench_device import Peaks
from tessera.runtime.bench_plot import marks, plot
from tessera.runtime.bench_search import Compilers, NoSchedule, load_file, search
from tessera.runtime.bench_store import Results, Winners
from tests.runtime import fake_bench
from tests.runtime.fake_bench import entrant, problem, searched_rival

GPU = launch.device_count() > 0


@pytest.fixture
def device():
    return fake_bench.Device()


@pytest.fixture
def winners(tmp_path, device):
    return Winners(tmp_path / "competitors.json", device.facts)


def measured(device, winners, *entrants, compilers=None, **options):
    """The row of a problem with these entrants."""
    bench = Bench(device, device.peaks(), winners, compilers or fake_bench.Compilers(), Options(**options))
    case = fake_bench.case(device, make=lambda device, dims: problem(*entrants))
    return bench.measure(case, case.rows[0])


# ---- who is timed ------------------------------------------------------------------------------------------------


def test_times_are_medians_with_their_spread(device, winners):
    times = iter([*[500.0] * 4, 10, 30, 20, 1000, 40, 500.0])  # a check, three warm rounds, five timed ones, a check
    row = measured(device, winners, entrant(device, "own", OURS, lambda: next(times)), repeats=5)
    (result,) = row.results
    assert (result.us, result.least_us, result.status) == (30, 10, OK)
    assert result.spread == pytest.approx((520 - 15) / 2 / 30)  # quartiles, by the exclusive rule


def test_everybody_has_a_turn_in_every_round(device, winners):
    own, rival = entrant(device, "own", OURS, 5.0), entrant(device, "eager", RIVAL, 7.0)
    measured(device, winners, own, rival, repeats=4)
    assert device.order == [5.0, 7.0] * (3 + 4)


def test_a_floor_is_scaled_and_not_compared(device, winners):
    own, floor = entrant(device, "own", OURS, 50.0), entrant(device, "stream", FLOOR, 20.0, factor=9.0, scale=1.5)
    row = measured(device, winners, own, floor)
    assert row.ok and row.named("stream").us == pytest.approx(30.0) and row.named("stream").error is None
    assert row.best_rival() is None


def test_pins_of_a_case_that_has_none_to_fix(device, winners):
    row = measured(device, winners, entrant(device, "own", OURS, 50.0), pins={"family": "wgmma"})
    assert not row.ok and row.results == [] and "this case has none to fix" in row.message


@pytest.mark.parametrize("factor", [1.02, 0.98, math.nan, math.inf])
def test_a_wrong_rival_has_no_time_and_is_not_the_best(device, winners, factor):
    rivals = [entrant(device, "cheat", RIVAL, 1.0, factor), entrant(device, "eager", RIVAL, 80.0)]
    row = measured(device, winners, entrant(device, "own", OURS, 50.0), *rivals)
    cheat = row.named("cheat")
    assert (cheat.status, cheat.us, cheat.message) == (WRONG, None, "the answer differs from the reference")
    assert row.best_rival().name == "eager" and row.ok and 1.0 not in device.order
    assert ratio(row.best_rival(), row.ours[0]) == pytest.approx(1.6) and ratio(cheat, row.ours[0]) is None


@pytest.mark.parametrize("kind", [OURS, UNTUNED])
def test_a_wrong_answer_of_ours_fails_the_row(device, winners, kind):
    row = measured(device, winners, entrant(device, "own", OURS, 5.0), entrant(device, "bad", kind, 5.0, 1.1))
    assert not row.ok and row.named("own").status == OK


def test_an_answer_that_turns_wrong_while_it_is_timed_loses_its_time(device, winners):
    calls = []

    def prepare():
        right = entrant(device, "racy", OURS, 5.0).prepare()

        def call():
            calls.append(1)
            return right.call() * (1.0 if len(calls) < 10 else 2.0)

        return type(right)(call, right.poison)

    row = measured(device, winners, Entrant("racy", OURS, prepare), repeats=20)
    assert (row.results[0].status, row.results[0].us) == (WRONG, None)


def test_an_answer_that_was_not_written_is_wrong(device, winners):
    """What an earlier call left behind must not count: memory is poisoned before each check."""

    def prepare():
        first = entrant(device, "lazy", OURS, 5.0).prepare()
        kept = first.call()
        return type(first)(lambda: kept, first.poison)

    row = measured(device, winners, Entrant("lazy", OURS, prepare))
    assert row.results[0].status == WRONG and math.isnan(row.results[0].error.norm)


def test_who_fails_says_why_and_the_others_are_timed(device, winners):
    def broken():
        raise ImportError("No module named 'triton'\nlong story")

    def checked_itself():
        raise WrongAnswer("wrong at N=4: error 2, bound 1")

    row = measured(
        device,
        winners,
        entrant(device, "own", OURS, 5.0),
        Entrant("missing", RIVAL, broken),
        Entrant("found out", RIVAL, checked_itself),
        entrant(device, "dies", RIVAL, RuntimeError("illegal address")),
    )
    found = {result.name: (result.status, result.message) for result in row.results}
    assert row.ok and row.named("own").us == 5.0
    assert found["missing"] == (FAILED, "ImportError: No module named 'triton'")
    assert found["found out"] == (WRONG, "wrong at N=4: error 2, bound 1")
    assert found["dies"] == (FAILED, "RuntimeError: illegal address")


def test_a_row_that_cannot_be_made_says_so(device, winners):
    case = fake_bench.case(device)
    bench = Bench(device, device.peaks(), winners, fake_bench.Compilers(), Options())
    row = bench.measure(case, {"D": 13, "stored": "nn"})
    assert (row.ok, row.message, row.results) == (False, "MemoryError: no room for D = 13", [])


def test_rivals_are_chosen_and_ours_are_always_there(device, winners):
    case = fake_bench.case(device)
    for options, wanted in (
        (Options(rivals=frozenset({"eager"})), ["own", "own untuned", "eager"]),
        (Options(rivals=frozenset()), ["own", "own untuned"]),
        (Options(without=frozenset({"compile", "searched"})), ["own", "own untuned", "eager", "cheat", "stream"]),
    ):
        bench = Bench(device, device.peaks(), winners, fake_bench.Compilers(), options)
        assert [result.name for result in bench.measure(case, case.rows[0]).results] == wanted


# ---- errors of answers -------------------------------------------------------------------------------------------


def test_the_norm_and_the_worst_element():
    reference = np.array([3.0, -4.0, 0.0, 0.0])
    error = difference(np.array([3.0, -4.0, 0.5, 0.0], np.float32), reference)
    assert (error.norm, error.worst) == (pytest.approx(0.1), pytest.approx(0.125)) and not error.ok
    assert difference(reference.astype(ml_dtypes.bfloat16), reference).ok


def test_one_wrong_tile_among_thousands_shows_in_the_worst_element():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((2048, 2048))
    answer = reference.copy()
    answer[:8, :16] = rng.standard_normal((8, 16))
    error = difference(answer, reference)
    assert error.norm < 1e-2 and not error.ok


@pytest.mark.parametrize(
    ("answer", "ok"), [(np.zeros(3), True), (np.ones(3), False), (np.zeros(4), False), (np.full(3, np.nan), False)]
)
def test_references_of_zeros_and_other_shapes(answer, ok):
    assert difference(answer, np.zeros(3)).ok is ok


def test_nothing_to_compare():
    assert difference(np.zeros((0, 4)), np.zeros((0, 4))).ok


# ---- searched rivals ---------------------------------------------------------------------------------------------


def right(answer):
    return difference(answer, np.arange(1.0, 5.0)).ok


def test_the_search_takes_the_fastest_right_schedule_and_refines_it(device):
    compilers, rival = fake_bench.Compilers(), searched_rival(device)
    found = search(rival.searched, rival.prepare(), right, device, compilers)
    # 128 leaves the answer of the one before it, which poisoned memory shows; of the others, 64 in groups of 4 is best.
    assert found.schedule == {"tile": 64, "group": 4} and found.us == pytest.approx(400 / 64 / 2)
    assert (found.tried, found.wrong, found.impossible) == (5, 1, 1)
    assert [key for key, _ in compilers.compiled] == ["pretended D=4", "pretended D=4 refined"]
    assert compilers.compiled[1][1] == ({"tile": 64, "group": 4}, {"tile": 32, "group": 4})


def test_slow_schedules_are_cut_after_a_few_runs(device):
    log = []
    rival = searched_rival(device, wrong=(), impossible=(), log=log)
    search(rival.searched, rival.prepare(), right, device, fake_bench.Compilers())
    reversed_log = []
    rival = searched_rival(device, wrong=(), impossible=(), log=reversed_log)
    backwards = type(rival.searched)(**{**vars(rival.searched), "schedules": fake_bench.SCHEDULES[::-1]})
    search(backwards, rival.prepare(), right, device, fake_bench.Compilers())
    slow = {"tile": 16, "group": 1}
    assert (log.count(slow), reversed_log.count(slow)) == (1 + 4 + 10, 1 + 4)  # a check, a warm and 3 runs, 10 more


def test_no_schedule_is_right(device):
    rival = searched_rival(device, wrong=(32, 64, 128))
    with pytest.raises(NoSchedule, match="of 4 schedules 3 ran, and 3 of them were wrong: RuntimeError: out of"):
        search(rival.searched, rival.prepare(), right, device, fake_bench.Compilers())


def test_a_winner_is_kept_and_taken_again(device, winners, tmp_path):
    own = entrant(device, "own", OURS, 5.0)
    first = measured(device, winners, own, searched_rival(device)).named("searched")
    assert first.facts["stored"] is False and first.facts["wrong"] == 1 and first.us == pytest.approx(400 / 64 / 2)
    (kept,) = json.loads((tmp_path / "competitors.json").read_text())["winners"]
    assert kept["schedule"] == {"tile": 64, "group": 4} and (kept["gpu"], kept["maker"]) == ("Pretend 100", "1.0")
    log = []
    again = Winners(tmp_path / "competitors.json", device.facts)
    second = measured(device, again, own, searched_rival(device, log=log)).named("searched")
    assert second.facts == {"schedule": {"tile": 64, "group": 4}, "stored": True} and second.us == first.us
    assert {tuple(schedule.values()) for schedule in log} == {(64, 4)}


def test_retune_searches_again(device, winners):
    own = entrant(device, "own", OURS, 5.0)
    measured(device, winners, own, searched_rival(device))
    log = []
    row = measured(device, winners, own, searched_rival(device, log=log), retune=True)
    assert row.named("searched").facts["stored"] is False and len({tuple(s.values()) for s in log}) > 1


@pytest.mark.parametrize("facts", [{"gpu": "Pretend 200"}, {"maker": "1.1"}])
def test_a_winner_holds_for_its_gpu_and_versions(device, winners, tmp_path, facts):
    measured(device, winners, entrant(device, "own", OURS, 5.0), searched_rival(device))
    other = fake_bench.Device(**facts)
    elsewhere = Winners(tmp_path / "competitors.json", other.facts)
    rival = searched_rival(other)
    assert elsewhere.get(rival.searched) is None and winners.get(rival.searched) is not None
    measured(other, elsewhere, entrant(other, "own", OURS, 5.0), rival)
    assert len(json.loads((tmp_path / "competitors.json").read_text())["winners"]) == 2


def test_a_stored_winner_that_is_wrong_today_is_searched_anew(device, winners):
    own = entrant(device, "own", OURS, 5.0)
    measured(device, winners, own, searched_rival(device))
    result = measured(device, winners, own, searched_rival(device, wrong=(64, 128))).named("searched")
    assert result.status == OK and result.facts["schedule"] == {"tile": 32, "group": 4}
    assert winners.get(searched_rival(device).searched) == {"tile": 32, "group": 4}


def test_schedules_are_compiled_ahead_only_where_they_are_searched(device, winners):
    case, compilers = fake_bench.case(device), fake_bench.Compilers()
    Bench(device, device.peaks(), winners, compilers, Options()).queue(case, case.rows[0])
    assert compilers.queued == ["pretended D=4"]
    measured(device, winners, searched_rival(device))
    for options, queued in (
        (Options(), []),
        (Options(retune=True), ["pretended D=4"]),
        (Options(retune=True, rivals=frozenset()), []),
    ):
        compilers = fake_bench.Compilers()
        Bench(device, device.peaks(), winners, compilers, options).queue(case, case.rows[0])
        assert compilers.queued == queued


def test_other_processes_compile(tmp_path):
    """One schedule cannot be compiled; a process that dies costs its share, and the next search starts anew."""
    searched = fake_bench.searched()
    searched = type(searched)(**{**vars(searched), "dims": {"folder": str(tmp_path)}})
    compilers = Compilers(1)
    try:
        compilers.queue(searched)
        assert compilers.compile(searched) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["128", "32", "64"]
        assert (tmp_path / "32").read_text() != str(os.getpid())
        deadly = type(searched)(**{**vars(searched), "schedules": ({"tile": 7},)})
        assert compilers.compile(deadly) == 0
        (tmp_path / "64").unlink()
        assert compilers.compile(searched) == 3 and (tmp_path / "64").exists()
    finally:
        compilers.close()


def test_a_file_is_loaded_once(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text("value = object()\n")
    assert load_file(path).value is load_file(path).value
    path.with_name("broken.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_file(path.with_name("broken.py"))


# ---- files -------------------------------------------------------------------------------------------------------


def row_of(d, us):
    return {"dims": {"D": d}, "us": us}


def test_results_replace_rows_of_the_same_dims_and_keep_the_others(tmp_path):
    path = tmp_path / "deep" / "case.json"
    first = Results(path, "case")
    first.put(row_of(1, 10.0), {"gpu": "old"})
    first.put(row_of(2, math.nan), {"gpu": "old"})
    second = Results(path, "case")
    second.put(row_of(2, 20.0), {"gpu": "new"})
    content = json.loads(path.read_text())
    assert content["rows"] == [{**row_of(1, 10.0), "machine": 0}, {**row_of(2, 20.0), "machine": 1}]
    assert content["machines"] == [{"gpu": "old"}, {"gpu": "new"}] and content["case"] == "case"
    second.put(row_of(1, 11.0), {"gpu": "new"})
    content = json.loads(path.read_text())
    assert content["machines"] == [{"gpu": "new"}] and {row["machine"] for row in content["rows"]} == {0}
    assert [item.name for item in path.parent.iterdir()] == ["case.json"]


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    Results(tmp_path / "case.json", "case").put(row_of(1, [math.inf, math.nan, 1.5]), {})
    text = (tmp_path / "case.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["rows"][0]["us"] == [None, None, 1.5]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "rows": [], "machines": []}'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "case.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match="TS605.*case.json"):
        Results(path, "case")
    assert path.read_text() == text


# ---- rooflines, and what a row says ------------------------------------------------------------------------------


def test_the_roofline_is_the_slower_of_memory_and_products(device, winners):
    peaks = Peaks(1e12, 100e12, "")
    assert peaks.least_us(10_000_000, 0) == pytest.approx(10.0)
    assert peaks.least_us(10_000_000, 2_000_000_000) == pytest.approx(20.0)
    row = measured(device, winners, entrant(device, "own", OURS, 40.0))
    assert row.roofline(row.ours[0]) == pytest.approx(0.5)


def test_products_at_another_rate_have_another_roofline(device, winners):
    bench = Bench(device, device.peaks(), winners, fake_bench.Compilers(), Options())

    def make(device, dims):
        return problem(entrant(device, "own", OURS, 40.0), flops=6_000_000_000, rate=2)

    found = as_json(bench.measure(case := fake_bench.case(device, make=make), case.rows[0]))
    assert (found["roofline_us"], found["product_flops_per_s"]) == (pytest.approx(30.0), 200e12)
    assert found["product_rate_of"] == "2 x a pretended product"


def test_a_row_as_json(device, winners):
    case = fake_bench.case(device)
    bench = Bench(device, device.peaks(), winners, fake_bench.Compilers(), Options())
    found = as_json(bench.measure(case, case.rows[0]))
    by_name = {item["name"]: item for item in found["entrants"]}
    assert (found["case"], found["ok"], found["dims"]) == ("pretended", True, {"D": 4, "stored": "nn"})
    assert (found["bytes"], found["flops"], found["roofline_us"]) == (10_000_000, 2_000_000_000, 20.0)
    assert by_name["own"]["ratio"] == 1.0 and by_name["own untuned"]["ratio"] == 1.5
    assert by_name["eager"]["ratio"] == 3.0 and by_name["stream"]["us"] == 50.0
    assert by_name["cheat"]["status"] == "wrong" and by_name["cheat"]["norm_error"] == pytest.approx(0.1)
    assert by_name["searched"]["facts"]["schedule"] == {"tile": 32, "group": 4}


def test_the_plot_has_a_mark_for_each_who_was_timed(device, winners):
    case = fake_bench.case(device)
    bench = Bench(device, device.peaks(), winners, fake_bench.Compilers(), Options())
    rows = [bench.measure(case, dims) for dims in case.rows]
    rows.append(Row("bytes only", {}, device.peaks(), 100, 0, [Result("own", OURS, us=5.0)]))
    text = plot(rows, device.peaks(), "<Roofline> & more")
    root = ElementTree.fromstring(text)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(marks(rows)) == 3 * 5  # but of the wrong one, the floor, and the row without operations
    for circle in circles:
        assert 0 < float(circle.get("cx")) < 900 and 0 < float(circle.get("cy")) < 560
    labels = [item.text for item in root.findall("{http://www.w3.org/2000/svg}text")]
    assert "<Roofline> & more" in labels and "100 Tflop/s, 1.00 TB/s" in labels and "cheat" not in labels
    assert "pretended D=4,stored=nn: own 100.0 us" in [circle[0].text for circle in circles]


def test_a_plot_of_nothing_shows_the_roof(device):
    assert ElementTree.fromstring(plot([], device.peaks(), "empty")) is not None


def test_the_sources_name_their_commit():
    found = bench_machine.sources()
    assert set(found) == {"commit", "sources"}
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12
    assert bench_machine.version("numpy") == np.__version__ and bench_machine.version("no-such-package") is None


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
def test_without_a_gpu():
    with pytest.raises(EnvironmentProblem, match="TS505"):
        bench_device.open_device()


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_gpu_copies_at_a_possible_speed():
    import cupy

    device = bench_device.open_device()
    peaks = device.peaks()
    assert 1e11 < peaks.copy < 1e14 and 1e12 < peaks.product < 1e16
    small, large = (cupy.zeros(count, cupy.uint8) for count in (1 << 20, 1 << 28))
    times = device.timed([lambda: small.fill(1), lambda: large.fill(1)], 7)
    assert [len(samples) for samples in times] == [7, 7]
    assert all(0 < few < many for few, many in zip(*times, strict=True))
    facts = json.loads(json.dumps(dict(device.facts)))
    assert facts["gpu"] and facts["nvrtc"] and facts["multiprocessors"] > 0
