"""Prepares emitted text for an examination on a CPU; every statement stays on its line.

Two things are added. Uninitialised variables are filled with what a lane may leave in a register. Loops that hold
memory accesses name their iterations, so that the accesses of 32 lanes make the instruction that a warp issues.
"""

from __future__ import annotations

import re

_DECLARATION = re.compile(
    r"^(\s*)((?:float|bool|ts_(?:i64|u64|i32|u32|i8|bf16|f16|fp8_e4m3|fp8_e5m2)) (\w+)(?:\[[^\]]*\])?;)", re.MULTILINE
)
_LOOP = re.compile(r"\b(for|while) \(")
_ACCESS = re.compile(r"\bts_(?:ld|st|cp|atomic)_")


def prepared(text: str, counted: bool) -> str:
    """The text with garbage in uninitialised variables and, with `counted`, loops that name their iterations."""
    text = _DECLARATION.sub(r"\1\2 ts_twin::fill_with_garbage(\3);", text)
    return _with_loops(text) if counted else text


def _with_loops(text: str) -> str:
    pieces, position = [], 0
    for match in _LOOP.finditer(text):
        end = _closing(text, match.end())
        if end is None or match.start() < position or not _holds_accesses(text, end + 1):
            continue
        inside = text[match.end() : end]
        if match[1] == "while":
            header = f"for (; {inside}; ts_loop.step())"
        else:
            first, condition, step = _clauses(inside)
            header = f"for ({first}; {condition}; ts_loop.step(){', ' + step if step else ''})"
        pieces += [text[position : match.start()], f"for (ts_twin::Loop ts_loop; ts_loop.once();) {header}"]
        position = end + 1
    return "".join([*pieces, text[position:]])


def _closing(text: str, position: int) -> int | None:
    """Where the parenthesis that was opened just before `position` closes."""
    depth = 1
    for i in range(position, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return None


def _clauses(header: str) -> tuple[str, str, str]:
    first, condition, step = (part.strip() for part in header.split(";", 2))
    return first, condition, step


def _holds_accesses(text: str, start: int) -> bool:
    """Whether the statement after a loop's header, one line or a block in braces, touches memory."""
    line_end = text.find("\n", start)
    if line_end < 0:
        line_end = len(text)
    if not text[start:line_end].rstrip().endswith("{"):
        if text[start:line_end].rstrip().endswith(";"):
            return _ACCESS.search(text, start, line_end) is not None
        return True  # the body starts on the next line
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0 and text[i] == "}":
            return _ACCESS.search(text, start, i) is not None
    return True
