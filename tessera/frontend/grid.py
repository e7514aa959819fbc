"""Launch grids: inferred from how program ids index tensors, and checked against what the outputs need.

A kernel says nowhere how many programs run. Its windows do: where an output is stored at `pid * 64 : pid * 64 + 64`,
one program per block of 64 rows covers it. A window that starts at a bare id overlaps its neighbours; when the store is
row-local (`ir.locality`) the programs in between repeat work, and one id per window is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from tessera.errors import ArgumentError, SourceError
from tessera.ir import dims
from tessera.ir.affine import (
    PROGRAM_IDS,
    Cache,
    Window,
    cover,
    loop_progression,
    loops,
    opaque_symbol,
    opaque_values,
    window_of,
)
from tessera.ir.core import Block, Kernel, Op, Value, clone_kernel
from tessera.ir.dims import Size
from tessera.ir.locality import row_dependence
from tessera.ir.opdef import COUNTED, ORDERED
from tessera.ir.programs import grid_extents
from tessera.ir.types import ScalarType, ViewType, tensor_type

SPELLING = "@ts.kernel(grid=lambda d: (...))"


@dataclass(frozen=True)
class Access:
    """An op that reads or writes a window of a parameter, and the index symbols of the loops around it."""

    op: Op
    window: Window
    effect: str
    loops: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """How an access moves along a tensor axis with a program id: windows of `extent` at `step * id + start`."""

    access: Access
    axis: int
    step: Size
    start: Size
    extent: Size

    @property
    def size(self) -> Size:
        return self.access.window.shape[self.axis]


class _Facts:
    """What all rules here look at: accesses, loop ranges, the ids used, and the symbols that no launch changes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.cache: Cache = {}
        self.ids: dict[int, Op] = {}
        for op in kernel.body.walk():
            if op.name == "program_id":
                self.ids.setdefault(op.attributes["axis"], op)
        self.progressions = dict(loop_progression(loop, self.cache) for loop in loops(kernel.body))
        self.scalars = {opaque_symbol(p) for p in kernel.parameters if isinstance(p.type, ScalarType)}
        self.dims = {
            name
            for type_ in (tensor_type(p.type) for p in kernel.parameters)
            if type_ is not None
            for size in type_.shape
            for name in dims.symbols(size)
        }
        self.accesses: list[Access] = []
        self._collect(kernel.body, ())
        self.stores = [access for access in self.accesses if access.effect == "writes"]

    def _collect(self, block: Block, around: tuple[str, ...]) -> None:
        for op in block.ops:
            for effect, value in op.definition.effects_of(op):
                if isinstance(value.type, ViewType):
                    self.accesses.append(Access(op, window_of(value, self.cache), effect, around))
            inner = (*around, opaque_symbol(op.regions[0].arguments[0])) if op.definition.has(COUNTED) else around
            for region in op.regions:
                self._collect(region, inner)

    def symbols(self, window: Window, axis: int) -> frozenset[str]:
        """What moves the window along the axis, by itself or through the range of a loop."""
        reached = self.reach(window, axis)
        return dims.symbols(window.offsets[axis]) | (dims.symbols(reached[0]) if reached else frozenset())

    def reach(self, window: Window, axis: int) -> tuple[Size, Size] | None:
        """`(offset, extent)` of the axis with the loops around it folded in, or None when the result has gaps.

        What is left in the offset are dims, program ids and scalar parameters; anything else gives None too.
        """
        offset, extent = window.offsets[axis], window.extents[axis]
        folded: list[tuple[Size, Size]] = []
        for name in sorted(dims.symbols(offset) & self.progressions.keys()):
            split, values = dims.coefficient(offset, name), self.progressions[name]
            if values.count == 0:
                return 0, 0
            if split is None:
                return None
            factor, offset = split
            offset = offset + factor * values.start
            folded.append((factor * values.step, values.count))
        folded.sort(key=lambda item: abs(item[0]) if isinstance(item[0], int) else math.inf)
        for stride, count in folded:
            if isinstance(stride, int) and isinstance(extent, int) and abs(stride) <= extent:
                offset = offset + min(stride, 0) * (count - 1)
                extent = extent + abs(stride) * (count - 1)
            elif stride == extent:
                extent = extent * count
            else:
                return None
        known = self.dims | self.scalars
        understood = dims.symbols(offset) <= known | set(PROGRAM_IDS) and dims.symbols(extent) <= known
        return (offset, extent) if understood else None


# Inference ------------------------------------------------------------------------------------------------------------


