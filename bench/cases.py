"""What `tessera bench` measures: the kernels of the document and of the examples, and what one would use instead.

Every row names its rivals (eager torch, torch.compile, Triton by hand, cuBLAS, all checked) and its floors: the
products alone, and a torch operation that moves as many bytes. torch is imported when a row is prepared, Triton when a
rival is.
"""

# ruff: noqa: F821  (the names of dims)

import functools
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tessera as ts  # noqa: E402
from bench.rivals import schedules  # noqa: E402
from tessera import Tensor, tile  # noqa: E402
from tessera.frontend.document import load_document  # noqa: E402
from tessera.runtime.autotune_report import settings_text  # noqa: E402
from tessera.runtime.bench_case import (  # noqa: E402
    FLOOR,
    OURS,
    RIVAL,
    UNTUNED,
    Case,
    Entrant,
    Prepared,
    Problem,
    Searched,
)  # fmt: skip
from tessera.runtime.bench_kernels import choice_of, tuned, untuned  # noqa: E402
from tessera.runtime.bench_search import load_file  # noqa: E402

TRITON = ROOT / "bench" / "rivals" / "gated_delta.py"
BATCH = 16  # of the document's tensors; their rows M are BATCH x S
ROWS = 32768
WIDTHS = (128, 256, 512, 1024, 2048)
BF16 = 2  # bytes


@functools.cache
def load(file, name):
    """A kernel of the examples."""
    return load_document(ROOT / "examples" / file)[name]


def ours(name, kernel, arguments, out):
    """A kernel as tuning leaves it: with a tuning space it tunes itself in its first call."""

    def prepare():
        made, said = tuned(kernel, arguments)
        return Prepared(lambda: called(made, arguments, out), lambda: poison(out), lambda: said or choice_of(made))

    return Entrant(name, OURS, prepare, pinned=lambda pins: ours(*pinned(name, kernel, pins), arguments, out))


def pinned(name, kernel, pins):
    """A kernel with fields of its schedule fixed, and what it is called then."""
    return f"{name} {settings_text(pins)}", kernel.scheduled(pins)


def without_tuning(name, kernel, arguments, out):
    """The same kernel where nothing is measured."""
    return Entrant(f"{name} untuned", UNTUNED, lambda: as_it_is(kernel, arguments, out), of=name)


def as_it_is(kernel, arguments, out):
    made, said = untuned(kernel, arguments)
    return Prepared(lambda: called(made, arguments, out), lambda: poison(out), lambda: said)


def plain(name, kernel, arguments, out):
    """A kernel of ours that is not tuned at all."""
    return Entrant(
        name,
        OURS,
        lambda: as_it_is(kernel, arguments, out),
        pinned=lambda pins: plain(*pinned(name, kernel, pins), arguments, out),
    )


def called(kernel, arguments, out):
    kernel(*arguments)
    return out


def poison(out):
    out.fill_(float("nan"))


def eager(function):
    return Entrant("eager", RIVAL, lambda: Prepared(function))


def compiled(function, *arguments):
    """torch.compile of a function of tensors, tuned for these very shapes."""

    def prepare():
        import torch

        torch._dynamo.reset()  # after eight shapes of one function it would give up, without a word
        made = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)
        return Prepared(lambda: made(*arguments))

    return Entrant("compile", RIVAL, prepare)


def floor(name, function, scale=1.0):
    return Entrant(name, FLOOR, lambda: Prepared(function), scale)


def written_to(out, operation, *arguments):
    """A torch operation with out=, poisoned before it is checked."""
    return Prepared(lambda: operation(*arguments, out=out), lambda: poison(out))


def normal(*shape):
    import torch

    return torch.randn(*shape, device="cuda").bfloat16()


def square(*shape):
    """Weights: products with them are of the size of their other operand."""
    import torch

    return (torch.randn(*shape, device="cuda") / math.sqrt(shape[-1])).bfloat16()


def start(seed):
    """torch, with fresh but repeatable inputs."""
    import torch

    torch.manual_seed(seed)
    return torch


# ---- the sum over layers: F6 and F12 of the document ----------------------------------------------------------------


def aggregated(t, sources, gates, weights, scales):
    """The document's formula in torch, in the dtype of the inputs."""
    import torch

    total = torch.zeros_like(t)
    for i, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        delta = t - source
        total = total + weights[i, -1] * (delta * torch.sigmoid(scales[i] * (delta @ gate)))
    return total


