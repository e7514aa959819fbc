"""What a person sees: the sentence, the line, the carets, the remedy and the calls that led there."""

import json
import pickle
import re

import pytest

from tessera import errors
from tessera.errors import ArgumentError, EnvironmentProblem, InternalError, SourceError, render, to_json
from tessera.location import Loc


def reader(text: str):
    return lambda file, line: text


def test_codes_are_well_formed():
    for code, (title, remedy) in errors.CODES.items():
        assert re.fullmatch(r"TS[1-9]\d\d", code)
        assert code[2] in errors.AREAS
        assert title and remedy and not remedy.endswith(".")


def test_unknown_code_is_refused():
    with pytest.raises(KeyError, match="TS999"):
        SourceError("TS999", "nothing")


def test_kinds_share_one_base():
    for kind in (SourceError, ArgumentError, EnvironmentProblem, InternalError):
        assert issubclass(kind, errors.TesseraError)


def test_render_underlines_the_span():
    error = SourceError("TS201", "there is no name 'y'", Loc("a.py", 3, 9, 3, 13), notes=["x is defined on line 1"])
    assert render(error, reader("    x = yyyy + 1\n")).splitlines() == [
        "a.py:3:9: error[TS201]: there is no name 'y'",
        "        x = yyyy + 1",
        "            ^^^^",
        f"  help: {errors.CODES['TS201'].remedy}",
        "  note: x is defined on line 1",
    ]


@pytest.mark.parametrize(
    ("text", "loc", "line", "carets"),
    [
        ("\tx = 1", Loc("f", 1, 2, 1, 3), "        x = 1", "        ^"),
        ("a\tb = 1", Loc("f", 1, 3, 1, 4), "    a   b = 1", "        ^"),
        ("f(\ta)", Loc("f", 1, 3, 1, 5), "    f(  a)", "      ^^^"),  # the span starts with the tab itself
        ("call(", Loc("f", 1, 1, 4, 2), "    call(", "    ^^^^^"),  # goes on below
        ("abc", Loc("f", 1, 2), "    abc", "     ^"),
        ("abc", Loc("f", 1, 90, 1, 95), "    abc", "       ^"),  # beyond the line: the file changed since
    ],
)
def test_carets_under_tabs_and_ragged_spans(text, loc, line, carets):
    assert render(SourceError("TS102", "no", loc), reader(text)).splitlines()[1:3] == [line, carets]


def test_render_without_source_or_location():
    assert render(SourceError("TS102", "no", Loc("gone.py", 1)), reader("")).splitlines()[0].startswith("gone.py:1:1")
    assert render(EnvironmentProblem("TS505", "no GPU was found")).splitlines() == [
        "error[TS505]: no GPU was found",
        f"  help: {errors.CODES['TS505'].remedy}",
    ]


def test_render_reads_the_file_by_default(tmp_path):
    path = tmp_path / "k.py"
    path.write_text("first\nsecond\n")
    assert "    second" in render(SourceError("TS102", "no", Loc(str(path), 2))).splitlines()


def test_call_chain_is_innermost_first():
    inner = Loc("lib.py", 5).inlined(Loc("mid.py", 7, 3)).inlined(Loc("top.py", 9))
    assert [str(site) for site in inner.calls()] == ["mid.py:7:3", "top.py:9:1"]
    assert inner.inlined(None) is inner
    lines = render(SourceError("TS301", "no", inner), reader("")).splitlines()
    assert lines[-2:] == ["  called from mid.py:7:3", "  called from top.py:9:1"]


def test_json_object():
    located = SourceError("TS201", "no 'y'", Loc("a.py", 3, 9))
    expected = {"code": "TS201", "message": "no 'y'", "file": "a.py", "line": 3, "column": 9}
    assert json.loads(json.dumps(to_json(located))) == expected
    assert to_json(SourceError("TS201", "no 'y'"))["line"] is None


def test_location_is_filled_in_once():
    error = SourceError("TS401", "too large")
    assert error.at(None) is error and error.loc is None
    assert str(error.at(Loc("a.py", 1))) == "a.py:1:1: error[TS401]: too large"
    assert error.at(Loc("b.py", 2)).loc == Loc("a.py", 1)


def test_errors_cross_process_borders():
    error = SourceError("TS201", "no 'y'", Loc("a.py", 3), notes=["n"]).at(None)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, str(copy), copy.notes) == (SourceError, "TS201", str(error), ("n",))


def test_did_you_mean():
    assert errors.did_you_mean("subtrct", ["add", "subtract"]) == "; did you mean 'subtract'?"
    assert errors.did_you_mean("zzz", ["add", "subtract"]) == ""
