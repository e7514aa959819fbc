"""Bind the dims that shapes need: after this pass every tile and buffer has integer sizes, other dims stay symbolic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tessera.dtypes import i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, clone_op
from tessera.ir.core import Mapping as ValueMapping
from tessera.ir.dims import Dim, Size, substitute, symbols
from tessera.ir.types import BufferType, ShapedType, TileType, dtype_of, int_shape, substitute_type


def specialise(
    kernel: Kernel,
    static: Mapping[str, int],
    divisors: Mapping[str, int] | None = None,
    alignment: Mapping[str, int] | None = None,
) -> Kernel:
    """Replaces the dims in `static` by their values everywhere.

    `divisors`: powers of two known to divide dynamic dims; `alignment`: bytes to which each tensor's base is aligned.
    Both are guards of the compiled program. Raises SourceError TS205 for a shape that still holds an unbound dim.
    """
    values: dict[str, Size] = dict(static)
    new = Kernel(kernel.name, Block(), _bind(dict(kernel.attributes), values), kernel.origin)
    new.attributes["static"] = dict(static)
    new.attributes["divisors"] = dict(divisors or {})
    new.attributes["alignment"] = dict(alignment or {})
    mapping: ValueMapping = {}
    _copy_block(kernel.body, new.body, Builder(new.body, kernel.origin), values, mapping)
    _check_bound(new)
    logical = _logical_bytes(new)
    if logical and "logical_bytes" not in new.attributes:
        new.attributes["logical_bytes"] = logical  # beside `shared_bytes`, what a block has in the end
    return new


def bind_decisions(function: Kernel, dims: Mapping[str, int]) -> Kernel:
    """Replaces the dims of a function that decisions of its trace have used, its `shape_dims`, by their values."""
    values: dict[str, Size] = {name: dims[name] for name in function.attributes["shape_dims"] if name in dims}
    if not values:
        return function
    new = Kernel(function.name, Block(), dict(function.attributes), function.origin)
    _copy_block(function.body, new.body, Builder(new.body, function.origin), values, {})
    return new


def _logical_bytes(kernel: Kernel) -> dict[str, int]:
    """What the author's buffers would take, by name."""
    found: dict[str, int] = {}
    for op in kernel.body.walk():
        if op.name == "alloc_shared":
            type_ = op.result.type
            name = op.result.name or "shared"
            found[name] = found.get(name, 0) + math.prod(int_shape(type_)) * dtype_of(type_).bytes
    return found


def _copy_block(old: Block, new: Block, builder: Builder, values: dict[str, Size], mapping: ValueMapping) -> None:
    for argument in old.arguments:
        mapping[argument] = new.add_argument(substitute_type(argument.type, values), argument.name)
    for op in old.ops:
        builder.at(op)
        if op.regions:
            regions = [Block() for _ in op.regions]
            for region, target in zip(op.regions, regions, strict=True):
                _copy_block(region, target, builder.inner(target), values, mapping)
            copy = builder.op(
                op.name,
                [mapping[v] for v in op.operands],
                regions,
                [r.name for r in op.results],
                **_bind(op.attributes, values),
            )
            mapping.update(zip(op.results, copy.results, strict=True))
        else:
            attributes = _bind(op.attributes, values)
            if op.name == "size" and isinstance(attributes["size"], int):
                mapping[op.result] = builder.value("constant", hint=op.result.name, value=attributes["size"], dtype=i64)
                continue
            clone_op(builder, op, mapping, **attributes)


def _check_bound(kernel: Kernel) -> None:
    """Raises SourceError TS205 for a tile or a buffer of symbolic size."""
    for op in kernel.body.walk():
        for result in op.results:
            if not isinstance(result.type, (TileType, BufferType)):
                continue
            for size in result.type.shape:
                if isinstance(size, Dim):
                    name, needed = result.name or op.name, ", ".join(sorted(symbols(size)))
                    raise SourceError("TS205", f"the shape of '{name}' needs a value for {needed}", op.loc)


def _bind(value: Any, values: dict[str, Size]) -> Any:
    """Substitutes dims in an attribute, inside tuples and dicts too."""
    if isinstance(value, Dim):
        return substitute(value, values)
    if isinstance(value, tuple):
        return tuple(_bind(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _bind(item, values) for key, item in value.items()}
    return value


def unbound_dims(kernel: Kernel) -> tuple[str, ...]:
    """Dims that shapes of tiles and buffers use, and those that the author wants compiled in: those that `specialise`
    must bind.
    """
    bound = kernel.attributes.get("static", {})
    found = dict.fromkeys(name for name in kernel.attributes.get("static_dims", ()) if name not in bound)
    for op in kernel.body.walk():
        for result in op.results:
            if isinstance(result.type, ShapedType) and op.name not in ("window", "element"):
                for size in result.type.shape:
                    found.update(dict.fromkeys(sorted(symbols(size))))
        for extent in op.attributes.get("extents") or ():
            found.update(dict.fromkeys(sorted(symbols(extent))))
    return tuple(found)
