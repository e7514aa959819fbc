"""From Python to Tile IR: what is computed at compile time, what becomes ops, and where each op comes from."""

import itertools
import textwrap
from pathlib import Path

import pytest
from traced import PRELUDE, kernel, names, the

import tessera as ts
from tessera import tile
from tessera.frontend.definition import KernelDefinition
from tessera.frontend.document import execute, load_document, parse_document
from tessera.frontend.evaluator import trace
from tessera.ir.dims import parse, symbol
from tessera.ir.verify import verify
from tessera.passes.specialise import specialise, unbound_dims

ROOT = Path(__file__).parents[2]


def stored(expression: str, setup: str = ""):
    """What a kernel stores to `v`, after `setup`."""
    return kernel(f"{textwrap.dedent(setup)}\ntile.store({expression}, v)\n")


# -- the language document


@pytest.fixture(scope="module")
def gating():
    loaded = load_document(ROOT / "examples" / "gdn" / "gdn_part1.md", PRELUDE)
    return trace(loaded["gating_function_kernel"])


def test_document_kernel_as_written(gating):
    verify(gating)
    kernel = gating.kernel()
    found = [(op.loc.line, op.name) for op in kernel.body.ops if op.name != "constant"]
    assert found == [
        (87, "program_id"),
        (88, "program_id"),
        (92, "alloc_shared"),
        (93, "alloc_shared"),
        (98, "window"),
        (96, "copy_async"),
        (103, "copy_async"),
        (110, "wait"),
        (111, "barrier"),
        (114, "cast"),
        (114, "mul"),
        (114, "exp"),
        (117, "read"),
        (117, "read"),
        (117, "mma"),
        (125, "mul"),
        (126, "sigmoid"),
        (129, "read"),
        (129, "mul"),
        (134, "window"),
        (132, "store"),
    ]
    assert kernel.attributes["parameters"] == (
        ("delta", "in"),
        ("gate_params", "in"),
        ("layer_distance", "in"),
        ("output", "out"),
    )
    assert kernel.attributes["dims"] == ("B", "S", "D")
    assert kernel.attributes["shape_dims"] == ("D",)
    assert kernel.attributes["grid"] == (symbol("B"), parse("cdiv(S, 128)"))


def test_document_kernel_in_detail(gating):
    kernel = gating.kernel()
    window, copy = the(kernel, "window"), the(kernel, "copy_async")
    assert window.attributes == {"extents": (1, 128, symbol("D")), "kept": (False, True, True)}
    assert [value.name for value in window.operands[:3]] == ["delta", "batch_idx", "seq_idx"]
    assert copy.attributes["bypass_l1"] is True
    assert [token.owner.name for token in the(kernel, "wait").operands] == ["copy_async", "copy_async"]
    assert the(kernel, "store").operands[1].type.dtype == ts.f32
    # the call starts in column 5 and ends with its closing bracket four lines below
    loc = copy.loc
    assert (loc.line, loc.column, loc.end_line, loc.end_column) == (96, 5, 100, 6)


# -- compile-time Python


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sum([i * i for i in range(4) if i != 2])", 10),
        ("len({i: str(i) for i in range(3)})", 3),
        ("[a + b for a, b in zip((1, 2), [3, 4])][-1]", 6),
        ("dict(enumerate('abc'))[1] == 'b' and 5 or 6", 5),
        ("int(f'{7:03d}'[-1])", 7),
        ("max(1, 2) + min([3, 4]) + abs(-5)", 10),
        ("(lambda_free if True else 1 // 0)(4)", 8),
        ("CONSTANTS['a'][1]", 2),
        ("ctx.N - ctx.N + 3", 3),
        ("1 if ctx.N + 1 > ctx.N else 2", 1),
        ("1 if not (ctx.M != ctx.M) else 2", 1),
        ("(1 < 2 < 3) + 0", 1),
        ("[*range(3), 9][-1]", 9),
        ("10 ** 2 // 7 % 5", 4),
        ("tile.maximum(3, 4)", 4),
        ("tile.cdiv(100, 16)", 7),
        ("x.shape[0] * 0 + len(v)", 4),
    ],
)
def test_python_is_computed_at_compile_time(expression, value):
    rest = "CONSTANTS = {'a': (1, 2)}\ndef lambda_free(n):\n    while n < 8:\n        n += 1\n    return n\n"
    traced = kernel(f"tile.store({expression} * 1.0, v)", rest)
    assert names(traced.body) == "full store"
    assert the(traced, "constant").attributes["value"] == value


