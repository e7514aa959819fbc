"""The disk cache: no wrong answer and no exception, whatever happens to its files, its folder and its writers."""

import errno
import fcntl
import hashlib
import os
import random
import resource
import signal
import time
import traceback

import pytest

from tessera.runtime import cache as module
from tessera.runtime.cache import TRAILER, Cache
from tests.pace import slower

PLENTY = 1 << 30


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "entries", PLENTY)


@pytest.fixture(autouse=True)
def silent_so_far(monkeypatch):
    monkeypatch.setattr(module, "_reported", False)


def payload(key, size, nonce=b""):
    """Bytes that tell whether they were ever written under `key`, each time others."""
    nonce = nonce or os.urandom(8)
    return nonce + hashlib.shake_128(key.encode() + nonce).digest(size)


def is_payload(key, data):
    return data == payload(key, len(data) - 8, data[:8])


def in_child(work):
    """Runs `work` in a fork of this process; the process id. Its exit status is 0 where nothing was raised."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def temporaries(cache):
    return list(cache.folder.glob("tmp-*"))


def set_age(cache, key, seconds):
    then = time.time() - seconds
    os.utime(cache._path(key), (then, then))


# ---- what it is for ----------------------------------------------------------------------------------------------


def test_what_is_put_is_what_is_got(cache):
    assert cache.get("a") is None and cache.entries() == [] and cache.stats().entries == 0 and cache.clear() == 0
    for data in (b"", b"x", os.urandom(100_000)):
        assert cache.put("a", data) and cache.get("a") == data
    assert cache.put("kind/b", b"other") and cache.get("a") == data and cache.get("kind/b") == b"other"
    assert Cache(cache.folder, PLENTY).get("a") == data
    assert {entry.key for entry in cache.entries()} == {"a", "kind/b"} and cache.verify() == []
    stats = cache.stats()
    assert (stats.entries, stats.temporary, stats.limit) == (2, 0, PLENTY)
    assert stats.bytes == sum(entry.bytes for entry in cache.entries()) > len(data)
    assert cache.clear() == 2 and cache.get("a") is None and cache.entries() == []


def test_the_file_of_an_entry_starts_with_its_data(cache):
    assert cache.file("a") is None
    cache.put("a", b"\x7fELF and so on")
    path = cache.file("a")
    assert path is not None and path.read_bytes().startswith(b"\x7fELF and so on")


def test_limit_of_nothing_turns_it_off(tmp_path):
    off = Cache(tmp_path / "entries", 0)
    assert not off.put("a", b"data") and off.get("a") is None and not off.folder.exists()


def test_one_user_only(cache):
    cache.put("a", b"data")
    assert cache.folder.stat().st_mode & 0o077 == 0


# ---- damage ------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_a_miss(cache):
    data = b"the payload of an entry"
    cache.put("the key", data)
    path = cache._path("the key")
    whole = path.read_bytes()
    assert len(whole) == len(data) + len("the key") + TRAILER.size
    for position in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            assert [entry.path for entry in cache.verify()] == [path], position
            assert cache.get("the key") is None and not path.exists(), position
    assert cache.put("the key", data) and cache.get("the key") == data


def test_a_truncated_or_longer_file_is_a_miss(cache):
    cache.put("the key", b"the payload of an entry")
    path = cache._path("the key")
    whole = path.read_bytes()
    for changed in [*(whole[:length] for length in range(len(whole))), whole + b"\0", b"\0" + whole, whole + whole]:
        path.write_bytes(changed)
        assert len(cache.verify()) == 1
        assert cache.get("the key") is None and not path.exists()


def test_a_foreign_entry_is_a_miss(cache):
    cache.put("other", b"data of another key")
    path = cache._path("the key")
    path.write_bytes(cache._path("other").read_bytes())
    assert [entry.path for entry in cache.verify()] == [path]
    assert cache.get("the key") is None and not path.exists() and cache.get("other") == b"data of another key"
    whole = bytearray(cache._path("other").read_bytes())
    for version in (0, 2):
        packed = whole.copy()
        packed[-12:-8] = version.to_bytes(4, "little")
        cache._path("other").write_bytes(packed)
        assert cache.get("other") is None


def test_files_that_are_not_ours_stay(cache):
    cache.put("a", b"data")
    (cache.folder / "README").write_text("mine")
    (cache.folder / "folder").mkdir()
    assert len(cache.entries()) == 1 and cache.verify() == []
    cache.clear()
    assert {path.name for path in cache.folder.iterdir()} == {"README", "folder", "lock"}


# ---- a folder that cannot be used --------------------------------------------------------------------------------


def refuse(code):
    def raising(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return raising


def assert_off(cache, capsys, reason):
    """Nothing is stored, nothing raised, and one line says why, once."""
    for _ in range(3):
        assert not cache.put("a", b"data") and cache.get("a") is None and cache.file("b") is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(cache.folder) in error and reason in error


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_the_system_refuses(cache, monkeypatch, capsys, code):
    monkeypatch.setattr(module, "open", refuse(code), raising=False)
    assert_off(cache, capsys, os.strerror(code))


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_rename_that_the_system_refuses(cache, monkeypatch, capsys, code):
    cache.put("old", b"old data")
    monkeypatch.setattr(module.os, "replace", refuse(code))
    assert_off(cache, capsys, os.strerror(code))
    assert temporaries(cache) == [] and cache.get("old") == b"old data"


def test_a_read_only_folder_still_answers(cache, monkeypatch, capsys):
    cache.put("a", b"data")
    set_age(cache, "a", 3600)
    cache._path("bad").write_bytes(b"damaged")
    for name in ("utime", "unlink", "replace"):
        monkeypatch.setattr(module.os, name, refuse(errno.EROFS))
    assert cache.get("a") == b"data" and cache.get("bad") is None and capsys.readouterr().err == ""


def test_a_disk_that_fills_up_in_mid_write(cache):
    cache.put("old", b"old data")

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        assert not cache.put("a", os.urandom(100_000)) and temporaries(cache) == []
        assert cache.get("old") == b"old data" and cache.get("a") is None
        assert cache.put("small", b"data")

    assert status_of(in_child(fill)) == 0


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert_off(Cache(tmp_path / "file", PLENTY), capsys, "exists")


def test_a_folder_under_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    below = Cache(tmp_path / "file" / "entries", PLENTY)
    assert_off(below, capsys, "Not a directory")
    assert below.problem() == "Not a directory"


def test_a_folder_that_goes_away(cache, capsys):
    cache.put("a", b"data")
    cache.clear()
    for path in cache.folder.iterdir():
        path.unlink()
    cache.folder.rmdir()
    assert cache.get("a") is None and cache.put("a", b"data") and cache.get("a") == b"data"
    assert cache.problem() is None and capsys.readouterr().err == ""


def test_no_stderr_to_warn_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module.sys, "stderr", None)
    assert not Cache(tmp_path / "file", PLENTY).put("a", b"data")


# ---- eviction ----------------------------------------------------------------------------------------------------


def test_the_least_recently_used_bytes_go_first(cache):
    sizes = {"a": 3000, "b": 1500, "c": 2000, "d": 500, "e": 1000}
    for age, (key, size) in enumerate(sizes.items()):
        cache.put(key, bytes(size))
        set_age(cache, key, 1000 - age)
    assert [entry.key for entry in cache.entries()] == list(sizes)
    assert cache.get("a") == bytes(3000)  # a hit on an old entry makes it the newest
    assert [entry.key for entry in cache.entries()] == ["b", "c", "d", "e", "a"]
    total = cache.stats().bytes
    small = Cache(cache.folder, total)
    assert small.put("f", bytes(100))
    # Evicted down to 7/8 of the limit, and no further: b alone is enough room.
    assert [entry.key for entry in cache.entries()] == ["c", "d", "e", "a", "f"]
    assert total * 5 / 8 < small.stats().bytes <= total * 7 / 8
    assert not small.put("too large", bytes(total)) and small.stats().entries == 5


def test_one_process_keeps_to_the_limit(tmp_path):
    cache = Cache(tmp_path / "entries", 100_000)
    for number in range(300):
        assert cache.put(f"key {number}", bytes(random.Random(number).randrange(5000)))
        assert cache.stats().bytes <= cache.limit
    assert cache.stats().bytes > 50_000 and cache.get("key 299") is not None and cache.get("key 0") is None


def test_a_hit_writes_no_more_than_once_a_minute(cache, monkeypatch):
    cache.put("a", b"data")
    touched = []
    real = os.utime
    monkeypatch.setattr(module.os, "utime", lambda path, *times: (touched.append(path), real(path, *times)))
    for _ in range(5):
        cache.get("a")
    assert touched == []
    set_age(cache, "a", -5000)  # a clock that was wrong when the entry was written
    touched.clear()
    for _ in range(5):
        cache.get("a")
    assert len(touched) == 1 and cache.entries()[0].age < 5


def test_who_finds_another_evicting_goes_on(tmp_path, capsys):
    cache = Cache(tmp_path / "entries", 10_000)
    cache.put("a", b"data")
    with open(cache.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = time.perf_counter()
        for number in range(40):
            assert cache.put(f"key {number}", bytes(1000))
        assert time.perf_counter() - start < 2 * slower() and cache.stats().bytes > 40_000
    cache.put("last", bytes(1000))
    assert cache.stats().bytes <= 10_000 and cache.get("last") is not None and capsys.readouterr().err == ""


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.fcntl, "flock", refuse(errno.ENOLCK))
    cache = Cache(tmp_path / "entries", 10_000)
    for number in range(40):
        assert cache.put(f"key {number}", bytes(1000))
    assert cache.stats().bytes <= 11_500 and capsys.readouterr().err == ""


def test_temporary_files_of_dead_writers_are_swept(cache):
    cache.put("a", b"data")
    for name, age in (("tmp-1-dead", 3600), ("tmp-2-alive", 10)):
        (cache.folder / name).write_bytes(b"half of")
        os.utime(cache.folder / name, (time.time() - age,) * 2)
    Cache(cache.folder, PLENTY).put("b", b"data")  # every process looks at its first write
    assert [path.name for path in temporaries(cache)] == ["tmp-2-alive"]
    assert cache.stats().temporary == 1 and cache.clear() == 2 and temporaries(cache) == []


# ---- many processes ----------------------------------------------------------------------------------------------


def test_eight_processes_hammer_one_cache(tmp_path):
    folder, limit = tmp_path / "entries", 400_000

    def hammer(seed):
        cache, chance = Cache(folder, limit), random.Random(seed)
        hits = stored = 0
        for step in range(300):
            key = f"key {chance.randrange(60)}"
            if chance.random() < 0.4:
                stored += cache.put(key, payload(key, chance.randrange(20_000)))  # not where another clears just now
            elif chance.random() < 0.02:
                cache.clear()
            elif chance.random() < 0.02:
                assert cache.verify() == []
            data = cache.get(key)
            assert data is None or is_payload(key, data), f"wrong bytes for {key} at step {step}"
            hits += data is not None
        assert hits > 30 and stored > 80 and not module._reported

    children = [in_child(lambda seed=seed: hammer(seed)) for seed in range(8)]
    assert [status_of(child) for child in children] == [0] * 8
    cache = Cache(folder, limit)
    assert cache.verify() == [] and temporaries(cache) == []
    assert cache.stats().bytes <= limit * (1 + 8 / 16)


def test_threads_share_one_object(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    cache = Cache(tmp_path / "entries", 100_000)

    def work(number):
        key = f"key {number % 20}"
        assert cache.put(key, payload(key, 2000))
        data = cache.get(key)
        return data is None or is_payload(key, data)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))
    assert cache.verify() == [] and cache.stats().bytes <= 100_000


def test_two_hundred_writers_killed(tmp_path):
    folder, limit = tmp_path / "entries", 4 << 20
    keys = [f"key {number}" for number in range(10)]

    def write():
        cache, chance = Cache(folder, limit), random.Random(os.getpid())
        while True:
            key = chance.choice(keys)
            cache.put(key, payload(key, chance.randrange(400_000)))

    cache, chance, unfinished, hits = Cache(folder, limit), random.Random(1), 0, 0
    for _ in range(100):
        children = [in_child(write) for _ in range(2)]
        time.sleep(chance.uniform(0.002, 0.02))
        for child in children:
            os.kill(child, signal.SIGKILL)
        assert [status_of(child) for child in children] == [-signal.SIGKILL] * 2
        for key in keys:
            data = cache.get(key)
            assert data is None or is_payload(key, data)
            hits += data is not None
        assert cache.verify() == []
        for path in temporaries(cache):  # as if minutes had passed: the next writer sweeps it
            unfinished += 1
            os.utime(path, (1, 1))
    assert unfinished > 5 and hits > 100, "the writers were not killed in mid-write"
    assert cache.put("last", b"data") and temporaries(cache) == []  # a lock of the dead does not hold
    assert Cache(folder, limit).put("last", b"data") and cache.stats().bytes <= limit * 1.25
