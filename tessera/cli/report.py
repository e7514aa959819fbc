"""How the command line speaks: one strict JSON object, or short text for a person; errors with carets on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tessera import errors
from tessera.buffers import Footprint
from tessera.errors import TesseraError

SCHEMA = 1
# Mistakes in the command itself rather than in what it names.
USAGE_CODES = frozenset({"TS103", "TS104", "TS508", "TS605"})
OK, FAILED, USAGE = 0, 1, 2

# Where `print_json` writes while everything else that is printed goes to stderr; None: sys.stdout.
json_stream: TextIO | None = None


def exit_code(error: TesseraError) -> int:
    return USAGE if error.code in USAGE_CODES else FAILED


def print_json(result: dict[str, Any]) -> None:
    """Prints the one object of `--json`."""
    text = json.dumps(strict({"schema": SCHEMA, **result}), allow_nan=False, indent=2)
    print(text, file=json_stream or sys.stdout)


def strict(value: Any) -> Any:
    """`value` for strict JSON: a float that is not finite becomes null, and its object says `nonfinite: true`."""
    if isinstance(value, dict):
        result = {str(key): strict(item) for key, item in value.items()}
        if any(isinstance(item, float) and not math.isfinite(item) for item in value.values()):
            result["nonfinite"] = True
        return result
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float):  # np.float64 is one too, but not for every JSON encoder
        return float(value) if math.isfinite(value) else None
    return value


def error_text(error: TesseraError) -> str:
    from tessera.frontend.document import read_source_line

    return errors.render(error, read_source_line)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: drawn by rich on a terminal, else aligned columns without decoration."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*headers, header_style="bold")
        for row in rows:
            drawn.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        Console().print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def code(text: str, language: str) -> None:
    """Prints program text, coloured on a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text.rstrip("\n"), language, background_color="default", word_wrap=True))
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


_STYLES = {"ok": "green", "FAILED": "bold red"}
_RATIO = re.compile(r"\d+\.\dx")  # how many times what would be ideal


def _style(cell: str) -> str:
    ratio = _RATIO.fullmatch(cell) is not None and cell != "1.0x"
    return "yellow" if ratio else _STYLES.get(cell, "")


def seconds_text(seconds: float) -> str:
    """A duration with three figures and a unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def bytes_text(count: int) -> str:
    """An amount of memory with three figures and a unit that suits it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def memory_text(found: Footprint) -> str:
    """What a call of a function needs, in a clause."""
    unshared = f" ({bytes_text(found.unshared)} without reuse)" if found.unshared != found.workspace else ""
    return f"{bytes_text(found.workspace)}{unshared}, peak {bytes_text(found.peak)}"


def memory_json(found: Footprint) -> dict[str, int]:
    """The same in bytes."""
    return {
        "workspace_bytes": found.workspace,
        "workspace_unshared_bytes": found.unshared,
        "peak_bytes": found.peak,
        "peak_unshared_bytes": found.peak_unshared,
    }


def number_text(value: float) -> str:
    return f"{value:.3g}"


def dims_text(dims: dict[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in dims.items())
