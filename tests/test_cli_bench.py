"""`tessera bench` on a make-believe GPU: what it prints, saves and draws, its exit codes, and ways to misuse it."""

import importlib
import json
from pathlib import Path

import pytest

from tessera.cli import bench_target
from tessera.cli.run_report import Result
from tessera.cli.subject import Given
from tessera.errors import SourceError
from tessera.runtime import bench_device, gpu
from tessera.runtime.bench import Bench
from tessera.runtime.bench_case import WrongAnswer
from tessera.runtime.compare import Comparison
from tessera.runtime.launch import device_count
from tests.command_line import strict_json
from tests.runtime import fake_bench

ROOT = Path(__file__).parents[1]
GPU = device_count() > 0
verb = importlib.import_module("tessera.cli.bench")  # as an attribute, `bench` may be the command of that name
CASES = """
from tests.runtime import fake_bench
from tests.test_cli_bench import DEVICE
CASES = [fake_bench.case(DEVICE)]
"""
DEVICE = fake_bench.Device()


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """A file of cases, in a folder of its own, with a device that measures them."""
    monkeypatch.setattr(bench_device, "open_device", lambda: DEVICE)
    monkeypatch.setattr(verb, "Compilers", fake_bench.Compilers)
    path = tmp_path / "cases.py"
    path.write_text(CASES)
    return path


def read(path):
    return json.loads(path.read_text())


# ---- cases -------------------------------------------------------------------------------------------------------


def test_a_table_per_row_and_a_summary(tessera, cases):
    code, out, err = tessera("bench", "--cases", cases, "--rows", "D=4,stored=nn")
    blocks = out.split("\n\n")
    assert (code, err) == (0, "")
    assert blocks[0].splitlines() == [
        "gpu Pretend 100  maker 1.0",
        "copy 1.00 TB/s, product 100 Tflop/s (a pretended product)",
    ]
    lines = blocks[1].splitlines()
    assert lines[0].startswith("pretended  D=4,stored=nn  10.0 MB, 2.0 Gflop, at least 20.0 us  (")
    rows = {line.split("  ")[0]: line.split() for line in lines[2:]}
    assert rows["own"] == ["own", "100.0", "0.0%", "1.00", "20%", "0.0e+00"]
    assert rows["eager"][1:5] == ["300.0", "0.0%", "3.00", "7%"]
    assert rows["cheat"] == ["cheat", "-", "-", "-", "-", "1.0e-01", "WRONG"]
    assert rows["stream *"] == ["stream", "*", "50.0", "0.0%", "0.50", "40%", "-"]
    assert rows["searched"][-6:] == ["tile=32", "group=4", "(2", "of", "4", "wrong)"]
    assert "  cheat: the answer differs from the reference" in lines
    header, line, note = blocks[2].splitlines()
    assert header.split() == [
        *("case", "row", "ours", "us", "roofline", "untuned"),
        *("eager", "compile", "cheat", "searched", "stream", "*"),
    ]
    times = ["100.0", "20%", "1.50", "3.00", "2.00", "-", "0.06", "0.50"]
    assert line.split() == ["pretended", "D=4,stored=nn", "own", *times] and note.startswith("untuned and others")


def test_json_is_one_strict_object(tessera, cases):
    code, out, err = tessera("bench", "pretended", "--cases", cases, "--json")
    result = strict_json(out)
    assert code == 0 and result["ok"] and result["machine"] == DEVICE.facts
    assert [row["dims"] for row in result["rows"]] == [
        {"D": 4, "stored": "nn"}, {"D": 8, "stored": "nn"}, {"D": 4, "stored": "nt"},
    ]  # fmt: skip
    assert result["saved"] == [str(cases.parent / "results" / "pretended.json")]
    assert "pretended  D=8,stored=nn" in err  # rows are shown while they are measured


