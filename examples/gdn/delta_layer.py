"""A layer that adds gated differences to earlier layers, in two tensor functions.

    python examples/gdn/delta_layer.py

runs it on NumPy arrays, on a CPU where there is no GPU, and compares it with plain NumPy in float64.
"""

import ml_dtypes
import numpy as np

import tessera as ts
from tessera import Tensor

HALF_ULP = 2.0**-8  # of a bf16, relative: what one rounding changes at most


@ts.function
def gated_delta(
    source: Tensor["B", "S", "D", ts.bf16],
    target: Tensor["B", "S", "D", ts.bf16],
    gate: Tensor["D", "D", ts.bf16],
    distance: int,
) -> Tensor["B", "S", "D", ts.bf16]:
    """How two layers differ, as far as a learned gate lets it through."""
    delta = target - source
    return delta * ts.ops.gating_function(delta, gate, distance)


@ts.function
def delta_layer(
    x: Tensor["B", "S", "D", ts.bf16],
    sources: list[Tensor["B", "S", "D", ts.bf16]],
    gates: list[Tensor["D", "D", ts.bf16]],
    weights: Tensor["L", ts.f32],
) -> Tensor["B", "S", "D", ts.bf16]:
    """`x` plus a weighted sum of gated differences to earlier layers, of which the last is the nearest."""
    total = ts.zeros(x.shape, ts.f32)
    for i, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        total = total + gated_delta(source, x, gate, len(sources) - i) * weights[i]
    return x + total


def expected(x, sources, gates, weights):
    """The same in float64, and how far from it the layer may be, element by element.

    A gated difference is rounded to bf16 at most three times: the difference, the gates and the result. The rounding
    of the difference also moves the logits of the gates, and a sigmoid is at most a quarter as steep. The sum over
    layers is in f32, whose roundings the last factor more than covers; the result is rounded once more.
    """
    total, error = x, 0.0
    for i, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        delta, scale = x - source, np.exp(-0.1 * (len(sources) - i))
        gated = delta / (1 + np.exp(-scale * (delta @ gate))) * weights[i]
        moved = scale * (abs(delta) @ abs(gate)) / 4
        total = total + gated
        error = error + HALF_ULP * (3 * abs(gated) + abs(delta * weights[i]) * moved)
    return total, (error + HALF_ULP * (abs(total) + error)) * 1.02


def main() -> None:
    batch, length, features, layers = 2, 150, 64, 3
    random = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return (random.standard_normal(shape) * scale).astype(ml_dtypes.bfloat16)

    x = normal(batch, length, features)
    sources = [normal(batch, length, features) for _ in range(layers)]
    gates = [normal(features, features, scale=features**-0.5) for _ in range(layers)]
    weights = np.array([0.25, 0.5, 1.0], np.float32)

    result = delta_layer(x, sources, gates, weights)

    wide = [np.float64(x), *([np.float64(array) for array in arrays] for arrays in (sources, gates)), weights]
    value, bound = expected(*wide)
    error = abs(np.float64(result) - value)
    print(f"x {x.dtype}{list(x.shape)}, {layers} sources, {layers} gates {gates[0].dtype}{list(gates[0].shape)}")
    print(f"result {result.dtype}{list(result.shape)}")
    print(f"largest error {error.max():.3g}, at most {(error / bound).max():.0%} of the bound of its element")
    assert (error <= bound).all()


if __name__ == "__main__":
    main()
