"""The gated delta rule on a GPU: forward passes and decoding, for a list of schedules, beside FLA where that is there.

Usage: python bench/gated_delta_rule.py [RESULT.json] [--rows NAME,...] [--repeats N] [--no-check]

Processes that share the work make every call once, so that all is compiled when this one begins. Then every answer is
checked against a recurrence in float32, one token after the other in torch, and those who are right have a turn in
every round: L2 is cold, and medians of CUDA events count, as in `tessera bench`. The table comes last.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from tessera.errors import TesseraError  # noqa: E402
from tessera.gdn import delta_rule, gated_delta_rule  # noqa: E402
from tessera.runtime.bench_device import open_device  # noqa: E402

K = V = 128
MOST_PROCESSES = 16
MOST_DEVIATION = 0.008  # RMS of o - reference over that of the reference, bf16
# Chunk, columns of the state, warps, instructions, copies in flight; warps of the first kernel.
FORWARD = [
    dict(zip(("chunk_size", "block", "warps", "family", "stages", "prepare_warps"), schedule, strict=True))
    for schedule in (
        (64, 32, 4, "", 3, 2), (64, 32, 4, "", 2, 2), (64, 32, 4, "", 3, 4), (32, 32, 4, "", 3, 2),
        (32, 32, 2, "", 2, 2), (64, 64, 4, "", 2, 2), (64, 64, 8, "", 2, 2), (32, 64, 4, "", 2, 2),
        (32, 64, 4, "", 3, 2), (32, 64, 4, "", 2, 1), (32, 64, 8, "", 2, 2), (64, 128, 8, "", 2, 2),
        (32, 128, 8, "", 2, 2), (64, 32, 8, "", 3, 2), (64, 16, 4, "", 2, 2), (32, 32, 4, "", 3, 1),
        (64, 64, 4, "wgmma", 2, 2), (64, 64, 4, "wgmma", 3, 2), (32, 64, 4, "wgmma", 2, 2), (32, 64, 4, "wgmma", 3, 2),
        (64, 128, 8, "wgmma", 2, 2), (64, 128, 8, "wgmma", 3, 2), (32, 128, 8, "wgmma", 2, 2),
        (32, 128, 8, "wgmma", 2, 1),
    )
]  # fmt: skip
FORWARD += [FORWARD[0] | {"prepare_blocks": 6}]  # 168 registers a thread
FORWARD += [
    FORWARD[-1] | {"block": block, "family": family, "stages": stages, "upright": True}
    for block, family, stages in ((32, "wgmma", 2), (32, "wgmma", 3), (64, "wgmma", 2), (32, "", 2), (32, "", 3))
]
DECODE = [  # 32, 64 or 128 elements of the state a thread
    {"block": block, "warps": warps}
    for block, warps in ((16, 1), (16, 2), (32, 1), (32, 2), (32, 4), (64, 2), (64, 4), (64, 8), (128, 4), (128, 8))
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


def entrants(name):
    """(schedule, call) of everyone in a row, by name; rivals and the default have no schedule."""
    _, T, _, _, value_first, _, schedules = ROWS[name]
    found = {"default": ({}, ours(value_first, {}))}
    found |= {" ".join(f"{k}={v}" for k, v in s.items()): (s, ours(value_first, s)) for s in schedules}
    return found | {key: ({}, call) for key, call in rivals(value_first, T == 1).items()}


def attempt(call, given):
    """What a call gives, or why it gives nothing, as one line."""
    try:
        return call(given), None
    except (TesseraError, TypeError, RuntimeError) as error:
        return None, str(error).splitlines()[0]


def compile_all(names):
    """Has every call made once by processes that share them: what they compile, this one finds on disk."""
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    command = [sys.executable, __file__, "--rows", ",".join(names), "--share"]
    running = [subprocess.Popen([*command, f"{i}/{count}"], stdout=subprocess.DEVNULL) for i in range(count)]
    for process in running:
        process.wait()


def call_share(names, share):
    """Every `count`-th call of all rows, from the `first` on; `share` is "first/count"."""
    first, count = map(int, share.split("/"))
    calls = [(name, call) for name in names for _, call in entrants(name).values()]
    for name, call in calls[first::count]:
        attempt(call, problem(*ROWS[name][:5]))
    torch.cuda.synchronize()


def parts(call, given):
    """Milliseconds of the two kernels of a chunked call, the second one's from when the first one is done."""
    start, between, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    kept = delta_rule.chunk_kernel

    def chunk_kernel(*options):
        kernel = kept(*options)
        return lambda **given: between.record() or kernel(**given)

    delta_rule.chunk_kernel = chunk_kernel
    try:
        found = []
        for _ in range(5):
            torch.cuda._sleep(2_000_000)  # a millisecond, in which all is queued
            start.record()
            call(given)
            end.record()
            torch.cuda.synchronize()
            found.append((start.elapsed_time(between), between.elapsed_time(end)))
    finally:
        delta_rule.chunk_kernel = kept
    return [statistics.median(times) for times in zip(*found, strict=True)]


