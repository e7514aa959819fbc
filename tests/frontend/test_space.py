"""The tuning space of a kernel: its points, the default one, pinned constants, and the key."""

import pytest
from test_errors import PRELUDE, span_of, traced_error, unmark

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.errors import SourceError, TesseraError
from tessera.frontend.document import execute, parse_document
from tessera.frontend.evaluator import trace
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module

SPACE = {"BLOCK_B": [16, 32, 64], "BLOCK_S": [64, 128, 256], "num_warps": [4, 8, 16], "num_stages": [2, 3, 4]}


def tuned(space=SPACE, key=("S", "n", "num_layers", "len(many)"), **options):
    @ts.kernel.autotune(space=space, key=key, **options)
    def k(x: Tensor["S", "D", ts.f32], many: list[Tensor], n: int, out: Tensor["S", "D", ts.f32]):
        pass

    return k


def test_points():
    kernel = tuned()
    points = kernel.points()
    assert len(points) == 81 and len({tuple(point.values()) for point in points}) == 81
    assert points[0] == kernel.constants == {"BLOCK_B": 16, "BLOCK_S": 64, "num_warps": 4, "num_stages": 2}
    assert points[1] == {**points[0], "num_stages": 3} and points[-1]["BLOCK_B"] == 64
    assert kernel.space.key == ("S", "n", "num_layers", "len(many)")
    assert ts.kernel(kernel.function).points() == [{}]


def test_pinned():
    kernel = tuned()
    pinned = kernel.pinned({"BLOCK_B": 32}).pinned({"num_stages": 4})
    assert pinned.constants == {"BLOCK_B": 32, "BLOCK_S": 64, "num_warps": 4, "num_stages": 4}
    assert kernel.constants["BLOCK_B"] == 16 and kernel.pinned({}) is kernel
    assert kernel.pinned({"BLOCK_B": 5}).constants["BLOCK_B"] == 5  # no candidate, and the author may try it
    for constants, sentence in (
        ({"BLOCK_X": 1}, "no constant 'BLOCK_X'; it has BLOCK_B, BLOCK_S, num_warps, num_stages; did you mean"),
        ({"BLOCK_B": 1.5}, "the constant BLOCK_B is of type int, and 1.5 is not"),
        ({"BLOCK_B": True}, "the constant BLOCK_B is of type int, and True is not"),
        ({"num_warps": 3}, "num_warps is a power of two from 1 to 32, or 12, not 3"),
        ({"num_stages": 0}, "num_stages is a positive integer, not 0"),
    ):
        with pytest.raises(SourceError, match="TS20[13]") as caught:
            kernel.pinned(constants)
        assert sentence in caught.value.message
        assert caught.value.loc is not None
    with pytest.raises(SourceError, match="it has none"):
        ts.kernel(kernel.function).pinned({"BLOCK": 1})


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ([16], "space= takes a dict"),
        ({3: [1]}, "space= takes a dict"),
        ({"a b": [1]}, "space= takes a dict"),
        ({"BLOCK": 16}, "the candidates of BLOCK are a list of at least one value, not 16"),
        ({"BLOCK": []}, "the candidates of BLOCK are a list of at least one value"),
        ({"BLOCK": "ab"}, "the candidates of BLOCK are a list"),
        ({"BLOCK": [16, 32.0]}, "of one type, and 32.0 is none"),
        ({"BLOCK": [None]}, "numbers, bools or texts of one type, and None is none"),
        ({"BLOCK": [16, 16]}, "hold a value twice"),
        ({"num_warps": [4, 24]}, "num_warps is a power of two from 1 to 32, or 12, not 24"),
        ({"num_stages": [0]}, "num_stages is a positive integer"),
        ({"D": [16]}, "'D' is a dim of this kernel and cannot be a tuning constant too"),
    ],
)
def test_what_is_no_space(space, sentence):
    with pytest.raises(SourceError) as caught:
        tuned(space)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget_s": 0}, "budget_s= takes a positive number of seconds, not 0"),
        ({"budget_s": True}, "budget_s= takes a positive number"),
        ({"budget_s": "60"}, "not '60'"),
        ({"candidates": 0}, "candidates= takes how many points to measure at most, not 0"),
        ({"candidates": 2.0}, "not 2.0"),
    ],
)
def test_what_is_no_budget(options, sentence):
    with pytest.raises(SourceError, match="TS203") as caught:
        tuned(**options)
    assert sentence in caught.value.message


