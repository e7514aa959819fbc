"""What each iteration of a loop loads alike for every program is loaded once for each iteration, where it fits."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tests.passes.lane_kernels import CASES, LISTS, deltas, layers
from tests.passes.lane_running import compiled, count, ops, outputs_of, reached, stage
from tests.passes.test_pipeline import assert_same_bits


def before_and_after(definition, dims, **fields):
    before, after = reached(definition, dims, "hoist_invariants", "stack_invariants", **fields)
    assert_same_bits(outputs_of(before, dims), outputs_of(after, dims), "stacking")
    return before, after


def stacked(kernel):
    return [op.attributes["stages"] for op in ops(kernel, "alloc_shared") if op.attributes["stages"] > 1]


def copies(kernel):
    """How many copies stand in front of the persistent loop, and in it."""
    *_, persistent = [op for op in kernel.body.ops if op.name == "for"]
    inside = [op for op in persistent.regions[0].walk() if op.name == "copy_async"]
    return len(ops(kernel, "copy_async")) - len(inside), len(inside)


def test_the_weights_of_every_layer_stay():
    before, after = before_and_after(layers, CASES["layers"])
    assert (copies(before), copies(after)) == ((0, 2), (1, 1))
    assert (stacked(before), stacked(after)) == ([], [4])


def test_a_loop_that_takes_every_second_layer():
    """Stages are counted from 0, whatever the indices are."""
    _, after = before_and_after(deltas, CASES["deltas"])
    assert stacked(after) == [2]
    names = [op.name for op in ops(after, "add", "mul", "sub", "floordiv", "stage")]
    assert names.count("stage") == 2 and "floordiv" in names


@ts.kernel
def two_buffers(x: Tensor["M", 64, ts.bf16], us: list[Tensor[64, 64, ts.bf16]], vs: list[Tensor[64, 64, ts.bf16]],
                out: Tensor["M", 64, ts.bf16]):  # fmt: skip
    """All that a loop loads stays, and nothing is left to wait for in it."""
    m = tile.program_id(0) * 64
    value, acc = x[m : m + 64], tile.zeros([64, 64], ts.f32)
    for i in tile.range(len(us)):
        acc = acc + tile.mma(value, us[i]) * tile.sigmoid(tile.mma(value, vs[i]))
    tile.store(acc, out[m : m + 64])


def test_all_that_a_loop_loads():
    dims = {"M": 330, "len(us)": 3, "len(vs)": 3}
    _, after = before_and_after(two_buffers, dims)
    assert stacked(after) == [3, 3]
    loops = [op for op in ops(after, "for") if any(inner.name == "mma" for inner in op.regions[0].ops)]
    assert not any(inner.name in ("wait", "copy_async") for inner in loops[0].regions[0].ops)


@ts.kernel
def guarded(x: Tensor["M", 64, ts.bf16], ws: list[Tensor[64, 64, ts.bf16]], last: int, out: Tensor["M", 64, ts.bf16]):
    """A loop that few programs run: in front of the branch an index outside of the list would count."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    if m > last:
        for i in tile.range(0, 2):
            acc = tile.mma(x[m : m + 64], ws[i], acc)
    tile.store(acc, out[m : m + 64])


@ts.kernel
def changing(x: Tensor["M", 64, ts.bf16], ws: list[Tensor["M", 64, ts.bf16]], out: Tensor["M", 64, ts.bf16]):
    """Windows that differ from program to program."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 64], ts.f32)
    for i in tile.range(len(ws)):
        acc = tile.mma(x[m : m + 64], ws[i][m : m + 64], acc)
    tile.store(acc, out[m : m + 64])


@ts.kernel
def large(x: Tensor["M", 64, ts.bf16], ws: list[Tensor[64, 128, ts.bf16]], out: Tensor["M", 128, ts.bf16]):
    """Sixteen layers of 16 KB."""
    m = tile.program_id(0) * 64
    acc = tile.zeros([64, 128], ts.f32)
    for i in tile.range(len(ws)):
        acc = tile.mma(x[m : m + 64], ws[i], acc)
    tile.store(acc, out[m : m + 64])


@pytest.mark.parametrize(
    ("definition", "dims", "fields"),
    [
        (guarded, {"M": 330, "len(ws)": 2}, {}),
        (changing, {"M": 330, "len(ws)": 2}, {}),
        (large, {"M": 330, "len(ws)": 16}, {}),
        (layers, CASES["layers"], {"persistent": False}),
        (layers, CASES["layers"], {"copies": ""}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_does_not_stay(definition, dims, fields):
    assert not stacked(*reached(definition, dims, "stack_invariants", **fields))


def test_stacked_copies_without_roles():
    """Where roles cannot be, the stages are filled by copies of threads, in front of the loop."""
    compilation = compiled(layers, {"M": 330, **LISTS}, warps=2)
    assert count(compilation, "roles") == (0,) and stacked(stage(compilation, "stack_invariants")) == [4]
    expected = outputs_of(compilation.stages[0].module.kernel(), CASES["layers"])
    assert_same_bits(expected, outputs_of(compilation.target.kernel(), CASES["layers"], "target"), "copies of threads")