def measure(device, name, repeats, checks):
    B, T, H, HV, value_first, (must, goal), _ = ROWS[name]
    given = problem(B, T, H, HV, value_first)
    reference = recurrence(**given, value_first=value_first) if checks else None
    rows, calls = [], []
    for key, (schedule, call) in entrants(name).items():
        row = {"row": name, "who": key, "schedule": schedule, "must_ms": must, "goal_ms": goal, "ok": True}
        found, row["error"] = attempt(call, given)
        if found is None:
            row["ok"] = False
        elif reference is not None:
            row["deviation"] = [deviation(x, y) for x, y in zip(found, reference, strict=True)]
            row["ok"] = max(row["deviation"]) <= MOST_DEVIATION
        rows.append(row)
        calls.append(call)
    right = [(row, call) for row, call in zip(rows, calls, strict=True) if row["ok"]]
    times = device.timed([lambda call=call: call(given) for _, call in right], repeats)
    for (row, call), samples in zip(right, times, strict=True):
        row["ms"] = statistics.median(samples) / 1e3
        if T > 1 and row["who"] != "fla":
            row["parts_ms"] = parts(call, given)
        row["roofline"] = least_bytes(B, T, H, HV) / device_copy(device) * 1e3 / row["ms"]
    return rows


def device_copy(device, _known={}):  # noqa: B006
    if "rate" not in _known:
        _known["rate"] = device.peaks().copy
    return _known["rate"]


def show(rows):
    """The default, the rivals and ours, fastest first; whoever was wrong."""
    right = sorted((row for row in rows if row["ok"]), key=lambda row: row["ms"])
    for row in right:
        shares = " + ".join(f"{ms:.3f}" for ms in row.get("parts_ms", ()))
        print(f"{row['row']:24}{row['ms']:9.4f} ms {row['roofline']:6.1%} of a copy's rate {shares:14}"
              f" (must {row['must_ms']}, goal {row['goal_ms']})  {row['who']}", flush=True)  # fmt: skip
    for row in rows:
        if not row["ok"]:
            print(f"{row['row']:24}    WRONG  {row['who']}: {row['error'] or row['deviation']}", flush=True)


def option(name, default):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main():
    names = option("--rows", ",".join(ROWS)).split(",")
    if share := option("--share", ""):
        call_share(names, share)
        return 0
    start = time.perf_counter()
    compile_all(names)
    compiled = time.perf_counter() - start
    device = open_device()
    path = Path(next((a for a in sys.argv[1:] if a.endswith(".json")), Path(__file__).with_suffix(".json")))
    results = {}
    for name in names:
        results[name] = measure(device, name, int(option("--repeats", "30")), "--no-check" not in sys.argv)
        found = {"machine": device.facts, "copy": device_copy(device), "results": sum(results.values(), [])}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"compiled in {compiled:.0f} s, {time.perf_counter() - start:.0f} s in all; "
          f"a copy moves {device_copy(device) / 1e12:.2f} TB/s")  # fmt: skip
    for rows in results.values():
        show(rows)
    everyone = [row for rows in results.values() for row in rows]
    return 0 if all(row["ok"] or row["who"] == "fla" or row["error"] for row in everyone) else 1


if __name__ == "__main__":
    sys.exit(main())
