"""Lists of tensors on every lane: sums over run-time and static indices, products of two lists, empty lists."""

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import bf16, from_storage, to_storage
from tessera.errors import SourceError
from tessera.runtime.check import examine_kernel
from tessera.runtime.emulator import EmulatorFault
from tessera.runtime.interpreter import interpret
from tests.lanes import define, emulate, run

SUM = """
@ts.kernel
def k(xs: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32]):
    p = tile.program_id(0) * 128
    acc = tile.zeros([128])
    for i in LOOP(len(xs)):
        acc = acc + xs[i][p : p + 128]
    tile.store(acc, out[p : p + 128])
"""
LOOPS = ("tile.range", "tile.static_range", "range")


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_sum_of_a_list(count):
    xs = [normal(300, seed) for seed in range(count)]
    expected = np.zeros(300, np.float32)
    for x in xs:
        expected = expected + x
    for loop in LOOPS:
        arguments = {"xs": xs, "out": np.full(300, np.nan, np.float32)}
        archs = ("sm_80", "sm_90a") if count == 3 and loop != "range" else ()
        found, _ = run(SUM.replace("LOOP", loop), arguments, {"N": 300, "len(xs)": count}, archs)
        assert found["out"].tobytes() == expected.tobytes(), loop


PRODUCTS = """
@ts.kernel
def k(a: list[Tensor["M", "K", ts.bf16]], w: list[Tensor["K", "N", ts.bf16]], scale: Tensor["L", 2, ts.f32],
      out: Tensor["M", "N", ts.f32]):
    ctx = tile.context()
    row = tile.program_id(0) * 32
    acc = tile.zeros([32, ctx.N])
    for i in LOOP(len(a)):
        acc = acc + tile.mma(a[i][row : row + 32], w[i]) * scale[len(a) - 1 - i, -1]
    tile.store(acc, out[row : row + 32])
"""


@pytest.mark.parametrize(("m", "k", "n"), [(40, 24, 16), (70, 33, 9)])
def test_products_of_two_lists(m, k, n):
    a = [to_storage(bf16, normal((m, k), seed)) for seed in range(3)]
    w = [to_storage(bf16, normal((k, n), seed + 9)) for seed in range(3)]
    scale = normal((3, 2), 20)
    dims = {"M": m, "K": k, "N": n, "L": 3, "len(a)": 3, "len(w)": 3}
    model = sum(
        (from_storage(bf16, a[i]).astype(np.float64) @ from_storage(bf16, w[i])) * scale[2 - i, 1] for i in range(3)
    )
    outputs = []
    for loop in LOOPS:
        arguments = {"a": a, "w": w, "scale": scale, "out": np.full((m, n), np.nan, np.float32)}
        archs = ("sm_80", "sm_90a") if m == 70 else ()
        outputs.append(run(PRODUCTS.replace("LOOP", loop), arguments, dims, archs)[0]["out"])
    assert np.abs(outputs[0] - model).max() < 1e-4
    assert all(output.tobytes() == outputs[0].tobytes() for output in outputs)


CHOSEN = """
@ts.kernel(grid=lambda d: (d.P,))
def k(xs: list[Tensor["N", ts.f32]], which: Tensor["P", ts.i32], out: Tensor["P", "N", ts.f32]):
    ctx = tile.context()
    p = tile.program_id(0)
    x = xs[which[p]]
    tile.store(tile.reshape(x[0 : ctx.N] * 2.0 + xs[-1][0 : ctx.N], [1, ctx.N]), out[p : p + 1, 0 : ctx.N])
"""


def test_an_index_that_is_loaded():
    xs, which = [normal(50, seed) for seed in range(4)], np.array([3, 0, 0, 2, 1], np.int32)
    arguments = {"xs": xs, "which": which, "out": np.full((5, 50), np.nan, np.float32)}
    dims = {"N": 50, "P": 5, "len(xs)": 4}
    found, _ = run(CHOSEN, arguments, dims)
    for row, index in zip(found["out"], which, strict=True):
        assert np.array_equal(row, xs[index] * np.float32(2) + xs[3])
    arguments["which"] = np.array([3, 0, 4, 2, 1], np.int32)
    kernel = compile_kernel(define(CHOSEN), dims).stages[0].module.kernel()
    with pytest.raises(SourceError, match="the index 4 is outside the list 'xs', whose length is 4"):
        interpret(kernel, arguments, dims)
    compilation = compile_kernel(define(CHOSEN), dims)
    for wrong in (4, -1, 10**9):
        arguments["which"][2] = wrong
        with pytest.raises(EmulatorFault, match=f"takes the tensor at index {wrong} from a list of 4 tensors"):
            emulate(compilation, arguments, dims)


ZIPPED = """
@ts.kernel
def k(a: list[Tensor["N", ts.f32]], b: list[Tensor["N", ts.f32]], out: Tensor["N", ts.f32]):
    p = tile.program_id(0) * 64
    acc = tile.zeros([64])
    for i, (x, y) in enumerate(zip(a, b)):
        acc = acc + x[p : p + 64] * y[p : p + 64] * float(i + 1)
    tile.store(acc, out[p : p + 64])
"""


def test_lists_in_step():
    a, b = [normal(70, seed) for seed in (1, 2)], [normal(70, seed) for seed in (3, 4)]
    arguments = {"a": a, "b": b, "out": np.full(70, np.nan, np.float32)}
    found, _ = run(ZIPPED, arguments, {"N": 70, "len(a)": 2, "len(b)": 2})
    assert np.abs(found["out"] - (a[0] * b[0] + a[1] * b[1] * 2)).max() < 1e-5
    with pytest.raises(SourceError, match="'a' and 'b' are used together in zip, but 'a' has the length 2 and 'b' 3"):
        compile_kernel(define(ZIPPED), {"N": 70, "len(a)": 2, "len(b)": 3})


def test_the_examination_of_lists_finds_nothing():
    dims = {"M": 40, "K": 24, "N": 16, "L": 3, "len(a)": 3, "len(w)": 3}
    for loop in LOOPS:
        compilation = compile_kernel(define(PRODUCTS.replace("LOOP", loop)), dims)
        arguments = {
            "a": [to_storage(bf16, normal((40, 24), seed)) for seed in range(3)],
            "w": [to_storage(bf16, normal((24, 16), seed)) for seed in range(3)],
            "scale": normal((3, 2), 20),
            "out": np.full((40, 16), np.nan, np.float32),
        }
        report = examine_kernel(compilation, arguments, dims, seeds=(0, 1, 2, 3))
        assert report.ok, report.findings


def test_alignment_is_that_of_the_worst_tensor():
    compilation = compile_kernel(define(SUM.replace("LOOP", "tile.range")), {"N": 300, "len(xs)": 2})
    assert "ts_ld_global<float, 4>" in compilation.cuda[0].text
    narrow = compile_kernel(define(SUM.replace("LOOP", "tile.range")), {"N": 300, "len(xs)": 2}, alignment={"xs": 4})
    assert "ts_ld_global<float, 4>" not in narrow.cuda[0].text
    assert "TS_TABLE(const float, 2) xs" in narrow.cuda[0].text
