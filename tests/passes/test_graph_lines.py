"""Kernels that walk over lines: what they keep, that every bit is the function's, and how they compile."""

import random

import pytest

from tessera.dtypes import bf16, f32, i64
from tessera.ir.dims import symbol
from tessera.ir.types import BufferType, dtype_of, shape_of
from tessera.passes import fusion_cost, graph_lines, graph_walks
from tests.fuzz.graph_running import emulate
from tests.passes.graphs import Graph, held, plan_of

M = symbol("M")


@pytest.fixture
def narrow(monkeypatch):
    """Lines of more than 2 columns are walked over, 32 at a time, so that small functions have loops and a rest."""
    monkeypatch.setattr(graph_walks, "WIDEST_REDUCED_PRODUCT", 2)
    monkeypatch.setattr(graph_walks, "WIDEST_F32_LINE", 2)
    monkeypatch.setattr(graph_lines, "PANEL", 32)
    monkeypatch.setattr(graph_lines, "DEPTHS", {1: 16, 2: 16, 4: 8})
    monkeypatch.setattr(fusion_cost, "PANEL_BYTES", 0)  # they would not pay
    monkeypatch.setattr(fusion_cost, "ITERATION_BYTES", 0)


def kept(plan):
    """The columns of the buffers of each kernel."""
    ops = [[op for op in kernel.body.walk() if op.name == "alloc_shared"] for kernel in plan.kernels]
    assert all(isinstance(op.result.type, BufferType) for found in ops for op in found)
    return [[op.attributes["shape"][-1] for op in found] for found in ops]


def product(graph, x, columns, dtype=bf16, number=[0]):  # noqa: B006
    """x times a matrix of its own, in f32."""
    number[0] += 1
    return graph.op("matmul", x, graph.tensor(f"w{number[0]}", shape_of(x.type)[-1], columns, dtype=dtype))


@pytest.mark.usefixtures("narrow")
def test_what_is_kept_is_what_is_needed_twice():
    """Of a gated product the product's cast alone is: the gate is computed again."""
    graph = Graph()
    logits = graph.cast(product(graph, graph.tensor("x", M, 20), 40), bf16, implicit=True)
    shares = graph.softmax(graph.cast(logits, f32, implicit=True))
    function = graph.function(graph.op("mul", shares, graph.op("tanh", graph.tensor("y", M, 40, dtype=f32))))
    plan = plan_of(function, M=50)
    (kernel,) = plan.kernels
    (buffer,) = [op for op in kernel.body.walk() if op.name == "alloc_shared"]
    assert buffer.attributes["dtype"] == bf16 and buffer.attributes["shape"][-1] == 40
    assert sum(op.name == "mma" for op in kernel.body.walk()) == 4  # a panel and the rest, of K too
    assert [r.why for r in plan.roundings if r.value == buffer.result.name or not r.skipped]
    emulate(held(function, M=50))


@pytest.mark.usefixtures("narrow")
def test_a_product_of_a_product_is_multiplied_from_a_buffer():
    """Vectors that reach beyond its 46 columns find zeros there."""
    graph = Graph()
    hidden = graph.op("silu", product(graph, graph.tensor("x", M, 20), 46))
    function = graph.function(graph.op("tanh", product(graph, hidden, 24, dtype=f32)))
    plan = plan_of(function, M=50)
    assert len(plan.launches) == 1 and kept(plan) == [[48]]
    emulate(held(function, M=50))


@pytest.mark.usefixtures("narrow")
def test_a_normalised_line_is_multiplied_from_a_buffer():
    """Nothing but a walk of its own makes it."""
    graph = Graph()
    normed = graph.normalised(product(graph, graph.tensor("x", M, 20), 46))
    function = graph.function(product(graph, graph.cast(normed, bf16, implicit=True), 24))
    plan = plan_of(function, M=50)
    assert len(plan.launches) == 1 and kept(plan) == [[48, 48]]
    emulate(held(function, M=50))


