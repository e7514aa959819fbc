"""Values, blocks, kernels, the builder, and copies of them."""

from __future__ import annotations

import pytest

from tessera.dtypes import bf16, f32, i64
from tessera.errors import InternalError, SourceError
from tessera.ir.compare import difference
from tessera.ir.core import Block, Builder, Kernel, Module, clone_kernel, clone_op, merge_origins, new_kernel_like, uses
from tessera.ir.types import ScalarType, TileType, ViewType
from tessera.location import Loc

FIRST, SECOND = Loc("a.py", 1), Loc("a.py", 2)


def kernel_with_loop() -> Kernel:
    kernel = Kernel("k", Block(), {"grid": (4,)}, (FIRST,))
    x = kernel.body.add_argument(ViewType((8,), bf16), "x")
    n = kernel.body.add_argument(ScalarType(i64), "n")
    build = Builder(kernel.body, (FIRST,))
    tile = build.value("load", x, hint="t")
    body = Block()
    body.add_argument(ScalarType(i64), "i")
    carried = body.add_argument(tile.type, "c")
    inner = build.inner(body)
    inner.op("yield", [inner.value("add", carried, tile)])
    build.op("store", [x, build.op("for", [n, n, n, tile], [body], hints=("r",)).result])
    return kernel


def test_builder_types_names_and_places_ops() -> None:
    kernel = kernel_with_loop()
    load, loop, store = kernel.body.ops
    assert (load.result.type, load.result.name, load.result.owner, load.result.index) == (
        TileType((8,), bf16),
        "t",
        load,
        0,
    )
    assert load.origin == (FIRST,) and load.loc == FIRST and loop.regions[0].ops[0].origin == (FIRST,)
    assert loop.attributes["unroll"] == 1 and loop.result.name == "r"
    assert store.operand("view") is kernel.parameters[0] and store.results == []
    assert len({op.id for op in kernel.body.walk()}) == 5
    assert load.result.defining_op is load and kernel.parameters[0].defining_op is None


def test_builder_refuses_what_the_op_table_refuses() -> None:
    build = Builder(Block(), (FIRST,))
    with pytest.raises(SourceError, match="there is no op 'lode'"):
        build.op("lode")
    with pytest.raises(InternalError, match="op program_id needs the attribute 'axis'"):
        build.op("program_id")
    with pytest.raises(InternalError, match="op program_id has no attribute 'speed'"):
        build.op("program_id", axis=0, speed=1)
    with pytest.raises(SourceError, match="must be a tensor in global memory"):
        build.op("load", [build.value("constant", value=1.0)])
    assert len(build.block.ops) == 1


def test_builder_takes_the_places_of_the_ops_it_replaces() -> None:
    build = Builder(Block(), (FIRST,))
    one = build.op("constant", value=1.0)
    build.origin = (SECOND, FIRST)
    two = build.op("constant", value=2.0)
    assert build.at(one, two).op("add", [one.result, two.result]).origin == (FIRST, SECOND)
    assert merge_origins((SECOND,), (FIRST, SECOND)) == (SECOND, FIRST)


def test_walk_is_program_order() -> None:
    assert [op.name for op in kernel_with_loop().body.walk()] == ["load", "for", "add", "yield", "store"]


def test_result_and_kernel_lookup() -> None:
    kernel = kernel_with_loop()
    with pytest.raises(InternalError, match="op store has 0 results"):
        _ = kernel.body.ops[-1].result
    module = Module("tile", [kernel])
    assert module.kernel() is kernel and module.kernel("k") is kernel
    with pytest.raises(InternalError, match="no kernel 'q'"):
        module.kernel("q")


def test_clone_is_equal_and_apart() -> None:
    kernel = kernel_with_loop()
    copy, mapping = clone_kernel(kernel)
    assert difference(kernel, copy) is None
    originals = {value for op in kernel.body.walk() for value in op.results} | set(kernel.parameters)
    assert originals <= set(mapping)
    assert not {id(op) for op in kernel.body.walk()} & {id(op) for op in copy.body.walk()}
    assert not any(value in originals for op in copy.body.walk() for value in op.operands)
    copy.attributes["grid"] = (5,)
    assert kernel.attributes["grid"] == (4,)


def test_clone_with_a_change_computes_types_again() -> None:
    kernel = kernel_with_loop()
    new, build, mapping = new_kernel_like(kernel)
    build.origin = (SECOND,)
    mapping[kernel.body.ops[0].result] = build.value("cast", build.value("load", new.parameters[0]), dtype=f32)
    build.origin = (SECOND,)
    copy = clone_op(
        build,
        kernel.body.ops[1].regions[0].ops[0],
        {**mapping, kernel.body.ops[1].regions[0].arguments[1]: mapping[kernel.body.ops[0].result]},
    )
    assert copy.result.type == TileType((8,), f32)
    assert copy.origin == (FIRST,) and build.origin == (SECOND,)


def test_uses() -> None:
    kernel = kernel_with_loop()
    load, loop, store = kernel.body.ops
    found = uses(kernel.body)
    assert [op.name for op in found[load.result]] == ["for", "add"]
    assert found[loop.result] == [store] and kernel.parameters[0] in found
