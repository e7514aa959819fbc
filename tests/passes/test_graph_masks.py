"""Masks made of indices: which keys their rows see, and that attention leaves out the others."""

import itertools

import numpy as np
import pytest

from tessera.dtypes import bf16, f32, i32, i64
from tessera.ir.core import Value
from tessera.ir.dims import symbol
from tessera.passes.graph_masks import seen_keys, seen_where
from tessera.runtime.execute import interpret
from tessera.runtime.function_interpreter import interpret_function
from tests.fuzz.graph_program import GraphProgram
from tests.fuzz.graph_running import PlanRun
from tests.passes.graphs import Graph, held, plan_of

B, H, T = (symbol(name) for name in "BHT")
ROWS = KEYS = 90


def indices(graph, dtype=i64):
    return [graph.op("iota", shape=(ROWS, KEYS), axis=axis, dtype=dtype) for axis in (0, 1)]


def moved(graph, value, number):
    return graph.op("add", value, graph.number(number))


def compared(graph, name, number, dtype=i64):
    row, key = indices(graph, dtype)
    return graph.op(name, moved(graph, row, number), key)


def window(graph, width):
    row, key = indices(graph)
    return graph.op("and", graph.op("ge", row, key), graph.op("lt", graph.op("sub", row, key), graph.number(width)))


def spread(graph, axis, name):
    """Rows, or keys, against a number: an index along one axis only, repeated along the other."""
    shape = (ROWS, 1) if axis == 0 else (1, KEYS)
    index = graph.op("iota", shape=shape, axis=axis, dtype=i32)
    condition = graph.op(name, index, graph.number(37))
    return graph.op("broadcast", condition, shape=(ROWS, KEYS))


def unknown(graph):
    row, key = indices(graph)
    return graph.op("or", graph.op("ge", row, key), graph.op("eq", key, graph.number(3)))


COMPARISONS = ("ge", "gt", "le", "lt", "eq")
MASKS = {
    **{f"{a} {n}": lambda g, a=a, n=n: compared(g, a, n) for a, n in itertools.product(COMPARISONS, (0, 17, -9))},
    "i32": lambda g: compared(g, "ge", 0, i32),
    "window": lambda g: window(g, 20),
    "no key": lambda g: window(g, -5),
    **{f"keys {name}": lambda g, a=name: spread(g, 1, a) for name in ("ge", "lt")},
    "and unknown": lambda g: g.op("and", compared(g, "ge", 0), unknown(g)),
}  # fmt: skip


def mask_of(condition):
    """What a condition is at all rows and keys."""
    graph = Graph()
    function = graph.function(condition(graph))
    (mask,) = interpret_function(function, {}, {})
    return np.asarray(mask, bool), function.body.ops[-1].operands[0]


def keys_between(seen, rows):
    """The keys between the bounds of each row."""
    keys = np.arange(KEYS)
    found = np.ones((len(rows), KEYS), bool)
    for scale, number in seen.first:
        found &= keys[None] >= (scale * rows + number)[:, None]
    for scale, number in seen.last:
        found &= keys[None] <= (scale * rows + number)[:, None]
    return found


@pytest.mark.parametrize("name", MASKS)
def test_bounds_hold_what_is_seen(name):
    mask, condition = mask_of(MASKS[name])
    seen = seen_where(condition)
    between = keys_between(seen, np.arange(ROWS))
    assert (seen.first or seen.last) and not (mask & ~between).any()
    assert seen.exact == (name != "and unknown") and (not seen.exact or (mask == between).all())


@pytest.mark.parametrize("condition", [unknown, lambda g: spread(g, 0, "ge")], ids=["or", "rows"])
def test_other_conditions_say_nothing(condition):
    seen = seen_where(mask_of(condition)[1])
    assert not (seen.first or seen.last or seen.exact)


def test_masks_behind_one_another_and_values_that_are_no_masks():
    graph = Graph()
    scores = graph.tensor("scores", ROWS, KEYS, dtype=f32)
    low, zero = graph.number(-np.inf), graph.number(0.0)
    once = graph.op("where", compared(graph, "ge", 0), scores, low)
    twice = graph.op("where", compared(graph, "le", 8), once, low)
    assert len(seen_keys(once).last) == 1 and len(seen_keys(twice).first) == 1 and len(seen_keys(twice).last) == 1
    for value in (graph.op("where", compared(graph, "ge", 0), scores, zero), graph.op("abs", once), scores):
        assert not (seen_keys(value).first or seen_keys(value).last)


# In attention ---------------------------------------------------------------------------------------------------------


def masked(graph: Graph, condition) -> Value:
    q, k, v = (graph.tensor(name, B, T, 16) for name in "qkv")
    scores = graph.op("matmul", q, graph.op("permute", k, permutation=(0, 2, 1)))
    row, key = (graph.op("iota", shape=(T, T), axis=axis, dtype=i64) for axis in (0, 1))
    seen = graph.op("reshape", condition(graph, row, key), shape=(1, T, T))
    scores = graph.op("where", graph.spread(seen, scores), scores, graph.number(-np.inf))
    return graph.op("matmul", graph.cast(graph.softmax(scores), bf16, implicit=True), v)


class _Spoiled(GraphProgram):
    """The seed is a key whose value is NaN."""

    def arguments(self):
        given = super().arguments()
        given["v"][:, self.seed] = np.nan
        return given


CONDITIONS = {
    "causal": (lambda g, row, key: g.op("ge", row, key), lambda row, key: row >= key),
    "window": (
        lambda g, row, key: g.op("and", g.op("ge", row, key), g.op("lt", g.op("sub", row, key), g.number(40))),
        lambda row, key: (row >= key) & (row - key < 40),
    ),
    "later": (lambda g, row, key: g.op("gt", moved(g, key, 60), row), lambda row, key: key + 60 > row),
}


@pytest.mark.parametrize(("name", "length"), list(itertools.product(CONDITIONS, (70, 200))))
def test_masked_attention_is_right(name, length):
    graph = Graph()
    runs = held(graph.function(masked(graph, CONDITIONS[name][0])), B=2, T=length)
    assert len(runs[0].plan.launches) == 1


@pytest.mark.parametrize("name", CONDITIONS)
def test_blocks_of_keys_that_no_row_sees_are_not_read(name):
    """NaN in a value spoils each row whose program looks at its block, and no other."""
    condition, holds = CONDITIONS[name]
    graph, length, block = Graph(), 300, 64
    function = graph.function(masked(graph, condition))
    plan = plan_of(function, B=1, T=length)
    numbers = np.arange(length)
    seen = holds(numbers[:, None], numbers)
    looked = np.zeros((length, length), bool)
    for start in range(0, length, block):
        rows = slice(start, start + block)
        for key in range(0, length, block):
            looked[rows, key : key + block] = seen[rows, key : key + block].any()
    assert 0.2 < looked.mean() < 0.8
    for key in (0, 70, 150, 299):
        (result,) = PlanRun(_Spoiled(function, {"B": 1, "T": length}, key), plan).run(interpret)
        assert (np.isnan(np.asarray(result, np.float32)).any(axis=(0, 2)) == looked[:, key]).all()


def test_a_strict_function_looks_at_all_keys():
    """What is hidden counts by zero times its value there, and that is a NaN where the value is one."""
    graph = Graph()
    function = graph.function(masked(graph, CONDITIONS["causal"][0]), precision="strict")
    run = PlanRun(_Spoiled(function, {"B": 1, "T": 100}, 99), plan_of(function, B=1, T=100))
    assert np.isnan(np.asarray(run.run(interpret)[0], np.float32)).all()
