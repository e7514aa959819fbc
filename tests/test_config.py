"""Settings come from the environment once, and a misspelt one is an error rather than silence."""

from dataclasses import fields
from pathlib import Path

import pytest

from tessera.config import PREFIX, Config, read_config
from tessera.errors import ArgumentError


def test_defaults():
    assert read_config({}) == read_config({"PATH": "/bin", "TESSERA_DUMP": ""}) == Config()


def test_every_setting():
    environment = {
        "TESSERA_CACHE_DIR": "~/c",
        "TESSERA_CACHE_BYTES": "1000",
        "TESSERA_BACKEND": "interpret",
        "TESSERA_ARCH": "sm_80",
        "TESSERA_DUMP": "tile, cuda",
        "TESSERA_CXX": "clang++",
        "TESSERA_TUNE": "cached",
        "TESSERA_GRAPHS": "off",
    }
    assert set(environment) == {PREFIX + field.name.upper() for field in fields(Config)}
    assert len(environment) <= 10
    assert read_config(environment) == Config(
        Path.home() / "c", 1000, "interpret", "sm_80", frozenset({"tile", "cuda"}), "clang++", "cached", "off"
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TESSERA_BACKEND", "gpu", "TESSERA_BACKEND is 'gpu' and must be one of auto, interpret, emulate, cuda"),
        ("TESSERA_CACHE_BYTES", "2GB", "TESSERA_CACHE_BYTES is '2GB' and must be a number of bytes"),
        ("TESSERA_CACHE_BYTES", "-1", "TESSERA_CACHE_BYTES is '-1' and must be a number of bytes"),
        ("TESSERA_DUMP", "tile,ptx", "TESSERA_DUMP is 'ptx' and must be one of graph, tile, target, cuda"),
        ("TESSERA_TUNE", "on", "TESSERA_TUNE is 'on' and must be one of auto, cached, off"),
        ("TESSERA_GRAPHS", "on", "TESSERA_GRAPHS is 'on' and must be one of auto, off"),
        ("TESSERA_BAKCEND", "auto", "there is no variable TESSERA_BAKCEND .*did you mean 'TESSERA_BACKEND'"),
    ],
)
def test_unknown_values_list_the_allowed_ones(variable, value, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        read_config({variable: value})
    assert caught.value.code == "TS801"
