"""The language reference: every intrinsic that kernels may call and every op of the table, in groups."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence

from tessera import tile
from tessera.frontend.language import FUNCTION, INTRINSICS, Intrinsic
from tessera.frontend.namespace import tensors
from tessera.ir.opdef import ELEMENTWISE, REDUCTION, SCAN, TILE, OpDef, table
from tools.reference import text

INTRODUCTION = """
What a kernel can call, from the declarations themselves; [tensors.md](tensors.md) is the page of what a function can
call. [guide.md](guide.md) explains how the parts work together, [support.md](support.md) says which dtypes each op
takes, [errors.md](errors.md) what a message means.

A parameter with a default may be left out. Wherever a tile is taken, a window of a tensor may stand: it is loaded.
Where the arguments are all Python numbers, elementwise functions and `tile.cdiv` give a Python number.
"""

# Groups in the order of the page. An intrinsic belongs to the group of its op's traits, else of its name, else of the
# module that declares it; a module that is not named here gets a group of its own, titled by its docstring.
BY_TRAIT = {ELEMENTWISE: "Elementwise functions", REDUCTION: "Reductions and scans", SCAN: "Reductions and scans"}
BY_NAME = {
    "tile.range": "Control flow",
    "tile.static_range": "Control flow",
    "tile.where": "Elementwise functions",
    "tile.cast": "Elementwise functions",
    "ts.cast": "Elementwise functions",
    "tile.max": "Reductions and scans",
    "tile.min": "Reductions and scans",
    "tile.arange": "Shapes and constants",
    "tile.iota": "Shapes and constants",
}
BY_MODULE = {
    "language_program": "Program and grid",
    "language_memory": "Memory",
    "language_math": "Shapes and constants",
    "language_matrix": "Matrix products",
    "language_reductions": "Reductions and scans",
    "language_effects": "Effects",
    "language_ops": "`ts.ops`",
}
ORDER = [
    "Program and grid",
    "Control flow",
    "Memory",
    "Effects",
    "Elementwise functions",
    "Reductions and scans",
    "Shapes and constants",
    "Matrix products",
]

OPERATORS = {
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "div": "a / b",
    "floordiv": "a // b",
    "mod": "a % b",
    "neg": "-a",
    "eq": "a == b",
    "ne": "a != b",
    "lt": "a < b",
    "le": "a <= b",
    "gt": "a > b",
    "ge": "a >= b",
    "and": "a and b",
    "or": "a or b",
    "not": "not a",
}


def declared() -> list[Intrinsic]:
    """Every intrinsic, of kernels and of functions, also those that their entry in the op table alone declares."""
    for name in table():
        getattr(tile, name, None)
        getattr(tensors, name, None)
    return [found for found in INTRINSICS.values() if found.op is None or found.op in table()]


def of_kernels() -> list[Intrinsic]:
    """What a kernel can call."""
    return [found for found in declared() if found.scope != FUNCTION]


def definition_of(intrinsic: Intrinsic) -> OpDef | None:
    """The op that an intrinsic stands for, or that has its name."""
    return table().get(intrinsic.op or intrinsic.name.removeprefix("tile."))


def group_of(intrinsic: Intrinsic) -> str:
    if intrinsic.name in BY_NAME:
        return BY_NAME[intrinsic.name]
    definition = definition_of(intrinsic)
    if definition is not None and intrinsic.name.startswith("tile."):
        for trait, group in BY_TRAIT.items():
            if definition.has(trait):
                return group
    module = intrinsic.build.__module__
    known = BY_MODULE.get(module.rsplit(".", 1)[-1])
    return known or _title_of(module)


def _title_of(module: str) -> str:
    """The first words of a module's docstring, up to the first mark."""
    first = (inspect.getdoc(importlib.import_module(module)) or module).split("\n", 1)[0]
    for mark in ":.;":
        first = first.split(mark, 1)[0]
    return first


def grouped() -> dict[str, list[list[Intrinsic]]]:
    """By group: what kernels can call, those with one meaning and several spellings together."""
    groups = in_groups(of_kernels(), group_of, ORDER)
    order = [*ORDER, *(name for name in groups if name not in ORDER and not name.startswith("`")), *groups]
    return {name: groups[name] for name in dict.fromkeys(order) if name in groups}


def in_groups(
    intrinsics: Iterable[Intrinsic], group_of: Callable[[Intrinsic], str], order: Sequence[str]
) -> dict[str, list[list[Intrinsic]]]:
    """Intrinsics by group, groups in this order and then as they come, the spellings of one meaning together."""
    same: dict[object, list[Intrinsic]] = {}
    for intrinsic in intrinsics:
        same.setdefault(getattr(intrinsic.build, "__wrapped__", intrinsic.build), []).append(intrinsic)
    groups: dict[str, list[list[Intrinsic]]] = {name: [] for name in order}
    for spellings in same.values():
        groups.setdefault(group_of(spellings[0]), []).append(spellings)
    return {name: members for name, members in groups.items() if members}


def page() -> str:
    groups = grouped()
    parts = []
    for group, members in groups.items():
        parts.append(f"## {group}")
        parts += [entry(spellings) for spellings in sorted(members, key=lambda found: found[0].name)]
        if group == "Elementwise functions":
            parts.append(_operators())
    return text.page("The language of kernels", INTRODUCTION, *parts, _ops())


def entry(spellings: list[Intrinsic]) -> str:
    """An intrinsic on a page: its calls, and what it does."""
    paragraphs = paragraphs_of(spellings[0].documentation)
    aliases = " The names mean the same." if len(spellings) > 1 else ""
    heads = "\n".join(spelling.spelling for spelling in spellings)
    return "\n\n".join([text.fence(heads, "text"), *paragraphs[:-1], paragraphs[-1] + aliases])


def paragraphs_of(documentation: str) -> list[str]:
    """A docstring as paragraphs of a page."""
    found = documentation.split("\n\n")
    return [text.sentence(paragraph) for paragraph in found if paragraph.strip()] or ["Not documented."]


def _operators() -> str:
    rows = [[f"`{written}`", table()[name].doc] for name, written in OPERATORS.items() if name in table()]
    return "### Operators\n\n" + text.table(["written", "meaning"], rows)


def _ops() -> str:
    introduction = (
        "What kernels become: the op table, as `tessera ir --stage tile` prints it. The last column is the stated "
        "error of the CUDA function in f32, where it is more than correct rounding."
    )
    return f"## Ops of Tile IR\n\n{introduction}\n\n" + op_table(TILE)


def op_table(level: str) -> str:
    """The ops of one level of IR."""
    rows = [_op_row(definition) for definition in table().values() if level in definition.levels]
    return text.table(["op", "meaning", "error on CUDA"], rows)


def _op_row(definition: OpDef) -> list[str]:
    shown = ", ".join([*definition.operands, *(f"{name}=" for name in definition.attributes)])
    error = f"{definition.ulp:g} ulp" if definition.ulp > 0.5 else ""
    return [f"`{definition.name}({shown})`", definition.doc, error]
