"""The first call of a kernel in a new process with a CUDA context: with an empty disk cache, then with a warm one; and
that of an autotuned kernel, whose first process measures candidates and whose second one reads what won.

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
import ml_dtypes
bf16 = lambda *shape: cupy.zeros(shape, "uint16").view(ml_dtypes.bfloat16)
{arrays}
cupy.cuda.runtime.deviceSynchronize()
start = time.perf_counter()
import tessera
from tessera.frontend.document import load_document
kernel = load_document({root!r} + "/examples/gdn/gdn_part1.md")[{kernel!r}]
if {imported}:
    import tessera.runtime.api
imported = time.perf_counter()
kernel(*arguments)
cupy.cuda.runtime.deviceSynchronize()
done = time.perf_counter()
kernel(*arguments)
cupy.cuda.runtime.deviceSynchronize()
again = time.perf_counter()
print(json.dumps(dict(import_ms=(imported - start) * 1e3, call_ms=(done - imported) * 1e3,
                      again_ms=(again - done) * 1e3, searched="tessera.search" in sys.modules)))
"""
GATING = "gating_function_kernel", "arguments = bf16(2, 300, 128), bf16(128, 128), 3, bf16(2, 300, 128)"
TUNED = (
    "fused_delta_gating_kernel",
    """cupy.random.seed(0)
normal = lambda *shape: cupy.random.standard_normal(shape, "float32").astype(ml_dtypes.bfloat16)
arguments = ([normal(4, 512, 128) for _ in range(2)], normal(4, 512, 128), [normal(128, 128) for _ in range(2)],
             normal(3, 3), bf16(4, 512, 128))""",
)


def child(folder, imported, subject):
    root, (kernel, arrays) = str(Path(__file__).parents[1]), subject
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=root, imported=imported, kernel=kernel, arrays=arrays)],
        env={**os.environ, "TESSERA_CACHE_DIR": folder},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def warm(folder, imported, subject):
    return min((child(folder, imported, subject) for _ in range(5)), key=lambda row: row["call_ms"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = {"cold": child(folder, True, GATING)}
        report["warm"] = warm(folder, True, GATING)
        report["warm_with_imports"] = warm(folder, False, GATING)
        report["tuned_first"] = child(folder, True, TUNED)
        report["tuned_second"] = warm(folder, True, TUNED)
    for name, row in report.items():
        times = f"import {row['import_ms']:.1f} ms, first call {row['call_ms']:.1f} ms, next {row['again_ms']:.2f} ms"
        print(f"{name:18s} {times}{', searched' if row['searched'] else ''}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
