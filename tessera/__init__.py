"""Tessera: a tile language embedded in Python that compiles to CUDA, and runs on a CPU without a GPU.

    import tessera as ts
    from tessera import Tensor, tile

Importing this needs no GPU and none of the libraries that compile or launch: those load when a kernel is first called.
"""

from __future__ import annotations

from typing import Any

from tessera.dtypes import accum, bf16, f16, f32, fp8_e4m3, fp8_e5m2, i8, i32, i64
from tessera.dtypes import boolean as bool_
from tessera.errors import TesseraError, did_you_mean
from tessera.frontend import definition as _definition
from tessera.frontend.annotations import Tensor
from tessera.frontend.definition import checkpoint, function, kernel
from tessera.frontend.language_tensor import cast
from tessera.frontend.namespace import ops, tensors, tile
from tessera.modes import manual_seed

__version__ = "0.1.0"
__all__ = [
    "Tensor",
    "TesseraError",
    "accum",
    "bf16",
    "bool_",
    "cast",
    "checkpoint",
    "f16",
    "f32",
    "fp8_e4m3",
    "fp8_e5m2",
    "function",
    "i8",
    "i32",
    "i64",
    "kernel",
    "manual_seed",
    "ops",
    "tile",
]


def _launch(definition: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
    import importlib

    _definition.launcher = importlib.import_module("tessera.runtime.api").call  # from now on without this detour
    return _definition.launcher(definition, grid, args, kwargs, **options)


_definition.launcher = _launch


def _operator(definition: Any) -> Any:
    import importlib

    return importlib.import_module("tessera.runtime.torch_op").automatic(definition)


_definition.operator_maker = _operator


# Public names of modules that import more than the language does, and load when they are first asked for.
_LATER = {
    "compile": "tessera.runtime.compiled",
    "distribute": "tessera.dist",
    "dist": "tessera.dist",
    "parameters": "tessera.runtime.parameters",
    "torch_op": "tessera.runtime.torch_op",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _LATER:
        import importlib

        module = importlib.import_module(_LATER[name])
        return module if name in ("dist", "parameters") else getattr(module, name)
    if not name.startswith("_"):
        try:
            return getattr(tensors, name)
        except AttributeError:
            pass
    raise AttributeError(f"tessera has no '{name}'{did_you_mean(name, __all__)}", name=name)
