"""Products whose left operand is computed in registers, k-block by k-block.

All of such an operand at once would take registers for every k; computed from buffers, it can be made anew for each
k-block: a loop over them reads that part of the buffers, computes the fragment and multiplies. Exact: a product adds
its k-blocks in the same order.
"""

from __future__ import annotations

from tessera.dtypes import i64
from tessera.ir.core import Block, Builder, Mapping, Op, Value
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.ops.tiles import format_of, k_block
from tessera.ir.types import TileType, dtype_of, int_shape
from tessera.passes.register_operands import MMA_LIMIT, SPREAD, computed_grid
from tessera.target.fragments import product_atom


def may_be_sliced(product: Op, mapping: Mapping) -> bool:
    """Whether the left operand is computed, element by element, from reads of buffers alone.

    `mapping`: what the new kernel has for old values. The k-blocks of the operand are whole.
    """
    value = product.operands[0]
    atom = product_atom(format_of(product))
    # Fragments that are loaded are converted on the way where they are of fp8; those that are computed are not.
    if atom is None or product.attributes["transpose_a"] or dtype_of(value.type).name != atom.operand:
        return False
    if int_shape(value.type)[1] % k_block(product):
        return False
    return _readable(value, mapping)


def _readable(value: Value, mapping: Mapping) -> bool:
    made = mapping[value].defining_op if value in mapping else value.defining_op
    if made is None:
        return False
    if made.name == "read":
        return True
    op = value.defining_op
    if op is None or op.regions:
        return False
    tiles = [operand for operand in op.operands if isinstance(operand.type, TileType)]
    if op.name in SPREAD:
        return op.name == "full"
    last = int_shape(value.type)[-1]
    if not tiles or any(int_shape(tile.type)[-1] != last for tile in tiles):
        return False
    same_rank = all(len(int_shape(tile.type)) == len(int_shape(value.type)) for tile in tiles)
    passes = op.name == "reshape" or op.definition.has(ELEMENTWISE) and same_rank
    return passes and all(_readable(tile, mapping) for tile in tiles)


def sliced_product(op: Op, right: Value, builder: Builder, mapping: Mapping, warps: int) -> Value:
    """The product as a loop over k-blocks; `right` is the read of the right operand's buffer."""
    depth, step = int_shape(op.operands[0].type)[1], k_block(op)
    if len(op.operands) > 2:
        start = mapping[op.operands[2]]
    else:
        result = op.result.type
        assert isinstance(result, TileType)
        zero = builder.value("constant", value=0.0, dtype=result.dtype)
        start = builder.value("full", zero, shape=result.shape, dtype=result.dtype)
    bounds = [builder.value("constant", value=value, dtype=i64) for value in (0, depth, step)]
    body = Block()
    k, acc = body.add_argument(bounds[0].type, "k"), body.add_argument(start.type, op.result.name)
    inner = builder.inner(body)
    left = _slice(op.operands[0], k, step, inner, mapping, {})
    along = 1 if op.attributes["transpose_b"] else 0
    right = _read_part(right, k, step, inner, along)
    inner.op("yield", [inner.at(op).value("mma", left, right, acc, hint=op.result.name, **op.attributes)])
    return (
        builder.at(op)
        .op("for", [*bounds, start], [body], [op.result.name], unroll=_unroll(op, depth // step, warps))
        .result
    )


def _unroll(op: Op, blocks: int, warps: int) -> int:
    """How many k-blocks are one straight line."""
    atom = product_atom(format_of(op))
    assert atom is not None
    (m, n), (rows, columns) = int_shape(op.result.type), computed_grid(op, warps)
    cost = -(-m // (atom.m * rows)) * -(-n // (atom.n * columns))
    return max(d for d in range(1, blocks + 1) if blocks % d == 0 and (d == 1 or d * cost <= MMA_LIMIT))


def _slice(value: Value, k: Value, step: int, builder: Builder, mapping: Mapping, made: dict[Value, Value]) -> Value:
    """Columns k to k + step of a computed tile."""
    if value in made:
        return made[value]
    there = mapping[value] if value in mapping else None
    op = value.defining_op
    if there is not None and there.defining_op is not None and there.defining_op.name == "read":
        result = _read_part(there, k, step, builder, len(int_shape(value.type)) - 1)
    else:
        assert op is not None
        operands = [
            _slice(v, k, step, builder, mapping, made) if isinstance(v.type, TileType) else mapping[v]
            for v in op.operands
        ]
        changed = {"shape": (*int_shape(value.type)[:-1], step)} if "shape" in op.attributes else {}
        result = builder.at(op).value(op.name, *operands, hint=value.name, **{**op.attributes, **changed})
    made[value] = result
    return result


def _read_part(read: Value, k: Value, step: int, builder: Builder, axis: int) -> Value:
    """A part of a read of a buffer, from k on along an axis."""
    op = read.defining_op
    assert op is not None
    buffer, *offsets = op.operands
    extents = list(int_shape(read.type))
    extents[axis] = step
    if not offsets:
        zero = builder.value("constant", value=0, dtype=i64)
        offsets = [zero] * len(extents)
    offsets[axis] = k if not op.operands[1:] else builder.value("add", offsets[axis], k)
    return builder.at(op).value("read", buffer, *offsets, extents=tuple(extents), hint=read.name)


__all__ = ["may_be_sliced", "sliced_product"]
