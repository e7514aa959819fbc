"""What an interpreter does before it runs a kernel: dims become numbers, arguments are checked, batches are sized.

The op table's `evaluate` functions see plain integers only: `concrete` copies a kernel with every size of its types and
attributes evaluated, and keeps op ids and source locations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera.errors import ArgumentError, SourceError
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.dims import Dim, evaluate, to_text
from tessera.ir.opdef import ORDERED
from tessera.ir.programs import EMULATED_MULTIPROCESSORS, MULTIPROCESSORS
from tessera.ir.types import (
    BufferType,
    ListType,
    ScalarType,
    Shape,
    TileType,
    Type,
    ViewType,
    substitute_type,
    tensor_type,
)

# Values of one batch of programs together. Temporaries of an op come on top, and small batches stay near the caches.
BATCH_BYTES = 32 << 20


def bind_dims(kernel: Kernel, dims: Mapping[str, int]) -> dict[str, int]:
    """`dims` and the kernel's static dims. Raises ArgumentError TS302 where they disagree."""
    bound = dict(kernel.attributes.get("static") or {})
    for name, value in dims.items():
        if bound.setdefault(name, value) != value:
            raise ArgumentError(
                "TS302",
                f"the dim {name} is {value}, but '{kernel.name}' was specialised for {name} = {bound[name]}",
                kernel.loc,
            )
    return bound


class _Sizes:
    """Evaluates sizes under the dims of one launch."""

    def __init__(self, kernel: Kernel, dims: dict[str, int]):
        self.kernel, self.dims = kernel, dims

    def number(self, size: Any) -> int:
        try:
            return evaluate(size, self.dims)
        except KeyError as error:
            message = f"the dim {error.args[0]} of '{self.kernel.name}' has no value"
            raise ArgumentError("TS601", message, self.kernel.loc) from None
        except ZeroDivisionError:
            raise ArgumentError(
                "TS302", f"the size {to_text(size)} of '{self.kernel.name}' divides by zero", self.kernel.loc
            ) from None

    def attribute(self, value: Any) -> Any:
        if isinstance(value, Dim):
            return self.number(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self.attribute(item) for item in value)
        if isinstance(value, dict):
            return {key: self.attribute(item) for key, item in value.items()}
        return value

    def type(self, type_: Type) -> Type:
        for size in getattr(tensor_type(type_) or type_, "shape", ()):
            self.number(size)
        return substitute_type(type_, self.dims)  # type: ignore[arg-type]


def concrete(kernel: Kernel, dims: dict[str, int]) -> Kernel:
    """A copy of `kernel` without symbols. Raises ArgumentError TS601 for a dim that has no value."""
    sizes = _Sizes(kernel, dims)
    mapping: dict[Value, Value] = {}

    def copy_block(block: Block) -> Block:
        new = Block()
        for argument in block.arguments:
            mapping[argument] = new.add_argument(sizes.type(argument.type), argument.name)
        for op in block.ops:
            new.ops.append(copy_op(op))
        return new

    def copy_op(op: Op) -> Op:
        regions = [copy_block(region) for region in op.regions]
        attributes = {name: sizes.attribute(value) for name, value in op.attributes.items()}
        new = Op(op.name, [mapping[value] for value in op.operands], attributes, [], regions, op.origin, op.id)
        for result in op.results:
            mapping[result] = Value(sizes.type(result.type), result.name, new, result.index)
            new.results.append(mapping[result])
        return new

    return Kernel(kernel.name, copy_block(kernel.body), dict(kernel.attributes), kernel.origin)


def numbers(shape: Shape) -> tuple[int, ...]:
    """The shape of a type of a concrete kernel."""
    return tuple(evaluate(size, {}) for size in shape)


def grid_of(kernel: Kernel, dims: dict[str, int], grid: tuple[int, ...] | None) -> tuple[int, ...]:
    """The launch grid: the given one, else the kernel's own. Raises SourceError TS305 when there is none."""
    sizes = grid if grid is not None else kernel.attributes.get("grid")
    if sizes is None:
        raise SourceError("TS305", f"'{kernel.name}' has no grid and none was given", kernel.loc)
    known = {MULTIPROCESSORS: EMULATED_MULTIPROCESSORS, **dims}
    return tuple(_Sizes(kernel, known).number(size) for size in sizes)


def check_arguments(kernel: Kernel, arguments: Mapping[str, Any]) -> None:
    """Checks names, kinds, dtypes and shapes against the parameters of a concrete kernel."""
    known = {parameter.name for parameter in kernel.parameters}
    for name in arguments:
        if name not in known:
            raise ArgumentError("TS601", f"'{kernel.name}' has no parameter '{name}'", kernel.loc)
    for parameter in kernel.parameters:
        name, type_ = parameter.name, parameter.type
        if name not in arguments:
            raise ArgumentError("TS601", f"'{kernel.name}' needs the argument '{name}'", kernel.loc)
        value = arguments[name]
        if isinstance(type_, ScalarType):
            if not isinstance(value, (bool, int, float, np.generic)):
                raise ArgumentError("TS604", f"'{name}' must be a number, not a {type(value).__name__}", kernel.loc)
            continue
        if isinstance(type_, ListType):
            if not isinstance(value, (list, tuple)) or len(value) != type_.length:
                given = f"{len(value)}" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
                message = f"'{name}' must be a list of {type_.length} arrays, not {given}"
                raise ArgumentError("TS604", message, kernel.loc)
            for number, item in enumerate(value):
                _check_array(f"{name}[{number}]", type_.element, item, kernel)
            continue
        assert isinstance(type_, ViewType)
        _check_array(name, type_, value, kernel)


