"""Where buffers lie in one block of memory: those that are never alive at the same time may share it.

Launches are numbered. An `Order` says which are over before another one begins, on one stream or on several; a buffer
is alive from its first user to its last. Plain numbers: nothing here knows what is launched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

ALIGNMENT = 256  # bytes: where a buffer of a workspace begins

Name = TypeVar("Name", bound=Hashable)


def aligned(size: int) -> int:
    """The bytes that a buffer takes of a workspace."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Order:
    """`before[n]`: the launches that are over when launch n begins, as bits; closed under "before"."""

    before: tuple[int, ...]

    @staticmethod
    def sequential(count: int) -> Order:
        """One launch after the other."""
        return Order(tuple((1 << number) - 1 for number in range(count)))

    @staticmethod
    def of(edges: Sequence[Iterable[int]]) -> Order:
        """`edges[n]`: launches that n waits for, all of them earlier ones."""
        before: list[int] = []
        for earlier in edges:
            found = 0
            for number in earlier:
                found |= before[number] | 1 << number
            before.append(found)
        return Order(tuple(before))

    def apart(self, one: int, other: int) -> bool:
        """Whether all launches of one set, as bits, are over before any of the other begins, or the other way round."""
        return self._over(one, other) or self._over(other, one)

    def _over(self, first: int, then: int) -> bool:
        return all(first & ~self.before[number] == 0 for number in members(then))


def members(bits: int) -> Iterable[int]:
    """The numbers in a set of bits, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


@dataclass(frozen=True)
class Buffer:
    """So many bytes that the launches of the bits `users` touch, and nobody before or after."""

    bytes: int
    users: int


def place(buffers: Mapping[Name, Buffer], order: Order) -> tuple[dict[Name, int], int]:
    """Where each buffer lies in one block, and the bytes of that.

    Largest first, each at the lowest offset that is free of all that may be alive together with it.
    """
    sizes = {name: aligned(buffer.bytes) for name, buffer in buffers.items()}
    placed: dict[Name, int] = {}
    for name in sorted(buffers, key=lambda n: (-sizes[n], _first(buffers[n].users))):
        users = buffers[name].users
        busy = sorted(
            (placed[other], placed[other] + sizes[other])
            for other in placed
            if sizes[other] and not order.apart(users, buffers[other].users)
        )
        offset = 0
        for begin, end in busy:
            if begin - offset >= sizes[name]:
                break
            offset = max(offset, end)
        placed[name] = offset
    return placed, max((placed[name] + sizes[name] for name in placed), default=0)


def _first(users: int) -> int:
    return (users & -users).bit_length()


@dataclass(frozen=True)
class Footprint:
    """What a call needs, in bytes: its `arguments`, its `results`, and a `workspace` for all that launches hand on.

    `unshared` is what the workspace would be if each buffer in it had memory of its own.
    """

    arguments: int = 0
    results: int = 0
    workspace: int = 0
    unshared: int = 0

    @property
    def peak(self) -> int:
        """Everything that is held while the launches run."""
        return self.arguments + self.results + self.workspace

    @property
    def peak_unshared(self) -> int:
        """The same without any sharing."""
        return self.arguments + self.results + self.unshared


__all__ = ["ALIGNMENT", "Buffer", "Footprint", "Order", "aligned", "members", "place"]
