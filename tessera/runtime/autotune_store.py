"""Results of tuning on disk: one entry for each question that was asked, and an index of those of one kernel.

The entry answers a call that asks the same again, in one read. The index answers all others: the choice for the nearest
key, or one that another GPU of the architecture has measured. Entries that were lost, or are of another form, are
misses; a choice is never needed for a right answer, so nothing here has to be beyond doubt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import getclosurevars
from types import FunctionType
from typing import Any

from tessera.dtypes import DType
from tessera.errors import SourceError
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.document import function_source
from tessera.ir.core import Kernel
from tessera.runtime.autotune_report import BORROWED, MEASURED, Choice, Report, settings_text
from tessera.runtime.cache import Cache, open_cache
from tessera.runtime.nvrtc import NvrtcUnavailable
from tessera.runtime.programs import nvrtc_identity, source_digest

SCHEMA = 1
RESULT, INDEX = "tuning", "tuning-index"  # kinds of entries of the cache
MOST_ROWS = 512  # of an index; the oldest go first

Number = int | float


@dataclass(frozen=True)
class Question:
    """What a choice is made for.

    `family` digests everything but sizes: the author's text, the space, what is pinned, architecture and compiler.
    `key` holds the values of the author's key, `static` the sizes that are compiled into the kernel, `variant` says
    which arguments are no plain arrays.
    """

    kernel: str
    family: str
    key: dict[str, Number]
    static: dict[str, int]
    variant: str

    def entry(self, gpu: str | None) -> str:
        """The key of the cache for the choice that was made on a GPU, or without one."""
        return f"{RESULT}/{_digest({'schema': SCHEMA, 'question': asdict(self), 'gpu': gpu})}"

    @property
    def index(self) -> str:
        return f"{INDEX}/{_digest({'schema': SCHEMA, 'family': self.family})}"


def ask(
    definition: KernelDefinition,
    kernel: Kernel,
    values: Mapping[str, Number],
    arch: str,
    variant: str = "",
) -> Question | None:
    """The question of a call; `kernel` is the Tile IR of `definition` at its default point, `values` those of dims,
    list lengths and scalars.

    What the author's text uses that is neither text nor a plain value is not part of it. A choice that was kept may
    then be a bad one, or not legal any more, but never wrong. None where the compiler cannot be told from another: its
    files changed after they were loaded.
    """
    sources = source_digest()
    if sources is None:
        return None
    try:
        nvrtc = nvrtc_identity()
    except NvrtcUnavailable:
        nvrtc = ""
    space = definition.space
    facts = {
        "source": author_text(definition),
        "annotations": [str(parameter.annotation) for parameter in definition.parameters],
        "space": {} if space is None else space.candidates,
        "pins": [definition.pins, definition.schedule],
        "options": {name: repr(value) for name, value in definition.options.items()},
        "arch": arch,
        "compiler": [sources, nvrtc],
    }
    static = {name: int(values[name]) for name in kernel.attributes["shape_dims"] if name in values}
    return Question(definition.name, _digest(facts), key_values(definition, values), static, variant)


def key_values(definition: KernelDefinition, values: Mapping[str, Number]) -> dict[str, Number]:
    """The author's key with its values; a kernel without one is asked about at every one of its sizes."""
    from tessera.frontend.annotations import ListAnnotation
    from tessera.frontend.space import NUM_LAYERS
    from tessera.ir.types import length_name

    if definition.space is None:
        return dict(values)
    lists = [p.name for p in definition.parameters if isinstance(p.annotation, ListAnnotation)]
    known = {**({NUM_LAYERS: values[length_name(lists[0])]} if lists else {}), **values}
    return {name: known[name] for name in definition.space.key if name in known}


def author_text(definition: KernelDefinition) -> list[str]:
    """The text of a kernel and of what it uses: Python functions of its author, and constants. In a fixed order."""
    found: dict[str, str] = {}
    _collect(definition.function, found)
    return [f"{name}: {text}" for name, text in sorted(found.items())]


