"""What random programs are made of: tiles, frames and scopes, the elementwise expressions, the finished program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tessera.target.schedule import Schedule

LIMIT = 2.0**12  # largest magnitude that a tile may reach

Extent = int | str  # a number, or the name of a dim that the tile takes whole
Shape = tuple[Extent, ...]


@dataclass(frozen=True)
class Tile:
    """An expression: its text, shape, dtype (None: whatever promotion gives) and largest magnitude."""

    text: str
    shape: Shape
    dtype: str | None
    size: float


@dataclass(frozen=True)
class Program:
    """A kernel's text (`{name}` stands for its name), the sizes of its dims, and a schedule (None: the default)."""

    text: str
    dims: dict[str, int]
    schedule: Schedule | None = None

    def source(self, name: str) -> str:
        return self.text.replace("{name}", name)

    def __str__(self) -> str:
        return f"# dims {self.dims}, schedule {self.schedule}\n{self.source('program')}"

    __repr__ = __str__

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis shows it: as text that can be run."""
        printer.text(f"\n{self}")


@dataclass(frozen=True)
class Frame:
    """How outputs are walked. `main`: shape of a stored tile; `axes`: where each of its extents lies, (dim, offset)."""

    main: Shape
    axes: tuple[tuple[str, str], ...]
    head: tuple[str, ...]
    depth: int = 1
    row_output: bool = False


@dataclass
class Scope:
    """What statements may read: tiles, buffers that hold data, and run-time integers; assigned names by their tile."""

    tiles: list[Tile] = field(default_factory=list)
    buffers: list[Tile] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    offsets: list[str] = field(default_factory=lambda: ["0"])  # places along the dim K
    depth: int = 1

    def inner(self, **changes: Any) -> Scope:
        return replace(
            self,
            tiles=list(self.tiles),
            buffers=list(self.buffers),
            integers=list(self.integers),
            offsets=list(self.offsets),
            depth=self.depth + 1,
            **changes,
        )


def _capped(bound: float) -> Callable[[float], float]:
    return lambda size: min(size, bound)


# Text and the largest magnitude of the result. Arguments are kept where a function is finite and not too steep.
UNARY: list[tuple[str, Callable[[float], float]]] = [
    ("-{}", lambda a: a),
    ("{} * 0.5", lambda a: a * 0.5),
    ("1.5 - {}", lambda a: a + 1.5),
    ("{} + 1", lambda a: a + 1),
    ("{} / 3.0", lambda a: a),
    ("tile.abs({})", lambda a: a),
    ("tile.tanh({})", _capped(1.0)),
    ("tile.sigmoid({})", lambda a: 1.0),
    ("tile.exp(tile.minimum({}, 3.0))", lambda a: 21.0),
    ("tile.exp2(tile.maximum(tile.minimum({}, 4.0), -4.0))", lambda a: 16.0),
    ("tile.sqrt(tile.abs({}))", lambda a: max(a, 1.0)),
    ("tile.log(tile.abs({}) + 0.25)", lambda a: max(a, 2.0)),
    ("tile.log2(tile.abs({}) + 0.25)", lambda a: max(a, 2.0)),
    ("tile.rsqrt(tile.abs({}) + 0.5)", lambda a: 2.0),
    ("tile.maximum({}, 0)", lambda a: a),
    ("tile.where({} > 0.0, 1.0, -0.5)", lambda a: 1.0),
    ("tile.erf({})", _capped(1.0)),
    ("tile.silu({})", _capped(LIMIT)),
    ("tile.softplus({})", lambda a: a + 1),
    ("tile.gelu({})", _capped(LIMIT)),
    ("tile.gelu_tanh({})", _capped(LIMIT)),
    ("tile.floor({})", lambda a: a + 1),
    ("tile.ceil({})", lambda a: a + 1),
]
BINARY: list[tuple[str, Callable[[float, float], float]]] = [
    ("{a} + {b}", lambda a, b: a + b),
    ("{a} - {b}", lambda a, b: a + b),
    ("{a} * {b}", lambda a, b: a * b),
    ("{a} / (tile.abs({b}) + 0.5)", lambda a, b: 2 * a),
    ("tile.maximum({a}, {b})", max),
    ("tile.minimum({a}, {b})", max),
    ("tile.where({a} < {b}, {a}, {b})", max),
    ("tile.where(({a} >= {b}) & ({a} != 0.0), {b}, 0.25)", lambda a, b: max(b, 0.25)),
    ("tile.subtract({a}, {b})", lambda a, b: a + b),
]
