"""The first call of a kernel in a new process with a CUDA context: with an empty disk cache, then with a warm one.

Usage: python bench/first_launch.py [RESULT.json]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, time
sys.path.insert(0, {root!r})
import cupy
x = cupy.zeros((2, 300, 128), "uint16"); w = cupy.zeros((128, 128), "uint16")
cupy.cuda.runtime.deviceSynchronize()
import ml_dtypes
x, w = x.view(ml_dtypes.bfloat16), w.view(ml_dtypes.bfloat16)
out = cupy.empty_like(x)
start = time.perf_counter()
import tessera
from tessera.frontend.document import load_document
kernel = load_document({root!r} + "/examples/gdn/gdn_part1.md")["gating_function_kernel"]
if {imported}:
    import tessera.runtime.api
imported = time.perf_counter()
kernel(x, w, 3, out)
cupy.cuda.runtime.deviceSynchronize()
done = time.perf_counter()
kernel(x, w, 3, out)
cupy.cuda.runtime.deviceSynchronize()
print(json.dumps(dict(import_ms=(imported - start) * 1e3, call_ms=(done - imported) * 1e3,
                      again_ms=(time.perf_counter() - done) * 1e3)))
"""


def child(folder, imported):
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=root, imported=imported)],
        env={**os.environ, "TESSERA_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = {"cold": child(folder, True)}
        report["warm"] = min((child(folder, True) for _ in range(5)), key=lambda r: r["call_ms"])
        report["warm_with_imports"] = min((child(folder, False) for _ in range(5)), key=lambda r: r["call_ms"])
    for name, row in report.items():
        times = f"import {row['import_ms']:.1f} ms, first call {row['call_ms']:.1f} ms, next {row['again_ms']:.2f} ms"
        print(f"{name:18s} {times}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
