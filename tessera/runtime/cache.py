"""A disk cache of bytes by key, shared by any number of processes: what is compiled once is not compiled again.

An entry is one file that appears by one rename, so a reader sees all of it or nothing, and a writer that is killed
leaves a temporary file at worst. Every read checks a SHA-256, and what does not check is a miss. Reading executes
nothing. A cache that cannot be used (a full disk, a read-only folder) is slow, never an error in the user's run.

The facts of an entry stand behind its bytes, not before them: the file of a shared library can then be loaded as it
lies, because a loader ignores what follows the sections.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache as call_once
from pathlib import Path

from tessera.config import config

MAGIC = b"TESSERA\n"
VERSION = 1
# Behind payload and key: SHA-256 of the payload, length of the payload, length of the key, version, magic.
TRAILER = struct.Struct("<32sQII8s")

TOUCH_SECONDS = 60.0  # a hit renews the time of last use when that is older: hot entries cost no write per read
STALE_SECONDS = 300.0  # a temporary file this old belongs to a writer that died
EVICT_TO = 7 / 8  # of the limit, so that a full cache is not scanned at every write
RESCAN = 1 / 16  # of the limit: after writing this much, look again at what other processes wrote

PATIENCE = 2.0  # seconds that an update waits for another one, which takes milliseconds
UNREADABLE = "unreadable"  # the kind of an entry that does not say

_ENTRY_NAME = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = "tmp-"
_LOCK = "lock"
_UPDATE_LOCK = "update-lock"


@dataclass(frozen=True)
class Entry:
    """One file of the cache. `key` is None where it cannot be read; `age` is in seconds since the last use."""

    key: str | None
    bytes: int
    age: float
    path: Path

    @property
    def kind(self) -> str:
        """What wrote the entry: the part of its key before the digest."""
        return self.key.partition("/")[0] if self.key else UNREADABLE


@dataclass(frozen=True)
class Stats:
    """`oldest` is the age in seconds of the entry that goes next; `temporary` counts unfinished writes."""

    folder: Path
    entries: int
    bytes: int
    limit: int
    oldest: float
    temporary: int


class Cache:
    """The cache in one folder, which the first write makes. `limit` is in bytes of files; 0 turns the cache off.

    The least recently used entries go first. One process keeps to the limit; each further process that writes at the
    same time may exceed it by `RESCAN` until it looks again. Safe for threads and processes, without waiting for any.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._seen: int | None = None  # bytes in the folder at the last scan
        self._written = 0  # bytes written here since then
        self._counting = threading.Lock()

    # ---- use: nothing here raises ----------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """The bytes last put under `key`; None when there are none, or none that check."""
        if self.limit <= 0:
            return None
        path = self._path(key)
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                data = _read_payload(file.fileno(), status.st_size, key)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(error)
            return None
        if data is None:
            # A writer may have put a good entry here by now; losing that is only another miss.
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        if abs(time.time() - status.st_mtime) > TOUCH_SECONDS:
            with contextlib.suppress(OSError):  # evicted meanwhile, or a folder that only others may write
                os.utime(path)
        return data

    def file(self, key: str) -> Path | None:
        """The file of an entry, checked just now: it starts with the data. Another process may evict it any time."""
        return None if self.get(key) is None else self._path(key)

    def put(self, key: str, data: bytes) -> bool:
        """Stores `data` and evicts what is then too much; False when it was not stored."""
        entry = _packed(key, data)
        if len(entry) > self.limit:
            return False
        temporary = self.folder / f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_new(temporary, entry)
            os.replace(temporary, self._path(key))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if not isinstance(error, FileNotFoundError):  # somebody cleared the cache: nothing is wrong with it
                self._report(error)
            return False
        self._account(len(entry))
        return True

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> bool:
        """Stores `change` of what `key` holds (None: nothing), while other processes that update wait.

        They wait for at most `PATIENCE` seconds: a process that was stopped must not stop all others, and an update
        that is lost is only work to be done again. False when nothing was stored.
        """
        if self.limit <= 0:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _patient_lock(self.folder / _UPDATE_LOCK):
                return self.put(key, change(self.get(key)))
        except OSError as error:
            self._report(error)
            return False

    # ---- inspection: an OSError reaches the caller -------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Every entry, the least recently used first; a missing folder has none."""
        now, found = time.time(), []
        for path, status in self._scan():
            if _ENTRY_NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # evicted just now
                    found.append(Entry(_key_of(path), status.st_size, max(0.0, now - status.st_mtime), path))
        return sorted(found, key=lambda entry: -entry.age)

    def stats(self) -> Stats:
        files = self._scan()
        now = time.time()
        kept = [status for path, status in files if not path.name.startswith(_TEMPORARY)]
        oldest = max((now - status.st_mtime for status in kept), default=0.0)
        total = sum(status.st_size for status in kept)
        return Stats(self.folder, len(kept), total, self.limit, max(0.0, oldest), len(files) - len(kept))

    def clear(self, kind: str | None = None) -> int:
        """Removes every entry and every temporary file, or the entries of one kind; returns how many entries."""
        if kind is not None:
            chosen = [entry for entry in self.entries() if entry.kind == kind]
            for entry in chosen:
                entry.path.unlink(missing_ok=True)
            return len(chosen)
        files = self._scan()
        for path, _ in files:
            path.unlink(missing_ok=True)
        with self._counting:
            self._seen, self._written = None, 0
        return sum(not path.name.startswith(_TEMPORARY) for path, _ in files)

    def verify(self) -> list[Entry]:
        """The entries that do not check: each is a miss, and goes when it is next asked for."""
        return [entry for entry in self.entries() if not _checks(entry.path)]

    def problem(self) -> str | None:
        """Why nothing can be stored here, found by trying; None when something can."""
        temporary = self.folder / f"{_TEMPORARY}{os.getpid()}-{os.urandom(8).hex()}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_new(temporary, b"?")
            os.unlink(temporary)
        except OSError as error:
            return error.strerror or str(error)
        return None

    # ---- eviction --------------------------------------------------------------------------------------------------

    def _account(self, size: int) -> None:
        with self._counting:
            self._written += size
            due = self._seen is None or self._written > self.limit * RESCAN or self._seen + self._written > self.limit
        if not due:
            return
        try:
            with _try_lock(self.folder / _LOCK) as mine:
                if mine:
                    self._evict()
        except FileNotFoundError:  # the folder was removed; the next write makes it again
            pass
        except OSError as error:
            self._report(error)

    def _evict(self) -> None:
        """Sweeps the files of dead writers, then removes the least recently used entries if there is too much."""
        now = time.time()
        total = 0
        entries: list[tuple[float, int, Path]] = []
        for path, status in self._scan():
            if not path.name.startswith(_TEMPORARY):
                entries.append((status.st_mtime, status.st_size, path))
            elif abs(now - status.st_mtime) > STALE_SECONDS:
                path.unlink(missing_ok=True)
                continue
            total += status.st_size
        if total > self.limit:
            for _, size, path in sorted(entries):
                if total <= self.limit * EVICT_TO:
                    break
                path.unlink(missing_ok=True)
                total -= size
        with self._counting:
            self._seen, self._written = total, 0

    def _scan(self) -> list[tuple[Path, os.stat_result]]:
        """The entries and temporary files of the folder; whatever else lies there is not ours to touch."""
        found = []
        try:
            with os.scandir(self.folder) as listing:
                for item in listing:
                    if _ENTRY_NAME.fullmatch(item.name) or item.name.startswith(_TEMPORARY):
                        with contextlib.suppress(FileNotFoundError):
                            if item.is_file(follow_symlinks=False):
                                found.append((Path(item.path), item.stat(follow_symlinks=False)))
        except FileNotFoundError:
            pass
        return found

    def _path(self, key: str) -> Path:
        return self.folder / _name_of(key)

    def _report(self, error: OSError) -> None:
        """One line for the whole process: a cache that fails once fails for every kernel."""
        global _reported
        if _reported or sys.stderr is None:
            return
        _reported = True
        reason = error.strerror or str(error)
        with contextlib.suppress(OSError, ValueError):  # stderr may be closed
            print(f"tessera: the cache in {self.folder} cannot be used ({reason}); going on without", file=sys.stderr)


