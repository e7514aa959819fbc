"""Prints, assertions, atomics and masks on every lane."""

import numpy as np
import pytest

import tessera as ts
from tessera.compiler import compile_kernel
from tessera.errors import SourceError
from tessera.frontend.grid import launch_grid
from tessera.ir.ops.effects import order_dependent
from tessera.runtime import emulator
from tessera.runtime.execute import emulate as emulate_program
from tessera.runtime.interpreter import interpret
from tessera.runtime.interpreter_output import capture
from tests.lanes import define, run

PRINT = """
@ts.kernel(grid=lambda d: (2, 2))
def k(x: Tensor[2, 3, ts.f32], b: Tensor[5, ts.bf16], out: Tensor[2, 2, ts.i64]):
    i, j = tile.program_id(0), tile.program_id(1)
    tile.print("start {}%, {{{}}}", i + j * 10, i == j)
    if i == 1:
        tile.print("tile {} and row {}", x[0:2, 0:3], b[0:5])
    n = j
    while n < 3:
        tile.print("n = {} {}", n, x[0, 1])
        n += 2
    tile.print("mask {} text \\"é\\"", x[0:2, 0:3] > 1.0)
    tile.store(n, out[i, j : j + 1])
"""


def test_print_shows_scalars_and_tiles_in_program_order():
    x = np.array([[1, 2.5, -1e-7], [np.nan, np.inf, 3e10]], np.float32)
    b = np.arange(5).astype(ts.bf16.numpy)
    out, lines = run(PRINT, {"x": x, "b": b, "out": np.zeros((2, 2), np.int64)}, {})
    assert lines[:4] == [
        "[program (0, 0)] start 0%, {True}",
        "[program (0, 0)] n = 0 2.5",
        "[program (0, 0)] n = 2 2.5",
        '[program (0, 0)] mask [[False, True, False], [False, True, True]] text "é"',
    ]
    assert lines[5] == "[program (1, 0)] tile [[1, 2.5, -1e-07], [nan, inf, 3e+10]] and row [0, 1, 2, 3, 4]"
    assert len(lines) == 2 * 3 + 3 + 3 + 2 + 2 and out["out"].tolist() == [[4, 3], [4, 3]]


def test_prints_and_assertions_survive_when_their_values_are_equal_or_unused():
    text = """
    @ts.kernel(grid=lambda d: (1,))
    def k(x: Tensor[4, ts.f32], out: Tensor[4, ts.f32]):
        tile.print("same {}", x[0])
        tile.print("same {}", x[0])
        for _ in tile.range(2):
            tile.print("in a loop that computes nothing")
        tile.assert_(x[0:4] == x[0:4])
        tile.print("no values")
        tile.store(x[0:4], out[0:4])
    """
    _, lines = run(text, {"x": np.ones(4, np.float32), "out": np.zeros(4, np.float32)}, {})
    assert [line.removeprefix("[program (0)] ") for line in lines] == [
        "same 1", "same 1", *["in a loop that computes nothing"] * 2, "no values"
    ]  # fmt: skip


def test_print_goes_to_standard_output_without_a_capture(capsys):
    kernel = compile_kernel(define(PRINT), {}).stages[0].module.kernel()
    arguments = {"x": np.ones((2, 3), np.float32), "b": np.zeros(5, ts.bf16.numpy), "out": np.zeros((2, 2), np.int64)}
    interpret(kernel, arguments, {}, grid=(1, 1))
    assert capsys.readouterr().out.startswith("[program (0, 0)] start 0%, {True}\n")


ASSERT = """
@ts.kernel
def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    i = tile.program_id(0)
    t = x[i * 40 : i * 40 + 40]
    tile.assert_(i < 3, "too many programs")
    tile.assert_(t >= 0.0, "a \\"negative\\" {value} of 100%")
    tile.store(t, out[i * 40 : i * 40 + 40])
"""


@pytest.mark.parametrize(
    "n, bad, line, message",
    [
        (120, 77, 6, 'program (1): a "negative" {value} of 100%'),
        (130, None, 5, "program (3): too many programs"),
        (120, None, None, ""),
    ],
)
def test_assertions_name_the_program_and_the_line(n, bad, line, message):
    x = np.ones(n, np.float32)
    if bad is not None:
        x[bad] = -1
    compilation = compile_kernel(define(ASSERT), {"N": n})
    kernel = compilation.stages[0].module.kernel()
    lanes = [
        lambda arguments: interpret(kernel, arguments, {"N": n}),
        lambda arguments: interpret(compilation.target.kernel(), arguments, {"N": n}, level="target"),
        lambda arguments: emulate_program(compilation.program, arguments, {"N": n}),
    ]
    for number, lane in enumerate(lanes):
        arguments = {"x": x, "out": np.zeros(n, np.float32)}
        if line is None:
            lane(arguments)
            assert np.array_equal(arguments["out"], x)
            continue
        with pytest.raises(SourceError) as caught:
            lane(arguments)
        assert caught.value.code == "TS509" and caught.value.message.endswith(f"assertion failed in {message}")
        if number < 2:
            assert caught.value.loc.line == line
        else:
            assert caught.value.message.startswith(f"case.py:{line}: ")


