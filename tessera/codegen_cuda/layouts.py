"""Layouts as C: where a thread's registers lie in a tile, and where an element lies in a shared buffer.

A register layout `L0` becomes, per axis `a`, a thread part `L0_t<a>` (a variable), a warp part `L0_w<a>` and a
register part `L0_r<a>(r)` (a function that is constant once its loop is unrolled). Basis bits are disjoint, so the
parts add.
"""

from __future__ import annotations

from tessera.errors import InternalError
from tessera.ir.layout import RegisterLayout, SharedLayout, warp_groups


class LayoutNames:
    """Aliases of the layouts that a kernel uses, and their definitions in C.

    `before`: how many register and shared layouts the text in front of the kernel has, whose names go on.
    """

    def __init__(self, before: tuple[int, int] = (0, 0)) -> None:
        self.register: dict[RegisterLayout, str] = {}
        self.shared: dict[SharedLayout, str] = {}
        self.before = before
        self.split: set[SharedLayout] = set()  # those of which the two parts of an offset are asked for

    @property
    def count(self) -> tuple[int, int]:
        """How many there are now, with those before."""
        return self.before[0] + len(self.register), self.before[1] + len(self.shared)

    def tile(self, layout: RegisterLayout) -> str:
        return self.register.setdefault(layout, f"L{self.count[0]}")

    def buffer(self, layout: SharedLayout) -> str:
        return self.shared.setdefault(layout, f"S{self.count[1]}")

    def functions(self) -> list[str]:
        lines = []
        for layout, name in self.shared.items():
            lines += [f"// {layout}", _shared_function(layout, name)]
            if layout in self.split:
                lines += _split_functions(layout, name)
        for layout, name in self.register.items():
            lines.append(f"// {layout}")
            lines += [
                f"TS_DEVICE constexpr int {name}_r{axis}(int r) {{ return {_register_part(layout, axis)}; }}"
                for axis in range(len(layout.repeats))
            ]
        return lines

    def variables(self, warps: int) -> list[str]:
        """The thread's place in each layout, in a block of so many warps, or in a team of consumers: of the number of
        its warp only bits and remainders count, so that the first warp of a second team is number 0 there too.
        """
        lines = []
        for layout, name in self.register.items():
            for axis in range(len(layout.repeats)):
                lane, warp = (_bits(layout.block.group(group), axis, f"ts_{group}()") for group in ("lane", "warp"))
                if layout.group_axis == axis:
                    step = f"{_group(layout)} * {layout.block_shape[axis]}"
                    warp = step if warp == "0" else f"{warp} + {step}"
                lines.append(f"const int {name}_w{axis} = {warp}, {name}_t{axis} = {name}_w{axis} + {lane};")
            lines.append(f"const bool {name}_owner = {_owner(layout, warps)};")
        return lines


def _group(layout: RegisterLayout) -> str:
    """The number of a thread's group."""
    warps = layout.warps // layout.groups
    return f"(ts_warp() / {warps} % {layout.groups})" if warps > 1 else f"(ts_warp() % {layout.groups})"


def _bits(basis: tuple[tuple[int, ...], ...], axis: int, source: str) -> str:
    """Sum over bits of `source` of their step along `axis`; runs of consecutive bits and steps become one shift."""
    steps = [(bit, vector[axis]) for bit, vector in enumerate(basis) if vector[axis]]
    if any(step & (step - 1) for _, step in steps) or len({step for _, step in steps}) != len(steps):
        raise InternalError("TS901", f"basis {basis} is not a permutation of coordinate bits")
    parts = []
    while steps:
        bit, step = steps.pop(0)
        width = 1
        while steps and steps[0] == (bit + width, step << width):
            steps.pop(0)
            width += 1
        shifted = f"({source} >> {bit})" if bit else source
        masked = f"({shifted} & {(1 << width) - 1})"
        parts.append(masked if step == 1 else f"{masked} * {step}")
    return " + ".join(parts) or "0"


def _register_part(layout: RegisterLayout, axis: int) -> str:
    """Coordinate along `axis` of register r: its bits in the block, then its repeat."""
    block = layout.block_registers
    text = _bits(layout.block.group("register"), axis, "r")
    if layout.repeats[axis] > 1:
        inner = block
        for later in layout.repeats[axis + 1 :]:
            inner *= later
        count = f"r / {inner}" if inner > 1 else "r"
        repeat = f"({count}) % {layout.repeats[axis]} * {layout.repeat_shape[axis]}"
        text = repeat if text == "0" else f"{text} + {repeat}"
    return text


def _owner(layout: RegisterLayout, warps: int) -> str:
    """Whether a thread is the first of those that hold the same elements: only that one stores.

    A condition that always holds must not be left to the compiler, which does not know how many warps there are: each
    store would be a branch.
    """
    lanes = sum(1 << bit for bit in layout.block.broadcast_bits("lane"))
    replicas = sum(1 << bit for bit in layout.block.broadcast_bits("warp"))
    # Groups that hold the same, and warps beyond the layout's, repeat those below.
    once = layout.warps if layout.group_axis is not None else layout.warps // layout.groups
    times = max(1, warps // once)
    powers = warp_groups(once) == warp_groups(times) == 1
    replicas |= (times - 1) * once if powers else 0
    conditions = [f"(ts_lane() & {lanes}) == 0"] if lanes else []
    conditions += [f"(ts_warp() & {replicas}) == 0"] if replicas else []
    conditions += [f"ts_warp() / {once} % {times} == 0"] if times > 1 and not powers else []
    return " && ".join(conditions) or "true"


def _shared_function(layout: SharedLayout, name: str) -> str:
    """Byte offset of (row, col): panels of `pitch` bytes, 16-byte chunks XOR-ed with the row inside a panel."""
    chunk, rest = _offset_parts(layout)
    return _offset_function(name, f"{rest[0]} + {chunk} * 16 + {rest[1]}")


def _split_functions(layout: SharedLayout, name: str) -> list[str]:
    """The chunk bits of an offset and the rest of it: see `tessera.codegen_cuda.shared_addresses`."""
    chunk, rest = _offset_parts(layout)
    if layout.is_permuted:
        return [_offset_function(f"{name}_x", f"{chunk} * 16"), _offset_function(f"{name}_a", " + ".join(rest))]
    return [_offset_function(f"{name}_a", f"{rest[0]} + {chunk} * 16 + {rest[1]}")]


def _offset_function(name: str, text: str) -> str:
    return f"TS_DEVICE int {name}(int row, int col) {{ return (int)({text}); }}"


def _offset_parts(layout: SharedLayout) -> tuple[str, tuple[str, str]]:
    """The chunk of a panel, and the bytes of what is before and of what is inside a chunk."""
    item, columns = layout.itemsize, layout.panel_columns
    per_chunk = 16 // item
    row, col = "(unsigned)row", "(unsigned)col"
    panel = f"{col} / {columns} * {layout.panel_stride} + " if layout.panels > 1 else ""
    within = f"{col} % {columns}" if layout.panels > 1 else col
    chunk = f"({within} / {per_chunk})"
    if layout.is_permuted:
        chunk = f"({chunk} ^ {row} / {8 // layout.chunks} % {layout.chunks})"
    return chunk, (f"{panel}{row} * {layout.pitch}", f"{col} % {per_chunk} * {item}")
