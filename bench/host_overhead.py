"""Host time of a warm call on a GPU: what a kernel costs its caller before the GPU has done anything.

    python bench/host_overhead.py [report.json]

One kernel with three tensors and an int, outputs given, is called through Tessera with torch and with CuPy arrays,
beside a CuPy RawKernel with `np.uint64` pointers and torch's `add_`. Best of 10 rounds of 2,000 calls, the rows taking
turns. The goal: at most 1.5 times RawKernel.
"""
# ruff: noqa: F821  names of dims are strings in annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import tessera as ts  # noqa: E402
from bench.overhead import best_of_each  # noqa: E402
from tessera import Tensor, tile  # noqa: E402
from tessera.runtime.api import last_run  # noqa: E402

CALLS, ROUNDS, GOAL = 2000, 10, 1.5
ROWS, COLUMNS = 16, 64  # one block: the GPU keeps up, and the launch queue never fills

RAW = r"""
extern "C" __global__ void scale(const float* x, const float* y, float* out, long long n) {
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) out[i] = x[i] + y[i] * (float)n;
}
"""


@ts.kernel
def scale(x: Tensor["S", "D", ts.f32], y: Tensor["S", "D", ts.f32], out: Tensor["S", "D", ts.f32], n: int):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] + y[row : row + 16] * n, out[row : row + 16])


def main() -> int:
    import cupy

    synchronize = cupy.cuda.runtime.deviceSynchronize
    x, y = (cupy.asarray(np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), np.float32)) for seed in (0, 1))
    out = cupy.empty_like(x)
    raw = cupy.RawKernel(RAW, "scale")
    pointers = tuple(np.uint64(array.data.ptr) for array in (x, y, out))
    count = np.int64(3)
    view, wide = cupy.zeros((ROWS, 2 * COLUMNS), cupy.float32)[:, :COLUMNS], scale[1]
    calls: dict[str, Callable[[], object]] = {
        "cupy RawKernel, np.uint64 pointers": lambda: raw((1,), (128,), (*pointers, count)),
        "cupy RawKernel, arrays": lambda: raw((1,), (128,), (x, y, out, count)),
        "tessera, cupy arrays": lambda: scale(x, y, out, 3),
        "tessera, cupy arrays, kernel[1]": lambda: wide(x, y, out, 3),
        "tessera, cupy arrays, strided output": lambda: scale(x, y, view, 3),
        "tessera, cupy arrays, output left out": lambda: scale(x, y, 3),
    }
    scale(x, y, out, 3)
    run = last_run(scale)
    assert run is not None and run.lane == "cuda"
    assert cupy.allclose(out, x + y * 3, rtol=1e-6, atol=1e-6)  # ours is one fused multiply-add
    try:
        import torch
    except ImportError:
        print("torch is not installed: its rows are missing")
    else:
        a, b = (torch.randn(ROWS, COLUMNS, device="cuda") for _ in range(2))
        c = torch.empty_like(a)
        calls["tessera, torch tensors"] = lambda: scale(a, b, c, 3)
        calls["tessera, torch tensors, output left out"] = lambda: scale(a, b, 3)
        calls["torch add_"] = lambda: c.add_(a)
    for call in calls.values():
        call()
    rows = best_of_each(calls, synchronize, CALLS, ROUNDS)
    base = rows["cupy RawKernel, np.uint64 pointers"]
    for name, microseconds in rows.items():
        print(f"{name:42} {microseconds:6.2f} us  {microseconds / base:5.2f} x RawKernel")
    judged = rows.get("tessera, torch tensors", rows["tessera, cupy arrays"])
    ok = judged <= GOAL * base
    print(f"{'ok' if ok else 'too slow'}: {judged / base:.2f} x RawKernel, the goal is {GOAL}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"ok": ok, "goal": GOAL, "microseconds": rows}, indent=1))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