HISTOGRAM = """
@ts.kernel
def k(x: Tensor["N", ts.i32], w: Tensor["N", ts.f32], hist: Tensor["B", ts.i32], mass: Tensor["B", ts.f32],
      largest: Tensor["B", ts.f32], total: Tensor[3, ts.i64], widest: Tensor[2, ts.i32], sums: Tensor[128, ts.f32]):
    start = tile.program_id(0) * 128
    index = x[start : start + 128]
    weight = w[start : start + 128]
    tile.atomic_add(hist, 1, index=index)
    tile.atomic_add(mass, weight, index=index)
    tile.atomic_max(largest, weight - 1.0, index=index)
    first = tile.load_scalar(x[start])
    tile.atomic_add(total[first % 3], first + 5000000000)
    tile.atomic_max(widest[0], first)
    tile.atomic_max(widest[0:2], tile.full([2], 3, ts.i32))
    tile.atomic_add(sums[0:128], weight)
"""


def test_atomics_of_every_kind():
    n, bins = 1000, 10
    rng = np.random.default_rng(3)
    x = rng.integers(-2, bins + 2, n).astype(np.int32)
    w = rng.standard_normal(n).astype(np.float32)
    arguments = {
        "x": x, "w": w, "hist": np.ones(bins, np.int32), "mass": np.zeros(bins, np.float32),
        "largest": np.full(bins, -np.inf, np.float32), "total": np.zeros(3, np.int64),
        "widest": np.array([-50, 7], np.int32), "sums": np.zeros(128, np.float32),
    }  # fmt: skip
    definition = define(HISTOGRAM)
    kernel = compile_kernel(definition, {"N": n, "B": bins}).stages[0].module.kernel()
    roles = dict(kernel.attributes["parameters"])
    assert [roles[name] for name in ("x", "hist", "total", "widest")] == ["in", "inout", "inout", "inout"]
    assert order_dependent(kernel) == {"mass", "sums"}
    assert launch_grid(kernel, {"N": n, "B": bins}) == (8, 1, 1)
    out, _ = run(HISTOGRAM, arguments, {"N": n, "B": bins})
    inside = (x >= 0) & (x < bins)
    # The last window runs past the tensor, where indices are zero and so count as bin 0.
    beyond = 8 * 128 - n
    counts = np.bincount(x[inside], minlength=bins) + 1
    counts[0] += beyond
    assert out["hist"].tolist() == counts.tolist()
    best = np.full(bins, -np.inf, np.float32)
    np.maximum.at(best, x[inside], w[inside] - np.float32(1))
    best[0] = max(best[0], np.float32(-1))
    assert np.array_equal(out["largest"], best)
    firsts = x[::128].astype(np.int64)
    assert out["total"].tolist() == [int(sum(f + 5000000000 for f in firsts if f % 3 == r)) for r in range(3)]
    assert out["widest"].tolist() == [max(3, firsts.max()), 7]
    sums = np.zeros(1024)
    sums[:n] = w
    assert np.allclose(out["sums"], sums.reshape(8, 128).sum(0), atol=1e-5)


def test_atomic_maxima_order_zeros_and_nan():
    text = """
    @ts.kernel(grid=lambda d: (3,))
    def k(x: Tensor[3, 6, ts.f32], out: Tensor[6, ts.f32]):
        tile.atomic_max(out[0:6], x[tile.program_id(0), 0:6])
    """
    x = np.array([[-0.0, -3, 1, -2, -5, -1], [0.0, -2, np.nan, -3, -4, -1], [-0.0, -9, 2, -1, -6, -1]], np.float32)
    out, _ = run(text, {"x": x, "out": np.array([-1, -4, -1, -5, -np.inf, -0.5], np.float32)}, {})
    assert out["out"].tobytes()[:4] == np.float32(0.0).tobytes() and np.isnan(out["out"][2])
    assert out["out"][[1, 3, 4, 5]].tolist() == [-2, -1, -4, -0.5]


