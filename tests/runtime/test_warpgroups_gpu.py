"""Kernels of warpgroups on a GPU are right by the reference, on fresh inputs again and again.

What goes wrong in a ring, goes wrong now and then.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.command_line import strict_json
from tests.runtime.test_api import GPU
from tests.suite import DOCUMENT

LANE = {"family": "wgmma", "copies": "tma", "persistent": "true", "panels": "64"}
GATING = f"{DOCUMENT}::fused_delta_gating_kernel"
SEEDS = range(5)


def tiles(m: int, n: int, warps: int, stages: int) -> list[str]:
    return [f"BLOCK_M={m}", f"BLOCK_N={n}", f"num_warps={warps}", f"num_stages={stages}"]


def product(
    kind: str, dims: str, m: int = 128, n: int = 128, warps: int = 8, stages: int = 3
) -> tuple[str, str, list[str]]:
    return f"examples/gemm.py::gemm_{kind}", dims, ["BLOCK_K=64", *tiles(m, n, warps, stages)]


def attention(kind: str, dims: str, m: int, n: int, warps: int) -> tuple[str, str, list[str]]:
    return f"examples/attention.py::{kind}", dims, tiles(m, n, warps, 2)


CASES = [
    *(product(kind, "M=520,N=392,K=264") for kind in ("nn", "nt", "tn", "tt")),
    product("nn", "M=1000,N=1000,K=1000", n=256, stages=4),
    product("nn", "M=1,N=8,K=8", m=64, n=64, warps=4),
    product("nn", "M=130,N=72,K=100"),  # rows of 200 bytes: no tensor map describes them
    *(
        (GATING, f"B=2,S=300,D={depth},L={layers + 1}", [f"source_layers={layers}"])
        for depth in (64, 128, 256, 512)
        for layers in (1, 3)
    ),
    (GATING, "B=2,S=150,D=1024,L=2", ["source_layers=1"]),
    attention("causal_attention", "B=1,H=2,T=700,D=128", 128, 128, 8),
    attention("attention", "B=2,H=1,T=257,D=64", 64, 64, 4),
    *(product(kind, "M=520,N=392,K=264", 192, 128, 12) for kind in ("nn", "nt", "tn", "tt")),
    product("nn", "M=1000,N=1000,K=1000", 192, 256, 12),
    *((GATING, f"B=2,S=400,D={depth},L=4", ["source_layers=3", "BLOCK_S=192", "num_warps=12"]) for depth in (128, 256)),
    attention("causal_attention", "B=1,H=2,T=700,D=128", 192, 64, 12),
]
PINNED: list[tuple[tuple[str, str, list[str]], dict[str, str]]] = [
    *((product(kind, "M=520,N=392,K=264", 64, 128, 4), {"pingpong": "true"}) for kind in ("nn", "tt")),
    (product("nn", "M=2048,N=2048,K=512", 64, 256, 4), {"pingpong": "true"}),
    ((GATING, "B=16,S=600,D=128,L=2", ["source_layers=1"]), {"pingpong": "true", "warps": "4"}),
    *((product(kind, "M=520,N=392,K=264"), {"panels": columns}) for kind in ("nn", "tt") for columns in ("32", "16")),
    (product("nn", "M=256,N=256,K=4096"), {"split_k": "4"}),
    (product("nn", "M=1024,N=1024,K=512"), {"cluster": "2"}),
    (product("nn", "M=1152,N=1024,K=512", 192, 128, 12), {"cluster": "2"}),
    (product("tt", "M=3000,N=1000,K=264", 192, 64, 12, 2), {"pingpong": "true"}),
]


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize(("case", "pins"), [*((case, {}) for case in CASES), *PINNED])
def test_a_kernel_of_warpgroups(
    tessera: Callable[..., tuple[int, str, str]], case: tuple[str, str, list[str]], pins: dict[str, str]
) -> None:
    target, dims, constants = case
    arguments = [f"--arg={text}" for text in constants]
    lane = ",".join(f"{name}={value}" for name, value in {**LANE, **pins}.items())
    for seed in SEEDS:
        options = [f"--dims={dims}", *arguments, f"--pin={lane}", f"--seed={seed}"]
        found = strict_json(tessera("run", target, *options, "--backend=cuda", "--json")[1])
        assert found["ok"] and found["lane"] == "cuda", found
