"""Targets: a markdown document whose Python blocks form one module, or a Python file, with locations the author knows.

Every statement of a target runs by itself. Where that is wanted, one that fails is remembered under the names that it
should have defined, so that a kernel loads although another part of its document cannot; asking for a lost name
raises the error that lost it.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import re
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from tessera.errors import ArgumentError, SourceError, TesseraError, did_you_mean
from tessera.frontend.source import ColumnMap, node_loc, parse_source, rewrite_keyword_attributes
from tessera.location import Loc

_MARKDOWN = (".md", ".markdown")
_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_OWN_SCOPE = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DEFINITION = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One piece of Python of a document: `number` counts from 1, `first_line` is the line of its first line of code."""

    number: int
    file: str
    first_line: int
    text: str  # rewritten, without the indentation of its fence
    columns: ColumnMap

    @cached_property
    def tree(self) -> ast.Module:
        """Positions are those of the document. Raises SourceError TS101."""
        return parse_source(self.text, self.file, self.first_line, self.columns)

    @cached_property
    def functions(self) -> tuple[ast.FunctionDef, ...]:
        """Every `def` of the block, those inside others too. Raises SourceError TS101."""
        return tuple(node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))

    @cached_property
    def defines(self) -> frozenset[str]:
        """Names that the block binds; when it cannot be parsed, its functions and classes as far as they show."""
        try:
            return frozenset(name for statement in self.tree.body for name in bound_names(statement))
        except SourceError:
            return frozenset(_DEFINITION.findall(self.text))


@dataclass(frozen=True)
class Document:
    """A target as written. `text` is the original, `blocks` its code in order (a Python file is one block)."""

    path: str
    text: str
    blocks: tuple[Block, ...]

    def blocks_defining(self, name: str) -> list[Block]:
        return [block for block in self.blocks if name in block.defines]

    @property
    def code(self) -> str:
        """The rewritten code of all blocks on its own lines, and nothing on the others."""
        lines: list[str] = []
        for block in self.blocks:
            lines += [""] * (block.first_line - 1 - len(lines))
            lines += block.text.split("\n")
        return "\n".join(lines)


@dataclass(frozen=True)
class Failure:
    """A statement that raised: the names that it would have bound, and why it did not."""

    names: tuple[str, ...]
    error: TesseraError


@dataclass
class LoadedDocument:
    """A document after it ran. `sources` holds the original text of the statement that defined each name."""

    document: Document
    namespace: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.document.path

    def lost(self, name: str) -> TesseraError | None:
        """The error that kept `name` from being defined; the last one, if a name was tried more than once."""
        if name in self.sources:
            return None
        return next((failure.error for failure in reversed(self.failures) if name in failure.names), None)

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __getitem__(self, name: str) -> Any:
        """The value that the document gave to `name`.

        Raises the recorded error when its statement failed, and ArgumentError TS104 when there is no such name.
        """
        error = self.lost(name)
        if error is not None:
            raise error
        if name not in self.sources:
            names = [known for known in self.sources if not isinstance(self.namespace.get(known), ModuleType)]
            hint = did_you_mean(name, names)
            raise ArgumentError("TS104", f"{self.path} defines no '{name}' (it defines {', '.join(names)}){hint}")
        return self.namespace[name]


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A function's definition. `node` has the original positions: 1-based lines, 0-based character columns.

    `text` is the original text of the whole file; `columns` is already applied to `node`.
    """

    node: ast.FunctionDef
    file: str
    columns: ColumnMap
    text: str

    def loc(self, node: ast.AST) -> Loc:
        return node_loc(node, self.file)


_documents: dict[str, Document] = {}  # by file name: what was executed, whatever the file holds now


def read_document(path: str | Path) -> Document:
    """Reads a markdown document or a Python file; raises ArgumentError TS103 when it is neither or cannot be read."""
    file = str(path)
    suffix = Path(file).suffix.lower()
    if suffix != ".py" and suffix not in _MARKDOWN:
        raise ArgumentError("TS103", f"{file} is neither a Python file (.py) nor a markdown document (.md)")
    try:
        if suffix == ".py":
            with tokenize.open(file) as stream:  # honours an encoding comment
                text = stream.read()
        else:
            text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArgumentError("TS103", f"{file} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, SyntaxError) as error:
        raise ArgumentError("TS103", f"{file} cannot be read as text: {error}") from None
    return parse_document(file, text)


def parse_document(path: str, text: str) -> Document:
    """Splits `text` into blocks: the fenced ```python blocks of a markdown document, else all of it as one block.

    Raises ArgumentError TS103 for a markdown document without a Python block.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if Path(path).suffix.lower() not in _MARKDOWN:
        rewritten = rewrite_keyword_attributes(text)
        return Document(path, text, (Block(1, path, 1, rewritten.text, rewritten.columns),))
    blocks = tuple(_markdown_blocks(path, text))
    if not blocks:
        raise ArgumentError("TS103", f"{path} has no ```python block")
    return Document(path, text, blocks)


