"""Grids: inferred for the kernels that people write, refused where ids decide none, checked by brute force."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dtypes import bf16, f32, i64
from tessera.errors import ArgumentError, SourceError
from tessera.frontend.grid import apply_grid, check_coverage, check_overlap, infer_grid, launch_grid
from tessera.ir.core import Block, Builder, Kernel, Op, Value
from tessera.ir.dims import Size, cdiv, floordiv, symbol
from tessera.ir.types import ScalarType, ViewType
from tessera.location import Loc

B, S, D, M, N, K = (symbol(name) for name in "BSDMNK")
HERE = Loc("kernels.py", 7, 5)


class Draft:
    """Builds a kernel by hand. Offsets may be ints; `rows` makes a window of leading-axis slices."""

    def __init__(self, **parameters: tuple[Size, ...]) -> None:
        self.kernel = Kernel("k", Block(), {}, (HERE,))
        self.b = Builder(self.kernel.body, (HERE,))
        self.of = {
            name: self.kernel.body.add_argument(ViewType(shape, bf16), name) for name, shape in parameters.items()
        }

    def number(self, value: Value | int, b: Builder) -> Value:
        return b.value("constant", value=value, dtype=i64) if isinstance(value, int) else value

    def pid(self, axis: int) -> Value:
        return self.b.value("program_id", axis=axis)

    def mul(self, a: Value, number: int) -> Value:
        return self.b.value("mul", a, self.number(number, self.b))

    def add(self, a: Value, b: Value | int) -> Value:
        return self.b.value("add", a, self.number(b, self.b))

    def window(self, name: str, *index: tuple[Value | int, Size] | Value | int, b: Builder | None = None) -> Value:
        """`index` per axis: `(start, extent)` for a slice, a bare offset for an axis that is dropped."""
        b = b or self.b
        pairs = [entry if isinstance(entry, tuple) else (entry, 1) for entry in index]
        return b.value(
            "window",
            self.of[name],
            *(self.number(start, b) for start, _ in pairs),
            extents=tuple(extent for _, extent in pairs),
            kept=tuple(isinstance(e, tuple) for e in index),
        )

    def load(self, name: str, *index, b: Builder | None = None) -> Value:
        return (b or self.b).value("load", self.window(name, *index, b=b))

    def store(self, value: Value, name: str, *index, b: Builder | None = None) -> Op:
        return (b or self.b).op("store", [self.window(name, *index, b=b), value])

    def copy(self, from_: str, to: str, *index) -> None:
        self.store(self.load(from_, *index), to, *index)

    def loop(self, lower: Value | int, upper: Value | int, step: int, body: Callable[[Builder, Value], None]) -> None:
        block = Block()
        index, inner = block.add_argument(ScalarType(i64), "k"), self.b.inner(block)
        body(inner, index)
        inner.op("yield")
        self.b.op("for", [self.number(v, self.b) for v in (lower, upper, step)], [block])


def gating(reduce_rows: bool = False) -> Draft:
    """The document's gating kernel: rows `p : p + 128` of a bare id through buffers, mma and sigmoid."""
    d = Draft(delta=(B, S, D), params=(D, D), output=(B, S, D))
    batch, row = d.pid(0), d.pid(1)
    tile, weights = (d.b.value("alloc_shared", shape=shape, dtype=bf16) for shape in ((128, D), (D, D)))
    copies = [
        d.b.value("copy_async", tile, d.window("delta", batch, (row, 128), (0, D))),
        d.b.value("copy_async", weights, d.of["params"]),
    ]
    d.b.op("wait", copies)
    d.b.op("barrier")
    x = d.b.value("read", tile)
    logits = d.b.value("mma", x, d.b.value("read", weights))
    if reduce_rows:
        highest = d.b.value("broadcast", d.b.value("reduce_max", logits, axis=0), shape=(128, D))
        logits = d.b.value("sub", logits, highest)
    d.store(d.b.value("mul", x, d.b.value("sigmoid", logits)), "output", batch, (row, 128), (0, D))
    return d


def matmul() -> Draft:
    d = Draft(a=(M, K), b=(K, N), bias=(N,), c=(M, N))
    row, column = d.mul(d.pid(0), 64), d.mul(d.pid(1), 64)
    product = d.b.value("mma", d.load("a", (row, 64), (0, K)), d.load("b", (0, K), (column, 64)))
    bias = d.b.value("reshape", d.load("bias", (column, 64)), shape=(1, 64))
    d.store(d.b.value("add", product, d.b.value("broadcast", bias, shape=(64, 64))), "c", (row, 64), (column, 64))
    return d


