"""How a program computes lines that its registers do not hold: in walks over their columns, a panel at a time.

A line is a row of more than one column. A walk computes the panels of one product, or of what a row is reduced from,
or of what is stored. What is elementwise behind a product and needed once more after its walk is *kept*: all of it, in
a buffer. Everything else is computed again from what is kept and from memory, panel by panel, so no product is computed
twice. A largest element is found during the walk of the product that makes the line; sums are defined by blocks of 32,
one added after the other, and have walks of their own.

The model of `fusion_cost` walks where one pass is enough: over the smallest or largest element of a product of few
terms, such as the nearest of 2048 codes of 64 numbers. There the costs of its kernels, as schedules are ranked by,
promise 0.3 to 0.8 of the time of two for 32768 rows, and about the same for 4096. Lines that are needed again, as of a
softmax, were slower when they were walked: F3 took 687 us with panels at D = 512 and 470 us as four kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tessera.dtypes import f32
from tessera.ir.core import Op, Value
from tessera.ir.dims import Size
from tessera.ir.numeric import BLOCK
from tessera.ir.ops.tiles import format_of
from tessera.ir.types import ScalarType, TileType, dtype_of, shape_of
from tessera.passes.fusion_cost import LEAST_PRODUCT_ROWS, Programs, Sizes
from tessera.passes.graph_groups import (
    columns_of,
    is_along,
    is_batched,
    is_lazy,
    is_made_again,
    is_widening,
    source_of,
)

WIDEST_REDUCED_PRODUCT = 512  # columns of a product whose rows a later op of its kernel may reduce, and of a product
# that is the left operand of another one, where registers of a program of 16 rows hold them
WIDEST_F32_LINE = 64  # the same where f32 is multiplied, by units that are not tensor cores
MOST_WALKED_PRODUCTS = 4  # of a kernel that walks: each has a loop, and what it keeps
KEPT_BYTES = 1 << 16  # of shared memory for what is kept; blocks have 99 KB or more, and panels want the rest
PANEL = 128  # columns of a product, and of lines, at a time
DEPTHS = {1: 64, 2: 64, 4: 32}  # elements along the sum of a product at a time, by bytes of what is multiplied
WALKING_BLOCKS = 2  # of a kernel that walks, on a multiprocessor
MOST_WALKED_ROWS = 32  # of a program: panels of as many rows and 128 columns fill the registers of 4 warps

Again = Callable[[Op], bool]


def lines_behind_products(ops: Sequence[Op], sizes: Sizes) -> int:
    """Columns of the widest line behind a product that is reduced, scanned or multiplied; 0 where there is none."""
    hard: set[Value] = set()
    widest = 0
    for op in ops:
        behind = any(source_of(value, hard) in hard for value in op.operands)
        line = op.operands[0] if op.name == "matmul" or is_along(op) else None
        if line is not None and behind and source_of(line, hard) in hard:
            widest = max(widest, sizes.decide(columns_of(shape_of(line.type))))
        if behind or op.name == "matmul":
            hard.update(op.results)
    return widest


@dataclass(eq=False)
class Walk:
    """`product`: whose panels it computes, if it is one's. `kept`: values of which it fills a buffer; `reduced`: ops
    along the line that it takes in; `stored`: values that it stores.
    """

    number: int
    product: Op | None = None
    kept: list[Value] = field(default_factory=list)
    reduced: list[Op] = field(default_factory=list)
    stored: list[Value] = field(default_factory=list)


class Walks:
    """The walks of a row group. `steps`: walks, and ops that compute a column, in the order in which they run."""

    def __init__(self, ops: Sequence[Op], outputs: Iterable[Value], again: Again) -> None:
        """`again`: which ops outside of the group its kernel does once more."""
        self.again, self.inside = again, {op for op in ops if not is_lazy(op)}
        self.ranks: dict[Op, int] = {}
        for op in ops:
            if op in self.inside:
                self.ranks[op] = max((self.ranks[r] for r in self._real(op)), default=0) + (op.name == "matmul")
        self.steps: list[Walk | Op] = []
        self.walks: list[Walk] = []
        self.home: dict[Value, Walk] = {}  # the walk of a product during which a line can be computed
        self.lines: set[Value] = set()  # left operands of products: all of one is needed for each panel
        self.known: dict[Value, int] = {}  # by column, how many walks there were before it was there
        places = {op: place for place, op in enumerate(ops)}
        # A product comes behind all that does not wait for it: what is behind the product then finds that there.
        for op in sorted(self.inside, key=lambda op: (self.ranks[op], op.name != "matmul", places[op])):
            self._add(op)
        self._store(list(dict.fromkeys(outputs)))
        for walk in self.walks:
            self._drop(walk)

    @property
    def kept(self) -> list[Value]:
        return [value for walk in self.walks for value in walk.kept]

    # -- building

    def _real(self, op: Op) -> list[Op]:
        """The ops of the group whose results an op needs, itself or made again from them."""
        found, pending = [], list(op.operands[:1] if op.name == "matmul" else op.operands)
        while pending:
            by = pending.pop().defining_op
            if by is not None and by in self.inside:
                found.append(by)
            elif by is not None and self.passes(by):
                pending += by.operands
        return found

    def passes(self, op: Op) -> bool:
        """Whether a panel of an op's result is made from a panel of its operand, where it is needed."""
        return is_made_again(op) and self.again(op)

    def _walk(self, product: Op | None = None) -> Walk:
        walk = Walk(len(self.walks), product)
        self.walks.append(walk)
        self.steps.append(walk)
        return walk

    def _add(self, op: Op) -> None:
        if op.name == "matmul":
            self._keep_line(op.operands[0])
            self.home[op.result] = self._walk(op)
        elif is_along(op):
            self._reduce(op)
        elif is_column(op.result):
            self.known[op.result] = len(self.walks)
            self.steps.append(op)
        elif (walk := self._home(op.operands)) is not None:
            self.home[op.result] = walk

    def _home(self, operands: Sequence[Value]) -> Walk | None:
        """The last product's walk that values are computed from, where all else that they need is there before it."""
        homes, known, pending, seen = set(), 0, list(operands), set()
        while pending:
            value = pending.pop()
            op = value.defining_op
            if value in seen:
                continue
            seen.add(value)
            if value in self.home:
                homes.add(self.home[value])
            elif value in self.known:
                known = max(known, self.known[value])
            elif op is not None and (op in self.inside or self.passes(op)):
                pending += op.operands
        if not homes:
            return None
        last = max(homes, key=lambda walk: walk.number)
        if known > last.number:
            return None
        for value in operands:
            self._need(value, last)
        return last

    def _reduce(self, op: Op) -> None:
        line = op.operands[0]
        walk = self._home([line])
        if walk is None or op.name == "reduce_sum":
            walk = self._walk()
            self._need(line, walk)
        walk.reduced.append(op)
        self.known[op.result] = walk.number + 1

    def _keep_line(self, line: Value) -> None:
        """Has the left operand of a product in a buffer, unless it is in memory."""
        line = self._narrow(line)
        op = line.defining_op
        if op is None or op not in self.inside or is_column(line):
            return
        walk = self._home([line])
        if walk is None:
            walk = self._walk()
            for value in op.operands:
                self._need(value, walk)
        self._keep(line, walk)
        self.lines.add(line)

    def _need(self, value: Value, walk: Walk) -> None:
        """Keeps what earlier walks have made and a walk needs for panels of a value."""
        pending, seen = [value], set()
        while pending:
            value = pending.pop()
            op = value.defining_op
            if value in seen or value in self.known or op is None or isinstance(value.type, ScalarType):
                continue
            seen.add(value)
            made = self.home.get(value)
            if made is not None and made is not walk:
                self._keep(value, made)
            elif op.name != "matmul" and (op in self.inside or self.passes(op)):
                pending += op.operands

    def _keep(self, value: Value, walk: Walk) -> None:
        value = self._narrow(value)
        self.home[value] = walk
        if value not in self.kept:
            walk.kept.append(value)

    def _drop(self, walk: Walk) -> None:
        """Keeps nothing that is computed from what else is kept, element by element."""
        for value in sorted(walk.kept, key=lambda value: -dtype_of(value.type).bytes):
            rest = {each for other in self.walks[: walk.number + 1] for each in other.kept} - {value}
            if value not in self.lines and self._follows(value, rest):
                walk.kept.remove(value)

    def _follows(self, value: Value, kept: set[Value]) -> bool:
        """Whether a line is computed from others and what is no product's."""
        pending = [value]
        while pending:
            value = pending.pop()
            op = value.defining_op
            if value in kept or value in self.known or op is None:
                continue
            if op in self.inside and op.name == "matmul":
                return False
            if op in self.inside or self.passes(op):
                pending += op.operands
        return True

    def _narrow(self, value: Value) -> Value:
        """What a value is cast from where that loses nothing."""
        while (op := value.defining_op) is not None and is_widening(op) and self.again(op):
            value = op.operands[0]
        return value

    def _store(self, outputs: list[Value]) -> None:
        last: dict[Size, Walk] = {}
        for value in outputs:
            if is_column(value):
                continue
            walk = self._home([value])
            if walk is None:
                width = columns_of(shape_of(value.type))
                walk = last[width] = last.get(width) or self._walk()
                self._need(value, walk)
            walk.stored.append(value)