def test_statements_at_compile_time():
    traced = kernel(
        """
        total, (a, *rest) = 0, [1, 2, 3]
        for i, item in enumerate(rest):
            if item == 5:
                break
            if i == 9:
                continue
            total += item
        else:
            total += 100
        table = {}
        table["k"] = total
        numbers = [0]
        numbers += [a]
        numbers[0] = 7
        assert len(numbers) == 2, "two"
        size: int = table["k"] + sum(numbers)
        pass
        tile.store(size * 1.0, v)
        """
    )
    assert the(traced, "constant").attributes["value"] == 113.0


def test_unrolled_loops():
    traced = kernel(
        """
        acc = tile.load(v)
        for factor in (2.0, 3.0):
            for j in tile.static_range(2):
                acc = acc * factor
        tile.store(acc, v)
        """
    )
    assert names(traced.body) == "load mul mul mul mul store"
    assert [op.attributes["value"] for op in traced.body.walk() if op.name == "constant"] == [2.0, 2.0, 3.0, 3.0]


def test_helpers_are_inlined_with_their_call_chain():
    traced = kernel(
        "tile.store(scaled(v), v)",
        """
        def scaled(t, factor=2.0, *, offset=1.0):
            if offset:
                return shifted(tile.load(t) * factor, offset)
            return t

        def shifted(t, by):
            return t + by
        """,
    )
    assert names(traced.body) == "load mul add store"
    add = the(traced, "add").loc
    assert (add.line, [site.line for site in add.calls()]) == (14, [10, 6])


def test_helper_without_arguments_may_use_the_language():
    traced = kernel("tile.store(v[row() : row() + 4] * 2.0, v)", "def row():\n    return tile.program_id(0) * 0\n")
    assert names(traced.body) == "program_id mul window load mul store"


def test_closures_and_factories():
    text = """
    def make(block, dtype):
        @ts.kernel(name=f"k_{block}")
        def k(x: Tensor["N", dtype]):
            p = tile.program_id(0) * block
            tile.store(x[p : p + block] * 2.0, x[p : p + block])
        return k
    kernels = [make(8, ts.f32), make(16, ts.bf16)]
    """
    loaded = execute(parse_document("case.py", textwrap.dedent(text)), PRELUDE)
    traced = [trace(definition).kernel() for definition in loaded["kernels"]]
    assert [kernel.name for kernel in traced] == ["k_8", "k_16"]
    assert [the(kernel, "window").attributes["extents"] for kernel in traced] == [(8,), (16,)]
    assert [kernel.parameters[0].type.dtype for kernel in traced] == [ts.f32, ts.bf16]
    assert traced[0].attributes["parameters"] == (("x", "inout"),)


# -- sizes


def test_sizes_stay_symbolic():
    traced = kernel("t = tile.zeros([ctx.N // 2 + 1, 8])\ntile.store(s * ctx.M, v)\ntile.store(1.0 / ctx.N, v)")
    sizes = [op.attributes["size"] for op in traced.body.walk() if op.name == "size"]
    assert sizes == [symbol("M"), symbol("N")]
    assert names(traced.body) == "mul full store div full store"
    assert traced.attributes["shape_dims"] == ()


def test_static_dims_decide_and_are_recorded():
    body = "if ctx.N > 32:\n    tile.store(1.0, v)\nfor j in range(ctx.N // 32):\n    tile.barrier()"
    traced = kernel(body, static={"N": 64, "M": 7})
    assert names(traced.body) == "full store barrier barrier"
    assert traced.attributes["shape_dims"] == ("N",)
    assert traced.attributes["dims"] == ("M", "N")


def static_kernel(names):
    text = f"""
        @ts.kernel(static={names!r})
        def k(x: Tensor["B", "H", 8, ts.f32], out: Tensor["B", "H", 8, ts.f32]):
            b, h = tile.program_id(0), tile.program_id(1)
            tile.store(tile.load(x[b, h]), out[b, h])
    """
    return execute(parse_document("case.py", textwrap.dedent(text)), PRELUDE)["k"]


def test_dims_that_the_author_wants_compiled_in():
    traced = trace(static_kernel(("H",))).kernel()
    assert traced.attributes["shape_dims"] == ("H",), "a call with another H traces anew"
    assert unbound_dims(traced) == ("H",)
    bound = specialise(traced, {"H": 3})
    assert bound.attributes["static"] == {"H": 3} and unbound_dims(bound) == ()
    assert [p.type.shape for p in bound.parameters] == [(symbol("B"), 3, 8)] * 2


