"""A kernel from the lines of its body: what the tests of the evaluator are written with."""

import textwrap

import tessera as ts
from tessera import Tensor, tile
from tessera.frontend.document import execute, parse_document
from tessera.frontend.evaluator import trace
from tessera.ir.verify import verify

PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}
SIGNATURE = """\
@ts.kernel(grid=lambda d: (1,))
def k(x: Tensor["M", "N", ts.bf16], w: Tensor["N", "N", ts.f32], v: Tensor[4, ts.f32], n: int, s: float,
      out: Tensor["M", "N", ts.bf16]):
    ctx = tile.context()
    p = tile.program_id(0) * 16
"""


def kernel(body: str, rest: str = "", **options):
    """The traced kernel of `body` in the parameters of SIGNATURE; every trace must pass the verifier."""
    text = SIGNATURE + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n" + textwrap.dedent(rest)
    module = trace(execute(parse_document("case.py", text), PRELUDE)["k"], **options)
    verify(module)
    return module.kernel()


def names(block) -> str:
    """The ops of a block in one line, regions in braces; constants and sizes left out."""
    words = []
    for op in block.ops:
        if op.name not in ("constant", "size", "yield"):
            words.append(op.name + "".join(" { " + names(region) + " }" for region in op.regions))
    return " ".join(words)


def the(kernel, name, number=0):
    return [op for op in kernel.body.walk() if op.name == name][number]