def execute(
    document: Document,
    prelude: dict[str, Any] | None = None,
    *,
    tolerant: bool = False,
    only: Iterable[int] | None = None,
) -> LoadedDocument:
    """Runs the blocks of `document`, or those numbered in `only`, in order in one namespace that starts as `prelude`.

    Raises SourceError at the author's line: TS101 for Python that cannot be parsed, TS106 for a name that another
    block defines, TS105 for any other exception of the author's code; a TesseraError passes with its location filled
    in. With `tolerant` these are recorded in `failures` and the next statement runs.
    """
    # Dataclasses and pickling look a module up by name; the prefix keeps a document called `random` from hiding one.
    module = ModuleType("tessera_document_" + re.sub(r"\W", "_", Path(document.path).stem))
    sys.modules[module.__name__] = module
    module.__dict__.update(prelude or {}, __file__=document.path, __document__=document)
    register(document)
    loaded = LoadedDocument(document, module.__dict__)
    chosen = None if only is None else set(only)
    for block in document.blocks:
        if chosen is not None and block.number not in chosen:
            continue
        try:
            body = block.tree.body
        except SourceError as error:
            _fail(loaded, tuple(sorted(block.defines)), error, tolerant)
            continue
        _run_block(loaded, block, body, tolerant)
    return loaded


def load_document(path: str | Path, prelude: dict[str, Any] | None = None, *, tolerant: bool = True) -> LoadedDocument:
    """Reads and runs a target; see `read_document` and `execute` for what is raised."""
    return execute(read_document(path), prelude, tolerant=tolerant)


def register(document: Document) -> None:
    """Lets `function_source`, `read_source_line` and `inspect.getsource` see this text under the document's path."""
    _documents[document.path] = document
    code = document.code
    # Without a modification time linecache never replaces the entry by the file on disk, which Python cannot read.
    lines = [line + "\n" for line in code.split("\n")]
    linecache.cache[document.path] = (len(code), None, lines, document.path)


def read_source_line(file: str, line: int) -> str:
    """The line as the author wrote it, or an empty string; the reader to pass to `tessera.errors.render`."""
    document = _documents.get(file)
    if document is None:
        return linecache.getline(file, line).rstrip("\n")
    lines = document.text.split("\n")
    return lines[line - 1] if 1 <= line <= len(lines) else ""


def function_source(function: Any) -> FunctionSource:
    """The definition of a Python function that came from a document, a file, or an interactive cell.

    Raises SourceError TS107 when its text is not to be had or has changed since the function was defined, and TS102
    for a lambda or a coroutine, which are not kernels.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        raise SourceError("TS107", f"{function!r} is not a Python function, so it has no source")
    document = _document_of(function, code)
    for block in document.blocks:
        for node in block.functions:
            if node.name == code.co_name and _starts(node, code.co_firstlineno):
                return FunctionSource(node, document.path, block.columns, document.text)
    loc = Loc(code.co_filename, code.co_firstlineno)
    if code.co_name == "<lambda>" or code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        raise SourceError("TS102", f"'{code.co_name}' must be defined with a plain def", loc)
    raise SourceError("TS107", f"'{code.co_name}' is no longer on this line: the file changed after it was loaded", loc)


def bound_names(statement: ast.stmt) -> tuple[str, ...]:
    """Names that a top-level statement binds in its module."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return (statement.name,)
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return tuple(alias.asname or alias.name.split(".")[0] for alias in statement.names)
    return tuple(dict.fromkeys(_bound_inside(statement)))


def _bound_inside(node: ast.AST) -> Iterable[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name):
            if isinstance(child.ctx, ast.Store):
                yield child.id
        elif isinstance(child, ast.stmt):
            yield from bound_names(child)
        elif not isinstance(child, _OWN_SCOPE):
            yield from _bound_inside(child)