_reported = False


@call_once
def open_cache() -> Cache:
    """The cache of this user: TESSERA_CACHE_DIR, or else the cache folder of the platform."""
    root = config().cache_dir
    if root is None:
        import platformdirs

        root = Path(platformdirs.user_cache_dir("tessera"))
    return Cache(root / "entries", config().cache_bytes)


# ---- the format ----------------------------------------------------------------------------------------------------


def _name_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _packed(key: str, data: bytes) -> bytes:
    name = key.encode()
    trailer = TRAILER.pack(hashlib.sha256(data).digest(), len(data), len(name), VERSION, MAGIC)
    return b"".join((data, name, trailer))


def _read_trailer(descriptor: int, size: int) -> tuple[bytes, int, str] | None:
    """Digest, payload length and key of a file of `size` bytes; None when it is no entry of this version."""
    if size < TRAILER.size:
        return None
    raw = os.pread(descriptor, TRAILER.size, size - TRAILER.size)
    if len(raw) != TRAILER.size:
        return None
    digest, length, key_length, version, magic = TRAILER.unpack(raw)
    if magic != MAGIC or version != VERSION or length + key_length + TRAILER.size != size:
        return None
    try:
        return digest, length, os.pread(descriptor, key_length, length).decode()
    except UnicodeDecodeError:
        return None


def _read_payload(descriptor: int, size: int, key: str) -> bytes | None:
    # The trailer first: a foreign file of any size is then refused without being read.
    trailer = _read_trailer(descriptor, size)
    if trailer is None or trailer[2] != key:
        return None
    digest, length, _ = trailer
    parts, offset = [], 0
    while offset < length:  # one read gives at most 2 GiB
        part = os.pread(descriptor, length - offset, offset)
        if not part:
            return None
        parts.append(part)
        offset += len(part)
    data = b"".join(parts)
    return data if hashlib.sha256(data).digest() == digest else None


def _key_of(path: Path) -> str | None:
    """The key of an entry; raises FileNotFoundError for one that is no longer there."""
    try:
        with open(path, "rb", buffering=0) as file:
            trailer = _read_trailer(file.fileno(), os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    return trailer[2] if trailer else None


def _checks(path: Path) -> bool:
    """Whether a file is a whole entry, under the name of its key. One that is no longer there is nobody's problem."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            trailer = _read_trailer(file.fileno(), size)
            if trailer is None or path.name != _name_of(trailer[2]):
                return False
            return _read_payload(file.fileno(), size, trailer[2]) is not None
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _write_new(path: Path, data: bytes) -> None:
    # No fsync: after a power cut the checksum finds what is missing, and the entry is compiled again.
    with open(path, "xb") as file:
        file.write(data)


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Whether this process may evict now. The lock ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a network file system without locks: two that evict at once remove a little too much
            yield True
            return
        try:
            yield True
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a fork holds the descriptor too
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _patient_lock(path: Path) -> Iterator[None]:
    """Waits until this process has the lock, or goes on without it when that takes too long."""
    end = time.monotonic() + PATIENCE
    while True:
        with _try_lock(path) as mine:
            if mine or time.monotonic() > end:
                yield
                return
        time.sleep(0.002)


__all__ = ["UNREADABLE", "Cache", "Entry", "Stats", "open_cache"]
