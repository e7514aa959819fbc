"""Kernels that a function calls, on the CPU: the op `launch` in either number system.

Outputs start as NaN, so that an element that no program writes shows; an in-out parameter starts as a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tessera.dtypes import from_storage, round_to, to_storage
from tessera.errors import InternalError
from tessera.frontend.grid import check_coverage, launch_grid
from tessera.ir.bounds import Bar
from tessera.ir.core import Kernel, Op
from tessera.ir.dims import evaluate
from tessera.ir.types import ListType, ScalarType, Type, ViewType, dtype_of, tensor_type
from tessera.runtime.inputs import poison
from tessera.runtime.interpreter import interpret
from tessera.runtime.reference import reference

Array = np.ndarray


def check_launch(kernel: Kernel, dims: Mapping[str, int]) -> None:
    """Checks that the grid of an author's kernel writes every element of its outputs, and no two programs one.

    Raises ArgumentError TS306 and SourceError TS307, as a call of the kernel does.
    """
    grid = launch_grid(kernel, dims)
    if 0 not in grid:
        check_coverage(kernel, dims, grid, kernel.attributes.get("partial", False))


def interpret_launch(op: Op, operands: list[Any], kernels: Mapping[str, Kernel]) -> list[Array]:
    """What the kernel of a `launch` writes; operands and results are arrays with a leading axis of 1."""

    def argument(type_: Type, value: Any) -> Any:
        if isinstance(type_, ScalarType):
            return value.reshape(()).item()
        dtype = dtype_of(type_)
        return np.array(to_storage(dtype, round_to(dtype, value[0]))).reshape(value.shape[1:])

    kernel = _kernel(op, kernels)
    arguments = _arguments(op, kernel, operands, argument)
    interpret(kernel, arguments, op.attributes["dims"])
    return [np.asarray(from_storage(dtype, arguments[name]))[None] for name, dtype in _written(kernel)]


def reference_launch(op: Op, operands: list[Any], kernels: Mapping[str, Kernel]) -> list[Bar]:
    """The same over bars: how far each operand may be off is part of how far each result may be."""

    def argument(type_: Type, value: Bar) -> Any:
        return value if isinstance(type_, ScalarType) else value.map(lambda x: np.array(x[0]))

    kernel = _kernel(op, kernels)
    found = reference(kernel, _arguments(op, kernel, operands, argument), op.attributes["dims"])
    return [found[name].map(lambda x: x[None]) for name, _ in _written(kernel)]


def _kernel(op: Op, kernels: Mapping[str, Kernel]) -> Kernel:
    name = op.attributes["callee"]
    if name not in kernels:
        raise InternalError("TS901", f"the kernel '{name}' was not given beside the function", op.loc)
    check_launch(kernels[name], op.attributes["dims"])
    return kernels[name]


def _arguments(op: Op, kernel: Kernel, operands: list[Any], argument: Callable[[Type, Any], Any]) -> dict[str, Any]:
    """The arguments of a launch by parameter, each operand as `argument` gives it."""
    roles, dims = dict(kernel.attributes["parameters"]), op.attributes["dims"]
    given = iter(operands)
    arguments: dict[str, Any] = {}
    for parameter in kernel.parameters:
        type_ = parameter.type
        if isinstance(type_, ListType):
            arguments[parameter.name] = [argument(type_.element, next(given)) for _ in range(type_.length)]
        elif roles[parameter.name] == "out":
            assert isinstance(type_, ViewType)
            arguments[parameter.name] = poison(tuple(evaluate(size, dims) for size in type_.shape), type_.dtype)
        else:
            arguments[parameter.name] = argument(type_, next(given))
    return arguments


def _written(kernel: Kernel) -> Iterator[tuple[str, Any]]:
    """Name and dtype of what the kernel writes, in the order of its parameters."""
    roles = dict(kernel.attributes["parameters"])
    for parameter in kernel.parameters:
        tensor = tensor_type(parameter.type)
        if tensor is not None and roles[parameter.name] != "in":
            yield parameter.name, tensor.dtype


__all__ = ["check_launch", "interpret_launch", "reference_launch"]
