"""Host time of a warm call of a function on a GPU: queued launch by launch, and replayed as a CUDA graph.

    python bench/function_overhead.py [report.json]

Functions of 1, 2, 4 and 8 launches of one block each, whose results are dropped, so that the allocator gives the same
address again and calls repeat. Every answer is checked first, on both ways. Best of 10 rounds of 500 calls, the rows
taking turns; the GPU is waited for after every round, and its queue never fills. The goals: 12 us for one launch and
6 us for each further one where launches are queued, 12 us in all where they are replayed.
"""
# ruff: noqa: F821  names of dims are strings in annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tessera as ts  # noqa: E402
from bench.overhead import best_of_each  # noqa: E402
from tessera import Tensor, tile  # noqa: E402
from tessera.runtime.bench_machine import facts  # noqa: E402

CALLS, ROUNDS = 500, 10
ROWS, COLUMNS = 16, 64
FIRST_US, FURTHER_US, REPLAY_US = 12.0, 6.0, 12.0
COUNTS = (1, 2, 4, 8)


@ts.kernel
def step(x: Tensor["M", "N", ts.f32], t: float, out: Tensor["M", "N", ts.f32]):
    row = tile.program_id(0) * 16
    tile.store(x[row : row + 16] * t, out[row : row + 16])


@ts.function
def launches_1(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
    return step(x, 2.0)


@ts.function
def launches_2(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
    return step(step(x, 2.0), 2.0)


@ts.function
def launches_4(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
    for _ in range(4):
        x = step(x, 2.0)
    return x


@ts.function
def launches_8(x: Tensor["M", "N", ts.f32]) -> Tensor["M", "N", ts.f32]:
    for _ in range(8):
        x = step(x, 2.0)
    return x


FUNCTIONS = {1: launches_1, 2: launches_2, 4: launches_4, 8: launches_8}


def main() -> int:
    import cupy

    synchronize = cupy.cuda.runtime.deviceSynchronize
    inputs: dict[str, Any] = {"cupy": cupy.ones((ROWS, COLUMNS), cupy.float32)}
    try:
        import torch
    except ImportError:
        print("torch is not installed: its rows are missing")
    else:
        inputs["torch"] = torch.ones(ROWS, COLUMNS, device="cuda")
    calls: dict[Any, Callable[[], object]] = {}
    for library, x in inputs.items():
        for count in COUNTS:
            for how in ("queued", "replayed"):
                compiled = ts.compile(FUNCTIONS[count], graphs=how == "replayed")
                for _ in range(6):
                    assert bool((compiled(x) == 2.0**count).all()), (library, count, how)
                run = compiled.last_run
                assert run is not None and run.lane == "cuda" and len(run.kernels) == count
                replayed = getattr(run, "replayed", False)
                assert replayed == (how == "replayed" and count > 1), (library, count, how, replayed)
                if replayed or how == "queued":
                    calls[library, count, how] = lambda compiled=compiled, x=x: compiled(x)
            plain = FUNCTIONS[count]
            plain(x)
            calls[library, count, "no options"] = lambda plain=plain, x=x: plain(x)
    rows = best_of_each(calls, synchronize, CALLS, ROUNDS)
    ok, table = True, []
    print(f"{'arrays':8}{'launches':>9}  {'how':12}{'us':>8}{'goal':>8}")
    for (library, count, how), microseconds in rows.items():
        graph = how != "queued" and count > 1
        goal = REPLAY_US if graph else FIRST_US + FURTHER_US * (count - 1)
        met = microseconds <= goal
        ok &= met
        table.append({"arrays": library, "launches": count, "how": how, "microseconds": microseconds, "goal": goal})
        print(f"{library:8}{count:9}  {how:12}{microseconds:8.2f}{goal:8.1f}  {'ok' if met else 'too slow'}")
    if len(sys.argv) > 1:
        body = {"ok": ok, "machine": facts(), "rows": table}
        Path(sys.argv[1]).write_text(json.dumps(body, indent=1) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
