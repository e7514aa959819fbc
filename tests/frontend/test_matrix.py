"""Operand dtypes and precision policies of tile.mma, as the author writes them."""

import pytest

from tessera.errors import TesseraError
from tests.frontend.test_errors import span_of, traced_error
from tests.frontend.traced import PRELUDE, the

OPERANDS = ("bf16", "f16", "fp8_e4m3", "fp8_e5m2", "f32", "i8")
SIGNATURE = "@ts.kernel(grid=lambda d: (1,))\ndef k({parameters}, out: Tensor['N', 'N', ts.f32]):\n"
PARAMETERS = ", ".join(f"{name}: Tensor['N', 'N', ts.{name}]" for name in OPERANDS)


def text_of(a, b, options):
    signature = SIGNATURE.format(parameters=PARAMETERS)
    return f"{signature}    tile.store(tile.mma({a}[0:16], {b}{options}), out[0:16])\n"


def precision_of(a, b, options=""):
    from tessera.frontend.document import execute, parse_document
    from tessera.frontend.evaluator import trace

    module = trace(execute(parse_document("case.py", text_of(a, b, options)), PRELUDE)["k"])
    return the(module.kernel(), "mma").attributes["precision"]


@pytest.mark.parametrize(
    ("a", "b", "options", "precision"),
    [
        ("bf16", "bf16", "", None),
        ("f16", "f16", ", precision_policy='mixed_f16_f32'", None),
        ("fp8_e4m3", "fp8_e4m3", ", precision_policy='mixed_fp8_e4m3_f32'", None),
        ("fp8_e4m3", "fp8_e5m2", ", precision_policy='mixed_fp8_f32'", None),
        ("fp8_e5m2", "fp8_e4m3", "", None),
        ("fp8_e5m2", "fp8_e4m3", ", precision='fast_accum'", "fast_accum"),
        ("fp8_e4m3", "fp8_e4m3", ", precision='fast_accum', precision_policy='mixed_fp8_e4m3_f32'", "fast_accum"),
        ("f32", "f32", "", None),
        ("f32", "f32", ", precision='f32'", None),
        ("f32", "f32", ", precision_policy='mixed_f32_f32'", None),
        ("f32", "f32", ", precision='tf32'", "tf32"),
        ("f32", "f32", ", precision_policy='tf32'", "tf32"),
        ("f32", "f32", ", precision_policy='mixed_tf32_f32', precision='tf32'", "tf32"),
    ],
)
def test_tf32_and_narrow_sums_by_request_only(a, b, options, precision):
    assert precision_of(a, b, options) == precision


@pytest.mark.parametrize(
    ("a", "b", "options", "code", "sentence"),
    [
        ("bf16", "f16", "", "TS204", "but 'bf16[0:16]' is bf16 and 'f16' is f16"),
        ("fp8_e4m3", "bf16", "", "TS204", "one of fp8_e4m3 and one of fp8_e5m2, but 'fp8_e4m3[0:16]' is fp8_e4m3"),
        ("i8", "i8", "", "TS204", "but 'i8[0:16]' is i8 and 'i8' is i8"),
        ("f32", "f32", ", precision=«'high'»", "TS402", "is None or 'f32' or 'tf32' or 'fast_accum', not 'high'"),
        ("f32", "f32", ", precision=«3»", "TS402", "not 3"),
        ("bf16", "bf16", ", precision=«'tf32'»", "TS402", "'tf32' asks for f32 operands, but 'bf16[0:16]' is bf16"),
        ("f16", "f16", ", precision=«'f32'»", "TS402", "'f32' asks for f32 operands, but 'f16[0:16]' is f16"),
        ("f16", "f16", ", precision_policy=«'tf32'»", "TS402", "'tf32' asks for f32 operands"),
        ("f16", "f16", ", precision=«'fast_accum'»", "TS402", "'fast_accum' asks for fp8 operands, but 'f16[0:16]'"),
        ("fp8_e4m3", "fp8_e4m3", ", precision=«'fp8'»", "TS402", "not 'fp8'"),
        ("f16", "f16", ", precision_policy=«'mixed_bf16_f32'»", "TS402", "asks for bf16 operands, but 'f16[0:16]'"),
        (
            "fp8_e4m3", "fp8_e5m2", ", precision_policy=«'mixed_fp8_e4m3_f32'»", "TS402",
            "asks for fp8_e4m3 operands, but 'fp8_e5m2' is fp8_e5m2",
        ),
        ("bf16", "bf16", ", precision_policy=«'mixed_fp8_f32'»", "TS402", "asks for fp8 operands"),
        ("f16", "f16", ", accumulator_type=«ts.f16»", "TS402", "products of f16 are accumulated in f32, not in f16"),
        ("f16", "f16", ", precision_policy=«'mixed_f16_f16'»", "TS402", "accumulates in f16"),
        ("f16", "f16", ", precision_policy=«'mixed_f16'»", "TS402", "the form is mixed_<input>_<accumulator>"),
        ("f16", "f16", ", precision_policy=«16»", "TS402", "16 is no precision policy"),
        (
            "f32", "f32", ", precision_policy='mixed_f32_f32', precision=«'tf32'»", "TS402",
            "precision_policy='mixed_f32_f32' and precision='tf32' contradict each other",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_authors_operand_and_place(a, b, options, code, sentence):
    text = text_of(a, b, options)
    if "«" not in options:
        text = text.replace("tile.mma(", "«tile.mma(").replace("), out", ")», out")
    error, span = traced_error(text)
    assert isinstance(error, TesseraError) and sentence in error.message, error.message
    assert (error.code, *span_of(error)) == (code, *span)
