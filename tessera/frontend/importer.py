"""An import hook: after `install()`, `import mymodule` accepts files that use keywords as attribute names.

Without it Python rejects such a file before any of its decorators could run. A file that Python can read is imported
as ever; only one that it cannot is rewritten and tried again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import CodeType, ModuleType
from typing import Any

from tessera.frontend.document import parse_document, register


class _RewritingLoader(SourceFileLoader):
    _rewritten = False

    # typeshed gives the data any of several buffer or tree types; a source loader passes the bytes of the file.
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        try:
            return super().source_to_code(data, path, _optimize=_optimize)  # type: ignore[call-arg]
        except SyntaxError:
            document = parse_document(str(path), decode_source(data))
            block = document.blocks[0]
            if not block.columns.inserted:
                raise
            tree = block.tree
            self._rewritten = True
            register(document)
            return compile(tree, str(path), "exec", dont_inherit=True, optimize=_optimize)

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        # A cached .pyc would be loaded without the rewritten text, which inspect.getsource then could not show.
        if not self._rewritten:
            super().set_data(path, data, _mode=_mode)


class _Finder:
    """Finds what Python's own path finder finds, and gives plain source files the rewriting loader."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _RewritingLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Turns the hook on for this process; a second call changes nothing."""
    if _Finder not in sys.meta_path:
        # Just before the finder that it stands for: hooks that others put in front keep their turn.
        position = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
        sys.meta_path.insert(position, _Finder)  # type: ignore[arg-type]


def uninstall() -> None:
    """Turns the hook off; modules that are already imported stay."""
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)  # type: ignore[arg-type]