def is_column(value: Value) -> bool:
    return isinstance(value.type, TileType) and columns_of(shape_of(value.type)) == 1


def must_walk(ops: Sequence[Op], sizes: Sizes) -> int:
    """Columns of the widest line behind a product, where registers do not hold it; 0 where they do."""
    f32_products = any(op.name == "matmul" and format_of(op) == "f32" for op in ops)
    widest = lines_behind_products(ops, sizes)
    return widest if widest > (WIDEST_F32_LINE if f32_products else WIDEST_REDUCED_PRODUCT) else 0


def why_not_walk(ops: Sequence[Op], sizes: Sizes) -> str | None:
    """Why a row group with products cannot be computed in walks, as the end of a sentence."""
    products = [op for op in ops if op.name == "matmul"]
    if any(map(is_batched, products)):
        return "a batch of products is not walked over"
    if len(products) > MOST_WALKED_PRODUCTS:
        return f"a kernel that walks over lines has at most {MOST_WALKED_PRODUCTS} products"
    if any(sizes.decide(columns_of(shape_of(op.result.type))) == 1 for op in products):
        return "a product of one column makes no line"
    for op in ops:
        if is_along(op) and (op.name not in IDENTITIES or dtype_of(op.operands[0].type) != f32):
            return f"'{op.name}' needs all of its line at once"
    return None


