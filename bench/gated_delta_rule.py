"""The gated delta rule on a GPU: forward passes and decoding, for a list of schedules, beside FLA where that is there.

Usage: python bench/gated_delta_rule.py [RESULT.json] [--rows NAME,...] [--repeats N] [--no-check]

Every answer is checked against a recurrence in float32, one token after the other in torch. L2 is cold, and medians of
CUDA events count, as in `tessera bench`.
"""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from tessera.errors import TesseraError  # noqa: E402
from tessera.gdn import gated_delta_rule  # noqa: E402
from tessera.runtime.bench_device import open_device  # noqa: E402

K = V = 128
MOST_DEVIATION = 0.008  # RMS of o - reference over that of the reference, bf16
SHAPES = [  # columns of the state, warps, instructions
    (128, 8, ""), (64, 8, ""), (64, 4, ""), (32, 8, ""), (32, 4, ""), (32, 2, ""), (64, 4, "wgmma"), (128, 8, "wgmma"),
]  # fmt: skip
# Every shape with chunks of 64 and two copies in flight, and a few with one thing changed.
FORWARD = [
    {"chunk_size": 64, "block": block, "warps": warps, "family": family, "stages": 2, "prepare_warps": 4}
    for block, warps, family in SHAPES
]
FORWARD += [FORWARD[3] | change for change in ({"chunk_size": 32}, {"stages": 3}, {"prepare_warps": 2})]
FORWARD += [FORWARD[6] | change for change in ({"chunk_size": 32}, {"stages": 3})]
DECODE = [
    {"block": block, "warps": warps} for block, warps in ((8, 2), (8, 4), (16, 2), (16, 4), (32, 4), (32, 8), (64, 8))
]
ROWS = {  # name: B, T, H, HV, state v-first, aims in ms, schedules beside the default one
    "forward-1x8192-16-32": (1, 8192, 16, 32, False, (0.40, 0.20), FORWARD),
    "forward-8x2048-16-16": (8, 2048, 16, 16, False, (0.29, 0.15), FORWARD),
    "decode-64-32-k-first": (64, 1, 16, 32, False, (0.100, 0.093), DECODE),
    "decode-64-32-v-first": (64, 1, 16, 32, True, (0.100, 0.093), DECODE),
}


def problem(B, T, H, HV, value_first):
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)

    state = (
        normal(B, HV, V, K, dtype=torch.float32) * 0.1
        if value_first
        else normal(B, HV, K, V, dtype=torch.float32) * 0.1
    )
    return {
        "q": normal(B, T, H, K),
        "k": normal(B, T, H, K),
        "v": normal(B, T, HV, V),
        "g": torch.nn.functional.logsigmoid(normal(B, T, HV, dtype=torch.float32)) / 16,
        "beta": torch.sigmoid(normal(B, T, HV, dtype=torch.float32)),
        "initial_state": state,
        "output_final_state": True,
    }


def recurrence(q, k, v, g, beta, initial_state, output_final_state, value_first):
    """o and the final state in float32, token by token."""
    q, k, v = q.float(), k.float(), v.float()
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    state = initial_state.transpose(2, 3).contiguous() if value_first else initial_state.clone()
    o = torch.empty_like(v)
    for t in range(v.shape[1]):
        state *= g[:, t].exp()[..., None, None]
        update = beta[:, t, :, None] * (v[:, t] - (k[:, t, :, None, :] @ state)[:, :, 0])
        state += k[:, t, :, :, None] * update[:, :, None, :]
        o[:, t] = K**-0.5 * (q[:, t, :, None, :] @ state)[:, :, 0]
    return o, state.transpose(2, 3) if value_first else state


def deviation(x, reference):
    if not torch.isfinite(x).all():
        return float("inf")
    return float((x.float() - reference).pow(2).mean().sqrt() / (reference.pow(2).mean().sqrt() + 1e-8))


def least_bytes(B, T, H, HV):
    """What must move: every tensor once, the state in and out."""
    return 2 * B * T * (2 * H * K + 2 * HV * V) + 8 * B * T * HV + 2 * 4 * B * HV * K * V


def rivals(value_first, decode):
    """Calls of FLA, by name, where it is installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    except ImportError:
        return {}
    function = fused_recurrent_gated_delta_rule if decode else chunk_gated_delta_rule
    extra = {"state_v_first": True} if value_first else {}
    return {"fla": lambda given: function(**given, use_qk_l2norm_in_kernel=True, **extra)}


def ours(value_first, schedule):
    return lambda given: gated_delta_rule(**given, use_qk_l2norm_in_kernel=True, state_v_first=value_first, **schedule)


def measure(device, name, repeats, checks):
    B, T, H, HV, value_first, (must, goal), schedules = ROWS[name]
    given = problem(B, T, H, HV, value_first)
    reference = recurrence(**given, value_first=value_first) if checks else None
    entrants = {"default": ({}, ours(value_first, {}))}
    entrants |= {" ".join(f"{k}={v}" for k, v in s.items()): (s, ours(value_first, s)) for s in schedules}
    entrants |= {key: ({}, call) for key, call in rivals(value_first, T == 1).items()}
    rows = []
    for key, (schedule, call) in entrants.items():
        row = {"row": name, "who": key, "schedule": schedule, "must_ms": must, "goal_ms": goal}
        try:
            found = call(given)
            if reference is not None:
                row["deviation"] = [deviation(x, y) for x, y in zip(found, reference, strict=True)]
                row["ok"] = max(row["deviation"]) <= MOST_DEVIATION
            else:
                row["ok"] = True
        except (TesseraError, TypeError, RuntimeError) as error:
            row.update(ok=False, error=str(error).splitlines()[0])
        if row["ok"]:
            row["ms"] = statistics.median(device.timed([lambda call=call: call(given)], repeats)[0]) / 1e3
            row["roofline"] = least_bytes(B, T, H, HV) / device_copy(device) * 1e3 / row["ms"]
        rows.append(row)
    return rows


def device_copy(device, _known={}):  # noqa: B006
    if "rate" not in _known:
        _known["rate"] = device.peaks().copy
    return _known["rate"]


def show(rows, count=6):
    """The fastest of ours, the default and the rivals; whoever was wrong."""
    right = sorted((row for row in rows if row["ok"]), key=lambda row: row["ms"])
    ranked = [row for row in right if row["schedule"]][:count]
    for row in [*(row for row in right if not row["schedule"]), *ranked]:
        print(f"{row['row']:24}{row['ms']:9.4f} ms {row['roofline']:6.1%} of a copy's rate"
              f"  (must {row['must_ms']}, goal {row['goal_ms']})  {row['who']}", flush=True)  # fmt: skip
    for row in rows:
        if not row["ok"]:
            print(f"{row['row']:24}    WRONG  {row['who']}: {row.get('error') or row['deviation']}", flush=True)


def option(name, default):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main():
    device = open_device()
    path = Path(next((a for a in sys.argv[1:] if a.endswith(".json")), Path(__file__).with_suffix(".json")))
    results = []
    for name in option("--rows", ",".join(ROWS)).split(","):
        rows = measure(device, name, int(option("--repeats", "30")), "--no-check" not in sys.argv)
        show(rows)
        results += rows
        path.write_text(json.dumps({"machine": device.facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["ok"] or row["who"] == "fla" or "error" in row for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
