"""The command line: what it prints, its exit codes, its JSON, and every way to misuse it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tessera import cli
from tessera.cli import report
from tessera.runtime import emulator, execute, inputs
from tessera.runtime.launch import device_count
from tests.command_line import strict_json
from tests.pace import slower

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCUMENT = EXAMPLES / "gdn" / "gdn_part1.md"
GATING = f"{DOCUMENT}::gating_function_kernel"
GPU = device_count() > 0

KERNELS = '''
import tessera as ts
from tessera import Tensor, tile

@ts.kernel
def add(x: Tensor["N", ts.f32], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    """One block of 64 elements per program."""
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64] + y[start : start + 64], out[start : start + 64])

@ts.kernel
def scale(x: Tensor["S", "D", ts.bf16], out: Tensor["S", "D", ts.bf16], factor: float = 0.5, offset: int = 3):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * factor + offset, out[row : row + 16])

helper = 3
'''

BROKEN = """
import tessera as ts
from tessera import Tensor, tile
print("modules may print")

@ts.kernel
def good(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64], out[start : start + 64])

@ts.kernel
def bad(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    tile.store(x[nowhere : nowhere + 64], out[0:64])

@ts.function
def composed(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
    return x
"""


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(KERNELS)
    return str(path)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return str(path)


def tessera_process(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "tessera", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")


# ---- run --------------------------------------------------------------------------------------------------------


def test_run_one(tessera, kernels):
    code, out, err = tessera("run", f"{kernels}::add", "--dims", "N=100", "--backend", "interpret")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "add  N=100  lane interpret" and lines[1] == "  launch add, grid 2 x 1 x 1"
    assert re.fullmatch(r"out +f32\[100\] +\S+ +\S+ +ok", lines[3])
    assert re.fullmatch(r"time \S+ (s|ms|us)", lines[4])


def test_run_one_json(tessera, kernels):
    arguments = ("run", f"{kernels}::scale", "--dims", "S=20,D=24", "--arg", "factor=0.25", "--backend", "interpret")
    code, out, err = tessera(*arguments, "--json")
    result = strict_json(out)
    assert (code, err, result["ok"]) == (0, "", True)
    assert (result["target"], result["name"], result["lane"]) == (f"{kernels}::scale", "scale", "interpret")
    assert result["arch"] is None and result["dims"] == {"S": 20, "D": 24}
    assert result["scalars"] == {"factor": 0.25, "offset": 3}
    assert result["kernels"] == [{"name": "scale", "grid": [2, 1, 1]}]
    (output,) = result["outputs"]
    assert (output["name"], output["shape"], output["dtype"], output["ok"]) == ("out", [20, 24], "bf16", True)
    assert 0 <= output["max_error"] <= output["bound"] or output["max_error"] == 0


def test_default_dims(tessera, kernels):
    _, out, _ = tessera("run", f"{kernels}::scale", "--json", "--backend", "interpret")
    assert strict_json(out)["dims"] == {"S": 150, "D": 64}


def test_run_a_whole_file(tessera, kernels):
    code, out, _ = tessera("run", kernels, "--json", "--backend", "interpret")
    result = strict_json(out)
    assert code == 0 and [f["name"] for f in result["functions"]] == ["add", "scale"]
    for function in result["functions"]:
        assert function["ok"] and function["lane"] == "interpret" and function["outputs"] and function["kernels"]
    code, out, _ = tessera("run", kernels, "--dims", "N=64,S=16,D=16", "--arg", "factor=2", "--backend", "interpret")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["kernel", "add", "scale"]
    assert "N=64 " in out and "S=16,D=16" in out


def test_a_file_with_failures_shows_a_row_for_each(tessera, broken):
    code, out, err = tessera("run", broken, "--json", "--backend", "interpret")
    result = strict_json(out)
    assert code == 1 and not result["ok"] and "modules may print" in err
    good, bad, composed = result["functions"]
    assert good["ok"] and good["name"] == "good"
    assert not bad["ok"] and bad["error"]["code"] == "TS201" and bad["error"]["line"] == 13
    assert bad["error"]["file"] == broken and bad["outputs"] == []
    assert composed["ok"] and composed["name"] == "composed" and composed["outputs"][0]["max_error"] == 0
    code, out, _ = tessera("run", broken, "--backend", "interpret")
    assert code == 1 and re.search(r"^good .* ok$", out, re.M) and re.search(r"^bad .* FAILED$", out, re.M)
    assert "^^^" in out


def test_a_failing_statement_that_is_no_function(tessera, tmp_path):
    path = tmp_path / "half.py"
    path.write_text(KERNELS + "\nimport no_such_module_anywhere\n")
    code, out, _ = tessera("run", path, "--json", "--backend", "interpret")
    result = strict_json(out)
    assert code == 1 and not result["ok"] and [f["ok"] for f in result["functions"]] == [True, True]
    assert result["errors"][0]["code"] == "TS105" and result["errors"][0]["line"] == KERNELS.count("\n") + 2
    assert tessera("run", f"{path}::add", "--backend", "interpret")[0] == 0


def test_the_document_runs_its_gating_kernel(tessera):
    arguments = ("run", GATING, "--dims", "B=2,S=150,D=64", "--arg", "layer_distance=3", "--backend", "interpret")
    code, out, _ = tessera(*arguments, "--json")
    result = strict_json(out)
    assert code == 0 and result["scalars"] == {"layer_distance": 3}
    assert result["outputs"][0]["shape"] == [2, 150, 64] and result["outputs"][0]["ok"]


# Those of the gated delta rule need sizes that go together: tests/gdn runs them.
PLAIN = sorted(path for path in EXAMPLES.rglob("*.py") if path.parent.name != "gated_delta_rule")


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_examples_run_on_the_interpreter(tessera, path):
    code, out, _ = tessera("run", path, "--backend", "interpret", "--json")
    assert code == 0, out


def test_a_wrong_answer_is_found(tessera, kernels, monkeypatch):
    real = execute.interpret

    def off_by_one(kernel, arguments, dims, grid=None, level="tile"):
        outcome = real(kernel, arguments, dims, grid, level)
        outcome.outputs["out"][5] += 1
        return outcome

    monkeypatch.setattr(execute, "interpret", off_by_one)
    code, out, _ = tessera("run", f"{kernels}::add", "--json", "--backend", "interpret")
    result = strict_json(out)
    assert code == 1 and not result["ok"] and not result["outputs"][0]["ok"]
    assert abs(result["outputs"][0]["max_error"] - 1) < 1e-6
    code, out, _ = tessera("run", f"{kernels}::add", "--backend", "interpret")
    assert code == 1 and "FAILED" in out


def test_an_element_that_is_never_written_is_found(tessera, kernels, monkeypatch):
    real = execute.interpret

    def forgetful(kernel, arguments, dims, grid=None, level="tile"):
        return real(kernel, arguments, dims, (1, 1, 1), level)

    monkeypatch.setattr(execute, "interpret", forgetful)
    code, out, _ = tessera("run", f"{kernels}::add", "--dims", "N=100", "--json", "--backend", "interpret")
    (output,) = strict_json(out)["outputs"]
    assert code == 1 and output["max_error"] is None and output["nonfinite"] is True


# ---- the lanes --------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("name", "dims"), [("add", "N=100"), ("scale", "S=20,D=24"), ("scale", "S=33,D=16")])
def test_emulated_bits_are_the_interpreter_bits(kernels, name, dims, monkeypatch, capsys):
    outputs = {}
    for lane in ("interpret", "emulate"):
        real = getattr(execute, lane)

        def keep(*arguments, lane=lane, real=real, **options):
            outcome = real(*arguments, **options)
            outputs[lane] = outcome.outputs["out"].copy()
            return outcome

        monkeypatch.setattr(execute, lane, keep)
        assert cli.main(["run", f"{kernels}::{name}", "--dims", dims, "--backend", lane]) == 0
    capsys.readouterr()
    assert not np.isnan(outputs["emulate"].astype(np.float32)).any()
    assert outputs["interpret"].tobytes() == outputs["emulate"].tobytes()


@needs_compiler
def test_emulate_says_so(tessera, kernels):
    code, out, _ = tessera("run", f"{kernels}::add", "--backend", "emulate", "--arch", "sm_90a", "--json")
    result = strict_json(out)
    assert code == 0 and result["lane"] == "emulate" and result["arch"] == "sm_90a"


@needs_compiler
def test_a_fault_of_the_emulator_is_an_error(tessera, kernels, monkeypatch):
    def fault(self, kernel, *arguments):
        raise emulator.EmulatorFault(kernel, [emulator.Fault("race", "reads what another wrote", (0, 0, 0), 3)], 1)

    monkeypatch.setattr(emulator.Library, "launch", fault)
    code, out, _ = tessera("run", f"{kernels}::add", "--backend", "emulate", "--json")
    error = strict_json(out)["error"]
    assert code == 1 and error["code"] == "TS901" and "race" in error["message"]


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_cuda_without_a_gpu(tessera, kernels):
    for target in (kernels, f"{kernels}::add"):
        code, out, err = tessera("run", target, "--backend", "cuda")
        assert code == 1 and out == "" and err.startswith("error[TS505]")
    code, out, _ = tessera("run", f"{kernels}::add", "--json")
    assert code == 0 and strict_json(out)["lane"] == "interpret"


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("target", ["{kernels}::add", "{kernels}::scale", GATING])
def test_cuda(tessera, kernels, target):
    code, out, _ = tessera("run", target.format(kernels=kernels), "--json")
    result = strict_json(out)
    assert code == 0 and result["lane"] == "cuda" and result["roofline"] > 0


# ---- ir, opt and textual IR -------------------------------------------------------------------------------------


def test_ir_stages(tessera, kernels):
    code, out, _ = tessera("ir", f"{kernels}::add", "--stage", "tile")
    assert code == 0 and out.startswith("tessera 1 tile") and "@0:" not in out
    code, out, _ = tessera("ir", f"{kernels}::add", "--stage", "target", "--locations")
    assert code == 0 and out.startswith("tessera 1 target") and "@0:" in out
    code, out, _ = tessera("ir", f"{kernels}::add", "--after", "specialise")
    assert code == 0 and out.startswith("tessera 1 tile")
    code, out, _ = tessera("ir", f"{kernels}::add", "--after", "all")
    assert code == 0 and out.index("// ---- after frontend") < out.index("// ---- after lower_to_target")
    code, out, _ = tessera("ir", f"{kernels}::scale", "--diff", "--after", "specialise")
    assert code == 0 and "--- frontend" in out and "+++ specialise" in out


def test_ir_json(tessera, kernels):
    code, out, _ = tessera("ir", f"{kernels}::add", "--dims", "N=100", "--after", "all", "--diff", "--json")
    result = strict_json(out)
    assert code == 0 and result["dims"] == {"N": 100} and result["arch"].startswith("sm_")
    names = [stage["name"] for stage in result["stages"]]
    assert names[0] == "frontend" and "lower_to_target" in names
    levels = [stage["level"] for stage in result["stages"]]
    assert levels == sorted(levels, key=["tile", "target"].index) and set(levels) == {"tile", "target"}
    assert all(stage["text"].startswith("tessera 1 ") for stage in result["stages"])


def dump(tessera, tmp_path, target, *options):
    path = tmp_path / "dump.tsir"
    code, out, _ = tessera("ir", target, "--locations", *options)
    assert code == 0
    path.write_text(out)
    return path


@needs_compiler
@pytest.mark.parametrize(
    ("options", "backend", "lane"),
    [
        (("--after", "frontend"), "interpret", "interpret"),
        (("--stage", "tile"), "interpret", "interpret"),
        (("--stage", "tile"), "emulate", "emulate"),
        (("--stage", "target"), "interpret", "interpret"),
        pytest.param(
            ("--stage", "target"), "auto", "emulate", marks=pytest.mark.skipif(GPU, reason="auto is the GPU here")
        ),
    ],
)
def test_ir_text_runs(tessera, tmp_path, kernels, options, backend, lane):
    path = dump(tessera, tmp_path, f"{kernels}::scale", *options)
    code, out, _ = tessera("run", f"{path}::scale", "--backend", backend, "--json")
    result = strict_json(out)
    assert code == 0 and result["lane"] == lane and result["outputs"][0]["ok"]


def test_ir_text_keeps_the_divisors_that_it_was_compiled_for(tessera, tmp_path, kernels):
    path = dump(tessera, tmp_path, f"{kernels}::add", "--dims", "N=64", "--stage", "target")
    code, out, _ = tessera("run", f"{path}::add", "--dims", "N=65", "--json", "--backend", "interpret")
    assert code == 2 and "compiled for a N that 16 divides, and 65" in strict_json(out)["error"]["message"]


@pytest.mark.parametrize("verb", ["run", "check"])
def test_ir_text_whose_dim_has_no_number(tessera, tmp_path, kernels, verb):
    path = dump(tessera, tmp_path, f"{kernels}::scale", "--dims", "S=48,D=64", "--stage", "tile")
    text = path.read_text()
    assert "static = {D = 64}" in text
    path.write_text(text.replace("static = {D = 64}", "static = {}"))
    code, out, _ = tessera(verb, f"{path}::scale", "--dims", "S=48", "--json")
    assert code == 2 and "a dim D that is in no shape of a parameter" in strict_json(out)["error"]["message"]


def test_opt(tessera, tmp_path, kernels):
    path = dump(tessera, tmp_path, f"{kernels}::scale", "--after", "frontend")
    code, out, _ = tessera("opt", path)
    assert code == 0 and out == path.read_text()
    expected = tessera("ir", f"{kernels}::scale", "--locations", "--after", "canonicalise")[1]
    code, out, _ = tessera("opt", path, "--pass", "specialise", "--pass", "canonicalise")
    assert code == 0 and out.replace(str(path), kernels) == expected
    result = tmp_path / "out" / "result.tsir"
    code, out, _ = tessera("opt", path, "--pass", "specialise", "--dims", "S=20,D=8", "-o", result)
    assert (code, out) == (0, "") and "bf16" in result.read_text() and "D = 8" in result.read_text()
    code, out, _ = tessera("opt", path, "--pass", "specialise", "--json")
    assert code == 0 and strict_json(out)["passes"] == ["specialise"] and strict_json(out)["level"] == "tile"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pass", "specialize"), "did you mean 'specialise'"),
        (("--pass", "insert_barriers"), "insert_barriers takes target-level IR"),
        (("--dims", "Q=1"), "has no dim Q"),
        (("--arch", "sm_1"), "no architecture 'sm_1'"),
        (("-o", "/proc/none/x.tsir"), "cannot be written"),
    ],
)
def test_opt_misuse(tessera, tmp_path, kernels, options, message):
    path = dump(tessera, tmp_path, f"{kernels}::add", "--after", "frontend")
    code, out, err = tessera("opt", path, *options)
    assert code == 2 and out == "" and message in err


# ---- compile ----------------------------------------------------------------------------------------------------


def has_nvrtc():
    from tessera.runtime import nvrtc

    try:
        nvrtc.load_nvrtc()
    except nvrtc.NvrtcUnavailable:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="needs NVRTC")


def test_compile_to_cuda_text_needs_no_compiler(tessera, kernels):
    code, out, _ = tessera("compile", f"{kernels}::add", "--arch", "sm_80", "--emit", "cuda")
    assert code == 0 and out.startswith('#include "tessera_device.h"')


@needs_nvrtc
def test_compile_json(tessera, kernels):
    code, out, _ = tessera("compile", f"{kernels}::add", "--arch", "sm_80,sm_90a", "--json")
    result = strict_json(out)
    assert code == 0 and result["arch"] == ["sm_80", "sm_90a"]
    assert [(k["name"], k["arch"]) for k in result["kernels"]] == [("add", "sm_80"), ("add", "sm_90a")]
    for kernel in result["kernels"]:
        assert kernel["registers"] > 0 and kernel["spill_bytes"] == 0 and kernel["shared_bytes"] >= 0
        assert kernel["instructions"]["ld.global"] > 0 and kernel["seconds"]["nvrtc"] > 0


@needs_nvrtc
def test_compile_writes_files(tessera, kernels, tmp_path):
    folder = tmp_path / "built" / "here"
    code, out, _ = tessera("compile", kernels, "--arch", "sm_80", "-o", folder)
    assert code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(f"{k}.sm_80.{s}" for k in ("add", "scale") for s in ("cu", "ptx", "cubin", "json"))
    assert (folder / "add.sm_80.cubin").read_bytes().startswith(b"\x7fELF")
    assert strict_json(json.dumps({"ok": True, **json.loads((folder / "add.sm_80.json").read_text())}))["kernels"]
    assert str(folder / "add.sm_80.ptx") in out


@needs_nvrtc
def test_compile_time_table(tessera, kernels):
    code, out, _ = tessera("compile", f"{kernels}::add", "--arch", "sm_80", "--time")
    stages = [line.split()[0] for line in out[out.index("stage (seconds)") :].splitlines()]
    assert code == 0 and stages[1] == "frontend" and stages[-3:] == ["emit", "nvrtc", "total"]


def test_sass_without_a_disassembler(tessera, kernels, monkeypatch):
    from tessera.runtime import sass

    monkeypatch.setattr(sass, "PACKAGES", ())
    monkeypatch.setattr(sass.shutil, "which", lambda name: None)
    code, out, err = tessera("compile", f"{kernels}::add", "--emit", "sass")
    assert code == 1 and out == "" and "disassembler" in err


@needs_nvrtc
def test_sass(tessera, kernels):
    from tessera.errors import EnvironmentProblem
    from tessera.runtime import sass

    try:
        sass.find_nvdisasm()
    except EnvironmentProblem:
        pytest.skip("needs nvdisasm")
    code, out, _ = tessera("compile", f"{kernels}::add", "--arch", "sm_80", "--emit", "sass")
    assert code == 0 and "EXIT" in out


# ---- misuse -----------------------------------------------------------------------------------------------------

MISUSE = [
    (("run", "{tmp}/none.py"), "TS103", "none.py cannot be read"),
    (("run", "{tmp}"), "TS103", "neither a Python file"),
    (("run", "{tmp}/none.tsir"), "TS103", "cannot be read"),
    (("run", "{kernels}::ad"), "TS104", "it defines add, scale.*did you mean 'add'"),
    (("run", "{kernels}::helper"), "TS104", "'helper' .* is not a kernel"),
    (("run", "{kernels}::"), "TS605", "not FILE or FILE::NAME"),
    (("run", "{kernels}::add", "--dims", "M=2"), "TS605", "no dim M; its dims are N"),
    (("run", "{kernels}::scale", "--dims", "S=2"), "TS605", "no size for D; the dims of scale are S, D"),
    (("run", "{kernels}::scale", "--dims", "S=2,D=0"), "TS605", "D must be positive, not 0; the dims .* are S, D"),
    (("run", "{kernels}::add", "--dims", "N=1,N=2"), "TS605", "gives N twice"),
    (("run", "{kernels}::add", "--dims", "N"), "TS605", "NAME=VALUE"),
    (("run", "{kernels}::add", "--dims", "N=99999999999999"), "TS605", "choose smaller ones"),
    (("run", "{kernels}", "--dims", "N=2,Q=3"), "TS605", "no kernel of .* has a dim Q"),
    (("run", "{kernels}", "--dims", "N=2"), "TS605", "no size for S, D"),
    (("run", "{kernels}", "--arg", "q=3"), "TS605", "no kernel of .* has a scalar parameter, list or constant q"),
    (("run", "{kernels}::scale", "--arg", "factor=x"), "TS605", "factor must be a number"),
    (("run", "{kernels}::scale", "--arg", "x=1"), "TS605", "its scalars are factor, offset"),
    (("run", "{kernels}::add", "--backend", "gpu"), "TS605", "'gpu' is not one of"),
    (("run", "{kernels}::add", "--seed", "-1"), "TS605", "--seed"),
    (("run", "{kernels}::add", "--arch", "sm_71"), "TS508", "no architecture 'sm_71'"),
    (("ir", "{kernels}"), "TS104", "several kernels; name one"),
    (("ir", "{kernels}::add", "--after", "specialize"), "TS605", "did you mean 'specialise'"),
    (("compile", "{kernels}::add", "--arch", "sm_80,sm_7"), "TS508", "no architecture 'sm_7'"),
    (("compile", "{kernels}::add", "--emit", "ptx,exe"), "TS605", "knows no 'exe'"),
    (("compile", "{kernels}::add", "--emit", "cubin"), "TS605", "-o DIR"),
    (("opt", "{kernels}"), "TS103", "not textual IR"),
    (("run",), "TS605", "Missing argument"),
    (("walk", "x"), "TS605", "No such command 'walk'"),
    (("run", "{kernels}", "--nonsense"), "TS605", "--nonsense"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISUSE, ids=[" ".join(case[0]) for case in MISUSE])
def test_misuse(tessera, kernels, tmp_path, arguments, code, message):
    arguments = [argument.format(kernels=kernels, tmp=tmp_path) for argument in arguments]
    status, out, err = tessera(*arguments)
    assert status == 2 and out == "" and re.search(message, err)
    status, out, err = tessera(*arguments, "--json")
    error = strict_json(out)["error"]
    assert status == 2 and err == "" and error["code"] == code and re.search(message, error["message"])
    assert set(error) == {"code", "message", "file", "line", "column"}


@pytest.mark.parametrize("suffix", [".py", ".md", ".tsir", ".bin", ""])
def test_random_bytes(tessera, tmp_path, suffix):
    random = np.random.default_rng(7)
    path = tmp_path / f"noise{suffix}"
    for kind in (random.bytes(300), bytes(random.integers(32, 127, 300, np.uint8)), b"", b"\0\0"):
        path.write_bytes(kind)
        for verb in ("run", "ir", "compile"):
            code, out, _ = tessera(verb, path, "--json")
            result = strict_json(out)
            assert code in (1, 2) and not result["ok"] and result["error"]["code"].startswith(("TS1", "TS7"))


def test_an_error_shows_the_line(tessera, broken):
    code, out, err = tessera("run", f"{broken}::bad")
    assert code == 1 and "FAILED" not in out
    assert err.startswith(f"{broken}:13:") and "tile.store(x[nowhere" in err and "^" in err


def test_an_unforeseen_exception_is_one_sentence(tessera, kernels, monkeypatch):
    def fail(*arguments):
        raise ValueError("not foreseen")

    monkeypatch.setattr(inputs, "choose_dims", fail)
    code, out, err = tessera("run", f"{kernels}::add")
    assert code == 1 and out == "" and "error[TS901]: ValueError: not foreseen" in err


def test_strict_json():
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": np.float64(2)}}
    assert report.strict(value) == {"a": None, "b": [None, 1.5], "c": {"d": 2.0}, "nonfinite": True}


# ---- the process ------------------------------------------------------------------------------------------------


def test_module_and_help_are_fast():
    started = time.perf_counter()
    done = tessera_process("--help")
    assert done.returncode == 0 and time.perf_counter() - started < 5 * slower()
    for verb in ("run", "ir", "compile", "opt"):
        assert re.search(rf"^  {verb} ", done.stdout, re.M)
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tessera", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    for module in ("cupy", "lark", "jinja2", "rich", "matplotlib"):
        assert not re.search(rf"\| +{module}$", loaded.stderr, re.M)


def test_one_object_on_stdout(broken):
    done = tessera_process("run", broken, "--json", "--backend", "interpret")
    assert done.returncode == 1 and "modules may print" in done.stderr
    assert strict_json(done.stdout)["functions"][0]["ok"]


def test_a_reader_that_stops_early(kernels):
    command = f"{sys.executable} -m tessera ir {kernels}::add --after all | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith("// ---- after frontend") and "Traceback" not in done.stderr
