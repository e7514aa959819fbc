"""Blocks and placement in functions: checkpoints, prefetches, modes, device assignments, shards."""

import textwrap

import pytest

import tessera as ts
from tessera import Tensor, dist, modes
from tessera.dtypes import bf16
from tessera.errors import TesseraError
from tessera.frontend import namespace
from tessera.frontend.annotations import TensorAnnotation
from tessera.frontend.definition import FunctionDefinition, checkpoint
from tessera.frontend.document import execute, parse_document
from tessera.frontend.function import free_shape, trace_function
from tessera.ir.parser import parse_module
from tessera.ir.placement import shardings_of
from tessera.ir.printer import print_module
from tessera.ir.sharding import Sharding
from tessera.ir.types import length_name
from tests.functions import assert_same_bits

MESH = dist.mesh([f"cuda:{i}" for i in range(8)], ("dp", "mp"), (2, 4))


class Language:
    """`ts` with the names that these tests are about."""

    checkpoint = checkpoint
    distribute = staticmethod(dist.distribute)
    train, eval = namespace.language_scopes.train, namespace.language_scopes.evaluation

    def __getattr__(self, name):
        return getattr(ts, name)


PRELUDE = {"ts": Language(), "Tensor": Tensor, "dist": dist, "MESH": MESH, "probe": lambda: modes.is_training()}
HELPERS = """\
@ts.function
def gated(x: Tensor["B", "S", "D", ts.bf16], y: Tensor["B", "S", "D", ts.bf16], w: Tensor["D", "D", ts.bf16],
          distance: int) -> Tensor["B", "S", "D", ts.bf16]:
    delta = ts.subtract(y, x)
    return ts.multiply(delta, ts.exp((delta @ w) * distance))

"""
SIGNATURE = 'def f(x: Tensor["B", "S", "D", ts.bf16], xs: list[Tensor], ws: list[Tensor])'


