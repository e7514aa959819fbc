"""Calls of the gated delta rule, and what they give: the recurrence in float64, one token after the other."""

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

NUMPY = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
# RMS of the deviation over that of the answer, of outputs and of final states (section 3 of the specification for 16
# bits; for f32 a few times what sums of that many terms are off by).
MOST_OUTPUT = {"bf16": 0.008, "f16": 0.002, "f32": 1e-5}
MOST_STATE = {"bf16": 0.008, "f16": 0.008, "f32": 1e-5}


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call; `decay` and `step` say how large g and beta are: a number for all tokens, or None
    for random ones. `packed`: the bounds of sequences.
    """

    B: int = 1
    T: int = 70
    H: int = 1
    HV: int = 2
    K: int = 128
    V: int = 128
    dtype: str = "bf16"
    gates: str = "f32"
    unit: bool = False
    gate: bool = False
    logits: bool = False
    doubled: bool = False
    value_first: bool = False
    packed: tuple[int, ...] = ()
    initial: bool = True
    final: bool = True
    in_place: bool = False
    decay: float | None = None
    step: float | None = None
    scale: float | None = None
    no_g: bool = False
    no_beta: bool = False
    equal_keys: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k != "options" and v != getattr(type(self), k)}
        return "-".join(f"{k}{v}" for k, v in {**shown, **self.options}.items()).replace(" ", "") or "plain"


def arguments(problem: Problem, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of `gated_delta_rule`."""
    p, rng = problem, np.random.default_rng(seed)
    dtype, gates = NUMPY[p.dtype], NUMPY[p.gates]
    q, k = (rng.standard_normal((p.B, p.T, p.H, p.K)) for _ in range(2))
    if p.equal_keys:
        k = np.broadcast_to(k[:, :1], k.shape)
    if not p.unit:
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    g = rng.standard_normal((p.B, p.T, p.HV)) if p.gate else -rng.exponential(0.1, (p.B, p.T, p.HV))
    beta = rng.standard_normal((p.B, p.T, p.HV)) if p.logits else rng.random((p.B, p.T, p.HV))
    if p.decay is not None:
        g = np.full_like(g, p.decay)
    if p.step is not None:
        beta = np.full_like(beta, p.step)
    state = (len(p.packed) - 1 if p.packed else p.B, p.HV, *((p.V, p.K) if p.value_first else (p.K, p.V)))
    return {
        "q": q.astype(dtype),
        "k": k.astype(dtype),
        "v": rng.standard_normal((p.B, p.T, p.HV, p.V)).astype(dtype),
        "g": None if p.no_g else g.astype(gates),
        "beta": None if p.no_beta else beta.astype(gates),
        "scale": p.scale,
        "initial_state": rng.standard_normal(state).astype(np.float32) * np.float32(0.3) if p.initial else None,
        "output_final_state": p.final,
        "cu_seqlens": np.array(p.packed, np.int64 if p.T % 2 else np.int32) if p.packed else None,
        "use_qk_l2norm_in_kernel": p.unit,
        "use_gate_in_kernel": p.gate,
        "A_log": rng.standard_normal(p.HV).astype(np.float32) if p.gate else None,
        "dt_bias": rng.standard_normal(p.HV).astype(np.float32) if p.gate else None,
        "use_beta_sigmoid_in_kernel": p.logits,
        "allow_neg_eigval": p.doubled,
        "state_v_first": p.value_first,
        "inplace_final_state": p.in_place,
        **p.options,
    }


def expected(problem: Problem, given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """o and the final state [N, HV, K, V] in float64, from the arguments as they were rounded."""
    p = problem
    q, k, v = (given[name].astype(np.float64) for name in ("q", "k", "v"))
    g = np.zeros(v.shape[:3]) if p.no_g else given["g"].astype(np.float64)
    beta = np.ones(v.shape[:3]) if p.no_beta else given["beta"].astype(np.float64)
    if p.unit:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    if p.gate:
        g = -np.exp(given["A_log"].astype(np.float64)) * np.logaddexp(0, g + given["dt_bias"])
    if p.logits:
        beta = (2 if p.doubled else 1) / (1 + np.exp(-beta))
    q, k = (np.repeat(x, p.HV // p.H, axis=2) for x in (q, k))
    scale = p.K**-0.5 if p.scale is None else p.scale
    bounds = [(0, a, b) for a, b in zip(p.packed, p.packed[1:], strict=False)] or [(b, 0, p.T) for b in range(p.B)]
    o, final = np.zeros(v.shape), np.zeros((len(bounds), p.HV, p.K, p.V))
    if p.initial:
        state = given["initial_state"].astype(np.float64)
        final[:] = state.swapaxes(2, 3) if p.value_first else state
    for n, (b, first, last) in enumerate(bounds):
        state = final[n]
        for t in range(first, last):
            state = state * np.exp(g[b, t])[:, None, None]
            update = beta[b, t][:, None] * (v[b, t] - np.einsum("hk,hkv->hv", k[b, t], state))
            state = state + np.einsum("hk,hv->hkv", k[b, t], update)
            o[b, t] = scale * np.einsum("hk,hkv->hv", q[b, t], state)
        final[n] = state
    return o, final


def deviation(x: Any, reference: np.ndarray) -> float:
    """RMS(x - reference) / (RMS(reference) + 1e-8); infinite where x is not finite."""
    wide = np.asarray(x).astype(np.float64)
    if not np.isfinite(wide).all():
        return np.inf
    if not wide.size:
        return 0.0
    return float(np.sqrt(np.mean((wide - reference) ** 2)) / (np.sqrt(np.mean(reference**2)) + 1e-8))


def check(problem: Problem, call: Any, seed: int = 0, array: Any = lambda x: x, host: Any = np.asarray) -> None:
    """Calls the rule with arrays that `array` makes and compares what comes back, which `host` reads."""
    given = arguments(problem, seed)
    o_expected, state_expected = expected(problem, given)
    passed = {name: array(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    o, state = call(**passed)
    assert deviation(host(o), o_expected) <= MOST_OUTPUT[problem.dtype], problem
    if problem.in_place:
        assert state is passed["initial_state"]
    if not problem.final and not problem.in_place:
        assert state is None
    else:
        found = np.asarray(host(state))
        found = found.swapaxes(2, 3) if problem.value_first else found
        assert deviation(found, state_expected) <= MOST_STATE[problem.dtype], problem
