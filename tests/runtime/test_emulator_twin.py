"""The twin that is compiled once: what a build takes of it, and where it is kept."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from tessera.runtime import emulator, emulator_twin
from tessera.runtime.cache import Cache
from tests.runtime.test_emulator import text

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A cache of its own for the twin, which no process has looked for yet."""
    made = Cache(tmp_path, 1 << 30)
    monkeypatch.setattr(emulator_twin, "open_cache", lambda: made)
    twin = emulator_twin._twin
    twin.cache_clear()
    yield made
    twin.cache_clear()


def adds(source: str) -> None:
    x, y, out = (np.full(8, value, np.float32) for value in (1, 2, np.nan))
    emulator.build(source, ["vadd"]).launch("vadd", (1,), 128, 0, [x, y, out, 8])
    assert (out == 3).all()


def test_a_kernel_is_built_with_the_precompiled_header_and_the_object(monkeypatch, tmp_path) -> None:
    compiler = emulator._compiler("g++")
    files = dict(emulator_twin._twin(*compiler))
    files["twin.h"] = b"#error the header was not precompiled"
    monkeypatch.setattr(emulator_twin, "_twin", lambda *_: files)
    monkeypatch.setattr(emulator, "open_cache", lambda: Cache(tmp_path, 1 << 30))
    adds(text("vector_add"))
    files["twin.o"] = b""
    with pytest.raises(emulator_twin.EmulatorBuildError):
        emulator.build(text("vector_add") + "\n", ["vadd"])


def test_the_twin_is_kept_on_disk(store, monkeypatch) -> None:
    compiler = emulator._compiler("g++")
    made = dict(emulator_twin._twin(*compiler))
    assert sorted(made) == ["twin.h", "twin.h.gch", "twin.o"] and store.stats().entries == 2
    emulator_twin._twin.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # nothing is compiled
    assert emulator_twin._twin(*compiler) == made


def test_a_text_that_says_what_the_twin_is_to_be_has_one_of_its_own(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(emulator, "put_twin", None)
    monkeypatch.setattr(emulator, "open_cache", lambda: Cache(tmp_path, 1 << 30))
    adds("#define TS_TWIN_UCONTEXT 1\n" + text("vector_add"))
