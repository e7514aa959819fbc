"""Philox4x32-10 against the known answers of Random123, and the uniform numbers made of it."""

import numpy as np
import pytest

from tessera import tile
from tessera.errors import SourceError
from tessera.frontend.evaluator import trace
from tessera.ir.bounds import Bar
from tessera.ir.opdef import lookup
from tessera.ir.philox import philox4x32, uniform, uniform_bound, uniform_number
from tessera.runtime import emulator
from tests.lanes import define

ONES = 0xFFFFFFFF
# Counter, key and words, from the file kat_vectors of Random123 (philox4x32 with 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    found = philox4x32(*(tuple(np.array([word], np.uint64) for word in part) for part in (counter, key)))
    assert tuple(int(word[0]) for word in found) == words


def test_known_answers_on_the_twin():
    text = """#include "tessera_device.h"
TS_KERNEL(k, 32)(ts_i32* words, const ts_i32* keys) {
    const int i = ts_thread();
    if (i < 3) {
        ts_u32 c[4];
        ts_i32 key[2];
        ts_ld_global<ts_i32, 4>((ts_i32*)c, words + 4 * i);
        ts_ld_global<ts_i32, 2>(key, keys + 2 * i);
        ts_philox4x32(c, key[0], key[1]);
        ts_st_global<ts_i32, 4>(words + 4 * i, (ts_i32*)c);
    }
}
"""
    counters, keys, words = (np.array(part, np.uint32) for part in zip(*KNOWN, strict=True))
    emulator.build(text, ["k"]).launch("k", (1,), 32, 0, [counters.view(np.int32), keys.view(np.int32)])
    np.testing.assert_array_equal(counters, words)


def model(index, seed):
    """The same with Python integers alone, written from the paper."""
    counter, key = [index & ONES, index >> 32 & ONES, 0, 0], [seed & ONES, seed >> 32 & ONES]
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [b >> 32 ^ counter[1] ^ key[0], b & ONES, a >> 32 ^ counter[3] ^ key[1], a & ONES]
        key = [(key[0] + 0x9E3779B9) & ONES, (key[1] + 0xBB67AE85) & ONES]
    return (counter[0] >> 8) / 2**24


PLACES = [0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, -(2**63)]


def test_uniform_is_the_first_word():
    index, seed = np.meshgrid(np.array(PLACES, np.int64), np.array(PLACES, np.int64))
    expected = np.vectorize(lambda i, s: model(int(i), int(s)))(index, seed)
    found = uniform(index, seed)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == found.size


def test_uniform_is_uniform():
    """Mean, variance and counts within five standard deviations, by element number and by seed."""
    count, numbers = 1 << 16, np.arange(1 << 16)
    for drawn in (uniform(numbers, np.array([7])), uniform(np.array([7]), numbers)):
        assert drawn.min() >= 0 and drawn.max() < 1
        assert abs(drawn.mean(dtype=np.float64) - 0.5) < 5 * np.sqrt(1 / 12 / count)
        assert abs(drawn.var(dtype=np.float64) - 1 / 12) < 5 * np.sqrt(1 / 180 / count)
        cells = np.bincount((drawn * 256).astype(int), minlength=256)
        assert ((cells - 256) ** 2 / 256).sum() < 255 + 5 * np.sqrt(2 * 255)
        neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
        assert abs(neighbours) < 5 / np.sqrt(count)


def test_the_bar_is_exact_unless_an_operand_is_uncertain():
    numbers = np.array([[3.0, -5.0, 2.0**53, 8.0]])
    bar = uniform_bound(
        None, Bar(numbers, np.array([[0.0, 0.0, 0.0, 1.0]])), Bar(np.full((1, 1), 11.0), np.zeros((1, 1)))
    )
    np.testing.assert_array_equal(bar.e, [[0, 0, 0.5, 0.5]])
    np.testing.assert_array_equal(bar.r, [[model(3, 11), model(-5, 11), 0.5, 0.5]])
    assert lookup("uniform").ulp == 0


def test_of_python_numbers():
    assert tile.uniform(5, 9) == uniform_number(5, 9) == model(5, 9)
    assert tile.uniform(index=-1, seed=2**63 - 1) == model(-1, 2**63 - 1)
    for wrong, code in ((0.5, "TS204"), (True, "TS204"), (2**63, "TS401")):
        with pytest.raises(SourceError) as caught:
            tile.uniform(1, wrong)
        assert caught.value.code == code and str(wrong) in caught.value.message
    with pytest.raises(SourceError, match="tile.uniform.index, seed") as caught:
        tile.uniform(1)
    assert caught.value.code == "TS202"


def test_floats_are_refused_by_name():
    kernel = define("""
        @ts.kernel
        def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
            p = tile.program_id(0) * 32
            tile.store(tile.uniform(x[p : p + 32], 3), out[p : p + 32])
    """)
    with pytest.raises(SourceError, match="'uniform' takes integers, but 'x") as caught:
        trace(kernel)
    assert caught.value.code == "TS204" and caught.value.loc.line == 4
