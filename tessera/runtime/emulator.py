"""Runs emitted CUDA text on a CPU: builds it with a host compiler against the device header's twin, and launches it.

The twin executes each thread of a block as a fiber and checks what hardware does not: bounds, alignment, races, copies
read before their wait, barriers that not every thread reaches. See ``tessera_twin.h``.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tessera.codegen_cuda.include import twin_include_directory, twin_text
from tessera.config import config
from tessera.errors import EnvironmentProblem, InternalError
from tessera.runtime.cache import open_cache
from tessera.runtime.interpreter_output import write_line

# No contraction: a * b + c must round twice unless the text says fma. -O1 builds a kernel in about 0.3 s.
FLAGS = (
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-w",
)

# Same order as ts_twin::Kind in tessera_twin_fiber.h.
KINDS = (
    "shared-out-of-bounds",
    "global-out-of-bounds",
    "misaligned",
    "read-only",
    "divergent",
    "race",
    "unwaited-copy",
    "guard-overwritten",
    "division-by-zero",
    "bad-launch",
    "assertion",
)

MAX_FAULTS = 16  # kept per launch; the rest is only counted

# An array, a list or tuple of arrays, or a number: Python's, NumPy's or a ctypes scalar.
Argument = Any


class EmulatorUnavailable(EnvironmentProblem, RuntimeError):
    """There is no host C++ compiler (TS507)."""

    def __init__(self, compiler: str) -> None:
        super().__init__(
            "TS507",
            f"running CUDA text on a CPU needs the C++ compiler '{compiler}', which is not on the PATH; install it",
        )


class EmulatorBuildError(InternalError, RuntimeError):
    """The host compiler rejected emitted text (TS901). `log` is its output."""

    def __init__(self, log: str) -> None:
        first = next((line for line in log.splitlines() if "error" in line), "no message")
        super().__init__("TS901", f"the host compiler rejected emitted text: {first.strip()}", notes=(log.strip(),))
        self.log = log


@dataclass(frozen=True)
class Fault:
    """One finding: its kind (of `KINDS`), a sentence, the block's three ids and the thread in it (-1: the block)."""

    kind: str
    message: str
    block: tuple[int, int, int]
    thread: int


class EmulatorFault(RuntimeError):
    """A kernel did something illegal.

    `faults` holds the first `MAX_FAULTS` (a block stops at its first), `count` says how many there were.
    """

    def __init__(self, kernel: str, faults: list[Fault], count: int) -> None:
        first = faults[0]
        rest = f"; {count - 1} more" if count > 1 else ""
        super().__init__(f"{kernel}: {first.kind}: thread {first.thread} of block {first.block} {first.message}{rest}")
        self.kernel = kernel
        self.faults = faults
        self.count = count


# ---- the twin's structures, as in tessera_twin_fiber.h ---------------------------------------------------------


class _Error(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("block", ctypes.c_int64 * 3),
        ("message", ctypes.c_char * 256),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int),
        ("capacity", ctypes.c_int),
        ("errors", ctypes.POINTER(_Error)),
        ("output", ctypes.c_void_p),
        ("output_bytes", ctypes.c_int64),
    ]


class _Allocation(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("writable", ctypes.c_int),
        ("argument", ctypes.c_int),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("check_races", ctypes.c_int),
        ("allocation_count", ctypes.c_int),
        ("allocations", ctypes.POINTER(_Allocation)),
    ]


_SCALARS: dict[str, Any] = {"l": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float, "b": ctypes.c_bool}


# ---- global memory ---------------------------------------------------------------------------------------------