def test_the_budget_and_the_pins_of_a_kernel():
    kernel = tuned(budget_s=5, candidates=3)
    pinned = kernel.pinned({"BLOCK_B": 32})
    assert (pinned.space.budget_s, pinned.space.most) == (5.0, 3) and (tuned().space.budget_s, tuned().space.most) == (
        60.0,
        24,
    )
    chosen = pinned.at({**pinned.constants, "BLOCK_S": 128})
    assert kernel.pins == {} and pinned.pins == chosen.pins == {"BLOCK_B": 32} and chosen.constants["BLOCK_S"] == 128


@pytest.mark.parametrize("key", ["S", 3, [3]])
def test_what_is_no_key(key):
    with pytest.raises(SourceError, match="key= takes a list of names"):
        tuned(key=key)


def test_a_key_is_checked_when_the_kernel_is_defined():
    decorator = "@ts.kernel.autotune(space=dict(BLOCK=[1, 2]), key=['M', «'num_layers'»])"
    text, span = unmark(f"{decorator}\ndef k(x: Tensor['M', ts.f32]):\n    pass\n")
    with pytest.raises(TesseraError) as caught:
        execute(parse_document("case.py", text), PRELUDE)["k"]
    error = caught.value
    assert (error.code, span_of(error)) == ("TS201", span)
    assert "'num_layers' is no dim, scalar parameter or list length of this kernel; it has M" in error.message


def test_annotations_that_are_text_are_checked_too():
    text = (
        "from __future__ import annotations\n\n@ts.kernel.autotune(space=dict(BLOCK=[1]), key=['n', 'N'])\n"
        "def k(x: Tensor['M', ts.f32], n: int):\n    pass\n"
    )
    with pytest.raises(TesseraError, match="the tuning key 'N' is no dim"):
        execute(parse_document("case.py", text), PRELUDE)["k"]


def test_the_point_is_in_the_ir():
    @ts.kernel.autotune(space=dict(BLOCK=[16, 32], kind=["add", "mul"]), key=["M"])
    def k(x: Tensor["M", ts.f32], out: Tensor["M", ts.f32]):
        ctx = tile.context()
        start = tile.program_id(0) * ctx.BLOCK
        block = tile.load(x[start : start + ctx.BLOCK])
        tile.store(block * 2.0 if ctx.kind == "mul" else block + 2.0, out[start : start + ctx.BLOCK])

    module = trace(k, constants={"BLOCK": 32, "kind": "mul"})
    kernel = module.kernel()
    assert kernel.attributes["constants"] == {"BLOCK": 32, "kind": "mul"}
    assert str(kernel.attributes["grid"]) == "(Dim(cdiv(M, 32)),)"
    assert parse_module(print_module(module)).kernel().attributes["constants"] == {"BLOCK": 32, "kind": "mul"}
    compiled = compile_kernel(k, {"M": 64}, constants={"BLOCK": 64})
    assert compiled.target.kernel().attributes["constants"] == {"BLOCK": 64, "kind": "add"}


def test_an_unknown_constant_is_an_error_where_it_is_read():
    text = (
        "@ts.kernel.autotune(space=dict(BLOCK_S=[1, 2]), key=['M'])\ndef k(x: Tensor['M', ts.f32]):\n"
        "    y = tile.context().«BLOCK»\n"
    )
    error, span = traced_error(text)
    assert (error.code, span_of(error)) == ("TS201", span)
    assert "it has the dims M, the constants BLOCK_S" in error.message
