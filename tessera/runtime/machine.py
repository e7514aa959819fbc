"""What this machine has, found by trying: a package that is installed is imported, a compiler compiles.

Each check stands alone, and what goes wrong inside of one is its result. The remedies are commands to paste.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tessera.config import config
from tessera.errors import TesseraError
from tessera.runtime import launch

OK, MISSING, BROKEN = "ok", "missing", "broken"
LEAST_PYTHON = (3, 10)
# Distribution, module, least version; as in pyproject.toml.
PACKAGES = (
    ("numpy", "numpy", "2.1.2"),
    ("ml_dtypes", "ml_dtypes", "0.5"),
    ("lark", "lark", "1.2"),
    ("jinja2", "jinja2", "3.1"),
    ("click", "click", "8.1"),
    ("rich", "rich", "13"),
    ("platformdirs", "platformdirs", "4"),
)
CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
GPU_REMEDY = "pip install 'tessera[cuda12]'"
COMPILER_REMEDY = "apt install g++"
TRIAL_ARCH = "sm_80"
TRIAL_CUDA = '#include "tessera_device.h"\nextern "C" __global__ void trial(float* out) { out[threadIdx.x] = 1.0f; }\n'
TRIAL_CXX = 'extern "C" __attribute__((visibility("default"))) int trial() { return 42; }\n'


@dataclass(frozen=True)
class Check:
    """One finding. `state`: "ok", "missing" or "broken"; `required`: nothing works without it."""

    name: str
    state: str
    detail: str
    remedy: str = ""
    required: bool = False


def checks() -> list[Check]:
    """Everything about this machine, in the order of a report."""
    found = [_guarded("settings", _settings, required=True), _guarded("python", _python, required=True)]
    found += [_guarded(package[0], lambda p=package: _package(*p), required=True) for package in PACKAGES]
    found += [_guarded("cupy", _cupy), _guarded("nvrtc", _nvrtc), _guarded("c++ compiler", _compiler)]
    found.append(_guarded("nvdisasm", _nvdisasm))
    found += _gpus()
    found.append(_guarded("cache", _cache))
    return found


def _guarded(name: str, check: Callable[[], Check], required: bool = False) -> Check:
    try:
        return check()
    except TesseraError as error:
        return Check(name, BROKEN, error.message, error.remedy, required)
    except Exception as error:  # a broken installation raises anything; saying so is what this is for
        return Check(name, BROKEN, f"{type(error).__name__}: {error}", required=required)


def _settings() -> Check:
    config()
    return Check("settings", OK, "the TESSERA_ variables are valid", required=True)


def _python() -> Check:
    detail = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < LEAST_PYTHON:
        return Check("python", BROKEN, detail, "install Python 3.10 or newer", True)
    return Check("python", OK, detail, required=True)


def _package(name: str, module: str, least: str) -> Check:
    remedy = f"pip install '{name}>={least}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, MISSING, "not installed", remedy, True)
    try:
        importlib.import_module(module)
    except Exception as error:  # as `_guarded`, with a remedy
        return Check(name, BROKEN, f"{version} cannot be imported: {error}", remedy, True)
    if _numbers(version) < _numbers(least):
        return Check(name, BROKEN, f"{version} is older than {least}", remedy, True)
    return Check(name, OK, version, required=True)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _cupy() -> Check:
    installed = [(name, version) for name in CUPY if (version := _installed(name))]
    if not installed:
        return Check("cupy", MISSING, "not installed: no GPU can be used, and no CUDA text compiled", GPU_REMEDY)
    detail = ", ".join(f"{name} {version}" for name, version in installed)
    if len(installed) > 1:
        remedy = f"pip uninstall {' '.join(name for name, _ in installed[1:])}"
        return Check("cupy", BROKEN, f"{detail}: several CuPy packages overwrite one another", remedy)
    try:
        importlib.import_module("cupy")
    except Exception as error:  # as `_guarded`, with a remedy
        remedy = f"pip install --force-reinstall {installed[0][0]}"
        return Check("cupy", BROKEN, f"{detail} cannot be imported: {_first_line(error)}", remedy)
    return Check("cupy", OK, detail)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvrtc() -> Check:
    from tessera.runtime.nvrtc import NvrtcError, NvrtcUnavailable, compile_cubin, load_nvrtc

    remedy = "pip install 'tessera[cuda13]'" if _installed("cupy-cuda13x") else GPU_REMEDY
    try:
        major, minor = load_nvrtc().getVersion()
    except NvrtcUnavailable as error:
        return Check("nvrtc", MISSING, _first_line(error.__cause__ or error), remedy)
    start = time.perf_counter()
    try:
        cubin = compile_cubin(TRIAL_CUDA, TRIAL_ARCH, "trial").cubin
    except NvrtcError as error:
        return Check("nvrtc", BROKEN, f"{major}.{minor} failed on a trial kernel: {error.message}", remedy)
    took = f"{time.perf_counter() - start:.2f} s"
    return Check("nvrtc", OK, f"{major}.{minor}, a trial kernel for {TRIAL_ARCH} took {took} ({len(cubin)} bytes)")


def _compiler() -> Check:
    """The C++ compiler of the emulate lane builds a library, and this process calls it."""
    from tessera.runtime.emulator_twin import FLAGS

    name = config().cxx
    path = shutil.which(name)
    remedy = COMPILER_REMEDY if name == "g++" else f"install {name}, or unset TESSERA_CXX and {COMPILER_REMEDY}"
    if path is None:
        return Check("c++ compiler", MISSING, f"{name} is not on the PATH: nothing can be emulated", remedy)
    with tempfile.TemporaryDirectory(prefix="tessera-doctor-") as folder:
        source, library = Path(folder) / "trial.cpp", Path(folder) / "trial.so"
        source.write_text(TRIAL_CXX)
        done = subprocess.run([path, *FLAGS, str(source), "-o", str(library)], capture_output=True, text=True)
        if done.returncode:
            return Check("c++ compiler", BROKEN, f"{path} failed on a trial: {_first_line(done.stderr)}", remedy)
        if ctypes.CDLL(str(library)).trial() != 42:
            return Check("c++ compiler", BROKEN, f"{path} built a trial that gives a wrong answer", remedy)
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    return Check("c++ compiler", OK, f"{_first_line(version)}, {path}")


def _nvdisasm() -> Check:
    from tessera.runtime.sass import PACKAGES as WHEELS
    from tessera.runtime.sass import find_nvdisasm

    try:
        path = find_nvdisasm()
    except TesseraError:
        return Check("nvdisasm", MISSING, "not here: only --emit sass needs it", f"pip install {WHEELS[0]}")
    done = subprocess.run([str(path), "--version"], capture_output=True, text=True)
    if done.returncode:
        return Check("nvdisasm", BROKEN, f"{path} does not run: {_first_line(done.stderr)}", f"pip install {WHEELS[0]}")
    release = re.search(r"release [\d.]+", done.stdout)
    return Check("nvdisasm", OK, f"{release[0] if release else 'no version'}, {path}")


def _gpus() -> list[Check]:
    """A check per GPU that CUDA reaches, or one that says why there is none."""
    try:
        count = launch.device_count()
    except Exception as error:  # as `_guarded`
        return [Check("gpu", BROKEN, f"CUDA cannot be asked for GPUs: {_first_line(error)}", GPU_REMEDY)]
    if count:
        return [_guarded(f"gpu {number}", lambda n=number: _gpu(n)) for number in range(count)]
    seen = driver_says("name")
    if seen is None:
        return [Check("gpu", MISSING, "no NVIDIA driver here: kernels run on the CPU")]
    if not seen:
        return [Check("gpu", MISSING, "the NVIDIA driver sees no GPU: kernels run on the CPU", "nvidia-smi")]
    return [Check("gpu", BROKEN, f"the driver sees {', '.join(seen)}, but CUDA reaches none of them", GPU_REMEDY)]


def _gpu(number: int) -> Check:
    import cupy

    from tessera.runtime.api import device_arch
    from tessera.target.arch import find

    properties = cupy.cuda.runtime.getDeviceProperties(number)
    name = properties["name"].decode(errors="replace")
    major, minor = launch.compute_capability(number)
    cuda = cupy.cuda.runtime.driverGetVersion()
    driver = (driver_says("driver_version") or ["of unknown version"])[0]
    arch = device_arch(number)
    facts = find(arch)
    lane = f", on the {facts.lane} lane" if facts is not None and facts.lane != arch else ""
    memory = properties["totalGlobalMem"] / 2**30
    detail = (
        f"{name}, {memory:.0f} GiB, compute capability {major}.{minor}, driver {driver} (CUDA {cuda // 1000}."
        f"{cuda % 1000 // 10}); compiles for {arch}{lane}"
    )
    return Check(f"gpu {number}", OK, detail)


def driver_says(fact: str) -> list[str] | None:
    """A fact of each GPU by nvidia-smi; None where that is missing or fails."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return None
    try:
        command = [path, f"--query-gpu={fact}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else None


def _cache() -> Check:
    from tessera.runtime.cache import open_cache

    cache = open_cache()
    if cache.limit == 0:
        return Check("cache", OK, f"{cache.folder}, off: TESSERA_CACHE_BYTES is 0")
    problem = cache.problem()
    if problem is not None:
        remedy = "make the folder writable, or set TESSERA_CACHE_DIR to another one"
        return Check("cache", BROKEN, f"{cache.folder} cannot be written ({problem}): nothing is kept", remedy)
    stats = cache.stats()
    detail = f"{cache.folder}, {stats.entries} entries, {stats.bytes / 2**20:.1f} of {stats.limit / 2**20:.0f} MiB"
    bad = len(cache.verify())
    if bad:
        return Check("cache", BROKEN, f"{detail}, {bad} damaged (compiled again when needed)", "tessera cache clear")
    return Check("cache", OK, detail)


def _first_line(what: object) -> str:
    return next((line.strip() for line in str(what).splitlines() if line.strip()), type(what).__name__)


__all__ = ["BROKEN", "MISSING", "OK", "Check", "checks", "driver_says"]
