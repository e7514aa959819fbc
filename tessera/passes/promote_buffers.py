"""Turn buffers into tiles: a read gives the buffer's value, a write replaces it, and loops and branches hand it on.

A buffer can be promoted when the compiler sees what every access touches: all of the buffer, or a part at constant
offsets. The buffer then falls into *parts*, each a tile of its own: where writes overlap, the pieces that their edges
cut, else what one write covers. A read must lie inside one part, since tiles are not put together from others. A
buffer that is certainly or perhaps read before it is written stays, so that the run finds the mistake where it is.

Exact: a write rounds to the buffer's dtype by an explicit `cast`, and a value that has that dtype already was rounded
when it was made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    add_notes,
    clone_op,
    clone_with_regions,
    new_kernel_like,
    uses,
)
from tessera.ir.opdef import ASYNC, BRANCH, COLLECTIVE, COUNTED, LOOP, TERMINATOR
from tessera.ir.ops.control import constant_value, loop_range
from tessera.ir.types import BufferType, TokenType, ViewType, dtype_of, int_shape
from tessera.target.arch import Arch
from tessera.target.schedule import buffer_bytes, plain_copies, root, takes_rows

MOST_PARTS = 16  # of one buffer: beyond, an author indexes memory, and a tile for each part would not help

Window = tuple[tuple[int, int], ...]  # start and end along each axis


@dataclass(frozen=True)
class Part:
    """A window of a buffer that is one tile after the pass."""

    buffer: Value
    window: Window

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(end - start for start, end in self.window)


Parts = dict[Value, tuple[Part, ...]]


def promote_buffers(kernel: Kernel, buffers: Collection[Value] | None = None) -> Kernel:
    """The kernel with tiles in the place of `buffers` (default: all) as far as `promotable` finds that they can go.

    A copy into a promoted buffer becomes a load where the copy starts, which remembers the author's number of stages,
    and its wait loses the token. A buffer that nothing reads goes away with a note. User barriers go when no buffer is
    left for them to order.
    """
    parts = {buffer: found for buffer, found in promotable(kernel).items() if buffers is None or buffer in buffers}
    while parts:
        try:
            new = _Promotion(kernel, parts).kernel()
        except _UnwrittenError as error:
            del parts[error.buffer]
            continue
        _note_unread(new, kernel, parts)
        return _without_barriers(new)
    return kernel


def computed_buffers(kernel: Kernel, arch: Arch) -> set[Value]:
    """The buffers to promote before a schedule is chosen: those that the program computes rather than copies.

    While all buffers fit the shared memory of `arch`, a buffer is kept where that is cheaper: when a part would be cut
    out of a larger tile (which goes through shared memory again), and when products read what is written once more than
    once (each would write its own copy). Reads and writes of whole buffers have tiles of their size in registers
    anyway. When the buffers do not fit, every one that can goes: it is then computed in slices.
    """
    found = promotable(kernel)
    used = uses(kernel.body)
    buffers = {op.result for op in kernel.body.walk() if op.name == "alloc_shared"}
    computed = {buffer for buffer in found if not any(op.definition.has(ASYNC) for op in used.get(buffer, ()))}
    if sum(map(buffer_bytes, buffers)) > arch.shared_bytes_per_block:
        return computed
    reused = _product_operands_read_again(kernel, used)
    return {buffer for buffer in computed if buffer not in reused and not _is_cut(used.get(buffer, ()), found[buffer])}


def buffers_to_promote(kernel: Kernel, arch: Arch) -> set[Value]:
    """What `computed_buffers` says and, when the others fit no placement, the copies that cannot be streamed either:
    those inside loops become loads where they are used. So they do where rows are computed a few at a time, which a
    buffer of all rows would tie together.
    """
    chosen = computed_buffers(kernel, arch)
    others = {op.result for op in kernel.body.walk() if op.name == "alloc_shared"} - chosen
    fits = sum(map(buffer_bytes, others)) <= arch.shared_bytes_per_block
    if fits and not takes_rows(kernel):
        return chosen
    movable = set(promotable(kernel)) - (set() if takes_rows(kernel) else set(plain_copies(kernel)))
    copied = {op.operands[0] for op in kernel.body.walk() if op.definition.has(ASYNC)}
    return chosen | (movable & copied if fits else movable)


def promotable(kernel: Kernel) -> Parts:
    """Buffers whose every access is known, with their parts; of none is known yet that writes come before reads."""
    used = uses(kernel.body)
    written = {
        root(value) for op in kernel.body.walk() for effect, value in op.definition.effects_of(op) if effect != "reads"
    }
    found: Parts = {}
    for op in kernel.body.walk():
        if op.name == "alloc_shared":
            buffer = op.result
            parts = _parts(buffer, used.get(buffer, []))
            if parts is not None and all(_becomes_load(user, written, used) for user in used.get(buffer, ())):
                found[buffer] = parts
    return found


# Accesses -------------------------------------------------------------------------------------------------------------


def _window(op: Op, buffer: Value) -> Window | None:
    """What an op reads or writes of a buffer; None where that is not known or the op does something else with it."""
    if op.operands.count(buffer) != 1 or op.name not in ("read", "write", "copy_async") or op.operands[0] is not buffer:
        return None
    shape = int_shape(buffer.type)
    offsets = op.operands[{"read": 1, "write": 2, "copy_async": 2}[op.name] :]
    if not offsets:
        return tuple((0, size) for size in shape)
    extents = int_shape((op.result if op.name == "read" else op.operands[1]).type)
    window = []
    for offset, extent, size in zip(offsets, extents, shape, strict=True):
        start = constant_value(offset)
        if start is None:
            return None
        if not 0 <= start <= start + extent <= size:
            return None  # the run reports it
        window.append((start, start + extent))
    return tuple(window)


def _parts(buffer: Value, users: Iterable[Op]) -> tuple[Part, ...] | None:
    """The parts that the writes of a buffer make; None where a window is not known or a read spans several parts."""
    windows = {op: _window(op, buffer) for op in users}
    written: dict[Window, None] = {}
    for op, window in windows.items():
        if window is None:
            return None
        if op.name != "read":
            written[window] = None
    parts = tuple(Part(buffer, window) for group in _groups(list(written)) for window in _pieces(group))
    reads = [window for op, window in windows.items() if op.name == "read" and window is not None]
    if len(parts) > MOST_PARTS or not all(any(_within(window, part.window) for part in parts) for window in reads):
        return None
    return parts


def _within(inner: Window, outer: Window) -> bool:
    return all(b <= a and c <= d for (a, c), (b, d) in zip(inner, outer, strict=True))


def _overlap(left: Window, right: Window) -> bool:
    return all(max(a, b) < min(c, d) for (a, c), (b, d) in zip(left, right, strict=True))


def _groups(windows: list[Window]) -> list[list[Window]]:
    """Windows that overlap, directly or through others, together."""
    groups: list[list[Window]] = []
    for window in windows:
        joined = [window]
        rest = []
        for group in groups:
            if any(_overlap(window, other) for other in group):
                joined += group
            else:
                rest.append(group)
        groups = [*rest, joined]
    return groups


def _pieces(group: list[Window]) -> list[Window]:
    """What the edges of a group's windows cut, as far as the windows cover it."""
    edges = [sorted({edge for window in group for edge in window[axis]}) for axis in range(len(group[0]))]
    cells = itertools.product(*(itertools.pairwise(along) for along in edges))
    return [cell for cell in cells if any(_within(cell, window) for window in group)]


