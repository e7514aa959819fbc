"""The smallest case of each mistake that random programs and texts have found."""

import textwrap

import pytest

from tessera.compiler import trace_kernel
from tessera.errors import SourceError
from tessera.ir.parser import parse_module
from tessera.target.schedule import Schedule
from tests.fuzz import graph_running
from tests.fuzz.graph_program import GraphProgram
from tests.fuzz.running import defined, emulate, prepared
from tests.fuzz.vocabulary import Program
from tests.passes.test_pipeline import outputs_of

HEAD = """\
@ts.kernel
def {name}(x: Tensor["M", "K", ts.f32], w: Tensor["K", "K", ts.f32], out: Tensor["M", "K", ts.f32]):
    row = tile.program_id(0) * 32
"""


def check(body: str, schedule: Schedule, dims: dict[str, int]) -> None:
    """Every pass keeps every bit of a kernel, and its CUDA agrees."""
    emulate([prepared(Program(HEAD + textwrap.indent(textwrap.dedent(body), "    "), dims, schedule))])


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_ir_text_that_ends_too_early_is_at_fault_on_its_last_line(end):
    with pytest.raises(SourceError) as caught:
        parse_module('tessera 1 tile\nkernel @k(\n) attributes {dims = ("M",' + end, "k.tsir")
    assert caught.value.code == "TS701" and caught.value.loc is not None
    assert (caught.value.loc.file, caught.value.loc.line) == ("k.tsir", 3)


@pytest.mark.parametrize(
    "operand",
    [
        "tile.broadcast_to(tile.sum(w[0:16, 0:16], axis=0, keepdims=True), [16, 16])",
        "tile.reshape(w[0:8, 0:32], [16, 16])",
    ],
    ids=["sum", "reshape"],
)
def test_rows_of_a_product_take_all_of_a_computed_operand(operand):
    """The sum along columns lets only rows be cut: the right operand stays whole."""
    body = f"""\
    right = {operand}
    value = x[row : row + 32, 0:16]
    tile.store(tile.mma(value, right) + tile.sum(value, axis=1, keepdims=True), out[row : row + 32, 0:16])
    """
    check(body, Schedule(4, subtile=8), {"M": 40, "K": 16})


@pytest.mark.parametrize(
    "write",
    [
        "tile.fill(buffer, 7.0)",
        "tile.multiply(buffer, -0.5, buffer)",
        "if tile.program_id(0) < 1:\n        tile.fill(buffer, 3.0)",
        "for k in tile.range(2):\n        tile.fill(buffer, 3.0)",
    ],
    ids=["fill", "itself", "branch", "loop"],
)
def test_a_sliced_store_keeps_what_was_read_before_a_write(write):
    body = f"""\
    buffer = tile.alloc_shared([32, 16], ts.f32)
    tile.fill(buffer, 1.0)
    before = buffer * 0.5 + x[row : row + 32, 0:16]
    {write}
    tile.store(before * 2.0, out[row : row + 32, 0:16])
    """
    check(body, Schedule(4, subtile=8), {"M": 40, "K": 16})


def test_a_sliced_store_that_cannot_be_cut_is_whole_where_it_fits():
    body = """\
    total = tile.sum(tile.sum(x[row : row + 32, 0:16], axis=0, keepdims=True), axis=1, keepdims=True)
    tile.store(tile.broadcast_to(tile.reshape(total, [1, 1]), [32, 16]), out[row : row + 32, 0:16])
    """
    check(body, Schedule(4, subtile=8), {"M": 40, "K": 16})


def test_a_scan_of_the_same_tile_in_every_program():
    """Its blocks' totals lie in a buffer, which each program has of its own."""
    body = """\
    total = tile.zeros([32, 100], ts.f32)
    for k in tile.range(2):
        total = total + tile.cumsum(tile.full([32, 100], 0.5), axis=1)
    tile.store(total[:, 0:16] + x[row : row + 32, 0:16], out[row : row + 32, 0:16])
    """
    check(body, Schedule(4), {"M": 70, "K": 16})


@pytest.mark.parametrize("schedule", [Schedule(4, ("buffer",)), Schedule(4, ("buffer",), 8)], ids=["whole", "sliced"])
def test_a_buffer_that_a_loop_reads_is_not_streamed(schedule):
    body = """\
    buffer = tile.alloc_shared([32, 16], ts.f32)
    tile.copy_async(buffer, x[row : row + 32, 0:16])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    total = tile.zeros([32, 16], ts.f32)
    for k in tile.range(2):
        total = total + buffer
    tile.store(total + buffer, out[row : row + 32, 0:16])
    """
    check(body, schedule, {"M": 40, "K": 16})


@pytest.mark.parametrize("extent", [2**50, 2**63])
def test_a_tile_that_no_machine_holds_is_an_error_at_its_place(extent):
    body = f"tile.store(x[0:{extent}, 0:16], out[0:{extent}, 0:16])"
    kernel = trace_kernel(defined(Program(f"{HEAD}    {body}\n", {}), "program"), {"M": 16, "K": 16}).kernel()
    with pytest.raises(SourceError) as caught:
        outputs_of(kernel, {"M": 16, "K": 16}, "tile")
    assert caught.value.code == "TS501" and caught.value.loc is not None


GRAPH = """\
tessera 1 graph

kernel @f(
  %x: tensor<[B, B], bf16>,
  %number: weak i64
) attributes {dims = (), shape_dims = (), results = ()} {
"""


def check_graph(body: str, dims: dict[str, int]) -> None:
    """A function keeps every law of random ones, its CUDA included."""
    text = GRAPH + textwrap.indent(textwrap.dedent(body), "  ") + "}"
    problem = graph_running.failure(GraphProgram(parse_module(text).kernel(), dims, 0), True)
    assert problem is None, problem


def test_a_computed_python_number_stays_one():
    """As a number of i64 it would make the quotient f32, which then is not rounded."""
    body = """\
    %0: weak i64 = constant {value = 3, dtype = i64, weak = true}
    %1: weak f32 = constant {value = 0.5, weak = true}
    %2: weak i64 = abs %0
    %3: weak f32 = add %2, %1
    %4: tensor<[B, B], bf16> = div %x, %3
    %5: tensor<[B, B], bf16> = add %4, %x
    return %5
    """
    check_graph(body, {"B": 8})


@pytest.mark.parametrize(
    "body",
    [
        """\
        %0: tensor<[B, B], fp8_e5m2> = full %number {shape = (B, B), dtype = fp8_e5m2}
        %1: tensor<[B, B], f16> = cast %0 {dtype = f16, implicit = true}
        %2: tensor<[B, B], f32> = matmul %1, %1
        return %2
        """,
        """\
        %0: tensor<[B, B], fp8_e5m2> = full %number {shape = (B, B), dtype = fp8_e5m2}
        %1: tensor<[B, B], f16> = cast %0 {dtype = f16, implicit = true}
        %2: tensor<[B, B], f32> = cast %1 {dtype = f32, implicit = true}
        %3: tensor<[B, B], f32> = cast %x {dtype = f32, implicit = true}
        %4: tensor<[B, B], f32> = matmul %3, %2
        return %4
        """,
    ],
    ids=["both operands", "right operand"],
)
@pytest.mark.parametrize("size", [1, 40])
def test_a_right_operand_that_is_cast_from_a_constant_is_in_memory(body, size):
    check_graph(body, {"B": size})
