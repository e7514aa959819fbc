"""Annotations and decorators: ordinary objects that a module may execute natively, and what they mean."""

# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import SourceError
from tessera.frontend import definition
from tessera.frontend.annotations import ListAnnotation, ScalarAnnotation, TensorAnnotation, read_annotation
from tessera.frontend.definition import REQUIRED, FunctionDefinition, KernelDefinition
from tessera.frontend.document import execute, parse_document
from tessera.ir.dims import parse, symbol

PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}


def test_tensor_annotation():
    annotation = Tensor["B", 3, "2*D", ts.bf16 @ ts.accum(ts.f32)]
    assert annotation == TensorAnnotation((symbol("B"), 3, parse("2*D")), ts.bf16, ts.f32)
    assert str(annotation) == 'Tensor["B", 3, "2*D", ts.bf16 @ ts.accum(ts.f32)]'
    assert tile.Tensor["B", ts.f32] == Tensor["B", ts.f32] == TensorAnnotation((symbol("B"),), ts.f32)
    assert Tensor["B", "S"] == TensorAnnotation((symbol("B"), symbol("S")))
    assert Tensor[ts.f32] == TensorAnnotation((), ts.f32)


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (("B", 1.5), "1.5 in Tensor"),
        (("B", 0), "cannot have the size 0"),
        (("B", True), "True in Tensor"),
        (("B C",), "'B C' is neither the name of a dim nor an expression"),
        (("7",), "write the fixed size 7 without quotes"),
        ((ts.f32, "B"), "the dtype f32 must be the last item"),
    ],
)
def test_wrong_items(items, sentence):
    with pytest.raises(SourceError, match=sentence) as caught:
        Tensor[items]
    assert caught.value.code == "TS206"


def test_tensor_is_not_a_container():
    with pytest.raises(SourceError, match="it holds no data"):
        Tensor()


@pytest.mark.parametrize(
    ("annotation", "meaning"),
    [
        (Tensor, TensorAnnotation()),
        (list[Tensor], ListAnnotation(TensorAnnotation())),
        (list[Tensor["B", ts.f32]], ListAnnotation(TensorAnnotation((symbol("B"),), ts.f32))),
        (list, ListAnnotation(TensorAnnotation())),
        (int, ScalarAnnotation(ts.i64)),
        (float, ScalarAnnotation(ts.f32)),
    ],
)
def test_read_annotation(annotation, meaning):
    assert read_annotation(annotation, "x") == meaning


@pytest.mark.parametrize("annotation", [str, bool, dict, list[int], "B", None, ts.f32, tile])
def test_other_annotations_are_refused(annotation):
    with pytest.raises(SourceError) as caught:
        read_annotation(annotation, "x")
    assert caught.value.code == "TS206" and "'x'" in caught.value.message


def test_parameters_of_a_kernel():
    @ts.kernel
    def k(x: Tensor["N", ts.f32], scale: float = 2.0, *, n: int):
        pass

    assert [(p.name, str(p.annotation), p.default) for p in k.parameters] == [
        ("x", 'Tensor["N", ts.f32]', REQUIRED),
        ("scale", "float", 2.0),
        ("n", "int", REQUIRED),
    ]
    assert (k.name, k.__name__, k.__doc__) == ("k", "k", None)
    assert k.loc.file == __file__


POSTPONED = """\
from __future__ import annotations
def make(size, dtype):
    @ts.kernel
    def k(x: Tensor["N", size, ts.bf16 @ts.accum(ts.f32)], n: int):
        return size
    return k
k = make(8, ts.f32)
@ts.kernel
def wrong(x: Tensor["N", dtyp]):
    pass
"""


def test_postponed_annotations():
    loaded = execute(parse_document("postponed.py", POSTPONED), PRELUDE)
    assert str(loaded["k"].parameters[0].annotation) == 'Tensor["N", 8, ts.bf16 @ ts.accum(ts.f32)]'
    with pytest.raises(SourceError, match="cannot be evaluated: NameError: name 'dtyp'") as caught:
        _ = loaded["wrong"].parameters
    assert (caught.value.code, caught.value.loc.line, caught.value.loc.column) == ("TS206", 9, 14)


def test_decorators_keep_what_they_are_told():
    def f(x: Tensor["N", ts.f32]):
        """What it does."""

    grid = lambda d: (d.N,)  # noqa: E731
    assert ts.kernel(f).grid is None
    made = ts.kernel(grid=grid, name="g")(f)
    assert isinstance(made, KernelDefinition) and (made.grid, made.name, made.__doc__) == (grid, "g", "What it does.")
    tuned = ts.kernel.autotune(space={"BLOCK": [16, 32]}, key=["N"])(f)
    assert (tuned.space.candidates, tuned.space.key) == ({"BLOCK": (16, 32)}, ("N",))
    function = ts.function(f)
    assert isinstance(function, FunctionDefinition) and function.name == "f"
    with pytest.raises(SourceError, match="grid= takes a function"):
        ts.kernel(grid=3)(f)
    with pytest.raises(SourceError, match="space= takes a dict"):
        ts.kernel.autotune(space=[1], key=[])


def test_calls_go_to_the_launcher(monkeypatch):
    calls = []
    monkeypatch.setattr(definition, "launcher", lambda *args, **options: calls.append((args, options)))

    @ts.kernel
    def k(x: Tensor["N", ts.f32]):
        pass

    k(1, y=2)
    k[4, 2](1)
    k[4].partial(1)
    assert calls == [
        ((k, None, (1,), {"y": 2}), {}),
        ((k, (4, 2), (1,), {}), {}),
        ((k, (4,), (1,), {}), {"partial": True}),
    ]


def test_names_of_the_package():
    assert ts.tile.cp_async.shared.global_.name == "tile.cp_async.shared.global"
    assert {"Tensor", "tile", "ops", "kernel", "function", "f32", "bf16", "i32", "i64", "accum"} <= set(ts.__all__)
    with pytest.raises(AttributeError, match="tessera has no 'kernl'; did you mean 'kernel'"):
        _ = ts.kernl
    with pytest.raises(AttributeError, match="tile has no 'zeroes'; did you mean 'zeros'"):
        _ = tile.zeroes
    with pytest.raises(AttributeError, match="cannot be set"):
        tile.zeros = 3


def test_ops_on_python_numbers():
    assert ts.ops.exp(0) == 1.0
    assert ts.ops.sigmoid_safe(0.0) == 0.5
    assert (ts.ops.sigmoid_safe(-1e4), ts.ops.sigmoid_safe(1e4)) == (0.0, 1.0)
    assert ts.ops.distance_scaling(3) == ts.ops.distance_scaling_function(3) == pytest.approx(0.7408182206817179)
    assert tile.cdiv(7, 2) == 4 and str(tile.cdiv(symbol("S"), 128)) == "cdiv(S, 128)"


def test_every_intrinsic_is_documented():
    from tessera.frontend.language import INTRINSICS

    for name, intrinsic in INTRINSICS.items():
        assert intrinsic.documentation, name
        assert intrinsic.spelling.startswith(f"{name}(")
