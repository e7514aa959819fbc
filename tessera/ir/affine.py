"""Integer scalars as symbolic expressions: what makes window offsets comparable before anything runs.

The front end asks for them to show that a slice has a constant extent and to infer a grid, passes to prove an offset in
bounds or a vector access aligned (`dims.divisor` of an expression). Symbols are the kernel's dims, `pid0`, `pid1` and
`pid2` for program ids, and a `v...` symbol for every other value: a loop index, a scalar parameter, a loaded number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.errors import InternalError
from tessera.ir import dims
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import Size
from tessera.ir.intervals import UNKNOWN, Interval, apply, multiply, plus
from tessera.ir.opdef import COUNTED
from tessera.ir.ops.elementwise import is_index
from tessera.ir.programs import MULTIPROCESSORS
from tessera.ir.types import tensor_type

Cache = dict[Value, Size]

PROGRAM_IDS = ("pid0", "pid1", "pid2")

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "cast": lambda a: a,
    "floordiv": dims.floordiv,
    "mod": dims.mod,
    "min": dims.minimum,
    "max": dims.maximum,
}
_LEAVES = ("constant", "size", "program_id")


def expression(value: Value, cache: Cache | None = None) -> Size:
    """The value of an integer scalar over symbols.

    `cache` keeps expressions between calls; one made before an op is changed in place must not be used after.
    """
    found: Cache = {} if cache is None else cache
    pending = [value]
    while pending:
        current = pending[-1]
        missing = [part for part in _parts(current) if part not in found]
        if current in found or not missing:
            pending.pop()
            if current not in found:
                found[current] = _combine(current, found)
        else:
            pending += missing
    return found[value]


def opaque_symbol(value: Value) -> str:
    """The symbol of a value that has no expression of its own. Block arguments have no number but their identity."""
    op = value.defining_op
    if op is None:
        return f"v{id(value)}"
    return f"v{op.id}" if len(op.results) == 1 else f"v{op.id}_{value.index}"


def opaque_values(value: Value) -> list[Value]:
    """The values that stand behind the `v...` symbols of `expression(value)`, each once."""
    leaves: dict[Value, None] = {}
    seen = {value}
    pending = [value]
    while pending:
        current = pending.pop()
        parts = _parts(current)
        if not parts and not _is_leaf(current):
            leaves[current] = None
        pending += [part for part in parts if part not in seen]
        seen.update(parts)
    return list(leaves)


def _parts(value: Value) -> list[Value]:
    op = value.defining_op
    understood = op is not None and op.name in _ARITHMETIC and all(is_index(v.type) for v in [value, *op.operands])
    return op.operands if op is not None and understood else []


def _is_leaf(value: Value) -> bool:
    op = value.defining_op
    return op is not None and op.name in _LEAVES and is_index(value.type)


def _combine(value: Value, found: Cache) -> Size:
    op = value.defining_op
    if op is not None and _is_leaf(value):
        if op.name == "constant":
            return int(op.attributes["value"])
        if op.name == "size":
            return op.attributes["size"]
        return dims.symbol(PROGRAM_IDS[op.attributes["axis"]]) * op.attributes["scale"]
    parts = _parts(value)
    # A division by zero is an error of the run, if the op is ever reached.
    if op is not None and parts and not (op.name in ("floordiv", "mod") and found[parts[1]] == 0):
        return _ARITHMETIC[op.name](*(found[part] for part in parts))
    return dims.symbol(opaque_symbol(value))


@dataclass(frozen=True)
class Window:
    """A view as a box of a parameter's tensor: per tensor axis an offset, an extent, and whether tiles have the axis.

    A parameter that is a list stands for every tensor in it. `operands` are the offset operands of all windows that the
    view was made through, and the index where it is of a list.
    """

    parameter: Value
    offsets: tuple[Size, ...]
    extents: tuple[Size, ...]
    kept: tuple[bool, ...]
    operands: tuple[Value, ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape of the parameter's tensor."""
        type_ = tensor_type(self.parameter.type)
        assert type_ is not None
        return type_.shape

    @property
    def kept_axes(self) -> list[int]:
        """The tensor axis of each tile axis."""
        return [axis for axis, keep in enumerate(self.kept) if keep]


def window_of(view: Value, cache: Cache | None = None) -> Window:
    """Follows windows of windows back to the parameter that `view` is a part of."""
    chain: list[Op] = []
    operands: list[Value] = []
    while (op := view.defining_op) is not None:
        if op.name == "window":
            chain.append(op)
        elif op.name == "element":
            operands.append(op.operand("index"))
        elif op.name != "limit":  # which only masks some of the elements
            raise InternalError("TS901", f"a view made by {op.name} is not understood", op.loc)
        view = op.operands[0]
    type_ = tensor_type(view.type)
    assert type_ is not None
    rank = len(type_.shape)
    offsets: list[Size] = [0] * rank
    extents, kept = list(type_.shape), [True] * rank
    for op in reversed(chain):
        axes = [axis for axis in range(rank) if kept[axis]]
        shifts, (sizes, keeps) = op.operands[1:], (op.attributes["extents"], op.attributes["kept"])
        for axis, shift, extent, keep in zip(axes, shifts, sizes, keeps, strict=True):
            offsets[axis] = offsets[axis] + expression(shift, cache)
            extents[axis], kept[axis] = extent, keep
        operands += shifts
    return Window(view, tuple(offsets), tuple(extents), tuple(kept), tuple(operands))


