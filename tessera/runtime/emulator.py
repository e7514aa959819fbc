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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tessera.codegen_cuda.include import DEVICE_HEADER_NAME, twin_include_directory, twin_text
from tessera.config import config
from tessera.errors import EnvironmentProblem
from tessera.runtime.cache import open_cache
from tessera.runtime.emulator_maps import TensorMapFields, TwinMap
from tessera.runtime.emulator_memory import CounterFields, Counters, Error, GlobalMemory, Options, Probes, Report
from tessera.runtime.emulator_text import prepared
from tessera.runtime.emulator_twin import FLAGS, OBJECT, OBJECT_FLAGS, TWIN, compile_in, put_twin
from tessera.runtime.interpreter_output import write_line

# What the twin finds, in the order of ts_twin::Kind in tessera_twin_fiber.h.
KINDS = (
    "race",  # accesses of two threads, one of them a write, that nothing orders
    "in-flight",  # a buffer touched while an asynchronous copy into it is not waited for
    "uninitialised",
    "shared-out-of-bounds",
    "global-out-of-bounds",
    "misaligned",
    "read-only",
    "divergent",  # a barrier or a warp collective that not all threads reach
    "deadlock",
    "conflicting-writes",  # unordered writes of different values to one element
    "unwritten",  # an element of an output that nobody wrote
    "mbarrier",
    "guard-overwritten",
    "division-by-zero",
    "bad-launch",
    "assertion",
    "unfenced",  # bytes or registers that asynchronous units use, with no fence after ordinary code wrote them
)

MAX_FAULTS = 16  # kept per launch; the rest is only counted

# An array, a list or tuple of arrays, a tensor map, a list of them, or a number: Python's, NumPy's or a ctypes scalar.
Argument = Any


class EmulatorUnavailable(EnvironmentProblem, RuntimeError):
    """There is no host C++ compiler (TS507)."""

    def __init__(self, compiler: str) -> None:
        super().__init__(
            "TS507",
            f"running CUDA text on a CPU needs the C++ compiler '{compiler}', which is not on the PATH; install it",
        )


@dataclass(frozen=True)
class Fault:
    """One finding: its kind (of `KINDS`), a sentence, the block's three ids, the thread in it (-1: the block).

    `line` is that of the emitted text, 1-based, 0 where there is none. In the sentence `{line 12}` stands for a line of
    the text, `{shared 640}` for a byte of the shared block and `{argument 2}` for a parameter.
    """

    kind: str
    message: str
    block: tuple[int, int, int]
    thread: int
    line: int = 0

    @property
    def plain(self) -> str:
        """The sentence with numbers in place of names."""
        return _TOKEN.sub(lambda m: f"{_PLAIN[m[1]]} {m[2]}", self.message)

    def __str__(self) -> str:
        where = f" (line {self.line} of the text)" if self.line else ""
        return f"{self.kind}: thread {self.thread} of block {self.block} {self.plain}{where}"


_TOKEN = re.compile(r"\{(line|shared|argument) (\d+)\}")
_GLOBAL = re.compile(r"\{global (\d+) (\d+)\}")
_PLAIN = {"line": "line", "shared": "shared byte", "argument": "argument"}


@dataclass
class Examination:
    """What one launch showed. `count` faults were found, of which `faults` holds the first `MAX_FAULTS`.

    `lines`: counters by line of the text, where asked for. `written`: by argument position, which elements of a
    writable array were written. `printed`: the lines that the kernel printed. `probes`: what probes in the text left.
    """

    faults: list[Fault]
    count: int
    lines: dict[int, Counters]
    written: dict[int, np.ndarray]
    printed: list[str]
    probes: bytes = b""


class EmulatorFault(RuntimeError):
    """A kernel did something illegal.

    `faults` holds the first `MAX_FAULTS` (a block stops at its first), `count` says how many there were.
    """

    def __init__(self, kernel: str, faults: list[Fault], count: int) -> None:
        rest = f"; {count - 1} more" if count > 1 else ""
        super().__init__(f"{kernel}: {faults[0]}{rest}")
        self.kernel = kernel
        self.faults = faults
        self.count = count


