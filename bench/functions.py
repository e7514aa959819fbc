"""What `tessera bench --cases bench/functions.py` measures: functions of the document against torch.

    tessera bench functions --cases bench/functions.py --rows F=F5

Every row is one function at B = 16, S = 2048, D = 512 and N = 4 layers. Its rivals are the same formulas in eager torch
and under torch.compile (max-autotune-no-cudagraphs); the floor is a copy of as many bytes as go in and out.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.cases import BF16, compiled, eager, floor, load, normal, square, start  # noqa: E402
from tessera.runtime.bench_case import OURS, Case, Entrant, Prepared, Problem  # noqa: E402

B, S, D, N, G = 16, 2048, 512, 4, 128
DISTANCE, SLICE, TEMPERATURE = 3, 128, 0.8
DOCUMENT = "gdn/gdn_part1.md"


def scale(distance):
    return math.exp(-0.1 * distance)


def gated(delta, gate, distance):
    import torch

    return delta * torch.sigmoid(scale(distance) * (delta @ gate))


def f1(source, target, gate):
    return gated(target - source, gate, DISTANCE)


def f3(delta, context, gate):
    import torch

    projection = context @ gate
    hidden = torch.nn.functional.silu(projection + delta.norm(dim=-1, keepdim=True))
    return delta * (torch.softmax(hidden @ gate.T / TEMPERATURE, -1) * scale(DISTANCE))


def f5(target, weights, *tensors):
    import torch

    sources, gates = tensors[:N], tensors[N:]
    total = torch.zeros_like(target)
    for i, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        total = total + gated(target - source, gate, N - i) * weights[i, -1]
    return total


def f9(source, target, learned):
    delta = target - source
    return delta / delta.norm(dim=-1, keepdim=True).clamp_min(1e-8) * learned


def f10(x):
    import torch

    return torch.softmax(x / TEMPERATURE, -1)


def f11(x, *tensors):
    """In the dtypes of the document: differences in bf16, products in f32, a rounding to fp8 for each layer."""
    import torch

    total = 0.0
    for previous, gate in zip(tensors[:N], tensors[N:], strict=True):
        delta = x.to(torch.bfloat16) - previous
        gates = torch.sigmoid(delta.float() @ gate.float())
        total = total + (delta.float() * gates).to(x.dtype).float()
    return (x.float() + total.to(x.dtype).float()).to(x.dtype)


def f13(*tensors):
    activations, gates = tensors[: N + 1], tensors[N + 1 :]
    parts = []
    for at in range(0, S, SLICE):
        part = [a[:, at : at + SLICE] for a in activations]
        parts.append(sum(gated(y - x, gate, 1) for x, y, gate in zip(part[:-1], part[1:], gates[1:], strict=True)))
    import torch

    return torch.cat(parts, 1)


def entrants(name, function, arguments, plain, tensors, moved):
    """`arguments` of ours; `tensors` of `plain`, which is torch."""
    import torch

    with torch.no_grad():
        made = load(DOCUMENT, function)
        copied = torch.empty(moved // (2 * BF16), device="cuda", dtype=torch.bfloat16)
        source = torch.randn_like(copied)
        return (
            Entrant(name, OURS, lambda: Prepared(lambda: made(*arguments))),
            eager(lambda: plain(*tensors)),
            compiled(plain, *tensors),
            floor("copy", lambda: copied.copy_(source)),
        )


def exact(plain, tensors):
    """The formula in f64 on the same rounded inputs."""
    return plain(*(x.double() for x in tensors))


def functions(dims):
    torch = start(7)
    name = dims["F"]

    def activations(count):
        return [normal(B, S, D) for _ in range(count)]

    gates = [square(D, D) for _ in range(N)]
    size, weights = B * S * D, torch.rand(N + 1, N + 1, device="cuda").bfloat16()
    flops = 2 * size * D
    if name == "F1":
        source, target = activations(2)
        given, plain, tensors = [source, target, gates[0], DISTANCE], f1, (source, target, gates[0])
        function, inputs, flops = "delta_connection", 2, flops
    elif name == "F3":
        delta, context = activations(2)
        gate = square(D, G)
        given, plain, tensors = [delta, context, gate, DISTANCE, TEMPERATURE], f3, (delta, context, gate)
        function, inputs, flops = "adaptive_gating_mechanism", 2, 4 * size * G
    elif name == "F5":
        target, *sources = activations(N + 1)
        given, plain, tensors = [sources, target, gates, weights], f5, (target, weights, *sources, *gates)
        function, inputs, flops = "multi_scale_delta_aggregation", N + 1, N * flops
    elif name == "F9":
        source, target = activations(2)
        learned = torch.ones((), device="cuda", dtype=torch.bfloat16)  # as the store of parameters has it at first
        given, plain, tensors = [source, target], f9, (source, target, learned)
        function, inputs, flops = "safe_delta_computation", 2, 4 * size
    elif name == "F10":
        (x,) = activations(1)
        given, plain, tensors = [x, TEMPERATURE], f10, (x,)
        function, inputs, flops = "stable_gating_computation", 1, 5 * size
    elif name == "F11":
        x, previous = normal(B, S, D).to(torch.float8_e4m3fn), activations(N)
        given, plain, tensors = [x, previous, gates], f11, (x, *previous, *gates)
        function, inputs, flops = "mixed_precision_gdn_layer", N + 1, N * flops
    else:
        layers, gates = activations(N + 1), [*gates, square(D, D)]  # the first one has no layer before it
        given, plain, tensors = [layers, gates], f13, (*layers, *gates)
        function, inputs, flops = "optimized_delta_memory_access", N + 1, N * flops
    moved = (inputs + 1) * size * BF16

    def reference():
        return exact(plain, tensors) if name != "F11" else plain(*tensors)

    return Problem(entrants(name, function, given, plain, tensors, moved), reference, moved, flops)


CASES = [
    Case(
        "functions",
        f"functions of the document at B={B}, S={S}, D={D}, N={N}",
        tuple({"F": name} for name in ("F1", "F3", "F5", "F9", "F10", "F11", "F13")),
        functions,
        ("eager", "compile", "copy"),
    ),
]