def test_a_static_dim_that_is_none():
    with pytest.raises(ts.TesseraError, match="'Q', which is no dim of 'k': those are B, H") as caught:
        trace(static_kernel(("Q",)))
    assert caught.value.code == "TS201"
    with pytest.raises(ts.TesseraError, match=r'static=\("H", "D"\), not \'H\'') as caught:
        static_kernel("H")
    assert caught.value.code == "TS203"


def test_grid_is_the_decorators_or_the_callers():
    body = "tile.store(1.0, v)"
    assert kernel(body).attributes["grid"] == (1,)
    assert kernel(body, grid=lambda d: tile.cdiv(d.M, 16)).attributes["grid"] == (parse("cdiv(M, 16)"),)
    assert kernel(body, grid=(2, 3)).attributes["grid"] == (2, 3)


# -- windows


@pytest.mark.parametrize(
    ("subscript", "extents", "kept"),
    [
        ("p : p + 16", "16, N", "tt"),
        ("p : 16 + p", "16, N", "tt"),
        ("p // 16 * 8 : (p // 16 + 1) * 8", "8, N", "tt"),
        ("(p + 3) * 2 - 6 : p * 2 + 4", "4, N", "tt"),
        ("n", "1, N", "ft"),
        ("n, -1", "1, 1", "ff"),
        ("..., 0", "M, 1", "tf"),
        (":, 2:4", "M, 2", "tt"),
        ("-8:", "8, N", "tt"),
        (":-1", "M - 1, N", "tt"),
        ("0 : ctx.N", "N, N", "tt"),
        ("p : p + ctx.N // 2, :", "floordiv(N, 2), N", "tt"),
    ],
)
def test_windows_of_constant_extent(subscript, extents, kept):
    window = the(kernel(f"tile.load(x[{subscript}])"), "window")
    expected = tuple(parse(part) for part in _split(extents))
    assert window.attributes["extents"] == expected
    assert window.attributes["kept"] == tuple(flag == "t" for flag in kept)


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def test_negative_index_counts_from_the_end():
    traced = kernel("tile.store(tile.load_scalar(x[0, -1]) * 1.0, v)")
    assert [op.attributes["size"] for op in traced.body.walk() if op.name == "size"] == [parse("N - 1")]
    assert names(traced.body) == "window load cast mul full store"


def test_window_of_a_window_is_one_window():
    traced = kernel("row = x[p : p + 16]\ntile.store(row[3, 4:8] * 2.0, v)")
    window = the(traced, "window")
    assert names(traced.body) == "program_id mul add window load mul store"
    assert window.operands[0].name == "x" and window.attributes["extents"] == (1, 4)


def test_buffers_are_read_whole_or_by_windows():
    traced = kernel(
        """
        b = tile.alloc_shared([8, 4], ts.f32)
        tile.fill(b, 1.0)
        tile.store(b[2] + b[n + 1, :] + tile.sum(b, axis=0), v)
        """
    )
    assert names(traced.body) == (
        "alloc_shared full write read reshape add read reshape add read reduce_sum reshape add store"
    )
    assert the(traced, "read").attributes["extents"] == (1, 4)


# -- arithmetic


@pytest.mark.parametrize(
    ("expression", "ops"),
    [
        ("v + v", "load add"),
        ("v * 2 - s", "load mul sub"),
        ("-v", "load neg"),
        ("tile.load(v) + x[0, 0:4]", "load window load add"),
        ("v + x[0:1, 0:4].shape[1]", "load add"),
        ("tile.where(v > 0.0, v, 0.0)", "load gt load where"),
        ("v / n", "load div"),
        ("n / 2 * v", "div load mul"),
        ("n / n * v", "cast cast div load mul"),
        ("max(s, 0.0) * v", "max load mul"),
        ("sum([s, s, 1.0]) * v", "add add load mul"),
        ("abs(s) * float(n) * v", "abs cast mul load mul"),
        ("ts.ops.sigmoid_safe(v) * ts.ops.exp(s)", "load sigmoid exp mul"),
        ("ts.ops.distance_scaling(n) * v", "cast mul exp load mul"),
        ("ts.ops.distance_scaling(2) * v", "load mul"),
        ("tile.mma(w[0:4, 0:8], x[0:4, 0:8] * 1.0, transpose_b=True) if False else v * 1.0", "load mul"),
        ("tile.full([4], n, ts.f32)", "cast full"),
        ("tile.broadcast_to(tile.max(v, keepdims=True), [4])", "load reduce_max broadcast"),
        ("tile.reshape(tile.transpose(tile.reshape(v, [2, 2])), [4])", "load reshape transpose reshape"),
        ("tile.reshape(tile.reshape(v, [2, 2]).T, [4])", "load reshape transpose reshape"),
    ],
)
def test_arithmetic(expression, ops):
    assert names(stored(expression).body) == ops + " store"


