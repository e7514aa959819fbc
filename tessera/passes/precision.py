"""Make every rounding of a function an op of its own, and multiply exactly representable f32 operands as what they are.

An op of narrow floats computes in f32 and rounds once. Here that becomes three ops: casts of the operands to f32, which
lose nothing, the op in f32, and an *implicit* cast to the result's dtype. Lowering may skip an implicit cast inside a
kernel (`graph_kernels`), unless the function is `strict`; an explicit one, of `ts.cast` or an annotation, stays.

An f32 product whose operands are casts from 16- or 8-bit floats multiplies those instead: each product is the same
number, so tensor cores of 16-bit operands with f32 accumulators give it; only the order of the additions differs. Where
the right one alone is a cast, from bf16, the left one is multiplied in parts of bf16, unless the function is strict.
"""

from __future__ import annotations

from tessera.dtypes import DType, bf16, f16, f32
from tessera.ir.core import (
    Block,
    Builder,
    Kernel,
    Mapping,
    Op,
    Value,
    clone_op,
    clone_with_regions,
    is_strict,
    new_kernel_like,
)
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.products import SPLIT, product_format
from tessera.ir.types import ScalarType, TileType, dtype_of, shape_of

MOVES = ("permute", "extract", "reshape")  # ops that leave the numbers of a right operand as they are


def precision(function: Kernel) -> Kernel:
    """Exact but for the order of additions in products of what was cast to f32."""
    new, builder, mapping = new_kernel_like(function)
    _Explicit(mapping, is_strict(function)).block(function.body, builder)
    return new


class _Explicit:
    def __init__(self, mapping: Mapping, strict: bool) -> None:
        self.mapping, self.strict = mapping, strict
        self.wide: dict[tuple[Block, Value], Value] = {}  # values cast to f32, by the block that has the cast

    def block(self, block: Block, builder: Builder) -> None:
        for op in block.ops:
            builder.at(op)
            if op.regions:
                clone_with_regions(builder, op, self.mapping, self.block)
            elif op.name == "matmul":
                self._product(op, builder)
            elif _rounds(op):
                self._in_f32(op, builder)
            else:
                clone_op(builder, op, self.mapping)

    def _in_f32(self, op: Op, builder: Builder) -> None:
        operands = [self._widened(self.mapping[value], builder) for value in op.operands]
        wide = builder.value(op.name, *operands, hint=op.result.name, **op.attributes)
        narrow = builder.value("cast", wide, hint=op.result.name, dtype=_narrow(op.result), implicit=True)
        self.mapping[op.result] = narrow

    def _widened(self, value: Value, builder: Builder) -> Value:
        if _narrow(value) is None:
            return value
        key = (builder.block, value)
        if key not in self.wide:
            self.wide[key] = builder.value("cast", value, hint=value.name, dtype=f32, implicit=True)
        return self.wide[key]

    def _product(self, op: Op, builder: Builder) -> None:
        a, b = (self.mapping[value] for value in op.operands)
        sources = [_source(value) for value in (a, b)]
        if op.attributes["precision"] is None and all(source is not None for source in sources):
            a, b = _alike([source for source in sources if source is not None], builder)
        elif op.attributes["precision"] is None and not self.strict and dtype_of(a.type) == f32:
            narrow = _from_bf16(b, builder)
            if narrow is not None:
                self.mapping[op.result] = builder.value("matmul", a, narrow, hint=op.result.name, precision=SPLIT)
                return
        self.mapping[op.result] = builder.value("matmul", a, b, hint=op.result.name, **op.attributes)


def _from_bf16(value: Value, builder: Builder) -> Value | None:
    """The bf16 tensor that an f32 one was cast from, moved as it was."""
    source, op = _source(value), value.defining_op
    if source is not None:
        return source if _narrow(source) == bf16 else None
    if op is None or op.name not in MOVES:
        return None
    source = _from_bf16(op.operands[0], builder)
    return None if source is None else builder.value(op.name, source, hint=value.name, **op.attributes)


def _narrow(value: Value) -> DType | None:
    """The dtype of a tensor of floats of less than 32 bits; None for anything else."""
    type_ = value.type
    narrow = isinstance(type_, TileType) and type_.dtype.is_float and type_.dtype.bits < 32
    return type_.dtype if narrow else None  # type: ignore[union-attr]


def _rounds(op: Op) -> bool:
    """Whether an op of tensors computes in f32 and gives narrow floats."""
    if op.name == "cast" or len(op.results) != 1 or _narrow(op.result) is None:
        return False
    definition = op.definition
    if definition.has(REDUCTION) or definition.has(SCAN):
        # Along another axis it has a kernel of its own, which reads narrow floats and stores what it rounds.
        return negative_axis(op, len(shape_of(op.operands[0].type))) == -1
    return definition.has(ELEMENTWISE)


def _source(value: Value) -> Value | None:
    """What an f32 tensor was cast from, where that is narrower and so the same numbers."""
    op = value.defining_op
    if op is None or op.name != "cast" or isinstance(value.type, ScalarType) or op.attributes["dtype"] != f32:
        return None
    return op.operands[0] if _narrow(op.operands[0]) is not None else None


def _alike(values: list[Value], builder: Builder) -> tuple[Value, Value]:
    """Two narrow operands in dtypes that a product takes; a cast of fp8 to 16 bits loses nothing."""
    a, b = values
    first, second = _narrow(a), _narrow(b)
    assert first is not None and second is not None
    if product_format(first, second) is not None:
        return a, b
    common = f16 if f16 in (first, second) else bf16
    if {first, second} == {f16, bf16}:
        return tuple(builder.value("cast", v, dtype=f32, implicit=True) for v in (a, b))  # type: ignore[return-value]
    casts = [v if _narrow(v) == common else builder.value("cast", v, dtype=common, implicit=True) for v in (a, b)]
    return casts[0], casts[1]