def inferred(d: Draft, declared=None):
    infer_grid(d.kernel, declared)
    return d.kernel.attributes["grid"]


def scales(kernel: Kernel) -> dict[int, int]:
    return {op.attributes["axis"]: op.attributes["scale"] for op in kernel.body.walk() if op.name == "program_id"}


# Inference ------------------------------------------------------------------------------------------------------------


def test_vector_add():
    d = Draft(x=(N,), y=(N,), out=(N,))
    start = d.mul(d.pid(0), 1024)
    d.store(d.b.value("add", d.load("x", (start, 1024)), d.load("y", (start, 1024))), "out", (start, 1024))
    assert inferred(d) == (cdiv(N, 1024),)
    assert d.kernel.attributes["notes"] == () and scales(d.kernel) == {0: 1}
    assert launch_grid(d.kernel, {"N": 5000}) == (5, 1, 1)


def test_matmul_tiles():
    d = matmul()
    assert inferred(d) == (cdiv(M, 64), cdiv(N, 64))
    check_coverage(d.kernel, {"M": 100, "N": 130, "K": 8}, (2, 3))


def test_a_kernel_without_ids_is_one_program():
    d = Draft(x=(8, D), out=(8, D))
    d.copy("x", "out", (0, 8), (0, D))
    assert inferred(d) == (1,)


def test_bare_rows_and_an_unused_axis():
    d = Draft(x=(M, D), out=(M, D))
    d.copy("x", "out", d.pid(2), (0, D))
    assert inferred(d) == (1, 1, M)


def test_gating_is_coarsened():
    d = gating()
    assert inferred(d) == (B, cdiv(S, 128))
    assert scales(d.kernel) == {0: 1, 1: 128}
    assert d.kernel.attributes["notes"] == ("program axis 1 coarsened: windows of 128 rows start at every 128th id",)
    assert launch_grid(d.kernel, {"B": 2, "S": 300, "D": 64}) == (2, 3, 1)
    check_coverage(d.kernel, {"B": 2, "S": 300, "D": 64}, (2, 3))
    infer_grid(d.kernel)  # again, with the scales of the first time in place
    assert d.kernel.attributes["grid"] == (B, cdiv(S, 128)) and scales(d.kernel) == {0: 1, 1: 128}


def test_gating_with_explicit_grids():
    d = gating()
    infer_grid(d.kernel)
    values = {"B": 2, "S": 300, "D": 64}
    every = apply_grid(d.kernel, (2, 300))
    assert scales(every) == {0: 1, 1: 1} and scales(d.kernel)[1] == 128
    assert every.attributes["grid"] == (2, 300) and every.attributes["notes"] == ()
    check_coverage(every, values, (2, 300))
    check_coverage(every, values, (2, 173))
    short = apply_grid(d.kernel, (2, 3))
    with pytest.raises(ArgumentError) as caught:
        check_coverage(short, values, (2, 3))
    assert caught.value.code == "TS306"
    assert caught.value.message == (
        "rows 130..299 of 'output' (axis 1, dim S = 300) are never written by the grid (2, 3)"
    )
    check_coverage(short, values, (2, 3), partial=True)
    with pytest.raises(ArgumentError, match=r"row 299 of 'output' \(axis 1, dim S = 300\) is never"):
        check_coverage(short, values, (2, 172))
    with pytest.raises(ArgumentError, match=r"row 1 of 'output' \(axis 0, dim B = 2\) is never"):
        check_coverage(short, values, (1, 300))


def test_rows_that_meet_in_a_reduction_are_not_coarsened():
    d = gating(reduce_rows=True)
    with pytest.raises(SourceError) as caught:
        infer_grid(d.kernel)
    assert caught.value.code == "TS307" and caught.value.loc == HERE
    assert "program_id(1)" in caught.value.message and "'output'" in caught.value.message
    assert "max over the rows" in caught.value.message
    assert scales(d.kernel) == {0: 1, 1: 1} and "grid" not in d.kernel.attributes
    with pytest.raises(SourceError, match="program_id"):
        infer_grid(d.kernel, (B, S))
    with pytest.raises(SourceError, match="program_id"):
        check_overlap(d.kernel, (2, 300))
    check_overlap(d.kernel, (2, 1))  # one program along the axis: nothing overlaps


def test_the_narrowest_window_decides_how_coarse():
    d = Draft(x=(S, D), a=(S, D), b=(S, D))
    row = d.pid(0)
    d.copy("x", "a", (row, 128), (0, D))
    d.copy("x", "b", (row, 48), (0, D))
    assert inferred(d) == (cdiv(S, 48),) and scales(d.kernel) == {0: 48}
    for size in (1, 47, 48, 49, 200):
        check_coverage(d.kernel, {"S": size, "D": 4}, launch_grid(d.kernel, {"S": size})[:1])


