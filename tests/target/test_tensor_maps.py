"""Tensor maps: every element of a window lands where the buffer's layout has it, and why a window has no map."""

import itertools

import numpy as np
import pytest

from tessera.dtypes import bf16, f32, f64, fp8_e4m3, i64
from tessera.errors import InternalError
from tessera.ir.core import Block, Builder, Kernel
from tessera.ir.dims import symbol
from tessera.ir.layout_shared import SharedLayout, shared_layout
from tessera.ir.types import BufferType, ListType, ViewType
from tessera.location import Loc
from tessera.target.tensor_maps import TensorMap, mapped_views, transfer_of, why_not

M, N = symbol("M"), symbol("N")


class Made:
    """A kernel with a window of its parameter `x`, whose offsets are program ids times 8."""

    def __init__(self, shape, extents, kept=None, dtype=bf16, length=None, limits=None, attributes=None, role="in"):
        self.kernel = Kernel("k", Block(), {"parameters": (("x", role),), **(attributes or {})}, (Loc("k.py", 1),))
        view = ViewType(shape, dtype)
        self.parameter = self.kernel.body.add_argument(view if length is None else ListType(view, length), "x")
        self.builder = Builder(self.kernel.body, (Loc("k.py", 1),))
        self.extents, self.kept = extents, kept or (True,) * len(extents)
        self.offsets = [self.builder.value("program_id", axis=n % 3, scale=8) for n in range(len(shape))]
        source = self.parameter
        if length is not None:
            self.index = self.builder.value("constant", value=length - 1, dtype=i64)
            source = self.builder.value("element", source, self.index)
        if limits is not None:
            source = self.builder.value("limit", source, *(self.builder.value("size", size=s) for s in limits))
        self.view = self.builder.value("window", source, *self.offsets, extents=self.extents, kept=self.kept)
        self.shape = self.view.type.shape
        self.dtype = dtype

    def buffer(self, **options):
        *leading, columns = self.shape
        return BufferType(
            self.shape, self.dtype, shared_layout(int(np.prod(leading)), columns, self.dtype.bytes, **options)
        )

    def why_not(self, buffer=None, **options):
        return why_not(self.view, buffer or self.buffer(), self.kernel, **options)


def landed(transfer, item):
    """By byte in shared memory, the element of the window that the boxes bring there, innermost axis first."""
    found = {}
    box, swizzle = transfer.map.box, transfer.map.swizzle
    for place in itertools.product(*(range(step.count) for step in transfer.steps)):
        start, first = 0, [0] * len(box)
        for number, step in zip(place, transfer.steps, strict=True):
            start += number * step.bytes
            first[step.axis] += number * step.elements
        assert start % max(128, 8 * swizzle) == 0
        for at, index in enumerate(itertools.product(*(range(size) for size in reversed(box)))):
            byte = start + at * item
            if swizzle:  # bits 4 and up of the address are crossed with bits 7 and up
                byte ^= byte >> 3 & (swizzle - 16)
            assert byte not in found
            found[byte] = tuple(a + b for a, b in zip(first, reversed(index), strict=True))
    return found


SHAPES = [
    # tensor, extents, kept, box, swizzle, boxes
    ((M, 64), (32, 64), None, (64, 32), 128, 1),
    ((M, 256), (64, 256), None, (64, 64), 128, 4),
    ((M, 32), (64, 32), None, (32, 64), 64, 1),
    ((M, 48), (16, 48), None, (16, 16), 32, 3),
    ((M, 8), (16, 8), None, (8, 16), 0, 1),
    ((M, 8), (512, 8), None, (8, 256), 0, 2),
    ((M, 8), (272, 8), None, (8, 136), 0, 2),
    ((4, M, 64), (1, 32, 64), (False, True, True), (64, 32, 1), 128, 1),
    ((4, M, 2, 128), (1, 16, 1, 128), (False, True, False, True), (64, 1, 16, 1), 128, 2),
    ((4, M, 64), (4, 16, 64), None, (64, 16, 4), 128, 1),
    ((2, M, 8), (2, 512, 8), None, (8, 256, 1), 0, 4),
    ((2, 3, M, 2, 64), (2, 3, 8, 1, 64), None, (64, 1, 8, 3, 2), 128, 1),
    ((1024,), (128,), None, (128, 1), 0, 1),
    ((2048,), (1024,), None, (256, 1), 0, 4),
    ((M, 64), (1, 64), None, (64, 1), 0, 1),
]


@pytest.mark.parametrize(("shape", "extents", "kept", "box", "swizzle", "count"), SHAPES)
def test_elements_land_where_the_layout_has_them(shape, extents, kept, box, swizzle, count):
    made = Made(shape, extents, kept)
    assert made.why_not() is None
    buffer = made.buffer()
    transfer = transfer_of(made.view, buffer, made.kernel)
    assert (transfer.map, transfer.count) == (TensorMap("x", box, swizzle), count)
    offsets = tuple((value,) for value in reversed(made.offsets))
    assert transfer.origin == (offsets if len(shape) > 1 else (*offsets, ()))
    found = landed(transfer, 2)
    axes = [len(shape) - 1 - axis for axis, keep in enumerate(made.kept) if keep]
    expected = {}
    for index in np.ndindex(*made.shape):
        *rows, column = index
        row = int(np.ravel_multi_index(rows, made.shape[:-1])) if rows else 0
        place = [0] * len(box)
        for axis, number in zip(axes, index, strict=True):
            place[axis] = number
        expected[buffer.layout.offset(row, column)] = tuple(place)
    assert found == expected


