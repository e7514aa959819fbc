"""For each error code one example that raises it: a kernel, a call, a command, IR text, a setting, or a machine."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

import tessera as ts
from tessera import Tensor, cli, tile
from tessera.config import read_config
from tessera.errors import TesseraError
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.document import execute, parse_document
from tools.reference.console import plain_environment

PRELUDE = {"np": np, "ts": ts, "tile": tile, "Tensor": Tensor}


class NotRaised(AssertionError):
    """An example that ran without an error."""


def caught(action: Callable[[], object]) -> TesseraError:
    try:
        with plain_environment():
            action()
    except TesseraError as error:
        return error
    raise NotRaised("the example raises nothing")


@dataclass(frozen=True)
class Python:
    """A Python file. It is executed, then its last kernel is compiled for `dims`."""

    shown: str
    dims: tuple[tuple[str, int], ...] = (("M", 64), ("N", 64))
    language = "python"

    def raised(self) -> TesseraError:
        from tessera.compiler import compile_kernel

        def action() -> None:
            loaded = execute(parse_document("example.py", self.shown.strip() + "\n"), PRELUDE)
            kernels = [value for value in loaded.namespace.values() if isinstance(value, KernelDefinition)]
            compile_kernel(kernels[-1], dict(self.dims), **self.options())  # type: ignore[arg-type]

        return caught(action)

    def options(self) -> dict[str, object]:
        """What else the compiler is given."""
        return {}


def kernel(*lines: str, grid: str = "") -> Python:
    """A kernel with these lines as its body, on parameters that most examples share."""
    body = "".join(f"    {line}\n" for line in lines)
    return Python(f"@ts.kernel{grid}\n" + SIGNATURE + body)


SIGNATURE = (
    'def k(x: Tensor["M", "N", ts.bf16], w: Tensor["N", "N", ts.f32], n: int, out: Tensor["M", "N", ts.bf16]):\n'
)
DOUBLE = """\
@ts.kernel
def double(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 256
    tile.store(x[start : start + 256] * 2.0, out[start : start + 256])

"""


def call(line: str) -> Python:
    """A call of a kernel that doubles."""
    return Python(DOUBLE + line)


@dataclass(frozen=True)
class Scheduled(Python):
    """A Python file whose last kernel is compiled with these fields of a schedule."""

    schedule: tuple[tuple[str, int], ...] = ()

    def options(self) -> dict[str, object]:
        from tessera.target.schedule import Schedule

        return {"schedule": Schedule(**dict(self.schedule))}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Document:
    """A markdown document of which one block alone is run."""

    shown: str
    block: int
    language = "markdown"

    def raised(self) -> TesseraError:
        document = parse_document("example.md", self.shown.replace("'''", "```"))
        return caught(lambda: execute(document, PRELUDE, only=[self.block]))


@dataclass(frozen=True)
class Typed:
    """Kernels whose text was never in a file, as in `python -c`."""

    shown: str
    language = "python"

    def raised(self) -> TesseraError:
        def action() -> None:
            from tessera.frontend.evaluator import trace

            namespace = dict(PRELUDE)
            exec(compile(self.shown, "<string>", "exec"), namespace)
            trace(namespace["k"])  # type: ignore[arg-type]

        return caught(action)


@dataclass(frozen=True)
class Command:
    """A command, run from the root of the project."""

    shown: str
    language = ""

    def raised(self) -> TesseraError:
        words = shlex.split(self.shown.removeprefix("$ tessera "))
        return caught(lambda: cli.cli.main(words, "tessera", standalone_mode=False))


@dataclass(frozen=True)
class Text:
    """A file `example.tsir`, read as every verb reads one."""

    shown: str
    language = ""

    def raised(self) -> TesseraError:
        from tessera.cli.target import read_ir

        def action() -> None:
            before = os.getcwd()
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "example.tsir").write_text(self.shown)
                os.chdir(folder)
                try:
                    read_ir("example.tsir")
                finally:
                    os.chdir(before)

        return caught(action)


@dataclass(frozen=True)
class Setting:
    """A command with settings before it."""

    shown: str
    environment: tuple[tuple[str, str], ...]
    language = ""

    def raised(self) -> TesseraError:
        return caught(lambda: read_config(dict(self.environment)))


@dataclass(frozen=True)
class Machine:
    """What a machine without something answers; `action` runs as on that machine."""

    shown: str
    action: Callable[[], object]
    language = ""

    def raised(self) -> TesseraError:
        return caught(self.action)


def _without_gpu() -> None:
    from tessera.runtime import launch

    with mock.patch.object(launch, "device_count", lambda: 0):
        launch.require_device()


def _without_compiler() -> None:
    from tessera.runtime import emulator

    with mock.patch.object(emulator.shutil, "which", lambda name: None):
        emulator._compiler.__wrapped__("g++")


def _without_nvrtc() -> None:
    from tessera.runtime import nvrtc

    others = {name: module for name, module in sys.modules.items() if name.split(".")[0] != "cupy"}
    with mock.patch.dict(sys.modules, others, clear=True), mock.patch.object(sys, "meta_path", [_NotInstalled()]):
        nvrtc.load_nvrtc()


class _NotInstalled:
    """An importer that finds nothing."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        return None


Example = Python | Document | Typed | Command | Text | Setting | Machine
ADD = "examples/vector_add.py::vector_add"


@dataclass(frozen=True)
class Interpreted(Text):
    """A file `example.tsir` whose kernel `k` the interpreter runs, in one program."""

    def raised(self) -> TesseraError:
        from tessera.ir.parser import parse_module
        from tessera.runtime.interpreter import interpret

        kernel = parse_module(self.shown, "example.tsir").kernel()
        x = np.zeros(64, np.float32)
        return caught(lambda: interpret(kernel, {"x": x, "out": x.copy()}, {}, (1,)))


IR = """\
tessera 1 tile

kernel @k(%x: view<[64], f32>, %out: view<[64], f32>) attributes {{parameters = (("x", "in"), ("out", "out"))}} {{
{body}
}}
"""

ROLES = """\
  %zero: i64 = constant {{value = 0, dtype = i64}}
  %a: buffer<[64], f32> = alloc_shared {{shape = (64,), dtype = f32}}
  %ring: ring<1> = ring {{stages = 1, arrivals = 4}}
  roles {{names = ("load", "compute"), warps = (1, 4), registers = (0, 0)}} {{
    ring_acquire %ring, %zero, %zero
    ring_expect %ring, %zero {{bytes = {bytes}}}
    tma_load %a, %x, %ring, %zero
    yield
  }} else {{
    ring_wait %ring, %zero, %zero
    %t: tile<[64], f32> = read %a
    ring_release %ring, %zero, %t
    store %out, %t
    yield
  }}"""

MESH = """\
from tessera import dist

mesh = dist.mesh(devices=[f"cuda:{i}" for i in range(8)], axes=("dp", "mp"), shape=(2, 4))
"""


def distributed(*lines: str, rows: int = 8) -> Python:
    """A call of a distributed function with these lines as its body, on `rows` rows."""
    body = "".join(f"    {line}\n" for line in lines)
    head = '\n\n@ts.distribute(mesh=mesh)\ndef f(x: Tensor["B", "D", ts.f32]) -> Tensor["B", "D", ts.f32]:\n'
    return Python(f"{MESH}{head}{body}\nf(np.zeros(({rows}, 64), np.float32))")


EXAMPLES: dict[str, Example] = {
    "TS101": Python('@ts.kernel\ndef k(x: Tensor["N", ts.f32])\n    tile.store(1.0, x[0:4])'),
    "TS102": kernel("try:", "    tile.store(x[0:16], out[0:16])", "finally:", "    pass"),
    "TS103": Command("$ tessera run notes.txt"),
    "TS104": Command("$ tessera run examples/vector_add.py::vector_sum"),
    "TS105": kernel("blocks = 64 // (4 - 4)"),
    "TS106": Document("'''python\nBLOCK = 256\n'''\n\nand, run alone:\n\n'''python\nROWS = BLOCK // 2\n'''\n", 2),
    "TS107": Typed("@ts.kernel\ndef k(x: Tensor['N', ts.f32]):\n    tile.store(1.0, x[0:4])\n"),
    "TS201": kernel("value = tile.laod(x[0:16])"),
    "TS202": kernel("value = tile.zeros([4], dtyp=ts.f32)"),
    "TS203": kernel("tile.store(out[0:16], x[0:16] * 2.0)"),
    "TS204": kernel("product = tile.mma(x[0:16], w)"),
    "TS205": kernel("for row in range(n):", "    pass"),
    "TS206": Python('@ts.kernel\ndef k(x: Tensor["N", ts.f32], scale: dict):\n    tile.store(1.0, x[0:4])'),
    "TS301": kernel("long, short = tile.load(x[0:16]), tile.load(x[0:8])", "total = long + short"),
    "TS302": Python(
        '@ts.kernel\ndef add(x: Tensor["N", ts.f32], y: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):\n'
        "    start = tile.program_id(0) * 256\n"
        "    tile.store(x[start : start + 256] + y[start : start + 256], out[start : start + 256])\n\n"
        "add(np.zeros(300, np.float32), np.zeros(200, np.float32))"
    ),
    "TS303": kernel("rows = x[0:n]"),
    "TS304": kernel("element = x[0, 1, 2]"),
    "TS305": kernel("row = tile.program_id(0) // 2 * 16", "tile.store(x[row : row + 16], out[row : row + 16])"),
    "TS306": call("double[(1,)](np.zeros(300, np.float32))"),
    "TS307": kernel("row = tile.program_id(0) * 16", "tile.store(x[row : row + 16], out[0:16])"),
    "TS308": Python(
        '@ts.kernel\ndef k(x: list[Tensor["N", ts.f32]], w: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32]):\n'
        "    start = tile.program_id(0) * 64\n    total = tile.zeros([64])\n    for i in tile.range(len(x)):\n"
        "        total = total + x[i][start : start + 64] * w[i][start : start + 64]\n"
        "    tile.store(total, out[start : start + 64])\n\n"
        "a = np.zeros(100, np.float32)\nk([a, a, a], [a, a])"
    ),
    "TS309": distributed(
        'rows = dist.shard(x, axis=0, mesh_axis="dp")',
        'columns = dist.shard(x, axis=1, mesh_axis="dp")',
        "return rows + columns",
    ),
    "TS310": distributed('return dist.shard(x, axis=0, mesh_axis="dp")', rows=3),
    "TS401": kernel("big = n + 9223372036854775808"),
    "TS402": kernel('product = tile.mma(w, w, precision_policy="mixed_bf16_f32")'),
    "TS403": Python(
        '@ts.function\ndef softened(x: Tensor["M", "N", ts.f32], temperature: float) -> Tensor["M", "N", ts.f32]:\n'
        "    return ts.softmax(x / temperature)\n\n"
        "softened(np.zeros((4, 8), np.float32), 0.0)"
    ),
    "TS501": Python(
        '@ts.kernel\ndef k(x: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):\n'
        "    row = tile.program_id(0) * 512\n    buffer = tile.alloc_shared([512, 512], ts.f32)\n"
        "    buffer[:] = x[row : row + 512, 0:512]\n    for step in tile.range(3):\n"
        "        buffer[0:256] = buffer[256:512]\n"
        "    tile.store(buffer[:], out[row : row + 512, 0:512])",
        (("M", 512), ("N", 512)),
    ),
    "TS502": kernel(
        "buffer = tile.alloc_shared([16, 64], ts.bf16)",
        "tile.copy_async(buffer, x[0:16, 0:64])",
        "twice = buffer * 2.0",
    ),
    "TS503": kernel(
        "buffer = tile.alloc_shared([16, 64], ts.bf16)",
        "tile.store(buffer[:], out[0:16, 0:64])",
        grid="(grid=lambda d: (1,))",
    ),
    "TS504": kernel("buffer = tile.alloc_shared([8, 8], ts.f32)", "rows = buffer[4:12]"),
    "TS505": Machine(f"$ tessera run {ADD} --backend cuda       # on a machine without a GPU", _without_gpu),
    "TS506": Machine(f"$ tessera compile {ADD} --arch sm_80     # without the extra cuda12 or cuda13", _without_nvrtc),
    "TS507": Machine(f"$ tessera run {ADD} --backend emulate    # on a machine without g++", _without_compiler),
    "TS508": Command(f"$ tessera compile {ADD} --arch sm_70"),
    "TS509": Python(
        '@ts.kernel\ndef root(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):\n    start = tile.program_id(0) * 4\n'
        "    block = tile.load(x[start : start + 4])\n"
        '    tile.assert_(block >= 0.0, "a root of a negative number")\n'
        "    tile.store(tile.sqrt(block), out[start : start + 4])\n\n"
        "root(np.array([1, 4, 9, 16, -25], np.float32))"
    ),
    "TS511": Python(
        '@ts.kernel\ndef total(xs: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32]):\n'
        "    start = tile.program_id(0) * 256\n    acc = tile.zeros([256])\n"
        "    for i in tile.range(len(xs)):\n        acc = acc + xs[i][start : start + 256]\n"
        "    tile.store(acc, out[start : start + 256])",
        dims=(("N", 300), ("len(xs)", 5000)),
    ),
    "TS512": Scheduled(
        kernel("row = tile.program_id(0) * 16", "tile.store(x[row : row + 16] * 2.0, out[row : row + 16])").shown
        + "\n# compiled with Schedule(split_k=4)",
        schedule=(("split_k", 4),),
    ),
    "TS513": Interpreted(IR.format(body=ROLES.format(bytes=512))),
    "TS514": Interpreted(IR.format(body=ROLES.format(bytes=128))),
    "TS601": call("double()"),
    "TS602": call("x = np.zeros(512, np.float32)\ndouble(x[:300], x[100:400])"),
    "TS603": call('double(np.zeros(10, [("a", "f4"), ("b", "i1")])["a"])'),
    "TS604": call('double("a text")'),
    "TS605": Command(f"$ tessera run {ADD} --dims M=300"),
    "TS606": Python(MESH.replace("(2, 4)", "(2, 3)")),
    "TS607": Python(MESH + "mesh.device_at(dp=1, mp=4)"),
    "TS608": distributed("with dist.device_assignment(1):", "    y = x * 2.0", "return y"),
    "TS609": Python(
        '@ts.function\ndef scaled(x: Tensor["N", ts.f32]) -> Tensor["N", ts.f32]:\n'
        "    return x * ts.ops.learnable_scale_parameter()\n\n"
        "with ts.parameters.use_store(ts.parameters.ParameterStore()) as store:\n"
        "    scaled(np.ones(4, np.float32))\n"
        '    store["scale/learnable_scale_parameter#0"] = 2.0'
    ),
    "TS610": Python('ts.parameters.ParameterStore().load("missing.npz")'),
    "TS701": Text(IR.format(body="  store %out, ")),
    "TS702": Text("tessera 99 tile\n"),
    "TS703": Text(IR.format(body="  %a: tile<[32], f32> = load %x\n  store %out, %a")),
    "TS801": Setting(f"$ TESSERA_BACKEND=gpu tessera run {ADD}", (("TESSERA_BACKEND", "gpu"),)),
}

# Codes without an example, each with the reason.
WITHOUT = {
    "TS510": "it needs a GPU whose stream is being captured into a graph",
    "TS516": "it needs a GPU whose stream is being captured into a graph",
    "TS515": "it needs a GPU, and an installation without one of the packages of its extra",
    "TS517": "it needs an installation without torch",
    "TS612": "it needs torch",
    "TS611": "it needs a kernel that was compiled for another tensor than it gets",
    "TS802": "it needs a cache folder that cannot be written",
    "TS901": "it is raised only where Tessera itself is wrong",
}
