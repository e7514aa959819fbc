"""Random damage to texts: what a typing error, a bad merge or a broken tool does to a file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_TOKEN = re.compile(r"\w+|[^\w\s]|[^\S\n]+|\n")
NUMBERS = ("0", "1", "-1", "7", "2", "1.5", "1e400", "65536", "1_000", "0x10", "True", "None", "'n'")
WORDS = (
    "x", "tile", "ts", "None", "True", "lambda", "yield", "await", "if", "else", "for", "in", "return", "del", "pass",
    "bf16", "f32", "f16", "i64", "bool", "int", "float", "list", "str", "shape", "print", "range", "mma", "load",
    "store", "wait", "context", "program_id", "out", "Tensor", "T", "[]", "{}", "()", "...", "*", "**", "@", ":", "->",
    "\\", '"', "'", '"""', "#", "```", "%", "=", "==", "!", "?", "é", "\u2028", "\t", "\0", "\ufeff",
)  # fmt: skip


def tokens_of(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _places(tokens: list[str], wanted: Callable[[str], bool]) -> list[int]:
    return [place for place, token in enumerate(tokens) if wanted(token)] or [0]


def _solid(token: str) -> bool:
    return not token.isspace()


def delete(tokens: list[str], chance: random.Random) -> None:
    del tokens[chance.choice(_places(tokens, _solid))]


def repeat(tokens: list[str], chance: random.Random) -> None:
    place = chance.choice(_places(tokens, _solid))
    tokens.insert(place, tokens[place])


def swap(tokens: list[str], chance: random.Random) -> None:
    places = _places(tokens, _solid)
    a, b = chance.choice(places), chance.choice(places)
    tokens[a], tokens[b] = tokens[b], tokens[a]


def swap_neighbours(tokens: list[str], chance: random.Random) -> None:
    places = _places(tokens, _solid)
    first = chance.randrange(len(places))
    a, b = places[first], places[min(first + 1, len(places) - 1)]
    tokens[a], tokens[b] = tokens[b], tokens[a]


def rename(tokens: list[str], chance: random.Random) -> None:
    """A name becomes another one of the text: often of another type."""
    places = _places(tokens, str.isidentifier)
    tokens[chance.choice(places)] = tokens[chance.choice(places)]


def renumber(tokens: list[str], chance: random.Random) -> None:
    tokens[chance.choice(_places(tokens, lambda token: token[0].isdigit()))] = chance.choice(NUMBERS)


def replace(tokens: list[str], chance: random.Random) -> None:
    tokens[chance.choice(_places(tokens, _solid))] = chance.choice(WORDS)


def insert(tokens: list[str], chance: random.Random) -> None:
    tokens.insert(chance.choice(_places(tokens, _solid)), chance.choice(WORDS))


def swap_lines(tokens: list[str], chance: random.Random) -> None:
    lines = "".join(tokens).split("\n")
    a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    tokens[:] = tokens_of("\n".join(lines))


def drop_line(tokens: list[str], chance: random.Random) -> None:
    lines = "".join(tokens).split("\n")
    del lines[chance.randrange(len(lines))]
    tokens[:] = tokens_of("\n".join(lines))


def indent(tokens: list[str], chance: random.Random) -> None:
    lines = "".join(tokens).split("\n")
    place = chance.randrange(len(lines))
    lines[place] = chance.choice(["    ", " ", "\t", ""]) + lines[place].lstrip(" " if chance.random() < 0.5 else "\0")
    tokens[:] = tokens_of("\n".join(lines))


def truncate(tokens: list[str], chance: random.Random) -> None:
    del tokens[chance.randrange(len(tokens)) :]


# The subtle ones come several times: they get past the parser.
MUTATIONS = (
    *(delete, repeat, swap, swap_neighbours, replace, insert, swap_lines, drop_line, indent, truncate),
    *(rename, renumber) * 10,
)


def mutated(text: str, chance: random.Random) -> str:
    """The text after one to three mutations."""
    tokens = tokens_of(text)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if tokens:
            chance.choice(MUTATIONS)(tokens, chance)
    return "".join(tokens)
