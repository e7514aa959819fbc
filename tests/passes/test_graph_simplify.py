"""Graph IR before and after simplification: the same bits from fewer ops."""

import textwrap

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, dist
from tessera.frontend.document import execute, parse_document
from tessera.frontend.function import trace_function
from tessera.ir.core import Builder
from tessera.ir.verify import verify
from tessera.location import Loc
from tessera.passes.graph_simplify import MAX_TERMS, drop_placement, inline_scopes, simplify
from tessera.passes.precision import precision
from tests.functions import assert_same_bits, results_of

MESH = dist.mesh(["cuda:0", "cuda:1"], ("dp",), (2,))
PRELUDE = {"ts": ts, "Tensor": Tensor, "dist": dist, "MESH": MESH}
SIGNATURE = """\
{decorator}
def f(x: Tensor[6, 5, ts.bf16], y: Tensor[6, 5, ts.bf16], v: Tensor[6, 5, ts.f32],
      q: Tensor[6, 5, ts.fp8_e5m2], n: int):
"""


def traced(body, decorator="@ts.function"):
    text = SIGNATURE.format(decorator=decorator) + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    module = trace_function(execute(parse_document("case.py", text), PRELUDE)["f"], {}).module
    verify(module)
    return module.kernel()


def names(function):
    """The ops in one line, without constants and the end."""
    return " ".join(op.name for op in function.body.walk() if op.name not in ("constant", "return"))


def simplified(body, passes=(simplify,), **options):
    before = after = traced(body, **options)
    for each in passes:
        after = each(after)
    assert_same_bits(before, after)
    return after


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return ts.exp(x) * y + ts.exp(x)", "exp mul add"),
        ("return ts.exp(x) * n + ts.exp(x * 1.0) * n", "exp mul mul exp mul add"),
        ("return ts.reshape(ts.reshape(x, (5, 6)), (3, 10))", "reshape"),
        ("return ts.reshape(ts.reshape(x, (5, 6)), (6, 5)) + x", "add"),
        ("return ts.transpose(ts.transpose(x))", ""),
        ("a = ts.reshape(x, (2, 3, 5))\nreturn ts.transpose(ts.transpose(a, (1, 2, 0)), (1, 2, 0))", "reshape permute"),
        ("a = ts.reshape(x, (2, 3, 5))\nreturn ts.transpose(ts.transpose(a, (1, 2, 0)), (2, 0, 1)) + a", "reshape add"),
        ("return x[1:5][1:3][:, 2:4]", "extract"),
        ("return ts.broadcast_to(ts.broadcast_to(x[0:1], (6, 5)), (6, 5))", "extract broadcast"),
        ("return ts.concatenate([ts.concatenate([x, y]), x])", "concatenate"),
        ("return ts.concatenate([ts.concatenate([x, y], axis=1), ts.concatenate([y, x], axis=1)])",
         "concatenate concatenate concatenate"),
        # casts
        ("return ts.cast(ts.cast(x, ts.f32), ts.bf16)", ""),
        ("return ts.cast(ts.cast(x, ts.f32), ts.f16)", "cast"),
        ("return ts.cast(ts.cast(v, ts.bf16), ts.f32)", "cast cast"),
        ("return ts.cast(ts.cast(q, ts.f32), ts.fp8_e5m2)", "cast cast"),  # infinity becomes the largest value
        ("return ts.cast(q, ts.fp8_e5m2)", "cast"),
        ("return ts.cast(ts.cast(ts.argmax(x), ts.i64), ts.i32)", "argmax reshape"),
        ("return ts.cast(x, ts.bf16)", ""),
        ("return ts.cast(x * y, ts.bf16)", "mul cast"),  # the product may not have been rounded
        ("return ts.cast(ts.cast(x * y, ts.bf16), ts.bf16)", "mul cast"),
        ("return ts.cast(ts.cast(ts.cast(x * y, ts.bf16), ts.f32) , ts.bf16)", "mul cast"),
        ("return ts.cast(ts.matmul(x, ts.transpose(y)), ts.bf16)", "permute matmul cast"),
        # reductions along an axis of size 1
        ("return ts.max(x[0:1], axis=0)", "extract reshape"),
        ("return ts.sum(x[0:1], axis=0)", "extract reshape cast add cast"),
        ("return ts.sum(ts.argmax(x, axis=1, keepdims=True), axis=1)", "argmax reshape"),
    ],
)  # fmt: skip
def test_what_is_left(body, expected):
    assert names(simplified(body)) == expected


