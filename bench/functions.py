"""What `tessera bench --cases bench/functions.py` measures: functions of the document against torch.

    tessera bench functions --cases bench/functions.py --rows F=F5

Every row is one function at B = 16, S = 2048, D = 512 and N = 4 layers. Its rivals are the same formulas in eager torch
and under torch.compile (max-autotune-no-cudagraphs); the floor is a copy of as many bytes as go in and out. F7 and F8
hold a transformer layer, which is a row of its own to be taken off: its attention is torch's fused one in the rivals.
"""

# ruff: noqa: F821  names of dims are strings in annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_dtypes  # noqa: E402

import tessera as ts  # noqa: E402
from bench.cases import BF16, compiled, eager, floor, load, normal, square, start  # noqa: E402
from tessera import Tensor  # noqa: E402
from tessera.runtime.bench_case import OURS, Case, Entrant, Prepared, Problem  # noqa: E402

B, S, D, N, G, HEADS = 16, 2048, 512, 4, 128, 8
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


def transformed(x, packed):
    """The transformer layer of the language's `ts.ops.transformer_layer`, of one matrix [D, 12 D]."""
    import torch

    def rms(value):
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(value.dtype)

    q, k, v, out, first, second = packed.split([D] * 4 + [4 * D] * 2, dim=1)
    normed = rms(x)
    heads = [(normed @ w).view(B, S, HEADS, D // HEADS).transpose(1, 2) for w in (q, k, v)]
    attended = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape)
    middle = x + attended @ out
    return middle + torch.nn.functional.gelu(rms(middle) @ first, approximate="tanh") @ second.T


def f7(x, packed, weights, *tensors):
    layer = transformed(x, packed)
    return layer + f5(layer, weights, *tensors)


def f8(x, packed, *tensors):
    total = 0
    for i, (source, gate) in enumerate(zip(tensors[:N], tensors[N:], strict=True)):
        total = total + gated(x - source, gate, N - i)
    return transformed(x, packed) + total


@ts.function
def transformer(x: Tensor["B", "S", "D", ts.bf16], packed: Tensor["D", "W", ts.bf16]) -> Tensor["B", "S", "D", ts.bf16]:
    return ts.ops.transformer_layer(x, packed)


def stored(key, values):
    """Puts a tensor of torch where functions of the document look for their own parameter."""
    ts.parameters.default_store()[key] = values.float().cpu().numpy().astype(ml_dtypes.bfloat16)


def entrants(name, function, arguments, plain, tensors, moved):
    """`arguments` of ours; `tensors` of `plain`, which is torch."""
    import torch

    with torch.no_grad():
        made = load(DOCUMENT, function) if isinstance(function, str) else function
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
    elif name in ("layer", "F7", "F8"):
        x, *previous = activations(N + 1)
        packed = square(D, 12 * D) * math.sqrt(12)  # as `square` makes them from inputs of D
        products = 2 * size * 12 * D + 4 * B * S * S * D
        if name == "layer":
            given, plain, tensors, function, inputs, flops = (
                [x, packed],
                transformed,
                (x, packed),
                transformer,
                1,
                products,
            )
        elif name == "F7":
            even = torch.full((N + 1, N + 1), 1 / (N + 1), device="cuda").bfloat16()
            given, plain, tensors = [x, previous, packed, gates], f7, (x, packed, even, *previous, *gates)
            function, inputs, flops = "delta_layer_with_checkpointing", N + 1, products + N * flops
        else:
            first = [one[:2, :16] for one in (x, *previous)]
            load(DOCUMENT, "distributed_gdn_layer")(first[0], first[1:], gates)  # makes the parameter
            stored("distributed_gdn_layer/transformer_layer#0", packed)
            given, plain, tensors = [x, previous, gates], f8, (x, packed, *previous, *gates)
            function, inputs, flops = "distributed_gdn_layer", N + 1, products + N * flops
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
        tuple({"F": name} for name in ("F1", "F3", "F5", "F9", "F10", "F11", "F13", "layer", "F7", "F8")),
        functions,
        ("eager", "compile", "copy"),
    ),
]
