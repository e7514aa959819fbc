"""What legal IR is, checked after every pass: structure, then the order of copies, waits, barriers and accesses.

The order is checked by walking the program as it would run: both branches of a condition; a loop not at all, once and
twice, so that what one iteration leaves open meets the start of the next. Where paths meet, a copy is in flight if it
is on any path, and a buffer is written if it is on any path: the first makes every read safe, the second reports only
reads that are certainly of undefined elements (the interpreter finds the rest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tessera.dtypes import DType
from tessera.errors import SourceError, TesseraError
from tessera.ir.core import Block, Kernel, Module, Op, Value
from tessera.ir.dims import Dim
from tessera.ir.layout import RegisterLayout, SharedLayout
from tessera.ir.opdef import ASYNC, BRANCH, COLLECTIVE, LOOP, REQUIRED, TARGET, TERMINATOR, TILE, table
from tessera.ir.types import BufferType, TileType, TokenType, type_text
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

# The walk of `_Order` runs a body twice for each loop around it, so this bounds its time.
MAX_LOOPS = 10


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
    _Order(barriers and level == TARGET).kernel(module)
    if placed and level == TARGET:
        _check_placement(module)


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


# An attribute name means one thing in every op, so its kind is said once. A default is always allowed.
ATTRIBUTE_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("axis", "vector", "offset", "pending"), ("an integer", _is_int)),
    **dict.fromkeys(("scale", "unroll"), ("a positive integer", lambda value: _is_int(value) and value > 0)),
    **dict.fromkeys(("weak", "bypass_l1", "transpose_a", "transpose_b", "transposed"), ("true or false", _is_bool)),
    **dict.fromkeys(("shape", "extents"), ("a tuple of sizes", _tuple_of(_is_size))),
    "starts": ("a tuple of sizes", _tuple_of(_is_size)),
    "kept": ("a tuple of true and false", _tuple_of(_is_bool)),
    "combine": ("sum, max or min", lambda value: isinstance(value, str) and value in ("sum", "max", "min")),
    "size": ("a size", _is_size),
    "value": ("a number", _is_number),
    "dtype": ("a dtype", lambda value: isinstance(value, DType)),
    "layout": ("a layout", _is_layout),
    **dict.fromkeys(("swizzle", "precision"), ("a string", lambda value: isinstance(value, str))),
    **dict.fromkeys(("format", "message"), ("a string", lambda value: isinstance(value, str))),
    "kind": ('"add" or "max"', lambda value: isinstance(value, str) and value in ("add", "max")),
    "role": ('"a" or "b"', lambda value: isinstance(value, str) and value in ("a", "b")),
}

KERNEL_ATTRIBUTE_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "grid": ("a tuple of sizes", _tuple_of(_is_size)),
    "static": ("integers by dim", _counts),
    "divisors": ("integers by dim", _counts),
    "alignment": ("bytes by parameter", _counts),
    "strides": (
        "a tuple of sizes by parameter",
        lambda value: isinstance(value, dict) and all(map(_tuple_of(_is_size), value.values())),
    ),
    "arch": ("a string", lambda value: isinstance(value, str)),
    "warps": ("a positive integer", lambda value: _is_int(value) and value > 0),
    "shared_bytes": ("an integer", lambda value: _is_int(value) and value >= 0),
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


def _invalid(message: str, loc: Loc | None) -> SourceError:
    return SourceError("TS703", message, loc)


def _name(value: Value) -> str:
    return f"'{value.name or '?'}'"


class _Structure:
    """Names, arity, attributes, types, regions, origins, visibility; at Target level, layouts."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.visible: set[Value] = set()
        self.defined: set[Value] = set()
        self.loops = 0

    def kernel(self, kernel: Kernel) -> None:
        problem = kernel_attribute_problem(kernel)
        if problem:
            raise _invalid(f"kernel {kernel.name}: {problem}", kernel.loc)
        seen: set[str] = set()
        for parameter in kernel.parameters:
            if parameter.name in seen or not parameter.name:
                raise _invalid(f"the parameters of {kernel.name} need a name each, not {_name(parameter)}", kernel.loc)
            seen.add(parameter.name)
        self._block(kernel.body, None, kernel.loc)

    def _block(self, block: Block, inside: Op | None, loc: Loc | None) -> None:
        for index, argument in enumerate(block.arguments):
            self._define(argument, block, index, loc)
        for op in block.ops:
            self._op(op)
            if op.definition.has(TERMINATOR) and (inside is None or op is not block.ops[-1]):
                raise _invalid(f"{op.name} can only end a region", op.loc)
        if inside is not None and not (block.ops and block.ops[-1].definition.has(TERMINATOR)):
            raise _invalid(f"a region of {inside.name} does not end in yield", loc)

    def _define(self, value: Value, owner: Op | Block, index: int, loc: Loc | None) -> None:
        if value in self.defined:
            raise _invalid(f"the value {_name(value)} is defined twice", loc)
        if value.owner is not owner or value.index != index:
            raise _invalid(f"the value {_name(value)} does not know that it is defined here", loc)
        self.defined.add(value)
        self.visible.add(value)
        if self.level == TARGET:
            problem = layout_problem(value)
            if problem:
                raise _invalid(problem, loc)

    def _op(self, op: Op) -> None:
        definition = table().get(op.name)
        if not op.origin:
            raise _invalid(f"op {op.name} has no source location", None)
        if definition is None:
            raise _invalid(f"there is no op '{op.name}'", op.loc)
        if self.level not in definition.levels:
            raise _invalid(f"op {op.name} is not of the {self.level} level", op.loc)
        if not definition.check_arity(len(op.operands)):
            takes = ", ".join(definition.operands) or "no operands"
            raise _invalid(f"op {op.name} takes {takes}, not {len(op.operands)} operands", op.loc)
        if len(op.regions) != definition.regions:
            raise _invalid(f"op {op.name} has {definition.regions} regions, not {len(op.regions)}", op.loc)
        problem = attribute_problem(op)
        if problem:
            raise _invalid(problem, op.loc)
        for value in op.operands:
            if value not in self.visible:
                why = "outside the region that defines it" if value in self.defined else "before it is defined"
                raise _invalid(f"op {op.name} uses {_name(value)} {why}", op.loc)
        self.loops += definition.has(LOOP)
        if self.loops > MAX_LOOPS:
            raise _invalid(f"loops nest more than {MAX_LOOPS} deep", op.loc)
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
            raise _invalid(error.message, op.loc) from None
        except RULE_FAULTS as error:
            message = f"the operands and attributes of {op.name} do not fit each other ({error})"
            raise _invalid(message, op.loc) from error
        if len(types) != len(op.results):
            raise _invalid(f"op {op.name} has {len(op.results)} results where its rule gives {len(types)}", op.loc)
        for value, type_ in zip(op.results, types, strict=True):
            if value.type != type_:
                raise _invalid(
                    f"result {_name(value)} of {op.name} is {type_text(value.type)}, but its rule gives "
                    f"{type_text(type_)}",
                    op.loc,
                )


