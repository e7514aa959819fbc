"""Functions over a mesh of devices, in the global view: values keep their global shape and say where their parts lie.

    mesh = dist.mesh(devices=["cuda:0", "cuda:1"], axes=("dp",), shape=(2,))

    @dist.distribute(mesh=mesh)
    def layer(x: Tensor["B", "S", "D", ts.bf16]) -> Tensor["B", "S", "D", ts.bf16]: ...

A mesh may name devices that this machine lacks: its logical devices then share those that are there, and the result is
the same. The rules of shardings are in `tessera.ir.sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from tessera.errors import SourceError
from tessera.frontend.definition import FunctionDefinition, KernelDefinition, function
from tessera.frontend.language_dist import all_gather, shard
from tessera.ir.assignment import DeviceAssignment
from tessera.ir.sharding import Mesh, Sharding

__all__ = ["Mesh", "Sharding", "all_gather", "device_assignment", "distribute", "mesh", "shard"]


def mesh(devices: Sequence[str], axes: Sequence[str], shape: Sequence[int]) -> Mesh:
    """A mesh of logical devices: `dist.mesh(devices=["cuda:0", ...], axes=("dp", "mp"), shape=(2, 4))`.

    The devices need not be there. Raises SourceError TS203 for arguments of the wrong kind, TS606 for what is no mesh.
    """
    return Mesh(devices, axes, shape)  # type: ignore[arg-type]


def distribute(mesh: Mesh | None = None) -> Callable[[FunctionDefinition | Callable[..., Any]], FunctionDefinition]:
    """`@ts.distribute(mesh=mesh)`: a function whose values lie on a mesh. It implies `@ts.function`.

    Raises SourceError TS203 where `mesh` is none, for a kernel, and for a function that has another mesh.
    """
    if not isinstance(mesh, Mesh):
        raise SourceError("TS203", f"ts.distribute takes a mesh, as in @ts.distribute(mesh=mesh), not {mesh!r}")

    def decorate(decorated: FunctionDefinition | Callable[..., Any]) -> FunctionDefinition:
        if isinstance(decorated, KernelDefinition):
            raise SourceError("TS203", f"@ts.distribute decorates a function, and '{decorated.name}' is a kernel")
        definition = decorated if isinstance(decorated, FunctionDefinition) else function(decorated)
        other = definition.options.get("mesh", mesh)
        if other != mesh:
            raise SourceError("TS203", f"'{definition.name}' is distributed over a mesh {other} already, not {mesh}")
        made = copy(definition)  # the function that was passed stays as it is
        made.options = {**definition.options, "mesh": mesh}
        return made

    return decorate


def device_assignment(index: int, axis: str | None = None) -> DeviceAssignment:
    """`with dist.device_assignment(rank):` computes on the devices at coordinate `rank` of one mesh axis.

    The axis is the one that has this coordinate and that no shard before uses, or `axis`. Entering raises SourceError
    TS102 outside of a distributed function, TS203, TS201 or TS607 for what the mesh lacks, TS608 where several fit.
    """
    return DeviceAssignment(index, axis)
