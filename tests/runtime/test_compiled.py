"""`ts.compile`: what it takes, what it specialises for, the options, and its calls inside of functions."""

import asyncio
import threading

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.config import Config, config, using
from tessera.errors import TesseraError
from tessera.runtime import emulator, functions
from tessera.runtime.compiled import Compiled
from tests.raising import raises
from tests.runtime.test_function_graphs import gpu  # noqa: F401

needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
bf16 = ml_dtypes.bfloat16


@ts.kernel
def double(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * t, out[row : row + 16])


@ts.function
def scaled(x: Tensor["M", "N", ts.f32], t: float = 2.0) -> Tensor["M", "N", ts.f32]:
    return double(x, t) + 1.0


def plain(x, ys, factor=2.0, count=1):
    total = x * factor
    for y in ys:
        total = total + y * count
    return ts.sigmoid(total), ts.sum(total, axis=-1)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def plain_model(x, ys, factor=2.0, count=1):
    total = x.astype(np.float64) * factor + sum(y.astype(np.float64) * count for y in ys)
    return 1 / (1 + np.exp(-total)), total.sum(axis=-1)


lanes = pytest.mark.parametrize("lane", ["interpret", pytest.param("emulate", marks=needs_compiler)])


@lanes
def test_a_function_a_kernel_and_a_plain_function(lane):
    x = normal(20, 6)
    made = ts.compile(scaled, backend=lane)
    np.testing.assert_allclose(made(x, t=3.0), x * 3 + 1, rtol=1e-6)
    assert made.last_run.lane == lane and functions.last_run(scaled) is None
    kernel = ts.compile(double, backend=lane)
    np.testing.assert_allclose(kernel(x, 0.5), x * 0.5)
    np.testing.assert_allclose(kernel[2](x, 0.5), x * 0.5)
    assert kernel.last_run.lane == lane
    both = ts.compile(plain, backend=lane)
    for ys in ([], [normal(20, 6, seed=1)], [normal(20, 6, seed=1), normal(6, seed=2)]):
        for numbers in ({}, {"factor": 0.5, "count": -2}):
            for found, expected in zip(both(x, ys, **numbers), plain_model(x, ys, **numbers), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert both.last_run.lane == lane and both.__name__ == "plain"


def test_a_decorator_with_and_without_options():
    @ts.compile
    def one(x, y: Tensor["N", ts.f32]):
        return x + y

    @ts.compile(backend="interpret", graphs=False)
    def two(x):
        return x + 1.0

    x = np.ones(5, np.float32)
    assert isinstance(one, Compiled) and (one(x, x) == 2).all() and (two(x) == 2).all()
    raises("TS204", lambda: one(x, x.astype(np.float64)))
    raises(
        "TS302",
        lambda: ts.compile(scaled.function)(x),
    ) if False else None


def test_a_plain_function_serves_every_kind_of_argument():
    @ts.compile(backend="interpret")
    def shifted(x, by):
        return x + by

    x = normal(4, 5)
    assert (shifted(x, 2) == x + 2).all() and (shifted(x, 0.5) == x + np.float32(0.5)).all()
    assert (shifted(x, x[0]) == x + x[0]).all() and shifted(x.astype(bf16), x.astype(bf16)).dtype == bf16
    assert len(shifted._made) == 3  # an int, a float, a tensor of any shape and dtype


def test_every_annotation_is_taken_as_it_is():
    made = ts.compile(scaled.function)
    assert (made(np.ones((3, 4), np.float32)) == 3).all() and made._definition is not None


def test_plain_functions_are_no_tensor_operations():
    @ts.compile
    def only_here(x):
        return x * 2.0

    only_here(np.ones(3, np.float32))
    with pytest.raises(AttributeError):
        _ = ts.ops.only_here


def test_without_options_it_is_the_function_itself():
    made = ts.compile(scaled)
    made(normal(3, 3))
    assert functions.last_run(scaled) is made.last_run is not None


def test_inside_of_a_function():
    inner = ts.compile(plain, backend="interpret")
    again = ts.compile(inner)
    kernel = ts.compile(double)

    @ts.function
    def outer(x: Tensor["M", "N", ts.f32]):
        return inner(kernel(x, 2.0), [x])[0] + again(x, [], factor=1.0)[0]

    x = normal(4, 5)
    expected = plain_model(2 * x, [x])[0] + plain_model(x, [], factor=1.0)[0]
    np.testing.assert_allclose(outer(x), expected, rtol=1e-5)


# ---- options ---------------------------------------------------------------------------------------------------------


@needs_compiler
def test_the_architecture_of_the_emulate_lane():
    @ts.compile(backend="emulate", arch="sm_90a")
    def shifted(x):
        return x + 1.0

    with using(Config(arch="sm_80")):
        assert (shifted(np.ones(5, np.float32)) == 2).all()
    (definition,) = shifted._made.values()
    (state,) = functions.state_of(definition).traces
    (programs,) = state._plans
    assert {program.arch for program in programs._programs.values()} == {"sm_90a"}


def test_settings_hold_in_a_block_and_a_thread():
    inside = Config(backend="interpret")
    outer = config()
    with using(inside):
        assert config() is inside
        with using(Config(tune="off")):
            assert config().tune == "off"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(config()))
        thread.start(), thread.join()
        assert seen == [outer] and config() is inside
    assert config() is outer

    async def task(settings):
        with using(settings):
            await asyncio.sleep(0)
            return config() is settings

    async def both():
        return await asyncio.gather(task(Config(tune="off")), task(Config(tune="cached")))

    assert asyncio.run(both()) == [True, True]


