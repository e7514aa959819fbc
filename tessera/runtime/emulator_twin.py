"""The twin, compiled once for all kernels: what they include as a precompiled header, its functions as an object.

They are the same for every text and most of the work of a compiler: a kernel alone is built in 0.15 to 0.4 s, not in
0.6 to 1.2. The first build on a machine takes 3 s more.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tessera.codegen_cuda.include import DEVICE_HEADER_NAME, twin_parts
from tessera.errors import InternalError
from tessera.runtime.cache import open_cache

# No contraction: a * b + c must round twice unless the text says fma. -Og builds a kernel in 60 % of the time of -O1,
# and the kernel runs a sixth slower.
FLAGS = (
    "-std=c++17",
    "-Og",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-w",
)

# What is compiled once is worth more time (2 s): a kernel runs in five sixths of the time that it takes with -Og.
OBJECT_FLAGS = ("-O2",)

TWIN, PRECOMPILED, OBJECT = "twin.h", "twin.h.gch", "twin.o"


class EmulatorBuildError(InternalError, RuntimeError):
    """The host compiler rejected emitted text (TS901). `log` is its output."""

    def __init__(self, log: str) -> None:
        first = next((line for line in log.splitlines() if "error" in line), "no message")
        super().__init__("TS901", f"the host compiler rejected emitted text: {first.strip()}", notes=(log.strip(),))
        self.log = log


def compile_in(folder: Path, compiler: str, *arguments: str) -> None:
    """Raises EmulatorBuildError for a text that the compiler rejects."""
    done = subprocess.run([compiler, *FLAGS, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise EmulatorBuildError(done.stderr)


def put_twin(folder: Path, compiler: str, version: str) -> None:
    """Puts the twin where a kernel is built, to be included first and linked. The device header then adds nothing."""
    for name, data in _twin(compiler, version).items():
        (folder / name).write_bytes(data)
    (folder / DEVICE_HEADER_NAME).touch()


@cache
def _twin(compiler: str, version: str) -> Mapping[str, bytes]:
    """The files by name, from the disk cache if they are there."""
    declared, functions = twin_parts()
    parts = (declared, functions, version, *FLAGS, *OBJECT_FLAGS, platform.machine())
    store, made = open_cache(), {TWIN: declared.encode()}
    keys = {
        name: "emulator/" + hashlib.sha256("\0".join((name, *parts)).encode()).hexdigest()
        for name in (PRECOMPILED, OBJECT)
    }
    found = {name: data for name, key in keys.items() if (data := store.get(key)) is not None}
    if len(found) == len(keys):
        return made | found
    with tempfile.TemporaryDirectory(prefix="tessera-build-") as temporary:
        folder = Path(temporary)
        (folder / TWIN).write_text(declared, encoding="utf-8")
        (folder / "twin.cpp").write_text(functions, encoding="utf-8")
        compile_in(folder, compiler, "-x", "c++-header", TWIN, "-o", PRECOMPILED)
        compile_in(folder, compiler, *OBJECT_FLAGS, "-c", "twin.cpp", "-o", OBJECT)
        for name, key in keys.items():
            made[name] = (folder / name).read_bytes()
            store.put(key, made[name])
    return made


__all__ = ["FLAGS", "OBJECT", "OBJECT_FLAGS", "TWIN", "EmulatorBuildError", "compile_in", "put_twin"]
