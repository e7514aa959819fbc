"""Tile kernels made by the compiler: what kernels of functions are built with, and those of row groups.

A row kernel sees its tensors as matrices: all axes but the last are rows, and a program takes a block of them, whole
rows each. Tile-and-fuse then slices the columns, and the depth of a product, as it does for kernels of authors.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.dtypes import DType, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Op, Value, merge_origins
from tessera.ir.dims import Size, cdiv, symbol
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.types import ScalarType, Shape, TileType, ViewType, dtype_of, shape_of
from tessera.location import Loc
from tessera.passes.fusion_cost import Sizes, count, power_of_two, program_rows
from tessera.passes.graph_access import Access, access, rows_in_place
from tessera.passes.graph_groups import (
    Group,
    columns_of,
    is_alias,
    is_free,
    is_made_again,
    is_scalar_op,
    is_view,
    one_row,
    rows_of,
)

LARGEST_ROW = 1 << 15


class KernelMaker:
    """Builds one Tile kernel: its parameters, its grid, windows of its tensors."""

    def __init__(self, origin: Sequence[Loc]) -> None:
        self.body = Block()
        self.builder = Builder(self.body, tuple(origin))
        self.origin = tuple(origin)
        self.roles: list[tuple[str, str]] = []
        self.dims: dict[str, Size] = {}  # of the kernel, over the function's
        self.grid: tuple[Size, ...] = (1,)
        self.tensors: dict[str, Value] = {}  # by parameter, the function's value
        self.scalars: dict[str, Value] = {}

    def dim(self, name: str, size: Size) -> Size:
        """A dim of the kernel for a size of the function; a size that is a number stays one."""
        if isinstance(size, int):
            return size
        self.dims[name] = size
        return symbol(name)

    def dim_of(self, size: Size) -> Size:
        """The dim of the kernel that a size of the function is, an old one if one is equal."""
        for name, known in self.dims.items():
            if known == size:
                return symbol(name)
        return self.dim(f"N{len(self.dims)}", size)

    def view(self, value: Value, shape: Shape, role: str = "in", dtype: DType | None = None) -> Value:
        name = f"{'out' if role == 'out' else 'in'}{sum(r == role for _, r in self.roles)}"
        self.roles.append((name, role))
        self.tensors[name] = value
        type_ = value.type
        assert isinstance(type_, TileType)
        return self.body.add_argument(ViewType(shape, dtype or type_.dtype), name)

    def scalar(self, value: Value) -> Value:
        assert isinstance(value.type, ScalarType)
        name = f"scalar{len(self.scalars)}"
        self.roles.append((name, "in"))
        self.scalars[name] = value
        return self.body.add_argument(value.type, name)

    def index(self, size: Size) -> Value:
        if isinstance(size, int):
            return self.builder.value("constant", value=size, dtype=i64)
        return self.builder.value("size", size=size)

    def programs(self, axes: Sequence[tuple[Size, int]]) -> list[Value]:
        """Makes the grid: for each (size, block) the offset of this program's block. Fast axes come first."""
        counts = [cdiv(size, block) for size, block in axes]
        if len(axes) <= 3:
            self.grid = tuple(counts) or (1,)
            return [self.builder.value("program_id", axis=axis, scale=block) for axis, (_, block) in enumerate(axes)]
        self.grid = (*counts[:2], count(counts[2:]))
        offsets = [self.builder.value("program_id", axis=axis, scale=axes[axis][1]) for axis in range(2)]
        rest = self.builder.value("program_id", axis=2)
        for (_, block), number in zip(axes[2:], counts[2:], strict=True):
            one = self.builder.value("mod", rest, self.index(number))
            offsets.append(self.builder.value("mul", one, self.index(block)) if block != 1 else one)
            rest = self.builder.value("floordiv", rest, self.index(number))
        return offsets

    def window(
        self, view: Value, offsets: Sequence[Value | Size], extents: Sequence[int], kept: Sequence[bool]
    ) -> Value:
        indices = [value if isinstance(value, Value) else self.index(value) for value in offsets]
        return self.builder.value("window", view, *indices, extents=tuple(extents), kept=tuple(kept))

    def load(self, view: Value) -> Value:
        return self.builder.value("load", view)

    def store(self, view: Value, tile: Value) -> None:
        self.builder.op("store", [view, tile])

    def kernel(self, name: str) -> Kernel:
        order = {p.name: p for p in self.body.arguments}
        attributes = {
            "parameters": tuple((name, role) for name, role in self.roles if name in order),
            "dims": tuple(self.dims),
            "shape_dims": (),
            "grid": self.grid,
        }
        return Kernel(name, self.body, attributes, self.origin)


