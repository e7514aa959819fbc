"""Row locality: what may be claimed for each way in which rows of a window can meet, and what must not."""

import pytest

from tessera.dtypes import f32, i64
from tessera.ir.affine import PROGRAM_IDS
from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.dims import symbol
from tessera.ir.locality import FREE, SAME, Aligned, row_dependence
from tessera.ir.types import ScalarType, ViewType

S, D = symbol("S"), symbol("D")
W = 16
PID = symbol("pid0")


class Draft:
    """A kernel over x, y, out [S, D] and w [D, D] whose windows are rows `p : p + W` of a bare program id."""

    def __init__(self) -> None:
        self.kernel = Kernel("k", Block())
        self.b = Builder(self.kernel.body)
        self.x, self.y, self.out = (self.kernel.body.add_argument(ViewType((S, D), f32), n) for n in ("x", "y", "out"))
        self.w = self.kernel.body.add_argument(ViewType((D, D), f32), "w")
        self.index = self.kernel.body.add_argument(ViewType((S,), f32), "index")
        self.n = self.kernel.body.add_argument(ScalarType(i64), "n")
        self.p = self.b.value("program_id", axis=0)
        self.zero = self.const(0)

    def const(self, number: int) -> Value:
        return self.b.value("constant", value=number, dtype=i64)

    def add(self, a: Value, b: Value | int) -> Value:
        return self.b.value("add", a, self.const(b) if isinstance(b, int) else b)

    def mul(self, a: Value, b: Value | int) -> Value:
        return self.b.value("mul", a, self.const(b) if isinstance(b, int) else b)

    def window(self, view: Value, start: Value | None = None, rows=W, builder: Builder | None = None) -> Value:
        return (builder or self.b).value(
            "window", view, self.p if start is None else start, self.zero, extents=(rows, D), kept=(True, True)
        )

    def rows(self, view: Value, start: Value | None = None, rows=W) -> Value:
        return self.b.value("load", self.window(view, start, rows))

    def scalar(self, view: Value, at: Value) -> Value:
        return self.b.value("load", self.b.value("window", view, at, extents=(1,), kept=(False,)))

    def store(self, value: Value, start: Value | None = None, builder: Builder | None = None) -> Op:
        b = builder or self.b
        return b.op("store", [self.window(self.out, start, value.type.shape[0], b), value])

    def buffer(self, rows=W) -> Value:
        return self.b.value("alloc_shared", shape=(rows, D), dtype=f32, hint="s")

    def loop(self, body: Block, *initial: Value, lower: Value | None = None, upper: Value | None = None) -> Op:
        return self.b.op("for", [lower or self.zero, upper or self.const(4), self.const(1), *initial], [body])

    def check(self, store: Op, axes=(0,)):
        return row_dependence(self.kernel, store, axes)


@pytest.fixture
def d() -> Draft:
    return Draft()


def test_elementwise_and_mma_keep_rows(d):
    x = d.rows(d.x)
    gate = d.b.value("sigmoid", d.b.value("mma", x, d.b.value("load", d.w)))
    found = d.check(d.store(d.b.value("mul", x, d.b.value("mul", gate, d.b.value("cast", d.n, dtype=f32)))))
    assert found.local and found.axes == (Aligned(PID), FREE) and not found.conditional


def test_a_shifted_window_follows_the_id_too(d):
    # The row stored at R depends on rows R and R + 3 of x, whoever stores it.
    found = d.check(d.store(d.b.value("sub", d.rows(d.x), d.rows(d.x, d.add(d.p, 3)))))
    assert found.local


def test_rows_at_another_stride_do_not(d):
    found = d.check(d.store(d.rows(d.x, d.mul(d.p, 2))))
    assert not found.local and "another offset" in found.reason
    mixed = d.check(d.store(d.b.value("add", d.rows(d.x), d.rows(d.x, d.mul(d.p, 2)))))
    assert not mixed.local and "different offsets" in mixed.reason


