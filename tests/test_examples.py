"""The examples that are programs: they run, and what they check can fail."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from tessera.config import of_environment

DELTA_LAYER = str(Path(__file__).parents[1] / "examples" / "gdn" / "delta_layer.py")


@pytest.fixture(params=["interpret", "emulate"])
def lane(request, monkeypatch):
    monkeypatch.setenv("TESSERA_BACKEND", request.param)
    of_environment.cache_clear()
    yield request.param
    of_environment.cache_clear()


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
