"""Which launches of a plan may run side by side, and what each waits for.

The rule: a launch leaves the first stream only if it and the launch that it would run beside are independent and each
has at most half as many blocks as the GPU has multiprocessors. Two such launches fit on the GPU together; of larger
ones the second would wait for room in any case. Streams are used in captured graphs alone, where an edge costs the host
nothing; launches that are queued one by one all go to the caller's stream, in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.buffers import Order, members

MOST_STREAMS = 4

# What a launch reads and what it writes, by name.
Access = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True)
class Streams:
    """`of[n]`: the stream of launch n. `waits[n]`: launches on other streams that it waits for beside what is ahead of
    it on its own. `joins`: those that the first stream waits for behind its last launch. `order` is what follows.
    """

    of: tuple[int, ...]
    waits: tuple[tuple[int, ...], ...]
    joins: tuple[int, ...]
    order: Order

    @property
    def count(self) -> int:
        """How many streams there are."""
        return max(self.of, default=0) + 1


def dependencies(accesses: Sequence[Access]) -> list[int]:
    """For each launch the earlier ones, as bits, that write what it touches or touch what it writes."""
    found = []
    for number, (reads, writes) in enumerate(accesses):
        bits = 0
        for earlier, (others_reads, others_writes) in enumerate(accesses[:number]):
            if others_writes & (reads | writes) or others_reads & writes:
                bits |= 1 << earlier
        found.append(bits)
    return found


def leaves_room(blocks: int, multiprocessors: int) -> bool:
    """Whether a launch of so many blocks leaves room for another one that does."""
    return 2 * blocks <= multiprocessors


def assign(accesses: Sequence[Access], small: Sequence[bool]) -> Streams:
    """Streams for launches in order. `small[n]`: launch n leaves room for another (`leaves_room`)."""
    needed = dependencies(accesses)
    tails: list[int] = []  # the last launch of each stream
    of: list[int] = []
    before: list[int] = []
    waits: list[tuple[int, ...]] = []
    for number, direct in enumerate(needed):
        done = direct
        for earlier in members(direct):
            done |= before[earlier]
        stream = _stream(direct, done, tails, small) if small[number] else 0
        ahead = 0
        if stream < len(tails):
            ahead = before[tails[stream]] | 1 << tails[stream]
        waiting: list[int] = []
        for earlier in sorted(members(direct), reverse=True):  # a later one often makes an earlier one superfluous
            if not ahead >> earlier & 1:
                waiting.append(earlier)
                ahead |= before[earlier] | 1 << earlier
        if stream == len(tails):
            tails.append(number)
        tails[stream] = number
        of.append(stream)
        before.append(ahead)
        waits.append(tuple(sorted(waiting)))
    last = before[tails[0]] if tails else 0
    joins = tuple(tail for tail in tails[1:] if not last >> tail & 1)
    return Streams(tuple(of), tuple(waits), joins, Order(tuple(before)))


def _stream(direct: int, done: int, tails: Sequence[int], small: Sequence[bool]) -> int:
    """The stream of a small launch that needs the launches `direct`, which leave those of `done` over.

    Behind one that it needs in any case, else on a stream whose work is over by then, else on a new one.
    """
    following = [stream for stream, tail in enumerate(tails) if direct >> tail & 1]
    if following:
        return max(following, key=lambda stream: tails[stream])
    over = [stream for stream, tail in enumerate(tails) if done >> tail & 1]
    if over or not tails:
        return min(over, default=0)
    if not small[tails[0]]:  # nothing would be gained beside a launch that fills the GPU
        return 0
    return len(tails) if len(tails) < MOST_STREAMS else 0


__all__ = ["MOST_STREAMS", "Streams", "assign", "dependencies", "leaves_room"]
