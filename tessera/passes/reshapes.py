"""How the axes of a tile before and after a reshape correspond."""

from __future__ import annotations

from collections.abc import Sequence


def axis_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """How the axes of a reshape correspond: groups of axes of equal element counts, axes of size 1 left out."""
    old = [(axis, size) for axis, size in enumerate(before) if size != 1]
    new = [(axis, size) for axis, size in enumerate(after) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        olds, news = [old[i][0]], [new[j][0]]
        count, other = old[i][1], new[j][1]
        while count != other:
            if count < other:
                i += 1
                olds.append(old[i][0])
                count *= old[i][1]
            else:
                j += 1
                news.append(new[j][0])
                other *= new[j][1]
        groups.append((olds, news))
        i, j = i + 1, j + 1
    return groups
