"""Attention found in a function, as one kernel: softmax(f(q @ k)) @ v without the scores in memory.

What is looked for is meaning, not a name: a product, elementwise ops on it, the row softmax of those, and a product
along the axis that the softmax has reduced. A program keeps a block of rows and walks over the keys, with scores that
exist a block at a time. The largest score and the sum of a row are kept up to date, and what has been added up shrinks
when a larger score appears; blocks of keys that no row of the program can see are left out (`graph_masks`). That adds
up in another order; a strict function has walks over all keys, one after the other, and every bit of its own.

Indices and masks made of them are computed where they are needed, whatever their shape in the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.dtypes import DType, bf16, f16, f32, i32, i64
from tessera.ir.core import Block, Op, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import CONSTANT, ELEMENTWISE
from tessera.ir.ops.tiles import negative_axis
from tessera.ir.types import ScalarType, Shape, dtype_of, shape_of
from tessera.passes.fusion_cost import Sizes
from tessera.passes.graph_access import access
from tessera.passes.graph_groups import Group, is_alias, is_scalar_op, is_view
from tessera.passes.graph_kernels import KernelMaker, RowKernel
from tessera.passes.graph_masks import Seen, seen_keys, seen_where
from tessera.passes.tree_sums import waiting_sums

ROWS = 64  # of a program
KEYS = 64  # at a time
WIDE = 128  # columns of a head from which half of the keys are taken at a time
LEVELS = 14  # of the tree in which a strict function adds up blocks of keys: 2^14 blocks of 32 or 64 keys
WIDEST_HEAD = 256  # columns of q, k and v: registers of a program

FAR = 1 << 16  # more than the rows or keys of a block

Users = Mapping[Value, Sequence[Op]]


@dataclass
class Attention:
    """`first` and `second`: the products. `scores`: what the softmax is taken of, with the op of `power` on `factor`
    times differences of scores. `ops`: all that the kernel computes, `free` what it makes of indices and numbers alone.
    `result`: the product's value, cast and with its axes in another order if that is all that happens to it.
    """

    first: Op
    second: Op
    scores: Value
    result: Value
    power: str
    factor: float
    ops: set[Op] = field(default_factory=set)
    free: set[Op] = field(default_factory=set)


def find_attention(product: Op, used: Users) -> Attention | None:
    """The attention whose last product is `product`. `used`: by value, the ops that use it."""
    found = _softmax(product)
    if found is None:
        return None
    scores, ops, power, factor = found
    made = Attention(product, product, scores, product.result, power, factor, {product, *ops})
    if not _scores(made, scores) or made.first is product:
        return None
    inside = {result for op in made.ops for result in op.results} - {product.result}
    if any(user not in made.ops for value in inside for user in used.get(value, [])):
        return None
    return made if _fits(made) and _finish(made, used) else None


def _softmax(product: Op) -> tuple[Value, set[Op], str, float] | None:
    """What a left operand is the softmax of, along its last axis, the ops of that, and its power and factor."""
    ops: list[Op] = []

    def behind(value: Value, *names: str) -> Op | None:
        op = value.defining_op
        if op is None or op.name not in names:
            return None
        ops.append(op)
        return op

    shares = product.operands[0]
    if (cast := shares.defining_op) is not None and cast.name == "cast":
        if not cast.attributes["implicit"]:
            return None
        ops.append(cast)
        shares = cast.operands[0]
    if (div := behind(shares, "div")) is None or (spread := behind(div.operands[1], "broadcast")) is None:
        return None
    total, exp = behind(spread.operands[0], "reduce_sum"), behind(div.operands[0], "exp", "exp2")
    if total is None or exp is None or total.operands[0] is not exp.result:
        return None
    exponent, factor = exp.operands[0], 1.0
    if (mul := exponent.defining_op) is not None and mul.name == "mul":
        number = mul.operands[1].defining_op
        if number is None or not number.definition.has(CONSTANT) or not number.attributes["value"] > 0:
            return None
        ops.append(mul)
        exponent, factor = mul.operands[0], number.attributes["value"]
    if (sub := behind(exponent, "sub")) is None or (spread := behind(sub.operands[1], "broadcast")) is None:
        return None
    top, scores = behind(spread.operands[0], "reduce_max"), sub.operands[0]
    if top is None or top.operands[0] is not scores or dtype_of(scores.type) != f32:
        return None
    along = all(negative_axis(op, len(shape_of(scores.type))) == -1 for op in (total, top))
    return (scores, set(ops), exp.name, factor) if along else None


def _scores(made: Attention, scores: Value) -> bool:
    """Follows scores back to the one product behind them; False where something else than elementwise ops is there."""
    shape = shape_of(scores.type)
    pending, seen = [scores], set()
    products: list[Op] = []
    while pending:
        value = pending.pop()
        op = value.defining_op
        if value in seen or isinstance(value.type, ScalarType):
            continue
        seen.add(value)
        if op is not None and op.name == "matmul":
            products.append(op)
        elif op is not None and _is_free(value):
            made.free.update(_free_ops(value))
        elif op is not None and (op.definition.has(ELEMENTWISE) or op.name == "broadcast") and _depends(value):
            made.ops.add(op)
            pending += op.operands
        elif not _is_block(shape_of(value.type), shape):
            return False
    if len(products) != 1 or shape_of(products[0].result.type) != shape:
        return False
    made.first = products[0]
    made.ops.add(made.first)
    return True


def _depends(value: Value) -> bool:
    """Whether a product is behind elementwise ops."""
    pending = [value]
    while pending:
        op = pending.pop().defining_op
        if op is not None and op.name == "matmul":
            return True
        if op is not None and (op.definition.has(ELEMENTWISE) or op.name == "broadcast"):
            pending += op.operands
    return False


def _is_free(value: Value) -> bool:
    """Whether a tensor is made of indices and numbers alone."""
    pending = [value]
    while pending:
        current = pending.pop()
        op = current.defining_op
        if isinstance(current.type, ScalarType) or op is not None and op.name in ("iota", "full"):
            continue
        if op is None or not (op.definition.has(ELEMENTWISE) or op.name == "broadcast" or is_alias(op)):
            return False
        if is_alias(op) and shape_of(op.result.type)[-2:] != shape_of(op.operands[0].type)[-2:]:
            return False
        pending += op.operands
    return True


def _free_ops(value: Value) -> set[Op]:
    found: set[Op] = set()
    pending = [value]
    while pending:
        op = pending.pop().defining_op
        if op is not None and op not in found and not is_scalar_op(op):
            found.add(op)
            pending += op.operands
    return found


def _is_block(shape: Shape, scores: Shape) -> bool:
    """Whether a tensor in memory can be read a block of scores at a time."""
    return len(shape) == len(scores) and all(size in (1, whole) for size, whole in zip(shape, scores, strict=True))


def _fits(made: Attention) -> bool:
    q, k = made.first.operands
    v = made.second.operands[1]
    if not {dtype_of(value.type) for value in (q, k, v)} <= {bf16, f16, f32}:
        return False
    rows, length = shape_of(made.scores.type)[-2:]
    if rows == 1 or length == 1:
        return False
    for value, axis in ((k, -1), (v, -2)):
        found = access(value)
        along = found.axes[axis]
        if found.viewed and (along is None or shape_of(found.root.type)[along] != length):
            return False  # behind the last key lie other elements of the tensor
    for op in made.free:
        if op.name == "iota" and negative_axis(op, len(shape_of(op.result.type))) not in (-1, -2):
            return False
    return True


def _finish(made: Attention, used: Users) -> bool:
    """Takes in what only moves or casts the result."""
    for name in ("cast", "permute"):
        users = used.get(made.result, [])
        if len(users) == 1 and users[0].name == name:
            made.ops.add(users[0])
            made.result = users[0].result
    return True


def _is_near(seen: Seen) -> bool:
    """Whether bounds move by at most a key from row to row, and there are some."""
    bounds = (*seen.first, *seen.last)
    return bool(bounds) and all(abs(rows) <= 1 for rows, _ in bounds)


# ---- the kernel ------------------------------------------------------------------------------------------------------


class AttentionKernel(RowKernel):
    """A program computes `block` rows of one index of the leading axes."""

    def __init__(self, group: Group, found: Attention, sizes: Sizes, skipped: frozenset[Op], exact: bool) -> None:
        self.begin(group, sizes, skipped)
        self.found, self.exact = found, exact
        shape = shape_of(found.scores.type)
        self.keys, width = shape[-1], sizes.fix(shape_of(found.second.result.type)[-1])
        depth = sizes.fix(shape_of(found.first.operands[0].type)[-1])
        self.block, self.step = ROWS, KEYS // 2 if max(width, depth) > WIDE else KEYS
        self.rows = self.maker.dim("M", shape[-2])
        batch: list[tuple[Size, int]] = [(self.maker.dim_of(size), 1) for size in reversed(shape[:-2])]
        row, *rest = self.maker.programs([(self.rows, self.block), *batch])
        seen = Seen() if exact else seen_keys(found.scores)
        if any(rows > 0 for rows, _ in seen.last):
            row = self._last_first()
        self.seen, self.indices, self.row = seen, rest[::-1], row
        self.key = self.end = row  # of the block of keys, in a loop, and behind the last one
        self.blocks: dict[Value, Value] = {}
        left = self._operand(found.first.operands[0], row, None, (self.block, depth))
        self._end(self._exact_walks(left, depth, width) if exact else self._walk(left, depth, width))

    def _last_first(self) -> Value:
        """The first row of a program where those of the last rows, which see the most keys, start first."""
        builder = self.maker.builder
        programs = builder.value("sub", builder.value("num_programs", axis=0), self.maker.index(1))
        number = builder.value("sub", programs, builder.value("program_id", axis=0))
        return builder.value("mul", number, self.maker.index(self.block))

    def _operand(self, value: Value, row: Value | None, column: Value | None, shape: tuple[int, int]) -> Value:
        tile, flipped = self._operand_tile(value, row, column, shape)
        return self.maker.builder.value("transpose", tile) if flipped else tile

    def _operand_tile(
        self, value: Value, row: Value | None, column: Value | None, shape: tuple[int, int]
    ) -> tuple[Value, bool]:
        """The tile of an operand at a row and a column (None: all), and whether it is transposed."""
        found = access(value, self._is_inside)
        batch = self.indices if len(found.axes) > 2 else []
        tile, flipped = self._tile(found, found.starts, [*batch, row, column], shape)
        return self._widened(tile, value), flipped

    def _walk(self, left: Value, depth: int, width: int) -> Value:
        """The rows of the result, in one walk over the keys: largest scores, sums and products with the values so far,
        which shrink where a larger score appears.
        """
        builder = self.maker.builder.at(self.found.second)

        def seen(top: Value, weight: Value, total: Value) -> list[Value]:
            found = self._scores(left, depth)
            inner = self.maker.builder.at(self.found.second)
            largest = inner.value("max", top, inner.value("reduce_max", found, axis=1))
            # Of a row that has seen no key yet nothing is counted: -inf less -inf would be no number.
            low, none = (inner.value("constant", value=n, dtype=f32, weak=True) for n in (-math.inf, 0.0))
            base = inner.value("where", inner.value("eq", largest, low), none, largest)
            chances = self._raised(inner.value("sub", found, self._spread(base, self.step)))
            shrink = self._raised(inner.value("sub", top, base))
            counted = inner.value("reduce_sum", chances, axis=1)
            weight = inner.value("add", inner.value("mul", weight, shrink), counted)
            total = inner.value("mul", total, self._spread(shrink, width))
            return [largest, weight, self._multiplied(self._halves(chances), total, width)]

        start = {
            "largest": self._filled(1, -math.inf),
            "weight": self._filled(1, 0.0),
            "total": self._filled(width, 0.0),
        }
        _, weight, total = self._over_keys(start, seen)
        return builder.value("div", total, self._spread(weight, width))

    def _exact_walks(self, left: Value, depth: int, width: int) -> Value:
        """The rows of the result with the bits of the function: a walk for the largest scores, one for the sums, and
        one for the shares and their product with the values.
        """
        second = self.found.second

        def chances(top: Value) -> Value:
            """exp(scores - largest) of a block."""
            scores, inner = self._scores(left, depth), self.maker.builder.at(second)
            return self._raised(inner.value("sub", scores, self._spread(top, self.step)))

        def larger(top: Value) -> list[Value]:
            largest = self.maker.builder.value("reduce_max", self._scores(left, depth), axis=1)
            return [self.maker.builder.value("max", top, largest)]

        def added(total: Value) -> list[Value]:
            part = self.maker.builder.value("div", chances(top), self._spread(weight, self.step))
            if self._dtype != f32:
                part = self.maker.builder.value("cast", part, dtype=self._dtype, implicit=True)
            return [self._multiplied([part], total, width)]

        (top,) = self._over_keys({"largest": self._filled(1, -math.inf)}, larger)
        weight = self._tree_sum(lambda: chances(top))
        (total,) = self._over_keys({"total": self._filled(width, 0.0)}, added)
        return total

    def _tree_sum(self, terms: Callable[[], Value]) -> Value:
        """The sums of rows over all keys, in the order of the tree that sums are defined by.

        The walk carries what waits for its neighbour. Sums of 2^(LEVELS - 1) blocks are added one after the other, so
        up to twice as many blocks have the bits of the tree.
        """

        def number(value: int) -> Value:
            return self.maker.builder.at(self.found.second).value("constant", value=value, dtype=i64)

        def counted(*waiting: Value) -> list[Value]:
            builder = self.maker.builder.at(self.found.second)
            part = builder.value("reduce_sum", terms(), axis=1)
            return waiting_sums(builder, waiting, part, self.key, self.step, endless=True)

        start = {f"waiting{level}": self._filled(1, 0.0) for level in range(LEVELS)}
        *waiting, top = self._over_keys(start, counted)
        builder = self.maker.builder.at(self.found.second)
        blocks = builder.value("floordiv", builder.value("add", self.end, number(self.step - 1)), number(self.step))
        total = self._filled(1, 0.0)
        for level, known in enumerate(waiting):
            bit = builder.value("mod", builder.value("floordiv", blocks, number(1 << level)), number(2))
            met = builder.value("add", known, total)
            total = builder.value("where", builder.value("eq", bit, number(1)), met, total)
        return builder.value("add", top, total)

    def _raised(self, difference: Value) -> Value:
        builder = self.maker.builder.at(self.found.second)
        if self.found.factor != 1:
            number = builder.value("constant", value=self.found.factor, dtype=f32, weak=True)
            difference = builder.value("mul", difference, number)
        return builder.value(self.found.power, difference)

    def _filled(self, columns: int, number: float) -> Value:
        builder = self.maker.builder.at(self.found.second)
        scalar = builder.value("constant", value=number, dtype=f32)
        return builder.value("full", scalar, shape=(self.block, columns), dtype=f32)

    def _multiplied(self, parts: Sequence[Value], total: Value, width: int) -> Value:
        """`total` and the products of parts of the shares of a block with its values."""
        second = self.found.second
        matrix, flipped = self._operand_tile(second.operands[1], self.key, None, (self.step, width))
        builder, precision = self.maker.builder, second.attributes["precision"]
        for part in parts:
            total = builder.value("mma", part, matrix, total, transpose_b=flipped, precision=precision)
        return total

    def _halves(self, chances: Value) -> list[Value]:
        """What a product of narrow operands takes in the place of numbers of f32: their rounded values, and what these
        leave. The function rounds shares, which are smaller by the sum of the row; to round before it is known would be
        another rounding, and a coarser one where the share lies just below a power of 2.
        """
        builder, dtype = self.maker.builder, self._dtype
        if dtype == f32:
            return [chances]
        upper = builder.value("cast", chances, dtype=dtype, implicit=True)
        rest = builder.value("sub", chances, builder.value("cast", upper, dtype=f32, implicit=True))
        return [upper, builder.value("cast", rest, dtype=dtype, implicit=True)]

    @property
    def _dtype(self) -> DType:
        """Of the shares that the second product multiplies."""
        return dtype_of(self.found.second.operands[0].type)

    def _over_keys(self, carried: Mapping[str, Value], make: Callable[..., list[Value]]) -> list[Value]:
        """A loop over blocks of `step` keys; `make` gives what is carried on."""
        maker = self.maker
        builder = maker.builder.at(self.found.second)
        self.end = maker.index(maker.dim_of(self.keys))
        bounds = [*self._bounds(), builder.value("constant", value=self.step, dtype=i64)]
        body = Block()
        self.key = body.add_argument(bounds[0].type, "key")
        sums = [body.add_argument(value.type, name) for name, value in carried.items()]
        maker.builder, self.blocks, known = builder.inner(body), {}, dict(self.made)
        maker.builder.op("yield", make(*sums))
        maker.builder, self.made = builder, known
        return builder.op("for", [*bounds, *carried.values()], [body], list(carried)).results

    def _bounds(self) -> tuple[Value, Value]:
        """Between which keys a program looks: where its rows see none it need not, but for the bits of a function, in
        which hidden values count where they are no numbers.
        """
        builder = self.maker.builder
        start, end = builder.value("constant", value=0, dtype=i64), self.end

        def key(rows: int, number: int, last: bool) -> Value:
            """rows * row + number of the row of the block that has the most, or the least."""
            number += rows * (self.block - 1) if (rows > 0) == last else 0
            factor = self.maker.index(rows)
            return builder.value("add", builder.value("mul", self.row, factor), self.maker.index(number))

        for rows, number in self.seen.first:
            start = builder.value("max", start, key(rows, number, last=False))
        for rows, number in self.seen.last:
            end = builder.value("min", end, key(rows, number + 1, last=True))
        if self.seen.first:
            step = self.maker.index(self.step)
            start = builder.value("mul", builder.value("floordiv", start, step), step)
        return start, end

    def _spread(self, column: Value, columns: int) -> Value:
        return self.maker.builder.value("broadcast", column, shape=(self.block, columns))

    def _scores(self, left: Value, depth: int) -> Value:
        """The scores of a block of keys."""
        first, builder = self.found.first, self.maker.builder.at(self.found.first)
        right, flipped = self._operand_tile(first.operands[1], None, self.key, (depth, self.step))
        precision = first.attributes["precision"]
        self.blocks[first.result] = builder.value("mma", left, right, transpose_b=flipped, precision=precision)
        return self._masked(self._scores_of(self.found.scores))

    def _masked(self, scores: Value) -> Value:
        """Scores without those behind the last key."""
        if isinstance(self.keys, int) and self.keys % self.step == 0:
            return scores
        builder = self.maker.builder
        number = builder.value("add", builder.value("iota", shape=(1, self.step), axis=1, dtype=i64), self.key)
        inside = builder.value("broadcast", builder.value("lt", number, self.end), shape=(self.block, self.step))
        low = builder.value("constant", value=-math.inf, dtype=f32, weak=True)
        return builder.value("where", inside, scores, low)

    def _scores_of(self, value: Value) -> Value:
        """The block of a tensor of scores, or of what scores are computed with, of this program and these keys."""
        if value in self.blocks:
            return self.blocks[value]
        op = value.defining_op
        if isinstance(value.type, ScalarType):
            self._need(value)
            return self.made[value]
        if op is None or op not in self.inside or is_view(op):
            self.blocks[value] = self._loaded(value)
            return self.blocks[value]
        if dtype_of(value.type).is_bool and (seen := seen_where(value)).exact and _is_near(seen):
            self.blocks[value] = self._seen(seen, self._extent(value))
            return self.blocks[value]
        operands = [self._scores_of(operand) for operand in op.operands]
        builder = self.maker.builder.at(op)
        if op.name == "iota":
            made = self._numbers_along(op)
        elif is_alias(op) or op in self.skipped or self._keeps(op, operands):
            made = operands[0]
        elif op.name == "full":
            made = builder.value("full", *operands, shape=self._extent(value), dtype=op.attributes["dtype"])
        elif op.name == "broadcast":
            made = builder.value("broadcast", *operands, shape=self._extent(value))
        else:
            made = builder.value(op.name, *operands, hint=op.result.name, **op.attributes)
        self.blocks[value] = made
        return made

    def _seen(self, seen: Seen, shape: tuple[int, int]) -> Value:
        """Where the rows of a block see its keys: differences of indices in it, against what the two begin at."""
        builder = self.maker.builder
        key, row = (builder.value("iota", shape=shape, axis=axis, dtype=i32) for axis in (1, 0))
        found: Value | None = None
        for name, bounds in (("ge", seen.first), ("le", seen.last)):
            for rows, number in bounds:
                start = builder.value("mul", self.row, self.maker.index(rows))
                start = builder.value("add", start, self.maker.index(number))
                start = builder.value("sub", start, self.key)
                # Differences in a block are small; what is beyond them is as far as it need be, and 32 bits hold it.
                start = builder.value("max", start, self.maker.index(-FAR))
                start = builder.value("cast", builder.value("min", start, self.maker.index(FAR)), dtype=i32)
                inside = {1: "sub", -1: "add"}.get(rows)
                difference = builder.value(inside, key, row) if inside is not None else key
                holds = builder.value(name, difference, start)
                found = holds if found is None else builder.value("and", found, holds)
        assert found is not None
        return found

    def _keeps(self, op: Op, operands: Sequence[Value]) -> bool:
        return op.name == "cast" and op.attributes["implicit"] and dtype_of(operands[0].type) == op.attributes["dtype"]

    def _extent(self, value: Value) -> tuple[int, int]:
        """The shape of a block: axes of size 1 stay so."""
        rows, keys = shape_of(value.type)[-2:]
        return (1 if rows == 1 else self.block, 1 if keys == 1 else self.step)

    def _numbers_along(self, op: Op) -> Value:
        builder, extent = self.maker.builder, self._extent(op.result)
        axis = negative_axis(op, len(shape_of(op.result.type)))
        numbers = builder.value("iota", shape=extent, axis=axis + 2, dtype=i64)
        numbers = builder.value("add", numbers, self.key if axis == -1 else self.row)
        return builder.value("cast", numbers, dtype=op.attributes["dtype"])

    def _loaded(self, value: Value) -> Value:
        """A block of a tensor in memory that scores are computed with."""
        *_, rows, keys = shape_of(value.type)
        found = access(value, self._is_inside)
        batch = [None if size == 1 else index for size, index in zip(shape_of(value.type), self.indices, strict=False)]
        at = [*batch[: len(found.axes) - 2], None if rows == 1 else self.row, None if keys == 1 else self.key]
        tile, flipped = self._tile(found, found.starts, at, self._extent(value))
        return self._widened(self.maker.builder.value("transpose", tile) if flipped else tile, value)

    def _end(self, rows: Value) -> None:
        """Rounds the result and stores it, its axes in the order of the function."""
        op, value, order = self.found.second, rows, list(range(len(self.indices) + 2))
        result = op.result
        while result is not self.found.result:
            (op,) = [user for user in self.group.ops if result in user.operands]
            if op.name == "permute":
                order = list(op.attributes["permutation"])
            else:
                value = self.maker.builder.at(op).value("cast", value, hint=op.result.name, **op.attributes)
            result = op.result
        width = shape_of(value.type)[-1]
        offsets = [*self.indices, self.row, 0]
        extents, kept = [*(1 for _ in self.indices), self.block, width], [*(False for _ in self.indices), True, True]
        sizes = [*(self.maker.dim_of(size) for size in shape_of(self.found.scores.type)[:-2]), self.rows, width]
        view = self.maker.view(result, tuple(sizes[axis] for axis in order), "out")
        if order.index(len(order) - 1) < order.index(len(order) - 2):
            value = self.maker.builder.value("transpose", value)
        window = self.maker.window(
            view, [offsets[axis] for axis in order], [extents[axis] for axis in order], [kept[axis] for axis in order]
        )
        self.maker.store(window, value)


def attention_kernel(group: Group, sizes: Sizes, skipped: frozenset[Op], exact: bool) -> KernelMaker:
    """The kernel of a group that `find_attention` has found. `exact`: with the bits of the function."""
    used: dict[Value, list[Op]] = {}
    for op in group.ops:
        for value in op.operands:
            used.setdefault(value, []).append(op)
    for op in reversed(group.ops):
        if op.name == "matmul" and (found := find_attention(op, used)) is not None:
            return AttentionKernel(group, found, sizes, skipped, exact).maker
    raise AssertionError("a region of attention holds one")


__all__ = ["WIDEST_HEAD", "Attention", "attention_kernel", "find_attention"]
