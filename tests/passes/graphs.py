"""Functions of Graph IR for tests of its passes: a small language over the Builder, and what their plans say."""

from __future__ import annotations

from typing import Any

from tessera.dtypes import DType, bf16, f32, i64
from tessera.ir.core import Block, Builder, Kernel, Module, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import GRAPH
from tessera.ir.types import ScalarType, TileType, shape_of
from tessera.ir.verify import verify
from tessera.location import Loc
from tessera.passes.lower_graph import lower_graph
from tessera.passes.precision import precision
from tessera.plan import GraphPlan
from tests.fuzz.graph_program import GraphProgram
from tests.fuzz.graph_running import PlanRun, checked


class Graph:
    """A function under construction; every op has the line of its place in the body."""

    def __init__(self) -> None:
        self.body = Block()
        self.builder = Builder(self.body)

    def tensor(self, name: str, *shape: Size, dtype: DType = bf16) -> Value:
        return self.body.add_argument(TileType(shape, dtype), name)

    def scalar(self, name: str, dtype: DType = f32) -> Value:
        return self.body.add_argument(ScalarType(dtype, weak=True), name)

    def op(self, name: str, *operands: Value, hint: str = "", **attributes: Any) -> Value:
        self.builder.origin = (Loc("function.py", len(self.body.ops) + 2),)
        return self.builder.value(name, *operands, hint=hint, **attributes)

    def number(self, value: float) -> Value:
        dtype = i64 if isinstance(value, int) else f32
        return self.op("constant", value=value, dtype=dtype, weak=True)

    def cast(self, value: Value, dtype: DType, implicit: bool = False, hint: str = "") -> Value:
        return self.op("cast", value, dtype=dtype, implicit=implicit, hint=hint)

    def spread(self, value: Value, like: Value) -> Value:
        """A column or a row of a tensor, repeated to its shape."""
        return self.op("broadcast", value, shape=shape_of(like.type))

    def softmax(self, x: Value, powers: bool = False) -> Value:
        """Of exponentials, or of `powers` of 2, as the library's."""
        shares = self.op("sub", x, self.spread(self.op("reduce_max", x, axis=-1), x))
        shares = self.op("exp2", self.op("mul", shares, self.number(1.5))) if powers else self.op("exp", shares)
        return self.op("div", shares, self.spread(self.op("reduce_sum", shares, axis=-1), x))

    def normalised(self, x: Value) -> Value:
        """x over the root of the mean of its squares."""
        total = self.op("reduce_sum", self.op("mul", x, x), axis=-1)
        mean = self.op("mul", total, self.number(1 / 16))
        return self.op("mul", x, self.spread(self.op("rsqrt", self.op("add", mean, self.number(1e-5))), x))

    def function(self, *results: Value, **attributes: Any) -> Kernel:
        self.builder.origin = (Loc("function.py", len(self.body.ops) + 2),)
        self.builder.op("return", results)
        known = {"dims": (), "shape_dims": (), "results": ()}
        function = Kernel("function", self.body, {**known, **attributes}, (Loc("function.py", 1),))
        verify(Module(GRAPH, [function]))
        return function


def plan_of(function: Kernel, **dims: int) -> GraphPlan:
    """The plan that a call gets: after `precision`."""
    return lower_graph(precision(function), dims)


def names_of(plan: GraphPlan) -> list[list[str]]:
    """The ops of each kernel that compute something, launch by launch."""
    skipped = ("constant", "program_id", "window", "load", "store", "size", "cast", "broadcast", "full", "iota")
    bodies = [plan.kernels[launch.kernel].body for launch in plan.launches]
    return [[op.name for op in body.walk() if op.name not in skipped] for body in bodies]


def held(function: Kernel, **dims: int) -> list[PlanRun]:
    """Holds a function to every law of random ones; its runs before and after `precision`."""
    return checked(GraphProgram(function, dims, 0))


__all__ = ["Graph", "held", "names_of", "plan_of"]
