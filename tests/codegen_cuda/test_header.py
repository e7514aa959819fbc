"""The device header and its twin offer the same names, and the header keeps its promises."""

from __future__ import annotations

import re

from tessera.codegen_cuda import include


def code(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def functions(text: str) -> set[str]:
    defined = set(re.findall(r"TS_DEVICE\s+[\w ]+?\b(ts_\w+)\s*\(", code(text)))
    defined |= set(re.findall(r"TS_\w+\((ts_\w+),", code(text)))  # functions that a macro defines
    return defined


def macros(text: str) -> set[str]:
    return set(re.findall(r"#define (TS_\w+)", code(text))) - set(re.findall(r"#undef (TS_\w+)", code(text)))


def test_twin_defines_every_name_of_the_header() -> None:
    device, twin = include.device_header(), include.twin_text()
    own = {
        "ts_shared_address",
        "ts_load_global_if",
        "ts_hide",
        "ts_joined_pair",
        "ts_reciprocals",
    }  # for the header's own use
    names = functions(device) - own
    assert {"ts_barrier", "ts_ldmatrix_x4_trans", "ts_mma_m16n8k16_bf16", "ts_exp", "ts_shfl_xor"} <= names
    probes = {name for name in functions(twin) if name.startswith("ts_probe")}  # written into copies of a text only
    assert names == functions(twin) - probes
    parts = {name for name in macros(device) if name.startswith("TS_WGMMA_")}  # of what TS_WGMMA leaves
    assert macros(device) - parts - {"TS_PRAGMA"} == {name for name in macros(twin) if not name.startswith("TS_TWIN")}


def test_header_includes_nothing() -> None:
    assert "#include" not in code(include.device_header())


def test_only_the_device_header_contains_ptx() -> None:
    assert "asm" in code(include.device_header())
    for mnemonic in ("cp.async.c", "mma.sync", "ldmatrix.sync", "cvt.rn"):
        assert mnemonic in code(include.device_header())
        assert mnemonic not in code(include.twin_text())


def test_each_f32_function_states_its_error() -> None:
    text = include.device_header()
    for name, ulp in include.CUDA_ULP.items():
        assert f"ts_{name}" in functions(text)
        stated = re.search(rf"float ts_{name}\(.*\}}\s*// ([\d.]+)", text)
        if stated:
            assert float(stated[1]) == ulp
        else:
            assert name in ("sigmoid", "silu", "gelu", "gelu_tanh") or ulp == 0


def test_paths_lead_to_the_twin() -> None:
    entry = include.twin_include_directory() / include.DEVICE_HEADER_NAME
    assert '#include "../tessera_twin.h"' in entry.read_text()
    assert include.twin_header_path().is_file()
    for part in re.findall(r'#include "(tessera_\w+\.h)"', include.twin_header_path().read_text()):
        assert f"// {part}\n" in include.twin_text()


def test_a_twin_that_is_compiled_once_has_all_functions_and_kernels_see_them_declared() -> None:
    declared, functions = include.twin_parts()
    whole = re.compile(r"^(?:inline|TS_DEVICE) (?!constexpr)[^;{=(]*\(", re.MULTILINE)
    left = [m[0] for m in whole.finditer(declared) if not declared[: m.start()].endswith(">\n")]
    assert left == [] and declared.count("{") < functions.count("{") == functions.count("}")
    used = re.findall(r"^__attribute__\(\(used\)\) inline ([^;{]*\)(?: const)?) \{", functions, re.MULTILINE)
    assert len(used) > 300 and all(f"\n{signature};" in declared for signature in used)
    assert {"int ts_lane()", "Fiber& fiber()"} <= set(used)
