"""Imports point down only: the rule that keeps each part of the package usable without those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tessera"

# A module imports from lower layers and from its own part. Parts of one layer never import one another, except
# those of the ground layer.
LAYERS = [
    {"errors", "location", "dtypes", "config", "buffers", "modes", "workers"},
    {"ir"},
    {"target"},
    {"program", "plan"},
    {"frontend", "passes", "codegen_cuda"},
    {"compiler"},
    {"search"},
    {"runtime"},
    {"dist"},
    {"cli", "gdn"},
    {"", "__main__"},  # the package itself hands out the public names
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
GROUND = LAYERS[0]

# Narrower rules: modules whose name starts with the key import only these parts, and modules under the key itself.
ONLY = {
    "tessera.runtime.interpreter": {"ir", "errors", "dtypes", "location"},
    "tessera.runtime.cache": {"config", "errors"},
}
HEAVY = ("cupy", "cuda", "jinja2", "lark", "matplotlib", "click", "rich", "torch", "mpi4py")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    return (module.split(".") + [""])[1]


def imports_of(module: str, tree: ast.AST, is_package: bool = False) -> set[str]:
    """Absolute names of everything that the module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            # `from tessera import ir` names a module, `from tessera.ir import Op` does not: the longer name is kept
            # only where it is a module or a folder of one.
            names |= {name if is_module(name := f"{base}.{alias.name}") else base for alias in node.names}
    return names


def is_module(name: str) -> bool:
    if name.count(".") == 1 and name.startswith("tessera.") and part_of(name) in LAYER:
        return True
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def violation(module: str, imported: str) -> str | None:
    if imported.split(".")[0] == "cupy" and part_of(module) not in ("runtime", "dist"):
        return f"{module} imports cupy, which only tessera.runtime and tessera.dist use"
    if imported.split(".")[0] != "tessera":
        return None
    source, target = part_of(module), part_of(imported)
    for prefix, allowed in ONLY.items():
        if module.startswith(prefix) and target not in allowed and not imported.startswith(prefix):
            return f"{module} imports {imported}; it may import only {', '.join(sorted(allowed))}"
    if source == target or LAYER[source] > LAYER[target] or {source, target} <= GROUND:
        return None
    if source == "gdn" and target == "":
        return None  # a user-level library: it sees what every user sees
    return f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    path = MODULES[module]
    assert part_of(module) in LAYER, f"{module} is in no layer: give its part a place in LAYERS"
    imported = imports_of(module, ast.parse(path.read_text()), path.name == "__init__.py")
    assert [found for name in sorted(imported) if (found := violation(module, name))] == []


@pytest.mark.parametrize(
    ("module", "statement", "allowed"),
    [
        ("tessera.ir.core", "from tessera.errors import SourceError", True),
        ("tessera.ir.core", "from .types import TileType", True),
        ("tessera.ir.core", "from tessera.target import arch", False),
        ("tessera.ir.core", "import tessera", False),
        ("tessera.errors", "from tessera.ir import core", False),
        ("tessera.passes.fuse", "from ..frontend import source", False),
        ("tessera.passes.fuse", "from tessera import ir", True),
        ("tessera.passes.fuse", "from tessera import runtime", False),
        ("tessera.frontend.source", "def f():\n    import tessera.cli", False),
        ("tessera.codegen_cuda.emit", "import cupy.cuda", False),
        ("tessera.runtime.launch", "import cupy", True),
        ("tessera.runtime.interpreter", "from tessera.target import arch", False),
        ("tessera.runtime.interpreter", "from tessera.ir import core", True),
        ("tessera.runtime.interpreter_masks", "import tessera.runtime.nvrtc", False),
        ("tessera.runtime.cache", "from tessera.ir import core", False),
        ("tessera.gdn.layer", "import tessera as ts", True),
        ("tessera.gdn.layer", "from tessera import cli", False),
    ],
)
def test_the_rule_itself(module, statement, allowed):
    found = [violation(module, name) for name in imports_of(module, ast.parse(statement))]
    assert (found == [None]) == allowed


def test_no_module_hides_a_public_name():
    """An import of `tessera.x` sets `ts.x`, which is then found before any name that is looked up later."""
    from tessera.frontend.namespace import tensors

    modules = {path.stem for path in PACKAGE.glob("[!_]*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert not {name for name in modules if hasattr(tensors, name)}


def test_import_tessera_is_light():
    # A .pth file of the environment may import namespace packages at start-up, which is not our doing.
    program = f"import sys; old = set(sys.modules); import tessera; print([*({set(HEAVY)!r} & set(sys.modules) - old)])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