def test_results_and_winners_lie_beside_the_cases(tessera, cases):
    tessera("bench", "--cases", cases, "--rows", "D=4,stored=nn")
    tessera("bench", "--cases", cases, "--rows", "D=8")
    saved = read(cases.parent / "results" / "pretended.json")
    assert [row["dims"]["D"] for row in saved["rows"]] == [4, 8] and saved["machines"] == [DEVICE.facts]
    winners = read(cases.parent / "competitors.json")["winners"]
    assert [winner["key"] for winner in winners] == ["pretended D=4", "pretended D=8"]
    _, out, _ = tessera("bench", "--cases", cases, "--rows", "D=8")
    assert "tile=32 group=4 (stored)" in out
    _, out, _ = tessera("bench", "--cases", cases, "--rows", "D=8", "--retune")
    assert "(stored)" not in out


def test_save_takes_the_results_elsewhere(tessera, cases, tmp_path):
    tessera("bench", "--cases", cases, "--rows", "D=8", "--save", tmp_path / "other")
    assert (tmp_path / "other" / "pretended.json").exists() and not (tmp_path / "results").exists()


def test_kernels_of_ours_are_timed_with_pins_too(tessera, cases):
    options = ["--cases", cases, "--rows", "D=8", "--rivals", "eager"]
    _, out, _ = tessera("bench", *options, "--pin", "family=wgmma,stages=3", "--json")
    found = {item["name"]: item for item in strict_json(out)["rows"][0]["entrants"]}
    assert list(found) == ["own", "own family=wgmma stages=3", "own untuned", "eager"]
    assert found["own family=wgmma stages=3"]["ratio"] == pytest.approx(0.8)
    _, out, _ = tessera("bench", *options, "--pin", "persistent=true")
    assert "own persistent=True" in out.splitlines()[-2]  # a line of the summary of its own


def test_rows_that_are_done_survive_what_comes_after(tessera, cases, monkeypatch):
    """The machine goes away while the second row is measured."""
    real = Bench.measure

    def measure(self, case, dims):
        if dims["D"] == 8:
            raise KeyboardInterrupt
        return real(self, case, dims)

    monkeypatch.setattr(Bench, "measure", measure)
    code, out, _ = tessera("bench", "--cases", cases)
    assert code == 130 and "pretended  D=4,stored=nn" in out
    assert [row["dims"]["D"] for row in read(cases.parent / "results" / "pretended.json")["rows"]] == [4]


def test_a_row_that_fails_leaves_the_others(tessera, cases):
    code, out, _ = tessera("bench", "--cases", cases, "--rows", "D=13", "--rows", "D=8")
    assert code == 1 and "FAILED: MemoryError: no room for D = 13" in out
    saved = read(cases.parent / "results" / "pretended.json")["rows"]
    assert [(row["dims"]["D"], row["ok"]) for row in saved] == [(13, False), (8, True)]
    assert out.splitlines()[-3].split()[:3] == ["pretended", "D=13,stored=nn", "FAILED"]


def test_rivals_and_no_compile(tessera, cases):
    def names(*options):
        _, out, _ = tessera("bench", "--cases", cases, "--rows", "D=8", "--json", *options)
        return [item["name"] for item in strict_json(out)["rows"][0]["entrants"]]

    assert names("--rivals", "eager, stream") == ["own", "own untuned", "eager", "stream"]
    assert names("--no-compile") == ["own", "own untuned", "eager", "cheat", "searched", "stream"]


def test_repeats(tessera, cases):
    DEVICE.order.clear()
    tessera("bench", "--cases", cases, "--rows", "D=8", "--rivals", "eager", "--repeats", "4")
    assert DEVICE.order == [100.0, 150.0, 300.0] * (3 + 4)


def test_rows_are_chosen_by_what_they_agree_with(tessera, cases):
    def dims(*options):
        chosen = [part for text in options for part in ("--rows", text)]
        _, out, _ = tessera("bench", "--cases", cases, "--rivals", "eager", "--json", *chosen)
        return [tuple(row["dims"].values()) for row in strict_json(out)["rows"]]

    assert dims("D=4") == [(4, "nn"), (4, "nt")]
    assert dims("stored=nt", "D=4") == [(4, "nt"), (4, "nn")]
    assert dims("D=96") == [(96, "nn")]  # a row of its own


