"""Runs Graph IR on NumPy arrays: what a function means, and, in reference mode, which answers are right.

A function is one program whose values are whole tensors; the machines of the kernel interpreters run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera.dtypes import from_storage, round_to, to_storage
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.types import ScalarType, TileType, dtype_of
from tessera.runtime.function_launches import interpret_launch, reference_launch
from tessera.runtime.interpreter import Machine, check_level
from tessera.runtime.interpreter_setup import bind_dims, concrete
from tessera.runtime.reference import ReferenceMachine, exactly

Array = np.ndarray


class FunctionMachine(Machine):
    """Values in the language's own arithmetic; a tensor has a leading axis of 1. `kernels` are those it calls."""

    kernels: Mapping[str, Kernel] = {}

    def bind(self, parameter: Value, argument: Any) -> Any:
        if isinstance(parameter.type, TileType):
            return np.asarray(from_storage(parameter.type.dtype, argument))[None]
        return super().bind(parameter, argument)

    def evaluate(self) -> list[Any]:
        """The values that the function returns."""
        self.programs, self.values = np.zeros(1, np.int64), dict(self.constants)
        return self.block(self.kernel.body)

    def launched(self, op: Op) -> list[Any]:
        return interpret_launch(op, self.read(op.operands), self.kernels)


class FunctionReference(ReferenceMachine):
    """The same walk over float64 values with error bars."""

    kernels: Mapping[str, Kernel] = {}

    def bind(self, parameter: Value, argument: Any) -> Any:
        if isinstance(parameter.type, TileType):
            return exactly(np.array(from_storage(parameter.type.dtype, argument))[None])
        return super().bind(parameter, argument)

    evaluate = FunctionMachine.evaluate

    def launched(self, op: Op) -> list[Any]:
        return reference_launch(op, self.read(op.operands), self.kernels)


def interpret_function(
    function: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    kernels: Mapping[str, Kernel] | None = None,
) -> list[Array]:
    """The results of a function, in the storage dtypes. `arguments`: arrays and numbers by parameter name.

    `kernels`: those that its `launch` ops name (`Collected.kernels` of its trace).
    """
    values = _machine(FunctionMachine, function, arguments, dims, kernels)
    types = [value.type for value in function.body.ops[-1].operands]
    results = []
    for type_, value in zip(types, values, strict=True):
        array = np.asarray(value[0], order="C") if isinstance(type_, TileType) else value.reshape(())
        results.append(to_storage(dtype_of(type_), round_to(dtype_of(type_), array)).reshape(array.shape))
    return results


def function_reference(
    function: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    kernels: Mapping[str, Kernel] | None = None,
) -> list[Bar]:
    """The bars of a function's results."""
    values = _machine(FunctionReference, function, arguments, dims, kernels)
    return [value.map(lambda x: x[0]) for value in values]


def _machine(
    machine: type[Any],
    function: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    kernels: Mapping[str, Kernel] | None,
) -> list[Any]:
    small = concrete(function, bind_dims(function, dims))
    check_level(small, "graph")
    made = machine(small, (1,), arguments)
    made.kernels = kernels or {}
    return made.evaluate()


__all__ = ["FunctionMachine", "FunctionReference", "ScalarType", "function_reference", "interpret_function"]
