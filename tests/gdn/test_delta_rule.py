"""The gated delta rule against the recurrence in float64, on both lanes that need no GPU."""

import numpy as np
import pytest

import tessera as ts
from tessera.gdn import delta_rule, gated_delta_rule
from tessera.gdn.delta_rule import _by_shape
from tests.gdn import cases
from tests.gdn.problems import NUMPY, Problem, arguments, check


@pytest.fixture
def emulated(backend):
    backend("emulate")


@pytest.fixture
def interpreted(backend):
    backend("interpret")


@pytest.mark.parametrize("problem", cases.EVERYTHING, ids=str)
def test_interpreted(problem, interpreted):
    check(problem, gated_delta_rule)


# The emulated text takes seconds to compile: some of each list, and all of it with `-m full`.
EMULATED = [*cases.FEATURES[:3], *cases.TOKENS[::4], cases.DECAYS[2], cases.SIZES[0], cases.ARGUMENTS[-1]]


@pytest.mark.parametrize("problem", EMULATED, ids=str)
def test_emulated(problem, emulated):
    check(problem, gated_delta_rule)


@pytest.mark.full
@pytest.mark.parametrize("problem", [p for p in cases.EVERYTHING if p not in EMULATED], ids=str)
def test_all_emulated(problem, emulated):
    check(problem, gated_delta_rule)


def test_no_tokens(interpreted):
    given = arguments(Problem(T=0, K=32, V=32))
    o, state = gated_delta_rule(**given)
    assert o.shape == (1, 0, 2, 32)
    np.testing.assert_array_equal(state, given["initial_state"])


def test_more_programs_than_an_axis_of_a_grid_other_than_the_first(interpreted):
    """65600 sequences and heads; the last ones are right."""
    n = 1025
    problem = Problem(T=n, H=1, HV=64, K=16, V=16, packed=tuple(range(n + 1)), options={"mode": "recurrent"})
    check(problem, gated_delta_rule)


def test_arrays_need_not_be_contiguous(interpreted):
    problem = Problem(T=40, K=32, V=32, options=cases.CHUNKED)

    def apart(array):
        wide = np.zeros((*array.shape[:-1], array.shape[-1] + 8), array.dtype)
        wide[..., : array.shape[-1]] = array
        return wide[..., : array.shape[-1]]

    check(problem, gated_delta_rule, array=apart)


def test_torch(interpreted):
    torch = pytest.importorskip("torch")

    def tensor(array):
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    for options in (cases.CHUNKED, {"mode": "recurrent"}):
        problem = Problem(T=20, K=32, V=32, options=options)
        check(problem, gated_delta_rule, array=tensor, host=lambda x: x.float().numpy())


WRONG = [
    ("TS203", {"q": 3}, "'q' is an array, not a int"),
    ("TS304", {"v": np.zeros((1, 40, 32), np.float32)}, r"'v' has 4 axes"),
    ("TS204", {"g": np.zeros((1, 40, 2))}, "'g' is bf16 or f16 or f32, not float64"),
    ("TS204", {"k": np.zeros((1, 40, 1, 32), np.float16)}, "'q' is bf16, but 'k' is f16"),
    ("TS302", {"beta": np.zeros((1, 41, 2), np.float32)}, "'beta'"),
    ("TS301", {"initial_state": np.zeros((1, 2, 32, 24), np.float32)}, r"\[N, HV, K, V\] is \[1, 2, 32, 32\]"),
    ("TS301", {"cu_seqlens": np.array([0], np.int32)}, r"'cu_seqlens' has N \+ 1 bounds"),
    ("TS203", {"chunk_size": 48}, "chunk_size= is one of 16, 32, 64, not 48"),
    ("TS203", {"mode": "fast"}, "mode= is one of 'auto', 'chunk', 'recurrent', not 'fast'"),
    ("TS601", {"use_gate_in_kernel": True}, "needs 'A_log'"),
    ("TS601", {"A_log": np.zeros(2, np.float32)}, "'A_log' is of the gate"),
    ("TS601", {"allow_neg_eigval": True}, "doubles the sigmoid"),
    ("TS601", {"use_beta_sigmoid_in_kernel": True, "beta": None}, "needs 'beta'"),
    ("TS601", {"inplace_final_state": True, "initial_state": None}, "'initial_state'"),
]


@pytest.mark.parametrize(("code", "changed", "words"), WRONG, ids=[words[:30] for _, _, words in WRONG])
def test_wrong_arguments(code, changed, words, interpreted):
    given = {**arguments(Problem(T=40, K=32, V=32)), **changed}
    with pytest.raises(ts.TesseraError, match=words) as caught:
        gated_delta_rule(**given)
    assert caught.value.code == code


def test_wrong_heads_and_batches(interpreted):
    with pytest.raises(ts.TesseraError, match="no multiple of the 2 heads"):
        gated_delta_rule(
            **arguments(Problem(T=8, K=16, V=16, H=2, HV=4)) | {"v": np.zeros((1, 8, 3, 16), NUMPY["bf16"])}
        )
    packed = {"cu_seqlens": np.array([0, 8], np.int32)}
    with pytest.raises(ts.TesseraError, match="a batch of 1, but 'q' has a batch of 2"):
        gated_delta_rule(**arguments(Problem(B=2, T=8, K=16, V=16)) | packed)


@pytest.mark.parametrize(
    ("chunked", "heads", "keys", "values", "value_first", "block", "warps"),
    [
        (True, 32, 128, 128, False, 32, 4),  # B1 HV32: 64 columns would be 64 programs
        (True, 128, 128, 128, False, 64, 4),  # B8 HV16
        (True, 4, 128, 128, False, 32, 4),  # too few heads whatever the block
        (True, 1024, 256, 256, False, 32, 8),  # what registers hold
        (False, 2048, 128, 128, False, 64, 4),  # 64 registers of state a thread
        (False, 2048, 128, 128, True, 64, 4),
        (False, 2048, 256, 128, False, 32, 4),
        (False, 32, 128, 128, False, 32, 2),
        (False, 32, 128, 128, True, 16, 1),
        (False, 32, 100, 60, False, 32, 2),
    ],
)
def test_columns_and_warps_go_by_shape(chunked, heads, keys, values, value_first, block, warps):
    chosen = _by_shape(chunked, heads, keys, values, value_first)
    assert chosen == {"block": block, "warps": warps, **({"prepare_warps": 2} if chunked else {})}


@pytest.mark.parametrize(("length", "kernel"), [(1, "recurrent"), (16, "recurrent"), (17, "chunk")])
def test_few_tokens_go_one_by_one(length, kernel, interpreted, monkeypatch):
    called = []
    for name in ("recurrent_kernel", "chunk_kernel"):
        made = getattr(delta_rule, name)
        monkeypatch.setattr(delta_rule, name, lambda *a, n=name, made=made: called.append(n) or made(*a))
    gated_delta_rule(**arguments(Problem(T=length, K=16, V=16)))
    assert called == [f"{kernel}_kernel"]
