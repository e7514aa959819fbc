"""The aggregation kernels F6 and F12 of the document on a GPU, at shapes of every kind. `tessera bench` times them.

Usage: python bench/aggregation.py [RESULT.json]

Right by the reference bars of the interpreter, outputs poisoned, lists of 0, 1, 3 and 8 tensors, twice the same bits.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.first_light import to_device, to_host  # noqa: E402
from tessera.runtime.bench_machine import facts  # noqa: E402
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


def main():
    path = next((a for a in sys.argv[1:] if a.endswith(".json")), None)
    checks = []
    check_all(checks)
    wrong = [row for row in checks if not row["ok"]]
    print(f"{len(checks) - len(wrong)} right, {len(wrong)} wrong")
    if path:
        Path(path).write_text(json.dumps({"machine": facts(), "checks": checks}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
