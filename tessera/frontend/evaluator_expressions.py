"""Expressions of a kernel: what is known at compile time is computed now, the rest becomes ops."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tessera.errors import SourceError, TesseraError, did_you_mean
from tessera.frontend.evaluator_arithmetic import binary, compare, elementwise, truth, unary
from tessera.frontend.evaluator_calls import Calls
from tessera.frontend.evaluator_frames import Frame
from tessera.frontend.evaluator_lists import TensorList
from tessera.frontend.evaluator_unknown import NeedsAxes, UnknownTensor, check_operands, check_subscript
from tessera.frontend.evaluator_values import Handle, RunTimeRange, describe
from tessera.frontend.evaluator_windows import Slice, Subscript, subscript_buffer, subscript_tile, subscript_view
from tessera.frontend.language_math import transposed
from tessera.ir.dims import Dim
from tessera.location import Loc

UNROLL_LIMIT = 10_000  # iterations of one Python loop: beyond this a mistake is likelier than a wish

_CONSTRUCTS = {
    "Lambda": "a lambda",
    "Await": "await",
    "Yield": "yield",
    "YieldFrom": "yield from",
    "NamedExpr": "':='",
    "With": "a with block",
    "AsyncWith": "async with",
    "AsyncFor": "async for",
    "Try": "try",
    "TryStar": "try",
    "Raise": "raise",
    "ClassDef": "a class",
    "FunctionDef": "a function defined",
    "AsyncFunctionDef": "a function defined",
    "Import": "import",
    "ImportFrom": "import",
    "Global": "global",
    "Nonlocal": "nonlocal",
    "Delete": "del",
    "Match": "match",
    "TypeAlias": "a type alias",
}
_HANDLE_ATTRIBUTES = ("shape", "dtype", "T")


class Expressions(Calls):
    """Evaluates expressions of the frame on top. Every error leaves with the place of the node that it concerns."""

    def evaluate(self, node: ast.expr) -> Any:
        method: Callable[[Any], Any] | None = getattr(self, f"_{type(node).__name__}", None)
        if method is None:
            self.unsupported(node)
        try:
            return method(node)
        except TesseraError as error:
            raise error.at(self.frame.loc(node)) from None

    def unsupported(self, node: ast.AST) -> NoReturn:
        name = type(node).__name__
        what = _CONSTRUCTS.get(name, name)
        raise SourceError("TS102", f"{what} inside a {self.scope} is not supported", self._first_line(node))

    def _first_line(self, node: ast.AST) -> Loc:
        """The place of a node; of a compound statement, only its header."""
        loc = self.frame.loc(node)
        if loc.end_line in (None, loc.line) or not getattr(node, "body", None):
            return loc
        line = self.frame.source.text.split("\n")[loc.line - 1]
        return Loc(loc.file, loc.line, loc.column, loc.line, len(line.split("#")[0].rstrip()) + 1, loc.call_site)

    # -- atoms

    def _Constant(self, node: ast.Constant) -> Any:
        return node.value

    def _Name(self, node: ast.Name) -> Any:
        return self.frame.lookup(node)

    def _Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._items(node.elts))

    def _List(self, node: ast.List) -> list[Any]:
        return self.made(self._items(node.elts))

    def _Set(self, node: ast.Set) -> set[Any]:
        return self.made(set(self._items(node.elts)))

    def _Dict(self, node: ast.Dict) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                result.update(self.evaluate(value))
            else:
                result[self.evaluate(key)] = self.evaluate(value)
        return self.made(result)

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items += self.iterate(self.evaluate(node.value), node.value)
            else:
                items.append(self.evaluate(node))
        return items

    def _JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.evaluate(part)) for part in node.values)

    def _FormattedValue(self, node: ast.FormattedValue) -> str:
        value = self.evaluate(node.value)
        if isinstance(value, Handle):
            raise SourceError(
                "TS205",
                f"'{self.frame.text(node.value)}' is {describe(value)}, known only at run time, and "
                "text is made at compile time",
                self.frame.loc(node.value),
            )
        value = {ord("r"): repr, ord("s"): str, ord("a"): ascii}.get(node.conversion, lambda same: same)(value)
        specification = self.evaluate(node.format_spec) if node.format_spec else ""
        return self.native(node, format, str(value) if isinstance(value, Dim) else value, specification)

    # -- operators

    def _BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.evaluate(node.left), self.evaluate(node.right)
        return self.combine(node, type(node.op), left, right, (self.frame.text(node.left), self.frame.text(node.right)))

    def combine(self, node: ast.AST, kind: type[ast.operator], left: Any, right: Any, texts: tuple[str, str]) -> Any:
        self.at(node)
        check_operands((left, right), kind is ast.MatMult, self.emit.place)
        result = binary(self.emit, kind, left, right, texts)
        return self.made(result) if isinstance(result, list) else result

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.evaluate(node.operand)
        self.at(node)
        return unary(self.emit, type(node.op), value, self.frame.text(node.operand))

    def _BoolOp(self, node: ast.BoolOp) -> Any:
        """`and` / `or`: decided at compile time with Python's short cut; run-time bools are combined by an op."""
        name = "and" if isinstance(node.op, ast.And) else "or"
        result, text = self.evaluate(node.values[0]), self.frame.text(node.values[0])
        for part in node.values[1:]:
            if not isinstance(result, Handle):
                self.at(node)
                if truth(self.emit, result, text, f"'{name}' decides at compile time here") == (name == "or"):
                    return result
                result, text = self.evaluate(part), self.frame.text(part)
                continue
            value, value_text = self.evaluate(part), self.frame.text(part)
            self.at(node)
            result = elementwise(self.emit, name, (result, value), (text, value_text))
        return result

    def _Compare(self, node: ast.Compare) -> Any:
        left, left_text = self.evaluate(node.left), self.frame.text(node.left)
        result: Any = True
        for operator, part in zip(node.ops, node.comparators, strict=True):
            right, text = self.evaluate(part), self.frame.text(part)
            self.at(node)
            outcome = compare(self.emit, type(operator), left, right, (left_text, text))
            if isinstance(result, Handle) and (isinstance(outcome, Handle) or outcome is False):
                result = elementwise(self.emit, "and", (result, outcome), (left_text, text))
            elif not isinstance(result, Handle):
                result = outcome
            if not isinstance(result, Handle) and not result:
                return result
            left, left_text = right, text
        return result

    def _IfExp(self, node: ast.IfExp) -> Any:
        condition = self.evaluate(node.test)
        text = self.frame.text(node.test)
        if isinstance(condition, Handle):
            raise SourceError(
                "TS102",
                f"'{text}' is known only at run time, and 'a if c else b' decides at compile time; use "
                "tile.where or an if statement",
                self.frame.loc(node),
            )
        self.at(node)
        return self.evaluate(
            node.body if truth(self.emit, condition, text, "this decides at compile time") else node.orelse
        )

    # -- attributes and subscripts

    def _Attribute(self, node: ast.Attribute) -> Any:
        owner, name = self.evaluate(node.value), node.attr
        self.at(node)
        if isinstance(owner, Handle):
            return self._handle_attribute(owner, name, self.frame.text(node.value))
        if isinstance(owner, UnknownTensor):
            raise NeedsAxes(owner.name, None, None, f"'.{name}'", self.frame.loc(node))
        if isinstance(owner, TensorList):
            raise SourceError(
                "TS201",
                f"'{self.frame.text(node.value)}' is {owner} and has no '{name}'; take one of its tensors first",
                self._attribute_loc(node),
            )
        try:
            return getattr(owner, name)
        except AttributeError as error:
            message = str(error)
            if "did you mean" not in message:
                message += did_you_mean(name, dir(owner))
            raise SourceError("TS201", message, self._attribute_loc(node)) from None
        except TesseraError as error:
            raise error.at(self._attribute_loc(node)) from None
        except Exception as error:  # a property of the author's class may raise anything
            raise SourceError("TS105", f"{type(error).__name__}: {error}", self.frame.loc(node)) from None

    def _attribute_loc(self, node: ast.Attribute) -> Loc:
        """The place of the name after the dot."""
        loc = self.frame.loc(node)
        if loc.end_line is None or loc.end_column is None:
            return loc
        # The rewriting of keywords may have added an underscore that the author's text does not have.
        text = self.frame.text(node)
        length = len(text.rsplit(".", 1)[-1].strip())
        return Loc(loc.file, loc.end_line, loc.end_column - length, loc.end_line, loc.end_column, loc.call_site)

    def _handle_attribute(self, owner: Handle, name: str, text: str) -> Any:
        if name == "shape" and not owner.is_scalar:
            return owner.shape
        if name == "dtype":
            return owner.dtype
        if name == "T" and not owner.is_scalar:
            return transposed(self.emit, self.emit.operand(owner, text), text)
        hint = did_you_mean(name, _HANDLE_ATTRIBUTES)
        raise SourceError("TS201", f"'{text}' is {describe(owner)} and has no '{name}'{hint}", self.emit.place)

    def _Subscript(self, node: ast.Subscript) -> Any:
        return self.chosen(node, self.evaluate(node.value))

    def chosen(self, node: ast.Subscript, owner: Any) -> Any:
        """What the subscript takes of `owner`."""
        text = self.frame.text(node.value)
        if isinstance(owner, Handle):
            items = self.subscripts(node.slice)
            self.at(node)
            if owner.is_view:
                return subscript_view(self.emit, owner, text, items)
            if owner.is_buffer:
                return subscript_buffer(self.emit, owner, text, items)
            if owner.is_tile:
                return subscript_tile(self.emit, owner, text, items)
            raise SourceError("TS203", f"'{text}' is {describe(owner)} and has no elements to choose", self.emit.place)
        if isinstance(owner, UnknownTensor):
            check_subscript(owner, [item.value for item in self.subscripts(node.slice)], self.frame.loc(node))
        if isinstance(owner, TensorList):
            return self._list_element(node, owner)
        return self.native(node, lambda: owner[self.container_index(node.slice)])

    def _list_element(self, node: ast.Subscript, tensors: TensorList) -> Any:
        """One tensor of a list by a number or a run-time integer; a Python list of some by a slice."""
        if isinstance(node.slice, ast.Slice):
            return self.made(self.native(node, lambda: tensors[self.container_index(node.slice)]))
        if isinstance(node.slice, ast.Tuple):
            raise SourceError(
                "TS304",
                f"'{self.frame.text(node.value)}' is {tensors}, which takes one index; index the tensor after it, as "
                f"in {self.frame.text(node.value)}[i][...]",
                self.frame.loc(node.slice),
            )
        index = self.evaluate(node.slice)
        self.at(node)
        if isinstance(node.slice, ast.Name) and node.slice.id in self.frame.indices:
            self.frame.indices[node.slice.id].use(node.slice.id, tensors)
        return tensors.at(index, self.frame.text(node.slice))

    def container_index(self, node: ast.expr) -> Any:
        """The subscript of a Python container; sizes become numbers, run-time values are an error."""
        if isinstance(node, ast.Slice):
            return slice(
                *(None if part is None else self.container_index(part) for part in (node.lower, node.upper, node.step))
            )
        value = self.evaluate(node)
        if isinstance(value, (Handle, Dim)):
            self.at(node)
            return self.emit.concrete(value, self.frame.text(node), "a Python container is indexed at compile time")
        return value

    def subscripts(self, node: ast.expr) -> list[Subscript]:
        nodes = node.elts if isinstance(node, ast.Tuple) else [node]
        return [Subscript(self._subscript(item), self.frame.text(item), self.frame.loc(item)) for item in nodes]

    def _subscript(self, node: ast.expr) -> Any:
        if not isinstance(node, ast.Slice):
            return self.evaluate(node)
        step = None if node.step is None else self.evaluate(node.step)
        if step not in (None, 1):
            raise SourceError(
                "TS102", f"the slice '{self.frame.text(node)}' has a step; windows have none", self.frame.loc(node)
            )
        return Slice(*(None if part is None else self.evaluate(part) for part in (node.lower, node.upper)))

    # -- comprehensions and iteration

    def _ListComp(self, node: ast.ListComp) -> list[Any]:
        return self.made([self.evaluate(node.elt) for _ in self._generated(node, node.generators)])

    # A generator is evaluated at once: nothing in a kernel can tell the difference.
    _GeneratorExp = _ListComp

    def _SetComp(self, node: ast.SetComp) -> set[Any]:
        return self.made({self.evaluate(node.elt) for _ in self._generated(node, node.generators)})

    def _DictComp(self, node: ast.DictComp) -> dict[Any, Any]:
        return self.made(
            {self.evaluate(node.key): self.evaluate(node.value) for _ in self._generated(node, node.generators)}
        )

    def _generated(self, node: ast.expr, generators: list[ast.comprehension]) -> Iterator[None]:
        with self._own_scope():
            yield from self._generate(node, generators)

    def _generate(self, node: ast.expr, generators: list[ast.comprehension]) -> Iterator[None]:
        if not generators:
            yield
            return
        first, *rest = generators
        for item in self.iterate(self.evaluate(first.iter), first.iter):
            self.assign(first.target, item)
            if all(self._holds(condition) for condition in first.ifs):
                yield from self._generate(node, rest)

    def _holds(self, node: ast.expr) -> bool:
        value = self.evaluate(node)
        self.at(node)
        return truth(self.emit, value, self.frame.text(node), "a comprehension is evaluated at compile time")

    @contextmanager
    def _own_scope(self) -> Iterator[None]:
        """Names assigned inside do not stay: the scope of a comprehension."""
        saved = self.frame.locals
        self.frame.locals = dict(saved)
        try:
            yield
        finally:
            self.frame.locals = saved

    def iterate(self, iterable: Any, node: ast.expr) -> list[Any]:
        """The items of a compile-time iterable."""
        text = self.frame.text(node)
        self.at(node)
        if isinstance(iterable, RunTimeRange):
            raise SourceError(
                "TS102", "tile.range is a loop statement: write for i in tile.range(...)", self.frame.loc(node)
            )
        if isinstance(iterable, (Handle, Dim)):
            raise SourceError(
                "TS203",
                f"'{text}' is {describe(iterable)}; a loop runs over tile.range(...), "
                "tile.static_range(...) or a Python sequence",
                self.frame.loc(node),
            )
        items: list[Any] = []
        for item in self.native(node, iter, iterable):
            if len(items) == UNROLL_LIMIT:
                raise SourceError(
                    "TS102",
                    f"'{text}' would be unrolled more than {UNROLL_LIMIT} times; use tile.range",
                    self.frame.loc(node),
                )
            items.append(item)
        return items

    # Given by the classes that complete the evaluator.

    frame: Frame

    def assign(self, target: ast.expr, value: Any) -> None:
        raise NotImplementedError
