"""Parameters that are annotated with a bare `tile.Tensor`: their axes and dtype, from what the kernel does with them.

The kernel is evaluated with such parameters unknown. The first op that needs to know one says what would fit it, and
the evaluation starts again with that; it ends when nothing is unknown any more. Axes that stay open are those of the
first annotated tensor of that rank, axis by axis; the dtype is bf16.

A call knows more: rank, dtype and sizes of its arrays. Open axes are then those of the first annotated tensor of that
rank with a size in common, so that a call in which the other sizes differ is told so; where there is none, they are
dims of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq

from tessera.dtypes import DType, bf16
from tessera.errors import SourceError
from tessera.frontend.annotations import Annotation, ListAnnotation, TensorAnnotation
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.evaluator_unknown import NeedsAxes
from tessera.ir import dims
from tessera.ir.dims import Size

LENGTH = 3  # of a list whose length is not known where only the types of its tensors are asked for


@dataclass(frozen=True)
class Actual:
    """What a call knows of a bare parameter. Inside a function its sizes are those of the function."""

    shape: tuple[Size, ...]
    dtype: DType


def tensor_of(annotation: Annotation) -> TensorAnnotation | None:
    """The annotation of a parameter's tensors: its own, or that of a list's elements."""
    found = annotation.element if isinstance(annotation, ListAnnotation) else annotation
    return found if isinstance(found, TensorAnnotation) else None


def is_bare(annotation: Annotation) -> bool:
    tensor = tensor_of(annotation)
    return tensor is not None and tensor.shape is None


def resolve(
    definition: KernelDefinition,
    static: Mapping[str, int] | None = None,
    actual: Mapping[str, Actual] | None = None,
    sizes: Mapping[str, Size] | None = None,
    same: Callable[[Size, Size], bool] = eq,
) -> KernelDefinition:
    """The kernel with an annotation for every bare parameter; itself where there is none.

    `static` as for `trace`; `actual` holds what a call knows of bare parameters that it passes, `sizes` what it knows
    of dims, where that is more than `static`, and `same` tells whether two sizes of the call are one. Raises
    SourceError TS206 for a parameter whose axes nothing tells, and what the evaluation of the kernel raises.
    """
    names = [p.name for p in definition.parameters if is_bare(p.annotation)]
    if not names:
        return definition
    from tessera.frontend.evaluator import evaluate_once

    annotated = [tensor_of(p.annotation) for p in definition.parameters if not is_bare(p.annotation)]
    known = [tensor.shape for tensor in annotated if tensor is not None and tensor.shape is not None]
    given = actual or {}
    found: dict[str, TensorAnnotation] = {}
    while len(found) < len(names):
        try:
            evaluate_once(definition.annotated(found), static or {})
            break
        except NeedsAxes as need:
            open_ = _Open(known, sizes or static or {}, given.get(need.name), same)
            found[need.name] = open_.annotation(need.name, need)
    for name in names:  # what the kernel never uses
        if name not in found:
            unused = given.get(name) or Actual((0,), bf16)
            found[name] = TensorAnnotation(_own(name, len(unused.shape)), unused.dtype)
    return definition.annotated(found)


@dataclass(frozen=True)
class _Open:
    """What may fill the open axes of a tensor: shapes of annotated ones, sizes of dims, what the call knows of it."""

    known: Sequence[tuple[Size, ...]]
    sizes: Mapping[str, Size]
    actual: Actual | None
    same: Callable[[Size, Size], bool]

    def annotation(self, name: str, need: NeedsAxes) -> TensorAnnotation:
        axes, actual = need.axes, self.actual
        if actual is not None and (axes is None or len(axes) != len(actual.shape)):
            axes = (None,) * len(actual.shape)
        if axes is None:
            raise SourceError(
                "TS206",
                f"the axes of '{name}' are not annotated, and {need.where} does not tell them; write them out, as in "
                'tile.Tensor["M", "N", ts.bf16]',
                need.loc,
            )
        model = self._model(len(axes)) or _own(name, len(axes))
        shape = tuple(model[axis] if size is None else size for axis, size in enumerate(axes))
        return TensorAnnotation(shape, actual.dtype if actual is not None else need.dtype or bf16)

    def _model(self, rank: int) -> tuple[Size, ...] | None:
        fitting = [shape for shape in self.known if len(shape) == rank]
        if self.actual is not None:
            fitting = [shape for shape in fitting if self._agrees(shape, self.actual.shape)]
        return next(iter(fitting), None)

    def _agrees(self, shape: tuple[Size, ...], actual: tuple[Size, ...]) -> bool:
        """Whether some axis has the size that it has in the call; sizes that nothing tells may be any."""
        return any(
            dims.symbols(size) - self.sizes.keys() or self.same(dims.substitute(size, self.sizes), given)
            for size, given in zip(shape, actual, strict=True)
        )


def _own(name: str, rank: int) -> tuple[Size, ...]:
    return tuple(dims.symbol(f"{name}.{axis}") for axis in range(rank))


__all__ = ["LENGTH", "Actual", "is_bare", "resolve", "tensor_of"]
