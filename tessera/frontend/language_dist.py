"""`dist.shard` and `dist.all_gather`: what a distributed function says about where its values lie."""

from __future__ import annotations

from typing import Any, NoReturn

from tessera.errors import SourceError
from tessera.frontend.evaluator_values import Handle, plain
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language import FUNCTION, Intrinsic
from tessera.ir import dims
from tessera.ir import sharding as rules
from tessera.ir.placement import Placement


def _placement(emit: TensorEmitter, name: str) -> Placement:
    if emit.placement is None:
        emit.fail("TS102", f"dist.{name} needs a mesh: decorate the function with @ts.distribute(mesh=...)")
    return emit.placement


def _shard(emit: TensorEmitter, x: Any, axis: Any, mesh_axis: Any) -> Handle:
    """Splits axis `axis` of a value over the devices along `mesh_axis`; its shape stays the global one."""
    placement, tensor = _placement(emit, "shard"), emit.tile(x, "x")
    axis, name = plain(axis), emit.text("x")
    try:
        # The rule checks both arguments before an op is made of them.
        rules.shard(placement.of(emit.value(tensor)), axis, mesh_axis, name)
        number = axis % len(tensor.shape)
        size = tensor.shape[number]
        if dims.symbols(size) <= emit.static.keys():
            known = emit.concrete(size, name, f"'{mesh_axis}' splits axis {number} of '{name}'")
            rules.check_divides(placement.mesh, str(size), known, mesh_axis)
    except SourceError as error:
        raise error.at(emit.place) from None
    return emit.emit("shard", tensor, axis=number, mesh_axis=mesh_axis)


def _all_gather(emit: TensorEmitter, x: Any, axis: Any) -> Handle:
    """Makes a value whole on every device along the mesh axis `axis`; its shape stays the global one."""
    placement, tensor = _placement(emit, "all_gather"), emit.tile(x, "x")
    try:
        rules.all_gather(placement.of(emit.value(tensor)), axis)
    except SourceError as error:
        raise error.at(emit.place) from None
    return emit.emit("all_gather", tensor, mesh_axis=axis)


def _outside(name: str) -> Any:
    def fail(**arguments: Any) -> NoReturn:
        raise SourceError("TS102", f"dist.{name} works only inside a function decorated with @ts.function")

    return fail


shard = Intrinsic("dist.shard", _shard, _outside("shard"), scope=FUNCTION)
all_gather = Intrinsic("dist.all_gather", _all_gather, _outside("all_gather"), scope=FUNCTION)

__all__ = ["all_gather", "shard"]
