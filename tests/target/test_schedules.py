"""Enumeration: which schedules are tried, in which order, what an author may fix; every one of them keeps every bit."""

import random
from dataclasses import asdict, fields, replace

import pytest

from tessera.compiler import compile_kernel, find_arch, trace_kernel
from tessera.errors import SourceError
from tessera.frontend.document import execute, parse_document
from tessera.search.lowering import BEFORE, LAST, Lowering, Request, Setting, as_changes
from tessera.target.schedule import Schedule
from tessera.target.schedules import FIELDS, candidates, check_pins, own_point, parse_pin, schedules, structure_of
from tests.passes import kernels
from tests.passes.test_pipeline import assert_same_bits, outputs_of
from tests.suite import load

ARCH = find_arch("sm_90a")
LIST = {"len(source_layers)": 2, "len(gate_params)": 2}


def prepared(definition, dims, arch=ARCH, **constants):
    """The kernel as its schedule is chosen."""
    module = trace_kernel(definition.pinned(constants), dims)
    lowering = Lowering([module], Setting(arch.name, dims, None, None))
    return lowering._prepare(Request(0, ()))[0]


def test_every_field_has_a_row():
    assert list(FIELDS) == [field.name for field in fields(Schedule)]
    assert BEFORE[-1].name == "defer_sums" and LAST[0].name == "insert_barriers"


def offered(definition, dims):
    """What is worth trying on the base lane."""
    return candidates(prepared(definition.scheduled({"family": ""}), dims), ARCH)


def test_what_makes_no_difference_is_not_tried():
    open_fields = {
        name: {field for field, values in offered(load(name), dims).items() if len(values) > 1}
        for name, dims in (
            ("vector_add", {"N": 4096}),
            ("softmax_bf16", {"M": 64, "N": 1024}),
            ("matmul_nn_bf16", {"M": 512, "N": 512, "K": 512}),
            ("gating_function_kernel", {"B": 2, "S": 256, "D": 256}),
        )
    }
    assert open_fields["vector_add"] == open_fields["softmax_bf16"] == {"warps"}
    assert open_fields["matmul_nn_bf16"] == {
        "warps", "subtile", "rows", "blocks", "stages", "group", "split_k", "epilogue",
    }  # fmt: skip
    assert open_fields["gating_function_kernel"] == {
        "warps", "streamed", "subtile", "block_k", "rows", "blocks", "stages", "epilogue",
    }  # fmt: skip


def test_structure():
    found = structure_of(prepared(load("matmul_nn_bf16"), {"M": 512, "N": 512, "K": 512}))
    assert (found.products, found.product, found.rows, found.columns, found.depth) == (True, 64 * 64, 64, 64, 32)
    assert found.loops and not found.asked and found.plain == ()
    dims = {"B": 2, "S": 128, "D": 64, "L": 3, **LIST}
    found = structure_of(prepared(load("fused_delta_gating_kernel"), dims))
    assert found.asked and found.depth == 64
    found = structure_of(prepared(load("gating_function_kernel"), {"B": 2, "S": 128, "D": 64}))
    assert found.plain == ("smem_delta", "smem_params")


def test_constants_of_the_space_decide_their_fields():
    dims = {"B": 2, "S": 128, "D": 64, "L": 3, **LIST}
    found = candidates(prepared(load("fused_delta_gating_kernel"), dims, num_warps=8, num_stages=3), ARCH)
    assert found["warps"] == (8,) and found["stages"] == (3,)


def test_order():
    kernel = prepared(load("matmul_nn_bf16"), {"M": 512, "N": 512, "K": 512})
    found, own, values = list(schedules(kernel, ARCH)), own_point(kernel, ARCH), candidates(kernel, ARCH)
    assert found[0] == own and len(set(found)) == len(found)
    distances = [sum(asdict(one)[name] != value for name, value in asdict(own).items()) for one in found]
    assert distances == sorted(distances) and distances[-1] == sum(len(choices) > 1 for choices in values.values())
    total = 1
    for name, choices in values.items():
        total *= len(choices)
        assert choices[0] == getattr(own, name)
    assert len(found) == total


