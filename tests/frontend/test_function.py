"""Tensor functions become Graph IR: what is computed at compile time, how sizes are unified, what is refused."""

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor
from tessera.dtypes import bf16, f32
from tessera.errors import SourceError
from tessera.frontend.annotations import TensorAnnotation
from tessera.frontend.definition import FunctionDefinition
from tessera.frontend.function import FunctionTrace, free_shape, trace_function
from tessera.ir.compare import difference
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import type_text
from tessera.ir.verify import verify
from tessera.runtime.function_interpreter import function_reference, interpret_function


def traced(function: FunctionDefinition, static: dict[str, int] | None = None, **bare) -> FunctionTrace:
    trace = trace_function(function, static or {}, bare)
    verify(trace.module)
    assert difference(parse_module(print_module(trace.module)), trace.module) is None
    return trace


def op_names(trace: FunctionTrace) -> list[str]:
    return [op.name for op in trace.function.body.walk()]


def run(trace: FunctionTrace, dims: dict[str, int], **arguments: object) -> list[np.ndarray]:
    return interpret_function(trace.function, arguments, dims)


def free(name: str, rank: int, dtype=f32) -> TensorAnnotation:
    return TensorAnnotation(free_shape(name, rank), dtype)


@ts.function
def scaled(x: Tensor["M", "N", ts.f32], factor: float = 2.0) -> Tensor["M", "N", ts.f32]:
    return x * factor


