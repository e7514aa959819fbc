"""The order of copies, waits, barriers and accesses, and the placement of buffers: parts of `tessera.ir.verify`.

The order is checked by walking the program as it would run: both branches of a condition; a loop not at all, once and
twice, so that what one iteration leaves open meets the start of the next, and where it carries copies in flight once
more for each of them and until the stages of their buffers come round; one with constant bounds as often as they say,
or a number of times after which the same stages are next. Where paths meet, a copy is in flight if it is
on any path, and a buffer is written if it is on any path: the first makes every read safe, the second reports only
reads that are certainly of undefined elements (the interpreter finds the rest).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tessera.errors import SourceError
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.opdef import ASYNC, BRANCH, COLLECTIVE, CONSTANT, COUNTED, ELEMENTWISE, LOOP, TERMINATOR
from tessera.ir.ops.control import loop_range
from tessera.ir.ops.roles import fills_ring
from tessera.ir.parts import overlap, window_in
from tessera.ir.stages import Numbers, References, Stage, allocation, computes_a_number, every_stage, stage_count
from tessera.ir.types import BufferType, RingType, TokenType
from tessera.location import Loc

# The walk of `Order` runs a body twice for each loop around it, or more often where that carries copies in flight, so
# these bound its time.
MAX_LOOPS = 10
MAX_ROUNDS = 1 << MAX_LOOPS
_NUMBERED = ("stage", "ring_acquire", "ring_expect", "ring_wait", "ring_release")  # by their second operand
MAX_STAGES = 16  # iterations of a loop over stages that are walked one by one


def invalid(message: str, loc: Loc | None) -> SourceError:
    return SourceError("TS703", message, loc)


def name_of(value: Value | Stage) -> str:
    if isinstance(value, Stage):
        return f"stage {value.number} of {name_of(value.buffer)}"
    return f"'{value.name or '?'}'"


Place = Value | Stage  # what an access meets: a buffer, or one stage of it
Ops = tuple[Op, ...]  # each once
Slot = tuple[Value, "int | None"]  # a ring and the number of a slot, None where the walk does not know it


@dataclass(eq=False)
class _Copy:
    """One run of an asynchronous op on the walk."""

    op: Op
    buffers: frozenset[Place]
    committed: bool = False
    waited: bool = False


@dataclass
class _State:
    """What holds at one point of the walk. Buffers are the values that allocated them, or stages of those."""

    flying: dict[Place, frozenset[_Copy]] = field(default_factory=dict)
    written: set[Place] = field(default_factory=set)
    newer_groups: dict[Value, int] = field(default_factory=dict)  # token of a group -> groups closed after it
    unread: dict[Place, Ops] = field(default_factory=dict)  # written since the last barrier, and by what
    unwritten: dict[Place, Ops] = field(default_factory=dict)  # read since the last barrier, and by what
    held: Counter[Slot] = field(default_factory=Counter)  # slots of rings that may be waited for and not yet released

    def copy(self) -> _State:
        return _State(
            dict(self.flying),
            set(self.written),
            dict(self.newer_groups),
            dict(self.unread),
            dict(self.unwritten),
            Counter(self.held),
        )

    def join(self, other: _State) -> None:
        for buffer, copies in other.flying.items():
            self.flying[buffer] = self.flying.get(buffer, frozenset()) | copies
        self.written |= other.written
        for token, count in other.newer_groups.items():
            self.newer_groups[token] = min(count, self.newer_groups.get(token, count))
        for mine, others in ((self.unread, other.unread), (self.unwritten, other.unwritten)):
            for place, ops in others.items():
                mine[place] = tuple(dict.fromkeys((*mine.get(place, ()), *ops)))
        self.held |= other.held


def _add(found: dict[Place, Ops], place: Place, op: Op) -> None:
    known = found.get(place, ())
    if op not in known:
        found[place] = (*known, op)


def _meeting(found: dict[Place, Ops], place: Place, op: Op | None) -> Op | None:
    """The last op of those that touched a place which touches a part of it that `op` does; None for an `op` of another
    place, which touches all of it.
    """
    window = None if op is None else window_in(op, place)
    return next((other for other in reversed(found.get(place, ())) if overlap(window, window_in(other, place))), None)


Known = tuple[int | None, ...]


@dataclass
class _Exit:
    """A path that leaves an op with regions: the state then, and what each result stands for and which number it is."""

    state: _State
    meanings: list[frozenset[Any]]
    numbers: Known


def _like(trips: int, starts: list[Known], last: Known) -> int:
    """How many of the iterations that were walked end as `trips` iterations do. Iterations began with the numbers
    `starts`, and the one after them would begin with `last`: where those have come before, it all repeats.
    """
    walked = len(starts)
    if trips <= walked:
        return trips
    period = next((walked - i for i in reversed(range(walked)) if starts[i] == last), 1)
    return walked - (walked - trips) % period


def _numbers_stages(body: Block) -> bool:
    """Whether what a loop counts says which stage of a buffer, or slot of a ring, its body means."""
    return any(op.name in _NUMBERED and op.operands[1] in body.arguments for op in body.walk())


class Order:
    def __init__(self, barriers: bool) -> None:
        self.barriers = barriers
        self.state = _State()
        # What a reference or a token stands for at this point of the walk: allocations, or copies.
        self.meaning: dict[Value, frozenset[Any]] = {}
        self.overlapping: dict[Value, frozenset[Value]] = {}
        self.numbers = Numbers()
        self.rings: dict[Value, Value] = {}  # by allocation, the ring that counts the copies into it
        self.rounds = 1  # how often the walk runs what it is in
        self.steps: dict[Block, list[_Step]] = {}  # what the walk does in each block, found at its first run
        self.effects: dict[Op, list[tuple[str, Value]]] = {}  # of ops, on buffers

    def kernel(self, kernel: Kernel) -> None:
        if self.barriers:
            self.overlapping = _overlaps(kernel.body)
        self.rings = {
            allocation(op.operand("buffer")): op.operand("ring") for op in kernel.body.walk() if fills_ring(op)
        }
        self._block(kernel.body)
        for copies in self.state.flying.values():
            for copy in copies:
                if not copy.waited:
                    buffers = ", ".join(map(name_of, copy.buffers))
                    raise SourceError("TS502", f"nothing waits for the copy into {buffers}", copy.op.loc)

    def _block(self, block: Block) -> None:
        steps = self.steps.get(block)
        if steps is None:
            found = ((self._way(op), op) for op in block.ops)
            steps = self.steps[block] = [(way, op, _referring(op)) for way, op in found if way is not None]
        for way, op, references in steps:
            way(op)
            for value in references:
                self.meaning[value] = self.numbers.stages(value) if op.name == "stage" else _places(value)

    def _way(self, op: Op) -> Callable[[Op], None] | None:
        """What the walk does at `op`; None for most ops, which touch no buffer and compute no number."""
        definition = op.definition
        if definition.has(ELEMENTWISE) or definition.has(CONSTANT):
            return self.numbers.step if computes_a_number(op) else None
        if op.name == "roles":
            return self._roles
        if definition.has(LOOP):
            return self._loop
        if op.regions:
            return self._branches
        if fills_ring(op):
            return self._ring_copy
        if definition.has(ASYNC):
            return self._copy
        if any(isinstance(value.type, TokenType) for value in op.operands) and not definition.has(TERMINATOR):
            return self._tokens
        if op.get("scope") == "warp":
            return self._by_warps
        if definition.has(COLLECTIVE) and (not op.operands or "scope" in op.attributes):
            return self._barrier
        if op.name in ("ring_wait", "ring_release"):
            return self._hold
        return self._access if self._on_buffers(op) or _referring(op) else None

    def _on_buffers(self, op: Op) -> list[tuple[str, Value]]:
        """The effects of `op` on buffers."""
        if op not in self.effects:
            effects = op.definition.effects_of(op)
            self.effects[op] = [(effect, value) for effect, value in effects if isinstance(value.type, BufferType)]
        return self.effects[op]

    def _barrier(self, op: Op) -> None:
        self.state.unread.clear()
        self.state.unwritten.clear()
        self._access(op)

    def _means(self, value: Value) -> frozenset[Any]:
        if isinstance(value.type, BufferType):
            return self.meaning.get(value, _places(allocation(value)))
        return self.meaning.get(value, frozenset())

    def _rename(self, new: Iterable[Value], old: Iterable[Value]) -> None:
        """Gives `new` what `old` stand for, all at once: a loop may exchange its values."""
        counts = self.state.newer_groups
        new, old = list(new), list(old)
        self.numbers.rename(new, old)
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
        rounds = 2 + sum(isinstance(value.type, TokenType) for value in feeding)
        self.rounds *= rounds
        if self.rounds > MAX_ROUNDS:
            raise invalid("loops that carry copies in flight nest too deep", op.loc)
        indices = loop_range(op.operands[:3]) if op.definition.has(COUNTED) else None
        numbered = indices is not None and len(indices) <= MAX_STAGES and _numbers_stages(body)
        arguments = body.arguments[len(body.arguments) - len(feeding) :]
        starts: list[Known] = []  # the numbers with which each iteration has begun
        for number in range(len(indices) if numbered and indices else 2 * rounds if rounds > 2 else 2):
            self.numbers.forget(body.arguments[: len(body.arguments) - len(feeding)])
            if numbered and indices:
                self.numbers.known[body.arguments[0]] = indices[number]
            self._rename(arguments, feeding)
            start = tuple(self.numbers.known.get(value) for value in arguments)
            if not numbered and number >= rounds and start in starts or indices is not None and number >= len(indices):
                break
            starts.append(start)
            self._block(body)
            feeding = body.ops[-1].operands
            exits.append(self._exit(op, feeding))
        self.rounds //= rounds
        if numbered:
            exits = exits[-1:]
        elif indices is not None:
            exits = [exits[_like(len(indices), starts, start)]]
        self._meet(op, exits)

    def _branches(self, op: Op) -> None:
        start = self.state
        exits = []
        for region in op.regions:
            self.state = start.copy()
            self._block(region)
            exits.append(self._exit(op, region.ops[-1].operands))
        if not op.definition.has(BRANCH):
            exits.append(_Exit(start, [self._means(value) for value in op.results], (None,) * len(op.results)))
        self._meet(op, exits)

    def _roles(self, op: Op) -> None:
        """One after the other: roles meet nothing of one another but what rings hand on. All threads of the block meet
        before.
        """
        self.state.unread.clear()
        self.state.unwritten.clear()
        for region in op.regions:
            self._block(region)

    def _exit(self, op: Op, yielded: list[Value]) -> _Exit:
        """The state of a path that leaves `op` now with these values as its results."""
        before = self.state
        self.state = before.copy()
        self._rename(op.results, yielded)
        left, self.state = self.state, before
        numbers = tuple(self.numbers.known.get(value) for value in op.results)
        return _Exit(left, [self._means(value) for value in op.results], numbers)

    def _meet(self, op: Op, exits: list[_Exit]) -> None:
        self.state = exits[0].state
        for other in exits[1:]:
            self.state.join(other.state)
        self.numbers.forget(op.results)
        for index, value in enumerate(op.results):
            self.meaning[value] = frozenset().union(*(one.meanings[index] for one in exits))
            numbers = {one.numbers[index] for one in exits}
            if len(numbers) == 1 and (number := numbers.pop()) is not None:
                self.numbers.known[value] = number

    def _copy(self, op: Op) -> None:
        self._access(op, lands=False)
        written = [value for effect, value in self._on_buffers(op) if effect == "writes"]
        buffers = frozenset(buffer for value in written for buffer in self._means(value))
        copy = _Copy(op, buffers)
        for buffer in buffers:
            self.state.flying[buffer] = self.state.flying.get(buffer, frozenset()) | {copy}
        for result in op.results:
            self.meaning[result] = frozenset((copy,))
            self.state.newer_groups.pop(result, None)

    def _ring_copy(self, op: Op) -> None:
        self._access(op, lands=False)
        self.state.written |= self._means(op.operand("buffer"))

    def _hold(self, op: Op) -> None:
        """Takes note of the slot that consumers wait for, or release; of one of unknown number how many there are."""
        self._access(op)
        ring, number = op.operand("ring"), self.numbers.known.get(op.operand("stage"))
        if op.name == "ring_wait":
            self.state.held[ring, number] = 1 if number is not None else self.state.held[ring, None] + 1
        else:
            slot = (ring, number) if self.state.held[ring, number] else (ring, None)
            self.state.held[slot] = max(0, self.state.held[slot] - 1)

    def _check_held(self, op: Op, reference: Value) -> None:
        """A slot is read while it is held. What is not known of its number, or of those that are held, is forgiven."""
        ring = self.rings.get(allocation(reference))
        if ring is None:
            return
        stage = reference.defining_op
        number = self.numbers.known.get(stage.operands[1]) if stage is not None and stage.name == "stage" else 0
        held = {slot for (of, slot), count in self.state.held.items() if of is ring and count}
        if not held or number is not None and None not in held and number not in held:
            raise SourceError(
                "TS502",
                f"{name_of(reference)} is read and its slot of {name_of(ring)} is not held: no ring_wait for it comes "
                "before on any path, or it is released already",
                op.loc,
            )

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
                raise invalid(f"{op.name} is given {name_of(token)}, a copy that no group holds", op.loc)
            if self.state.newer_groups.get(token, 0) < int(pending):
                raise SourceError(
                    "TS502",
                    f"{op.name} leaves {pending} groups in flight, and {name_of(token)}, which it "
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
                    _add(self.state.unread, buffer, copy.op)

    def _access(self, op: Op, lands: bool = True) -> None:
        """The effects of `op` on buffers; `lands`: its writes are done when it is."""
        for effect, value in self._on_buffers(op):
            for buffer in self._means(value):
                if self.state.flying.get(buffer):
                    verb = "read" if effect == "reads" else "written"
                    raise SourceError(
                        "TS502",
                        f"{name_of(buffer)} is {verb} while an asynchronous copy into it may be "
                        "in flight: no wait for the copy comes before on every path",
                        op.loc,
                    )
                if op.get("scope") == "warp":  # of rows that the warp has written itself
                    self.state.unread.pop(buffer, None)
                    continue
                if effect != "writes":
                    self._check_held(op, value)
                    self._read(op, buffer)
                if effect != "reads":
                    self._write(op, buffer, lands)

    def _by_warps(self, op: Op) -> None:
        """A store of which each warp does its own rows of a buffer: they need no barrier before or after."""
        for value in op.operands:
            for buffer in self._means(value) if isinstance(value.type, BufferType) else ():
                self.state.unread.pop(buffer, None)
        before = dict(self.state.unwritten)
        self._access(op)
        self.state.unwritten = before

    def _sharing(self, place: Place) -> frozenset[Place]:
        """What shares bytes with a place, itself included. The stages of a buffer lie apart."""
        buffer = place.buffer if isinstance(place, Stage) else place
        others = self.overlapping.get(buffer, frozenset()) - {buffer}
        return frozenset((place,)).union(*(_places(other) for other in others))

    def _read(self, op: Op, buffer: Place) -> None:
        if buffer not in self.state.written:
            raise SourceError("TS503", f"{name_of(buffer)} is read before anything is written to it", op.loc)
        writer = _meeting(self.state.unread, buffer, op) if self.barriers else None
        if writer is not None:
            raise invalid(
                f"no barrier lies between the {writer.name} that writes {name_of(buffer)} "
                f"and this {op.name} that reads it",
                op.loc,
            )
        _add(self.state.unwritten, buffer, op)

    def _write(self, op: Op, buffer: Place, lands: bool) -> None:
        for other in self._sharing(buffer) if self.barriers else ():
            reader = _meeting(self.state.unwritten, other, op if other is buffer else None)
            if reader is not None:
                raise invalid(
                    f"no barrier lies between the {reader.name} that reads {name_of(other)} and this {op.name} "
                    f"that writes {name_of(buffer)} over it",
                    op.loc,
                )
            if other is not buffer and other in self.state.unread:
                writer = self.state.unread[other][-1].name
                raise invalid(
                    f"no barrier lies between the {writer} that writes {name_of(other)} and this {op.name} "
                    f"that writes {name_of(buffer)} in the same place",
                    op.loc,
                )
        if lands:
            self.state.written.add(buffer)
            _add(self.state.unread, buffer, op)


_Step = tuple[Callable[[Op], None], Op, list[Value]]


def _referring(op: Op) -> list[Value]:
    """The results of an op without regions that stand for a buffer or a stage of one."""
    return [] if op.regions else [value for value in op.results if isinstance(value.type, BufferType)]


def _places(buffer: Value) -> frozenset[Place]:
    """What the value of an allocation stands for: itself, or its stages."""
    return every_stage(buffer) if stage_count(buffer) > 1 else frozenset((buffer,))


# Placement ------------------------------------------------------------------------------------------------------------


def _buffer_bytes(type_: BufferType) -> int:
    """Bytes of a laid out buffer; leading axes count unless its rows hold them already."""
    layout = type_.layout
    assert layout is not None, "structure is checked first"
    leading = math.prod(int(size) for size in type_.shape[:-2])  # type: ignore[arg-type]
    rows = math.prod(int(size) for size in type_.shape[:-1])  # type: ignore[arg-type]
    return layout.bytes if layout.rows >= rows else layout.bytes * leading


def _allocations(body: Block) -> list[tuple[Value, int, int]]:
    """Shared buffers and rings with an offset: (buffer, first byte, one past the last)."""
    found = []
    for op in body.walk():
        offset = op.get("offset")
        if isinstance(offset, int) and op.results and isinstance(op.results[0].type, BufferType):
            size = _buffer_bytes(op.results[0].type) * (op.get("stages") or 1)
            found.append((op.results[0], offset, offset + size))
        elif isinstance(offset, int) and op.results and isinstance(type_ := op.results[0].type, RingType):
            found.append((op.results[0], offset, offset + type_.bytes))
    return found


def _overlaps(body: Block) -> dict[Value, frozenset[Value]]:
    """Each placed buffer with all buffers, itself included, that share bytes with it."""
    placed = [item for item in _allocations(body) if item[1] >= 0]
    return {a: frozenset(b for b, start, end in placed if start < stop and begin < end) for a, begin, stop in placed}


def check_placement(kernel: Kernel) -> None:
    placed = _allocations(kernel.body)
    limit = kernel.attributes.get("shared_bytes")
    for buffer, begin, end in placed:
        loc = buffer.defining_op.loc if buffer.defining_op else None
        if begin < 0:
            raise invalid(f"the buffer {name_of(buffer)} has no place in shared memory", loc)
        if begin % 16:
            raise invalid(f"the buffer {name_of(buffer)} lies at byte {begin}, which is no multiple of 16", loc)
        if limit is not None and end > limit:
            raise invalid(f"the buffer {name_of(buffer)} ends at byte {end} of {limit} bytes of shared memory", loc)
    references = References(kernel.body)
    live = {buffer: _live_range(kernel.body, buffer, references.of(buffer)) for buffer, _, _ in placed}
    for number, (a, begin, end) in enumerate(placed):
        for b, other_begin, other_end in placed[:number]:
            apart = end <= other_begin or other_end <= begin or live[a][1] < live[b][0] or live[b][1] < live[a][0]
            if not apart:
                raise invalid(
                    f"the buffers {name_of(b)} and {name_of(a)} share bytes while both are in use",
                    a.defining_op.loc if a.defining_op else None,
                )


def _live_range(body: Block, buffer: Value, related: set[Value]) -> tuple[int, int]:
    """Positions of the first and last op that may touch `buffer`, by its `related` values, in program order of the
    whole kernel.

    A use inside a loop that does not hold the allocation counts as the whole loop. A use of a token of a copy into the
    buffer is a use of the buffer: its bytes may change until then.
    """
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
