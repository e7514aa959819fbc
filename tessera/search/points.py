"""The points of a search: what a definition leaves open, what pins close, and the Tile IR of each point.

A kernel is traced once for all points whose constants differ only in what its body does not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tessera.errors import TesseraError
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.evaluator import trace_with_reads
from tessera.frontend.grid import apply_grid
from tessera.frontend.space import Point
from tessera.ir.core import Kernel, Module
from tessera.ir.dims import Size
from tessera.ir.strides import with_strides
from tessera.search.lowering import Request
from tessera.target.schedules import check_pins


def pinned(subject: KernelDefinition | Module, pins: Mapping[str, Any]) -> KernelDefinition | Module:
    """The subject with tuning constants and fields of its schedule fixed.

    Raises SourceError TS201 for a name that it does not have and TS203 for a value that the name cannot have.
    """
    if not pins:
        return subject
    if isinstance(subject, Module):
        kernel = subject.kernel()
        known = {**(kernel.attributes.get("pins") or {}), **check_pins(pins)}
        return Module(subject.level, [_with(kernel, pins=known)])
    names = subject.space.candidates if subject.space else {}
    constants = {name: value for name, value in pins.items() if name in names}
    return subject.pinned(constants).scheduled({n: v for n, v in pins.items() if n not in constants})


class Points:
    """`modules` grows as points are traced; a request names one by its place."""

    def __init__(
        self,
        subject: KernelDefinition | Module,
        dims: Mapping[str, int],
        grid: Sequence[Size] | None,
        strides: Mapping[str, tuple[Size, ...]] | None,
    ) -> None:
        self.subject, self.dims, self.grid, self.strides = subject, dict(dims), grid, strides
        self.modules: list[Module | str] = []
        self._decided: list[Point] = []  # of each module, the constants that decided it

    @property
    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """The values of each tuning constant that the search may take, one for those that are fixed."""
        if isinstance(self.subject, Module) or self.subject.space is None:
            return {}
        fixed, point = self.subject.fixed, self.subject.constants
        known = self.subject.space.candidates
        return {name: (point[name],) if name in fixed else values for name, values in known.items()}

    def all(self) -> list[Point]:
        """Every combination, in the author's order; one empty point for a kernel without a tuning space."""
        values = self.candidates
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]

    def short_list(self, launch: Sequence[str]) -> list[Point]:
        """Points that stand for all: the author's first one, then the tile sizes all small, all middling, all large, in
        whatever order their lists are, with the first values of the constants in `launch`, which only say how a block
        works.
        """
        levels: list[Point] = [{name: values[0] for name, values in self.candidates.items()}]
        for share in (0.0, 0.5, 1.0):
            point = {
                name: values[0] if name in launch else _ascending(values)[round(share * (len(values) - 1))]
                for name, values in self.candidates.items()
            }
            levels += [point] if point not in levels else []
        return levels

    def request(self, point: Point) -> Request:
        """Raises SourceError where the kernel cannot be traced at this point."""
        for number, decided in enumerate(self._decided):
            if all(point[name] == value for name, value in decided.items()):
                return Request(number, tuple(point.items()))
        if isinstance(self.subject, Module):
            module, reads = self.subject, frozenset[str]()
        else:
            module, reads = trace_with_reads(self.subject, self.dims, constants=point)
        self.modules.append(Module(module.level, [self._launched(module.kernel())]))
        self._decided.append({name: value for name, value in point.items() if name in reads})
        return Request(len(self.modules) - 1, tuple(point.items()))

    def requests(self, points: Sequence[Point]) -> tuple[list[Request], list[tuple[Point, TesseraError]]]:
        """Those of the points that can be traced, and what keeps the others from it."""
        found, failed = [], []
        for point in points:
            try:
                found.append(self.request(point))
            except TesseraError as error:
                failed.append((point, error))
        return found, failed

    def _launched(self, kernel: Kernel) -> Kernel:
        kernel = apply_grid(kernel, tuple(self.grid)) if self.grid is not None else kernel
        return with_strides(kernel, self.strides) if self.strides else kernel


def _ascending(values: Sequence[Any]) -> list[Any]:
    """Sizes in ascending order; other values as the author lists them."""
    return sorted(values) if all(type(value) in (int, float) for value in values) else list(values)


def _with(kernel: Kernel, **attributes: Any) -> Kernel:
    return Kernel(kernel.name, kernel.body, {**kernel.attributes, **attributes}, kernel.origin)


__all__ = ["Points", "pinned"]
