"""`tessera cache`: what the disk cache holds, and whether it is whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tessera.cli import report
from tessera.errors import ArgumentError, EnvironmentProblem
from tessera.runtime.cache import Cache, Entry, open_cache


def cache(action: str, kind: str | None, as_json: bool) -> int:
    """Runs one of `list`, `stats`, `clear`, `verify`; verify fails when an entry does not check.

    `kind` restricts `list` and `clear` to the entries of one kind. Raises ArgumentError TS605 where it means nothing.
    """
    if kind is not None and action not in _TAKE_KINDS:
        raise ArgumentError("TS605", f"--kind goes with {' and '.join(_TAKE_KINDS)}, not with {action}")
    store = open_cache()
    try:
        found = _TAKE_KINDS[action](store, kind, as_json) if action in _TAKE_KINDS else _ACTIONS[action](store, as_json)
    except BrokenPipeError:  # of stdout, not of the cache
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentProblem("TS802", f"the cache in {store.folder} cannot be used: {reason}") from None
    return report.OK if found else report.FAILED


def _list(store: Cache, kind: str | None, as_json: bool) -> bool:
    entries = [entry for entry in store.entries()[::-1] if kind in (None, entry.kind)]  # the last used first
    if as_json:
        report.print_json({"ok": True, "folder": str(store.folder), "entries": [_as_json(e) for e in entries]})
    elif entries:
        report.table(["kind", "key", "size", "last use"], [_row(entry) for entry in entries])
    else:
        print(f"nothing of kind {kind} in {store.folder}" if kind else f"nothing in {store.folder}")
    return True


def _stats(store: Cache, as_json: bool) -> bool:
    stats = store.stats()
    kinds = Counter(entry.kind for entry in store.entries())
    if as_json:
        body: dict[str, Any] = {"ok": True, "folder": str(stats.folder), "entries": stats.entries, "bytes": stats.bytes}
        body |= {"limit": stats.limit, "oldest_seconds": stats.oldest, "unfinished": stats.temporary}
        report.print_json(body | {"kinds": dict(sorted(kinds.items()))})
        return True
    limit = size_text(stats.limit) if stats.limit else "0 (TESSERA_CACHE_BYTES turns it off)"
    rows = [
        ["folder", str(stats.folder)],
        ["size", f"{size_text(stats.bytes)} of {limit}"],
        ["entries", str(stats.entries)],
    ]
    rows += [[f"  {kind}", str(count)] for kind, count in sorted(kinds.items())]
    if stats.entries:
        rows.append(["oldest", age_text(stats.oldest)])
    if stats.temporary:
        rows.append(["unfinished", str(stats.temporary)])
    for name, value in rows:
        print(f"{name:<12}{value}")
    return True


def _clear(store: Cache, kind: str | None, as_json: bool) -> bool:
    total = store.stats().bytes if kind is None else sum(e.bytes for e in store.entries() if e.kind == kind)
    removed = store.clear(kind)
    if as_json:
        report.print_json({"ok": True, "folder": str(store.folder), "removed": removed, "bytes": total})
    else:
        print(f"removed {_count(removed)} ({size_text(total)}) from {store.folder}")
    return True


def _verify(store: Cache, as_json: bool) -> bool:
    checked, bad = len(store.entries()), store.verify()
    if as_json:
        body: dict[str, Any] = {"ok": not bad, "folder": str(store.folder), "checked": checked}
        report.print_json(body | {"bad": [_as_json(entry) for entry in bad]})
        return not bad
    for entry in bad:
        print(f"damaged: {entry.path}")
    summary = f"{len(bad)} damaged; a damaged entry is compiled again when it is next needed" if bad else "all whole"
    print(f"{_count(checked)} in {store.folder}: {summary}")
    return not bad


_ACTIONS = {"stats": _stats, "verify": _verify}
_TAKE_KINDS = {"list": _list, "clear": _clear}


def _as_json(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "bytes": entry.bytes, "age_seconds": entry.age, "file": str(entry.path)}


def _row(entry: Entry) -> list[str]:
    digest = entry.key.rpartition("/")[2] if entry.key else entry.path.name
    return [entry.kind, digest[:16], size_text(entry.bytes), age_text(entry.age)]


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def size_text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1024
    return f"{size:.3g} GiB"


def age_text(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


__all__ = ["age_text", "cache", "size_text"]
