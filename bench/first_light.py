"""Checks and times the first four kernels on a GPU, in one process with their competitors.

Usage: python bench/first_light.py [RESULT.json] [--check-only]

Every answer is checked by the rule of docs/numerics.md against the reference mode of the interpreter, on fresh random
inputs and outputs poisoned with NaN; the competitor's answer is checked as well. Times are medians of CUDA events with
the L2 cache flushed. `--check-only` needs no torch: arguments are CuPy arrays (for compute-sanitizer, which torch slows
down).
"""

import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tessera.compiler import compile_kernel  # noqa: E402
from tessera.runtime.api import last_run  # noqa: E402
from tessera.runtime.bench_machine import facts  # noqa: E402
from tessera.runtime.compare import check  # noqa: E402
from tessera.runtime.reference import reference  # noqa: E402
from tests.passes.test_pipeline import arguments_of  # noqa: E402
from tests.suite import load  # noqa: E402

SHAPES = {
    "gating_function_kernel": [
        {"B": 3, "S": 150, "D": 100},
        {"B": 2, "S": 129, "D": 192},
        {"B": 16, "S": 2048, "D": 128},
    ],
    "vector_add": [{"N": 1000}, {"N": 4097}, {"N": 1 << 24}],
    "vector_add_bf16": [{"N": 1}, {"N": 3001}, {"N": 1 << 24}],
    "softmax": [{"M": 33, "N": 100}, {"M": 5, "N": 1000}, {"M": 8192, "N": 1024}],
    "softmax_bf16": [{"M": 17, "N": 25}, {"M": 3, "N": 2048}, {"M": 8192, "N": 1024}],
    **{
        f"matmul_{case}_{dtype}": [
            {"M": 64, "N": 64, "K": 64},
            {"M": 33, "N": 100, "K": 129},
            {"M": 512, "N": 384, "K": 256},
        ]
        for dtype in ("bf16", "f32")
        for case in ("nn", "nt", "tn", "tt")
    },
}
SMALL = 2_000_000  # elements of all arguments together that the sanitizer run takes


def reference_of(name, dims, arguments):
    kernel = compile_kernel(load(name), dims).stages[0].module.kernel()
    return kernel, reference(kernel, arguments, dims)


def scaled(arguments):
    """Matrices of products scaled by 1/sqrt(rows), as `tessera run` makes them."""
    for key in ("gate_params", "b"):
        if key in arguments:
            value = arguments[key]
            arguments[key] = (value.astype(np.float32) / math.sqrt(value.shape[0])).astype(value.dtype)
    return arguments


def to_device(value, library):
    if not isinstance(value, np.ndarray):
        return value
    if library == "cupy":
        import cupy

        return cupy.asarray(value.view(np.uint8) if "float8" in value.dtype.name else value)
    import torch

    if value.dtype.kind == "V":  # a type that NumPy itself does not have travels as the integers of its bits
        raw = torch.from_numpy(value.view(f"i{value.dtype.itemsize}")).cuda()
        return raw.view(getattr(torch, value.dtype.name))
    return torch.from_numpy(value).cuda()


def to_host(value, dtype):
    if type(value).__module__.startswith("cupy"):
        return value.get().view(dtype)
    import torch

    raw = value.cpu()
    return (
        raw.view(getattr(torch, f"int{8 * dtype.itemsize}")).numpy().view(dtype) if dtype.kind == "V" else raw.numpy()
    )


