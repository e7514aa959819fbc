"""Compiled programs on disk: what a process compiled, the next one only reads.

Two steps, each with a key of its own. The printed Tile IR of a traced kernel, and everything else that lowering looks
at, lead to the name of a program; the program without its machine code, and everything that NVRTC looks at, are that
name. So a warm start traces and reads, and a change to the compiler that emits the same text keeps the machine code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Module
from tessera.ir.opdef import TILE, lookup
from tessera.ir.printer import print_module
from tessera.program import Program
from tessera.runtime.cache import open_cache
from tessera.runtime.nvrtc import BASE_OPTIONS, Compiled, NvrtcUnavailable, compile_cubin, load_nvrtc, parse_resources

SOURCES = frozenset({".py", ".j2", ".h"})  # the files of the package that decide what a kernel is compiled to
_PACKAGE = Path(__file__).parents[1]
_LOADED = time.time()


def compiled(kernel: Kernel, dims: Mapping[str, int], options: Sequence[Any], build: Callable[[], Program]) -> Program:
    """The program of a traced Tile-level kernel, with its cubin; `build` lowers it where the disk does not know it.

    `dims`: the values that go into the code; `options`: whatever else `build` gives to the compiler. Raises what
    `build` raises, and EnvironmentProblem TS506 without NVRTC.
    """
    cache = open_cache()
    key = kernel_key(kernel, dims, options)
    name = cache.get(key) if key else None
    found = _read(name.decode()) if name else None
    if found is not None:
        return found
    program = build()
    found = with_cubin(program)
    if key:
        cache.put(key, program_key(program).encode())
    return found


def with_cubin(program: Program) -> Program:
    """The program with machine code, read or compiled. Raises EnvironmentProblem TS506 where NVRTC is missing."""
    found = with_cubin_if_known(program)
    if found is not None:
        return found
    made = replace(program, cubin=compile_cubin(program.cuda, program.arch, program.name).cubin)
    keep(made)
    return made


def with_cubin_if_known(program: Program) -> Program | None:
    """The program with machine code that the disk has. Raises EnvironmentProblem TS506 where NVRTC is missing."""
    found = _read(program_key(program))
    return found if found is not None and replace(found, cubin=b"") == replace(program, cubin=b"") else None


def keep(program: Program) -> None:
    """Puts a program with machine code where `with_cubin` finds it."""
    open_cache().put(program_key(program), program.to_json().encode())


def compile_texts(program: Program, fresh: bool = False) -> tuple[Compiled, bool]:
    """Cubin, PTX and resources of a program's text, and whether they were read; `fresh` compiles in any case."""
    key = program_key(program).replace("program/", "texts/")
    start = time.perf_counter()
    data = None if fresh else open_cache().get(key)
    if data is not None:
        body = json.loads(data)
        cubin, log = base64.b64decode(body["cubin"]), body["log"]
        return Compiled(cubin, body["ptx"], log, parse_resources(log), time.perf_counter() - start), True
    made = compile_cubin(program.cuda, program.arch, program.name, want_ptx=True)
    body = {"cubin": base64.b64encode(made.cubin).decode(), "ptx": made.ptx, "log": made.log}
    open_cache().put(key, json.dumps(body).encode())
    return made, False


def _read(key: str) -> Program | None:
    data = open_cache().get(key)
    if data is None:
        return None
    try:
        return Program.from_json(data.decode())
    except (SourceError, UnicodeDecodeError):  # of another schema: a miss like any other
        return None


# ---- keys ----------------------------------------------------------------------------------------------------------


def kernel_key(kernel: Kernel, dims: Mapping[str, int], options: Sequence[Any]) -> str | None:
    """The key of a traced kernel; None where the files of this package, or NVRTC, cannot be told.

    Locations are part of it: the emitted text names source lines.
    """
    sources = source_digest()
    if sources is None:
        return None
    try:
        compiler = nvrtc_identity()
    except NvrtcUnavailable:
        return None
    ops = sorted({op.name for op in kernel.body.walk()})
    facts = {
        "ir": print_module(Module(TILE, [kernel])),
        "lowerings": [repr(lookup(name).lower) for name in ops],  # an op may be declared outside of this package
        "dims": dict(dims),
        "options": options,
        "sources": sources,
        "nvrtc": compiler,
    }
    return f"kernel/{_digest(facts)}"


def program_key(program: Program) -> str:
    """The key of a program with machine code. Raises EnvironmentProblem TS506 where NVRTC is missing."""
    from tessera.codegen_cuda.include import device_header

    facts = {
        "program": replace(program, cubin=b"").to_json(),  # names the schema and the architecture too
        "header": device_header(),
        "options": BASE_OPTIONS,
        "nvrtc": nvrtc_identity(),
    }
    return f"program/{_digest(facts)}"


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


@cache
def nvrtc_identity() -> str:
    """Version of NVRTC, and the size of its library, which tells builds of one version apart where /proc does.

    Loading the library takes tens of milliseconds, so what it said is kept on disk together with the file's size and
    times, and asked again only when they or the search path changed. Raises NvrtcUnavailable.
    """
    where = {"prefix": sys.prefix, "python": sys.version, "path": sys.path[1:]}
    where |= {name: os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME")}
    key = f"nvrtc/{_digest(where)}"
    known = open_cache().get(key)
    if known is not None:
        path, stamp, identity = json.loads(known)
        if stamp == _stamp(path):
            return identity
    major, minor = load_nvrtc().getVersion()
    paths = _loaded_libraries("libnvrtc.so")
    identity = f"{major}.{minor} {sorted({os.stat(path).st_size for path in paths})}"
    if len(paths) == 1:
        open_cache().put(key, json.dumps([paths[0], _stamp(paths[0]), identity]).encode())
    return identity


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _loaded_libraries(name: str) -> list[str]:
    """Files of this process's libraries whose path holds `name`; none where /proc does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].rstrip("\n") for line in maps if name in line}
    except OSError:
        return []
    return sorted(path for path in paths if os.path.exists(path))


@cache
def source_digest() -> str | None:
    """SHA-256 over the sources of this package; None when one changed after it was loaded.

    Reading them all takes longer than anything else on a warm start, so the digest itself is kept by what the file
    system says of each file. The change time is part of that: unlike the others it cannot be set.
    """
    files = sorted(_source_files(str(_PACKAGE)))
    now = time.time()
    if any(_LOADED < status.st_mtime <= now for _, status in files):
        return None  # the code that runs may be older than the files
    stamps = [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in files]
    key = f"sources/{_digest({'stamps': stamps})}"
    known = open_cache().get(key)
    if known is not None:
        return known.decode()
    digest = hashlib.sha256()
    for path, _ in files:
        content = Path(path).read_bytes()
        digest.update(f"{os.path.relpath(path, _PACKAGE)}\0{len(content)}\0".encode() + content)
    open_cache().put(key, digest.hexdigest().encode())
    return digest.hexdigest()


def _source_files(folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with os.scandir(folder) as listing:
        for item in listing:
            if item.is_dir(follow_symlinks=False):
                found += _source_files(item.path) if item.name != "__pycache__" else []
            elif os.path.splitext(item.name)[1] in SOURCES:
                found.append((item.path, item.stat()))
    return found


__all__ = [
    "compile_texts", "compiled", "keep", "kernel_key", "nvrtc_identity", "program_key", "source_digest", "with_cubin",
    "with_cubin_if_known",
]  # fmt: skip