def layout_problem(value: Value) -> str | None:
    """What Target level misses in the type of `value`, as a sentence: a layout that covers a static shape. Or None."""
    type_ = value.type
    if not isinstance(type_, (TileType, BufferType)):
        return None
    kind = "tile" if isinstance(type_, TileType) else "buffer"
    shape = [size for size in type_.shape if isinstance(size, int)]
    if len(shape) != len(type_.shape):
        return f"the {kind} {_name(value)} has no static shape: {type_text(type_)}"
    if type_.layout is None:
        return f"the {kind} {_name(value)} has no layout"
    if isinstance(type_.layout, SharedLayout):
        covers = type_.layout.rows >= math.prod(shape[-2:-1]) and type_.layout.cols >= math.prod(shape[-1:])
        if type_.layout.itemsize != type_.dtype.bytes:
            return f"the layout of {_name(value)} is for elements of {type_.layout.itemsize} bytes, not {type_.dtype}"
    else:
        extents = type_.layout.shape
        covers = len(extents) == len(shape) and all(e >= s for e, s in zip(extents, shape, strict=True))
    return None if covers else f"the layout of {kind} {_name(value)} does not cover its shape: {type_text(type_)}"


# Order ----------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Copy:
    """One run of an asynchronous op on the walk."""

    op: Op
    buffers: frozenset[Value]
    committed: bool = False
    waited: bool = False


