"""Typed tile programs as Python text, drawn by hypothesis: every one is valid by construction.

A program is a few statements over one *frame*: how the grid and the columns of the output are walked. The generator
follows the shape, the dtype and the largest magnitude of every tile, so that nothing overflows and nothing is NaN; a
draw that fits nowhere falls back to something plain, so no draw is wasted. Choices are ordered simple first, which is
where hypothesis shrinks to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tessera.target.schedule import Schedule
from tests.fuzz.vocabulary import BINARY, LIMIT, UNARY, Extent, Frame, Program, Scope, Shape, Tile

INPUT = 6.0  # that of a standard normal sample, for all that matters
INDENT = "    "
FLOATS = ("f32", "bf16")
ALL_FLOATS = (*FLOATS, "f16", "fp8_e4m3", "fp8_e5m2")


class Generator:
    """Draws one program."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], dtypes: Sequence[str] = FLOATS) -> None:
        self.draw = draw
        self.dtypes = tuple(dtypes)
        self.lines: list[str] = []
        self.inputs: dict[str, tuple[tuple[str, ...], str]] = {}
        self.outputs: list[tuple[str, tuple[str, ...], str]] = []
        self.scalars: dict[str, str] = {}
        self.dims: dict[str, int] = {}
        self.count = 0
        self.copied: list[str] = []
        self.dirty: set[str] = set()

    # -- drawing

    def choose(self, options: Sequence[Any]) -> Any:
        return options[0] if len(options) == 1 else self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def line(self, scope: Scope, text: str) -> None:
        self.lines.append(INDENT * scope.depth + text)

    def define(self, scope: Scope, tile: Tile) -> Tile:
        """Gives an expression a name that later statements may use."""
        named = replace(tile, text=self.fresh("t"))
        self.line(scope, f"{named.text} = {tile.text}")
        scope.tiles.append(named)
        return named

    # -- the program

    def program(self) -> Program:
        frame = self.frame()
        self.main, self.axes = frame.main, frame.axes
        scope = Scope(depth=frame.depth, integers=["tile.program_id(0)"])
        for _ in range(self.number(1, 8)):
            self.statement(scope)
        outputs = [("out", tuple(dim for dim, _ in frame.axes), self.choose(self.dtypes))]
        if frame.row_output and self.maybe():
            outputs.append(("side", (frame.axes[0][0],), self.choose(self.dtypes)))
        elif self.maybe():
            outputs.append(("side", outputs[0][1], self.choose(self.dtypes)))
        for name, dims, dtype in outputs:
            self.outputs.append((name, dims, dtype))
            shape = frame.main[: len(dims)]
            value = self.recent(scope, shape)
            window = ", ".join(
                self.slice(offset, extent) for (_, offset), extent in zip(self.axes, shape, strict=False)
            )
            self.line(scope, f"tile.store({value.text}, {name}[{window}])")
        body = [*frame.head, *self.lines]
        schedule = self.schedule()
        return Program("\n".join([*self.signature(body), *body, ""]), self.sizes(), schedule)

    def signature(self, body: list[str]) -> list[str]:
        parameters = [
            f"{name}: Tensor[{', '.join(repr(dim) for dim in dims)}, ts.{dtype}]".replace("'", '"')
            for name, (dims, dtype) in self.inputs.items()
        ]
        parameters += [f"{name}: {kind}" for name, kind in self.scalars.items()]
        parameters += [
            f"{name}: Tensor[{', '.join(repr(dim) for dim in dims)}, ts.{dtype}]".replace("'", '"')
            for name, dims, dtype in self.outputs
        ]
        return ["@ts.kernel", "def {name}(", *(f"{INDENT}{p}," for p in parameters), "):"]

    def sizes(self) -> dict[str, int]:
        used = {dim for dims, _ in self.inputs.values() for dim in dims} | {
            d for _, dims, _ in self.outputs for d in dims
        }
        return {dim: size for dim, size in self.dims.items() if dim in used}

    def schedule(self) -> Schedule | None:
        kind = self.choose(["default", "warps", "slices", "streams"])
        if kind == "default":
            return None
        streamed = tuple(name for name in self.copied if name not in self.dirty)
        return Schedule(
            self.choose([4, 8, 2, 1, 12]),
            streamed if kind == "streams" else (),
            0 if kind == "warps" else self.choose([8, 16, 32]),
            self.choose([64, 16, 32]),
        )

    def frame(self) -> Frame:
        rows = self.choose([8, 16, 4, 32, 1, 5, 24])
        self.dims["M"] = self.number(1, 3 * rows)
        self.dims["K"] = self.number(1, 40)
        kind = self.choose(["whole", "blocks", "loop", "vector"])
        context, row = "    ctx = tile.context()", f"    row = tile.program_id(0) * {rows}"
        if kind == "vector":
            length = self.choose([64, 32, 7, 100, 1000])
            self.dims["M"] = self.number(1, 3 * length)
            head = (context, f"    row = tile.program_id(0) * {length}")
            return Frame((length,), (("M", "row"),), head)
        if kind == "whole":
            self.dims["D"] = self.number(1, 32)
            return Frame((rows, "D"), (("M", "row"), ("D", "")), (context, row), row_output=True)
        columns = self.choose([8, 16, 32, 1, 12, 20])
        self.dims["N"] = self.number(1, 3 * columns)
        axes = (("M", "row"), ("N", "col"))
        if kind == "blocks":
            return Frame((rows, columns), axes, (context, row, f"    col = tile.program_id(1) * {columns}"))
        head = (context, row, f"    for col in tile.range(0, ctx.N, {columns}):")
        return Frame((rows, columns), axes, head, depth=2)

    # -- shapes

    def slice(self, offset: str, extent: Extent) -> str:
        return ":" if isinstance(extent, str) else f"{offset} : {offset} + {extent}"

    def text_of(self, shape: Shape) -> str:
        return "[" + ", ".join(f"ctx.{e}" if isinstance(e, str) else str(e) for e in shape) + "]"

    def value_of(self, extent: Extent) -> int:
        return self.dims[extent] if isinstance(extent, str) else extent

    def shape(self) -> Shape:
        """The main shape, more often than not; else one that broadcasts to it."""
        return self.choose([*[self.main] * 4, *self.spreading(self.main)])

    @staticmethod
    def spreading(shape: Shape) -> list[Shape]:
        """Shapes that broadcast to a shape, that one left out."""
        if len(shape) == 1:
            return [(1,)]
        return [(shape[0], 1), (1, shape[1]), (shape[1],)]

    # -- operands

    def known(self, scope: Scope, shape: Shape) -> list[Tile]:
        """What has a shape already, the newest first."""
        return [t for t in (*reversed(scope.tiles), *reversed(scope.buffers)) if t.shape == shape]

    def operand(self, scope: Scope, shape: Shape, dtype: str | None = None) -> Tile:
        """An expression of exactly this shape and, where one is asked for, dtype."""
        known = self.known(scope, shape)
        if known and self.number(0, 3):
            tile = self.choose(known)
            return (
                tile
                if dtype in (None, tile.dtype)
                else replace(tile, text=f"tile.cast({tile.text}, ts.{dtype})", dtype=dtype)
            )
        return self.load(scope, shape, dtype)

    def recent(self, scope: Scope, shape: Shape) -> Tile:
        """What a store takes: one of the newest tiles of its shape, one that spreads to it, or a window."""
        known = self.known(scope, shape)
        if known:
            return self.choose(known[:4])
        if len(shape) == 1 and len(self.main) == 2 and self.known(scope, (shape[0], 1)):
            column = self.known(scope, (shape[0], 1))[0]
            return replace(column, text=f"tile.reshape({column.text}, {self.text_of(shape)})", shape=shape)
        if shape == self.main:
            for other in self.spreading(shape):
                if self.known(scope, other):
                    tile = self.known(scope, other)[0]
                    return replace(tile, text=f"tile.broadcast_to({tile.text}, {self.text_of(shape)})", shape=shape)
        return self.load(scope, shape)

    def spread(self, scope: Scope, shape: Shape) -> Tile:
        """An operand that broadcasts to a shape: one of that shape, a smaller one, or a scalar."""
        kind = self.choose(["same", "same", "smaller", "scalar"])
        if kind == "scalar":
            return self.scalar(scope)
        return self.operand(scope, shape if kind == "same" else self.choose(self.spreading(shape)))

    def scalar(self, scope: Scope) -> Tile:
        kind = self.choose(["float", "int", "element"])
        if kind == "float":
            self.scalars["scale"] = "float"
            return Tile("scale", (), None, 1.25)
        if kind == "int":
            self.scalars["number"] = "int"
            return Tile("number", (), None, 3.0)
        name = self.tensor(scope, (self.axes[0][0],), None)
        return Tile(f"tile.load_scalar({name}[0])", (), "f32", INPUT) if name else Tile("0.75", (), None, 0.75)

    def load(self, scope: Scope, shape: Shape, dtype: str | None = None) -> Tile:
        """A window of an input of this shape, or a constant tile once there are three inputs and none fits."""
        places = [self.choose(self.places(scope, extent)) for extent in shape]
        name = self.tensor(scope, tuple(dim for dim, _ in places), dtype)
        if name is None:
            kind = dtype or self.choose(self.dtypes)
            return Tile(f"tile.full({self.text_of(shape)}, 0.5, ts.{kind})", shape, kind, 0.5)
        window = ", ".join(self.slice(offset, extent) for (_, offset), extent in zip(places, shape, strict=True))
        return Tile(f"{name}[{window}]", shape, self.inputs[name][1], INPUT)

    def places(self, scope: Scope, extent: Extent) -> list[tuple[str, str]]:
        """(dim, offset) of the windows that have an extent."""
        if isinstance(extent, str):
            return [(extent, "")]
        found = [axis for axis, e in zip(self.axes, self.main, strict=True) if e == extent]
        found += [(dim, f"({offset} + 3)") for dim, offset in found]
        return found or [("K" if extent > 1 else self.axes[-1][0], offset) for offset in scope.offsets]

    def tensor(self, scope: Scope, dims: tuple[str, ...], dtype: str | None) -> str | None:
        """An input over these dims: one that there is, or a new one while there are fewer than three."""
        fitting = [n for n, (d, kind) in self.inputs.items() if d == dims and dtype in (None, kind)]
        if fitting and (len(self.inputs) >= 3 or not self.maybe()):
            return self.choose(fitting)
        if len(self.inputs) >= 3:
            return None
        name = "xyz"[len(self.inputs)]
        self.inputs[name] = (dims, dtype or self.choose(self.dtypes))
        return name

    # -- statements

    def statement(self, scope: Scope) -> None:
        family = self.choose(
            ["values", "axes", "buffers", "control"] if scope.depth < 4 else ["values", "axes", "buffers"]
        )
        kinds = {
            "values": [self.unary, self.binary, self.load_tile, self.cast],
            "axes": [self.product, self.reduction, self.scan, self.index, self.moved, self.product],
            "buffers": [self.buffer, self.copies, self.rewrite, self.rewrite],
            "control": [self.branch, self.loop, self.unrolled, self.repeat],
        }
        self.choose(kinds[family])(scope)

    def load_tile(self, scope: Scope) -> None:
        window = self.load(scope, self.shape())
        self.define(scope, replace(window, text=f"tile.load({window.text})") if "[" == window.text[1:2] else window)

    def unary(self, scope: Scope) -> None:
        self.define(scope, self.unary_of(self.operand(scope, self.shape())))

    def unary_of(self, tile: Tile) -> Tile:
        text, size = self.choose(UNARY)
        return self.tamed(replace(tile, text=text.format(tile.text), dtype=None, size=size(tile.size)))

    def binary(self, scope: Scope) -> None:
        self.define(scope, self.binary_of(scope, self.shape()))

    def binary_of(self, scope: Scope, shape: Shape) -> Tile:
        a, b = self.operand(scope, shape), self.spread(scope, shape)
        if self.number(0, 3) == 3 and b.shape:
            a, b = b, a
        text, size = self.choose(BINARY)
        return self.tamed(Tile(text.format(a=a.text, b=b.text), shape, None, size(a.size, b.size)))

    def tamed(self, tile: Tile) -> Tile:
        """The tile, squashed when it may have grown too large."""
        return tile if tile.size <= LIMIT else replace(tile, text=f"tile.tanh({tile.text})", size=1.0)

    def cast(self, scope: Scope) -> None:
        tile, dtype = self.operand(scope, self.shape()), self.choose(self.dtypes)
        self.define(scope, replace(tile, text=f"tile.cast({tile.text}, ts.{dtype})", dtype=dtype))

    def reduction(self, scope: Scope) -> None:
        """A reduced axis of the main shape, kept or put back by a reshape or a broadcast."""
        axis = self.number(0, len(self.main) - 1)
        tile = self.operand(scope, self.main)
        name = self.choose(["sum", "max", "min", "mean"])
        size = tile.size * self.value_of(self.main[axis]) if name == "sum" else tile.size
        kept = tuple(1 if i == axis else e for i, e in enumerate(self.main))
        text = f"tile.{name}({tile.text}, axis={axis - len(self.main) if self.maybe() else axis}"
        if len(self.main) == 2 and self.maybe():
            dropped = (self.main[1 - axis],)
            self.define(scope, self.tamed(Tile(f"{text})", dropped, None, size)))
            return
        self.define(scope, self.tamed(Tile(f"{text}, keepdims=True)", kept, None, size)))

    def scan(self, scope: Scope) -> None:
        axis = self.number(0, len(self.main) - 1)
        tile, name = self.operand(scope, self.main), self.choose(["cummax", "cumsum"])
        size = tile.size * (self.value_of(self.main[axis]) if name == "cumsum" else 1)
        self.define(scope, self.tamed(Tile(f"tile.{name}({tile.text}, axis={axis})", self.main, None, size)))

    def index(self, scope: Scope) -> None:
        """Integers made from a shape, or the place of the largest element of a window (which no rounding moves)."""
        axis = self.number(0, len(self.main) - 1)
        if self.maybe():
            window, kept = self.load(scope, self.main), tuple(1 if i == axis else e for i, e in enumerate(self.main))
            name = self.choose(["argmax", "argmin"])
            tile = Tile(f"tile.{name}({window.text}, axis={axis}, keepdims=True)", kept, None, 0.0)
        else:
            shape = self.shape()
            tile = Tile(
                f"tile.iota({self.text_of(shape)}, axis={axis - len(self.main) if axis else -1})", shape, None, 0.0
            )
        size = float(max(self.value_of(e) for e in self.main))
        self.define(scope, self.tamed(replace(tile, text=f"tile.cast({tile.text}, ts.f32)", dtype="f32", size=size)))

    def moved(self, scope: Scope) -> None:
        """A tile turned around, or a part of a larger one."""
        shape = self.main
        if len(shape) == 2 and self.maybe():
            tile = self.operand(scope, shape[::-1])
            self.define(scope, replace(tile, text=f"tile.transpose({tile.text})", shape=shape))
            return
        extents = [e for e in shape if isinstance(e, int)]
        if len(extents) < len(shape):
            return self.unary(scope)
        start = self.choose([1, 0, 4])
        source = self.unary_of(self.load(scope, tuple(e + start for e in extents)))
        part = ", ".join(f"{start} : {start + e}" for e in extents)
        self.define(scope, replace(source, text=f"({source.text})[{part}]", shape=shape))

    def product(self, scope: Scope) -> None:
        if len(self.main) == 2:
            self.define(scope, self.product_of(scope, None))

    def product_of(self, scope: Scope, accumulator: str | None, grown: float = 0.0) -> Tile:
        rows, columns = self.main
        inner = self.choose([16, 8, 32, 5, 24, *([columns] if isinstance(columns, str) else [])])
        dtype = self.choose([d for d in ("bf16", "f32", "f16", "fp8_e4m3", "fp8_e5m2") if d in self.dtypes])
        flags, operands = [], []
        for flag, shape in (("transpose_a", (rows, inner)), ("transpose_b", (inner, columns))):
            turned = self.maybe()
            operands.append(self.matrix(scope, shape[::-1] if turned else shape, dtype))
            flags += [f"{flag}=True"] if turned else []
        if dtype == "f32" and self.number(0, 2) == 2:
            flags.append('precision="tf32"')
        if accumulator is None and self.known(scope, self.main) and self.maybe():
            start = self.choose(self.known(scope, self.main))
            accumulator, grown = f"tile.cast({start.text}, ts.f32)", start.size
        size = grown + operands[0].size * operands[1].size * self.value_of(inner)
        texts = [tile.text for tile in operands] + ([accumulator] if accumulator else []) + flags
        return self.tamed(Tile(f"tile.mma({', '.join(texts)})", self.main, "f32", size))

    def matrix(self, scope: Scope, shape: Shape, dtype: str) -> Tile:
        """An operand of a product: a window, a tile, or a computed one, of magnitude at most 8."""
        tile = self.operand(scope, shape, dtype)
        if tile.size > 8.0:
            return replace(tile, text=f"tile.cast(tile.tanh({tile.text}), ts.{dtype})", size=1.0, dtype=dtype)
        if self.number(0, 2) == 2:
            return replace(tile, text=f"tile.cast({tile.text} * 0.5, ts.{dtype})")
        return tile

    # -- buffers

    def allocate(self, scope: Scope, shape: Shape, dtype: str) -> str:
        name = self.fresh("b")
        self.line(scope, f"{name} = tile.alloc_shared({self.text_of(shape)}, ts.{dtype})")
        return name

    def buffer(self, scope: Scope) -> None:
        """A buffer that is filled or written by an operation."""
        dtype = self.choose(self.dtypes)
        shape = self.shape()
        tile = self.operand(scope, shape)
        name = self.allocate(scope, shape, dtype)
        if self.maybe():
            self.line(scope, f"tile.fill({name}, 0.5)")
            scope.buffers.append(Tile(name, shape, dtype, 0.5))
        else:
            self.line(scope, f"tile.multiply({tile.text}, 0.5, {name})")
            scope.buffers.append(Tile(name, shape, dtype, tile.size))
        self.dirty.add(name)

    def rewrite(self, scope: Scope) -> None:
        """A buffer written again, from itself and others; its magnitude must not grow, since a loop may be around."""
        if not any(b.size >= 0.5 for b in scope.buffers):
            self.buffer(scope)
        written = [b for b in scope.buffers if b.size >= 0.5]
        if not written:
            return
        target = self.choose(written)
        if self.maybe():  # what is read before must not see what is written now
            self.define(scope, self.unary_of(target))
        self.dirty.add(target.text)
        kind = self.choose(["itself", "other", "part"])
        if kind == "itself":
            self.line(scope, f"tile.multiply({target.text}, -0.5, {target.text})")
        elif kind == "part":
            extents = [self.value_of(e) for e in target.shape]
            counts = [self.number(1, extent) for extent in extents]
            starts = [self.choose([0, extent - count]) for count, extent in zip(counts, extents, strict=True)]
            if not all(isinstance(e, int) for e in target.shape):
                starts, counts = starts[:1], counts[:1]
            part = ", ".join(f"{start} : {start + count}" for start, count in zip(starts, counts, strict=True))
            self.line(
                scope,
                f"{target.text}[{part}] = {target.text}[{part}] * -0.5"
                if self.maybe()
                else f"{target.text}[{part}] = 0.25",
            )
        else:
            other = self.operand(scope, target.shape)
            scaled = f"{other.text} * {target.size / 2 / max(other.size, 1.0):.6g}"
            self.line(scope, f"tile.add({target.text} * 0.5, {scaled}, dst={target.text})")

    def copies(self, scope: Scope) -> None:
        """One to three groups of asynchronous copies, each used after its wait."""
        groups: list[list[Tile]] = []
        for _ in range(self.number(1, 3)):
            group = []
            for _ in range(self.choose([1, 1, 2])):
                window = self.load(scope, self.shape() if self.number(0, 2) else self.main)
                if window.text.startswith("tile.full"):
                    self.define(scope, window)
                    continue
                name = self.allocate(scope, window.shape, window.dtype or "f32")
                self.line(scope, f"tile.copy_async({name}, {window.text})")
                if scope.depth == 1:
                    self.copied.append(name)
                group.append(replace(window, text=name))
            self.line(scope, "tile.cp_commit_group()")
            groups.append(group)
        while groups:
            left = self.number(0, len(groups) - 1)
            self.line(scope, f"tile.cp_wait_group({left})")
            for group in groups[: len(groups) - left]:
                scope.buffers += group
            groups = groups[len(groups) - left :]
            if groups:
                self.choose([self.unary, self.binary])(scope)

    # -- control

    def condition(self, scope: Scope) -> str:
        """A bool whose value no rounding can change."""
        kind = self.choose(["id", "number", "element"])
        if kind == "number":
            self.scalars["number"] = "int"
            return self.choose(["number > 2", "number % 2 == 0", "not number < 1"])
        if kind == "element":
            name = self.tensor(scope, (self.axes[0][0],), None)
            if name:
                return f"tile.load_scalar({name}[0]) > 0.0"
        return self.choose([f"{self.choose(scope.integers)} % 2 == 0", f"{self.choose(scope.integers)} < 1"])

    def variable(self, scope: Scope) -> Tile:
        """A named tile of known dtype, made where there is none: what a branch or a loop assigns."""
        named = [t for t in scope.tiles if t.dtype is not None and t.text.isidentifier()]
        if named and self.number(0, 2):
            return self.choose(named)
        shape, dtype = self.shape(), self.choose(["f32", *self.dtypes])
        start = self.operand(scope, shape) if self.maybe() else Tile("0.0", shape, None, 0.0)
        text = (
            f"tile.cast({start.text}, ts.{dtype})" if start.size else f"tile.zeros({self.text_of(shape)}, ts.{dtype})"
        )
        return self.define(scope, replace(start, text=text, dtype=dtype))

    def assign(self, scope: Scope, tile: Tile, value: Tile) -> Tile:
        self.line(scope, f"{tile.text} = tile.cast({value.text}, ts.{tile.dtype})")
        return replace(tile, size=max(tile.size, value.size))

    @staticmethod
    def update(scope: Scope, old: Tile, new: Tile) -> None:
        scope.tiles[:] = [new if t is old or t.text == old.text else t for t in scope.tiles]

    def branch(self, scope: Scope) -> None:
        tile = self.variable(scope)
        condition = self.condition(scope)
        sizes = [tile.size]
        for word in (f"if {condition}:", *(["else:"] if self.maybe() else [])):
            self.line(scope, word)
            inner = scope.inner()
            for _ in range(self.number(0, 2)):
                self.statement(inner)
            sizes.append(self.assign(inner, tile, self.change(inner, tile)).size)
        self.update(scope, tile, replace(tile, size=max(sizes)))

    def change(self, scope: Scope, tile: Tile) -> Tile:
        """A new value of a variable's shape."""
        if self.maybe():
            return self.unary_of(tile)
        return self.binary_of(scope, tile.shape)

    def loop(self, scope: Scope) -> None:
        """A run-time loop that carries a tile, and perhaps an integer."""
        tile = self.variable(scope)
        index, bound, step, iterations = self.bounds(scope)
        counter = self.fresh("n") if self.maybe() else ""
        if counter:
            self.line(scope, f"{counter} = 0")
        self.line(scope, f"for {index} in tile.range({bound}):")
        inner = scope.inner()
        inner.integers.append(index)
        if step:
            inner.offsets = [index]
        # What an iteration computes must not depend on how often the loop ran: the carried tile counts as large.
        self.update(inner, tile, replace(tile, size=LIMIT))
        for _ in range(self.number(0, 2)):
            self.statement(inner)
        size = self.carry(inner, tile, iterations)
        if counter:
            self.line(inner, f"{counter} = {counter} + {self.choose(['1', index])}")
            scope.integers.append(counter)
        self.update(scope, tile, replace(tile, size=size))

    def repeat(self, scope: Scope) -> None:
        """A while loop on a run-time count."""
        tile, counter = self.variable(scope), self.fresh("n")
        self.scalars["number"] = "int"
        self.line(scope, f"{counter} = number")
        self.line(scope, f"while {counter} > {self.choose(['0', '1', '3'])}:")
        inner = scope.inner()
        self.update(inner, tile, replace(tile, size=LIMIT))
        for _ in range(self.number(0, 2)):
            self.statement(inner)
        size = self.carry(inner, tile, 3)
        self.line(inner, f"{counter} = {counter} - 1")
        scope.integers.append(counter)
        self.update(scope, tile, replace(tile, size=size))

    def bounds(self, scope: Scope) -> tuple[str, str, int, int]:
        """Index, arguments of tile.range, its step along K (0: none) and the largest number of iterations."""
        index = self.fresh("k")
        kind = self.choose(["K", "number", "id", "constant"])
        if kind == "K" and any("K" in dims for dims, _ in self.inputs.values()):
            step = self.choose([16, 8, 32, 5])
            return index, f"0, ctx.K, {step}", step, -(-self.dims["K"] // step)
        if kind == "number":
            self.scalars["number"] = "int"
            return index, self.choose(["number", "1, number", "0, number, 2"]), 0, 3
        if kind == "id":
            return index, "tile.program_id(0) + 1", 0, 3
        return index, self.choose(["2", "0", "1, 6, 2"]), 0, 3

    def carry(self, scope: Scope, tile: Tile, iterations: int) -> float:
        """The assignment of a carried tile; returns its largest magnitude after the loop."""
        kind = self.choose(["damped", "maximum", "sum", "product"])
        if kind == "product" and tile.shape == self.main and len(self.main) == 2 and tile.dtype == "f32":
            product = self.product_of(scope, tile.text, 0.0)
            if product.size * iterations < LIMIT and "tanh(tile.mma" not in product.text:
                self.line(scope, f"{tile.text} = {product.text}")
                return tile.size + product.size * iterations
        value = self.binary_of(scope, tile.shape) if self.maybe() else self.operand(scope, tile.shape)
        if kind == "sum" and value.size * iterations < LIMIT:
            self.assign(scope, tile, replace(value, text=f"{tile.text} + ({value.text})"))
            return tile.size + value.size * iterations
        if kind == "maximum":
            self.assign(scope, tile, replace(value, text=f"tile.maximum({tile.text}, {value.text})"))
            return max(tile.size, value.size)
        self.assign(scope, tile, replace(value, text=f"{tile.text} * 0.5 + ({value.text})"))
        return tile.size + 2 * value.size

    def unrolled(self, scope: Scope) -> None:
        """A loop at compile time, over a tile that changes its dtype as it likes."""
        tile = self.variable(scope)
        index = self.fresh("i")
        self.line(scope, f"for {index} in {self.choose(['range(2)', 'tile.static_range(3)'])}:")
        inner = scope.inner()
        self.update(inner, tile, replace(tile, size=LIMIT))
        value = self.operand(inner, tile.shape)
        self.line(inner, f"{tile.text} = tile.cast({tile.text} * 0.5 + {value.text} * {index}, ts.{tile.dtype})")
        self.update(scope, tile, replace(tile, size=tile.size + 4 * value.size))


@st.composite
def programs(draw: Any, dtypes: Sequence[str] = FLOATS) -> Program:
    """Valid tile programs over the given dtypes."""
    return Generator(draw, dtypes).program()
