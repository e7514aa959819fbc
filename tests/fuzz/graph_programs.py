"""Random typed functions of Graph IR, built through the Builder: every one is valid by construction.

The generator follows the largest magnitude of every value, so that nothing overflows, no integer leaves its dtype and
no divisor is zero. A program is a function of its seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tessera.dtypes import DType, bf16, boolean, f16, f32, fp8_e4m3, fp8_e5m2, i32, i64
from tessera.ir.core import Block, Builder, Value
from tessera.ir.dead_code import drop_unused
from tessera.ir.dims import Size, evaluate, symbol
from tessera.ir.products import product_format
from tessera.ir.types import ScalarType, Shape, TileType, dtype_of, shape_of
from tessera.location import Loc
from tests.fuzz.graph_patterns import attention, unrolled_sum
from tests.fuzz.graph_program import INPUT, SCALARS, GraphProgram, function_of, used_dims

LIMIT = 2.0**12  # largest magnitude that a value may reach
ELEMENTS = 2500  # of the largest tensor: the interpreter runs hundreds of programs
PRODUCTS = 30_000  # multiplications of the largest matrix product
NARROW = (bf16, f16, fp8_e4m3, fp8_e5m2)
FLOATS = (bf16, f32, bf16, f32, f16, fp8_e4m3, fp8_e5m2)
LONG = (65, 100, 129, 150, 257)
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 40)


@dataclass
class Known:
    """A value that later ops may use, and its largest magnitude."""

    value: Value
    size: float

    @property
    def shape(self) -> Shape:
        return shape_of(self.value.type)

    @property
    def dtype(self) -> DType:
        return dtype_of(self.value.type)


Step = Callable[[], "Known | None"]


@dataclass
class Generator:
    """Draws one program."""

    seed: int
    most: int = 25  # ops, about
    random: random.Random = field(init=False)
    elements: int = ELEMENTS
    dims: dict[str, int] = field(default_factory=dict)
    known: list[Known] = field(default_factory=list)
    scalars: list[Known] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.body = Block()
        self.builder = Builder(self.body, (Loc("program.py", 1),))

    def program(self) -> GraphProgram:
        for name in "ABCD":
            self.dims[name] = self.random.choice(EXTENTS)
        if self.chance(0.25):  # beyond the widest block of any kernel
            self.dims["A"], self.elements = self.random.choice(LONG), 3 * ELEMENTS
        for _ in range(self.random.randint(1, 2)):
            self.parameter(self.shape(), self.dtype())
        count = self.random.randint(3, self.most)
        families = self.families()
        while len(self.body.ops) < count:
            self.builder.origin = (Loc("program.py", len(self.body.ops) + 2),)
            made = self.random.choice(families)()
            if made is not None:
                self.known.append(made)
        self.builder.origin = (Loc("program.py", count + 3),)
        self.builder.op("return", self.results())
        drop_unused(self.body)
        function = function_of(f"program_{self.seed}", self.body, [name for name in "ABCD" if self.chance(0.15)])
        return GraphProgram(function, used_dims(function, self.dims), self.seed)

    def families(self) -> list[Step]:
        elementwise = [self.unary, self.unary, self.binary, self.binary, self.where, self.cast]
        moves = [self.permute, self.concatenate, self.extract, self.broadcast, self.reshape]
        rows = [self.reduction, self.reduction, self.scan, self.product, self.product, self.softmax]
        others = [self.full, self.iota, self.uniform, self.scalar_op, self.narrow_product]
        patterns = [partial(self.pattern, unrolled_sum), partial(self.pattern, attention)]
        return elementwise * 3 + moves * 2 + rows * 2 + others + patterns

    def pattern(self, draw: Callable[[Generator], tuple[Value, float] | None]) -> Known | None:
        made = draw(self)
        return None if made is None else self.tamed(Known(*made))

    def results(self) -> list[Value]:
        """The last values, perhaps one twice, a parameter, a parameter under another shape, a scalar as a tensor."""
        used = {value for op in self.body.ops for value in op.operands}
        unused = [known.value for known in self.known if known.value not in used]
        found = [*unused[-self.random.randint(1, 6) :]] or [self.known[-1].value]
        if self.random.random() < 0.3:
            found.append(self.random.choice(self.known).value)
        if self.random.random() < 0.2:
            found.append(self.random.choice(found))
        if self.random.random() < 0.2:
            parameter = self.random.choice([k for k in self.known if k.value.owner is self.body])
            found.append(parameter.value)
            if self.random.random() < 0.5:
                total = _product(parameter.shape)
                found.append(self.builder.value("reshape", parameter.value, shape=(total, 1)))
        if self.random.random() < 0.15:
            scalar = self.scalar()
            dtype = f32 if scalar.dtype.is_float else i64
            found.append(self.builder.value("full", scalar.value, shape=(), dtype=dtype))
        return found

    # -- shapes and dtypes

    def count(self, shape: Sequence[Size]) -> int:
        return math.prod(evaluate(size, self.dims) for size in shape)

    def extent(self, size: Size) -> int:
        return evaluate(size, self.dims)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def size(self) -> Size:
        return symbol(self.random.choice("ABCD")) if self.chance(0.7) else self.random.choice((1, 1, 2, 3, 6, 16))

    def shape(self) -> Shape:
        while True:
            shape = tuple(self.size() for _ in range(self.random.choice((0, 1, 2, 2, 2, 3, 3, 4))))
            if self.count(shape) <= self.elements:
                return shape

    def dtype(self) -> DType:
        return self.random.choice((*FLOATS, *FLOATS, *FLOATS, i32, i32, boolean))

    # -- operands

    def parameter(self, shape: Shape, dtype: DType) -> Known:
        value = self.body.add_argument(TileType(shape, dtype), f"p{len(self.body.arguments)}")
        found = Known(value, 1.0 if dtype.is_bool else 8.0 if dtype.is_int else INPUT)
        self.known.append(found)
        return found

    def scalar(self) -> Known:
        kind = self.random.choice(["number", "scale", "constant", "size", "known"])
        if kind in SCALARS:
            return self.scalar_parameter(kind)
        if kind == "known" and self.scalars:
            return self.random.choice(self.scalars)
        if kind == "size":
            size = symbol(self.random.choice("ABCD"))
            return Known(self.builder.value("size", size=size), float(self.extent(size)))
        if self.chance(0.4):
            number = self.random.choice((2, 1, -1, 3))
            return Known(self.builder.value("constant", value=number, dtype=i64, weak=True), abs(number))
        number = self.random.choice((0.5, 0.1, -1.5, 2.0, 0.0))
        return Known(self.builder.value("constant", value=number, dtype=f32, weak=True), abs(number))

    def scalar_parameter(self, name: str) -> Known:
        dtype, number = SCALARS[name]
        for value in self.body.arguments:
            if value.name == name:
                return Known(value, float(number))
        return Known(self.body.add_argument(ScalarType(dtype, weak=True), name), float(number))

    def pick(self, wanted: Callable[[Known], bool] = lambda known: True) -> Known | None:
        """A value that fits, later ones more often than early ones."""
        fitting = [known for known in self.known if wanted(known)]
        if not fitting:
            return None
        return self.random.choice(fitting[-4:] if self.chance(0.6) else fitting)

    def numbers(self) -> Known | None:
        return self.pick(lambda known: not known.dtype.is_bool)

    def floats(self, wanted: Callable[[Known], bool] = lambda known: True) -> Known:
        found = self.pick(lambda known: known.dtype.is_float and wanted(known))
        return found or self.parameter(self.shape(), self.random.choice(FLOATS))

    def like(self, shape: Shape) -> Known:
        """An operand of this shape: a value that has it or spreads to it, a parameter, or a constant tensor."""
        same = self.pick(lambda known: known.shape == shape and not known.dtype.is_bool)
        if same is not None and self.chance(0.6):
            return same
        spread = self.pick(lambda known: _spreads(known.shape, shape) and not known.dtype.is_bool)
        if spread is not None and self.chance(0.7):
            return self.spread(spread, shape)
        if sum(isinstance(value.type, TileType) for value in self.body.arguments) < 4:
            narrow = tuple(1 if self.chance(0.3) else size for size in shape)
            dtype = self.random.choice((*FLOATS, i32))
            return self.spread(self.parameter(narrow if self.chance(0.4) else shape, dtype), shape)
        if same is not None:
            return same
        return self.filled(shape, self.random.choice((f32, bf16)))

    def filled(self, shape: Shape, dtype: DType) -> Known:
        scalar = self.scalar()
        if scalar.dtype.is_float or dtype.is_int or dtype.is_float:
            dtype = f32 if scalar.dtype.is_float and dtype.is_int else dtype
        return Known(self.builder.value("full", scalar.value, shape=shape, dtype=dtype), scalar.size)

    def spread(self, known: Known, shape: Shape) -> Known:
        value = known.value
        if len(known.shape) < len(shape):
            padded = (*(1,) * (len(shape) - len(known.shape)), *known.shape)
            value = self.builder.value("reshape", value, shape=padded)
        if shape_of(value.type) != shape:
            value = self.builder.value("broadcast", value, shape=shape)
        return Known(value, known.size)

    def tamed(self, made: Known) -> Known:
        """The value, made small when it may have grown too large for its dtype."""
        dtype = made.dtype
        if made.size <= (LIMIT if dtype != fp8_e4m3 else 448.0):
            return made
        if dtype.is_float:
            return Known(self.builder.value("tanh", made.value), 1.0)
        seven = self.builder.value("constant", value=7, dtype=i64, weak=True)
        return Known(self.builder.value("mod", made.value, seven), 7.0)

    def made(self, name: str, operands: Sequence[Value], size: float, **attributes: Any) -> Known:
        return self.tamed(Known(self.builder.value(name, *operands, **attributes), size))

    # -- elementwise

    def unary(self) -> Known | None:
        a = self.floats()
        name = self.random.choice(
            ["neg", "abs", "tanh", "sigmoid", "exp", "sqrt", "rsqrt", "log", "silu", "gelu", "floor", "ceil", "erf"]
        )
        if name in ("neg", "abs", "silu", "gelu", "floor", "ceil"):
            return self.made(name, [a.value], a.size + 1)
        if name in ("tanh", "sigmoid", "erf"):
            return self.made(name, [a.value], 1.0)
        if name == "exp":
            three = self.builder.value("constant", value=3.0, dtype=f32, weak=True)
            return self.made("exp", [self.builder.value("min", a.value, three)], 21.0)
        half = self.builder.value("constant", value=0.5, dtype=f32, weak=True)
        positive = self.builder.value("add", self.builder.value("abs", a.value), half)
        return self.made(name, [positive], max(2.0, a.size))

    def binary(self) -> Known | None:
        a = self.numbers()
        if a is None:
            return None
        b = self.scalar() if self.chance(0.3) else self.like(a.shape)
        if self.chance(0.3):
            a, b = b, a
        if not (isinstance(a.value.type, TileType) or isinstance(b.value.type, TileType)):
            return None
        kind = self.random.choice(["add", "sub", "mul", "max", "min", "div", "mod", "compare", "compare"])
        ints = a.dtype.is_int and b.dtype.is_int
        sizes = {"add": a.size + b.size, "sub": a.size + b.size, "mul": a.size * b.size}
        if kind == "compare":
            name = self.random.choice(["lt", "le", "gt", "ge", "eq", "ne"])
            return Known(self.builder.value(name, a.value, b.value), 1.0)
        if kind in ("div", "mod"):
            if ints:
                divisor = self.builder.value("constant", value=self.random.choice((3, 7, -5)), dtype=i64, weak=True)
                name = self.random.choice(["mod", "floordiv"])
                return None if _is_scalar(a) else self.made(name, [a.value, divisor], max(a.size, 7.0))
            half = self.builder.value("constant", value=0.5, dtype=f32, weak=True)
            divisor = self.builder.value("add", self.builder.value("abs", b.value), half)
            return self.made("div", [a.value, divisor], 2 * a.size)
        return self.made(kind, [a.value, b.value], sizes.get(kind, max(a.size, b.size)))

    def where(self) -> Known | None:
        condition = self.pick(lambda known: known.dtype.is_bool)
        if condition is None or self.chance(0.3):
            a = self.numbers()
            if a is None:
                return None
            compared = self.builder.value("gt", a.value, self.scalar().value)
            condition = Known(compared, 1.0)
            if self.chance(0.3):
                other = self.builder.value("lt", a.value, self.like(a.shape).value)
                name = self.random.choice(["and", "or"])
                condition = Known(self.builder.value(name, compared, other), 1.0)
        if self.chance(0.1):
            condition = Known(self.builder.value("not", condition.value), 1.0)
        a, b = (self.scalar() if self.chance(0.3) else self.like(condition.shape) for _ in range(2))
        return self.made("where", [condition.value, a.value, b.value], max(a.size, b.size))

    def cast(self) -> Known | None:
        a = self.pick()
        if a is None:
            return None
        dtype = self.random.choice((*FLOATS, *FLOATS, i32, boolean, i64))
        implicit = dtype.is_float and a.dtype.is_float and self.chance(0.5)
        size = min(a.size, dtype.largest) if dtype.is_float else 1.0 if dtype.is_bool else a.size
        return Known(self.builder.value("cast", a.value, dtype=dtype, implicit=implicit), size)

    # -- moves

    def reshape(self) -> Known | None:
        a = self.pick()
        if a is None:
            return None
        shape = list(a.shape)
        kind = self.random.choice(["flat", "insert", "merge", "drop", "split", "column"])
        if kind == "flat":
            shape = [_product(shape)]
        elif kind == "column":
            shape = [_product(shape), 1]
        elif kind == "insert" and len(shape) < 4:
            shape.insert(self.random.randint(0, len(shape)), 1)
        elif kind == "merge" and len(shape) > 1:
            axis = self.random.randrange(len(shape) - 1)
            shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
        elif kind == "drop" and 1 in shape:
            shape.remove(1)
        elif kind == "split" and len(shape) < 4:
            places = [i for i, s in enumerate(shape) if isinstance(s, int) and s > 1 and s % 2 == 0]
            if not places:
                return None
            axis = self.random.choice(places)
            shape[axis : axis + 1] = [2, shape[axis] // 2]
        if tuple(shape) == a.shape and self.chance(0.8):
            return None
        return Known(self.builder.value("reshape", a.value, shape=tuple(shape)), a.size)

    def permute(self) -> Known | None:
        a = self.pick(lambda known: len(known.shape) > 1)
        if a is None:
            return None
        order = list(range(len(a.shape)))
        self.random.shuffle(order)
        return Known(self.builder.value("permute", a.value, permutation=tuple(order)), a.size)

    def broadcast(self) -> Known | None:
        """Along any axes, rows or not."""
        a = self.pick(lambda known: 1 in known.shape)
        if a is None:
            a = self.pick(lambda known: len(known.shape) < 4)
            if a is None:
                return None
            shape = list(a.shape)
            shape.insert(self.random.randint(0, len(shape)), 1)
            a = Known(self.builder.value("reshape", a.value, shape=tuple(shape)), a.size)
        shape = tuple(self.size() if size == 1 and self.chance(0.7) else size for size in a.shape)
        if self.count(shape) > self.elements:
            return None
        return Known(self.builder.value("broadcast", a.value, shape=shape), a.size)

    def extract(self) -> Known | None:
        a = self.pick(lambda known: len(known.shape) > 0)
        return None if a is None else self.part(a, range(len(a.shape)))

    def part(self, a: Known, axes: Sequence[int]) -> Known:
        starts: list[Size] = [0] * len(a.shape)
        extents: list[Size] = list(a.shape)
        for axis in axes:
            size, actual = a.shape[axis], self.extent(a.shape[axis])
            if self.chance(0.4):
                continue
            first = self.random.randrange(actual)
            kind = self.random.choice(["fixed", "to the end", "from the end", "one"])
            if kind == "to the end":
                starts[axis], extents[axis] = first, size - first
            elif kind == "from the end":
                back = self.random.randint(1, actual)
                starts[axis], extents[axis] = size - back, self.random.randint(1, back)
            else:
                starts[axis] = first
                extents[axis] = 1 if kind == "one" else self.random.randint(1, actual - first)
        return Known(self.builder.value("extract", a.value, starts=tuple(starts), extents=tuple(extents)), a.size)

    def concatenate(self) -> Known | None:
        a = self.pick(lambda known: len(known.shape) > 0)
        if a is None:
            return None
        axis = self.random.randrange(len(a.shape))

        def joins(known: Known) -> bool:
            return (
                len(known.shape) == len(a.shape)
                and all(i == axis or s == t for i, (s, t) in enumerate(zip(known.shape, a.shape, strict=True)))
                and known.dtype.is_float == a.dtype.is_float
            )

        parts = [a]
        for _ in range(self.random.choice((0, 1, 1, 2, 2, 4))):
            other = self.pick(joins) or a
            other = self.part(other, [axis]) if self.chance(0.4) else other
            if other.dtype != a.dtype:
                if not a.dtype.is_float or not other.dtype.is_float:
                    continue
                cast = self.builder.value("cast", other.value, dtype=a.dtype, implicit=self.chance(0.5))
                other = Known(cast, min(other.size, a.dtype.largest))
            parts.append(other)
        self.random.shuffle(parts)
        if sum(self.count(part.shape) for part in parts) > self.elements:
            return None
        given = axis if self.chance(0.5) else axis - len(a.shape)
        value = self.builder.value("concatenate", *(part.value for part in parts), axis=given)
        return Known(value, max(part.size for part in parts))

    # -- along axes

    def axis_of(self, a: Known) -> tuple[int, int]:
        """The last axis more often than another one, as it is written and counted from 0."""
        rank = len(a.shape)
        axis = rank - 1 if self.chance(0.5) else self.random.randrange(rank)
        return (axis if self.chance(0.5) else axis - rank), axis

    def reduction(self) -> Known | None:
        a = self.pick(lambda known: len(known.shape) > 0 and not known.dtype.is_bool)
        if a is None:
            return None
        name = self.random.choice(["sum", "sum", "max", "min", "argmax", "argmin"])
        given, axis = self.axis_of(a)
        length = self.extent(a.shape[axis])
        if name in ("argmax", "argmin"):
            made = Known(self.builder.value(name, a.value, axis=given), float(length))
        else:
            made = self.made(f"reduce_{name}", [a.value], a.size * (length if name == "sum" else 1), axis=given)
        if self.chance(0.5):
            shape = (*made.shape[:axis], *made.shape[axis + 1 :])
            return Known(self.builder.value("reshape", made.value, shape=shape), made.size)
        return made

    def scan(self) -> Known | None:
        a = self.pick(lambda known: len(known.shape) > 0 and not known.dtype.is_bool)
        if a is None:
            return None
        given, axis = self.axis_of(a)
        if self.chance(0.5):
            return Known(self.builder.value("cummax", a.value, axis=given), a.size)
        return self.made("cumsum", [a.value], a.size * self.extent(a.shape[axis]), axis=given)

    def softmax(self) -> Known | None:
        """A chain that meets in one kernel: rows less their maximum, exponentials, their share of the sum."""
        a = self.floats(lambda known: len(known.shape) > 0)
        if not a.shape:
            return None
        top = self.spread(Known(self.builder.value("reduce_max", a.value, axis=-1), a.size), a.shape)
        shares = self.builder.value("exp", self.builder.value("sub", a.value, top.value))
        total = self.spread(Known(self.builder.value("reduce_sum", shares, axis=-1), LIMIT), a.shape)
        return Known(self.builder.value("div", shares, total.value), 1.0)

    def product(self) -> Known | None:
        a = self.floats(lambda known: len(known.shape) > 1)
        if len(a.shape) < 2:
            return None
        b = self.second(a)
        if b is None:
            return None
        pair = self.multipliable(a, b)
        return None if pair is None else self.multiplied(*pair)

    def narrow_product(self) -> Known | None:
        """An f32 product of what was narrow before."""
        a = self.floats(lambda known: len(known.shape) > 1 and known.dtype in NARROW)
        if len(a.shape) < 2 or a.dtype not in NARROW:
            return None
        b = self.second(a)
        if b is None:
            return None
        if b.dtype not in NARROW:
            b = Known(self.builder.value("cast", b.value, dtype=self.random.choice(NARROW)), min(b.size, 448.0))
        wide = [
            Known(self.builder.value("cast", x.value, dtype=f32, implicit=self.chance(0.5)), x.size) for x in (a, b)
        ]
        return self.multiplied(*wide)

    def second(self, a: Known) -> Known | None:
        """A second operand: one there is, one that fits when it is transposed, or a new parameter."""
        k = a.shape[-1]

        def fits(shape: Shape) -> bool:
            return len(shape) >= 2 and shape[-2] == k and (len(shape) == 2 or shape[:-2] == a.shape[:-2])

        b = self.pick(lambda known: known.dtype.is_float and fits(known.shape))
        if b is not None and self.chance(0.7):
            return b
        c = self.pick(
            lambda known: (
                known.dtype.is_float and len(known.shape) > 1 and fits((*known.shape[:-2], *reversed(known.shape[-2:])))
            )
        )
        if c is not None and self.chance(0.7):
            rank = len(c.shape)
            order = (*range(rank - 2), rank - 1, rank - 2)
            return Known(self.builder.value("permute", c.value, permutation=order), c.size)
        if sum(isinstance(value.type, TileType) for value in self.body.arguments) >= 4:
            return None
        batch = a.shape[:-2] if self.chance(0.4) else ()
        shape = (*batch, k, self.size())
        return self.parameter(shape, a.dtype) if self.count(shape) <= self.elements else None

    def multipliable(self, a: Known, b: Known) -> tuple[Known, Known] | None:
        if product_format(a.dtype, b.dtype) is None:
            dtype = self.random.choice((bf16, f32, f16))
            a, b = (
                x
                if x.dtype == dtype
                else Known(self.builder.value("cast", x.value, dtype=dtype, implicit=self.chance(0.5)), x.size)
                for x in (a, b)
            )
        return a, b

    def multiplied(self, a: Known, b: Known) -> Known | None:
        k, n = self.extent(a.shape[-1]), self.extent(b.shape[-1])
        shape = (*a.shape[:-1], b.shape[-1])
        if self.count(shape) > self.elements or self.count(a.shape) * n > PRODUCTS:
            return None
        a, b = (x if x.size <= 64 else Known(self.builder.value("tanh", x.value), 1.0) for x in (a, b))
        precision = "tf32" if a.dtype == b.dtype == f32 and self.chance(0.3) else None
        return self.made("matmul", [a.value, b.value], a.size * b.size * k, precision=precision)

    # -- made of nothing

    def full(self) -> Known | None:
        return self.filled(self.shape(), self.random.choice((*FLOATS, i32, i64)))

    def iota(self) -> Known | None:
        shape = self.shape()
        if not shape:
            return None
        axis = self.random.randrange(len(shape))
        dtype = self.random.choice((i32, i64, f32, bf16))
        return Known(self.builder.value("iota", shape=shape, axis=axis, dtype=dtype), float(self.extent(shape[axis])))

    def uniform(self) -> Known | None:
        index = self.pick(lambda known: known.dtype.is_int)
        if index is None:
            shape = self.shape()
            flat = self.builder.value("iota", shape=(_product(shape),), axis=0, dtype=i64)
            index = Known(self.builder.value("reshape", flat, shape=shape), LIMIT)
        return Known(self.builder.value("uniform", index.value, self.scalar_parameter("seed").value), 1.0)

    def scalar_op(self) -> Known | None:
        """A scalar that every kernel that needs it computes again; it is no tensor that the function returns."""
        a, b = self.scalar(), self.scalar()
        name = self.random.choice(["add", "mul", "max", "exp"])
        if name == "exp":
            tenth = self.builder.value("constant", value=-0.1, dtype=f32, weak=True)
            made = Known(self.builder.value("exp", self.builder.value("mul", a.value, tenth)), math.exp(0.1 * a.size))
        else:
            size = a.size + b.size if name == "add" else a.size * b.size if name == "mul" else max(a.size, b.size)
            made = Known(self.builder.value(name, a.value, b.value), size)
        if made.size <= 64:
            self.scalars.append(made)
        return None


def _is_scalar(known: Known) -> bool:
    return isinstance(known.value.type, ScalarType)


def _product(shape: Sequence[Size]) -> Size:
    total: Size = 1
    for size in shape:
        total = total * size
    return total


def _spreads(source: Shape, shape: Shape) -> bool:
    if len(source) > len(shape) or source == shape:
        return False
    padded = (*(1,) * (len(shape) - len(source)), *source)
    return all(s in (1, t) for s, t in zip(padded, shape, strict=True))


def graph_program(seed: int, most: int = 25) -> GraphProgram:
    return Generator(seed, most).program()


__all__ = ["GraphProgram", "graph_program"]