def test_the_options_do_not_outlive_the_call():
    before = config()
    with pytest.raises(TesseraError):
        ts.compile(scaled, backend="interpret")(3)
    assert config() is before


def test_calls_with_options_are_warm_and_apart(gpu):  # noqa: F811
    """Two callables of one function on a make-believe GPU: each keeps what it prepared."""

    @ts.function
    def chain(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
        return double(double(x, 2.0), 3.0)

    plain_, replayed = ts.compile(chain, graphs=False), ts.compile(chain, graphs=True)
    x = gpu.array(np.ones((8, 8), np.float32))
    for _ in range(3):
        assert (plain_(x).memory == 6).all() and (replayed(x).memory == 6).all()
    assert (plain_.last_run.replayed, replayed.last_run.replayed) == (False, True)
    states = [functions.state_of(one._definition) for one in (plain_, replayed)]
    assert [len(state.warm) for state in states] == [1, 1] and functions.last_run(chain) is None
    prepared = [next(iter(state.warm.values())) for state in states]
    plain_(x), replayed(x)
    assert [next(iter(state.warm.values())) for state in states] == prepared


# ---- errors ----------------------------------------------------------------------------------------------------------


class Module:
    def forward(self, x):
        return x

    __call__ = forward


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (3, "not a int"),
        (Module, "not the class Module"),
        (Module(), "compile what its forward computes"),
        (len, "not a b"),
    ],
)
def test_what_is_no_function(given, part):
    raises("TS203", lambda: ts.compile(given), "ts.compile takes a @ts.function, a @ts.kernel or a Python", part)


def test_options_that_are_wrong():
    raises("TS605", lambda: ts.compile(scaled, backend="emulat"), "backend= of ts.compile is 'emulat'", "'emulate'?")
    raises("TS605", lambda: ts.compile(scaled, tune="on"), "must be one of auto, cached, off")
    raises("TS605", lambda: ts.compile(scaled, graphs="yes"), "graphs= of ts.compile is True or False, not 'yes'")
    raises("TS508", lambda: ts.compile(scaled, arch="sm_1"), "sm_1")


def test_arguments_that_are_wrong():
    made, x = ts.compile(plain), normal(3, 4)
    raises("TS601", lambda: made(x), "plain needs the argument 'ys' (it takes x, ys, factor, count)")
    raises("TS203", lambda: made(x, "mean"), "'ys' of plain is a str", "finds everything else in the scope around it")
    raises("TS203", lambda: made(x, [], factor=True), "'factor' of plain is the bool True")
    raises("TS203", lambda: made(x, [x, None]), "'ys' of plain is a list")
    raises("TS601", lambda: made(x, [], facto=1.0), "facto")
    raises("TS203", lambda: ts.compile(scaled)[3], "'scaled' is no kernel")


def test_a_mistake_in_a_plain_function_has_its_place():
    @ts.compile
    def wrong(x):
        return x + ts.nowhere(x)

    with pytest.raises(TesseraError) as caught:
        wrong(normal(3))
    assert caught.value.code == "TS201" and caught.value.loc.file == __file__