def test_an_output_of_single_rows_stops_coarsening():
    d = Draft(x=(S, D), a=(S, D), b=(S, D))
    row = d.pid(0)
    d.copy("x", "a", (row, 128), (0, D))
    d.copy("x", "b", row, (0, D))
    assert inferred(d) == (S,) and scales(d.kernel) == {0: 1} and d.kernel.attributes["notes"] == ()


def test_overlapping_blocks_of_a_multiple():
    d = Draft(x=(S, D), out=(S, D))
    start = d.mul(d.pid(0), 32)
    d.copy("x", "out", (start, 128), (0, D))
    assert inferred(d) == (cdiv(S, 128),) and scales(d.kernel) == {0: 4}


def test_two_coarsened_axes():
    d = Draft(x=(M, N), out=(M, N))
    d.copy("x", "out", (d.pid(0), 8), (d.pid(1), 16))
    assert inferred(d) == (cdiv(M, 8), cdiv(N, 16)) and scales(d.kernel) == {0: 8, 1: 16}
    check_coverage(d.kernel, {"M": 9, "N": 33}, (2, 3))


def test_a_store_that_depends_on_the_id_is_not_skipped():
    d = Draft(x=(S, D), out=(S, D))
    row = d.pid(0)
    block = Block(), Block()
    inner = d.b.inner(block[0])
    d.store(d.load("x", (row, 16), (0, D)), "out", (row, 16), (0, D), b=inner)
    for region in block:
        d.b.inner(region).op("yield")
    d.b.op("if", [d.b.value("eq", d.b.value("mod", row, d.number(16, d.b)), d.number(1, d.b))], list(block))
    assert inferred(d) == (S,) and scales(d.kernel) == {0: 1}


def test_halves_of_a_block():
    d = Draft(x=(S, D), out=(S, D))
    start = d.mul(d.pid(0), 128)
    for half in (64, 0):
        d.copy("x", "out", (d.add(start, half), 64), (0, D))
    assert inferred(d) == (cdiv(S, 128),)
    check_coverage(d.kernel, {"S": 300, "D": 4}, (3,))


def test_a_loop_fills_the_block():
    d = Draft(x=(S, D), out=(S, D))
    start = d.mul(d.pid(0), 256)
    d.loop(
        0,
        4,
        1,
        lambda b, k: d.store(
            d.load("x", (row := b.value("add", start, b.value("mul", k, d.number(64, b))), 64), (0, D), b=b),
            "out",
            (row, 64),
            (0, D),
            b=b,
        ),
    )
    assert inferred(d) == (cdiv(S, 256),)
    check_coverage(d.kernel, {"S": 600, "D": 4}, (3,))
    with pytest.raises(ArgumentError, match=r"rows 512\.\.599 "):
        check_coverage(d.kernel, {"S": 600, "D": 4}, (2,))


def test_a_loop_that_starts_at_the_id():
    d = Draft(x=(S, D), out=(S, D))
    start = d.mul(d.pid(0), 64)
    d.loop(
        start,
        d.add(start, 64),
        16,
        lambda b, k: d.store(d.load("x", (k, 16), (0, D), b=b), "out", (k, 16), (0, D), b=b),
    )
    assert inferred(d) == (cdiv(S, 64),)


def test_outputs_decide_before_loads():
    d = Draft(x=(S, D), heads=(K, D), out=(M, D))
    row = d.pid(0)
    pooled = d.b.value("reduce_max", d.load("x", (d.mul(row, 4), 4), (0, D)), axis=0)
    shared = d.load("heads", (d.b.value("floordiv", row, d.number(8, d.b)), 1), (0, D))
    d.store(d.b.value("add", pooled, shared), "out", (row, 1), (0, D))
    assert inferred(d) == (M,)


def test_loads_decide_what_outputs_leave_open():
    d = Draft(x=(S, D), out=(D,))
    d.load("x", (d.mul(d.pid(0), 32), 32), (0, D))
    d.store(d.b.value("full", d.number(1, d.b), shape=(D,), dtype=f32), "out", (0, D))
    assert inferred(d) == (cdiv(S, 32),)


def test_programs_that_all_store_to_one_place():
    d = Draft(x=(S, D), out=(32, D))
    d.store(d.load("x", (d.mul(d.pid(0), 32), 32), (0, D)), "out", (0, 32), (0, D))
    with pytest.raises(SourceError) as caught:
        infer_grid(d.kernel)
    assert caught.value.code == "TS307" and "another offset" in caught.value.message