_PARAMETER = re.compile(r"[a-z]\d*")  # of a signature
_SCALARS: dict[str, Any] = {"l": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float, "b": ctypes.c_bool}


# ---- launching -------------------------------------------------------------------------------------------------


class Library:
    """Kernels of one text, built for this CPU. `lines` is the length of the text when its accesses can be counted."""

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path = path
        self.lines = lines
        self._library = ctypes.CDLL(str(path))
        self._lock = threading.Lock()  # the twin runs one launch at a time

    def signature(self, kernel: str) -> str:
        """One letter per parameter: p pointer, l int64, i int32, f float32, b bool, m tensor map; for a list t and the
        number of pointers that it has room for, or m and that of maps.
        """
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
        """Run `kernel` as `examine` does, but with its output lines written and a fault raised.

        Raises EmulatorFault, with the arrays unchanged, and TypeError when arguments do not fit the parameters.
        """
        found = self._run(kernel, grid, threads, shared_bytes, args, seed, races, keep_faulty=False)
        for line in found.printed:
            write_line(line)
        if found.count:
            raise EmulatorFault(kernel, found.faults, found.count)

    def examine(
        self,
        kernel: str,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        args: Sequence[Argument],
        seed: int = 0,
        *,
        blocks: Sequence[Sequence[int]] | None = None,
        count: bool = False,
        outputs: Collection[int] = (),
        probe: bool = False,
    ) -> Examination:
        """Run `kernel` over `grid` (1 to 3 sizes) with `threads` per block and `shared_bytes` of dynamic shared memory.

        An argument is an array (passed by pointer; written in place when it is writeable), a list of arrays (passed as
        a struct of pointers), or a scalar, converted to the kernel's parameter type. `seed` other than 0 runs blocks,
        warps and lanes in a random order and lets asynchronous data arrive at random legal moments. `blocks` runs only
        those of the grid. `count` fills the counters and needs a library built with `counted`. The arrays at the
        positions `outputs` hold nothing before the launch: each element must be written, and none read before. `probe`
        collects what probes in the text leave.

        Raises TypeError when arguments do not fit the parameters.
        """
        if count and not self.lines:
            raise ValueError("counting needs a library that was built with counted=True")
        found = self._run(
            kernel, grid, threads, shared_bytes, args, seed, True,
            blocks=blocks, count=count, outputs=outputs, probe=probe,
        )  # fmt: skip
        if blocks is None and not found.count:
            found.faults += self._unwritten(args, found.written, outputs)
            found.count = len(found.faults)
        return found

    def _run(
        self,
        kernel: str,
        grid: Sequence[int],
        threads: int,
        shared_bytes: int,
        args: Sequence[Argument],
        seed: int,
        races: bool,
        *,
        blocks: Sequence[Sequence[int]] | None = None,
        count: bool = False,
        outputs: Collection[int] = (),
        probe: bool = False,
        keep_faulty: bool = True,
    ) -> Examination:
        sizes = [*map(int, grid), 1, 1][:3]
        signature = _PARAMETER.findall(self.signature(kernel))
        if len(args) != len(signature):
            raise TypeError(f"{kernel} takes {len(signature)} arguments and got {len(args)}")
        arrays = _arrays(args)
        memory = GlobalMemory(arrays)
        values = [
            self._value(kernel, i, letter, arg, memory)
            for i, (letter, arg) in enumerate(zip(signature, args, strict=True))
        ]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        chosen = [_linear(block, sizes) for block in blocks or ()]
        counters = (CounterFields * (self.lines + 1))() if count else None
        probes = Probes() if probe else None
        options = Options(
            seed,
            int(races),
            len(arrays),
            memory.allocations(outputs),
            memory.region_count(),
            self.lines + 1 if count else 0,
            memory.regions(),
            None if blocks is None else (ctypes.c_int64 * max(1, len(chosen)))(*chosen),
            len(chosen),
            counters,
            None if probes is None else ctypes.pointer(probes),
        )
        errors = (Error * MAX_FAULTS)()
        report = Report(0, MAX_FAULTS, errors, None, 0)
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
        faults = [_fault(error, memory) for error in errors[: min(report.count, MAX_FAULTS)]]
        if keep_faulty or not faults:
            memory.copy_back()
        return Examination(
            faults,
            report.count,
            {line: Counters.of(fields) for line, fields in enumerate(counters or ()) if any(bytes(fields))},
            memory.written(),
            printed.decode(errors="replace").splitlines(),
            _taken(probes),
        )

    @staticmethod
    def _unwritten(
        args: Sequence[Argument], written: Mapping[int, np.ndarray], outputs: Collection[int]
    ) -> list[Fault]:
        """A fault per output of which elements were left out."""
        faults = []
        for position in outputs:
            mask = written.get(position)
            if mask is None or mask.all():
                continue
            first = ", ".join(str(int(i)) for i in np.argwhere(~mask)[0])
            message = f"leaves {int((~mask).sum())} of {mask.size} elements of {{argument {position}}} unwritten, "
            faults.append(Fault("unwritten", f"{message}the first at [{first}]", (0, 0, 0), -1))
        return faults

    @staticmethod
    def _value(kernel: str, index: int, letter: str, arg: Argument, memory: GlobalMemory) -> Any:
        if letter == "p":
            if not isinstance(arg, np.ndarray):
                raise TypeError(f"argument {index} of {kernel} is a pointer: pass an array")
            return ctypes.c_void_p(memory.address(arg))
        if letter[0] == "t":
            room = int(letter[1:])
            # An empty list has room for one, as no array of C++ is empty.
            if not isinstance(arg, (list, tuple)) or len(arg) not in (room, room - (room == 1)):
                raise TypeError(f"argument {index} of {kernel} is a list: pass a list of {room} arrays")
            return (ctypes.c_void_p * room)(*(memory.address(array) for array in arg))
        if letter[0] == "m":
            maps = [arg] if letter == "m" else arg
            room = int(letter[1:] or 1)
            if (
                not isinstance(maps, (list, tuple))
                or len(maps) not in (room, room - (letter == "m1"))
                or not _all_maps(maps)
            ):
                raise TypeError(f"argument {index} of {kernel} takes tensor maps: pass {letter[1:] or 'one'}")
            return (TensorMapFields * room)(*(map.fields(memory.address(map.array)) for map in maps))
        if isinstance(arg, (np.ndarray, list, tuple, TwinMap)):
            raise TypeError(f"argument {index} of {kernel} is a scalar: pass a number, not an array")
        value = arg.value if isinstance(arg, ctypes._SimpleCData) else arg
        if letter in "li" and int(value) != value:
            raise TypeError(f"argument {index} of {kernel} is an integer and got {value!r}")
        bits = {"l": 64, "i": 32}.get(letter)
        if bits and not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
            raise TypeError(f"argument {index} of {kernel} does not fit {bits} bits: {value!r}")
        return _SCALARS[letter](int(value) if bits else value)


