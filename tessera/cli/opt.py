"""`tessera opt`: passes on textual IR, for a person who edits a dump and wants to see what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tessera.cli import report
from tessera.cli.target import IR_SUFFIX, read_ir
from tessera.errors import ArgumentError


def opt(file: str, passes: tuple[str, ...], arch: str | None, output: str | None, as_json: bool) -> int:
    from tessera.compiler import run_passes
    from tessera.ir.printer import print_module
    from tessera.runtime.api import choose_arch

    if Path(file).suffix.lower() != IR_SUFFIX:
        raise ArgumentError("TS103", f"{file} is not textual IR ({IR_SUFFIX})")
    module = run_passes(read_ir(file), passes, choose_arch(arch))
    text = print_module(module)
    if output is not None:
        write(Path(output), text)
    if as_json:
        result: dict[str, Any] = {"ok": True, "target": file, "passes": list(passes), "level": module.level}
        report.print_json(result | ({"file": output} if output else {"text": text}))
    elif output is None:
        report.code(text, "text")
    return report.OK


def write(path: Path, content: str | bytes) -> None:
    """Writes a result; raises ArgumentError TS605 when the file system does not let it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ArgumentError("TS605", f"{path} cannot be written: {error.strerror or error}") from None