@dataclass
class _State:
    """What holds at one point of the walk. Buffers are the values that allocated them."""

    flying: dict[Value, frozenset[_Copy]] = field(default_factory=dict)
    written: set[Value] = field(default_factory=set)
    newer_groups: dict[Value, int] = field(default_factory=dict)  # token of a group -> groups closed after it
    unread: dict[Value, Op] = field(default_factory=dict)  # written since the last barrier, and by what
    unwritten: dict[Value, Op] = field(default_factory=dict)  # read since the last barrier, and by what

    def copy(self) -> _State:
        return _State(
            dict(self.flying), set(self.written), dict(self.newer_groups), dict(self.unread), dict(self.unwritten)
        )

    def join(self, other: _State) -> None:
        for buffer, copies in other.flying.items():
            self.flying[buffer] = self.flying.get(buffer, frozenset()) | copies
        self.written |= other.written
        for token, count in other.newer_groups.items():
            self.newer_groups[token] = min(count, self.newer_groups.get(token, count))
        self.unread = {**other.unread, **self.unread}
        self.unwritten = {**other.unwritten, **self.unwritten}


class _Order:
    def __init__(self, barriers: bool) -> None:
        self.barriers = barriers
        self.state = _State()
        # What a reference or a token stands for at this point of the walk: allocations, or copies.
        self.meaning: dict[Value, frozenset[Any]] = {}
        self.overlapping: dict[Value, frozenset[Value]] = {}

    def kernel(self, kernel: Kernel) -> None:
        if self.barriers:
            self.overlapping = _overlaps(kernel.body)
        self._block(kernel.body)
        for copies in self.state.flying.values():
            for copy in copies:
                if not copy.waited:
                    buffers = ", ".join(map(_name, copy.buffers))
                    raise SourceError("TS502", f"nothing waits for the copy into {buffers}", copy.op.loc)

    def _block(self, block: Block) -> None:
        for op in block.ops:
            definition = op.definition
            if definition.has(LOOP):
                self._loop(op)
            elif op.regions:
                self._branches(op)
            elif definition.has(ASYNC):
                self._copy(op)
            elif any(isinstance(value.type, TokenType) for value in op.operands) and not definition.has(TERMINATOR):
                self._tokens(op)
            elif definition.has(COLLECTIVE) and not op.operands:
                self.state.unread.clear()
                self.state.unwritten.clear()
            else:
                self._access(op)
            if not op.regions and not op.operands:
                self.meaning.update({v: frozenset((v,)) for v in op.results if isinstance(v.type, BufferType)})

    def _means(self, value: Value) -> frozenset[Any]:
        if isinstance(value.type, BufferType):
            return self.meaning.get(value, frozenset((value,)))
        return self.meaning.get(value, frozenset())

    def _rename(self, new: Iterable[Value], old: Iterable[Value]) -> None:
        """Gives `new` what `old` stand for, all at once: a loop may exchange its values."""
        counts = self.state.newer_groups
        pairs = [(to, self._means(source), counts.get(source)) for to, source in zip(new, old, strict=True)]
        for to, meaning, count in pairs:
            self.meaning[to] = meaning
            counts.pop(to, None)
            if count is not None:
                counts[to] = count

    def _loop(self, op: Op) -> None:
        (body,) = op.regions
        first = len(op.operands) - len(op.results)
        feeding = op.operands[first:]
        exits = [self._exit(op, feeding)]
        for _ in range(2):
            self._rename(body.arguments[len(body.arguments) - len(feeding) :], feeding)
            self._block(body)
            feeding = body.ops[-1].operands
            exits.append(self._exit(op, feeding))
        self._meet(op, exits)

    def _branches(self, op: Op) -> None:
        start = self.state
        exits = []
        for region in op.regions:
            self.state = start.copy()
            self._block(region)
            exits.append(self._exit(op, region.ops[-1].operands))
        if not op.definition.has(BRANCH):
            exits.append((start, [self._means(value) for value in op.results]))
        self._meet(op, exits)

    def _exit(self, op: Op, yielded: list[Value]) -> tuple[_State, list[frozenset[Any]]]:
        """The state of a path that leaves `op` now with these values as its results."""
        before = self.state
        self.state = before.copy()
        self._rename(op.results, yielded)
        left, self.state = self.state, before
        return left, [self._means(value) for value in op.results]

    def _meet(self, op: Op, exits: list[tuple[_State, list[frozenset[Any]]]]) -> None:
        self.state = exits[0][0]
        for state, _ in exits[1:]:
            self.state.join(state)
        for index, value in enumerate(op.results):
            self.meaning[value] = frozenset().union(*(meanings[index] for _, meanings in exits))

    def _copy(self, op: Op) -> None:
        self._access(op, lands=False)
        written = [value for effect, value in op.definition.effects_of(op) if effect == "writes"]
        buffers = frozenset(buffer for value in written for buffer in self._means(value))
        copy = _Copy(op, buffers)
        for buffer in buffers:
            self.state.flying[buffer] = self.state.flying.get(buffer, frozenset()) | {copy}
        for result in op.results:
            self.meaning[result] = frozenset((copy,))
            self.state.newer_groups.pop(result, None)

    def _tokens(self, op: Op) -> None:
        """An op of tokens: one that gives a token groups them, one that gives none waits for them."""
        copies = frozenset().union(*(self._means(value) for value in op.operands))
        if op.results:
            for token in self.state.newer_groups:
                self.state.newer_groups[token] += 1
            for copy in copies:
                copy.committed = True
            self.meaning[op.results[0]] = copies
            self.state.newer_groups[op.results[0]] = 0
            return
        pending = op.get("pending")
        for token in op.operands if isinstance(pending, int) else ():
            if any(not copy.committed for copy in self._means(token)):
                raise _invalid(f"{op.name} is given {_name(token)}, a copy that no group holds", op.loc)
            if self.state.newer_groups.get(token, 0) < int(pending):
                raise SourceError(
                    "TS502",
                    f"{op.name} leaves {pending} groups in flight, and {_name(token)}, which it "
                    "must complete, may be one of them",
                    op.loc,
                )
        for copy in copies:
            copy.waited = True
            for buffer in copy.buffers:
                flying = self.state.flying.get(buffer, frozenset())
                if copy in flying:
                    self.state.flying[buffer] = flying - {copy}
                    self.state.written.add(buffer)
                    self.state.unread[buffer] = copy.op

    def _access(self, op: Op, lands: bool = True) -> None:
        """The effects of `op` on buffers; `lands`: its writes are done when it is."""
        for effect, value in op.definition.effects_of(op):
            if not isinstance(value.type, BufferType):
                continue
            for buffer in self._means(value):
                if self.state.flying.get(buffer):
                    verb = "read" if effect == "reads" else "written"
                    raise SourceError(
                        "TS502",
                        f"{_name(buffer)} is {verb} while an asynchronous copy into it may be "
                        "in flight: no wait for the copy comes before on every path",
                        op.loc,
                    )
                if effect != "writes":
                    self._read(op, buffer)
                if effect != "reads":
                    self._write(op, buffer, lands)

    def _read(self, op: Op, buffer: Value) -> None:
        if buffer not in self.state.written:
            raise SourceError("TS503", f"{_name(buffer)} is read before anything is written to it", op.loc)
        if self.barriers and buffer in self.state.unread:
            writer = self.state.unread[buffer].name
            raise _invalid(
                f"no barrier lies between the {writer} that writes {_name(buffer)} and this {op.name} that reads it",
                op.loc,
            )
        self.state.unwritten.setdefault(buffer, op)

    def _write(self, op: Op, buffer: Value, lands: bool) -> None:
        for other in self.overlapping.get(buffer, frozenset((buffer,))) if self.barriers else ():
            if other in self.state.unwritten:
                reader = self.state.unwritten[other].name
                raise _invalid(
                    f"no barrier lies between the {reader} that reads {_name(other)} and this {op.name} "
                    f"that writes {_name(buffer)} over it",
                    op.loc,
                )
            if other is not buffer and other in self.state.unread:
                writer = self.state.unread[other].name
                raise _invalid(
                    f"no barrier lies between the {writer} that writes {_name(other)} and this {op.name} "
                    f"that writes {_name(buffer)} in the same place",
                    op.loc,
                )
        if lands:
            self.state.written.add(buffer)
            self.state.unread[buffer] = op