def _all_maps(values: Sequence[Any]) -> bool:
    return all(isinstance(value, TwinMap) for value in values)


def _arrays(args: Sequence[Argument]) -> list[tuple[int, np.ndarray]]:
    """The arrays whose memory a launch may touch, with their positions. What a map describes counts as the argument of
    its own where the same memory is passed: what is found there is found in that.
    """
    listed = [(i, item) for i, arg in enumerate(args) for item in (arg if isinstance(arg, (list, tuple)) else ())]
    direct = list(enumerate(args))
    found = [(i, item) for i, item in direct + listed if isinstance(item, np.ndarray)]
    seen = {_memory_of(array) for _, array in found}
    for position, item in direct + listed:
        if isinstance(item, TwinMap) and _memory_of(item.array) not in seen:
            seen.add(_memory_of(item.array))
            found.append((position, item.array))
    return found


def _memory_of(array: np.ndarray) -> tuple[int, tuple[int, ...], tuple[int, ...], bool]:
    return array.ctypes.data, array.shape, array.strides, array.flags.writeable


def _linear(block: Sequence[int], sizes: Sequence[int]) -> int:
    ids = [*map(int, block), 0, 0][:3]
    if any(not 0 <= i < size for i, size in zip(ids, sizes, strict=True)):
        raise ValueError(f"there is no block {tuple(block)} in a grid of {tuple(sizes)}")
    return (ids[2] * sizes[1] + ids[1]) * sizes[0] + ids[0]


