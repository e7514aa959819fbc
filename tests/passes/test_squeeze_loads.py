"""Loads without axes of size 1: which reshapes of operands go, and that every bit stays."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tests.passes.test_pipeline import assert_same_bits, outputs_of


@ts.kernel
def batched(x: Tensor["B", "M", 32, ts.bf16], w: Tensor[32, 16, ts.bf16], out: Tensor["B", "M", 16, ts.f32]):
    b, m = tile.program_id(0), tile.program_id(1) * 16
    left = tile.reshape(tile.load(x[b : b + 1, m : m + 16]), [16, 32])
    tile.store(tile.reshape(tile.mma(left, w), [1, 16, 16]), out[b : b + 1, m : m + 16])


@ts.kernel
def used_twice(x: Tensor["B", "M", 16, ts.bf16], w: Tensor[16, 16, ts.bf16], out: Tensor["B", "M", 16, ts.f32]):
    """The tile itself is needed too: it is loaded once."""
    b, m = tile.program_id(0), tile.program_id(1) * 16
    whole = tile.load(x[b : b + 1, m : m + 16])
    product = tile.mma(tile.reshape(whole, [16, 16]), w)
    tile.store(tile.reshape(product, [1, 16, 16]) + whole, out[b : b + 1, m : m + 16])


@ts.kernel
def merged(x: Tensor["B", 4, 16, ts.bf16], w: Tensor[16, 16, ts.bf16], out: Tensor["B", 4, 16, ts.f32]):
    """A reshape that merges axes is no window of its own."""
    b = tile.program_id(0) * 4
    left = tile.reshape(tile.load(x[b : b + 4]), [16, 16])
    tile.store(tile.reshape(tile.mma(left, w), [4, 4, 16]), out[b : b + 4])


CASES = [(batched, {"B": 2, "M": 20}, True), (used_twice, {"B": 2, "M": 20}, False), (merged, {"B": 6}, False)]


@pytest.mark.parametrize("definition, dims, squeezed", CASES, ids=lambda case: getattr(case, "name", None))
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_reshape_goes_where_it_only_drops_axes(definition, dims, squeezed, arch):
    compilation = compile_kernel(definition, dims, arch)
    place = next(i for i, stage in enumerate(compilation.stages) if stage.name == "squeeze_loads")
    before, after = (compilation.stages[i].module.kernel() for i in (place - 1, place))
    operands = [next(op.operands[0] for op in kernel.body.walk() if op.name == "mma") for kernel in (before, after)]
    assert [value.defining_op.name for value in operands] == ["reshape", "load" if squeezed else "reshape"]
    assert (after is before) == (not squeezed)
    assert_same_bits(outputs_of(before, dims, "tile"), outputs_of(after, dims, "tile"), "squeeze_loads")
    last = outputs_of(compilation.target.kernel(), dims, "target")
    assert_same_bits(outputs_of(before, dims, "tile"), last, "all that follows")
