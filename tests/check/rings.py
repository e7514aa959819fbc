"""Hand-written pipelines in the vocabulary of the device header, with the values that they must compute.

The texts are the shapes that a pipelined kernel takes: a ring ordered by groups, a ring ordered by mbarriers with warp
roles, an exchange ordered by mbarriers alone, a reduction. Their interesting lines carry a tag in a trailing comment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tessera.runtime.emulator import Fault, build

TEXTS = Path(__file__).parent / "texts"
SLOT_BYTES = 32 * 48 + 16 * 80

Run = tuple[tuple[int, ...], list[Any], int, np.ndarray]  # grid, arguments, the position of the output, its values


def blocked_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f32 product of bf16 arrays as the products are defined: blocks of 16 summed in float64, one rounding each."""
    acc = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], 16):
        total = np.zeros(acc.shape)
        for k in range(start, start + 16):
            total += a[:, k : k + 1].astype(np.float64) * b[k : k + 1].astype(np.float64)
        acc = (acc.astype(np.float64) + total).astype(np.float32)
    return acc


def product_run(tiles: int) -> Run:
    """tiles x tiles blocks of 32 x 32, seven steps in k: some slot of each ring is used twice or more."""
    rng = np.random.default_rng(tiles)
    size, k = 32 * tiles, 7 * 16
    a = rng.standard_normal((size, k)).astype(ml_dtypes.bfloat16)
    b = rng.standard_normal((k, size)).astype(ml_dtypes.bfloat16)
    c = np.full((size, size), np.nan, np.float32)
    return (tiles, tiles), [a, b, c, size, k], 2, blocked_product(a, b)


def exchange_run(rounds: int) -> Run:
    x = np.random.default_rng(rounds).standard_normal(64, np.float32)
    first, second = x[:32].copy(), x[32:].copy()
    for _ in range(rounds):
        second += np.roll(first, 1)
        first += np.roll(second, 1)
    return (1,), [x, np.full(64, np.nan, np.float32), rounds], 1, np.concatenate([first, second])


def reduce_run(rows: int) -> Run:
    x = np.random.default_rng(rows).standard_normal((rows, 128), np.float32)
    value, lane = x.reshape(rows, 4, 32), np.arange(32)
    for mask in (16, 8, 4, 2, 1):
        value = value + value[:, :, lane ^ mask]
    partial = value[:, :, 0]
    for mask in (2, 1):
        partial = partial + partial[:, np.arange(4) ^ mask]
    return (1,), [x, np.full(rows, np.nan, np.float32), rows], 1, partial[:, 0]


@dataclass(frozen=True)
class Kernel:
    """`run` makes one launch: of size `large` for the right text, of size `small` for an edited one."""

    text: str
    threads: int
    shared_bytes: int
    run: Callable[[int], Run]
    small: int
    large: int


KERNELS = {
    "ring_groups": Kernel("ring_groups", 64, 3 * SLOT_BYTES, product_run, 1, 2),
    "ring_2": Kernel("ring_mbarrier", 96, 64 + 2 * SLOT_BYTES, product_run, 1, 2),
    "ring_3": Kernel("ring_mbarrier", 96, 64 + 3 * SLOT_BYTES, product_run, 1, 2),
    "ring_4": Kernel("ring_mbarrier", 96, 64 + 4 * SLOT_BYTES, product_run, 1, 2),
    "exchange": Kernel("exchange", 64, 384, exchange_run, 5, 12),
    "reduce": Kernel("reduce", 128, 528, reduce_run, 3, 6),
}


@cache
def text(name: str) -> str:
    return (TEXTS / f"{name}.cu").read_text()


def edited(text_name: str, edits: tuple[tuple[str, str], ...]) -> str:
    """The text with each (old, new) applied: an old part occurs once, and no line moves."""
    source = text(text_name)
    places = []
    for old, new in edits:
        assert source.count(old) == 1, old
        assert old.count("\n") == new.count("\n")
        places.append((source.index(old), old, new))
    for start, old, new in sorted(places, reverse=True):
        source = source[:start] + new + source[start + len(old) :]
    return source


def line_of(text_name: str, tag: str) -> int:
    """The 1-based line whose trailing comment begins with `tag`; 0 for no tag."""
    if not tag:
        return 0
    found = [i for i, line in enumerate(text(text_name).splitlines(), 1) if f"// {tag}" in line]
    assert len(found) == 1, (tag, found)
    return found[0]


def lines_by_kind(text_name: str, expected: Mapping[str, Sequence[str]]) -> dict[str, set[int]]:
    """By kind of finding, the lines of a text that these tags mark."""
    return {kind: {line_of(text_name, tag) for tag in tags} for kind, tags in expected.items()}


def assert_named(faults: Sequence[Fault], allowed: Mapping[str, set[int]], seed: int) -> None:
    """Something is found, and only what is allowed, each at a line of its kind."""
    assert faults, f"seed {seed}: nothing found, expected {allowed}"
    for fault in faults:
        assert fault.line in allowed.get(fault.kind, ()), f"seed {seed}: {fault}, expected {allowed}"


def examine(name: str, source: str, size: int, seed: int) -> tuple[list[Fault], np.ndarray, np.ndarray]:
    """What was found, and the output beside the values that it should have."""
    kernel = KERNELS[name]
    grid, arguments, output, expected = kernel.run(size)
    for position, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray) and position != output:
            argument.flags.writeable = False
    library = build(source, [name])
    found = library.examine(name, grid, kernel.threads, kernel.shared_bytes, arguments, seed, outputs=(output,))
    return found.faults, arguments[output], expected
