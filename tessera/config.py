"""Every environment variable that Tessera reads, in one frozen value that is read once; `ts.compile` replaces fields.

Nothing else in the package looks at the environment, so this file is the whole list of settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from tessera.errors import ArgumentError, did_you_mean

PREFIX = "TESSERA_"
BACKENDS = ("auto", "interpret", "emulate", "cuda")
DUMPS = ("graph", "tile", "target", "cuda", "host")
TUNES = ("auto", "cached", "off")
GRAPHS = ("auto", "off")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings; the variable of each field is TESSERA_ and the field's name in capitals."""

    cache_dir: Path | None = None  # where compiled programs are kept; None: the user's cache folder
    cache_bytes: int = 2 << 30  # how much is kept there; the least recently used goes first, and 0 keeps nothing
    backend: str = "auto"  # lane of calls that name none: one of BACKENDS
    arch: str | None = None  # architecture to compile for when no GPU decides it, such as sm_80
    dump: frozenset[str] = frozenset()  # comma-separated DUMPS to print to stderr while compiling
    cxx: str = "g++"  # C++ compiler of the emulate lane
    tune: str = "auto"  # autotuned kernels, one of TUNES: measure once and keep it, use what is kept, only predict
    graphs: str = "auto"  # repeated calls of functions, one of GRAPHS: replay them as CUDA graphs, or queue launches


def read_config(environment: Mapping[str, str]) -> Config:
    """The settings in `environment`; raises ArgumentError TS801 for a variable or a value that does not exist."""
    names = [field.name for field in fields(Config)]
    values: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in names:
            known = ", ".join(PREFIX + known.upper() for known in names)
            hint = did_you_mean(variable, [PREFIX + known.upper() for known in names])
            raise ArgumentError("TS801", f"there is no variable {variable} (known: {known}){hint}")
        if text:  # set but empty means unset, as in TESSERA_DUMP= make test
            values[name] = _parse(name, variable, text)
    return Config(**values)  # type: ignore[arg-type]


_chosen: ContextVar[Config | None] = ContextVar("tessera_config", default=None)
# The settings of `using` around the call, None where there are none: equal objects mean that nothing has changed.
in_force = _chosen.get


def config() -> Config:
    """The settings in force: those of `using` around the call, else those of this process."""
    return _chosen.get() or of_environment()


@cache
def of_environment() -> Config:
    """The settings of this process, read from its environment at the first call."""
    return read_config(os.environ)


class using:
    """Other settings for a block, in this thread or asyncio task."""

    __slots__ = ("_settings", "_token")

    def __init__(self, settings: Config) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        self._token = _chosen.set(self._settings)

    def __exit__(self, *raised: object) -> None:
        _chosen.reset(self._token)


def _parse(name: str, variable: str, text: str) -> object:
    if name == "cache_dir":
        return Path(text).expanduser()
    if name == "cache_bytes":
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise ArgumentError("TS801", f"{variable} is '{text}' and must be a number of bytes, such as 2147483648")
        return int(text)
    if name == "backend":
        return _one_of(BACKENDS, variable, text)
    if name == "tune":
        return _one_of(TUNES, variable, text)
    if name == "graphs":
        return _one_of(GRAPHS, variable, text)
    if name == "dump":
        return frozenset(_one_of(DUMPS, variable, item.strip()) for item in text.split(","))
    return text


def _one_of(allowed: tuple[str, ...], variable: str, text: str) -> str:
    if text not in allowed:
        raise ArgumentError("TS801", f"{variable} is '{text}' and must be one of {', '.join(allowed)}")
    return text
