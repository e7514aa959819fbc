"""The examples that are programs: they run, and what they check can fail."""

import runpy
from pathlib import Path

import numpy as np
import pytest

GDN = Path(__file__).parents[1] / "examples" / "gdn"
DELTA_LAYER = str(GDN / "delta_layer.py")
DELTA_RULE = GDN / "gated_delta_rule"


def test_the_delta_layer_is_what_numpy_computes(lane, capsys):
    runpy.run_path(DELTA_LAYER, run_name="__main__")
    assert "result bfloat16[2, 150, 64]\nlargest error " in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_the_delta_layer_finds_what_is_a_little_wrong(factor):
    module = runpy.run_path(DELTA_LAYER)
    function, right = module["main"].__globals__, module["delta_layer"]
    function["delta_layer"] = lambda *arguments: right(*arguments) * np.float32(factor)
    with pytest.raises(AssertionError):
        module["main"]()


def test_the_delta_rule_is_its_recurrence(capsys):
    runpy.run_path(str(DELTA_RULE / "compare.py"))["main"](["--lengths", "1,65", "--dtype", "f16"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].split()[:2] == ["65", "chunk"]


def test_the_delta_rule_finds_what_is_a_little_wrong():
    main = runpy.run_path(str(DELTA_RULE / "compare.py"))["main"]
    right = main.__globals__["gated_delta_rule"]
    main.__globals__["gated_delta_rule"] = lambda *arrays, **options: (right(*arrays, **options)[0] * 1.02, None)
    with pytest.raises(AssertionError, match="is more than 0.002"):
        main(["--lengths", "30", "--dtype", "f16"])


@pytest.mark.parametrize("kernel", ["delta_prepare", "delta_chunks", "delta_recurrent"])
def test_kernels_of_the_delta_rule_on_the_command_line(kernel, tessera):
    dims = {"B": 1, "T": 40, "H": 1, "HV": 2, "K": 32, "V": 32, "S": 1}
    if kernel == "delta_recurrent":
        del dims["S"]
    if kernel == "delta_prepare":
        del dims["V"]
    text = ",".join(f"{name}={size}" for name, size in dims.items())
    code, out, _ = tessera("check", f"{DELTA_RULE}/kernels.py::{kernel}", "--dims", text, "--seeds", "1")
    assert code == 0 and "no findings" in out
