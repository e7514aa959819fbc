"""Other processes that lower points: each is a fresh interpreter that reads requests and answers on its pipes.

They are started as commands, not forked and not by `multiprocessing`: the caller may hold a CUDA context, and its main
module may be a script that must not run again.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tessera.errors import InternalError
from tessera.search.lowering import Lowering, Request, Setting

PACKAGE_FOLDER = Path(__file__).parents[2]


class Workers:
    """A context: leaving it ends the processes. `texts`: Tile IR of each module that a request may name."""

    def __init__(self, count: int, texts: Sequence[str], setting: Setting) -> None:
        self._texts, self._setting, self._count = list(texts), setting, count
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        path = os.pathsep.join(filter(None, (str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH"))))
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, "-c", "from tessera.search.workers import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
            self._all.append(process)
            _send(process.stdin, (self._texts, self._setting))
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self._count)
        return self

    def __exit__(self, *failure: object) -> None:
        self._threads.shutdown()
        for process in self._all:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait()

    def map(self, method: str, requests: Sequence[Request]) -> list[Any]:
        """`Lowering.<method>` of each request, in order. Raises what it raises."""
        return list(self._threads.map(lambda request: self._ask(method, request), requests))

    def _ask(self, method: str, request: Request) -> Any:
        process = self._idle.get()
        try:
            _send(process.stdin, (method, request))
            good, answer = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError):
            raise InternalError("TS901", "a process that lowers schedules has ended") from None
        finally:
            self._idle.put(process)
        if not good:
            raise answer
        return answer


def _send(stream: Any, message: Any) -> None:
    pickle.dump(message, stream)
    stream.flush()


def serve(source: Any, answers: Any) -> None:
    """Answers requests until there are no more."""
    texts, setting = pickle.load(source)
    lowering = Lowering(texts, setting)
    while True:
        try:
            method, request = pickle.load(source)
        except EOFError:
            return
        try:
            answer = True, getattr(lowering, method)(request)
        except Exception as error:  # raised again where the request came from
            answer = False, error
        _send(answers, answer)


def main() -> None:
    """The life of a process."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing that is printed may come between the answers
    serve(sys.stdin.buffer, answers)


__all__ = ["Workers", "serve"]
