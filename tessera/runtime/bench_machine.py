"""What a measurement is a measurement of: the GPU, the driver, every library that took part, and our own sources."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from tessera.runtime.machine import CUPY, driver_says

LIBRARIES = ("torch", "triton")
ROOT = Path(__file__).parents[2]


def facts() -> dict[str, Any]:
    """The current GPU and the versions of this process; a fact that cannot be had is None."""
    import cupy

    from tessera.runtime.nvrtc import load_nvrtc

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "gpu": properties["name"].decode(errors="replace"),
        "multiprocessors": properties["multiProcessorCount"],
        "driver": (driver_says("driver_version") or [None])[0],
        "cuda_driver": _release(runtime.driverGetVersion()),
        "cuda_runtime": _release(runtime.runtimeGetVersion()),
        "nvrtc": ".".join(map(str, load_nvrtc().getVersion())),
        "cupy": next((version(name) for name in CUPY if version(name)), None),
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **sources(),
    }


def version(package: str) -> str | None:
    """Of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sources() -> dict[str, Any]:
    """The commit of this checkout, with a + where files of the package differ from it, and a digest of the package."""
    from tessera.runtime.programs import source_digest

    commit, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "--", "tessera")
    digest = source_digest()
    return {
        "commit": commit and commit + ("+" if changes else ""),
        "sources": digest and digest[:12],
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _release(number: int) -> str:
    """13020 -> 13.2, as CUDA counts its releases."""
    return f"{number // 1000}.{number % 1000 // 10}"


__all__ = ["facts", "sources", "version"]