class RowKernel:
    """The kernel of a row group."""

    def __init__(self, group: Group, sizes: Sizes, skipped: frozenset[Op] = frozenset()) -> None:
        self.group, self.sizes, self.skipped = group, sizes, skipped
        self.inside = set(group.ops)
        self.maker = KernelMaker(merge_origins(*(op.origin for op in group.ops)))
        self.made: dict[Value, Value] = {}
        self.indices: list[Value] = []  # of a batch, one per leading axis
        self.flat = self._is_flat()
        if self.flat:
            self._grid_of_elements()
        else:
            self._grid_of_rows()
        for op in group.ops:
            if not _is_lazy(op):
                self._make(op)
        for value in group.outputs:
            self._need(value)
            self.maker.store(self._window(self._view(value, "out"), value), self.made[value])

    # -- shapes

    def _is_flat(self) -> bool:
        """Whether every tensor has the same shape, and every op looks at one element at a time.

        An index is the number of an element where there is one axis.
        """
        shapes, indices = set(), False
        for op in self.group.ops:
            if is_view(op) or not (op.definition.has(ELEMENTWISE) or is_free(op)):
                return False
            for value in (*op.operands, *op.results):
                indices |= op.name == "iota"
                if isinstance(value.type, TileType):
                    shapes.add(value.type.shape)
        return len(shapes) == 1 and not (indices and len(shapes.pop()) > 1)

    def _grid_of_elements(self) -> None:
        shape = shape_of(self.group.outputs[0].type)
        total = count(shape)
        block = min(1024, 1 << max(self.sizes.guess(total) - 1, 0).bit_length())
        self.rows: Size = self.maker.dim("T", total)
        self.block = block
        self.offsets = self.maker.programs([(self.rows, block)])

    def _grid_of_rows(self) -> None:
        rows = self.group.rows
        batch, own = (rows[:-1], rows[-1:]) if self.group.batched else ((), rows)
        self.rows = self.maker.dim("M", count(own))
        self.batch = self.maker.dim("P", count(batch))
        widest = max(self.sizes.fix(columns_of(shape_of(v.type))) for v in self._tensors())
        if not self.group.products and widest > LARGEST_ROW:
            raise SourceError(
                "TS501",
                f"a row of {widest} elements does not fit a program, which holds {LARGEST_ROW}; reshape the tensor so "
                "that its last axis is shorter",
                self.group.ops[0].loc,
            )
        self.block = program_rows(self.group.ops, widest, count(own), self.sizes)
        axes: list[tuple[Size, int]] = [(self.rows, self.block)]
        self.offsets = self.maker.programs([*axes, (self.batch, 1)] if self.group.batched else axes)

    def _tensors(self) -> list[Value]:
        """The tensors of which programs hold rows."""
        found: dict[Value, None] = {}
        for op in self.group.ops:
            operands = op.operands[:1] if op.name == "matmul" or is_view(op) or is_alias(op) else op.operands
            if not _is_lazy(op):
                found.update(dict.fromkeys((*operands, *op.results)))
        found.update(dict.fromkeys(self.group.outputs))
        return [value for value in found if isinstance(value.type, TileType)]

    def _one_row(self, value: Value) -> bool:
        """Whether all rows of the group share the one row of `value`."""
        shape = shape_of(value.type)
        return rows_of(shape) != self.group.rows and one_row(shape)

    def _tile_shape(self, value: Value) -> tuple[int, ...]:
        if self.flat:
            return (self.block,)
        rows = 1 if self._one_row(value) else self.block
        return (rows, self.sizes.fix(columns_of(shape_of(value.type))))

    # -- values

    def _view(self, value: Value, role: str) -> Value:
        if self.flat:
            return self.maker.view(value, (self.rows,), role)
        columns = self.sizes.fix(columns_of(shape_of(value.type)))
        if self._one_row(value):
            return self.maker.view(value, (1, columns), role)
        shape = (self.batch, self.rows, columns) if self.group.batched else (self.rows, columns)
        return self.maker.view(value, shape, role)

    def _window(self, view: Value, value: Value) -> Value:
        shape = self._tile_shape(value)
        if self.flat:
            return self.maker.window(view, self.offsets, shape, (True,))
        if self._one_row(value):
            return view
        if self.group.batched:
            return self.maker.window(view, [self.offsets[1], self.offsets[0], 0], (1, *shape), (False, True, True))
        return self.maker.window(view, [self.offsets[0], 0], shape, (True, True))

    def _need(self, value: Value) -> None:
        """Makes `value` available: a scalar computed again, a tensor made of others, or one that is loaded."""
        if value in self.made:
            return
        op = value.defining_op
        if isinstance(value.type, ScalarType):
            if op is None:
                self.made[value] = self.maker.scalar(value)
            elif op.name == "size":
                self.made[value] = self.maker.builder.at(op).value("size", size=self._size(op.attributes["size"]))
            else:
                for operand in op.operands:
                    self._need(operand)
                self._clone(op)
        elif op in self.inside and is_made_again(op):
            self._make(op)
        elif op in self.inside:  # a view, or another shape of one
            self.made[value] = self._load(value)
        else:
            self.made[value] = self.maker.load(self._window(self._view(value, "in"), value))

    def _size(self, size: Size) -> Size:
        """A size of the function, whose value a kernel computes with, over the kernel's dims."""
        return self.maker.dim(f"size{len(self.maker.dims)}", size)

    def _is_inside(self, op: Op) -> bool:
        return op in self.inside

    # -- values that are read in place

    def _load(self, value: Value) -> Value:
        """The rows of a value, of one row, or of a batch, out of the tensor that has them."""
        found, shape, wanted = access(value, self._is_inside), shape_of(value.type), self._tile_shape(value)
        in_rows = rows_in_place(value, found)
        if one_row(shape):
            # All share it, or there is no other: those behind it in a program are not stored.
            tile = self._upright(self._tile(found, [None] * len(found.axes), (1, wanted[1])))
            tile = tile if wanted[0] == 1 else self.maker.builder.value("broadcast", tile, shape=wanted)
        elif self.group.batched:
            tile = self._upright(self._tile(found, [*self._batch_indices(), self.offsets[0], None], wanted))
        else:
            assert in_rows is not None
            (first, column), root = in_rows, shape_of(found.root.type)
            view = self.maker.view(found.root, (self.maker.dim_of(count(rows_of(root))), self.sizes.fix(root[-1])))
            row = self._plus(self.offsets[0], first)
            tile = self.maker.load(self.maker.window(view, [row, self.sizes.decide(column)], wanted, (True, True)))
        return self._widened(tile, value)

    def _widened(self, tile: Value, value: Value) -> Value:
        if dtype_of(tile.type) == dtype_of(value.type):
            return tile
        return self.maker.builder.value("cast", tile, dtype=dtype_of(value.type), implicit=True)

    def _upright(self, made: tuple[Value, bool]) -> Value:
        tile, flipped = made
        return self.maker.builder.value("transpose", tile) if flipped else tile

    def _tile(self, found: Access, offsets: Sequence[Value | None], shape: tuple[int, ...]) -> tuple[Value, bool]:
        """The tile of the last two axes of a value at `offsets` (None: from the first element), and whether it is
        transposed.
        """
        root = shape_of(found.root.type)
        inner = [axis for axis in found.axes[-2:] if axis is not None]
        # What a tile has all of is compiled in; rows of which it has a block are not.
        whole = inner if offsets[-2:] == [None, None] else inner[-1:]
        sizes = [self.sizes.fix(size) if axis in whole else self.maker.dim_of(size) for axis, size in enumerate(root)]
        at: list[Value | Size] = [self._start(start) for start in found.starts]
        extents, kept = [1] * len(root), [False] * len(root)
        for axis, offset in zip(found.axes, offsets, strict=True):
            if axis is not None and offset is not None:
                at[axis] = self._plus(offset, found.starts[axis])
        for axis, extent in zip(found.axes[-2:], shape[-len(found.axes) :], strict=True):
            if axis is not None:
                extents[axis], kept[axis] = extent, True
        kept[-1] |= not inner  # a window without axes would be a scalar
        tile = self.maker.load(self.maker.window(self.maker.view(found.root, tuple(sizes)), at, extents, kept))
        flipped = len(inner) == 2 and inner[0] > inner[1]
        wanted = shape[::-1] if flipped else shape
        if shape_of(tile.type) != wanted:
            tile = self.maker.builder.value("reshape", tile, shape=wanted)
        return tile, flipped

    def _batch_indices(self) -> list[Value]:
        """This program's index along each leading axis of a batch."""
        if not self.indices:
            builder, sizes = self.maker.builder, [self.maker.dim_of(size) for size in self.group.rows[:-1]]
            rest = self.offsets[1]
            for size in reversed(sizes[1:]):
                number = self.maker.index(size)
                self.indices.insert(0, builder.value("mod", rest, number))
                rest = builder.value("floordiv", rest, number)
            self.indices.insert(0, rest)
        return self.indices

    def _start(self, start: Size) -> Size:
        return start if isinstance(start, int) else self.maker.dim_of(start)

    def _plus(self, offset: Value, start: Size) -> Value:
        if start == 0:
            return offset
        return self.maker.builder.value("add", offset, self.maker.index(self._start(start)))

    def _matrix(self, value: Value) -> tuple[Value, bool]:
        """The right operand of a product, all of it, and whether it is transposed."""
        found, shape = access(value, self._is_inside), shape_of(value.type)
        matrix = (self.sizes.fix(shape[-2]), self.sizes.fix(shape[-1]))
        batched = len(shape) > 2
        root = found.root if found.viewed else value
        while not found.viewed and (op := root.defining_op) in self.inside:
            assert op is not None
            root = op.operands[0]  # behind wider dtypes
        if found.viewed:
            offsets = [*(self._batch_indices() if batched else ()), None, None]
            tile, flipped = self._tile(found, offsets, matrix)
        elif batched:
            view = self.maker.view(root, (self.batch, *matrix))
            window = self.maker.window(view, [self.offsets[1], 0, 0], (1, *matrix), (False, True, True))
            tile, flipped = self.maker.load(window), False
        else:
            tile, flipped = self.maker.load(self.maker.view(root, matrix)), False
        return self._widened(tile, value), flipped

    # -- ops

    def _make(self, op: Op) -> None:
        # The second operand of a product is loaded with it, whole.
        for value in op.operands[:1] if op.name == "matmul" else op.operands:
            self._need(value)
        self._emit(op)

    def _widens_nothing(self, op: Op) -> bool:
        """Whether an op is an implicit cast of a value that a skipped cast has left in the dtype wanted."""
        return (
            op.name == "cast"
            and op.attributes["implicit"]
            and (dtype_of(self.made[op.operands[0]].type) == op.attributes["dtype"])
        )

    def _clone(self, op: Op, **changed: object) -> None:
        builder = self.maker.builder.at(op)
        operands = [self.made[value] for value in op.operands]
        names = [result.name for result in op.results]
        new = builder.op(op.name, operands, (), names, **{**op.attributes, **changed})
        self.made.update(zip(op.results, new.results, strict=True))

    def _emit(self, op: Op) -> None:
        if op in self.skipped:
            self.made[op.result] = self.made[op.operands[0]]
        elif self._widens_nothing(op):
            self.made[op.result] = self.made[op.operands[0]]
        elif is_scalar_op(op) or op.definition.has(ELEMENTWISE):
            self._clone(op)
        elif op.name == "matmul":
            a, b = op.operands
            self.maker.builder.at(op)
            matrix, flipped = self._matrix(b)
            self.made[op.result] = self.maker.builder.at(op).value(
                "mma",
                self.made[a],
                matrix,
                hint=op.result.name,
                precision=op.attributes["precision"],
                transpose_b=flipped,
            )
        elif op.name in ("broadcast", "full"):
            self._clone(op, shape=self._tile_shape(op.result))
        elif op.name == "iota" and self.flat:
            self.made[op.result] = self._numbers(op)
        elif op.name == "iota":
            shape = self._tile_shape(op.result)
            self._clone(op, shape=shape, axis=len(shape) - 1)
        else:
            self._clone(op, axis=1)

    def _numbers(self, op: Op) -> Value:
        """The numbers of the elements of a program."""
        builder = self.maker.builder.at(op)
        numbers = builder.value("iota", shape=(self.block,), axis=0, dtype=i64)
        numbers = builder.value("add", numbers, self.offsets[0])
        return builder.value("cast", numbers, hint=op.result.name, dtype=op.attributes["dtype"])


def _is_lazy(op: Op) -> bool:
    """Whether an op is done where something needs its result, and then perhaps by a load."""
    return is_made_again(op) or is_view(op) or is_alias(op)


def row_kernel(group: Group, sizes: Sizes, skipped: frozenset[Op] = frozenset()) -> KernelMaker:
    """`skipped`: implicit casts of the group whose operand serves in the place of their result."""
    return RowKernel(group, sizes, skipped).maker


__all__ = ["LARGEST_ROW", "KernelMaker", "Sizes", "count", "power_of_two", "row_kernel"]
