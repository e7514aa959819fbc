"""Generated parts of hand-written pages: IR, CUDA text and messages, between `<!-- generated: NAME -->` marks."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from tessera.cli.plans import plan_text
from tessera.compiler import Compilation, FunctionCompilation, compile_function, compile_kernel
from tessera.frontend.document import load_document
from tessera.frontend.function import trace_function
from tessera.ir.opdef import GRAPH
from tessera.ir.printer import print_module
from tools.reference import errors, text

MARKED = re.compile(r"<!-- generated: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
VECTOR_ADD = "examples/vector_add.py"
DELTA_LAYER = "examples/gdn/delta_layer.py"


def refresh(page: str) -> str:
    """The page with every marked part made anew."""
    return MARKED.sub(lambda found: f"<!-- generated: {found[1]} -->\n{PARTS[found[1]]()}\n<!-- end -->", page)


@cache
def vector_add() -> Compilation:
    return compile_kernel(load_document(VECTOR_ADD)["vector_add"], {"N": 4096}, "sm_80")


def tile_ir() -> str:
    return text.fence(_body(print_module(vector_add().stages[0].module, locations=False)))


def target_ir() -> str:
    """The layout and the body, without the signature that is the same as above."""
    whole = print_module(vector_add().target, locations=False)
    layouts = [line for line in whole.splitlines() if line.startswith("layout ")]
    body = [line for line in whole.splitlines() if re.search(r"= (ld_global|add) |st_global ", line)]
    return text.fence("\n".join([*layouts, "...", *body, "..."]))


def cuda() -> str:
    """The statements of the first load and of the sum."""
    lines = vector_add().cuda[0].text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip().startswith("// ")]
    chosen: list[str] = []
    seen: set[str] = set()
    for first, last in zip(starts, [*starts[1:], len(lines)], strict=True):
        op = lines[first].split()[1]
        if op in ("ld_global", "add") and op not in seen:
            seen.add(op)
            chosen += [line[4:] for line in lines[first:last]]
    return text.fence("\n".join(["...", *chosen, "..."]), "c++")


def _body(printed: str) -> str:
    """Printed IR without the attributes of its kernel, which are facts for the compiler."""
    return re.sub(r"\) attributes \{.*\} \{\n", ") attributes {...} {\n", printed)


@cache
def gated_delta() -> FunctionCompilation:
    dims = {"B": 2, "S": 150, "D": 64}
    return compile_function(trace_function(load_document(DELTA_LAYER)["gated_delta"], dims), dims, "sm_80")


def graph_ir() -> str:
    """The last Graph IR, from which the plan is made."""
    last = [stage for stage in gated_delta().graph if stage.module.level == GRAPH][-1]
    return text.fence(_body(print_module(last.module, locations=False)))


def plan() -> str:
    return text.fence(plan_text(gated_delta().plan))


def copy_error() -> str:
    return text.fence(errors.rendered("TS502"))


PARTS: dict[str, Callable[[], str]] = {
    "vector-add-tile": tile_ir,
    "vector-add-target": target_ir,
    "vector-add-cuda": cuda,
    "gated-delta-graph": graph_ir,
    "gated-delta-plan": plan,
    "copy-error": copy_error,
}
