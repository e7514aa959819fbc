"""The examination of a compiled kernel: which blocks run, how values are compared, what a difference becomes."""
# ruff: noqa: F821  (the names of dims)

import dataclasses
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.compiler import compile_kernel
from tessera.errors import EnvironmentProblem, SourceError
from tessera.runtime import check_values, emulator
from tessera.runtime.check import FULL_GRID, SAMPLE, aligned_copy, examine_kernel, sample_blocks
from tessera.runtime.check_counters import by_place, total
from tessera.runtime.emulator_memory import Counters
from tessera.runtime.emulator_twin import EmulatorBuildError
from tests.passes.test_pipeline import arguments_of

needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")


@ts.kernel
def doubled(x: tile.Tensor["M", 32, ts.f32], out: tile.Tensor["M", 32, ts.f32]):
    row = tile.program_id(0) * 16
    twice = x[row : row + 16] * 2.0
    tile.store(twice, out[row : row + 16])


@ts.kernel(grid=lambda d: (tile.cdiv(d.N, 16),))
def shouting(x: tile.Tensor["N", ts.i32], mass: tile.Tensor[1, ts.f32]):
    start = tile.program_id(0) * 16
    tile.print("second")
    tile.print("of {} the first is {}", start, tile.load_scalar(x[start]))
    tile.atomic_add(mass[0:1], tile.full([1], 0.5, ts.f32))


@ts.kernel
def checked(x: tile.Tensor["N", ts.f32], out: tile.Tensor["N", ts.f32]):
    start = tile.program_id(0) * 16
    tile.assert_(tile.load_scalar(x[start]) > 1000.0, "too small")
    tile.store(x[start : start + 16], out[start : start + 16])


def line_of(text):
    """The first line of this file that holds a text."""
    return next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def with_text(compilation, pattern, replacement):
    """The compilation with a change of its CUDA text that keeps every line."""
    (cuda,) = compilation.cuda
    text, count = re.subn(pattern, replacement, cuda.text)
    assert count and text.count("\n") == cuda.text.count("\n")
    return dataclasses.replace(compilation, cuda=[dataclasses.replace(cuda, text=text)])


def examine(kernel, dims, change=None, **options):
    compilation = compile_kernel(kernel, dims)
    arguments = arguments_of(compilation.stages[0].module.kernel(), dims)
    before = {name: np.copy(value) for name, value in arguments.items()}
    report = examine_kernel(with_text(compilation, *change) if change else compilation, arguments, dims, **options)
    assert all(np.array_equal(value, before[name], equal_nan=True) for name, value in arguments.items())
    return report


# ---- blocks -----------------------------------------------------------------------------------------------------


def test_a_grid_that_fits_runs_whole():
    assert sample_blocks((8, 8), 64) is None
    assert sample_blocks((5,), 5) is None


def test_a_sample_has_the_corners_in_launch_order():
    sample = sample_blocks((10, 7, 3), 8)
    assert sample is not None and len(set(sample)) == 8
    assert {(0, 0, 0), (9, 6, 2), (9, 0, 0), (0, 6, 0), (0, 0, 2)} <= set(sample)
    assert list(sample) == sorted(sample, key=lambda block: block[::-1])
    assert all(0 <= i < size for block in sample for i, size in zip(block, (10, 7, 3), strict=True))
    assert sample == sample_blocks((10, 7, 3), 8) != sample_blocks((10, 7, 3), 8, seed=1)


@pytest.mark.parametrize(("limit", "expected"), [(1, {(0, 0, 0)}), (2, {(0, 0, 0), (99, 0, 0)})])
def test_the_first_and_the_last_come_first(limit, expected):
    assert set(sample_blocks((100,), limit) or ()) == expected


def test_a_sample_of_nearly_all_ends():
    assert len(set(sample_blocks((100,), 99) or ())) == 99


# ---- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_bits_decide_but_not_those_of_nan(dtype):
    expected = np.array([0.0, 1.0, np.nan, np.nan, 2.0], dtype)
    actual = np.array([-0.0, 1.0, -np.nan, 1.0, np.nan], dtype)
    assert check_values.differences(expected, actual).tolist() == [True, False, False, True, True]


def test_integers_and_bools_differ_by_value():
    assert check_values.differences(np.array([1, 2]), np.array([1, 3])).tolist() == [False, True]
    assert check_values.differences(np.array([True, False]), np.array([True, True])).tolist() == [False, True]


@pytest.mark.parametrize("offset", [0, 16, 4])
def test_copies_are_where_they_should_be(offset):
    array = np.arange(10, dtype=np.float32).reshape(2, 5).astype(ml_dtypes.bfloat16)
    copy = aligned_copy(array, offset)
    assert copy.ctypes.data % 256 == offset and copy.flags.c_contiguous and copy.flags.writeable
    assert copy.dtype == array.dtype and np.array_equal(copy, array)
    assert aligned_copy(np.zeros((0, 3), np.float32), offset).shape == (0, 3)


@needs_compiler
def test_a_right_kernel():
    report = examine(doubled, {"M": 40})
    assert report.ok and report.compared == ("out",) and report.bounded == () and report.notes == ()
    (launch,) = report.kernels
    assert (launch.blocks, launch.blocks_run, launch.blocks_total) == (None, 3, 3)
    assert report.totals.global_read.bytes == report.totals.global_write.bytes == 40 * 32 * 4
    assert report.totals.global_read.sectors == report.totals.global_read.ideal == 40 * 4


