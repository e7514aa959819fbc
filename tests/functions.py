"""Traced functions on random arguments: what tests of Graph IR and of its passes compare."""

import numpy as np

from tessera.ir.core import Kernel
from tessera.ir.dims import evaluate, symbols
from tessera.ir.types import ScalarType, shape_of
from tessera.runtime.function_interpreter import interpret_function

OTHER_SIZE = 2  # of a dim that a test does not name


def results_of(function: Kernel, **dims: int) -> list[np.ndarray]:
    """The results for arguments that depend on the parameters' order alone; scalars are 1, 2, ..."""
    random = np.random.default_rng(len(function.parameters))
    arguments, scalars = {}, 0
    known = {name: dims.get(name, OTHER_SIZE) for name in function.attributes.get("dims", ())}
    for parameter in function.parameters:
        if isinstance(parameter.type, ScalarType):
            scalars += 1
            arguments[parameter.name] = scalars
            continue
        for size in shape_of(parameter.type):
            for name in symbols(size):
                known.setdefault(name, dims.get(name, OTHER_SIZE))
        shape = [evaluate(size, known) for size in shape_of(parameter.type)]
        value = random.standard_normal(shape)
        value[random.random(shape) < 0.1] = -0.0
        arguments[parameter.name] = value.astype(np.float32).astype(parameter.type.dtype.numpy)
    return interpret_function(function, arguments, known)


def assert_same_bits(one: Kernel, other: Kernel, **dims: int) -> None:
    for a, b in zip(results_of(one, **dims), results_of(other, **dims), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