def test_dims_stay_symbolic_and_scalars_are_run_time():
    trace = traced(scaled)
    assert trace.function.attributes["dims"] == ("M", "N") and trace.function.attributes["shape_dims"] == ()
    assert [type_text(p.type) for p in trace.function.parameters] == ["tile<[M, N], f32>", "weak f32"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for factor in (0.5, 3.0):
        (result,) = run(trace, {"M": 2, "N": 3}, x=x, factor=factor)
        assert np.array_equal(result, x * np.float32(factor))


def test_scalars_of_a_call_are_weak():
    @ts.function
    def f(x: Tensor["N", ts.bf16], d: int):
        return x * d + 0.5

    trace = traced(f)
    assert type_text(trace.function.body.ops[-1].operands[0].type) == "tile<[N], bf16>"


def test_python_runs_at_compile_time():
    @ts.function
    def f(xs: list[Tensor["N", ts.f32]]) -> Tensor["N", ts.f32]:
        total = ts.zeros_like(xs[0])
        weights = {i: 1.0 / (i + 1) for i in range(len(xs))}
        for i, x in enumerate(xs):
            if i % 2 == 0:
                total = total + x * weights[i]
        return total

    trace = traced(f, {"len(xs)": 3})
    assert [p.name for p in trace.function.parameters] == ["xs[0]", "xs[1]", "xs[2]"]
    a = [np.float32([1, 2]), np.float32([3, 4]), np.float32([6, 9])]
    (result,) = run(trace, {"N": 2, "len(xs)": 3}, **{f"xs[{i}]": a[i] for i in range(3)})
    assert np.array_equal(result, np.float32([1, 2]) + a[2] * np.float32(1 / 3))


def test_a_decision_on_a_dim_makes_it_static():
    @ts.function
    def f(x: Tensor["M", "N", ts.f32]):
        return ts.concatenate([x[i : i + 2] for i in range(0, x.shape[0], 2)], axis=0)

    with pytest.raises(SourceError, match="the dim 'M'.* must be static"):
        trace_function(f, {})
    trace = traced(f, {"M": 5, "N": 3})
    assert trace.function.attributes["shape_dims"] == ("M",)
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    assert np.array_equal(run(trace, {"M": 5, "N": 3}, x=x)[0], x)


def test_functions_are_inlined_and_their_dims_unified():
    @ts.function
    def outer(a: Tensor["B", "S", "D", ts.f32], b: Tensor["B", "S", "D", ts.f32]):
        return scaled(a[0], 3.0) + scaled(factor=1.0, x=b[0])

    trace = traced(outer, {"B": 2, "S": 3, "D": 4})
    calls = [op for op in trace.function.body.ops if op.name == "mul"]
    assert all(op.loc is not None and op.loc.call_site is not None for op in calls)

    @ts.function
    def wrong(a: Tensor["B", "D", ts.f32], w: Tensor["D", "E", ts.f32]):
        return square(w) + a

    @ts.function
    def square(w: Tensor["D", "D", ts.f32]):
        return w

    with pytest.raises(SourceError) as caught:
        trace_function(wrong, {"D": 3, "E": 5})
    assert caught.value.code == "TS302"
    assert "'w' axis 1 (D) is E and 'w' axis 0 is D" in caught.value.message and "5 and 3" in caught.value.message


def test_the_return_annotation_casts():
    @ts.function
    def f(x: Tensor["N", ts.f32]) -> Tensor["N", ts.bf16]:
        return x

    cast = traced(f).function.body.ops[-2]
    assert cast.name == "cast" and cast.attributes["dtype"] == bf16 and not cast.attributes["implicit"]


class TestUnification:
    def test_sizes_of_bare_tensors(self):
        @ts.function
        def f(x: Tensor, w: Tensor, y: Tensor):
            return x @ w + y

        trace = traced(f, {}, x=free("x", 2), w=free("w", 2), y=free("y", 2))
        x, w, y = (p.type.shape for p in trace.function.parameters)
        assert x[1] == w[0] and (x[0], w[1]) == y and len(trace.function.attributes["dims"]) == 3

    def test_a_named_dim_wins(self):
        @ts.function
        def f(x: Tensor["B", "D", ts.f32], y: Tensor):
            return x + y

        trace = traced(f, {}, y=free("y", 2))
        assert type_text(trace.function.parameters[1].type) == "tile<[B, D], f32>"

    def test_known_values_that_differ_are_an_error(self):
        @ts.function
        def f(x: Tensor["B", "D", ts.f32], y: Tensor):
            return x + y

        with pytest.raises(SourceError, match="axis 1"):
            trace_function(f, {"B": 2, "D": 4, "y.0": 2, "y.1": 5}, {"y": free("y", 2)})

    def test_a_size_of_one_broadcasts(self):
        @ts.function
        def f(x: Tensor["B", "D", ts.f32], y: Tensor):
            return x + y

        trace = traced(f, {"B": 2, "D": 4, "y.0": 2, "y.1": 1}, y=free("y", 2))
        assert type_text(trace.function.parameters[1].type) == "tile<[B, 1], f32>"


class TestGuards:
    @pytest.mark.parametrize("spelling", ["x / t", "ts.divide(x, t)"])
    def test_division_by_a_scalar(self, spelling: str, tmp_path):
        source = tmp_path / "guarded.py"
        source.write_text(
            "import tessera as ts\nfrom tessera import Tensor\n\n@ts.function\n"
            f"def f(x: Tensor['N', ts.f32], t: float = 1.0):\n    return {spelling}\n"
        )
        from tessera.frontend.document import load_document

        trace = traced(load_document(source).namespace["f"])
        (guard,) = trace.collected.guards
        guard.check(-1.0)
        with pytest.raises(SourceError, match="'t' is 0.0, but it must not be 0") as caught:
            guard.check(0.0)
        assert caught.value.code == "TS403" and caught.value.loc is not None and caught.value.loc.line == 6

    def test_a_literal_is_checked_at_once(self):
        @ts.function
        def f(x: Tensor["N", ts.f32]):
            return x / 0

        with pytest.raises(SourceError, match="must not be 0"):
            trace_function(f, {})


@ts.function
def everything(x: Tensor["A", "B", "C", ts.bf16], w: Tensor["C", "C", ts.bf16], v: Tensor["C", ts.f32]):
    y = ts.exp(x) @ w
    z = ts.where(y > 0.0, y, -y) + v
    stacked = ts.stack([z, z * 2.0, ts.ones_like(z)])
    joined = ts.concatenate([ts.sum(stacked, axis=0), ts.transpose(x, axes=(0, 1, 2))], axis=-1)
    return (
        joined,
        ts.reshape(joined, (-1, 2)),
        ts.mean(joined, axis=(0, 2)),
        ts.argmax(x, axis=1),
        ts.cumsum(x, axis=0),
        ts.max([v, v]),
        ts.broadcast_to(v, (2, x.shape[2])),
        ts.arange(4, dtype=ts.f32) + ts.full((4,), 3.0),
        x[-1, ..., 1:3],
        ts.cast(v, ts.fp8_e4m3),
    )


def test_every_kind_of_op_within_its_bars():
    from tessera.runtime.compare import check

    dims = {"A": 3, "B": 5, "C": 4}
    trace = traced(everything, dims)
    random = np.random.default_rng(1)
    arguments = {
        "x": random.standard_normal((3, 5, 4)).astype(bf16.numpy),
        "w": random.standard_normal((4, 4)).astype(bf16.numpy),
        "v": random.standard_normal(4).astype(np.float32),
    }
    results = interpret_function(trace.function, arguments, dims)
    bars = function_reference(trace.function, arguments, dims)
    assert [r.shape for r in results[:4]] == [(3, 5, 8), (60, 2), (5,), (3, 4)]
    for result, bar in zip(results, bars, strict=True):
        assert check(result, bar).ok


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return x.shape", "TS203", "returns tensors and numbers"),
        ("y = x", "TS102", "returns nothing"),
        ("return tile.exp(x)", "TS102", "works only inside a @ts.kernel"),
        ("return x @ x", "TS301", "inner sizes"),
        ("return x[0, 1, 2]", "TS304", "2 axes"),
        ("return x[9]", "TS504", "outside axis 0"),
        ("return x[2:1]", "TS301", "empty"),
        ("return ts.concatenate([])", "TS203", "the list '[]' is empty"),
        ("return ts.stack([x, x[0]])", "TS301", "one shape"),
        ("return ts.sum(x, axis=2)", "TS304", "axis 2"),
        ("return ts.sum(x, axis='mp')", "TS203", "an int"),
        ("return ts.reshape(x, (3, -1, -1))", "TS301", "-1"),
        ("return ts.subtract(x, x, precision='low')", "TS402", "'low'"),
        ("return ts.where(x, x, x)", "TS204", "bool"),
        ("return x if ts.sum(x) > 0.0 else -x", "TS102", "known only at run time"),
        ("return x + 'a'", "TS203", "a Python str"),
        ("return f(x)", "TS102", "cannot call itself"),
        ("return ts.no_such(x)", "TS201", "no_such"),
    ],
)
def test_what_is_refused(body: str, code: str, words: str, tmp_path):
    from tessera.frontend.document import load_document

    source = tmp_path / "refused.py"
    source.write_text(
        "import tessera as ts\nfrom tessera import Tensor, tile\n\n@ts.function\n"
        f"def f(x: Tensor['M', 'N', ts.f32]):\n    {body}\n"
    )
    with pytest.raises(SourceError) as caught:
        trace_function(load_document(source).namespace["f"], {"M": 3, "N": 4})
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message
    assert caught.value.loc is not None and caught.value.loc.line in (5, 6)


def test_tensors_of_a_list_that_differ_are_traced_by_themselves():
    """The tensors of a list take the sizes of the first together, where they have them."""

    @ts.function
    def total(xs: list[Tensor], y: Tensor):
        for x in xs:
            y = y + x
        return y

    def traced(*shapes, y=(4, 5)):
        sizes = {f"xs[{i}].{axis}": size for i, shape in enumerate(shapes) for axis, size in enumerate(shape)}
        bare = {f"xs[{i}]": TensorAnnotation(free_shape(f"xs[{i}]", len(s)), f32) for i, s in enumerate(shapes)}
        bare["y"] = TensorAnnotation(free_shape("y", len(y)), f32)
        static = {**sizes, **{f"y.{axis}": size for axis, size in enumerate(y)}, "len(xs)": len(shapes)}
        found = trace_function(total, static, bare)
        return [parameter.type.shape for parameter in found.function.parameters]

    same = traced((4, 5), (4, 5), (4, 5))
    assert len(set(same)) == 1
    first, row, last, y = traced((4, 5), (1, 5), (4, 5))
    assert first == last == y and row == (1, y[1])
    with pytest.raises(SourceError, match=r"here [34] and [34]"):
        traced((4, 5), (3, 5))