def load(body, decorators="@ts.function", signature=SIGNATURE, helpers=HELPERS):
    text = (
        f"{helpers}\n{decorators}\n{signature}:\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    )
    return execute(parse_document("case.py", text), PRELUDE)["f"]


def traced(body, decorators="@ts.function", count=2, signature=SIGNATURE, helpers=HELPERS, **static):
    bare = {f"xs[{i}]": TensorAnnotation(free_shape(f"xs[{i}]", 3), bf16) for i in range(count)}
    bare |= {f"ws[{i}]": TensorAnnotation(free_shape(f"ws[{i}]", 2), bf16) for i in range(count)}
    lengths = {length_name("xs"): count, length_name("ws"): count}
    return trace_function(load(body, decorators, signature, helpers), {**lengths, **static}, bare)


def fails(code, body, *words, **options):
    with pytest.raises(TesseraError) as caught:
        traced(body, **options)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message
    assert caught.value.loc is not None and caught.value.loc.file == "case.py"


def ops(kernel, name):
    return [op for op in kernel.body.walk() if op.name == name]


def same(one, other, **dims):
    assert_same_bits(one.function, other.function, **dims)


SIZES = {"B": 2, "S": 3, "D": 4}

# -- checkpoints

PLAIN = """
y = gated(xs[0], x, ws[0], 1)
z = ts.exp(y)
return y + z * x
"""
SCOPED = """
with ts.checkpoint_scope():
    y = gated(xs[0], x, ws[0], 1)
    z = ts.exp(y)
return y + z * x
"""


def test_a_checkpoint_changes_no_value_and_shows_in_the_text():
    scoped = traced(SCOPED)
    (op,) = ops(scoped.function, "checkpoint")
    assert op.attributes["region"] == "f#0"
    assert [result.type for result in op.results] == [value.type for value in op.regions[0].ops[-1].operands]
    assert len(op.results) == 2
    assert "checkpoint" in print_module(scoped.module)
    text = print_module(scoped.module)
    assert print_module(parse_module(text)) == text
    same(traced(PLAIN), scoped, **SIZES)


def test_lists_tuples_and_dicts_hold_what_a_block_computed():
    scoped = traced("""
        kept, named = [], {}
        for i, (a, w) in enumerate(zip(xs, ws)):
            with ts.checkpoint_scope():
                d = gated(a, x, w, i + 1)
                kept.append(d)
                named[i] = (d, [ts.exp(d)])
        return kept[0] + kept[1] + named[0][0] + named[1][1][0]
    """)
    plain = traced("""
        d0, d1 = gated(xs[0], x, ws[0], 1), gated(xs[1], x, ws[1], 2)
        return d0 + d1 + d0 + ts.exp(d1)
    """)
    assert [op.attributes["region"] for op in ops(scoped.function, "checkpoint")] == ["f#0", "f#1"]
    assert [len(op.results) for op in ops(scoped.function, "checkpoint")] == [1, 2]  # what nothing uses does not leave
    same(plain, scoped, **SIZES)


def test_a_block_may_return_and_break():
    scoped = traced("""
        for a in xs:
            with ts.checkpoint_scope():
                y = a + x
                break
        with ts.checkpoint_scope():
            return y, [ts.exp(y)][0]
    """)
    assert len(ops(scoped.function, "checkpoint")) == 2
    same(traced("y = xs[0] + x\nreturn y, ts.exp(y)"), scoped, **SIZES)


def test_checkpoints_nest():
    scoped = traced("""
        with ts.checkpoint_scope():
            y = x + xs[0]
            with ts.checkpoint_scope():
                z = ts.exp(y) * y
            y = z + y
        return y
    """)
    outer, inner = ops(scoped.function, "checkpoint")
    assert inner in outer.regions[0].ops
    same(traced("y = x + xs[0]\nz = ts.exp(y) * y\nreturn z + y"), scoped, **SIZES)


def test_what_an_object_holds_does_not_leave_a_block():
    helpers = HELPERS + "class Box:\n    pass\nBOX = Box()\ndef put(value):\n    BOX.value = value\n    return 0\n"
    body = """
        store = holder
        with ts.checkpoint_scope():
            store.__dict__.update(value=x + x)
        return store.value
    """
    helpers += "holder = Box()\n"
    fails("TS201", body, "computed in a checkpoint scope that has ended", helpers=helpers)


def test_a_checkpointed_function():
    helpers = HELPERS.replace("@ts.function", "@ts.checkpoint")
    trace = traced("return gated(xs[0], x, ws[0], 1) + gated(xs[1], x, ws[1], 2)", helpers=helpers)
    assert [op.attributes["region"] for op in ops(trace.function, "checkpoint")] == ["gated#0", "gated#1"]
    assert all(len(op.results) == 1 for op in ops(trace.function, "checkpoint"))
    same(traced("return gated(xs[0], x, ws[0], 1) + gated(xs[1], x, ws[1], 2)"), trace, **SIZES)
    assert traced("return x", "@ts.checkpoint").function.attributes["checkpoint"] is True
    assert traced("return x", "@ts.checkpoint\n@ts.function").function.attributes["checkpoint"] is True


def test_the_decorator():
    @ts.function
    def plain(x: Tensor["N", ts.bf16]) -> Tensor["N", ts.bf16]:
        return x

    made = checkpoint(plain)
    assert isinstance(made, FunctionDefinition) and made.options == {"checkpoint": True} and plain.options == {}
    assert checkpoint.scope is namespace.tensors.checkpoint_scope

    @ts.kernel
    def kernel(x: ts.tile.Tensor["N", ts.bf16]): ...

    with pytest.raises(TesseraError, match="TS203.*'kernel' is a kernel"):
        checkpoint(kernel)
    with pytest.raises(TesseraError, match="works only inside a function decorated with @ts.function"):
        namespace.tensors.checkpoint_scope()


def test_a_scope_alone_and_a_with_of_something_else():
    fails("TS102", "ts.checkpoint_scope()\nreturn x", "alone does nothing", "with ts.checkpoint_scope():")
    fails("TS102", "with x:\n    y = x\nreturn x", "no scope")


# -- what is computed in vain


def test_dead_calls_are_named():
    notes = traced("""
        deltas = []
        for i, (a, w) in enumerate(zip(xs, ws)):
            if i % 2 == 0:
                with ts.checkpoint_scope():
                    d = gated(a, x, w, 1)
            else:
                d = gated(a, x, w, 1)
            deltas.append(d)
        return x + x
    """, count=3).collected.notes  # fmt: skip
    assert notes == ["the values in 'deltas' are never used: 3 calls of gated are dropped (lines 14, 16)"]


def test_dead_variables_are_named():
    trace = traced("y = ts.exp(x) * x\nz = y\n_w = x + 1\nreturn x * gated(xs[0], x, ws[0], 1)")
    assert trace.collected.notes == ["'y' is never used: it is not computed (line 10)"]
    assert not ops(trace.function, "exp")[1:]
    assert traced("gated(xs[0], x, ws[0], 1)\nreturn x").collected.notes == [
        "what gated returns is never used: 1 call of gated is dropped (line 10)"
    ]
    assert traced(PLAIN).collected.notes == []
    in_part = "ys = [gated(a, x, w, 1) for a, w in zip(xs, ws)]\nfor a in xs:\n    z = a + x\nreturn z + ys[1]"
    assert traced(in_part).collected.notes == []


# -- modes and memory


def test_modes():
    body = "with ts.{}():\n    inside = probe()\noutside = probe()\nassert inside is {} and outside is {}\nreturn x"
    traced(body.format("train", True, False))
    with modes.train():
        traced(body.format("eval", False, True))
        fails("TS105", "with ts.eval():\n    y = 1 // 0\nreturn x", "ZeroDivisionError")
        assert modes.is_training()
        assert namespace.language_scopes.evaluation() is not None and not modes.is_training()  # as ordinary code
    assert not modes.is_training()
    fails("TS102", "ts.train()\nreturn x", "with ts.train():")


def test_prefetches_are_hints():
    trace = traced("""
        with ts.memory.prefetch_scope():
            for i in range(len(xs) - 1):
                ts.memory.prefetch(xs[i + 1], device="gpu", overlap="compute")
        ts.memory.prefetch(x, "cuda:1", overlap="none")
        return x + xs[1]
    """)
    assert len(trace.collected.notes) == 1 and "ts.memory.prefetch is a hint" in trace.collected.notes[0]
    assert not ops(trace.function, "prefetch")
    fails("TS203", 'ts.memory.prefetch(x, device="tpu")\nreturn x', "device=", "'tpu'")
    fails("TS203", 'ts.memory.prefetch(x, device="cuda:01")\nreturn x', "'cuda:01'")
    fails("TS203", 'ts.memory.prefetch(x, overlap="all")\nreturn x', "overlap=", "'all'")
    fails("TS203", "ts.memory.prefetch(3)\nreturn x", "takes a tensor")
    fails("TS203", "ts.memory.prefetch([x])\nreturn x", "takes a tensor")


# -- distributed functions

DISTRIBUTED = "@ts.distribute(mesh=MESH)"
LAYER = """
x_sharded = dist.shard(x, axis=0, mesh_axis="dp")
results = []
for i, (a, w) in enumerate(zip(xs, ws)):
    rank = i % MESH.size("mp")
    with dist.device_assignment(rank):
        d = gated(a, x_sharded, w, len(xs) - i)
    d = dist.all_gather(d, axis="mp")
    results.append(d)
total = ts.sum(ts.stack(results), axis=0)
return ts.add(ts.exp(x_sharded), total)
"""


def test_a_distributed_function_has_the_values_of_one_device():
    trace = traced(LAYER, DISTRIBUTED, count=6)
    function = trace.function
    assert function.attributes["mesh"] == {"dp": 2, "mp": 4}
    owns = ops(function, "own")
    assert [op.attributes["coordinate"] for op in owns] == [0, 1, 2, 3, 0, 1]
    assert {op.attributes["mesh_axis"] for op in owns} == {"mp"}
    found = shardings_of(function, MESH)
    (shard,) = ops(function, "shard")
    assert found[shard.result] == Sharding(MESH, ("dp", None, None))
    assert found[owns[1].result] == Sharding(MESH, ("dp", None, None), {"mp": 1})
    assert found[ops(function, "all_gather")[1].result] == Sharding(MESH, ("dp", None, None))
    assert found[function.body.ops[-1].operands[0]] == Sharding(MESH, ("dp", None, None))
    plain = LAYER.replace('dist.shard(x, axis=0, mesh_axis="dp")', "x").replace('dist.all_gather(d, axis="mp")', "d")
    plain = plain.replace("with dist.device_assignment(rank):", "if True:")
    same(traced(plain, count=6), trace, **SIZES)
    text = print_module(trace.module)
    assert print_module(parse_module(text)) == text and "mesh" in text


def test_parts_must_be_equal():
    assert traced(LAYER, DISTRIBUTED, B=4).function.attributes["shape_dims"] == ("B", "len(xs)", "len(ws)")
    fails("TS310", LAYER, "dim B is 3", "'dp' of size 2", decorators=DISTRIBUTED, B=3)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ('y = dist.shard(x, axis="dp", mesh_axis=0)', "TS203", ("'dp'",)),
        ('y = dist.shard(x, axis=0, mesh_axis="tp")', "TS201", ("no axis 'tp'", "dp, mp")),
        ('y = dist.shard(x, axis=3, mesh_axis="dp")', "TS304", ("'x'", "3 axes")),
        ('y = dist.shard(2, axis=0, mesh_axis="dp")', "TS203", ("takes a tensor",)),
        ("y = dist.all_gather(x, axis=0)", "TS203", ("axis=", "0")),
        ('y = dist.all_gather(x, axis="pp")', "TS201", ("'pp'",)),
        ('s = dist.shard(x, 0, "dp")\nt = dist.shard(x, 1, "dp")\ny = s + t', "TS309", ("'s'", "'t'", "'dp'")),
        ("with dist.device_assignment(0):\n    y = x + x", "TS608", ("dp, mp",)),
        ("with dist.device_assignment(4):\n    y = x + x", "TS607", ("4",)),
        ('with dist.device_assignment("mp"):\n    y = x + x', "TS203", ("'mp'",)),
        ('with dist.device_assignment(0, axis="tp"):\n    y = x + x', "TS201", ("'tp'",)),
        ('y = x\nn = MESH.size("pp")', "TS201", ("'pp'",)),
        (
            'with dist.device_assignment(0, axis="mp"):\n    a = x + x\n'
            'with dist.device_assignment(1, axis="mp"):\n    b = x * x\ny = a + b',
            "TS309",
            ("'a'", "'b'", "'mp'", "mp=0", "mp=1"),
        ),
    ],
)
def test_wrong_placements(line, code, words):
    fails(code, f"{line}\nreturn y", *words, decorators=DISTRIBUTED)


