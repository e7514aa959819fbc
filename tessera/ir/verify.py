"""What legal IR is, checked after every pass: structure here, the order of effects and placement in `verify_order`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tessera.dtypes import DType
from tessera.errors import SourceError, TesseraError
from tessera.ir.core import Block, Kernel, Module, Op, Value
from tessera.ir.dims import Dim
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.opdef import GRAPH, LOOP, REQUIRED, TARGET, TERMINATOR, TILE, table
from tessera.ir.stages import allocation, stage_count
from tessera.ir.types import BufferType, TileType, type_text
from tessera.ir.verify_order import MAX_LOOPS, Order, check_placement, invalid, name_of
from tessera.ir.verify_roles import check_roles
from tessera.location import Loc

# What a type rule raises when operands or attributes are of a kind that it did not expect.
RULE_FAULTS = (
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
    ArithmeticError,
    RecursionError,
)


def verify(module: Module | Kernel, level: str | None = None, barriers: bool = False, placed: bool = False) -> None:
    """Raises SourceError unless the IR is legal.

    `level` is needed only for a kernel alone; without it a kernel with an op that Tile level lacks is of Target level.
    `barriers`: at Target level, also demand a barrier between a write of a shared buffer and a read of it, and the
    other way round. `placed`: also demand that buffers have offsets and that those alive at one time do not overlap.

    TS703: the IR breaks a rule. TS502: a buffer is used, or the kernel ends, while a copy into it may be in flight.
    TS503: a buffer is read that nothing has written. The location is that of the op.
    """
    if isinstance(module, Module):
        names = [kernel.name for kernel in module.kernels]
        for kernel in module.kernels:
            if names.count(kernel.name) > 1:
                raise SourceError("TS703", f"there are two kernels named '{kernel.name}'", kernel.loc)
            verify(kernel, module.level, barriers, placed)
        return
    level = level or _level_of(module)
    _Structure(level).kernel(module)
    if level == GRAPH:
        return  # nothing has an effect there
    check_roles(module, level, barriers and level == TARGET)
    Order(barriers and level == TARGET).kernel(module)
    if placed and level == TARGET:
        check_placement(module)


def _level_of(kernel: Kernel) -> str:
    definitions = (table().get(op.name) for op in kernel.body.walk())
    return TARGET if any(d is not None and TILE not in d.levels for d in definitions) else TILE


# Attributes -----------------------------------------------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_int(value) or isinstance(value, Dim)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _tuple_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_layout(value: Any) -> bool:
    return isinstance(value, (RegisterLayout, SharedLayout))


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _is_int(number) for key, number in value.items())


def _constants(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, (bool, int, float, str)) for item in value.values())


# An attribute name means one thing in every op, so its kind is said once. A default is always allowed.
ATTRIBUTE_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("axis", "vector", "offset", "pending", "id", "threads", "share"), ("an integer", _is_int)),
    **dict.fromkeys(
        (
            "scale",
            "unroll",
            "stages",
            "parts",
            "depth",
            "columns",
            "arrivals",
            "bytes",
            "cluster",
            "multicast",
            "readers",
            "shares",
        ),
        ("a positive integer", lambda value: _is_int(value) and value > 0),
    ),
    **dict.fromkeys(
        (
            "weak",
            "static",
            "parallel",
            "whole",
            "bypass_l1",
            "transpose_a",
            "transpose_b",
            "transposed",
            "implicit",
            "fresh",
            "read",
            "apart",
        ),
        ("true or false", _is_bool),
    ),
    **dict.fromkeys(("shape", "extents"), ("a tuple of sizes", _tuple_of(_is_size))),
    "starts": ("a tuple of sizes", _tuple_of(_is_size)),
    "dims": ("sizes by dim", lambda value: isinstance(value, dict) and all(map(_is_size, value.values()))),
    "kept": ("a tuple of true and false", _tuple_of(_is_bool)),
    "combine": ("sum, max or min", lambda value: isinstance(value, str) and value in ("sum", "max", "min")),
    "size": ("a size", _is_size),
    "value": ("a number", _is_number),
    "dtype": ("a dtype", lambda value: isinstance(value, DType)),
    "layout": ("a layout", _is_layout),
    **dict.fromkeys(("swizzle", "precision"), ("a string", lambda value: isinstance(value, str))),
    **dict.fromkeys(("format", "message"), ("a string", lambda value: isinstance(value, str))),
    "kind": ('"add" or "max"', lambda value: isinstance(value, str) and value in ("add", "max")),
    "permutation": ("a tuple of integers", _tuple_of(_is_int)),
    **dict.fromkeys(("mesh_axis", "callee", "region", "device", "overlap"), ("a string", lambda v: isinstance(v, str))),
    "coordinate": ("an integer", _is_int),
    "shapes": ("a tuple of tuples of sizes", _tuple_of(_tuple_of(_is_size))),
    "dtypes": ("a tuple of dtypes", _tuple_of(lambda value: isinstance(value, DType))),
    "names": ("a tuple of strings", _tuple_of(lambda value: isinstance(value, str))),
    **dict.fromkeys(("warps", "registers"), ("a tuple of integers", _tuple_of(_is_int))),
    "scope": ('"role" or "warp"', lambda value: isinstance(value, str) and value in ("role", "warp")),
    "role": ('"a" or "b"', lambda value: isinstance(value, str) and value in ("a", "b")),
}

KERNEL_ATTRIBUTE_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "grid": ("a tuple of sizes", _tuple_of(_is_size)),
    "static": ("integers by dim", _counts),
    "divisors": (
        "positive integers by dim",
        lambda value: _counts(value) and all(number > 0 for number in value.values()),
    ),
    "alignment": ("bytes by parameter", _counts),
    "strides": (
        "a tuple of sizes by parameter",
        lambda value: isinstance(value, dict) and all(map(_tuple_of(_is_size), value.values())),
    ),
    "constants": ("numbers, bools and strings by name", _constants),
    **dict.fromkeys(("arch", "lane"), ("a string", lambda value: isinstance(value, str))),
    "producer_warps": ("an integer from 1 to 32", lambda value: _is_int(value) and 0 < value <= 32),
    "warps": ("an integer from 1 to 32", lambda value: _is_int(value) and 0 < value <= 32),
    "shared_bytes": ("an integer", lambda value: _is_int(value) and value >= 0),
    "logical_bytes": ("bytes by buffer", _counts),
    "pins": ("values by field of the schedule", lambda value: isinstance(value, dict)),
}


def attribute_problem(op: Op) -> str | None:
    """The first attribute of `op` that is missing, unknown or of the wrong kind, as a sentence, or None."""
    declared = op.definition.attributes
    for name in op.attributes:
        if name not in declared:
            return f"op {op.name} has no attribute '{name}'"
    for name, default in declared.items():
        if name not in op.attributes:
            return f"op {op.name} needs the attribute '{name}'"
        value = op.attributes[name]
        if default is None and value is None or name not in ATTRIBUTE_KINDS:
            continue
        kind, check = ATTRIBUTE_KINDS[name]
        if value is REQUIRED or not check(value):
            return f"the attribute '{name}' of op {op.name} must be {kind}, not {str(value)[:80]}"
    return None


def kernel_attribute_problem(kernel: Kernel) -> str | None:
    """The first attribute of `kernel` of the wrong kind, as a sentence, or None. Unknown names are allowed."""
    for name, value in kernel.attributes.items():
        kind, check = KERNEL_ATTRIBUTE_KINDS.get(name, ("", lambda value: True))
        if not check(value):
            return f"the attribute '{name}' must be {kind}, not {str(value)[:80]}"
    return None


# Structure ------------------------------------------------------------------------------------------------------------


class _Structure:
    """Names, arity, attributes, types, regions, origins, visibility; at Target level, layouts."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.visible: set[Value] = set()
        self.defined: set[Value] = set()
        self.loops = 0
        self.warps: int | None = None

    def kernel(self, kernel: Kernel) -> None:
        problem = kernel_attribute_problem(kernel)
        if problem:
            raise invalid(f"kernel {kernel.name}: {problem}", kernel.loc)
        self.warps = kernel.attributes.get("warps")
        seen: set[str] = set()
        for parameter in kernel.parameters:
            if parameter.name in seen or not parameter.name:
                raise invalid(f"the parameters of {kernel.name} need a name each, not {name_of(parameter)}", kernel.loc)
            seen.add(parameter.name)
        self._block(kernel.body, None, kernel.loc)

    def _block(self, block: Block, inside: Op | None, loc: Loc | None) -> None:
        for index, argument in enumerate(block.arguments):
            self._define(argument, block, index, loc)
        for op in block.ops:
            self._op(op)
            ends = inside is not None or self.level == GRAPH
            if op.definition.has(TERMINATOR) and not (ends and op is block.ops[-1]):
                raise invalid(f"{op.name} can only end a region", op.loc)
        if inside is not None and not (block.ops and block.ops[-1].definition.has(TERMINATOR)):
            raise invalid(f"a region of {inside.name} does not end in yield", loc)
        if inside is None and self.level == GRAPH and not (block.ops and block.ops[-1].name == "return"):
            raise invalid("a function does not end in return", loc)

    def _define(self, value: Value, owner: Op | Block, index: int, loc: Loc | None) -> None:
        if value in self.defined:
            raise invalid(f"the value {name_of(value)} is defined twice", loc)
        if value.owner is not owner or value.index != index:
            raise invalid(f"the value {name_of(value)} does not know that it is defined here", loc)
        self.defined.add(value)
        self.visible.add(value)
        if self.level == TARGET:
            problem = layout_problem(value, self.warps)
            if problem:
                raise invalid(problem, loc)

    def _op(self, op: Op) -> None:
        definition = table().get(op.name)
        if not op.origin:
            raise invalid(f"op {op.name} has no source location", None)
        if definition is None:
            raise invalid(f"there is no op '{op.name}'", op.loc)
        if self.level not in definition.levels:
            raise invalid(f"op {op.name} is not of the {self.level} level", op.loc)
        if not definition.check_arity(len(op.operands)):
            takes = ", ".join(definition.operands) or "no operands"
            raise invalid(f"op {op.name} takes {takes}, not {len(op.operands)} operands", op.loc)
        if not definition.check_regions(len(op.regions)):
            raise invalid(f"op {op.name} has {definition.regions} regions, not {len(op.regions)}", op.loc)
        problem = attribute_problem(op)
        if problem:
            raise invalid(problem, op.loc)
        for value in op.operands:
            if value not in self.visible:
                why = "outside the region that defines it" if value in self.defined else "before it is defined"
                raise invalid(f"op {op.name} uses {name_of(value)} {why}", op.loc)
            if op.name != "stage" and _has_stages(value):
                raise invalid(f"op {op.name} uses {name_of(value)}, of whose stages it must name one", op.loc)
        self.loops += definition.has(LOOP)
        if self.loops > MAX_LOOPS:
            raise invalid(f"loops nest more than {MAX_LOOPS} deep", op.loc)
        for region in op.regions:
            outer = set(self.visible)
            self._block(region, op, op.loc)
            self.visible = outer
        self.loops -= definition.has(LOOP)
        self._types(op)
        for index, value in enumerate(op.results):
            self._define(value, op, index, op.loc)

    def _types(self, op: Op) -> None:
        try:
            types = op.definition.type_rule(op)
        except TesseraError as error:
            raise invalid(error.message, op.loc) from None
        except RULE_FAULTS as error:
            message = f"the operands and attributes of {op.name} do not fit each other ({error})"
            raise invalid(message, op.loc) from error
        if len(types) != len(op.results):
            raise invalid(f"op {op.name} has {len(op.results)} results where its rule gives {len(types)}", op.loc)
        for value, type_ in zip(op.results, types, strict=True):
            if value.type != type_:
                raise invalid(
                    f"result {name_of(value)} of {op.name} is {type_text(value.type)}, but its rule gives "
                    f"{type_text(type_)}",
                    op.loc,
                )