def _check_array(name: str, type_: ViewType, value: Any, kernel: Kernel) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != type_.dtype.numpy:
        given = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        message = f"'{name}' must be an array of {type_.dtype.name}, not of {given}"
        raise ArgumentError("TS604", message, kernel.loc)
    if value.shape != tuple(type_.shape):
        raise ArgumentError(
            "TS302",
            f"'{name}' has the shape {list(value.shape)}, but its dims give {list(type_.shape)}",
            kernel.loc,
        )


def accessed(kernel: Kernel) -> tuple[set[Value], set[Value]]:
    """The parameters of tensors, and lists of tensors, that the kernel reads and those that it writes.

    A view that cannot be followed to a parameter counts as every parameter.
    """
    tensors = {parameter for parameter in kernel.parameters if tensor_type(parameter.type) is not None}
    reads: set[Value] = set()
    writes: set[Value] = set()
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            if not isinstance(value.type, ViewType):
                continue
            root = _root(value)
            roots = {root} if root is not None and root in tensors else tensors
            if effect != "writes":
                reads |= roots
            if effect != "reads":
                writes |= roots
    return reads, writes


def _root(view: Value) -> Value | None:
    """The block argument that a chain of view ops starts from."""
    while (op := view.defining_op) is not None:
        if not isinstance(op.operands[0].type, (ViewType, ListType)):
            return None
        view = op.operands[0]
    return view


def must_be_sequential(kernel: Kernel, arguments: Mapping[str, Any]) -> bool:
    """Whether programs must run one after the other.

    A program may read what another one writes, directly or because two arguments share memory; or what it does is seen
    outside, as a print is.
    """
    if any(op.definition.has(ORDERED) for op in kernel.body.walk()):
        return True
    reads, writes = accessed(kernel)
    return any(
        read is written or np.may_share_memory(a, b)
        for written in writes
        for read in reads
        for a in _arrays(arguments[read.name])
        for b in _arrays(arguments[written.name])
    )


def _arrays(argument: Any) -> list[Any]:
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]


LARGEST_TILE = 2**31  # elements of one tile or buffer: no program on any lane holds more


Dropped = dict[Op, tuple[Value, ...]]


def last_uses(body: Block) -> Dropped:
    """By op, of the body and of the regions in it, the values of its block that nothing needs after it.

    An interpreter that lets go of them holds what is alive, not all that a long kernel ever computed.
    """
    dropped: Dropped = {}
    _last_uses(body, set(), dropped)
    return dropped


def _last_uses(block: Block, own: set[Value], dropped: Dropped) -> set[Value]:
    """Adds the ops of a block, and of its regions, to `dropped`; `own` starts with the arguments that may go.

    Returns every value that they use.
    """
    own = own | {result for op in block.ops for result in op.results}
    used: set[Value] = set()
    for op in reversed(block.ops):
        needed = set(op.operands)
        for region in op.regions:
            needed |= _last_uses(region, set(region.arguments), dropped)
        dropped[op] = tuple(value for value in {*needed, *op.results} if value in own and value not in used)
        used |= needed
    return used


def programs_per_batch(kernel: Kernel, bytes_per_element: int, dropped: Dropped | None = None) -> int:
    """How many programs fit `BATCH_BYTES` with the tiles and buffers that are alive at once; at least 1."""
    peak = _peak_elements(kernel.body, dropped or last_uses(kernel.body)) * bytes_per_element
    return max(1, BATCH_BYTES // max(peak, 1))


def _peak_elements(block: Block, dropped: Dropped) -> int:
    """The most elements of tiles and buffers made in a block that are alive at one of its ops."""
    alive = peak = sum(map(_elements, block.arguments))
    for op in block.ops:
        inside = max((_peak_elements(region, dropped) for region in op.regions), default=0)
        alive += sum(map(_elements, op.results))
        peak = max(peak, alive + inside)
        alive -= sum(map(_elements, dropped[op]))
    return peak


def _elements(value: Value) -> int:
    """Raises SourceError TS501 for a tile that no lane could hold."""
    if not isinstance(value.type, (TileType, BufferType)):
        return 0
    size = math.prod(numbers(value.type.shape))
    if size > LARGEST_TILE:
        op = value.defining_op
        name = value.name or (op.name if op else "a value")
        raise SourceError("TS501", f"'{name}' has {size} elements, over 2^31", op.loc if op else None)
    return size
