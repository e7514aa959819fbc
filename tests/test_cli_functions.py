"""Functions on the command line: every verb, open parameters, lists, whole files, and what is wrong."""

import re
from dataclasses import replace

import pytest

from tessera import cli
from tessera.ir.parser import parse_module
from tessera.ir.verify import verify
from tessera.runtime import emulator
from tests.command_line import strict_json

needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")

FUNCTIONS = '''
import tessera as ts
from tessera import Tensor, tile

@ts.kernel
def copy(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64], out[start : start + 64])

@ts.function
def gate(x: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16], distance: int, t: float = 1.0):
    return x * ts.sigmoid(ts.gemm(x, w) * ts.exp(-0.1 * distance) / t)

@ts.function
def total(xs: list[Tensor], w: Tensor["D", "D", ts.bf16]):
    """Two results, one of no axes."""
    result = ts.gemm(xs[0], w)
    for x in xs[1:]:
        result = result + x
    return ts.transpose(result), ts.max(result * result)

@ts.function
def rate(distance: int) -> float:
    return ts.ops.exp(-0.1 * distance)
'''

WRONG = """
import tessera as ts
from tessera import Tensor

@ts.function
def unclear(x: Tensor, y: Tensor):
    return x + y

@ts.function
def lost(x: Tensor["N", ts.f32]):
    return x + nowhere

@ts.function
def fine(x: Tensor["N", ts.f32]):
    return x + 1
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    return str(path)


def call(capsys, *arguments):
    code = cli.main([*map(str, arguments), "--json"])
    return code, strict_json(capsys.readouterr().out)


SUM_LINE = "    return ts.transpose(result), ts.max(result * result)"
DIMS = ("--dims", "B=2,S=20,D=24")


# ---- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["interpret", pytest.param("emulate", marks=needs_compiler)])
def test_run(functions, capsys, backend):
    code, body = call(capsys, "run", f"{functions}::gate", *DIMS, "--arg", "distance=-3", "--backend", backend)
    assert code == 0 and body["ok"] and (body["name"], body["lane"]) == ("gate", backend)
    assert body["dims"] == {"B": 2, "S": 20, "D": 24} and body["scalars"] == {"distance": -3, "t": 1.0}
    (output,) = body["outputs"]
    assert (output["name"], output["shape"], output["dtype"]) == ("result", [2, 20, 24], "bf16") and output["ok"]
    if backend == "emulate":
        assert body["arch"] == "sm_80" and body["workspace_bytes"] == 0
        assert [kernel["grid"] for kernel in body["kernels"]] == [[2]]
    else:
        assert body["kernels"] == [] and body["arch"] is None


@pytest.mark.parametrize("backend", ["interpret", pytest.param("emulate", marks=needs_compiler)])
def test_run_lists_open_tensors_and_several_results(functions, tessera, capsys, backend):
    command = ("run", f"{functions}::total", "--dims", "B=2,S=20,D=24", "--shape", "xs=2,20,24")
    code, out, err = tessera(*command[:2], "--arg", "xs=2", "--dims", "D=24", *command[4:], "--backend", backend)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert any(re.fullmatch(r"result0 +bf16\[2, 24, 20\] +\S+ +\S+ +ok", line) for line in lines)
    assert any(re.fullmatch(r"result1 +bf16\[\] +\S+ +\S+ +ok", line) for line in lines)
    if backend == "emulate":
        assert any(re.fullmatch(r"launches [2-9], workspace \S+ (B|KiB)\b.*, peak .*", line) for line in lines)


def test_run_a_function_of_numbers(functions, capsys):
    code, body = call(capsys, "run", f"{functions}::rate", "--backend", "interpret")
    assert code == 0 and body["scalars"] == {"distance": 2}
    assert body["outputs"][0]["shape"] == [] and body["outputs"][0]["dtype"] == "f32"


def test_run_a_whole_file(functions, tessera, capsys):
    arguments = (functions, "--arg", "xs=2", "--shape", "xs=2,20,24", "--dims", "B=2,S=20,D=24,N=70")
    code, body = call(capsys, "run", *arguments, "--backend", "interpret")
    assert code == 0 and body["ok"] and body["lane"] == "interpret"
    assert [row["name"] for row in body["functions"]] == ["copy", "gate", "total", "rate"]
    assert all(row["ok"] and row["outputs"] and row["lane"] == "interpret" for row in body["functions"])
    code, out, _ = tessera("run", *arguments, "--backend", "interpret")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["kernel", "copy", "gate", "total", "rate"]


def test_wrong_results_fail(functions, capsys, monkeypatch):
    from tessera.runtime import functions as running

    real = running.run_on_host
    monkeypatch.setattr(
        running, "run_on_host", lambda *given: ([x + x.dtype.type(1) for x in real(*given)[0]], real(*given)[1])
    )
    code, body = call(capsys, "run", f"{functions}::gate", *DIMS, "--backend", "interpret")
    assert code == 1 and not body["ok"] and body["outputs"][0]["fraction_bad"] > 0.9


def test_a_file_with_failures(wrong, capsys, tessera):
    code, body = call(capsys, "run", wrong, "--backend", "interpret")
    unclear, lost, fine = body["functions"]
    assert code == 1 and not body["ok"] and fine["ok"] and not unclear["ok"] and not lost["ok"]
    assert (unclear["error"]["code"], unclear["error"]["line"]) == ("TS206", 6)
    assert (lost["error"]["code"], lost["error"]["line"]) == ("TS201", 11)
    code, out, _ = tessera("run", wrong, "--backend", "interpret")
    assert code == 1 and re.search(r"^fine .* ok$", out, re.M) and re.search(r"^lost .* FAILED$", out, re.M)
    shapes = ("--shape", "x=3,4:f32", "--shape", "y=4:f32")
    code, body = call(capsys, "run", f"{wrong}::unclear", *shapes, "--backend", "interpret")
    assert code == 0 and body["outputs"][0]["shape"] == [3, 4]


@pytest.mark.parametrize(
    ("name", "arguments", "status", "code", "message"),
    [
        ("gate", ("--dims", "B=2,S=3"), 2, "TS605", "gives no size for D"),
        ("gate", ("--dims", "B=2,S=3,D=4,E=5"), 2, "TS605", "gate has no dim E"),
        ("gate", ("--arg", "time=3"), 2, "TS605", "gate has no scalar parameter 'time'"),
        ("gate", ("--arg", "t=0"), 1, "TS403", "'t' is 0.0, but it must not be 0"),
        ("gate", ("--shape", "x=2,3"), 2, "TS605", "no open parameter 'x'"),
        ("total", ("--shape", "xs=2;3"), 2, "TS605", "--shape takes NAME=2,150,64:bf16"),
        ("total", ("--arg", "xs=-1"), 2, "TS605", "is the length of a list of total"),
        ("gates", (), 2, "TS104", "defines no kernel 'gates'"),
    ],
)
def test_mistakes(functions, capsys, name, arguments, status, code, message):
    found, body = call(capsys, "run", f"{functions}::{name}", *arguments, "--backend", "interpret")
    assert found == status and body["error"]["code"] == code and message in body["error"]["message"]


# ---- ir, compile, check ----------------------------------------------------------------------------------------------


def test_ir_at_every_level(functions, capsys):
    shape = ("--dims", "D=24", "--shape", "xs=2,20,24")
    for level in ("graph", "tile", "target"):
        code, body = call(capsys, "ir", f"{functions}::total", *shape, "--arg", "xs=2", "--stage", level)
        (stage,) = body["stages"]
        module = parse_module(stage["text"])
        verify(module)
        assert code == 0 and module.level == level == stage["level"]
        assert len(module.kernels) == (1 if level == "graph" else len({x["kernel"] for x in body["launches"]}))
    assert body["results"] and all(launch["tensors"] for launch in body["launches"])


def test_ir_after_a_pass(functions, tessera, capsys):
    code, body = call(capsys, "ir", f"{functions}::gate", *DIMS, "--after", "all", "--diff")
    names = [stage["name"] for stage in body["stages"]]
    assert code == 0 and names[0] == "frontend" and names.count("lower_graph") == 1
    assert names.index("precision") < names.index("lower_graph") < names.index("specialise")
    assert all("diff" in stage for stage in body["stages"])
    code, out, _ = tessera("ir", f"{functions}::gate", *DIMS, "--after", "lower_graph")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "// buffer x: bf16[B, S, D], parameter" and "kernel @" in out
    assert any(line.startswith("// launch gate_0") and line.endswith("with M=B*S") for line in lines)
    parse_module(out)  # the plan is comments
    code, body = call(capsys, "ir", f"{functions}::gate", *DIMS, "--after", "nothing")
    assert code == 2 and "there is no pass 'nothing'" in body["error"]["message"]
    code, body = call(capsys, "ir", f"{functions}::copy", "--stage", "graph")
    assert code == 2 and "this is a kernel" in body["error"]["message"]


def test_ir_says_what_was_fused_and_why(functions, tessera, capsys):
    """Every edge between ops has its verdict, in text and as JSON."""
    shape = ("--dims", "D=24", "--shape", "xs=2,20,24", "--arg", "xs=2")
    code, out, _ = tessera("ir", f"{functions}::total", *shape, "--after", "fuse")
    edges = [line for line in out.splitlines() if line.startswith("// edge ")]
    assert code == 0 and out.startswith("// cluster 0: rows, ") and "fused {region = " in out
    line = FUNCTIONS.splitlines().index(SUM_LINE) + 1
    assert any(x.startswith("// edge matmul line") and x.endswith("fused, saves 7680 bytes: one kernel") for x in edges)
    assert f"// edge permute line {line} -> " not in out  # it is a result, and no op takes it
    parse_module(out)  # the report is comments
    code, body = call(capsys, "ir", f"{functions}::total", *shape, "--after", "fuse")
    found = body["fusion"]
    assert len(found["edges"]) == len(edges) and all(edge["why"] for edge in found["edges"])
    refused = [edge for edge in found["edges"] if not edge["fused"]]
    assert refused and all(edge["bytes"] > 0 and edge["clusters"][0] != edge["clusters"][1] for edge in refused)
    assert {cluster["kind"] for cluster in found["clusters"]} == {"rows", "move"}
    code, body = call(capsys, "ir", f"{functions}::total", *shape, "--after", "lower_graph")
    assert "fusion" not in body


def test_compile(functions, capsys, tmp_path):
    arguments = (f"{functions}::total", "--arg", "xs=2", "--dims", "D=24", "--shape", "xs=2,20,24", "--arch", "sm_80")
    code, body = call(capsys, "compile", *arguments, "--emit", "cuda,resources")
    kernels = body["kernels"]
    assert code == 0 and len(kernels) > 1 and len({kernel["name"] for kernel in kernels}) == len(kernels)
    assert all(
        f"TS_KERNEL({kernel['name']}," in kernel["cuda"] and kernel["spill_bytes"] in (0, None) for kernel in kernels
    )
    code, body = call(capsys, "compile", *arguments, "--emit", "cuda", "-o", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.cu")) == sorted(f"{k['name']}.sm_80.cu" for k in kernels)


@needs_compiler
def test_check(functions, tessera, capsys):
    arguments = (f"{functions}::total", "--arg", "xs=2", "--dims", "D=24", "--shape", "xs=2,20,24")
    code, body = call(capsys, "check", *arguments, "--seeds", "2")
    assert code == 0 and body["ok"] and body["findings"] == [] and len(body["kernels"]) > 1
    assert body["seeds"] == [0, 1] and len(body["compared"]) >= 3 and body["blocks_run"] == body["blocks_total"]
    code, out, _ = tessera("check", *arguments, "--seeds", "1")
    assert code == 0 and "ok: no findings in 1 run (seed 0), equal to the interpreter bit for bit" in out


@needs_compiler
def test_check_finds_what_a_pass_breaks(functions, capsys, monkeypatch):
    """A store that a launch leaves out, and everything else right, is a finding of that launch alone."""
    from tessera import compiler

    real = compiler.compile_kernel

    def broken(*arguments):
        made = real(*arguments)
        text = made.cuda[0]
        if "reduce_max" in text.name:
            made.cuda[0] = replace(text, text=re.sub(r"ts_st_global\w*<[^;]*;", ";", text.text))
        return made

    monkeypatch.setattr(compiler, "compile_kernel", broken)
    arguments = (f"{functions}::total", "--arg", "xs=2", "--dims", "D=24", "--shape", "xs=2,20,24", "--seeds", "1")
    code, body = call(capsys, "check", *arguments)
    assert code == 1 and {finding["kind"] for finding in body["findings"]} == {"unwritten"}
    assert {finding["line"] for finding in body["findings"]} == {FUNCTIONS.splitlines().index(SUM_LINE) + 1}