def test_literals_are_weak_and_run_time_numbers_are_not():
    traced = kernel("tile.store(x[0:4] * 2.0, out[0:4])\ntile.store(x[0:4] * s, out[0:4])")
    products = [op.result.type for op in traced.body.walk() if op.name == "mul"]
    assert [type_.dtype for type_ in products] == [ts.bf16, ts.f32]


def test_numpy_numbers_are_numbers():
    traced = kernel(
        "tile.store(v[ROWS - ROWS : ROWS] * SCALE, v)\ntile.store(tile.zeros([ROWS]), v)",
        "import numpy as np\nROWS, SCALE = np.int64(4), np.float32(0.5)\n",
    )
    assert names(traced.body) == "window load mul store full store"


def test_broadcasting_of_axes():
    traced = kernel("a = w[0:8, 0:4] - tile.max(w[0:8, 0:4], axis=1, keepdims=True) + v\ntile.store(a, w[0:8, 0:4])")
    assert names(traced.body) == (
        "window window load reduce_max load broadcast sub load reshape broadcast add window store"
    )


def test_conditions_of_run_time_bools():
    traced = kernel("c = 0 < n <= 4 and not (s > 1.0) or (n == 3) & (s < 2.0)\nif c:\n    tile.store(1.0, v)")
    assert names(traced.body) == "lt le and gt not and eq lt and or if { full store } {  }"


def test_destination_buffers():
    traced = kernel(
        """
        b = tile.alloc_shared([4], ts.bf16)
        tile.subtract(v, 1.0, b)
        tile.exp(b, dst=b)
        tile.store(tile.maximum(b, v), v)
        """
    )
    assert names(traced.body) == "alloc_shared load sub write read exp write read load max store"


def test_mma_operands_and_policy():
    traced = kernel(
        """
        b = tile.alloc_shared([16, ctx.N], ts.bf16)
        tile.copy_async(b, x[p : p + 16])
        tile.cp_commit_group()
        tile.cp_wait_group()
        acc = tile.zeros([16, 16])
        acc = tile.mma(b, x[0:16], acc, transpose_b=True, precision_policy="mixed_bf16_f32")
        tile.store(acc, out[0:16, 0:16])
        """
    )
    assert names(traced.body) == (
        "program_id mul alloc_shared window copy_async wait full window read load mma window store"
    )
    assert the(traced, "mma").attributes == {"transpose_a": False, "transpose_b": True, "precision": None}


# -- the kernel's attributes


def test_roles():
    traced = kernel("tile.store(tile.load(out[0:4]) + x[0:4], out[0:4])\ntile.store(1.0, v)")
    assert traced.attributes["parameters"] == (
        ("x", "in"),
        ("w", "in"),
        ("v", "out"),
        ("n", "in"),
        ("s", "in"),
        ("out", "inout"),
    )
    assert [str(value.type.dtype) for value in traced.parameters] == ["bf16", "f32", "f32", "i64", "f32", "bf16"]
    assert (traced.loc.line, traced.loc.column, traced.loc.end_column) == (2, 1, 6)


def test_every_op_has_a_place():
    traced = kernel("for j in tile.range(n):\n    if j > 2:\n        tile.store(x[j : j + 4] * j, out[j : j + 4])")
    assert all(op.loc is not None and op.loc.file == "case.py" for op in traced.body.walk())


# -- the examples


def kernels_of(file: str) -> list[KernelDefinition]:
    loaded = load_document(ROOT / "examples" / file)
    assert not loaded.failures
    return [value for name, value in loaded.namespace.items() if isinstance(value, KernelDefinition)]


def test_examples_trace():
    found = {file: kernels_of(file) for file in ("vector_add.py", "softmax.py", "matmul.py")}
    for definition in itertools.chain(*found.values()):
        verify(trace(definition))
    expected = {f"matmul_{a}{b}_{dtype}" for a in "nt" for b in "nt" for dtype in ("bf16", "f32")}
    assert {definition.name for definition in found["matmul.py"]} == expected
    assert [definition.name for definition in found["vector_add.py"]] == ["vector_add", "vector_add_bf16"]
    grids = [trace(definition).kernel().attributes["grid"] for definition in found["matmul.py"]]
    assert set(grids) == {(parse("cdiv(M, 64)"), parse("cdiv(N, 64)"))}
