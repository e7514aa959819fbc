"""`tessera ir --schedule`, which explains the choice, and `--pin`, which takes it away from the compiler."""

import json

import pytest

from tests.command_line import strict_json

MATMUL = "examples/matmul.py::matmul_nn_bf16"
DIMS = ("--dims", "M=512,N=512,K=512", "--arch", "sm_90a")
KERNELS = """
import tessera as ts
from tessera import Tensor, tile

@ts.kernel.autotune(space=dict(BLOCK=[64, 256], num_warps=[1, 2]), key=["N"], schedule=dict(blocks=2))
def double(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * tile.context().BLOCK
    tile.store(x[start : start + tile.context().BLOCK] * 2.0, out[start : start + tile.context().BLOCK])

@ts.function
def twice(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
    return ts.add(x, x)
"""


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "k.py"
    path.write_text(KERNELS)
    return path


def test_the_table(tessera):
    code, out, _ = tessera("ir", MATMUL, *DIMS, "--schedule")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "matmul_nn_bf16  M=512,K=512,N=512  sm_90a  predicted, not measured"
    base = "  schedule warps=4 streamed=none subtile=0 block_k=64 rows=0 "
    assert lines[1] == base + "blocks=2 stages=6 group=8 family=wgmma copies=tma panels=64 persistent=True"
    assert lines[2].startswith("  time ") and "launch 2.5 us" in lines[2]
    assert lines[4].split() == ["predicted", "limit", "shared", "registers", "blocks/SM", "waves", "differs", "by"]
    assert lines[5].startswith("chosen  ") and "56.1 KiB" in lines[5]
    others = [line for line in lines[6 : lines.index("", 6)] if not line.startswith("and ")]
    assert any(line.endswith("  stages=4") for line in others) and all("=" in line for line in others)
    assert "left out  because" in lines
    assert tessera("ir", MATMUL, *DIMS, "--schedule")[1] == out  # nothing in it depends on the machine or the time
    lines = tessera("ir", MATMUL, *DIMS, "--schedule", "--pin", "family=")[1].splitlines()
    assert lines[1] == base + "blocks=1 stages=3 group=8" and "24 KiB" in lines[5]


def test_the_table_of_a_tuning_space(tessera, kernels):
    code, out, _ = tessera("ir", f"{kernels}::double", "--dims", "N=1000000", "--arch", "sm_90a", "--schedule")
    assert code == 0 and "  constants BLOCK=" in out and "blocks=2 stages=" in out
    assert "num_warps=" in out and " warps=2" not in out.split("left out")[0].split("\n\n", 1)[1]


def test_json_has_all_of_it(tessera):
    code, out, _ = tessera("ir", MATMUL, *DIMS, "--schedule", "--json")
    found = strict_json(out)
    assert code == 0 and found["measured"] is False and found["arch"] == "sm_90a"
    assert found["chosen"]["schedule"]["stages"] == 6 and found["chosen"] in found["candidates"]
    assert found["candidates"][0]["cost"]["seconds"] <= found["chosen"]["cost"]["seconds"]
    terms = {"dram", "l2", "mma", "shared", "alu", "latency", "fill", "launch"}
    assert set(found["chosen"]["cost"]["terms"]) == terms
    assert all(item["reason"] and item["schedule"] for item in found["pruned"])


def ir_attributes(tessera, *arguments):
    code, out, err = tessera("ir", *arguments)
    assert code == 0, err
    return next(line for line in out.splitlines() if "attributes {" in line)


def test_pins_reach_the_ir(tessera, kernels, tmp_path):
    text = ir_attributes(tessera, MATMUL, *DIMS, "--pin", "warps=8,stages=2", "--pin", "blocks=2")
    assert "pins = {warps = 8, stages = 2, blocks = 2}" in text and "schedule = {warps = 8, " in text
    text = ir_attributes(tessera, f"{kernels}::double", "--pin", "warps=2,BLOCK=256")
    assert "constants = {BLOCK = 256, num_warps = 2}" in text and "pins = {blocks = 2}" in text
    code, out, _ = tessera("ir", MATMUL, "--after", "frontend")
    path = tmp_path / "k.tsir"
    path.write_text(out)
    assert "schedule = {warps = 16, " in ir_attributes(tessera, path, "--pin", "warps=16")


def test_pins_reach_the_choice(tessera):
    code, out, _ = tessera("ir", MATMUL, *DIMS, "--schedule", "--pin", "warps=8", "--json")
    found = strict_json(out)
    assert code == 0 and {item["schedule"]["warps"] for item in found["candidates"]} == {8}


def test_every_verb_takes_pins(tessera):
    small = ("--dims", "M=33,N=20,K=16")
    code, out, _ = tessera("compile", MATMUL, *small, "--pin", "warps=8", "--emit", "cuda")
    assert code == 0 and "TS_KERNEL(matmul_nn_bf16, 256)" in out
    code, out, _ = tessera("run", MATMUL, *small, "--pin", "warps=2", "--backend", "interpret")
    assert code == 0
    code, out, _ = tessera("run", MATMUL, *small, "--pin", "warps=2", "--backend", "emulate", "--json")
    assert code == 0 and json.loads(out)["ok"]


def test_pins_of_a_whole_file_leave_functions_alone(tessera, kernels):
    code, out, _ = tessera("run", kernels, "--dims", "N=100", "--pin", "warps=2", "--backend", "interpret")
    assert code == 0 and "twice" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((MATMUL, "--pin", "wraps=8"), "--pin of matmul_nn_bf16: a schedule has no field 'wraps'; it has warps, "),
        ((MATMUL, "--pin", "warps=7"), "the field warps of a schedule is a power of two from 1 to 32, or 12, not 7"),
        ((MATMUL, "--pin", "warps=many"), "from 1 to 32, or 12, not 'many'"),
        ((MATMUL, "--pin", "warps"), "--pin takes NAME=VALUE pairs separated by commas, and 'warps' is not one"),
        ((MATMUL, "--pin", "warps="), "the field warps of a schedule is a power of two from 1 to 32, or 12, not ''"),
        ((MATMUL, "--pin", "=8"), "--pin takes NAME=VALUE pairs separated by commas, and '=8' is not one"),
        (
            ("KERNELS::double", "--pin", "warps=3"),
            "double: the field warps of a schedule is a power of two from 1",
        ),
        (("KERNELS::double", "--pin", "BLOCK=x"), "--pin of double: the constant BLOCK is of type int, and 'x' is not"),
        (("KERNELS::twice", "--pin", "warps=4"), "--pin fixes the schedule of a kernel, and twice is none"),
        (("KERNELS::twice", "--schedule"), "--schedule explains the schedule of a kernel, and twice is a function"),
        (("TARGET", "--pin", "warps=4"), "this IR is past the tile level"),
        (("TARGET", "--schedule"), "this IR is past the tile level"),
    ],
)
def test_errors(tessera, kernels, tmp_path, arguments, sentence):
    if arguments[0] == "TARGET":
        (tmp_path / "t.tsir").write_text(tessera("ir", "examples/vector_add.py::vector_add")[1])
    names = {"KERNELS": str(kernels), "TARGET": str(tmp_path / "t.tsir")}
    first = arguments[0].split("::")
    target = "::".join([names.get(first[0], first[0]), *first[1:]])
    code, _, err = tessera("ir", target, *arguments[1:])
    assert code == 2 and sentence in err and "TS605" in err
