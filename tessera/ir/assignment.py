"""Which devices compute: the scope of a distributed function while it is traced, and assignments inside of it.

The tracer opens a `Scope`; `with dist.device_assignment(rank):` in the author's code enters an assignment into the
innermost one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tessera.errors import SourceError
from tessera.ir.sharding import Mesh, Sharding, assign, assignment_axis, combine, shard


@dataclass
class Scope:
    """A distributed function on its mesh: the mesh axes that its shards use so far, and the assignments around."""

    mesh: Mesh
    sharded: set[str] = field(default_factory=set)
    assigned: dict[str, int] = field(default_factory=dict)

    def shard(self, sharding: Sharding, axis: int, mesh_axis: str, name: str | None = None) -> Sharding:
        """As `sharding.shard`, and remembers that the mesh axis is in use."""
        made = shard(sharding, axis, mesh_axis, name)
        self.sharded.add(mesh_axis)
        return made

    def computed(self, first: Sharding, *others: Sharding, names: tuple[str, ...] = ()) -> Sharding:
        """The sharding of an elementwise result that is computed here: as `combine`, owned as the assignments say."""
        made = combine(first, *others, names=names)
        for mesh_axis, coordinate in self.assigned.items():
            made = assign(made, mesh_axis, coordinate)
        return made


_scope: ContextVar[Scope | None] = ContextVar("tessera_distributed_scope", default=None)


@contextmanager
def distributed(mesh: Mesh) -> Iterator[Scope]:
    """Opens the scope of a distributed function."""
    scope = Scope(mesh)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def current_scope() -> Scope | None:
    """The scope of the innermost distributed function that is being traced."""
    return _scope.get()


@dataclass(frozen=True)
class DeviceAssignment:
    """`with dist.device_assignment(index, axis=None):` as an object; entered, it gives the mesh axis that it means."""

    index: int
    axis: str | None = None

    def __enter__(self) -> str:
        scope = current_scope()
        if scope is None:
            raise SourceError(
                "TS102",
                f"dist.device_assignment({self.index!r}) works only inside a function decorated with "
                "@ts.distribute(mesh=...)",
            )
        mesh_axis = assignment_axis(scope.mesh, self.index, self.axis, scope.sharded | {*scope.assigned})
        if mesh_axis in scope.assigned:
            raise SourceError(
                "TS608",
                f"device_assignment({self.index}, axis='{mesh_axis}') lies inside of one to "
                f"{mesh_axis}={scope.assigned[mesh_axis]}",
            )
        scope.assigned[mesh_axis] = self.index
        return mesh_axis

    def __exit__(self, *exception: object) -> None:
        scope = current_scope()
        if scope is not None:
            scope.assigned.popitem()  # assignments nest, so the last one is this
