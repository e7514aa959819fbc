"""The command line on a kernel that becomes two launches: each verb shows both, and their dumps run again."""

from dataclasses import replace
from importlib import import_module

import pytest

from tessera import cli
from tessera.target.schedule import default_schedule
from tests.command_line import strict_json

MATMUL = "examples/matmul.py::matmul_nt_bf16"
DIMS = ["--dims", "M=40,N=70,K=96"]
NAMES = ["matmul_nt_bf16_parts", "matmul_nt_bf16_sum"]


@pytest.fixture(autouse=True)
def splitting(monkeypatch):
    def chosen(kernel, arch, lane=""):
        found = default_schedule(kernel, arch, lane)
        return replace(found, split_k=3) if any(op.name == "mma" for op in kernel.body.walk()) else found

    monkeypatch.setattr(import_module("tessera.target.schedules"), "default_schedule", chosen)


def run(capsys, *words):
    code = cli.cli.main([*words, "--json"], "tessera", standalone_mode=False)
    result = strict_json(capsys.readouterr().out)
    assert not code and result["ok"], result
    return result


def test_run_and_check_name_both_launches(capsys):
    found = run(capsys, "run", MATMUL, *DIMS, "--backend", "emulate")
    assert [(ran["name"], ran["grid"]) for ran in found["kernels"]] == [(NAMES[0], [1, 2, 3]), (NAMES[1], [3, 2])]
    assert [output["ok"] for output in found["outputs"]] == [True]
    found = run(capsys, "check", MATMUL, *DIMS, "--seeds", "1")
    assert [ran["name"] for ran in found["kernels"]] == NAMES and found["findings"] == []


def test_compile_counts_the_instructions_of_each(capsys):
    found = run(capsys, "compile", MATMUL, *DIMS, "--arch", "sm_80")
    assert [entry["name"] for entry in found["kernels"]] == NAMES
    parts, total = (entry["instructions"] for entry in found["kernels"])
    assert parts["mma.sync"] == 16 and "mma.sync" not in total and total["ld.global"]


def test_the_ir_of_both_runs_again(capsys, tmp_path):
    found = run(capsys, "ir", MATMUL, *DIMS, "--after", "split_k")
    (stage,) = found["stages"]
    dump = tmp_path / "split.tsir"
    dump.write_text(stage["text"])
    assert all(f"kernel @{name}(" in stage["text"] for name in NAMES)
    for name in NAMES:
        found = run(capsys, "run", f"{dump}::{name}", *DIMS, "--backend", "interpret")
        assert [ran["name"] for ran in found["kernels"]] == [name]
