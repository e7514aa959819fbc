"""The console blocks of hand-written pages: `$ tessera ...` lines are run, and their output is put under them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from unittest import mock

BLOCK = re.compile(r"^```(?:console)?\n(\$ tessera .*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run: durations.
TIMING = re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(s|ms|us)\b")


def refresh(page: str) -> str:
    """The page with the outputs that its commands have now. Where only timings differ, what is written stays."""
    return BLOCK.sub(lambda found: f"```\n{_block(found[1])}```", page)


def commands(page: str) -> list[str]:
    """The commands of a page's console blocks, in order."""
    return [line[2:] for block in BLOCK.findall(page) for line in block.splitlines() if line.startswith("$ ")]


def mask(output: str) -> str:
    return TIMING.sub("TIME", output)


def _block(block: str) -> str:
    parts = re.split(r"^(\$ .*\n)", block, flags=re.MULTILINE)[1:]
    shown = ""
    for command, written in zip(parts[::2], parts[1::2], strict=True):
        output = run(command[2:].strip())
        shown += command + (written if mask(written.strip()) == mask(output.strip()) else output.rstrip() + "\n")
    return shown


@contextlib.contextmanager
def plain_environment() -> Iterator[None]:
    """Settings as on a machine without any, and without a GPU: what pages show must not depend on who makes them."""
    from tessera import config

    plain = {name: value for name, value in os.environ.items() if not name.startswith(config.PREFIX)}
    plain |= {"TESSERA_BACKEND": "interpret", "TESSERA_ARCH": "sm_80"}
    with mock.patch.dict(os.environ, plain, clear=True):
        config.of_environment.cache_clear()
        try:
            yield
        finally:
            config.of_environment.cache_clear()


@cache
def run(command: str) -> str:
    """What `tessera ...` prints on both streams."""
    from tessera import cli

    arguments = shlex.split(command)
    assert arguments[0] == "tessera", command
    stream = io.StringIO()
    with plain_environment(), contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        cli.main(arguments[1:])
    return stream.getvalue()
