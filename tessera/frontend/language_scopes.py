"""What a `with` block of a function enters, and hints about memory: checkpoints, device assignments, modes, prefetches.

A block runs once, when the function is traced. A checkpoint's ops become the region of one `checkpoint` op, and the
tensors that are still reachable after the block become its results: wherever a variable, a list, a tuple or a dict
holds one, it holds the result from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tessera import modes
from tessera.errors import SourceError
from tessera.frontend.definition import Definition
from tessera.frontend.evaluator_values import Handle
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language import FUNCTION, Intrinsic
from tessera.frontend.language_tensor_shapes import tensor_function
from tessera.ir.assignment import DeviceAssignment, distributed
from tessera.ir.core import Block, Value
from tessera.ir.placement import Placement

if TYPE_CHECKING:
    from tessera.frontend.function_evaluator import FunctionStatements

_DEVICE = re.compile(r"gpu|cpu|cuda:(0|[1-9][0-9]*)")
OVERLAPS = ("compute", "none")
RETURNED = "return"  # the name, which no variable has, under which the value of a return inside a block is found


@runtime_checkable
class Scope(Protocol):
    """What a `with` block of a function enters."""

    def enter(self, evaluator: FunctionStatements) -> None: ...

    def leave(self, evaluator: FunctionStatements) -> None:
        """After the last statement of the block."""

    def abandon(self) -> None:
        """After an error in the block: undoes what outlives the trace."""


def scope_of(value: Any) -> Any:
    """The scope that entering a value of the author's means; the value itself where it has none."""
    return AssignmentScope(value) if isinstance(value, DeviceAssignment) else value


# Values that leave a block --------------------------------------------------------------------------------------------


def reachable(evaluator: FunctionStatements) -> Iterator[Handle]:
    """The tensors and scalars in variables of the open functions, and in lists, tuples, dicts and sets there."""
    pending: list[Any] = [value for frame in evaluator.frames for value in frame.locals.values()]
    seen: set[int] = set()
    pending.reverse()
    while pending:
        value = pending.pop()
        if isinstance(value, (Handle, list, tuple, dict, set)) and id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Handle):
            yield value
        elif isinstance(value, dict):
            pending += reversed(list(value.values()))
        elif isinstance(value, (list, tuple, set)):
            pending += reversed(list(value))


def by_value(handles: Iterable[Handle], chosen: Callable[[Handle], bool]) -> dict[Value, list[Handle]]:
    """The chosen handles by their value, in order."""
    found: dict[Value, list[Handle]] = {}
    for handle in handles:
        if chosen(handle):
            found.setdefault(handle.value, []).append(handle)
    return found


# Checkpoints ----------------------------------------------------------------------------------------------------------


