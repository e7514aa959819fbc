"""Every kernel compiles for every architecture without a GPU.

No spills, the instructions that were meant, within the budget.
"""

import re

import pytest

from tessera.compiler import compile_kernel
from tessera.runtime.nvrtc import compile_cubin, count_instructions
from tests.lanes import define
from tests.pace import within
from tests.suite import load

ARCHS = ("sm_80", "sm_89", "sm_90a", "sm_100a")
ALWAYS = ("sm_80", "sm_90a")  # each kernel on these; on the others two of three with `-m full` alone
KERNELS = [("gating_function_kernel", {"B": 2, "S": 300, "D": d}) for d in (16, 60, 100, 128, 192)] + [
    ("gating_function_kernel", {"B": 2, "S": 300, "D": 512}),
    ("vector_add", {"N": 1000}),
    ("softmax", {"M": 40, "N": 1000}),
    ("softmax_bf16", {"M": 40, "N": 256}),
    *(
        (f"matmul_{case}_{dtype}", {"M": 200, "N": 150, "K": 96})
        for case in ("nn", "nt", "tn", "tt")
        for dtype in ("bf16", "f32")
    ),
]
# The others have rows that no tensor map describes.
ON_THE_LANE = {("gating_function_kernel", 2, 300, d) for d in (16, 128, 192, 512)} | {
    (f"matmul_{case}_bf16", 200, 150, 96) for case in ("nt", "tt")
}
# Seconds of process CPU time from source to cubin.
BUDGET = {"sm_80": 1.5, "sm_90a": 3.0}


def compiled(name, dims, arch):
    compilation = compile_kernel(load(name), dims, arch)
    text = compilation.cuda[0]
    return text, compile_cubin(text.text, arch, name, want_ptx=True)


ON_ARCHS = [
    pytest.param(
        *(name, dims, arch),
        id=f"{name}-{'x'.join(map(str, dims.values()))}-{arch}",
        marks=[pytest.mark.full] * (arch not in ALWAYS and number % 3 != 0),
    )
    for number, (name, dims) in enumerate(KERNELS)
    for arch in ARCHS
]


@pytest.mark.parametrize("name, dims, arch", ON_ARCHS)
def test_compiles_without_spills(name, dims, arch):
    text, result = compiled(name, dims, arch)
    assert result.cubin[:4] == b"\x7fELF"
    resources = result.resources[text.name]
    assert resources.spill_stores == resources.spill_loads == 0
    assert resources.registers * text.threads <= 65536
    counts = count_instructions(result.ptx)
    if arch == "sm_90a" and (name, *dims.values()) in ON_THE_LANE:
        assert counts["wgmma"] > 0 and counts["cp.async.bulk"] > 0 and counts["mma.sync"] == 0
    elif "bf16" in name and "matmul" in name or "gating" in name:
        assert counts["mma.sync"] > 0 and counts["cp.async"] > 0 and counts["ldmatrix"] > 0
        assert counts["wgmma"] == counts["cp.async.bulk"] == 0
    if "f32" in name and "matmul" in name:
        assert counts["mma.sync"] == 0 and "fma.rn.f32" in result.ptx, "an f32 product is true f32"
    # CUDA's own accurate expf uses ex2.approx.ftz on a scaled argument; arithmetic must not flush.
    assert not re.search(r"\b(add|sub|mul|fma|div)\S*\.ftz", result.ptx), "no flush to zero"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name, dims", [KERNELS[3], KERNELS[8], KERNELS[9]], ids=["gating", "softmax", "matmul"])
def test_source_to_cubin_is_within_budget(name, dims, arch):
    definition = load(name)
    compiled(name, dims, arch)  # libraries are imported by the first one
    with within(BUDGET[arch]):
        text = compile_kernel(definition, dims, arch).cuda[0]
        compile_cubin(text.text, arch, name)


LIST = """
@ts.kernel
def k(xs: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 128
    acc = tile.zeros([128])
    for i in tile.range(len(xs)):
        acc = acc + xs[i][start : start + 128]
    tile.store(acc, out[start : start + 128])
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_thousand_tensors_are_read_where_the_launch_passes_them(arch):
    text = compile_kernel(define(LIST), {"N": 1000, "len(xs)": 1000}, arch).cuda[0]
    result = compile_cubin(text.text, arch, "total", want_ptx=True)
    assert f".b8 {text.name}_param_0[8000]" in result.ptx and ".local" not in result.ptx
    assert result.resources[text.name].stack == 0
    pointers = [line for line in result.ptx.split("\n") if re.search(r"ld\.param\.u64\s+%rd\d+, \[%rd\d+", line)]
    assert len(pointers) == 1, "one load from the parameters, at an index of the loop"


def test_the_line_table_names_the_op_of_each_line():
    compilation = compile_kernel(load("gating_function_kernel"), {"B": 2, "S": 300, "D": 64})
    text = compilation.cuda[0]
    ops = {op.id: op for op in compilation.target.kernel().body.walk()}
    lines = text.text.split("\n")
    named = {ops[text.lines[number]].name for number, line in enumerate(lines, 1) if "ts_mma" in line}
    assert named == {"mma_sync"}
    copies = [ops[text.lines[number]] for number, line in enumerate(lines, 1) if "ts_cp_async<" in line]
    assert [op.loc.line for op in copies] == sorted({op.loc.line for op in copies}) and len(copies) == 2
