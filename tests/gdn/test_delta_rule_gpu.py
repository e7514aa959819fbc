"""The gated delta rule on a GPU: the calls of the other lanes, tensors of torch, and sizes that only a GPU can do."""

import numpy as np
import pytest

from tessera.gdn import gated_delta_rule
from tessera.runtime import launch
from tests.gdn import cases
from tests.gdn.problems import MOST_OUTPUT, Problem, check

GPU = launch.device_count() > 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs a GPU")]


@pytest.fixture(autouse=True)
def cuda(backend):
    backend("cuda")


@pytest.mark.parametrize("problem", cases.EVERYTHING, ids=str)
def test_arrays_of_the_host(problem):
    check(problem, gated_delta_rule)


def to_torch(array):
    torch = pytest.importorskip("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).cuda()
    return torch.from_numpy(array.copy()).cuda()


@pytest.mark.parametrize("problem", [*cases.FEATURES, *cases.TOKENS, *cases.EDGES], ids=str)
def test_tensors_of_torch(problem):
    check(problem, gated_delta_rule, array=to_torch, host=lambda x: x.float().cpu().numpy())


def test_many_sequences():
    """65600 sequences and heads, in chunks too: none of the grids is cut off."""
    n = 1025
    for mode in ("recurrent", "chunk"):
        problem = Problem(T=n, H=1, HV=64, K=16, V=16, packed=tuple(range(n + 1)), options={"mode": mode})
        check(problem, gated_delta_rule)


def rms(x, reference):
    return float(
        (x.double() - reference.double()).pow(2).mean().sqrt() / (reference.double().pow(2).mean().sqrt() + 1e-8)
    )


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_offsets_past_31_bits(mode):
    """v and o of 2^31 + elements; the last batch is what it is alone."""
    torch = pytest.importorskip("torch")
    batch, length, heads, size = 65600, 4, 64, 128
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    generator = torch.Generator("cuda").manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    q, k = (torch.randn(batch, length, 1, size, **make) for _ in range(2))
    v = torch.randn(batch, length, heads, size, **make)
    assert v.numel() > 2**31
    g = -torch.rand(batch, length, heads, device="cuda", generator=generator)
    beta = torch.rand(batch, length, heads, device="cuda", generator=generator)
    options = {"use_qk_l2norm_in_kernel": True, "mode": mode, "chunk_size": 16}
    o, _ = gated_delta_rule(q, k, v, g, beta, **options)
    alone, _ = gated_delta_rule(*(x[-3:].contiguous() for x in (q, k, v, g, beta)), **options)
    assert rms(o[-3:], alone) <= MOST_OUTPUT["bf16"]


def test_a_long_sequence_against_the_recurrence():
    torch = pytest.importorskip("torch")
    generator = torch.Generator("cuda").manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    q, k = (torch.randn(1, 4096, 4, 128, **make) for _ in range(2))
    v = torch.randn(1, 4096, 8, 128, **make)
    g = -torch.rand(1, 4096, 8, device="cuda", generator=generator) * 0.1
    beta = torch.rand(1, 4096, 8, device="cuda", generator=generator)
    common = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    exact, last = gated_delta_rule(q.float(), k.float(), v.float(), g, beta, mode="recurrent", **common)
    o, state = gated_delta_rule(q, k, v, g, beta, mode="chunk", **common)
    assert rms(o, exact) <= MOST_OUTPUT["bf16"] and rms(state, last) <= 0.008


def random_call(batch, length, heads, value_heads, decay=0.1, **options):
    """Arguments of a call in bf16 with K = V = 128 and an initial state."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator("cuda").manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    q, k = (torch.randn(batch, length, heads, 128, **make) for _ in range(2))
    v = torch.randn(batch, length, value_heads, 128, **make)
    g = -torch.rand(batch, length, value_heads, device="cuda", generator=generator) * decay
    beta = torch.rand(batch, length, value_heads, device="cuda", generator=generator)
    state = torch.randn(batch, value_heads, 128, 128, device="cuda", generator=generator)
    return {
        **{"q": q, "k": k, "v": v, "g": g, "beta": beta, "initial_state": state},
        **{"output_final_state": True, "use_qk_l2norm_in_kernel": True, **options},
    }


PREFILL = {
    "by shape": {},
    "columns shared by warps": {"chunk_size": 64, "block": 32, "warps": 4, "stages": 3},
    "rows of warps": {"chunk_size": 32, "block": 64, "warps": 4, "stages": 2},
    "warpgroup": {"chunk_size": 64, "block": 64, "warps": 4, "family": "wgmma", "stages": 2},
    "upright": {"chunk_size": 64, "block": 32, "warps": 4, "stages": 2, "upright": True},
    "upright, warpgroup": {"chunk_size": 64, "block": 32, "warps": 4, "stages": 2, "family": "wgmma", "upright": True},
    "two warpgroups": {"chunk_size": 64, "block": 128, "warps": 8, "family": "wgmma", "stages": 2},
}
REPEATED = [
    *(((1, 1000, 16, 32), options) for options in PREFILL.values()),
    ((8, 500, 16, 16), {}),
    *(((64, 1, 16, 32), {"state_v_first": v_first, **options})
      for v_first in (False, True) for options in ({}, {"block": 32, "warps": 1})),
]  # fmt: skip


def skip_without_wgmma(options):
    torch = pytest.importorskip("torch")
    if options.get("family") and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs wgmma")


@pytest.mark.parametrize(("sizes", "options"), REPEATED, ids=str)
def test_a_thousand_runs_have_the_same_bits(sizes, options):
    torch = pytest.importorskip("torch")
    skip_without_wgmma(options)
    given = random_call(*sizes, **options)
    first = gated_delta_rule(**given)
    assert all(x is not None and x.isfinite().all() for x in first)
    differ = torch.zeros((), dtype=torch.bool, device="cuda")
    for _ in range(999):
        for x, y in zip(gated_delta_rule(**given), first, strict=True):
            differ |= (x != y).any()
    assert not differ


@pytest.mark.parametrize("decay", [0.0, 0.1, 200.0, float("inf")])
@pytest.mark.parametrize("name", PREFILL)
def test_schedules_of_a_gpu_against_the_recurrence(name, decay):
    """Hard decay too: what is forgotten is zero, not NaN."""
    skip_without_wgmma(PREFILL[name])
    given = random_call(2, 333, 2, 4, **PREFILL[name])
    given["g"] = given["g"] * 0 - decay if decay == float("inf") else given["g"] / 0.1 * decay
    plain = {key: given[key] for key in ("g", "beta", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel")}
    exact, last = gated_delta_rule(*(given[x].float() for x in "qkv"), mode="recurrent", **plain)
    o, state = gated_delta_rule(**given)
    assert state is not None and o.isfinite().all() and state.isfinite().all()
    assert rms(o, exact) <= MOST_OUTPUT["bf16"] and rms(state, last) <= 0.008
