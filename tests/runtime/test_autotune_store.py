"""Results of tuning on disk: what is another question, what is nearest, and entries that are not whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.runtime import api, autotune_store
from tessera.runtime.autotune_report import BORROWED, MEASURED, UNMEASURED, Choice, Report
from tessera.runtime.autotune_store import Question, Store, ask, distance, key_values
from tessera.runtime.cache import Cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return Store(Cache(tmp_path / "entries", 1 << 24))


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(autotune_store, "source_digest", lambda: "these sources")
    monkeypatch.setattr(autotune_store, "nvrtc_identity", lambda: "this NVRTC")


def question(variant="", family="family", **key):
    return Question("kernel", family, key, {"D": 64}, variant)


def report(asked, block=64, gpu="H100", origin=MEASURED):
    choice = Choice({"BLOCK": block}, {"warps": 4, "streamed": ("a",)}, origin, "why")
    return Report("kernel", asked.key, {}, "sm_90a", gpu, choice)


def test_what_was_written_is_read(store):
    asked = question(S=100)
    assert store.read(asked, "H100") is None
    assert store.write(asked, report(asked))
    assert store.read(asked, "H100") == report(asked)
    assert store.read(asked, "A100") is store.read(asked, None) is store.read(question(S=101), "H100") is None


def test_a_choice_without_a_gpu_is_no_measurement(store):
    asked = question(S=100)
    store.write(asked, report(asked, gpu=None, origin=UNMEASURED))
    assert store.read(asked, None).choice.origin == UNMEASURED
    assert store.elsewhere(asked) is None and store.nearest(question(S=200), None) is None


def test_the_nearest_key_lends_its_choice(store):
    for size, block in ((100, 1), (1000, 2), (8000, 3)):
        store.write(question(S=size, n=4), report(question(S=size, n=4), block))
    store.write(question(S=2000, n=4, variant="x"), report(question(S=2000, n=4, variant="x"), 9))
    for size, block in ((1, 1), (300, 1), (330, 2), (2000, 2), (3000, 3), (10**6, 3)):
        found = store.nearest(question(S=size, n=4), "H100")
        assert (found.constants, found.origin) == ({"BLOCK": block}, BORROWED)
    assert found.note == "measured for S=8000 n=4" and found.schedule["streamed"] == ("a",)
    assert store.nearest(question(S=1, n=4, variant="y"), "H100") is None
    assert store.nearest(question(S=1, n=4, family="other"), "H100") is None
    assert store.nearest(question(T=1), "H100") is None


def test_the_own_gpu_is_nearer_than_any_size(store):
    for size, gpu, block in ((100, "A100", 1), (8000, "H100", 2)):
        store.write(question(S=size), report(question(S=size), block, gpu))
    assert store.nearest(question(S=101), "H100").constants == {"BLOCK": 2}
    assert store.nearest(question(S=101), None).constants == {"BLOCK": 1}
    assert store.elsewhere(question(S=100)).constants == {"BLOCK": 1}


def test_a_newer_result_replaces_the_older_one(store):
    asked = question(S=100)
    store.write(asked, report(asked, 1))
    store.write(asked, report(asked, 2))
    assert store.read(asked, "H100").choice.constants == store.elsewhere(asked).constants == {"BLOCK": 2}
    assert len(json.loads(store.cache.get(asked.index))) == 1


def test_an_index_does_not_grow_without_end(store, monkeypatch):
    monkeypatch.setattr(autotune_store, "MOST_ROWS", 3)
    for size in range(1, 7):
        store.write(question(S=size), report(question(S=size), size))
    assert [row["key"]["S"] for row in json.loads(store.cache.get(question(S=1).index))] == [4, 5, 6]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{}", b"[1]", b"null", b'{"choice": 3}', b'[{"key": {}, "variant": ""}]', b"{", b'"x"']
)
def test_entries_of_another_form_are_misses(store, data):
    asked = question(S=100)
    store.cache.put(asked.entry("H100"), data)
    store.cache.put(asked.index, data)
    assert store.read(asked, "H100") is store.elsewhere(asked) is store.nearest(asked, "H100") is None
    assert store.write(asked, report(asked)) and store.read(asked, "H100") == report(asked)
    assert store.elsewhere(asked) == report(asked).choice


@pytest.mark.parametrize("change", [{"origin": "guessed"}, {"constants": 3}, {"more": 1}])
def test_choices_of_another_form_are_misses(store, change):
    asked = question(S=100)
    data = report(asked).to_json()
    data["choice"] |= change
    store.cache.put(asked.entry("H100"), json.dumps(data).encode())
    assert store.read(asked, "H100") is None


def test_a_damaged_file_is_a_miss(store):
    asked = question(S=100)
    store.write(asked, report(asked))
    for entry in store.cache.entries():
        content = entry.path.read_bytes()
        entry.path.write_bytes(b"?" + content[1:])
    assert store.read(asked, "H100") is store.elsewhere(asked) is None


def test_a_cache_that_is_off_keeps_nothing(tmp_path):
    store = Store(Cache(tmp_path / "entries", 0))
    assert not store.write(question(S=1), report(question(S=1))) and store.read(question(S=1), "H100") is None


WRITER = """
import sys
from pathlib import Path
from tests.runtime.test_autotune_store import question, report
from tessera.runtime.autotune_store import Store
from tessera.runtime.cache import Cache
store, number = Store(Cache(Path(sys.argv[1]), 1 << 24)), int(sys.argv[2])
for size in range(20):
    asked = question(S=100 * number + size + 1)
    assert store.write(asked, report(asked, number))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    folder = tmp_path / "entries"
    command = [sys.executable, "-c", WRITER, str(folder)]
    running = [subprocess.Popen([*command, str(number)], cwd=ROOT) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    store = Store(Cache(folder, 1 << 24))
    assert len(json.loads(store.cache.get(question(S=1).index))) == 60
    assert all(store.read(question(S=100 * n + s + 1), "H100") for n in range(3) for s in range(20))


# ---- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "away"),
    [
        ({"S": 100}, {"S": 100}, 0),
        ({"S": 100, "D": 64}, {"S": 400, "D": 32}, 3),
        ({"n": 0.0}, {"n": 0.0}, 0),
        ({"n": 0}, {"n": 1}, None),
        ({"n": -1}, {"n": -2}, None),
        ({"flag": True}, {"flag": False}, None),
        ({"S": 1}, {"T": 1}, None),
        ({}, {}, 0),
    ],
)
def test_distance(a, b, away):
    assert distance(a, b) == away


