"""Matrix products of every operand dtype, in all four ways in which operands may lie, on every lane without a GPU.

The interpreter, the lowered kernel and the emitted CUDA agree bit for bit, and the reference's bars hold the results.
"""
# ruff: noqa: F821  (the names of dims)

import itertools
import re

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.dtypes import parse
from tessera.frontend.grid import launch_grid
from tessera.ir.layout import bank_wavefronts
from tessera.ir.types import buffer_layout, tile_layout
from tessera.runtime import emulator
from tessera.runtime.compare import check
from tessera.runtime.interpreter import interpret
from tessera.runtime.nvrtc import compile_cubin
from tessera.runtime.reference import reference
from tessera.target.fragments import vector_registers
from tests.passes.test_pipeline import arguments_of, assert_same_bits, outputs_of

# Operand dtypes and precision: the matrix instruction that they run as, and how deep it is.
FORMATS = {
    ("bf16", "bf16", None): ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16),
    ("f16", "f16", None): ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16),
    ("fp8_e4m3", "fp8_e4m3", None): ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16),
    ("fp8_e5m2", "fp8_e5m2", None): ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16),
    ("fp8_e4m3", "fp8_e5m2", None): ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16),
    ("fp8_e5m2", "fp8_e4m3", None): ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16),
    ("f32", "f32", None): (None, 8),
    ("f32", "f32", "tf32"): ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8),
}
TRANSPOSES = list(itertools.product((False, True), repeat=2))
SHAPES = [{"M": 64, "N": 64, "K": 64}, {"M": 33, "N": 100, "K": 129}, {"M": 5, "N": 9, "K": 40}]


def product(name, dtype_a, dtype_b, precision=None, transpose_a=False, transpose_b=False, block=(64, 64, 32)):
    """A kernel `out = a @ b` whose blocks are `block`."""
    block_m, block_n, block_k = block
    A = Tensor["K", "M", dtype_a] if transpose_a else Tensor["M", "K", dtype_a]
    B = Tensor["N", "K", dtype_b] if transpose_b else Tensor["K", "N", dtype_b]

    @ts.kernel(name=name)
    def kernel(a: A, b: B, out: Tensor["M", "N", ts.f32]):
        ctx = tile.context()
        m = tile.program_id(0) * block_m
        n = tile.program_id(1) * block_n
        acc = tile.zeros([block_m, block_n], ts.f32)
        for k in tile.range(0, ctx.K, block_k):
            left = a[k : k + block_k, m : m + block_m] if transpose_a else a[m : m + block_m, k : k + block_k]
            right = b[n : n + block_n, k : k + block_k] if transpose_b else b[k : k + block_k, n : n + block_n]
            acc = tile.mma(left, right, acc, transpose_a=transpose_a, transpose_b=transpose_b, precision=precision)
        tile.store(acc, out[m : m + block_m, n : n + block_n])

    return kernel


def emulated_together(compilations):
    """What the emitted CUDA of several kernels of different names writes; one g++ unit holds them all."""
    texts = [compilation.cuda[0] for compilation, _ in compilations]
    include, names = '#include "tessera_device.h"\n', [text.name for text in texts]
    spaces = [f"namespace of_{text.name} {{\n{text.text.replace(include, '')}}}" for text in texts]
    uses = [f"using namespace of_{name};" for name in names]
    library = emulator.build("\n".join([include, *spaces, *uses]), names)
    results = []
    for (compilation, dims), text in zip(compilations, texts, strict=True):
        kernel = compilation.target.kernel()
        arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
        values = [*(arguments[name] for name in text.pointers), *(dims[name] for name in text.sizes)]
        library.launch(text.name, launch_grid(kernel, dims), text.threads, text.shared_bytes, values, seed=3)
        results.append({name: arguments[name] for name, role in kernel.attributes["parameters"] if role != "in"})
    return results


def assert_right_on_every_lane(compilations):
    """`compilations`: (compilation, dims) of kernels with different names."""
    for (compilation, dims), emulated in zip(compilations, emulated_together(compilations), strict=True):
        kernel = compilation.stages[0].module.kernel()
        expected = outputs_of(kernel, dims, "tile")
        assert_same_bits(expected, outputs_of(compilation.target.kernel(), dims, "target"), f"lowering {kernel.name}")
        assert_same_bits(expected, emulated, f"the emitted CUDA of {kernel.name}")
        bars = reference(kernel, arguments_of(kernel, dims), dims)
        for output, array in expected.items():
            result = check(array, bars[output])
            assert result.ok and not result.rms_rule, (kernel.name, output, result)


