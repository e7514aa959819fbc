"""The text law: a module is what its text says. Most passes give back the kernel itself, which is held to it once."""

from functools import lru_cache

from tessera.ir.compare import difference
from tessera.ir.core import Module
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module


def held_to_its_text(module: Module, what: str) -> str:
    """The text of a module, which parses to it; `what` made it."""
    global _last
    if _last is not None and (_last[0].level, _last[0].kernels) == (module.level, module.kernels):  # the very same
        return _last[1]
    text = print_module(module)
    assert difference(module, _parsed(text)) is None, f"after {what} the text parses to something else"
    _last = (module, text)
    return text


_last: tuple[Module, str] | None = None


@lru_cache(maxsize=8)
def _parsed(text: str) -> Module:
    again = parse_module(text)
    assert print_module(again) == text
    return again
