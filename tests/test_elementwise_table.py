"""Every elementwise op of the table on every dtype that it takes, at three shape classes, on every lane of a CPU.

The kernels are generated from the op table, so a new op is covered by being there. All ops of one shape class make one
kernel, whose emitted CUDA is one unit for the host compiler. Scalars take every combination of dtypes; the registers of
a tile run the same expressions, so rows and blocks, which cost more, take a share.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import TYPES, f64, from_storage, promote, to_storage
from tessera.errors import SourceError
from tessera.frontend.document import load_document
from tessera.frontend.grid import launch_grid
from tessera.ir.core import Block, Builder
from tessera.ir.opdef import ELEMENTWISE, TILE, table
from tessera.ir.types import ScalarType
from tessera.runtime import emulator, nvrtc
from tessera.runtime.compare import check
from tessera.runtime.inputs import poison
from tessera.runtime.interpreter import interpret
from tessera.runtime.reference import reference

DTYPES = [dtype for dtype in TYPES.values() if dtype != f64]
OPS = [op for op in table().values() if op.has(ELEMENTWISE) and TILE in op.levels]
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "and": "&", "or": "|"}
OPERATORS |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
NAMED = {"neg": "-{0}", "not": "~{0}", "max": "tile.maximum({0}, {1})", "min": "tile.minimum({0}, {1})"}
# Window of one program by shape class; the tensors end inside the last window.
SHAPES = {"scalar": (), "row": (40,), "block": (5, 24)}
EXTENTS = {"scalar": (), "row": (37,), "block": (7, 21)}
VARIANTS = 2  # of each input, so that both operands of one dtype differ


def ts_name(dtype):
    return "ts.bool_" if dtype.is_bool else f"ts.{dtype}"


def spelled(op, arguments):
    if op.name == "where":
        return f"tile.where(mask, {arguments[0]}, {arguments[1]})"
    if op.name in ("floordiv", "mod"):  # what lies outside of a tensor is zero
        return f"{arguments[0]} {OPERATORS[op.name]} tile.where({arguments[1]} == 0, 7, {arguments[1]})"
    if op.name in OPERATORS:
        return f"{arguments[0]} {OPERATORS[op.name]} {arguments[1]}"
    return NAMED.get(op.name, f"tile.{op.name}({', '.join(['{0}', '{1}'][: len(arguments)])})").format(*arguments)


def result_of(op, dtypes):
    """The dtype of an op on tensors of these dtypes, or None where the op is not defined for them."""
    if any(dtype.kind not in op.takes for dtype in dtypes):
        return None
    wide = dtypes[0] if len(dtypes) == 1 else promote(*dtypes)
    if op.lower.floats_only and not wide.is_float:
        return None
    if op.name in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"):
        return TYPES["bool"]
    return TYPES["f32"] if op.name == "uniform" else wide


def cases():
    """(op, operand dtypes, result dtype, expression): unordered pairs of dtypes, in either order by turns."""
    for op in OPS:
        if op.name == "cast":
            for source, target in itertools.product(DTYPES, DTYPES):
                value = f"{source}_0"
                if source.is_float and target.is_int:  # others do not fit
                    value = f"tile.where(tile.abs({value}) < 100.0, {value}, 3.0)"
                yield op, (source,), target, f"tile.cast({value}, {ts_name(target)})"
            continue
        count = 2 if op.name == "where" else len(op.operands)
        for number, dtypes in enumerate(itertools.combinations_with_replacement(DTYPES, count)):
            dtypes = dtypes[::-1] if number % 2 else dtypes
            result = result_of(op, dtypes)
            if result is not None:
                yield op, dtypes, result, spelled(op, [f"{dtype}_{i}" for i, dtype in enumerate(dtypes)])


CASES = list(cases())
OF_CLASS = {"scalar": CASES, "row": [case for case in CASES if len(set(case[1])) == 1][::2], "block": CASES[::7]}


def window(shape, lead, store=False):
    """The text of one program's window behind the leading index `lead`; a scalar is element p0."""
    if not shape:
        return f"[{lead}, p0 : p0 + 1]" if store else f"[{lead}, p0]"
    starts = [f"p{axis} * {size} : p{axis} * {size} + {size}" for axis, size in enumerate(shape)]
    return f"[{', '.join([lead, *starts])}]"


def source(shape, cases):
    """One kernel with an op a line; a result goes to its own row of the output of its dtype."""
    dims = [f'"D{axis}"' for axis in range(max(1, len(shape)))]
    inputs = [f"x_{dtype}: tile.Tensor[{', '.join([str(VARIANTS), *dims, ts_name(dtype)])}]" for dtype in DTYPES]
    rows = {dtype: [case for case in cases if case[2] == dtype] for dtype in DTYPES}
    outputs = [
        f"out_{dtype}: tile.Tensor[{', '.join([str(len(mine)), *dims, ts_name(dtype)])}]"
        for dtype, mine in rows.items()
        if mine
    ]
    lines = [f"p{axis} = tile.program_id({axis})" for axis in range(len(dims))]
    for dtype in DTYPES:
        lines += [f"{dtype}_{i} = tile.load(x_{dtype}{window(shape, str(i))})" for i in range(VARIANTS)]
    lines.append("mask = f32_0 > f32_1")
    for dtype, mine in rows.items():
        lines += [
            f"tile.store({expression}, out_{dtype}{window(shape, str(row), store=True)})"
            for row, (_, _, _, expression) in enumerate(mine)
        ]
    body = "\n".join("    " + line for line in lines)
    head = f"@ts.kernel\ndef every({', '.join(inputs + outputs)}):"
    return f"import tessera as ts\nfrom tessera import tile\n\n{head}\n{body}\n"


