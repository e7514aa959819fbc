"""Whether a kernel's attributes agree with its body: an edited dump may break that, and no CUDA text would hold it."""

from __future__ import annotations

from collections.abc import Iterator

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Op, Value
from tessera.ir.dims import Size, symbols
from tessera.ir.programs import MULTIPROCESSORS
from tessera.ir.stages import allocated_bytes
from tessera.ir.types import BufferType, ListType, ViewType, tensor_type


def check_signature(kernel: Kernel, placed: bool) -> None:
    """Raises SourceError TS703 for a written parameter that is no output, a dim that the kernel does not have, or, when
    `placed`, a shared buffer without a place in the kernel's shared memory.
    """
    roles = dict(kernel.attributes.get("parameters", ()))
    known = {*kernel.attributes.get("dims", ()), *kernel.attributes.get("static", {})}
    for parameter in kernel.parameters:
        tensor = tensor_type(parameter.type)
        if tensor is not None:
            for size in tensor.shape:
                _check_dims(size, known, f"the shape of '{parameter.name}'", kernel, None)
    for size in kernel.attributes.get("grid", ()):
        _check_dims(size, known | {MULTIPROCESSORS}, "the grid", kernel, None)
    for op in kernel.body.walk():
        if "size" in op.attributes:
            _check_dims(op.attributes["size"], known, f"this {op.name}", kernel, op)
        for parameter in _written(op):
            if roles.get(parameter.name, "in") == "in":
                raise SourceError("TS703", f"'{parameter.name}' is written here, but its role is \"in\"", op.loc)
        if placed and op.results and isinstance(op.results[0].type, BufferType) and "offset" in op.attributes:
            _check_place(op, kernel)


def _check_dims(size: Size, known: set[str], what: str, kernel: Kernel, op: Op | None) -> None:
    missing = sorted(symbols(size) - known)
    if missing:
        loc = op.loc if op is not None else kernel.loc
        raise SourceError("TS703", f"{what} uses the dim {missing[0]}, which kernel '{kernel.name}' does not have", loc)


def _written(op: Op) -> Iterator[Value]:
    for effect, value in op.definition.effects_of(op):
        while isinstance(value.type, ViewType) and value.defining_op is not None:
            value = value.defining_op.operands[0]
        if effect != "reads" and isinstance(value.type, (ViewType, ListType)):
            yield value


def _check_place(op: Op, kernel: Kernel) -> None:
    offset, limit = op.attributes["offset"], kernel.attributes.get("shared_bytes", 0)
    size = allocated_bytes(op)
    if offset < 0 or offset + size > limit:
        raise SourceError(
            "TS703",
            f"'{op.result.name}' lies at byte {offset} and has {size}, but the kernel's shared memory has {limit}; run "
            "place_shared",
            op.loc,
        )
