"""Compiles candidates several at a time, each in a process of its own kind: a crash of ptxas ends one candidate."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tessera.program import Program
from tessera.runtime import programs
from tessera.runtime.cache import open_cache
from tessera.runtime.nvrtc import Resources, compile_cubin, parse_resources
from tessera.workers import Workers

# Turns of about a microsecond that a thread waits for copies, in the program that only checks run: kernels take less.
SPIN_LIMIT = 1 << 20
LIMITED = (f"-DTS_SPIN_LIMIT={SPIN_LIMIT}",)
WAITS = "ts_mbarrier_wait("  # what such a wait is called
LIMIT = 30.0  # seconds that one candidate may take: ptxas takes minutes on some, and those are not worth waiting for
ENTRY = "tessera.runtime.autotune_compile:compile_json"


@dataclass(frozen=True)
class Built:
    """A program with its machine code, and what ptxas gave each of its kernels.

    `limited`: where it waits for copies by counting what they bring, which may never come, the same text compiled so
    that it ends then too.
    """

    program: Program
    resources: dict[str, Resources]
    limited: Program | None = None

    @property
    def registers(self) -> int | None:
        """Of a thread of the kernel that needs most; None where ptxas said nothing."""
        return max((found.registers for found in self.resources.values()), default=None)

    @property
    def spill_bytes(self) -> int | None:
        found = [resources.spill_stores + resources.spill_loads for resources in self.resources.values()]
        return sum(found) if found else None


class Compiler(Protocol):
    """What tuning asks of a compiler. The future of a text that is rejected raises RuntimeError with a sentence."""

    def submit(self, program: Program) -> Future[Built]: ...

    def close(self) -> None: ...


class ParallelCompiler:
    """NVRTC in `count` processes, by default one per core; results go to the disk cache, where calls find them."""

    def __init__(self, count: int | None = None) -> None:
        self._workers = Workers(ENTRY, count or os.cpu_count() or 1, LIMIT)

    def submit(self, program: Program) -> Future[Built]:
        known = programs.with_cubin_if_known(program)
        log, limited = (open_cache().get(key) for key in (_log_key(program), _limited_key(program)))
        waits = WAITS in program.cuda
        if known is not None and log is not None and (limited is not None or not waits):
            done: Future[Built] = Future()
            other = None if limited is None else replace(program, cubin=limited)
            done.set_result(Built(known, parse_resources(log.decode()), other))
            return done
        argument = {"source": program.cuda, "arch": program.arch, "name": program.name, "limited": waits}
        return _then(self._workers.submit(argument), lambda answer: _built(program, answer))

    def close(self) -> None:
        self._workers.close()


def _built(program: Program, answer: dict[str, str]) -> Built:
    made = replace(program, cubin=base64.b64decode(answer["cubin"]))
    programs.keep(made)
    open_cache().put(_log_key(program), answer["log"].encode())
    limited = None
    if "limited" in answer:
        limited = replace(program, cubin=base64.b64decode(answer["limited"]))
        open_cache().put(_limited_key(program), limited.cubin)
    return Built(made, parse_resources(answer["log"]), limited)


def _log_key(program: Program) -> str:
    return programs.program_key(program).replace("program/", "log/")


def _limited_key(program: Program) -> str:
    return programs.program_key(program).replace("program/", "limited/")


def _then(future: Future[Any], change: Callable[[Any], Built]) -> Future[Built]:
    """The future of `change` of what another one gives."""
    made: Future[Built] = Future()

    def finish(found: Future[Any]) -> None:
        if found.cancelled():
            made.cancel()
            return
        try:
            made.set_result(change(found.result()))
        except Exception as error:  # whoever asks for the result decides
            made.set_exception(error)

    future.add_done_callback(finish)
    return made


def compile_json(argument: dict[str, Any]) -> dict[str, str]:
    """What a process does: CUDA text to a cubin and the log of ptxas, and to one with `LIMITED`. Raises NvrtcError."""
    text = argument["source"], argument["arch"], argument["name"]
    made = compile_cubin(*text)
    found = {"cubin": base64.b64encode(made.cubin).decode(), "log": made.log}
    if argument["limited"]:
        found["limited"] = base64.b64encode(compile_cubin(*text, LIMITED).cubin).decode()
    return found


__all__ = ["LIMITED", "Built", "Compiler", "ParallelCompiler", "compile_json"]
