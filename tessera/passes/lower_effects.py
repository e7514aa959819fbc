"""Effects that leave the program. Most ops keep their names; a print needs its tiles where one thread reaches them."""

from __future__ import annotations

from tessera.ir.core import Builder, Op
from tessera.ir.types import TileType, dtype_of, int_shape, tile_layout
from tessera.passes.lowering import Lowering, rule


@rule("print")
def lower_print(lowering: Lowering, op: Op, builder: Builder) -> None:
    """Tiles go through shared memory, from where thread 0 prints them in order."""
    shown = []
    for value in op.operands:
        new = lowering.mapping[value]
        if isinstance(new.type, TileType):
            shape, dtype = int_shape(new.type), dtype_of(new.type)
            buffer = lowering.scratch(builder, shape, dtype, value.name)
            zeros = lowering.zeros(builder, len(shape))
            vector = lowering.shared_vector(tile_layout(new.type), dtype, zeros)
            builder.op("st_shared", [buffer, new, *zeros], vector=vector)
            new = buffer
        shown.append(new)
    builder.op("print", shown, format=op.attributes["format"])