def lists(space=None, key=("S", "num_layers", "len(others)", "n")):
    @ts.kernel.autotune(space=space or {"BLOCK": [16, 32]}, key=key)
    def k(many: list[Tensor["S", ts.f32]], others: list[Tensor["S", ts.f32]], n: int, out: Tensor["S", ts.f32]):
        start = tile.program_id(0) * tile.context().BLOCK
        total = tile.zeros([tile.context().BLOCK])
        for i in tile.static_range(len(many)):
            total = total + many[i][start : start + tile.context().BLOCK]
        tile.store(total, out[start : start + tile.context().BLOCK])

    return k


VALUES = {"S": 64, "len(many)": 3, "len(others)": 2, "n": 7}


def asked(kernel, arch="sm_90a", variant="", **values):
    found = {**VALUES, **values}
    traced = api.KernelState(kernel).kernel({name: size for name, size in found.items() if name != "n"})
    return ask(kernel, traced, found, arch, variant)


def test_num_layers_is_the_length_of_the_first_list():
    assert key_values(lists(), VALUES) == {"S": 64, "num_layers": 3, "len(others)": 2, "n": 7}
    assert key_values(lists(key=()), VALUES) == {}
    assert key_values(ts.kernel(lists().function), {"S": 3}) == {"S": 3}


def test_what_makes_another_question(monkeypatch):
    base = asked(lists())
    assert base == asked(lists()) and base.static == {"len(many)": 3, "len(others)": 2}
    assert asked(lists(), S=65).family == base.family and asked(lists(), S=65) != base
    assert asked(lists(key=()), **{"len(many)": 4}) != asked(lists(key=()))  # a size that is compiled in
    others = [
        asked(lists(space={"BLOCK": [16, 64]})),
        asked(lists().pinned({"BLOCK": 32})),
        asked(lists().scheduled({"warps": 8})),
        asked(lists(), arch="sm_80"),
    ]
    assert len({found.family for found in (base, *others)}) == 5
    assert asked(lists(), variant="x") != base
    monkeypatch.setattr(autotune_store, "source_digest", lambda: "other sources")
    assert asked(lists()).family != base.family
    monkeypatch.setattr(autotune_store, "source_digest", lambda: None)
    assert asked(lists()) is None


def test_the_author_s_text_and_what_it_uses():
    factor, names, other = 2.0, ("a", 1), object()

    def helper(x):
        return x * factor

    @ts.kernel
    def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        tile.store(helper(x[0:16]) if names else other, out[0:16])

    found = "\n".join(autotune_store.author_text(k))
    assert "def k(" in found and "return x * factor" in found and "factor: 2.0" in found and "names: ('a', 1)" in found
    assert "object" not in found
