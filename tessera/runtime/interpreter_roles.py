"""Roles on the interpreter: one runs at a time, until it must wait for another or gives up its turn at a ring.

Each role but the last has a thread, the last one runs in the caller's. They hand a turn to one another, so that a run
is a sequence, and the same one for the same order. Where a role raises, or the programs of the batch want different
control flow, all of them end.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import SourceError
from tessera.ir.core import Op
from tessera.ir.ops.roles import integer
from tessera.ir.rings import Ring
from tessera.ir.types import RingType

if TYPE_CHECKING:
    from tessera.runtime.interpreter import Machine


def run_roles(machine: Machine, op: Op) -> list[Any]:
    """Runs the regions of `op` against one another; then every slot that was filled must have been waited for."""
    machine.turns = Turns(op.attributes["names"], machine.seed)
    try:
        machine.turns.run([lambda region=region: machine.block(region) for region in op.regions])
    finally:
        machine.turns = None
    used = {value for region in op.regions for inner in region.walk() for value in inner.operands}
    for ring in [machine.values[value] for value in used if isinstance(value.type, RingType)]:
        if (left := ring.unfinished()) is not None:
            raise SourceError("TS514", left)
    return []


def ring_step(machine: Machine, op: Op) -> list[Any]:
    """Runs an op on a slot of a ring when the ring lets it pass. Programs at different slots are different batches."""
    operands = []
    for name, value in zip(_names(op), machine.read(op.operands), strict=True):
        if name in ("stage", "phase"):
            value = machine.number(np.array([machine.uniform(machine.integers(value))], np.int64))
        operands.append(value)
    turns = machine.turns
    if turns is not None and op.name in _WAITS:
        ring, *numbers = operands
        passes, lacks = _WAITS[op.name]
        number, phase = map(integer, numbers)
        share = (op.attributes["share"],) if "share" in op.attributes else ()
        turns.give_up(_Waiting(op, lambda: passes(ring, number, phase, *share), lambda: lacks(ring, number, *share)))
    machine.apply(op, operands)
    if turns is not None:
        turns.give_up()
    return []


# Whether such an op passes, and what it lacks where it does not.
_WAITS: dict[str, tuple[Callable[..., bool], Callable[..., str]]] = {
    "ring_acquire": (Ring.is_empty, Ring.wanted_empty),
    "ring_wait": (Ring.is_full, Ring.wanted_full),
}


def _names(op: Op) -> list[str]:
    """The name of each operand; those of a rest have its."""
    declared = op.definition.operands
    return [*declared[: len(op.operands)], *declared[-1:] * (len(op.operands) - len(declared))]


class _Stopped(BaseException):
    """Another role has failed: this one ends, too."""


@dataclass
class _Waiting:
    """What a role waits for: `passes` says whether it still does, `lacks` what it lacks, as a clause of a message."""

    op: Op
    passes: Callable[[], bool]
    lacks: Callable[[], str]


class Turns:
    """Whose turn it is. Without a `seed` the first role that can go on does; with one, any that can."""

    def __init__(self, names: Sequence[str], seed: int | None) -> None:
        self.names = names
        self.current = 0
        self.failure: BaseException | None = None
        self._random = None if seed is None else random.Random(seed)
        self._open = list(range(len(names)))  # roles that have not ended
        self._waiting: list[_Waiting | None] = [None] * len(names)
        self._gates = [threading.Semaphore(0) for _ in names]

    def run(self, bodies: Sequence[Callable[[], object]]) -> None:
        """Runs a body for each role to its end. Raises what the first one raises that fails."""
        errors = np.geterr()  # which is the thread's own

        def role(number: int) -> None:
            with np.errstate(**errors):  # type: ignore[arg-type]
                self._role(number, bodies[number])

        threads = [
            threading.Thread(target=role, args=(number,), name=f"role {self.names[number]}", daemon=True)
            for number in range(len(bodies) - 1)
        ]
        for thread in threads:
            thread.start()
        try:
            self._hand_on()
            self._role(len(bodies) - 1, bodies[-1])
        except BaseException:  # an interrupt of the caller: nothing else gets here
            self._fail(_Stopped())
            raise
        finally:
            for thread in threads:
                thread.join()
        if self.failure is not None:
            raise self.failure

    def give_up(self, waiting: _Waiting | None = None) -> None:
        """Lets another role go on, and comes back when the current one may, and what it waits for is there."""
        me = self.current
        self._waiting[me] = waiting
        self._hand_on()
        self._await_turn(me)
        self._waiting[me] = None

    def _role(self, number: int, body: Callable[[], object]) -> None:
        try:
            self._await_turn(number)
            body()
            self._open.remove(number)
            self._hand_on()
        except _Stopped:
            pass
        except BaseException as error:  # whatever it is, the caller gets it
            self._fail(error)

    def _await_turn(self, number: int) -> None:
        self._gates[number].acquire()
        if self.failure is not None:
            raise _Stopped

    def _hand_on(self) -> None:
        """Gives the turn to a role that can go on; where none can, all of them fail."""
        if not self._open:
            return
        ready = [number for number in self._open if self._can_go_on(number)]
        if not ready:
            self._fail(self._deadlock())
            return
        self.current = ready[0] if self._random is None else self._random.choice(ready)
        self._gates[self.current].release()

    def _can_go_on(self, number: int) -> bool:
        waiting = self._waiting[number]
        return waiting is None or waiting.passes()

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self._open.clear()
        for gate in self._gates:
            gate.release()

    def _deadlock(self) -> SourceError:
        stuck = [(number, waiting) for number in self._open if (waiting := self._waiting[number]) is not None]
        reasons = [f"'{self.names[number]}': {waiting.lacks()}" for number, waiting in stuck]
        ended = [f"'{name}' has ended" for number, name in enumerate(self.names) if number not in self._open]
        return SourceError("TS513", f"no role can go on; {'; '.join(reasons + ended)}", stuck[0][1].op.loc)
