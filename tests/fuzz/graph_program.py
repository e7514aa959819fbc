"""A random function of Graph IR as a value: its arguments, its text, and the programs that are one step simpler."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera.dtypes import f32, i64
from tessera.ir.core import Block, Builder, Kernel, Module, Op, Value, clone_op
from tessera.ir.dead_code import drop_unused
from tessera.ir.dims import Dim, evaluate, symbols
from tessera.ir.opdef import GRAPH
from tessera.ir.printer import print_module
from tessera.ir.types import ScalarType, TileType, dtype_of, shape_of
from tessera.location import Loc

INPUT = 4.0  # that of a parameter
SCALARS = {"number": (i64, 3), "scale": (f32, 1.25), "seed": (i64, 77)}  # by name, dtype and value


@dataclass(frozen=True)
class GraphProgram:
    """A function and the sizes of its dims; `seed` is where it came from."""

    function: Kernel
    dims: dict[str, int]
    seed: int

    @property
    def text(self) -> str:
        return print_module(Module(GRAPH, [self.function]), locations=False)

    def arguments(self) -> dict[str, Any]:
        """A value per parameter that depends on its name and type alone."""
        return {p.name: self._argument(p) for p in self.function.parameters}

    def _argument(self, parameter: Value) -> Any:
        type_ = parameter.type
        if isinstance(type_, ScalarType):
            return SCALARS.get(parameter.name, (type_.dtype, 2))[1]
        shape = [evaluate(size, self.dims) for size in shape_of(type_)]
        numbers = np.random.default_rng(zlib.crc32(parameter.name.encode()))
        values = np.clip(numbers.standard_normal(shape), -INPUT, INPUT)
        dtype = dtype_of(type_)
        if dtype.is_bool:
            return np.asarray(values > 0)
        if dtype.is_int:
            return np.asarray(np.round(values * 2), dtype.numpy)
        return np.asarray(np.asarray(values, np.float32).astype(dtype.numpy))

    def __str__(self) -> str:
        return f"seed {self.seed}, dims {self.dims}\n{self.text}"

    __repr__ = __str__


def function_of(name: str, body: Block, decided: Sequence[str]) -> Kernel:
    """A function of a body, without the parameters that nothing uses. `decided`: dims whose values are compiled in."""
    used = {value for op in body.walk() for value in op.operands}
    body.arguments[:] = [value for value in body.arguments if value in used]
    for index, value in enumerate(body.arguments):
        value.index = index
    attributes = {"dims": tuple(decided), "shape_dims": tuple(decided), "results": ()}
    return Kernel(name, body, attributes, (Loc("program.py", 1),))


def used_dims(function: Kernel, dims: dict[str, int]) -> dict[str, int]:
    """The dims that a function names; a shape of a parameter binds them."""
    types = [value.type for value in function.parameters]
    types += [result.type for op in function.body.ops for result in op.results]
    found = {name for type_ in types for size in shape_of(type_) for name in symbols(size)}
    for op in function.body.ops:
        for value in op.attributes.values():
            items = value if isinstance(value, tuple) else (value,)
            found |= {name for item in items if isinstance(item, Dim) for name in symbols(item)}
    return {name: size for name, size in dims.items() if name in found}


# Smaller ones ---------------------------------------------------------------------------------------------------------


def smaller(program: GraphProgram) -> Iterator[GraphProgram]:
    """Programs that are one step simpler, those that leave most away first."""
    ops = program.function.body.ops
    results = ops[-1].operands
    if len(results) > 1:
        for index in range(len(results)):
            yield _rebuilt(program, keep=[index])
        for index in range(len(results)):
            yield _rebuilt(program, keep=[i for i in range(len(results)) if i != index])
    for op in reversed(ops[:-1]):
        if op.results and isinstance(op.result.type, TileType):
            yield _rebuilt(program, replaced=op)
            for operand in op.operands:
                if operand.type == op.result.type:
                    yield _rebuilt(program, replaced=op, by=operand)
    for name, size in program.dims.items():
        for less in sorted({1, 2, size // 2, size - 1}):
            if 0 < less < size:
                yield replace(program, dims={**program.dims, name: less})


def _rebuilt(
    program: GraphProgram, keep: Sequence[int] | None = None, replaced: Op | None = None, by: Value | None = None
) -> GraphProgram:
    """A copy with some of the results, or with a parameter, or another value, in the place of an op's result."""
    old = program.function
    body = Block()
    mapping = {p: body.add_argument(p.type, p.name) for p in old.parameters}
    builder = Builder(body, old.origin)
    for op in old.body.ops:
        if op is replaced:
            name = f"cut{op.id}"
            mapping[op.result] = mapping[by] if by is not None else body.add_argument(op.result.type, name)
        elif op.name == "return":
            builder.at(op).op("return", [mapping[op.operands[i]] for i in keep or range(len(op.operands))])
        else:
            clone_op(builder, op, mapping)
    drop_unused(body)
    function = function_of(old.name, body, old.attributes["shape_dims"])
    return GraphProgram(function, used_dims(function, program.dims), program.seed)


__all__ = ["INPUT", "SCALARS", "GraphProgram", "function_of", "smaller", "used_dims"]
