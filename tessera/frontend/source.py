"""Attribute names that Python reserves: `tile.cp_async.shared.global(...)` is a syntax error until it is rewritten.

A hard keyword directly after a dot gets an underscore, so that `.global` is read as `.global_`. This works on tokens:
comments and strings stay as they are. (Before Python 3.12 an f-string is one token, so the expressions inside it stay
too.) Lines keep their numbers, and a column map takes every position back to the text that the author wrote.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tessera.errors import SourceError
from tessera.location import Loc

_HARD_KEYWORDS = frozenset(keyword.kwlist)
_INVISIBLE = frozenset({tokenize.NL, tokenize.COMMENT})


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Takes 0-based character columns of rewritten text back to the original.

    `inserted` holds, by line, the ascending rewritten columns of inserted underscores; `indent` holds, by line, how
    many characters were cut from the line's start (a code block inside a list item is indented with it).
    """

    inserted: dict[int, list[int]] = field(default_factory=dict)
    indent: dict[int, int] = field(default_factory=dict)

    def original(self, line: int, column: int) -> int:
        # A position just after an underscore is past it; one on it is the end of the author's keyword.
        return column - bisect_left(self.inserted.get(line, ()), column) + self.indent.get(line, 0)


@dataclass(frozen=True, slots=True)
class Rewritten:
    text: str
    columns: ColumnMap


def rewrite_keyword_attributes(text: str) -> Rewritten:
    """`text` with an underscore after each keyword that is used as an attribute name; newlines become ``\\n``.

    Text that cannot be tokenized is rewritten up to that place: compiling it then reports the real error.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    inserted: dict[int, list[int]] = {}
    for line, end in _keyword_attribute_ends(text):
        columns = inserted.setdefault(line, [])
        position = end + len(columns)
        columns.append(position)
        lines[line - 1] = lines[line - 1][:position] + "_" + lines[line - 1][position:]
    return Rewritten("\n".join(lines), ColumnMap(inserted))


def _keyword_attribute_ends(text: str) -> Iterator[tuple[int, int]]:
    """(line, end column) of each hard keyword that names an attribute, in order."""
    # In `from . import x` the dot starts a module path: a dot after `from` or after another dot is no attribute access.
    starts_path, after_dot = False, False
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    while True:
        try:
            token = next(tokens)
        except (StopIteration, tokenize.TokenError, SyntaxError):
            return
        if token.type in _INVISIBLE:
            continue
        attribute = after_dot and token.type == tokenize.NAME
        if attribute and token.string in _HARD_KEYWORDS:
            yield token.end
        is_dot = token.type == tokenize.OP and token.string in (".", "...")
        after_dot = is_dot and token.string == "." and not starts_path
        starts_path = (is_dot and not after_dot) or (token.string == "from" and not attribute)


def parse_source(text: str, file: str, first_line: int, columns: ColumnMap) -> ast.Module:
    """The tree of rewritten `text`, whose first line is `first_line` of `file`, with positions in the original text.

    After this every `col_offset` and `end_col_offset` counts characters of the original line, not bytes of the
    rewritten one. Raises SourceError TS101 at the original position.
    """
    padded = "\n" * (first_line - 1) + text
    try:
        tree = ast.parse(padded, file)
    except SyntaxError as error:
        message = f"Python cannot read this line: {error.msg}"
        raise SourceError("TS101", message, _syntax_error_loc(error, file, first_line, columns)) from None
    except ValueError as error:  # null bytes
        raise SourceError("TS101", str(error), Loc(file, first_line)) from None
    lines = padded.split("\n")
    node: Any
    for node in ast.walk(tree):
        if hasattr(node, "col_offset"):
            node.col_offset = _original_column(lines, columns, node.lineno, node.col_offset)
            node.end_col_offset = _original_column(lines, columns, node.end_lineno, node.end_col_offset)
    return tree


def node_loc(node: ast.AST, file: str) -> Loc:
    """Location of a node of a tree from `parse_source`."""
    line: int = getattr(node, "lineno", 1)
    end = getattr(node, "end_col_offset", None)
    return Loc(
        file,
        line,
        getattr(node, "col_offset", 0) + 1,
        getattr(node, "end_lineno", None),
        None if end is None else end + 1,
    )


def _original_column(lines: list[str], columns: ColumnMap, line: int, byte_column: int) -> int:
    text = lines[line - 1]
    # Inside f-strings Python 3.11 and older may place a node in the middle of a character.
    column = byte_column if text.isascii() else len(text.encode()[:byte_column].decode(errors="ignore"))
    return columns.original(line, column)


def _syntax_error_loc(error: SyntaxError, file: str, first_line: int, columns: ColumnMap) -> Loc:
    line = error.lineno or first_line
    column = columns.original(line, max((error.offset or 1) - 1, 0)) + 1
    if not error.end_lineno or not error.end_offset:  # 0 or None where Python knows only the start
        return Loc(file, line, column)
    return Loc(file, line, column, error.end_lineno, columns.original(error.end_lineno, error.end_offset - 1) + 1)
