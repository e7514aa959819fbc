"""Writes every generated page and stub, from the tables that the package itself works from.

    python -m tools.make_docs           # writes what has changed
    python -m tools.make_docs --check   # lists what is stale, writes nothing, exits with 1 if there is any

Whole files are generated from the declared intrinsics, the op table, the error codes, the settings and the commands. In
hand-written pages two things are: the text between `<!-- generated: NAME -->` and `<!-- end -->`, and the output under
each `$ tessera ...` line of a console block.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.reference import console, errors, excerpts, language, settings, stubs, support, tensors

ROOT = Path(__file__).parents[1]

GENERATED: Mapping[str, Callable[[], str]] = {
    "docs/language.md": language.page,
    "docs/tensors.md": tensors.page,
    "docs/errors.md": errors.page,
    "docs/support.md": support.page,
    "docs/settings.md": settings.settings_page,
    "docs/cli.md": settings.cli_page,
    "tessera/__init__.pyi": stubs.package_stub,
    "tessera/frontend/namespace.pyi": stubs.namespace_stub,
}
HAND_WRITTEN = (
    "README.md",
    "docs/guide.md",
    "docs/functions.md",
    "docs/gated_delta_rule.md",
    "docs/check.md",
    "docs/schedules.md",
    "docs/tuning.md",
    "docs/development.md",
)


def wanted(name: str) -> str:
    """What the file `name` should hold."""
    if name in GENERATED:
        return GENERATED[name]()
    return console.refresh(excerpts.refresh((ROOT / name).read_text()))


def stale() -> dict[str, str]:
    """The files whose text is not what it should be, with what it should be."""
    found = {}
    for name in (*GENERATED, *HAND_WRITTEN):
        text, path = wanted(name), ROOT / name
        if not path.exists() or path.read_text() != text:
            found[name] = text
    return found


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)  # commands on the pages name files from here
    found = stale()
    for name, text in found.items():
        if "--check" in arguments:
            print(f"stale: {name}")
        else:
            (ROOT / name).write_text(text)
            print(f"wrote {name}")
    if found and "--check" in arguments:
        print("run: make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
