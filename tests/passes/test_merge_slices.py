"""What is computed slice by slice becomes one computation on the whole, with the same bits."""

import textwrap

import pytest

import tessera as ts
from tessera import Tensor
from tessera.dtypes import bf16
from tessera.frontend.annotations import TensorAnnotation
from tessera.frontend.document import execute, parse_document
from tessera.frontend.function import free_shape, trace_function
from tessera.ir.types import length_name
from tessera.ir.verify import verify
from tessera.passes.graph_simplify import inline_scopes, simplify
from tessera.passes.merge_slices import merge_slices
from tests.functions import assert_same_bits

PRELUDE = {"ts": ts, "Tensor": Tensor}
SIGNATURE = """\
@ts.function
def f(x: Tensor["B", "S", 5, ts.bf16], y: Tensor["B", "S", 5, ts.bf16], w: Tensor[5, 5, ts.bf16],
      v: Tensor[5, ts.f32], h: Tensor["B", 5, 5, ts.bf16], n: int):
"""
SIZES = {"B": 2, "S": 21}
STATIC = {"S": 21}


def traced(body, static=STATIC):
    text = SIGNATURE + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    module = trace_function(execute(parse_document("case.py", text), PRELUDE)["f"], dict(static)).module
    verify(module)
    return module.kernel()


def names(function):
    return [op.name for op in function.body.walk() if op.name not in ("constant", "return", "size")]


def merged(body, simple=False, dims=SIZES, **options):
    before = traced(body, **options)
    after = merge_slices(simplify(before) if simple else before)
    assert_same_bits(before, after, **dims)
    return after


def sliced(expression, axis=1, width=8, extent="x.shape[1]"):
    """The expression on slices a of x and b of y."""
    index = ", ".join([":"] * axis + [f"i:i+{width}"])
    return f"""
        parts = []
        for i in range(0, {extent}, {width}):
            a, b = x[{index}], y[{index}]
            parts.append({expression})
        return ts.concatenate(parts, axis={axis})
    """


@pytest.mark.parametrize(
    ("expression", "ops"),
    [
        ("a", ""),
        ("a + b", "add"),
        ("ts.exp(a) * n - 2.0", "exp mul sub"),
        ("a @ w", "matmul cast"),
        ("a * v", "reshape broadcast mul"),
        ("ts.where(a > b, a, ts.zeros_like(b))", "gt full where"),
        ("ts.cast(ts.cast(a, ts.f32) * 3.0, ts.bf16)", "cast mul cast"),
        ("ts.sum(a * a, axis=-1, keepdims=True) + b", "mul reduce_sum broadcast add"),
        ("a - ts.max(a, axis=0)", "reduce_max reshape reshape broadcast sub"),
        ("ts.cumsum(a, axis=2)", "cumsum"),
        ("a * ts.argmax(b, axis=2, keepdims=True)", "argmax broadcast mul"),
        ("ts.transpose(ts.transpose(a, (1, 0, 2)), (1, 0, 2))", "permute permute"),
        ("ts.concatenate([a, b], axis=2)[:, :, 1:7]", "concatenate extract"),
        ("ts.sum(ts.stack([a, b, a * b]), axis=0)", "mul reshape reshape reshape concatenate reduce_sum reshape"),
        ("ts.reshape(ts.reshape(a, (a.shape[0], a.shape[1] * 5)), a.shape) * b", "reshape reshape mul"),
        ("a * ts.reshape(ts.arange(5, ts.f32), (1, 1, 5))", "iota reshape broadcast mul"),
    ],
)
def test_slices_of_rows(expression, ops):
    after = merged(sliced(expression))
    # S is a symbol, so that all of its 21 rows are a slice 0:21 yet, of each parameter that is sliced.
    found = [name for name in names(after) if name != "extract"]
    assert sorted(found) == sorted(name for name in ops.split() if name != "extract")
    counts = {len(names(merge_slices(traced(sliced(expression, width=width))))) for width in (3, 7, 8, 20)}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (sliced("a @ w[i:i+2]", axis=2, width=2, extent="4"), True),  # products of parts of the inner axis
        (sliced("a * ts.sum(b, axis=1, keepdims=True)"), True),  # a sum of each slice
        (sliced("ts.cumsum(a, axis=1)"), True),
        (sliced("a * i"), True),
        (sliced("a + ts.concatenate([b[:, 0:1], b[:, 1:]], axis=1)"), False),
        (sliced("a + x[:, 0:1]"), False),
        (sliced("ts.reshape(ts.reshape(a, (a.shape[1], a.shape[0], 5)), a.shape)"), True),
        ("return ts.concatenate([x[:, 3:7], x[:, 7:9], x[:, 9:20]], axis=1)", False),
        ("return ts.concatenate([x[:, 3:7], x[:, 8:9]], axis=1)", True),
        ("return ts.concatenate([x[:, 7:9], x[:, 3:7]], axis=1)", True),
        ("return ts.concatenate([x[:, 0:9], y[:, 9:21]], axis=1)", True),
        ("return ts.concatenate([x[:, 0:9], x], axis=1)", True),
        ("return ts.concatenate([ts.exp(x[:, 0:9]), ts.log(x[:, 9:21])], axis=1)", True),
        ("return ts.concatenate([x[:, 0:9, 0:2], x[:, 9:21, 1:3]], axis=1)", True),
        ("return ts.concatenate([x, x], axis=1)", True),
        ("return ts.concatenate([ts.zeros((3, 5)), ts.zeros((4, 5))], axis=0)", False),
        ("return ts.concatenate([ts.zeros((3, 5)), ts.ones((4, 5))], axis=0)", True),
        ("return ts.concatenate([x @ w[:, 0:2], x @ w[:, 2:5]], axis=2)", False),
        ("return ts.concatenate([x[0:1] @ h[0:1], x[1:2] @ h[1:2]], axis=0)", False),
        ("return ts.concatenate([x[:, 0:9] @ h, x[:, 9:21] @ h], axis=1)", False),
        ("return ts.concatenate([x[:, 0:9] @ w, x[:, 9:21] @ (w + 1.0)], axis=1)", True),
        ("return ts.concatenate([ts.arange(3), ts.arange(4)])", True),
    ],
)
def test_what_merges_and_what_stays(body, kept):
    after = merged(body, static={**STATIC, "B": 2})
    assert ("concatenate" in names(after)) == kept


