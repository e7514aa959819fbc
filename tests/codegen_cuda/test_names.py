"""Names of an author's values in the emitted text."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.codegen_cuda.emit import template_locals
from tessera.codegen_cuda.names import Names, identifier
from tessera.compiler import compile_kernel
from tessera.runtime.nvrtc import compile_cubin
from tests.passes.test_pipeline import assert_same_bits, emulated, outputs_of


def test_names_are_unique_identifiers():
    names = Names()
    assert [names.fresh("acc"), names.fresh("acc"), names.fresh("c0")] == ["acc", "acc_2", "v_c0"]
    assert [identifier(hint) for hint in ("class", "2x", "ts_a", "a.b", "L0_t0", "x3", "total")] == [
        "v_class", "v_2x", "v_ts_a", "a_b", "v_L0_t0", "v_x3", "v_total",
    ]  # fmt: skip


def test_what_a_template_declares_is_known():
    assert {"row", "col", "left", "count", "part", "i"} <= template_locals("cp_async")
    assert {"r", "part", "valid"} <= template_locals("st_global")
    assert template_locals("barrier") == frozenset()


@ts.kernel
def awkward(
    row: tile.Tensor["M", "K", ts.bf16], col: tile.Tensor["K", "N", ts.bf16], out: tile.Tensor["M", "N", ts.f32]
):
    """Values named as the variables of the templates that read and write them."""
    ctx = tile.context()
    i = tile.program_id(0) * 16
    left, count = row[i : i + 16], col[0 : ctx.K]
    part = tile.mma(left, count)
    r = tile.sum(part, axis=1, keepdims=True)
    valid = out[i : i + 16]
    tile.store(part + r, valid)


def test_a_value_named_as_a_templates_variable_is_not_hidden_by_it():
    dims = {"M": 20, "K": 24, "N": 40}
    compilation = compile_kernel(awkward, dims)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, emulated(compilation, dims), "the emitted CUDA")


@pytest.mark.parametrize("name", ["double", "exp", "max", "printf", "index", "expf", "volatile"])
def test_a_kernel_may_be_named_like_a_c_function(name):
    @ts.kernel(name=name)
    def kernel(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        start = tile.program_id(0) * 64
        tile.store(x[start : start + 64] * 2.0, out[start : start + 64])

    compilation = compile_kernel(kernel, {"N": 100})
    text = compilation.cuda[0]
    assert compile_cubin(text.text, "sm_80", name).resources[text.name].spill_stores == 0
    assert_same_bits(
        outputs_of(compilation.stages[0].module.kernel(), {"N": 100}, "tile"), emulated(compilation, {"N": 100}), name
    )