def test_placement_needs_a_mesh():
    fails("TS102", 'return dist.shard(x, 0, "dp")', "dist.shard", "@ts.distribute")
    fails("TS102", 'return dist.all_gather(x, "dp")', "dist.all_gather", "@ts.distribute")
    fails("TS102", "with dist.device_assignment(1):\n    y = x + x\nreturn y", "device_assignment", "@ts.distribute")


def test_an_assignment_with_an_axis_and_lists():
    trace = traced(
        """
        made = []
        with dist.device_assignment(1, axis="dp"), dist.device_assignment(2):
            y = x + x
            made.append(ts.exp(y))
            kept = x
        return y + made[0] + kept
        """,
        DISTRIBUTED,
    )
    found = shardings_of(trace.function, MESH)
    owns = ops(trace.function, "own")
    assert [(op.attributes["mesh_axis"], op.attributes["coordinate"]) for op in owns] == [
        ("mp", 2), ("mp", 2), ("dp", 1), ("dp", 1)
    ]  # fmt: skip
    assert found[trace.function.body.ops[-1].operands[0]].owners == (("dp", 1), ("mp", 2))


def test_a_distributed_function_that_is_called():
    helpers = HELPERS.replace("@ts.function", "@ts.distribute(mesh=MESH)").replace(
        "delta = ts", 'x = dist.shard(x, 0, "dp")\n    delta = ts'
    )
    trace = traced("return gated(xs[0], x, ws[0], 1)", helpers=helpers)
    assert trace.function.attributes["mesh"] == {"dp": 2, "mp": 4} and len(ops(trace.function, "shard")) == 1
    other = "@ts.distribute(mesh=dist.mesh(['cuda:0'], ('dp',), (1,)))"
    fails("TS309", "return gated(xs[0], x, ws[0], 1)", "'gated'", "dp=2, mp=4", helpers=helpers, decorators=other)


def test_what_cannot_stay_split_is_gathered():
    trace = traced(
        """
        s = dist.shard(x, 1, "dp")
        rows = ts.reshape(s, (x.shape[0] * x.shape[1], x.shape[2]))
        moved = ts.transpose(s)
        product = s @ ws[0]
        total = ts.sum(s, axis=1)
        wide = ts.concatenate([s, s], axis=1)
        deep = ts.stack([s, s])
        part = s[..., 0]
        return rows, moved, product, total, wide, deep, part
        """,
        DISTRIBUTED,
        D=4,
    )
    found = shardings_of(trace.function, MESH)
    axes = [found[value].axes for value in trace.function.body.ops[-1].operands]
    assert axes == [
        (None, None), (None, None, "dp"), (None, "dp", None), (None, None), (None, None, None),
        (None, None, "dp", None), (None, "dp"),
    ]  # fmt: skip
