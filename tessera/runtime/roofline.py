"""The least time that a kernel could take: its tensors moved once, or its matrix products done, whichever is slower.

The rates are those of a common board of the architecture (`target.arch`); a percentage is a guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tessera import dtypes
from tessera.ir.affine import loop_progression
from tessera.ir.core import Block, Kernel
from tessera.ir.dims import evaluate
from tessera.ir.opdef import COUNTED
from tessera.ir.types import dtype_of, shape_of
from tessera.program import Parameter
from tessera.target.arch import Arch


def roofline_seconds(
    kernel: Kernel, parameters: tuple[Parameter, ...], dims: Mapping[str, int], grid: tuple[int, ...], facts: Arch
) -> float:
    """Seconds on the typical board of `facts`. `kernel` is at Tile level, `dims` binds every dim.

    A loop whose trip count is known only at run time counts once.
    """
    memory = moved_bytes(parameters, dims) / facts.typical_dram_bandwidth
    half, single = (operations * prod(grid) for operations in product_operations(kernel.body, dims))
    return max(memory, half / facts.typical_bf16_rate + single / facts.typical_f32_rate)


def moved_bytes(parameters: tuple[Parameter, ...], dims: Mapping[str, int]) -> int:
    """Bytes of every tensor, an in-out one counted twice."""
    total = 0
    for parameter in parameters:
        if parameter.kind != "scalar":
            elements = prod(evaluate(size, dims) for size in parameter.shape)
            elements *= parameter.length if parameter.kind == "list" else 1
            total += elements * dtypes.parse(parameter.dtype).bytes * (2 if parameter.role == "inout" else 1)
    return total


def product_operations(block: Block, dims: Mapping[str, int]) -> tuple[int, int]:
    """Operations of the matrix products of one program: with operands of at most 16 bits, and wider ones."""
    half = single = 0
    for op in block.ops:
        if op.name == "mma":
            left = op.operands[0].type
            depth = evaluate(shape_of(left)[-1], dims)
            count = 2 * depth * prod(evaluate(size, dims) for size in shape_of(op.result.type))
            if dtype_of(left).bits <= 16:
                half += count
            else:
                single += count
        times = _trip_count(op, dims) if op.definition.has(COUNTED) else 1
        for region in op.regions:
            inside = product_operations(region, dims)
            half, single = half + times * inside[0], single + times * inside[1]
    return half, single


def _trip_count(loop: object, dims: Mapping[str, int]) -> int:
    try:
        return max(evaluate(loop_progression(loop)[1].count, dims), 0)  # type: ignore[arg-type]
    except KeyError:
        return 1