def _becomes_load(op: Op, written: set[Value], used: dict[Value, list[Op]]) -> bool:
    """Whether a copy may be a load: of a tensor that nothing here writes, its token going straight to waits."""
    if not op.definition.has(ASYNC):
        return True
    waits = all(user.name == "wait" for result in op.results for user in used.get(result, ()))
    return waits and root(op.operand("view")) not in written


def _is_cut(users: Iterable[Op], parts: tuple[Part, ...]) -> bool:
    """Whether an access is not exactly one part, or writes several with anything but a number."""
    windows = {part.window for part in parts}
    return any(
        _window(op, part.buffer) not in windows and not (op.name == "write" and _number(op.operands[1]) is not None)
        for part in parts[:1]
        for op in users
    )


def _number(tile: Value) -> Value | None:
    """The scalar that a tile repeats."""
    op = tile.defining_op
    return op.operands[0] if op is not None and op.name == "full" else None


def _product_operands_read_again(kernel: Kernel, used: dict[Value, list[Op]]) -> set[Value]:
    """Buffers that two products read, or one in a loop that leaves them as they are."""
    products: dict[Value, int] = {}

    def visit(block: Block, resident: tuple[set[Value], ...]) -> None:
        """`resident`: of each loop around the block, the buffers that something in it writes."""
        for op in block.ops:
            if op.name == "read" and any(user.name == "mma" for user in used.get(op.result, ())):
                buffer = op.operands[0]
                again = any(buffer not in changed for changed in resident)
                count = sum(user.name == "mma" for user in used[op.result])
                products[buffer] = products.get(buffer, 0) + count + again
            for region in op.regions:
                changed = {v for o in region.walk() for e, v in o.definition.effects_of(o) if e != "reads"}
                changed |= {result for o in region.walk() for result in o.results}
                visit(region, (*resident, changed) if op.definition.has(LOOP) else resident)

    visit(kernel.body, ())
    return {buffer for buffer, count in products.items() if count > 1}


