"""The default point of kernels without products that reduce long lines: how many warps share one.

While a warp loads a line, nothing of it is computed, so a multiprocessor has to hold many lines. A line of which a
thread holds many registers leaves room for few: it is shared by warps, whose partial results meet in shared memory, and
a program takes one line.
"""

from __future__ import annotations

from tessera.ir.core import Kernel, Op, Value
from tessera.ir.layout import LANES
from tessera.ir.opdef import REDUCTION, SCAN
from tessera.ir.ops.control import constant_value
from tessera.ir.types import TileType, dtype_of, int_shape, tile_layout
from tessera.target.arch import Arch

LONG_LINE = 1024  # elements that a warp keeps to itself, whatever is computed of them: 32 a lane
# 32-bit registers of a lane beside about 30 others. 64: softmax of 2048 columns, 96 registers in all and 20 lines of
# 4 KiB on a multiprocessor. 128: layer norm of 2048 columns, and softmax of 4096, which reached 0.90 of a copy.
REGISTERS_OF_A_LINE = 64
MOST_WARPS = 16
# Of a thread with up to 32 elements of a line that came, and wait, as 16-bit ones. Where nobody says how many blocks
# should fit, the assembler takes 72 for a norm, to load earlier what all lines share.
REGISTERS_OF_A_THREAD, ELEMENTS_OF_A_THREAD = 64, 32
FOLDS = ("fold_blocks", "fold_lines")  # of what the warps have of their lines
VECTOR_OF_A_WARP = 256  # elements: 32 accesses of 16 bytes


def longest_line(kernel: Kernel) -> int:
    """The longest last axis that is reduced or scanned; 0 where there is none."""
    lines = [0]
    for op in _along(kernel):
        shape = int_shape(op.operands[0].type)
        if op.attributes["axis"] in (-1, None, len(shape) - 1):
            lines.append(shape[-1])
    return max(lines)


def warps_of_a_line(kernel: Kernel, line: int) -> int:
    """How many warps should share a line; 1: each keeps its lines to itself."""
    if line <= LONG_LINE:
        return 1
    words = -(-live_bytes(kernel, line) // 4)
    if words * line <= 32 * REGISTERS_OF_A_LINE:
        return 1
    warps = 2
    while warps < MOST_WARPS and max(1, words // 2) * line > LONG_LINE * warps:
        warps *= 2
    while warps > 2 and -line % (VECTOR_OF_A_WARP * warps) > line // 8:
        warps //= 2  # the last warp would hold little but padding
    return warps


def live_bytes(kernel: Kernel, line: int) -> int:
    """Bytes of each column that are live at once while a line of `line` elements is reduced.

    What is loaded after a reduction counts from the start: loads move to the front. What only the reduction takes does
    not: it is computed element by element.
    """
    last: dict[Value, int] = {}
    for place, op in enumerate(kernel.body.ops):
        for inner in (op, *(i for region in op.regions for i in region.walk())):
            last.update(dict.fromkeys(inner.operands, place))
    made = {value: place for place, op in enumerate(kernel.body.ops) for value in op.results if _is_wide(value, line)}
    loaded = [v for v in made if v.defining_op is not None and v.defining_op.name == "load"]
    most = 0
    for place, op in enumerate(kernel.body.ops):
        if op.definition.has(REDUCTION) or op.definition.has(SCAN):
            live = {v for v, start in made.items() if start < place < last.get(v, -1)}
            live |= {v for v in loaded if made[v] > place}
            most = max(most, sum(dtype_of(value.type).bytes for value in live))
    return max(most, 4)


def blocks_of_lines(kernel: Kernel) -> int:
    """How many blocks should fit a multiprocessor where warps share lines of a Target kernel; 1, which says nothing,
    where they do not, or where threads may need more registers: for longer or wider parts of a line, or several lines.
    """
    if not any(op.name in FOLDS for op in kernel.body.walk()):
        return 1
    loads = [op for op in kernel.body.walk() if op.name == "ld_global" and isinstance(op.result.type, TileType)]
    own = [op for op in loads if not is_common(op.operands[0])]
    narrow = all(dtype_of(op.result.type).bits <= 16 for op in loads)
    short = all(tile_layout(op.result.type).registers_per_thread <= ELEMENTS_OF_A_THREAD for op in loads)
    blocks = Arch.registers_per_sm // (REGISTERS_OF_A_THREAD * LANES * kernel.attributes["warps"])
    return blocks if len(own) == 1 and narrow and short else 1


def is_common(view: Value) -> bool:
    """Whether a view is the same part of a tensor in every program."""
    while (op := view.defining_op) is not None:
        if any(constant_value(offset) is None for offset in op.operands[1:]):
            return False
        view = op.operands[0]
    return True


def _is_wide(value: Value, line: int) -> bool:
    return isinstance(value.type, TileType) and bool(value.type.shape) and int_shape(value.type)[-1] == line


def _along(kernel: Kernel) -> list[Op]:
    return [op for op in kernel.body.walk() if op.definition.has(REDUCTION) or op.definition.has(SCAN)]


__all__ = ["FOLDS", "LONG_LINE", "blocks_of_lines", "is_common", "live_bytes", "longest_line", "warps_of_a_line"]
