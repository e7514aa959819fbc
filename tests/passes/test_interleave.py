"""Tiles computed part by part: where, in which order, with the same bits, and with registers to spare."""

import dataclasses
import shutil

import pytest

from tessera.compiler import compile_kernel, find_arch
from tessera.errors import SourceError
from tessera.ir.compare import difference
from tessera.ir.core import Op, Value
from tessera.ir.ops.interleave import register_count
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.verify import verify
from tessera.runtime.check import examine_kernel
from tessera.runtime.execute import parameters_of
from tessera.runtime.inputs import make_arrays
from tessera.runtime.nvrtc import compile_cubin
from tessera.target.cost import cost
from tessera.target.schedule import Schedule
from tests.check.mutations import Edit, author_line, mutated
from tests.passes import interleave_kernels
from tests.passes.test_pipeline import arguments_of, assert_same_bits, emulated, outputs_of
from tests.suite import load

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")

WHOLE = Schedule(4, rows=128)
CASES = {
    "gated": ({"M": 130, "N": 120, "K": 96}, WHOLE),
    "gated-narrow": ({"M": 130, "N": 128, "K": 40}, Schedule(4, rows=128, block_k=16, stages=2)),
    "gated_by_itself": ({"M": 100, "K": 72}, Schedule(2, rows=128)),
    "two_products": ({"M": 130, "K": 128}, WHOLE),
    "biased": ({"M": 130, "N": 128, "K": 16}, WHOLE),
    "sum_of_four": ({"N": 3000}, Schedule(1)),
}


def compiled(case, arch="sm_80"):
    dims, schedule = CASES[case]
    return compile_kernel(getattr(interleave_kernels, case.split("-")[0]), dims, arch, schedule=schedule), dims


def fused(sources, d, s=2048, **changed):
    """The flagship kernel of the language document, for a number of layers, and its dims."""
    definition = load("fused_delta_gating_kernel").scheduled({"family": ""})
    lists = {"len(source_layers)": sources, "len(gate_params)": sources}
    dims = {"B": 1 if s < 2048 else 16, "S": s, "D": d, "L": sources + 1, **lists}
    constants = {"BLOCK_B": dims["B"], "BLOCK_S": 128, "num_warps": changed["warps"], "num_stages": changed["stages"]}
    own = compile_kernel(definition, dims, "sm_90a", constants=constants).schedule
    schedule = dataclasses.replace(own, **changed)
    return compile_kernel(definition, dims, "sm_90a", constants=constants, schedule=schedule), dims


def stage(compilation, name):
    return next(stage for stage in compilation.stages if stage.name == name).module.kernel()


def interleaves(kernel) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name == "interleave"]


def inside(op: Op) -> list[str]:
    return [inner.name for inner in op.regions[0].ops[:-1]]


def names(kernel) -> list[str]:
    return [op.name for op in kernel.body.walk()]


# Where and how -------------------------------------------------------------------------------------------------------


def test_loads_behind_a_product_come_in_parts_and_in_front_of_their_arithmetic():
    compilation, _ = compiled("gated")
    before, after = stage(compilation, "insert_barriers"), compilation.target.kernel()
    run = ["sigmoid", "ld_global", "ld_global", "sub", "mul", "cast"]
    assert not interleaves(before) and [name for name in names(before) if name in run][-6:] == [
        "ld_global", "sigmoid", "ld_global", "sub", "mul", "cast",
    ]  # fmt: skip
    (op,) = interleaves(after)
    assert inside(op) == ["ld_global", "ld_global", "sigmoid", "sub", "mul", "cast"]
    assert op.attributes["parts"] == 4 and {register_count(each) for each in op.regions[0].ops[:-1]} == {128}
    given = op.regions[0].ops[-1].operands
    assert [value.defining_op.name for value in given] == ["cast"], "only what the store needs leaves the region"
    assert sorted(names(after)) == sorted([*names(before), "interleave", "yield"]), "all else is there"


