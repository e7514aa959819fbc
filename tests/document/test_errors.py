"""Every wrong call of the document's meaning is refused: code, words, the author's line, a remedy."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.errors import CODES, ArgumentError, SourceError, TesseraError, render
from tessera.frontend.document import execute, parse_document, read_document, read_source_line
from tests.document.calls import PRELUDE, backend, to_array
from tests.document.cases import ERRORS, ErrorCase, SameAs, T
from tests.suite import DOCUMENT, load


def says(message: str, word: str) -> bool:
    """Whether a word stands in the message for itself: not in a longer word, and not in a longer number."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    before += r"(?<!\d\.)" if word[0].isdigit() else ""
    after = (r"(?!\w)" if re.search(r"\w$", word) else "") + (r"(?!\.\d)" if word[-1].isdigit() else "")
    return re.search(before + re.escape(word) + after, message) is not None


def argument(value: Any) -> Any:
    if isinstance(value, list):
        return [argument(item) for item in value]
    return to_array(np.zeros(tuple(map(int, value.shape))), value.dtype) if isinstance(value, T) else value


def call(case: ErrorCase) -> None:
    arguments = {name: argument(value) for name, value in case.arguments.items()}
    for name, value in arguments.items():
        if isinstance(value, SameAs):
            arguments[name] = arguments[value.parameter]
    with backend("interpret"), ts.train() if case.training else ts.eval():
        if case.source:
            callee = execute(parse_document(file_of(case), case.source), PRELUDE)["f"]
        elif case.block:
            callee = execute(read_document(DOCUMENT), PRELUDE, only=[case.block])[case.function]
        else:
            callee = load(case.function)
        (callee[case.grid] if case.grid else callee)(**arguments)


def file_of(case: ErrorCase) -> str:
    return f"{case.id}.py" if case.source else DOCUMENT


@functools.cache
def lines_of(name: str) -> range:
    """The lines of a function in the document, from its decorator."""
    for block in read_document(DOCUMENT).blocks:
        for node in block.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return range(node.decorator_list[0].lineno, (node.end_lineno or 0) + 1)
    raise KeyError(name)


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.id)
def test_a_wrong_call_is_refused(case):
    with pytest.raises(TesseraError) as caught:
        call(case)
    error = caught.value
    assert isinstance(error, (SourceError, ArgumentError)) and CODES[error.code].remedy == error.remedy != ""
    assert [word for word in case.words if not says(error.message, word)] == [], str(error)
    if isinstance(error, SourceError):
        loc = error.loc
        assert loc is not None and loc.file == file_of(case)
        text = case.source or Path(DOCUMENT).read_text()
        if not case.source:
            assert loc.line in lines_of(case.function), str(error)
        shown = render(error, read_source_line).splitlines()
        assert shown[1].strip() == text.splitlines()[loc.line - 1].strip() and set(shown[2].strip()) == {"^"}
        assert shown[3] == f"  help: {error.remedy}"


def test_a_number_is_not_a_part_of_another():
    assert says("axis 1 is 40 and 41.", "41") and says("T = 0.0", "0.0") and says("p is -0.1, but", "-0.1")
    assert not says("140", "40") and not says("0.1", "1") and not says("1.5", "1") and not says("x_source", "x")


@pytest.mark.parametrize("function", ["gating_function_kernel", "delta_connection"])
def test_the_call_that_was_refused_can_be_mended(function):
    """The same call without its mistake works, so it is the mistake that was refused."""
    x, w = argument(T((2, 40, 16))), argument(T((16, 16)))
    with backend("interpret"):
        definition = load(function)
        tensors = (x, w) if function == "gating_function_kernel" else (x, x, w)
        assert definition(*tensors, 2).shape == (2, 40, 16)
