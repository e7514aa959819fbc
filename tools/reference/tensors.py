"""The reference of functions: every name of `ts`, `ts.ops` and `dist` that a `@ts.function` or its caller uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tessera as ts
from tessera import dist
from tessera.dist import distribute
from tessera.frontend.language import KERNEL, Intrinsic
from tessera.ir.opdef import ELEMENTWISE, GRAPH
from tessera.runtime import parameters
from tools.reference import language, text

INTRODUCTION = """
What a `@ts.function` can call, from the declarations themselves; [language.md](language.md) is the page of what a
kernel can call. [functions.md](functions.md) explains how the parts work together, [errors.md](errors.md) what a
message means.

A parameter with a default may be left out; those behind `*` are passed by name. Tensors broadcast as in NumPy. Where
the arguments are all Python numbers, elementwise functions give a Python number.
"""

DECORATORS, MODES, DISTRIBUTION = "Decorators", "Parameters, modes and seeds", "Distribution"
ELEMENTS, REDUCTIONS, SHAPES = "Elementwise functions", "Reductions and scans", "Shapes and constants"
GATES = "Gates and layers"
ORDER = [
    DECORATORS,
    ELEMENTS,
    REDUCTIONS,
    SHAPES,
    "Products",
    "Norms, softmax and dropout",
    GATES,
    MODES,
    "Checkpoints and memory",
    DISTRIBUTION,
]
# The group of an intrinsic is that of its name, else of the module that declares it.
BY_NAME = {
    "ts.where": ELEMENTS,
    "ts.cast": ELEMENTS,
    "ts.ops.exp": ELEMENTS,
    "ts.ops.sigmoid_safe": ELEMENTS,
    "ts.train": MODES,
    "ts.eval": MODES,
}
BY_MODULE = {
    "language_tensor": REDUCTIONS,
    "language_tensor_shapes": SHAPES,
    "language_tensor_products": "Products",
    "language_ops": GATES,
    "language_scopes": "Checkpoints and memory",
    "language_dist": DISTRIBUTION,
    "library_norms": "Norms, softmax and dropout",
    "library_gating": GATES,
    "library_transformer": GATES,
    "library_parameters": MODES,
}

STORE = parameters.ParameterStore
# Names that are ordinary Python: what is written, and what has its documentation and its parameters.
PYTHON: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    DECORATORS: {"@ts.function": ts.function, "@ts.checkpoint": ts.checkpoint, "@ts.distribute": distribute},
    MODES: {
        "ts.manual_seed": ts.manual_seed,
        "ts.parameters.default_store": parameters.default_store,
        "ts.parameters.current_store": parameters.current_store,
        "ts.parameters.use_store": parameters.use_store,
        "ts.parameters.ParameterStore": STORE,
        "store.keys": STORE.keys,
        "store.items": STORE.items,
        "store.save": STORE.save,
        "store.load": STORE.load,
    },
    DISTRIBUTION: {"dist.mesh": dist.mesh, "dist.device_assignment": dist.device_assignment},
}


def of_functions() -> list[Intrinsic]:
    """What a function can call by a name of the language."""
    return [found for found in language.declared() if found.scope != KERNEL]


def group_of(intrinsic: Intrinsic) -> str:
    if intrinsic.name in BY_NAME:
        return BY_NAME[intrinsic.name]
    definition = language.definition_of(intrinsic)
    if definition is not None and definition.has(ELEMENTWISE):
        return ELEMENTS
    return BY_MODULE[intrinsic.build.__module__.rsplit(".", 1)[-1]]


def grouped() -> dict[str, list[list[Intrinsic]]]:
    """By group: what functions can call, those with one meaning and several spellings together."""
    return language.in_groups(of_functions(), group_of, ORDER)


def page() -> str:
    groups = grouped()
    parts = []
    for group in ORDER:
        parts.append(f"## {group}")
        parts += [_python(name, callee) for name, callee in PYTHON.get(group, {}).items()]
        parts += [language.entry(spellings) for spellings in sorted(groups.get(group, []), key=lambda s: s[0].name)]
        if group == ELEMENTS:
            parts.append(OPERATORS)
    return text.page("The language of functions", INTRODUCTION, *parts, GRAPH_OPS + language.op_table(GRAPH))


OPERATORS = """
Between tensors, and between a tensor and a number, the operators `+ - * / // % == != < <= > >=` and the unary `-` mean
the same as in kernels ([language.md](language.md#operators)); `a @ b` is `ts.matmul(a, b)`. A tensor has `shape`,
`dtype` and `ndim`, and subscripts such as `x[0, :, 2:8, -1]`: an index drops its axis, a slice clips as in Python.
"""

GRAPH_OPS = """\
## Ops of Graph IR

What functions become: the op table, as `tessera ir --stage graph` prints it. The last column is the stated error of the
CUDA function in f32, where it is more than correct rounding.

"""


def _python(name: str, callee: Callable[..., Any]) -> str:
    documented = callee if inspect.isroutine(callee) or inspect.isclass(callee) else type(callee)
    paragraphs = language.paragraphs_of(inspect.getdoc(documented) or "")
    return "\n\n".join([text.fence(name + _parameters(name, callee), "text"), *paragraphs])


def _parameters(name: str, callee: Callable[..., Any]) -> str:
    """The parameters as a caller writes them, without those that a decorator or an object fills in."""
    given = [p for p in inspect.signature(callee).parameters.values() if p.name not in ("self", "decorated")]
    shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given)
    return f"({shown})" if shown or not name.startswith("@") else ""
