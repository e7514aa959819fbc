"""What a function becomes: buffers, and kernels that are launched one after the other. Plain data, before compilation.

A plan is made for the values of some dims (`static`); the others stay symbols of its sizes. Each launch names its
kernel, which buffer or scalar each of the kernel's parameters is, and what the kernel's dims are over the function's.

Kernels that the function calls are launches like those of the compiler's own kernels, but for three things: a list
parameter has a tuple of buffers, a scalar may be computed by the host (`Scalar`), and the launch is `authored`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.buffers import ALIGNMENT, Buffer, Footprint, Order, aligned, place
from tessera.dtypes import DType
from tessera.ir.core import Kernel
from tessera.ir.dims import Size, evaluate
from tessera.location import Loc


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

    def root(self, name: str) -> PlanBuffer:
        """The buffer that has the memory."""
        buffer = self.buffers[name]
        return self.buffers[buffer.alias] if buffer.alias else buffer

    def users(self) -> dict[str, int]:
        """The launches that touch each temporary, as bits, by the buffer that has the memory."""
        found: dict[str, int] = {}
        for number, launch in enumerate(self.launches):
            for name in launch.buffers:
                root = self.root(name)
                if root.role == "temporary":
                    found[root.name] = found.get(root.name, 0) | 1 << number
        return found

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """The first and the last launch that touches each temporary, by the buffer that has the memory."""
        users = self.users().items()
        return {name: ((bits & -bits).bit_length() - 1, bits.bit_length() - 1) for name, bits in users}

    def accesses(self, launch: PlanLaunch) -> tuple[frozenset[str], frozenset[str]]:
        """What a launch reads and what it writes, by the buffers that have the memory."""
        roles = dict(self.kernels[launch.kernel].attributes["parameters"])
        reads: set[str] = set()
        writes: set[str] = set()
        for parameter, given in launch.tensors.items():
            roots = {self.root(name).name for name in ((given,) if isinstance(given, str) else given)}
            if roles[parameter] != "out":
                reads |= roots
            if roles[parameter] != "in":
                writes |= roots
        return frozenset(reads), frozenset(writes)

    def bytes_of(self, name: str, dims: Mapping[str, int]) -> int:
        """The bytes of a buffer's elements."""
        buffer = self.buffers[name]
        total = buffer.dtype.bytes
        for size in buffer.shape:
            total *= evaluate(size, dims)
        return total

    def temporaries(self, dims: Mapping[str, int]) -> dict[str, Buffer]:
        """What launches hand on to one another, by the buffer that has the memory; users are launches by number."""
        return {name: Buffer(self.bytes_of(name, dims), bits) for name, bits in self.users().items()}

    def workspace(self, dims: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """Where each temporary lies in one block of memory, and the bytes of that, for launches one after the other."""
        return place(self.temporaries(dims), Order.sequential(len(self.launches)))

    def footprint(self, dims: Mapping[str, int], buffers: Mapping[Any, Buffer], workspace: int) -> Footprint:
        """What a call with these dims needs whose launches hand on `buffers` in so many bytes of workspace."""
        held = {"parameter": 0, "result": 0, "temporary": 0}
        for name, buffer in self.buffers.items():
            if not buffer.alias:
                held[buffer.role] += self.bytes_of(name, dims)
        unshared = sum(aligned(buffer.bytes) for buffer in buffers.values())
        return Footprint(held["parameter"], held["result"], workspace, unshared)


__all__ = ["ALIGNMENT", "GraphPlan", "PlanBuffer", "PlanLaunch", "Rounding", "Scalar"]