# Placement ------------------------------------------------------------------------------------------------------------


def _buffer_bytes(type_: BufferType) -> int:
    """Bytes of a laid out buffer; leading axes count unless its rows hold them already."""
    layout = type_.layout
    assert layout is not None, "structure is checked first"
    leading = math.prod(int(size) for size in type_.shape[:-2])  # type: ignore[arg-type]
    rows = math.prod(int(size) for size in type_.shape[:-1])  # type: ignore[arg-type]
    return layout.bytes if layout.rows >= rows else layout.bytes * leading


def _allocations(body: Block) -> list[tuple[Value, int, int]]:
    """Shared buffers with an offset: (buffer, first byte, one past the last)."""
    found = []
    for op in body.walk():
        offset = op.get("offset")
        if _is_int(offset) and op.results and isinstance(op.results[0].type, BufferType):
            found.append((op.results[0], offset, offset + _buffer_bytes(op.results[0].type)))
    return found


def _overlaps(body: Block) -> dict[Value, frozenset[Value]]:
    """Each placed buffer with all buffers, itself included, that share bytes with it."""
    placed = [item for item in _allocations(body) if item[1] >= 0]
    return {a: frozenset(b for b, start, end in placed if start < stop and begin < end) for a, begin, stop in placed}


def _check_placement(kernel: Kernel) -> None:
    placed = _allocations(kernel.body)
    limit = kernel.attributes.get("shared_bytes")
    for buffer, begin, end in placed:
        loc = buffer.defining_op.loc if buffer.defining_op else None
        if begin < 0:
            raise _invalid(f"the buffer {_name(buffer)} has no place in shared memory", loc)
        if begin % 16:
            raise _invalid(f"the buffer {_name(buffer)} lies at byte {begin}, which is no multiple of 16", loc)
        if limit is not None and end > limit:
            raise _invalid(f"the buffer {_name(buffer)} ends at byte {end} of {limit} bytes of shared memory", loc)
    live = {buffer: _live_range(kernel.body, buffer) for buffer, _, _ in placed}
    for number, (a, begin, end) in enumerate(placed):
        for b, other_begin, other_end in placed[:number]:
            apart = end <= other_begin or other_end <= begin or live[a][1] < live[b][0] or live[b][1] < live[a][0]
            if not apart:
                raise _invalid(
                    f"the buffers {_name(b)} and {_name(a)} share bytes while both are in use",
                    a.defining_op.loc if a.defining_op else None,
                )