class CheckpointScope:
    """A block whose ops become the region of a `checkpoint` op. `name`: what it is called, else the open function."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def enter(self, evaluator: FunctionStatements) -> None:
        self.block = Block()
        self.region: AbstractContextManager[None] = evaluator.emit.region(self.block)
        self.region.__enter__()

    def leave(self, evaluator: FunctionStatements) -> None:
        emit = evaluator.emit
        leaving = by_value(reachable(evaluator), lambda handle: handle.block is self.block)
        if self.block.ops:
            emit.make("yield", *leaving)
        self.region.__exit__(None, None, None)
        if not self.block.ops:
            return
        name = self.name or evaluator.frame.function.__name__
        results = emit.make("checkpoint", regions=[self.block], region=emit.numbered(name))
        for result, (value, handles) in zip(results, leaving.items(), strict=True):
            result.name = value.name
            for handle in handles:
                handle.value, handle.block = result, emit.block

    def abandon(self) -> None:
        self.region.__exit__(None, None, None)


def _checkpoint_scope(emit: TensorEmitter) -> CheckpointScope:
    """`with ts.checkpoint_scope():` a backward pass computes the block again instead of keeping its values."""
    return CheckpointScope()


checkpoint_scope = Intrinsic("ts.checkpoint_scope", _checkpoint_scope, scope=FUNCTION)


# Device assignments ---------------------------------------------------------------------------------------------------


class AssignmentScope:
    """A block that the devices at one coordinate of a mesh axis compute: its tensors get an `own` op at its end."""

    def __init__(self, assignment: DeviceAssignment) -> None:
        self.assignment = assignment

    def enter(self, evaluator: FunctionStatements) -> None:
        emit = evaluator.emit
        if emit.placement is None:
            what = f"dist.device_assignment({self.assignment.index!r})"
            raise SourceError(
                "TS102", f"{what} works only inside a function decorated with @ts.distribute(mesh=...)", emit.place
            )
        try:
            self.mesh_axis = self.assignment.__enter__()
        except SourceError as error:
            raise error.at(emit.place) from None
        self.start = len(emit.block.ops)

    def leave(self, evaluator: FunctionStatements) -> None:
        emit = evaluator.emit
        made = {id(result) for op in emit.block.ops[self.start :] for result in op.results}
        leaving = by_value(reachable(evaluator), lambda handle: handle.is_tile and id(handle.value) in made)
        for value, handles in leaving.items():
            owned = emit.emit("own", value, mesh_axis=self.mesh_axis, coordinate=self.assignment.index)
            owned.value.name = value.name
            for handle in handles:
                handle.value = owned.value
        self.assignment.__exit__(None, None, None)

    def abandon(self) -> None:
        self.assignment.__exit__(None, None, None)


@contextmanager
def on_mesh(emit: TensorEmitter, callee: Definition) -> Iterator[None]:
    """Evaluates a function on the mesh that it is distributed over, if it is."""
    mesh = callee.options.get("mesh")
    if mesh is None:
        yield
        return
    if emit.mesh is not None and emit.mesh != mesh:
        raise SourceError(
            "TS309",
            f"'{callee.name}' is distributed over a mesh {mesh}, and what it is called with over another one, "
            f"{emit.mesh}",
            emit.place,
        )
    outer, emit.mesh = emit.placement, mesh
    with distributed(mesh) as scope:
        if outer is not None:
            scope.assigned.update(outer.scope.assigned)
        emit.placement = Placement(scope, outer.found if outer is not None else None)
        try:
            yield
        finally:
            emit.placement = outer


@contextmanager
def called(evaluator: FunctionStatements, callee: Definition) -> Iterator[Callable[[], None]]:
    """Around the body of a function that is inlined: its mesh, and its checkpoint where it is decorated as one.

    What it gives closes the checkpoint; it is called while the result is still in a frame.
    """
    with ExitStack() as stack:
        stack.enter_context(on_mesh(evaluator.emit, callee))
        if not callee.options.get("checkpoint"):
            yield lambda: None
            return
        scope = CheckpointScope(callee.name)
        scope.enter(evaluator)
        closed = False

        def close() -> None:
            nonlocal closed
            closed = True
            scope.leave(evaluator)

        try:
            yield close
        finally:
            if not closed:
                scope.abandon()


# Modes ----------------------------------------------------------------------------------------------------------------


class ModeScope:
    """A block that is traced as in training, or as in evaluation, whatever the mode of the call."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def enter(self, evaluator: FunctionStatements) -> None:
        self.switch = modes.train() if self.training else modes.eval()
        self.switch.__enter__()

    def leave(self, evaluator: FunctionStatements) -> None:
        self.abandon()

    def abandon(self) -> None:
        self.switch.__exit__(None, None, None)


def _train(emit: TensorEmitter) -> ModeScope:
    """Switches to training mode, in which `ts.is_training()` is True; `with ts.train():` does so for a block."""
    return ModeScope(True)


def _eval(emit: TensorEmitter) -> ModeScope:
    """Switches to evaluation mode, in which `ts.is_training()` is False; `with ts.eval():` does so for a block."""
    return ModeScope(False)


train = Intrinsic("ts.train", _train, modes.train, scope=FUNCTION)
evaluation = Intrinsic("ts.eval", _eval, modes.eval, scope=FUNCTION)


# Memory ---------------------------------------------------------------------------------------------------------------


class PrefetchScope:
    """A block of prefetches. Its end waits for nothing."""

    def enter(self, evaluator: FunctionStatements) -> None:
        """Prefetches need no scope."""

    def leave(self, evaluator: FunctionStatements) -> None:
        """What was asked for may arrive later."""

    def abandon(self) -> None: ...


@tensor_function("memory.prefetch_scope")
def prefetch_scope(emit: TensorEmitter) -> PrefetchScope:
    """`with ts.memory.prefetch_scope():` groups prefetches; the end of the block waits for nothing."""
    return PrefetchScope()


@tensor_function("memory.prefetch")
def prefetch(emit: TensorEmitter, x: Any, device: Any = "gpu", overlap: Any = "compute") -> None:
    """Says that `x` is wanted soon on `device`: "gpu", "cuda:N" or "cpu", beside "compute" or with "none".

    A hint, which changes no value; a tensor that is there already does not move.
    """
    tensor = emit.tile(x, "x")
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        emit.fail("TS203", f"device= is 'gpu', 'cpu' or a GPU such as 'cuda:0', not {device!r}", "device")
    if overlap not in OVERLAPS:
        emit.fail("TS203", f"overlap= is 'compute' or 'none', not {overlap!r}", "overlap")
    emit.emit("prefetch", tensor, device=device, overlap=overlap)
    emit.note("ts.memory.prefetch is a hint; a tensor that is on the device does not move")


__all__ = [
    "RETURNED",
    "CheckpointScope",
    "Scope",
    "called",
    "checkpoint_scope",
    "evaluation",
    "on_mesh",
    "prefetch",
    "prefetch_scope",
    "reachable",
    "scope_of",
    "train",
]
