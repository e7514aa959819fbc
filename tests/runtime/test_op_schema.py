"""Operators of kernels and functions without any framework: schemas, and results of calls on arrays without memory."""

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.runtime.op_schema import MetaArray, results_of, roles_of, signature_of
from tests.raising import raises

f32, bf16 = ts.f32, ts.bf16


@ts.function
def gated(
    x: Tensor["B", "S", "D", bf16], w: Tensor["D", "D", bf16], n: int, t: float = 1.5
) -> Tensor["B", "S", "D", bf16]:
    return x * ts.sigmoid(ts.gemm(x, w) * n / t)


@ts.function
def total(xs: list[Tensor], y: Tensor):
    result = y
    for x in xs:
        result = result + x
    return result, ts.sum(result, axis=-1), ts.concatenate([result, result], axis=0)


@ts.kernel
def split(x: Tensor["M", "N", f32], t: float, low: Tensor["M", "N", bf16], n: int, high: Tensor["M", f32]):
    row = tile.program_id(0) * 16
    block = x[row : row + 16, 0 : tile.context().N] * t * n
    tile.store(block, low[row : row + 16])
    tile.store(tile.max(block, axis=1), high[row : row + 16])


@ts.kernel
def accumulate(x: Tensor["M", "N", f32], out: Tensor["M", "N", f32]):
    row = tile.program_id(0) * 16
    tile.store(out[row : row + 16] + x[row : row + 16], out[row : row + 16])


@ts.kernel
def decided(x: Tensor["M", "N", f32], out: Tensor["M", "N", f32]):
    row = tile.program_id(0) * 16
    factor = 2.0 if tile.context().N > 20 else 3.0
    tile.store(x[row : row + 16] * factor, out[row : row + 16])


@pytest.mark.parametrize(
    ("definition", "mutates", "schema"),
    [
        (gated, (), "(Tensor x, Tensor w, int n, float t=1.5) -> Tensor"),
        (total, (), "(Tensor[] xs, Tensor y) -> Tensor[]"),
        (split, (), "(Tensor x, float t, int n) -> (Tensor, Tensor)"),
        (split, ("high",), "(Tensor x, float t, int n, Tensor(a!) high) -> Tensor"),
        (split, ("high", "low"), "(Tensor x, float t, Tensor(a!) low, int n, Tensor(b!) high) -> ()"),
        (accumulate, (), "(Tensor x, Tensor(a!) out) -> ()"),
        (decided, (), "(Tensor x) -> Tensor"),
    ],
)
def test_schemas(definition, mutates, schema):
    assert signature_of(definition, mutates).schema() == schema


def test_roles():
    assert roles_of(split) == {"x": "in", "t": "in", "low": "out", "n": "in", "high": "out"}
    assert roles_of(accumulate) == {"x": "in", "out": "inout"} and roles_of(decided) == {"x": "in", "out": "out"}


def test_what_is_no_operator():
    @ts.function
    def rate(distance: int) -> float:
        return 1.0 / distance

    raises("TS203", lambda: signature_of(rate), "'rate' computes a number of numbers")
    raises("TS201", lambda: signature_of(gated, ("x",)), "'gated' writes none of its arguments")
    raises(
        "TS201", lambda: signature_of(split, ("hihg",)), "'split' has no output 'hihg' (it has low, high)", "'high'?"
    )


def meta(array, device=None):
    return MetaArray(array.shape, ts.dtypes.from_numpy(array.dtype), device)


def like(value):
    if isinstance(value, np.ndarray):
        return meta(value)
    return [meta(item) for item in value] if isinstance(value, list) else value


def arrays_of(*shapes, dtype=np.float32):
    return [np.random.default_rng(n).standard_normal(shape).astype(dtype) for n, shape in enumerate(shapes)]


@pytest.mark.parametrize("rows", [1, 37])
def test_results_are_those_of_a_call(rows, monkeypatch):
    monkeypatch.setenv("TESSERA_BACKEND", "interpret")
    x, y, z = arrays_of((rows, 5), (5,), (rows, 5))
    wide, w = arrays_of((2, rows, 8), (8, 8), dtype=ml_dtypes.bfloat16)
    calls = [
        (gated, {"x": wide, "w": w, "n": 3}),
        (total, {"xs": [x, y], "y": z}),
        (total, {"xs": [], "y": x}),
        (split, {"x": x, "t": 0.5, "n": 2}),
        (split, {"x": x, "t": 0.5, "n": 2, "high": np.empty(rows, np.float32)}),
        (decided, {"x": x}),
    ]
    for definition, given in calls:
        found = definition(**given)
        expected = found if isinstance(found, tuple) else (found,)
        results = results_of(definition, {name: like(value) for name, value in given.items()})
        assert [(r.shape, r.dtype.numpy) for r in results] == [(a.shape, a.dtype) for a in expected]
    assert results_of(accumulate, {"x": meta(x), "out": meta(z)}) == []


