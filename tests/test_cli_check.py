"""`tessera check`: what it prints for right and wrong kernels, its exit codes and its JSON."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tessera import compiler
from tessera.cli import report
from tests.command_line import strict_json

ROOT = Path(__file__).parents[1]
SOFTMAX = f"{ROOT / 'examples' / 'softmax.py'}::softmax"

KERNELS = '''
import tessera as ts
from tessera import Tensor, tile

@ts.kernel
def add(x: Tensor["N", ts.f32], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    """One block of 64 elements per program."""
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64] + y[start : start + 64], out[start : start + 64])

@ts.kernel
def column(x: Tensor["M", 16, ts.f32], out: Tensor["M", ts.f32]):
    row = tile.program_id(0) * 64
    tile.store(x[row : row + 64, 3], out[row : row + 64])

@ts.kernel
def product(x: Tensor["M", 32, ts.bf16], w: Tensor[32, 32, ts.bf16], out: Tensor["M", 32, ts.bf16]):
    row = tile.program_id(0) * 16
    state = tile.alloc_shared([16, 32], ts.bf16)
    weights = tile.alloc_shared([32, 32], ts.bf16)
    tile.copy_async(state, x[row : row + 16])
    tile.copy_async(weights, w)
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.store(tile.mma(state, weights), out[row : row + 16])

@ts.kernel(grid=lambda d: (tile.cdiv(d.N, 32),))
def counted(x: Tensor["N", ts.i32], bins: Tensor[16, ts.i32], mass: Tensor[16, ts.f32]):
    start = tile.program_id(0) * 32
    values = x[start : start + 32]
    tile.atomic_add(bins, 1, index=values)
    tile.atomic_add(mass, 0.1, index=values)
    tile.print("the first is {}", tile.load_scalar(x[start]))
'''
ADD_STORE, PRODUCT_COPY, PRODUCT_STORE = 9, 21, 25

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(KERNELS)
    return str(path)


def mutated(tessera, tmp_path, target, change, *options):
    """A file with the Target IR of a kernel after `change` of its text."""
    code, text, _ = tessera("ir", target, "--stage", "target", "--locations", *options)
    path = tmp_path / "mutated.tsir"
    changed = change(text)
    assert code == 0 and changed != text
    path.write_text(changed)
    return path


def without(pattern):
    return lambda text: re.sub(rf"^ *{pattern}.*\n", "", text, flags=re.MULTILINE)


# ---- a right kernel ---------------------------------------------------------------------------------------------


@needs_compiler
def test_a_right_kernel(tessera):
    code, out, err = tessera("check", SOFTMAX, "--dims", "M=33,N=100", "--arch", "sm_80")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "softmax  M=33,N=100  lane emulate (sm_80)" and lines[1].startswith("  launch softmax, grid 3")
    assert lines[-1] == "ok: no findings in 3 runs (seeds 0, 1, 2), equal to the interpreter bit for bit"
    load = next(line for line in lines if " ld_global " in line)
    assert load.startswith("softmax.py:20 ") and "rows = tile.cast(" in load
    assert re.search(r"^total .*\d", out, re.MULTILINE)


@needs_compiler
def test_a_right_kernel_as_json(tessera, kernels):
    code, out, _ = tessera("check", f"{kernels}::product", "--dims", "M=40", "--arch", "sm_90a", "--json")
    result = strict_json(out)
    assert (code, result["ok"], result["findings"], result["error" if "error" in result else "findings"]) == (
        0, True, [], [],
    )  # fmt: skip
    assert (result["target"], result["name"], result["lane"]) == (f"{kernels}::product", "product", "emulate")
    assert (result["arch"], result["dims"], result["seeds"]) == ("sm_90a", {"M": 40}, [0, 1, 2])
    (launch,) = result["kernels"]
    assert (launch["name"], launch["grid"][0], launch["blocks_run"], launch["blocks_total"]) == ("product", 3, 3, 3)
    assert result["compared"] == ["out"] and result["compared_by_bound"] == []
    by_op = {(row["op"], row["line"]): row for row in result["counters"]}
    copied = by_op["cp_async", PRODUCT_COPY]
    assert copied["file"] == kernels and copied["global_read"]["bytes"] == 40 * 32 * 2
    assert by_op["ldmatrix", PRODUCT_STORE]["shared_read"]["wavefronts"] > 0
    totals = result["totals"]
    assert totals["mma"] == by_op["mma_sync", PRODUCT_STORE]["mma"] > 0 and totals["barriers"] > 0
    assert totals["global_write"]["bytes"] == 40 * 32 * 2
    read, write = (totals[name]["sectors"] for name in ("global_read", "global_write"))
    assert totals["global_bytes_moved"] == 32 * (read + write)


@needs_compiler
def test_a_ratio_stands_where_more_than_the_ideal_is_needed(tessera, kernels):
    """Rows of 4 bytes a stride apart: a sector each."""
    _, out, _ = tessera("check", f"{kernels}::column", "--dims", "M=64", "--seeds", "1")
    load = next(line for line in out.splitlines() if " ld_global " in line)
    assert "8.0x" in load
    _, out, _ = tessera("check", f"{kernels}::add", "--dims", "N=64", "--seeds", "1")
    assert "x  " not in next(line for line in out.splitlines() if " ld_global " in line)


@needs_compiler
def test_seeds(tessera, kernels):
    _, out, _ = tessera("check", f"{kernels}::add", "--seeds", "2", "--seed", "40", "--json")
    assert strict_json(out)["seeds"] == [0, 41]
    _, out, _ = tessera("check", f"{kernels}::add", "--seeds", "1")
    assert out.splitlines()[-1] == "ok: no findings in 1 run (seed 0), equal to the interpreter bit for bit"


@needs_compiler
def test_what_a_kernel_prints_is_compared_and_not_shown(tessera, kernels):
    code, out, _ = tessera("check", f"{kernels}::counted", "--dims", "N=100", "--json")
    result = strict_json(out)
    assert code == 0 and result["ok"], result["findings"]
    assert result["compared"] == ["bins"] and result["compared_by_bound"] == ["mass"]
    code, out, _ = tessera("check", f"{kernels}::counted", "--dims", "N=100")
    assert (
        code == 0
        and not re.search(r"the first is \d", out)
        and out.splitlines()[-1].endswith("mass within its error bounds")
    )


@needs_compiler
def test_a_whole_file_has_a_row_per_kernel(tessera, kernels):
    code, out, _ = tessera("check", kernels, "--json", "--seeds", "1")
    result = strict_json(out)
    assert code == 0 and result["findings"] == [] and result["lane"] == "emulate"
    assert [f["name"] for f in result["functions"]] == ["add", "column", "product", "counted"]
    assert all(f["ok"] and f["kernels"] and f["counters"] for f in result["functions"])
    code, out, _ = tessera("check", kernels, "--seeds", "1", "--dims", "N=64,M=16")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [
        "kernel", "add", "column", "product", "counted",
    ]  # fmt: skip


@needs_compiler
def test_a_file_with_a_kernel_that_does_not_compile(tessera, tmp_path):
    path = tmp_path / "half.py"
    path.write_text(KERNELS + "\n@ts.kernel\ndef bad(x: Tensor['N', ts.f32]):\n    tile.store(nowhere, x[0:4])\n")
    code, out, _ = tessera("check", path, "--json", "--seeds", "1")
    result = strict_json(out)
    assert code == 1 and [f["ok"] for f in result["functions"]] == [True] * 4 + [False]
    assert result["functions"][-1]["error"]["code"] == "TS201"
    code, out, _ = tessera("check", path, "--seeds", "1")
    assert code == 1 and re.search(r"^bad .* FAILED$", out, re.MULTILINE) and "error[TS201]" in out


# ---- large grids ------------------------------------------------------------------------------------------------


@needs_compiler
def test_a_large_grid_is_sampled_and_says_so(tessera, kernels):
    target = f"{kernels}::add"
    code, out, _ = tessera("check", target, "--dims", "N=6410")
    assert code == 0 and "8 of 101 blocks of add ran" in out
    assert out.splitlines()[-1].startswith("ok: no findings in 3 runs of 8 of 101 blocks (seeds")
    code, out, _ = tessera("check", target, "--dims", "N=6410", "--blocks", "3", "--json", "--seeds", "1")
    result = strict_json(out)
    assert (code, result["blocks_run"], result["blocks_total"]) == (0, 3, 101)
    assert result["totals"]["global_write"]["bytes"] == 4 * (64 + 64 + 10)  # the last block is ragged
    assert any("3 of 101 blocks" in note for note in result["notes"])
    code, out, _ = tessera("check", target, "--dims", "N=6410", "--blocks", "all", "--json", "--seeds", "1")
    result = strict_json(out)
    assert (code, result["blocks_run"], result["notes"]) == (0, 101, [])


@needs_compiler
def test_outputs_that_all_blocks_update_are_not_compared_in_a_sample(tessera, kernels):
    code, out, _ = tessera("check", f"{kernels}::counted", "--dims", "N=500", "--blocks", "2", "--json")
    result = strict_json(out)
    assert code == 0 and result["compared"] == result["compared_by_bound"] == []
    assert any("bins, mass was not compared" in note for note in result["notes"])
    _, out, _ = tessera("check", f"{kernels}::counted", "--dims", "N=500", "--blocks", "2")
    assert out.splitlines()[-1].endswith("nothing was compared")


# ---- wrong kernels ----------------------------------------------------------------------------------------------


@needs_compiler
def test_a_missing_barrier_is_a_race_at_the_line_of_the_product(tessera, kernels, tmp_path):
    path = mutated(tessera, tmp_path, f"{kernels}::product", without("barrier"))
    code, out, _ = tessera("check", f"{path}::product", "--json")
    result = strict_json(out)
    assert code == 1 and not result["ok"] and {found["kind"] for found in result["findings"]} == {"race"}
    first = result["findings"][0]
    assert (first["file"], first["line"], first["kernel"]) == (kernels, PRODUCT_STORE, "product")
    assert first["op"] == "ldmatrix" and 0 in first["seeds"] and "state" in first["message"]
    code, out, _ = tessera("check", f"{path}::product")
    assert code == 1 and re.search(rf"^{re.escape(kernels)}:{PRODUCT_STORE}:\d+: race: ", out, re.MULTILINE)
    assert re.search(r"^ +tile\.store\(tile\.mma\(state, weights\).*\n +\^", out, re.MULTILINE)
    assert re.fullmatch(r"\d findings?", out.splitlines()[-1])


@needs_compiler
def test_a_missing_wait_does_not_get_past_the_verifier(tessera, kernels, tmp_path):
    path = mutated(tessera, tmp_path, f"{kernels}::product", without("async_wait"))
    code, _, err = tessera("check", f"{path}::product")
    assert code == 1 and "error[TS502]" in err and "'state' is read while" in err


@needs_compiler
def test_broken_text_is_a_race_and_in_flight(tessera, kernels, monkeypatch):
    """As if the emitter forgot the wait for a copy: the IR is right, the text is not."""
    change_text(monkeypatch, r"ts_cp_async_wait<0>\(\);", ";")
    code, out, _ = tessera("check", f"{kernels}::product", "--json")
    result = strict_json(out)
    kinds = {found["kind"] for found in result["findings"]}
    assert code == 1 and "in-flight" in kinds, out
    assert {found["line"] for found in result["findings"] if found["kind"] == "in-flight"} == {PRODUCT_STORE}


def change_text(monkeypatch, pattern, replacement, only=None):
    real = compiler.emit

    def broken(kernels):
        (made,) = real(kernels)
        if only not in (None, made.name):
            return [made]
        text, count = re.subn(pattern, replacement, made.text)
        assert count and text.count("\n") == made.text.count("\n")
        return [dataclasses.replace(made, text=text)]

    monkeypatch.setattr(compiler, "emit", broken)


@needs_compiler
def test_a_wrong_value_names_element_and_both_values(tessera, kernels, monkeypatch):
    change_text(monkeypatch, r"\) \+ ts_to_f32", ") - ts_to_f32")
    code, out, _ = tessera("check", f"{kernels}::add", "--dims", "N=100", "--json")
    result = strict_json(out)
    (found,) = result["findings"]
    assert code == 1 and (found["kind"], found["line"], found["seeds"]) == ("wrong-value", ADD_STORE, [0, 1, 2])
    assert re.search(
        r"out\[0\] is \S+, and the interpreter computes \S+ \(100 of 100 elements differ\)", found["message"]
    )


@needs_compiler
def test_findings_of_a_whole_file(tessera, kernels, monkeypatch):
    change_text(monkeypatch, r"ts_barrier\(\);", ";", only="product")
    code, out, _ = tessera("check", kernels, "--json", "--seeds", "1")
    result = strict_json(out)
    assert code == 1 and [f["ok"] for f in result["functions"]] == [True, True, False, True]
    assert {(found["kind"], found["kernel"]) for found in result["findings"]} == {("race", "product")}
    code, out, _ = tessera("check", kernels, "--seeds", "1")
    assert code == 1 and re.search(r"^product +M=16 +1 of 1 +\d .* FAILED$", out, re.MULTILINE)
    assert f"\nproduct: {kernels}:{PRODUCT_STORE}:" in out


# ---- what does not run ------------------------------------------------------------------------------------------


def test_no_compiler(kernels):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TESSERA_CXX": "/nonexistent/g++"}
    for target in (kernels, f"{kernels}::add"):
        done = subprocess.run(
            [sys.executable, "-m", "tessera", "check", target],
            capture_output=True, text=True, cwd=ROOT, timeout=60, env=environment,
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error[TS507]: ") and "'/nonexistent/g++'" in done.stderr
        assert "install a C++ compiler" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blocks", "0"), "--blocks takes a positive number or all, not '0'"),
        (("--blocks", "some"), "--blocks takes a positive number or all, not 'some'"),
        (("--seeds", "0"), "--seeds"),
        (("--dims", "Q=3"), "has no dim Q"),
        (("--arch", "sm_1"), "sm_1"),
    ],
)
def test_misuse(tessera, kernels, options, message):
    code, out, err = tessera("check", f"{kernels}::add", *options)
    assert code == report.USAGE and out == "" and message in err
    code, out, _ = tessera("check", f"{kernels}::add", *options, "--json")
    assert code == report.USAGE and message in strict_json(out)["error"]["message"]
