"""How TMA copies a window of a tensor: the tensor map that describes the tensor, and the boxes that make up a buffer.

A map says where a tensor lies (base, sizes, strides) and how large a box is that one copy moves. In shared memory a
box is dense, its innermost axis first, and the 16-byte chunks of its rows are permuted by bits of their address (the
swizzle), which are the row's as long as the box begins where the permutation does. So a box is one panel of a
`SharedLayout` wide, and as many rows long as follow one another in the buffer and in the box. Axes of a map count from
the innermost one, against the order of shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from tessera.errors import InternalError
from tessera.ir.affine import Window, expression, window_of
from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.dims import divisor
from tessera.ir.layout_shared import SharedLayout, shared_layout
from tessera.ir.strides import parameter_strides
from tessera.ir.types import BufferType, ListType, ViewType, int_shape, tensor_type
from tessera.target.reuse import root, written_tensors

# What the hardware asks for, in bytes: addresses and strides of a tensor; a box in shared memory.
TENSOR_ALIGNMENT = 16
BOX_ALIGNMENT = 128
MAX_RANK = 5
MAX_BOX = 256  # elements along an axis
TMA_OPS = frozenset(("tma_load", "tma_store"))
SWIZZLE_PERIOD = 8  # rows after which chunks lie as before, counted in swizzle widths


@dataclass(frozen=True)
class TensorMap:
    """A tensor of the parameter `parameter`, or each one in that list, cut in boxes.

    `box`: elements per axis; `swizzle`: bytes (0, 32, 64 or 128) inside which chunks are permuted. A tensor of one axis
    is the only row of one of two.
    """

    parameter: str
    box: tuple[int, ...]
    swizzle: int


@dataclass(frozen=True)
class Step:
    """`count` boxes, each `elements` further along `axis` of the tensor and `bytes` further in the buffer."""

    axis: int
    count: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Transfer:
    """The boxes between a window and a buffer: one for each combination of the `steps`, the outermost first.

    `origin`: for each axis of the map the scalars that add up to the first element; `index`: which tensor of a list.
    `length`: how many tensors that list has, None for a tensor.
    """

    map: TensorMap
    origin: tuple[tuple[Value, ...], ...]
    steps: tuple[Step, ...]
    index: Value | None = None
    length: int | None = None

    @property
    def count(self) -> int:
        return prod(step.count for step in self.steps)


def transfer_of(view: Value, buffer: BufferType, kernel: Kernel, rows: int | None = None) -> Transfer:
    """The boxes of a copy between a view and a buffer; `rows`: that each box takes of the rows, as many as fit if None.

    Raises InternalError TS901 where `why_not` gives a reason.
    """
    reason = tensor_reason(view, kernel) or _buffer_reason(view, buffer, 1, rows)
    window, chain = window_of(view), list(_chain(view))
    boxes = reason or _boxes(window, _layout(buffer), int_shape(buffer), rows)
    if isinstance(boxes, str):
        raise InternalError("TS901", f"no tensor map copies this window: {boxes}")
    box, swizzle, steps = boxes
    element = chain[-1] if chain and chain[-1].name == "element" else None
    list_type = window.parameter.type
    return Transfer(
        TensorMap(window.parameter.name, box, swizzle),
        _origin(chain, len(window.shape)),
        steps,
        None if element is None else element.operand("index"),
        list_type.length if isinstance(list_type, ListType) else None,
    )


def why_not(
    view: Value, buffer: BufferType, kernel: Kernel, *, stages: int = 1, rows: int | None = None, load: bool = False
) -> str | None:
    """Why TMA cannot copy between a view and a buffer, as a clause; None where it can.

    A buffer without a layout is taken in the swizzled one of `shared_layout`. `stages`, `rows`: as the buffer is
    allocated, and as of `transfer_of`. With `load` the tensor must not be written by the kernel either: what threads
    write is not ordered before what TMA reads.
    """
    reason = tensor_reason(view, kernel) or _buffer_reason(view, buffer, stages, rows)
    if reason is None and load and root(view) in written_tensors(kernel):
        return f"'{root(view).name}' is also written by this kernel"
    return reason


def rows_of_part(buffer: BufferType, parts: int) -> int | None:
    """How many rows a box takes where each of so many programs loads a part of a buffer for all of them, so that the
    boxes of a part follow one another down the buffer; None where rows do not divide.
    """
    extent = next((size for size in reversed(int_shape(buffer)[:-1]) if size > 1), 1)
    if extent % parts:
        return None
    return next(rows for rows in range(min(extent // parts, MAX_BOX), 0, -1) if extent // parts % rows == 0)


def mapped_views(body: Block) -> set[Value]:
    """The windows that only tensor maps look at: nobody needs their address."""
    users = uses(body)
    found: set[Value] = set()
    for op in reversed([op for op in body.walk() if op.results and isinstance(op.results[0].type, ViewType)]):
        named = users.get(op.result, ())
        if named and all(user.name in TMA_OPS or user.results and user.results[0] in found for user in named):
            found.add(op.result)
    return found


# ---- the tensor ----------------------------------------------------------------------------------------------------


def tensor_reason(view: Value, kernel: Kernel) -> str | None:
    window = window_of(view)
    name, shape, dims = window.parameter.name, window.shape, kernel.attributes.get("divisors", {})
    type_ = tensor_type(view.type)
    assert type_ is not None
    item = type_.dtype.bytes
    if item not in (1, 2, 4, 8):
        return f"its elements have {item} bytes"
    if not 1 <= len(shape) <= MAX_RANK:
        return f"'{name}' has {len(shape)} axes, and a tensor map 1 to {MAX_RANK}"
    steps = parameter_strides(name, shape, kernel.attributes)
    if not window.kept[-1]:
        return f"the window of '{name}' takes single elements of its last axis"
    if steps[-1] != 1:
        return f"elements of a row of '{name}' are not neighbours in memory"
    aligned = kernel.attributes.get("alignment", {}).get(name, TENSOR_ALIGNMENT)
    if aligned % TENSOR_ALIGNMENT:
        return f"'{name}' is aligned to {aligned} bytes, and a map needs {TENSOR_ALIGNMENT}"
    for axis, (size, step) in enumerate(zip(shape[:-1], steps[:-1], strict=True)):
        if size != 1 and divisor(step, dims) * item % TENSOR_ALIGNMENT:
            return f"steps along axis {axis} of '{name}' are not known to be multiples of {TENSOR_ALIGNMENT} bytes"
    if any(op.name == "limit" and not _keeps_all(op) for op in _chain(view)):
        return f"the window of '{name}' has a limit that is not the end of the tensor"
    return None


def _chain(view: Value) -> Iterator[Op]:
    """The ops through which a view was made of a parameter, the last one first."""
    while (op := view.defining_op) is not None:
        yield op
        view = op.operands[0]


def _keeps_all(limit: Op) -> bool:
    """Whether a limit is where the view ends anyway, and the view all of its tensor."""
    view = limit.operands[0]
    if any(op.name == "window" for op in _chain(view)) or not isinstance(view.type, ViewType):
        return False
    return all(expression(end) == size for end, size in zip(limit.operands[1:], view.type.shape, strict=True))


def _origin(chain: list[Op], rank: int) -> tuple[tuple[Value, ...], ...]:
    """The offsets of all windows along each axis of the map; `rank` axes of the tensor."""
    offsets: list[list[Value]] = [[] for _ in range(rank)]
    axes = list(range(rank))
    for op in reversed(chain):
        if op.name == "window":
            for axis, offset in zip(axes, op.operands[1:], strict=True):
                offsets[axis].append(offset)
            axes = [axis for axis, keep in zip(axes, op.attributes["kept"], strict=True) if keep]
    found = [tuple(values) for values in reversed(offsets)]
    return tuple(found) if rank > 1 else (found[0], ())


# ---- the buffer ----------------------------------------------------------------------------------------------------


def _buffer_reason(view: Value, buffer: BufferType, stages: int, rows: int | None) -> str | None:
    type_ = view.type
    assert isinstance(type_, ViewType)
    if (type_.shape, type_.dtype) != (buffer.shape, buffer.dtype) or not buffer.shape:
        return "the buffer has another shape or dtype than the window"
    layout, shape = _layout(buffer), int_shape(buffer)
    if (layout.rows, layout.cols) != (prod(shape[:-1]), shape[-1]):
        return f"the buffer is padded to {layout.rows} x {layout.cols}, and TMA fills no padding"
    boxes = _boxes(window_of(view), layout, shape, rows)
    if isinstance(boxes, str):
        return boxes
    _, swizzle, steps = boxes
    period = max(BOX_ALIGNMENT, SWIZZLE_PERIOD * swizzle)
    if any(step.bytes % period for step in steps) or stages > 1 and layout.bytes % period:
        return f"its boxes do not begin at multiples of {period} bytes of shared memory"
    return None


def _layout(buffer: BufferType) -> SharedLayout:
    if buffer.layout is not None:
        return buffer.layout
    *leading, columns = int_shape(buffer)
    return shared_layout(prod(leading), columns, buffer.dtype.bytes)


Boxes = tuple[tuple[int, ...], int, tuple[Step, ...]]


def _boxes(window: Window, layout: SharedLayout, shape: tuple[int, ...], rows: int | None) -> Boxes | str:
    """Box, swizzle and steps for a buffer of `shape`; or why there are none."""
    columns, swizzle = _panel(layout)
    if columns is None:
        return f"no box of at most {MAX_BOX} elements divides rows of {layout.cols}"
    rank = len(window.shape)
    box = [columns] + [1] * max(rank - 1, 1)
    panels = layout.cols // columns
    steps = [Step(0, panels, columns, layout.rows * columns * layout.itemsize)] if panels > 1 else []
    before, dense = 1, True  # rows of the axes that are done; whether the box holds them all
    for axis, extent in reversed(list(zip(window.kept_axes[:-1], shape[:-1], strict=True))):
        if extent == 1:
            continue
        taken = _rows_of_box(extent, rows if before == 1 else None, dense)
        if taken is None:
            return f"boxes of {rows} rows do not divide {extent}"
        box[rank - 1 - axis] = taken
        if taken < extent:
            bytes_ = before * taken * columns * layout.itemsize
            steps.insert(0, Step(rank - 1 - axis, extent // taken, taken, bytes_))
            dense = False
        before *= extent
    return tuple(box), swizzle, tuple(steps)


def _panel(layout: SharedLayout) -> tuple[int | None, int]:
    """The columns of a box, if there is one, and its swizzle. One row lies in order whatever its layout."""
    if layout.rows > 1:
        columns = layout.panel_columns
        return columns if columns <= MAX_BOX else None, layout.pitch if layout.is_permuted else 0
    if layout.cols <= MAX_BOX:
        return layout.cols, 0
    step = BOX_ALIGNMENT // layout.itemsize
    return next((n for n in range(MAX_BOX // step * step, 0, -step) if layout.cols % n == 0), None), 0


def _rows_of_box(extent: int, wanted: int | None, dense: bool) -> int | None:
    """How much of an axis a box takes: `wanted`, or as much as it can where it holds all of the axes inside."""
    if wanted is not None:
        return wanted if extent % wanted == 0 else None
    if not dense:
        return 1
    return next(count for count in range(min(extent, MAX_BOX), 0, -1) if extent % count == 0)
