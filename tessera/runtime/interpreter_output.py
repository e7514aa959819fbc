"""Where the lines go that kernels print: to standard output, or to a list while `capture` is on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_captured: list[list[str]] = []


def write_line(line: str) -> None:
    """Takes one printed line, without its line break."""
    if _captured:
        _captured[-1].append(line)
    else:
        sys.stdout.write(line + "\n")


@contextmanager
def capture() -> Iterator[list[str]]:
    """The lines that kernels print on the CPU lanes inside the `with` block, which are then not shown."""
    lines: list[str] = []
    _captured.append(lines)
    try:
        yield lines
    finally:
        _captured.remove(lines)
