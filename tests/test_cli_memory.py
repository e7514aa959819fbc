"""What `run`, `ir` and `compile` tell of the memory of a function, against a count by hand."""

import pytest

from tessera import cli
from tessera.runtime import emulator
from tests.command_line import strict_json

CHAIN = """
import tessera as ts
from tessera import Tensor, tile

@ts.kernel
def bend(x: Tensor["N", ts.f32], t: float, out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 64
    tile.store(x[start : start + 64] * t, out[start : start + 64])

@ts.function
def chain(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:
    return bend(bend(bend(bend(x, 1.0), 2.0), 3.0), 4.0)
"""
# 1,000 elements: three values between the four launches, each 4,000 bytes in a room of 4,096; two at a time.
MEMORY = {
    "workspace_bytes": 8192,
    "workspace_unshared_bytes": 12288,
    "peak_bytes": 4000 + 4000 + 8192,
    "peak_unshared_bytes": 4000 + 4000 + 12288,
}
TEXT = "workspace 8 KiB (12 KiB without reuse), peak 15.8 KiB"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "chain.py"
    path.write_text(CHAIN)
    return f"{path}::chain"


def call(capsys, *arguments):
    code = cli.main([*arguments, "--dims", "N=1000", "--json"])
    body = strict_json(capsys.readouterr().out)
    assert code == 0
    return body


def told(body):
    return {name: body[name] for name in MEMORY}


@pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
def test_run(target, tessera, capsys):
    assert told(call(capsys, "run", target, "--backend", "emulate")) == MEMORY
    _, out, _ = tessera("run", target, "--dims", "N=1000", "--backend", "emulate")
    assert f"launches 4, {TEXT}" in out.splitlines()


def test_the_interpreter_needs_none(target, tessera, capsys):
    assert not set(MEMORY) & set(call(capsys, "run", target, "--backend", "interpret"))
    _, out, _ = tessera("run", target, "--dims", "N=1000", "--backend", "interpret")
    assert "workspace" not in out


def test_ir(target, tessera, capsys):
    assert told(call(capsys, "ir", target)) == MEMORY
    _, out, _ = tessera("ir", target, "--dims", "N=1000", "--after", "lower_graph")
    assert f"// {TEXT}" in out.splitlines()


def test_compile(target, tessera, capsys):
    body = call(capsys, "compile", target, "--arch", "sm_80,sm_90a", "--emit", "cuda")
    assert [(row["name"], row["arch"]) for row in body["memory"]] == [("chain", "sm_80"), ("chain", "sm_90a")]
    assert [told(row) for row in body["memory"]] == [MEMORY] * 2
    _, out, _ = tessera("compile", target, "--dims", "N=1000", "--arch", "sm_80")
    assert f"chain for sm_80: {TEXT}" in out.splitlines()
    kernel = target.replace("::chain", "::bend")
    assert "memory" not in call(capsys, "compile", kernel, "--arch", "sm_80", "--emit", "cuda")