# Liveness -------------------------------------------------------------------------------------------------------------


class _Liveness:
    """Which parts are read, on some path, before they are written again: after each op with regions, at the head of
    each loop (before every iteration and after the last), and at the start of a loop's body.
    """

    def __init__(self, kernel: Kernel, parts: Parts):
        self.parts = parts
        self.after: dict[int, set[Part]] = {}
        self.head: dict[int, set[Part]] = {}
        self.start: dict[int, set[Part]] = {}
        self._block(kernel.body, set())

    def _block(self, block: Block, live: set[Part]) -> set[Part]:
        for op in reversed(block.ops):
            live = self._regions(op, live) if op.regions else (live - set(self.written(op))) | self._read(op)
        return live

    def _regions(self, op: Op, live: set[Part]) -> set[Part]:
        self.after[op.id] = live
        if not op.definition.has(LOOP):
            inside = [self._block(region, live) for region in op.regions]
            return set().union(*inside, set() if op.definition.has(BRANCH) and len(inside) > 1 else live)
        head = live
        while True:
            start = self._block(op.regions[0], head)
            if start <= head:
                self.head[op.id], self.start[op.id] = head, start
                return head
            head = head | start

    def written(self, op: Op) -> list[Part]:
        """What an op changes all of; an allocation makes what was there before unreachable."""
        if op.name == "alloc_shared":
            return list(self.parts.get(op.result, ()))
        if op.name in ("write", "copy_async") and op.operands[0] in self.parts:
            window = _window(op, op.operands[0])
            assert window is not None
            return [part for part in self.parts[op.operands[0]] if _within(part.window, window)]
        return []

    def _read(self, op: Op) -> set[Part]:
        return {self.part(op)} if op.name == "read" and op.operands[0] in self.parts else set()

    def part(self, read: Op) -> Part:
        """The part in which a read lies."""
        window = _window(read, read.operands[0])
        assert window is not None
        return next(part for part in self.parts[read.operands[0]] if _within(window, part.window))


# Rewriting ------------------------------------------------------------------------------------------------------------


class _UnwrittenError(Exception):
    """A part is, or may be, read before it is written."""

    def __init__(self, buffer: Value):
        super().__init__(buffer.name)
        self.buffer = buffer


