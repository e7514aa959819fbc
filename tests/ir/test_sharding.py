"""The rules of the global view: what an op makes of the shardings of its operands, and what each device then holds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import ArgumentError, SourceError
from tessera.ir.sharding import (
    Mesh,
    Sharding,
    all_gather,
    assign,
    assignment_axis,
    check_divides,
    combine,
    replicated,
    shard,
    share_of,
)

MESH = Mesh(tuple(f"cuda:{i}" for i in range(8)), ("dp", "mp"), (2, 4))
OTHER = Mesh(("cuda:0", "cuda:1"), ("dp",), (2,))
WHOLE = replicated(MESH, 3)


def on(*axes: str | None, **owners: int) -> Sharding:
    return Sharding(MESH, axes, tuple(owners.items()))


def refused(code: str, *parts: str, action) -> None:
    with pytest.raises((SourceError, ArgumentError)) as caught:
        action()
    assert caught.value.code == code, caught.value
    assert all(part in caught.value.message for part in parts), caught.value.message


@st.composite
def shardings(draw: st.DrawFn, rank: int = 3) -> Sharding:
    axes: list[str | None] = [None] * rank
    owners = {}
    for mesh_axis, size in zip(MESH.axes, MESH.shape, strict=True):
        use = draw(st.integers(-size, rank))
        if use < 0:
            owners[mesh_axis] = -use - 1
        elif use < rank and axes[use] is None:
            axes[use] = mesh_axis
    return on(*axes, **owners)


# -- the description


def test_a_sharding_is_a_value():
    one, two = Sharding(MESH, ("dp", None), {"mp": 3}), Sharding(MESH, ("dp", None), (("mp", 3),))  # type: ignore[arg-type]
    assert one == two and hash(one) == hash(two) and one.rank == 2
    assert Sharding(MESH, (None,), (("mp", 0), ("dp", 1))) == Sharding(MESH, (None,), (("dp", 1), ("mp", 0)))
    assert (one.split_axis("dp"), one.split_axis("mp"), one.owner("mp"), one.owner("dp")) == (0, None, 3, None)
    assert WHOLE.is_replicated and not one.is_replicated and not on(None, dp=0).is_replicated
    assert str(one) == "[dp, _] at mp=3" and str(WHOLE) == "[_, _, _]" and str(replicated(MESH, 0)) == "[]"


def test_what_is_no_sharding():
    refused("TS309", "'dp' twice", action=lambda: on("dp", "dp"))
    refused("TS309", "'mp' twice", "[mp, _] at mp=1", action=lambda: on("mp", None, mp=1))
    refused("TS309", "'mp' twice", action=lambda: Sharding(MESH, (None,), (("mp", 1), ("mp", 1))))
    refused("TS201", "no axis 'tp'", "dp, mp", action=lambda: on("tp"))
    refused("TS201", "no axis 'tp'", action=lambda: on(None, tp=0))
    refused("TS607", "'mp' has size 4", "mp=4", action=lambda: on(None, mp=4))


# -- shard and all_gather


def test_shard():
    assert shard(WHOLE, 0, "dp") == on("dp", None, None)
    assert shard(WHOLE, -1, "mp") == on(None, None, "mp")
    assert shard(shard(WHOLE, 0, "dp"), 2, "mp") == on("dp", None, "mp")
    assert shard(on("dp", None), 0, "dp") == on("dp", None)  # split so already
    assert shard(on(None, None, mp=2), 0, "dp") == on("dp", None, mp=2)


def test_shard_refuses():
    refused("TS203", "dist.shard", "axis=", "'x'", "'dp'", action=lambda: shard(WHOLE, "dp", 0, "x"))  # type: ignore
    refused("TS203", "mesh_axis= of dist.shard", "dp, mp", "0", action=lambda: shard(WHOLE, 0, 0))  # type: ignore
    refused("TS203", "the value", "True", action=lambda: shard(WHOLE, True, "dp"))
    refused("TS201", "no axis 'dpp'", "dp, mp", "did you mean 'dp'?", action=lambda: shard(WHOLE, 0, "dpp"))
    refused("TS304", "'x' has 3 axes", "no axis 3", "'dp'", action=lambda: shard(WHOLE, 3, "dp", "x"))
    refused("TS304", "no axis -4", action=lambda: shard(WHOLE, -4, "dp"))
    refused("TS304", "has 0 axes", "no axis 0", action=lambda: shard(replicated(MESH, 0), 0, "dp"))
    refused("TS309", "axis 1 of 'x'", "'dp'", "split along axis 0", action=lambda: shard(on("dp", None), 1, "dp", "x"))
    refused("TS309", "axis 0 of 'x'", "'mp'", "split over 'dp'", action=lambda: shard(on("dp", None), 0, "mp", "x"))
    refused("TS309", "axis 0 of 'x'", "'mp'", "only at mp=2", action=lambda: shard(on(None, mp=2), 0, "mp", "x"))


def test_all_gather():
    assert all_gather(on("dp", None, "mp"), "mp") == on("dp", None, None)  # split: put together
    assert all_gather(on("dp", None, mp=2), "mp") == on("dp", None)  # owned: sent from its owner
    assert all_gather(on("dp", None), "mp") == on("dp", None)  # replicated on mp
    refused("TS203", "axis= of dist.all_gather", "mesh axis", "dp, mp", "0", action=lambda: all_gather(WHOLE, 0))  # type: ignore
    refused("TS201", "no axis 'np'", "dp, mp", action=lambda: all_gather(WHOLE, "np"))


@given(shardings(), st.sampled_from(MESH.axes))
def test_all_gather_is_idempotent_and_touches_one_mesh_axis(sharding, mesh_axis):
    gathered = all_gather(sharding, mesh_axis)
    assert gathered.split_axis(mesh_axis) is None and gathered.owner(mesh_axis) is None
    assert all_gather(gathered, mesh_axis) == gathered
    (other,) = {*MESH.axes} - {mesh_axis}
    assert (gathered.split_axis(other), gathered.owner(other)) == (sharding.split_axis(other), sharding.owner(other))
    assert all_gather(gathered, other).is_replicated


# -- elementwise ops


def test_combine():
    split = on("dp", None, None)
    assert combine(WHOLE) == WHOLE
    assert combine(WHOLE, split) == combine(split, WHOLE) == combine(split, split) == split
    assert combine(split, on(None, None, "mp"), WHOLE) == on("dp", None, "mp")
    assert combine(split, on(None, None, None, mp=1)) == on("dp", None, None, mp=1)
    assert combine(on(None, mp=1), on(None, mp=1)) == on(None, mp=1)


def test_combine_aligns_at_the_last_axis():
    assert combine(WHOLE, on("mp")) == on(None, None, "mp")
    assert combine(on("mp"), on("dp", None, None)) == on("dp", None, "mp")
    assert combine(replicated(MESH, 0), on("dp", None)) == on("dp", None)
    # Axis 0 of the vector is axis 2 of the result.
    refused(
        "TS309",
        "operand 0 and operand 1",
        "'dp'",
        "operand 0 is split along axis 0 of the result",
        "operand 1 is split along axis 2 of the result",
        action=lambda: combine(on("dp", None, None), on("dp")),
    )


def test_combine_refuses():
    def named(*operands):
        return lambda: combine(*operands, names=("x", "y"))

    refused(
        "TS309", "'x' is split along axis 0", "'y' is split along axis 1", action=named(on("dp", None), on(None, "dp"))
    )
    refused("TS309", "'x' is only at mp=1", "'y' is only at mp=2", "'mp'", action=named(on(None, mp=1), on(None, mp=2)))
    refused("TS309", "'x' is split along axis 0", "'y' is only at mp=2", action=named(on("mp"), on(None, mp=2)))
    refused(
        "TS309",
        "axis 0 of the result",
        "over 'dp', as 'x' is",
        "over 'mp', as 'y' is",
        action=named(on("dp"), on("mp")),
    )
    refused("TS309", "'x' is on the mesh dp=2, mp=4", "'y'", "dp=2", action=named(WHOLE, replicated(OTHER, 3)))


@given(shardings(), shardings(), shardings())
def test_combine_depends_on_no_order(a, b, c):
    def outcome(*operands):
        try:
            return combine(*operands)
        except SourceError as error:
            return error.code

    assert {outcome(*operands) for operands in itertools.permutations((a, b, c))} == {outcome(a, b, c)}
    assert combine(a, WHOLE) == a == combine(a, a)


# -- assignments


def test_assign():
    assert assign(on("dp", None), "mp", 3) == on("dp", None, mp=3)
    assert assign(on(None, mp=3), "mp", 3) == on(None, mp=3)
    assert assign(on(None, mp=3), "dp", 1) == on(None, dp=1, mp=3)
    refused("TS309", "'x'", "mp=1", "only at mp=3", action=lambda: assign(on(None, mp=3), "mp", 1, "x"))
    refused("TS309", "the value", "dp=1", "split along axis 0", action=lambda: assign(on("dp"), "dp", 1))
    refused("TS607", "'dp' has size 2", "dp=2", action=lambda: assign(WHOLE, "dp", 2))


def test_the_axis_of_an_assignment():
    assert assignment_axis(MESH, 0, taken={"dp"}) == assignment_axis(MESH, 3, taken={"dp"}) == "mp"
    assert assignment_axis(MESH, 3) == "mp"  # dp has no coordinate 3
    assert assignment_axis(MESH, 1, "dp") == "dp" and assignment_axis(MESH, 1, "mp") == "mp"
    assert assignment_axis(MESH, 1, "dp", taken={"dp"}) == "dp"  # the author says so
    assert assignment_axis(OTHER, 1) == "dp"


def test_an_assignment_without_one_axis():
    refused("TS608", "device_assignment(1)", "dp, mp", action=lambda: assignment_axis(MESH, 1))
    refused(
        "TS608", "device_assignment(1)", "dp, mp are in use", action=lambda: assignment_axis(MESH, 1, None, MESH.axes)
    )
    refused("TS607", "device_assignment(4)", "dp of size 2", "mp of size 4", action=lambda: assignment_axis(MESH, 4))
    refused("TS607", "device_assignment(-1)", "mp of size 4", action=lambda: assignment_axis(MESH, -1, None, {"dp"}))
    refused("TS607", "device_assignment(3)", "dp of size 2", action=lambda: assignment_axis(MESH, 3, None, {"mp"}))
    refused("TS607", "'dp' has size 2", "dp=2", action=lambda: assignment_axis(MESH, 2, "dp"))
    refused("TS201", "no axis 'np'", "dp, mp", action=lambda: assignment_axis(MESH, 1, "np"))
    refused("TS203", "axis= of dist.device_assignment", "0", action=lambda: assignment_axis(MESH, 1, 0))  # type: ignore
    for wrong in ("mp", 1.0, None, True):
        refused("TS203", "dist.device_assignment", repr(wrong), action=lambda wrong=wrong: assignment_axis(MESH, wrong))


# -- sizes and parts


def test_check_divides():
    assert check_divides(MESH, "B", 6, "dp") == 3 and check_divides(MESH, "B", 0, "mp") == 0
    refused("TS310", "dim B is 3", "'dp' of size 2", action=lambda: check_divides(MESH, "B", 3, "dp"))
    refused("TS310", "dim D is 2", "'mp' of size 4", action=lambda: check_divides(MESH, "D", 2, "mp"))
    refused("TS201", "no axis 'tp'", action=lambda: check_divides(MESH, "B", 4, "tp"))


@given(shardings())
def test_the_parts_of_a_value_are_the_value(sharding):
    """Every element is held by as many devices as the mesh has along the axes where the value is replicated."""
    shape = (4, 8, 12)
    held = np.zeros(shape, int)
    for number in range(len(MESH.devices)):
        window = share_of(sharding, shape, number)
        if window is not None:
            held[window] += 1
    copies = [
        size
        for axis, size in zip(MESH.axes, MESH.shape, strict=True)
        if sharding.split_axis(axis) is None and sharding.owner(axis) is None
    ]
    assert (held == np.prod(copies, dtype=int)).all()


def test_parts():
    at = [share_of(on("dp", None, mp=1), (6, 5), number) for number in range(8)]
    assert [window for window in at if window] == [at[1], at[5]]
    assert at[1] == (slice(0, 3), slice(0, 5)) and at[5] == (slice(3, 6), slice(0, 5))
    refused("TS310", "dim B is 5", "'dp' of size 2", action=lambda: share_of(on("dp"), (5,), 0, ("B",)))
    refused("TS304", "1 axes", "(5, 4)", action=lambda: share_of(on("dp"), (5, 4), 0))
    refused("TS607", "no device 8", action=lambda: share_of(on("dp"), (4,), 8))
