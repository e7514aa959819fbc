"""What the tests of every verb share."""

import gc
import os

# Before NumPy is imported: threads of its own that wait for work take a seventh of the time of the other workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from tessera import cli
from tessera.config import of_environment


def pytest_collection_modifyitems(config, items):
    """What is marked `full` is one of many that are alike: it runs with `-m full` alone."""
    if "full" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="one of many alike: run with -m full"))


def pytest_collection_finish(session):
    """What is collected lives to the end, and so does much that tests make: to walk it again and again, as Python does
    by default, takes a sixth of a run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(300_000, 10, 20)


@pytest.fixture
def tessera(capsys):
    """Runs the command line in this process; `(exit code, stdout, stderr)`."""

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def backend(monkeypatch):
    """Makes a lane that of every call from there on."""

    def choose(name):
        monkeypatch.setenv("TESSERA_BACKEND", name)
        of_environment.cache_clear()

    yield choose
    of_environment.cache_clear()


@pytest.fixture(params=["interpret", "emulate"])
def lane(request, backend):
    """Each lane that runs on a CPU, and calls go to it."""
    backend(request.param)
    return request.param
