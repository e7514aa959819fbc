"""The pages are current, their code runs, and what they show is what Tessera prints."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from inspect import Parameter
from pathlib import Path

import numpy as np
import pytest

import tessera
from tessera import ops, tile
from tessera.config import Config
from tessera.errors import CODES
from tessera.frontend.document import load_document
from tessera.frontend.language import Intrinsic
from tessera.frontend.namespace import Namespace
from tessera.frontend.namespace import tensors as namespace_of_functions
from tessera.runtime import nvrtc
from tools import make_docs
from tools.reference import console, errors, excerpts, language, settings, support, tensors
from tools.reference.error_examples import EXAMPLES, WITHOUT

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
STUB = ROOT / "tessera" / "frontend" / "namespace.pyi"


def test_generated_pages_and_stubs_are_current():
    # In a process of its own: other tests declare ops for a while.
    done = subprocess.run(
        [sys.executable, "-m", "tools.make_docs", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_stale_page_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(make_docs, "ROOT", tmp_path)
    monkeypatch.setattr(make_docs, "GENERATED", {"a.md": lambda: "new\n", "b.md": lambda: "same\n"})
    monkeypatch.setattr(make_docs, "HAND_WRITTEN", ("c.md",))
    (tmp_path / "b.md").write_text("same\n")
    (tmp_path / "c.md").write_text("```\n$ tessera --version-of-nothing\nold\n```\n")
    monkeypatch.setattr(console, "run", lambda command: f"ran {command}\n")
    assert make_docs.stale() == {"a.md": "new\n", "c.md": "```\n$ tessera --version-of-nothing\nran tessera " + (
        "--version-of-nothing\n```\n"
    )}  # fmt: skip


# -- code on the pages


@pytest.mark.parametrize("page", [page for page in make_docs.HAND_WRITTEN if "```python" in (ROOT / page).read_text()])
def test_python_blocks_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    with console.plain_environment():
        loaded = load_document(page)
    assert [str(failure.error) for failure in loaded.failures] == []


def test_the_first_kernel_adds():
    with console.plain_environment():
        vector_add = load_document(ROOT / "README.md")["vector_add"]
        x, y = np.arange(3000, dtype=np.float32), np.full(3000, 0.5, np.float32)
        assert np.array_equal(vector_add(x, y), x + y)


def test_the_readme_shows_the_example_files():
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    kernel = (ROOT / excerpts.VECTOR_ADD).read_text()
    function = (ROOT / excerpts.DELTA_LAYER).read_text()
    assert len(shown) == 2
    assert shown[0][shown[0].index("@ts.kernel") :] in re.sub(r'^    """.*?"""\n', "", kernel, flags=re.M | re.S)
    assert shown[1] in function


def test_commands_on_the_pages_succeed(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [command for page in make_docs.HAND_WRITTEN for command in console.commands((ROOT / page).read_text())]
    assert commands, "the README shows a run"
    for command in commands:
        assert "error[" not in console.run(command), command


def test_only_timings_are_masked():
    assert console.mask("out  f32[3]  0.5  1e-3\ntime 48.6 ms") == "out  f32[3]  0.5  1e-3\ntime TIME"
    page = "```\n$ tessera x\ntime 3 ms\n```\n"
    assert console.commands(page) == ["tessera x"]


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"`[^`]*`", "", page.read_text())
        for link in re.findall(r"\]\((\w[\w./-]*\.\w+)", prose):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


# -- what the generators cover


@pytest.mark.parametrize("code", sorted(EXAMPLES))
def test_every_example_raises_its_code(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = errors.rendered(code)
    assert f"error[{code}]: " in message and CODES[code].remedy in message
    assert str(ROOT) not in message


def test_every_code_has_an_example_or_a_reason():
    assert set(EXAMPLES) | set(WITHOUT) == set(CODES)
    assert not set(EXAMPLES) & set(WITHOUT)


@pytest.mark.parametrize("reference", [language, tensors])
def test_every_intrinsic_is_documented_in_a_group(reference):
    page = reference.page()
    assert "Not documented" not in page
    for spellings in (spellings for group in reference.grouped().values() for spellings in group):
        assert spellings[0].documentation.strip(), spellings[0].name
        assert all(f"\n{spelling.spelling}\n" in page for spelling in spellings)


def test_each_page_has_what_may_be_called_there():
    kernels = {spelling.name for group in language.grouped().values() for found in group for spelling in found}
    functions = {spelling.name for group in tensors.grouped().values() for found in group for spelling in found}
    assert kernels | functions == {intrinsic.name for intrinsic in language.declared()}
    assert kernels & functions == {name for name in kernels if not name.startswith("tile.")} >= {"ts.cast"}
    assert {"ts.add", "ts.erf", "ts.memory.prefetch", "dist.shard"} <= functions - kernels
    assert set(tensors.grouped()) <= set(tensors.ORDER)


def test_every_op_is_on_the_support_page_and_none_is_half_there():
    assert support.untried() == set()
    page = (ROOT / "docs" / "support.md").read_text()
    assert support.BROKEN not in page
    for op, _ in support.recipes():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{op}` "))
        assert support.YES in row, f"{op} works for no dtype: its recipe is wrong, or it is not there yet"


def test_support_answers():
    body = "result = tile.exp(a)"
    assert str(support.ask(body, support.TYPES["bf16"])) == support.YES
    assert str(support.ask(body, support.TYPES["bool"])) == "TS204"
    assert str(support.Answer(("interpret",), "TS501")) == "interpret"
    assert str(support.Answer((), "TS703")) != str(support.Answer((), support.BROKEN)) == support.BROKEN


@pytest.mark.full
def test_everything_that_the_support_page_allows_compiles():
    """Minutes of ptxas."""
    text, names = support.translation_unit()
    compiled = nvrtc.compile_cubin(text, support.SHOWN_ARCHS[-1], "support", ("-w",))
    spilling = [names[name] for name, found in compiled.resources.items() if found.spill_stores + found.spill_loads]
    assert spilling == []


def test_every_setting_has_a_meaning():
    assert set(settings.comments()) == {field.name for field in fields(Config)}
    assert all(settings.comments().values())


# -- stubs


def functions_of(body, path):
    """Full name -> parameters of every function in the stub's classes."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= functions_of(node.body, f"{path}.{node.name}")
        elif isinstance(node, ast.FunctionDef):
            arguments = [argument.arg for argument in node.args.args]
            arguments += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
            found[f"{path}.{node.name}"] = arguments + [f"{argument.arg}=" for argument in node.args.kwonlyargs]
    return found


