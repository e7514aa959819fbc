"""Compiled programs on disk: what makes another key, and that a warm start compiles, lowers and imports nothing."""
# ruff: noqa: F821  names of dims are strings in annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.ir.opdef import lookup
from tessera.runtime import api, programs
from tessera.runtime.cache import Cache
from tessera.runtime.nvrtc import NvrtcUnavailable, load_nvrtc
from tests.pace import slower

ROOT = Path(__file__).parents[2]
OPTIONS = ("sm_80", None, {"x": 16, "out": 16}, {"D": 8})
DIMS = {"S": 32, "D": 8}


def has_nvrtc():
    try:
        load_nvrtc()
    except NvrtcUnavailable:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="needs NVRTC")


def make_scale(factor=0.5):
    @ts.kernel
    def scale(x: Tensor["S", "D", ts.f32], out: Tensor["S", "D", ts.f32]):
        row = tile.program_id(0) * 16
        tile.store(tile.exp(x[row : row + 16] * factor), out[row : row + 16])

    return scale


@pytest.fixture
def store(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "entries", 1 << 30)
    monkeypatch.setattr(programs, "open_cache", lambda: cache)
    monkeypatch.setattr(programs, "source_digest", lambda: "these sources")
    monkeypatch.setattr(programs, "nvrtc_identity", lambda: "this NVRTC")
    return cache


def kernel(factor=0.5):
    return api.trace(make_scale(factor), DIMS).kernel()


def compiled(factor=0.5, arch="sm_80", machine_code=True):
    return api.KernelState(make_scale(factor)).program(DIMS, arch, None, {"x": 16, "out": 16}, machine_code)


def kinds(cache):
    return sorted(entry.key.partition("/")[0] for entry in cache.entries())


def forbidden(*arguments, **options):
    raise AssertionError("this was known")


@needs_nvrtc
def test_a_warm_start_neither_lowers_nor_compiles(store, monkeypatch):
    first = compiled()
    assert first.cubin.startswith(b"\x7fELF") and kinds(store) == ["kernel", "program"]
    monkeypatch.setattr(api, "compile_kernel", forbidden)
    monkeypatch.setattr(programs, "compile_cubin", forbidden)
    assert compiled() == first and len(store.entries()) == 2
    with pytest.raises(AssertionError, match="was known"):
        compiled(factor=0.25)


@needs_nvrtc
def test_a_compiler_that_emits_the_same_text_keeps_the_machine_code(store, monkeypatch):
    first = compiled()
    monkeypatch.setattr(programs, "source_digest", lambda: "other sources")
    monkeypatch.setattr(programs, "compile_cubin", forbidden)
    assert compiled() == first and kinds(store) == ["kernel", "kernel", "program"]


@needs_nvrtc
@pytest.mark.parametrize("lost", ["kernel", "program", "both", "payload"])
def test_what_is_lost_or_damaged_is_compiled_again(store, lost):
    first = compiled()
    for entry in store.entries():
        if lost in ("both", entry.key.partition("/")[0]):
            entry.path.write_bytes(entry.path.read_bytes()[:-1])
        elif lost == "payload" and entry.key.startswith("program/"):  # whole, but no program of this schema
            store.put(entry.key, b'{"schema": 0}')
    assert compiled() == first and kinds(store) == ["kernel", "program"] and store.verify() == []


@needs_nvrtc
def test_without_a_cache_everything_still_works(store, monkeypatch):
    first = compiled()
    monkeypatch.setattr(programs, "open_cache", lambda: Cache(store.folder, 0))
    assert compiled() == first


@needs_nvrtc
def test_code_without_a_cubin_is_not_stored(store):
    assert compiled(machine_code=False).cubin == b"" and store.entries() == []


@needs_nvrtc
def test_texts_of_nvrtc_are_read_unless_they_are_to_be_fresh(store, monkeypatch):
    program = compiled(machine_code=False)
    made, cached = programs.compile_texts(program)
    assert not cached and made.ptx and made.resources["scale"].registers > 0
    read, cached = programs.compile_texts(program)
    assert cached and (read.cubin, read.ptx, read.resources) == (made.cubin, made.ptx, made.resources)
    assert programs.compile_texts(program, fresh=True)[1] is False
    monkeypatch.setattr(programs, "nvrtc_identity", lambda: "another NVRTC")
    assert programs.compile_texts(program)[1] is False


def test_what_a_kernel_key_depends_on(store, monkeypatch):
    def key(factor=0.5, dims=DIMS, options=OPTIONS):
        return programs.kernel_key(kernel(factor), dims, options)

    base = key()
    assert base == key() and base.startswith("kernel/")
    keys = [base, key(0.25), key(dims={"S": 32, "D": 16}), key(options=("sm_90a", *OPTIONS[1:]))]
    keys.append(key(options=(*OPTIONS[:2], {"x": 4, "out": 16}, {"D": 8})))
    keys.append(key(options=(*OPTIONS[:3], {"D": 4})))
    monkeypatch.setattr(programs, "source_digest", lambda: "other sources")
    keys.append(key())
    monkeypatch.setattr(programs, "nvrtc_identity", lambda: "another NVRTC")
    keys.append(key())
    exp = lookup("exp")
    changed = replace(exp, lower=replace(exp.lower, expression="1.0f"))
    monkeypatch.setattr(programs, "lookup", lambda name: changed if name == "exp" else lookup(name))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    monkeypatch.setattr(programs, "source_digest", lambda: None)
    assert key() is None


