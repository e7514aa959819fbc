"""Reference mode: the same walk over a second number system, float64 values with error bars.

What comes out says which answers are right (`runtime.compare`): a value per element and how far a correct
implementation may be from it. Control flow and offsets follow the values; a float comparison that its bars leave open
still decides an `if` by its value, so a branch on one should lead to equal results on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera.dtypes import from_storage, round_to
from tessera.ir import bounds, values
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.opdef import STRUCTURAL
from tessera.ir.types import BufferType, ScalarType, Type, dtype_of, tensor_type
from tessera.runtime.interpreter import Machine, launch

Array = np.ndarray


def exactly(array: Array) -> Bar:
    """A bar without error, in float64 (integers beyond 2**53 are rounded)."""
    r = np.asarray(array, np.float64)
    return Bar(r, np.zeros_like(r))


class ReferenceMachine(Machine):
    """Arrays are bars; tensors and buffers hold bars."""

    bytes_per_element = 16

    def bind(self, parameter: Value, argument: Any) -> Any:
        type_ = parameter.type
        if isinstance(type_, ScalarType) and not isinstance(argument, Bar):
            return exactly(round_to(type_.dtype, np.array([argument])))
        return argument if isinstance(type_, ScalarType) else super().bind(parameter, argument)

    def tensor(self, type_: Type, argument: Any) -> values.View:
        dtype = dtype_of(type_)
        if isinstance(argument, Bar):
            return values.View.whole(values.Tensor(argument, dtype))
        return values.View.whole(values.Tensor(exactly(np.array(from_storage(dtype, argument))), dtype))

    def number(self, array: Array) -> Bar:
        return exactly(array)

    def integers(self, value: Any) -> Array:
        return np.asarray(value.r).astype(np.int64)

    def buffer(self, shape: tuple[int, ...], type_: BufferType) -> values.Buffer:
        return values.Buffer.new(len(self.programs), shape, type_.dtype, reference=True)

    def print_line(self, op: Op) -> list[Any]:
        return []  # the run that is compared has printed

    def check_assertion(self, op: Op) -> list[Any]:
        return []  # and has checked

    def apply(self, op: Op, operands: list[Any]) -> Any:
        definition = op.definition
        if definition.bound is None or definition.has(STRUCTURAL):
            result = super().apply(op, operands)
            return exactly(result) if isinstance(result, np.ndarray) else result
        result = definition.bound(op, *operands)
        # The bound of a cast is its rounding already, and an explicit one.
        return result if op.name == "cast" else bounds.round_implicit(dtype_of(op.result.type), result)


def reference(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    grid: tuple[int, ...] | None = None,
    level: str = "tile",
) -> dict[str, Bar]:
    """The bars of every tensor that the kernel writes, by parameter name. Arguments as of `interpret`, left unchanged.

    An argument may be a bar already, what an earlier computation may be off by; one that is written is changed. Two
    arguments that are one and the same memory are not supported here: each has its own bars.
    """
    types = {parameter.name: parameter.type for parameter in kernel.parameters}
    plain = {name: _placeholder(types.get(name), value) for name, value in arguments.items()}

    def machine_class(small: Kernel, extents: tuple[int, ...], checked: Mapping[str, Any]) -> ReferenceMachine:
        return ReferenceMachine(small, extents, {**checked, **arguments})

    machine, result = launch(machine_class, kernel, plain, dims, grid, level)
    return {p.name: machine.constants[p].tensor.data for p in machine.kernel.parameters if p.name in result.outputs}


def _placeholder(type_: Type | None, argument: Any) -> Any:
    """What stands for bars where arguments are checked: a number, or an array of the shape that they have."""
    if isinstance(argument, (list, tuple)):
        return [_placeholder(type_, item) for item in argument]
    if not isinstance(argument, Bar) or type_ is None:
        return argument
    if isinstance(type_, ScalarType):
        return argument.r.reshape(()).item()
    tensor = tensor_type(type_)
    assert tensor is not None
    return np.empty(argument.shape, tensor.dtype.numpy)