def test_stores_to_shared_memory_are_part_of_a_run_and_a_barrier_ends_it():
    (op,) = interleaves(fused(1, 256, s=130, rows=128, subtile=128, warps=4, blocks=2, stages=2)[0].target.kernel())
    assert inside(op)[-2:] == ["cast", "st_matrices"] and not op.results
    (op,) = interleaves(compiled("gated")[0].target.kernel())
    assert "st_shared" not in inside(op), "the scratch lies where the operands were: a barrier comes before it"


def test_a_spread_row_is_loaded_in_front():
    (op,) = interleaves(compiled("biased")[0].target.kernel())
    assert inside(op) == ["ld_global", "broadcast", "add", "add"]
    (source,) = (each.operands[0] for each in op.regions[0].ops if each.name == "broadcast")
    assert source.defining_op not in op.regions[0].ops


def test_what_fits_stays_whole():
    dims, _ = CASES["gated"]
    small = compile_kernel(interleave_kernels.gated, dims, schedule=Schedule(8, rows=64))
    assert not interleaves(small.target.kernel())
    twice = compile_kernel(interleave_kernels.used_twice, {"N": 3000}, schedule=Schedule(1))
    assert not interleaves(twice.target.kernel()), "its loads are needed whole behind it"


def test_fewer_registers_mean_more_parts():
    dims, _ = CASES["gated"]
    parts = [
        interleaves(compile_kernel(interleave_kernels.gated, dims, schedule=schedule).target.kernel())[0].get("parts")
        for schedule in (Schedule(4, rows=128), Schedule(4, rows=128, blocks=3))
    ]
    assert parts == [4, 8]


# The same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_bits_stay(case):
    compilation, dims = compiled(case)
    kernel = compilation.target.kernel()
    assert interleaves(kernel)
    expected = outputs_of(compilation.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, outputs_of(kernel, dims, "target"), "the interpreter")
    for seed in (0, 5) if shutil.which("g++") else ():
        assert_same_bits(expected, emulated(compilation, dims, seed), "the emitted CUDA")


@needs_compiler
def test_a_kernel_with_stores_in_parts_passes_the_examination():
    compilation, dims = fused(1, 256, s=130, rows=128, subtile=128, warps=4, blocks=2, stages=2)
    arrays = make_arrays(parameters_of(compilation.stages[0].module.kernel()), dims, 0)
    report = examine_kernel(compilation, arrays, dims, (0, 3))
    assert report.ok and report.compared == ("output",)


LAST = r"(?s)(.*)"  # up to the last match: what is wrong is wrong in the last part only


@needs_compiler
@pytest.mark.parametrize(
    "edit, at",
    [
        (Edit("sigmoid", LAST + r"ts_sigmoid\(", r"\1-ts_sigmoid("), "tile.sigmoid(tile.mma(x[row : row + 128], w))"),
        (Edit("sub delta", "ts_sub_pair", "ts_add_pair", count=1), "- s[row : row + 128]"),
        (
            Edit("ld_global", r"(global<ts_bf16, 2>\(\w+ \+ r, )window", r"\1 8 + window", count=1),
            "delta = t[row : row + 128]",
        ),
    ],
    ids=["the last part", "the first part", "a load"],
)
def test_a_wrong_part_is_traced_to_its_op(edit, at):
    right, dims = compiled("gated-narrow")
    arguments = arguments_of(right.stages[0].module.kernel(), dims)
    report = examine_kernel(mutated(right, (edit,)), arguments, dims, (0,))
    found = [seen.finding for seen in report.findings]
    assert found and {(f.op, f.file, f.line) for f in found} == {(edit.op.split()[0], *author_line(right, at))}


