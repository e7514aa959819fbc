"""Parameters that no call passes: a function asks for one, the parameter store holds it, a hidden argument brings it.

A parameter is found again by its key: the functions around the call, the op, and how many of them came before. What
does not say its own shape gets it from the annotation that it is first bound to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from tessera.dtypes import DType, bf16
from tessera.errors import SourceError
from tessera.frontend.evaluator_values import Handle
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.language import FUNCTION, Intrinsic
from tessera.frontend.language_tensor_shapes import tensor_function
from tessera.ir.types import Shape
from tessera.modes import is_training as training_mode

DTYPE = bf16  # of parameters whose consumer asks for none


@dataclass(eq=False)
class DeferredParameter:
    """A parameter whose shape is not known before a function takes it: `call` is what the author wrote to get it."""

    emit: TensorEmitter
    key: str
    call: str
    made: dict[tuple[Shape, DType], Handle] = field(default_factory=dict)

    def of(self, shape: Shape, dtype: DType | None) -> Handle:
        """The parameter in this shape, every element 1 / its last size; the same one each time."""
        kind = dtype or DTYPE
        if (shape, kind) not in self.made:
            why = f"every element of {self.call} starts at 1 / L"
            length = self.emit.concrete(shape[-1], self.call, why) if shape else 1
            self.made[shape, kind] = self.emit.ambient(self.key, shape, kind, "constant", 1 / length)
        return self.made[shape, kind]

    def __getitem__(self, index: Any) -> NoReturn:
        raise SourceError(
            "TS205",
            f"{self.call} has no shape yet: pass it to a function, whose annotation of that parameter, as in "
            'Tensor["L", "L", ts.bf16], gives it one',
        )


@tensor_function("ops.learnable_scale_parameter")
def learnable_scale_parameter(emit: TensorEmitter) -> Handle:
    """A bf16 number of the parameter store, 1 at first."""
    return emit.ambient(emit.parameter_key("learnable_scale_parameter"), (), DTYPE, "ones")


@tensor_function("ops.learned_attention_weights")
def learned_attention_weights(emit: TensorEmitter) -> DeferredParameter:
    """A parameter of the store, 1 / L everywhere at first, in the shape that the function which takes it annotates.

    A dim L that only this parameter has is one more than the length of that function's first list: its sources and the
    target.
    """
    call = "ts.ops.learned_attention_weights()"
    return DeferredParameter(emit, emit.parameter_key("learned_attention_weights"), call)


def _is_training(emit: TensorEmitter) -> bool:
    """Whether functions run as in training, known at compile time; `ts.train()` and `ts.eval()` switch it."""
    return training_mode()


is_training = Intrinsic("ts.is_training", _is_training, training_mode, scope=FUNCTION)

__all__ = ["DeferredParameter", "is_training", "learnable_scale_parameter", "learned_attention_weights"]