def _collect(function: FunctionType | Any, found: dict[str, str]) -> None:
    name = f"{function.__module__}.{function.__qualname__}"
    if name in found:
        return
    try:
        source = function_source(function)
    except SourceError:
        return
    node = source.node
    lines = source.text.split("\n")[node.lineno - 1 : node.end_lineno]
    found[name] = "\n".join(lines)
    try:
        used = getclosurevars(function)
    except ValueError:  # it uses a name of a function around it that has no value yet
        return
    for own, value in {**used.globals, **used.nonlocals}.items():
        if isinstance(value, FunctionType):
            _collect(value, found)
        elif _is_plain(value):
            found[f"{name}.{own}"] = repr(value)


def _is_plain(value: Any) -> bool:
    """Whether `repr` says the same of a value in every process."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, DType, type(None)))


# ---- reading and writing -------------------------------------------------------------------------------------------


class Store:
    """The results in one cache; without one given, that of the user."""

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = cache

    @property
    def cache(self) -> Cache:
        return self._cache or open_cache()

    def read(self, question: Question, gpu: str | None) -> Report | None:
        """What was found for this question on this GPU, or without one."""
        data = self.cache.get(question.entry(gpu))
        if data is None:
            return None
        try:
            found = Report.from_json(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError):  # of another form: a miss like any other
            return None
        return found if found.gpu == gpu else None

    def write(self, question: Question, report: Report) -> bool:
        """Keeps a result, and what was measured in the index too; False where nothing can be kept."""
        sizes = {"key": question.key, "static": question.static, "variant": question.variant}
        row = {**sizes, "gpu": report.gpu, "choice": asdict(report.choice)}

        def changed(data: bytes | None) -> bytes:
            mine = _identity(row)
            rows = [old for old in _rows(data) if _identity(old) != mine]
            return json.dumps([*rows, row][-MOST_ROWS:]).encode()

        if report.measured:
            self.cache.update(question.index, changed)
        return self.cache.put(question.entry(report.gpu), json.dumps(report.to_json()).encode())

    def elsewhere(self, question: Question) -> Choice | None:
        """What some GPU of the architecture has measured for this key."""
        for row in reversed(_rows(self.cache.get(question.index))):
            same = row["key"] == question.key and row["static"] == question.static
            if same and row["variant"] == question.variant:
                choice = _choice(row)
                if choice is not None and choice.origin == MEASURED:
                    return choice
        return None

    def nearest(self, question: Question, gpu: str | None) -> Choice | None:
        """The measured choice for the nearest other key, `borrowed`; of the same GPU where it has one."""
        best: tuple[tuple[bool, float], Choice, dict[str, Number]] | None = None
        for row in _rows(self.cache.get(question.index)):
            away = distance(question.key, row["key"]) if row["variant"] == question.variant else None
            choice = None if away is None else _choice(row)
            if away is None or choice is None or choice.origin != MEASURED:
                continue
            rank = (row["gpu"] != gpu, away)
            if best is None or rank < best[0]:
                best = rank, choice, row["key"]
        if best is None:
            return None
        _, choice, key = best
        return Choice(choice.constants, choice.schedule, BORROWED, f"measured for {settings_text(key)}")


def distance(a: Mapping[str, Number], b: Mapping[str, Number]) -> float | None:
    """How many doublings lie between two keys, all values together; None where a value has no ratio to the other."""
    if a.keys() != b.keys():
        return None
    total = 0.0
    for name, value in a.items():
        other = b[name]
        if value == other:
            continue
        if isinstance(value, bool) or isinstance(other, bool) or value <= 0 or other <= 0:
            return None
        total += abs(math.log2(value / other))
    return total


def _rows(data: bytes | None) -> list[dict[str, Any]]:
    """The rows of an index that are whole."""
    try:
        rows = json.loads(data) if data is not None else []
    except ValueError:
        return []
    return [row for row in rows if _is_row(row)] if isinstance(rows, list) else []


def _is_row(row: Any) -> bool:
    known = {"key", "static", "variant", "gpu", "choice"}
    return isinstance(row, dict) and row.keys() == known and isinstance(row["key"], dict)


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["key"], row["static"], row["variant"], row["gpu"]


def _choice(row: Mapping[str, Any]) -> Choice | None:
    try:
        return Choice.from_json(row["choice"])
    except (TypeError, ValueError):
        return None


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


__all__ = ["INDEX", "RESULT", "Question", "Store", "ask", "author_text", "distance", "key_values"]
