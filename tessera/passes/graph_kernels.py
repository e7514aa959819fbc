"""Tile kernels made by the compiler: what kernels of functions are built with, and those of row groups.

A row kernel sees its tensors as matrices: all axes but the last are rows, and a program takes a block of them, whole
rows each. Tile-and-fuse then slices the columns, and the depth of a product, as it does for kernels of authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.dtypes import DType, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Op, Value, merge_origins
from tessera.ir.dims import Size, cdiv, evaluate, symbol, symbols
from tessera.ir.opdef import ELEMENTWISE
from tessera.ir.types import ScalarType, Shape, TileType, ViewType, dtype_of, shape_of
from tessera.location import Loc
from tessera.passes.graph_groups import (
    Group,
    columns_of,
    is_free,
    is_made_again,
    is_scalar_op,
    is_spread,
    is_widening,
    rows_of,
)

PRODUCT_ROWS = 128  # of a program that multiplies matrices
TILE_ELEMENTS = 4096  # of the widest tile of a program that does not
COMPUTED_ELEMENTS = 1 << 13  # of a left operand that a program computes before it multiplies it
LARGEST_ROW = 1 << 15


class Sizes:
    """The dims of a call. `fixed` collects those whose values a kernel is made for."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self.dims = dims
        self.fixed: dict[str, int] = {}

    def fix(self, size: Size) -> int:
        """The value of a size, for code that is made for it."""
        self.fixed.update({name: self.dims[name] for name in symbols(size)})
        found = evaluate(size, self.dims)
        if found == 0:
            raise SourceError("TS301", f"the size {size} is 0, but a reduction or a product needs an element")
        return found

    def guess(self, size: Size) -> int:
        """The value of a size, where only speed depends on it."""
        return evaluate(size, self.dims)