def test_every_line_of_a_part_knows_its_op():
    compilation, _ = compiled("gated")
    (cuda,) = compilation.cuda
    rows = cuda.text.split("\n")
    (op,) = interleaves(compilation.target.kernel())
    load = op.regions[0].ops[0]
    lines = [rows[line - 1] for line, identifier in cuda.lines.items() if identifier == load.id]
    name = cuda.variables[load.result]
    assert [line.strip() for line in lines if "[128];" in line] == [f"ts_bf16 {name}[128];"], "declared once"
    heads = [line.strip() for line in lines if line.lstrip().startswith("TS_UNROLL")]
    bounds = [f"TS_UNROLL for (int r = {first}; r < {first + 32}; r += 2) {{" for first in (0, 32, 64, 96)]
    assert list(dict.fromkeys(heads)) == bounds


# Text and rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["gated", "biased"])
def test_the_text_says_it_all(case):
    module = compiled(case)[0].target
    again = parse_module(print_module(module))
    assert difference(module, again) is None and interleaves(again.kernel())


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("parts = 4", "parts = 3", "128 registers do not split into 3 parts"),
        ("parts = 4", "parts = 128", "128 registers do not split into 128 parts between accesses of 2"),
        ("parts = 4", "parts = 0", "must be a positive integer"),
        ("    yield %", "    barrier\n    yield %", "barrier in an interleave does not work register by register"),
        ("interleave {parts = 4} {", "interleave {parts = 4} (%no: i64) {", "takes nothing"),
        ("yield %{cast}", "yield %{product}", "yields what its region computes"),
    ],
    ids=["parts", "accesses", "none", "barrier", "argument", "from outside"],
)
def test_what_is_no_interleave_is_refused(old, new, message):
    module = compiled("gated")[0].target
    text = print_module(module)
    start = text.index("interleave {")
    end = text.index("}", text.index("yield", start))
    region = text[start:end]
    made = {"cast": region.rsplit("yield %", 1)[1].split(" ")[0], "product": region.split("sigmoid %")[1].split(" ")[0]}
    if "{cast}" in old:
        old, new = old.format(**made), new.format(**made)
    assert old in region
    with pytest.raises(SourceError, match="TS703") as error:
        verify(parse_module(text[:start] + region.replace(old, new) + text[end:]))
    assert message in error.value.message


def test_a_broadcast_reads_what_is_there_before():
    kernel = parse_module(print_module(compiled("biased")[0].target)).kernel()
    (op,) = interleaves(kernel)
    (spread,) = (each for each in op.regions[0].ops if each.name == "broadcast")
    again = Op("broadcast", [spread.result], dict(spread.attributes), [], [], spread.origin)
    again.results.append(Value(spread.result.type, "", again, 0))
    op.regions[0].ops.insert(-1, again)
    with pytest.raises(SourceError, match="a broadcast in an interleave of what its own broadcast gives"):
        verify(kernel)


# Registers and cost --------------------------------------------------------------------------------------------------


def test_the_flagship_does_not_spill_with_128_accumulators():
    """Whole, these spill 260 and 240 bytes a thread."""
    for changed in (
        {"rows": 128, "subtile": 256, "block_k": 64, "blocks": 1, "warps": 8, "stages": 3},
        {"rows": 128, "subtile": 128, "blocks": 2, "warps": 4, "stages": 2},
    ):
        program = fused(1, 1024, **changed)[0].program
        (found,) = compile_cubin(program.cuda, "sm_90a", program.name).resources.values()
        assert (found.spill_stores, found.spill_loads) == (0, 0), changed


def test_parts_cost_waits_and_save_registers():
    arch = find_arch("sm_80")
    compilation, dims = compiled("gated")
    whole = cost(stage(compilation, "insert_barriers"), arch, dims)
    parts = cost(compilation.target.kernel(), arch, dims)
    assert (parts.flops, parts.bytes_dram, parts.bytes_l2) == (whole.flops, whole.bytes_dram, whole.bytes_l2)
    assert parts.registers <= whole.registers - 64
    assert parts.terms["latency"] > whole.terms["latency"]
