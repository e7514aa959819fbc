"""Runs a Tile-level or Target-level kernel on NumPy arrays: the meaning of a kernel, the oracle of every later stage.

The op table's `evaluate` functions do the work; this file walks regions. Every array has a leading axis that counts the
programs of a batch (1 when all share the value), so a grid costs a few passes instead of one per program. Program n of
a grid (g0, g1, ...) has the ids n % g0, n // g0 % g1, ...: axis 0 is the fastest, as on a GPU.

Where programs of a batch want different trip counts or branches, the batch is split by what they want and each part
starts again from its beginning. That is sound because programs are batched only when none reads what the launch writes:
what a part had stored already, it stores again. Of programs of one part that store the same element, the last one
stays; between parts the order is that of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.dtypes import round_to
from tessera.errors import InternalError, SourceError, TesseraError
from tessera.ir import values
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.ops.effects import format_pieces, nested_text
from tessera.ir.ops.target import physical_shape
from tessera.ir.programs import program_text, scales_of
from tessera.ir.types import BufferType, ListType, ScalarType, Type, dtype_of, shape_of
from tessera.runtime.interpreter_output import write_line
from tessera.runtime.interpreter_roles import Turns, ring_step, run_roles
from tessera.runtime.interpreter_setup import (
    accessed,
    bind_dims,
    check_arguments,
    concrete,
    grid_of,
    last_uses,
    must_be_sequential,
    numbers,
    programs_per_batch,
)

Array = np.ndarray


@dataclass(frozen=True)
class InterpretResult:
    """`outputs`: the written tensor arguments by name. `batches`: how many groups of programs ran."""

    outputs: dict[str, Array]
    grid: tuple[int, ...]
    batches: int


class Divergence(Exception):
    """The programs of a batch want different control flow; `wanted` has an integer per program."""

    def __init__(self, wanted: Array):
        super().__init__()
        self.wanted = wanted


def interpret(
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    grid: tuple[int, ...] | None = None,
    level: str = "tile",
) -> InterpretResult:
    """Runs `kernel`; tensor arguments are arrays of the storage dtype and are written in place.

    `dims` binds every dim symbol (static dims of the kernel are known already); `grid` overrides the kernel's own.
    Raises ArgumentError for arguments that do not fit and SourceError, at the op's location, for what a program does
    wrong.
    """
    return launch(Machine, kernel, arguments, dims, grid, level)[1]


def launch(
    machine_class: Callable[[Kernel, tuple[int, ...], Mapping[str, Any]], Any],
    kernel: Kernel,
    arguments: Mapping[str, Any],
    dims: Mapping[str, int],
    grid: tuple[int, ...] | None,
    level: str,
) -> tuple[Any, InterpretResult]:
    """Checks, binds and runs all programs of a launch on a machine of the given number system."""
    bound = bind_dims(kernel, dims)
    extents = grid_of(kernel, bound, grid)
    small = concrete(kernel, bound)
    check_level(small, level)
    check_arguments(small, arguments)
    machine = machine_class(small, extents, arguments)
    programs = int(np.prod(extents, dtype=np.int64)) if min(extents, default=1) > 0 else 0
    size = (
        1
        if must_be_sequential(small, arguments)
        else programs_per_batch(small, machine.bytes_per_element, machine.dropped)
    )
    batches = sum(machine.run(np.arange(start, min(start + size, programs))) for start in range(0, programs, size))
    written = accessed(small)[1]
    outputs = {p.name: arguments[p.name] for p in small.parameters if p in written}
    return machine, InterpretResult(outputs, extents, batches)


def check_level(kernel: Kernel, level: str) -> None:
    for op in kernel.body.walk():
        if level not in op.definition.levels:
            raise SourceError("TS702", f"{op.name} is not an op of the {level} level", op.loc)


class Machine:
    """Runs batches of programs of a concrete kernel in the language's own arithmetic."""

    bytes_per_element = 4

    def __init__(
        self, kernel: Kernel, grid: tuple[int, ...], arguments: Mapping[str, Any], seed: int | None = None
    ) -> None:
        self.kernel, self.grid = kernel, grid
        self.seed = seed  # of the order in which roles take turns; None: the first one that can go on does
        self.turns: Turns | None = None  # while roles run
        self.constants: dict[Value, Any] = {p: self.bind(p, arguments[p.name]) for p in kernel.parameters}
        self.values: dict[Value, Any] = {}
        self.dropped = last_uses(kernel.body)
        self.programs = np.zeros(0, np.int64)
        self.stores: list[values.Token] = []  # asynchronous ones, in order, that were not waited for

    # What reference mode replaces: how numbers are held and how an op of the table is applied to them.

    def bind(self, parameter: Value, argument: Any) -> Any:
        type_ = parameter.type
        if isinstance(type_, ScalarType):
            return round_to(type_.dtype, np.array([argument]))
        if isinstance(type_, ListType):
            return [self.tensor(type_.element, item) for item in argument]
        return self.tensor(type_, argument)

    def tensor(self, type_: Type, argument: Any) -> values.View:
        """The whole of a tensor argument."""
        return values.View.whole(values.Tensor(argument, dtype_of(type_)))

    def number(self, array: Array) -> Any:
        """An integer array as a value of this machine."""
        return array

    def integers(self, value: Any) -> Array:
        """A scalar value as int64, one per program or one for all."""
        return np.asarray(value).astype(np.int64)

    def apply(self, op: Op, operands: list[Any]) -> Any:
        evaluate = op.definition.evaluate
        if evaluate is None:
            raise InternalError("TS901", f"the interpreter does not know the op {op.name}", op.loc)
        return evaluate(op, *operands)

    def buffer(self, shape: tuple[int, ...], type_: BufferType) -> values.Buffer:
        return values.Buffer.new(len(self.programs), shape, type_.dtype, reference=False)

    # Walking

    def run(self, programs: Array) -> int:
        """Runs the programs, split as often as their control flow asks for; how many parts ran to their end."""
        pending, finished = [programs], 0
        while pending:
            self.programs, self.values, self.stores = pending.pop(), dict(self.constants), []
            try:
                self.block(self.kernel.body)
                finished += 1
            except Divergence as divergence:
                _, first = np.unique(divergence.wanted, return_index=True)
                parts = [self.programs[divergence.wanted == divergence.wanted[i]] for i in sorted(first)]
                pending += reversed(parts)
        self.values = {}
        return finished

    def block(self, block: Block) -> list[Any]:
        """Runs the ops of a block; returns what its terminator gives."""
        for op in block.ops:
            if op.name in ("yield", "return"):
                handed_on = self.read(op.operands)
                self.drop(op)
                return handed_on
            try:
                self.step(op)
                self.drop(op)
            except TesseraError as error:
                raise error.at(op.loc) from error.__cause__
            except (OverflowError, ZeroDivisionError) as error:
                raise SourceError("TS401", _integer_message(op, error), op.loc) from None
        return []

    def drop(self, op: Op) -> None:
        """Lets go of what nothing needs after an op: blocks of shared memory that a GPU would not hold are large."""
        for value in self.dropped[op]:
            del self.values[value]

    def read(self, operands: Iterable[Value]) -> list[Any]:
        return [self.values[value] for value in operands]

    def step(self, op: Op) -> None:
        special = _SPECIAL.get(op.name)
        if special is not None:
            results = special(self, op)
        else:
            result = self.apply(op, self.read(op.operands))
            results = [] if not op.results else [result]
        self.values.update(zip(op.results, results, strict=True))

    def program_id(self, op: Op) -> list[Any]:
        axis = op.attributes["axis"]
        stride = int(np.prod(self.grid[:axis], dtype=np.int64))
        extent = self.grid[axis] if axis < len(self.grid) else 1
        return [self.number(self.programs // stride % extent * op.attributes["scale"])]

    def num_programs(self, op: Op) -> list[Any]:
        axis = op.attributes["axis"]
        return [self.number(np.array([self.grid[axis] if axis < len(self.grid) else 1], np.int64))]

    def identifiers(self, program: int) -> list[int]:
        """The ids of a program, an entry per grid axis, as `program_id` gives them."""
        ids = []
        rank = len(self.kernel.attributes.get("grid", self.grid))  # a launch may give more axes, of size 1
        for extent, scale in zip(self.grid[:rank], scales_of(self.kernel), strict=False):
            ids.append(int(program) % extent * scale)
            program //= extent
        return ids

    def print_line(self, op: Op) -> list[Any]:
        """Programs of a kernel that prints run one by one."""
        texts = iter([self.printed(value) for value in op.operands])
        pieces = (next(texts) if piece is None else piece for piece in format_pieces(op.attributes["format"]))
        write_line(f"[{program_text(self.identifiers(self.programs[0]))}] {''.join(pieces)}")
        return []

    def printed(self, value: Value) -> str:
        current = self.values[value]
        if not isinstance(current, values.Buffer):
            return nested_text(np.asarray(current)[0], dtype_of(value.type))
        shape = tuple(slice(size) for size in numbers(shape_of(value.type)))
        return nested_text(np.asarray(current.data)[0][shape], current.dtype)

    def check_assertion(self, op: Op) -> list[Any]:
        condition = np.asarray(self.values[op.operands[0]])
        wrong = np.flatnonzero(~condition.reshape(condition.shape[0], -1).all(axis=1))
        if wrong.size:
            program = program_text(self.identifiers(self.programs[wrong[0] if condition.shape[0] > 1 else 0]))
            raise SourceError("TS509", f"assertion failed in {program}: {op.attributes['message']}", op.loc)
        return []

    def element(self, op: Op) -> list[Any]:
        """Programs that take different tensors of a list are different batches."""
        tensors, index = self.read(op.operands)
        chosen = self.uniform(self.integers(index))
        return [self.apply(op, [tensors, self.number(np.array([chosen], np.int64))])]

    def size(self, op: Op) -> list[Any]:
        return [self.number(np.array([op.attributes["size"]], np.int64))]

    def allocate(self, op: Op) -> list[Any]:
        type_ = op.result.type
        assert isinstance(type_, BufferType)
        shape = physical_shape(type_) if type_.layout is not None else numbers(type_.shape)
        stages = [self.buffer(shape, type_) for _ in range(op.get("stages") or 1)]
        return [stages[0] if len(stages) == 1 else stages]

    def stage(self, op: Op) -> list[Any]:
        """Programs that are at different stages of a buffer are different batches."""
        stages, index = self.read(op.operands)
        chosen = self.uniform(self.integers(index))
        return [self.apply(op, [stages, self.number(np.array([chosen], np.int64))])]

    def store_async(self, op: Op) -> list[Any]:
        self.stores.append(self.apply(op, self.read(op.operands)))
        return []

    def wait_for_stores(self, op: Op) -> list[Any]:
        self.apply(op, [self.stores])
        return []

    def loop(self, op: Op) -> list[Any]:
        lower, upper, step = (self.integers(value) for value in self.read(op.operands[:3]))
        if np.any(step == 0):
            raise SourceError("TS203", "the step of a loop is zero")
        count = self.uniform(np.maximum(-((lower - upper) // step), 0))
        carried = self.read(op.operands[3:])
        (body,) = op.regions
        for iteration in range(count):
            index = self.number(lower + iteration * step)
            self.values.update(zip(body.arguments, [index, *carried], strict=True))
            carried = []  # in `values` until their last use
            carried = self.block(body)
        return carried

    def repeat(self, op: Op) -> list[Any]:
        """A while: programs that stop at different iterations are different batches."""
        carried = self.read(op.operands)
        (body,) = op.regions
        while self.uniform(self.integers(carried[0])):
            self.values.update(zip(body.arguments, carried, strict=True))
            carried = []
            carried = self.block(body)
        return carried

    def branch(self, op: Op) -> list[Any]:
        condition = self.uniform(self.integers(self.values[op.operands[0]]))
        return self.block(op.regions[0 if condition else 1])

    def launched(self, op: Op) -> list[Any]:
        """What a kernel writes that a function calls."""
        raise InternalError("TS901", f"only a function launches a kernel, not '{self.kernel.name}'", op.loc)

    def uniform(self, wanted: Array) -> int:
        """The number that all programs of the batch agree on. Raises Divergence when they do not."""
        if np.any(wanted != wanted[0]):
            raise Divergence(np.broadcast_to(wanted, self.programs.shape))
        return int(wanted[0])


_SPECIAL = {
    "program_id": Machine.program_id,
    "element": Machine.element,
    "stage": Machine.stage,
    "size": Machine.size,
    "alloc_shared": Machine.allocate,
    "shared": Machine.allocate,
    "num_programs": Machine.num_programs,
    "tma_store": Machine.store_async,
    "tma_store_wait": Machine.wait_for_stores,
    "launch": lambda machine, op: machine.launched(op),
    **dict.fromkeys(("checkpoint", "fused", "interleave"), lambda machine, op: machine.block(op.regions[0])),
    "print": lambda machine, op: machine.print_line(op),
    "assert": lambda machine, op: machine.check_assertion(op),
    "while": Machine.repeat,
    "for": Machine.loop,
    "if": Machine.branch,
    "roles": run_roles,
    **dict.fromkeys(("ring_acquire", "ring_expect", "tma_load", "ring_wait", "ring_release"), ring_step),
}


def _integer_message(op: Op, error: Exception) -> str:
    names = " and ".join(f"'{value.name}'" if value.name else "a number" for value in op.operands)
    if isinstance(error, ZeroDivisionError):
        return f"{op.name} of {names} divides by zero"
    return f"{op.name} of {names} is {error.args[0] if error.args else 'a number'}, which does not fit 64 bits"