# Refusals -------------------------------------------------------------------------------------------------------------


def refused(d: Draft) -> str:
    with pytest.raises(SourceError) as caught:
        infer_grid(d.kernel)
    assert caught.value.code == "TS305" and caught.value.loc == HERE
    assert "@ts.kernel(grid=lambda d: (...))" in caught.value.message and "v1" not in caught.value.message
    return caught.value.message


def test_two_blocks_for_one_id():
    d = Draft(x=(S, D), a=(S, D), b=(S, D))
    row = d.pid(0)
    for name, block in (("a", 64), ("b", 32)):
        d.copy("x", name, (d.mul(row, block), block), (0, D))
    assert "'a' (axis 0, size S) by blocks of 64 and 'b' (axis 0, size S) by blocks of 32" in refused(d)


def test_one_id_for_two_dims():
    d = Draft(x=(M, N), out=(M, N))
    row = d.pid(0)
    d.copy("x", "out", (d.mul(row, 8), 8), (d.mul(row, 8), 8))
    assert "size M" in refused(d)


@pytest.mark.parametrize("name", ["floordiv", "mod"])
def test_quotients_and_remainders(name):
    d = Draft(x=(M, N), out=(M, N))
    row = d.b.value(name, d.pid(0), d.number(3, d.b))
    d.copy("x", "out", row, (0, N))
    assert f"'out' is indexed on axis 0 by {name}(program_id(0), 3)" in refused(d)


def test_products_and_sums_of_ids():
    d = Draft(x=(M, N), out=(M, N))
    d.copy("x", "out", d.b.value("mul", d.pid(0), d.pid(1)), (0, N))
    assert "program_id(0)*program_id(1)" in refused(d)
    d = Draft(x=(M, N), out=(M, N))
    d.copy("x", "out", d.add(d.pid(0), d.pid(1)), (0, N))
    assert "this id alone" in refused(d)


def test_an_id_that_indexes_nothing():
    d = Draft(x=(8, N), out=(8, N))
    x = d.load("x", (0, 8), (0, N))
    d.store(d.b.value("mul", x, d.b.value("cast", d.pid(0), dtype=f32)), "out", (0, 8), (0, N))
    assert "does not index any tensor" in refused(d)


def test_a_start_known_only_at_run_time():
    d = Draft(x=(M, N), out=(M, N))
    start = d.kernel.body.add_argument(ScalarType(i64), "start")
    d.copy("x", "out", (d.add(d.mul(d.pid(0), 8), start), 8), (0, N))
    assert "starts at a run-time value" in refused(d)


def test_a_persistent_loop():
    d = Draft(x=(S, D), out=(S, D))
    d.loop(
        d.mul(d.pid(0), 64),
        d.b.value("size", size=S),
        640,
        lambda b, k: d.store(d.load("x", (k, 64), (0, D), b=b), "out", (k, 64), (0, D), b=b),
    )
    assert "do not follow it at a fixed step" in refused(d)


def test_a_loaded_index():
    d = Draft(x=(S, D), order=(M,), out=(S, D))
    at = d.b.value("cast", d.load("order", (m := d.pid(0))), dtype=i64)
    d.copy("x", "out", (d.add(d.mul(m, 8), at), 8), (0, D))
    assert "run-time values" in refused(d)


# Declared and explicit grids ------------------------------------------------------------------------------------------


def test_declared_grid():
    d = Draft(x=(M, N), out=(M, N))
    one = d.pid(0)
    row, column = (d.b.value(name, one, d.number(4, d.b)) for name in ("floordiv", "mod"))
    d.copy("x", "out", (d.mul(row, 8), 8), (d.mul(column, 8), 8))
    assert inferred(d, (cdiv(M, 8) * 4,)) == (cdiv(M, 8) * 4,)
    assert d.kernel.attributes["notes"] == ()
    check_coverage(d.kernel, {"M": 16, "N": 32}, (1,))  # not affine: nothing is shown


def test_declared_grid_keeps_every_id():
    d = gating()
    assert inferred(d, [B, S]) == (B, S) and scales(d.kernel) == {0: 1, 1: 1}
    with pytest.raises(SourceError, match=r"has 1 axes, but program_id\(1\) is used"):
        infer_grid(d.kernel, (B,))
    with pytest.raises(SourceError, match="1 to 3"):
        infer_grid(d.kernel, (B, S, 1, 1))


