"""Python processes that run one function each on plain data, several at a time, for work that may crash or hang.

They are plain subprocesses that talk JSON over pipes, not `multiprocessing`: that would import the caller's own script
in every process again, and a script that calls a kernel need not be written for it. A process that dies ends one call,
and the next call starts another.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

_ROOT = str(Path(__file__).parents[1])  # the processes import the package that this one has
_START = "import sys; sys.path.insert(0, sys.argv[1]); from tessera import workers; workers.serve(sys.argv[2])"


class WorkerProblem(RuntimeError):
    """A call that gave no result: what the function raised, or how its process ended, as one sentence."""


class Workers:
    """`count` processes for the function "module:name", which takes a JSON value and returns one.

    A call may take `limit` seconds; then its process is killed. Processes start when they are first needed.
    """

    def __init__(self, function: str, count: int, limit: float) -> None:
        self.function, self.limit = function, limit
        self._threads = ThreadPoolExecutor(max_workers=max(count, 1), thread_name_prefix="tessera-worker")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def submit(self, argument: Any) -> Future[Any]:
        """Queues a call, first in, first out. The future raises WorkerProblem."""
        return self._threads.submit(self._call, argument)

    def close(self) -> None:
        """Ends every process, also in the middle of a call, and drops what is queued."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._running:
            process.wait()
            _close_pipes(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, argument: Any) -> Any:
        process = self._process()
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.limit, end)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(argument).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self._own.process = None
            raise WorkerProblem(f"took more than {self.limit:.0f} s" if late.is_set() else _ending(process))
        answer = json.loads(line)
        if "problem" in answer:
            raise WorkerProblem(answer["problem"])
        return answer["result"]

    def _process(self) -> subprocess.Popen[bytes]:
        """The process of this thread."""
        process = getattr(self._own, "process", None)
        if process is None:
            with self._lock:
                if self._closed:
                    raise WorkerProblem("the workers were closed")
                command = [sys.executable, "-c", _START, _ROOT, self.function]
                process = self._own.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                self._running.add(process)
        return process


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"its process ended with signal {-code}" if code < 0 else f"its process ended with code {code}"


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not yet written
                pass


def serve(name: str) -> None:
    """The life of a process: answers calls, a line each, until its input ends."""
    # What the function, or a library under it, prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    for line in sys.stdin.buffer:
        try:
            answer: dict[str, Any] = {"result": function(json.loads(line))}
        except Exception as error:  # the caller decides what it means
            answer = {"problem": str(error) or type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


__all__ = ["WorkerProblem", "Workers", "serve"]
