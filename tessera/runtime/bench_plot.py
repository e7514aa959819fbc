"""The roofline as an SVG: operations per byte against operations per second, a mark for each who was timed.

Written out by hand, since it is lines, circles and texts: nothing else here needs a library for plots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tessera.runtime.bench import Row
from tessera.runtime.bench_case import FLOOR, OURS, UNTUNED, dims_text
from tessera.runtime.bench_device import Peaks

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50  # margins; the legend is on the right
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#e377c2")


@dataclass(frozen=True)
class Mark:
    """One timed entrant. `intensity`: operations per byte; `rate`: operations per second."""

    name: str
    title: str
    own: bool
    intensity: float
    rate: float


@dataclass(frozen=True)
class Axes:
    """Logarithmic axes between powers of ten."""

    x: tuple[int, int]
    y: tuple[int, int]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def marks(rows: Sequence[Row]) -> list[Mark]:
    """Of every entrant with a time that does the whole work, in rows that count operations."""
    return [
        Mark(
            result.name,
            f"{row.case} {dims_text(row.dims)}: {result.name} {result.us:.1f} us",
            result.kind in (OURS, UNTUNED),
            row.flops / row.bytes,
            row.flops / result.us * 1e6,
        )
        for row in rows
        for result in row.results
        if result.us and result.kind != FLOOR and row.flops and row.bytes
    ]


def write_plot(path: Path, rows: Sequence[Row], peaks: Peaks, title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plot(rows, peaks, title), encoding="utf-8")


def plot(rows: Sequence[Row], peaks: Peaks, title: str) -> str:
    """The text of the SVG."""
    found = marks(rows)
    axes = _axes(found, peaks)
    names = list(dict.fromkeys(mark.name for mark in found))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 15, title, size=14),
        *_grid(axes),
        *_roof(axes, peaks),
        *(_circle(axes, mark, colours[mark.name]) for mark in found),
        *_legend(colours),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(found: Sequence[Mark], peaks: Peaks) -> Axes:
    """Powers of ten around everything, and around the ridge where the two roofs meet."""
    ridge = peaks.product / peaks.copy
    across = [ridge, *(mark.intensity for mark in found)]
    up = [peaks.product, *(mark.rate for mark in found)]
    return Axes(_decades(across), _decades(up))


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _grid(axes: Axes) -> Iterator[str]:
    for power in range(axes.x[0], axes.x[1] + 1):
        (x, bottom), (_, top) = axes.at(10.0**power, 10.0 ** axes.y[0]), axes.at(10.0**power, 10.0 ** axes.y[1])
        yield _line(x, bottom, x, top, "#dddddd")
        yield _text(x, bottom + 16, f"{10.0**power:g}", anchor="middle")
    for power in range(axes.y[0], axes.y[1] + 1):
        (left, y), (right, _) = axes.at(10.0 ** axes.x[0], 10.0**power), axes.at(10.0 ** axes.x[1], 10.0**power)
        yield _line(left, y, right, y, "#dddddd")
        yield _text(left - 6, y + 4, f"{10.0 ** (power - 12):g}", anchor="end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "operations per byte", anchor="middle")
    yield _text(8, TOP - 15, "Tflop/s")


def _roof(axes: Axes, peaks: Peaks) -> Iterator[str]:
    """The slope of the copy up to the ridge, then the rate of the product."""
    ridge = peaks.product / peaks.copy
    low, high = 10.0 ** axes.x[0], 10.0 ** axes.x[1]
    start = max(low, 10.0 ** axes.y[0] / peaks.copy)  # the slope may enter from below
    yield _line(*axes.at(start, start * peaks.copy), *axes.at(ridge, peaks.product), "black", 1.5)
    yield _line(*axes.at(ridge, peaks.product), *axes.at(high, peaks.product), "black", 1.5)
    x, y = axes.at(high, peaks.product)
    yield _text(x - 4, y - 6, f"{peaks.product / 1e12:.0f} Tflop/s, {peaks.copy / 1e12:.2f} TB/s", anchor="end")


def _circle(axes: Axes, mark: Mark, colour: str) -> str:
    x, y = axes.at(mark.intensity, mark.rate)
    fill = colour if mark.own else "none"
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5">'
    return f"{shape}<title>{escape(mark.title)}</title></circle>"


def _legend(colours: dict[str, str]) -> Iterator[str]:
    for number, (name, colour) in enumerate(colours.items()):
        y = TOP + 20 * number
        yield f'<rect x="{WIDTH - RIGHT + 16}" y="{y}" width="10" height="10" fill="{colour}"/>'
        yield _text(WIDTH - RIGHT + 32, y + 10, name)


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1.0) -> str:
    ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, content: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(content)}</text>'


__all__ = ["Axes", "Mark", "marks", "plot", "write_plot"]