def aggregated_in_f64(t, sources, gates, weights, scales):
    """The same with f64 for all but the differences, which the document rounds to bf16."""
    import torch

    total = torch.zeros(t.shape, device="cuda", dtype=torch.float64)
    for i, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        delta = (t - source).double()
        total += weights[i, -1].double() * delta * torch.sigmoid(scales[i] * (delta @ gate.double()))
    return total


def searched_aggregation(dims):
    d, layers = dims["D"], dims["L"]
    key = f"gated_delta aggregate M={dims['M']},D={d},L={layers}"
    found = schedules.schedules(d, operands=2)
    return [Searched("triton", key, TRITON, dims, found, schedules.refine, ("torch", "triton"))]


def aggregation(dims):
    m, d, layers = dims["M"], dims["D"], dims["L"]
    torch = start(d + layers)
    shape = (BATCH, m // BATCH, d)
    t, sources, gates = normal(*shape), normal(layers, *shape), square(layers, d, d)
    weights = torch.rand(layers, layers, device="cuda").bfloat16()
    scales = [math.exp(-0.1 * (layers - i)) for i in range(layers)]
    given = (t, list(sources), list(gates), weights, scales)
    out = torch.empty_like(t)
    arguments = [list(sources), t, list(gates), weights, out]
    fused, parallel = (
        load("gdn/gdn_part1.md", name) for name in ("fused_delta_gating_kernel", "parallel_delta_aggregation_kernel")
    )

    def triton():
        rival = load_file(TRITON)
        a, c = weights[:, -1].float().contiguous(), torch.tensor(scales, device="cuda")
        result = torch.empty_like(t)
        flat = (t.view(m, d), sources.view(layers, m, d), gates, a, c, result.view(m, d))
        return Prepared(lambda schedule: rival.run_aggregate(*flat, schedule).view(shape), lambda: poison(result))

    def stream():
        """As many bytes as the inputs and the output, moved by one torch operation."""
        result = torch.empty_like(t)
        if layers == 1:
            return Prepared(lambda: torch.sub(t, sources[0], out=result))
        return Prepared(lambda: torch.sum(sources, 0))

    entrants = (
        ours("F12", fused, arguments, out),
        without_tuning("F12", fused, arguments, out),
        ours("F6", parallel, arguments, out),
        without_tuning("F6", parallel, arguments, out),
        eager(lambda: aggregated(*given)),
        compiled(aggregated, *given),
        Entrant("triton", RIVAL, triton, searched=searched_aggregation(dims)[0]),
        floor("cublas", lambda: torch.matmul(t, gates[0]), layers),
        Entrant("stream", FLOOR, stream, 1.0 if layers == 1 else (layers + 2) / (layers + 1)),
    )
    moved = ((layers + 2) * m * d + layers * d * d) * BF16
    return Problem(entrants, lambda: aggregated_in_f64(*given), moved, 2 * layers * m * d * d)


# ---- one gate: F2 of the document -----------------------------------------------------------------------------------

DISTANCE = 3
DECAY = math.exp(-0.1 * DISTANCE)


def gated(delta, weights):
    import torch

    return delta * torch.sigmoid((delta @ weights) * DECAY)


def searched_gate(dims):
    key = f"gated_delta gate M={dims['M']},D={dims['D']}"
    found = schedules.schedules(dims["D"], operands=1)
    return [Searched("triton", key, TRITON, dims, found, schedules.refine, ("torch", "triton"))]


def gating(dims):
    m, d = dims["M"], dims["D"]
    torch = start(d)
    delta, weights = normal(BATCH, m // BATCH, d), square(d, d)
    out = torch.empty_like(delta)
    kernel, arguments = load("gdn/gdn_part1.md", "gating_function_kernel"), [delta, weights, DISTANCE, out]

    def triton():
        rival, result = load_file(TRITON), torch.empty_like(delta)
        flat = (delta.view(m, d), weights, DECAY, result.view(m, d))
        return Prepared(lambda schedule: rival.run_gate(*flat, schedule).view(delta.shape), lambda: poison(result))

    copied = torch.empty_like(delta)
    entrants = (
        ours("F2", kernel, arguments, out),
        without_tuning("F2", kernel, arguments, out),
        eager(lambda: gated(delta, weights)),
        compiled(gated, delta, weights),
        Entrant("triton", RIVAL, triton, searched=searched_gate(dims)[0]),
        floor("cublas", lambda: torch.matmul(delta, weights)),
        floor("stream", lambda: copied.copy_(delta)),
    )
    moved = (2 * m * d + d * d) * BF16
    return Problem(entrants, lambda: gated(delta.double(), weights.double()), moved, 2 * m * d * d)


# ---- the matrix product ---------------------------------------------------------------------------------------------


def gemm(dims):
    m, n, k, stored = dims["M"], dims["N"], dims["K"], dims["stored"]
    torch = start(m + n + k)
    a = normal(k, m) if stored[0] == "t" else normal(m, k)
    b = normal(n, k) if stored[1] == "t" else normal(k, n)
    left, right = a.T if stored[0] == "t" else a, b.T if stored[1] == "t" else b
    out, theirs = (torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    kernel = load("gemm.py", f"gemm_{stored}")
    entrants = (
        ours("gemm", kernel, [a, b, out], out),
        without_tuning("gemm", kernel, [a, b, out], out),
        Entrant("cublas", RIVAL, lambda: written_to(theirs, torch.matmul, left, right)),
    )
    moved = (m * k + k * n + m * n) * BF16
    return Problem(entrants, lambda: left.double() @ right.double(), moved, 2 * m * n * k)


FP8_RATE = 2  # of products of fp8, where there are instructions for them, by that of bf16


def gemm_fp8(dims):
    """`sums`: in f32 after every 128 of K, or in the matrix unit ("fast"). The rival is asked for the same."""
    m, n, k, fast = dims["M"], dims["N"], dims["K"], dims["sums"] == "fast"
    torch = start(m + n + k)
    a, b = (normal(rows, k).to(torch.float8_e4m3fn) for rows in (m, n))
    scales = 0.5, 0.25
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    kernel = load("gemm_fp8.py", "gemm_fp8_fast" if fast else "gemm_fp8")
    arguments = [a, b, *scales, out]

    def cublas():
        of_a, of_b = (torch.tensor(scale, device="cuda") for scale in scales)
        options = dict(scale_a=of_a, scale_b=of_b, out_dtype=torch.bfloat16, use_fast_accum=fast)
        return Prepared(lambda: torch._scaled_mm(a, b.T, **options))

    def reference():
        return a.double() @ b.double().T * math.prod(scales)

    entrants = (
        ours("gemm", kernel, arguments, out),
        without_tuning("gemm", kernel, arguments, out),
        Entrant("cublas", RIVAL, cublas),
    )
    return Problem(entrants, reference, m * k + k * n + m * n * BF16, 2 * m * n * k, FP8_RATE)


# ---- attention ------------------------------------------------------------------------------------------------------

TOKENS, MODEL = 16384, 2048  # B x T and H x D of every row


def attended(q, k, v, causal):
    """In the dtype of the inputs, head by head: the scores of all heads would not fit."""
    import torch

    out = torch.empty_like(q)
    for each in range(q.shape[0] * q.shape[1]):
        at = divmod(each, q.shape[1])
        scores = q[at] @ k[at].T / math.sqrt(q.shape[-1])
        if causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -math.inf)
        out[at] = torch.softmax(scores, -1) @ v[at]
    return out


def attention(dims):
    t, d, causal = dims["T"], dims["D"], dims["mask"] == "causal"
    torch = start(t + d)
    b, h = TOKENS // t, MODEL // d
    q, k, v = (normal(b, h, t, d) for _ in range(3))
    out, lse = torch.empty_like(q), torch.empty(b, h, t, device="cuda")
    kernel = load("attention.py", "causal_attention" if causal else "attention")
    arguments = [q, k, v, 1 / math.sqrt(d), out, lse]

    def by(backend):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen, function = getattr(SDPBackend, backend), torch.nn.functional.scaled_dot_product_attention

        def call():
            with sdpa_kernel(chosen):
                return function(q, k, v, is_causal=causal)

        return Prepared(call)

    entrants = (
        ours("attention", kernel, arguments, out),
        without_tuning("attention", kernel, arguments, out),
        Entrant("flash", RIVAL, lambda: by("FLASH_ATTENTION")),
        Entrant("cudnn", RIVAL, lambda: by("CUDNN_ATTENTION")),
    )
    moved = 4 * q.numel() * BF16 + 4 * lse.numel()
    flops = 4 * b * h * t * t * d // (2 if causal else 1)
    return Problem(entrants, lambda: attended(q.double(), k.double(), v.double(), causal), moved, flops)


# ---- kernels at the speed of memory ---------------------------------------------------------------------------------

COUNT = 1 << 27  # elements: 256 MB of bf16
BLOCK = 2048


@ts.kernel
def chain_kernel(x: Tensor["N", ts.bf16], y: Tensor["N", ts.bf16], output: Tensor["N", ts.bf16]):
    """silu(x) * y + x, rounded once"""
    start = tile.program_id(0) * BLOCK
    a = tile.cast(x[start : start + BLOCK], ts.f32)
    tile.store(tile.silu(a) * y[start : start + BLOCK] + a, output[start : start + BLOCK])


def chained(x, y):
    import torch

    return torch.nn.functional.silu(x) * y + x


def softmaxed(x):
    import torch

    return torch.softmax(x, -1)


def normed(x, weight, bias):
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def memory_problem(name, kernel, function, inputs, operations):
    """`inputs` as of the kernel and of torch alike, the first of the output's shape. `operations`: per element."""
    import torch

    out, copied = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    moved = sum(x.numel() for x in (*inputs, out)) * BF16
    entrants = (
        plain(name, kernel, [*inputs, out], out),
        eager(lambda: function(*inputs)),
        compiled(function, *inputs),
        floor("copy", lambda: copied.copy_(inputs[0]), moved / (2 * BF16 * out.numel())),
    )

    def reference():
        return function(*(x.double() for x in inputs))

    return Problem(entrants, reference, moved, operations * out.numel())


def chain(dims):
    start(1)
    return memory_problem("chain", chain_kernel, chained, [normal(dims["N"]) for _ in range(2)], 6)


def softmax(dims):
    start(2)
    return memory_problem("softmax", load("softmax.py", "softmax_bf16"), softmaxed, [normal(dims["M"], dims["N"])], 5)


def layer_norm(dims):
    start(3)
    inputs = [normal(dims["M"], dims["N"]), normal(dims["N"]), normal(dims["N"])]
    return memory_problem("layer norm", load("layer_norm.py", "layer_norm"), normed, inputs, 8)


def l2_normalised(x):
    import torch

    return torch.nn.functional.normalize(x, dim=-1)


def l2_normalise(dims):
    start(4)
    inputs = [normal(dims["M"], dims["N"])]
    return memory_problem("l2 normalise", load("l2_normalise.py", "l2_normalise"), l2_normalised, inputs, 3)


LINES = tuple({"M": COUNT // n, "N": n} for n in (1024, 4096))
ALTERNATIVES = ("eager", "compile")

CASES = [
    Case(
        "aggregation",
        "F12 and F6 of the document: gated deltas summed over L layers",
        tuple({"M": ROWS, "D": d, "L": layers} for layers in (1, 4, 8) for d in WIDTHS),
        aggregation,
        (*ALTERNATIVES, "triton", "cublas", "stream"),
        searched_aggregation,
    ),
    Case(
        "gating",
        "F2 of the document: one gated delta",
        tuple({"M": ROWS, "D": d} for d in WIDTHS),
        gating,
        (*ALTERNATIVES, "triton", "cublas", "stream"),
        searched_gate,
    ),
    Case(
        "gemm",
        "a matrix product in bf16, operands stored as they are (n) or transposed (t)",
        tuple({"M": n, "N": n, "K": n, "stored": s} for n in (4096, 8192) for s in ("nn", "nt", "tn", "tt")),
        gemm,
        ("cublas",),
    ),
    Case(
        "gemm_fp8",
        "a matrix product in fp8 (e4m3), sums in f32 or left in the matrix unit (fast)",
        tuple({"M": 8192, "N": 8192, "K": 8192, "sums": s} for s in ("f32", "fast")),
        gemm_fp8,
        ("cublas",),
    ),
    Case(
        "attention",
        f"attention of {TOKENS} tokens in sequences of T, heads of D, {MODEL} together",
        tuple(
            {"T": t, "D": d, "mask": m}
            for m in ("causal", "full")
            for d in (64, 128)
            for t in (1024, 4096, 8192, 16384)
        ),
        attention,
        ("flash", "cudnn"),
    ),
    Case("chain", "silu(x) * y + x of 256 MB", ({"N": COUNT},), chain, (*ALTERNATIVES, "copy")),
    Case("softmax", "softmax of rows, 256 MB", LINES, softmax, (*ALTERNATIVES, "copy")),
    Case("layer_norm", "layer norm of rows, 256 MB", LINES, layer_norm, (*ALTERNATIVES, "copy")),
    Case("l2_normalise", "rows divided by their lengths, 256 MB", LINES, l2_normalise, (*ALTERNATIVES, "copy")),
]
