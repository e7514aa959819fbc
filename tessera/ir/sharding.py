"""Where the parts of a value live on a mesh of devices: the global view, as data and pure rules.

A value keeps its global shape everywhere. Its `Sharding` says, for each axis of the mesh, one of three things: the
value is *split* along one of its own axes, it is *owned* by the devices at one coordinate, or it is *replicated*.
Nothing here asks which devices there are: a mesh of eight GPUs is the same object on a machine without one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.errors import ArgumentError, SourceError, did_you_mean

_DEVICE = re.compile(r"(cuda|cpu):(0|[1-9][0-9]*)")
CPU = "cpu:0"


# -- the mesh


@dataclass(frozen=True)
class Mesh:
    """Logical devices in a grid with named axes. Device numbers are row-major: the last axis varies fastest.

    Lists are accepted and kept as tuples. Raises SourceError TS203 for arguments of the wrong kind and TS606 for a mesh
    that is not one.
    """

    devices: tuple[str, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("devices", "axes", "shape"):
            object.__setattr__(self, field, _as_tuple(field, getattr(self, field)))
        _check_axes(self.axes, self.shape)
        _check_devices(self.devices)
        if math.prod(self.shape) != len(self.devices):
            raise SourceError(
                "TS606",
                f"a mesh {self} has {math.prod(self.shape)} devices, and devices= names {len(self.devices)}",
            )

    def __str__(self) -> str:
        return ", ".join(f"{axis}={size}" for axis, size in zip(self.axes, self.shape, strict=True))

    @property
    def kind(self) -> str:
        """What all its devices are: "cuda" or "cpu"."""
        return self.devices[0].partition(":")[0]

    def size(self, axis: str) -> int:
        """How many devices the mesh has along an axis. Raises SourceError TS203 or TS201."""
        return self.shape[self.position(axis)]

    def position(self, axis: str, what: str = "a mesh axis") -> int:
        """The place of an axis in `axes`. `what` is what a message calls the argument. Raises as `size` does."""
        if not isinstance(axis, str):
            raise SourceError("TS203", f"{what} is named by a text, one of {_listed(self.axes)}, and not by {axis!r}")
        if axis not in self.axes:
            hint = did_you_mean(axis, self.axes)
            raise SourceError("TS201", f"the mesh has no axis '{axis}'; it has {_listed(self.axes)}{hint}")
        return self.axes.index(axis)

    def coordinates(self, device_number: int) -> dict[str, int]:
        """The coordinate of a logical device on each axis. Raises SourceError TS203 or TS607."""
        if not _is_integer(device_number):
            raise SourceError("TS203", f"the number of a device is an int, not {device_number!r}")
        if not 0 <= device_number < len(self.devices):
            raise SourceError(
                "TS607", f"there is no device {device_number} in the mesh {self}: its devices are 0 to {self._last}"
            )
        found = {}
        for axis, size in zip(reversed(self.axes), reversed(self.shape), strict=True):
            device_number, found[axis] = divmod(device_number, size)
        return {axis: found[axis] for axis in self.axes}

    def device_at(self, /, **coordinates: int) -> int:
        """The number of the logical device at a coordinate on every axis: `mesh.device_at(dp=1, mp=2)`.

        `mesh.devices` has its name under this number. Raises SourceError TS201, TS202, TS203 or TS607.
        """
        for axis in coordinates:
            self.position(axis)
        if missing := [axis for axis in self.axes if axis not in coordinates]:
            raise SourceError(
                "TS202", f"device_at needs a coordinate on every axis of the mesh; {_listed(missing)} lacks"
            )
        number = 0
        for axis, size in zip(self.axes, self.shape, strict=True):
            number = number * size + self.check_coordinate(axis, coordinates[axis])
        return number

    def check_coordinate(self, axis: str, coordinate: int) -> int:
        """The coordinate, when the axis has it. Raises SourceError TS203 or TS607, or as `size` does."""
        size = self.size(axis)
        if not _is_integer(coordinate):
            raise SourceError("TS203", f"a coordinate on mesh axis '{axis}' is an int, not {coordinate!r}")
        if not 0 <= coordinate < size:
            raise SourceError("TS607", f"mesh axis '{axis}' has size {size}, so there is no {axis}={coordinate}")
        return coordinate

    def placement(self, present: int) -> tuple[str, ...]:
        """The real device of each logical one, where `present` GPUs exist.

        Where a device of the mesh is missing, the logical devices take turns on those present; without any GPU, and for
        a mesh of CPU devices always, the one CPU does all the work. Raises SourceError TS203.
        """
        if not _is_integer(present) or present < 0:
            raise SourceError("TS203", f"the number of GPUs that are present is an int of at least 0, not {present!r}")
        if self.kind == "cpu" or present == 0:
            return (CPU,) * len(self.devices)
        if all(int(device.partition(":")[2]) < present for device in self.devices):
            return self.devices
        return tuple(f"cuda:{number % present}" for number in range(len(self.devices)))

    def is_virtual(self, present: int) -> bool:
        """Whether logical devices run elsewhere than their names say, where `present` GPUs exist."""
        return self.placement(present) != self.devices

    def describe(self, present: int) -> str:
        """Which real device runs which logical ones, a line for each real one, where `present` GPUs exist."""
        placement = self.placement(present)
        real = tuple(dict.fromkeys(placement))
        count = f"{len(self.devices)} logical device{'s' * (len(self.devices) > 1)}"
        if placement == self.devices:
            title = f"mesh {self}: {count}, each a real one"
        else:
            title = f"virtual mesh {self}: {count} on {len(real)} real {'one' if len(real) == 1 else 'ones'}"
        lines = [title]
        for device in real:
            numbers = [number for number, place in enumerate(placement) if place == device]
            lines.append(f"  {device} runs {', '.join(self._named(number) for number in numbers)}")
        return "\n".join(lines)

    def _named(self, number: int) -> str:
        at = " ".join(f"{axis}={coordinate}" for axis, coordinate in self.coordinates(number).items())
        return f"{self.devices[number]} ({at})"

    @property
    def _last(self) -> int:
        return len(self.devices) - 1


def _as_tuple(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    example = {"devices": '["cuda:0", "cuda:1"]', "axes": '("dp", "mp")', "shape": "(2, 4)"}[field]
    raise SourceError("TS203", f"the {field} of a mesh are a list or tuple, as in {field}={example}, not {value!r}")


def _check_axes(axes: tuple[Any, ...], shape: tuple[Any, ...]) -> None:
    if not axes:
        raise SourceError("TS606", "the mesh has no axes")
    for axis in axes:
        if not isinstance(axis, str) or not axis:
            raise SourceError("TS606", f"a mesh axis is named by a text that is not empty, and not by {axis!r}")
    if repeated := _repeated(axes):
        raise SourceError("TS606", f"the mesh has two axes with the name '{repeated}'")
    if len(axes) != len(shape):
        raise SourceError(
            "TS606", f"axes={axes!r} names {len(axes)} axes of the mesh, and shape={shape!r} has sizes for {len(shape)}"
        )
    for axis, size in zip(axes, shape, strict=True):
        if not _is_integer(size) or size < 1:
            raise SourceError("TS606", f"the size of mesh axis '{axis}' is a positive int, not {size!r}")


def _check_devices(devices: tuple[Any, ...]) -> None:
    for device in devices:
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise SourceError("TS606", f"{device!r} is no device; devices have names like 'cuda:0' and 'cpu:0'")
    if repeated := _repeated(devices):
        numbers = [str(number) for number, device in enumerate(devices) if device == repeated]
        raise SourceError("TS606", f"the mesh has {repeated} more than once, as its devices {_listed(numbers)}")
    kinds = {device.partition(":")[0]: device for device in reversed(devices)}
    if len(kinds) > 1:
        raise SourceError(
            "TS606", f"the devices of a mesh are of one kind, and {kinds['cuda']} and {kinds['cpu']} are not"
        )


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# -- the sharding of a value


@dataclass(frozen=True)
class Sharding:
    """How one value lies on a mesh. `axes`: for each of its own axes the mesh axis that splits it, or None.

    `owners`: pairs of a mesh axis and the one coordinate where the value is, for what was computed under a device
    assignment; a mapping is accepted. On every other mesh axis the value is replicated. Raises SourceError TS309 where
    one mesh axis is used twice.
    """

    mesh: Mesh
    axes: tuple[str | None, ...]
    owners: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        owners = self.owners.items() if isinstance(self.owners, Mapping) else self.owners
        for mesh_axis, coordinate in owners:
            self.mesh.check_coordinate(mesh_axis, coordinate)
        # In the order of the mesh, so that equal shardings compare and hash as equal.
        object.__setattr__(self, "owners", tuple(sorted(owners, key=lambda pair: self.mesh.position(pair[0]))))
        object.__setattr__(self, "axes", tuple(self.axes))
        used = [axis for axis in self.axes if axis is not None]
        for axis in used:
            self.mesh.position(axis)
        if repeated := _repeated([*used, *(axis for axis, _ in self.owners)]):
            raise SourceError("TS309", f"a value uses mesh axis '{repeated}' twice: {self}")

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def is_replicated(self) -> bool:
        """Whether every device has the whole value."""
        return not self.owners and not any(self.axes)

    def split_axis(self, mesh_axis: str) -> int | None:
        """The axis of the value that `mesh_axis` splits, if any."""
        return self.axes.index(mesh_axis) if mesh_axis in self.axes else None

    def owner(self, mesh_axis: str) -> int | None:
        """The coordinate on `mesh_axis` that alone has the value, if any."""
        return dict(self.owners).get(mesh_axis)

    def __str__(self) -> str:
        split = f"[{', '.join(axis or '_' for axis in self.axes)}]"
        return split + "".join(f" at {axis}={coordinate}" for axis, coordinate in self.owners)


def replicated(mesh: Mesh, rank: int) -> Sharding:
    """A value of `rank` axes that every device has whole."""
    return Sharding(mesh, (None,) * rank)


# -- the rules. `name` is what the author calls the value, for messages


def shard(sharding: Sharding, axis: int, mesh_axis: str, name: str | None = None) -> Sharding:
    """Splits axis `axis` of a value over a mesh axis; a negative axis counts from the end.

    Raises SourceError TS203 where the two arguments are swapped, TS304 for an axis that the value lacks, TS201 for an
    unknown mesh axis, and TS309 where the value uses the mesh axis, or the mesh splits the axis, in another way.
    """
    if not _is_integer(axis):
        raise SourceError("TS203", f"dist.shard takes as axis= the number of an axis of {_called(name)}, not {axis!r}")
    sharding.mesh.position(mesh_axis, "the mesh_axis= of dist.shard")
    if not -sharding.rank <= axis < sharding.rank:
        raise SourceError(
            "TS304", f"{_called(name)} has {sharding.rank} axes, so there is no axis {axis} to shard over '{mesh_axis}'"
        )
    axis %= sharding.rank
    if sharding.axes[axis] == mesh_axis:
        return sharding
    if (use := _uses(sharding, 0).get(mesh_axis)) is not None:
        raise SourceError(
            "TS309", f"axis {axis} of {_called(name)} cannot be split over '{mesh_axis}': it is {_said(mesh_axis, use)}"
        )
    if (other := sharding.axes[axis]) is not None:
        raise SourceError(
            "TS309", f"axis {axis} of {_called(name)} cannot be split over '{mesh_axis}': it is split over '{other}'"
        )
    return Sharding(sharding.mesh, (*sharding.axes[:axis], mesh_axis, *sharding.axes[axis + 1 :]), sharding.owners)


def all_gather(sharding: Sharding, mesh_axis: str) -> Sharding:
    """Makes a value replicated along a mesh axis; one that is so already stays as it is. Its shape does not change.

    The parts of a split value are put together, an owned one is sent from its owner. Raises SourceError TS203 where
    `mesh_axis` is not a text and TS201 where the mesh has no such axis.
    """
    sharding.mesh.position(mesh_axis, "the axis= of dist.all_gather is a mesh axis, which")
    return Sharding(
        sharding.mesh,
        tuple(None if axis == mesh_axis else axis for axis in sharding.axes),
        tuple(pair for pair in sharding.owners if pair[0] != mesh_axis),
    )


def assign(sharding: Sharding, mesh_axis: str, coordinate: int, name: str | None = None) -> Sharding:
    """A value that is computed under an assignment of the devices at `coordinate`, from one that lies as `sharding`.

    Raises SourceError TS309 for a value that is split over the mesh axis or owned at another coordinate, and as
    `Mesh.check_coordinate` does.
    """
    sharding.mesh.check_coordinate(mesh_axis, coordinate)
    wanted = ("owned", coordinate)
    use = _uses(sharding, 0).get(mesh_axis, wanted)
    if use != wanted:
        raise SourceError(
            "TS309",
            f"{_called(name)} is not whole on the devices at {mesh_axis}={coordinate}: it is {_said(mesh_axis, use)}",
        )
    return Sharding(sharding.mesh, sharding.axes, {**dict(sharding.owners), mesh_axis: coordinate})  # type: ignore[arg-type]


def combine(first: Sharding, *others: Sharding, names: Sequence[str] = ()) -> Sharding:
    """The sharding of an elementwise result. Axes of its operands are aligned at the last one.

    A replicated operand goes along with whatever the others do: each device takes the part that it needs. Raises
    SourceError TS309 where two operands ask for different things of one mesh axis, where two mesh axes would split one
    axis of the result, and where the meshes differ. `names` are what the author calls the operands.
    """
    operands = (first, *others)
    called = [f"'{name}'" for name in names] or [f"operand {number}" for number in range(len(operands))]
    for operand, caller in zip(operands, called, strict=True):
        if operand.mesh != first.mesh:
            raise SourceError(
                "TS309", f"{called[0]} is on the mesh {first.mesh} and {caller} on another one, {operand.mesh}"
            )
    rank = max(operand.rank for operand in operands)
    of_result = " of the result"
    decided: dict[str, tuple[Use, str]] = {}
    for operand, caller in zip(operands, called, strict=True):
        for mesh_axis, use in _uses(operand, rank - operand.rank).items():
            other, by = decided.setdefault(mesh_axis, (use, caller))
            if other != use:
                raise SourceError(
                    "TS309",
                    f"{by} and {caller} do not lie alike on mesh axis '{mesh_axis}': {by} is "
                    f"{_said(mesh_axis, other, of_result)}, and {caller} is {_said(mesh_axis, use, of_result)}",
                )
    axes: list[str | None] = [None] * rank
    for mesh_axis, ((kind, number), caller) in decided.items():
        if kind != "split":
            continue
        if (other_axis := axes[number]) is not None:
            raise SourceError(
                "TS309",
                f"axis {number} of the result would be split over '{other_axis}', as {decided[other_axis][1]} is, and "
                f"over '{mesh_axis}', as {caller} is",
            )
        axes[number] = mesh_axis
    owners = tuple((mesh_axis, number) for mesh_axis, ((kind, number), _) in decided.items() if kind == "owned")
    return Sharding(first.mesh, tuple(axes), owners)


def check_divides(mesh: Mesh, name: str, size: int, mesh_axis: str) -> int:
    """The size of a device's part of a dim that a mesh axis splits; `name` is the dim as the author wrote it.

    Raises ArgumentError TS310 where the parts would not be equal.
    """
    parts = mesh.size(mesh_axis)
    if size % parts:
        raise ArgumentError(
            "TS310", f"dim {name} is {size}, which mesh axis '{mesh_axis}' of size {parts} does not divide"
        )
    return size // parts


def share_of(
    sharding: Sharding, shape: Sequence[int], device_number: int, names: Sequence[str] = ()
) -> tuple[slice, ...] | None:
    """The window of a value of global shape `shape` that a device holds; None where others own the value.

    `names` are the dims of the shape, for messages. Raises SourceError TS304 and TS607, and ArgumentError TS310.
    """
    if len(shape) != sharding.rank:
        raise SourceError(
            "TS304", f"a sharding {sharding} is of {sharding.rank} axes, and a shape {tuple(shape)} is not"
        )
    at = sharding.mesh.coordinates(device_number)
    if any(at[mesh_axis] != coordinate for mesh_axis, coordinate in sharding.owners):
        return None
    windows = []
    for number, (size, mesh_axis) in enumerate(zip(shape, sharding.axes, strict=True)):
        if mesh_axis is None:
            windows.append(slice(0, size))
        else:
            part = check_divides(sharding.mesh, names[number] if names else str(number), size, mesh_axis)
            windows.append(slice(at[mesh_axis] * part, (at[mesh_axis] + 1) * part))
    return tuple(windows)


def assignment_axis(mesh: Mesh, index: int, axis: str | None = None, taken: Collection[str] = ()) -> str:
    """The mesh axis that `device_assignment(index, axis)` means: the one that has `index` and is not `taken`.

    Taken are the axes that a shard in scope or an assignment around uses; `axis` names one regardless of shards. Raises
    SourceError TS203 for an index that is not an int, TS607 for one that no axis has, TS608 where several axes fit.
    """
    if not _is_integer(index):
        raise SourceError("TS203", f"dist.device_assignment takes an int that is known when compiling, not {index!r}")
    if axis is not None:
        mesh.position(axis, "the axis= of dist.device_assignment")
        mesh.check_coordinate(axis, index)
        return axis
    free = [name for name in mesh.axes if name not in taken]
    if not free:
        raise SourceError(
            "TS608", f"device_assignment({index}) finds no mesh axis: {_listed(mesh.axes)} are in use where it stands"
        )
    fitting = [name for name in free if 0 <= index < mesh.size(name)]
    if not fitting:
        sizes = _listed(f"{name} of size {mesh.size(name)}" for name in free)
        raise SourceError("TS607", f"device_assignment({index}) is on no mesh axis that is free: {sizes}")
    if len(fitting) > 1:
        raise SourceError("TS608", f"device_assignment({index}) may mean the mesh axes {_listed(fitting)}")
    return fitting[0]


# What a value does on a mesh axis: ("split", its own axis) or ("owned", coordinate).
Use = tuple[str, int]


def _uses(sharding: Sharding, before: int) -> dict[str, Use]:
    """What the value does on each mesh axis where it is not replicated, with `before` axes put in front of its own."""
    uses: dict[str, Use] = {
        axis: ("split", number + before) for number, axis in enumerate(sharding.axes) if axis is not None
    }
    return uses | {axis: ("owned", coordinate) for axis, coordinate in sharding.owners}


def _said(mesh_axis: str, use: Use, of_what: str = "") -> str:
    kind, number = use
    return f"split along axis {number}{of_what}" if kind == "split" else f"only at {mesh_axis}={number}"


def _called(name: str | None) -> str:
    return "the value" if name is None else f"'{name}'"
