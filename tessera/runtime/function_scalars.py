"""Numbers that launches of a plan pass: those of a call, constants, and what the host computes of them."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.ir.core import Kernel
from tessera.plan import Scalar
from tessera.runtime.function_interpreter import interpret_function


def scalar_value(scalar: Scalar, given: Mapping[str, int | float], dims: Mapping[str, int]) -> int | float:
    """The number that a launch passes. `given`: the scalar parameters of the function; `dims`: those of the call.

    Computed as the op table does, with the roundings of its dtypes.
    """
    if isinstance(scalar, str):
        return given[scalar]
    if not isinstance(scalar, Kernel):
        return scalar
    (result,) = interpret_function(scalar, {p.name: given[p.name] for p in scalar.parameters}, dims)
    return result.item()


__all__ = ["scalar_value"]
