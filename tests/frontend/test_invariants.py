"""Names that a loop assigns and that are used after it: moved out of the loop where every iteration agrees."""

import numpy as np
import pytest
from traced import kernel, names, the

from tessera.errors import TesseraError
from tessera.runtime.interpreter import interpret


def test_what_every_iteration_agrees_on_moves_out_of_the_loop():
    traced = kernel(
        """
        acc = tile.zeros([16, ctx.N])
        for j in tile.range(n):
            start = tile.program_id(0) * 16
            acc = acc + x[start : start + 16]
        tile.store(acc, out[start : start + 16])
        """
    )
    assert names(traced.body) == "full program_id mul for { window load add } window store"


def test_a_loop_whose_names_are_not_used_after_it_keeps_its_ops():
    traced = kernel("for j in tile.range(n):\n    start = tile.program_id(0) * 16\n    y = x[start : start + 16] * 2.0")
    assert names(the(traced, "for").regions[0]).startswith("program_id mul")


def test_windows_and_nested_loops():
    traced = kernel(
        """
        for i in tile.range(n):
            for j in tile.range(n):
                place = out[tile.program_id(0) * 16 : tile.program_id(0) * 16 + 16]
                tile.store(x[0:16], place)
        tile.store(x[0:16] * 2.0, place)
        """
    )
    assert names(traced.body).startswith("program_id mul window for { for { window load store } } window")


def test_it_has_its_value_after_no_iteration():
    traced = kernel(
        """
        acc = tile.zeros([16, ctx.N])
        for j in tile.range(n):
            start = tile.program_id(0) * 16
            acc = acc + 1.0
        tile.store(acc, out[start : start + 16])
        """
    )
    out = np.ones((16, 4), np.float32).astype(the(traced, "window").operands[0].type.dtype.numpy)
    arguments = {"x": out.copy(), "w": np.zeros((4, 4), np.float32), "v": np.zeros(4, np.float32), "s": 0.0}
    interpret(traced, {**arguments, "n": 0, "out": out}, {"M": 16, "N": 4})
    assert (out == 0).all()


def test_a_later_loop_carries_what_an_earlier_one_assigned():
    traced = kernel(
        """
        for i in tile.range(2):
            t = tile.program_id(0) * 16
        for i in tile.range(2):
            tile.store(x[0:16], out[t : t + 16])
            t = t + 16
        tile.store(x[0:16], out[t : t + 16])
        """
    )
    assert len(the(traced, "for", 1).results) == 1


def test_a_later_loop_that_assigns_anew_is_what_counts():
    traced = kernel(
        """
        for i in tile.range(2):
            t = tile.program_id(0) * 16
        for i in tile.range(2):
            t = tile.program_id(0) * 32
        tile.store(x[0:16], out[t : t + 16])
        """
    )
    window = [op for op in traced.body.walk() if op.name == "window"][-1]
    loop = the(traced, "for", 1)
    assert window.operands[1] is loop.result
    (last,) = loop.regions[0].ops[-1].operands
    assert last.defining_op.operands[1].defining_op.attributes["value"] == 32


@pytest.mark.parametrize(
    "body",
    [
        "for j in tile.range(4):\n    a = x[0:16] + 1.0\ntile.store(a, out[0:16])",  # reads memory
        "for j in tile.range(4):\n    a = j * 16\ntile.store(x[0:16], out[a : a + 16])",  # varies
        "for j in tile.range(4):\n    if n > 1:\n        a = p\ntile.store(x[0:16], out[a : a + 16])",  # not always
        "for j in tile.range(4):\n    a = [p]\ntile.store(x[0:16], out[a[0] : a[0] + 16])",  # a container
    ],
)
def test_what_varies_is_still_lost(body):
    with pytest.raises(TesseraError, match="TS201|'a' is"):
        kernel(body)
