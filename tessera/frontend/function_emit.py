"""The emitter of tensor functions: values are whole tensors, sizes are unified, scalars of a call are checked by it.

Sizes of bare parameters are *free* symbols: where an op needs two sizes to be one and one of them is free, tracing
starts again with the free one replaced (`Unify`). What only a call can check, a temperature that must not be 0, becomes
a guard of the function.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.dtypes import DType, i64
from tessera.errors import SourceError
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_values import Handle, TensorHandle, describe, is_number, plain, quoted
from tessera.ir import dims
from tessera.ir.core import Block, Kernel, Value
from tessera.ir.dims import Dim, Size
from tessera.ir.placement import Placement
from tessera.ir.sharding import Mesh
from tessera.ir.types import ScalarType, TileType, length_name
from tessera.location import Loc

STREAM = 1 << 40  # element numbers of one random op of a function


class Unify(Exception):
    """The free dim `name` is `size`: the trace starts again with that."""

    def __init__(self, name: str, size: Size) -> None:
        super().__init__(name)
        self.name, self.size = name, size


# What a guard asks of a scalar parameter, and how a message says it.
GUARDS: Mapping[str, tuple[Any, str]] = {
    "nonzero": (lambda value: value != 0, "must not be 0"),
    "probability": (lambda value: 0 <= value < 1, "must be in [0, 1)"),
}


@dataclass(frozen=True)
class Guard:
    """A condition on a scalar parameter that each call checks. `where`: what needs it, in the author's words."""

    parameter: str
    kind: str
    where: str
    loc: Loc

    def check(self, value: float) -> None:
        """Raises SourceError TS403 where `value` does not fit."""
        holds, needed = GUARDS[self.kind]
        if not holds(value):
            raise SourceError("TS403", f"'{self.parameter}' is {value}, but it {needed}: {self.where}", self.loc)


@dataclass(frozen=True)
class Ambient:
    """A parameter that no call passes: `key` in the parameter store, and how it starts."""

    key: str
    init: str
    value: float = 0.0


@dataclass
class Collected:
    """What tracing a function finds out beside its ops."""

    guards: list[Guard] = field(default_factory=list)
    ambient: dict[str, Ambient] = field(default_factory=dict)  # by hidden parameter
    notes: list[str] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)  # Tile kernels by the name that `launch` ops use
    seed: str | None = None  # the hidden parameter that random ops read