@needs_compiler
def test_a_wrong_value_is_placed_and_counted():
    report = examine(doubled, {"M": 40}, (r" \* ts_to_f32", " + ts_to_f32"))
    ((finding, seeds),) = [(seen.finding, seen.seeds) for seen in report.findings]
    assert (finding.kind, seeds) == ("wrong-value", (0, 1, 2))
    assert re.fullmatch(
        r"out\[0, 0\] is \S+, and the interpreter computes \S+ \(1280 of 1280 elements differ\).*", finding.message
    )
    assert finding.file == __file__ and finding.line == line_of("twice = x") and finding.op == "mul"
    assert "; mul 'twice': " in finding.message


@needs_compiler
def test_a_wrong_value_that_cannot_be_traced_is_at_the_last_store(monkeypatch):
    """Text that does not build with probes in it, as one that hides a probed variable."""
    from tessera.runtime import probes

    def fails(*arguments):
        raise EmulatorBuildError("error: no such variable")

    for locate in (fails, lambda *arguments: None):
        monkeypatch.setattr(probes, "locate", locate)
        report = examine(doubled, {"M": 40}, (r" \* ts_to_f32", " + ts_to_f32"), seeds=(0,))
        (seen,) = report.findings
        assert (seen.finding.op, seen.finding.line) == ("st_global", line_of("tile.store(twice"))


@needs_compiler
def test_the_block_that_writes_the_wrong_value_is_found():
    """Only the last block is wrong: 1280 = 40 rows of 32 in blocks of 16 rows."""
    report = examine(doubled, {"M": 40}, (r" \* ts_to_f32", " * (ts_block_id(0) == 2 ? 3.0f : 1.0f) * ts_to_f32"))
    (seen,) = report.findings
    assert seen.finding.block == (2, 0, 0) and seen.finding.message.startswith("out[32, 0] is ")
    assert "(256 of 1280 elements differ)" in seen.finding.message


@needs_compiler
def test_an_element_that_nobody_writes():
    report = examine(doubled, {"M": 40}, (r"window_2_left0 = dim_M - row", "window_2_left0 = dim_M - row - 1"))
    assert {seen.finding.kind for seen in report.findings} == {"unwritten"}
    assert "32 of 1280 elements of 'out'" in report.findings[0].finding.message


@needs_compiler
def test_a_sample_compares_what_it_wrote():
    dims = {"M": 16 * (FULL_GRID + 1) + 3}
    report = examine(doubled, dims, seeds=(0,))
    assert report.ok and report.sampled and report.kernels[0].blocks_run == SAMPLE
    assert report.totals.global_write.bytes == 4 * 32 * (16 * (SAMPLE - 1) + 3)
    wrong = examine(doubled, dims, (r" \* ts_to_f32", " + ts_to_f32"), seeds=(0,), blocks=2)
    (seen,) = wrong.findings
    assert f"({32 * 19} of {32 * dims['M']} elements differ)" in seen.finding.message
    assert examine(doubled, dims, seeds=(0,), blocks="all").kernels[0].blocks is None


# ---- what kernels say -------------------------------------------------------------------------------------------


@needs_compiler
def test_prints_are_compared_and_not_shown(capsys):
    assert examine(shouting, {"N": 40}).ok
    report = examine(shouting, {"N": 40}, ("of ", "OF "))
    assert capsys.readouterr().out == ""
    (seen,) = report.findings
    assert seen.finding.kind == "wrong-value" and seen.finding.line == line_of("of {} the")
    assert re.search(r"prints '.*OF 0 the first is \d+', and the interpreter prints '.*of 0 the", seen.finding.message)


@needs_compiler
def test_a_missing_print():
    report = examine(shouting, {"N": 40}, (r"ts_print\w*\(.*second.*\);", ";"))
    assert [seen.finding.line for seen in report.findings] == [line_of('"second"')]


@needs_compiler
def test_sums_in_no_fixed_order_have_bounds():
    report = examine(shouting, {"N": 40})
    assert (report.compared, report.bounded) == ((), ("mass",))
    wrong = examine(shouting, {"N": 40}, (r"0\.5f", "0.75f"))
    (seen,) = wrong.findings
    assert (
        seen.finding.line == line_of("tile.atomic_add(mass")
        and "mass[0] is off by 0.75, more than its bound" in seen.finding.message
    )


def test_what_is_wrong_in_any_form_is_the_interpreters_to_say():
    with pytest.raises(SourceError, match="too small"):
        examine(checked, {"N": 40})


# ---- counters ---------------------------------------------------------------------------------------------------


def test_counters_are_summed_by_op_and_line():
    compilation = compile_kernel(doubled, {"M": 40})
    (cuda,), kernel = compilation.cuda, compilation.target.kernel()
    store = next(op for op in kernel.body.walk() if op.name == "st_global")
    lines = [line for line, op in cuda.lines.items() if op == store.id]
    counted = {line: dataclasses.replace(Counters.none(), barriers=10 + line) for line in lines}
    counted[1] = dataclasses.replace(Counters.none(), barriers=5)
    rows = by_place(counted, cuda, kernel)
    places = [(row.op, row.loc.line if row.loc else None) for row in rows]
    assert places == [
        ("", None),
        ("st_global", line_of("tile.store(twice")),
    ]
    assert rows[1].counters.barriers == 10 * len(lines) + sum(lines)
    assert total(row.counters for row in rows).barriers == 5 + 10 * len(lines) + sum(lines)


def test_no_compiler(monkeypatch):
    def missing(name):
        raise emulator.EmulatorUnavailable(name)

    monkeypatch.setattr(emulator, "_compiler", missing)
    with pytest.raises(EnvironmentProblem, match="TS507"):
        examine(doubled, {"M": 40})
