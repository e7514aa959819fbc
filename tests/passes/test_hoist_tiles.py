"""Tiles that every iteration of a loop loads again stand in front of it, and nothing else does."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.passes.hoist_tiles import hoist_tiles
from tessera.target.schedule import Schedule
from tests.passes.lane_kernels import CASES, deltas
from tests.passes.lane_running import ops, outputs_of, reached
from tests.passes.test_order_programs import specialised
from tests.passes.test_pipeline import assert_same_bits

TMA = Schedule(copies="tma")


def in_loops(kernel):
    """How many tiles are loaded in loops."""
    return sum(op.name == "load" for loop in ops(kernel, "for") for op in loop.regions[0].ops)


def test_the_tile_of_a_loop_over_layers():
    before, after = reached(deltas, CASES["deltas"], "order_programs", "hoist_tiles")
    assert (in_loops(before), in_loops(after)) == (3, 2)
    assert_same_bits(outputs_of(before, CASES["deltas"]), outputs_of(after, CASES["deltas"]), "hoisting")
    (plain,) = reached(deltas, CASES["deltas"], "hoist_tiles", copies="")
    assert in_loops(plain) == 3


@ts.kernel
def again(x: Tensor["M", 64, ts.f32], count: int, out: Tensor["M", 64, ts.f32]):
    """A loop of `count` iterations, which may be none."""
    m = tile.program_id(0) * 8
    acc = tile.zeros([8, 64], ts.f32)
    for _ in tile.range(0, count):
        acc = acc + x[m : m + 8]
    tile.store(acc, out[m : m + 8])


@ts.kernel
def in_place(x: Tensor["M", 64, ts.f32]):
    m = tile.program_id(0) * 8
    for _ in tile.range(0, 2):
        tile.store(x[m : m + 8] * 2.0, x[m : m + 8])


@ts.kernel
def by_index(x: Tensor["M", 64, ts.f32], out: Tensor["M", 64, ts.f32]):
    m = tile.program_id(0) * 8
    acc = tile.zeros([8, 64], ts.f32)
    for i in tile.range(0, 4):
        acc = acc + x[m + i : m + i + 8]
    tile.store(acc, out[m : m + 8])


@ts.kernel
def by_carried(x: Tensor["M", 64, ts.f32], out: Tensor["M", 64, ts.f32]):
    m = tile.program_id(0) * 8
    acc, row = tile.zeros([8, 64], ts.f32), m
    for _ in tile.range(0, 4):
        acc = acc + x[row : row + 8]
        row = row + 1
    tile.store(acc, out[m : m + 8])


@ts.kernel
def large(x: Tensor["M", 512, ts.f32], out: Tensor["M", 512, ts.f32]):
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 512], ts.f32)
    for _ in tile.range(0, 4):
        acc = acc + x[m : m + 64]
    tile.store(acc, out[m : m + 64])


@ts.kernel
def twice(x: Tensor["M", 64, ts.f32], out: Tensor["M", 64, ts.f32]):
    """A loop in a loop."""
    m = tile.program_id(0) * 8
    acc = tile.zeros([8, 64], ts.f32)
    for i in tile.range(0, 2):
        for j in tile.range(0, 3):
            acc = acc + x[m : m + 8] * tile.cast(i + j, ts.f32)
    tile.store(acc, out[m : m + 8])


@pytest.mark.parametrize("definition", [again, in_place, by_index, by_carried, large], ids=lambda k: k.name)
def test_what_may_differ_or_takes_too_much_stays(definition):
    kernel = specialised(definition, {"M": 64})
    assert in_loops(hoist_tiles(kernel, TMA)) == in_loops(kernel) == 1


def test_one_loop_at_a_time():
    kernel = specialised(twice, {"M": 64})
    once = hoist_tiles(kernel, TMA)
    assert in_loops(hoist_tiles(once, TMA)) == 0
    assert_same_bits(outputs_of(kernel, {"M": 64}), outputs_of(once, {"M": 64}), "hoisting")


def test_a_kernel_of_other_copies_is_itself():
    kernel = specialised(twice, {"M": 64})
    assert hoist_tiles(kernel, Schedule()) is kernel