@pytest.mark.usefixtures("narrow")
def test_rows_columns_and_indices_meet_panels():
    graph = Graph()
    logits = product(graph, graph.tensor("x", M, 20), 40)
    row, column = graph.tensor("row", 1, 40, dtype=f32), graph.tensor("column", M, 1, dtype=f32)
    part = graph.op("extract", graph.tensor("z", M, 60, dtype=f32), starts=(0, 11), extents=(M, 40))
    index = graph.cast(graph.op("iota", shape=(M, 40), axis=1, dtype=i64), f32)
    for other in (graph.spread(row, logits), graph.spread(column, logits), part, index):
        logits = graph.op("add", logits, other)
    low = graph.op("reduce_min", logits, axis=-1)
    function = graph.function(graph.op("sub", logits, graph.spread(low, logits)), low)
    plan = plan_of(function, M=70)
    assert len(plan.launches) == 1 and kept(plan) == [[40]]
    emulate(held(function, M=70))


def nearest(graph, distances):
    return graph.op("reduce_min", distances, axis=-1)


@pytest.mark.parametrize(
    ("depth", "columns", "reduced", "kernels", "walks"),
    [
        (64, 1152, nearest, 1, True),
        (64, 2048, nearest, 1, True),
        (256, 2048, nearest, 2, False),  # so many slices wait longer than distances take through memory
        (64, 1024, nearest, 1, False),  # registers hold them
        (64, 2048, Graph.softmax, 2, False),
        (64, 2048, Graph.normalised, 2, False),
    ],
)
def test_the_model_walks_over_products_of_few_terms_that_are_needed_once(depth, columns, reduced, kernels, walks):
    """The nearest of many codes: one kernel that neither stores nor keeps a distance."""
    graph = Graph()
    logits = product(graph, graph.tensor("x", M, depth), columns)
    distances = graph.op("sub", graph.spread(graph.tensor("norms", 1, columns, dtype=f32), logits), logits)
    function = graph.function(reduced(graph, distances))
    plan = plan_of(function, M=4096)
    first = plan.kernels[0]
    loops = [op for op in first.body.ops if op.name == "for"]
    panels = [op for op in loops if any(each.name == "mma" for each in op.regions[0].walk())]
    assert (len(plan.launches), bool(panels) and "pins" not in first.attributes) == (kernels, walks)
    if walks:
        assert kept(plan) == [[]] and not list(plan.lifetimes())
        held(function, M=3)


def random_lines(seed, widths=(8, 46, 33)):
    """A function of rows with products, reductions and what is elementwise, of lines of a few widths."""
    chance, graph = random.Random(seed), Graph()
    lines = [graph.tensor(f"x{n}", M, chance.choice(widths), dtype=chance.choice((bf16, f32))) for n in range(2)]
    products = 0
    for step in range(chance.randint(3, 10)):
        x = chance.choice((lines[-1], lines[-1], *lines[-4:]))
        others = [y for y in lines if shape_of(y.type) == shape_of(x.type)]
        wide = x if dtype_of(x.type) == f32 else graph.cast(x, f32)
        kind = chance.choice(("unary", "binary", "product", "product", "reduce", "reduce", "narrow", "row", "softmax"))
        if kind == "product" and products < 3 or not step:
            products += 1
            x = product(graph, x, chance.choice(widths), dtype=dtype_of(x.type))
        elif kind == "binary":
            y = chance.choice(others)
            y = y if dtype_of(y.type) == f32 else graph.cast(y, f32)
            x = graph.op(chance.choice(("add", "mul", "max")), wide, y)
        elif kind == "reduce":
            name = chance.choice(("reduce_sum", "reduce_max", "reduce_min"))
            x = graph.op("add", wide, graph.spread(graph.op("tanh", graph.op(name, wide, axis=-1)), wide))
        elif kind == "narrow":
            x = graph.cast(graph.op("tanh", wide), bf16, implicit=chance.random() < 0.7)
        elif kind == "row":
            row = graph.tensor(f"row{step}", 1, shape_of(x.type)[-1], dtype=f32)
            x = graph.op("mul", wide, graph.spread(row, wide))
        elif kind == "softmax":
            x = graph.softmax(wide)
        else:
            x = graph.op(chance.choice(("tanh", "sigmoid", "abs")), wide)
        lines.append(x)
    return graph.function(lines[-1], *chance.sample(lines[2:-1], chance.randint(0, 1)))


@pytest.mark.usefixtures("narrow")
def test_random_lines_keep_every_bit():
    walked, emulated = 0, []
    for seed in range(70):
        runs = held(random_lines(seed), M=20)
        found = sum(map(bool, kept(runs[1].plan)))
        walked += found
        if found and len(emulated) < 9:
            emulated += runs[1:]
    assert walked > 30
    emulate(emulated)
