"""What `FILE[::NAME]` stands for: kernels and functions of a Python file or a markdown document, or textual IR."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

from tessera.errors import ArgumentError, SourceError, TesseraError, did_you_mean
from tessera.frontend.definition import FunctionDefinition, KernelDefinition
from tessera.frontend.document import LoadedDocument, bound_names, load_document
from tessera.frontend.inference import Actual
from tessera.ir.core import Kernel, Module

IR_SUFFIX = ".tsir"


@dataclass(frozen=True)
class Target:
    """One kernel or function to work on: one of `definition` (a kernel), `function`, `module` (textual IR) and `error`
    (it did not load) is set.

    `args` are the texts of `--arg` by name: a verb takes from them the lengths of lists. `shapes` are the options
    `--shape`, for open parameters of functions.
    """

    name: str
    definition: KernelDefinition | None = None
    module: Module | None = None
    error: TesseraError | None = None
    args: dict[str, str] = field(default_factory=dict)
    function: FunctionDefinition | None = None
    shapes: dict[str, Actual] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """What a target stands for. `failures`: errors of statements that define no function, such as an import."""

    items: list[Target]
    failures: list[TesseraError] = field(default_factory=list)


def split(text: str) -> tuple[str, str | None]:
    """`FILE::NAME` in its two parts; NAME is None for a whole file. Raises ArgumentError TS605 for an empty part."""
    file, separator, name = text.rpartition("::")
    if not separator:
        return text, None
    if not file or not name:
        raise ArgumentError("TS605", f"'{text}' is not FILE or FILE::NAME")
    return file, name


def resolve(text: str) -> Targets:
    """The kernel that a target names, or every kernel of its file, with those that could not be loaded.

    Raises ArgumentError TS103 for something that is no file of a known kind and TS104 for an unknown name or a file
    without kernels, SourceError for the one kernel that is asked for and did not load, or for text that is no IR.
    """
    file, name = split(text)
    if Path(file).suffix.lower() == IR_SUFFIX:
        return _from_ir(file, name)
    loaded = load_document(file)
    if name is None:
        return _all_of(loaded)
    return Targets([_named(loaded, name)])


def resolve_one(text: str) -> Target:
    """The single kernel that a target names; a file that defines only one need not name it."""
    targets = resolve(text).items
    if len(targets) > 1:
        names = ", ".join(target.name for target in targets)
        raise ArgumentError("TS104", f"{text} defines several kernels; name one as {text}::NAME (it defines {names})")
    target = targets[0]
    if target.error is not None:
        raise target.error
    return target


def read_ir(path: str) -> Module:
    """The module in a file of textual IR. Raises ArgumentError TS103 and, for its text, SourceError TS701 to TS703."""
    from tessera.ir.parser import parse_module
    from tessera.ir.verify import verify

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError("TS103", f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ArgumentError("TS103", f"{path} is not text") from None
    module = parse_module(text, path)
    verify(module)
    return module


def _from_ir(file: str, name: str | None) -> Targets:
    module = read_ir(file)
    kernels = [kernel for kernel in module.kernels if name in (None, kernel.name)]
    if not kernels:
        names = [kernel.name for kernel in module.kernels]
        raise _no_such_name(file, name, names) if names else _nothing(file)
    return Targets([Target(kernel.name, module=_only(module, kernel)) for kernel in kernels])


def _only(module: Module, kernel: Kernel) -> Module:
    return Module(module.level, [kernel])


def _all_of(loaded: LoadedDocument) -> Targets:
    """Every kernel and function of a file in the order in which they are written, those that failed to load too."""
    names = _names(loaded)
    targets: list[Target] = []
    seen: set[int] = set()
    for name, (_, is_import, _) in names.items():
        value = loaded.namespace.get(name) if name in loaded.sources else None
        # An imported kernel belongs to another file, and a second name of a kernel is not another kernel.
        if isinstance(value, (KernelDefinition, FunctionDefinition)) and not is_import and id(value) not in seen:
            seen.add(id(value))
            targets.append(_target_of(name, value))
    others = []
    for failure in loaded.failures:
        lost = [name for name in failure.names if name in names and names[name][2]]
        targets += [Target(name, error=failure.error) for name in lost]
        others += [] if lost else [failure.error]
    if not targets:
        raise others[0] if others else _nothing(loaded.path)
    return Targets(sorted(targets, key=lambda target: names[target.name][0]), others)


def _names(loaded: LoadedDocument) -> dict[str, tuple[int, bool, bool]]:
    """By name that the file binds: its line, whether an import binds it, and whether a `def` does.

    A block that Python cannot read counts as the functions that it seems to define.
    """
    names: dict[str, tuple[int, bool, bool]] = {}
    for block in loaded.document.blocks:
        try:
            body = block.tree.body
        except SourceError as error:
            names |= dict.fromkeys(block.defines, (error.loc.line if error.loc else block.first_line, False, True))
            continue
        for node in body:
            kind = isinstance(node, (ast.Import, ast.ImportFrom)), isinstance(node, ast.FunctionDef)
            names |= dict.fromkeys(bound_names(node), (node.lineno, *kind))
    return names


def _nothing(path: str) -> ArgumentError:
    return ArgumentError("TS104", f"{path} defines no kernel")


def _target_of(name: str, value: KernelDefinition | FunctionDefinition) -> Target:
    if isinstance(value, KernelDefinition):
        return Target(name, definition=value)
    return Target(name, function=value)


def _named(loaded: LoadedDocument, name: str) -> Target:
    kernels = [target.name for target in _all_of(loaded).items]
    if name not in loaded and loaded.lost(name) is None:
        raise _no_such_name(loaded.path, name, kernels)
    value = loaded[name]  # raises the recorded error of a definition that failed
    if not isinstance(value, (KernelDefinition, FunctionDefinition)):
        raise ArgumentError(
            "TS104", f"'{name}' of {loaded.path} is not a kernel (its kernels are {', '.join(kernels)})"
        )
    target = _target_of(name, value)
    if target.error is not None:
        raise target.error
    return target


def _no_such_name(path: str, name: str | None, names: list[str]) -> ArgumentError:
    hint = did_you_mean(name or "", names)
    return ArgumentError("TS104", f"{path} defines no kernel '{name}' (it defines {', '.join(names)}){hint}")