def intrinsics_of(namespace, path):
    found = {}
    for name, member in vars(namespace).items():
        if isinstance(member, Namespace):
            found |= intrinsics_of(member, f"{path}.{name}")
        elif isinstance(member, Intrinsic):
            shown = {Parameter.VAR_POSITIONAL: "*{}", Parameter.KEYWORD_ONLY: "{}="}
            parameters = member.signature.parameters.values()
            found[f"{path}.{name}"] = [shown.get(p.kind, "{}").format(p.name) for p in parameters]
    return found


def test_the_stub_lists_exactly_the_intrinsics():
    classes = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    language.declared()  # so that the namespace has those that the op table declares
    for name, namespace in (("tile", tile), ("ops", ops), ("tensors", namespace_of_functions)):
        found = intrinsics_of(namespace, name)
        assert functions_of(classes[name].body, name) == {n: p for n, p in found.items() if ".ops." not in n}


def test_the_stub_of_the_package_has_what_ts_has():
    stub = ast.parse((ROOT / "tessera" / "__init__.pyi").read_text())
    named = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    named |= {node.targets[0].id for node in stub.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    language.declared()
    assert {*tessera.__all__, *vars(tessera)["_LATER"], *dir(namespace_of_functions)} == named - {None}


SNIPPET = """
import tessera as ts
from tessera import Tensor, dist, tile


@ts.kernel
def k(x: Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 4
    total = tile.mma(x[start : start + 4], x, transpose_b=True) + 1.0
    for _ in tile.range(4):
        total = total * total.T
    tile.store(ts.cast(total, ts.bf16), out[start : start + 4])
    tile.cp_async.shared.global_(total, x)
    tile.stor(total, out)  # 1
    tile.cp_wait_group(m=1)  # 2
    ts.ops.sigmoid(total)  # 3


mesh = dist.mesh(devices=["cuda:0"], axes=("dp",), shape=(1,))


@ts.distribute(mesh=mesh)
@ts.checkpoint
@ts.function(precision="strict")
def f(x: Tensor["B", "D", ts.bf16], xs: list[Tensor], weights: Tensor["D", "D", ts.bf16]) -> Tensor["B", "D", ts.bf16]:
    y = ts.add(x, ts.sum(xs, axis=0)) @ weights
    if ts.is_training():
        y = ts.ops.dropout(y, p=0.1)
    with ts.checkpoint_scope(), ts.memory.prefetch_scope():
        ts.memory.prefetch(x, device="gpu")
        y = dist.shard(y * 2.0, axis=0, mesh_axis="dp")
    y = ts.ops.transformer_layer(ts.reshape(y, [1, *y.shape]), causal=True)
    y = ts.concatinate([y, x])  # 4
    y = ts.ops.transformer_layer(y, x, True)  # 5
    return dist.all_gather(ts.ops.gating_function(y, weights, 2), axis="dp")


ts.manual_seed(1)
with ts.train(), ts.parameters.use_store(ts.parameters.ParameterStore(strict=True)):
    f(1, [2], 3)
ts.eval()
"""


def test_a_type_checker_knows_the_language(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "pythonVersion": "3.10"}))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "-p", str(tmp_path), "--pythonpath", sys.executable],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = SNIPPET.splitlines()
    found = [lines[entry["range"]["start"]["line"]] for entry in json.loads(done.stdout)["generalDiagnostics"]]
    assert [line[-1] for line in found] == ["1", "2", "3", "4", "5"], found


def test_package_says_that_it_is_typed():
    assert (ROOT / "tessera" / "py.typed").exists()
    assert {"docs/" + page for page in PAGES} <= {*make_docs.GENERATED, *make_docs.HAND_WRITTEN}
