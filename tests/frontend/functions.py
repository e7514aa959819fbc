"""Functions from their text, traced, run and compared: what the tests of tensor functions are written with."""

import textwrap

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.dtypes import from_numpy, from_storage
from tessera.errors import TesseraError
from tessera.frontend.annotations import TensorAnnotation
from tessera.frontend.definition import FUNCTIONS
from tessera.frontend.document import execute, parse_document
from tessera.frontend.function import free_shape, trace_function
from tessera.ir.verify import verify
from tessera.runtime.function_interpreter import function_reference, interpret_function

bf16, fp8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
generators = []


@pytest.fixture(autouse=True)
def isolated():
    """Every test draws the same numbers, and functions of one test are not `ts.ops` of the next."""
    before = dict(FUNCTIONS)
    generators[:] = [np.random.default_rng(7)]
    yield
    FUNCTIONS.clear()
    FUNCTIONS.update(before)


def normal(*shape, dtype=bf16, scale=1.0):
    return (generators[0].standard_normal(shape) * scale).astype(dtype)


def wide(array):
    return np.asarray(from_storage(from_numpy(array.dtype), array), np.float64)


def definition(text, name="f"):
    namespace = {"ts": ts, "tile": tile, "Tensor": Tensor}
    return execute(parse_document("case.py", textwrap.dedent(text)), namespace)[name]


def trace(text, static=None, bare=None, name="f"):
    """The verified trace of a function. `bare`: arrays of bare parameters; their axes are free dims."""
    values, annotations = dict(static or {}), {}
    for parameter, array in (bare or {}).items():
        shape = free_shape(parameter, array.ndim)
        annotations[parameter] = TensorAnnotation(shape, from_numpy(array.dtype))
        values.update({str(size): number for size, number in zip(shape, array.shape, strict=True)})
    found = trace_function(definition(text, name), values, annotations)
    verify(found.module)
    return found


def run(text, static=None, bare=(), name="f", **arguments):
    """The result of a function, in float64, after comparing it with the reference; and the trace."""
    traced = trace(text, static, {parameter: arguments[parameter] for parameter in bare}, name)
    dims = {name: (static or {}).get(name) for name in traced.function.attributes["dims"]}
    for parameter in bare:
        shape = arguments[parameter].shape
        dims.update(zip(map(str, free_shape(parameter, len(shape))), shape, strict=True))
    (result,) = interpret_function(traced.function, arguments, dims)
    (bar,) = function_reference(traced.function, arguments, dims)
    value = wide(result)
    with np.errstate(invalid="ignore"):
        inside = (np.abs(value - bar.r) <= bar.e) | (value == bar.r) | (np.isnan(value) & np.isnan(bar.r))
    assert inside.all()
    return value, traced


def near(value, wanted, relative=2.0**-8, absolute=0.0):
    """Within a bf16 rounding, or `relative`; infinities must be the same."""
    with np.errstate(invalid="ignore"):
        close = np.abs(value - wanted) <= relative * np.abs(wanted) + absolute
    assert np.all(close | (value == wanted) | (np.isnan(value) & np.isnan(wanted))), (value, wanted)


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def the_ops(traced, name):
    return [op for op in traced.function.body.walk() if op.name == name]


def refused(code, *words, text, static=None, bare=None):
    with pytest.raises(TesseraError) as caught:
        trace(text, static, bare)
    assert caught.value.code == code
    missing = [word for word in words if word not in caught.value.message]
    assert not missing, caught.value.message