def test_nothing_is_compiled_or_run(monkeypatch):
    from tessera import compiler
    from tessera.runtime import execute, function_interpreter

    for module, name in (
        (compiler, "compile_kernel"), (execute, "interpret"), (function_interpreter, "interpret_function"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, None)
    (found,) = results_of(gated, {"x": MetaArray((2, 9, 8), bf16, 1), "w": MetaArray((8, 8), bf16, 1), "n": 1})
    assert found.shape == (2, 9, 8)


def test_a_call_that_is_wrong_is_the_same_error():
    x = MetaArray((2, 9, 8), bf16)
    raises("TS302", lambda: results_of(gated, {"x": x, "w": MetaArray((8, 7), bf16), "n": 1}), "D")
    raises("TS204", lambda: results_of(gated, {"x": x, "w": MetaArray((8, 8), f32), "n": 1}), "'w'")
    raises("TS601", lambda: results_of(gated, {"x": x, "n": 1}), "'w'")
    raises("TS604", lambda: results_of(gated, {"x": x, "w": MetaArray((8, 8), bf16, 0), "n": 1}))
    raises("TS604", lambda: accumulate(MetaArray((4, 4), f32), MetaArray((4, 4), f32)))


class Symbol:
    """A size of a framework that traces: arithmetic makes expressions, and what is asked about it is written down."""

    asked: list = []

    def __init__(self, text, value):
        self.text, self.value = text, value

    def _with(self, other, sign, value):
        return Symbol(f"({self.text}{sign}{getattr(other, 'text', other)})", value)

    def __mul__(self, other):
        return self._with(other, "*", self.value * getattr(other, "value", other))

    def __add__(self, other):
        return self._with(other, "+", self.value + getattr(other, "value", other))

    __rmul__, __radd__ = __mul__, __add__

    def __int__(self):
        Symbol.asked.append(self.text)
        return self.value

    def __eq__(self, other):
        Symbol.asked.append(f"{self.text}=={getattr(other, 'text', other)}")
        return self.value == getattr(other, "value", other)

    __hash__ = None


def symbolic(sizes, dtype):
    return MetaArray(sizes, dtype, None, [getattr(size, "value", size) for size in sizes])


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(Symbol, "asked", [])
    return Symbol


def texts(results):
    return [[getattr(size, "text", size) for size in result.shape] for result in results]


def test_symbols_stay_symbols(asked):
    b, s, n = Symbol("b", 2), Symbol("s", 9), Symbol("n", 5)
    x = symbolic((b, s, 8), bf16)
    assert [
        [str(t).count("b"), str(t).count("s")]
        for t in texts(results_of(gated, {"x": x, "w": MetaArray((8, 8), bf16), "n": 1}))[0][:2]
    ] == [[1, 0], [0, 1]]
    assert asked.asked == []
    (low, high) = results_of(split, {"x": symbolic((s, n), f32), "t": 1.0, "n": 1})
    assert [size.value for size in (*low.shape, *high.shape)] == [9, 5, 9] and asked.asked == []


def test_sizes_that_are_one_size_are_asked_to_be_equal(asked):
    m, k = Symbol("m", 4), Symbol("k", 4)
    results = results_of(total, {"xs": [symbolic((m, 6), f32)], "y": symbolic((k, 6), f32)})
    assert [size for shape in texts(results) for size in shape if "2" in str(size)]  # twice the rows
    assert [size.value if isinstance(size, Symbol) else size for size in results[2].shape] == [8, 6]
    assert any("==" in one for one in asked.asked)


def test_a_size_that_the_author_decided_by_becomes_a_number(asked):
    (found,) = results_of(decided, {"x": symbolic((Symbol("m", 4), Symbol("n", 24)), f32)})
    assert "n" in asked.asked and found.shape[1] == 24