def test_the_plot_is_written(tessera, cases, tmp_path):
    tessera("bench", "--cases", cases, "--rows", "D=8", "--plot", tmp_path / "plots" / "roof.svg")
    text = (tmp_path / "plots" / "roof.svg").read_text()
    assert text.startswith("<svg ") and "Roofline of Pretend 100, as measured" in text and text.count("<circle") == 5


def test_list(tessera, cases):
    code, out, _ = tessera("bench", "--list", "--cases", cases)
    assert code == 0 and out.splitlines()[1].split() == [
        "pretended", "3", "eager,", "compile,", "cheat,", "searched,", "stream", "a", "case", "without", "a", "GPU",
    ]  # fmt: skip
    _, out, _ = tessera("bench", "--list", "--cases", cases, "--json")
    assert strict_json(out)["cases"][0]["rows"][2] == {"D": 4, "stored": "nt"}


# ---- kernels of any file -----------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(cases, monkeypatch):
    """Kernels that only spend time, and a check that says what `on_a_gpu` holds: (whether it is right, its dims)."""
    seen = {"ok": True, "dims": None}

    def run_subject(subject, given, options):
        seen["dims"] = given.dims
        comparison = Comparison(seen["ok"], 0.5, 0.75, (0,), 0.0, False)
        return Result(subject.name, given.dims, comparisons={"output": comparison})

    monkeypatch.setattr(bench_target, "run_subject", run_subject)
    monkeypatch.setattr(gpu, "on_device", lambda value: value)
    monkeypatch.setattr(gpu, "copy", lambda count: lambda: DEVICE.spend(count / 1e6))
    monkeypatch.setattr("tessera.frontend.definition.launcher", lambda *call: DEVICE.spend(8.0))
    return seen


def test_a_kernel_against_a_copy(tessera, on_a_gpu, tmp_path):
    target = f"{ROOT / 'examples' / 'vector_add.py'}::vector_add"
    code, out, _ = tessera("bench", target, "--dims", "N=1000001", "--json")
    result = strict_json(out)
    (row,) = result["rows"]
    assert code == 0 and row["bytes"] == 12_000_012 and row["flops"] == 0 and row["dims"] == {"N": 1000001}
    own, copy = row["entrants"]
    assert (own["name"], own["us"], own["message"]) == ("vector_add", 8.0, "checked at N=321: error 0.5, bound 0.75")
    assert own["share_of_roofline"] == pytest.approx(12_000_012 / 1e12 / 8e-6)
    assert (copy["name"], copy["us"]) == ("copy", pytest.approx(6.000006)) and result["saved"] == []
    assert on_a_gpu["dims"] == {"N": 321}
    tessera("bench", target, "--dims", "N=512", "--save", tmp_path / "kernels")
    assert read(tmp_path / "kernels" / "vector_add.json")["rows"][0]["dims"] == {"N": 512}


def test_a_product_and_its_constants(tessera, on_a_gpu):
    target = f"{ROOT / 'examples' / 'gemm.py'}::gemm_nn"
    _, out, _ = tessera("bench", target, "--dims", "M=256,N=1024,K=600", "--arg", "BLOCK_M=64", "--json")
    (row,) = strict_json(out)["rows"]
    assert row["flops"] == 2 * 256 * 1024 * 640  # the last block of K reaches past its end
    assert row["dims"] == {"M": 256, "N": 1024, "K": 600, "BLOCK_M": "64"}
    assert on_a_gpu["dims"] == {"M": 256, "N": 256, "K": 344}


