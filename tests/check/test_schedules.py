"""Schedules of the aggregation kernels that change where operands live and who computes which slices: the same bits at
every level, in the emitted CUDA in two orders, and no finding.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.types import TileType
from tessera.runtime.interpreter import interpret
from tests.check.test_document_kernels import emulated, names
from tests.suite import load
from tests.test_document_blocks import given_to, made_up

NAME = "fused_delta_gating_kernel"
STREAMED = dict(rows=64, subtile=128, block_k=64, resident="", walk="", prefetch=False)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")

CASES = [  # layers, batch, sequence, width, fields
    (2, 2, 70, 64, dict(rows=32, subtile=64, block_k=32, resident="left")),
    (2, 2, 70, 64, dict(rows=32, subtile=32, block_k=16, resident="left", walk="columns", stages=4)),
    (1, 2, 70, 64, dict(rows=32, subtile=64, resident="both", walk="rows", prefetch=True)),
    (3, 1, 70, 64, dict(rows=32, subtile=64, resident="both", walk="rows", prefetch=True, stages=3)),
    (2, 1, 70, 64, dict(rows=32, subtile=64, block_k=32, resident="left", prefetch=True, through=False)),
    (3, 1, 40, 128, dict(rows=64, subtile=64, block_k=32, through=True, stages=3)),
    (3, 1, 40, 128, dict(rows=64, subtile=128, block_k=32, sums="shared", stages=2)),
    (2, 1, 40, 100, dict(rows=32, subtile=128, block_k=64, resident="left", stages=3)),
    (1, 1, 70, 60, dict(rows=32, subtile=64, resident="both", walk="rows", epilogue="direct")),
    (2, 2, 40, 64, dict(rows=32, subtile=64, walk="columns", through=True, epilogue="direct")),
]


def scheduled(n, b, s, d, fields, arch="sm_80"):
    symbols = names(NAME, n, {"B": b, "S": s, "D": d, "L": n + 1})
    kernel, constants = load(NAME), {"num_stages": fields.get("stages", 2), "num_warps": fields.get("warps", 4)}
    own = compile_kernel(kernel, symbols, arch, constants=constants).schedule
    schedule = dataclasses.replace(own, **fields)
    return compile_kernel(kernel, symbols, arch, schedule=schedule, constants=constants), symbols


@needs_compiler
@pytest.mark.parametrize(("n", "b", "s", "d", "fields"), CASES, ids=lambda value: str(value))
def test_every_placement_keeps_every_bit(n, b, s, d, fields):
    compilation, symbols = scheduled(n, b, s, d, fields)
    arguments, _ = made_up(n, b, s, d)
    expected = given_to(NAME, arguments)
    interpret(compilation.stages[0].module.kernel(), expected, symbols)
    for name in ("subtile", "prefetch_loads", "pipeline", "order_copies", "insert_barriers"):
        module = next(stage.module for stage in compilation.stages if stage.name == name)
        given = given_to(NAME, arguments)
        interpret(module.kernel(), given, symbols, level=module.level)
        np.testing.assert_array_equal(given["output"].view(np.uint16), expected["output"].view(np.uint16), name)
    assert print_module(parse_module(print_module(compilation.target))) == print_module(compilation.target)
    for seed in (0, 3):
        output = emulated(compilation, NAME, arguments, symbols, seed)
        np.testing.assert_array_equal(output.view(np.uint16), expected["output"].view(np.uint16))


def ops_of(compilation, name):
    return [op for op in compilation.target.kernel().body.walk() if op.name == name]


def tiles_of(compilation, name):
    return [op for op in ops_of(compilation, name) if isinstance(op.result.type, TileType)]


def test_a_resident_operand_is_computed_once_and_serves_the_epilogue():
    streamed, _ = scheduled(1, 2, 256, 256, STREAMED)
    left, _ = scheduled(1, 2, 256, 256, STREAMED | dict(resident="left", walk="columns"))
    assert len(tiles_of(streamed, "sub")) == 2 and len(tiles_of(left, "sub")) == 1
    assert len(tiles_of(left, "ld_global")) == 2  # source and target, once


def test_a_resident_right_operand_is_loaded_once_for_all_rows():
    both, _ = scheduled(1, 2, 256, 64, dict(rows=32, subtile=64, resident="both", walk="rows"))
    body = both.target.kernel().body
    inside = [op for loop in body.walk() if loop.name == "for" for region in loop.regions for op in region.walk()]
    assert len(ops_of(both, "cp_async")) == 1 and not any(op.name == "cp_async" for op in inside)


def test_copies_go_on_through_the_loop_around():
    """The copies of the first k-blocks stand before the layers; that saves a barrier a layer."""
    through, _ = scheduled(3, 2, 256, 256, STREAMED | dict(through=True))
    alone, _ = scheduled(3, 2, 256, 256, STREAMED | dict(through=False))

    def nested(compilation):
        outer = next(op for op in compilation.target.kernel().body.walk() if op.name == "for")
        return [op for op in outer.regions[0].ops if op.name == "cp_async"]

    assert not nested(through) and nested(alone)
    assert len(ops_of(through, "barrier")) < len(ops_of(alone, "barrier"))
