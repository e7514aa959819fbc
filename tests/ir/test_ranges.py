"""Intervals of integer scalars: every number that a run computes is inside, and those that masks ask for are tight."""

import itertools
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dtypes import i8, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.dims import symbol
from tessera.ir.divisors import divisor_of, loops_of
from tessera.ir.ops.control import constant_value
from tessera.ir.ranges import Ranges
from tessera.ir.types import ScalarType

GRID = (3, 2)
S = symbol("S")


def new_kernel() -> tuple[Kernel, Builder]:
    kernel = Kernel("k", Block(), {"grid": GRID, "divisors": {"S": 16}})
    return kernel, Builder(kernel.body)


def const(builder: Builder, number: int) -> Value:
    return builder.value("constant", value=number, dtype=i64)


def loop(builder: Builder, lower: int | Value, upper: int | Value, step: int) -> tuple[Value, Builder]:
    """A loop's index and a builder into its body, which `close` ends."""
    body = Block()
    index = body.add_argument(ScalarType(i64), "i")
    bounds = [v if isinstance(v, Value) else const(builder, v) for v in (lower, upper, step)]
    builder.block.ops.append(Op("for", bounds, {"unroll": 1, "static": False, "parallel": False}, [], [body], ()))
    return index, Builder(body)


def branch(builder: Builder, condition: Value) -> tuple[Builder, Builder]:
    regions = [Block(), Block()]
    builder.block.ops.append(Op("if", [condition], {}, [], regions, ()))
    return Builder(regions[0]), Builder(regions[1])


# Single rules ---------------------------------------------------------------------------------------------------------


def at_end(kernel: Kernel, builder: Builder, value: Value) -> tuple[int | None, int | None]:
    """The interval of a value where a last op of the block runs."""
    last = builder.op("add", [value, value])
    return Ranges(kernel).interval(value, last)


def test_the_index_of_a_copy_that_goes_on_through_an_outer_loop():
    """k + 64 for the next iteration, from the start again where there is none: always a block of the axis."""
    kernel, builder = new_kernel()
    k, inside = loop(builder, 0, 256, 64)
    ahead = inside.value("add", k, const(inside, 64))
    runs = inside.value("lt", ahead, const(inside, 256))
    again = inside.value("where", runs, ahead, inside.value("sub", ahead, const(inside, 256)))
    assert at_end(kernel, inside, ahead) == (64, 256)
    assert at_end(kernel, inside, again) == (0, 192)
    then, otherwise = branch(inside, runs)
    assert at_end(kernel, then, ahead) == (64, 192)
    assert at_end(kernel, otherwise, ahead) == (256, 256)


def test_conditions_join_and_turn_round():
    kernel, builder = new_kernel()
    n = kernel.body.add_argument(ScalarType(i64), "n")
    below = builder.value("gt", const(builder, 10), n)
    above = builder.value("ge", n, const(builder, -3))
    then, otherwise = branch(builder, builder.value("and", below, builder.value("not", builder.value("not", above))))
    assert at_end(kernel, then, n) == (-3, 9)
    assert at_end(kernel, otherwise, n) == (None, None)
    _, neither = branch(builder, builder.value("or", below, builder.value("ne", n, const(builder, 20))))
    assert at_end(kernel, neither, n) == (20, 20)
    assert at_end(kernel, builder, n) == (None, None)


def test_ids_and_sizes():
    kernel, builder = new_kernel()
    first = builder.value("program_id", axis=0, scale=1)
    scaled = builder.value("program_id", axis=1, scale=64)
    assert at_end(kernel, builder, first) == (0, 2) and at_end(kernel, builder, scaled) == (0, 64)
    assert at_end(kernel, builder, builder.value("program_id", axis=2, scale=1)) == (0, 0)
    del kernel.attributes["grid"]
    assert at_end(kernel, builder, first) == (0, None)
    assert at_end(kernel, builder, builder.value("floordiv", first, const(builder, 4))) == (0, None)
    assert at_end(kernel, builder, builder.value("mod", first, const(builder, 4))) == (0, 3)


def test_what_wraps_round_may_be_anything():
    kernel, builder = new_kernel()
    n = kernel.body.add_argument(ScalarType(i64), "n")
    small = builder.value(
        "cast", builder.value("min", builder.value("max", n, const(builder, 0)), const(builder, 200)), dtype=i8
    )
    assert at_end(kernel, builder, small) == (-128, 127)
    sum_ = builder.value("add", const(builder, (1 << 63) - 1), const(builder, 1))
    assert at_end(kernel, builder, sum_) == (None, None)


@pytest.mark.parametrize("step, distance", [(32, 16), (8, 8)])
def test_how_far_from_the_end_of_a_symbolic_axis(step: int, distance: int) -> None:
    """S is a multiple of 16, and so is an index of which 32 is a divisor: one less than the other is 16 less."""
    kernel, builder = new_kernel()
    size = builder.value("size", size=S)
    k, inside = loop(builder, 0, size, step)
    ahead = inside.value("add", k, const(inside, 2 * step))
    then, otherwise = branch(inside, inside.value("lt", ahead, size))
    here, last, other = inside.op("neg", [k]), then.op("neg", [ahead]), otherwise.op("neg", [ahead])
    ranges = Ranges(kernel)
    assert ranges.distance(k, S, here) == ranges.distance(ahead, S, last) == distance
    assert ranges.distance(ahead, S, here) is ranges.distance(ahead, S, other) is None
    assert ranges.distance(ahead, S + 1, last) is None


