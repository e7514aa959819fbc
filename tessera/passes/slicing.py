"""Computes parts of tiles: the slice of a tile from slices of what it is computed from, through products and loops.

A part says, axis by axis, what is wanted: all of it (None) or a cut. An axis that a reshape merged out of several
remembers the cuts of those, so that a later reshape can take it apart again. Nothing is computed twice in one place:
a scope remembers what its block holds, and inner blocks see what outer ones hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tessera.dtypes import i64
from tessera.ir.affine import window_of
from tessera.ir.core import Block, Builder, Mapping, Op, Value
from tessera.ir.opdef import REDUCTION, SCAN
from tessera.ir.ops.tiles import k_block, negative_axis
from tessera.ir.types import TileType, dtype_of, int_shape, shape_of
from tessera.passes import resident
from tessera.passes.padding import zero_beyond
from tessera.passes.reshapes import axis_groups

MOST_PADDING = 1.25  # times K that products may go over so that all steps of a loop are equal


@dataclass(frozen=True)
class Cut:
    """The part [start, start + extent) of an axis. `depth`: of the scope in which `start` was computed.

    `pieces`: the cuts (None: all) and sizes of the axes that were merged into this one, outermost first. `beyond`: the
    last such part of the axis may reach past its end.
    """

    start: Value
    extent: int
    depth: int
    pieces: tuple[tuple[Cut | None, int], ...] = ()
    beyond: bool = False


Part = tuple[Cut | None, ...]


class TooLarge(Exception):
    """A part of a tile cannot be computed without more of it; `why` says so in the author's terms."""

    def __init__(self, value: Value, why: str):
        super().__init__(why)
        self.value, self.why = value, why