IDENTITIES = {"reduce_sum": -0.0, "reduce_max": float("-inf"), "reduce_min": float("inf")}


def walks_of(ops: Sequence[Op], outputs: Iterable[Value], again: Again, sizes: Sizes) -> Walks | None:
    """The walks of a row group that is computed so, None of another one."""
    if not must_walk(ops, sizes) or why_not_walk(ops, sizes) is not None:
        return None
    walks = Walks(ops, outputs, again)
    return walks if walked_rows(walks, sizes) else None


def walked_rows(walks: Walks, sizes: Sizes) -> int:
    """How many rows a program has that walks; 0 where shared memory does not hold what it keeps."""
    bytes_ = sum(
        sizes.decide(columns_of(shape_of(value.type))) * dtype_of(value.type).bytes for value in walks.kept
    )  # fmt: skip
    rows = MOST_WALKED_ROWS
    while rows >= LEAST_PRODUCT_ROWS and rows * bytes_ > KEPT_BYTES:
        rows //= 2
    return rows if rows >= LEAST_PRODUCT_ROWS else 0


def walked_programs(walks: Walks, sizes: Sizes) -> Programs:
    """What decides the cost of a kernel that walks: its panels, and slices of the depth of products in them."""
    iterations = panels = 0
    for walk in walks.walks:
        lines = [*walk.kept, *walk.stored, *(op.operands[0] for op in walk.reduced)]
        if not lines:
            continue
        width = sizes.decide(columns_of(shape_of(lines[0].type)))
        step = BLOCK if any(op.name == "reduce_sum" for op in walk.reduced) else PANEL
        panels += -(-width // step)
        if walk.product is not None:
            left = walk.product.operands[0]
            depth = sizes.decide(columns_of(shape_of(left.type)))
            iterations += -(-width // step) * -(-depth // DEPTHS[dtype_of(left.type).bytes])
    return Programs(walked_rows(walks, sizes), WALKING_BLOCKS, iterations, panels)


__all__ = [
    "DEPTHS", "IDENTITIES", "PANEL", "WIDEST_F32_LINE", "WIDEST_REDUCED_PRODUCT", "Walk", "Walks", "is_column",
    "lines_behind_products", "must_walk", "walked_programs", "walked_rows", "walks_of", "why_not_walk",
]  # fmt: skip