def values(dtype, shape, rng):
    """Values of every kind that the dtype has and that no integer op refuses: no overflow, no division by zero."""
    if dtype.is_bool:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return (rng.integers(1, 11, shape) * rng.choice([-1, 1], shape)).astype(dtype.numpy)
    x = rng.standard_normal(shape) * 3
    flat = x.reshape(-1)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-9, -1e9, 100.5]
    flat[rng.choice(flat.size, min(len(special), flat.size // 4), replace=False)] = special[: flat.size // 4]
    return to_storage(dtype, x)


@pytest.fixture(scope="module", params=SHAPES)
def launched(request, tmp_path_factory):
    """(cases, kernel, dims, arguments before, after the interpreter, after the emulator) of a shape class."""
    cases = OF_CLASS[request.param]
    shape, sizes = SHAPES[request.param], EXTENTS[request.param] or (19,)
    path = tmp_path_factory.mktemp("table") / "every.py"
    path.write_text(source(shape, cases))
    dims = {f"D{axis}": size for axis, size in enumerate(sizes)}
    compilation = compile_kernel(load_document(path)["every"], dims)
    kernel, text = compilation.stages[0].module.kernel(), compilation.cuda[0]
    rng = np.random.default_rng(4)
    before = {f"x_{dtype}": values(dtype, (VARIANTS, *sizes), rng) for dtype in DTYPES}
    for dtype in DTYPES:
        count = sum(case[2] == dtype for case in cases)
        before[f"out_{dtype}"] = poison((count, *sizes), dtype)
    interpreted, ran = ({name: array.copy() for name, array in before.items()} for _ in range(2))
    interpret(kernel, interpreted, dims)
    pointers, extents = [ran[name] for name in text.pointers], [dims[name] for name in text.sizes]
    library = emulator.build(text.text, [text.name])
    library.launch(
        text.name,
        launch_grid(compilation.target.kernel(), dims),
        text.threads,
        text.shared_bytes,
        [*pointers, *extents],
    )
    return cases, kernel, dims, before, interpreted, ran


def test_lanes_agree_and_are_right(launched):
    cases, kernel, dims, before, interpreted, ran = launched
    bars = reference(kernel, before, dims)
    for dtype in DTYPES:
        mine = [case for case in cases if case[2] == dtype]
        output = f"out_{dtype}"
        for row, (_, _, _, expression) in enumerate(mine):
            expected, actual = interpreted[output][row], ran[output][row]
            nan = np.isnan(from_storage(dtype, expected)) if dtype.is_float else np.zeros(expected.shape, bool)
            if dtype.is_float:
                assert np.array_equal(nan, np.isnan(from_storage(dtype, actual))), expression
            bits = f"u{dtype.bytes}"
            assert np.array_equal(expected[~nan].view(bits), actual[~nan].view(bits)), expression
            bar = bars[output].map(lambda x, row=row: x[row])
            result = check(actual, bar)
            assert result.fraction_bad == 0, (expression, result)


def test_every_op_of_the_table_has_a_case():
    assert {op.name for op in OPS} == {case[0].name for case in CASES}
    assert {dtype for case in CASES for dtype in case[1]} == set(DTYPES)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_every_op_compiles(arch, tmp_path):
    """Each op once, on a narrow dtype where it takes one, on rows with a tail."""
    once = {case[0].name: case for case in CASES if case[1][0].bits != 16}
    path = tmp_path / "every.py"
    path.write_text(source(SHAPES["row"], list(once.values())))
    (text,) = compile_kernel(load_document(path)["every"], {"D0": 37}, arch).cuda
    used = nvrtc.compile_cubin(text.text, arch, text.name).resources[text.name]
    assert not used.spill_stores and not used.spill_loads


ILLEGAL = [
    (op, dtypes)
    for op in OPS
    if op.name not in ("cast", "where")
    for dtypes in itertools.combinations_with_replacement(DTYPES, len(op.operands))
    if any(dtype.kind not in op.takes for dtype in dtypes)
]


def test_illegal_combinations_raise_ts204():
    """In kernels, with the author's words, and in IR text."""
    assert {op.name for op, _ in ILLEGAL} >= {"add", "floordiv", "and", "exp", "lt"}
    for op, dtypes in ILLEGAL:
        block = Block()
        operands = [block.add_argument(ScalarType(dtype), f"v{i}") for i, dtype in enumerate(dtypes)]
        with pytest.raises(SourceError) as caught:
            Builder(block).op(op.name, operands)
        assert caught.value.code == "TS204", (op.name, dtypes)


@pytest.mark.parametrize(
    "op, dtypes", [next((o, d) for o, d in ILLEGAL if o.name == name) for name in sorted({o.name for o, _ in ILLEGAL})]
)
def test_illegal_operands_are_named(op, dtypes, tmp_path):
    expression = spelled(op, [f"left_{i}" for i in range(len(dtypes))])
    loads = "\n".join(f"    left_{i} = tile.load(x{i}[0:16])" for i in range(len(dtypes)))
    parameters = ", ".join(f"x{i}: tile.Tensor[16, {ts_name(dtype)}]" for i, dtype in enumerate(dtypes))
    path = tmp_path / "illegal.py"
    path.write_text(
        f"import tessera as ts\nfrom tessera import tile\n\n@ts.kernel(grid=lambda d: (1,))\n"
        f"def wrong({parameters}, out: tile.Tensor[16, ts.f32]):\n{loads}\n"
        f"    tile.store({expression}, out[0:16])\n"
    )
    with pytest.raises(SourceError, match="'left_") as caught:
        compile_kernel(load_document(path)["wrong"], {})
    assert caught.value.code == "TS204" and caught.value.loc.line == 7 + len(dtypes) - 1
