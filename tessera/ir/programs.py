"""What a kernel calls its programs: grid indices times the scale of a coarsened grid, as `program_id` gives them."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.ir.core import Kernel, Op
from tessera.ir.opdef import ORDERED


def scales_of(kernel: Kernel) -> tuple[int, int, int]:
    """The factor from grid index to program id along each grid axis; 1 where no op asks for the id."""
    scales = [1, 1, 1]
    for op in kernel.body.walk():
        if op.name == "program_id":
            scales[op.attributes["axis"]] = op.attributes["scale"]
    return scales[0], scales[1], scales[2]


def names_program(op: Op) -> bool:
    """Whether what an op says is seen outside, with the ids of its program: prints and assertions."""
    return op.definition.has(ORDERED) or op.name == "assert"


def program_text(identifiers: Sequence[object]) -> str:
    """How messages and prints name a program."""
    return f"program ({', '.join(map(str, identifiers))})"
