"""Tuning on a real GPU: its memory and clock, what a call finds, and a planted wrong candidate."""

from dataclasses import replace

import numpy as np
import pytest

from tessera import search as searching
from tessera.config import of_environment
from tessera.runtime import api, autotune, autotune_calls, autotune_store, launch, programs
from tessera.runtime.autotune_calls import Bench
from tessera.runtime.autotune_measure import CupyDevice
from tessera.runtime.autotune_report import MEASURED, OK, UNMEASURED, WRONG
from tessera.runtime.cache import Cache
from tests.runtime.fake_tuning import make_add, make_double

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(launch.device_count() == 0, reason="needs a GPU")]


@pytest.fixture(autouse=True)
def tuning(monkeypatch):
    """As a call tunes where nobody says otherwise."""
    monkeypatch.delenv("TESSERA_TUNE", raising=False)
    of_environment.cache_clear()
    yield
    of_environment.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    made = Cache(tmp_path / "entries", 1 << 28)
    for module in (autotune_store, programs):
        monkeypatch.setattr(module, "open_cache", lambda: made)
    monkeypatch.setattr(autotune_store, "source_digest", lambda: "these sources")
    return made


@pytest.fixture
def reports(monkeypatch):
    """Every report of a tuning."""
    found, real = [], autotune.tune

    def tune(*given, **options):
        found.append(real(*given, **options))
        return found[-1]

    monkeypatch.setattr(autotune, "tune", tune)
    return found


def test_memory_and_clock(cache):
    device = CupyDevice(0, 0, api.device_arch(0))
    for size in (1, 15, 16, 1000, (1 << 20) + 7):
        values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        a, b = device.allocate(size), device.allocate(size)
        device.write(a.pointer, values)
        device.copy(b.pointer, a.pointer, size)
        assert device.same(a.pointer, b.pointer, size) and (device.read(b.pointer, size) == values).all()
        for place in {0, size // 2, size - 1}:
            other = values.copy()
            other[place] ^= 1
            device.write(b.pointer, other)
            assert not device.same(a.pointer, b.pointer, size), (size, place)
        device.fill(b.pointer, 0xFF, size)
        assert (device.read(b.pointer, size) == 0xFF).all()
    large = device.allocate(1 << 28)
    seconds = device.seconds(lambda: device.fill(large.pointer, 0, 1 << 28))
    assert 20e-6 < seconds < 5e-3
    with pytest.raises(MemoryError):
        device.allocate(1 << 50)


def test_a_call_measures_once(cache, reports):
    import cupy

    double, x = make_double(), cupy.arange(1 << 20, dtype=np.float32)
    for _ in range(2):
        assert bool((double(x) == x * 2).all())
    choice = api.last_run(double).choice
    (report,) = reports
    assert choice.origin == MEASURED and report.gpu == autotune_calls.gpu_name(0)
    assert report.checked.startswith("error bars at N=") and report.counts()[OK] >= 1 and WRONG not in report.counts()
    best = report.rows[report.winner]
    assert 1e-6 < best.seconds < 1e-3 and best.registers > 0 and best.spill_bytes == 0
    assert bool((make_double()(x) == x * 2).all()) and len(reports) == 1


def test_arrays_of_the_host_and_in_out_parameters(cache, reports):
    double, x = make_double(), np.arange(1000, dtype=np.float32)
    assert (double(x) == x * 2).all() and api.last_run(double).choice.origin == MEASURED
    import cupy

    add, total = make_add(), cupy.ones(1 << 20, np.float32)
    add(cupy.full(1 << 20, 3, np.float32), total)
    assert bool((total == 4).all()) and len(reports) == 2


def test_a_planted_wrong_candidate_never_wins(cache, reports, monkeypatch):
    import cupy

    def planted(subject, workers):
        found = searching.search(subject.definition, subject.dims, subject.arch, **subject.options())
        first = found.candidates[0]
        bad = replace(first.program, cuda=first.program.cuda.replace("2.0f", "2.5f").replace(" 2.f", " 2.5f"))
        assert bad != first.program
        wrong = replace(first, program=bad, cost=replace(first.cost, seconds=1e-9))
        return replace(found, candidates=(wrong, *found.candidates))

    monkeypatch.setattr(autotune, "search_all", planted)
    double, x = make_double(), cupy.arange(1 << 20, dtype=np.float32)
    assert bool((double(x) == x * 2).all())
    (report,) = reports
    assert report.rows[0].verdict == WRONG and report.winner != 0


def test_nothing_is_measured_in_a_captured_stream(cache, reports):
    import cupy

    double, x = make_double(), cupy.arange(1 << 16, dtype=np.float32)
    out = cupy.empty_like(x)
    double(x, out)
    stream = cupy.cuda.Stream(non_blocking=True)
    other, result = cupy.arange(1 << 15, dtype=np.float32), cupy.empty(1 << 15, np.float32)
    with stream:
        stream.begin_capture()
        try:
            assert autotune_calls.is_captured(Bench(0, stream.ptr, lambda: None))
            double(other, result)
        finally:  # a capture that stays open fails every test behind this one
            graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    assert bool((result == other * 2).all()) and len(reports) == 1
    assert api.last_run(double).choice.origin not in (MEASURED, UNMEASURED)
