"""Machine code as text, through NVIDIA's disassembler, which comes as a wheel of its own."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import tempfile
from pathlib import Path

from tessera.errors import EnvironmentProblem

# By CUDA version; all hold one program called nvdisasm.
PACKAGES = ("nvidia-cuda-nvdisasm", "nvidia-cuda-nvdisasm-cu12", "nvidia-cuda-nvdisasm-cu13")
PROGRAM = "nvdisasm"


def find_nvdisasm() -> Path:
    """The disassembler of an installed wheel, or else on the PATH. Raises EnvironmentProblem TS506 without one."""
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if path.stem == PROGRAM and path.parent.name == "bin" and path.exists():
                return path
    found = shutil.which(PROGRAM)
    if found is None:
        message = "SASS needs NVIDIA's disassembler, which is not here: pip install nvidia-cuda-nvdisasm"
        raise EnvironmentProblem("TS506", message)
    return Path(found)


def disassemble(cubin: bytes) -> str:
    """The SASS of a cubin."""
    program = find_nvdisasm()
    with tempfile.TemporaryDirectory(prefix="tessera-sass-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([str(program), "--print-code", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentProblem("TS506", f"{program.name} could not read the cubin: {done.stderr.strip()}")
    return done.stdout
