"""The pages of settings and of the command line."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from dataclasses import fields

import click

from tessera import config
from tessera.cli import cli
from tools.reference import text

SETTINGS = """
Tessera reads these environment variables, once, at the first use, and nothing else from the environment. A variable
that is set but empty counts as unset; one that starts with `TESSERA_` and is not in this list is an error (TS801), and
so is a value that does not fit.
"""

CLI = """
`tessera VERB ...`, or `python -m tessera VERB ...`. Every verb takes `--json`, which prints one strict JSON object and
nothing else on stdout. Exit code 0: all is well; 1: something is wrong with a kernel, a file's content or the machine;
2: the command itself is wrong.
"""


def comments() -> dict[str, str]:
    """By field of the configuration: what the comment on its line says."""
    source = inspect.getsource(config.Config)
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    return {
        node.target.id: by_line.get(node.lineno, "")
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def settings_page() -> str:
    said = comments()
    rows = []
    for field in fields(config.Config):
        meaning = said[field.name].replace("None:", "unset:")
        meaning = meaning.replace("BACKENDS", _listed(config.BACKENDS)).replace("DUMPS", _listed(config.DUMPS))
        meaning = meaning.replace("TUNES", _listed(config.TUNES))
        rows.append([f"`{config.PREFIX}{field.name.upper()}`", _default(field.default), text.sentence(meaning)])
    return text.page("Settings", SETTINGS, text.table(["variable", "default", "meaning"], rows))


def _default(value: object) -> str:
    return f"`{value}`" if value not in (None, frozenset()) else "unset"


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def cli_page() -> str:
    parts = [text.fence(_help(cli, "tessera"), "text")]
    for name, command in _commands(cli, "tessera"):
        parts.append(f"## {name}\n\n" + text.fence(_help(command, name), "text"))
    return text.page("The command line", CLI, *parts)


def _commands(group: click.Group, prefix: str) -> list[tuple[str, click.Command]]:
    """All commands under a group, with their full names, those of groups inside it too."""
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        found.append((f"{prefix} {name}", command))
        if isinstance(command, click.Group):
            found += _commands(command, f"{prefix} {name}")
    return found


def _help(command: click.Command, name: str) -> str:
    settings = {"help_option_names": ["-h", "--help"], "terminal_width": 100}
    return command.get_help(click.Context(command, info_name=name, **settings))