def count(shape: Sequence[Size]) -> Size:
    total: Size = 1
    for size in shape:
        total = total * size
    return total


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

    def __init__(
        self,
        group: Group,
        outputs: Sequence[Value],
        sizes: Sizes,
        skipped: frozenset[Op] = frozenset(),
        stored: frozenset[Op] = frozenset(),
    ) -> None:
        self.group, self.sizes, self.skipped, self.stored = group, sizes, skipped, stored
        assert group.rows is not None
        self.maker = KernelMaker(merge_origins(*(op.origin for op in group.ops)))
        self.made: dict[Value, Value] = {}
        self.flat = self._is_flat()
        if self.flat:
            self._grid_of_elements()
        else:
            self._grid_of_rows()
        for op in group.ops:
            # The second operand of a product is loaded with it, whole.
            for value in op.operands[:1] if op.name == "matmul" else op.operands:
                self._need(value)
            self._emit(op)
        for value in outputs:
            self.maker.store(self._window(self._view(value, "out"), value), self.made[value])

    # -- shapes

    def _is_flat(self) -> bool:
        """Whether every tensor has the same shape, and every op looks at one element at a time.

        An index is the number of an element where there is one axis.
        """
        shapes, indices = set(), False
        for op in self.group.ops:
            if not (op.definition.has(ELEMENTWISE) or is_free(op)):
                return False
            for value in (*op.operands, *op.results):
                source = _source(value)
                if source is not None and is_spread(source):
                    return False
                indices |= source is not None and source.name == "iota"
                if isinstance(value.type, TileType):
                    shapes.add(value.type.shape)
        return len(shapes) == 1 and not (indices and len(shapes.pop()) > 1)

    def _grid_of_elements(self) -> None:
        shape = shape_of(self.group.ops[0].result.type)
        total = count(shape)
        block = min(1024, 1 << max(self.sizes.guess(total) - 1, 0).bit_length())
        self.rows: Size = self.maker.dim("T", total)
        self.block = block
        self.offsets = self.maker.programs([(self.rows, block)])

    def _grid_of_rows(self) -> None:
        rows = self.group.rows or ()
        batch, own = (rows[:-1], rows[-1:]) if self.group.batched else ((), rows)
        self.rows = self.maker.dim("M", count(own))
        self.batch = self.maker.dim("P", count(batch))
        product = self.group.product
        widest = max(self.sizes.fix(columns_of(shape_of(v.type))) for v in self._tensors())
        if product is None and widest > LARGEST_ROW:
            raise SourceError(
                "TS501",
                f"a row of {widest} elements does not fit a program, which holds {LARGEST_ROW}; reshape the tensor so "
                "that its last axis is shorter",
                self.group.ops[0].loc,
            )
        most = PRODUCT_ROWS if product is not None else max(1, TILE_ELEMENTS // (1 << (widest - 1).bit_length()))
        least = 16 if product is not None else 1
        if product is not None and product.operands[0] in self.group.results:
            # What is multiplied is computed first, whole rows of it.
            depth = self.sizes.fix(columns_of(shape_of(product.operands[0].type)))
            most = min(most, max(least, COMPUTED_ELEMENTS // power_of_two(depth)))
        self.block = max(least, min(most, 128, 1 << max(self.sizes.guess(count(own)) - 1, 0).bit_length()))
        axes: list[tuple[Size, int]] = [(self.rows, self.block)]
        self.offsets = self.maker.programs([*axes, (self.batch, 1)] if self.group.batched else axes)

    def _tensors(self) -> list[Value]:
        found = {value: None for op in self.group.ops for value in (*op.operands, *op.results)}
        return [value for value in found if isinstance(value.type, TileType)]

    def _one_row(self, value: Value) -> bool:
        """Whether all rows of the group share the one row of `value`."""
        rows = rows_of(shape_of(value.type))
        return rows != self.group.rows and all(size == 1 for size in rows)

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
        """Makes `value` available: a scalar computed again, a constant tensor, or a tensor that is loaded."""
        if value in self.made:
            return
        op = value.defining_op
        if isinstance(value.type, ScalarType):
            if op is None:
                self.made[value] = self.maker.scalar(value)
                return
            if op.name == "size":
                self.made[value] = self.maker.builder.at(op).value("size", size=self._size(op.attributes["size"]))
                return
            for operand in op.operands:
                self._need(operand)
            self._clone(op)
        elif op is not None and is_made_again(op) and op not in self.group.ops and self._made_here(op):
            for operand in op.operands:
                self._need(operand)
            self._emit(op)
        else:
            self.made[value] = self.maker.load(self._window(self._view(value, "in"), value))

    def _size(self, size: Size) -> Size:
        """A size of the function, whose value a kernel computes with, over the kernel's dims."""
        return self.maker.dim(f"size{len(self.maker.dims)}", size)

    def _made_here(self, op: Op) -> bool:
        """Whether this kernel makes the tensor again: it is no kernel's result."""
        return op not in self.stored

    def _matrix(self, value: Value) -> Value:
        shape = tuple(self.sizes.fix(size) for size in shape_of(value.type)[-2:])
        if self.group.batched:
            view = self.maker.view(value, (self.batch, *shape))
            return self.maker.load(self.maker.window(view, [self.offsets[1], 0, 0], (1, *shape), (False, True, True)))
        return self.maker.load(self.maker.view(value, shape))

    # -- ops

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
            matrix = self._matrix(b)
            self.made[op.result] = self.maker.builder.at(op).value(
                "mma", self.made[a], matrix, hint=op.result.name, precision=op.attributes["precision"]
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


def _source(value: Value) -> Op | None:
    """The op of the tensor that a kernel makes `value` again from, through casts, up to a broadcast."""
    op = value.defining_op
    while op is not None and is_widening(op):
        op = op.operands[0].defining_op
    return op


def row_kernel(
    group: Group,
    outputs: Sequence[Value],
    sizes: Sizes,
    skipped: frozenset[Op] = frozenset(),
    stored: frozenset[Op] = frozenset(),
) -> KernelMaker:
    """`skipped`: implicit casts of the group whose operand serves in the place of their result. `stored`: ops of
    tensors that could be made again but lie in memory.
    """
    return RowKernel(group, outputs, sizes, skipped, stored).maker


def power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


__all__ = ["KernelMaker", "Sizes", "count", "power_of_two", "row_kernel"]
