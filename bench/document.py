"""All thirteen functions and kernels of the document on a GPU: right by the reference, at shapes of every kind.

Usage: python bench/document.py [RESULT.json] [--few]

Each row is one `tessera run examples/gdn/gdn_part1.md --backend cuda --json`, whose time per function is that of its
launches alone, with a warm cache. `--few` takes the first shapes alone.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tessera import cli  # noqa: E402
from tessera.runtime.bench_machine import facts as machine  # noqa: E402

DOCUMENT = str(Path(__file__).parents[1] / "examples/gdn/gdn_part1.md")
LISTS = ("source_layers", "previous_layers", "layer_activations")
SHAPES = [  # dims, and the length of every list; F13 has no result for fewer than two layers
    ("B=2,S=150,D=64,G=16,L=16", 3),
    ("B=6,S=129,D=128,G=127,L=9", 3),
    ("B=34,S=20,D=60,G=60,L=4", 3),
    ("B=2,S=127,D=256,G=1,L=9", 8),
    ("B=2,S=1,D=16,G=15,L=9", 8),
    ("B=2,S=300,D=128,G=16,L=4", 2),
]


def rows(dims, length):
    out = io.StringIO()
    arguments = ["run", DOCUMENT, "--backend", "cuda", "--json", "--dims", dims]
    for name in LISTS:
        arguments += ["--arg", f"{name}={length}"]
    with contextlib.redirect_stdout(out):
        cli.main(arguments)
    found = json.loads(out.getvalue())
    if "functions" not in found:
        raise SystemExit(f"{dims}: {found['error']}")
    return found["functions"]


def main():
    path = next((a for a in sys.argv[1:] if a.endswith(".json")), None)
    results = []
    for dims, length in SHAPES[: 1 if "--few" in sys.argv else None]:
        for row in rows(dims, length):
            worst = max(row["outputs"], key=lambda o: o["max_error"] or 0, default={})
            kept = {key: row[key] for key in ("name", "ok", "lane", "seconds")}
            kept |= {"dims": dims, "length": length, "launches": len(row["kernels"])}
            kept |= {key: worst.get(key) for key in ("max_error", "bound", "rule", "rms_ratio")}
            kept |= {"error": row["error"]["message"]} if "error" in row else {}
            results.append(kept)
            if not row["ok"] or "--verbose" in sys.argv:
                print("ok   " if row["ok"] else "WRONG", kept, flush=True)
    right = sum(row["ok"] and row["lane"] == "cuda" for row in results)
    facts = machine()
    print(json.dumps(facts))
    print(f"{right} of {len(results)} right on the cuda lane")
    if path:
        Path(path).write_text(json.dumps({"machine": facts, "checks": results}, indent=1) + "\n")
    return 0 if right == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