# ---- what an author fixes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pins", "code", "sentence"),
    [
        ({"wraps": 4}, "TS201", "a schedule has no field 'wraps'; it has warps, streamed, subtile, block_k, rows, "),
        ({"wraps": 4}, "TS201", "; did you mean 'warps'?"),
        ({"warps": 3}, "TS203", "the field warps of a schedule is a power of two from 1 to 32, or 12, not 3"),
        ({"warps": True}, "TS203", "the field warps of a schedule is a power of two from 1 to 32, or 12, not True"),
        ({"warps": 64}, "TS203", "not 64"),
        ({"stages": 0}, "TS203", "the field stages of a schedule is an integer from 1 to 16, not 0"),
        ({"block_k": 24}, "TS203", "the field block_k of a schedule is a positive multiple of 16, not 24"),
        ({"rows": -1}, "TS203", "the field rows of a schedule is an integer that is not negative, not -1"),
        ({"subtile": 2.0}, "TS203", "not 2.0"),
        ({"blocks": 33}, "TS203", "an integer from 1 to 32, not 33"),
        ({"streamed": "a"}, "TS203", "the field streamed of a schedule is a list of names of buffers, not 'a'"),
    ],
)
def test_pins_that_are_none(pins, code, sentence):
    with pytest.raises(SourceError, match=code) as caught:
        check_pins(pins)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("pins", "arch", "sentence"),
    [
        ({"family": "wgmma"}, "sm_80", "'gemm' is to have family = 'wgmma', and sm_80 has no instructions of warpg"),
        ({"copies": "tma"}, "sm_89", "copies = 'tma', and sm_89 has no copies by tensor map (TMA)"),
        ({"cluster": 2}, "sm_86", "cluster = 2, and sm_86 has no clusters of blocks"),
        ({"family": "wgmma"}, "sm_120", "sm_120 has no instructions of warpgroups"),
    ],
)
def test_pins_that_an_architecture_cannot_do(pins, arch, sentence):
    with pytest.raises(SourceError, match="TS512") as caught:
        compile_kernel(load("gemm_nn").scheduled(pins), {"M": 64, "N": 64, "K": 64}, arch)
    assert sentence in caught.value.message and caught.value.loc is not None


def test_pins_of_a_dump_that_are_none_are_errors_at_the_kernel():
    module = trace_kernel(load("gemm_nn"), {"M": 64, "N": 64, "K": 64})
    module.kernel().attributes["pins"] = {"wraps": 4}
    for arch in ("sm_80", "sm_90a"):
        with pytest.raises(SourceError, match="TS201") as caught:
            compile_kernel(module, {"M": 64, "N": 64, "K": 64}, arch)
        assert caught.value.loc == module.kernel().loc is not None


def test_pins_of_a_command_line():
    assert parse_pin("warps", "8") == 8 and parse_pin("streamed", "a+b") == ("a", "b") and parse_pin("rows", "0") == 0
    for name, text in (("warps", "eight"), ("stages", "2.5"), ("wraps", "4")):
        with pytest.raises(SourceError, match="TS20[13]"):
            parse_pin(name, text)
    assert check_pins({"streamed": ["a"]}) == {"streamed": ("a",)}


def test_pins_are_in_the_schedule_of_every_point():
    definition = load("gating_function_kernel").scheduled({"warps": 4, "streamed": ["smem_params"]})
    kernel = prepared(definition, {"B": 2, "S": 256, "D": 64})
    assert kernel.attributes["pins"] == {"warps": 4, "streamed": ("smem_params",)}
    assert {(one.warps, one.streamed) for one in schedules(kernel, ARCH)} == {(4, ("smem_params",))}
    dims = {"B": 2, "S": 256, "D": 64}
    chosen = compile_kernel(definition, dims).target.kernel().attributes["schedule"]
    assert chosen["warps"] == 4 and chosen["streamed"] == ("smem_params",)
    given = compile_kernel(definition, dims, schedule=Schedule(warps=16, stages=2)).schedule
    assert given == Schedule(warps=4, stages=2, streamed=("smem_params",))


def test_a_buffer_that_cannot_be_streamed():
    definition = load("gating_function_kernel").scheduled({"streamed": ("smem_parms",)})
    with pytest.raises(SourceError, match="TS201") as caught:
        compile_kernel(definition, {"B": 2, "S": 256, "D": 64})
    assert "(there are smem_delta, smem_params); did you mean 'smem_params'?" in caught.value.message


def test_pinned_stages_that_do_not_fit():
    definition, dims = load("matmul_nn_bf16"), {"M": 512, "N": 512, "K": 2048}
    assert compile_kernel(definition.scheduled({"stages": 16}), dims, "sm_90a").schedule.stages == 16
    with pytest.raises(SourceError, match="TS501") as caught:
        compile_kernel(definition.scheduled({"stages": 16}), dims, "sm_86")
    message = caught.value.message
    assert message.startswith("the schedule is pinned to 16 stages, and the shared memory of sm_86 holds 1")
    assert caught.value.loc.line == 26  # of the loop
    # A loop of two iterations takes no more than two.
    dims = {"B": 2, "S": 128, "D": 128, "L": 3, **LIST}
    module = trace_kernel(load("fused_delta_gating_kernel"), dims)
    module.kernel().attributes["pins"] = {"stages": 16}
    target = compile_kernel(module, dims, "sm_86").target.kernel()
    assert max(op.attributes["stages"] for op in target.body.walk() if op.name == "shared") == 2


