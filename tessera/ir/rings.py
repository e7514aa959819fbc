"""Run-time values of rings: what each slot of a ring has been through, and the protocol that holds between its users.

A slot is filled and emptied in rounds, counted from 0. In each the producer acquires it, announces the bytes of its
copies and starts them; the consumers wait until these have landed, read, and release it, which lets the producer
acquire it for the next round. Hardware sees only the parity of a round (`phase`): who waits for any other round than
the one that comes next would pass at once, or never. To wait again for a round that was waited for and is not released
passes at once, as it should.

A slot may come in shares, which the producer acquires and fills one by one; consumers wait for all shares, each warp
for its own, and release them so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.errors import SourceError
from tessera.ir.values import Buffer, Token


@dataclass(eq=False)
class Slot:
    """One slot, for whose rounds `readers` roles wait. The counts say how many rounds have got so far, `waits` how many
    waits have passed, of all readers; the rest is about the round that is being filled.

    `copies` land at the wait. `announced`: bytes that the producer expects, None before it has said so; `brought`:
    bytes of the copies. `contents`: the buffers that the copies fill, by name, until the slot is acquired again.
    """

    readers: int = 1
    acquired: int = 0
    waits: int = 0
    released: int = 0
    announced: int | None = None
    brought: int = 0
    copies: list[Token] = field(default_factory=list)
    contents: dict[str, Buffer] = field(default_factory=dict)
    # In flight into every buffer from the release on: whoever touches one then may meet the producer's next copy.
    handed_back: Token = field(default_factory=lambda: Token(lambda: None))

    @property
    def filled(self) -> bool:
        """Whether the bytes of the round are announced, and copies that bring them are started."""
        return self.acquired > self.waited and self.announced == self.brought

    @property
    def waited(self) -> int:
        """How many rounds all readers have waited for."""
        return self.waits // self.readers


@dataclass(eq=False)
class Ring:
    """The slots of a ring. Raises SourceError TS514 for a use that breaks the protocol, TS513 for one that would wait.

    `name` is what the author's IR calls the ring.
    """

    name: str
    slots: list[Slot]  # the shares of a slot follow one another
    shares: int = 1

    @staticmethod
    def new(name: str, stages: int, readers: int = 1, shares: int = 1) -> Ring:
        return Ring(name, [Slot(readers) for _ in range(stages * shares)], shares)

    def text(self, number: int, share: int = 0) -> str:
        """A slot, or a share of one, as messages call it."""
        slot = self.slot(number, share)
        names = ", ".join(f"'{name}'" for name in slot.contents)
        of = f"share {share} of " if self.shares > 1 else ""
        return f"{of}slot {number} of '{self.name}'" + (f" (which holds {names})" if names else "")

    def slot(self, number: int, share: int = 0) -> Slot:
        stages = len(self.slots) // self.shares
        if not 0 <= number < stages:
            raise SourceError("TS504", f"'{self.name}' has {stages} slots and no number {number}")
        if not 0 <= share < self.shares:
            raise SourceError("TS504", f"slots of '{self.name}' have {self.shares} shares and no number {share}")
        return self.slots[number * self.shares + share]

    # The producer

    def is_empty(self, number: int, phase: int, share: int = 0) -> bool:
        """Whether an acquire passes now: every round before has been released."""
        slot = self.slot(number, share)
        self._check_round(number, share, phase, slot.acquired, "acquired")
        return slot.released == slot.acquired

    def acquire(self, number: int, phase: int, share: int = 0) -> None:
        if not self.is_empty(number, phase, share):
            raise SourceError("TS513", self.wanted_empty(number, share))
        slot = self.slot(number, share)
        slot.acquired += 1
        slot.announced, slot.brought = None, 0
        slot.contents.clear()
        slot.handed_back.wait()

    def expect(self, number: int, count: int, share: int = 0) -> None:
        slot = self._being_filled(number, share, "bytes are announced for")
        if slot.announced is not None:
            raise SourceError("TS514", f"bytes are announced twice in one round for {self.text(number, share)}")
        slot.announced = count
        self._check_bytes(number, share)

    def copy(self, number: int, name: str, buffer: Buffer, token: Token, count: int, share: int = 0) -> None:
        """Takes note of a copy of `count` bytes into the buffer `name`, which is in flight from now on."""
        slot = self._being_filled(number, share, f"a copy into '{name}' is started for")
        slot.copies.append(token)
        slot.brought += count
        slot.contents[name] = buffer
        buffer.in_flight.append(token)
        self._check_bytes(number, share)

    def _being_filled(self, number: int, share: int, what: str) -> Slot:
        slot = self.slot(number, share)
        if slot.acquired == slot.waited:
            text = self.text(number, share)
            raise SourceError("TS514", f"{what} {text}, which has not been acquired for a new round")
        return slot

    def _check_bytes(self, number: int, share: int) -> None:
        slot = self.slot(number, share)
        if slot.announced is not None and slot.brought > slot.announced:
            raise SourceError(
                "TS514",
                f"the copies into {self.text(number, share)} bring {slot.brought} bytes, and {slot.announced} are "
                "announced",
            )

    # The consumers

    def is_full(self, number: int, phase: int) -> bool:
        """Whether a wait passes now: all shares are filled."""
        return all(self._is_full(number, share, phase) for share in range(self.shares))

    def _is_full(self, number: int, share: int, phase: int) -> bool:
        slot = self.slot(number, share)
        if self._stays(slot, phase):
            return True
        self._check_round(number, share, phase, slot.waited, "waited for")
        return slot.filled

    def _stays(self, slot: Slot, phase: int) -> bool:
        """Whether all readers have waited for the round of this phase, and nobody has released it."""
        return slot.released < slot.waited and phase == (slot.waited - 1) % 2

    def wait(self, number: int, phase: int) -> None:
        """Lands the copies of the round."""
        if not self.is_full(number, phase):
            raise SourceError("TS513", self.wanted_full(number))
        for share in range(self.shares):
            slot = self.slot(number, share)
            if self._stays(slot, phase):
                continue
            slot.waits += 1
            for token in slot.copies:
                token.wait()
            slot.copies.clear()

    def release(self, number: int) -> None:
        for share in range(self.shares):
            slot = self.slot(number, share)
            if slot.released == slot.waited:
                why = "is released twice" if slot.released else "is released and was never waited for"
                raise SourceError("TS514", f"round {max(slot.released - 1, 0)} of {self.text(number, share)} {why}")
            slot.released += 1
            slot.handed_back = Token(lambda: None)
            for buffer in slot.contents.values():
                buffer.in_flight.append(slot.handed_back)

    def _check_round(self, number: int, share: int, phase: int, next_round: int, verb: str) -> None:
        if phase != next_round % 2:
            raise SourceError(
                "TS514",
                f"{self.text(number, share)} is {verb} in a round of phase {phase}, and the next one is round "
                f"{next_round}, of phase {next_round % 2}: each round must be {verb} in its turn",
            )

    # What messages say

    def wanted_empty(self, number: int, share: int = 0) -> str:
        """What an acquire lacks that does not pass."""
        slot = self.slot(number, share)
        seen = "waits for it" if slot.waited < slot.acquired else "releases it"
        last = slot.acquired - 1
        return f"round {slot.acquired} of {self.text(number, share)} cannot be filled: nobody {seen} in round {last}"

    def wanted_full(self, number: int) -> str:
        """What a wait lacks that does not pass."""
        share = next((share for share in range(self.shares) if not self.slot(number, share).filled), 0)
        slot = self.slot(number, share)
        what = f"round {slot.waited} of {self.text(number, share)}"
        if slot.acquired == slot.waited:
            return f"{what} is waited for, and nobody fills it"
        if slot.announced is None:
            return f"{what} is waited for, and no bytes are announced for it"
        return f"{what} is waited for: {slot.announced} bytes are announced, and its copies bring {slot.brought}"

    def unfinished(self) -> str | None:
        """The first slot that was filled and that nobody has waited for, as a sentence; None where all were."""
        for index, slot in enumerate(self.slots):
            if slot.acquired > slot.waited:
                text = self.text(*divmod(index, self.shares))
                return f"round {slot.waited} of {text} is acquired, and nobody waits for it"
        return None
