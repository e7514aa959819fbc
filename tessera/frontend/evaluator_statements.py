"""Statements of a kernel: control flow that is decided at compile time is followed, the rest becomes regions."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tessera.dtypes import DType, boolean, f32, i64
from tessera.errors import SourceError, TesseraError
from tessera.frontend.evaluator_arithmetic import truth
from tessera.frontend.evaluator_copies import CopyGroups
from tessera.frontend.evaluator_expressions import UNROLL_LIMIT, Expressions
from tessera.frontend.evaluator_frames import assigned_names
from tessera.frontend.evaluator_invariants import Assigned
from tessera.frontend.evaluator_lists import SharedIndices, rolls
from tessera.frontend.evaluator_values import (
    Handle,
    Lost,
    RunTimeRange,
    StaticRange,
    describe,
    describe_type,
    is_number,
)
from tessera.frontend.evaluator_windows import write_buffer
from tessera.ir.core import Block, Value
from tessera.ir.ops.elementwise import INDEX


@dataclass(frozen=True)
class Returned:
    value: Any


class _Jump:
    """`break` or `continue` on its way to the loop that it belongs to."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword


BREAK, CONTINUE = _Jump("break"), _Jump("continue")
_MISSING = Lost("is not assigned")


@dataclass
class _Carried:
    """A variable that passes from one iteration to the next: before the loop, and as the body's argument."""

    name: str
    before: Any
    initial: Handle
    argument: Value


