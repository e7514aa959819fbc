"""`tessera cache` and `tessera doctor`: what they print, their JSON and exit codes, on machines in any state."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.config import Config
from tessera.runtime import launch, machine, nvrtc
from tessera.runtime.cache import Cache
from tessera.runtime.machine import Check
from tests.runtime.test_programs import needs_nvrtc

ROOT = Path(__file__).parents[1]
REQUIRED = ["settings", "python", *(name for name, _, _ in machine.PACKAGES)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    return use(Cache(tmp_path / "entries", 1 << 20), monkeypatch)


def use(cache, monkeypatch):
    """Makes `cache` the one of the command line and of all that it calls."""
    for module in ("tessera.runtime.cache", "tessera.runtime.programs", "tessera.cli.cache"):
        monkeypatch.setattr(importlib.import_module(module), "open_cache", lambda: cache)
    return cache


@pytest.fixture
def as_json(tessera):
    def call(*arguments):
        code, out, err = tessera(*arguments, "--json")
        result = json.loads(out)
        assert err == "" and result["schema"] == 1 and result["ok"] is (code == 0)
        return result

    return call


def fill(cache):
    cache.put("emulator/aa11", bytes(3000))
    cache.put("program/bb22", bytes(100))
    cache.put("program/cc33", bytes(100))


# ---- cache -------------------------------------------------------------------------------------------------------


def test_an_empty_cache(tessera, as_json, store):
    assert tessera("cache", "list") == (0, f"nothing in {store.folder}\n", "")
    assert as_json("cache", "list")["entries"] == [] and as_json("cache", "stats")["entries"] == 0
    assert as_json("cache", "clear")["removed"] == 0
    assert tessera("cache", "verify") == (0, f"0 entries in {store.folder}: all whole\n", "")


def test_list(tessera, as_json, store):
    fill(store)
    code, out, err = tessera("cache", "list")
    assert (code, err) == (0, "") and len(out.splitlines()) == 4
    assert re.search(r"^emulator +aa11 +3 KiB +0 s ago$", out, re.MULTILINE)
    entries = as_json("cache", "list")["entries"]
    assert {entry["key"] for entry in entries} == {"emulator/aa11", "program/bb22", "program/cc33"}
    assert all(Path(entry["file"]).stat().st_size == entry["bytes"] for entry in entries)


def test_stats(tessera, as_json, store):
    fill(store)
    result = as_json("cache", "stats")
    assert (result["entries"], result["limit"], result["folder"]) == (3, 1 << 20, str(store.folder))
    assert result["kinds"] == {"emulator": 1, "program": 2} and result["bytes"] == store.stats().bytes
    code, out, _ = tessera("cache", "stats")
    assert code == 0 and re.search(r"^size +3.\d+ KiB of 1 MiB$", out, re.MULTILINE)
    assert re.search(r"^  program +2$", out, re.MULTILINE)


def test_clear(tessera, as_json, store):
    fill(store)
    assert as_json("cache", "clear")["removed"] == 3 and store.entries() == []
    fill(store)
    code, out, _ = tessera("cache", "clear")
    assert code == 0 and out.startswith("removed 3 entries (3.") and store.entries() == []


def test_verify(tessera, as_json, store):
    fill(store)
    assert as_json("cache", "verify") | {"folder": ""} == {
        "schema": 1, "ok": True, "folder": "", "checked": 3, "bad": []
    }  # fmt: skip
    path = store.file("program/bb22")
    path.write_bytes(b"?" + path.read_bytes()[1:])
    code, out, _ = tessera("cache", "verify")
    assert code == 1 and f"damaged: {path}\n" in out and "3 entries" in out and "1 damaged" in out
    assert [entry["key"] for entry in as_json("cache", "verify")["bad"]] == ["program/bb22"]
    path.write_bytes(b"no entry at all")
    assert [entry["key"] for entry in as_json("cache", "verify")["bad"]] == [None]
    assert tessera("cache", "list")[0] == 0 and "unreadable" in tessera("cache", "stats")[1]


@pytest.mark.parametrize("action", ["list", "stats", "clear", "verify"])
def test_a_folder_that_is_a_file(tessera, as_json, tmp_path, monkeypatch, action):
    (tmp_path / "file").write_text("")
    use(Cache(tmp_path / "file", 1000), monkeypatch)
    code, out, err = tessera("cache", action)
    assert (code, out) == (1, "") and "error[TS802]: the cache in" in err and "Not a directory" in err
    error = as_json("cache", action)["error"]
    assert error["code"] == "TS802"


def test_misuse(tessera):
    assert tessera("cache")[0] == 2 and tessera("cache", "delete")[0] == 2 and tessera("cache", "list", "x")[0] == 2


@needs_nvrtc
def test_compile_reads_what_was_compiled_before(as_json, store, monkeypatch):
    command = ("compile", ROOT / "examples/vector_add.py::vector_add", "--arch", "sm_80", "--emit", "ptx,resources")
    (first,) = as_json(*command)["kernels"]
    (second,) = as_json(*command)["kernels"]
    assert (first["cached"], second["cached"]) == (False, True)
    assert {k: v for k, v in first.items() if k not in ("seconds", "cached")} == {
        k: v for k, v in second.items() if k not in ("seconds", "cached")
    }
    (timed,) = as_json(*command, "--time")["kernels"]  # a measurement of the compiler, not of the cache
    assert timed["cached"] is False and timed["seconds"]["nvrtc"] > second["seconds"]["nvrtc"]
    (text,) = as_json(*command[:4], "--emit", "cuda")["kernels"]
    assert text["cached"] is None


# ---- doctor ------------------------------------------------------------------------------------------------------


def check(result, name):
    (found,) = [check for check in result["checks"] if check["name"] == name]
    return found


def test_this_machine(as_json, tessera, store):
    result = as_json("doctor")
    assert result["ok"] and result["lanes"]["interpret"] and result["lane"] in ("interpret", "cuda")
    assert [c["name"] for c in result["checks"] if c["required"]] == REQUIRED
    for found in result["checks"]:
        assert found["state"] in ("ok", "missing", "broken") and found["detail"]
        if found["required"]:
            assert found["state"] == "ok"
    assert check(result, "python")["detail"].startswith(".".join(map(str, sys.version_info[:3])))
    assert str(store.folder) in check(result, "cache")["detail"]
    code, out, _ = tessera("doctor")
    assert code == 0 and out.splitlines()[-1].startswith("lanes: interpret yes, emulate ")


def test_a_machine_with_nothing_but_the_required(as_json, tessera, store, monkeypatch):
    def no_cupy():
        raise nvrtc.NvrtcUnavailable(ImportError("No module named 'cupy'"))

    monkeypatch.setattr(machine, "CUPY", ())
    monkeypatch.setattr(nvrtc, "load_nvrtc", no_cupy)
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    result = as_json("doctor")
    assert result["lanes"] == {"interpret": True, "emulate": False, "cuda": False} and result["lane"] == "interpret"
    states = {name: (check(result, name)["state"], check(result, name)["remedy"]) for name in ("cupy", "nvrtc", "gpu")}
    assert states == {
        "cupy": ("missing", "pip install 'tessera[cuda12]'"),
        "nvrtc": ("missing", "pip install 'tessera[cuda12]'"),
        "gpu": ("missing", ""),
    }
    assert check(result, "c++ compiler")["remedy"] == "apt install g++"
    code, out, _ = tessera("doctor")
    assert code == 0 and "c++ compiler: apt install g++\n" in out and "cupy: pip install" in out


@pytest.mark.parametrize(
    ("package", "state", "remedy"),
    [
        (("no-such-package", "nothing", "1"), "missing", "pip install 'no-such-package>=1'"),
        (("numpy", "numpy", "999"), "broken", "pip install 'numpy>=999'"),
        (("numpy", "no_such_module", "1"), "broken", "pip install 'numpy>=1'"),
    ],
)
def test_something_required_is_not_there(as_json, store, monkeypatch, package, state, remedy):
    monkeypatch.setattr(machine, "PACKAGES", (package,))
    result = as_json("doctor")
    found = check(result, package[0])
    assert (found["state"], found["remedy"], found["required"]) == (state, remedy, True)
    assert not result["ok"] and result["lane"] is None and not any(result["lanes"].values())


def test_a_check_that_fails_itself(as_json, store, monkeypatch):
    def explode(*arguments, **options):
        raise RuntimeError("cuda is\nnot well")

    monkeypatch.setattr(machine, "_cupy", explode)
    monkeypatch.setattr(machine, "_nvrtc", explode)
    monkeypatch.setattr(launch, "device_count", explode)
    monkeypatch.setattr(machine.subprocess, "run", explode)
    result = as_json("doctor")
    assert result["ok"] and check(result, "nvrtc")["state"] == check(result, "c++ compiler")["state"] == "broken"
    assert "cuda is" in check(result, "gpu")["detail"] and check(result, "gpu")["state"] == "broken"


@pytest.mark.parametrize(("program", "detail"), [("false", "failed on a trial"), ("true", "OSError")])
def test_a_compiler_that_does_not_compile(as_json, store, monkeypatch, program, detail):
    monkeypatch.setattr(machine, "config", lambda: replace(Config(), cxx=program))
    result = as_json("doctor")
    found = check(result, "c++ compiler")
    assert result["ok"] and found["state"] == "broken" and detail in found["detail"]


def test_two_cupy_packages(as_json, store, monkeypatch):
    monkeypatch.setattr(machine, "_installed", lambda name: "14.0.0" if name in machine.CUPY[:2] else None)
    found = check(as_json("doctor"), "cupy")
    assert found["state"] == "broken" and found["remedy"] == "pip uninstall cupy-cuda13x"


def test_gpus_are_listed_with_their_lane(as_json, store, monkeypatch):
    def gpu(number):
        return Check(f"gpu {number}", "ok", f"GPU {number}")

    monkeypatch.setattr(launch, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "_gpu", gpu)
    monkeypatch.setattr(machine, "_nvrtc", lambda: Check("nvrtc", "ok", "12.9"))
    result = as_json("doctor")
    assert [c["name"] for c in result["checks"] if c["name"].startswith("gpu")] == ["gpu 0", "gpu 1"]
    assert result["lane"] == "cuda" and result["lanes"]["cuda"]


def test_a_driver_without_a_way_to_reach_its_gpus(as_json, store, monkeypatch):
    monkeypatch.setattr(launch, "device_count", lambda: 0)
    for seen, state, detail in [
        (["NVIDIA H100"], "broken", "sees NVIDIA H100, but CUDA reaches none"),
        ([], "missing", "sees no GPU"),
        (None, "missing", "no NVIDIA driver"),
    ]:
        monkeypatch.setattr(machine, "driver_says", lambda fact, seen=seen: seen)
        found = check(as_json("doctor"), "gpu")
        assert found["state"] == state and detail in found["detail"]


def test_the_state_of_the_cache(as_json, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    use(Cache(tmp_path / "file", 1000), monkeypatch)
    found = check(as_json("doctor"), "cache")
    assert found["state"] == "broken" and "cannot be written" in found["detail"]
    assert "TESSERA_CACHE_DIR" in found["remedy"]
    use(Cache(tmp_path / "file", 0), monkeypatch)
    assert "off" in check(as_json("doctor"), "cache")["detail"]
    cache = use(Cache(tmp_path / "entries", 10_000), monkeypatch)
    cache.put("a", b"data")
    assert "1 entries" in check(as_json("doctor"), "cache")["detail"]
    cache._path("a").write_bytes(b"")
    found = check(as_json("doctor"), "cache")
    assert found["state"] == "broken" and found["remedy"] == "tessera cache clear"


def test_a_setting_that_is_wrong_and_a_home_that_is_not_there():
    def start(**settings):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TESSERA_", "XDG_"))}
        environment |= {"PYTHONPATH": str(ROOT), **settings}
        command = [sys.executable, "-m", "tessera", "doctor", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)

    code, result = start(TESSERA_CACHE_BYTES="lots")
    assert code == 1 and check(result, "settings")["state"] == "broken"
    assert "TESSERA_CACHE_BYTES is 'lots'" in check(result, "settings")["detail"]
    code, result = start(HOME="/proc/none")
    assert code == 0 and check(result, "cache")["state"] == "broken"
