"""The kernels of the gated delta rule: `tessera check` finds nothing, they fit, and what their loops are made of."""

import numpy as np
import pytest

import tessera as ts
from tessera.compiler import compile_kernel
from tessera.gdn.delta_kernels import Variant, chunk_kernel, prepare_kernel, recurrent_kernel
from tessera.ir.opdef import LOOP
from tessera.runtime.check import examine_kernel
from tessera.runtime.nvrtc import compile_cubin
from tests.gdn.problems import NUMPY
from tests.passes.test_register_operands import ops

DIMS = {"B": 1, "T": 70, "H": 1, "HV": 2, "K": 64, "V": 64}


def variant(dtype=ts.bf16, **fields):
    return Variant(dtype, ts.f32, ts.f32, **{"block": 32, "warps": 2, **fields})


def absent(kernel, *present):
    return kernel.without(kernel.optional - set(present))


def inputs(v, dims, bounds=(0, 33, 33, 40), seed=0):
    """Arrays for every parameter of the three kernels, those that hand something on included, and the dims."""
    rng, dtype = np.random.default_rng(seed), NUMPY[v.dtype.name]
    B, T, H, HV, K, V, C = (*(dims[name] for name in ("B", "T", "H", "HV", "K", "V")), v.chunk)
    packed = v.bounds is not None
    sequences = len(bounds) - 1 if packed else B
    slots = T // C + sequences if packed else B * -(-T // C)
    unit = rng.standard_normal((2, B, T, H, K))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    state = rng.standard_normal((sequences, HV, *((V, K) if v.value_first else (K, V)))).astype(np.float32)
    found = {
        "q": unit[0].astype(dtype),
        "k": unit[1].astype(dtype),
        "v": rng.standard_normal((B, T, HV, V)).astype(dtype),
        "g": -rng.random((B, T, HV)).astype(np.float32),
        "beta": rng.random((B, T, HV)).astype(np.float32),
        "scale": 0.125,
        "mix": np.tril(rng.standard_normal((slots, HV, C, C))).astype(dtype),
        "attend": np.tril(rng.standard_normal((slots, HV, C, C))).astype(dtype),
        "factors": rng.random((slots, HV, 3, C)).astype(np.float32),
        "fade": rng.random((slots, HV)).astype(np.float32),
        "initial_state": state,
        "final_state": np.full_like(state, np.nan),
        "o": np.full((B, T, HV, V), np.nan, dtype),
        "A_log": rng.standard_normal(HV).astype(np.float32),
        "dt_bias": rng.standard_normal(HV).astype(np.float32),
        "cu_seqlens": np.array(bounds, np.int32),
    }
    return found, {**dims, "S": slots, "N": sequences}


EXAMINED = [
    ("prepare", variant(), ("g", "beta")),
    ("prepare", variant(ts.f16, chunk=32, unit=True, gate_free=True, logits=True), ("g", "beta", "A_log", "dt_bias")),
    ("prepare", variant(chunk=16, bounds=ts.i32), ("g", "beta", "cu_seqlens")),
    ("chunks", variant(), ("initial_state", "final_state")),
    ("chunks", variant(ts.f16, chunk=32, value_first=True, block=64, warps=4), ("final_state",)),
    ("chunks", variant(bounds=ts.i32, chunk=16), ("cu_seqlens", "initial_state", "final_state")),
    ("chunks", variant(block=64, warps=4, stages=2, family="wgmma"), ("initial_state", "final_state")),
    ("chunks", variant(block=32, warps=4, stages=2, family="wgmma", upright=True), ("initial_state", "final_state")),
    ("chunks", variant(chunk=32, warps=4, value_first=True, upright=True), ("initial_state", "final_state")),
    ("recurrent", variant(), ("g", "beta", "initial_state", "final_state")),
    ("recurrent", variant(value_first=True, bounds=ts.i32, unit=True), ("g", "cu_seqlens", "final_state")),
]
KERNELS = {"prepare": prepare_kernel, "chunks": chunk_kernel, "recurrent": recurrent_kernel}


@pytest.mark.parametrize(("name", "v", "present"), EXAMINED, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(EXAMINED)])
def test_check_finds_nothing(name, v, present):
    kernel = absent(KERNELS[name](v), *present)
    dims = {**DIMS, "T": 5} if name == "recurrent" else DIMS
    if v.bounds is not None:
        dims = {**dims, "T": 40}
    # What is written must be all there is: these sequences leave no slot between them.
    arrays, dims = inputs(v, dims, (0, 17, 40)) if name == "prepare" else inputs(v, dims)
    names = [p.name for p in kernel.parameters]
    given = {name: arrays[name] for name in names}
    if name == "prepare":
        given |= {x: np.full_like(given[x], np.nan) for x in ("mix", "attend", "factors", "fade")}
    compilation = compile_kernel(kernel, dims, arch="sm_90a" if v.family else "sm_80")
    report = examine_kernel(compilation, given, dims, seeds=(0, 1))
    assert report.ok, [str(seen.finding) for seen in report.findings]


