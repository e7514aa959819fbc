"""Target ops that move a tile through shared memory as one line of elements, so that its shape can change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tessera.errors import SourceError
from tessera.ir import values
from tessera.ir.bounds import lift
from tessera.ir.core import Op
from tessera.ir.opdef import REQUIRED, STRUCTURAL, TARGET, Lowering, define
from tessera.ir.ops.memory import check_landed, expect_buffer, read_buffer, write_window
from tessera.ir.ops.tiles import expect_tile
from tessera.ir.types import TileType, Type, int_shape

TARGET_ONLY = frozenset((TARGET,))


def _check_line(op: Op, shape: tuple[int, ...]) -> None:
    buffer = int_shape(expect_buffer(op, "buffer"))
    if len(buffer) != 1 or buffer[0] != math.prod(shape):
        raise SourceError("TS703", f"{op.name} needs a buffer of one axis with as many elements as the tile")


def _store_type(op: Op) -> tuple[Type, ...]:
    _check_line(op, int_shape(expect_tile(op, "value")))
    return ()


def _store(op: Op, buffer: values.Buffer, value: Any) -> None:
    check_landed(buffer, op.operand("buffer").name)
    count = math.prod(value.shape[1:])
    write_window(buffer, (slice(None), slice(0, count)), lift(lambda x: x.reshape(x.shape[0], count), value))


define(
    "st_flat",
    "buffer value",
    _store_type,
    "stores a register tile in row-major order to a shared buffer of one axis, `vector` bytes an access",
    STRUCTURAL,
    effects={"buffer": "writes"},
    attributes={"vector": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_store,
    lower=Lowering(template="st_shared"),
)


def _load_type(op: Op) -> tuple[Type, ...]:
    buffer, shape = expect_buffer(op, "buffer"), tuple(op.attributes["shape"])
    _check_line(op, shape)
    return (TileType(shape, buffer.dtype, op.attributes["layout"]),)


def _load(op: Op, buffer: values.Buffer) -> Any:
    shape = op.attributes["shape"]
    line = read_buffer(op, buffer, (np.zeros(1, np.int64),), (math.prod(shape),))
    return lift(lambda x: x.reshape(x.shape[0], *shape), line)


define(
    "ld_flat",
    "buffer",
    _load_type,
    "loads a register tile in row-major order from a shared buffer of one axis, `vector` bytes an access",
    STRUCTURAL,
    effects={"buffer": "reads"},
    attributes={"shape": REQUIRED, "layout": REQUIRED, "vector": REQUIRED},
    levels=TARGET_ONLY,
    evaluate=_load,
    lower=Lowering(template="ld_shared"),
)
