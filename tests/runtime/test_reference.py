"""Reference mode and the rule of comparison: right answers pass, planted errors fail."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from interpreter_kernels import BF16, Author, M, N, gating, matmul, normal, softmax, unwritten, vector_add

from tessera.dtypes import bf16, f32
from tessera.errors import ArgumentError
from tessera.ir.bounds import Bar
from tessera.ir.types import ViewType
from tessera.runtime.compare import RMS_LIMIT, check, distance
from tessera.runtime.interpreter import interpret
from tessera.runtime.reference import reference
from tests.pace import within

pytestmark = pytest.mark.filterwarnings("error")


def neighbour(x, steps=1):
    """The number `steps` further from zero, of the same storage type."""
    bits = x.view({2: np.int16, 4: np.int32}[x.dtype.itemsize])
    return (bits + steps).view(x.dtype)


CASES = {
    "vector_add": (
        vector_add,
        {"N": 300},
        "out",
        lambda: dict(x=normal(300), y=normal(300, seed=1), out=unwritten(300)),
    ),
    "softmax": (softmax, {"M": 9, "N": 150}, "out", lambda: dict(x=normal(9, 150, scale=4), out=unwritten(9, 150))),
    "gating": (
        gating,
        {"B": 2, "S": 150, "D": 64},
        "output",
        lambda: dict(
            delta=normal(2, 150, 64),
            params=normal(64, 64, scale=0.125, seed=1),
            distance=3,
            output=unwritten(2, 150, 64),
        ),
    ),
    "matmul": (
        matmul,
        {"M": 40, "N": 50, "K": 70},
        "c",
        lambda: dict(a=normal(40, 70), b=normal(70, 50, seed=1), c=unwritten(40, 50, dtype=np.float32)),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    build, dims, output, arguments = CASES[request.param]
    given = arguments()
    bars = reference(build(), given, dims)
    assert list(bars) == [output]
    assert np.isnan(given[output].astype(np.float32)).all()  # arguments are left as they were
    interpret(build(), given, dims)
    return given[output], bars[output]


def test_right_answers_are_inside(case):
    actual, bars = case
    result = check(actual, bars)
    assert result.ok and result.max_error <= result.bound and result.fraction_bad == 0 and not result.rms_rule


def test_one_step_too_far_is_outside(case):
    """For each element, the first number beyond its bar: one such element is enough to fail."""
    actual, bars = case
    for index in [(0,) * actual.ndim, tuple(n - 1 for n in actual.shape)]:
        wrong = actual.copy()
        for _ in range(100_000):
            wrong[index] = neighbour(wrong[index])
            if abs(float(wrong[index]) - bars.r[index]) > bars.e[index]:
                break
        result = check(wrong, bars)
        assert not result.ok and result.worst_index == index and result.max_error > result.bound
        assert result.fraction_bad == pytest.approx(1 / actual.size)
        # A bf16 output leaves the correctly rounded number and perhaps a neighbour or two.
        if actual.dtype == BF16:
            assert abs(int(wrong[index].view(np.int16)) - int(actual[index].view(np.int16))) <= 3


def test_wrong_elements_fail(case):
    actual, bars = case
    flat = actual.reshape(-1)
    wrong = actual.copy()
    wrong.reshape(-1)[5] = flat[6] * 2 + 1
    assert check(wrong, bars).worst_index == np.unravel_index(5, actual.shape)
    for poison in (np.nan, np.inf, -np.inf):
        wrong = actual.copy()
        wrong.reshape(-1)[7] = poison
        result = check(wrong, bars)
        assert not result.ok and result.max_error == np.inf and result.worst_index == np.unravel_index(7, actual.shape)
    assert not check(np.roll(actual, 1, axis=-1), bars).ok


def test_bf16_rounding_points_that_may_be_skipped():
    """out = (x + y) + z, bf16: the sum may be rounded in between or not, and both answers are right."""
    k = Author(
        "twice", x=ViewType((N,), bf16), y=ViewType((N,), bf16), z=ViewType((N,), bf16), out=ViewType((N,), bf16)
    )
    k.op("store", k["out"], k("add", k("add", *(k("load", k[p]) for p in "xy")), k("load", k["z"])))
    given = dict(x=normal(2000), y=normal(2000, seed=1), z=normal(2000, seed=2), out=unwritten(2000))
    bars = reference(k.kernel, given, {"N": 2000}, grid=(1,))["out"]
    exact = sum(given[p].astype(np.float64) for p in "xyz").astype(BF16)
    between = (
        (given["x"].astype(np.float32) + given["y"].astype(np.float32)).astype(BF16).astype(np.float32)
        + given["z"].astype(np.float32)
    ).astype(BF16)
    assert (exact != between).any() and check(exact, bars).ok and check(between, bars).ok
    assert not check(neighbour(exact, 4), bars).ok


def test_an_explicit_rounding_may_not_be_skipped():
    """out = f32(cast(x, bf16)) has one right answer."""
    k = Author("rounded", x=ViewType((N,), f32), out=ViewType((N,), f32))
    k.op("store", k["out"], k("cast", k("load", k["x"]), dtype=bf16))
    x = normal(100, dtype=np.float32)
    bars = reference(k.kernel, dict(x=x, out=x.copy()), {"N": 100}, grid=(1,))["out"]
    assert (bars.e == 0).all()
    assert check(x.astype(ml_dtypes.bfloat16).astype(np.float32), bars).ok
    assert not check(x, bars).ok


def test_unwritten_elements_keep_their_value():
    given = dict(x=normal(300), y=normal(300, seed=1), out=unwritten(300))
    bars = reference(vector_add(), given, {"N": 300}, grid=(2,))["out"]
    assert np.isfinite(bars.r[:256]).all() and np.isnan(bars.r[256:]).all()


def test_control_flow_and_programs_that_read_what_others_wrote():
    k = Author("running_sum", out=ViewType((N,), f32))
    pid = k("program_id", axis=0)
    here, following = (k.window(k["out"], [p], (1,)) for p in (pid, k("add", pid, k.index(1))))
    value = k.branch(
        k("lt", pid, k.index(3)),
        lambda: [k("add", k("load", here), k("load", following))],
        lambda: [k("load", following)],
    )[0]
    k.op("store", following, value)
    out = np.arange(1, 9, dtype=np.float32)
    bars = reference(k.kernel, {"out": out}, {"N": 8}, grid=(7,))["out"]
    np.testing.assert_array_equal(bars.r, [1, 3, 6, 10, 5, 6, 7, 8])
    assert (bars.e[[0, 4, 5, 6, 7]] == 0).all()  # loads and stores of floats: nothing to round
    assert (bars.e[1:4] == np.spacing(bars.r[1:4].astype(np.float32))).all()


def test_masked_rows_of_a_softmax_with_infinities():
    """-inf scores are masks: they must give exact zeros, and no warning or NaN."""
    k = Author("masked", x=ViewType((M, N), f32), out=ViewType((M, N), f32))
    x = k("load", k["x"])
    e = k("exp", k("sub", x, k("broadcast", k("reduce_max", x, axis=1), shape=(M, N))))
    k.op("store", k["out"], k("div", e, k("broadcast", k("reduce_sum", e, axis=1), shape=(M, N))))
    given = dict(x=normal(5, 40, dtype=np.float32), out=unwritten(5, 40, dtype=np.float32))
    given["x"][:, 30:] = -np.inf
    dims = {"M": 5, "N": 40}
    bars = reference(k.kernel, given, dims, grid=(1,))["out"]
    interpret(k.kernel, given, dims, grid=(1,))
    assert check(given["out"], bars).ok and (bars.r[:, 30:] == 0).all() and (bars.e < 1e-5).all()


def test_a_whole_array_within_its_bars_by_hand():
    r, e = np.array([1.0, 2.0, -4.0]), np.array([0.0, 0.01, 0.02])
    ok = check(np.array([1.0, 2.005, -4.002], np.float32), Bar(r, e))
    assert ok.ok and ok.worst_index == (1,) and ok.bound == 0.01 and ok.max_error == pytest.approx(0.005, rel=1e-4)
    exact = check(np.array([1.0000001, 2.0, -4.0], np.float32), Bar(r, e))
    assert (
        not exact.ok and exact.worst_index == (0,) and exact.bound == 0 and exact.fraction_bad == pytest.approx(1 / 3)
    )
    edge = check(np.array([1.0, 2.0, -4.5], np.float32), Bar(r, np.array([0, 0.01, 0.5])))
    assert edge.max_error == edge.bound == 0.5 and edge.fraction_bad == 0  # |x - r| <= e


def test_nan_and_infinity_must_match():
    special = np.array([np.nan, np.inf, -np.inf, 1.0])
    bars = Bar(special, np.zeros(4))
    assert check(special.astype(np.float32), bars).ok
    for wrong in (
        [0, np.inf, -np.inf, 1],
        [np.nan, np.nan, -np.inf, 1],
        [np.nan, np.inf, np.inf, 1],
        [np.nan, 3e38, -np.inf, 1],
        [np.nan, np.inf, -np.inf, np.nan],
    ):
        result = check(np.array(wrong, np.float32), bars)
        assert not result.ok and result.max_error == np.inf and result.fraction_bad == 0.25
    unbounded = Bar(np.array([np.inf, 1.0]), np.full(2, np.inf))
    assert check(np.array([2.0, 1.0], np.float32), unbounded).fraction_bad == 0.5
    assert check(np.array([np.inf, np.nan], np.float32), unbounded).fraction_bad == 0.5
    assert distance(np.array([np.inf]), np.array([np.inf])) == 0


def test_wide_bars_fall_under_the_rms_rule():
    r = np.random.default_rng(0).standard_normal((64, 64))
    bars = Bar(r, np.full(r.shape, 0.2))
    scale = np.sqrt(np.mean(r**2))
    for ratio, ok in ((RMS_LIMIT * 0.9, True), (RMS_LIMIT * 1.1, False)):
        result = check((r + ratio * scale).astype(np.float32), bars)
        assert result.rms_rule and result.fraction_bad == 0 and result.ok == ok
        assert result.rms_ratio == pytest.approx(ratio, rel=1e-3)
    single = r.astype(np.float32)
    single[3, 4] += 0.25  # the RMS hardly moves: the bar still counts
    result = check(single, bars)
    assert result.rms_ratio < RMS_LIMIT and not result.ok
    narrow = check((r + 0.01 * scale).astype(np.float32), Bar(r, np.full(r.shape, 0.04 * scale)))
    assert narrow.ok and not narrow.rms_rule


def test_shapes_dtypes_and_empty_arrays():
    with pytest.raises(ArgumentError, match="TS302"):
        check(np.zeros(3, np.float32), Bar(np.zeros(4), np.zeros(4)))
    with pytest.raises(ArgumentError, match="TS604"):
        check(np.zeros(3, np.complex64), Bar(np.zeros(3), np.zeros(3)))
    assert check(np.zeros((0, 3), np.float32), Bar(np.zeros((0, 3)), np.zeros((0, 3)))).ok
    assert check(np.float32(2).reshape(()), Bar(np.array(2.0), np.array(0.0))).ok
    assert not check(np.array([3]), Bar(np.array([2.0]), np.zeros(1))).ok


def test_speed():
    given = dict(
        delta=normal(2, 300, 128),
        params=normal(128, 128, scale=0.09, seed=1),
        distance=1,
        output=unwritten(2, 300, 128),
    )
    dims = {"B": 2, "S": 300, "D": 128}
    with within(1.0):
        bars = reference(gating(), given, dims)
        interpret(gating(), given, dims)
        assert check(given["output"], bars["output"]).ok
