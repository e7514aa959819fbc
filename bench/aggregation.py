"""The aggregation kernels F6 and F12 of the document on a GPU: right by the reference, and timed against their rivals.

Usage: python bench/aggregation.py [RESULT.json] [--rival gate_baselines.py] [--rows 128x1,256x4]

Correctness: the interpreter's reference bars at sampled shapes, outputs poisoned, lists of 0, 1, 3 and 8 tensors. Time:
32,768 rows (B = 16, S = 2048), medians of CUDA events with a cold L2 cache, in one process with eager torch and, where
its file is given, the best schedule of a hand-fused Triton kernel whose answer is right.
"""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.first_light import machine, to_device, to_host  # noqa: E402
from tessera.runtime.compare import check  # noqa: E402
from tessera.runtime.execute import reference_bars  # noqa: E402
from tests.suite import load  # noqa: E402
from tests.test_document_blocks import GATES, given_to, made_up, traced  # noqa: E402

ORDER = ("source_layers", "target_layer", "gates", "attention_weights", "output")
SHAPES = [  # (N, B, S, D)
    (0, 3, 127, 64), (1, 1, 1, 16), (3, 3, 129, 60), (3, 1, 150, 100), (8, 1, 127, 128),
    (1, 33, 150, 64), (3, 1, 129, 256), (1, 3, 20, 512), (3, 1, 20, 1024), (1, 1, 150, 1024), (8, 1, 129, 60),
    (1, 33, 1, 100),
]  # fmt: skip
REPEATS = 30


def on_device(name, arguments):
    """Arguments in the order of the signature, as torch tensors and lists of them."""
    given = given_to(name, arguments)
    keys = [GATES[name] if key == "gates" else key for key in ORDER]
    return [[to_device(v, "torch") for v in given[k]] if isinstance(given[k], list) else to_device(given[k], "torch")
            for k in keys]  # fmt: skip


def check_all(results):
    for name in GATES:
        for n, b, s, d in SHAPES:
            arguments, dims = made_up(n, b, s, d)
            bars = reference_bars(traced(name, n), given_to(name, arguments), dims)
            tensors = on_device(name, arguments)
            kernel, answers = load(name), []
            for _ in range(2):
                tensors[-1].fill_(float("nan"))
                kernel(*tensors)
                answers.append(to_host(tensors[-1], arguments["target_layer"].dtype))
            result = check(answers[0], bars["output"])
            same = answers[0].tobytes() == answers[1].tobytes()
            ok = bool(result.ok and same)
            row = {"kernel": name, "N": n, "B": b, "S": s, "D": d, "ok": ok, "max_error": result.max_error}
            results.append({**row, "bound": result.bound, "twice_the_same": same})
            print("ok  " if ok else "WRONG", name, f"N={n} B={b} S={s} D={d} error {result.max_error:.3g}", flush=True)


def time_us(run):
    import torch

    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def best_rival(path, d, n, x, reference):
    """Time and schedule of the fastest right schedule of the rival, and how many were wrong."""
    import torch

    spec = importlib.util.spec_from_file_location("rival", path)
    rival = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rival)
    best, wrong, tried = (float("inf"), None), 0, 0
    for config in rival.candidates():
        if d % config["BN"] or d % config["BK"]:
            continue
        out = torch.full_like(x[0], float("nan"))
        try:
            rival.launch(x, out, config)
            torch.cuda.synchronize()
        except Exception:  # a schedule that the machine cannot take
            continue
        tried += 1
        if not float((out.float() - reference).norm() / reference.norm()) < 1e-2:
            wrong += 1
            continue
        best = min(best, (time_us(lambda out=out, config=config: rival.launch(x, out, config)), str(config)))
    return {"us": best[0], "schedule": best[1], "wrong": wrong, "tried": tried}


RIVALS = {}  # by D and L: searched once for both kernels


def time_row(name, d, n, rival):
    import torch

    b, s = 16, 2048
    torch.manual_seed(d + n)
    t = torch.randn(b, s, d, device="cuda").bfloat16()
    sources = torch.randn(n, b, s, d, device="cuda").bfloat16()
    gates = (torch.randn(n, d, d, device="cuda") / d**0.5).bfloat16()
    weights = torch.rand(n + 1, n + 1, device="cuda").bfloat16()
    scales = torch.exp(-0.1 * torch.arange(n, 0, -1, device="cuda").float())
    out, kernel = torch.full_like(t, float("nan")), load(name)
    arguments = [list(sources), t, list(gates), weights, out]
    kernel(*arguments)
    reference = torch.zeros(t.shape, device="cuda")
    for i in range(n):
        delta = (t - sources[i]).float()
        reference += weights[i, -1].float() * delta * torch.sigmoid(scales[i] * (delta @ gates[i].float()))
    off = float((out.float() - reference).norm() / reference.norm())
    row = {"kernel": name, "D": d, "L": n, "relative_error": off, "us": time_us(lambda: kernel(*arguments))}

    def eager():
        total = torch.zeros_like(t)
        for i in range(n):
            delta = t - sources[i]
            total = total + weights[i, -1] * (delta * torch.sigmoid(scales[i] * (delta @ gates[i])))

    row["eager_us"] = time_us(eager)
    if rival:
        flat = [t.view(-1, d), sources.view(n, -1, d), gates, weights[:n, -1].float().contiguous(), scales]
        if (d, n) not in RIVALS:
            RIVALS[d, n] = best_rival(rival, d, n, flat, reference.view(-1, d))
        row["triton"] = RIVALS[d, n]
        row["ratio_to_triton"] = row["us"] / row["triton"]["us"]
    print(row, flush=True)
    return row


def main():
    value = {key: sys.argv[sys.argv.index(key) + 1] for key in ("--rival", "--rows") if key in sys.argv}
    path = next((a for a in sys.argv[1:2] if a.endswith(".json")), None)
    checks, times = [], []
    check_all(checks)
    for row in value.get("--rows", "128x1,128x4,256x1,256x4,512x1,512x4").split(","):
        d, n = map(int, row.split("x"))
        for name in GATES:
            times.append(time_row(name, d, n, value.get("--rival")))
    for row in times:
        print(
            f"{row['kernel']:36s} D={row['D']:5d} L={row['L']} {row['us']:9.1f} us, eager {row['eager_us']:9.1f}, "
            f"Triton x {row.get('ratio_to_triton', float('nan')):.2f}, error {row['relative_error']:.1e}"
        )
    wrong = [row for row in checks if not row["ok"]]
    print(f"{len(checks) - len(wrong)} right, {len(wrong)} wrong")
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), "checks": checks, "times": times}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