class TensorEmitter(Emitter):
    """Builds the Graph IR of one function. `free` are the dims that unification may replace."""

    def __init__(
        self, body: Block, dim_names: tuple[str, ...], static: dict[str, int], free: frozenset[str], place: Loc
    ) -> None:
        super().__init__(body, dim_names, static, {}, place)
        self.body, self.free = body, free
        self.collected = Collected()
        self.callers: list[str] = []  # the functions around what is traced, the outermost first
        self._streams = itertools.count()
        self._seed: TensorHandle | None = None
        self.mesh: Mesh | None = None  # the one that the function, or one that it calls, is distributed over
        self.placement: Placement | None = None  # where values lie, while a distributed function is evaluated
        self._numbered: dict[str, int] = {}

    def make(self, name: str, *operands: Any, regions: Sequence[Block] = (), **attributes: Any) -> list[Value]:
        results = super().make(name, *operands, regions=regions, **attributes)
        if self.placement is not None:
            try:
                self.placement.follow(self.block.ops[-1])
            except SourceError as error:
                raise error.at(self.place) from None
        return results

    def numbered(self, name: str) -> str:
        """`name#n`, another one each time."""
        number = self._numbered[name] = self._numbered.get(name, -1) + 1
        return f"{name}#{number}"

    def value(self, handle: Handle) -> Value:
        if all(handle.block is not builder.block for builder in self.builders):
            name = f"'{handle.value.name}'" if handle.value.name else "this value"
            raise SourceError(
                "TS201",
                f"{name} was computed in a checkpoint scope that has ended, and no variable, list, tuple or dict held "
                "it there; assign it to one",
                self.place,
            )
        return handle.value

    def handle(self, value: Value, size: Size | None = None) -> TensorHandle:
        handle = TensorHandle(value, self.block, size)
        if size is None and handle.is_int:
            handle.size = self.fresh()
        return handle

    def operand(self, value: Any, text: str) -> Handle:
        """Anything that may take part in arithmetic, as a tensor or a scalar."""
        value = plain(value)
        if isinstance(value, Handle):
            return value
        if is_number(value):
            return self.number(value)
        if isinstance(value, Dim):
            return self.emit("size", size=value, known=value)
        raise SourceError(
            "TS203", f"{quoted(text)} is {describe(value)}, where a tensor or a number is needed", self.place
        )

    def tile(self, value: Any, argument: str) -> Handle:
        """An argument of the call being built as a tensor."""
        if isinstance(value, Handle) and value.is_tile:
            return value
        self.fail("TS203", f"'{argument}' takes a tensor, but '{self.text(argument)}' is {describe(value)}", argument)

    def cast(self, value: Handle, dtype: DType, implicit: bool = False) -> Handle:
        """`value` in `dtype`; nothing where it has that dtype already. `implicit`: a rounding that fusion may skip."""
        weak = isinstance(value.type, ScalarType) and value.type.weak
        if value.dtype == dtype and not weak:
            return value
        return self.emit("cast", value, dtype=dtype, implicit=implicit, known=value.size if dtype.is_int else None)

    def require(self, value: Any, kind: str, text: str, where: str) -> None:
        """Checks a scalar of the author's now, or by a guard where a call gives it. Raises SourceError TS403."""
        value = plain(value)
        if is_number(value):
            Guard(text, kind, where, self.place).check(value)
        elif isinstance(value, Handle) and value.is_scalar and value.value.owner is self.body:
            guard = Guard(value.value.name, kind, where, self.place)
            if guard not in self.collected.guards:
                self.collected.guards.append(guard)

    def empty_list(self) -> str:
        """The first list parameter that has no tensors; nothing where there is none."""
        lengths = (name for name, size in self.static.items() if not size and length_name(name[4:-1]) == name)
        return next((name[4:-1] for name in lengths), "")

    def longer_lists(self, length: int) -> str:
        """What a message about an index outside `length` elements adds: the list parameters that have more tensors."""
        sizes = ((name, size) for name, size in self.static.items() if length_name(name[4:-1]) == name)
        return "".join(f"; '{name[4:-1]}' has {size} tensors" for name, size in sizes if size > length)

    def note(self, text: str) -> None:
        """Something the author should know, once."""
        if text not in self.collected.notes:
            self.collected.notes.append(text)

    # -- parameters that no call passes

    def ambient(self, key: str, shape: tuple[Size, ...], dtype: DType, init: str, value: float = 0.0) -> TensorHandle:
        """The tensor that the parameter store holds under `key`, as a hidden parameter of the function."""
        name = self._hidden(f"parameter{len(self.collected.ambient)}")
        self.collected.ambient[name] = Ambient(key, init, value)
        argument = self.body.add_argument(TileType(shape, dtype), name)
        return TensorHandle(argument, self.body)

    def parameter_key(self, op: str) -> str:
        """A key of the parameter store for the next parameter that `op` asks for here: "caller/function/op#0"."""
        return self.numbered("/".join([*self.callers, op]))

    def random_stream(self) -> tuple[TensorHandle, int]:
        """The seed of the call, a hidden parameter, and at which element number one more random op begins.

        The numbers of two ops do not meet while neither has more than 2^40 elements.
        """
        if self._seed is None:
            name = self.collected.seed = self._hidden("seed")
            argument = self.body.add_argument(ScalarType(i64), name)
            self._seed = TensorHandle(argument, self.body, self.fresh())
        return self._seed, next(self._streams) * STREAM

    def _hidden(self, name: str) -> str:
        """A name for a hidden parameter that no other parameter has."""
        taken = {argument.name for argument in self.body.arguments}
        while name in taken:
            name += "_"
        return name

    # -- sizes

    def unify(self, a: Size, b: Size) -> bool:
        """Whether two sizes are one; raises `Unify` where they would be, were a free dim replaced."""
        if a == b:
            return True
        for free, other in ((a, b), (b, a)):
            name = str(free)
            if isinstance(free, Dim) and name in self.free and name not in dims.symbols(other):
                if not self._differ(free, other):
                    raise Unify(name, other)
        return self._decided_alike(a, b)

    def _decided_alike(self, a: Size, b: Size) -> bool:
        """Whether a decision at compile time has used the dims in two sizes, and their values make them one."""
        known = dims.symbols(a) | dims.symbols(b)
        return known <= self.decided and known <= self.static.keys() and not self._differ(a, b)

    def may_unify(self, a: Size, b: Size) -> bool:
        """Whether two sizes are one, or would be, were a free dim replaced."""
        free = any(isinstance(size, Dim) and str(size) in self.free for size in (a, b))
        return a == b or (free and not self._differ(a, b))

    def _differ(self, a: Size, b: Size) -> bool:
        """Whether the values of two sizes are known, and are not the same."""
        known = dims.symbols(a) | dims.symbols(b)
        if known - self.static.keys():
            return False
        return dims.evaluate(a, self.static) != dims.evaluate(b, self.static)

    def values_text(self, a: Size, b: Size) -> str:
        if (dims.symbols(a) | dims.symbols(b)) - self.static.keys() or (isinstance(a, int) and isinstance(b, int)):
            return ""
        return f" (here {dims.evaluate(a, self.static)} and {dims.evaluate(b, self.static)})"

    def one(self, size: Size) -> bool:
        """Whether a size is 1; a free dim that is 1 in this call becomes 1."""
        if isinstance(size, Dim) and str(size) in self.free and self.static.get(str(size)) == 1:
            raise Unify(str(size), 1)
        return size == 1

    def broadcast(self, values: Sequence[Handle], texts: Sequence[str]) -> list[Handle]:
        shapes = [value.shape for value in values if value.is_tile]
        for position, shape in enumerate(shapes):
            for other in shapes[:position]:
                for left, right in zip(reversed(shape), reversed(other), strict=False):
                    if left != right and not self.one(left) and not self.one(right):
                        self.unify(left, right)
        return super().broadcast(values, texts)
