"""Blocks and gated sums on every lane that runs without a GPU, against a NumPy model written on its own."""

import ml_dtypes
import numpy as np
import pytest

from tessera.compiler import compile_kernel, trace_kernel
from tessera.runtime.compare import check
from tessera.runtime.execute import reference_bars
from tessera.runtime.interpreter import interpret
from tests.lanes import copied, define, run
from tests.pace import within

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(11)

SIGNATURE = """
{decorator}
def k({layers}target: tile.Tensor["B", "S", "D", ts.bf16], A: tile.Tensor["L", "L", ts.bf16],
      out: tile.Tensor["B", "S", "D", ts.bf16]):
    ctx = tile.context()
    acc = tile.alloc_shared([{b}, {s}, ctx.D], ts.f32{swizzle})
    tile.fill(acc, 0.0)
    sources, gates = [{sources}], [{gates}]
"""
EXPLICIT = """
    delta = tile.alloc_shared([{b}, {s}, ctx.D], ts.bf16)
    b0, s0 = tile.program_id(0) * {b}, tile.program_id(1) * {s}
    for i in tile.static_range({n}):
        source = tile.load_block(sources[i], b0, s0, {b}, {s})
        tile.subtract(tile.load_block(target, b0, s0, {b}, {s}), source, delta)
        gated = tile.apply_gating(delta, gates[i], {n} - i, tile.load_scalar(A[i, -1]))
        tile.accumulate(acc, gated, precision="mixed")
    tile.store_block(out, tile.cast(acc, ts.bf16), b0, s0)
"""
FUSED = """
    unused = tile.alloc_shared([ctx.BLOCK_B, ctx.BLOCK_S, ctx.D], ts.bf16, swizzle="xor")
    for i in tile.static_range({n}):
        source = tile.async_load_block(sources[i], stages=ctx.num_stages)
        wanted = tile.async_load_block(target, stages=ctx.num_stages)
        tile.async_wait()
        gated = tile.fused_gating_accumulate(tile.subtract(wanted, source), gates[i], A[i, -1], {n} - i, acc)
    tile.async_store_block(out, tile.cast(acc, ts.bf16))
"""


def explicit(n, b, s):
    return _text(EXPLICIT, n, "@ts.kernel", b, s, "")


def fused(n, b, s):
    space = f"dict(BLOCK_B=[{b}], BLOCK_S=[{s}], num_stages=[2, 3])"
    decorator = f'@ts.kernel.autotune(space={space}, key=["B", "S", "D"])'
    return _text(FUSED, n, decorator, b, s, ', swizzle="xor"')


def _text(body, n, decorator, b, s, swizzle):
    kinds = ('tile.Tensor["B", "S", "D", ts.bf16]', 'tile.Tensor["D", "D", ts.bf16]')
    layers = "".join(f"s{i}: {kinds[0]}, g{i}: {kinds[1]}, " for i in range(n))
    names = {"sources": ", ".join(f"s{i}" for i in range(n)), "gates": ", ".join(f"g{i}" for i in range(n))}
    return (SIGNATURE + body).format(n=n, decorator=decorator, b=b, s=s, swizzle=swizzle, layers=layers, **names)


def made_up(n, b, s, d):
    """Arguments and dims; the last column of A weighs the layers."""
    arguments = {"target": _normal(b, s, d), "A": _normal(n + 1, n + 1), "out": np.full((b, s, d), np.nan, BF16)}
    for i in range(n):
        arguments |= {f"s{i}": _normal(b, s, d), f"g{i}": (_normal(d, d) / np.sqrt(d)).astype(BF16)}
    return arguments, {"B": b, "S": s, "D": d, "L": n + 1}


def _normal(*shape):
    return RNG.standard_normal(shape).astype(BF16)


def model(arguments, n):
    """sum_i A[i, -1] * delta_i * sigmoid(exp(-0.1 (n - i)) delta_i @ W_i), delta_i = bf16(target - source_i)."""
    wide = {name: value.astype(np.float64) for name, value in arguments.items()}
    total = np.zeros(arguments["target"].shape)
    for i in range(n):
        delta = (wide["target"] - wide[f"s{i}"]).astype(BF16).astype(np.float64)
        gate = 1 / (1 + np.exp(-np.exp(-0.1 * (n - i)) * (delta @ wide[f"g{i}"])))
        total += wide["A"][i, -1] * delta * gate
    return total


