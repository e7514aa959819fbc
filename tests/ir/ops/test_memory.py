"""Windows, buffers and asynchronous copies: masks at the edges, and every wrong access an error."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from op_harness import bar, evaluate, make

from tessera.dtypes import bf16, f32, i64
from tessera.errors import SourceError
from tessera.ir.bounds import Bar
from tessera.ir.types import BufferType, ScalarType, TileType, ViewType
from tessera.ir.values import Buffer, Tensor, View

pytestmark = pytest.mark.filterwarnings("error")
INDEX = ScalarType(i64)


def tensor(*shape, dtype=np.float32):
    data = np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape).astype(dtype)
    return View.whole(Tensor(data, {np.float32: f32}.get(dtype, bf16)))


def window(view, offsets, extents, kept=None):
    kept = kept or (True,) * len(extents)
    op = make("window", ViewType(view.shape, view.dtype), *[INDEX] * len(offsets), extents=extents, kept=kept)
    return evaluate(op, view, *(np.asarray(o, np.int64) for o in offsets))


def load(view):
    return evaluate(make("load", ViewType(view.shape, view.dtype)), view)


def store(view, tile):
    evaluate(make("store", ViewType(view.shape, view.dtype), TileType(view.shape, view.dtype)), view, tile)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_load_is_zero_outside_the_tensor(dtype):
    view = tensor(3, 5, dtype=dtype)
    padded = np.zeros((13, 15), np.float32)
    padded[4:7, 4:9] = view.tensor.data
    rows, columns = [-4, 0, 2, 8], [-3, 1, 4, 0]
    tiles = load(window(view, [rows, columns], (4, 3)))
    assert tiles.dtype == np.float32
    for p, (row, column) in enumerate(zip(rows, columns, strict=True)):
        wanted = np.zeros((4, 3), np.float32)
        for i in range(4):
            for j in range(3):
                if 0 <= row + i < 3 and 0 <= column + j < 5:
                    wanted[i, j] = view.tensor.data[row + i, column + j]
        np.testing.assert_array_equal(tiles[p], wanted)


def test_windows_of_windows_drop_axes_and_end_in_scalars():
    view = tensor(2, 4, 5)
    plane = window(view, [[1, 0], [1], [0]], (1, 3, 5), (False, True, True))
    assert plane.shape == (3, 5)
    inner = window(plane, [[1], [2]], (1, 3), (False, True))
    np.testing.assert_array_equal(load(inner), view.tensor.data[[1, 0], 2, 2:5])
    scalar = window(inner, [[1, 0]], (1,), (False,))
    assert scalar.shape == ()
    np.testing.assert_array_equal(load(scalar), view.tensor.data[[1, 0], 2, [3, 2]])


def test_a_single_index_outside_is_an_error():
    view = tensor(2, 4)
    for index in (-1, 2):
        outside = window(view, [[0, index], [0]], (1, 4), (False, True))
        with pytest.raises(SourceError, match=f"TS504.*index {index} is outside axis 0"):
            load(outside)
        with pytest.raises(SourceError, match="TS504"):
            store(outside, np.ones((1, 4), np.float32))


def test_a_tensor_without_elements_reads_as_zero():
    view = View.whole(Tensor(np.zeros((0, 4), np.float32), f32))
    np.testing.assert_array_equal(load(window(view, [[0], [0]], (2, 4))), np.zeros((1, 2, 4)))
    np.testing.assert_array_equal(load(View.whole(Tensor(np.float32(3).reshape(()), f32))), [3])


def test_a_store_is_masked_rounds_and_keeps_the_last_program():
    data = np.zeros((3, 4), ml_dtypes.bfloat16)
    view = View.whole(Tensor(data, bf16))
    tiles = np.stack([np.full((2, 3), 1.00390625), np.full((2, 3), 7.0)]).astype(np.float32)
    store(window(view, [[0, 1], [2, 2]], (2, 3)), tiles)
    np.testing.assert_array_equal(data.astype(np.float32), [[0, 0, 1, 1], [0, 0, 7, 7], [0, 0, 7, 7]])
    store(window(view, [[-1], [-2]], (2, 3)), np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    np.testing.assert_array_equal(data[0].astype(np.float32), [5, 0, 1, 1])


def test_a_store_of_bars_rounds_explicitly():
    held = Bar(np.zeros(2), np.zeros(2))
    view = View.whole(Tensor(held, bf16))
    store(view, bar([[1.001, 1.003]], [[0.0, 0.0015]]))
    np.testing.assert_array_equal(held.r, [1.0, 1.0])
    np.testing.assert_array_equal(held.e, [0.0, 2.0**-7])


BUFFER = BufferType((4, 6), bf16)


def read(buffer, *offsets, extents=None):
    return evaluate(
        make("read", BUFFER, *[INDEX] * len(offsets), extents=extents),
        buffer,
        *(np.asarray(o, np.int64) for o in offsets),
    )


def write(buffer, tile, *offsets):
    op = make("write", BUFFER, TileType(tile.shape[1:], f32), *[INDEX] * len(offsets))
    evaluate(op, buffer, tile, *(np.asarray(o, np.int64) for o in offsets))


def test_buffer_windows_per_program():
    buffer = Buffer.new(2, (4, 6), bf16, reference=False)
    whole = np.arange(48, dtype=np.float32).reshape(2, 4, 6) * 1.0001
    write(buffer, whole)
    np.testing.assert_array_equal(read(buffer), np.arange(48).reshape(2, 4, 6))
    write(buffer, np.full((1, 2, 2), -1.0, np.float32), [0, 2], [4])
    part = read(buffer, [0, 2], [3], extents=(2, 3))
    np.testing.assert_array_equal(part, [[[3, -1, -1], [9, -1, -1]], [[39, -1, -1], [45, -1, -1]]])


def test_reads_before_writes_and_outside_are_errors():
    buffer = Buffer.new(2, (4, 6), bf16, reference=False)
    with pytest.raises(SourceError, match="TS503"):
        read(buffer)
    write(buffer, np.ones((1, 2, 6), np.float32), [0], [0])
    assert (read(buffer, [0], [0], extents=(2, 6)) == 1).all()
    with pytest.raises(SourceError, match="TS503"):
        read(buffer, [1], [0], extents=(2, 6))
    with pytest.raises(SourceError, match="TS504"):
        read(buffer, [3], [0], extents=(2, 6))
    with pytest.raises(SourceError, match="TS504"):
        write(buffer, np.ones((1, 2, 6), np.float32), [0, -1], [0])


@pytest.mark.parametrize("reference", [False, True])
def test_a_copy_lands_at_its_wait(reference):
    view = tensor(3, 6, dtype=ml_dtypes.bfloat16)
    source = view if not reference else View.whole(Tensor(bar(view.tensor.data.astype(np.float64), 0.5), bf16))
    buffer = Buffer.new(2, (4, 6), bf16, reference)
    op = make("copy_async", BUFFER, ViewType((4, 6), bf16))
    token = evaluate(op, buffer, window(source, [[0, 1], [0]], (4, 6)))
    with pytest.raises(SourceError, match="TS502"):
        read(buffer)
    with pytest.raises(SourceError, match="TS502"):
        write(buffer, np.zeros((1, 4, 6), np.float32))
    with pytest.raises(SourceError, match="TS502"):
        evaluate(op, buffer, window(source, [[0], [0]], (4, 6)))
    evaluate(make("wait", op.result.type), token)
    evaluate(make("wait", op.result.type), token)
    landed = read(buffer)
    landed = landed.r if reference else landed
    np.testing.assert_array_equal(landed[1, :2], view.tensor.data[1:].astype(np.float32))
    np.testing.assert_array_equal(landed[1, 2:], 0)


def test_copies_do_not_convert():
    with pytest.raises(SourceError, match="TS204"):
        make("copy_async", BUFFER, ViewType((4, 6), f32))
    with pytest.raises(SourceError, match="TS301"):
        make("copy_async", BUFFER, ViewType((4, 7), bf16))