class Statements(Expressions):
    """Runs the statements of the frame on top."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rerolls = True  # whether static loops whose iterations differ in data alone stay loops
        self.rerolled = False  # whether one did
        self._unrolled: list[Block] = []  # the region that each unrolled loop around the current statement is in

    def run_body(self, body: list[ast.stmt]) -> Any:
        """Runs a function's body; what it returns."""
        signal = self.execute(body)
        return signal.value if isinstance(signal, Returned) else None

    def execute(self, body: list[ast.stmt]) -> Returned | _Jump | None:
        """Runs statements until one leaves the list."""
        for statement in body:
            method: Callable[[Any], Any] | None = getattr(self, f"_{type(statement).__name__}", None)
            if method is None:
                self.unsupported(statement)
            self.at(statement)
            signal = method(statement)
            if signal is not None:
                return signal
        return None

    # -- simple statements

    def _Expr(self, node: ast.Expr) -> None:
        self.evaluate(node.value)

    def _Pass(self, node: ast.Pass) -> None:
        pass

    def _Assert(self, node: ast.Assert) -> None:
        value, text = self.evaluate(node.test), self.frame.text(node.test)
        self.at(node)
        if not truth(self.emit, value, text, "assert checks at compile time"):
            message = f": {self.evaluate(node.msg)}" if node.msg else ""
            raise SourceError("TS105", f"the assertion '{text}' does not hold{message}", self.frame.loc(node))

    def _Return(self, node: ast.Return) -> Returned:
        if self.emit.block is not self.frame.block:
            raise SourceError("TS102", "return inside a run-time loop or branch is not supported", self.frame.loc(node))
        value = None if node.value is None else self.evaluate(node.value)
        if value is not None and len(self.frames) == 1:
            self.check_result(node)
        return Returned(value)

    def check_result(self, node: ast.Return) -> None:
        raise SourceError(
            "TS102", "a kernel returns nothing; store results in its output tensors", self.frame.loc(node)
        )

    def _Break(self, node: ast.Break) -> _Jump:
        return self._jump(node, BREAK)

    def _Continue(self, node: ast.Continue) -> _Jump:
        return self._jump(node, CONTINUE)

    def _jump(self, node: ast.stmt, jump: _Jump) -> _Jump:
        if not self._unrolled or self._unrolled[-1] is not self.emit.block:
            raise SourceError(
                "TS102", f"{jump.keyword} that depends on run-time values is not supported", self.frame.loc(node)
            )
        return jump

    # -- assignment

    def _Assign(self, node: ast.Assign) -> None:
        value = self.evaluate(node.value)
        for target in node.targets:
            self.assign(target, value)

    def _AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.evaluate(node.value))

    def _AugAssign(self, node: ast.AugAssign) -> None:
        target = node.target
        text = self.frame.text(target)
        if isinstance(target, ast.Name):
            before = self.evaluate(ast.copy_location(ast.Name(target.id, ast.Load()), target))
        elif isinstance(target, ast.Subscript):
            before = self.evaluate(ast.copy_location(ast.Subscript(target.value, target.slice, ast.Load()), target))
        else:
            raise SourceError("TS102", f"'{text}' cannot be assigned inside a {self.scope}", self.frame.loc(target))
        if isinstance(before, Handle) and (before.is_buffer or before.is_view):
            remedy = f"tile.fill, or an operation with dst={text}" if before.is_buffer else f"tile.store(..., {text})"
            raise SourceError(
                "TS102",
                f"'{text}' is {describe(before)} and is not changed by an assignment; use {remedy}",
                self.frame.loc(node),
            )
        value = self.evaluate(node.value)
        self.at(node)
        if isinstance(before, (list, set, dict)):
            self.check_mutation(before, self.frame.text(node))
            function = {ast.Add: operator.iadd, ast.BitOr: operator.ior, ast.Mult: operator.imul}.get(type(node.op))
            result = (
                self.native(node, function, before, value)
                if function
                else self.combine(node, type(node.op), before, value, (text, self.frame.text(node.value)))
            )
        else:
            result = self.combine(node, type(node.op), before, value, (text, self.frame.text(node.value)))
        self.assign(target, result)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            if isinstance(value, RunTimeRange):
                raise SourceError(
                    "TS102", "tile.range is a loop statement: write for i in tile.range(...)", self.emit.place
                )
            self.frame.locals[target.id] = value
            self.frame.indices.pop(target.id, None)
            self.frame.assigned_at[target.id] = self.frame.loc(target)
            if isinstance(value, Handle) and not value.value.name:
                value.value.name = target.id
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target, value)
        elif isinstance(target, ast.Subscript):
            self._assign_item(target, value)
        else:
            raise SourceError(
                "TS102", f"'{self.frame.text(target)}' cannot be assigned inside a {self.scope}", self.frame.loc(target)
            )

    def _unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        items = self.iterate(value, target)
        stars = [position for position, part in enumerate(target.elts) if isinstance(part, ast.Starred)]
        fixed = len(target.elts) - len(stars)
        if len(items) != fixed if not stars else len(items) < fixed:
            raise SourceError(
                "TS105",
                f"ValueError: {len(items)} values for the {fixed} names in '{self.frame.text(target)}'",
                self.frame.loc(target),
            )
        for position, part in enumerate(target.elts):
            if isinstance(part, ast.Starred):
                rest = len(items) - fixed
                self.assign(part.value, self.made(items[position : position + rest]))
                items = items[:position] + [None] + items[position + rest :]
            else:
                self.assign(part, items[position])

    def _assign_item(self, target: ast.Subscript, value: Any) -> None:
        owner, text = self.evaluate(target.value), self.frame.text(target)
        if isinstance(owner, Handle) and owner.is_buffer:
            items = self.subscripts(target.slice)
            self.at(target)
            return write_buffer(self.emit, owner, self.frame.text(target.value), items, value, f"the value of {text}")
        if isinstance(owner, Handle):
            remedy = f"tile.store(value, {text})" if owner.is_view else "tile.where, or a shared buffer"
            raise SourceError(
                "TS102",
                f"'{text}' cannot be assigned: '{self.frame.text(target.value)}' is {describe(owner)}; use {remedy}",
                self.frame.loc(target),
            )
        index = self.container_index(target.slice)
        self.at(target)
        self.check_mutation(owner, text)
        self.native(target, operator.setitem, owner, index, value)

    # -- branches

    def _If(self, node: ast.If) -> Any:
        condition, text = self.evaluate(node.test), self.frame.text(node.test)
        self.emit.place = self.frame.loc(node.test)
        if not isinstance(condition, Handle):
            holds = truth(self.emit, condition, text, "this if decides at compile time")
            return self.execute(node.body if holds else node.orelse)
        self._run_time_if(node, self._condition(condition, "an if", node.test))
        return None

    def _run_time_if(self, node: ast.If, condition: Handle) -> None:
        line = node.lineno
        before, copies = self.frame.locals, self.emit.copies
        blocks = (Block(), Block())
        outcomes: list[dict[str, Any]] = []
        for block, body in zip(blocks, (node.body, node.orelse), strict=True):
            self.frame.locals = dict(before)
            with self.emit.region(block):
                self.execute(body)
            outcomes.append(self.frame.locals)
            self._end_region(copies, "branch")
        self.frame.locals = dict(before)
        self.emit.place = self.frame.loc(node.test)
        joined: list[tuple[str, list[Handle]]] = []
        for name in assigned_names([*node.body, *node.orelse]):
            values = [_settled(outcome.get(name, _MISSING)) for outcome in outcomes]
            value = self._join(values, blocks, line)
            if isinstance(value, list):
                joined.append((name, value))
            elif value is not _MISSING:
                self.frame.locals[name] = value
        for position, block in enumerate(blocks):
            with self.emit.region(block):
                self.emit.make("yield", *(handles[position] for _, handles in joined))
        results = self.emit.make("if", condition, regions=blocks)
        for (name, _), result in zip(joined, results, strict=True):
            result.name = name
            self.frame.locals[name] = self.emit.handle(result)

    def _join(self, values: list[Any], blocks: tuple[Block, Block], line: int) -> Any:
        """The value of a variable after an if: one value that both branches agree on, a handle of each, or `Lost`."""
        then, otherwise = values
        if then is otherwise or (is_number(then) and type(then) is type(otherwise) and then == otherwise):
            return then
        if isinstance(then, Lost) or isinstance(otherwise, Lost):
            return Lost(f"is assigned in one branch only of the if on line {line}; assign it before the if")
        dtype = _common_dtype(values)
        handles: list[Handle] = []
        for value, block in zip(values, blocks, strict=True):
            with self.emit.region(block):
                if isinstance(value, Handle) and value.is_view and not all(map(_is_view, values)):
                    value = self.emit.load(value)  # a tile on the other side: the tile that this window holds
                handle = self._as_value(value, dtype)
            if handle is not None:
                handles.append(handle)
        if len(handles) == 2 and handles[0].type == handles[1].type:
            return handles
        return Lost(
            f"is {describe(then)} in one branch of the if on line {line} and {describe(otherwise)} in the other",
            "TS301" if len(handles) == 2 else "TS205",
        )

    def _as_value(self, value: Any, dtype: DType | None) -> Handle | None:
        """A value that a region may hand on: a tile or a scalar; a Python number becomes a scalar of `dtype`."""
        if isinstance(value, Handle):
            return value if value.is_tile or value.is_scalar else None
        if not is_number(value) or dtype is None:
            return None
        if dtype.is_float and type(value) is not bool:
            return self.emit.number(float(value), dtype)
        return self.emit.number(value, dtype) if dtype == _number_dtype(value) else None

    def _end_region(self, before: CopyGroups, what: str) -> None:
        """Copies that a region starts must be waited for in it; after it, the copies in flight are those before it."""
        copy = self.emit.copies.started_since(before)
        if copy is not None:
            raise SourceError(
                "TS102",
                f"this copy is not waited for in the {what} that starts it; copies carried across "
                "iterations or out of a branch are not supported yet",
                copy.loc,
            )
        self.emit.copies = before

    # -- loops

    def _For(self, node: ast.For) -> Any:
        iterable, outer = self.evaluate(node.iter), self.frame.indices
        shared = {name: SharedIndices() for name in assigned_names([node.target])}
        self.frame.indices = {**outer, **shared}
        try:
            return self._loop(node, iterable, shared)
        finally:
            self.frame.indices = outer

    def _loop(self, node: ast.For, iterable: Any, shared: dict[str, SharedIndices]) -> Any:
        if isinstance(iterable, RunTimeRange):
            self._run_time_loop(node, iterable)
            return None
        if isinstance(iterable, StaticRange) and self._rolled(node, iterable.numbers):
            return None
        for item in self.iterate(iterable, node.iter):
            self.assign(node.target, item)
            self.frame.indices |= shared
            self._unrolled.append(self.emit.block)
            signal = self.execute(node.body)
            self._unrolled.pop()
            if signal is BREAK:
                return None
            if isinstance(signal, Returned):
                return signal
        return self.execute(node.orelse)

    def _While(self, node: ast.While) -> Any:
        """Iterations are unrolled as long as the condition is known at compile time, then one loop runs the rest."""
        for _ in range(UNROLL_LIMIT):
            condition, text = self.evaluate(node.test), self.frame.text(node.test)
            self.emit.place = self.frame.loc(node.test)
            if isinstance(condition, Handle):
                self._run_time_while(node, self._condition(condition, "a while", node.test))
                return None
            if not truth(self.emit, condition, text, "this while decides at compile time"):
                return self.execute(node.orelse)
            self._unrolled.append(self.emit.block)
            signal = self.execute(node.body)
            self._unrolled.pop()
            if signal is BREAK:
                return None
            if isinstance(signal, Returned):
                return signal
        raise SourceError(
            "TS102",
            f"'{self.frame.text(node.test)}' is known at compile time, and its loop would be unrolled more than "
            f"{UNROLL_LIMIT} times; use tile.range, or a condition on run-time values",
            self.frame.loc(node.test),
        )

    def _rolled(self, node: ast.For, numbers: range) -> bool:
        """Whether a static loop was built as one loop on the device; nothing is built where it must be unrolled.

        Its body is tried with the index as a run-time integer. Where that fails, or the index is more than data
        (`evaluator_lists.rolls`), the loop is unrolled.
        """
        if not self.rerolls or len(numbers) < 2 or not isinstance(node.target, ast.Name) or node.orelse:
            return False
        block, locals_, indices = self.emit.block, dict(self.frame.locals), dict(self.frame.indices)
        copies, decided, unrolled = self.emit.copies, set(self.emit.decided), list(self._unrolled)
        known = {id(op) for op in block.walk()}
        self.rolling += 1
        try:
            self._run_time_loop(node, RunTimeRange(numbers.start, numbers.stop, numbers.step), static=True)
            if rolls(block.ops[-1], self.emit.singles):
                self.rerolled = True
                return True
        except TesseraError:
            pass  # the unrolled loop says what is wrong, if anything is
        finally:
            self.rolling -= 1
        # What an earlier loop's body has lost to this block meanwhile stays here.
        block.ops[:] = [op for op in block.ops if id(op) in known]
        self.frame.locals, self.frame.indices, self.emit.copies = locals_, indices, copies
        self.emit.decided, self._unrolled = decided, unrolled
        return False

    def _condition(self, value: Handle, what: str, node: ast.expr) -> Handle:
        """A run-time bool for `what`, an if or a while."""
        if value.is_view and not value.shape:
            value = self.emit.load(value)
        if not value.is_condition:
            remedy = "compare it first" if value.is_scalar else f"{what} needs one bool; use tile.where"
            message = f"'{self.frame.text(node)}' is {describe(value)}; {remedy}"
            raise SourceError("TS204", message, self.frame.loc(node))
        return value

    def _run_time_while(self, node: ast.While, condition: Handle) -> None:
        if node.orelse:
            raise SourceError("TS102", "else after a run-time loop is not supported", self.frame.loc(node.orelse[0]))
        place = self.emit.place = self._first_line(node)
        body, line = Block(), node.lineno
        body.add_argument(condition.type, condition.value.name)
        before, copies = self.frame.locals, self.emit.copies
        assigned = assigned_names(node.body)
        self.frame.locals = dict(before)
        carried = self._enter_loop(assigned, body, line)
        entered = dict(self.frame.locals)
        with self.emit.region(body):
            self.execute(node.body)
            test, text = self.evaluate(node.test), self.frame.text(node.test)
            self.emit.place = self.frame.loc(node.test)
            if isinstance(test, Handle):
                again = self._condition(test, "a while", node.test)
            else:
                again = self.emit.number(truth(self.emit, test, text, "this while decides at compile time"), boolean)
            self.emit.place = place
            after = self.frame.locals
            self._forget(assigned, before, entered, line, body)
            carried, values = self._leave_loop(carried, after, body, line)
            self.emit.place = place
            self.emit.make("yield", again, *values)
        self._end_region(copies, "iteration")
        initial = [condition, *(variable.initial for variable in carried)]
        results = self.emit.make("while", *initial, regions=(body,))
        for variable, result in zip(carried, results[1:], strict=True):
            result.name = variable.name
            self.frame.locals[variable.name] = self.emit.handle(result)

    def _forget(
        self, assigned: list[str], before: dict[str, Any], entered: dict[str, Any], line: int, body: Block
    ) -> None:
        """After a loop, what it assigned is lost unless it is carried, or the same in every iteration."""
        after, self.frame.locals = self.frame.locals, dict(before)
        gone = f"is assigned inside the loop on line {line} and does not exist after it; assign it before the loop"
        parent = self.emit.builders[-2].block
        for name in assigned:
            barred = entered.get(name)
            self.frame.locals[name] = (
                barred
                if isinstance(barred, Lost) and not isinstance(barred, Assigned) and name in before
                else Assigned(gone, value=after.get(name), body=body, parent=parent)
            )

    def _run_time_loop(self, node: ast.For, bounds: RunTimeRange, static: bool = False) -> None:
        if node.orelse:
            raise SourceError("TS102", "else after a run-time loop is not supported", self.frame.loc(node.orelse[0]))
        if not isinstance(node.target, ast.Name):
            raise SourceError(
                "TS102", "tile.range gives one index, so its loop has one variable", self.frame.loc(node.target)
            )
        place = self.emit.place = self._first_line(node)
        operands = [
            self.emit.index(bound, "a bound of tile.range") for bound in (bounds.start, bounds.stop, bounds.step)
        ]
        body, line = Block(), node.lineno
        index = Handle(body.add_argument(INDEX, node.target.id), body, self.emit.fresh())
        before, copies = self.frame.locals, self.emit.copies
        assigned = [name for name in assigned_names(node.body) if name != node.target.id]
        self.frame.locals = dict(before)
        carried = self._enter_loop(assigned, body, line)
        entered = dict(self.frame.locals)
        with self.emit.region(body):
            shared = self.frame.indices.get(node.target.id)
            self.assign(node.target, index)
            if shared is not None:
                self.frame.indices[node.target.id] = shared
            self.execute(node.body)
            self.emit.place = place
            after = self.frame.locals
            self._forget([*assigned, node.target.id], before, entered, line, body)
            carried, values = self._leave_loop(carried, after, body, line)
            self.emit.place = place
            self.emit.make("yield", *values)
        self._end_region(copies, "iteration")
        initial = [variable.initial for variable in carried]
        results = self.emit.make("for", *operands, *initial, regions=(body,), static=static)
        for variable, result in zip(carried, results, strict=True):
            result.name = variable.name
            self.frame.locals[variable.name] = self.emit.handle(result)

    def _enter_loop(self, assigned: list[str], body: Block, line: int) -> list[_Carried]:
        """Gives the body an argument for each variable that it assigns and that holds a tile or a number before."""
        carried = []
        for name in assigned:
            value = _settled(self.frame.locals.get(name, _MISSING))
            if isinstance(value, Lost):
                continue
            initial = self._as_value(value, _number_dtype(value) if is_number(value) else None)
            if initial is None:
                self.frame.locals[name] = Lost(
                    f"is {describe(value)} before the loop on line {line} and is assigned inside "
                    "it; only tiles and numbers pass from one iteration to the next"
                )
                continue
            argument = body.add_argument(initial.type, name)
            carried.append(_Carried(name, value, initial, argument))
            self.frame.locals[name] = Handle(argument, body, self.emit.fresh() if initial.is_int else None)
        return carried

    def _leave_loop(
        self, carried: list[_Carried], after: dict[str, Any], body: Block, line: int
    ) -> tuple[list[_Carried], list[Handle]]:
        """The variables that are really carried, with their values at the end of an iteration. Raises TS301."""
        used = {id(value) for op in body.walk() for value in op.operands}
        used |= {id(value.value) for value in after.values() if isinstance(value, Handle)}
        kept, values = [], []
        for variable in carried:
            final = after[variable.name]
            read = id(variable.argument) in used
            if not read and is_number(final) and type(final) is type(variable.before) and final == variable.before:
                self.frame.locals[variable.name] = final  # set anew to what it was: still a compile-time constant
                continue
            value = self._as_value(final, variable.initial.dtype)
            if value is not None and value.type == variable.argument.type:
                kept.append(variable)
                values.append(value)
                continue
            change = (
                f"{describe_type(variable.argument.type)} before the loop on line {line} and {_outcome(final)} after "
                "an iteration"
            )
            if read:
                raise SourceError(
                    "TS301",
                    f"'{variable.name}' is {change}; it must keep its type",
                    self.frame.assigned_at.get(variable.name, self.emit.place),
                )
            self.frame.locals[variable.name] = Lost(f"is {change}", "TS301")
        body.arguments[1:] = [variable.argument for variable in kept]
        for position, argument in enumerate(body.arguments):
            argument.index = position
        return kept, values


def _settled(value: Any) -> Any:
    """A variable's value; what an earlier loop assigned is moved out of that loop where it can be."""
    return value.moved_out() if isinstance(value, Assigned) else value


def _is_view(value: Any) -> bool:
    return isinstance(value, Handle) and value.is_view


def _outcome(value: Any) -> str:
    return f"undefined ({value.reason})" if isinstance(value, Lost) else describe(value)


def _number_dtype(value: Any) -> DType:
    """The dtype of the run-time scalar that a Python number becomes."""
    return boolean if type(value) is bool else i64 if type(value) is int else f32


def _common_dtype(values: list[Any]) -> DType | None:
    """The dtype in which numbers join the other values: that of a scalar among them, else of the widest number."""
    scalars = [value.dtype for value in values if isinstance(value, Handle) and value.is_scalar]
    if scalars:
        return scalars[0]
    kinds = {_number_dtype(value) for value in values if is_number(value)}
    return None if not kinds else kinds.pop() if len(kinds) == 1 else f32
