"""Block and gating operations: what they decompose into, and every mistake in their arguments with its place."""

import textwrap

import pytest
from test_errors import PRELUDE, span_of, traced_error

from tessera.errors import render
from tessera.frontend.document import execute, parse_document, read_source_line
from tessera.frontend.evaluator import trace
from tessera.ir.verify import verify

SIGNATURE = """\
@ts.kernel.autotune(space=dict(BLOCK_B=[2, 4], BLOCK_S=[16, 32], num_stages=[2, 3]), key=["S", "D"])
def k(t: Tensor["B", "S", "D", ts.bf16], g: Tensor["D", "D", ts.bf16], h: Tensor["D", "G", ts.bf16],
      w: Tensor["D", "D", ts.f32], A: Tensor["L", "L", ts.bf16], I: Tensor["L", ts.i64], n: int, s: float,
      out: Tensor["B", "S", "D", ts.bf16]):
    ctx = tile.context()
    b0 = tile.program_id(0) * 2
    s0 = tile.program_id(1) * 16
    x = tile.load_block(t, b0, s0, 2, 16)
    acc = tile.alloc_shared([2, 16, ctx.D], ts.f32)
    tile.fill(acc, 0.0)
"""
LAST = "    tile.store_block(out, acc, b0, s0)\n"


def traced(body: str, signature: str = SIGNATURE, last: str = LAST, **options):
    text = signature + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n" + last
    module = trace(execute(parse_document("case.py", text), PRELUDE)["k"], **options)
    verify(module)
    return module.kernel()


def ops(kernel, *wanted):
    return [op for op in kernel.body.walk() if op.name in wanted]


# -- what they become


def test_blocks_are_windows():
    kernel = traced("")
    first, last = ops(kernel, "window")
    assert first.attributes["extents"][:2] == last.attributes["extents"][:2] == (2, 16)
    assert str(kernel.attributes["grid"]) == "(Dim(cdiv(B, 2)), Dim(cdiv(S, 16)))"
    assert dict(kernel.attributes["parameters"])["out"] == "out"


def test_asynchronous_blocks_lie_at_the_programs_own_origin():
    kernel = traced(
        """
        a = tile.async_load_block(t, stages=ctx.num_stages)
        tile.async_wait()
        tile.async_wait()
        tile.async_store_block(out, a)
        """,
        last="",
    )
    (copy,) = ops(kernel, "copy_async")
    assert copy.attributes["stages"] == 2
    assert [op.operands for op in ops(kernel, "wait")] == [[copy.result]]
    assert str(kernel.attributes["grid"]) == "(Dim(cdiv(B, 2)), Dim(cdiv(S, 16)))"
    other = traced("tile.async_store_block(out, tile.zeros([4, 32, ctx.D]))", last="",
                   constants={"BLOCK_B": 4, "BLOCK_S": 32})  # fmt: skip
    assert str(other.attributes["grid"]) == "(Dim(cdiv(B, 4)), Dim(cdiv(S, 32)))"
    assert ops(other, "store")[0].operands[0].defining_op.attributes["extents"][:2] == (4, 32)


def test_gating_is_a_product_of_flat_rows():
    kernel = traced("tile.accumulate(acc, tile.apply_gating(x, g, n, A[n, -1]), precision='mixed')")
    (product,) = ops(kernel, "mma")
    assert str(product.result.type.shape) == "(32, Dim(D))" and product.result.type.dtype.name == "f32"
    assert {op.name for op in kernel.body.walk()} <= {
        "program_id", "constant", "mul", "add", "size", "window", "load", "alloc_shared", "full", "write", "read",
        "reshape", "mma", "cast", "exp", "sigmoid", "store",
    }  # fmt: skip


def test_defaults_of_gating():
    """Distance 1 and weight 1.0, which nothing is multiplied by."""
    plain, given = (
        traced("tile.accumulate(acc, tile.apply_gating(x, g))"),
        traced("tile.accumulate(acc, tile.apply_gating(x, g, 1, 0.5))"),
    )
    assert len(ops(given, "mul")) == len(ops(plain, "mul")) + 1


@pytest.mark.parametrize("weight", ["0.5", "s", "A[0, -1]", "tile.load_scalar(A[n, -1])", "1.0 / 3"])
@pytest.mark.parametrize("distance", ["3", "n", "ctx.L", "ctx.L - n", "I[0]", "-1"])
def test_weights_and_distances(weight, distance):
    one = traced(f"y = tile.fused_gating_accumulate(x, g, {weight}, {distance}, acc)")
    two = traced(f"tile.accumulate(acc, tile.apply_gating(x, g, {distance}, {weight}))")
    assert len(ops(one, "write")) == len(ops(two, "write")) == 2


