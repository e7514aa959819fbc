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