def infer_grid(kernel: Kernel, declared: Sequence[Size] | None = None) -> None:
    """Sets `kernel.attributes["grid"]` (1 to 3 sizes over dims), `["notes"]` (sentences) and the scale of program ids.

    `declared` is the grid that the author gave. Raises SourceError TS305 where windows do not decide a grid and TS307
    where programs would store different values to one element.
    """
    _set_scales(kernel, {})
    facts = _Facts(kernel)
    count = max(facts.ids, default=0) + 1
    if declared is not None:
        if not 1 <= len(declared) <= 3 or len(declared) < count:
            used = f"program_id({count - 1}) is used" if len(declared) < count else "a grid has 1 to 3"
            raise SourceError(
                "TS305",
                f"the grid declared for '{kernel.name}' has {len(declared)} axes, but {used}",
                facts.ids[count - 1].loc if facts.ids else kernel.loc,
            )
        grid, scales, notes = tuple(declared), {}, ()
        _refuse_races(facts, {axis for axis, extent in enumerate(grid) if extent != 1}, scales)
    else:
        uses = {axis: _deciding_uses(facts, axis) for axis in sorted(facts.ids)}
        scales = {axis: _scale(facts, axis) for axis in uses}
        _refuse_races(facts, set(uses), scales)
        sizes = {axis: _extent(facts, axis, found, scales[axis]) for axis, found in uses.items()}
        grid = tuple(sizes.get(axis, 1) for axis in range(count))
        notes = tuple(
            f"program axis {axis} coarsened: windows of {dims.to_text(uses[axis][0].extent)} rows start at "
            f"every {_ordinal(scale)} id"
            for axis, scale in scales.items()
            if scale > 1
        )
    _set_scales(kernel, scales)
    kernel.attributes["grid"], kernel.attributes["notes"] = grid, notes


def _set_scales(kernel: Kernel, scales: Mapping[int, int]) -> None:
    for op in kernel.body.walk():
        if op.name == "program_id":
            op.attributes["scale"] = scales.get(op.attributes["axis"], 1)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _not_inferred(facts: _Facts, axis: int, reason: str) -> SourceError:
    message = f"the grid along program_id({axis}) cannot be inferred: {reason}; give it as {SPELLING}"
    return SourceError("TS305", message, facts.ids[axis].loc)


def _deciding_uses(facts: _Facts, axis: int) -> list[Use]:
    """The uses of an id that decide its extent: in stores, else in loads, else in atomic updates.

    All agree on size and step.
    """
    symbol = PROGRAM_IDS[axis]
    effects = ("writes", "reads", "accumulates")
    for accesses in ([a for a in facts.accesses if a.effect == effect] for effect in effects):
        uses = [
            _use(facts, access, tensor_axis, axis)
            for access in accesses
            for tensor_axis in range(len(access.window.offsets))
            if symbol in facts.symbols(access.window, tensor_axis)
        ]
        if not uses:
            continue
        first = uses[0]
        for use in uses[1:]:
            if use.step != first.step or use.size != first.size:
                raise _not_inferred(facts, axis, f"it indexes {_described(first)} and {_described(use)}")
            if not isinstance(use.start - first.start, int):
                raise _not_inferred(
                    facts,
                    axis,
                    f"its windows start {dims.to_text(first.start)} and {dims.to_text(use.start)} past its blocks",
                )
        return uses
    hidden = any(
        _depends(leaf, symbol, facts)
        for access in facts.accesses
        for operand in access.window.operands
        for leaf in opaque_values(operand)
    )
    raise _not_inferred(
        facts,
        axis,
        "the windows that it moves do not follow it at a fixed step" if hidden else "it does not index any tensor",
    )


def _depends(value: Value, symbol: str, facts: _Facts) -> bool:
    """Whether an opaque value is a loop index whose range depends on the id."""
    values = facts.progressions.get(opaque_symbol(value))
    return values is not None and any(symbol in dims.symbols(s) for s in (values.start, values.step, values.count))


def _described(use: Use) -> str:
    blocks = f"blocks of {dims.to_text(use.step)}" if use.step != 1 else "single rows"
    return f"'{use.access.window.parameter.name}' (axis {use.axis}, size {dims.to_text(use.size)}) by {blocks}"


def _readable(facts: _Facts, size: Size) -> str:
    """A size as a message says it: ids and scalar parameters by their names."""
    names: dict[str, Size] = {name: dims.symbol(f"program_id({axis})") for axis, name in enumerate(PROGRAM_IDS)}
    names.update({opaque_symbol(p): dims.symbol(p.name) for p in facts.kernel.parameters})
    return dims.to_text(dims.substitute(size, names))


