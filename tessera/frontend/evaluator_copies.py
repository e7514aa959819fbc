"""Copy groups: which asynchronous copies are in flight at each point of a kernel.

A copy joins the open group, `cp_commit_group` closes it, `cp_wait_group(n)` waits for all closed groups but the n
newest. The front end follows this at compile time, so that a wait names the tokens that it completes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.ir.core import Value
from tessera.location import Loc


@dataclass(frozen=True)
class Copy:
    """A copy in flight into `buffer`, issued at `loc`."""

    token: Value
    buffer: Value
    loc: Loc


@dataclass(frozen=True)
class CopyGroups:
    """The copies in flight, oldest first. Immutable: a region's copies are compared with those before it."""

    committed: tuple[tuple[Copy, ...], ...] = ()
    open: tuple[Copy, ...] = ()

    def issue(self, copy: Copy) -> CopyGroups:
        return CopyGroups(self.committed, (*self.open, copy))

    def commit(self) -> CopyGroups:
        return CopyGroups((*self.committed, self.open))

    def wait(self, newest: int) -> tuple[tuple[Copy, ...], CopyGroups]:
        """The copies to wait for so that only the `newest` committed groups stay in flight, and what is then left."""
        split = max(len(self.committed) - newest, 0)
        done = tuple(copy for group in self.committed[:split] for copy in group)
        return done, CopyGroups(self.committed[split:], self.open)

    @property
    def in_flight(self) -> tuple[Copy, ...]:
        return (*(copy for group in self.committed for copy in group), *self.open)

    def into(self, buffer: Value) -> Copy | None:
        """A copy in flight into `buffer`."""
        return next((copy for copy in self.in_flight if copy.buffer is buffer), None)

    def started_since(self, before: CopyGroups) -> Copy | None:
        """A copy in flight that was not there `before`."""
        known = {id(copy.token) for copy in before.in_flight}
        return next((copy for copy in self.in_flight if id(copy.token) not in known), None)
