"""The planner of memory against an independent account: who may be alive together, byte by byte."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.buffers import ALIGNMENT, Buffer, Footprint, Order, members, place

random = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@st.composite
def graphs(draw):
    """For each launch, the earlier ones that it waits for."""
    count = draw(st.integers(1, 10))
    return [sorted(draw(st.sets(st.integers(0, n - 1), max_size=3))) if n else [] for n in range(count)]


@st.composite
def cases(draw):
    edges = draw(graphs())
    launches = st.sets(st.integers(0, len(edges) - 1), min_size=1, max_size=4)
    buffers = draw(st.lists(st.tuples(st.integers(0, 900), launches), max_size=9))
    return edges, buffers


def schedules(edges, limit=40):
    """Orders in which the launches may run, one at a time."""
    found = []

    def extend(done):
        if len(found) >= limit:
            return
        if len(done) == len(edges):
            found.append(list(done))
            return
        for number in range(len(edges)):
            if number not in done and set(edges[number]) <= set(done):
                extend([*done, number])

    extend([])
    return found


@random
@given(cases())
def test_no_schedule_finds_another_buffers_bytes(case):
    """Launches write a byte pattern for each of their buffers and read the one that the launch before left there."""
    edges, given_ = case
    buffers = {n: Buffer(size, sum(1 << user for user in users)) for n, (size, users) in enumerate(given_)}
    offsets, total = place(buffers, Order.of(edges))
    memory = [None] * total
    for schedule in schedules(edges):
        left = {n: len(users) for n, (_, users) in enumerate(given_)}
        for launch in schedule:
            for name, (size, users) in enumerate(given_):
                if launch not in users:
                    continue
                where = slice(offsets[name], offsets[name] + size)
                if left[name] < len(users):
                    assert memory[where] == [name] * size
                memory[where] = [name] * size
                left[name] -= 1


@random
@given(cases())
def test_offsets_are_aligned_and_the_total_is_between_its_bounds(case):
    edges, given_ = case
    buffers = {n: Buffer(size, sum(1 << user for user in users)) for n, (size, users) in enumerate(given_)}
    order = Order.of(edges)
    offsets, total = place(buffers, order)
    taken = {name: -(-buffer.bytes // ALIGNMENT) * ALIGNMENT for name, buffer in buffers.items()}
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values()) and set(offsets) == set(buffers)
    at_once = [sum(taken[n] for n, b in buffers.items() if b.users >> launch & 1) for launch in range(len(edges))]
    assert max(at_once, default=0) <= total <= sum(taken.values())


@random
@given(graphs())
def test_before_is_the_closure_of_the_edges(edges):
    order = Order.of(edges)
    for number in range(len(edges)):
        reached, fresh = set(), set(edges[number])
        while fresh:
            reached |= fresh
            fresh = {e for n in fresh for e in edges[n]} - reached
        assert set(members(order.before[number])) == reached


def test_a_chain_needs_two_buffers_and_a_fork_one_more():
    buffers = {name: Buffer(1000, 0b11 << name) for name in range(5)}  # each from launch n to launch n + 1
    _, total = place(buffers, Order.sequential(6))
    assert total == 2 * 1024
    side_by_side = Order.of([[], [0], [0], [1, 2]])
    buffers = {"a": Buffer(1000, 0b0010), "b": Buffer(1000, 0b0100)}
    assert place(buffers, Order.sequential(4))[1] == 1024
    assert place(buffers, side_by_side)[1] == 2048


def test_a_gap_is_filled():
    """Larger ones come first, and a small one goes between where it fits."""
    order = Order.sequential(3)
    buffers = {"a": Buffer(512, 0b011), "b": Buffer(256, 0b001), "c": Buffer(256, 0b010), "d": Buffer(768, 0b100)}
    offsets, total = place(buffers, order)
    assert total == 768 and offsets["b"] == offsets["c"]


def test_nothing_and_buffers_without_bytes():
    assert place({}, Order.sequential(3)) == ({}, 0)
    assert place({"a": Buffer(0, 1), "b": Buffer(10, 1)}, Order.sequential(1)) == ({"b": 0, "a": 0}, 256)


def test_the_order_of_launches_one_after_the_other():
    order = Order.sequential(4)
    for one, other in itertools.product(range(4), repeat=2):
        assert order.apart(1 << one, 1 << other) == (one != other)
    assert order.apart(0b0011, 0b1100) and not order.apart(0b0101, 0b0010)


@pytest.mark.parametrize("bits", [0, 1, 0b1011000])
def test_members(bits):
    assert list(members(bits)) == [n for n in range(8) if bits >> n & 1]


def test_footprint():
    found = Footprint(arguments=100, results=20, workspace=256, unshared=1024)
    assert (found.peak, found.peak_unshared) == (376, 1144)