def _use(facts: _Facts, access: Access, tensor_axis: int, axis: int) -> Use:
    name, symbol = access.window.parameter.name, PROGRAM_IDS[axis]
    reached = facts.reach(access.window, tensor_axis)
    if reached is None:
        raise _not_inferred(facts, axis, f"the offset of '{name}' on axis {tensor_axis} mixes it with run-time values")
    offset, extent = reached
    split = dims.coefficient(offset, symbol)
    if split is None or dims.symbols(offset) & set(PROGRAM_IDS) != {symbol}:
        raise _not_inferred(
            facts,
            axis,
            f"'{name}' is indexed on axis {tensor_axis} by {_readable(facts, offset)}, "
            "which is not a multiple of this id alone",
        )
    step, start = split
    if not (step == extent or (isinstance(step, int) and step > 0 and isinstance(extent, int))):
        raise _not_inferred(
            facts,
            axis,
            f"'{name}' is indexed on axis {tensor_axis} by {_readable(facts, offset)} "
            f"with windows of {_readable(facts, extent)}",
        )
    if dims.symbols(start) & facts.scalars:
        raise _not_inferred(facts, axis, f"the window of '{name}' on axis {tensor_axis} starts at a run-time value")
    return Use(access, tensor_axis, step, start, extent)


def _extent(facts: _Facts, axis: int, uses: list[Use], scale: int) -> Size:
    first = uses[0]
    least = reduce(dims.minimum, (use.start for use in uses))
    return dims.cdiv(first.size - least, first.step * scale)