def _live_range(body: Block, buffer: Value) -> tuple[int, int]:
    """Positions of the first and last op that may touch `buffer`, in program order of the whole kernel.

    A use inside a loop that does not hold the allocation counts as the whole loop. A use of a token of a copy into the
    buffer is a use of the buffer: its bytes may change until then.
    """
    related = {buffer}
    before = 0
    while before != len(related):
        before = len(related)
        for op in body.walk():
            _relate(op, related)
    first, last = math.inf, -1
    position = 0

    def visit(block: Block, holds: bool) -> bool:
        """Whether the block touches the buffer; `holds`: it is, or is inside, the block that allocates it."""
        nonlocal first, last, position
        touched = False
        holds = holds or any(op is buffer.defining_op for op in block.ops)
        for op in block.ops:
            start = position
            position += 1
            inner = [visit(region, holds) for region in op.regions]
            uses = any(value in related for value in op.operands)
            if uses or any(inner):
                touched = True
                whole = op.definition.has(LOOP) and holds
                if uses or whole:
                    first, last = min(first, start), max(last, position - 1 if whole else start)
        return touched

    visit(body, False)
    return (0, -1) if last < 0 else (int(first), last)


def _relate(op: Op, related: set[Value]) -> None:
    """Adds the references and tokens that `op` derives from related values."""
    if not op.regions:
        if any(value in related for value in op.operands):
            related.update(v for v in op.results if isinstance(v.type, (TokenType, BufferType)))
        return
    carried = op.operands[len(op.operands) - len(op.results) :] if op.definition.has(LOOP) else []
    sources = [carried, *(region.ops[-1].operands for region in op.regions)]
    targets = [op.results, *(region.arguments[-len(carried) :] for region in op.regions if carried)]
    for source in sources:
        for target in targets:
            related.update(to for to, value in zip(target, source, strict=False) if value in related)


__all__ = [
    "ATTRIBUTE_KINDS",
    "KERNEL_ATTRIBUTE_KINDS",
    "RULE_FAULTS",
    "attribute_problem",
    "kernel_attribute_problem",
    "layout_problem",
    "verify",
]
