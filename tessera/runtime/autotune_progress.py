"""A progress bar for tuning, on stderr where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tessera.runtime.autotune import Progress, silent
from tessera.runtime.autotune_report import settings_text


@contextmanager
def shown(kernel: str, key: Mapping[str, Any]) -> Iterator[Progress]:
    """What hears of the progress of one tuning; the bar goes when it ends."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Bar(*columns, TextColumn("{task.fields[best]}"), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(f"tuning {kernel} {settings_text(key) if key else ''}", total=None, best="")

        def hear(done: int, total: int, best: float | None) -> None:
            bar.update(task, completed=done, total=total, best="" if best is None else f"best {best * 1e6:.1f} us")

        yield hear


__all__ = ["shown"]