def test_operands_of_gating():
    traced("buffer = tile.alloc_shared([2, 16, ctx.D], ts.bf16)\ntile.subtract(x, x, buffer)\n"
           "tile.accumulate(acc, tile.apply_gating(buffer, g))")  # fmt: skip
    traced("tile.accumulate(acc, tile.apply_gating(tile.cast(x, ts.f32), w))")
    kernel = traced("y = tile.apply_gating(t[0, 0:16], g)")
    assert not ops(kernel, "mma")  # nothing uses it
    kernel = traced("a = tile.alloc_shared([16, ctx.D], ts.f32)\ntile.fill(a, 0.0)\n"
                    "tile.accumulate(a, tile.apply_gating(t[0, 0:16], g))")  # fmt: skip
    assert len(ops(kernel, "mma")) == 1


@pytest.mark.parametrize("precision", [None, "mixed", "high", "f32"])
def test_sums(precision):
    assert len(ops(traced(f"tile.accumulate(acc, x, precision={precision!r})"), "write")) == 2
    if precision != "mixed":
        half = "half = tile.alloc_shared([2, 16, ctx.D], ts.bf16)\ntile.fill(half, 0.0)\n"
        kernel = traced(f"{half}tile.accumulate(half, x, precision={precision!r})")
        (added,) = ops(kernel, "add")
        assert added.result.type.dtype.name == "f32"


def test_context_shows_the_point():
    kernel = traced("tile.accumulate(acc, float(ctx.num_stages))", constants={"num_stages": 7})
    assert 7.0 in [op.attributes["value"] for op in ops(kernel, "constant")]
    assert kernel.attributes["constants"] == {"BLOCK_B": 2, "BLOCK_S": 16, "num_stages": 7}


# -- mistakes

