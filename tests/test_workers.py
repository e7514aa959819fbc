"""Worker processes: results in order of queueing, crashes and delays that end one call, and nothing left behind."""

import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tessera.workers import WorkerProblem, Workers

ROOT = Path(__file__).parents[1]
HERE = "tests.worker_functions:behave"


def test_calls_and_crashes():
    with Workers(HERE, 1, limit=20) as workers:
        futures = [
            workers.submit(call)
            for call in (["echo", [1, None]], ["crash", 0], ["print", "x"], ["leave", 3], ["raise", "no"], ["echo", 2])
        ]
        assert futures[0].result()["value"] == [1, None]
        for future, sentence in ((futures[1], "signal 11"), (futures[3], "code 3"), (futures[4], "^no$")):
            with pytest.raises(WorkerProblem, match=sentence):
                future.result()
        assert futures[2].result()["value"] == "x" and futures[5].result()["value"] == 2
        pids = [futures[number].result()["pid"] for number in (0, 2, 5)]
        assert len(set(pids)) == 3 and os.getpid() not in pids


def test_a_call_that_hangs_is_ended():
    with Workers(HERE, 1, limit=4) as workers:
        hung, after = workers.submit(["sleep", 60]), workers.submit(["echo", 1])
        with pytest.raises(WorkerProblem, match="took more than 4 s"):
            hung.result()
        pid = after.result()["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_closing_ends_what_runs():
    workers = Workers(HERE, 1, limit=60)
    running, queued = workers.submit(["sleep", 60]), workers.submit(["echo", 1])
    while not workers._running:
        time.sleep(0.01)
    start = time.perf_counter()
    workers.close()
    assert time.perf_counter() - start < 20
    with pytest.raises((WorkerProblem, CancelledError)):
        running.result()
    with pytest.raises((WorkerProblem, CancelledError)):
        queued.result()


def test_the_caller_s_script_is_not_run_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tessera.workers import Workers\n"
        "print('once')\n"
        "with Workers('json:dumps', 2, 20) as workers:\n"
        "    print(workers.submit([1, 2]).result())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n[1, 2]\n"
