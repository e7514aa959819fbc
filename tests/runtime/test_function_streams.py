"""Streams of the launches of a plan: any timing gives what launches give one after the other, and the rule holds."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.buffers import Buffer, place
from tessera.runtime.function_streams import MOST_STREAMS, assign, dependencies, leaves_room

NAMES = "abcdef"


@st.composite
def cases(draw):
    names = st.frozensets(st.sampled_from(NAMES), max_size=3)
    accesses = draw(st.lists(st.tuples(names, names), max_size=12))
    return accesses, draw(st.lists(st.booleans(), min_size=len(accesses), max_size=len(accesses)))


def run(order, accesses):
    """What each name holds after the launches ran in this order: a launch writes a function of all that it reads."""
    memory = dict.fromkeys(NAMES, 0)
    for launch in order:
        reads, writes = accesses[launch]
        value = hash((launch, *(memory[name] for name in sorted(reads))))
        for name in writes:
            memory[name] = value
    return memory


def timings(streams, count, tries=20):
    """Random orders that streams and events allow: a launch runs when the one ahead and all it waits for have run."""
    for seed in range(tries):
        draw, done = random.Random(seed), []
        queues = [[n for n in range(count) if streams.of[n] == stream] for stream in range(streams.count)]
        while len(done) < count:
            ready = [queue for queue in queues if queue and set(streams.waits[queue[0]]) <= set(done)]
            done.append(draw.choice(ready).pop(0))
        yield done


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(cases())
def test_any_timing_gives_the_values_of_the_plan(case):
    accesses, small = case
    streams, count = assign(accesses, small), len(accesses)
    expected = run(range(count), accesses)
    for order in timings(streams, count):
        assert run(order, accesses) == expected
        place = {launch: number for number, launch in enumerate(order)}
        for launch in range(count):  # the order that memory is planned by promises no more than what happens
            before = streams.order.before[launch]
            assert all(place[earlier] < place[launch] for earlier in range(count) if before >> earlier & 1)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(cases())
def test_the_rule(case):
    accesses, small = case
    streams = assign(accesses, small)
    assert streams.count <= MOST_STREAMS
    assert all(stream == 0 or leaves for stream, leaves in zip(streams.of, small, strict=True))
    tails = {stream: max(n for n, of in enumerate(streams.of) if of == stream) for stream in set(streams.of)}
    if streams.of:
        joined = streams.order.before[tails[0]] | sum(1 << n for n in streams.joins)
        assert all(tail == tails[0] or joined >> tail & 1 for tail in tails.values())


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(cases(), st.lists(st.integers(1, 700), min_size=len(NAMES), max_size=len(NAMES)))
def test_any_timing_is_right_in_the_memory_that_is_planned_for_it(case, sizes):
    """Each name is bytes in one block, placed for the order that the streams promise: all bytes must be its own."""
    accesses, small = case
    streams, count = assign(accesses, small), len(accesses)
    users = {name: sum(1 << n for n in range(count) if name in accesses[n][0] | accesses[n][1]) for name in NAMES}
    buffers = {name: Buffer(size, users[name]) for name, size in zip(NAMES, sizes, strict=True) if users[name]}
    offsets, total = place(buffers, streams.order)
    block, apart = (
        np.zeros(total, np.int64),
        {name: np.zeros(size, np.int64) for name, size in zip(NAMES, sizes, strict=True)},
    )

    def ran(order, view):
        """What each launch read, of names that a launch wrote before."""
        found = {}
        for launch in order:
            reads, writes = accesses[launch]
            for name in sorted(reads):
                if any(name in accesses[n][1] for n in range(launch)):
                    found[launch, name] = view(name).tolist()
            value = hash((launch, *(tuple(found.get((launch, name), ())) for name in sorted(reads))))
            for name in writes:
                view(name)[...] = value
        return found

    expected = ran(range(count), lambda name: apart[name])
    for order in timings(streams, count, 5):
        assert ran(order, lambda name: block[offsets[name] : offsets[name] + buffers[name].bytes]) == expected


def access(reads, writes):
    return frozenset(reads), frozenset(writes)


FORK = [access("x", "a"), access("a", "b"), access("a", "c"), access("bc", "d")]


def test_a_fork_and_its_join():
    streams = assign(FORK, [True] * 4)
    assert streams.of == (0, 0, 1, 1)
    assert streams.waits == ((), (), (0,), (1,))
    assert streams.joins == (3,)


def test_launches_that_fill_the_gpu_stay_in_order():
    for small in ([False] * 4, [False, False, True, False], [True, False, True, True]):
        streams = assign(FORK, small)
        assert streams.count == 1 and streams.joins == () and not any(streams.waits)


def test_no_more_streams_than_there_are():
    streams = assign([access("x", name) for name in NAMES], [True] * len(NAMES))
    assert streams.of == (0, 1, 2, 3, 0, 0) and streams.joins == (1, 2, 3)


def test_a_stream_whose_work_is_over_is_taken_again():
    accesses = [access("x", "a"), access("x", "b"), access("ab", "c"), access("c", "d"), access("c", "e")]
    streams = assign(accesses, [True] * 5)
    assert streams.count == 2


def test_dependencies_of_every_kind():
    accesses = [access("x", "a"), access("a", "b"), access("x", "a"), access("b", "b"), access("y", "c")]
    found = [[n for n in range(5) if bits >> n & 1] for bits in dependencies(accesses)]
    assert found == [[], [0], [0, 1], [1], []]  # written then read, read then written, written twice, nothing shared


def test_two_launches_that_leave_room_fit_together():
    for multiprocessors in (1, 2, 108, 132):
        most = max(blocks for blocks in range(300) if leaves_room(blocks, multiprocessors))
        assert 2 * most <= multiprocessors < 2 * (most + 1)