def test_rows_counted_from_the_window_start_do_not(d):
    fixed = d.rows(d.y, d.zero)
    assert not d.check(d.store(d.b.value("add", d.rows(d.x), fixed))).local
    alone = d.check(d.store(fixed))
    assert not alone.local and alone.axes == (FREE, FREE)


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_reduction_along_columns_keeps_rows(d, axis):
    x = d.rows(d.x)
    highest = d.b.value("broadcast", d.b.value("reduce_max", x, axis=axis), shape=(W, D))
    assert d.check(d.store(d.b.value("sub", x, highest))).local


@pytest.mark.parametrize("axis", [-2, 0])
def test_a_reduction_along_rows_does_not(d, axis):
    x = d.rows(d.x)
    total = d.b.value("broadcast", d.b.value("reduce_sum", x, axis=axis), shape=(W, D))
    found = d.check(d.store(d.b.value("sub", x, total)))
    assert not found.local and "sum over the rows" in found.reason


def test_a_reduction_of_a_fixed_window_does_no_harm(d):
    total = d.b.value("broadcast", d.b.value("reduce_sum", d.rows(d.y, d.zero), axis=0), shape=(W, D))
    assert d.check(d.store(d.b.value("add", d.rows(d.x), total))).local
    one_row = d.check(d.store(d.b.value("reduce_sum", d.rows(d.y, d.zero), axis=0)))
    assert one_row.local and one_row.axes == (SAME, FREE)


def test_mma_with_the_window_as_inner_axis(d):
    x = d.rows(d.x)
    product = d.b.value("mma", x, x, transpose_a=True)  # [D, D], sums over the rows
    found = d.check(d.store(product, d.zero))
    assert not found.local and "matrix product" in found.reason


def test_mma_transposes(d):
    x, w = d.rows(d.x), d.b.value("load", d.w)
    turned = d.b.value("transpose", x)
    for value in (
        d.b.value("mma", x, w, transpose_b=True),
        d.b.value("mma", turned, w, transpose_a=True),
        d.b.value("transpose", d.b.value("mma", w, x, transpose_b=True)),
    ):
        found = d.check(d.store(value))
        assert found.local and found.axes == (Aligned(PID), FREE)
    # x @ x^T: along both axes the element depends on the id, and both are stored at p : p + W only where out is [S, S].
    square = d.b.value("mma", x, x, transpose_b=True)
    found = d.check(
        d.b.op("store", [d.b.value("window", d.out, d.p, d.zero, extents=(W, W), kept=(True, True)), square])
    )
    assert not found.local and found.axes == (Aligned(PID), Aligned(PID))
    assert d.check(
        d.b.op("store", [d.b.value("window", d.out, d.p, d.p, extents=(W, W), kept=(True, True)), square])
    ).local


def test_accumulator_of_mma_counts(d):
    acc = d.b.value("cast", d.rows(d.y, d.zero), dtype=f32)
    found = d.check(d.store(d.b.value("mma", d.rows(d.x), d.b.value("load", d.w), acc)))
    assert not found.local


def test_the_id_as_a_number(d):
    noise = d.b.value("mul", d.rows(d.x), d.b.value("cast", d.p, dtype=f32))
    found = d.check(d.store(noise))
    assert not found.local and "program_id(0)" in found.reason
    assert d.check(d.store(noise), axes=(1, 2)).local
    assert d.check(d.store(noise), axes=()).local


def test_one_row_picked_by_the_id(d):
    found = d.check(d.store(d.b.value("mul", d.rows(d.x), d.scalar(d.index, d.p))))
    assert not found.local and "'index'" in found.reason
    spread = d.b.value("broadcast", d.rows(d.x, rows=1), shape=(W, D))
    assert not d.check(d.store(spread)).local


def test_a_start_that_was_loaded_at_the_id(d):
    start = d.b.value("cast", d.scalar(d.index, d.p), dtype=i64)
    assert not d.check(d.store(d.rows(d.x, start))).local
    assert not d.check(d.store(d.b.value("full", d.const(1), shape=(W, D), dtype=f32), start)).local
    uniform = d.b.value("cast", d.scalar(d.index, d.n), dtype=i64)
    assert d.check(d.store(d.rows(d.x, d.add(d.p, uniform)))).local