class _Promotion:
    """One walk in program order. `current`: the tile that each part is at this point."""

    def __init__(self, kernel: Kernel, parts: Parts):
        self.old, self.parts = kernel, parts
        self.live = _Liveness(kernel, parts)
        self.current: dict[Part, Value] = {}
        self.new, self.builder, self.mapping = new_kernel_like(kernel)

    def kernel(self) -> Kernel:
        self._block(self.old.body, self.builder, ())
        return self.new

    def _block(self, block: Block, builder: Builder, handed_on: tuple[Part, ...]) -> None:
        """Rewrites a block; its terminator also yields the parts `handed_on`."""
        for op in block.ops:
            builder.at(op)
            if op.regions:
                self._regions(op, builder)
            elif op.definition.has(TERMINATOR):
                values = [self.mapping[value] for value in op.operands]
                builder.op(op.name, [*values, *(self._value(part) for part in handed_on)])
            elif op.operands and op.operands[0] in self.parts:
                self._access(op, builder)
            elif op.name == "alloc_shared" and op.result in self.parts:
                for part in self.parts[op.result]:
                    self.current.pop(part, None)
            elif any(isinstance(value.type, TokenType) for value in op.operands):
                tokens = [self.mapping[token] for token in op.operands if token in self.mapping]
                if tokens:
                    builder.op(op.name, tokens, **op.attributes)
            else:
                clone_op(builder, op, self.mapping)

    def _value(self, part: Part) -> Value:
        if part not in self.current:
            raise _UnwrittenError(part.buffer)
        return self.current[part]

    def _access(self, op: Op, builder: Builder) -> None:
        buffer = op.operands[0]
        window = _window(op, buffer)
        assert window is not None
        if op.name == "read":
            part = self.live.part(op)
            self.mapping[op.result] = _cut(builder, self._value(part), part.window, window, op.result.name)
            return
        if op.name == "write":
            tile = self.mapping[op.operands[1]]
            if dtype_of(tile.type) != dtype_of(buffer.type):
                tile = builder.value("cast", tile, dtype=dtype_of(buffer.type), hint=buffer.name)
        else:
            view, stages = self.mapping[op.operand("view")], op.attributes["stages"]
            tile = builder.value("load", view, stages=stages, hint=buffer.name)
        for part in self.live.written(op):
            self.current[part] = _cut(builder, tile, window, part.window, buffer.name)

    def _regions(self, op: Op, builder: Builder) -> None:
        """A loop carries the parts that it writes and that are read in a later iteration or after it, and a branch
        yields those that are read after it. Any other part that is written inside has no value afterwards.
        """
        written = dict.fromkeys(part for region in op.regions for o in region.walk() for part in self.live.written(o))
        loop = op.definition.has(LOOP)
        live = (self.live.head if loop else self.live.after)[op.id]
        handed_on = tuple(part for part in written if part in live)
        operands = [self.mapping[value] for value in op.operands]
        if loop:
            operands += [self._initial(op, part, builder) for part in handed_on]
        before, regions = self.current, []
        for region in op.regions:
            body = Block()
            for argument in region.arguments:
                self.mapping[argument] = body.add_argument(argument.type, argument.name)
            self.current = {part: tile for part, tile in before.items() if not loop or part not in written}
            if loop:
                carried = zip(handed_on, operands[len(operands) - len(handed_on) :], strict=True)
                self.current |= {part: body.add_argument(tile.type, part.buffer.name) for part, tile in carried}
            self._block(region, builder.inner(body), handed_on)
            regions.append(body)
        names = [*(result.name for result in op.results), *(part.buffer.name for part in handed_on)]
        new = builder.at(op).op(op.name, operands, regions, names, **op.attributes)
        self.mapping.update(zip(op.results, new.results, strict=False))
        self.current = {part: tile for part, tile in before.items() if part not in written}
        self.current |= dict(zip(handed_on, new.results[len(op.results) :], strict=True))

    def _initial(self, op: Op, part: Part, builder: Builder) -> Value:
        """A part before a loop; any tile will do where the first iteration, which is certain, writes it all."""
        if part not in self.current and part not in self.live.start[op.id] and _runs(op):
            dtype = dtype_of(part.buffer.type)
            zero = builder.value("constant", value=False if dtype.is_bool else 0, dtype=dtype)
            return builder.value("full", zero, shape=part.extents, dtype=dtype, hint=part.buffer.name)
        return self._value(part)


def _runs(op: Op) -> bool:
    """Whether a loop certainly runs at least once."""
    if not op.definition.has(COUNTED):
        return False
    return bool(loop_range(op.operands[:3]))


def _cut(builder: Builder, tile: Value, have: Window, want: Window, hint: str) -> Value:
    """The part `want` of a tile that is the part `have` of a buffer."""
    if have == want:
        return tile
    starts = tuple(start - first for (first, _), (start, _) in zip(have, want, strict=True))
    extents = tuple(end - start for start, end in want)
    number = _number(tile)
    if number is not None:
        return builder.value("full", number, shape=extents, dtype=dtype_of(tile.type), hint=hint)
    return builder.value("extract", tile, starts=starts, extents=extents, hint=hint)


def _note_unread(new: Kernel, old: Kernel, parts: Parts) -> None:
    read = {op.operands[0] for op in old.body.walk() if op.name == "read"}
    notes = [
        f"the buffer '{buffer.name}' is never read: its {math.prod(int_shape(buffer.type))} elements take no memory"
        for buffer in parts
        if buffer not in read
    ]
    if notes:
        add_notes(new, *notes)


def _without_barriers(kernel: Kernel) -> Kernel:
    """User barriers order nothing at Tile level; they stay as long as there is a buffer, or a tensor that the kernel
    both writes and reads, for whose accesses the author may have placed them.
    """
    read, written = set[Value](), set[Value]()
    for op in kernel.body.walk():
        if any(isinstance(result.type, BufferType) for result in op.results):
            return kernel
        for effect, value in op.definition.effects_of(op):
            if isinstance(value.type, ViewType):
                (read if effect == "reads" else written).add(root(value))
    if read & written or not any(_is_barrier(op) for op in kernel.body.walk()):
        return kernel
    new, builder, mapping = new_kernel_like(kernel)
    _copy_without_barriers(kernel.body, builder, mapping)
    return new


def _is_barrier(op: Op) -> bool:
    return op.definition.has(COLLECTIVE) and not op.operands and not op.results and not op.regions


def _copy_without_barriers(block: Block, builder: Builder, mapping: Mapping) -> None:
    for op in block.ops:
        builder.at(op)
        if op.regions:
            clone_with_regions(builder, op, mapping, lambda old, inner: _copy_without_barriers(old, inner, mapping))
        elif not _is_barrier(op):
            clone_op(builder, op, mapping)