def test_pins_are_stronger_than_stages_of_a_copy():
    dims = {"B": 2, "S": 128, "D": 256, "L": 3, **LIST}
    definition = load("fused_delta_gating_kernel")
    module = trace_kernel(definition, dims, constants={"num_stages": 4})

    def stages(module, **pins):
        module.kernel().attributes["pins"] = pins
        target = compile_kernel(module, dims, "sm_90a").target.kernel()
        return {op.attributes["stages"] for op in target.body.walk() if op.name == "shared"}

    assert stages(module) == {1, 4} and stages(module, stages=2) == {1, 2}


PRELUDE = "import tessera as ts\nfrom tessera import Tensor, tile\n"
BODY = """
def k(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * 256
    tile.store(x[start : start + 256] * 2.0, out[start : start + 256])
"""


def defined(decorator):
    return execute(parse_document("k.py", f"{PRELUDE}{decorator}{BODY}"))["k"]


def test_pins_of_a_decorator():
    kernel = defined("@ts.kernel(schedule=dict(warps=8, blocks=2))")
    assert kernel.schedule == {"warps": 8, "blocks": 2}
    assert compile_kernel(kernel, {"N": 1000}).schedule == Schedule(warps=8, blocks=2)
    assert kernel.scheduled({"warps": 4}).schedule == {"warps": 4, "blocks": 2} and kernel.schedule["warps"] == 8
    tuned = defined("@ts.kernel.autotune(space=dict(num_warps=[4, 8]), key=[], schedule=dict(stages=2))")
    assert tuned.schedule == {"stages": 2}
    fixed = tuned.scheduled({"warps": 8})  # num_warps decides it
    assert fixed.constants == {"num_warps": 8} and fixed.fixed == {"num_warps"} and fixed.schedule == {"stages": 2}
    assert compile_kernel(fixed, {"N": 1000}).schedule == replace(Schedule(8), stages=2)


@pytest.mark.parametrize(
    ("decorator", "code", "sentence", "at"),
    [
        ("@ts.kernel(schedule=dict(wraps=8))", "TS201", "has no field 'wraps'", 26),
        ('@ts.kernel(schedule={"wraps": 8})', "TS201", "did you mean 'warps'?", 22),
        ("@ts.kernel(schedule=8)", "TS203", "schedule= takes a dict from fields of the schedule to values", 1),
        ("@ts.kernel.autotune(space=dict(num_warps=[4, 8]), schedule=dict(warps=8))", "TS203",
         "the field 'warps' is decided by the tuning constant num_warps: give that one candidate", 65),
    ],
)  # fmt: skip
def test_pins_of_a_decorator_that_are_none(decorator, code, sentence, at):
    with pytest.raises(SourceError, match=code) as caught:
        defined(decorator)
    assert sentence in caught.value.message
    assert (caught.value.loc.line, caught.value.loc.column) == (3 if at > 1 else 4, at)


# ---- every enumerated schedule is right ------------------------------------------------------------------------------

SMALL = [
    ("gating_function_kernel", {"B": 1, "S": 70, "D": 100}, 3),
    ("gating_function_kernel", {"B": 1, "S": 129, "D": 192}, 2),
    ("matmul_tt_bf16", {"M": 70, "N": 40, "K": 129}, 3),
    ("difference_matmul", {"M": 33, "N": 100, "K": 129}, 3),
    ("perceptron", {"M": 33, "D": 20, "H": 24, "N": 9}, 3),
    ("attention_row", {"M": 40, "N": 48, "D": 40}, 3),
    ("two_layers", {"M": 33, "D": 32}, 3),
    ("wide_elementwise", {"M": 70, "D": 1000}, 3),
    ("top_1", {"M": 33, "N": 100}, 3),
]


@pytest.mark.parametrize(("name", "dims", "count"), SMALL, ids=[f"{name}-{len(dims)}" for name, dims, _ in SMALL])
def test_schedules_keep_every_bit(name, dims, count):
    module = trace_kernel(getattr(kernels, name, None) or load(name), dims)
    lowering, request = Lowering([module], Setting("sm_80", dims, None, None)), Request(0, ())
    own = lowering.lower(request).schedule
    expected = outputs_of(module.kernel(), dims, "tile")
    points = [s for s in schedules(lowering._prepare(request)[0], lowering.arch) if s.split_k == 1]
    for point in random.Random(name).sample(points, count):
        changed = replace(request, changes=as_changes(point, own))
        found = lowering.lower(changed)
        assert found.error is None and found.schedule == point
        (kernel,) = lowering._kernels[changed]
        assert_same_bits(expected, outputs_of(kernel, dims, "target"), str(changed.changes))
