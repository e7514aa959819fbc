"""Tile kernels made by the compiler: what kernels of functions are built with, and those of row groups.

A row kernel sees its tensors as matrices: all axes but the last are rows, and a program takes a block of them, whole
rows each. Tile-and-fuse then slices the columns, and the depth of a product, as it does for kernels of authors.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.dtypes import DType, f32, i64
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Op, Value, merge_origins
from tessera.ir.dims import Size, cdiv, symbol
from tessera.ir.opdef import CONSTANT, ELEMENTWISE
from tessera.ir.types import ListType, ScalarType, Shape, TileType, ViewType, dtype_of, shape_of
from tessera.location import Loc
from tessera.passes.fusion_cost import Sizes, count, power_of_two, program_rows
from tessera.passes.graph_access import Access, access, rows_in_place
from tessera.passes.graph_groups import (
    Group,
    columns_of,
    is_alias,
    is_free,
    is_lazy,
    is_made_again,
    is_scalar_op,
    is_view,
    one_row,
    rows_of,
)
from tessera.passes.graph_loops import Chain, find_chain, progression

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
        self.tensors: dict[
            str, Value | tuple[Value, ...]
        ] = {}  # by parameter, the function's value, or those of a list
        self.scalars: dict[str, Value] = {}
        self.pins: dict[str, int] = {}  # fields of the schedule that the shape of the kernel asks for

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

    def views(self, values: Sequence[Value], shape: Shape) -> Value:
        """A list of tensors of one shape, all of them read."""
        name = f"in{sum(r == 'in' for _, r in self.roles)}"
        self.roles.append((name, "in"))
        self.tensors[name] = tuple(values)
        view = ViewType(shape, dtype_of(values[0].type))
        return self.body.add_argument(ListType(view, len(values)), name)

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
        if self.pins:
            attributes["pins"] = dict(self.pins)
        return Kernel(name, self.body, attributes, self.origin)


class RowKernel:
    """The kernel of a row group."""

    def __init__(self, group: Group, sizes: Sizes, skipped: frozenset[Op] = frozenset()) -> None:
        self.begin(group, sizes, skipped)
        self.flat = self._is_flat()
        if self.flat:
            self._grid_of_elements()
        else:
            self._grid_of_rows()
        self.chain = find_chain(group.ops, self._uses(), group.outputs)
        if self.chain is not None and not self._alike(self.chain):
            self.chain = None
        for op in group.ops:
            if self.chain is not None and op in self.chain.members:
                if op is self.chain.result.defining_op:
                    self._loop(self.chain)
            elif not is_lazy(op):
                self._make(op)
        for value in group.outputs:
            self._need(value)
            view = self.maker.view(value, self._rows_shape(value), "out")
            self.maker.store(self._window(view, value), self.made[value])

    def begin(self, group: Group, sizes: Sizes, skipped: frozenset[Op]) -> None:
        self.group, self.sizes, self.skipped = group, sizes, skipped
        self.inside = set(group.ops)
        self.maker = KernelMaker(merge_origins(*(op.origin for op in group.ops)))
        self.made: dict[Value, Value] = {}
        self.indices: list[Value] = []  # of a batch, one per leading axis
        self.chain: Chain | None = None
        self.looped: Value | None = None  # the number of the iteration, inside of the chain's loop

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
            if not is_lazy(op):
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

    def _view(self, value: Value) -> Value:
        return self._source(value, self._rows_shape(value))

    def _rows_shape(self, value: Value) -> Shape:
        """The shape under which a kernel sees a tensor of rows."""
        if self.flat:
            return (self.rows,)
        columns = self.sizes.fix(columns_of(shape_of(value.type)))
        if self._one_row(value):
            return (1, columns)
        return (self.batch, self.rows, columns) if self.group.batched else (self.rows, columns)

    def _window(self, view: Value, value: Value) -> Value:
        shape = self._tile_shape(value)
        if self.flat:
            return self.maker.window(view, self.offsets, shape, (True,))
        if self._one_row(value):
            return view
        if self.group.batched:
            return self.maker.window(view, [self.offsets[1], self.offsets[0], 0], (1, *shape), (False, True, True))
        return self.maker.window(view, [self.offsets[0], 0], shape, (True, True))

    def _uses(self) -> dict[Value, list[Op]]:
        found: dict[Value, list[Op]] = {}
        for op in self.group.ops:
            for value in op.operands:
                found.setdefault(value, []).append(op)
        return found

    def _source(self, value: Value, shape: Shape) -> Value:
        """The view of a tensor in memory, under a shape: a parameter, or inside of a loop an element of a list."""
        tensors = self.chain.differing(value) if self.chain is not None and self.looped is not None else []
        if not tensors:
            return self.maker.view(value, shape)
        assert self.looped is not None
        return self.maker.builder.value("element", self.maker.views(tensors, shape), self.looped)

    def _need(self, value: Value) -> None:
        """Makes `value` available: a scalar computed again, a tensor made of others, or one that is loaded."""
        if value in self.made:
            return
        op = value.defining_op
        if isinstance(value.type, ScalarType):
            if op is None:
                self.made[value] = self.maker.scalar(value)
            elif op.definition.has(CONSTANT) and (numbers := self._numbers_of(value)):
                self.made[value] = self._counted(numbers)
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
            self.made[value] = self.maker.load(self._window(self._view(value), value))

    def _numbers_of(self, value: Value) -> list[int]:
        """What a constant is in each iteration of the loop, where that differs."""
        if self.chain is None or self.looped is None:
            return []
        numbers = [one.defining_op.attributes["value"] for one in self.chain.differing(value) if one.defining_op]
        return numbers if len(set(numbers)) > 1 else []

    def _size(self, size: Size) -> Size:
        """A size of the function, whose value a kernel computes with, over the kernel's dims."""
        return self.maker.dim(f"size{len(self.maker.dims)}", size)

    def _is_inside(self, op: Op) -> bool:
        return op in self.inside

    # -- values that are read in place

    def _access(self, value: Value) -> tuple[Access, list[Value | Size]]:
        """How a value is read, and where it begins along each axis of its root, in this iteration of a loop."""
        found = access(value, self._is_inside)
        starts: list[Value | Size] = list(found.starts)
        if self.chain is None or self.looped is None:
            return found, starts
        each = [access(one, self._is_inside).starts for one in self.chain.differing(value)]
        for axis, numbers in enumerate(zip(*each, strict=True)):
            if len(set(numbers)) > 1:
                starts[axis] = self._counted(numbers)
        return found, starts

    def _counted(self, numbers: Sequence[Size]) -> Value:
        """The number of this iteration, of an arithmetic progression."""
        terms = progression(numbers)
        assert terms is not None and self.looped is not None
        first, step = terms
        builder = self.maker.builder
        scaled = builder.value("mul", self.looped, self.maker.index(step)) if step != 1 else self.looped
        return builder.value("add", scaled, self.maker.index(first)) if first else scaled

    def _load(self, value: Value) -> Value:
        """The rows of a value, of one row, or of a batch, out of the tensor that has them."""
        (found, starts), shape, wanted = self._access(value), shape_of(value.type), self._tile_shape(value)
        in_rows = rows_in_place(value, found)
        if one_row(shape):
            # All share it, or there is no other: those behind it in a program are not stored.
            tile = self._upright(self._tile(found, starts, [None] * len(found.axes), (1, wanted[1])))
            tile = tile if wanted[0] == 1 else self.maker.builder.value("broadcast", tile, shape=wanted)
        elif self.group.batched:
            tile = self._upright(self._tile(found, starts, [*self._batch_indices(), self.offsets[0], None], wanted))
        else:
            assert in_rows is not None
            (first, column), root = in_rows, shape_of(found.root.type)
            view = self._source(found.root, (self.maker.dim_of(count(rows_of(root))), self.sizes.fix(root[-1])))
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

    def _tile(
        self,
        found: Access,
        starts: Sequence[Value | Size],
        offsets: Sequence[Value | None],
        shape: tuple[int, ...],
        known: bool = False,
    ) -> tuple[Value, bool]:
        """The tile of the last two axes of a value at `offsets` (None: from the first element), and whether it is
        transposed. `starts`: where the value begins in its root; `known`: the sizes of both axes are compiled in.
        """
        root = shape_of(found.root.type)
        inner = [axis for axis in found.axes[-2:] if axis is not None]
        # What a tile has all of is compiled in; rows of which it has a block are not.
        whole = [
            axis
            for axis, offset in zip(found.axes[-2:], offsets[-2:], strict=True)
            if axis is not None and (known or offset is None)
        ]
        sizes = [self.sizes.fix(size) if axis in whole else self.maker.dim_of(size) for axis, size in enumerate(root)]
        at: list[Value | Size] = [self._start(start) for start in starts]
        extents, kept = [1] * len(root), [False] * len(root)
        for axis, offset in zip(found.axes, offsets, strict=True):
            if axis is not None and offset is not None:
                at[axis] = self._plus(offset, starts[axis])
        for axis, extent in zip(found.axes[-2:], shape[-len(found.axes) :], strict=True):
            if axis is not None:
                extents[axis], kept[axis] = extent, True
        tile = self.maker.load(self.maker.window(self._source(found.root, tuple(sizes)), at, extents, kept))
        flipped = len(inner) == 2 and inner[0] > inner[1]
        wanted = shape[::-1] if flipped else shape
        if not inner:
            tile = self.maker.builder.value("full", tile, shape=wanted, dtype=dtype_of(found.root.type))
        elif shape_of(tile.type) != wanted:
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

    def _start(self, start: Value | Size) -> Value | Size:
        return start if isinstance(start, (int, Value)) else self.maker.dim_of(start)

    def _plus(self, offset: Value, start: Value | Size) -> Value:
        begin = self._start(start)
        if begin == 0:
            return offset
        return self.maker.builder.value("add", offset, begin if isinstance(begin, Value) else self.maker.index(begin))

    def _matrix(self, value: Value) -> tuple[Value, bool]:
        """The right operand of a product, all of it, and whether it is transposed."""
        (found, starts), shape = self._access(value), shape_of(value.type)
        matrix = (self.sizes.fix(shape[-2]), self.sizes.fix(shape[-1]))
        batched = len(shape) > 2
        root = found.root
        if found.viewed:
            offsets = [*(self._batch_indices() if batched else ()), None, None]
            tile, flipped = self._tile(found, starts, offsets, matrix)
        elif batched:
            view = self._source(root, (self.batch, *matrix))
            window = self.maker.window(view, [self.offsets[1], 0, 0], (1, *matrix), (False, True, True))
            tile, flipped = self.maker.load(window), False
        else:
            tile, flipped = self.maker.load(self._source(root, matrix)), False
        return self._widened(tile, value), flipped

    # -- loops

    def _alike(self, chain: Chain) -> bool:
        """Whether one body computes all iterations: they round alike, and what differs in numbers may differ here."""
        last, before = chain.result.defining_op, chain.carried.defining_op
        for value in chain.template:
            ops = [one.defining_op for one in (chain.differing(value) or [value])]
            ops = ops[:-1] if value is chain.result else ops
            if len({op in self.skipped for op in ops}) > 1:
                return False
            op = value.defining_op
            if op is not None and op.name == "extract" and not one_row(shape_of(value.type)):
                starts = {each.attributes["starts"] for each in ops if each is not None}
                right = all(user.name == "matmul" and value is user.operands[1] for user in self._uses()[value])
                if len(starts) > 1 and not right:
                    return False
        if last in self.skipped and before not in self.skipped:
            return False
        first = chain.values[0]
        if first is not None and first.defining_op in self.skipped and before not in self.skipped:
            return False
        return self._computed_numbers_are_f32(chain)

    def _computed_numbers_are_f32(self, chain: Chain) -> bool:
        """Whether tiles are f32 where a number that differs meets them: it is not weak in a loop, and could widen."""
        for op in chain.ops(self.group.ops):
            numbers = [v for v in op.operands if isinstance(v.type, ScalarType) and chain.differing(v)]
            tiles = [v for v in op.operands if isinstance(v.type, TileType)]
            if numbers and not all(dtype_of(value.type) == f32 for value in (*tiles, op.result)):
                return False
            if any(dtype_of(value.type) not in (f32, i64) for value in numbers):
                return False
        return True

    def _loop(self, chain: Chain) -> None:
        """The iterations of a chain as one loop that carries what the last one makes."""
        last, before = chain.result.defining_op, chain.carried.defining_op
        assert last is not None
        wider = before in self.skipped  # the loop goes on with what the iterations do not round
        dtype = dtype_of(last.operands[0].type) if wider else dtype_of(chain.result.type)
        shape, builder = self._tile_shape(chain.result), self.maker.builder.at(last)
        first = chain.values[0]
        if first is None:
            initial = builder.value("full", builder.value("constant", value=-0.0, dtype=f32), shape=shape, dtype=dtype)
        else:
            self._need(first)
            initial = self.made[first]
            if dtype_of(initial.type) != dtype:
                initial = builder.value("cast", initial, dtype=dtype, implicit=True)
        bounds = [builder.value("constant", value=n, dtype=i64) for n in (0, len(chain.iterations), 1)]
        body = Block()
        self.looped = body.add_argument(bounds[0].type, "i")
        saved, indices = dict(self.made), list(self.indices)
        self.made = {value: tile for value, tile in saved.items() if not chain.differing(value)}
        self.made[chain.carried] = body.add_argument(initial.type, chain.result.name)
        self.maker.builder = builder.inner(body)
        for op in chain.ops(self.group.ops):
            if op is last and wider:
                self.made[chain.result] = self.made[op.operands[0]]
            elif not is_lazy(op):
                self._make(op)
        self.maker.builder.at(last).op("yield", [self.made[chain.result]])
        self.maker.builder, self.made, self.indices, self.looped = builder, saved, indices, None
        total = builder.at(last).op("for", [*bounds, initial], [body], [chain.result.name]).result
        if wider and last not in self.skipped:
            total = builder.value("cast", total, hint=chain.result.name, **last.attributes)
        self.made[chain.result] = total

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


def row_kernel(group: Group, sizes: Sizes, skipped: frozenset[Op] = frozenset()) -> KernelMaker:
    """`skipped`: implicit casts of the group whose operand serves in the place of their result."""
    return RowKernel(group, sizes, skipped).maker


__all__ = ["LARGEST_ROW", "KernelMaker", "Sizes", "count", "power_of_two", "row_kernel"]