@pytest.mark.parametrize("grid", [(), (1, 1, 1, 1), (2, -1)])
def test_explicit_grids_that_are_none(grid):
    with pytest.raises(ArgumentError, match="a grid is 1 to 3 numbers"):
        apply_grid(gating().kernel, grid)


def test_launch_grid_keeps_zeros_and_names_missing_dims():
    d = gating()
    infer_grid(d.kernel)
    assert launch_grid(d.kernel, {"B": 0, "S": 300}) == (0, 3, 1)
    assert launch_grid(d.kernel, {"B": 2, "S": 0}) == (2, 0, 1)
    with pytest.raises(ArgumentError, match="needs the dim S"):
        launch_grid(d.kernel, {"B": 2})
    d.kernel.attributes["static"] = {"S": 256}
    assert launch_grid(d.kernel, {"B": 2}) == (2, 2, 1)
    check_coverage(d.kernel, {"B": 2, "S": 0, "D": 8}, (2, 0))  # nothing to write


def test_an_empty_grid_writes_nothing():
    d = gating()
    with pytest.raises(ArgumentError, match=r"rows 0\.\.1 of 'output' \(axis 0, dim B = 2\)"):
        check_coverage(d.kernel, {"B": 2, "S": 3, "D": 8}, (2, 0))


def test_roles_decide_what_must_be_covered():
    d = Draft(x=(S, D), out=(S, D))
    d.copy("x", "out", (d.mul(d.pid(0), 8), 8), (0, D))
    values = {"S": 20, "D": 4}
    d.kernel.attributes["parameters"] = (("x", "in"), ("out", "inout"))
    check_coverage(d.kernel, values, (1,))
    d.kernel.attributes["parameters"] = (("x", "in"), ("out", "out"))
    with pytest.raises(ArgumentError, match=r"rows 8\.\.19"):
        check_coverage(d.kernel, values, (1,))


def test_gaps_between_windows():
    d = Draft(x=(S, D), out=(S, D))
    d.copy("x", "out", (d.mul(d.pid(0), 10), 8), (0, D))
    assert inferred(d) == (cdiv(S, 10),)
    with pytest.raises(ArgumentError, match=r"rows 8\.\.9 and 18\.\.19 of 'out'"):
        check_coverage(d.kernel, {"S": 25, "D": 4}, (3,))
    with pytest.raises(ArgumentError, match=r"rows 8\.\.9 and 9 more ranges of 'out'"):
        check_coverage(d.kernel, {"S": 100, "D": 4}, (10,))


def test_blocks_that_leave_a_corner():
    d = Draft(x=(16, 16), out=(16, 16))
    for corner in (0, 8):
        d.copy("x", "out", (corner, 8), (corner, 8))
    with pytest.raises(
        ArgumentError, match=r"elements \[0\.\.7, 8\.\.15\] of 'out' are never written by the grid \(1,\)"
    ):
        check_coverage(d.kernel, {}, (1,))


windows = st.tuples(st.integers(-2, 3), st.integers(-2, 4), st.integers(0, 2), st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(windows, windows), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 6),
)
def test_coverage_by_brute_force(stores, p, q, rows, columns):
    """Each axis has an id of its own, so what the check shows is exact."""
    d = Draft(x=(M, N), out=(M, N))
    ids = d.pid(0), d.pid(1)
    written = np.zeros((rows, columns), bool)
    for store in stores:
        index = [(d.add(d.mul(i, c), start), extent) for i, (start, c, _, extent) in zip(ids, store, strict=True)]
        ones = d.b.value("full", d.number(1, d.b), shape=tuple(extent for *_, extent in store), dtype=f32)
        d.store(ones, "out", *index)
        for at in itertools.product(range(p), range(q)):
            starts = [start + c * i for i, (start, c, _, _) in zip(at, store, strict=True)]
            written[tuple(slice(max(s, 0), max(s + w[3], 0)) for s, w in zip(starts, store, strict=True))] = True
    if written.all():
        check_coverage(d.kernel, {"M": rows, "N": columns}, (p, q))
    else:
        with pytest.raises(ArgumentError) as caught:
            check_coverage(d.kernel, {"M": rows, "N": columns}, (p, q))
        assert caught.value.code == "TS306"


def test_a_grid_over_a_size_expression():
    d = Draft(x=(S * 2,), out=(S * 2,))
    start = d.mul(d.pid(0), 32)
    d.copy("x", "out", (start, 32))
    assert inferred(d) == (cdiv(S * 2, 32),) != (floordiv(S * 2, 32),)
    with pytest.raises(ArgumentError, match=r"\(axis 0, dim 2\*S = 80\)"):
        check_coverage(d.kernel, {"S": 40}, (2,))
