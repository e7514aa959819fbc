"""Hand-written kernels that copy by TMA, the launches that run them, and NumPy's idea of a box."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tessera.runtime.emulator import Examination, Fault, Library, build
from tessera.runtime.emulator_maps import twin_map
from tests.check.rings import text

INCLUDE = '#include "tessera_device.h"\n'
RING_SHARED = 1024 + 2 * 1024  # beside the slots
SLOT = 16 * 128
BOX_START = 1024  # of the box in the shared block of tma_box


def joined(texts: Sequence[str], kernel: str) -> Library:
    """The texts, each with a kernel of this name, as one library: the kernels become kernel_0, kernel_1, and so on.

    One translation unit parses the twin once. Line numbers stay those of each text.
    """
    parts = [INCLUDE]
    for i, source in enumerate(texts):
        assert source.startswith(INCLUDE)
        body = re.sub(rf"\b{kernel}\b", f"{kernel}_{i}", source.removeprefix(INCLUDE))
        parts.append(f"namespace text_{i} {{\n#line 2\n{body}\n}}\nusing namespace text_{i};\n")
    return build("".join(parts), [f"{kernel}_{i}" for i in range(len(texts))])


def ring_run(
    library: Library, name: str, stages: int, seed: int, rows: int = 40, columns: int = 44, steps: int = 3
) -> tuple[list[Fault], np.ndarray, np.ndarray]:
    """What was found, and the output beside the values that it should have. The last tiles are partial ones."""
    x = np.random.default_rng(rows).standard_normal((steps, rows, columns), np.float32)
    x.flags.writeable = False
    out = np.full((rows, columns), np.nan, np.float32)
    maps = [twin_map(x, box=(32, 16, 1), swizzle=128), twin_map(out, box=(32, 8), swizzle=128)]
    across = -(-columns // 32)
    args = [*maps, across * -(-rows // 16), across, steps]
    found = library.examine(name, (2,), 96, RING_SHARED + stages * SLOT, args, seed, outputs=(1,))
    total = np.zeros_like(out)
    for step in range(steps):
        total += x[step]
    return found.faults, out, total


def box_of(array: np.ndarray, box: Sequence[int], first: Sequence[int]) -> np.ndarray:
    """The box (shape and coordinates innermost first) with zeros outside the array."""
    index = np.indices(box[::-1]).reshape(array.ndim, -1) + np.array(first[::-1])[:, None]
    inside = np.all((index >= 0) & (index < np.array(array.shape)[:, None]), axis=0)
    values = np.zeros(index.shape[1], array.dtype)
    values[inside] = array[tuple(index[:, inside])]
    return values.reshape(box[::-1])


def stored(array: np.ndarray, values: np.ndarray, first: Sequence[int]) -> np.ndarray:
    """`array` with the box written at the coordinates, what is outside left out."""
    index = np.indices(values.shape).reshape(array.ndim, -1) + np.array(first[::-1])[:, None]
    inside = np.all((index >= 0) & (index < np.array(array.shape)[:, None]), axis=0)
    result = array.copy()
    result[tuple(index[:, inside])] = values.reshape(-1)[inside]
    return result


def swizzled(values: np.ndarray, swizzle: int) -> np.ndarray:
    """The bytes of a box as they lie in shared memory: chunk c of row r at chunk c ^ (r / rows per 128 bytes)."""
    data = np.frombuffer(values.tobytes(), np.uint8)
    if not swizzle:
        return data
    chunks, rows = swizzle // 16, data.reshape(-1, swizzle // 16, 16)
    order = np.arange(chunks) ^ (np.arange(len(rows)) * swizzle // 128 % chunks)[:, None]
    return np.take_along_axis(rows, order[:, :, None], axis=1).reshape(-1)


def box_run(
    x: np.ndarray,
    y: np.ndarray,
    box: Sequence[int],
    swizzle: int,
    places: tuple[Sequence[int], Sequence[int]],
    seed: int = 0,
    count: bool = False,
) -> tuple[Examination, np.ndarray]:
    """Copies a box of `x` to `y`, from and to the `places`. The findings, and the bytes of the box in shared memory."""
    rank = x.ndim
    x.flags.writeable = False
    size = int(np.prod(box)) * x.itemsize
    raw = np.zeros(size, np.uint8)
    maps = [twin_map(array, box=box, swizzle=swizzle) for array in (x, y)]
    first = [value for place in places for value in (*place, *[0] * (5 - rank))]
    library = build(text("tma_box"), [f"box_{n}" for n in (2, 3, 4, 5)], counted=count)
    found = library.examine(f"box_{rank}", (1,), 32, BOX_START + size, [*maps, raw, size, *first], seed, count=count)
    return found, raw
