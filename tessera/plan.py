"""What a function becomes: buffers, and kernels that are launched one after the other. Plain data, before compilation.

A plan is made for the values of some dims (`static`); the others stay symbols of its sizes. Each launch names its
kernel, which buffer or scalar each of the kernel's parameters is, and what the kernel's dims are over the function's.

Kernels that the function calls are launches like those of the compiler's own kernels, but for three things: a list
parameter has a tuple of buffers, a scalar may be computed by the host (`Scalar`), and the launch is `authored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.dtypes import DType
from tessera.ir.core import Kernel
from tessera.ir.dims import Size, evaluate
from tessera.location import Loc

ALIGNMENT = 256  # bytes: where a buffer of the workspace begins


@dataclass(frozen=True)
class PlanBuffer:
    """A contiguous tensor. `role`: "parameter" (of the function, by its name), "result" (number `index` of them), or
    "temporary". One with an `alias` is another shape of that buffer and has no memory of its own.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: DType
    role: str
    index: int = 0
    alias: str = ""


# What a launch passes for a scalar parameter: the function's scalar parameter of that name, a number, or a function at
# graph level, of scalar parameters of the function (by their names) and dims of it, which returns one scalar.
Scalar = str | int | float | Kernel


@dataclass(frozen=True)
class PlanLaunch:
    """`kernel`: its place in `GraphPlan.kernels`. `tensors` and `scalars`: by the kernel's parameter, the buffer, or
    those of a list in order, and the scalar. `dims`: by the kernel's dim, its size over the function's dims.

    `authored`: the kernel is one that the function calls; its grid is to be checked for the dims of a call.
    """

    kernel: int
    tensors: Mapping[str, str | tuple[str, ...]]
    scalars: Mapping[str, Scalar]
    dims: Mapping[str, Size]
    authored: bool = False

    @property
    def buffers(self) -> tuple[str, ...]:
        """Every buffer that it touches, in the order of its parameters."""
        return tuple(
            name for given in self.tensors.values() for name in ((given,) if isinstance(given, str) else given)
        )


@dataclass(frozen=True)
class Rounding:
    """One rounding of the function. `explicit`: the author's. `skipped`: the kernel keeps the wider value; `why` says
    what decides.
    """

    value: str
    wide: DType
    narrow: DType
    explicit: bool
    skipped: bool
    why: str
    loc: Loc | None


@dataclass(frozen=True)
class GraphPlan:
    """`kernels` are Tile IR; equal ones are shared between launches. `buffers` by name, in order of definition.

    `reordered`: the kernels, by name, that add up in another order than the function does.
    """

    name: str
    kernels: tuple[Kernel, ...]
    launches: tuple[PlanLaunch, ...]
    buffers: Mapping[str, PlanBuffer]
    results: tuple[str, ...]
    static: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    roundings: tuple[Rounding, ...] = ()
    reordered: tuple[str, ...] = ()

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """The first and the last launch that touches each temporary, by the buffer that has the memory."""
        found: dict[str, tuple[int, int]] = {}
        for number, launch in enumerate(self.launches):
            for name in launch.buffers:
                buffer = self.buffers[name]
                root = self.buffers[buffer.alias] if buffer.alias else buffer
                if root.role == "temporary":
                    first, _ = found.get(root.name, (number, number))
                    found[root.name] = (first, number)
        return found

    def workspace(self, dims: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """Where each temporary lies in one block of memory, and the bytes of that: the peak of what temporaries take.

        Largest first, each at the lowest offset that is free during its lifetime.
        """
        lives = self.lifetimes()
        sizes = {name: _bytes(self.buffers[name], dims) for name in lives}
        placed: dict[str, int] = {}
        for name in sorted(lives, key=lambda n: (-sizes[n], lives[n])):
            first, last = lives[name]
            busy = sorted(
                (placed[other], placed[other] + sizes[other])
                for other in placed
                if lives[other][0] <= last and first <= lives[other][1]
            )
            offset = 0
            for begin, end in busy:
                if begin - offset >= sizes[name]:
                    break
                offset = max(offset, end)
            placed[name] = offset
        return placed, max((placed[name] + sizes[name] for name in placed), default=0)


def _bytes(buffer: PlanBuffer, dims: Mapping[str, int]) -> int:
    total = buffer.dtype.bytes
    for size in buffer.shape:
        total *= evaluate(size, dims)
    return -(-total // ALIGNMENT) * ALIGNMENT


__all__ = ["ALIGNMENT", "GraphPlan", "PlanBuffer", "PlanLaunch", "Rounding", "Scalar"]
