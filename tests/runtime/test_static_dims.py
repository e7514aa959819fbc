"""Dims that an author compiles in: each value of one has a program, and calls take theirs."""

import numpy as np

import tessera as ts
from tessera import Tensor, tile


@ts.kernel(static=("H",), grid=lambda d: (d.B * d.H,))
def heads(x: Tensor["B", "H", 8, ts.f32], out: Tensor["B", "H", 8, ts.f32]):  # noqa: F821
    ctx, program = tile.context(), tile.program_id(0)
    b, h = program // ctx.H, program % ctx.H
    tile.store(tile.load(x[b, h]) * ctx.H, out[b, h])


def test_calls_with_other_values_of_a_static_dim(lane):
    for shape in ((2, 3, 8), (1, 5, 8), (4, 3, 8), (2, 5, 8)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.testing.assert_array_equal(heads(x), x * np.float32(shape[1]))


def test_masks_and_divisions_are_gone():
    """The number of heads is known, and the grid shows that no batch lies beyond the last one."""
    from tessera.compiler import compile_kernel

    compilation = compile_kernel(heads, {"B": 4, "H": 3})
    assert compilation.program is not None and compilation.program.static == {"H": 3}
    text = compilation.cuda[0].text
    assert "dim_H" not in text and "_inside" not in text and "_valid" not in text