PACKED = """
@ts.kernel(grid=lambda d: (d.Q,))
def k(x: Tensor["N", 24, ts.bf16], offsets: Tensor["P", ts.i32], order: Tensor["Q", ts.i64],
      out: Tensor["N", 24, ts.bf16], rows: Tensor["Q", 24, ts.bf16], far: Tensor["Q", 16, 20, ts.bf16]):
    ctx = tile.context()
    q = tile.program_id(0)
    begin, end = tile.load_scalar(offsets[q]), tile.load_scalar(offsets[q + 1])
    position = begin
    while position < end:
        part = tile.window(x, position, 16, limit=end)
        tile.store(part * 2.0, tile.window(out, (position, 0), (16, 24), limit=(end, None)))
        position += 16
    tile.store(x[tile.load_scalar(order[q])], rows[q])
    shift = tile.load_scalar(order[q])
    tile.store(tile.load(tile.window(x, (shift - 8, shift), (16, 20))), far[q])
"""


def test_packed_sequences_and_loaded_offsets():
    offsets = np.array([0, 5, 5, 40, 57], np.int32)
    order = np.array([3, -1, 56, 57], np.int64)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((57, 24)).astype(ts.bf16.numpy)
    arguments = {
        "x": x, "offsets": offsets, "order": order, "out": np.full((57, 24), np.nan, x.dtype),
        "rows": np.full((4, 24), np.nan, x.dtype), "far": np.full((4, 16, 20), np.nan, x.dtype),
    }  # fmt: skip
    out, _ = run(PACKED, arguments, {"N": 57, "P": 5, "Q": 4})
    assert np.array_equal(out["out"].astype(np.float32), 2 * x.astype(np.float32))
    wide = np.zeros((57 + 200, 24 + 200), x.dtype)
    wide[100:157, 100:124] = x
    for q, row in enumerate(order.tolist()):
        assert np.array_equal(out["rows"][q], x[row] if 0 <= row < 57 else np.zeros(24, x.dtype))
        assert np.array_equal(out["far"][q], wide[92 + row : 108 + row, 100 + row : 120 + row])


def test_a_window_before_the_start_feeds_a_product():
    """Asynchronous copies too leave out what lies before a tensor."""
    text = """
    @ts.kernel(grid=lambda d: (2,))
    def k(x: Tensor["N", 32, ts.bf16], w: Tensor[32, 32, ts.bf16], at: Tensor[2, ts.i64],
          out: Tensor[2, 32, 32, ts.f32]):
        p = tile.program_id(0)
        row = tile.load_scalar(at[p])
        staged = tile.alloc_shared([32, 32], ts.bf16)
        tile.copy_async(staged, tile.window(x, (row, row), (32, 32), limit=(40, 30)))
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.store(tile.mma(staged, w[0:32, 0:32]), out[p])
    """
    rng = np.random.default_rng(6)
    x, w = (rng.standard_normal((n, 32)).astype(ts.bf16.numpy) for n in (50, 32))
    at = np.array([-5, 17], np.int64)
    out, _ = run(text, {"x": x, "w": w, "at": at, "out": np.full((2, 32, 32), np.nan, np.float32)}, {"N": 50})
    wide = np.zeros((200, 200), np.float32)
    wide[100:140, 100:130] = x[:40, :30].astype(np.float32)
    for p, row in enumerate(at.tolist()):
        expected = wide[100 + row : 132 + row, 100 + row : 132 + row] @ w.astype(np.float32)
        assert np.allclose(out["out"][p], expected, atol=1e-4)


MASKS = """
@ts.kernel(grid=lambda d: (2,))
def k(x: Tensor[2, 48, 40, ts.bf16], level: Tensor[2, ts.f32], out: Tensor[2, 48, 40, ts.bf16],
      kept: Tensor[2, 48, 40, ts.f32], part: Tensor[64, ts.f32], extra: Tensor[4, ts.f32]):
    p = tile.program_id(0)
    mask = x[p] > tile.load_scalar(level[p])
    t = tile.load(x[p], mask=mask, other=-1.0)
    tile.store(t + 1.0, out[p], mask=t < 2.0)
    tile.store(tile.load(x[p], mask=tile.load(x[p])[0:48, 0:1] > 0.0, other=level[p]), kept[p])
    b = tile.alloc_shared([32, 16], ts.f32)
    tile.fill(b, 1.0)
    tile.fill(b[8:16, 0:16], 7.0)
    tile.fill(b[2, 4:8], tile.load_scalar(level[p]))
    tile.store(b[2], part[p * 32 : p * 32 + 16])
    tile.store(b[9], part[p * 32 + 16 : p * 32 + 32])
    tile.fill(extra[p * 2 : p * 2 + 2], 0.25)
"""


