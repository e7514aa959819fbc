"""Calls of autotuned kernels on a make-believe GPU: what they run at, what is kept, and what measures nothing."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config
from tessera.errors import SourceError
from tessera.runtime import api, arrays, autotune, autotune_calls, autotune_store, launch, plan
from tessera.runtime.autotune_report import BORROWED, DEFAULT, MEASURED, PINNED, UNMEASURED, Choice
from tessera.runtime.cache import Cache
from tessera.search import search
from tests.pace import slower
from tests.runtime import fake_cuda, fake_tuning
from tests.runtime.fake_tuning import BLOCKS, Behaviour, cubin_of, make_double, right
from tests.runtime.test_programs import needs_nvrtc

ROOT = Path(__file__).parents[2]


class Gpu(fake_cuda.Library):
    """A make-believe GPU on which the block of 64 is the fastest. `tuned` are the keys that were measured."""

    def __init__(self, cache):
        self.device, self.cache = fake_tuning.Device(), cache
        self.driver = self.device.driver
        self.tuned, self.predicted, self.settings = [], [], Config()
        self.seconds = {32: 3e-3, 64: 1e-3, 128: 2e-3}

    def registered(self, program, block):
        cubin = cubin_of(program)
        self.driver.programs[cubin] = replace(program, cubin=cubin)
        self.driver.behaviours.setdefault(cubin, Behaviour(right, self.seconds[block]))
        return self.driver.programs[cubin]

    def search(self, subject, workers):
        self.tuned.append(subject.key["N"])
        found = []
        for block in BLOCKS:
            program = autotune_program(subject, block)
            self.registered(program, block)
            found.append(
                fake_tuning.Candidate({"BLOCK": block}, fake_tuning.Schedule(), program, fake_tuning.Cost(block * 1e-6))
            )
        return fake_tuning.Search(tuple(found))

    def predict(self, subject):
        self.predicted.append(subject.key["N"])
        return Choice({"BLOCK": 128}, None, UNMEASURED, "predicted by the cost model")

    def array(self, size, value=None):
        made = fake_cuda.aligned((size,))
        made.memory[...] = np.arange(size) if value is None else value
        return made


def autotune_program(subject, block):
    from tessera.compiler import compile_kernel

    options = (subject.arch, None, subject.alignment, subject.divisors)
    return compile_kernel(subject.definition.at({"BLOCK": block}), subject.dims, *options).program


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    made = Gpu(Cache(tmp_path / "entries", 1 << 24))
    monkeypatch.setattr(arrays, "ADAPTERS", [made, *arrays.ADAPTERS])
    monkeypatch.setattr(plan, "READERS", dict(plan.READERS))
    monkeypatch.setattr(launch, "LAUNCHER", launch.Launcher(made.driver))
    monkeypatch.setattr(api, "device_arch", lambda device: "sm_80")
    monkeypatch.setattr(autotune_store, "open_cache", lambda: made.cache)
    monkeypatch.setattr(autotune_store, "source_digest", lambda: "these sources")
    monkeypatch.setattr(autotune_store, "nvrtc_identity", lambda: "this NVRTC")
    monkeypatch.setattr(autotune_calls, "gpu_name", lambda ordinal: "Fake GPU")
    monkeypatch.setattr(autotune_calls, "make_device", lambda bench, arch: made.device)
    monkeypatch.setattr(autotune, "search_all", made.search)
    monkeypatch.setattr(autotune, "predict", made.predict)
    monkeypatch.setattr(autotune, "ParallelCompiler", lambda: fake_tuning.Compiler(made.driver))
    for module in (api, autotune_calls):
        monkeypatch.setattr(module, "config", lambda: made.settings)

    def compiled(kernel, dims, options, build):
        program = build()
        return made.registered(program, kernel.attributes["constants"]["BLOCK"])

    monkeypatch.setattr(api.programs, "compiled", compiled)
    return made


def run(kernel, gpu, size=1000):
    """Calls the kernel; its choice."""
    result = kernel(gpu.array(size))
    assert (result.memory == np.arange(size, dtype=np.float32) * 2).all()
    return api.last_run(kernel).choice


def test_the_first_call_of_a_key_measures_and_the_next_ones_remember(gpu):
    double = make_double()
    for _ in range(3):
        choice = run(double, gpu)
        assert choice.constants == {"BLOCK": 64} and choice.origin == MEASURED and "Fake GPU" in choice.note
    assert gpu.tuned == [1000] and gpu.driver.launches[-1][1] == (16, 1, 1)
    assert run(double, gpu, 2000).origin == MEASURED and gpu.tuned == [1000, 2000] and gpu.predicted == []


def test_what_is_measured_is_kept_for_others(gpu):
    run(make_double(), gpu)
    again = make_double()
    assert run(again, gpu).origin == MEASURED and gpu.tuned == [1000]
    # Another space, text or GPU is another question.
    run(make_double(blocks=(32, 64)), gpu)
    assert gpu.tuned == [1000, 1000]


def test_another_gpu_measures_for_itself(gpu, monkeypatch):
    run(make_double(), gpu)
    monkeypatch.setattr(autotune_calls, "gpu_name", lambda ordinal: "Another GPU")
    run(make_double(), gpu)
    assert gpu.tuned == [1000, 1000]


def test_misaligned_arrays_are_another_question(gpu):
    double = make_double()
    run(double, gpu)
    shifted = fake_cuda.aligned((1000,), shift=4)
    shifted.memory[...] = 1
    assert (double(shifted).memory == 2).all() and gpu.tuned == [1000, 1000]


def test_nothing_is_measured_while_a_graph_is_captured(gpu):
    double = make_double()
    run(double, gpu, 1000)
    run(double, gpu, 4000)
    gpu.driver.captured.add(gpu.current_stream)
    choice = run(double, gpu, 1600)
    assert choice.origin == BORROWED and choice.note == "measured for N=1000" and choice.constants == {"BLOCK": 64}
    assert gpu.tuned == [1000, 4000]
    gpu.driver.captured.clear()
    assert run(double, gpu, 1600).origin == MEASURED and gpu.tuned == [1000, 4000, 1600]


def test_tune_cached_measures_nothing(gpu):
    gpu.settings = Config(tune="cached")
    double = make_double()
    assert run(double, gpu) == Choice({"BLOCK": 128}, None, UNMEASURED, "predicted by the cost model")
    assert gpu.tuned == [] and gpu.predicted == [1000]
    run(make_double(), gpu)
    assert gpu.predicted == [1000]  # the prediction is kept too
    gpu.settings = Config()
    assert run(double, gpu, 3000).origin == MEASURED
    gpu.settings = Config(tune="cached")
    assert run(double, gpu, 3000).origin == MEASURED
    assert run(double, gpu, 5000).origin == BORROWED and gpu.tuned == [3000]


def test_tune_off_reads_no_measurements(gpu):
    double = make_double()
    run(double, gpu)
    gpu.settings = Config(tune="off")
    assert run(double, gpu).origin == UNMEASURED and run(double, gpu, 2000).origin == UNMEASURED
    assert gpu.tuned == [1000]


def test_a_borrowed_choice_that_is_not_legal_is_left(gpu, monkeypatch):
    double = make_double()
    run(double, gpu)
    gpu.settings = Config(tune="cached")
    real = api.compile_kernel

    def picky(module, *options):
        if module.kernel().attributes["constants"]["BLOCK"] == 64:
            raise SourceError("TS501", "too large")
        return real(module, *options)

    monkeypatch.setattr(api, "compile_kernel", picky)
    monkeypatch.setattr(api.KernelState, "_program", forgetful(api.KernelState._program))
    assert run(double, gpu, 2000).origin == UNMEASURED


def forgetful(real):
    """Compiles every time."""

    def program(self, *given):
        self._programs.clear()
        return real(self, *given)

    return program


def test_pins_and_grids_leave_nothing_to_choose(gpu):
    double = make_double()
    assert run(double.pinned({"BLOCK": 32}), gpu).origin == PINNED
    double[(32,)](gpu.array(1000))
    choice = api.last_run(double).choice
    assert choice.origin == DEFAULT and choice.constants == {"BLOCK": 32} and gpu.tuned == gpu.predicted == []


def test_a_gpu_without_room_predicts(gpu):
    gpu.device.room = 100
    assert run(make_double(), gpu).origin == UNMEASURED and gpu.tuned == [1000] and gpu.predicted == [1000]


def test_plain_kernels_are_never_tuned(gpu, monkeypatch):
    @ts.kernel
    def plain(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        start = tile.program_id(0) * 32
        tile.store(x[start : start + 32] * 2.0, out[start : start + 32])

    monkeypatch.setattr(api.programs, "compiled", lambda kernel, dims, options, build: gpu.registered(build(), 32))
    assert run(plain, gpu) is None and gpu.tuned == []


def test_a_changed_helper_is_another_question(gpu):
    def kernel(factor):
        @ts.kernel.autotune(space=dict(BLOCK=list(BLOCKS)), key=["N"])
        def scaled(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
            start = tile.program_id(0) * tile.context().BLOCK
            tile.store(x[start : start + tile.context().BLOCK] * factor, out[start : start + tile.context().BLOCK])

        return scaled

    for factor in (2.0, 2.0, 3.0):
        kernel(factor)(gpu.array(1000, 0.0))
    assert gpu.tuned == [1000, 1000]


def test_what_was_measured_is_what_is_launched():
    """The search and a call compile the same text for a choice, so what was checked is what runs."""
    double = make_double()
    state, dims = api.KernelState(double), {"N": 1000}
    divisors = api.innermost_divisors(state.signature, dims)
    compiled = autotune_calls.Compiled(dims, "sm_80", {"x": 16, "out": 4}, divisors, {})
    subject = state.chooser.subject(compiled, dims)
    found = search(double, dims, "sm_80", **subject.options()).candidates
    assert found
    for candidate in found:
        choice = Choice(candidate.constants, asdict(candidate.schedule))
        assert state.at(candidate.constants)._program(compiled, None, False, choice) == candidate.program


# ---- lanes without a GPU ---------------------------------------------------------------------------------------------


def test_the_interpreter_takes_the_default_point(gpu):
    gpu.settings = Config(backend="interpret")
    double, x = make_double(), np.ones(100, np.float32)
    assert (double(x) == 2).all()
    choice = api.last_run(double).choice
    assert choice.origin == DEFAULT and choice.constants == {"BLOCK": 32} and gpu.predicted == gpu.tuned == []


def test_lanes_on_the_cpu_take_what_a_gpu_has_measured(gpu):
    double = make_double()
    state = api.KernelState(double)
    chosen, choice = state.chosen({"N": 1000}, "sm_80")
    assert choice.origin == UNMEASURED and chosen.definition.constants == {"BLOCK": 128}
    run(double, gpu)
    for arch, origin, block in (("sm_80", MEASURED, 64), ("sm_90a", UNMEASURED, 128)):
        chosen, choice = api.KernelState(double).chosen({"N": 1000}, arch)
        assert choice.origin == origin and chosen.definition.constants == {"BLOCK": block}
    _, choice = api.KernelState(double).chosen({"N": 1200}, "sm_80")
    assert choice.origin == BORROWED
    _, choice = api.KernelState(double.pinned({"BLOCK": 32})).chosen({"N": 1000}, "sm_80")
    assert choice.origin == PINNED and gpu.tuned == [1000]


def test_the_emulator_runs_the_choice(gpu):
    gpu.settings = Config(backend="emulate", arch="sm_80")
    double, x = make_double(), np.ones(100, np.float32)
    assert (double(x) == 2).all()
    found = api.last_run(double)
    assert found.choice.origin == UNMEASURED and found.kernels[0].grid == (1,) and gpu.predicted == [100]


# ---- another process -------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_a_second_process_starts_from_what_is_kept(tmp_path):
    environment = {**os.environ, "TESSERA_CACHE_DIR": str(tmp_path)}

    def process(*arguments):
        command = [sys.executable, "-m", "tests.runtime.second_process", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    process("keep")
    seconds, origin, *imported = min(process() for _ in range(2))
    assert origin == MEASURED and imported == []
    assert float(seconds) < 0.15 * slower()  # 0.03 s