def _markdown_blocks(path: str, text: str) -> Iterable[Block]:
    lines = text.split("\n")
    index = number = 0
    while index < len(lines):
        opening = _FENCE.match(lines[index])
        index += 1
        if opening is None:
            continue
        first, fence = index, opening["fence"]
        closing = re.compile(rf"[ \t]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
        while index < len(lines) and not closing.fullmatch(lines[index]):
            index += 1
        language = opening["info"].split()[:1]
        if [word.lower() for word in language] in (["python"], ["py"]):
            number += 1
            yield _block(path, number, first + 1, lines[first:index], len(opening["indent"]))
        index += 1


def _block(path: str, number: int, first_line: int, lines: list[str], indent: int) -> Block:
    cuts = [min(indent, len(line) - len(line.lstrip(" \t"))) for line in lines]
    rewritten = rewrite_keyword_attributes("\n".join(line[cut:] for line, cut in zip(lines, cuts, strict=True)))
    columns = ColumnMap(
        {first_line - 1 + line: inserted for line, inserted in rewritten.columns.inserted.items()},
        {first_line + offset: cut for offset, cut in enumerate(cuts) if cut},
    )
    return Block(number, path, first_line, rewritten.text, columns)


def _run_block(loaded: LoadedDocument, block: Block, body: list[ast.stmt], tolerant: bool) -> None:
    flags = 0
    for statement in body:
        names = bound_names(statement)
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for alias in statement.names:
                flags |= getattr(getattr(__future__, alias.name, None), "compiler_flag", 0)
        try:
            code = _compile(statement, block, flags)
            exec(code, loaded.namespace)
        except Exception as error:  # the author's code may raise anything; all of it is reported at the author's line
            _fail(loaded, names, _as_source_error(error, loaded, block, statement), tolerant)
            continue
        text = _statement_text(loaded.document, statement)
        loaded.sources.update((name, text) for name in names if name in loaded.namespace)


def _compile(statement: ast.stmt, block: Block, flags: int) -> CodeType:
    try:
        return compile(ast.Module([statement], []), block.file, "exec", flags=flags, dont_inherit=True)
    except SyntaxError as error:  # found after parsing: `return` outside a function, a name both local and global
        loc = Loc(block.file, error.lineno or statement.lineno, error.offset or 1)
        raise SourceError("TS101", f"Python cannot read this line: {error.msg}", loc) from None


def _fail(loaded: LoadedDocument, names: tuple[str, ...], error: TesseraError, tolerant: bool) -> None:
    if not tolerant:
        raise error
    for name in names:  # an earlier definition of the name is not what the document says any more
        loaded.sources.pop(name, None)
    loaded.failures.append(Failure(names, error))


def _as_source_error(error: Exception, loaded: LoadedDocument, block: Block, statement: ast.stmt) -> TesseraError:
    loc = _authors_line(error.__traceback__, block.file) or node_loc(statement, block.file)
    if isinstance(error, TesseraError):
        return error.at(loc)
    message = f"{type(error).__name__}: {error}"
    result = SourceError("TS105", message, loc)
    if isinstance(error, NameError) and error.name:
        name = error.name
        lost = loaded.lost(name)
        elsewhere = [other for other in loaded.document.blocks_defining(name) if other.number != block.number]
        if lost is not None:
            result = SourceError("TS105", f"'{name}' is not defined because its definition failed: {lost}", loc)
        elif elsewhere:
            where = elsewhere[0]
            sentence = f"'{name}' is defined in block {where.number} (line {where.first_line}), which has not run"
            result = SourceError("TS106", sentence, loc)
    result.__cause__ = error
    return result


def _authors_line(traceback: TracebackType | None, file: str) -> Loc | None:
    """The innermost place of a traceback that lies in `file`."""
    found = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            found = traceback
        traceback = traceback.tb_next
    if found is None:
        return None
    code, instruction = found.tb_frame.f_code, found.tb_lasti // 2
    if sys.version_info >= (3, 11):
        line, end_line, column, end_column = list(code.co_positions())[instruction]
        if line is not None and column is not None and end_column is not None:
            return Loc(file, line, column + 1, end_line, end_column + 1)
    return Loc(file, found.tb_lineno)


def _statement_text(document: Document, statement: ast.stmt) -> str:
    first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
    return "\n".join(document.text.split("\n")[first - 1 : statement.end_lineno])


def _starts(node: ast.FunctionDef, line: int) -> bool:
    # co_firstlineno is the line of the first decorator.
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == line


def _document_of(function: Any, code: CodeType) -> Document:
    # The namespace knows the text that this very function came from, even when the path was loaded again since.
    document = function.__globals__.get("__document__")
    if not isinstance(document, Document) or document.path != code.co_filename:
        document = _documents.get(code.co_filename)
    if document is not None:
        return document
    # checkcache drops lines of a file that changed on disk; asking by module globals reaches zipped modules too.
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        message = f"the source of '{code.co_name}' is not to be had: {code.co_filename} is not a file"
        raise SourceError("TS107", message)
    return _parsed_file(code.co_filename, "".join(lines))


@lru_cache(maxsize=64)
def _parsed_file(path: str, text: str) -> Document:
    rewritten = rewrite_keyword_attributes(text)
    return Document(path, text, (Block(1, path, 1, rewritten.text, rewritten.columns),))