def extents(part: Part, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a part of a tile of this shape."""
    return tuple(size if cut is None else cut.extent for cut, size in zip(part, shape, strict=True))


def normal(part: Part, shape: Sequence[int]) -> Part:
    """All of an axis is None: a cut as long as its axis starts at 0."""
    return tuple(
        None if cut is None or cut.extent == size else cut for cut, size in zip(part, shape, strict=True)
    )  # fmt: skip


@dataclass
class Scope:
    """A block under construction and what it holds. `loop`: the old op whose region the block replaces; `program`: the
    block is an iteration that becomes a program.
    """

    builder: Builder
    outer: Scope | None = None
    loop: Op | None = None
    tiles: dict[tuple[Value, Part], Value] = field(default_factory=dict)
    plain: dict[Value, Value] = field(default_factory=dict)
    merged: dict[tuple[tuple[Cut | None, int], ...], Cut] = field(default_factory=dict)
    carried: dict[tuple[int, Part | None], Value] = field(default_factory=dict)
    buffers: dict[tuple[Value, Part], Value] = field(default_factory=dict)
    zero: Value | None = None
    program: bool = False

    @property
    def depth(self) -> int:
        return 0 if self.outer is None else self.outer.depth + 1

    def inner(self, body: Block, loop: Op | None = None) -> Scope:
        return Scope(self.builder.inner(body), self, loop)

    def chain(self) -> list[Scope]:
        return [self, *(self.outer.chain() if self.outer else [])]

    def at_zero(self) -> Value:
        for scope in self.chain():
            if scope.zero is not None:
                return scope.zero
        self.zero = self.builder.value("constant", value=0, dtype=i64)
        return self.zero


class Slicer:
    """Makes parts of the tiles of an old kernel.

    `mapping`: what stands for old values already, tiles among them that are there as a whole (`kept`, or results of
    ops with effects). `streamed`: buffers that are not there; what reads them loads from the tensor that their copy
    names. `block_k`: K extent in which a product takes operands that are in no buffer. `placed`: tiles that a
    buffer holds, whole along the given axis, made once; `allocations` makes those buffers.
    """

    def __init__(
        self, mapping: Mapping, streamed: dict[Value, Op], block_k: int, placed: dict[Value, int] | None = None
    ):
        self.mapping = mapping
        self.streamed = streamed
        self.block_k = block_k
        self.placed = placed or {}
        self.allocations: list[Op] = []
        self.heavy: dict[Value, bool] = {}

    # ---- values ------------------------------------------------------------------------------------------------

    def whole(self, scope: Scope, value: Value) -> Value:
        """A value of any type, as a whole."""
        if not isinstance(value.type, TileType):
            return self.scalar(scope, value)
        return self.part(scope, value, (None,) * len(value.type.shape))

    def scalar(self, scope: Scope, value: Value) -> Value:
        """What stands for a value that is no tile; an op of a rebuilt region goes as far out as its operands."""
        if value in self.mapping:
            return self.mapping[value]
        for holder in scope.chain():
            if value in holder.plain:
                return holder.plain[value]
        op = value.defining_op
        if op is None:
            return self._argument(scope, value, None)
        if op.regions:
            return self._region(scope, op, value.index, None)
        operands = [self.whole(scope, operand) for operand in op.operands]
        names = [result.name for result in op.results]
        home = self._home(scope, op)
        new = home.builder.at(op).op(op.name, operands, hints=names, **op.attributes)
        home.plain.update(zip(op.results, new.results, strict=True))
        return home.plain[value]

    def _home(self, scope: Scope, op: Op) -> Scope:
        """The outermost scope that sees all operands of an op; that of the request when it takes tiles."""
        chain = scope.chain()
        place = len(chain) - 1
        for operand in op.operands:
            if isinstance(operand.type, TileType):
                return scope
            if operand not in self.mapping:
                place = min(place, next(i for i, holder in enumerate(chain) if operand in holder.plain))
        return chain[place]

    def part(self, scope: Scope, value: Value, part: Part) -> Value:
        """A part of a tile. Raises TooLarge where that needs more of something."""
        part = normal(part, int_shape(value.type))
        if value in self.mapping:
            if any(part):
                raise TooLarge(value, "is used after what it reads has changed, or comes from an op with effects")
            return self.mapping[value]
        for holder in scope.chain():
            if (value, part) in holder.tiles:
                return holder.tiles[value, part]
        op = value.defining_op
        if op is None:
            return self._argument(scope, value, part)
        if value in self.placed:  # read where it is used, and not kept in registers from one use to the next
            return resident.placed_part(self, scope, op, part)
        result = self._region(scope, op, value.index, part) if op.regions else self.made(scope, op, part)
        scope.tiles[value, part] = result
        return result

    def made(self, scope: Scope, op: Op, part: Part) -> Value:
        special = _SPECIAL.get(op.name)
        if special is not None:
            return special(self, scope, op, part)
        shape = int_shape(op.result.type)
        along = _reduced_axis(op)
        if along is not None and op.definition.has(SCAN) and part[along] is not None:
            raise TooLarge(op.result, f"is a {op.name} along the axis that would be cut")
        # What lies behind a product comes first: a tile that is loaded before it would take registers all along.
        order = sorted(range(len(op.operands)), key=lambda i: not self._heavy(op.operands[i]))
        made = {i: self._operand(scope, op, op.operands[i], part, along) for i in order}
        operands = [made[i] for i in range(len(op.operands))]
        changed = {"shape": extents(part, shape)} if "shape" in op.attributes else {}
        return scope.builder.at(op).value(op.name, *operands, hint=op.result.name, **{**op.attributes, **changed})

    def _operand(self, scope: Scope, op: Op, operand: Value, part: Part, along: int | None) -> Value:
        """The part of an operand that an op needs element by element, or whole lines of along an axis."""
        if not isinstance(operand.type, TileType):
            return self.scalar(scope, operand)
        sizes = int_shape(operand.type)
        if len(sizes) != len(part):
            if any(part):
                raise TooLarge(op.result, f"is a {op.name} of tiles of other ranks")
            return self.whole(scope, operand)
        cuts = tuple(
            None if size == 1 or axis == along else cut
            for axis, (cut, size) in enumerate(zip(part, sizes, strict=True))
        )
        return self.part(scope, operand, cuts)

    def _heavy(self, value: Value) -> bool:
        """Whether a product or a region lies behind a tile."""
        if value not in self.heavy:
            op = value.defining_op
            self.heavy[value] = isinstance(value.type, TileType) and (
                op is None or bool(op.regions) or op.name == "mma" or any(map(self._heavy, op.operands))
            )
        return self.heavy[value]

    # ---- memory ------------------------------------------------------------------------------------------------

    def window(self, scope: Scope, view: Value, part: Part) -> Value:
        """The part of a view (already of the new kernel). What lies beyond an end of the view counts as outside."""
        shape = int_shape(view.type)
        if not any(part):
            return view
        zero, builder = scope.at_zero(), scope.builder
        offsets = [zero if cut is None else cut.start for cut in part]
        sizes = extents(part, shape)
        window = builder.value("window", view, *offsets, extents=sizes, kept=(True,) * len(shape), hint=view.name)
        inner = [cut is not None and cut.beyond and not _ends_with_tensor(view, axis) for axis, cut in enumerate(part)]
        if not any(inner):
            return window
        limits = [builder.value("constant", value=size, dtype=i64) for size in shape]
        limits = [
            builder.value("sub", limit, offset) if ends else limit
            for limit, offset, ends in zip(limits, offsets, inner, strict=True)
        ]
        return builder.value("limit", window, *limits, hint=view.name)

    def _load(self, scope: Scope, op: Op, part: Part) -> Value:
        view = self.window(_at(scope, op), self.scalar(scope, op.operands[0]), part)
        return scope.builder.value("load", view, stages=op.attributes["stages"], hint=op.result.name)

    def _read(self, scope: Scope, op: Op, part: Part) -> Value:
        """A part of a resident buffer, or of the tensor that a streamed buffer copies."""
        buffer = op.operands[0]
        _at(scope, op)
        if buffer in self.streamed:
            if len(op.operands) > 1:
                raise TooLarge(op.result, "is a part of a buffer that is not there")
            copy = self.streamed[buffer]
            view = self.window(scope, self.scalar(scope, copy.operand("view")), part)
            return scope.builder.value("load", view, stages=copy.attributes["stages"], hint=op.result.name)
        old = [self.scalar(scope, value) for value in op.operands[1:]]
        if not any(part):
            return scope.builder.value("read", self.mapping[buffer], *old, hint=op.result.name, **op.attributes)
        old = old or [scope.at_zero()] * len(part)
        offsets = [
            offset if cut is None else scope.builder.value("add", offset, cut.start)
            for offset, cut in zip(old, part, strict=True)
        ]
        sizes = extents(part, int_shape(op.result.type))
        return scope.builder.value("read", self.mapping[buffer], *offsets, extents=sizes, hint=op.result.name)

    # ---- ops that move elements --------------------------------------------------------------------------------

    def _transpose(self, scope: Scope, op: Op, part: Part) -> Value:
        *leading, row, column = part
        source = self.part(scope, op.operands[0], (*leading, column, row))
        return scope.builder.at(op).value("transpose", source, hint=op.result.name)

    def _iota(self, scope: Scope, op: Op, part: Part) -> Value:
        """Indices counted from the start of the part, and the start added."""
        builder, shape = scope.builder.at(op), extents(part, int_shape(op.result.type))
        axis = op.attributes["axis"] % len(shape)
        cut = part[axis]
        if cut is None:
            return builder.value("iota", hint=op.result.name, **{**op.attributes, "shape": shape})
        index = builder.value("iota", shape=shape, axis=axis, dtype=i64)
        moved = builder.value("add", index, cut.start)
        return builder.value("cast", moved, dtype=op.attributes["dtype"], hint=op.result.name)

    def _extract(self, scope: Scope, op: Op, part: Part) -> Value:
        """Along a cut axis a part of the source; along the others what the op takes."""
        source, starts = op.operands[0], list(op.attributes["starts"])
        cuts: list[Cut | None] = []
        for axis, cut in enumerate(part):
            if cut is None:
                cuts.append(None)
                continue
            offset = scope.builder.at(op).value("constant", value=starts[axis], dtype=i64)
            start = scope.builder.value("add", cut.start, offset)
            cuts.append(Cut(start, cut.extent, scope.depth))
            starts[axis] = 0
        inner = self.part(scope, source, tuple(cuts))
        sizes = extents(part, int_shape(op.result.type))
        if sizes == int_shape(inner.type):
            return inner
        return scope.builder.at(op).value("extract", inner, starts=tuple(starts), extents=sizes, hint=op.result.name)

    def _reshape(self, scope: Scope, op: Op, part: Part) -> Value:
        source = op.operands[0]
        before, after = int_shape(source.type), int_shape(op.result.type)
        cuts: list[Cut | None] = [None] * len(before)
        for olds, news in axis_groups(before, after):
            wanted = [part[axis] for axis in news]
            if not any(wanted):
                continue
            if len(olds) == 1 == len(news):
                cuts[olds[0]] = wanted[0]
            elif len(olds) == 1:
                cuts[olds[0]] = self.merge(scope, tuple((part[axis], after[axis]) for axis in news), op)
            elif len(news) == 1:
                pieces = wanted[0].pieces if wanted[0] else ()
                if [size for _, size in pieces] != [before[axis] for axis in olds]:
                    raise TooLarge(op.result, "is a reshape that would be cut across the axes that it merges")
                for axis, (cut, _) in zip(olds, pieces, strict=True):
                    cuts[axis] = cut
            else:
                raise TooLarge(op.result, "is a reshape of several axes at once")
        shape = extents(part, after)
        inner = self.part(scope, source, tuple(cuts))
        made = inner.defining_op
        if source in self.placed and made is not None and made.name == "reshape":
            inner = made.operands[0]  # rows of a buffer, as they lie there
        if shape == int_shape(inner.type):
            return inner
        return scope.builder.at(op).value(
            "reshape", inner, hint=op.result.name, **{**op.attributes, "shape": shape}
        )  # fmt: skip

    def merge(self, scope: Scope, pieces: tuple[tuple[Cut | None, int], ...], op: Op) -> Cut:
        """The cut of an axis that merges these: rows that lie together, so at most one is cut to more than one."""
        for holder in scope.chain():
            if pieces in holder.merged:
                return holder.merged[pieces]
        sizes = [size if cut is None else cut.extent for cut, size in pieces]
        first = next((i for i, size in enumerate(sizes) if size != 1), len(sizes))
        if any(cut is not None for cut, _ in pieces[first + 1 :]):
            raise TooLarge(op.result, "is a reshape whose parts do not lie together")
        builder, start, step, extent = scope.builder.at(op), None, 1, 1
        for (cut, size), wanted in zip(reversed(pieces), reversed(sizes), strict=True):
            if cut is not None:
                scaled = cut.start
                if step != 1:
                    scaled = builder.value("mul", scaled, builder.value("constant", value=step, dtype=i64))
                start = scaled if start is None else builder.value("add", start, scaled)
            step, extent = step * size, extent * wanted
        assert start is not None
        scope.merged[pieces] = Cut(start, extent, scope.depth, pieces)
        return scope.merged[pieces]

    # ---- products ----------------------------------------------------------------------------------------------

    def _product(self, scope: Scope, op: Op, part: Part) -> Value:
        """Rows of a product need rows of a, columns columns of b; K is a loop for operands that are in no buffer.

        Where its step does not divide K, its last iteration reaches beyond if that adds zeros to a sum that is no
        negative zero, which changes no bit; else what is left comes after the loop.
        """
        a, b = op.operands[:2]
        if len(part) != 2:
            if any(part):
                raise TooLarge(op.result, "is a batch of products")
            operands = [self.whole(scope, operand) for operand in op.operands]
            return scope.builder.at(op).value("mma", *operands, hint=op.result.name, **op.attributes)
        flipped = (op.attributes["transpose_a"], op.attributes["transpose_b"])
        depth = int_shape(a.type)[0 if flipped[0] else 1]
        placed = [resident.without_reshape(operand) in self.placed for operand in (a, b)]
        if placed[0]:  # before the loop over K
            self.part(scope, a, (part[0], None))
        if placed[1]:
            self.part(scope, b, (None, part[1]))
        there = [one or self._resident(operand) for one, operand in zip(placed, (a, b), strict=True)]
        step = depth if all(there) else self.block_k or depth
        start = self._accumulator(scope, op, part)

        def block(inner: Scope, k: Cut | None, acc: Value) -> Value:
            parts = ((part[0], k), (k, part[1]))
            operands = [
                self.part(inner, operand, cuts[::-1] if flip else cuts)
                for operand, cuts, flip in zip((a, b), parts, flipped, strict=True)
            ]
            return inner.builder.at(op).value("mma", *operands, acc, hint=op.result.name, **op.attributes)

        if step >= depth:
            return block(scope, None, start)
        full = depth // step * step
        beyond = full < depth and not any(placed) and self._adds_zeros(op, depth, step)
        if beyond:
            full = depth
        builder = scope.builder.at(op)
        bounds = [builder.value("constant", value=value, dtype=i64) for value in (0, full, step)]
        body = Block()
        k, carried = body.add_argument(bounds[0].type, "k"), body.add_argument(start.type, op.result.name)
        inner = scope.inner(body)
        inner.builder.op("yield", [block(inner, Cut(k, step, inner.depth, beyond=beyond), carried)])
        result = builder.at(op).op("for", [*bounds, start], [body], [op.result.name]).result
        if depth > full:
            result = block(scope, Cut(bounds[1], depth - full, scope.depth), result)
        return result

    def _adds_zeros(self, op: Op, depth: int, step: int) -> bool:
        """Whether products of `step` at a time that go on past the end of K are cheap there and add nothing."""
        a, b, *acc = op.operands
        used = -(-depth // k_block(op)) * k_block(op)
        if -(-depth // step) * step > MOST_PADDING * used or acc and not _is_zero(acc[0]):
            return False
        ends = (0 if op.attributes["transpose_a"] else 1, 1 if op.attributes["transpose_b"] else 0)
        operands = zip((a, b), ends, strict=True)
        return all(zero_beyond(value, axis, self.mapping, self.streamed) for value, axis in operands)

    def _accumulator(self, scope: Scope, op: Op, part: Part) -> Value:
        if len(op.operands) > 2:
            return self.part(scope, op.operands[2], part)
        shape, dtype = extents(part, int_shape(op.result.type)), dtype_of(op.result.type)
        zero = scope.builder.at(op).value("constant", value=0.0, dtype=dtype)
        return scope.builder.value("full", zero, shape=shape, dtype=dtype, hint=op.result.name)

    def _resident(self, value: Value) -> bool:
        op = value.defining_op
        return value in self.mapping or op is not None and op.name == "read" and op.operands[0] not in self.streamed

    # ---- regions -----------------------------------------------------------------------------------------------

    def _region(self, scope: Scope, op: Op, index: int, part: Part | None) -> Value:
        if op.name == "for":
            return self._loop(scope, op, index, part)
        if op.name == "if":
            return self._branch(scope, op, index, part)
        raise TooLarge(op.results[index], f"comes from a {op.name}")

    def _loop(self, scope: Scope, op: Op, index: int, part: Part | None) -> Value:
        """The loop again, carrying only what this part of its result needs, in parts."""
        (old,) = op.regions
        body = Block()
        inner = scope.inner(body, op)
        inner.plain[old.arguments[0]] = body.add_argument(old.arguments[0].type, old.arguments[0].name)
        self._carry(inner, index, part)
        finals, initials, names = [], [], []
        while len(finals) < len(inner.carried):  # what is computed for one may ask for another
            carried, cuts = list(inner.carried)[len(finals)]
            final, initial = old.ops[-1].operands[carried], op.operands[3 + carried]
            finals.append(self.scalar(inner, final) if cuts is None else self.part(inner, final, cuts))
            initials.append(self.scalar(scope, initial) if cuts is None else self.part(scope, initial, cuts))
            names.append(op.results[carried].name)
        inner.builder.at(op).op("yield", finals)
        bounds = [self.scalar(scope, value) for value in op.operands[:3]]
        new = scope.builder.at(op).op("for", [*bounds, *initials], [body], names, **op.attributes)
        return new.results[0]

    def _carry(self, inner: Scope, index: int, part: Part | None) -> Value:
        """The argument of a loop's new body for a part of a carried value."""
        if (index, part) not in inner.carried:
            assert inner.loop is not None and inner.outer is not None
            old = inner.loop.regions[0].arguments[1 + index]
            if part is not None and any(cut is not None and cut.depth > inner.outer.depth for cut in part):
                raise TooLarge(old, "is carried by a loop and would be cut inside of it")
            type_ = old.type
            if part is not None and isinstance(type_, TileType):
                type_ = TileType(extents(part, int_shape(type_)), type_.dtype)
            inner.carried[index, part] = inner.builder.block.add_argument(type_, old.name)
        return inner.carried[index, part]

    def _argument(self, scope: Scope, value: Value, part: Part | None) -> Value:
        for holder in scope.chain():
            if holder.loop is not None and holder.loop.name == "for":
                arguments = holder.loop.regions[0].arguments
                for index, argument in enumerate(arguments[1:]):
                    if argument is value:
                        return self._carry(holder, index, part)
        raise TooLarge(value, "comes from a region that is not computed in parts")

    def _branch(self, scope: Scope, op: Op, index: int, part: Part | None) -> Value:
        condition, regions = self.scalar(scope, op.operands[0]), []
        for region in op.regions:
            copy = Block()
            inner, final = scope.inner(copy, op), region.ops[-1].operands[index]
            value = self.scalar(inner, final) if part is None else self.part(inner, final, part)
            inner.builder.at(op).op("yield", [value])
            regions.append(copy)
        return scope.builder.at(op).op("if", [condition], regions, [op.results[index].name]).result


def _is_zero(tile: Value) -> bool:
    """Whether a tile is full of positive zeros."""
    op = tile.defining_op
    number = op.operands[0].defining_op if op is not None and op.name == "full" else None
    return number is not None and number.name == "constant" and str(float(number.attributes["value"])) == "0.0"


def _ends_with_tensor(view: Value, axis: int) -> bool:
    """Whether an axis of a view ends where that of the tensor does, so that what lies beyond is masked anyway."""
    window = window_of(view)
    along = window.kept_axes[axis]
    return window.offsets[along] + window.extents[along] == window.shape[along]


def _at(scope: Scope, op: Op) -> Scope:
    scope.builder.at(op)
    return scope


def _reduced_axis(op: Op) -> int | None:
    """The axis, counted from the first, along which an op combines elements."""
    if not (op.definition.has(REDUCTION) or op.definition.has(SCAN)):
        return None
    rank = len(shape_of(op.operands[0].type))
    return negative_axis(op, rank) + rank


_SPECIAL = {
    "mma": Slicer._product,
    "load": Slicer._load,
    "read": Slicer._read,
    "transpose": Slicer._transpose,
    "iota": Slicer._iota,
    "extract": Slicer._extract,
    "reshape": Slicer._reshape,
}

__all__ = ["Cut", "Part", "Scope", "Slicer", "TooLarge", "extents", "normal"]
