"""The calls that every lane is tested with."""

from tests.gdn.problems import Problem
from tests.suite import pairs

# Every pair of features at K = V = 128: dtype, chunk, form of the inverse, state order, norms inside, gate inside,
# sequences.
FEATURES = [
    Problem(
        T=133,
        dtype=dtype,
        value_first=value_first,
        unit=unit,
        gate=gate,
        logits=gate,
        doubled=gate and unit,
        packed=(0, 60, 60, 61, 133) if packed else (),
        initial=not (packed and value_first),
        options={"mode": "chunk", "chunk_size": chunk, "form": "gate_free" if free else "gated"},
    )
    for dtype, chunk, free, value_first, unit, gate, packed in pairs(
        ("bf16", "f16", "f32"), (16, 32, 64), (0, 1), (False, True), (False, True), (False, True), (False, True)
    )
]
TOKENS = [
    Problem(
        T=9,
        dtype=dtype,
        value_first=value_first,
        unit=unit,
        gate=gate,
        logits=gate,
        packed=(0, 4, 4, 5, 9) if packed else (),
        in_place=in_place,
        options={"mode": "recurrent"},
    )
    for dtype, value_first, unit, gate, packed, in_place in pairs(
        ("bf16", "f16", "f32"), (False, True), (False, True), (False, True), (False, True), (False, True)
    )
]
CHUNKED = {"mode": "chunk"}
LENGTHS = [Problem(T=t, HV=1, K=64, V=64, options=CHUNKED) for t in (1, 15, 63, 65)]
DECAYS = [
    Problem(T=130, K=64, V=64, decay=decay, unit=unit, options=CHUNKED)
    for decay in (0.0, -100.0, -1e4, -float("inf"))
    for unit in (False, True)
]
STEPS = [
    Problem(T=130, K=64, V=64, step=step, dtype=dtype, unit=unit, options=CHUNKED)
    for step, dtype, unit in ((1e-4, "bf16", False), (1.0, "f16", True), (2.0, "bf16", True), (0.0, "f16", False))
]
SIZES = [
    Problem(T=70, K=60, V=100, options=CHUNKED),
    Problem(T=70, K=100, V=60, dtype="f16", value_first=True, options=CHUNKED),
    Problem(T=70, K=256, V=256, HV=1, options={"mode": "chunk", "chunk_size": 32}),
    Problem(T=40, K=256, V=256, HV=1, dtype="f32", options=CHUNKED),
    Problem(T=70, K=16, V=24, B=2, H=2, HV=6, options=CHUNKED),
    Problem(T=5, K=100, V=60, dtype="f32", options={"mode": "recurrent"}),
    Problem(T=5, K=256, V=40, value_first=True, options={"mode": "recurrent"}),
]
ARGUMENTS = [
    Problem(T=40, K=32, V=32, gates="bf16", options=CHUNKED),
    Problem(T=40, K=32, V=32, gates="bf16", gate=True, logits=True, options=CHUNKED),
    Problem(T=40, K=32, V=32, no_g=True, options=CHUNKED),
    Problem(T=40, K=32, V=32, no_beta=True, scale=0.5, options=CHUNKED),
    Problem(T=40, K=32, V=32, initial=False, final=False, options=CHUNKED),
    Problem(T=40, K=32, V=32, in_place=True, options=CHUNKED),
    Problem(T=40, K=32, V=32, in_place=True, value_first=True, packed=(0, 0, 40, 40), options=CHUNKED),
    Problem(T=4, K=32, V=32, no_g=True, no_beta=True, options={"mode": "recurrent"}),
    Problem(T=40, K=32, V=32, B=2),
    Problem(T=1, K=32, V=32, B=3),
    # Equal keys and a large step: the digits of powers of L cancel where the inverse is made of them.
    # With steps near 2 what is left is the rounding of the operands to bf16: 0.045 of the output at 1.9, f16 0.004.
    Problem(T=70, K=32, V=32, equal_keys=True, step=1.0, decay=0.0, unit=True, options=CHUNKED),
    Problem(T=70, K=32, V=32, equal_keys=True, step=1.5, decay=0.0, unit=True, dtype="f16", options=CHUNKED),
]
EDGES = [*LENGTHS, *DECAYS, *STEPS, *SIZES, *ARGUMENTS]
LONG = Problem(T=1000, HV=1, options=CHUNKED)
EVERYTHING = [*FEATURES, *TOKENS, *EDGES, LONG]
