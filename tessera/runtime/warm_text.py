"""The text of a Python function as it is written line by line, and the objects that names in it stand for."""

from __future__ import annotations

import linecache
import re
import sys
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

from tessera.config import Config
from tessera.frontend.definition import MISSED

# What reading a foreign object raises where it is no dense array with memory.
UNREADABLE = (KeyError, RuntimeError, AttributeError, TypeError, ValueError)
_serial = count()


class Text:
    """Lines of one function. It leaves with MISSED wherever something is not as it was when it was written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 1
        self._bound: dict[str, Any] = {"MISSED": MISSED, "UNREADABLE": UNREADABLE}
        self._numbers = count()

    def bind(self, hint: str, value: Any) -> str:
        """A name for an object, the same one for the same object: `hint` in capitals, as no variable is written."""
        base = re.sub(r"\W", "_", hint).upper()
        for number in count():
            name = f"{base}{number or ''}"
            known = self._bound.setdefault(name, value)
            if known is value:
                return name
        raise AssertionError

    def serial(self) -> int:
        """Another number each time, for variables."""
        return next(self._numbers)

    def line(self, *lines: str) -> None:
        self._lines += [4 * self._depth * " " + line for line in lines]

    def leave_if(self, condition: str) -> None:
        self.line(f"if {condition}:", "    return MISSED")

    def inside(self, head: str) -> _Block:
        """A block: `with text.inside("try"):`."""
        self.line(f"{head}:")
        return _Block(self)

    def function(self, name: str, parameters: str, settings: Config) -> Callable[..., Any]:
        """The function, a call of `name`, whose `source` is its text, which `inspect` and tracebacks show, too.

        Where `settings.dump` has "host", it is printed to stderr with what its names stand for.
        """
        own = f"call_{name}"
        source = "\n".join([f"def {own}({parameters}):", *self._lines, ""])
        file = f"<tessera host code {next(_serial)} of {name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = dict(self._bound)
        exec(compile(source, file, "exec"), namespace)
        made = namespace[own]
        made.source = source
        weakref.finalize(made, linecache.cache.pop, file, None).atexit = False
        if "host" in settings.dump:
            used = [f"# {known}: {_shown(value)}" for known, value in self._bound.items() if known not in _FIXED]
            print("\n".join([f"# host code of {name}", *used, source]), file=sys.stderr)
        return made


_FIXED = ("MISSED", "UNREADABLE")


class _Block:
    def __init__(self, text: Text) -> None:
        self._text = text

    def __enter__(self) -> None:
        self._text._depth += 1

    def __exit__(self, *raised: object) -> None:
        self._text._depth -= 1


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


__all__ = ["UNREADABLE", "Text"]