LARGE = {"B": 1, "T": 8192, "H": 16, "HV": 32, "K": 128, "V": 128, "S": 128, "N": 1}
FITTING = [
    ("prepare", variant(), ("g", "beta"), 176),
    ("prepare", variant(unit=True, gate_free=True, prepare_warps=2), ("g", "beta"), 240),  # 4 blocks, up to 255
    ("prepare", variant(chunk=16, unit=True), ("g", "beta"), 160),
    ("chunks", variant(), ("initial_state", "final_state"), 255),
    ("chunks", variant(block=32, warps=8), ("initial_state", "final_state"), 176),
    ("chunks", variant(block=64, warps=8), ("initial_state", "final_state"), 255),
    ("chunks", variant(block=128, warps=8, stages=2), ("initial_state", "final_state"), 255),
    ("chunks", variant(ts.f16, chunk=32), ("final_state",), 255),
    ("chunks", variant(block=32, warps=4, upright=True), ("initial_state", "final_state"), 200),
    ("recurrent", variant(warps=4), ("g", "beta", "initial_state", "final_state"), 104),
    ("recurrent", variant(warps=4, value_first=True), ("g", "beta", "initial_state", "final_state"), 136),
]


# Each on one architecture, the next one on the other; with `-m full` on both.
ON_AN_ARCH = [
    pytest.param(*fitting, arch, id=f"{fitting[0]}-{i}-{arch}", marks=[pytest.mark.full] * ((i + other) % 2))
    for i, fitting in enumerate(FITTING)
    for other, arch in enumerate(("sm_90a", "sm_80"))
]


@pytest.mark.parametrize(("name", "v", "present", "registers", "arch"), ON_AN_ARCH)
def test_nothing_spills(name, v, present, registers, arch):
    source = compile_kernel(absent(KERNELS[name](v), *present), LARGE, arch=arch).cuda[0]
    resources = compile_cubin(source.text, arch, source.name).resources[source.name]
    assert resources.spill_stores == resources.spill_loads == 0 and resources.registers <= registers


@pytest.mark.parametrize(("block", "warps", "upright"), [(64, 4, False), (128, 8, False), (32, 4, True), (64, 4, True)])
def test_nothing_spills_beside_warpgroups(block, warps, upright):
    v = variant(block=block, warps=warps, stages=2, family="wgmma", upright=upright)
    source = compile_kernel(absent(chunk_kernel(v), "initial_state", "final_state"), LARGE, arch="sm_90a").cuda[0]
    resources = compile_cubin(source.text, "sm_90a", source.name).resources[source.name]
    assert resources.spill_stores == resources.spill_loads == 0 and "ts_wgmma" in source.text
    assert "ts_mma" not in source.text.replace("ts_wgmma", "")


def test_the_state_stays_in_registers():
    """A turn of the loop over chunks writes copies and the output to shared memory, and has two barriers."""
    kernel = absent(chunk_kernel(variant()), "initial_state", "final_state")
    target = compile_kernel(kernel, LARGE).target.kernel()
    loop = next(op for op in target.body.ops if op.definition.has(LOOP))
    (turn,) = loop.regions
    assert len(ops(turn, "st_shared")) == 1 and len(ops(turn, "barrier")) == 2 and not ops(turn, "for")
    assert len(ops(turn, "mma_sync")) == 2 * 8 + 3 * 4 and len(ops(turn, "ld_global")) == 1


@pytest.mark.parametrize(("block", "upright"), [(32, True), (64, False)])
def test_copies_for_the_next_chunk_start_beside_products(block, upright):
    """While warpgroups multiply, threads compute the addresses."""
    v = variant(block=block, warps=4, stages=2, family="wgmma", upright=upright)
    kernel = absent(chunk_kernel(v), "initial_state", "final_state")
    target = compile_kernel(kernel, LARGE, arch="sm_90a").target.kernel()
    (turn,) = next(op for op in target.body.ops if op.definition.has(LOOP)).regions
    found = [op for op in turn.ops if op.name in ("if", "async_commit", "wgmma", "wgmma_wait")]
    assert [op.name for op in found[:7]] == [
        "wgmma", "wgmma_wait", "wgmma", "wgmma", "if", "async_commit", "wgmma_wait",
    ]  # fmt: skip
    assert len(ops(found[4].regions[0], "cp_async")) == 8 and found[6].attributes["pending"] == 1


def test_offsets_are_64_bit():
    """Tensors of more than 2^31 elements: every index into one is an i64."""
    big = {**LARGE, "T": 2**20, "S": 2**14}
    for name, present in (("prepare", ("g", "beta")), ("chunks", ()), ("recurrent", ("g", "beta"))):
        target = compile_kernel(absent(KERNELS[name](variant()), *present), big).target.kernel()
        windows = [op for op in target.body.walk() if op.name == "window"]
        assert windows and all(
            v.type.dtype == ts.i64 for op in windows for v in op.operands[1:] if hasattr(v.type, "dtype")
        )


def test_both_chunked_kernels_are_short():
    nodes = [kernel(variant()).source.node for kernel in (prepare_kernel, chunk_kernel)]
    assert sum(node.end_lineno - node.lineno + 1 for node in nodes) < 120
