"""Random kernels round a matrix product, and random schedules for them, most of them of the lane of warpgroups."""
# ruff: noqa: F821  (the names of dims)

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

import tessera as ts
from tessera import Tensor, tile
from tests.passes.lane_kernels import block

DTYPES = {"bf16": ts.bf16, "f16": ts.f16, "f32": ts.f32}
STEPS = ("bias", "sigmoid", "row maximum", "row sum", "residual", "difference")


@dataclass(frozen=True)
class Program:
    """`tiles`: rows, columns and depth; `along_k`: a "loop", one with a "branch" in it, or "once"; `steps`: what is
    done with the sums; `second`: whether they are multiplied once more.
    """

    stored: str
    tiles: tuple[int, int, int]
    dtype: str
    out: str
    along_k: str
    computed: bool
    steps: tuple[str, ...]
    second: bool
    dims: dict[str, int]
    fields: dict[str, Any] = field(default_factory=dict)

    def kernel(self, name="program"):
        rows, columns, depth = self.tiles
        flip_a, flip_b = self.stored[0] == "t", self.stored[1] == "t"
        dtype, out, steps, second = DTYPES[self.dtype], DTYPES[self.out], self.steps, self.second
        once, branch, computed = self.along_k == "once", self.along_k == "branch", self.computed
        A = Tensor["K", "M", dtype] if flip_a else Tensor["M", "K", dtype]
        B = Tensor["N", "K", dtype] if flip_b else Tensor["K", "N", dtype]

        @ts.kernel(name=name)
        def program(
            a: A,
            b: B,
            bias: Tensor["N", ts.f32],
            other: Tensor["M", "N", dtype],
            weights: Tensor[columns, columns, dtype],
            output: Tensor["M", "N", out],
        ):
            ctx = tile.context()
            m, n = tile.program_id(0) * rows, tile.program_id(1) * columns
            acc = tile.zeros([rows, columns], ts.f32)
            for k in tile.range(0, depth if once else ctx.K, depth):
                if branch and k == depth:
                    acc = acc * 0.5
                else:
                    left = block(a, m, rows, k, depth, flip_a)
                    if computed:
                        left = left * 0.5
                    right = block(b, k, depth, n, columns, flip_b)
                    acc = tile.mma(left, right, acc, transpose_a=flip_a, transpose_b=flip_b)
            for step in steps:
                if step == "bias":
                    acc = acc + bias[n : n + columns]
                if step == "sigmoid":
                    acc = tile.sigmoid(acc)
                if step == "row maximum":
                    acc = acc / (tile.max(tile.abs(acc), axis=-1, keepdims=True) + 1.0)
                if step == "row sum":
                    acc = acc - tile.sum(acc, axis=-1, keepdims=True) * 0.125
                if step == "residual":
                    acc = acc * other[m : m + rows, n : n + columns]
                if step == "difference":
                    acc = acc - bias[n : n + columns]
            if second:
                hidden = tile.cast(acc, dtype)
                acc = tile.mma(hidden, weights) + acc
            tile.store(acc, output[m : m + rows, n : n + columns])

        return program


@st.composite
def programs(draw: Any) -> Program:
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    dtype = pick("bf16", "bf16", "bf16", "f16", "f32")
    tiles = pick(64, 64, 128, 192), pick(16, 24, 32, 64, 128, 192), pick(16, 32, 48, 64, 128)
    steps = tuple(draw(st.lists(st.sampled_from(STEPS), max_size=3)))
    second = dtype != "f32" and tiles[1] % 16 == 0 and pick(False, False, True)
    step = pick(8, 8, 8, 1)  # of which all sizes are multiples: of 8 where a tensor map is to describe them
    dims = {name: step * draw(st.integers(1, most // step)) for name, most in (("M", 200), ("N", 200), ("K", 200))}
    fields = {
        "family": pick("wgmma", "wgmma", ""),
        "copies": pick("tma", "tma", ""),
        "panels": pick(64, 64, 32, 0),
        "persistent": pick(True, True, False),
        "warps": pick(4, 4, 8) if tiles[0] != 192 else pick(4, 12, 12),
        "stages": pick(1, 2, 3, 5),
        "blocks": pick(1, 1, 2),
        "epilogue": pick("", "", "direct"),
        "rows": pick(0, 0, 64),
        "subtile": pick(0, 0, 64),
        "group": pick(0, 2),
    }
    return Program(
        pick("nn", "nt", "tn", "tt"),
        tiles,
        dtype,
        pick(dtype, dtype, "f32"),
        pick("loop", "loop", "branch", "once"),
        pick(False, True),
        steps,
        second,
        dims,
        fields,
    )
