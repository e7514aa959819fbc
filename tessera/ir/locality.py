"""Row-local stores: is what lands in tensor row R the same whichever program stores it?

A grid may leave out programs, or let windows overlap, exactly where this holds. The analysis follows a chosen set of
program ids forward through the kernel and describes each value by its axes. A value that is not `Varying` is a
function of its element's index alone, where along an `Aligned` axis the index counts as `part + index`, and `part` is
the share of the window's offset that the ids make up. Rows of two programs with the same `part + index` are then the
same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from tessera.errors import InternalError
from tessera.ir import dims
from tessera.ir.affine import PROGRAM_IDS, Cache, expression, opaque_symbol, opaque_values, window_of
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import BRANCH, CONSTANT, COUNTED, ELEMENTWISE, LOOP, PURE
from tessera.ir.ops.control import carried_values
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import BufferType, RingType, TokenType, ViewType, shape_of, tensor_type


@dataclass(frozen=True)
class Aligned:
    """Along this axis an element depends on its index and the program ids only through `part` + index."""

    part: Size


@dataclass(frozen=True)
class Varying:
    """The value depends on the program ids in some other way; `reason` says how, as a clause of a message."""

    reason: str


SAME, FREE = "same", "free"  # along the axis: all elements equal; elements differ, but not with the program ids
Axis = str | Aligned
State = tuple[Axis, ...] | Varying


@dataclass(frozen=True)
class RowDependence:
    """`local`: programs that differ in the ids asked about store equal values wherever their windows overlap.

    `axes` describes the stored tile's axes (empty when it varies), `reason` why it is not local, as a clause of a
    message. `conditional`: whether the ids decide if, or how often, the store runs at all; such a store is never local.
    """

    local: bool
    axes: tuple[Axis, ...] = ()
    reason: str = ""
    conditional: bool = False


def row_dependence(kernel: Kernel, store: Op, program_axes: Iterable[int] = (0, 1, 2)) -> RowDependence:
    """How the value that `store` writes depends on the ids of `program_axes`; the other ids are taken as fixed."""
    analysis = _Analysis(kernel, program_axes)
    analysis.run()
    return analysis.dependence(store)


def _join_axis(a: Axis, b: Axis) -> Axis | Varying:
    if a == b or b == SAME:
        return a
    if a == SAME:
        return b
    if isinstance(a, Aligned) and isinstance(b, Aligned):
        return Varying("rows of windows at different offsets meet in it")
    return Varying("its rows meet rows that are counted from the start of the window")


def join(a: State, b: State) -> State:
    """The least that describes both `a` and `b`."""
    if isinstance(a, Varying) or isinstance(b, Varying):
        return a if isinstance(a, Varying) else b
    axes = []
    for left, right in zip(a, b, strict=True):
        joined = _join_axis(left, right)
        if isinstance(joined, Varying):
            return joined
        axes.append(joined)
    return tuple(axes)


def _shift(axis: Axis, part: Size) -> Axis:
    """The axis of a window that starts `part` further on."""
    if axis == SAME:
        return SAME
    total = part + (axis.part if isinstance(axis, Aligned) else 0)
    return Aligned(total) if total != 0 else FREE


class _Analysis:
    """States only rise while the body is walked again and again, so the walk ends; a value not reached yet has none."""

    def __init__(self, kernel: Kernel, program_axes: Iterable[int]) -> None:
        self.kernel = kernel
        self.symbols = {PROGRAM_IDS[axis] for axis in program_axes}
        self.cache: Cache = {}
        self.states: dict[Value, State] = {}
        self.control: dict[int, Varying | None] = {}  # op id -> why the ids decide whether the op runs
        self.changed = False
        written = {
            window_of(value, self.cache).parameter
            for op in kernel.body.walk()
            for effect, value in op.definition.effects_of(op)
            if effect != "reads" and isinstance(value.type, ViewType)
        }
        for parameter in kernel.parameters:
            # Another program may already have overwritten what this one is about to read.
            race = Varying(f"it reads '{parameter.name}', which other programs write")
            tensor = tensor_type(parameter.type)
            rank = len(tensor.shape) if tensor is not None else 0
            self.states[parameter] = race if parameter in written else (FREE,) * rank

    def run(self) -> None:
        self.changed = True
        while self.changed:
            self.changed = False
            self.walk(self.kernel.body, None)

    def raise_to(self, value: Value, state: State | None) -> None:
        if state is None:
            return
        old = self.states.get(value)
        new = state if old is None else join(old, state)
        if new != old:
            self.states[value] = new
            self.changed = True

    def walk(self, block: Block, control: Varying | None) -> None:
        for op in block.ops:
            self.control[op.id] = control
            if op.regions:
                self.enter(op, control)
                continue
            for value in op.results:
                self.raise_to(value, self.result(op, value))
            for effect, target in op.definition.effects_of(op):
                if effect != "reads" and isinstance(target.type, BufferType):
                    self.raise_to(target, control or self.written(op, target))

    def enter(self, op: Op, control: Varying | None) -> None:
        """Regions: what decides whether and how often they run decides about every value that they give."""
        loop, branch = op.definition.has(LOOP), op.definition.has(BRANCH)
        counted = op.definition.has(COUNTED)
        deciding = op.operands[:3] if counted else op.operands[:1] if loop or branch else op.operands
        if loop and not counted:
            deciding = [*deciding, op.regions[0].ops[-1].operands[0]]
        for value in deciding:
            if isinstance(self.states.get(value), Varying):
                control = control or Varying(f"a program id decides about the {op.name} around it")
        if not loop and not branch:
            control = control or Varying(f"{op.name} is not understood")
        for region in op.regions:
            if counted:
                self.raise_to(region.arguments[0], control or ())
            for initial, argument, _, _ in carried_values(op) if loop else ():
                self.raise_to(argument, self.states.get(initial))
            self.walk(region, control)
            final = region.ops[-1].operands if region.ops else []
            for value, result in zip(final, op.results, strict=False):
                self.raise_to(result, control or self.states.get(value))
        for initial, argument, value, result in carried_values(op) if loop else ():
            self.raise_to(argument, self.states.get(value))
            self.raise_to(result, control or self.states.get(initial))  # of a loop that runs no time at all

    def result(self, op: Op, value: Value) -> State | None:
        if isinstance(value.type, (TokenType, BufferType, RingType)):
            return None
        # The offsets of a window may depend on program ids: that is what its rule is about.
        states = [self.states.get(operand) for operand in op.operands[: 1 if op.name in _WINDOWED else None]]
        if any(state is None for state in states):
            return None
        for state in states:
            if isinstance(state, Varying):
                return state
        known: list[tuple[Axis, ...]] = states  # type: ignore[assignment]
        if op.name in _RULES:
            return _RULES[op.name](self, op, known)
        if op.definition.has(ELEMENTWISE):
            rank = len(shape_of(value.type))
            return reduce(join, (state for state in known if len(state) == rank), (SAME,) * rank)
        if op.definition.has(CONSTANT):
            return ()
        if op.definition.has(PURE) and not any(isinstance(axis, Aligned) for state in known for axis in state):
            return (FREE,) * len(shape_of(value.type))
        return Varying(f"{op.name} is not known to keep rows apart")

    def part(self, offset: Value) -> Size | Varying:
        """The share of an offset that the program ids make up. What is left of the offset does not depend on them."""
        size = expression(offset, self.cache)
        for leaf in opaque_values(offset):
            if isinstance(self.states.get(leaf), Varying):
                return Varying("a window starts at a value that was computed from a program id")
        try:
            part = size - dims.substitute(size, {name: 0 for name in self.symbols})
        except ZeroDivisionError:
            return Varying("a window offset divides by a program id")
        # A factor that changes between iterations would make equal parts mean different rows.
        changing = {opaque_symbol(leaf) for leaf in opaque_values(offset) if leaf.owner is not self.kernel.body}
        if dims.symbols(part) & changing:
            return Varying("a window offset multiplies a program id by a value that is not the same throughout")
        return part

    def windowed(self, op: Op, source: Sequence[Axis], offsets: Sequence[Value], kept: Sequence[bool]) -> State:
        """The axes of a window of something with the axes `source`."""
        axes: list[Axis] = []
        for axis, offset, keep in zip(source, offsets, kept, strict=True):
            part = self.part(offset)
            if isinstance(part, Varying):
                return part
            shifted = _shift(axis, part)
            if keep:
                axes.append(shifted)
            elif isinstance(shifted, Aligned):
                return Varying(f"it depends on the one row of '{op.operands[0].name}' that a program id picks")
        return tuple(axes)

    def written(self, op: Op, target: Value) -> State | None:
        """What a write makes of its buffer. A partial write leaves elements that differ from those that it writes."""
        source = next(value for value in op.operands if value is not target)
        state = self.states.get(source)
        if state is None or isinstance(state, Varying):
            return state
        if len(state) != len(shape_of(target.type)):
            return Varying(f"{op.name} to '{target.name}' is not understood")
        offsets = [value for value in op.operands if value is not target and value is not source]
        if not offsets:
            return state
        axes: list[Axis] = []
        shapes = zip(state, shape_of(source.type), shape_of(target.type), offsets, strict=True)
        for axis, extent, size, offset in shapes:
            part = self.part(offset)
            if isinstance(part, Varying):
                return part
            whole = extent == size and expression(offset, self.cache) == 0
            if part != 0 or (isinstance(axis, Aligned) and not whole):
                return Varying(f"'{target.name}' is written in parts")
            axes.append(axis if whole else FREE)
        return tuple(axes)

    def dependence(self, store: Op) -> RowDependence:
        if store.id not in self.control:
            raise InternalError("TS901", "the store is not an op of this kernel", store.loc)
        control = self.control[store.id]
        if control is not None:
            return RowDependence(False, reason=control.reason, conditional=True)
        state = self.states.get(store.operand("value"))
        for mask in store.operands[2:]:
            found = self.states.get(mask)
            if isinstance(found, Varying):
                return RowDependence(False, reason=f"its mask differs: {found.reason}", conditional=True)
            state = state if state is None or found is None else join(state, found)
        if state is None:
            return RowDependence(False, reason="it reads a buffer that nothing writes")
        if isinstance(state, Varying):
            return RowDependence(False, reason=state.reason)
        window = window_of(store.operand("view"), self.cache)
        for operand in window.operands:
            part = self.part(operand)
            if isinstance(part, Varying):
                return RowDependence(False, state, part.reason)
        zeros: dict[str, Size] = {name: 0 for name in self.symbols}
        for axis, tensor_axis in zip(state, window.kept_axes, strict=True):
            offset = window.offsets[tensor_axis]
            part = offset - dims.substitute(offset, zeros)
            if axis != SAME and axis != _shift(FREE, part):
                counted = (
                    "it depends on rows at another offset"
                    if isinstance(axis, Aligned)
                    else ("its rows are counted from the start of the window")
                )
                return RowDependence(False, state, counted)
        return RowDependence(True, state)


def _program_id(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    axis = op.attributes["axis"]
    return Varying(f"it is computed from program_id({axis})") if PROGRAM_IDS[axis] in analysis.symbols else ()


def _window(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    return analysis.windowed(op, states[0], op.operands[1:], op.attributes["kept"])


def _read(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    offsets = op.operands[1:]
    return analysis.windowed(op, states[0], offsets, (True,) * len(offsets)) if offsets else states[0]


def _full(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    return (SAME,) * len(shape_of(op.result.type))


def _broadcast(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    axes: list[Axis] = []
    for axis, size, full in zip(states[0], shape_of(op.operands[0].type), shape_of(op.result.type), strict=True):
        if size == full:
            axes.append(axis)
        elif isinstance(axis, Aligned):
            return Varying("one row that a program id picks is spread over all rows")
        else:
            axes.append(SAME)
    return tuple(axes)


def _transpose(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    *leading, row, column = states[0]
    return (*leading, column, row)


def _reduce(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    axes = list(states[0])
    axis = negative_axis(op, len(axes))
    if isinstance(axes[axis], Aligned):
        return Varying(f"a {op.name.removeprefix('reduce_')} over the rows of the window goes into it")
    axes[axis] = SAME
    return tuple(axes)


def _scan(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    axes = list(states[0])
    axis = negative_axis(op, len(axes))
    if isinstance(axes[axis], Aligned):
        return Varying(f"a {op.name} over the rows of the window goes into it")
    axes[axis] = FREE
    return tuple(axes)


def _iota(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    axes: list[Axis] = [SAME] * len(shape_of(op.result.type))
    axes[op.attributes["axis"]] = FREE
    return tuple(axes)


def _extract(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    sizes = zip(states[0], op.attributes["extents"], shape_of(op.operands[0].type), strict=True)
    if any(isinstance(axis, Aligned) and extent != size for axis, extent, size in sizes):
        return Varying("a part of the rows of the window goes into it")
    return states[0]


def _mma(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    row, inner_a = reversed(states[0]) if op.attributes.get("transpose_a") else states[0]
    inner_b, column = reversed(states[1]) if op.attributes.get("transpose_b") else states[1]
    if isinstance(inner_a, Aligned) or isinstance(inner_b, Aligned):
        return Varying("a matrix product sums over the rows of the window")
    return reduce(join, states[2:], (row, column))


def _reshape(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    """Axes that stay keep their state, axes of size 1 come and go, axes that merge or split lose their order."""
    source, target = shape_of(op.operands[0].type), shape_of(op.result.type)
    if source == target:
        return states[0]
    old = [(size, axis) for size, axis in zip(source, states[0], strict=True) if size != 1 or isinstance(axis, Aligned)]
    new = [index for index, size in enumerate(target) if size != 1]
    if [size for size, _ in old] == [target[index] for index in new]:
        axes: list[Axis] = [SAME] * len(target)
        for index, (_, axis) in zip(new, old, strict=True):
            axes[index] = axis
        return tuple(axes)
    # Equal leading and trailing axes are whole axes still; between them nothing is known.
    first = 0
    while first < min(len(old), len(new)) and old[first][0] == target[new[first]]:
        first += 1
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last][0] == target[new[-1 - last]]:
        last += 1
    middle = old[first : len(old) - last]
    if any(isinstance(axis, Aligned) for _, axis in middle):
        return Varying("a reshape mixes the rows of the window with another axis")
    axes = [SAME] * len(target)
    mixed: Axis = SAME if all(axis == SAME for _, axis in middle) else FREE
    for index in new:
        axes[index] = mixed
    for offset in range(first):
        axes[new[offset]] = old[offset][1]
    for offset in range(1, last + 1):
        axes[new[-offset]] = old[-offset][1]
    return tuple(axes)


def _first(analysis: _Analysis, op: Op, states: list[tuple[Axis, ...]]) -> State:
    return states[0]


_WINDOWED = ("window", "read")
_RULES: dict[str, Callable[[_Analysis, Op, list[tuple[Axis, ...]]], State]] = {
    "program_id": _program_id,
    "window": _window,
    "element": _first,  # an index that follows the ids makes the view vary before this rule is asked
    "limit": _first,  # where the limits do not vary, an element is masked by its index alone
    "load": _first,
    "read": _read,
    "full": _full,
    "broadcast": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "mma": _mma,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "argmax": _reduce,
    "argmin": _reduce,
    "cumsum": _scan,
    "cummax": _scan,
    "iota": _iota,
    "extract": _extract,
}

__all__ = ["FREE", "SAME", "Aligned", "RowDependence", "Varying", "join", "row_dependence"]
