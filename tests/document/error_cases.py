"""Every wrong call that the meaning of the document names, as data: what to build, and what the message must say.

The message is without its place, and a word stands for itself only, not for a part of a longer number.

A case without `source` calls a function of the document; with `source` the function of that name in that text, which
is a block of the document's kind: it runs after `ts`, `tile`, `Tensor` and `dist` are there. Where a text is wrong by
itself the error may come before the call. Kernels are called without `output`, so it is allocated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any


@dataclass(frozen=True)
class T:
    """A tensor: its extents (numbers, or names of dims) and dtype."""

    shape: tuple[int | str, ...]
    dtype: str = "bf16"


@dataclass(frozen=True)
class SameAs:
    """The very array that another parameter was given."""

    parameter: str


@dataclass(frozen=True)
class ErrorCase:
    """`words` must all be in the message. Arguments are T, SameAs, lists of T, or Python numbers."""

    function: str
    title: str
    arguments: dict[str, Any]
    words: tuple[str, ...]
    ambient: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    block: int = 0  # 1-based: only this fenced block of the document is executed
    grid: tuple[int, ...] = ()  # f[grid](...) in place of f(...)
    training: bool = False

    @property
    def id(self) -> str:
        return f"{self.function}-{self.title}".replace(" ", "-")


X = T((2, 40, 16))
WIDE = T((2, 40, 24))
LONG = T((2, 41, 16))
F32 = T((2, 40, 16), "f32")
W = T((16, 16))
X8 = T((2, 40, 16), "fp8_e4m3")


def square(n: int, dtype: str = "bf16") -> T:
    return T((n, n), dtype)


def _changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    assert set(changes) <= {*base, "output"}
    return {**base, **changes}


F1 = {"x_source": X, "x_target": X, "gate_params": W, "layer_distance": 2}
F2 = {"delta": X, "gate_params": W, "layer_distance": 2}
F3 = {"delta": X, "context_vector": X, "gate_weights": T((16, 4)), "layer_distance": 2, "temperature": 1.0}
F5 = {"source_layers": [X, X], "target_layer": X, "gate_networks": [W, W], "attention_weights": square(3)}
F7 = {"x": X, "previous_layers": [X, X], "layer_params": T((16, 192)), "gate_params": [W, W]}
F8 = {"x": X, "previous_layers": [X, X], "gate_params": [W, W]}
F9 = {"x_source": X, "x_target": X, "epsilon": 1e-8}
F10 = {"gating_input": X, "temperature": 1.0, "gating_dropout": 0.1}
F11 = {"x": X8, "previous_layers": [X, X], "gate_params": [W, W]}
F12 = {"source_layers": [X, X], "target_layer": X, "gate_params": [W, W], "attention_weights": square(3)}
F13 = {"layer_activations": [X, X, X], "gate_parameters": [W, W, W]}

LENGTHS = [
    ErrorCase(function, "list lengths", _changed(base, **{second: [W]}), (first, second, str(number), "1"))
    for function, base, first, second, number in (
        ("multi_scale_delta_aggregation", F5, "source_layers", "gate_networks", 2),
        ("parallel_delta_aggregation_kernel", F5, "source_layers", "gate_networks", 2),
        ("delta_layer_with_checkpointing", F7, "previous_layers", "gate_params", 2),
        ("distributed_gdn_layer", F8, "previous_layers", "gate_params", 2),
        ("mixed_precision_gdn_layer", F11, "previous_layers", "gate_params", 2),
        ("fused_delta_gating_kernel", F12, "source_layers", "gate_params", 2),
        ("optimized_delta_memory_access", F13, "layer_activations", "gate_parameters", 3),
    )
]

EMPTY = [
    ErrorCase(
        "distributed_gdn_layer",
        "no previous layers",
        _changed(F8, previous_layers=[], gate_params=[]),
        ("previous_layers is empty",),
    ),
    ErrorCase(
        "mixed_precision_gdn_layer",
        "no previous layers",
        _changed(F11, previous_layers=[], gate_params=[]),
        ("previous_layers", "empty"),
    ),
    ErrorCase(
        "optimized_delta_memory_access",
        "no layers",
        {"layer_activations": [], "gate_parameters": []},
        ("layer_activations", "empty"),
    ),
    ErrorCase(
        "optimized_delta_memory_access",
        "one layer",
        {"layer_activations": [X], "gate_parameters": [W]},
        ("concatenate", "empty"),
    ),
]

VALUES = [
    ErrorCase("adaptive_gating_mechanism", "temperature 0", _changed(F3, temperature=0.0), ("temperature", "0")),
    ErrorCase("stable_gating_computation", "temperature 0", _changed(F10, temperature=0.0), ("temperature", "0")),
    *(
        ErrorCase(
            "stable_gating_computation",
            f"dropout of {p}",
            _changed(F10, gating_dropout=p),
            ("dropout", str(p), "[0, 1)"),
            training=True,
        )
        for p in (1.0, -0.1, 1.5)
    ),
    ErrorCase(
        "multi_scale_delta_aggregation",
        "more sources than rows",
        _changed(F5, source_layers=[X] * 3, gate_networks=[W] * 3, attention_weights=square(2)),
        ("'attention_weights' has 2 rows", "'source_layers' has 3 tensors"),
    ),
    ErrorCase(
        "distributed_gdn_layer",
        "dp does not divide B",
        {"x": T((3, 8, 16)), "previous_layers": [T((3, 8, 16))], "gate_params": [W]},
        ("B", "3", "dp", "2"),
    ),
    ErrorCase(
        "delta_layer_with_checkpointing",
        "packing",
        _changed(F7, layer_params=T((16, 160))),
        ("Wq", "Wo", "W1", "W2", "12", "160"),
    ),
    ErrorCase(
        "delta_layer_with_checkpointing",
        "packing for another D",
        _changed(F7, layer_params=T((24, 288))),
        ("Wq", "W1", "16", "24"),
    ),
    ErrorCase(
        "gating_function_kernel",
        "too few programs",
        _changed(F2, delta=T((2, 300, 16))),
        ("never written", "output"),
        grid=(2, 3),
    ),
    ErrorCase(
        "gating_function_kernel",
        "output is the input",
        _changed(F2, delta=T((2, 300, 16)), output=SameAs("delta")),
        ("output", "delta"),
    ),
    ErrorCase(
        "multi_scale_delta_aggregation",
        "its callee is in another block",
        F5,
        ("delta_connection", "block 1"),
        block=3,
    ),
]


def _dims(function: str, base: dict[str, Any], title: str, words: tuple[str, ...], **changes: Any) -> ErrorCase:
    return ErrorCase(function, title, _changed(base, **changes), words)


SHAPES = [
    _dims("delta_connection", F1, "S", ("x_source", "x_target", "S", "40", "41"), x_target=LONG),
    _dims("delta_connection", F1, "D", ("x_source", "x_target", "D", "16", "24"), x_target=WIDE),
    _dims("delta_connection", F1, "gates of another D", ("gate_params", "D", "16", "24"), gate_params=square(24)),
    _dims("delta_connection", F1, "gates not square", ("gate_params", "D", "16", "24"), gate_params=T((16, 24))),
    _dims("delta_connection", F1, "rank", ("x_source", "2", "3"), x_source=T((8, 16))),
    _dims("delta_connection", F1, "dtype", ("x_source", "bf16", "f32"), x_source=F32),
    _dims("delta_connection", F1, "dtype of the gates", ("gate_params", "bf16", "f32"), gate_params=square(16, "f32")),
    _dims("gating_function_kernel", F2, "D", ("delta", "gate_params", "D", "16", "24"), delta=WIDE),
    _dims("gating_function_kernel", F2, "rank", ("delta", "2", "3"), delta=T((8, 16))),
    _dims("gating_function_kernel", F2, "dtype", ("delta", "bf16", "f32"), delta=F32),
    _dims("gating_function_kernel", F2, "S of output", ("output", "delta", "S", "40", "41"), output=LONG),
    _dims("adaptive_gating_mechanism", F3, "D of G", ("gate_weights", "D", "16", "24"), gate_weights=T((24, 4))),
    _dims("adaptive_gating_mechanism", F3, "rank of G", ("gate_weights", "2", "1"), gate_weights=T((16,))),
    _dims("adaptive_gating_mechanism", F3, "S", ("delta", "context_vector", "S", "40", "41"), context_vector=LONG),
    _dims("adaptive_gating_mechanism", F3, "dtype", ("context_vector", "bf16", "f32"), context_vector=F32),
    _dims("multi_scale_delta_aggregation", F5, "a source's D", ("source_layers", "16", "24"), source_layers=[X, WIDE]),
    _dims("multi_scale_delta_aggregation", F5, "a source's dtype", ("source_layers[1]", "f32"), source_layers=[X, F32]),
    _dims("multi_scale_delta_aggregation", F5, "gates", ("gate_networks", "24"), gate_networks=[W, square(24)]),
    _dims(
        "multi_scale_delta_aggregation",
        F5,
        "L is not one number",
        ("attention_weights", "L", "3", "4"),
        attention_weights=T((3, 4)),
    ),
    _dims("parallel_delta_aggregation_kernel", F5, "a source's S", ("source_layers", "41"), source_layers=[X, LONG]),
    _dims("parallel_delta_aggregation_kernel", F5, "all sources' D", ("24", "16"), source_layers=[WIDE, WIDE]),
    _dims(
        "parallel_delta_aggregation_kernel",
        F5,
        "gates not square",
        ("gate_networks", "16", "24"),
        gate_networks=[T((16, 24)), T((16, 24))],
    ),
    _dims(
        "parallel_delta_aggregation_kernel",
        F5,
        "dtype of the gates",
        ("gate_net", "bf16", "f32"),
        gate_networks=[square(16, "f32")] * 2,
    ),
    _dims(
        "parallel_delta_aggregation_kernel",
        F5,
        "L is not one number",
        ("attention_weights", "L", "3", "4"),
        attention_weights=T((3, 4)),
    ),
    _dims("delta_layer_with_checkpointing", F7, "a layer's S", ("previous_layers", "41"), previous_layers=[X, LONG]),
    _dims("delta_layer_with_checkpointing", F7, "gates", ("gate_params", "24"), gate_params=[W, square(24)]),
    _dims("delta_layer_with_checkpointing", F7, "rank", ("x", "2", "3"), x=T((8, 16))),
    _dims("distributed_gdn_layer", F8, "a layer's S", ("previous_layers", "41"), previous_layers=[X, LONG]),
    _dims("distributed_gdn_layer", F8, "gates", ("gate_params", "24"), gate_params=[W, square(24)]),
    _dims("distributed_gdn_layer", F8, "dtype", ("x", "bf16", "f32"), x=F32),
    _dims("safe_delta_computation", F9, "D", ("x_source", "x_target", "D", "16", "24"), x_target=WIDE),
    _dims("safe_delta_computation", F9, "dtype", ("x_target", "bf16", "f32"), x_target=F32),
    _dims("stable_gating_computation", F10, "rank", ("gating_input", "2", "3"), gating_input=T((8, 16))),
    _dims("stable_gating_computation", F10, "dtype", ("gating_input", "bf16", "f32"), gating_input=F32),
    _dims("mixed_precision_gdn_layer", F11, "dtype", ("x", "fp8_e4m3", "bf16"), x=X),
    _dims("mixed_precision_gdn_layer", F11, "a layer's S", ("previous_layers", "41"), previous_layers=[X, LONG]),
    _dims("mixed_precision_gdn_layer", F11, "gates", ("gate_params", "24"), gate_params=[W, square(24)]),
    _dims("fused_delta_gating_kernel", F12, "a source's S", ("source_layers", "41"), source_layers=[X, LONG]),
    _dims("fused_delta_gating_kernel", F12, "gates", ("gate_params", "24"), gate_params=[square(24), square(24)]),
    _dims("fused_delta_gating_kernel", F12, "rank", ("target_layer", "2", "3"), target_layer=T((8, 16))),
    _dims(
        "optimized_delta_memory_access",
        F13,
        "S of a layer",
        ("layer_activations[2]", "40", "41"),
        layer_activations=[X, X, LONG],
    ),
    _dims("optimized_delta_memory_access", F13, "gates", ("gate_parameters", "24"), gate_parameters=[W, W, square(24)]),
    _dims("optimized_delta_memory_access", F13, "dtype", ("layer_activations", "f32"), layer_activations=[F32] * 3),
]


def _text(title: str, text: str, words: tuple[str, ...], **arguments: Any) -> ErrorCase:
    return ErrorCase("f", title, arguments, words, source=dedent(text).strip("\n") + "\n")


def _function(title: str, body: str, words: tuple[str, ...]) -> ErrorCase:
    """A function of x and y [B, S, D] that returns what the last line of `body` says."""
    head = '@ts.function\ndef f(x: Tensor["B", "S", "D", ts.bf16], y: Tensor["B", "S", "D", ts.bf16]):\n    '
    return _text(title, head + body.replace("\n", "\n    "), words, x=X, y=X)


def _distributed(title: str, body: str, words: tuple[str, ...], axes: str = '"dp", "mp"', shape: str = "2, 4") -> Any:
    text = (
        f'mesh = dist.mesh(devices=[f"cuda:{{i}}" for i in range({shape.replace(",", " *")})], '
        f"axes=({axes}), shape=({shape}))\n\n"
        '@ts.distribute(mesh=mesh)\ndef f(x: Tensor["B", "S", "D", ts.bf16]) -> Tensor["B", "S", "D", ts.bf16]:\n    '
    )
    return _text(title, text + body.replace("\n", "\n    "), words, x=X)


def _mesh(title: str, arguments: str, words: tuple[str, ...]) -> ErrorCase:
    return _text(title, f"f = dist.mesh({arguments})", words)


OPS = [
    _function("precision of subtract", 'return ts.subtract(x, y, precision="hihg")', ("precision", "hihg", "high")),
    _function("precision of add", 'return ts.add(x, y, precision="mixed")', ("precision", "mixed", "high")),
    _function("dropout", "return ts.ops.dropout(x, p=1.0, seed=0)", ("dropout", "1.0", "[0, 1)")),
    _function("axis of sum is a name", 'return ts.sum(x, axis="mp")', ("axis", "mp")),
    _function("axis of stack is a name", 'return ts.stack([x, y], axis="mp")', ("axis", "mp")),
    _function("stack of nothing", "return ts.stack([])", ("stack", "empty")),
    _function("sum of nothing", "return ts.sum([], axis=0)", ("sum", "empty")),
    _function("concatenate of nothing", "return ts.concatenate([], axis=1)", ("concatenate", "empty")),
    _function(
        "device of prefetch",
        'ts.memory.prefetch(x, device="tpu", overlap="compute")\nreturn ts.add(x, y)',
        ("device", "tpu", "gpu", "cpu"),
    ),
    _function(
        "overlap of prefetch",
        'ts.memory.prefetch(x, device="gpu", overlap="copy")\nreturn ts.add(x, y)',
        ("overlap", "copy", "compute", "none"),
    ),
    _text(
        "neither rule of mlp_gating",
        """
        @ts.function
        def f(x: Tensor["B", "S", "K", ts.bf16], w: Tensor["D", "G", ts.bf16]):
            return ts.ops.mlp_gating(x, w)
        """,
        ("mlp_gating", "7", "16", "4"),
        x=T((2, 8, 7)),
        w=T((16, 4)),
    ),
]

MESHES = [
    _distributed("unknown axis of shard", 'return dist.shard(x, axis=0, mesh_axis="tp")', ("axis", "tp", "dp", "mp")),
    _distributed("unknown axis of all_gather", 'return dist.all_gather(x, axis="tp")', ("axis", "tp", "dp", "mp")),
    _distributed("unknown axis of size", 'return ts.multiply(x, mesh.size("tp"))', ("tp", "dp", "mp")),
    _distributed("axis of all_gather is a number", "return dist.all_gather(x, axis=0)", ("all_gather", "axis", "0")),
    _distributed("axis of shard is a name", 'return dist.shard(x, axis="dp", mesh_axis="dp")', ("shard", "axis", "dp")),
    _distributed(
        "assignment without an axis",
        "with dist.device_assignment(1):\n    y = ts.add(x, x)\nreturn y",
        ("device_assignment", "axes", "rows", "columns"),
        axes='"rows", "columns"',
        shape="2, 2",
    ),
    _distributed(
        "assignment outside the mesh",
        'x = dist.shard(x, axis=0, mesh_axis="dp")\nwith dist.device_assignment(7):\n    y = ts.add(x, x)\nreturn y',
        ("device_assignment", "7"),
    ),
    _mesh("shape", 'devices=["cuda:0", "cuda:1"], axes=("dp", "mp"), shape=(2, 4)', ("2", "8", "devices")),
    _mesh("number of axes", 'devices=["cuda:0", "cuda:1"], axes=("dp", "mp"), shape=(2,)', ("axes", "shape")),
    _mesh("an axis twice", 'devices=["cuda:0", "cuda:1"], axes=("dp", "dp"), shape=(2, 1)', ("axes", "dp")),
    _mesh("a device twice", 'devices=["cuda:0", "cuda:0"], axes=("dp",), shape=(2,)', ("cuda:0",)),
]


def _kernel(title: str, body: str, words: tuple[str, ...], decorator: str = "@ts.kernel") -> ErrorCase:
    """A kernel of x, gates, factors and output; `block` is 16 rows of x."""
    head = f"""
{decorator}
def f(
    x: tile.Tensor["B", "S", "D", ts.bf16],
    gates: tile.Tensor["D", "D", ts.bf16],
    factors: tile.Tensor["L", ts.bf16],
    output: tile.Tensor["B", "S", "D", ts.bf16],
):
    ctx = tile.context()
    batch, first = tile.program_id(0), tile.program_id(1) * 16