def test_a_kernel_with_pins(tessera, on_a_gpu, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tessera.frontend.definition.launcher", lambda definition, *call: (seen.append(definition), DEVICE.spend(8.0))
    )
    target = f"{ROOT / 'examples' / 'gemm.py'}::gemm_nn"
    _, out, _ = tessera("bench", target, "--dims", "M=256,N=128,K=64", "--pin", "family=wgmma", "--json")
    entrants = strict_json(out)["rows"][0]["entrants"]
    assert [item["name"] for item in entrants] == ["gemm_nn", "gemm_nn family=wgmma", "copy"]
    assert all(item["status"] == "ok" for item in entrants)
    assert {tuple(definition.schedule.items()) for definition in seen} == {(), (("family", "wgmma"),)}


def test_textual_ir_with_pins(tessera, on_a_gpu, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench_target.api, "device_arch", lambda ordinal: "sm_90a")
    monkeypatch.setattr(bench_target.api, "with_cubin", lambda program: program)
    monkeypatch.setattr(
        gpu, "prepare", lambda program, *rest: (seen.append(program.launches[0].threads) or (lambda: None), None)
    )
    _, text, _ = tessera("ir", f"{ROOT / 'examples' / 'vector_add.py'}::vector_add", "--stage", "tile")
    (tmp_path / "add.tsir").write_text(text)
    tessera("bench", tmp_path / "add.tsir", "--dims", "N=4096", "--pin", "warps=2")
    assert seen[-1] == 64 and len(seen) == 2 and seen[0] > 64


def test_a_function(tessera, on_a_gpu):
    target = f"{ROOT / 'examples' / 'gdn' / 'delta_layer.py'}::gated_delta"
    code, out, _ = tessera("bench", target, "--dims", "B=2,S=70,D=64", "--json")
    (row,) = strict_json(out)["rows"]
    assert code == 0 and row["bytes"] == (3 * 2 * 70 * 64 + 64 * 64) * 2
    assert row["entrants"][0]["name"] == "gated_delta" and row["entrants"][0]["us"] == 8.0
    assert row["flops"] >= 2 * 2 * 70 * 64 * 64


def test_a_wrong_kernel_is_not_timed(tessera, on_a_gpu):
    on_a_gpu["ok"] = False
    code, out, _ = tessera("bench", f"{ROOT / 'examples' / 'vector_add.py'}::vector_add", "--dims", "N=600")
    assert code == 1 and "vector_add: wrong at N=344: error 0.5, bound 0.75" in out and "WRONG" in out


def test_dims_that_are_compiled_in_stay(on_a_gpu):
    given = Given({"M": 5000, "N": 4096}, {}, 0)
    with pytest.raises(WrongAnswer):
        on_a_gpu["ok"] = False
        bench_target.check(type("Subject", (), {"name": "softmax"})(), given, frozenset({"N"}))
    assert on_a_gpu["dims"] == {"M": 256 + 5000 % 256, "N": 4096}
    assert [bench_target.checked_size(size) for size in (1, 512, 513, 1 << 27)] == [1, 512, 257, 256]


# ---- misuse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretend"], "there is no case 'pretend' (there are pretended); did you mean 'pretended'?"),
        (["--rivals", "eagre"], "there is no rival 'eagre' (there are eager, compile, cheat, searched, stream)"),
        (["--rows", "Q=4"], "no case has rows with all of Q (pretended: D, stored)"),
        (["--rows", "D=few"], "--rows gives D of pretended as 'few', which is no size"),
        (["--rows", "stored=tt"], "--rows gives stored of pretended as 'tt', not nn, nt"),
        (["--rows", "D"], "--rows takes NAME=VALUE pairs"),
        (["--dims", "N=4"], "--dims and --arg are for FILE::NAME"),
        (["--pin", "famly=wgmma"], "--pin: a schedule has no field 'famly'"),
        (["--pin", "family=wmma"], "--pin: the field family of a schedule is one of '', 'wgmma', not 'wmma'"),
        (["--repeats", "2"], "2 is not in the range x>=3"),
        (["no/such.py::kernel"], "no/such.py"),
    ],
)
def test_misuse(tessera, cases, arguments, message):
    code, _, err = tessera("bench", "--cases", cases, *arguments)
    assert code == 2 and message in err
    assert not (cases.parent / "results").exists()