@dataclass(frozen=True)
class Progression:
    """The values that a symbol takes: start, start + step, ..., `count` of them."""

    start: Size
    step: Size
    count: Size

    def evaluate(self, values: Mapping[str, int]) -> range | None:
        """The same in numbers, or None where `values` leaves a symbol open or the step is zero."""
        try:
            start, step, count = (dims.evaluate(size, values) for size in (self.start, self.step, self.count))
        except (KeyError, ZeroDivisionError):
            return None
        return range(start, start + step * max(count, 0), step) if step != 0 else None


def loop_progression(loop: Op, cache: Cache | None = None) -> tuple[str, Progression]:
    """The symbol of a loop's index and the values that it takes, in the symbols of the loop's bounds."""
    lower, upper, step = (expression(value, cache) for value in loop.operands[:3])
    index = opaque_symbol(loop.regions[0].arguments[0])
    # A step of zero is an error of the run; here it only must not divide.
    count = dims.cdiv(upper - lower, step) if step != 0 else 0
    return index, Progression(lower, step, max(count, 0) if isinstance(count, int) else count)


def loops(block: Block) -> Iterator[Op]:
    """Every counted loop of the block and of the regions inside it."""
    return (op for op in block.walk() if op.definition.has(COUNTED))


def cover(
    offset: Size, extent: int, size: int, ranges: Mapping[str, range], limit: int = 1 << 20
) -> list[tuple[int, int]] | None:
    """The half-open intervals of [0, size) that windows of `extent` at `offset` touch as its symbols run over `ranges`.

    None where `offset` is not affine in symbols with a range, or takes more than `limit` values apart from each other.
    """
    strides = []
    for name in sorted(dims.symbols(offset)):
        split = dims.coefficient(offset, name)
        values = ranges.get(name)
        if split is None or values is None or not isinstance(split[0], int):
            return None
        factor, offset = split
        offset = offset + factor * values.start
        strides.append((factor * values.step, len(values)))
    if not isinstance(offset, int):
        return None
    starts, length = np.array([offset], np.int64), extent
    for stride, count in sorted(strides, key=lambda item: abs(item[0])):
        if count == 0:
            return []
        if len(starts) == 1 and abs(stride) <= length:  # the windows touch: one longer window
            starts = starts + min(stride * (count - 1), 0)
            length += abs(stride) * (count - 1)
        elif len(starts) * count > limit:
            return None
        else:
            starts = (starts[:, None] + stride * np.arange(count)).reshape(-1)
    merged: list[tuple[int, int]] = []
    for start in sorted(set(starts.tolist())):
        low, high = max(start, 0), min(start + length, size)
        if low < high:
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
    return merged


def symbol_ranges(
    kernel: Kernel,
    grid: tuple[Size, ...] | None = None,
    values: Mapping[str, int] | None = None,
    cache: Cache | None = None,
) -> dict[str, Interval]:
    """What each symbol of the kernel's expressions may be: ids in [0, grid), loop indices in bounds, dims >= 0.

    `values` are dims that are known, besides `kernel.attributes["static"]`; without `grid` the kernel's own is taken.
    """
    known = {**kernel.attributes.get("static", {}), **(values or {})}
    ranges: dict[str, Interval] = {}
    for parameter in kernel.parameters:
        tensor = tensor_type(parameter.type)
        for size in tensor.shape if tensor is not None else ():
            ranges.update({name: (0, None) for name in dims.symbols(size)})
    ranges.update({name: (value, value) for name, value in known.items()})
    extents = grid or kernel.attributes.get("grid", ())
    counts: list[int | None] = []
    for axis, name in enumerate(PROGRAM_IDS):
        within = {**ranges, MULTIPROCESSORS: (1, None)}
        greatest = bounds(extents[axis], within)[1] if axis < len(extents) else (None if not extents else 1)
        counts.append(None if greatest is None else max(greatest, 1))
        ranges[name] = (0, None if greatest is None else max(greatest - 1, 0))
    for op in kernel.body.walk():
        if op.name == "num_programs":
            ranges[opaque_symbol(op.result)] = (1, counts[op.attributes["axis"]])
    for loop in loops(kernel.body):
        lower, upper, step = (bounds(value, ranges, cache) for value in loop.operands[:3])
        index = opaque_symbol(loop.regions[0].arguments[0])
        if step[0] is not None and step[0] > 0:
            ranges[index] = (lower[0], None if upper[1] is None else upper[1] - 1)
        elif step[1] is not None and step[1] < 0:
            ranges[index] = (None if upper[0] is None else upper[0] + 1, lower[1])
    return ranges


def bounds(value: Value | Size, ranges: Mapping[str, Interval], cache: Cache | None = None) -> Interval:
    """The least and greatest value of an expression whose symbols lie in `ranges`, each monomial taken on its own."""
    size = expression(value, cache) if isinstance(value, Value) else value
    if isinstance(size, int):
        return size, size
    total: Interval = (0, 0)
    for monomial, number in size.terms:
        product: Interval = (number, number)
        for atom, power in monomial:
            if atom.function:
                operands = [bounds(argument, ranges) for argument in atom.arguments]
                factor = apply(atom.function, operands[0], operands[1])
            else:
                factor = ranges.get(atom.name, UNKNOWN)
            for _ in range(power):
                product = multiply(product, factor)
        total = (plus(total[0], product[0]), plus(total[1], product[1]))
    return total
