"""Give every shared buffer its bytes in the one dynamic block: buffers that are never live together may share them.

A buffer lives from its first to its last use in program order, uses of its stages and of the tokens of copies into it
included, and waits for products that read it; a use inside a loop that the buffer outlives counts for the whole loop,
because another iteration may come, and one inside `roles` for all of those: other roles are anywhere, so that what two
of them allocate for themselves never shares bytes.
Largest first, each at the lowest offset that is free for its whole life. Small ones share nothing where as many blocks
fit a multiprocessor without: two buffers in the same bytes cost a barrier.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.errors import SourceError
from tessera.ir.core import Block, Kernel, Op, Value, clone_kernel
from tessera.ir.ops.roles import computing_warps
from tessera.ir.ops.wgmma import buffers_behind
from tessera.ir.stages import References, allocated_bytes
from tessera.target.arch import Arch

ALIGNMENT = 128  # bytes: a full row of banks
# In kernels with roles: the swizzles of TMA and wgmma go by the bits of an address, and repeat after so many bytes.
ROLES_ALIGNMENT = 1024
RING_ALIGNMENT = 16
SMALL = 2048  # bytes of a buffer that may lie apart: the blocks of a few lines
PLACED = ("shared", "ring")


@dataclass
class Life:
    """A buffer, or a ring, and the positions of its first and last use; `first` is 0 until it is used. `role`: the
    number of the role that allocates it, if one does.
    """

    buffer: Op
    alignment: int
    role: int | None = None
    first: int = 0
    last: int = 0

    @property
    def bytes(self) -> int:
        return allocated_bytes(self.buffer)

    def meets(self, other: Life) -> bool:
        """Whether both may be live at one time."""
        if self.role != other.role and None not in (self.role, other.role):
            return True
        return self.first <= other.last and other.first <= self.last


def place_shared(kernel: Kernel, arch: Arch) -> Kernel:
    """Raises SourceError TS501 when the buffers do not fit the architecture's block."""
    new, _ = clone_kernel(kernel)
    placed = sorted(_lives(new), key=lambda x: (-x.bytes, x.first))
    total = _place(placed, apart=True)
    close = _place(placed, apart=False)
    if 0 < _blocks(new, close, arch) == _blocks(new, total, arch):
        _place(placed, apart=True)
    else:
        total = close
    if total > arch.shared_bytes_per_block:
        largest = max(placed, key=lambda x: x.bytes)
        raise SourceError(
            "TS501",
            f"the kernel needs {total} bytes of shared memory and {arch.name} has "
            f"{arch.shared_bytes_per_block} per block; the largest buffer, "
            f"'{largest.buffer.result.name}', has {largest.bytes} bytes",
            largest.buffer.loc,
        )
    new.attributes["shared_bytes"] = total
    return new


def _place(lives: list[Life], apart: bool) -> int:
    """Sets the offsets of buffers, given in this order; all bytes that they take. `apart`: small ones share none."""
    placed: list[Life] = []
    total = 0
    for life in lives:
        alone = apart and life.bytes <= SMALL
        others = [other for other in placed if alone or apart and other.bytes <= SMALL or life.meets(other)]
        offset = 0
        for start, size in sorted((other.buffer.attributes["offset"], other.bytes) for other in others):
            if offset + life.bytes <= start:
                break
            offset = max(offset, -(-(start + size) // life.alignment) * life.alignment)
        life.buffer.attributes["offset"] = offset
        placed.append(life)
        total = max(total, offset + life.bytes)
    return total


def _blocks(kernel: Kernel, total: int, arch: Arch) -> int:
    """How many blocks of so many bytes fit a multiprocessor, as far as their threads do; 0 where one does not."""
    if total > arch.shared_bytes_per_block:
        return 0
    threads = (computing_warps(kernel) + kernel.attributes.get("producer_warps", 0)) * arch.warp_size
    room = arch.shared_bytes_per_sm // (total + arch.reserved_shared_bytes)
    return min(arch.max_blocks_per_sm, arch.max_threads_per_sm // threads, room)


def share_bytes(a: Value, b: Value) -> bool:
    """Whether two placed buffers have bytes in common (a buffer has with itself)."""
    if a is b:
        return True
    (first, first_end), (second, second_end) = _extent(a), _extent(b)
    return first >= 0 and second >= 0 and first < second_end and second < first_end


def _extent(buffer: Value) -> tuple[int, int]:
    """The first byte of a buffer, negative until it is placed, and the one past its last."""
    op = buffer.defining_op
    assert op is not None, buffer
    return op.attributes["offset"], op.attributes["offset"] + allocated_bytes(op)


def _lives(kernel: Kernel) -> list[Life]:
    lives: dict[Value, Life] = {}
    alignment = ROLES_ALIGNMENT if any(op.name == "roles" for op in kernel.body.ops) else ALIGNMENT
    position, role = 0, None
    behind: dict[Value, list[Value]] = {}  # the allocations that a reference or a token stands for
    references = References(kernel.body)
    for op in kernel.body.walk():
        if op.name in PLACED:
            for value in references.of(op.result):
                behind.setdefault(value, []).append(op.result)

    def visit(block: Block, loops: list[tuple[int, set[Value]]]) -> None:
        nonlocal position, role
        for op in block.ops:
            position += 1
            if op.name in PLACED:
                lives[op.result] = Life(op, RING_ALIGNMENT if op.name == "ring" else alignment, role)
                for _, inside in loops:
                    inside.add(op.result)
            for value in [*op.operands, *(buffers_behind(op) if op.name == "wgmma_wait" else ())]:
                for buffer in behind.get(value, ()):
                    _extend(lives[buffer], buffer, position, loops)
            if op.name == "if":  # its regions run at most once: what is used in them has no other life for that
                for region in op.regions:
                    visit(region, loops)
                position += 1
            elif op.regions:
                start = position
                frame: tuple[int, set[Value]] = (start, set())
                for number, region in enumerate(op.regions):
                    role = number if op.name == "roles" else role
                    visit(region, [*loops, frame])
                role = None if op.name == "roles" else role
                position += 1
                for value, life in lives.items():
                    if value not in frame[1] and life.last > start:
                        life.last = position  # used inside a loop that it outlives

    visit(kernel.body, [])
    return [life for life in lives.values() if life.first]


def _extend(life: Life, value: Value, position: int, loops: list[tuple[int, set[Value]]]) -> None:
    if not life.first:
        life.first = min([position, *(start for start, inside in loops if value not in inside)])
    life.last = max(life.last, position)
