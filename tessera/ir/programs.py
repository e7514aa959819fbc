"""Programs of a kernel: what it calls them, and those of a persistent kernel, of which each does the work of several.

A program's ids are grid indices times the scale of a coarsened grid, as `program_id` gives them. A persistent kernel
(`passes/persist.py`) has a grid of one axis, as many programs as the device runs at a time, and a loop over the
programs of the grid that it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.ir.core import Block, Kernel, Op
from tessera.ir.dims import Size, evaluate, symbols
from tessera.ir.opdef import COUNTED, ORDERED
from tessera.ir.ops.control import constant_value

# A dim of grids alone, which whoever runs a kernel gives its value. No dim of an author has a dot, and one that a
# parameter brings with it has a number behind that.
MULTIPROCESSORS = "device.multiprocessors"
EMULATED_MULTIPROCESSORS = 4  # of a machine that is none: few, so that programs of small grids do the work of several


def grid_extents(
    grid: Sequence[Size], dims: Mapping[str, int], multiprocessors: int = EMULATED_MULTIPROCESSORS
) -> tuple[int, ...]:
    """A grid in numbers. Raises KeyError with the first dim that has no value."""
    values = {MULTIPROCESSORS: multiprocessors, **dims}
    return tuple(evaluate(size, values) for size in grid)


def counts_multiprocessors(grid: Sequence[Size]) -> bool:
    """Whether a grid is that of a persistent kernel."""
    return any(MULTIPROCESSORS in symbols(size) for size in grid)


def persistent_loop(kernel: Kernel) -> Op | None:
    """The loop of a persistent kernel over the programs of its former grid, which every program enters; else None."""
    if not counts_multiprocessors(kernel.attributes.get("grid", ())):
        return None
    return next((op for op in kernel.body.ops if op.definition.has(COUNTED) and _strides_programs(op)), None)


def persistent_loops(kernel: Kernel) -> list[Op]:
    """The persistent loop of each role, or of a kernel without roles; none of a kernel that is not persistent."""
    if not counts_multiprocessors(kernel.attributes.get("grid", ())):
        return []
    blocks = [kernel.body, *(region for op in kernel.body.ops if op.name == "roles" for region in op.regions)]
    return [op for block in blocks for op in block.ops if op.definition.has(COUNTED) and _strides_programs(op)]


def programs_in_turn(loop: Op) -> int:
    """How many programs of the launch share an iteration of its persistent loop: those of a cluster, or of what was to
    be one.
    """
    count, op = 1, loop.operand("step").defining_op
    while op is not None and op.name in ("floordiv", "mul"):
        count *= constant_value(op.operands[1]) if op.name == "floordiv" else 1
        op = op.operands[0].defining_op
    return count


def _strides_programs(loop: Op) -> bool:
    ends = [_behind(loop.operand(name).defining_op) for name in ("lower", "step")]
    made = [(op.name, op.attributes["axis"]) for op in ends if op is not None and "axis" in op.attributes]
    return made == [("program_id", 0), ("num_programs", 0)]


def _behind(op: Op | None) -> Op | None:
    """The op behind a number of programs that was divided by the size of a cluster, or of which teams take every so
    many-th, each from its first one on; else the op itself.
    """
    return _behind(op.operands[0].defining_op) if op is not None and op.name in ("floordiv", "add", "mul") else op


def program_body(kernel: Kernel) -> Block:
    """What runs for each program of the author's grid: the body of the kernel, or that of its persistent loop."""
    loop = persistent_loop(kernel)
    return kernel.body if loop is None else loop.regions[0]


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
