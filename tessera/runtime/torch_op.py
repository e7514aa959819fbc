"""`ts.torch_op`: a kernel or function as an operator of torch, which `torch.compile` and `torch.export` keep whole.

The operator's schema and the sizes of its results are those of `op_schema`; torch itself is imported by the first use.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from functools import update_wrapper
from importlib import import_module
from typing import Any

from tessera.errors import ArgumentError, EnvironmentProblem, SourceError
from tessera.frontend.definition import Definition, FunctionDefinition, KernelDefinition, Wrapper
from tessera.runtime.arrays import _torch_device, _torch_dtype
from tessera.runtime.compiled import Compiled
from tessera.runtime.op_schema import MetaArray, OpSignature, results_of, signature_of

AnyDefinition = FunctionDefinition | KernelDefinition

NAMESPACE = "tessera"
_known: dict[str, TorchOp] = {}
_making = threading.Lock()


def torch_op(function: Any, *, name: str | None = None, mutates: Sequence[str] = ()) -> TorchOp:
    """A `@ts.function` or `@ts.kernel`, or what `ts.compile` made of one, as an operator of torch.

    `name` is "space::name", or a name in the space `tessera`; the function's own name if left out. Called with tensors
    it gives what the function gives, one tensor or a tuple of them; `torch.compile(fullgraph=True)` keeps a call as one
    node, with the sizes of its results from the function's own shapes. Outputs of a kernel are results, but for those
    that `mutates` names, which the caller passes; tensors that it reads and writes are passed and change.

    It has no gradient: `backward` through it raises SourceError TS612. Raises EnvironmentProblem TS517 without torch,
    ArgumentError TS203 for what is no kernel or function, TS605 for a name that another one has or that is none, and
    what `signature_of` raises.
    """
    callee = function
    definition = function._definition if isinstance(function, Compiled) else function
    if not isinstance(definition, (FunctionDefinition, KernelDefinition)):
        what = "a compiled function whose parameters have no annotations" if definition is None else repr(function)
        raise ArgumentError("TS203", f"ts.torch_op takes a @ts.function or a @ts.kernel, not {what}")
    signature = signature_of(definition, mutates)
    full = _full_name(definition.name if name is None else name)
    torch = _torch()
    with _making:
        known = _known.get(full)
        if known is None:
            known = _known[full] = TorchOp(torch, full, callee, definition, signature, tuple(mutates))
        elif known.callee is not callee or known.mutates != tuple(mutates):
            raise ArgumentError("TS605", f"torch has an operator {full} of another function; give this one a name=")
        return known


_automatic: weakref.WeakKeyDictionary[Any, TorchOp] = weakref.WeakKeyDictionary()


def automatic(callee: Any) -> TorchOp:
    """The operator that a call of a definition, or of a compiled one, is while torch traces it.

    It has the name of the function, and a number if another operator has that. Raises what `torch_op` raises.
    """
    found = _automatic.get(callee)
    own = (callee._definition if isinstance(callee, Compiled) else callee) or callee
    own_name = own.name if isinstance(own, Definition) else own.__name__
    for number in itertools.count(1) if found is None else ():
        name = own_name if number == 1 else f"{own_name}_{number}"
        known = _known.get(_full_name(name))
        if known is None or known.callee is callee and not known.mutates:
            found = _automatic[callee] = torch_op(callee, name=name)
            break
    assert found is not None
    return found


def _full_name(name: Any) -> str:
    space, _, own = name.rpartition("::") if isinstance(name, str) else ("", "", "")
    parts = [space or NAMESPACE, own]
    if not all(part.isidentifier() and part.isascii() for part in parts):
        raise ArgumentError("TS605", f"name= of ts.torch_op is an identifier or space::identifier, not {name!r}")
    return "::".join(parts)


def _torch() -> Any:
    try:
        import_module("torch.library")
    except ImportError:
        raise EnvironmentProblem("TS517", "ts.torch_op makes an operator of torch, which is not installed") from None
    return import_module("torch")


class TorchOp(Wrapper):
    """What `ts.torch_op` returns: `overload` is torch's operator, `signature` what it takes and gives."""

    __name__: str

    def __init__(
        self,
        torch: Any,
        name: str,
        callee: Any,
        definition: AnyDefinition,
        signature: OpSignature,
        mutates: tuple[str, ...],
    ) -> None:
        super().__init__(definition)
        update_wrapper(self, definition.function)
        self.name, self.callee, self.definition, self.signature = name, callee, definition, signature
        self.results, self.mutates = signature.results, mutates
        made = torch.library.custom_op(name, self._run, mutates_args=signature.mutated, schema=signature.schema())
        made.register_fake(self._fake)
        if not signature.mutated:  # for others torch takes no formula, and has an error of its own
            made.register_autograd(self._backward)
        self.overload = made._opoverload

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises what a call of the function raises."""
        found = self.overload(*args, **kwargs)
        if self.results is None:  # a list
            return found[0] if len(found) == 1 else tuple(found)
        return found

    def __repr__(self) -> str:
        return f"<tessera torch op {self.name}>"

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        found = self.callee(**self._given(args, kwargs))
        return self._returned(() if found is None else found if isinstance(found, tuple) else (found,))

    def _fake(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors without memory, of the sizes and dtypes of a call's results."""
        torch, given = _torch(), self._given(args, kwargs)
        tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
        tensors += [item for value in given.values() if isinstance(value, (list, tuple)) for item in value]
        device = tensors[0].device if tensors else "cpu"
        metas = {name: _meta(value) for name, value in given.items()}
        made = [
            torch.empty(result.shape, dtype=getattr(torch, result.dtype.numpy.name), device=device)
            for result in results_of(self.definition, metas)
        ]
        return self._returned(made)

    def _given(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip((p.name for p in self.signature.parameters), args, strict=False)) | kwargs

    def _returned(self, made: Sequence[Any]) -> Any:
        """As torch's schema has it: nothing, one tensor, a tuple or a list."""
        if self.results is None:
            return list(made)
        return None if not made else made[0] if len(made) == 1 else tuple(made)

    def _backward(self, context: Any, *gradients: Any) -> Any:
        raise SourceError(
            "TS612", f"{self.name} has no gradient, and one of its tensors requires it", self.definition.loc
        )


def _meta(value: Any) -> Any:
    """A tensor of torch, or a list of them, as `op_schema` takes it; numbers as they are.

    Symbolic sizes come with what they are in the case at hand, which asks for nothing yet.
    """
    if isinstance(value, (list, tuple)):
        return [_meta(item) for item in value]
    if not hasattr(value, "dtype"):
        return value if isinstance(value, (int, float)) else _hint(value)
    dtype = _torch_dtype(value)
    if dtype is None:
        raise ArgumentError("TS204", f"a tensor of {value.dtype}, which is no dtype of Tessera")
    device = None if value.device.type == "meta" else _torch_device(value)
    return MetaArray(value.shape, dtype, device, [_hint(size) for size in value.shape])


def _hint(size: Any) -> Any:
    """The number that a symbol stands for while a graph is traced; where there is none, it becomes one."""
    if isinstance(size, (int, float)):
        return size
    hint = getattr(size.node, "hint", None)
    if hint is None:
        return float(size) if "Float" in type(size).__name__ else int(size)
    return hint


__all__ = ["TorchOp", "torch_op"]