def _fault(error: Error, memory: GlobalMemory) -> Fault:
    text = error.message.decode(errors="replace")
    text = _GLOBAL.sub(lambda m: f"{{argument {m[1]}}}{memory.element(int(m[1]), int(m[2]))}", text)
    return Fault(KINDS[error.kind], text, tuple(error.block), error.thread, error.line)


def _taken(probes: Probes | None) -> bytes:
    """The bytes of the probes, whose memory is given back."""
    if probes is None or not probes.data:
        return b""
    data = ctypes.string_at(probes.data, probes.length)
    libc = ctypes.CDLL(None)
    libc.free(ctypes.c_void_p(probes.data))
    return data


# ---- building --------------------------------------------------------------------------------------------------


def build(cuda_text: str, kernel_names: Sequence[str], counted: bool = False) -> Library:
    """Build emitted text for this CPU; the result is kept on disk by text, twin headers, compiler and flags.

    With `counted` the library can count memory accesses by line, and is slower.
    Raises EmulatorUnavailable without a compiler and EmulatorBuildError with its output when it rejects the text.
    """
    compiler, version = _compiler(config().cxx)
    lines = cuda_text.count("\n") + 1 if counted else 0
    text = prepared(cuda_text, counted)
    parts = (text, *kernel_names, twin_text(), version, *FLAGS, *OBJECT_FLAGS, platform.machine())
    key = "emulator/" + hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache = open_cache()
    found = _private.get(key) or _loaded(cache.file(key), lines)
    if found is not None:
        return found
    entries = "".join(f"TS_TWIN_ENTRY({name})\n" for name in kernel_names)
    with tempfile.TemporaryDirectory(prefix="tessera-build-") as folder:
        before, twin = "", []
        if text.startswith(_INCLUDE):  # else it says first what the twin is to be compiled for
            before, twin = f'#include "{TWIN}"\n', [OBJECT]
            put_twin(Path(folder), compiler, version)
        (Path(folder) / "kernel.cu").write_text(text, encoding="utf-8")
        (Path(folder) / "entry.cpp").write_text(f'{before}#include "kernel.cu"\n{entries}', encoding="utf-8")
        headers = f"-I{twin_include_directory()}"
        compile_in(Path(folder), compiler, headers, "entry.cpp", *twin, "-o", "kernel.so", "-lm")
        cache.put(key, (Path(folder) / "kernel.so").read_bytes())
        found = _loaded(cache.file(key), lines)
        if found is None:  # nothing can be stored, or nothing can be executed from there
            found = _private[key] = Library(Path(folder) / "kernel.so", lines)  # stays mapped when the folder goes
    return found


_INCLUDE = f'#include "{DEVICE_HEADER_NAME}"\n'

# Libraries that the disk cache did not take, for the life of the process.
_private: dict[str, Library] = {}


def _loaded(path: Path | None, lines: int) -> Library | None:
    """The library in a checked file; None without one, and where another process evicted it at this moment."""
    if path is None:
        return None
    try:
        return Library(path, lines)
    except OSError:
        return None


@cache
def _compiler(name: str) -> tuple[str, str]:
    """Path and version text of the host compiler."""
    path = shutil.which(name)
    if path is None:
        raise EmulatorUnavailable(name)
    return path, subprocess.run([path, "--version"], capture_output=True, text=True).stdout