def _scale(facts: _Facts, axis: int) -> int:
    """Every how many-th id is enough: the fewest ids that a store's window spans, 1 where that is not proven."""
    repeats = any(access.effect == "accumulates" for access in facts.accesses)
    if repeats or any(_counts_programs(op) for op in facts.kernel.body.walk()):
        return 1
    scales = []
    for store in facts.stores:
        overlapping = _overlapping(facts, store, set(facts.ids))
        if overlapping and not row_dependence(facts.kernel, store.op, overlapping).local:
            return 1
        for tensor_axis in range(len(store.window.offsets)):
            if PROGRAM_IDS[axis] in facts.symbols(store.window, tensor_axis):
                use = _use(facts, store, tensor_axis, axis)
                spans = axis in overlapping and isinstance(use.step, int) and isinstance(use.extent, int)
                scales.append(max(use.extent // use.step, 1) if spans else 1)  # type: ignore[operator]
    return min(scales, default=1)


def _counts_programs(op: Op) -> bool:
    """Whether an op tells how many programs there are, or shows that a program ran."""
    return op.name == "num_programs" or op.definition.has(ORDERED)


# Overlap --------------------------------------------------------------------------------------------------------------


def _overlapping(facts: _Facts, store: Access, axes: set[int]) -> set[int]:
    """The program axes along which the windows of two programs may overlap: `axes` less those that keep them apart.

    An id keeps windows apart when some tensor axis moves by at least the window's extent at each step of it; other ids
    in that offset must be known to be equal wherever two windows overlap, so they are settled first.
    """
    apart: set[int] = set()
    for _ in axes:
        for tensor_axis in range(len(store.window.offsets)):
            reached = facts.reach(store.window, tensor_axis)
            if reached is None:
                continue
            open_axes = [a for a in sorted(axes - apart) if PROGRAM_IDS[a] in dims.symbols(reached[0])]
            split = dims.coefficient(reached[0], PROGRAM_IDS[open_axes[0]]) if len(open_axes) == 1 else None
            if split is not None:
                step, extent = split[0], reached[1]
                if step == extent or (isinstance(step, int) and isinstance(extent, int) and abs(step) >= extent):
                    apart.add(open_axes[0])
    return axes - apart


def _surely_overlaps(facts: _Facts, store: Access, axis: int) -> bool:
    """Whether the windows of programs that are neighbours along `axis` are known to overlap."""
    for tensor_axis in range(len(store.window.offsets)):
        reached = facts.reach(store.window, tensor_axis)
        split = dims.coefficient(reached[0], PROGRAM_IDS[axis]) if reached is not None else None
        if reached is None or split is None:
            return False
        step, extent = split[0], reached[1]
        if step != 0 and not (isinstance(step, int) and isinstance(extent, int) and abs(step) < extent):
            return False
    return True


def _refuse_races(facts: _Facts, axes: set[int], scales: Mapping[int, int]) -> None:
    """Raises SourceError TS307 for a store at which programs of a grid with these axes meet with different values."""
    for store in facts.stores:
        overlapping = _overlapping(facts, store, axes)
        if not overlapping:
            continue
        found = row_dependence(facts.kernel, store.op, overlapping)
        # A store that runs under a condition on an id may well run in one program only.
        if found.local or found.conditional:
            continue
        for axis in sorted(overlapping):
            if scales.get(axis, 1) == 1 and _surely_overlaps(facts, store, axis):
                raise SourceError(
                    "TS307",
                    f"programs along program_id({axis}) store to the same elements of "
                    f"'{store.window.parameter.name}', and their values may differ: {found.reason}",
                    store.op.loc,
                )


def check_overlap(kernel: Kernel, grid: Sequence[int]) -> None:
    """Raises SourceError TS307 when two programs of `grid` store possibly different values to one element."""
    _refuse_races(_Facts(kernel), {axis for axis, extent in enumerate(grid) if extent > 1}, {})


# Explicit grids -------------------------------------------------------------------------------------------------------


def apply_grid(kernel: Kernel, grid: Sequence[Size]) -> Kernel:
    """A copy of the kernel for a grid given at the call: every id runs, none is skipped. Raises ArgumentError TS203."""
    if not 1 <= len(grid) <= 3 or any(isinstance(extent, int) and extent < 0 for extent in grid):
        raise ArgumentError("TS203", f"a grid is 1 to 3 numbers of at least 0, not {_grid_text(grid)}", kernel.loc)
    copy, _ = clone_kernel(kernel)
    _set_scales(copy, {})
    copy.attributes["grid"], copy.attributes["notes"] = tuple(grid), ()
    return copy


def launch_grid(kernel: Kernel, values: Mapping[str, int]) -> tuple[int, int, int]:
    """The kernel's grid in programs under dim `values`, three axes. An axis of 0 means that nothing is launched.

    Raises ArgumentError TS601 when a dim of the grid has no value.
    """
    known = {**kernel.attributes.get("static", {}), **values}
    try:
        extents = [max(extent, 0) for extent in grid_extents(kernel.attributes["grid"], known)]
    except KeyError as error:
        message = f"the grid of '{kernel.name}' needs the dim {error.args[0]}, which no argument gives"
        raise ArgumentError("TS601", message, kernel.loc) from None
    x, y, z = (*extents, 1, 1)[:3]
    return x, y, z


# Coverage -------------------------------------------------------------------------------------------------------------

_MOST_CELLS = 1 << 22


def check_coverage(kernel: Kernel, values: Mapping[str, int], grid: Sequence[int], partial: bool = False) -> None:
    """Checks a launch of `grid` under dim `values`: no two programs in each other's way, and every element written.

    Raises SourceError TS307 as `check_overlap`, and ArgumentError TS306 for elements of an output that are shown to be
    left out; `partial` allows those. Windows that are not affine show nothing and pass. A store under a condition
    counts as run.
    """
    facts = _Facts(kernel)
    _refuse_races(facts, {axis for axis, extent in enumerate(grid) if extent > 1}, {})
    if partial:
        return
    known = {**kernel.attributes.get("static", {}), **values}
    ranges = {name: range(extent) for name, extent in zip(PROGRAM_IDS, (*grid, 1, 1), strict=False)}
    for name, progression in facts.progressions.items():
        numbers = progression.evaluate(known)
        if numbers is not None:
            ranges[name] = numbers
    for parameter in _outputs(facts):
        try:
            shape = tuple(dims.evaluate(size, known) for size in parameter.type.shape)  # type: ignore[union-attr]
        except KeyError:
            continue
        boxes = [_box(store, shape, ranges, known) for store in facts.stores if store.window.parameter is parameter]
        missing = _missing(shape, [box for box in boxes if box is not None]) if 0 not in shape else None
        if missing is not None:
            raise ArgumentError(
                "TS306",
                f"{_missing_text(parameter, shape, missing)} never written by the grid {_grid_text(grid)}",
                kernel.loc,
            )


def _grid_text(grid: Sequence[Size]) -> str:
    return f"({', '.join(dims.to_text(extent) for extent in grid)}{',' if len(grid) == 1 else ''})"


def _outputs(facts: _Facts) -> list[Value]:
    """Parameters of role "out"; without a parameter table, those that are written and never read."""
    table = facts.kernel.attributes.get("parameters")
    if table is not None:
        names = {name for name, role in table if role == "out"}
        return [parameter for parameter in facts.kernel.parameters if parameter.name in names]
    read = {access.window.parameter for access in facts.accesses if access.effect != "writes"}
    return [p for p in dict.fromkeys(store.window.parameter for store in facts.stores) if p not in read]


Intervals = list[tuple[int, int]]


def _box(
    store: Access, shape: tuple[int, ...], ranges: Mapping[str, range], known: Mapping[str, int]
) -> list[Intervals] | None:
    """Per tensor axis what the store may write in all programs, unknown being everything; None when it never runs."""
    if any(len(ranges[name]) == 0 for name in (*PROGRAM_IDS, *store.loops) if name in ranges):
        return None
    box = []
    for offset, extent, size in zip(store.window.offsets, store.window.extents, shape, strict=True):
        width = dims.substitute(extent, known)
        covered = cover(dims.substitute(offset, known), width, size, ranges) if isinstance(width, int) else None
        box.append([(0, size)] if covered is None else covered)
    return box


Missing = tuple["int | None", list[tuple[int, int]]]  # an axis and its rows, or None and an interval per axis


def _missing(shape: tuple[int, ...], boxes: list[list[Intervals]]) -> Missing | None:
    """What no box holds: whole rows of an axis where there are any, else one block of elements.

    The boxes' edges cut every axis into cells, each wholly inside or outside of a box, so a bool per cell is exact.
    """
    edges = [
        # np.unique would import numpy.ma, which takes longer than all the rest of a first call.
        np.array(sorted({0, size, *(edge for box in boxes for interval in box[axis] for edge in interval)}))
        for axis, size in enumerate(shape)
    ]
    counts = [len(cuts) - 1 for cuts in edges]
    whole = math.prod(counts) <= _MOST_CELLS
    mask = np.zeros(counts, bool) if whole else None
    touched = [np.zeros(count, bool) for count in counts]
    for box in boxes:
        if not all(box):
            continue
        inside = [_inside(cuts, intervals) for cuts, intervals in zip(edges, box, strict=True)]
        touched = [a | b for a, b in zip(touched, inside, strict=True)]
        if mask is not None:
            mask |= reduce(np.multiply.outer, inside)
    for axis, (cuts, cells) in enumerate(zip(edges, touched, strict=True)):
        if not cells.all():
            return axis, _joined((int(cuts[i]), int(cuts[i + 1])) for i in np.flatnonzero(~cells))
    if mask is None or mask.all():
        return None
    cell = np.argwhere(~mask)[0]
    return None, [(int(cuts[i]), int(cuts[i + 1])) for cuts, i in zip(edges, cell, strict=True)]


def _inside(cuts: np.ndarray, intervals: Intervals) -> np.ndarray:
    """Which cells between `cuts` lie in one of the disjoint `intervals`, whose ends are cuts."""
    change = np.zeros(len(cuts), np.int64)
    for low, high in intervals:
        change[np.searchsorted(cuts, low)] += 1
        change[np.searchsorted(cuts, high)] -= 1
    return np.cumsum(change)[:-1] > 0


def _joined(intervals: Iterable[tuple[int, int]]) -> Intervals:
    result: Intervals = []
    for low, high in intervals:
        if result and result[-1][1] == low:
            result[-1] = (result[-1][0], high)
        else:
            result.append((low, high))
    return result


def _rows_text(interval: tuple[int, int]) -> str:
    low, high = interval
    return f"{low}..{high - 1}" if high - low > 1 else str(low)


def _missing_text(parameter: Value, shape: tuple[int, ...], missing: Missing) -> str:
    axis, intervals = missing
    if axis is None:
        return f"elements [{', '.join(map(_rows_text, intervals))}] of '{parameter.name}' are"
    one = len(intervals) == 1 and intervals[0][1] - intervals[0][0] == 1
    more = (
        f" and {len(intervals) - 1} more ranges"
        if len(intervals) > 2
        else (f" and {_rows_text(intervals[1])}" if len(intervals) == 2 else "")
    )
    size: Size = parameter.type.shape[axis]  # type: ignore[union-attr]
    extent = f"size {shape[axis]}" if isinstance(size, int) else f"dim {dims.to_text(size)} = {shape[axis]}"
    return (
        f"row{'' if one else 's'} {_rows_text(intervals[0])}{more} of '{parameter.name}' (axis {axis}, {extent}) "
        f"{'is' if one else 'are'}"
    )