def test_files_of_cases_that_are_none(tessera, cases, tmp_path, monkeypatch):
    for text, code, message in (
        ("CASES = 3\n", "TS605", "defines no list CASES of benchmark cases"),
        ("1 / 0\n", "TS105", "raised ZeroDivisionError: division by zero"),
    ):
        path = cases.with_name(f"cases_{code}.py")
        path.write_text(text)
        _, _, err = tessera("bench", "--cases", path)
        assert code in err and message in err
    assert "there is no file of cases missing.py" in tessera("bench", "--cases", "missing.py")[2]
    monkeypatch.chdir(tmp_path)
    code, _, err = tessera("bench")
    assert code == 2 and "start in a checkout, or name one with --cases" in err


def test_results_of_something_else_stop_it_before_anything_runs(tessera, cases):
    folder = cases.parent / "results"
    folder.mkdir()
    (folder / "pretended.json").write_text("[]")
    DEVICE.order.clear()
    code, _, err = tessera("bench", "--cases", cases)
    assert code == 2 and "pretended.json is no file of benchmark rows" in err and DEVICE.order == []


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
def test_without_a_gpu(tessera, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for target in ("gemm", "examples/vector_add.py::vector_add"):
        code, out, err = tessera("bench", target)
        assert (code, out) == (1, "") and "TS505" in err


# ---- the cases of this checkout ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout():
    return verb.load_cases(ROOT / "bench" / "cases.py")


def test_the_cases_of_this_checkout(checkout):
    """They load without torch, their kernels exist, and the rows are those that the project is judged by."""
    assert list(checkout) == [
        "aggregation",
        "gating",
        "gemm",
        "gemm_fp8",
        "attention",
        "chain",
        "softmax",
        "layer_norm",
        "l2_normalise",
    ]
    rows = {name: [tuple(row.values()) for row in case.rows] for name, case in checkout.items()}
    assert set(rows["aggregation"]) == {(32768, d, n) for d in (128, 256, 512, 1024, 2048) for n in (1, 4, 8)}
    assert set(rows["gemm"]) == {(n, n, n, s) for n in (4096, 8192) for s in ("nn", "nt", "tn", "tt")}
    assert rows["gemm_fp8"] == [(8192, 8192, 8192, sums) for sums in ("f32", "fast")]
    for name in ("softmax", "layer_norm", "l2_normalise"):
        assert rows[name] == [(131072, 1024), (32768, 4096)]
    for case in checkout.values():
        for row in case.rows:
            for searched in case.searched(row):
                assert searched.name in case.rivals and searched.file.exists() and searched.schedules


def test_schedules_of_the_rival_in_triton_fit_the_machine(checkout):
    for row in checkout["aggregation"].rows:
        (searched,) = checkout["aggregation"].searched(row)
        for schedule in searched.schedules:
            stages = schedule["num_stages"]
            tiles = 2 * schedule["BM"] * (stages - 1) + schedule["BN"] * stages
            assert (
                tiles * schedule["BK"] * 2 <= 227 * 1024 and row["D"] % schedule["BN"] == 0 == row["M"] % schedule["BM"]
            )
        assert len(searched.schedules) >= 45 and len(set(map(str, searched.schedules))) == len(searched.schedules)
        near = searched.refine(searched.schedules[0])
        assert near and all(item not in searched.schedules for item in near)


def test_a_file_of_cases_that_fails_is_an_error_at_the_file(tmp_path):
    path = tmp_path / "cases_of_mine.py"
    path.write_text("raise KeyError('x')\n")
    with pytest.raises(SourceError, match="cases_of_mine.py raised KeyError"):
        verb.load_cases(path)
