"""Lists of tensors on the command line: their lengths, their JSON, and what is wrong with them."""

import json

import pytest

from tessera import cli

KERNELS = """
import tessera as ts
from tessera import Tensor, tile

@ts.kernel
def total(xs: list[Tensor["N", ts.f32]], ys: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32], scale: float = 2.0):
    p = tile.program_id(0) * 64
    acc = tile.zeros([64])
    for i in tile.range(len(xs)):
        acc = acc + xs[i][p : p + 64] * ys[i][p : p + 64]
    tile.store(acc * scale, out[p : p + 64])

@ts.kernel
def copy(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    p = tile.program_id(0) * 64
    tile.store(x[p : p + 64], out[p : p + 64])
"""
DOCUMENT = "examples/gdn/gdn_part1.md"


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(KERNELS)
    return str(path)


def call(capsys, *arguments):
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["interpret", "emulate"])
@pytest.mark.parametrize("args", [[], ["--arg", "xs=1"], ["--arg", "xs=4", "--arg", "scale=0.5"], ["--arg", "ys=0"]])
def test_run(kernels, capsys, backend, args):
    code, body = call(capsys, "run", f"{kernels}::total", "--backend", backend, "--dims", "N=100", *args)
    assert code == 0 and body["ok"] and body["outputs"][0]["ok"] and body["dims"] == {"N": 100}


def test_run_a_whole_file(kernels, capsys):
    code, body = call(capsys, "run", kernels, "--arg", "xs=2", "--backend", "interpret")
    assert code == 0 and [row["ok"] for row in body["functions"]] == [True, True]


def test_check(kernels, capsys):
    code, body = call(capsys, "check", f"{kernels}::total", "--dims", "N=100", "--arg", "xs=2")
    assert code == 0 and body["ok"] and body["findings"] == []


def test_compile_and_ir(kernels, capsys):
    code, body = call(capsys, "compile", f"{kernels}::total", "--arg", "xs=2", "--arch", "sm_80", "--emit", "cuda")
    assert code == 0 and "TS_TABLE(const float, 2) xs" in body["kernels"][0]["cuda"]
    code, body = call(capsys, "ir", f"{kernels}::total", "--arg", "xs=5", "--stage", "tile")
    assert code == 0 and "%xs: list<view<[N], f32>, 5>" in body["stages"][0]["text"]


def test_edited_text(kernels, capsys, tmp_path):
    _, body = call(capsys, "ir", f"{kernels}::total", "--dims", "N=100", "--arg", "xs=2", "--stage", "tile")
    path = tmp_path / "total.tsir"
    path.write_text(body["stages"][0]["text"])
    code, body = call(capsys, "run", str(path), "--dims", "N=100", "--backend", "interpret")
    assert code == 0 and body["ok"]
    code, body = call(capsys, "run", f"{path}::total", "--dims", "N=100", "--arg", "xs=3")
    assert code == 2 and body["error"]["message"] == "'total' was made for 2 tensors in 'xs', not 3"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--arg", "xs=-1"], "TS605", "--arg xs is the length of a list of total, not '-1'"),
        (["--arg", "zs=1"], "TS605", "has no scalar parameter 'zs'"),
        (["--arg", "xs=2", "--arg", "ys=3"], "TS308", "'xs' and 'ys' are used together with the index 'i'"),
    ],
)
def test_wrong_lengths(kernels, capsys, args, code, message):
    status, body = call(capsys, "run", f"{kernels}::total", *args)
    assert status == (2 if code == "TS605" else 1)
    assert body["error"]["code"] == code and message in body["error"]["message"]


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("parallel_delta_aggregation_kernel", ("source_layers", "gate_networks")),
        ("fused_delta_gating_kernel", ("source_layers", "gate_params")),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_kernels_of_the_document(capsys, name, lists, count):
    dims = ["--dims", "B=3,S=70,D=16,L=4", "--backend", "interpret"]
    code, body = call(capsys, "run", f"{DOCUMENT}::{name}", *dims, "--arg", f"{lists[0]}={count}")
    assert code == 0 and body["ok"]
    code, body = call(capsys, "run", f"{DOCUMENT}::{name}", *dims, "--arg", f"{lists[0]}=2", "--arg", f"{lists[1]}=1")
    assert code == 1 and f"'{lists[0]}' has the length 2 and '{lists[1]}' 1" in body["error"]["message"]