def test_masked_loads_and_stores_and_fills():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 48, 40)).astype(ts.bf16.numpy)
    level = np.array([0.5, -0.25], np.float32)
    before = np.full(x.shape, 77.0, x.dtype)
    arguments = {
        "x": x, "level": level, "out": before, "kept": np.full(x.shape, np.nan, np.float32),
        "part": np.full(64, np.nan, np.float32), "extra": np.zeros(4, np.float32),
    }  # fmt: skip
    out, _ = run(MASKS, arguments, {})
    loaded = np.where(x > level[:, None, None], x, x.dtype.type(-1)).astype(np.float32)
    stored = np.where(loaded < 2, (loaded + 1).astype(x.dtype).astype(np.float32), 77.0)
    assert np.array_equal(out["out"].astype(np.float32), stored)
    kept = np.where(x[:, :, :1] > 0, x.astype(np.float32), level[:, None, None])
    assert np.array_equal(out["kept"], kept.astype(x.dtype).astype(np.float32))
    for p in range(2):
        row = np.array([1.0] * 4 + [level[p]] * 4 + [1.0] * 8 + [7.0] * 16, np.float32)
        assert np.array_equal(out["part"][p * 32 : p * 32 + 32], row)


HEAD = """
@ts.kernel(grid=lambda d: (1,))
def k(x: Tensor[4, ts.i64], v: Tensor[4, 8, ts.f32], h: Tensor[4, ts.bf16]):
    n = tile.load_scalar(x[0])
"""


@pytest.mark.parametrize(
    "line, code, message",
    [
        ("tile.print(n)", "TS203", "tile.print takes a format first"),
        ("tile.print('{} {}', n)", "TS202", "takes 2, not 1"),
        ("tile.print('{:d}', n)", "TS203", "neither {} nor doubled"),
        ("tile.print('{}', tile.zeros([64, 64]))", "TS301", "at most two axes and 1024 elements"),
        ("tile.assert_(n)", "TS204", "'n' is an i64 scalar; tile.assert_ takes a bool"),
        ("tile.assert_(n > 0, n)", "TS203", "the message of tile.assert_ is text"),
        ("tile.atomic_add(h[0:4], 1.0)", "TS204", "'h\\[0:4\\]' is bf16"),
        ("tile.atomic_add(n, 1)", "TS203", "'n' is an i64 scalar"),
        ("tile.atomic_add(x[0:4], 1.5)", "TS204", "'1.5' is 1.5, which i64 cannot hold"),
        ("tile.atomic_add(x[0:4], tile.zeros([4]))", "TS204", "but 'x\\[0:4\\]' is i64"),
        ("tile.atomic_max(v[0:4, 0:8], tile.zeros([4]))", "TS301", "are updated"),
        ("tile.atomic_add(v, 1.0, index=x[0:4])", "TS304", "updates a tensor of one axis"),
        ("tile.atomic_add(v[0], 1.0, index=h[0:4])", "TS204", "it must be of integers"),
        ("tile.window(n, 0, 4)", "TS203", "tile.window takes a tensor"),
        ("tile.window(v, (0, 0, 0), (1, 1, 1))", "TS304", "has 3 starts"),
        ("tile.window(v, 0, n)", "TS205", "known only at run time"),
        ("tile.window(v, 0, 4, limit=0.5)", "TS203", "a limit of tile.window must be an integer"),
        ("tile.load(v[0:4], mask=n)", "TS204", "a mask is a tile of bools"),
        ("tile.store(tile.zeros([4, 8]), v[0:4], mask=tile.zeros([8]) > 1.0)", "TS301", "the mask"),
        ("tile.fill(n, 1.0)", "TS203", "takes a shared buffer or a window first"),
        ("tile.num_programs(3)", "TS203", "a grid has the axes 0, 1 and 2"),
    ],
)
def test_errors(line, code, message):
    with pytest.raises(SourceError, match=message) as caught:
        compile_kernel(define(HEAD + f"    {line}\n"), {})
    assert (caught.value.code, caught.value.loc.line) == (code, 4)


def test_a_print_through_the_emulator_is_captured():
    compilation = compile_kernel(define(PRINT), {})
    arguments = {"x": np.ones((2, 3), np.float32), "b": np.zeros(5, ts.bf16.numpy), "out": np.zeros((2, 2), np.int64)}
    with capture() as lines:
        emulate_program(compilation.program, arguments, {})
    assert len(lines) == 16


def test_a_zero_step_is_reported_on_both_lanes():
    text = """
    @ts.kernel(grid=lambda d: (1,))
    def k(x: Tensor[1, ts.i64], out: Tensor[1, ts.i64]):
        total = 0
        for i in tile.range(0, 10, x[0]):
            total += i
        tile.store(total, out[0:1])
    """
    compilation = compile_kernel(define(text), {})
    arguments = {"x": np.zeros(1, np.int64), "out": np.zeros(1, np.int64)}
    with pytest.raises(SourceError, match="the step of a loop is zero"):
        interpret(compilation.stages[0].module.kernel(), arguments, {})
    library = emulator.build(compilation.cuda[0].text, ["k"])
    with pytest.raises(emulator.EmulatorFault, match="runs a loop whose step is zero"):
        library.launch("k", (1,), compilation.cuda[0].threads, 0, list(arguments.values()))
