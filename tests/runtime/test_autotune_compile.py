"""Candidates are compiled in other processes: results, errors, and what the disk has already."""

from dataclasses import replace

import pytest

from tessera.compiler import compile_kernel
from tessera.runtime import autotune_compile, programs
from tessera.runtime.autotune_compile import LIMITED, Built, ParallelCompiler
from tessera.runtime.cache import Cache
from tessera.runtime.nvrtc import Resources, compile_cubin
from tests.runtime.fake_tuning import make_double
from tests.runtime.test_programs import needs_nvrtc
from tests.suite import load


@pytest.fixture
def cache(tmp_path, monkeypatch):
    made = Cache(tmp_path / "entries", 1 << 24)
    for module in (programs, autotune_compile):
        monkeypatch.setattr(module, "open_cache", lambda: made)
    monkeypatch.setattr(programs, "nvrtc_identity", lambda: "this NVRTC")
    return made


@needs_nvrtc
def test_compiled_once_and_found_again(cache, monkeypatch):
    program = compile_kernel(make_double(), {"N": 1000}).program
    broken = replace(program, cuda=program.cuda.replace("{", "{ no such text", 1))
    compiler = ParallelCompiler(2)
    try:
        futures = [compiler.submit(program), compiler.submit(broken)]
        built = futures[0].result()
        with pytest.raises(RuntimeError, match="NVRTC could not compile double for sm_80"):
            futures[1].result()
    finally:
        compiler.close()
    assert built.program.cubin[:4] == b"\x7fELF" and replace(built.program, cubin=b"") == program
    assert 0 < built.registers < 64 and built.spill_bytes == 0
    assert programs.with_cubin(program) == built.program  # where calls look for it

    class Nothing:
        def submit(self, argument):
            raise AssertionError("this is compiled already")

    found = ParallelCompiler(1)
    monkeypatch.setattr(found, "_workers", Nothing())
    assert found.submit(program).result() == built


@needs_nvrtc
def test_waits_for_copies_have_a_limit_in_a_program_of_their_own(cache):
    sizes = {"M": 256, "N": 128, "K": 128}
    point = {"BLOCK_N": 64, "BLOCK_K": 64}
    program = compile_kernel(load("gemm_nt").pinned(point).scheduled({"family": "wgmma"}), sizes, "sm_90a").program
    compiler = ParallelCompiler(1)
    try:
        built = compiler.submit(program).result()
    finally:
        compiler.close()
    assert built.limited is not None and built.limited.cubin != built.program.cubin
    assert replace(built.limited, cubin=b"") == program and built.spill_bytes == 0
    assert programs.with_cubin(program) == built.program  # what calls find has no limits
    assert ParallelCompiler(1).submit(program).result() == built  # found again
    texts = [compile_cubin(program.cuda, "sm_90a", "gemm", given, want_ptx=True).ptx for given in ((), LIMITED)]
    assert ["ts_given_up" in text for text in texts] == ["exit;" in text for text in texts] == [False, True]


def test_what_is_said_of_several_kernels():
    program = compile_kernel(make_double(), {"N": 1000}).program
    built = Built(program, {"a": Resources(40, 0, 8, 4, 0), "b": Resources(60, 0, 0, 0, 0)})
    assert (built.registers, built.spill_bytes) == (60, 12)
    assert (Built(program, {}).registers, Built(program, {}).spill_bytes) == (None, None)
