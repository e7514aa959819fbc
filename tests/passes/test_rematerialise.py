"""Tiles that wait at a barrier as narrow ones. That no bit changes is for tests/test_long_lines.py."""

import pytest

from tessera.compiler import compile_kernel
from tests.lanes import define

KERNEL = """
    @ts.kernel
    def k(x: Tensor["M", "N", ts.{dtype}], output: Tensor["M", "N", ts.{dtype}]):
        first = tile.program_id(0) * 4
        rows = tile.cast(x[first : first + 4], ts.f32)
        {body}
"""
NORMALISED = """squares = tile.sum(rows * rows, axis=-1, keepdims=True)
        tile.store(rows * tile.rsqrt(squares), output[first : first + 4])"""
CENTRED = """centred = rows - tile.mean(rows, axis=-1, keepdims=True)
        scale = tile.rsqrt(tile.mean(centred * centred, axis=-1, keepdims=True))
        tile.store(centred * scale, output[first : first + 4])"""
SMOOTH = """weights = tile.exp2(rows)
        tile.store(weights / tile.sum(weights, axis=-1, keepdims=True), output[first : first + 4])"""
LONG = """scaled = (rows * 2.0 + 1.0) * 3.0 - 4.0
        tile.store(scaled * tile.sum(scaled, axis=-1, keepdims=True), output[first : first + 4])"""


def ops_of(body, n=4096, dtype="bf16"):
    compilation = compile_kernel(define(KERNEL.format(body=body, dtype=dtype)), {"M": 8, "N": n})
    (kernel,) = compilation.target.kernels
    return list(kernel.body.walk())


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_widened_tile_waits_as_it_was_loaded(dtype):
    ops = ops_of(NORMALISED, dtype=dtype)
    names = [op.name for op in ops]
    assert names.count("hold") == 1
    place = names.index("hold")
    assert names[:place].count("barrier") == 1 and "barrier" not in names[place:]
    source = ops[place].operands[0].defining_op
    assert source is not None and source.name == "ld_global"
    assert "cast" in names[place:]
    wide = [op.result for op in ops[:place] if op.name == "cast"]
    assert not any(value in op.operands for op in ops[place:] for value in wide)


def test_what_cheap_ops_make_of_it_is_computed_again():
    names = [op.name for op in ops_of(CENTRED)]
    assert names.count("hold") == 2, "behind the mean and behind the variance"
    assert names.count("sub") == 2
    last = len(names) - 1 - names[::-1].index("hold")
    assert names[last:].count("sub") == 1 and names[last:].count("cast") == 1


@pytest.mark.parametrize(
    "body, n, dtype",
    [(SMOOTH, 4096, "bf16"), (LONG, 4096, "bf16"), (NORMALISED, 4096, "f32"), (NORMALISED, 512, "bf16")],
    ids=["a smooth function", "a long chain", "nothing is narrow", "no barrier"],
)
def test_what_stays(body, n, dtype):
    assert not any(op.name == "hold" for op in ops_of(body, n, dtype))


def test_products_keep_their_registers():
    text = """
        @ts.kernel
        def k(x: Tensor[16, 2048, ts.bf16], w: Tensor[64, 64, ts.bf16], a: Tensor[16, 64, ts.bf16],
              output: Tensor[16, 2048, ts.bf16], product: Tensor[16, 64, ts.bf16]):
            rows = tile.cast(x[0:1], ts.f32)
            tile.store(rows * tile.sum(rows, axis=-1, keepdims=True), output[0:1])
            tile.store(tile.mma(a[0:16], w[0:64]), product[0:16])
    """
    (kernel,) = compile_kernel(define(text), {}).target.kernels
    assert not any(op.name == "hold" for op in kernel.body.walk())