def test_constants_are_local(d):
    found = d.check(d.store(d.b.value("full", d.const(0), shape=(W, D), dtype=f32)))
    assert found.local and found.axes == (SAME, SAME)


def test_reshape_maps_axes(d):
    x = d.rows(d.x)
    there = d.b.value("reshape", x, shape=(1, W, 1, D))
    assert d.check(d.store(d.b.value("reshape", there, shape=(W, D)))).local
    split = d.b.value("reshape", d.b.value("reshape", x, shape=(W // 2, 2, D)), shape=(W, D))
    assert not d.check(d.store(split)).local
    fixed = d.b.value("reshape", d.b.value("full", d.const(2), shape=(W // 2, 2, D), dtype=f32), shape=(W, D))
    assert d.check(d.store(fixed)).local


def test_reshape_of_whole_axes_leaves_the_rest(d):
    w = d.b.value("window", d.x, d.p, d.zero, extents=(W, 12), kept=(True, True))
    x = d.b.value("reshape", d.b.value("reshape", d.b.value("load", w), shape=(W, 3, 4)), shape=(W, 12))
    target = d.b.value("window", d.out, d.p, d.zero, extents=(W, 12), kept=(True, True))
    assert d.check(d.b.op("store", [target, x])).local


def test_buffers_pass_rows_on(d):
    s = d.buffer()
    d.b.op("wait", [d.b.value("copy_async", s, d.window(d.x))])
    assert d.check(d.store(d.b.value("read", s))).local
    t = d.buffer()
    d.b.op("write", [t, d.b.value("read", s)])
    assert d.check(d.store(d.b.value("read", t))).local
    d.b.op("write", [t, d.rows(d.x, d.zero)])
    assert not d.check(d.store(d.b.value("read", t))).local


def test_buffer_windows(d):
    s = d.buffer(2 * W)
    d.b.op("write", [s, d.rows(d.x, rows=2 * W)])
    half = d.b.value("read", s, d.const(W), d.zero, extents=(W, D))
    assert d.check(d.store(half, d.add(d.p, W))).local
    assert d.check(d.store(half)).local  # row R holds x[R + W]
    # A fixed table read at the id: element r is row p + r of it.
    table = d.buffer(2 * W)
    d.b.op("write", [table, d.rows(d.y, d.zero, rows=2 * W)])
    assert d.check(d.store(d.b.value("read", table, d.p, d.zero, extents=(W, D)))).local
    assert not d.check(d.store(d.b.value("read", table, d.zero, d.zero, extents=(W, D)))).local


def test_a_buffer_written_in_parts(d):
    s = d.buffer()
    for start in (0, W // 2):
        half = d.rows(d.x, d.add(d.p, start), rows=W // 2)
        d.b.op("write", [s, half, d.const(start), d.zero])
    found = d.check(d.store(d.b.value("read", s)))
    assert not found.local and "in parts" in found.reason


def test_constants_written_in_parts_differ_between_the_parts(d):
    s = d.buffer()
    for start in (0, W // 2):
        half = d.b.value("full", d.const(start), shape=(W // 2, D), dtype=f32)
        d.b.op("write", [s, half, d.const(start), d.zero])
    found = d.check(d.store(d.b.value("read", s)))
    assert not found.local and found.axes == (FREE, SAME)


def test_columns_of_a_buffer_written_in_parts(d):
    s = d.b.value("alloc_shared", shape=(W, 8), dtype=f32)
    for start in (0, 4):
        part = d.b.value("window", d.x, d.p, d.const(start), extents=(W, 4), kept=(True, True))
        d.b.op("write", [s, d.b.value("load", part), d.zero, d.const(start)])
    target = d.b.value("window", d.out, d.p, d.zero, extents=(W, 8), kept=(True, True))
    assert d.check(d.b.op("store", [target, d.b.value("read", s)])).local


def test_loop_carries_rows(d):
    body = Block()
    body.add_argument(ScalarType(i64), "k")
    start = d.b.value("full", d.const(0), shape=(W, D), dtype=f32)
    carried = body.add_argument(start.type, "acc")
    inner = Builder(body)
    inner.op("yield", [inner.value("add", carried, inner.value("load", d.window(d.x, builder=inner)))])
    assert d.check(d.store(d.loop(body, start).result)).local
    assert not d.check(d.store(d.loop(Block(body.arguments, body.ops), start, upper=d.p).result)).local


def test_what_the_last_iteration_left_reaches_the_first_read(d):
    """Three carried values rotate, so after two iterations the fixed rows have reached the first."""
    body = Block()
    body.add_argument(ScalarType(i64), "k")
    x, fixed = d.rows(d.x), d.rows(d.y, d.zero)
    a, b, c = (body.add_argument(x.type, name) for name in "abc")
    Builder(body).op("yield", [b, c, a])
    assert not d.check(d.store(d.loop(body, x, x, fixed).results[0])).local


def test_a_buffer_written_after_it_is_read_in_a_loop(d):
    s, body = d.buffer(), Block()
    d.b.op("write", [s, d.rows(d.x)])
    fixed = d.rows(d.y, d.zero)
    body.add_argument(ScalarType(i64), "k")
    inner = Builder(body)
    store = d.store(inner.value("read", s), builder=inner)
    inner.op("write", [s, fixed])
    inner.op("yield")
    d.loop(body)
    assert not d.check(store).local


def test_a_stride_that_changes_between_iterations(d):
    body = Block()
    k = body.add_argument(ScalarType(i64), "k")
    first = d.b.value("full", d.const(0), shape=(W, D), dtype=f32)
    carried = body.add_argument(first.type, "last")
    inner = Builder(body)
    start = inner.value("mul", d.p, k)
    store = d.store(carried, start, inner)
    inner.op("yield", [inner.value("load", d.window(d.x, start, builder=inner))])
    d.loop(body, first)
    assert not d.check(store).local  # `p * k` is one text and two numbers: the rows are those of the iteration before


def test_stores_under_a_condition_on_the_id(d):
    x, branches = d.rows(d.x), (Block(), Block())
    store = d.store(x, builder=Builder(branches[0]))
    for branch in branches:
        Builder(branch).op("yield")
    on_id = d.b.value("eq", d.p, d.zero)
    d.b.op("if", [on_id], list(branches))
    found = d.check(store)
    assert not found.local and found.conditional
    assert d.check(store, axes=(1,)).local


def test_a_uniform_condition_joins_both_branches(d):
    x, fixed = d.rows(d.x), d.rows(d.y, d.zero)
    condition = d.b.value("eq", d.n, d.zero)
    for other, local in ((d.b.value("neg", x), True), (fixed, False)):
        branches = Block(), Block()
        for branch, value in zip(branches, (x, other), strict=True):
            Builder(branch).op("yield", [value])
        assert d.check(d.store(d.b.op("if", [condition], list(branches)).result)).local is local


def test_in_place_updates_race(d):
    found = d.check(d.store(d.b.value("add", d.rows(d.out), d.rows(d.out))))
    assert not found.local and "'out', which other programs write" in found.reason


def test_two_ids(d):
    q = d.b.value("program_id", axis=1)
    view = d.b.value("window", d.x, d.p, q, extents=(W, 8), kept=(True, True))
    target = d.b.value("window", d.out, d.p, q, extents=(W, 8), kept=(True, True))
    store = d.b.op("store", [target, d.b.value("load", view)])
    found = d.check(store, axes=(0, 1))
    assert found.local and found.axes == (Aligned(symbol(PROGRAM_IDS[0])), Aligned(symbol(PROGRAM_IDS[1])))
    swapped = d.b.op(
        "store", [d.b.value("window", d.out, q, d.p, extents=(W, 8), kept=(True, True)), d.b.value("load", view)]
    )
    assert not d.check(swapped, axes=(0, 1)).local
