"""TESSERA_DUMP: what a compilation prints to stderr, and nothing without it."""

from pathlib import Path

from tessera.compiler import compile_function, compile_kernel
from tessera.config import Config, using
from tessera.frontend.document import load_document
from tessera.ir.compare import difference
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tests.frontend.functions import trace

EXAMPLES = Path(__file__).parents[1] / "examples"
DIMS = {"M": 40, "N": 64}


def dumped(capsys, *names):
    kernel = load_document(EXAMPLES / "softmax.py")["softmax"]
    with using(Config(dump=frozenset(names))):
        made = compile_kernel(kernel, DIMS)
    out, err = capsys.readouterr()
    assert not out
    return made, err


def test_nothing_is_printed_without_it(capsys):
    assert dumped(capsys)[1] == ""


def test_levels_and_text(capsys):
    made, text = dumped(capsys, "tile")
    assert text == print_module(made.tile) + "\n"
    made, text = dumped(capsys, "target")
    assert difference(parse_module(text), made.target) is None
    made, text = dumped(capsys, "cuda")
    assert text == made.cuda[0].text + "\n"
    made, text = dumped(capsys, "cuda", "target", "tile")
    assert text == "\n".join([print_module(made.tile), print_module(made.target), made.cuda[0].text, ""])


def test_functions(capsys):
    text = """
    @ts.function
    def f(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
        return ts.softmax(x * 2.0)
    """
    traced = trace(text)
    with using(Config(dump=frozenset({"graph", "cuda"}))):
        compiled = compile_function(traced, DIMS)
    printed = capsys.readouterr().err
    assert printed.startswith(print_module(compiled.graph[-1].module))
    assert printed.endswith(compiled.kernels[-1].cuda[-1].text + "\n")