class _GlobalMemory:
    """Copies of the arguments' memory with a gap around each, so that running off one array never lands in another.

    Arrays that share memory share a copy, and each address keeps its value modulo 256: alignment is part of what is
    checked.
    """

    GAP = 4096
    MODULUS = 256

    def __init__(self, arrays: list[tuple[int, np.ndarray]]) -> None:
        self._arrays = arrays
        self._extents = [_extent(array) for _, array in arrays]
        self._shift: list[tuple[int, int, int]] = []  # (low, high, distance to the copy), merged and ascending
        self._buffers = []
        for low, high in _merged(self._extents):
            buffer = ctypes.create_string_buffer(high - low + 2 * self.GAP + self.MODULUS)
            address = ctypes.addressof(buffer) + self.GAP
            address += (low - address) % self.MODULUS
            ctypes.memmove(address, low, high - low)
            self._buffers.append(buffer)
            self._shift.append((low, high, address - low))

    def address(self, array: np.ndarray) -> int:
        """Address in the copy of the array's first element."""
        return array.ctypes.data + self._distance(_extent(array)[0])

    def allocations(self) -> Any:
        table = (_Allocation * max(1, len(self._arrays)))()
        for entry, (argument, array), (low, high) in zip(table, self._arrays, self._extents, strict=False):
            entry.base = low + self._distance(low)
            entry.bytes = high - low
            entry.writable = array.flags.writeable
            entry.argument = argument
        return table

    def copy_back(self) -> None:
        for (_, array), (low, high) in zip(self._arrays, self._extents, strict=True):
            if array.flags.writeable:
                ctypes.memmove(low, low + self._distance(low), high - low)

    def _distance(self, address: int) -> int:
        # Neighbours may touch (one ends where the next starts); an empty array matches its own empty extent.
        return next(shift for low, high, shift in self._shift if low <= address < high or low == address == high)


def _extent(array: np.ndarray) -> tuple[int, int]:
    if array.size == 0:
        return array.ctypes.data, array.ctypes.data
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


def _merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(set(extents)):
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


# ---- launching -------------------------------------------------------------------------------------------------


class Library:
    """Kernels of one text, built for this CPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._lock = threading.Lock()  # the twin runs one launch at a time

    def signature(self, kernel: str) -> str:
        """One letter per parameter: p pointer, l int64, i int32, f float32, b bool."""
        function = getattr(self._library, f"ts_twin_signature_{kernel}")
        function.restype = ctypes.c_char_p
        return function().decode()

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        args: Sequence[Argument],
        seed: int = 0,
        races: bool = True,
    ) -> None:
        """Run `kernel` over `grid` (1 to 3 sizes) with `threads` per block and `shared_bytes` of dynamic shared memory.

        An argument is an array (passed by pointer; written in place when it is writeable), a list of arrays (a table
        of pointers), or a scalar, converted to the kernel's parameter type. `seed` other than 0 runs blocks and warps
        in a random order. `races=False` leaves out the checks of ordering: races and reads of copies in flight (which
        then show as NaN).

        Raises EmulatorFault, with the arrays unchanged, and TypeError when arguments do not fit the parameters.
        """
        sizes = [*map(int, grid), 1, 1][:3]
        signature = self.signature(kernel)
        if len(args) != len(signature):
            raise TypeError(f"{kernel} takes {len(signature)} arguments and got {len(args)}")
        tables = {i: _pointer_table(arg) for i, arg in enumerate(args) if isinstance(arg, (list, tuple))}
        arrays = [(i, arg) for i, arg in enumerate(args) if isinstance(arg, np.ndarray)]
        arrays += [(i, array) for i in tables for array in args[i]]
        arrays += list(tables.items())
        memory = _GlobalMemory(arrays)
        for i, table in tables.items():
            self._write_table(memory, table, args[i])
        values = [
            self._value(kernel, i, letter, tables.get(i, arg), memory)
            for i, (letter, arg) in enumerate(zip(signature, args, strict=True))
        ]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        options = _Options(seed, int(races), len(arrays), memory.allocations())
        errors = (_Error * MAX_FAULTS)()
        report = _Report(0, MAX_FAULTS, errors, None, 0)
        run = getattr(self._library, f"ts_twin_run_{kernel}")
        with self._lock:
            run(
                pointers,
                *map(ctypes.c_long, sizes),
                ctypes.c_int(threads),
                ctypes.c_long(shared_bytes),
                ctypes.byref(options),
                ctypes.byref(report),
            )
            printed = ctypes.string_at(report.output, report.output_bytes) if report.output_bytes else b""
        for line in printed.decode(errors="replace").splitlines():
            write_line(line)
        if report.count:
            faults = [
                Fault(KINDS[error.kind], error.message.decode(errors="replace"), tuple(error.block), error.thread)
                for error in errors[: min(report.count, MAX_FAULTS)]
            ]
            raise EmulatorFault(kernel, faults, report.count)
        memory.copy_back()

    @staticmethod
    def _write_table(memory: _GlobalMemory, table: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        addresses = np.array([memory.address(array) for array in arrays], np.uint64)
        ctypes.memmove(memory.address(table), addresses.ctypes.data, addresses.nbytes)

    @staticmethod
    def _value(kernel: str, index: int, letter: str, arg: Argument, memory: _GlobalMemory) -> Any:
        if letter == "p":
            if not isinstance(arg, np.ndarray):
                raise TypeError(f"argument {index} of {kernel} is a pointer: pass an array or a list of arrays")
            return ctypes.c_void_p(memory.address(arg))
        if isinstance(arg, np.ndarray):
            raise TypeError(f"argument {index} of {kernel} is a scalar: pass a number, not an array")
        value = arg.value if isinstance(arg, ctypes._SimpleCData) else arg
        if letter in "li" and int(value) != value:
            raise TypeError(f"argument {index} of {kernel} is an integer and got {value!r}")
        bits = {"l": 64, "i": 32}.get(letter)
        if bits and not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
            raise TypeError(f"argument {index} of {kernel} does not fit {bits} bits: {value!r}")
        return _SCALARS[letter](int(value) if bits else value)


def _pointer_table(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Room for the pointers; read-only, since a kernel has no business writing them."""
    table = np.zeros(len(arrays), np.uint64)
    table.flags.writeable = False
    return table


