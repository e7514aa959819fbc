"""`tile` and `ts.ops` as Python objects, so that a module that uses them executes natively.

Built from the declared intrinsics: `tile.cp_async.shared.global` is reached through nested namespaces, its last name
with the underscore that the source rewriting gives to keywords.
"""

from __future__ import annotations

import keyword
from typing import Any

from tessera.errors import did_you_mean
from tessera.frontend import (  # noqa: F401  declare
    language_blocks,
    language_dist,
    language_effects,
    language_gating,
    language_math,
    language_matrix,
    language_memory,
    language_ops,
    language_program,
    language_reductions,
    language_scopes,
    language_tensor,
    language_tensor_products,
    language_tensor_shapes,
    library_gating,
    library_norms,
    library_parameters,
    library_transformer,
)
from tessera.frontend.annotations import Tensor
from tessera.frontend.definition import FUNCTIONS
from tessera.frontend.language import INTRINSICS


class Namespace:
    """A name with names under it. Asking for one that is not there says which is close."""

    def __init__(self, name: str) -> None:
        self.__dict__["__name__"] = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__dict__["__name__"] == "ts" and (found := language_tensor.from_table(name)) is not None:
            self.__dict__[name] = found
            return found
        if self.__dict__["__name__"] == "ts.ops" and name in FUNCTIONS:
            return FUNCTIONS[name]
        if self.__dict__["__name__"] == "tile" and (found := language_math.from_table(name)) is not None:
            self.__dict__[name] = found
            return found
        shown = name[:-1] if keyword.iskeyword(name[:-1]) else name
        known = [item for item in self.__dict__ if not item.startswith("_")]
        raise AttributeError(
            f"{self.__dict__['__name__']} has no '{shown}'{did_you_mean(name, known)}", name=name, obj=self
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.__dict__['__name__']} is part of the language: '{name}' cannot be set")

    def __dir__(self) -> list[str]:
        return sorted(item for item in self.__dict__ if not item.startswith("_"))

    def __repr__(self) -> str:
        return f"<tessera {self.__dict__['__name__']}>"


def build(root: str, extra: dict[str, Any] | None = None) -> Namespace:
    """The namespace of all intrinsics whose name starts with `root`, and of `extra`."""
    top = Namespace(root)
    top.__dict__.update(extra or {})
    for full_name, callee in INTRINSICS.items():
        if not full_name.startswith(f"{root}."):
            continue
        *path, last = full_name[len(root) + 1 :].split(".")
        place = top
        for part in path:
            place = place.__dict__.setdefault(part, Namespace(f"{place.__dict__['__name__']}.{part}"))
        place.__dict__[f"{last}_" if keyword.iskeyword(last) else last] = callee
    return top


tile = build("tile", {"Tensor": Tensor})
ops = build("ts.ops")
tensors = build("ts")