@pytest.mark.parametrize(("dtype", "columns", "swizzle"), [(fp8_e4m3, 128, 128), (f32, 32, 128), (f64, 8, 64)])
def test_elements_of_other_sizes(dtype, columns, swizzle):
    made = Made((M, columns), (16, columns), dtype=dtype)
    transfer = transfer_of(made.view, made.buffer(), made.kernel)
    assert transfer.map == TensorMap("x", (columns, 16), swizzle)


def test_rows_without_a_swizzle():
    made = Made((M, 96), (16, 96))
    plain = made.buffer(swizzle=False)
    assert transfer_of(made.view, plain, made.kernel).map == TensorMap("x", (96, 16), 0)
    wide = Made((M, 512), (16, 512))
    assert wide.why_not(wide.buffer(swizzle=False)) == "no box of at most 256 elements divides rows of 512"


def test_boxes_of_so_many_rows():
    made = Made((M, 128), (64, 128))
    transfer = transfer_of(made.view, made.buffer(), made.kernel, rows=16)
    assert transfer.map.box == (64, 16)
    assert [(s.axis, s.count, s.elements, s.bytes) for s in transfer.steps] == [(1, 4, 16, 2048), (0, 2, 64, 8192)]
    assert Made((M, 128), (24, 128)).why_not(rows=16) == "boxes of 16 rows do not divide 24"


def test_windows_of_windows_and_elements_of_lists():
    made = Made((M, 256), (64, 128), length=3)
    inner = made.builder.value("window", made.view, *made.offsets[:2], extents=(1, 128), kept=(False, True))
    buffer = BufferType((128,), bf16, shared_layout(1, 128, 2))
    transfer = transfer_of(inner, buffer, made.kernel)
    rows, columns = made.offsets
    assert transfer.origin == ((columns, columns), (rows, rows)) and transfer.map.box == (128, 1)
    assert (transfer.index, transfer.length) == (made.index, 3)


REASONS = [
    (Made((M, 64), (32, 64), attributes={"alignment": {"x": 8}}), "'x' is aligned to 8 bytes, and a map needs 16"),
    (Made((M, N), (32, 64)), "steps along axis 0 of 'x' are not known to be multiples of 16 bytes"),
    (Made((M, N), (32, 64), attributes={"divisors": {"N": 4}}), "steps along axis 0 of 'x' are not known"),
    (Made((M, N), (32, 64), attributes={"divisors": {"N": 8}}), None),
    (
        Made((M, 64), (32, 64), attributes={"strides": {"x": (symbol("x.stride0"), 1)}}),
        "steps along axis 0 of 'x' are not known",
    ),
    (
        Made((M, 64), (32, 64), attributes={"strides": {"x": (symbol("x.stride0"), 1)}, "divisors": {"x.stride0": 8}}),
        None,
    ),
    (
        Made((M, 64), (32, 64), attributes={"strides": {"x": (symbol("x.stride0"), symbol("x.stride1"))}}),
        "elements of a row of 'x' are not neighbours in memory",
    ),
    (Made((M, 64), (32, 1), (True, False)), "the window of 'x' takes single elements of its last axis"),
    (Made((2, 2, 2, 2, M, 64), (1, 1, 1, 1, 8, 64)), "'x' has 6 axes, and a tensor map 1 to 5"),
    (Made((M, 64), (32, 64), limits=(N, 64)), "the window of 'x' has a limit that is not the end of the tensor"),
    (Made((M, 64), (32, 64), limits=(M, 64)), None),
    (Made((M, 64), (32, 60)), "the buffer is padded to 32 x 64, and TMA fills no padding"),
    (Made((M, 128), (20, 128)), "its boxes do not begin at multiples of 1024 bytes of shared memory"),
    (Made((M, 64), (257, 64)), "its boxes do not begin at multiples of 1024 bytes of shared memory"),
    (Made((M, 64), (20, 64)), None),
]  # fmt: skip


@pytest.mark.parametrize(("made", "reason"), REASONS, ids=range(len(REASONS)))
def test_why_not(made, reason):
    found = made.why_not()
    assert found == reason if reason is None else found.startswith(reason)
    if reason is not None:
        with pytest.raises(InternalError, match="no tensor map copies this window"):
            transfer_of(made.view, made.buffer(), made.kernel)


def test_what_depends_on_the_buffer():
    made = Made((M, 64), (20, 64))
    assert made.why_not(stages=2) == "its boxes do not begin at multiples of 1024 bytes of shared memory"
    assert made.why_not(BufferType((20, 64), bf16)) is None
    assert made.why_not(BufferType((20, 64), f32)) == "the buffer has another shape or dtype than the window"
    padded = SharedLayout(24, 64, 2, 8, True)
    assert made.why_not(BufferType((20, 64), bf16, padded)).startswith("the buffer is padded to 24 x 64")


def test_a_tensor_that_the_kernel_writes_is_not_loaded():
    made = Made((M, 64), (32, 64), role="inout")
    zero = made.builder.value("constant", value=0.0)
    tile = made.builder.value("full", zero, shape=(32, 64), dtype=bf16)
    assert made.why_not(load=True) is None
    made.builder.op("store", [made.view, tile])
    assert made.why_not(load=True) == "'x' is also written by this kernel"
    assert made.why_not() is None


def test_views_that_only_maps_look_at():
    made = Made((M, 64), (32, 64))
    buffer = made.builder.value("alloc_shared", shape=(32, 64), dtype=bf16)
    assert mapped_views(made.kernel.body) == set()
    made.builder.op("tma_store", [made.view, buffer])
    assert mapped_views(made.kernel.body) == {made.view}
    made.builder.op("load", [made.view])
    assert mapped_views(made.kernel.body) == set()
