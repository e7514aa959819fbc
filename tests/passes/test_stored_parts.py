"""Buffers that have left operands in parts: where there are any, that every bit is that of the numbers themselves."""

import shutil

import numpy as np
import pytest

from tessera.compiler import compile_function, compile_kernel
from tessera.dtypes import f32
from tessera.frontend.grid import launch_grid
from tessera.ir.core import Module
from tessera.ir.dims import symbol
from tessera.ir.opdef import TILE
from tessera.ir.products import SPLIT_PARTS
from tessera.runtime import emulator
from tessera.runtime.interpreter import interpret
from tessera.target.arch import ARCHS
from tests.passes.graphs import Graph, plan_of
from tests.passes.test_fuse import compiled
from tests.passes.test_graph_held import short  # noqa: F401
from tests.passes.test_pipeline import arguments_of

M = symbol("M")
SPECIAL = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, 1e-40, -0.0, 1e-30, 0.1], np.float32)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def in_parts(target):
    """The buffers of parts in the place of numbers, and how often a fragment is taken apart."""
    ops = list(target.body.walk())
    fragments = [op.result for op in ops if op.name == "ld_operand" and op.attributes["dtype"] == f32]
    written = {op.operands[0] for op in ops if op.name in ("st_shared", "st_matrices")}
    read = {op.operands[0] for op in ops if op.name == "ldmatrix" and op.attributes["role"] == "a"}
    return len(read & written), len(fragments)


def line_behind_products(depth, arch):
    """The kernel of f32 lines, one of them computed, whose product with bf16 is reduced along its rows."""
    graph = Graph()
    x = graph.op("mul", graph.tensor("x", M, depth, dtype=f32), graph.number(1.0))
    line = graph.op("matmul", x, graph.cast(graph.tensor("w", depth, 96), f32))
    scale = graph.op("tanh", graph.op("abs", graph.op("reduce_max", line, axis=-1)))  # 1 of what is infinite
    plan = plan_of(graph.function(graph.op("mul", line, graph.spread(scale, line))), M=2000)
    (kernel,) = plan.kernels
    return kernel, compile_kernel(Module(TILE, [kernel]), {"M": 20}, arch)


@needs_compiler
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("depth", "stored"), [(128, SPLIT_PARTS), (144, SPLIT_PARTS), (140, 2 * SPLIT_PARTS)])
def test_numbers_are_taken_apart_once_and_multiply_to_the_same_bits(depth, stored, arch):
    """What is not finite, rounds to that, or has parts that are subnormal, too. Beyond 140 a k-block needs zeros,
    so slices are copied to buffers of their own.
    """
    kernel, made = line_behind_products(depth, arch)
    parts, fragments = in_parts(made.target.kernel())
    assert parts == stored and not fragments

    def arguments():
        found = arguments_of(kernel, {"M": 20})
        x = next(array for array in found.values() if isinstance(array, np.ndarray) and array.shape == (20, depth))
        for row, number in enumerate(SPECIAL):
            x[row, 5 * row] = number
        return found

    results = []
    for stage in made.stages:
        if stage.name in ("frontend", "pipeline", "interleave"):
            values = arguments()
            interpret(stage.module.kernel(), values, {"M": 20}, level=stage.module.level)
            results.append(values)
    values, target, text = arguments(), made.target.kernel(), made.cuda[0]
    given = [*(values[n] for n in text.pointers), 20, *(values[n] for n in text.scalars)]
    library = emulator.build(text.text, [text.name])
    library.launch(text.name, launch_grid(target, {"M": 20}), text.threads, text.shared_bytes, given, seed=1)
    results.append(values)
    (output,) = [name for name, role in kernel.attributes["parameters"] if role != "in"]
    line, *others = [values[output] for values in results]
    assert len(others) == 3 and all(np.array_equal(line, other) for other in others)
    assert np.isinf(line[:4]).all() and np.isfinite(line[4:]).all()


@pytest.mark.parametrize(("arch", "stored"), [("sm_90a", SPLIT_PARTS), ("sm_80", 0)])
def test_parts_take_no_room_that_a_second_block_needs(arch, stored):
    trace, static = compiled("adaptive_gating_mechanism", B=16, S=2048, D=512, G=128)
    (made,) = compile_function(trace, static, arch).kernels
    target = made.target.kernel()
    assert in_parts(target)[0] == stored
    assert target.attributes["shared_bytes"] <= ARCHS[arch].shared_bytes_beside(2)
