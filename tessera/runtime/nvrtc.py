"""CUDA text to cubin and PTX through NVRTC, on machines with and without a GPU.

NVRTC is called directly rather than through ``cupy.RawModule``: RawModule needs a device, cannot name ``sm_90a`` and
adds ``-ftz=true`` unasked. CuPy only supplies the bindings, and is imported at the first compile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tessera.codegen_cuda.include import DEVICE_HEADER_NAME, device_header
from tessera.errors import EnvironmentProblem, InternalError

# No fast maths and no flush to zero: NVRTC's defaults (-ftz=false, -prec-div=true, -prec-sqrt=true) are the meaning
# of the language. -v makes ptxas report registers and spills in the program log.
# -no-cache: an NVRTC that answers from its own cache leaves out the resource report of ptxas.
BASE_OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v", "-no-cache")

# Counted by opcode prefix, in this order of presentation; one with two of them counts as the first. TMA's are the bulk
# copies.
COUNTED_OPCODES = (
    "mma.sync",
    "wgmma",
    "ldmatrix",
    "cp.async.bulk",
    "cp.async",
    "bar.sync",
    "ld.global",
    "st.global",
    "ld.shared",
    "st.shared",
)


class NvrtcUnavailable(EnvironmentProblem, RuntimeError):
    """CuPy or the NVRTC library cannot be loaded (TS506)."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            "TS506", f"the CUDA compiler NVRTC cannot be loaded ({cause}); pip install 'tessera[cuda12]' brings it"
        )


class NvrtcError(InternalError, RuntimeError):
    """NVRTC rejected emitted text (TS901). `log` is its full log."""

    def __init__(self, name: str, arch: str, log: str) -> None:
        errors = [line for line in log.splitlines() if "error" in line.lower()]
        first = (errors or log.strip().splitlines() or ["no log"])[0]
        super().__init__("TS901", f"NVRTC could not compile {name} for {arch}: {first.strip()}", notes=(log.strip(),))
        self.log = log


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel. Bytes are per thread, except `shared_bytes` (static shared memory, per block)."""

    registers: int
    shared_bytes: int
    spill_stores: int
    spill_loads: int
    stack: int


@dataclass(frozen=True)
class Compiled:
    """One compiled text. `seconds` is wall time inside NVRTC; `ptx` is None unless it was asked for."""

    cubin: bytes
    ptx: str | None
    log: str
    resources: dict[str, Resources] = field(default_factory=dict)
    seconds: float = 0.0


def compile_cubin(source: str, arch: str, name: str, options: Iterable[str] = (), want_ptx: bool = False) -> Compiled:
    """Compile emitted CUDA text for a real architecture (``sm_80``, ``sm_90a``); `name` appears in messages.

    Raises NvrtcUnavailable when CuPy or NVRTC is missing and NvrtcError with the log when the text is rejected.
    """
    nvrtc = load_nvrtc()
    start = time.perf_counter()
    program = _create_program(nvrtc, source, name)
    try:
        log = _compile_program(nvrtc, program, name, arch, (*BASE_OPTIONS, *options))
        cubin = nvrtc.getCUBIN(program)
        # CuPy takes the last byte of a cubin for a terminating NUL and drops it. Unlike the driver, nvdisasm minds.
        cubin += bytes(-len(cubin) % 8)
        # With a real architecture NVRTC keeps the PTX that it assembled, so no second compilation is needed.
        ptx = _text(nvrtc.getPTX(program)) if want_ptx else None
    finally:
        nvrtc.destroyProgram(program)
    return Compiled(cubin, ptx, log, parse_resources(log), time.perf_counter() - start)


def load_nvrtc() -> Any:
    """CuPy's NVRTC bindings, checked to work; raises NvrtcUnavailable."""
    try:
        from cupy.cuda import nvrtc as bindings

        nvrtc: Any = bindings  # an empty stand-in in a CuPy that was built without NVRTC
        nvrtc.getVersion()  # loads the shared library, which CuPy has only together with an NVRTC wheel
    except (ImportError, OSError, RuntimeError, AttributeError) as cause:
        raise NvrtcUnavailable(cause) from cause
    return nvrtc


def _create_program(nvrtc: Any, source: str, name: str) -> int:
    # The bindings take the source as str, but headers only as bytes.
    return nvrtc.createProgram(source, f"{name}.cu", [device_header().encode()], [DEVICE_HEADER_NAME.encode()])


def _compile_program(nvrtc: Any, program: int, name: str, arch: str, options: tuple[str, ...]) -> str:
    try:
        nvrtc.compileProgram(program, (f"-arch={arch}", *options))
    except nvrtc.NVRTCError as error:
        raise NvrtcError(name, arch, _text(nvrtc.getProgramLog(program)) or str(error)) from error
    return _text(nvrtc.getProgramLog(program))


def _text(value: str | bytes) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).rstrip("\0")


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_resources(log: str) -> dict[str, Resources]:
    """Resources of each kernel from the log of ``ptxas -v``; functions that are not kernels are left out."""
    resources: dict[str, Resources] = {}
    kernel: str | None = None
    described: str | None = None
    stack = (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            kernel, stack = match[1], (0, 0, 0)
        elif match := _PROPERTIES.search(line):
            described = match[1]
        elif (match := _STACK.search(line)) and described == kernel:
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _REGISTERS.search(line)) and kernel is not None:
            shared = _SHARED.search(line)
            resources[kernel] = Resources(
                registers=int(match[1]),
                shared_bytes=int(shared[1]) if shared else 0,
                spill_stores=stack[1],
                spill_loads=stack[2],
                stack=stack[0],
            )
            kernel = None
    return resources


def entry_text(ptx: str, kernel: str) -> str:
    """The part of a PTX text that is one kernel; emitted device functions are inlined into it."""
    starts = [(match.start(), match[1]) for match in re.finditer(r"^[^\n]*\.entry\s+(\w+)", ptx, re.MULTILINE)]
    ends = [*(place for place, _ in starts[1:]), len(ptx)]
    return next(ptx[place:end] for (place, name), end in zip(starts, ends, strict=True) if name == kernel)


# What goes with copies and products, and is none.
_BESIDE = re.compile(r"(cp\.async(\.bulk)?\.(commit|wait)|wgmma\.(fence|commit|wait))")
_OPCODE = re.compile(r"^\s*(?:\{\s*)?(?:@!?%\w+\s+)?([a-z][\w.:]*)", re.MULTILINE)


def count_instructions(ptx: str) -> dict[str, int]:
    """Static count of each of `COUNTED_OPCODES` in PTX text, with and without a predicate.

    ``cp.async`` and ``cp.async.bulk`` count copies, not commits and waits; ``wgmma`` products, not fences and waits.
    """
    counts: dict[str, int] = {prefix: 0 for prefix in COUNTED_OPCODES}
    for match in _OPCODE.finditer(ptx):
        opcode = match[1]
        if _BESIDE.match(opcode):
            continue
        # Later PTX versions print bar.sync as barrier.sync, and as barrier.cta.sync.
        opcode = re.sub(r"^barrier(\.cta)?\.", "bar.", opcode)
        for prefix in COUNTED_OPCODES:
            if opcode == prefix or opcode.startswith(prefix + "."):
                counts[prefix] += 1
                break
    return counts
