"""Where a piece of a program was written: what lets every message name the author's own line."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Loc:
    """A span of source text and, for inlined code, the chain of calls that led to it.

    Lines and columns count from 1 and columns count characters, not bytes. ``end_column`` is one past the last
    character of the span; without ``end_line`` and ``end_column`` the span is the single character at ``column``.
    """

    file: str
    line: int
    column: int = 1
    end_line: int | None = None
    end_column: int | None = None
    call_site: Loc | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def inlined(self, call_site: Loc | None) -> Loc:
        """This location as seen from a call at `call_site`: the call becomes the outermost link of the chain."""
        if call_site is None:
            return self
        return replace(self, call_site=self.call_site.inlined(call_site) if self.call_site else call_site)

    def calls(self) -> list[Loc]:
        """The call sites that led here, innermost first."""
        chain: list[Loc] = []
        site = self.call_site
        while site is not None:
            chain.append(site)
            site = site.call_site
        return chain
