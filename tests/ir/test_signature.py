"""An edited dump whose attributes no longer fit its body is refused at its place, before any text is emitted."""

import pytest

from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tests.suite import load

DIMS = {"B": 2, "S": 40, "D": 32}


def edited(old, new):
    text = print_module(compile_kernel(load("gating_function_kernel"), DIMS).target)
    assert old in text
    return parse_module(text.replace(old, new, 1), "edited.tsir")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('("output", "out")', '("output", "in")', "'output' is written here"),
        ('("output", "out")', '("outpt", "out")', "'output' is written here"),
        ('dims = ("B", "S", "D")', 'dims = ("B", "D")', "uses the dim S"),
        ("offset = 0", "offset = -1", "lies at byte -1"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(old, new, message):
    with pytest.raises(SourceError, match=message) as caught:
        compile_kernel(edited(old, new), DIMS)
    assert caught.value.code == "TS703" and caught.value.loc is not None
