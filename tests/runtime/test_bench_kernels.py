"""What a benchmark calls: kernels under a choice that was measured, kept or predicted, on a make-believe GPU too."""

from types import SimpleNamespace

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config
from tessera.runtime import api, arrays, autotune, autotune_calls, autotune_store, launch, plan
from tessera.runtime.autotune_report import MEASURED, UNMEASURED, Choice
from tessera.runtime.bench_kernels import choice_of, lane_of, tuned, untuned
from tessera.runtime.cache import Cache
from tests.runtime import fake_cuda


@ts.kernel
def double(x: Tensor["N", ts.f32], output: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64] * 2.0, output[start : start + 64])


@ts.kernel.autotune(space=dict(BLOCK=[32, 64], num_warps=[1, 2]), key=["N"])
def blocked(x: Tensor["N", ts.f32], output: Tensor["N", ts.f32]):
    ctx = tile.context()
    start = tile.program_id(0) * ctx.BLOCK
    tile.store(x[start : start + ctx.BLOCK] * 2.0, output[start : start + ctx.BLOCK])


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """No result of an earlier run."""
    cache = Cache(tmp_path / "entries", 1 << 24)
    monkeypatch.setattr(autotune_store, "open_cache", lambda: cache)


@pytest.fixture
def gpu(monkeypatch, kept):
    """What was measured; measuring finds that eight warps are the fastest."""
    library, measured = fake_cuda.Library(), []
    monkeypatch.setattr(arrays, "ADAPTERS", [library, *arrays.ADAPTERS])
    monkeypatch.setattr(plan, "READERS", dict(plan.READERS))
    monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(fake_cuda.Driver()))
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_80")
    monkeypatch.setattr(autotune_calls, "gpu_name", lambda ordinal: "Fake GPU")

    def measure(self, subject, question, bench, progress):
        measured.append((subject.dims, bench.ordinal, bench.bind().arrays["x"].shape))
        return SimpleNamespace(choice=Choice({}, {"warps": 8}, MEASURED, "on a pretended GPU"))

    monkeypatch.setattr(autotune_calls.Chooser, "measure", measure)
    return measured


def host():
    x = np.arange(100, dtype=np.float32)
    return x, np.full_like(x, np.nan)


def test_a_plain_kernel_gets_the_schedule_that_was_measured(gpu):
    made, said = tuned(double, (fake_cuda.aligned((100,)), fake_cuda.aligned((100,))))
    assert made.schedule == {"warps": 8} and double.schedule == {}
    assert said == "warps=8, measured: on a pretended GPU" and gpu == [({"N": 100}, 0, (100,))]


def test_nothing_is_measured_where_the_setting_forbids_it(gpu, monkeypatch):
    monkeypatch.setattr(autotune_calls, "config", lambda: Config(tune="off"))
    monkeypatch.setattr(autotune, "predict", lambda subject: Choice({}, {"warps": 2}, UNMEASURED, "predicted"))
    made, said = tuned(double, (fake_cuda.aligned((100,)), fake_cuda.aligned((100,))))
    assert gpu == [] and made.schedule == {"warps": 2} and said.startswith("warps=2, unmeasured")


def test_on_the_host_a_plain_kernel_is_predicted_and_runs(kept):
    x, output = host()
    made, said = tuned(double, (x, output))
    assert ", unmeasured: predicted by the cost model" in said and made.schedule["warps"] > 0
    made(x, output)
    assert (output == 2 * x).all()
    assert untuned(double, (x, output)) == (double, "")


def test_a_space_without_tuning_is_the_predicted_point(kept):
    x, output = host()
    made, said = untuned(blocked, (x, output))
    assert made.fixed == {"BLOCK", "num_warps"} and said.startswith(f"BLOCK={made.constants['BLOCK']} num_warps=")
    made(x, output)
    assert (output == 2 * x).all()


def test_a_kernel_with_a_space_tells_what_its_call_took(kept):
    x, output = host()
    assert tuned(blocked, (x, output)) == (blocked, "")
    blocked(x, output)
    assert choice_of(blocked).startswith("BLOCK=32 num_warps=1, default")
    double(x, output)
    assert choice_of(double) == ""


def test_the_lane_of_a_schedule(kept, monkeypatch):
    assert lane_of({"family": "wgmma", "copies": "tma"}) == "sm_90a"
    assert lane_of({"family": "wgmma", "copies": ""}) == lane_of({"warps": 4}) == "sm_80"
    choice = Choice({"BLOCK": 64, "num_warps": 1}, {"warps": 1}, MEASURED, "so it is said")
    monkeypatch.setattr(api, "last_run", lambda definition: SimpleNamespace(choice=choice))
    assert choice_of(blocked) == "BLOCK=64 num_warps=1, measured: so it is said; lane sm_80"
