"""Annotations of parameters: ordinary Python objects, so that a module that holds kernels executes natively.

`Tensor["B", "S", 2, ts.bf16 @ ts.accum(ts.f32)]` names the size of each axis and ends with the dtype. A string is the
name of a dim (the same name is the same size everywhere in the signature) or an expression over names, an int is a
fixed size.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from tessera.dtypes import DType, NumericType, f32, i64
from tessera.errors import SourceError
from tessera.ir.dims import Size, parse, symbols, to_text


@dataclass(frozen=True)
class TensorAnnotation:
    """A global tensor; `shape` and `dtype` are None where the author leaves them open, as in bare `Tensor`."""

    shape: tuple[Size, ...] | None = None
    dtype: DType | None = None
    accumulate: DType | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return "Tensor"
        parts = [str(size) if isinstance(size, int) else f'"{to_text(size)}"' for size in self.shape]
        if self.dtype is not None:
            policy = "" if self.accumulate is None else f" @ ts.accum(ts.{self.accumulate})"
            parts.append(f"ts.{self.dtype}{policy}")
        return f"Tensor[{', '.join(parts)}]"


@dataclass(frozen=True)
class ListAnnotation:
    """A list of tensors; its length is known at compile time."""

    element: TensorAnnotation

    def __str__(self) -> str:
        return f"list[{self.element}]"


@dataclass(frozen=True)
class ScalarAnnotation:
    """A run-time number: `int` is passed as i64, `float` as f32."""

    dtype: DType

    def __str__(self) -> str:
        return "int" if self.dtype.is_int else "float"


Annotation = TensorAnnotation | ListAnnotation | ScalarAnnotation


class Tensor:
    """The annotation of a tensor parameter: `Tensor["B", "S", "D", ts.bf16]`, or bare where the call decides."""

    def __class_getitem__(cls, items: Any) -> TensorAnnotation:
        parts = list(items) if isinstance(items, tuple) else [items]
        dtype: DType | None = None
        accumulate: DType | None = None
        if parts and isinstance(parts[-1], (DType, NumericType)):
            last = parts.pop()
            dtype, accumulate = (last, None) if isinstance(last, DType) else (last.dtype, last.accumulate)
        return TensorAnnotation(tuple(_size(part) for part in parts), dtype, accumulate)

    def __init__(self) -> None:
        raise SourceError("TS206", 'Tensor is an annotation, as in Tensor["B", "S", ts.bf16]; it holds no data')


def _size(part: Any) -> Size:
    if isinstance(part, (DType, NumericType)):
        raise SourceError("TS206", f"the dtype {part} must be the last item of Tensor[...]")
    if type(part) is int:
        if part < 1:
            raise SourceError("TS206", f"an axis cannot have the size {part}")
        return part
    if isinstance(part, str):
        try:
            size = parse(part)
        except ValueError:
            raise SourceError("TS206", f"'{part}' is neither the name of a dim nor an expression over names") from None
        if isinstance(size, int):
            raise SourceError("TS206", f"write the fixed size {size} without quotes")
        if any(not name.isidentifier() for name in symbols(size)):
            raise SourceError("TS206", f"'{part}' is not a name")
        return size
    raise SourceError("TS206", f"{part!r} in Tensor[...] is neither a dim name, an int nor a dtype")


def read_annotation(annotation: Any, owner: str) -> Annotation:
    """What the annotation of parameter `owner` means. Raises SourceError TS206 for anything that is not understood."""
    if annotation is Tensor:
        return TensorAnnotation()
    if isinstance(annotation, TensorAnnotation):
        return annotation
    if annotation is int:
        return ScalarAnnotation(i64)
    if annotation is float:
        return ScalarAnnotation(f32)
    if annotation is list:
        return ListAnnotation(TensorAnnotation())
    if get_origin(annotation) is list:
        (element,) = get_args(annotation)
        inner = read_annotation(element, owner)
        if isinstance(inner, TensorAnnotation):
            return ListAnnotation(inner)
        raise SourceError("TS206", f"'{owner}' is a list of {inner}; only lists of tensors are understood")
    shown = annotation.__name__ if isinstance(annotation, (type, types.ModuleType)) else repr(annotation)
    raise SourceError("TS206", f"the annotation {shown} of '{owner}' is not understood")
