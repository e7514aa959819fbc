"""Which schedules are worth trying for a kernel, and which values its author may fix: one table, a row per field.

A row gives the values of a field that can make a difference to a kernel of this structure, the default point's among
them, and says what a value has to be. Where that point is one of warpgroups other values do (`warpgroup_values`).
Whether a schedule is legal, lowering it tells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tessera.errors import SourceError, did_you_mean
from tessera.ir.core import Kernel, add_notes
from tessera.ir.opdef import LOOP
from tessera.ir.types import TileType, int_shape
from tessera.target.arch import BASE_LANE, Arch
from tessera.target.schedule import (
    FIXED_BY_CONSTANTS,
    REGISTER_TILE_LIMIT,
    WARPGROUP_LANE,
    Schedule,
    default_schedule,
    elements,
    plain_copies,
)
from tessera.target.warpgroup_values import VALUES, WIDE
from tessera.target.wgmma import THREE_WARPGROUPS

MOST_WARPS, MOST_BLOCKS, MOST_STAGES = 32, 32, 16
RESIDENT, WALKS = ("", "left", "both"), ("", "columns", "rows")
SUMS, EPILOGUES, PROLOGUES = ("", "shared"), ("", "direct"), ("", "launch")
FAMILIES, COPIES, CLUSTERS = ("", "wgmma"), ("", "tma"), (1, 2, 4, 8)
WARPS = f"a power of two from 1 to {MOST_WARPS}, or {THREE_WARPGROUPS}"  # what numbers of warps there are, in words
K_STEP = 16  # of a bf16 product: no operand tile is a part of it


@dataclass(frozen=True)
class Structure:
    """What decides, of a Tile kernel whose buffers were promoted, which fields make a difference.

    `product`: elements of the largest product; `rows`, `columns`: of the largest store; `depth`: of the longest sum of
    a product; `largest`: elements of the largest tile; `loops`: whether a loop loads what it works on; `asked`: whether
    the author said how many stages those loads have; `plain`: buffers that could be streamed; `computed`: whether the
    left operand of a product is in no buffer of the author's.
    """

    products: bool
    product: int
    rows: int
    columns: int
    depth: int
    largest: int
    loops: bool
    asked: bool
    plain: tuple[str, ...]
    computed: bool


def structure_of(kernel: Kernel) -> Structure:
    ops = list(kernel.body.walk())
    products = [op for op in ops if op.name == "mma"]
    stored = [int_shape(op.operand("value").type) for op in ops if op.name == "store"] or [()]
    shape = max(stored, key=math.prod)
    inside = [op for loop in ops if loop.definition.has(LOOP) for region in loop.regions for op in region.walk()]
    loads = [op for op in inside if op.name in ("load", "copy_async")]
    tiles = [result for op in ops for result in op.results if isinstance(result.type, TileType)]
    depths = [int_shape(op.operands[0].type)[0 if op.attributes["transpose_a"] else 1] for op in products]
    return Structure(
        bool(products),
        max((elements(op.result) for op in products), default=0),
        math.prod(shape[:-1]),
        shape[-1] if shape else 1,
        max(depths, default=0),
        max(map(elements, tiles), default=1),
        bool(loads),
        any(op.attributes["stages"] is not None for op in loads),
        tuple(value.name for value in plain_copies(kernel)),
        any((made := op.operands[0].defining_op) is not None and made.name != "read" for op in products),
    )


def _warps(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    if kernel.products:
        return (4, 8, 16) if kernel.product >= 128 * 128 else (2, 4, 8)
    return tuple(warps for warps in (default.warps // 2, default.warps, 2 * default.warps) if 1 <= warps <= 16)


def _streamed(kernel: Structure, default: Schedule) -> tuple[tuple[str, ...], ...]:
    return (default.streamed, kernel.plain) if kernel.products else (default.streamed,)


def _subtile(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    if not kernel.products:
        step = default.subtile
        return tuple(size for size in (step // 2, step, 2 * step) if size) if step else (0,)
    whole = (0,) if kernel.rows * kernel.columns <= REGISTER_TILE_LIMIT * 32 * default.warps else ()
    return (*whole, *(size for size in (32, 64, 128, 256) if size < kernel.columns), default.subtile)


def _rows(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    if not kernel.products:
        return (default.rows, 2 * default.rows) if default.rows else (0,)
    return (default.rows, *(size for size in (32, 64, 128) if size < kernel.rows))


def _block_k(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    parts = kernel.products and (default.subtile or default.rows or default.streamed)
    return tuple(size for size in (32, 64, 128) if size <= kernel.depth) if parts else ()


def _blocks(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    return (1, 2, 3, 4) if kernel.products else ()


def _stages(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    parts = default.subtile or default.rows or default.streamed
    return (2, 3, 4) if kernel.products and not kernel.asked and (kernel.loops or parts) else ()


def _resident(kernel: Structure, default: Schedule) -> tuple[str, ...]:
    return RESIDENT if kernel.computed and (default.rows or default.subtile) else ()


def _epilogue(kernel: Structure, default: Schedule) -> tuple[str, ...]:
    return EPILOGUES if kernel.products else ()


def _group(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    return (0, 4, 8, 16) if default.group else ()


def _split_k(kernel: Structure, default: Schedule) -> tuple[int, ...]:
    """Where a product has a loop over K of its own, which rows at a time have not."""
    return (1, 2, 4, 8) if kernel.products and kernel.loops and not default.rows else ()


def _sums(kernel: Structure, default: Schedule) -> tuple[str, ...]:
    return SUMS if kernel.loops and kernel.computed and default.rows else ()


def _walk(kernel: Structure, default: Schedule) -> tuple[str, ...]:
    return WALKS if kernel.computed and default.rows else ()


def _prologue(kernel: Structure, default: Schedule) -> tuple[str, ...]:
    """Where columns are computed in several programs, each of which computes the left operand again."""
    return PROLOGUES if kernel.computed and default.rows and kernel.columns >= WIDE else ()


def _through(kernel: Structure, default: Schedule) -> tuple[bool, ...]:
    return (True, False) if kernel.loops and kernel.computed and (default.rows or default.subtile) else ()


def _prefetch(kernel: Structure, default: Schedule) -> tuple[bool, ...]:
    return (False, True) if kernel.loops and _resident(kernel, default) else ()


def _none(kernel: Structure, default: Schedule) -> tuple[Any, ...]:
    """Only where an author asks: without copies that fly from one program to the next they save a launch no time."""
    return ()


@dataclass(frozen=True)
class Field:
    """`values`: worth trying, given the structure and the default point; `accepts`: whether a value can be fixed by an
    author; `wanted`: what such a value is, in words; `parse`: from the text of a command line.
    """

    values: Callable[[Structure, Schedule], tuple[Any, ...]]
    accepts: Callable[[Any], bool]
    wanted: str
    parse: Callable[[str], Any] = int


def _whole(least: int, most: int = 1 << 20, step: int = 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most and value % step == 0


def is_warps(value: Any) -> bool:
    """Whether a block can have so many warps that compute."""
    return _whole(1, MOST_WARPS)(value) and (value & (value - 1) == 0 or value == THREE_WARPGROUPS)


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _is_names(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split("+") if name)


FIELDS: dict[str, Field] = {
    "warps": Field(_warps, is_warps, WARPS),
    "streamed": Field(_streamed, _is_names, "a list of names of buffers", _names),
    "subtile": Field(_subtile, _whole(0), "an integer that is not negative"),
    "block_k": Field(_block_k, _whole(K_STEP, step=K_STEP), f"a positive multiple of {K_STEP}"),
    "rows": Field(_rows, _whole(0), "an integer that is not negative"),
    "blocks": Field(_blocks, _whole(1, MOST_BLOCKS), f"an integer from 1 to {MOST_BLOCKS}"),
    "stages": Field(_stages, _whole(1, MOST_STAGES), f"an integer from 1 to {MOST_STAGES}"),
    "resident": Field(_resident, RESIDENT.__contains__, "one of " + ", ".join(map(repr, RESIDENT)), str),
    "through": Field(_through, _is_bool, "true or false", _bool),
    "prefetch": Field(_prefetch, _is_bool, "true or false", _bool),
    "sums": Field(_sums, SUMS.__contains__, "one of " + ", ".join(map(repr, SUMS)), str),
    "epilogue": Field(_epilogue, EPILOGUES.__contains__, "one of " + ", ".join(map(repr, EPILOGUES)), str),
    "walk": Field(_walk, WALKS.__contains__, "one of " + ", ".join(map(repr, WALKS)), str),
    "group": Field(_group, _whole(0), "an integer that is not negative"),
    "split_k": Field(_split_k, _whole(1, 64), "an integer from 1 to 64"),
    "prologue": Field(_prologue, PROLOGUES.__contains__, "one of " + ", ".join(map(repr, PROLOGUES)), str),
    "family": Field(_none, FAMILIES.__contains__, "one of " + ", ".join(map(repr, FAMILIES)), str),
    "copies": Field(_none, COPIES.__contains__, "one of " + ", ".join(map(repr, COPIES)), str),
    "panels": Field(_none, _whole(0), "an integer that is not negative"),
    "persistent": Field(_none, _is_bool, "true or false", _bool),
    "pingpong": Field(_none, _is_bool, "true or false", _bool),
    "cluster": Field(_none, CLUSTERS.__contains__, "1, 2, 4 or 8"),
}


def candidates(kernel: Kernel, arch: Arch) -> dict[str, tuple[Any, ...]]:
    """The values of each field that are worth trying, that of the kernel's own point first.

    Raises SourceError TS501 as `default_schedule` does. What the author has fixed has one value.
    """
    structure, point = structure_of(kernel), own_point(kernel, arch)
    on_lane = _default(kernel, arch, pins_of(kernel)).family == "wgmma"
    rows = VALUES if on_lane else {name: row.values for name, row in FIELDS.items()}
    constants = kernel.attributes.get("constants") or {}
    fixed = {field for name, field in FIXED_BY_CONSTANTS.items() if name in constants} | set(pins_of(kernel))
    found = {}
    for name in (field.name for field in fields(Schedule)):
        own = getattr(point, name)
        others = rows[name](structure, point) if name in rows and name not in fixed else ()
        found[name] = tuple(dict.fromkeys((own, *others)))
    return found


def schedules(kernel: Kernel, arch: Arch) -> Iterator[Schedule]:
    """Every combination of `candidates`: the kernel's own point, then those that differ from it in one field, in two,
    and so on. They are sensible; some may not be legal.
    """
    values = candidates(kernel, arch)
    own = own_point(kernel, arch)
    open_fields = [name for name, choices in values.items() if len(choices) > 1]
    for count in range(len(open_fields) + 1):
        for names in itertools.combinations(open_fields, count):
            for chosen in itertools.product(*(values[name][1:] for name in names)):
                yield replace(own, **dict(zip(names, chosen, strict=True)))


# ---- what an author fixes --------------------------------------------------------------------------------------------


def own_point(kernel: Kernel, arch: Arch) -> Schedule:
    """The default schedule with what the author has fixed. Raises SourceError as it and `check_streamed` do."""
    pins = pins_of(kernel)
    check_streamed(kernel, pins)
    teams = {"blocks": 1} if pins.get("pingpong") else {}  # they take the place of two blocks
    return replace(_default(kernel, arch, pins), **{**teams, **pins})


def _default(kernel: Kernel, arch: Arch, pins: Mapping[str, Any]) -> Schedule:
    """The default schedule of the lane of warpgroups where an instruction or a copy of it is asked for, of the base
    lane where mma.sync is, and of the kernel's lane, or the architecture's, where nobody asks.
    """
    asked = pins.get("family") == "wgmma" or pins.get("copies") == "tma"
    if asked and arch.wgmma:
        return default_schedule(kernel, arch, WARPGROUP_LANE)
    return default_schedule(kernel, arch, BASE_LANE if pins.get("family") == "" else kernel.attributes.get("lane", ""))


def may_change_lane(kernel: Kernel, arch: Arch) -> bool:
    """Whether a kernel has the point of warpgroups, and nobody has asked for it."""
    pins = pins_of(kernel)
    asked = "family" in pins or "copies" in pins or "lane" in kernel.attributes
    return not asked and arch.lane == WARPGROUP_LANE and _default(kernel, arch, pins).family == "wgmma"


def on_base_lane(kernel: Kernel, arch: Arch, reason: str) -> Kernel:
    """The kernel with a note of what keeps it from the lane of its architecture."""
    attributes = {**kernel.attributes, "lane": BASE_LANE}
    new = Kernel(kernel.name, kernel.body, attributes, kernel.origin)
    add_notes(new, f"not on the lane of {arch.name}: {reason}")
    return new


# What a value other than the first of a field asks for: of the facts of an architecture, and in words.
NEEDS = {
    "family": ("wgmma", "instructions of warpgroups (wgmma)"),
    "copies": ("tma", "copies by tensor map (TMA)"),
    "pingpong": ("tma", "copies by tensor map (TMA), which teams of consumers wait for"),
    "cluster": ("tma", "clusters of blocks"),
}


def check_arch(kernel: Kernel, schedule: Schedule, arch: Arch) -> None:
    """Raises SourceError TS512 for a field that asks for what the architecture does not have."""
    plain = Schedule()
    for name, (fact, words) in NEEDS.items():
        value = getattr(schedule, name)
        if value != getattr(plain, name) and not getattr(arch, fact):
            raise SourceError(
                "TS512", f"'{kernel.name}' is to have {name} = {value!r}, and {arch.name} has no {words}", kernel.loc
            )


def pins_of(kernel: Kernel) -> dict[str, Any]:
    """The fields of the schedule that the author or the command line has fixed. Raises as `check_pins` does."""
    return check_pins(kernel.attributes.get("pins") or {})


def check_pins(pins: Mapping[str, Any]) -> dict[str, Any]:
    """The pins as a kernel keeps them. Raises SourceError TS201 for a field that no schedule has, TS203 for a value
    that it cannot have.
    """
    known = [field.name for field in fields(Schedule)]
    result = {}
    for name, value in pins.items():
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise SourceError("TS201", f"a schedule has no field '{name}'; it has {', '.join(known)}{hint}")
        row = FIELDS.get(name)
        if row is not None and not row.accepts(value):
            raise SourceError("TS203", f"the field {name} of a schedule is {row.wanted}, not {value!r}")
        result[name] = tuple(value) if isinstance(value, list) else value
    return result


def decided_by(field: str) -> str:
    """The name that a tuning constant has where it decides a field; empty for a field that none does."""
    return next((name for name, decided in FIXED_BY_CONSTANTS.items() if decided == field), "")


def parse_pin(name: str, text: str) -> Any:
    """The value that a command line gives for a field. Raises SourceError TS203; names of buffers are joined by +."""
    row = FIELDS.get(name)
    if row is None:
        check_pins({name: None})
        return text
    try:
        value = row.parse(text)
    except (ValueError, KeyError):
        value = text
    return check_pins({name: value})[name]


def check_streamed(kernel: Kernel, pins: Mapping[str, Any]) -> None:
    """Raises SourceError TS201 for the name of a buffer that the kernel does not have, or that cannot be streamed."""
    known = [value.name for value in plain_copies(kernel)]
    for name in pins.get("streamed", ()):
        if name not in known:
            listed, hint = ", ".join(known) or "none", did_you_mean(name, known)
            raise SourceError(
                "TS201", f"'{name}' is no buffer of '{kernel.name}' that can be streamed (there are {listed}){hint}",
                kernel.loc,
            )  # fmt: skip


__all__ = [
    "FIELDS", "WARPS", "Field", "Structure", "candidates", "check_arch", "check_pins", "check_streamed", "decided_by",
    "is_warps", "may_change_lane", "on_base_lane", "own_point", "parse_pin", "pins_of", "schedules", "structure_of",
]  # fmt: skip
