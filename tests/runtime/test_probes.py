"""A damaged text is blamed on the op that was damaged; a right one on nobody, at every probed place of every kernel."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.runtime import emulator
from tessera.runtime.interpreter_setup import bind_dims, grid_of
from tessera.runtime.probes import compare_block, locate
from tessera.runtime.probes_records import Records
from tessera.runtime.probes_text import instrument, probes_of
from tests.lanes import define
from tests.passes import kernels
from tests.passes.test_pipeline import arguments_of
from tests.suite import DOCUMENT, EXAMPLES, GATING, identify, load

pytestmark = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")

OTHERS = [
    GATING[-1],
    ("vector_add", {"N": 1000}),
    ("vector_add_bf16", {"N": 3001}),
    ("softmax", {"M": 5, "N": 1000}),
    ("softmax_bf16", {"M": 17, "N": 25}),
    *((f"matmul_{case}", {"M": 33, "N": 100, "K": 129}) for case in ("nn_bf16", "tn_bf16", "nt_f32", "tt_f32")),
    ("attention_row", {"M": 5, "N": 20, "D": 16}),
    ("two_layers", {"M": 16, "D": 72}),
    ("running_sum", {"M": 20, "N": 96}),
    ("wide_elementwise", {"M": 70, "D": 1000}),
    ("walk", {"N": 7}),
]

WALK = """
@ts.kernel(grid=lambda d: (d.N,))
def k(x: Tensor["N", ts.i64], steps: Tensor["N", ts.i64], mass: Tensor[64, ts.i32], halves: Tensor["N", 64, ts.f32]):
    i = tile.program_id(0)
    n = tile.load_scalar(x[i])
    count = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        count += 1
    tile.print("{} after {}", n, count)
    tile.store(count, steps[i : i + 1])
    tile.atomic_add(mass[0:64], tile.arange(64))
    odd = tile.reshape(tile.reshape(tile.arange(64), [8, 8]), [64]) % 2 == 1
    tile.store(tile.cast(tile.arange(64), ts.f32) * 0.5, halves[i, 0:64], mask=odd)
