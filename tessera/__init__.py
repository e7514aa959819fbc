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
from tessera.frontend.definition import function, kernel
from tessera.frontend.language_math import cast
from tessera.frontend.namespace import ops, tile

__version__ = "0.1.0"
__all__ = [
    "Tensor",
    "TesseraError",
    "accum",
    "bf16",
    "bool_",
    "cast",
    "f16",
    "f32",
    "fp8_e4m3",
    "fp8_e5m2",
    "function",
    "i8",
    "i32",
    "i64",
    "kernel",
    "ops",
    "tile",
]


def _launch(definition: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
    import importlib

    _definition.launcher = importlib.import_module("tessera.runtime.api").call  # from now on without this detour
    return _definition.launcher(definition, grid, args, kwargs, **options)


_definition.launcher = _launch


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(f"tessera has no '{name}'{did_you_mean(name, __all__)}", name=name)