def test_a_last_slice_of_one_row():
    body = sliced("a * v + ts.sum(b, axis=2, keepdims=True)", width=20)
    assert "concatenate" not in names(merged(body, simple=True))
    one = {"B": 1, "S": 21}
    assert "concatenate" not in names(merged(body, simple=True, dims=one, static=one))


def test_slices_that_merge_inside_of_others():
    body = """
        halves = []
        for c in (0, 10):
            rows = [ts.exp(x[:, c:c+10][:, i:i+4]) for i in range(0, 10, 4)]
            halves.append(ts.concatenate(rows, axis=1) @ w)
        halves.append(ts.exp(x[:, 20:]) @ w)
        return ts.concatenate(halves, axis=1)
    """
    after = merged(body, simple=True)
    assert sorted(names(after)) == ["cast", "exp", "extract", "matmul"]


def test_deep_chains_do_not_exhaust_the_stack():
    before = traced("""
        parts = []
        for i in range(0, 21, 8):
            a = x[:, i:i+8]
            for _ in range(1500):
                a = a * 0.5
            parts.append(a)
        return ts.concatenate(parts, axis=1)
    """)
    after = merge_slices(before)
    assert names(after) == ["extract", *["mul"] * 1500]


def test_checkpointed_slices_merge_where_they_are_inlined():
    body = """
        parts = []
        for i in range(0, 21, 8):
            with ts.checkpoint_scope():
                parts.append(ts.exp(x[:, i:i+8]))
        with ts.checkpoint_scope():
            z = ts.concatenate([y[:, 0:4] * 2.0, y[:, 4:21] * 2.0], axis=1)
        return ts.concatenate(parts, axis=1) + z
    """
    before = traced(body)
    assert names(merge_slices(before)).count("exp") == 3
    assert_same_bits(before, merge_slices(before), **SIZES)
    after = merge_slices(inline_scopes(before))
    assert_same_bits(before, after, **SIZES)
    assert names(after).count("exp") == 1 and names(after).count("mul") == 1 and "concatenate" not in names(after)


DOCUMENT = """\
@ts.function
def delta(x_source: Tensor["B", "S", "D", ts.bf16], x_target: Tensor["B", "S", "D", ts.bf16],
          gate: Tensor["D", "D", ts.bf16], distance: int) -> Tensor["B", "S", "D", ts.bf16]:
    change = ts.subtract(x_target, x_source)
    return ts.multiply(change, ts.sigmoid((change @ gate) * ts.exp(-0.1 * ts.cast(distance, ts.f32))))

@ts.function
def tiled(acts: list[Tensor], gates: list[Tensor]) -> Tensor:
    TILE_SIZE = 128
    results = []
    for i in range(0, acts[0].shape[1], TILE_SIZE):
        tile_results = []
        for layer, (act, gate) in enumerate(zip(acts, gates)):
            act_tile = act[:, i:i+TILE_SIZE, :]
            if layer > 0:
                previous = acts[layer-1][:, i:i+TILE_SIZE, :]
                tile_results.append(delta(previous, act_tile, gate, 1))
        if tile_results:
            results.append(ts.sum(ts.stack(tile_results), axis=0))
    return ts.concatenate(results, axis=1)
"""


def tiled(rows, layers):
    bare = {f"acts[{i}]": TensorAnnotation(free_shape(f"acts[{i}]", 3), bf16) for i in range(layers)}
    bare |= {f"gates[{i}]": TensorAnnotation(free_shape(f"gates[{i}]", 2), bf16) for i in range(layers)}
    static = {length_name("acts"): layers, length_name("gates"): layers}
    for i in range(layers):
        static |= {f"acts[{i}].0": 2, f"acts[{i}].1": rows, f"acts[{i}].2": 4, f"gates[{i}].0": 4, f"gates[{i}].1": 4}
    definition = execute(parse_document("tiled.py", DOCUMENT), PRELUDE)["tiled"]
    return trace_function(definition, static, bare).function, static


def test_the_ops_of_a_tiled_function_do_not_depend_on_the_rows():
    found = {}
    for rows in (128, 129, 300, 1000):
        before, static = tiled(rows, 4)
        after = simplify(merge_slices(simplify(before)))
        assert_same_bits(before, after, **{name: static[name] for name in before.attributes["dims"] if name in static})
        found[rows] = sorted(name for name in names(after) if name != "extract")
        assert "concatenate" not in found[rows] and "reduce_sum" not in found[rows]
    assert len({tuple(ops) for ops in found.values()}) == 1
    assert found[1000].count("matmul") == 3
