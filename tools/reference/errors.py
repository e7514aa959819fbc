"""The page of error codes: the table, and for each code a real message, made by raising it."""

from __future__ import annotations

from functools import cache

from tessera.errors import AREAS, CODES, render
from tessera.frontend.document import read_source_line
from tools.reference import text
from tools.reference.error_examples import EXAMPLES, WITHOUT

INTRODUCTION = """
A message is one sentence with the names and values of your own code, the place in your file or document, and what to
do. The first digit of a code says what kind of thing is wrong: {areas}.

Each message below was printed by the example above it. Examples in Python start with `import numpy as np`,
`import tessera as ts` and `from tessera import Tensor, tile`. In Python every error is a `tessera.TesseraError` with
`code`, `message`, `loc` and `notes`; with `--json` the command line prints them as the object `error`.
"""


def page() -> str:
    areas = ", ".join(f"{digit} {name}" for digit, name in AREAS.items())
    parts = []
    area = ""
    for code in sorted(CODES):
        if code[2] != area:
            area = code[2]
            parts.append(f"## {area}: {AREAS[area]}")
        parts.append(_entry(code))
    return text.page("Errors", INTRODUCTION.format(areas=areas), *parts)


def _entry(code: str) -> str:
    title, remedy = CODES[code]
    parts = [f"### {code}: {title}", text.sentence(f"What to do: {remedy}")]
    if code in EXAMPLES:
        example = EXAMPLES[code]
        parts += [text.fence(example.shown, example.language), text.fence(rendered(code))]
    else:
        parts.append(text.sentence(f"No example: {WITHOUT.get(code, 'none has been written yet')}"))
    return "\n\n".join(parts)


@cache
def rendered(code: str) -> str:
    """The message of the code's example, as a person sees it."""
    return render(EXAMPLES[code].raised(), read_source_line)