CASES = [
    # loads and stores
    ("TS304", "y = tile.load_block(«g», b0, s0, 2, 16)", "takes a tensor of three axes [batch, sequence, features]"),
    ("TS203", "y = tile.load_block(«x», b0, s0, 2, 16)", "takes a global tensor, but 'x' is a tile"),
    ("TS203", "y = tile.load_block(t, «s», s0, 2, 16)", "starts at integer offsets, but 's' is a f32 scalar"),
    ("TS203", "y = tile.load_block(t, b0, «0.5», 2, 16)", "starts at integer offsets, but '0.5' is 0.5"),
    ("TS205", "y = tile.load_block(t, 2, 16, «b0», s0)", "the sizes of a block come last in tile.load_block"),
    ("TS301", "y = tile.load_block(t, b0, s0, 2, «0»)", "sizes are positive"),
    ("TS202", "y = «tile.load_block(t, b0, s0)»", "missing a required argument"),
    ("TS203", "tile.store_block(«x», out, b0, s0)", "takes the destination first: 'x' is a tile [2, 16, D] of bf16"),
    ("TS203", "tile.store_block(out, «1.0», b0, s0)", "'value' takes a tile, but '1.0' is 1.0"),
    ("TS301", "tile.store_block(out, «tile.zeros([2, 16, 4])», b0, s0)",
     "is [2, 16, 4], but a block of 'out' [B, S, D] is [BLOCK_B, BLOCK_S, D]"),
    ("TS301", "tile.store_block(out, «t[0, 0:16]», b0, s0)", "'t[0, 0:16]' is [16, D], but a block of 'out'"),
    ("TS203", "tile.store_block(out, x, «x», s0)", "starts at integer offsets, but 'x' is a tile"),
    # asynchronous blocks
    ("TS304", "y = tile.async_load_block(«g»)", "takes a tensor of three axes"),
    ("TS203", "y = tile.async_load_block(t, stages=«0»)", "stages= is a positive integer, not 0"),
    ("TS205", "y = «tile.async_load_block(t, stages=n)»", "the number of stages is a compile-time constant"),
    ("TS502", "y = tile.async_load_block(t)\nz = «y + 1.0»", "'y' is used here, but the copy into it on line 11"),
    ("TS502", "y = tile.async_load_block(t)\n«tile.async_store_block(out, y)»", "has not been waited for"),
    ("TS203", "tile.async_store_block(«x», out)", "takes the destination first"),
    ("TS301", "tile.async_store_block(out, «tile.zeros([2, 8, ctx.D])»)",
     "is [2, 8, D], but the program's own block of 'out' is [2, 16, D]"),
    # gating
    ("TS203", "y = tile.apply_gating(x, g, «0.5», 3)",
     "the weight and the distance are exchanged: the distance '0.5' is 0.5 and the weight '3' is 3; the order is "
     "tile.apply_gating(x, W, distance, weight)"),
    ("TS203", "y = tile.fused_gating_accumulate(x, g, n, «A[0, -1]», acc)",
     "the order is tile.fused_gating_accumulate(x, W, weight, distance, acc)"),
    ("TS203", "y = tile.apply_gating(x, g, 3, «n»)", "the weight is a float or one element of a tensor, but 'n' is an"),
    ("TS203", "y = tile.apply_gating(x, g, 3, «2»)", "but '2' is 2; write it as 2.0"),
    ("TS203", "y = tile.apply_gating(x, g, 3, «x»)", "the weight is a float"),
    ("TS203", "y = tile.apply_gating(x, g, 3, «True»)", "the weight is a float"),
    ("TS203", "y = tile.apply_gating(x, g, 3, «A[0]»)", "the weight is a float"),
    ("TS203", "y = tile.apply_gating(x, g, «s», 0.5)", "the distance is an integer, but 's' is a f32 scalar"),
    ("TS203", "y = tile.apply_gating(x, g, «None», 0.5)", "the distance is an integer, but 'None' is None"),
    ("TS203", "y = tile.apply_gating(«1.0», g)", "'x' takes a tile, but '1.0' is 1.0"),
    ("TS304", "y = tile.apply_gating(«tile.zeros([4])», g)", "takes a tile of rows [..., D]"),
    ("TS301", "y = tile.apply_gating(x, «h»)", "so its gate is [D, D], but 'h' is [D, G]"),
    ("TS304", "y = tile.apply_gating(x, «t»)", "a gate is a matrix [D, D], but 't' is [B, S, D]"),
    ("TS204", "y = tile.apply_gating(x, «w»)", "but 'x' is bf16 and 'w' is f32"),
    # sums
    ("TS402", "tile.accumulate(acc, x, precision=«'fast'»)",
     "precision= is one of None, 'mixed', 'high', 'f32', not 'fast'"),
    ("TS402", "half = tile.alloc_shared([2, 16, ctx.D], ts.bf16)\ntile.fill(half, 0.0)\n"
     "tile.accumulate(«half», x, precision='mixed')", "accumulates in f32, but 'half' holds bf16"),
    ("TS203", "tile.accumulate(«x», acc)", "the accumulator comes first, and 'acc' is a buffer"),
    ("TS203", "tile.accumulate(«x», x)", "an accumulator is a shared buffer, but 'x' is a tile [2, 16, D] of bf16; "
     "write acc = acc + value"),
    ("TS203", "tile.accumulate(«out», x)", "sums in global memory are made by tile.atomic_add"),
    ("TS203", "y = tile.fused_gating_accumulate(x, g, 0.5, 1, «x»)", "an accumulator is a shared buffer"),
    ("TS301", "tile.accumulate(acc, «tile.zeros([2, 8, ctx.D])»)", "but the accumulator 'acc' is [2, 16, D]"),
    ("TS204", "tile.accumulate(acc, «x > 0.0»)", "choose numbers with tile.where first"),
    ("TS204", "c = tile.alloc_shared([4], ts.i32)\ntile.accumulate(«c», 1)", "an accumulator holds floats"),
    ("TS203", "b = tile.alloc_shared([2, 16, ctx.D], ts.f32, swizzle=«'zigzag'»)", "swizzle= is 'none' or 'xor'"),
    # constants
    ("TS201", "y = ctx.«BLOCKS»", "the context has no 'BLOCKS'; it has the dims B, S, D, G, L, the constants BLOCK_B, "
     "BLOCK_S, num_stages; did you mean 'BLOCK_S'?"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "body", "sentence"), CASES, ids=[f"{code}-{body[:50]}" for code, body, _ in CASES])
def test_error(code, body, sentence):
    error, span = traced_error(SIGNATURE + textwrap.indent(body, "    ") + "\n" + LAST)
    assert sentence in error.message
    assert (error.code, *span_of(error)) == (code, *span)
    assert "tessera/" not in render(error, read_source_line)


def test_blocks_without_sizes_in_the_context():
    signature = SIGNATURE[SIGNATURE.index("def") :]
    for space, missing in (("", "BLOCK_B"), (".autotune(space=dict(BLOCK_B=[2]), key=[])", "BLOCK_S")):
        error, span = traced_error(f"@ts.kernel{space}\n{signature}    y = «tile.async_load_block(t)»\n{LAST}")
        assert (error.code, span_of(error)) == ("TS201", span)
        assert f"and the context has no {missing}; declare it with @ts.kernel.autotune(" in error.message
        assert "or use tile.load_block with explicit offsets" in error.message
    decorator = "@ts.kernel.autotune(space=dict(BLOCK_B=[2], BLOCK_S=['a']))"
    error, span = traced_error(f"{decorator}\n{signature}    «tile.async_store_block(out, x)»\n")
    assert (error.code, span_of(error)) == ("TS203", span)
    assert "from ctx.BLOCK_S, which is 'a'" in error.message