def _has_stages(value: Value) -> bool:
    """Whether a value stands for all the stages of a buffer."""
    return isinstance(value.type, BufferType) and allocation(value) is value and stage_count(value) > 1


def layout_problem(value: Value, warps: int | None = None) -> str | None:
    """What Target level misses in the type of `value`, as a sentence: a layout that covers a static shape, of a tile
    for the kernel's `warps` (None: not said) or a part that divides them. Or None.
    """
    type_ = value.type
    if not isinstance(type_, (TileType, BufferType)):
        return None
    kind = "tile" if isinstance(type_, TileType) else "buffer"
    shape = [size for size in type_.shape if isinstance(size, int)]
    if len(shape) != len(type_.shape):
        return f"the {kind} {name_of(value)} has no static shape: {type_text(type_)}"
    if type_.layout is None:
        return f"the {kind} {name_of(value)} has no layout"
    if isinstance(type_.layout, SharedLayout):
        covers = type_.layout.rows >= math.prod(shape[-2:-1]) and type_.layout.cols >= math.prod(shape[-1:])
        if type_.layout.itemsize != type_.dtype.bytes:
            return f"the layout of {name_of(value)} is for elements of {type_.layout.itemsize} bytes, not {type_.dtype}"
    else:
        extents = type_.layout.shape
        if warps is not None and warps % type_.layout.warps:
            return f"the layout of tile {name_of(value)} is of {type_.layout.warps} warps, and the kernel has {warps}"
        covers = len(extents) == len(shape) and all(e >= s for e, s in zip(extents, shape, strict=True))
    return None if covers else f"the layout of {kind} {name_of(value)} does not cover its shape: {type_text(type_)}"


__all__ = [
    "ATTRIBUTE_KINDS",
    "KERNEL_ATTRIBUTE_KINDS",
    "RULE_FAULTS",
    "attribute_problem",
    "kernel_attribute_problem",
    "layout_problem",
    "verify",
]
