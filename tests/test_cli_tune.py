"""`tessera tune`: text and JSON, without a GPU and on a make-believe one, and what the other verbs say of a choice."""

import importlib
import json
import shutil

import pytest

from tessera.runtime import api, autotune, autotune_calls, autotune_store, gpu, launch
from tessera.runtime.autotune_report import MEASURED, Choice, Report, Row
from tessera.runtime.cache import Cache
from tests.command_line import strict_json

KERNEL = """
import tessera as ts
from tessera import Tensor, tile


@ts.kernel.autotune(space=dict(BLOCK=[32, 64, 4096], num_warps=[1, 2]), key=["N", "n"], budget_s=9, candidates=5)
def double(x: Tensor["N", ts.f32], n: int, out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * tile.context().BLOCK
    tile.store(x[start : start + tile.context().BLOCK] * n, out[start : start + tile.context().BLOCK])


@ts.kernel
def plain(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "N", ts.bf16], out: Tensor["M", "N", ts.bf16]):
    i, j = tile.program_id(0) * 64, tile.program_id(1) * 64
    acc = tile.zeros([64, 64])
    for k in tile.range(0, tile.context().K, 32):
        acc = tile.mma(a[i : i + 64, k : k + 32], b[k : k + 32, j : j + 64], acc)
    tile.store(acc, out[i : i + 64, j : j + 64])


@ts.function
def f(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
    return x
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "kernels.py"
    path.write_text(KERNEL)
    cache = Cache(tmp_path / "entries", 1 << 24)
    monkeypatch.setattr(autotune_store, "open_cache", lambda: cache)
    monkeypatch.setattr(autotune_store, "source_digest", lambda: "these sources")
    monkeypatch.setattr(autotune_store, "nvrtc_identity", lambda: "this NVRTC")
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    return path


def test_predictions(tessera, file):
    code, out, err = tessera("tune", f"{file}::double", "--dims", "N=1000", "--arg", "n=3", "--arch", "sm_80")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0] == "double  N=1000  sm_80  no GPU: predicted, unmeasured"
    assert lines[3].startswith("*  BLOCK=") and lines[3].endswith("predicted")
    assert "choice BLOCK=" in out and ", unmeasured: predicted by the cost model" in out
    assert lines[-1].startswith("nothing is kept: calls choose from a short list; it took ")


def test_predictions_as_json(tessera, file):
    code, out, _ = tessera("tune", f"{file}::double", "--dims", "N=1000", "--arg", "BLOCK=64", "--json", "--arch=sm_80")
    result = strict_json(out)
    assert code == 0 and result["lane"] is None and result["measured"] is result["stored"] is False
    assert result["key"] == {"N": 1000, "n": 2} and result["dims"] == {"N": 1000} and result["arch"] == "sm_80"
    best = result["rows"][result["winner"]]
    assert best["verdict"] == "predicted" and best["seconds"] is None and best["predicted"] > 0
    assert {row["constants"]["BLOCK"] for row in result["rows"]} == {64}
    assert result["choice"]["constants"] == best["constants"] and result["paste"] is None


def test_a_plain_kernel_gets_a_schedule_to_paste(tessera, file):
    dims = "M=2048,N=2048,K=2048"
    result = strict_json(tessera("tune", f"{file}::plain", "--dims", dims, "--arch", "sm_80", "--json")[1])
    assert result["choice"]["constants"] == {}
    if result["paste"] is not None:
        assert result["paste"].startswith("schedule=dict(") and eval(result["paste"].removeprefix("schedule="))
    pinned = strict_json(
        tessera("tune", f"{file}::plain", "--dims", dims, "--arch", "sm_80", "--pin", "warps=8", "--json")[1]
    )
    assert {row["schedule"]["warps"] for row in pinned["rows"] if row["verdict"] == "predicted"} == {8}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["::f"], "tune takes a kernel of a Python file or document, and f is a function; name a kernel that it calls"),
        ([""], "defines several kernels"),
        (["::double", "--arg", "m=3"], "double has no scalar parameter 'm'"),
        (["::double", "--dims", "M=3"], "double has no dim M"),
        (["::double", "--arch", "sm_1"], "there is no architecture 'sm_1'"),
        (["::double", "--budget", "0"], "0 is not in the range"),
        (["::double", "--candidates", "0"], "0 is not in the range"),
        (["::double", "--pin", "warp=8"], "a schedule has no field 'warp'"),
    ],
)
def test_mistakes(tessera, file, arguments, sentence):
    code, _, err = tessera("tune", f"{file}{arguments[0]}", *arguments[1:])
    assert code in (1, 2) and sentence in err


# ---- with a GPU ------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(file, monkeypatch):
    """A make-believe GPU; the list holds the budget of every tuning that ran on it."""
    tuned = []

    def tune(subject, device, binding, **options):
        tuned.append((subject.budget, binding))
        options["progress"](1, 2, 1e-5)
        choice = Choice({"BLOCK": 64, "num_warps": 2}, {"warps": 2, "stages": 3}, MEASURED, "the fastest of 2")
        rows = (
            Row({"BLOCK": 32, "num_warps": 1}, {"warps": 1, "stages": 3}, "ok", "", 1e-5, 3e-5, 20, 0, 0),
            Row({"BLOCK": 64, "num_warps": 2}, {"warps": 2, "stages": 3}, "ok", "", 2e-5, 1.5e-5, 24, 8, 1024),
            Row({"BLOCK": 4096, "num_warps": 1}, {"warps": 1, "stages": 3}, "wrong", "'out' at [3] is 1 off", 3e-5),
            Row({"BLOCK": 4096, "num_warps": 2}, {}, "pruned", "needs 300000 bytes"),
        )
        return Report("double", subject.key, subject.dims, subject.arch, "H100", choice, rows, 1, "error bars", 2.5)

    monkeypatch.setattr(autotune, "tune", tune)
    monkeypatch.setattr(launch, "device_count", lambda: 1)
    monkeypatch.setattr(launch, "current_device", lambda: 0)
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_90a")
    monkeypatch.setattr(gpu, "bound", lambda name, parameters, arguments, dims: arguments)
    for module in ("tessera.runtime.autotune_calls", "tessera.cli.tune"):
        monkeypatch.setattr(importlib.import_module(module), "gpu_name", lambda ordinal: "H100")
    monkeypatch.setattr(autotune_calls, "make_device", lambda bench, arch: None)
    return tuned


def test_measured_and_kept(tessera, file, measured):
    command = ["tune", f"{file}::double", "--dims", "N=1000"]
    code, out, err = tessera(*command, "--budget", "3", "--candidates", "7")
    assert (code, err) == (0, "") and [budget for budget, _ in measured] == [autotune.Budget(3.0, 7)]
    assert measured[0][1].keys() == {"x", "n", "out"} and measured[0][1]["x"].shape == (1000,)
    assert out.splitlines()[0] == "double  N=1000  sm_90a  H100"
    rows = [line.split() for line in out.splitlines()[3:6]]
    assert rows[0][:9] == ["*", "BLOCK=64", "num_warps=2", "20", "us", "15", "us", "1.00", "24"]
    assert rows[1][:8] == ["BLOCK=32", "num_warps=1", "10", "us", "30", "us", "2.00", "20"]
    assert "wrong: 'out' at [3] is 1 off" in out.splitlines()[5]
    assert "1       needs 300000 bytes" in out or "1       too much shared memory" in out
    assert "answers compared by error bars" in out and "kept in " in out
    code, out, _ = tessera(*command, "--json")
    result = strict_json(out)
    assert len(measured) == 1 and result["stored"] and result["measured"] and result["lane"] == "cuda"
    assert "read from" in tessera(*command)[1]
    tessera(*command, "--retune")
    assert len(measured) == 2 and measured[1][0] == autotune.Budget(9.0, 5)  # the author's
    # Another value of the key, or architecture, is another question.
    tessera(*command[:-1], "N=1001")
    assert len(measured) == 3
    assert not strict_json(tessera(*command, "--arch", "sm_80", "--json")[1])["measured"]


def test_other_verbs_take_what_was_measured(tessera, file, measured, monkeypatch):
    tessera("tune", f"{file}::double", "--dims", "N=1000")
    note = "double for sm_90a: BLOCK=64 num_warps=2, measured: the fastest of 2"
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    code, out, _ = tessera("ir", f"{file}::double", "--dims", "N=1000", "--arch", "sm_90a", "--json")
    assert strict_json(out)["choice"]["constants"] == {"BLOCK": 64, "num_warps": 2}
    code, out, _ = tessera("ir", f"{file}::double", "--dims", "N=1000", "--arch", "sm_90a", "--stage", "tile")
    assert "constants = {BLOCK = 64, num_warps = 2}" in out
    code, out, _ = tessera(
        "compile", f"{file}::double", "--dims", "N=1000", "--arch", "sm_90a", "--emit", "cuda,resources"
    )
    assert code == 0 and note in out
    code, out, _ = tessera(
        "ir", f"{file}::double", "--dims", "N=1000", "--arch", "sm_90a", "--json", "--arg", "BLOCK=32"
    )
    assert strict_json(out)["choice"]["constants"]["BLOCK"] == 32


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_run_and_check_name_their_choice(tessera, file):
    code, out, _ = tessera("run", f"{file}::double", "--dims", "N=100", "--backend", "emulate", "--arch", "sm_80")
    assert code == 0 and ", unmeasured: predicted by the cost model" in out
    code, out, _ = tessera("check", f"{file}::double", "--dims", "N=100", "--arch", "sm_80", "--arg", "BLOCK=32")
    assert code == 0 and "note: BLOCK=32 " in out
    code, out, _ = tessera("run", f"{file}::double", "--dims", "N=100", "--backend", "interpret")
    assert code == 0 and "unmeasured" not in out


def test_entries_of_tuning_are_counted_and_cleared_apart(tessera, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "entries", 1 << 20)
    monkeypatch.setattr(importlib.import_module("tessera.cli.cache"), "open_cache", lambda: cache)
    for key in ("program/a", "tuning/b", "tuning-index/c"):
        cache.put(key, b"x")
    assert json.loads(tessera("cache", "stats", "--json")[1])["kinds"] == {"program": 1, "tuning": 1, "tuning-index": 1}
    assert len(json.loads(tessera("cache", "list", "--kind", "tuning", "--json")[1])["entries"]) == 1
    assert json.loads(tessera("cache", "clear", "--kind", "tuning", "--json")[1])["removed"] == 1
    assert sorted(entry.kind for entry in cache.entries()) == ["program", "tuning-index"]
    assert tessera("cache", "list", "--kind", "tuning")[1] == f"nothing of kind tuning in {cache.folder}\n"
    code, _, err = tessera("cache", "verify", "--kind", "tuning")
    assert code == 2 and "--kind goes with list and clear, not with verify" in err
