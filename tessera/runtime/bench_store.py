"""Two kinds of files of a benchmark: its results, and the schedules with which rivals won.

Both are whole JSON files after every row: a later row that fails, or a machine that is taken away, loses nothing.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.errors import ArgumentError
from tessera.runtime.bench_case import Schedule, Searched
from tessera.runtime.bench_search import Found

SCHEMA = 1


class Winners:
    """The file of winners. One holds for a key, a GPU and the versions of the packages that the rival is made with."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Raises ArgumentError TS605 for a file that is not one of winners."""
        self._path, self._facts = path, facts
        self._entries: list[dict[str, Any]] = read(path, "winners")

    def get(self, searched: Searched) -> Schedule | None:
        where = self._where(searched)
        found = next((entry for entry in self._entries if where.items() <= entry.items()), None)
        return None if found is None else dict(found["schedule"])

    def put(self, searched: Searched, found: Found) -> None:
        where = self._where(searched)
        others = [entry for entry in self._entries if not where.items() <= entry.items()]
        self._entries = sorted([*others, {**where, **vars(found)}], key=lambda entry: (entry["key"], entry["gpu"]))
        write(self._path, {"winners": self._entries})

    def _where(self, searched: Searched) -> dict[str, Any]:
        packages = {package: self._facts.get(package) for package in searched.packages}
        return {"key": searched.key, "gpu": self._facts.get("gpu"), **packages}


class Results:
    """The file of one case: its rows by dims, each with the number of the machine that it was measured on.

    Rows that are not measured again stay.
    """

    def __init__(self, path: Path, case: str) -> None:
        """Raises ArgumentError TS605 for a file that holds no results."""
        self.path, self._case = path, case
        self._rows: list[dict[str, Any]] = read(path, "rows")
        self._machines: list[dict[str, Any]] = read(path, "machines")

    def put(self, row: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """Adds a row, in the place of one with the same dims, and writes the file."""
        facts = finite(dict(machine))
        kept = [known for known in self._rows if known["dims"] != row["dims"]]
        machines = [*self._machines, *([] if facts in self._machines else [facts])]
        rows = [*kept, {**finite(dict(row)), "machine": machines.index(facts)}]
        used = sorted({item["machine"] for item in rows})
        self._machines = [machines[number] for number in used]
        self._rows = [{**item, "machine": used.index(item["machine"])} for item in rows]
        write(self.path, {"case": self._case, "machines": self._machines, "rows": self._rows})


def read(path: Path, key: str) -> list[dict[str, Any]]:
    """A list of objects in a JSON file of ours; empty without a file. Raises ArgumentError TS605."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ArgumentError("TS605", f"{path} cannot be read as JSON: {error}") from None
    found = content.get(key) if isinstance(content, dict) and content.get("schema") == SCHEMA else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ArgumentError("TS605", f"{path} is no file of benchmark {key}: name another place, or remove it")
    return found


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file at once: it is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"schema": SCHEMA, **content}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def finite(value: Any) -> Any:
    """`value` for strict JSON: a float that is not finite, as the error of a NaN, is null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


__all__ = ["Results", "Winners", "finite", "read", "write"]