def identify(operands):
    return "-".join(filter(None, operands))


def kernels_of(operands, suffix="", **options):
    """The product of these operands in all four ways in which they may be stored."""
    dtype_a, dtype_b, precision = operands
    for flags in TRANSPOSES:
        name = f"product_{''.join('nt'[flag] for flag in flags)}{suffix}"
        yield product(name, parse(dtype_a), parse(dtype_b), precision, *flags, **options)


@pytest.mark.parametrize("operands", FORMATS, ids=identify)
def test_every_lane_agrees_and_is_right(operands):
    assert_right_on_every_lane(
        [
            (compile_kernel(definition, dims), dims)
            for number, dims in enumerate(SHAPES)
            for definition in kernels_of(operands, f"_{number}")
        ]
    )


@pytest.mark.parametrize("operands", FORMATS, ids=identify)
def test_the_instruction_that_was_meant_runs_on_every_architecture(operands):
    instruction, k_block = FORMATS[operands]
    for definition, arch in zip(kernels_of(operands), ("sm_80", "sm_90a", "sm_90a", "sm_80"), strict=True):
        definition = definition.scheduled({"family": ""})
        text = compile_kernel(definition, {"M": 192, "N": 200, "K": 96}, arch).cuda[0]
        result = compile_cubin(text.text, arch, text.name, want_ptx=True)
        products = re.findall(r"mma\.sync\S*", result.ptx)
        # 64 x 64 over four warps of two by two: 2 x 4 instructions of 16 x 8 a k-block, in a K tile of 32.
        assert products == ([instruction] * (2 * 4 * 32 // k_block) if instruction else [])
        assert ("cvt.rna.tf32" in result.ptx) == (operands[2] == "tf32")
        assert "cp.async" in result.ptx and ("ldmatrix" in result.ptx or "fp8" in operands[0] or "f32" in operands[0])
        resources = result.resources[text.name]
        assert resources.spill_stores == resources.spill_loads == 0


OTHER_FORMATS = [("f16", "f16", None), ("fp8_e4m3", "fp8_e5m2", None), ("f32", "f32", None), ("f32", "f32", "tf32")]


def batched(name, dtype_a, dtype_b, precision):
    """Products of matrices of a batch: program axis 2 picks the matrix, and windows drop the axis."""

    @ts.kernel(name=name)
    def kernel(
        a: Tensor["B", "M", "K", dtype_a],
        b: Tensor["B", "K", "N", dtype_b],
        out: Tensor["B", "M", "N", ts.f32],
    ):
        ctx = tile.context()
        m = tile.program_id(0) * 32
        n = tile.program_id(1) * 32
        matrix = tile.program_id(2)
        acc = tile.zeros([32, 32], ts.f32)
        for k in tile.range(0, ctx.K, 16):
            left, right = a[matrix, m : m + 32, k : k + 16], b[matrix, k : k + 16, n : n + 32]
            acc = tile.mma(left, right, acc, precision=precision)
        tile.store(acc, out[matrix, m : m + 32, n : n + 32])

    return kernel


@pytest.mark.parametrize("dims", [{"B": 3, "M": 32, "K": 48, "N": 64}, {"B": 2, "M": 35, "K": 20, "N": 9}], ids=str)
def test_batched_products_stage_windows_of_rank_three(dims):
    compilations = []
    for number, (dtype_a, dtype_b, precision) in enumerate(OTHER_FORMATS):
        compilation = compile_kernel(batched(f"batched_{number}", parse(dtype_a), parse(dtype_b), precision), dims)
        copies = [op for op in compilation.target.kernel().body.walk() if op.name == "cp_async"]
        assert len(copies) == 6  # of two operands: ahead of the loop for two iterations, and in the loop
        if dims["K"] == 48:
            assert {op.attributes["vector"] for op in copies} == {16}
        compilations.append((compilation, dims))
    assert_right_on_every_lane(compilations)


def chained(name, dtype, precision):
    """(a @ b) @ c through a rounded intermediate, with parts of resident buffers as operands."""

    @ts.kernel(name=name)
    def kernel(a: Tensor["M", "D", dtype], b: Tensor["D", "D", dtype], out: Tensor["M", "D", ts.f32]):
        ctx = tile.context()
        row = tile.program_id(0) * 16
        rows = tile.alloc_shared([16, ctx.D], dtype)
        weights = tile.alloc_shared([ctx.D, ctx.D], dtype)
        tile.copy_async(rows, a[row : row + 16])
        tile.copy_async(weights, b)
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        hidden = tile.cast(tile.tanh(tile.mma(rows, weights, precision=precision)), dtype)
        again = tile.mma(hidden, weights, transpose_b=True, precision=precision)
        part = tile.mma(rows[:, 4:20], weights[4:20, :], again, precision=precision)
        tile.store(part, out[row : row + 16])

    return kernel


@pytest.mark.parametrize("dims", [{"M": 33, "D": 48}, {"M": 7, "D": 20}], ids=str)
def test_computed_operands_and_parts_of_buffers(dims):
    compilations = []
    for number, (dtype, _, precision) in enumerate([("bf16", "bf16", None), *OTHER_FORMATS]):
        compilations.append((compile_kernel(chained(f"chained_{number}", parse(dtype), precision), dims), dims))
    assert_right_on_every_lane(compilations)


def test_true_f32_reads_wide_and_without_bank_conflicts():
    """Both operands come 16 bytes at a time, whichever way they lie, and no quarter of a warp meets in a bank."""
    for definition in kernels_of(("f32", "f32", None)):
        kernel = compile_kernel(definition, SHAPES[0]).target.kernel()
        loads = [op for op in kernel.body.walk() if op.name == "ld_operand"]
        assert [op.attributes["vector"] for op in loads] == [16, 16], definition.name
        for op in loads:
            layout, buffer = tile_layout(op.result.type), buffer_layout(op.operands[0].type)
            transposed = op.attributes["transposed"]
            for group in vector_registers(layout, 0 if transposed else 1, 4):
                places = [layout.coordinates(group[0], lane, 0) for lane in range(32)]
                addresses = [buffer.offset(*(reversed(place) if transposed else place)) for place in places]
                assert bank_wavefronts(addresses, 16) == 4, (definition.name, op.attributes["role"])


def extremes(dtype, count):
    """Bit patterns spread over all exponents, with zeros, subnormals, infinity, NaN and halves of a tf32 step."""
    bits = dtype.bits
    last = {16: 0x1F, 32: 0x1FFF}.get(bits, 0)
    high = np.arange(count, dtype=np.uint64) * (1 << bits) // count
    low = np.array([0, 1, last // 2, last // 2 + 1, last // 2 + 2, last, last + 1, 3], np.uint64)
    values = (high + low[np.arange(count) % 8]).astype(f"u{dtype.bytes}").view(dtype.numpy)
    values[-2:] = np.array([np.inf, np.nan]).astype(dtype.numpy)
    return values


@pytest.mark.parametrize("operands", FORMATS, ids=identify)
def test_extreme_values_reach_the_product(operands):
    """One of them in each row of a, or in each column of b, through every load and conversion."""
    dims = {"M": 64, "N": 64, "K": 64}
    compilation = compile_kernel(next(iter(kernels_of(operands))), dims)
    kernel, text = compilation.stages[0].module.kernel(), compilation.cuda[0]
    library = emulator.build(text.text, [text.name])
    for name, dtype in zip("ab", operands, strict=False):
        arguments = arguments_of(kernel, dims)
        arguments[name][np.arange(64), (np.arange(64) * 7) % 64] = extremes(parse(dtype), 64)
        expected = {name: array.copy() for name, array in arguments.items()}
        interpret(kernel, expected, dims)
        values = [*(arguments[name] for name in text.pointers), *(dims[name] for name in text.sizes)]
        library.launch(text.name, launch_grid(kernel, dims), text.threads, text.shared_bytes, values)
        np.testing.assert_array_equal(arguments["out"], expected["out"])
        assert 0 < np.isfinite(expected["out"]).sum() < expected["out"].size