def check_case(name, dims, library, results):
    """Runs a kernel on the GPU, twice on poisoned outputs, and compares with the reference."""
    definition = load(name)
    kernel = compile_kernel(definition, dims).stages[0].module.kernel()
    arguments = scaled(arguments_of(kernel, dims, seed=len(results)))
    _, bars = reference_of(name, dims, arguments)
    outputs = [key for key, role in kernel.attributes["parameters"] if role != "in"]
    answers = []
    for _ in range(2):
        device = {key: to_device(value, library) for key, value in arguments.items()}
        definition(*device.values())
        run = last_run(definition)
        assert run is not None and run.lane == "cuda", run
        answers.append({key: to_host(device[key], arguments[key].dtype) for key in outputs})
    row = {"kernel": name, "dims": dims, "lane": "cuda", "library": library}
    for key in outputs:
        result = check(answers[0][key], bars[key])
        same = answers[0][key].tobytes() == answers[1][key].tobytes()
        if not row.get("ok", True):
            break  # the row shows the first output that is wrong
        row |= {"max_error": float(result.max_error), "bound": float(result.bound), "ok": bool(result.ok) and same}
    results.append(row)
    verdict = "ok  " if row["ok"] else "FAIL"
    print(
        f"{verdict} {name:24s} {str(dims):38s} error {row['max_error']:.3g} bound {row['bound']:.3g}",
        flush=True,
    )
    return definition, arguments


FLUSHES = 6  # writes of 256 MB before each timed call: they clear L2 and keep the GPU busy while the host catches up


def median_us(function, repeats=60):
    """Median GPU time of one call in us, L2 cold. The stream is full before the call, so host time does not show."""
    import torch

    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for index in range(repeats + 5):
        for _ in range(FLUSHES):
            flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        if index >= 5:
            times.append(start.elapsed_time(stop) * 1000)
    return statistics.median(times)


def time_others(results):
    import torch

    cases = []
    x, y = (torch.randn(1 << 24, device="cuda") for _ in range(2))
    out = torch.empty_like(x)
    cases.append(
        ("vector_add 2^24 f32", lambda: load_cached("vector_add")(x, y, out), lambda: torch.add(x, y, out=out))
    )
    rows = torch.randn(8192, 1024, device="cuda").bfloat16()
    soft = torch.empty_like(rows)
    cases.append(
        ("softmax_bf16 8192x1024", lambda: load_cached("softmax_bf16")(rows, soft), lambda: torch.softmax(rows, -1))
    )
    for dtype, size in ((torch.bfloat16, 2048), (torch.float32, 1024)):
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.float32).to(dtype) for _ in range(2))
        bias, c = torch.randn(size, device="cuda").to(dtype), torch.empty(size, size, device="cuda", dtype=dtype)
        name = "matmul_nn_bf16" if dtype == torch.bfloat16 else "matmul_nn_f32"
        cases.append(
            (
                f"{name} {size}^3",
                lambda name=name, a=a, b=b, bias=bias, c=c: load_cached(name)(a, b, bias, c),
                lambda a=a, b=b, bias=bias: torch.addmm(bias, a, b),
            )
        )
    for title, ours, theirs in cases:
        ours()
        row = {"case": title, "ours_us": median_us(ours), "torch_us": median_us(theirs)}
        row["ratio"] = row["torch_us"] / row["ours_us"]
        results.append(row)
        print(
            f"time {title}: ours {row['ours_us']:.1f} us, torch {row['torch_us']:.1f} us, "
            f"torch/ours {row['ratio']:.2f}",
            flush=True,
        )


CACHE = {}


def load_cached(name):
    if name not in CACHE:
        CACHE[name] = load(name)
    return CACHE[name]


def main():
    only_check = "--check-only" in sys.argv
    path = next((a for a in sys.argv[1:] if not a.startswith("--")), None)
    library = "cupy" if only_check else "torch"
    report = {"checks": [], "others": []}
    for name, shapes in SHAPES.items():
        for dims in shapes:
            kernel = compile_kernel(load(name), dims).stages[0].module.kernel()
            count = sum(v.size for v in arguments_of(kernel, dims).values() if isinstance(v, np.ndarray))
            if not only_check or count <= SMALL:
                check_case(name, dims, library, report["checks"])
    if not only_check:
        time_others(report["others"])
    report["machine"] = facts()
    failed = [row for row in report["checks"] if not row["ok"]]
    print(json.dumps(report["machine"]))
    print(f"{len(report['checks']) - len(failed)} right, {len(failed)} wrong")
    if path:
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