def test_an_explicit_cast_makes_an_implicit_one_explicit():
    function = simplified("return ts.cast(x @ ts.transpose(y), ts.bf16)")
    (cast,) = [op for op in function.body.ops if op.name == "cast"]
    assert cast.attributes["implicit"] is False and cast.operands[0].defining_op.name == "matmul"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 31, 32, 33, 40, 63, 64, 65, 100])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_sums_of_stacks_are_additions_in_the_order_of_a_sum(count, dtype):
    source = {"bf16": "x", "f32": "v"}[dtype]
    function = simplified(f"""
        parts = [ts.exp({source}) * (i % 7 - 3) + y * {source} for i in range({count})]
        outer, inner = ts.stack(parts), ts.stack(parts, axis=1)
        return ts.sum(outer, axis=0), ts.sum(inner, axis=1), ts.mean(outer, axis=0)
    """)
    kinds = set(names(function).split())
    assert not kinds & {"concatenate", "reduce_sum", "reshape"}
    sums = traced(f"return ts.sum(ts.stack([{source} * 2.0 ** (i % 5) for i in range({count})]), axis=0)")
    assert_same_bits(sums, simplify(precision(sums)))


def test_sums_of_negative_zeros():
    for count in (1, 2, 16, 31, 32, 33, 64):
        body = f"return ts.sum(ts.stack([v * 0.0 * -1.0 for i in range({count})] + [v * 0.0] * 0), axis=0)"
        function = simplified(body)
        (result,) = results_of(function)
        assert not np.any(np.signbit(result))


def test_many_terms_stay_a_sum():
    function = simplified(f"return ts.sum(ts.stack([x * i for i in range({MAX_TERMS + 1})]), axis=0)")
    assert "reduce_sum" in names(function)


def test_other_sums_stay():
    assert "concatenate" in names(simplified("return ts.sum(ts.concatenate([x, y]), axis=0)"))
    assert "concatenate" in names(simplified("return ts.sum(ts.stack([x, y]), axis=1)"))


SCOPED = """
e = ts.exp(x)
with ts.checkpoint_scope():
    a = ts.exp(x) * y
    b = ts.exp(x) + y
    with ts.checkpoint_scope():
        c = a * b
        d = a + b
d = c + e
return d * b, ts.exp(x)
"""


def test_what_is_in_a_checkpoint_stays_in_it():
    function = simplified(SCOPED)
    assert names(function).split().count("checkpoint") == 2
    assert names(function).split().count("exp") == 2  # one outside, and one inside that is computed again
    flat = simplified(SCOPED, (inline_scopes, simplify))
    assert names(flat) == "exp mul add mul add mul"


def test_placement_is_taken_away():
    body = """
    s = dist.shard(x, 0, "dp")
    with ts.checkpoint_scope():
        with dist.device_assignment(1, axis="dp") if False else ts.memory.prefetch_scope():
            t = s * y
            u = dist.all_gather(t, "dp")
    return dist.all_gather(u + x, "dp")
    """
    before = traced(body, "@ts.distribute(mesh=MESH)")
    assert names(before).split().count("all_gather") == 2
    after = drop_placement(before)
    assert_same_bits(before, after)
    assert names(after) == "checkpoint mul yield add" and after.attributes["mesh"] == {"dp": 2}


def test_dead_tensors_are_named():
    function = traced("return x * y")
    builder = Builder(function.body, [Loc("case.py", 40)])
    end = function.body.ops.pop()
    used = builder.value("exp", function.body.arguments[0], hint="used")
    builder.value("exp", used, hint="_ignored")
    function.body.ops.append(end)
    after = simplify(function)
    assert names(after) == "mul" and "notes" not in after.attributes
    function.body.ops.pop()
    builder.value("log", used, hint="lost")
    function.body.ops.append(end)
    (note,) = simplify(function).attributes["notes"]
    assert note == "'lost' is never used: it is not computed (line 40)"
    assert simplify(simplify(function)).attributes["notes"] == (note,)


def test_it_keeps_what_it_cannot_simplify():
    function = traced("return ts.where(x > y, x, y) @ ts.transpose(y), ts.cumsum(v, axis=0)")
    after = simplify(function)
    assert names(after) == names(function)
    assert after.attributes == function.attributes and after.origin == function.origin
    assert [op.origin for op in after.body.ops] == [op.origin for op in function.body.ops]
