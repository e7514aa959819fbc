"""Reductions along an axis whose bits are in registers and lanes, in the defined order.

The order is pairs inside blocks of 32, then blocks. Coordinate bits 0 to 4 are combined lowest first, each by a
register addition or by a butterfly shuffle; then the blocks of 32 are added in ascending order, across registers and,
by shuffles that every lane takes part in, across lanes.
"""

from __future__ import annotations

from tessera.ir.layout import RegisterLayout

_COMBINE = {"reduce_sum": "{0} + {1}", "reduce_max": "ts_max({0}, {1})", "reduce_min": "ts_min({0}, {1})"}
_IDENTITY = {"reduce_sum": "0.0f", "reduce_max": "(-ts_infinity())", "reduce_min": "ts_infinity()"}
PAIR_BITS = 5  # log2 of the block of 32


def reduction_lines(name: str, layout: RegisterLayout, axis: int, size: int, source: str, alias: str) -> list[str]:
    """Statements that fill `out[s]` for every register s of `layout.slice(axis)`; `size` is the axis' logical size."""
    bits = layout.axis_bits(axis)
    lane_bits = {place: 1 << bit for place, (kind, bit) in enumerate(bits) if kind == "lane"}
    groups: dict[int, dict[int, int]] = {}
    for register, result in enumerate(layout.slice_map(axis)):
        groups.setdefault(result, {})[layout.coordinates(register, 0, 0)[axis]] = register
    lines = []
    for result, members in sorted(groups.items()):
        lines += [
            "{",
            *(
                "    " + text
                for text in _one(name, members, lane_bits, layout.shape[axis], size, source, f"{alias}_t{axis}", result)
            ),
            "}",
        ]
    return lines


def _one(
    name: str,
    members: dict[int, int],
    lane_bits: dict[int, int],
    physical: int,
    size: int,
    source: str,
    thread: str,
    result: int,
) -> list[str]:
    lines, values = [], {}
    for place, register in sorted(members.items()):
        text = f"ts_to_f32({source}[{register}])"
        if physical > size:
            text = f"({thread} + {place} < {size} ? {text} : {_IDENTITY[name]})"
        values[place] = f"x{place}"
        lines.append(f"float x{place} = {text};")
    lines += _pair(name, values, lane_bits)
    lines += _add_blocks(name, values, lane_bits, result)
    return lines


def _pair(name: str, values: dict[int, str], lane_bits: dict[int, int]) -> list[str]:
    """Combines coordinate bits below 32 in place; `values` keeps the lowest member of each pair."""
    lines = []
    for place in range(PAIR_BITS):
        step = 1 << place
        if place in lane_bits:
            lines += [
                f"{x} = {_COMBINE[name].format(x, f'ts_shfl_xor({x}, {lane_bits[place]})')};" for x in values.values()
            ]
            continue
        for low in sorted(values):
            if not low & step and any(v & step for v in values):
                other = values.pop(low | step, _IDENTITY[name])
                lines.append(f"{values[low]} = {_COMBINE[name].format(values[low], other)};")
    return lines


def _add_blocks(name: str, values: dict[int, str], lane_bits: dict[int, int], result: int) -> list[str]:
    """Adds the blocks of 32 in ascending order. Lane bits at or above 32 say which lanes hold which block."""
    high = {place: mask for place, mask in lane_bits.items() if place >= PAIR_BITS}
    lanes = sum(high.values())
    blocks: list[tuple[int, str]] = []
    for place, x in values.items():
        for pattern in range(1 << len(high)):
            offset = lane = 0
            for index, (bit, mask) in enumerate(sorted(high.items())):
                if pattern >> index & 1:
                    offset, lane = offset | 1 << bit, lane | mask
            text = f"ts_shfl({x}, (ts_lane() & {31 & ~lanes}) | {lane})" if high else x
            blocks.append((place + offset, text))
    blocks.sort()
    lines = [f"float total = {blocks[0][1]};"]
    lines += [f"total = {_COMBINE[name].format('total', text)};" for _, text in blocks[1:]]
    return [*lines, f"{{out}}[{result}] = ts_cast<{{ctype}}>(total);"]