"""
WALKED = {
    "x": np.array([1, 6, 7, 27, 1, 2, 97], np.int64),
    "steps": np.zeros(7, np.int64),
    "mass": np.zeros(64, np.int32),
    "halves": np.zeros((7, 64), np.float32),
}


def prepared(name, dims):
    """A compilation and arguments for it."""
    if name == "walk":
        return compile_kernel(define(WALK), dims), {key: array.copy() for key, array in WALKED.items()}
    definition = getattr(kernels, name, None) or load(name)
    compilation = compile_kernel(definition, dims)
    return compilation, arguments_of(compilation.stages[0].module.kernel(), dims)


def corners(compilation, dims):
    """The first and the last block of a grid."""
    kernel = compilation.target.kernel()
    grid = (*grid_of(kernel, bind_dims(kernel, dims), None), 1, 1)[:3]
    return dict.fromkeys([(0, 0, 0), tuple(size - 1 for size in grid)])


@pytest.mark.parametrize("case", EXAMPLES + OTHERS, ids=identify)
def test_a_right_kernel_differs_nowhere(case):
    name, dims = case
    compilation, arguments = prepared(name, dims)
    for block in corners(compilation, dims):
        before = {key: value.copy() for key, value in arguments.items() if isinstance(value, np.ndarray)}
        comparison = compare_block(compilation, arguments, dims, block)
        assert comparison.whole
        met = {place[0] for place in comparison.records.order}
        assert len(comparison.records.order) == len(comparison.recording.events) and met
        assert [culprit.message for culprit in comparison.culprits(strict=True)] == []
        for key, array in before.items():
            assert array.tobytes() == arguments[key].tobytes(), f"{key} was changed"


@pytest.mark.parametrize("case", EXAMPLES[:1] + EXAMPLES[4:5] + OTHERS, ids=identify)
def test_every_register_tile_and_scalar_is_probed(case):
    compilation, _ = prepared(*case)
    cuda, kernel = compilation.cuda[0], compilation.target.kernel()
    probed = {probe.value for probe in probes_of(cuda, kernel) if probe.kind != "buffer"}
    for op in kernel.body.walk():
        for value in op.results:
            kind = type(value.type).__name__
            if kind in ("TileType", "ScalarType", "BufferType") or op.name == "window":
                assert value in probed, f"{op.name} '{value.name}'"


# Damage --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Damage:
    """A change of the statement of the op that is blamed, or of `op` where another is to be found at its place.

    `op` and `value` choose the op by its name and the name of its result, buffer or of the first that fits.
    """

    kernel: str
    dims: dict
    op: str
    value: str
    pattern: str
    replacement: str
    source: str  # a piece of the author's line
    message: str
    block: tuple = (0, 0, 0)


MATMUL = {"M": 64, "N": 100, "K": 129}
GATE = {"B": 1, "S": 127, "D": 60}
COLUMNS = {"M": 70, "N": 100}
TILE_PRODUCT = "tile.mma(a_block"
DAMAGES = {
    "operand words swapped": Damage(
        "matmul_nt_bf16", MATMUL, "ldmatrix", "a", r"a_2 \+ 4", "a_2 + 0", TILE_PRODUCT,
        r"ldmatrix 'a': register \d+ of thread \d+ holds \S+ where a\[\d+, \d+\] is \S+$",
    ),
    "no transpose": Damage(
        "matmul_nn_bf16", MATMUL, "ldmatrix", "b", "_trans", "", TILE_PRODUCT, "ldmatrix 'b': register",
    ),
    "wrong swizzle in a read": Damage(
        "matmul_nt_bf16", MATMUL, "ldmatrix", "a", r"S0\(", "S1(", TILE_PRODUCT, "ldmatrix 'a': register",
    ),
    "wrong swizzle in a copy": Damage(
        "gating_function_kernel", GATE, "cp_async", "smem_params", r"S1\(first, col\)", "S1(first ^ 2, col)",
        "tile.cp_async.shared.global(", r"cp_async 'smem_params': smem_params\[\d+, \d+\] is .* when ldmatrix reads it",
    ),
    "wrong column of a store": Damage(
        "gating_function_kernel", GATE, "st_shared", "gated_result_scratch", r"gated_result_2\[r \+ i\]",
        "gated_result_2[r + (i ^ 1)]", "tile.store_global(", "st_shared 'gated_result_scratch': ",
    ),
    "wrong constant": Damage(
        "gating_function_kernel", GATE, "constant", "", "-0.1f", "-0.2f", "distance_scaling(layer_distance)",
        r"constant: thread 0 holds -0.2\S* where it is -0.1",
    ),
    "wrong factor": Damage(
        "softmax_bf16", {"M": 17, "N": 25}, "exp2", "weights", r"\(shifted\[r\]\)", "(shifted[r]) * 1.0009765625f",
        "weights = tile.exp2(shifted)", r"exp2 'weights': register 0 of thread \d+ holds", (1, 0, 0),
    ),
    "one lane alone": Damage(
        "softmax_bf16", {"M": 17, "N": 25}, "reduce_sum", "", r"(?<=ts_cast<float>\()x0", "x0 + (ts_lane() == 6)",
        "tile.sum(weights", r"reduce_sum: register 0 of thread 6 holds",
    ),
    "a sum is dropped": Damage(
        "column_sum", COLUMNS, "add", "total", r"ts_to_f32\(v_total_2\[r\]\) \+ ", "", "total = total +",
        r"add 'total': register 0 of thread 0 holds \S+ where total\[0\] is",
    ),
    "an iteration hands nothing on": Damage(
        "column_sum", COLUMNS, "yield", "", r"= v_total_3\[r\]", "= v_total_2[r]", "for row in tile.range",
        "yield 'total': register",
    ),
    "an iteration too few": Damage(
        "column_sum", COLUMNS, "for", "total", "row < size;", "row < size - 32;", "for row in tile.range",
        "for 'total' ends an iteration too early",
    ),
    "an iteration too many": Damage(
        "column_sum", COLUMNS, "for", "total", "row < size;", "row < size + 32;", "for row in tile.range",
        "for 'total' goes on with an iteration too many",
    ),
    "a loop starts late": Damage(
        "column_sum", COLUMNS, "for", "total", "row = constant_3;", "row = constant_3 + 32;", "for row in tile.range",
        "for 'row': thread 0 holds 32 where row is 0",
    ),
    "a window is off by one": Damage(
        "column_sum", COLUMNS, "window", "", r"\+ column;", "+ column + 1;", "total = total +",
        "window begins 1 elements behind the first of 'x', where 0 is right",
    ),
    "two buffers at one place": Damage(
        "matmul_nt_bf16", MATMUL, "shared", "operand_1", r"\+ \d+;", "+ 0;", TILE_PRODUCT,
        r"shared 'operand_1' begins at byte 0 of shared memory, where \d+ is right",
    ),
    "rows of a store swapped": Damage(
        "matmul_nt_bf16", MATMUL, "st_global", "", r"\(ts_i64\)\(c0\)", "(ts_i64)(c0 ^ 1)", "tile.store(acc + bias",
        r"st_global 'output': output\[0, 0\] is \S+ where it is",
    ),
    "the running maximum is a minimum": Damage(
        "cumulative_max", {"M": 33, "N": 100}, "scan_blocks", "", r"ts_max\(", "ts_min(", "tile.cummax(",
        "scan_blocks: register",
    ),
    "the carry is dropped": Damage(
        "cumulative_max", {"M": 33, "N": 100}, "carry_blocks", "", r"ts_max\(carry, x\)", "x", "tile.cummax(",
        "carry_blocks: register",
    ),
    "halves of a word swapped": Damage(
        "fp8_matmul", {"M": 33, "N": 100, "K": 129}, "ld_operand", "a", r"\[2 \* w\], (\w+)\[2 \* w \+ 1\]",
        r"[2 * w + 1], \1[2 * w]", "tile.mma(", "ld_operand 'a': register",
    ),
    "the other branch": Damage(
        "walk", {"N": 7}, "if", "", r"if \((\w+)\)", r"if (!\1)", "if n % 2 == 0:", "takes the other branch", (1, 0, 0),
    ),
    "a while that stops early": Damage(
        "walk", {"N": 7}, "while", "", r"while \((\w+)\)", r"while (\1 && false)", "while n != 1:",
        "ends an iteration too early", (1, 0, 0),
    ),
    "a mask is turned round": Damage(
        "walk", {"N": 7}, "st_global", "mask", r"&& (\w+)\[r \+ i\]", r"&& !\1[r + i]", "mask=odd",
        r"st_global 'halves': halves\[1, 1\] is 0 where it is 0.5", (1, 0, 0),
    ),
}  # fmt: skip


def damaged(compilation, damage):
    """The compilation with a change in the statement of one op, and that op."""
    (cuda,) = compilation.cuda
    rows = cuda.text.split("\n")
    for op in compilation.target.kernel().body.walk():
        names = {value.name for value in (*op.results, *op.operands[:1])} | (
            {"mask"} if len(op.operands) > 2 else set()
        )
        if op.name != damage.op or damage.value and damage.value not in names:
            continue
        lines = [line for line, identifier in cuda.lines.items() if identifier == op.id]
        changed = {line: re.sub(damage.pattern, damage.replacement, rows[line - 1]) for line in lines}
        if any(rows[line - 1] != text for line, text in changed.items()):
            for line, text in changed.items():
                rows[line - 1] = text
            return dataclasses.replace(compilation, cuda=[dataclasses.replace(cuda, text="\n".join(rows))]), op, lines
    raise AssertionError("nothing to damage")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_damaged_op_is_the_culprit(damage):
    compilation, arguments = prepared(damage.kernel, damage.dims)
    changed, op, lines = damaged(compilation, damage)
    found = locate(changed, arguments, damage.dims, damage.block)
    assert found is not None
    assert re.search(damage.message, found.message), found.message
    assert (found.op, found.name) == (op.id, damage.op)
    assert found.cuda_line in lines and found.loc == op.loc and found.loc is not None
    if damage.kernel == "walk":
        author = WALK.strip("\n")
    else:
        author = Path(DOCUMENT if damage.kernel.startswith("gating") else found.loc.file).read_text(encoding="utf-8")
    assert damage.source in author.splitlines()[found.loc.line - 1]


def test_a_block_that_is_right_has_no_culprit_where_another_is_wrong():
    damage = DAMAGES["an iteration too few"]
    compilation, arguments = prepared("column_sum", COLUMNS)
    changed, _, _ = damaged(compilation, dataclasses.replace(damage, replacement="row < size - 32 * ts_block_id(0);"))
    assert locate(changed, arguments, COLUMNS, (0, 0, 0)) is None
    assert locate(changed, arguments, COLUMNS, (1, 0, 0)).name == "for"


def test_a_culprit_before_a_fault_is_found_and_a_fault_alone_is_none():
    compilation, arguments = prepared("column_sum", COLUMNS)
    far = dataclasses.replace(DAMAGES["a window is off by one"], replacement="+ column + 1000000;")
    changed, _, _ = damaged(compilation, far)
    assert locate(changed, arguments, COLUMNS, (0, 0, 0)).name == "window"
    outside = Damage("column_sum", COLUMNS, "ld_global", "", r"window \+", "window - 1000000 +", "", "")
    changed, _, _ = damaged(compilation, outside)
    assert locate(changed, arguments, COLUMNS, (0, 0, 0)) is None


def test_probes_move_no_line():
    compilation, arguments = prepared("column_sum", COLUMNS)
    outside = Damage("column_sum", COLUMNS, "ld_global", "", r"window \+", "window - 1000000 +", "", "")
    changed, _, lines = damaged(compilation, outside)
    (cuda,) = changed.cuda
    values = [arguments["x"], arguments["output"], COLUMNS["M"], COLUMNS["N"]]
    found = []
    for text in (cuda.text, instrument(cuda, compilation.target.kernel())):
        library = emulator.build(text, [cuda.name])
        found.append(library.examine(cuda.name, (2,), cuda.threads, cuda.shared_bytes, values).faults[0])
    assert found[0] == found[1] and found[0].line in lines


def test_records_that_were_cut_short_say_so():
    header = [(3, 0, 4), (3, 1, 4), (3, 0, 4), (-1, 0, 0), (3, 0, 4)]
    data = b"".join(
        np.array(row[:2], np.int32).tobytes() + np.array([row[2]], np.int64).tobytes() + bytes(8 if row[2] else 0)
        for row in header
    )
    records = Records.read(data)
    assert records.order == [(3, 0), (3, 1)] and not records.whole
    assert records.held[3, 0] == ([0, 1], [bytes(4), bytes(4)])
