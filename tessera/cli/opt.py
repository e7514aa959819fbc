"""`tessera opt`: passes on textual IR, for a person who edits a dump and wants to see what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera.cli import report
from tessera.cli.target import IR_SUFFIX, read_ir
from tessera.compiler import find_arch, make_context, run_pass
from tessera.errors import ArgumentError, did_you_mean
from tessera.ir.core import Module
from tessera.ir.opdef import TILE
from tessera.ir.printer import print_module
from tessera.passes import PIPELINE
from tessera.runtime import api, execute, inputs


def opt(
    file: str, passes: tuple[str, ...], dims: str | None, arch: str | None, output: str | None, as_json: bool
) -> int:
    if Path(file).suffix.lower() != IR_SUFFIX:
        raise ArgumentError("TS103", f"{file} is not textual IR ({IR_SUFFIX})")
    _check_passes(passes)
    arch = api.choose_arch(arch)
    given = None if dims is None else inputs.parse_dims(dims)
    module = read_ir(file)
    modules = [_run(Module(module.level, [kernel]), passes, given, arch) for kernel in module.kernels]
    level = modules[0].level if modules else module.level
    text = print_module(Module(level, [kernel for done in modules for kernel in done.kernels]))
    if output is not None:
        write(Path(output), text)
    if as_json:
        result: dict[str, Any] = {"ok": True, "target": file, "lane": None, "arch": arch, "dims": given or {}}
        result |= {"passes": list(passes), "level": level}
        report.print_json(result | ({"file": output} if output else {"text": text}))
    elif output is None:
        report.code(text, "text")
    return report.OK


def _check_passes(passes: Sequence[str]) -> None:
    names = [step.name for step in PIPELINE]
    for name in passes:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ArgumentError("TS605", f"there is no pass '{name}' (there are {', '.join(names)}){hint}")


def _run(module: Module, passes: Sequence[str], given: dict[str, int] | None, arch: str) -> Module:
    """The passes in the given order on a module of one kernel. Dims are chosen as `tessera run` chooses them."""
    kernel = module.kernel()
    names = inputs.dims_of(execute.parameters_of(kernel))
    sizes = inputs.choose_dims(kernel.name, names, given)
    attributes = kernel.attributes
    context = make_context(kernel, find_arch(arch), sizes, attributes.get("alignment"), attributes.get("divisors"))
    for name in passes:
        place = next(index for index, step in enumerate(PIPELINE) if step.name == name)
        wanted = PIPELINE[place - 1].level if place else TILE
        if module.level != wanted:
            message = (
                f"the pass {name} takes {wanted}-level IR, and '{kernel.name}' is at the {module.level} level there"
            )
            raise ArgumentError("TS605", message)
        module = run_pass(PIPELINE[place], module, context)
    return module


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