def close(out, expected):
    """Within one rounding of the f32 sum to bf16, and what the f32 products and sums lose."""
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2.0**-8, atol=2e-5)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("sizes", [(1, 150, 16), (3, 40, 64)], ids=str)
def test_interpreted_blocks_are_right_in_both_spellings(n, sizes):
    arguments, dims = made_up(n, *sizes)
    outputs = []
    for text in (explicit(n, 2, 32), fused(n, 4, 16)):
        kernel = trace_kernel(define(text), {}).kernel()
        given = copied(arguments)
        interpret(kernel, given, dims)
        assert check(given["out"], reference_bars(kernel, arguments, dims)["out"]).ok
        close(given["out"], model(arguments, n))
        outputs.append(given["out"].tobytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("text", "n", "sizes"),
    [
        (explicit(1, 1, 16), 1, (1, 16, 16)),
        (explicit(2, 1, 16), 2, (2, 40, 60)),
        (fused(2, 1, 16), 2, (2, 40, 16)),
        (fused(1, 2, 32), 1, (3, 33, 64)),
    ],
    ids=["explicit", "explicit-ragged", "fused", "fused-ragged"],
)
def test_small_blocks_on_every_lane(text, n, sizes):
    arguments, dims = made_up(n, *sizes)
    outputs, _ = run(text, arguments, dims)
    close(outputs["out"], model(arguments, n))


def test_a_distance_known_only_at_run_time_gives_the_same_bits():
    arguments, dims = made_up(2, 1, 20, 16)
    known = explicit(2, 1, 16)
    text = known.replace("def k(", "def k(n: int, ").replace("2 - i", "n - i")
    one, _ = run(known, arguments, dims, archs=())
    two, _ = run(text, {"n": 2, **arguments}, dims, archs=())
    assert one["out"].tobytes() == two["out"].tobytes()


def test_every_point_of_a_space_gives_the_same_bits():
    definition = define(
        fused(2, 1, 16)
        .replace("BLOCK_B=[1], BLOCK_S=[16]", "BLOCK_B=[1, 2], BLOCK_S=[16, 48]")
        .replace("[1, 16, ctx.D]", "[ctx.BLOCK_B, ctx.BLOCK_S, ctx.D]")
    )
    arguments, dims = made_up(2, 2, 50, 16)
    bits = set()
    for point in definition.points():
        given = copied(arguments)
        interpret(trace_kernel(definition, {}, constants=point).kernel(), given, dims)
        bits.add(given["out"].tobytes())
    assert len(definition.points()) == 8 and len(bits) == 1


def test_the_stages_that_an_author_asks_for_reach_the_ir():
    stages = {
        op.attributes["stages"]
        for op in compile_kernel(
            define(fused(1, 1, 16)), {"B": 1, "S": 16, "D": 16, "L": 2}, constants={"num_stages": 3}
        )
        .stages[0]
        .module.kernel()
        .body.walk()
        if op.name == "copy_async"
    }
    assert stages == {3}


VARIANTS = """
@ts.kernel
def k(x: tile.Tensor["M", "D", ts.{dtype}], W: tile.Tensor["D", "D", ts.{dtype}], w: tile.Tensor[1, ts.f32],
      out: tile.Tensor["M", "D", ts.f32], half: tile.Tensor["M", "D", ts.bf16]):
    ctx = tile.context()
    rows = x[tile.program_id(0) * 16 : tile.program_id(0) * 16 + 16]
    acc = tile.alloc_shared([16, ctx.D], ts.f32)
    narrow = tile.alloc_shared([16, ctx.D], ts.bf16)
    tile.fill(acc, 1.0)
    tile.fill(narrow, 0.5)
    gated = tile.fused_gating_accumulate(rows, W, w[0], -2, acc)
    tile.accumulate(acc, 0.25, precision="f32")
    tile.accumulate(narrow, gated)
    tile.store(tile.cast(acc, ts.f32), out[tile.program_id(0) * 16 : tile.program_id(0) * 16 + 16])
    tile.store(narrow, half[tile.program_id(0) * 16 : tile.program_id(0) * 16 + 16])
"""


@pytest.mark.parametrize("dtype", ["bf16", "f32", "f16"])
def test_gated_rows_of_other_dtypes(dtype):
    kind = {"bf16": BF16, "f32": np.float32, "f16": np.float16}[dtype]
    m, d = 20, 32
    x, matrix = RNG.standard_normal((m, d)).astype(kind), (RNG.standard_normal((d, d)) / 6).astype(kind)
    arguments = {"x": x, "W": matrix, "w": np.array([0.75], np.float32)}
    arguments |= {"out": np.full((m, d), np.nan, np.float32), "half": np.full((m, d), np.nan, BF16)}
    outputs, _ = run(VARIANTS.format(dtype=dtype), arguments, {"M": m, "D": d}, archs=("sm_80",))
    wide = x.astype(np.float64)
    gated = 0.75 * wide / (1 + np.exp(-np.exp(0.2) * (wide @ matrix.astype(np.float64))))
    np.testing.assert_allclose(outputs["out"], gated + 1.25, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["half"].astype(np.float64), gated + 0.5, rtol=2.0**-8, atol=1e-5)


def test_large_blocks_need_little_room_and_time_on_the_interpreter():
    """A block of 32 x 128 rows of which one is inside: what lies outside is neither multiplied nor kept."""
    import tracemalloc

    arguments, dims = made_up(3, 1, 1, 256)
    kernel = trace_kernel(define(explicit(3, 32, 128)), {}).kernel()
    tracemalloc.start()
    with within(5):
        given = copied(arguments)
        interpret(kernel, given, dims)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    close(given["out"], model(arguments, 3))
    assert peak < 100 << 20