"""
    block = "block = tile.load_block(x, batch, first, 1, 16)\n"
    lines = (block if re.search(r"\bblock\b", body) else "") + body
    text = head + "".join(f"    {line}\n" for line in lines.splitlines())
    return _text(title, text, words, x=X, gates=W, factors=T((3,)))


ACCUMULATOR = "acc = tile.alloc_shared([1, 16, ctx.D], {})\ntile.fill(acc, 0.0)\n"
STORE = "\ntile.store_block(output, tile.cast({}, ts.bf16), batch, first)"
MMA = "out = tile.mma(x[batch, first:first + 16], gates, {})\ntile.store_global(out, output[batch, first:first + 16])"

KERNELS = [
    _kernel(
        "distance and weight of apply_gating",
        "out = tile.apply_gating(block, gates, tile.load_scalar(factors[0]), 2)" + STORE.format("out"),
        ("apply_gating", "distance"),
    ),
    _kernel(
        "weight and distance of fused_gating_accumulate",
        ACCUMULATOR.format("ts.f32")
        + "tile.fused_gating_accumulate(block, gates, 2, tile.load_scalar(factors[0]), acc)"
        + STORE.format("acc"),
        ("fused_gating_accumulate", "distance"),
    ),
    _kernel("source and destination of store_block", "tile.store_block(block, output, batch, first)", ("store_block",)),
    _kernel(
        "value and destination of store_global",
        "tile.store_global(output[batch:batch + 1, first:first + 16], block)",
        ("output", "block"),
    ),
    _kernel(
        "precision of accumulate",
        ACCUMULATOR.format("ts.f32") + 'tile.accumulate(acc, block, precision="low")' + STORE.format("acc"),
        ("precision", "low", "mixed", "high"),
    ),
    _kernel(
        "mixed needs an f32 accumulator",
        ACCUMULATOR.format("ts.bf16") + 'tile.accumulate(acc, block, precision="mixed")' + STORE.format("acc"),
        ("mixed", "f32", "bf16"),
    ),
    _kernel("grammar of a policy", MMA.format('precision_policy="bf16_mixed"'), ("policy", "bf16_mixed")),
    _kernel(
        "policy of other operands",
        MMA.format('precision_policy="mixed_f16_f32"'),
        ("mixed_f16_f32", "bf16"),
    ),
    _kernel(
        "policy of another accumulator",
        MMA.format('accumulator_type=ts.f16, precision_policy="mixed_bf16_f32"'),
        ("bf16", "f32", "f16"),
    ),
    _kernel(
        "swizzle",
        'acc = tile.alloc_shared([1, 16, ctx.D], ts.f32, swizzle="zor")\ntile.fill(acc, 0.0)' + STORE.format("acc"),
        ("swizzle", "zor", "xor", "none"),
    ),
    _kernel(
        "read before the wait",
        "buffer = tile.alloc_shared([16, ctx.D], ts.bf16)\n"
        "tile.cp_async.shared.global_(buffer, x[batch, first:first + 16])\n"
        "tile.cp_commit_group()\n"
        "tile.store_global(tile.multiply(buffer, 2.0), output[batch, first:first + 16])",
        ("buffer", "waited"),
    ),
    _kernel(
        "a block of no size",
        "own = tile.async_load_block(x, stages=2)\ntile.async_wait()\ntile.async_store_block(output, own)",
        ("async_load_block", "BLOCK_B", "BLOCK_S"),
    ),
    _kernel(
        "a block of rank 2",
        "own = tile.async_load_block(gates, stages=2)\ntile.async_wait()\ntile.async_store_block(output, own)",
        ("async_load_block", "gates"),
        decorator='@ts.kernel.autotune(space=dict(BLOCK_B=[1], BLOCK_S=[16]), key=["B", "S", "D"])',
    ),
    _kernel(
        "key of autotune",
        STORE.format("block").strip(),
        ("key", "depth"),
        decorator='@ts.kernel.autotune(space=dict(BLOCK_B=[1]), key=["B", "depth"])',
    ),
    _kernel(
        "constant of ctx",
        "size = ctx.BLOCK_X" + STORE.format("block"),
        ("BLOCK_X", "BLOCK_B", "BLOCK_S"),
        decorator='@ts.kernel.autotune(space=dict(BLOCK_B=[1], BLOCK_S=[16]), key=["B", "S", "D"])',
    ),
    _kernel(
        "window without a constant extent",
        "tile.store_global(x[batch, first:2 * first + 16], output[batch, first:2 * first + 16])",
        ("first",),
    ),
    _kernel(
        "no grid to infer",
        "other = tile.program_id(0) // 2\n"
        "tile.store_global(x[other, first:first + 16], output[other, first:first + 16])",
        ("grid", "@ts.kernel(grid="),
    ),
]

ERRORS: list[ErrorCase] = [*LENGTHS, *EMPTY, *VALUES, *SHAPES, *OPS, *MESHES, *KERNELS]
