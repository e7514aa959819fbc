"""`--arg NAME=VALUE` for the tuning constants of an autotuned kernel, on every verb that compiles."""

import json

import pytest

from tessera import cli

KERNELS = """
import tessera as ts
from tessera import Tensor, tile

@ts.kernel.autotune(space=dict(BLOCK_B=[1, 2], BLOCK_S=[16, 32], fast=[False, True]), key=["S"])
def copy_blocks(x: Tensor["B", "S", "D", ts.bf16], out: Tensor["B", "S", "D", ts.bf16], factor: float = 0.5):
    block = tile.async_load_block(x)
    tile.async_wait()
    tile.async_store_block(out, block * factor)

@ts.kernel
def plain(x: Tensor["S", ts.f32], out: Tensor["S", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * 2.0, out[row : row + 16])
"""


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "k.py"
    path.write_text(KERNELS)
    return path


def verb(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


DIMS = ("--dims", "B=3,S=40,D=16")


@pytest.mark.parametrize(("args", "grid"), [((), [3, 3, 1]), (("--arg", "BLOCK_B=2,BLOCK_S=32"), [2, 2, 1])])
def test_run(capsys, kernels, args, grid):
    code, found = verb(capsys, "run", f"{kernels}::copy_blocks", *DIMS, *args, "--arg", "factor=2.0")
    assert code == 0 and found["ok"]
    assert found["kernels"][0]["grid"] == grid[: len(found["kernels"][0]["grid"])]
    assert found["scalars"] == {"factor": 2.0}


def test_a_value_that_is_no_candidate(capsys, kernels):
    code, found = verb(capsys, "run", f"{kernels}::copy_blocks", *DIMS, "--arg", "BLOCK_S=8", "--backend", "emulate")
    assert code == 0 and found["kernels"][0]["grid"] == [3, 5]


def test_run_a_whole_file(capsys, kernels):
    code, found = verb(capsys, "run", kernels, *DIMS, "--arg", "BLOCK_S=32")
    assert code == 0
    grids = {function["name"]: function["kernels"][0]["grid"] for function in found["functions"]}
    assert grids["copy_blocks"][1] == 2 and grids["plain"][0] == 3


def test_check(capsys, kernels):
    code, found = verb(capsys, "check", f"{kernels}::copy_blocks", *DIMS, "--arg", "BLOCK_S=32")
    assert code == 0 and found["ok"]


def test_ir_and_compile(capsys, kernels):
    target = f"{kernels}::copy_blocks"
    code, found = verb(capsys, "ir", target, "--after", "frontend", "--arg", "BLOCK_S=64,fast=true")
    assert code == 0 and "constants = {BLOCK_B = 1, BLOCK_S = 64, fast = true}" in found["stages"][0]["text"]
    code, found = verb(capsys, "compile", target, "--emit", "cuda", "--arg", "BLOCK_B=2")
    assert code == 0 and found["ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "::copy_blocks", "--arg", "BLOCK_T=2"], "its constants BLOCK_B, BLOCK_S, fast; did you mean"),
        (["run", "", "--arg", "BLOCK_T=2"], "has a scalar parameter, list or constant BLOCK_T (there are factor, B"),
        (["run", "::copy_blocks", "--arg", "BLOCK_S=two"], "the constant BLOCK_S is of type int, and 'two' is not"),
        (["run", "::copy_blocks", "--arg", "fast=1"], "the constant fast is of type bool, and '1' is not"),
        (["ir", "::plain", "--arg", "BLOCK_S=2"], "has no list or tuning constant BLOCK_S (there are none)"),
        (
            ["compile", "::copy_blocks", "--arg", "BLOCKS=2"],
            "has no list or tuning constant BLOCKS (there are BLOCK_B, BLOCK_S",
        ),
    ],
)
def test_misuse(capsys, kernels, arguments, message):
    action, target, *rest = arguments
    code, found = verb(capsys, action, f"{kernels}{target}", *rest)
    assert (code, found["error"]["code"]) == (2, "TS605")
    assert message in found["error"]["message"]
