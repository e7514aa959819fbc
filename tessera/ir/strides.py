"""Tensors whose elements need not lie side by side: their strides are dims like any other, and a kernel attribute.

A kernel that knows nothing of strides takes contiguous tensors. The attribute "strides" has an entry per parameter that
may be any view: symbols of `stride_name`, and an innermost 1 where the elements of a row are neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.ir.core import Kernel
from tessera.ir.dims import symbol, symbols
from tessera.ir.types import Shape, strides


def stride_name(parameter: str, axis: int) -> str:
    """The symbol of the stride, in elements, of one axis of a parameter."""
    return f"{parameter}.stride{axis}"


def stride_symbols(parameter: str, rank: int, unit_rows: bool) -> Shape:
    """Strides of a parameter that is any view; `unit_rows`: elements of a row are neighbours."""
    named = tuple(symbol(stride_name(parameter, axis)) for axis in range(rank))
    return (*named[:-1], 1) if unit_rows else named


def parameter_strides(parameter: str, shape: Shape, attributes: Mapping[str, Any]) -> Shape:
    """Element strides of a tensor parameter of a kernel that has these attributes."""
    return attributes.get("strides", {}).get(parameter) or strides(shape)


def with_strides(kernel: Kernel, given: Mapping[str, Shape]) -> Kernel:
    """The same kernel for tensors of these strides by parameter."""
    names = dict.fromkeys(kernel.attributes.get("dims", ()))
    for size in (size for steps in given.values() for size in steps):
        names.update(dict.fromkeys(sorted(symbols(size))))
    attributes = {**kernel.attributes, "dims": tuple(names), "strides": dict(given)}
    return Kernel(kernel.name, kernel.body, attributes, kernel.origin)
