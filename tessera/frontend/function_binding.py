"""What a function's annotations ask of the values that it gets and returns: dims of one name are one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tessera.errors import SourceError
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import Definition
from tessera.frontend.evaluator_lists import NamedTensors
from tessera.frontend.evaluator_values import Handle, describe, is_number
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.library_parameters import DeferredParameter
from tessera.ir import dims
from tessera.ir.core import Op
from tessera.ir.dims import Size
from tessera.ir.types import shape_text


def origin(value: Handle) -> str:
    """The parameter that a tensor is, or is made of by ops of one operand such as slices and casts; "" for others."""
    made = value.value
    while isinstance(made.owner, Op):
        if len(made.owner.operands) != 1:
            return ""
        (made,) = made.owner.operands
    return made.name


@dataclass
class Binder:
    """The dims of one call of `callee`, by name, with where each was first seen: the parameter and its axis."""

    emit: TensorEmitter
    callee: Definition
    sizes: dict[str, Size] = field(default_factory=dict)
    seen: dict[str, tuple[str, int]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  # of its lists
    origins: dict[str, str] = field(default_factory=dict)  # the author's parameter that each argument comes from

    def bind_all(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, as `bind` gives them; those that take their shape from the others are last."""
        order = sorted(self.callee.parameters, key=lambda p: isinstance(given[p.name], DeferredParameter))
        bound = {p.name: self.bind(p.name, p.annotation, given[p.name]) for p in order}
        return {p.name: bound[p.name] for p in self.callee.parameters}

    def bind(self, name: str, annotation: Annotation, value: Any) -> Any:
        """The value as the parameter's annotation wants it. Raises SourceError TS203, TS204, TS302 or TS304."""
        if isinstance(annotation, ScalarAnnotation):
            return self._scalar(name, annotation, value)
        if isinstance(annotation, ListAnnotation):
            if not isinstance(value, (list, tuple)):
                self.fail("TS203", f"'{name}' takes a list of tensors, but it is {describe(value)}")
            self.lengths[name] = len(value)
            items = (self.tensor(f"{name}[{i}]", annotation.element, item) for i, item in enumerate(value))
            return NamedTensors(items, name)
        return self.tensor(name, annotation, value)

    def _scalar(self, name: str, annotation: ScalarAnnotation, value: Any) -> Any:
        if is_number(value) or isinstance(value, dims.Dim):
            if annotation.dtype.is_int and type(value) is float:
                self.fail("TS203", f"'{name}' takes an int, but it is {value}")
            return float(value) if annotation.dtype.is_float and type(value) is int else value
        if isinstance(value, Handle) and value.is_scalar and (annotation.dtype.is_float or value.is_int):
            return value
        self.fail("TS203", f"'{name}' takes one number ({annotation}), but it is {describe(value)}")

    def tensor(self, name: str, annotation: TensorAnnotation, value: Any) -> Any:
        """A tensor, or one of a list, as the parameter's annotation wants it."""
        if isinstance(value, DeferredParameter):
            value = self._resolved(name, annotation, value)
        if not isinstance(value, Handle) or not value.is_tile:
            self.fail("TS203", f"'{name}' takes a tensor, but it is {describe(value)}")
        self.origins[name] = origin(value)
        if annotation.dtype is not None and annotation.dtype != value.dtype:
            self.fail(
                "TS204",
                f"{self._named(name)} takes {annotation.dtype.name}, but it is {describe(value)}; convert it with "
                "ts.cast",
            )
        if annotation.shape is not None:
            self.match(name, annotation.shape, value.shape)
        return value

    def _resolved(self, name: str, annotation: TensorAnnotation, value: DeferredParameter) -> Handle:
        """A parameter that has no shape yet, in that of the annotation: a dim of its own is one more than the first
        list is long.
        """
        if annotation.shape is None:
            self.fail(
                "TS205", f"'{name}' has no annotated dims, from which {value.call} takes its shape; write "
                'Tensor["L", "L", ts.bf16]'
            )  # fmt: skip
        sizes = dict(self.sizes)
        for own in sorted(frozenset().union(*map(dims.symbols, annotation.shape)) - self.sizes.keys()):
            length = next(iter(self.lengths.values()), None)
            if length is None:
                self.fail(
                    "TS205",
                    f"the dim '{own}' of '{name}' has no size: {value.call} takes one more than the length of the "
                    f"first list, and '{self.callee.name}' has no list",
                )
            sizes[own] = length + 1
        return value.of(tuple(dims.substitute(size, sizes) for size in annotation.shape), annotation.dtype)

    def match(self, name: str, wanted: tuple[Size, ...], given: tuple[Size, ...]) -> None:
        """Binds the dims of an annotation to the sizes of a value."""
        if len(wanted) != len(given):
            axes = f"{len(wanted)} axes {shape_text(wanted)}"
            self.fail("TS304", f"{self._named(name)} takes {axes}, but it is {shape_text(given)}")
        for axis, (size, actual) in enumerate(zip(wanted, given, strict=True)):
            text = str(size)
            if text not in self.sizes and dims.symbols(size) == {text}:
                self.sizes[text], self.seen[text] = actual, (name, axis)
                continue
            bound = dims.substitute(size, self.sizes)
            if dims.symbols(size) - self.sizes.keys():
                continue  # an expression of which not every dim is known
            if not self.emit.unify(bound, actual):
                first = next((self.seen[s] for s in sorted(dims.symbols(size)) if s in self.seen), None)
                also = f" and {self._named(first[0])} axis {first[1]} is {bound}" if first else f", not {bound}"
                one, values = f"{self._named(name)} axis {axis} ({text})", self.emit.values_text(actual, bound)
                self.fail("TS302", f"{one} is {actual}{also}: they must be equal{values}")

    def _named(self, name: str) -> str:
        """A parameter of the callee, with the author's own behind it where that has another name."""
        known = self.origins.get(name)
        return f"'{name}' (of '{known}')" if known and known != name else f"'{name}'"

    def fail(self, code: str, message: str) -> NoReturn:
        raise SourceError(code, f"{self.callee.name}: {message}", self.emit.place)

    def result(self, annotation: Annotation | None, value: Any) -> Any:
        """What the call gives: cast to the dtype of the return annotation, which is a rounding that nothing skips."""
        if annotation is None or isinstance(annotation, ListAnnotation):
            return value
        if isinstance(annotation, ScalarAnnotation):
            if is_number(value):
                return value
            if isinstance(value, Handle) and (value.is_scalar or not value.shape):
                return value
            self.fail("TS203", f"it returns {describe(value)}, but is annotated to return a {annotation}")
        if not isinstance(value, Handle) or not value.is_tile:
            self.fail("TS203", f"it returns {describe(value)}, but is annotated to return {annotation}")
        if annotation.shape is not None:
            self.match("the result", annotation.shape, value.shape)
        return value if annotation.dtype is None else self.emit.cast(value, annotation.dtype)