@pytest.mark.parametrize(("scale", "divided", "size", "known"), [
    (1, 12, S, True), (1, 6, S, False), (1, 12, S + 1, False), (2, 12, S, False), (1, 1, 12 * S, True),
])  # fmt: skip
def test_groups_of_programs_are_as_many_as_the_grid_has(scale, divided, size, known):
    """Of a grid of 12 S programs, program // 12 is less than S, and nothing says so of half of them."""
    kernel, builder = new_kernel()
    kernel.attributes["grid"] = (12 * S, 2)
    program = builder.value("program_id", axis=0, scale=scale)
    group = builder.value("floordiv", program, const(builder, divided)) if divided > 1 else program
    last = builder.op("neg", [group])
    assert (Ranges(kernel).distance(group, size, last) == 1) == known


# Random kernels -------------------------------------------------------------------------------------------------------


def random_ops(builder: Builder, values: list[Value], chance: random.Random, depth: int) -> None:
    """Ops over `values`, with loops and branches inside one another `depth` deep."""
    values = list(values)
    for _ in range(chance.randrange(2, 8)):
        a, b = chance.choice(values), chance.choice(values)
        name = chance.choice("add sub mul floordiv mod min max neg where cast constant".split())
        if name == "constant":
            values.append(const(builder, chance.choice([-8, -1, 0, 1, 2, 3, 4, 16, 24])))
        elif name == "neg":
            values.append(builder.value("neg", a))
        elif name == "cast":
            values.append(builder.value("cast", a, dtype=i64))
        elif name == "where":
            values.append(builder.value("where", random_condition(builder, values, chance), a, b))
        elif name not in ("floordiv", "mod") or constant_value(b):
            values.append(builder.value(name, a, b))
    if depth:
        index, inside = loop(
            builder, *chance.choice([(0, 12, 4), (1, 8, 3), (6, -2, -2), (0, chance.choice(values), 8)])
        )
        random_ops(inside, [*values, index], chance, depth - 1)
        for region in branch(builder, random_condition(builder, values, chance)):
            random_ops(region, values, chance, depth - 1)


def random_condition(builder: Builder, values: list[Value], chance: random.Random) -> Value:
    def comparison() -> Value:
        name = chance.choice("lt le gt ge eq ne".split())
        return builder.value(name, chance.choice(values), chance.choice(values))

    kind = chance.choice(["one", "one", "not", "and", "or"])
    if kind == "one":
        return comparison()
    return builder.value(kind, *(comparison() for _ in range(1 if kind == "not" else 2)))


def run(block: Block, known: dict[Value, Any], ids: tuple[int, int]) -> Iterator[tuple[Op, dict[Value, Any]]]:
    """Every op that runs, with the numbers known then."""
    for op in block.ops:
        yield op, known
        operands = [known[value] for value in op.operands]
        if op.name == "for":
            for number in itertools.islice(range(*map(int, operands)), 20):
                yield from run(op.regions[0], {**known, op.regions[0].arguments[0]: np.int64(number)}, ids)
        elif op.name == "if":
            yield from run(op.regions[0 if operands[0] else 1], dict(known), ids)
        elif op.name == "program_id":
            known[op.result] = np.int64(ids[op.attributes["axis"]] * op.attributes["scale"])
        else:
            arrays = [np.array([operand]) for operand in operands]
            known[op.result] = op.definition.evaluate(op, *arrays).reshape(-1)[0]  # type: ignore[misc]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_every_number_lies_in_its_interval(seed: int) -> None:
    chance = random.Random(seed)
    kernel, builder = new_kernel()
    ids = [builder.value("program_id", axis=axis, scale=chance.choice([1, 8])) for axis in range(2)]
    random_ops(builder, [*ids, const(builder, 5), const(builder, 32)], chance, 2)
    interval, loops = cache(Ranges(kernel).interval), loops_of(kernel)
    divisor = cache(lambda value: divisor_of(value, {}, loops))
    for place in itertools.product(*map(range, GRID)):
        seen = itertools.islice(run(kernel.body, {}, place), 400)
        try:
            for op, known in seen:
                for value in op.operands:
                    check(interval, op, value, known[value])
                    assert value.type != ScalarType(i64) or known[value] % divisor(value) == 0
        except SourceError:  # an overflow or a division by zero ends a run
            pass


def check(interval: Callable[[Value, Op], Any], op: Op, value: Value, number: Any) -> None:
    if isinstance(value.type, ScalarType) and value.type.dtype.is_int:
        low, high = interval(value, op)
        assert (low is None or low <= number) and (high is None or number <= high), (value, number, low, high)