def test_what_a_program_key_depends_on(store, monkeypatch):
    program = compiled(machine_code=False)
    base = programs.program_key(program)
    assert base == programs.program_key(replace(program, cubin=b"machine code"))
    keys = [base, *(programs.program_key(other) for other in (
        replace(program, cuda=program.cuda + " "), replace(program, arch="sm_90a"), replace(program, notes=("a note",)),
        replace(program, launches=(replace(program.launches[0], shared_bytes=16),)),
    ))]  # fmt: skip
    monkeypatch.setattr(programs, "BASE_OPTIONS", ("-another",))
    keys.append(programs.program_key(program))
    monkeypatch.setattr("tessera.codegen_cuda.include.device_header", lambda: "another header")
    keys.append(programs.program_key(program))
    monkeypatch.setattr(programs, "nvrtc_identity", lambda: "another NVRTC")
    keys.append(programs.program_key(program))
    assert len(set(keys)) == len(keys)


def test_a_kernel_is_not_looked_up_without_nvrtc(store, monkeypatch):
    def missing():
        raise NvrtcUnavailable(ImportError("no CuPy"))

    monkeypatch.setattr(programs, "nvrtc_identity", missing)
    assert programs.kernel_key(kernel(), DIMS, OPTIONS) is None
    with pytest.raises(NvrtcUnavailable):
        compiled()


@needs_nvrtc
def test_the_identity_of_nvrtc_tells_builds_apart():
    version = programs.nvrtc_identity().split()
    assert version[0].replace(".", "").isdigit()
    if sys.platform == "linux":
        assert int(version[1].strip("[],")) > 1_000_000


# ---- the sources -------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "part" / "__pycache__").mkdir(parents=True)
    for name in ("a.py", "part/b.py", "part/c.j2", "d.h", "part/__pycache__/b.py", "notes.txt"):
        (folder / name).write_text(name)
        os.utime(folder / name, (1e9, 1e9))
    cache = Cache(tmp_path / "entries", 1 << 30)
    monkeypatch.setattr(programs, "open_cache", lambda: cache)
    monkeypatch.setattr(programs, "_PACKAGE", folder)
    return folder


def digest():
    return programs.source_digest.__wrapped__()


def rewrite(path, text, changed=1e9):
    path.write_text(text)
    os.utime(path, (changed, changed))


def test_any_source_changes_the_digest(package):
    digests = [digest()]
    assert digests[0] is not None and digest() == digests[0]
    for name in ("a.py", "part/b.py", "part/c.j2", "d.h"):
        rewrite(package / name, name[::-1])  # same size, same time of writing
        digests.append(digest())
    (package / "a.py").rename(package / "z.py")
    digests.append(digest())
    assert len(set(digests)) == len(digests)
    rewrite(package / "notes.txt", "others")
    rewrite(package / "part" / "__pycache__" / "b.py", "others")
    assert digest() == digests[-1]


def test_the_same_sources_elsewhere_have_the_same_digest(package, tmp_path, monkeypatch):
    here = digest()
    monkeypatch.setattr(programs, "_PACKAGE", package.rename(tmp_path / "elsewhere"))
    assert digest() == here


def test_sources_that_changed_after_they_were_loaded_have_none(package, monkeypatch):
    monkeypatch.setattr(programs, "_LOADED", time.time() - 100)
    assert digest() is not None
    rewrite(package / "a.py", "edited", time.time() - 50)
    assert digest() is None
    rewrite(package / "a.py", "from a clock that is ahead", time.time() + 5000)
    assert digest() is not None


WARM = """
import sys, time
import tessera
from tessera.runtime import api, programs
programs.source_digest = lambda: "these sources"
from examples.vector_add import vector_add
vector_add.source  # reading the author's file is not part of a launch
if programs.nvrtc_identity():
    start = time.process_time()
    program = api.KernelState(vector_add).program({"N": 1000}, "sm_80", None, {"x": 16, "y": 16, "output": 16}, True)
    seconds = time.process_time() - start
loaded = [name for name in ("lark", "jinja2", "tessera.compiler", "tessera.passes") if name in sys.modules]
print(len(program.cubin) > 0, seconds, *loaded)
"""


@needs_nvrtc
def test_a_warm_process_imports_no_compiler(tmp_path):
    def start():
        environment = {**os.environ, "TESSERA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WARM]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout

    assert "tessera.compiler" in start()
    warm = start().split()
    assert warm[0] == "True" and warm[2:] == []
    assert float(warm[1]) < 0.25 * slower()  # 50 ms


def test_the_program_is_that_of_the_compiler(store):
    made = compile_kernel(make_scale(), DIMS, *OPTIONS).program
    assert compiled(machine_code=False) == made