# ---- building --------------------------------------------------------------------------------------------------


def build(cuda_text: str, kernel_names: Sequence[str]) -> Library:
    """Build emitted text for this CPU; the result is kept on disk by text, twin headers, compiler and flags.

    Raises EmulatorUnavailable without a compiler and EmulatorBuildError with its output when it rejects the text.
    """
    compiler, version = _compiler(config().cxx)
    flags = (*FLAGS, *_poison_flags(version))
    parts = (cuda_text, *kernel_names, twin_text(), version, *flags, platform.machine())
    key = "emulator/" + hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache = open_cache()
    found = _private.get(key) or _loaded(cache.file(key))
    if found is not None:
        return found
    entries = "".join(f"TS_TWIN_ENTRY({name})\n" for name in kernel_names)
    with tempfile.TemporaryDirectory(prefix="tessera-build-") as folder:
        (Path(folder) / "kernel.cu").write_text(cuda_text, encoding="utf-8")
        (Path(folder) / "entry.cpp").write_text(f'#include "kernel.cu"\n{entries}', encoding="utf-8")
        command = [compiler, *flags, f"-I{twin_include_directory()}", "entry.cpp", "-o", "kernel.so", "-lm"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode != 0:
            raise EmulatorBuildError(result.stderr)
        cache.put(key, (Path(folder) / "kernel.so").read_bytes())
        found = _loaded(cache.file(key))
        if found is None:  # nothing can be stored, or nothing can be executed from there
            found = _private[key] = Library(Path(folder) / "kernel.so")  # stays mapped when the folder goes
    return found


# Libraries that the disk cache did not take, for the life of the process.
_private: dict[str, Library] = {}


def _loaded(path: Path | None) -> Library | None:
    """The library in a checked file; None without one, and where another process evicted it at this moment."""
    if path is None:
        return None
    try:
        return Library(path)
    except OSError:
        return None


@cache
def _compiler(name: str) -> tuple[str, str]:
    """Path and version text of the host compiler."""
    path = shutil.which(name)
    if path is None:
        raise EmulatorUnavailable(name)
    return path, subprocess.run([path, "--version"], capture_output=True, text=True).stdout


def _poison_flags(version: str) -> tuple[str, ...]:
    """Fill uninitialised registers with a pattern, where the compiler can: stale zeros would hide a missing init."""
    match = re.search(r"(\d+)\.\d+", version)
    known = match is not None and int(match[1]) >= (8 if "clang" in version else 12)
    return ("-ftrivial-auto-var-init=pattern",) if known else ()
