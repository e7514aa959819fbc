"""Kernels that should run at the speed of memory, as a share of what a copy reaches in the same process.

Usage: python bench/memory_bound.py [RESULT.json]

Inputs are 256 MB, fresh and random; every answer is checked against float64 torch; times are medians of CUDA events
with L2 cold.
"""

# ruff: noqa: F821  (the names of dims)

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tessera as ts  # noqa: E402
from bench.first_light import machine, median_us  # noqa: E402
from tessera import Tensor, tile  # noqa: E402
from tests.suite import load  # noqa: E402

BYTES = 256 << 20
BLOCK = 2048


@ts.kernel
def chain(x: Tensor["N", ts.bf16], y: Tensor["N", ts.bf16], output: Tensor["N", ts.bf16]):
    """silu(x) * y + x, one rounding at the end"""
    start = tile.program_id(0) * BLOCK
    a = tile.cast(x[start : start + BLOCK], ts.f32)
    tile.store(tile.silu(a) * y[start : start + BLOCK] + a, output[start : start + BLOCK])


def cases():
    """(title, run, wanted in float64, output, bytes moved)"""
    import torch

    def random(*shape):
        return torch.randn(*shape, device="cuda").bfloat16()

    count = BYTES // 2
    x, y, out = random(count), random(count), random(count).fill_(float("nan"))
    yield (
        "elementwise chain",
        lambda: chain(x, y, out),
        lambda: torch.nn.functional.silu(x.double()) * y.double() + x.double(),
        out,
        3 * BYTES,
    )
    for columns in (1024, 4096):
        rows = random(count // columns, columns)
        soft = torch.full_like(rows, float("nan"))
        softmax = load("softmax_bf16")
        yield (
            f"softmax, rows of {columns}",
            lambda rows=rows, soft=soft, softmax=softmax: softmax(rows, soft),
            lambda rows=rows: torch.softmax(rows.double(), -1),
            soft,
            2 * BYTES,
        )
        norm, weight, bias = load("layer_norm"), random(columns), random(columns)
        normed = torch.full_like(rows, float("nan"))
        yield (
            f"layer norm, rows of {columns}",
            lambda rows=rows, w=weight, b=bias, o=normed, norm=norm: norm(rows, w, b, o),
            lambda rows=rows, w=weight, b=bias: torch.nn.functional.layer_norm(
                rows.double(), rows.shape[-1:], w.double(), b.double(), 1e-5
            ),
            normed,
            2 * BYTES,
        )


def main():
    import torch

    source = torch.randn(BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * BYTES / median_us(lambda: target.copy_(source), 30)
    report = {"copy_bytes_per_us": copy, "rows": []}
    print(f"copy of 256 MB: {copy / 1e6:.2f} TB/s")
    for title, run, wanted, out, moved in cases():
        run()
        reference = wanted()
        error = float((out.double() - reference).norm() / reference.norm())
        del reference
        us = median_us(run, 30)
        row = {"case": title, "us": us, "share_of_copy": moved / us / copy, "norm_error": error}
        report["rows"].append(row)
        print(
            f"{title:28s} {us:7.1f} us  {row['share_of_copy'] * 100:5.1f} % of copy  norm error {error:.2e}", flush=True
        )
        assert error < 4e-3, "wrong answer"
    report["machine"] = machine()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
