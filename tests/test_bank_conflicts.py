"""The bench that compares counters with Nsight Compute, as far as it goes without a GPU."""

import json
import pickle
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import access_patterns, bank_conflicts, ncu

RAW = """==PROF== Connected to process 12
"ID","Kernel Name","Block Size","Grid Size","l1tex__x.sum","memory_l1_wavefronts_shared","device__l2","smsp__sass_y.sum"
"","","","","","","",""
"0","first","(32, 1, 1)","(1, 1, 1)","1,024","12 (4; 8)","50","n/a"
"1","second","(64, 1, 1)","(2, 1, 1)","0","1.5","50","3"
"""
COLUMNS = (
    '"#","Address","Source","# Samples","Instructions Executed","L1 Tag Requests Global",'
    '"L1 Wavefronts Shared","L1 Wavefronts Shared Ideal","L2 Theoretical Sectors Global"'
)
SOURCE = f""""Kernel Name","first(int*)"
{COLUMNS}
"0","0x10","      LDS.U.128 R4, [R8] ","0","2","0","8","8","0"
"1","0x20","@!P0 LDS R5, [R9]","0","1,000","0","1,000","500","0"
"2","0x30","LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]","0","1","1","4","4","16"
"3","0x40","IADD3 R1, R1, R2, RZ","0","9","0","0","0","0"

"Kernel Name","second"
{COLUMNS}
"0","0x10","STG.E [R2.64], R3","0","1","1","0","0","4"
"""


def test_the_raw_page_gives_a_dict_per_launch():
    first, second = ncu.parse_raw(RAW)
    assert first == {
        "Kernel Name": "first",
        "Block Size": "(32, 1, 1)",
        "Grid Size": "(1, 1, 1)",
        "l1tex__x.sum": 1024,
        "memory_l1_wavefronts_shared": 12,
    }
    assert second["memory_l1_wavefronts_shared"] == 1.5
    assert second["smsp__sass_y.sum"] == 3
    with pytest.raises(ValueError, match="no table"):
        ncu.parse_raw("==ERROR== no kernels were profiled")


def test_the_source_page_gives_sums_by_opcode():
    first, second = ncu.parse_source(SOURCE)
    sums = ncu.sum_by_opcode(first)
    assert sums["sass:LDS.executed"] == 1002
    assert (sums["sass:LDS.wavefronts"], sums["sass:LDS.ideal"]) == (1008, 508)
    assert sums["sass:LDGSTS.sectors"] == 16
    assert ncu.opcode("@!PT LDS RZ, [RZ]") == ""
    assert not any("IADD3" in name for name in sums)
    assert ncu.sum_by_opcode(second)["sass:STG.sectors"] == 4


def test_ratios_are_no_counters():
    output = """Device NVIDIA GH100 (gh100)
-----
Metric Name                              Metric Type  Metric Unit  Metric Description
l1tex__data_bank_reads                   Counter      bank         # of data bank reads
l1tex__average_t_sectors_per_request     Ratio        sector       average # of sectors
smsp__inst_executed_op_ldsm              Counter      inst         # of warp instructions executed: LDSM
"""
    assert ncu.metric_names(output) == ["l1tex__data_bank_reads", "smsp__inst_executed_op_ldsm"]


@pytest.mark.parametrize("kind", access_patterns.KINDS, ids=lambda kind: kind.name)
def test_patterns_are_legal_for_their_kind(kind):
    found = access_patterns.patterns(kind)
    assert len(found) > 30
    for name, values in found.items():
        offsets, source_bytes = values[:32], values[32:]
        active = offsets[offsets >= 0]
        assert not (active % kind.size).any(), name
        assert (active + kind.size <= access_patterns.REGION).all(), name
        assert ((source_bytes >= 0) & (source_bytes <= kind.size)).all(), name
        assert not kind.whole_warp or len(active) == 32, name
        if kind.distinct:
            assert len(set(active)) == len(active), name


def test_patterns_are_the_same_in_every_process():
    for kind in access_patterns.KINDS:
        again = access_patterns.patterns(kind)
        assert all(np.array_equal(values, again[name]) for name, values in access_patterns.patterns(kind).items())


def counters(**given):
    empty = {"requests": 0, "wavefronts": 0, "sectors": 0, "ideal": 0, "bytes": 0}
    memory = {
        f"{where}_{way}": SimpleNamespace(
            **{k: v for k, v in empty.items() if k != ("sectors" if where == "shared" else "wavefronts")}
        )
        for where in ("shared", "global")
        for way in ("read", "write")
    }
    for name, values in given.items():
        vars(memory[name]).update(values)
    return SimpleNamespace(**memory, mma=0, barriers=0, warp_collectives=0)


def test_totals_tell_ldmatrix_and_copies_by_the_line():
    text = "a\nts_ldmatrix_x4(r, p);\nts_ld_shared<float, 4>(r, p);\nts_cp_async<16, true>(a, b, 16);\n"
    copy = counters(
        shared_write={"requests": 1, "wavefronts": 8, "ideal": 4}, global_read={"requests": 1, "sectors": 16}
    )
    lines = {
        2: counters(shared_read={"requests": 2, "wavefronts": 16, "ideal": 8}),
        3: counters(shared_read={"requests": 1, "wavefronts": 4, "ideal": 4}),
        4: copy,
    }
    sums = bank_conflicts.totals(lines, text)
    assert sums["ldmatrix.wavefronts"] == 16 and sums["ldmatrix.excess"] == 8
    assert sums["ld_shared.wavefronts"] == 4 and "ld_shared.excess" not in sums
    assert sums["cp_async.wavefronts"] == 8 and "st_shared.wavefronts" not in sums
    assert sums["cp_async_global.sectors"] == 16 and "ld_global.sectors" not in sums


def test_copies_of_arrays_start_where_those_of_a_gpu_do():
    source = np.arange(100, dtype=np.int16)[3:]
    source.flags.writeable = False
    copy = bank_conflicts.aligned(source)
    assert copy.ctypes.data % 256 == 0
    assert np.array_equal(copy, source) and not copy.flags.writeable


def test_results_come_back_as_they_were_saved(tmp_path):
    rows = [
        {"group": "kernels", "name": "a", "ours": {"mma": 3}, "measured": {"x": 1, "y": 2.5}},
        {"group": "micro", "name": "b", "measured": {"z": 0}},
        {"group": "micro", "name": "c", "ours": {}},
    ]
    bank_conflicts.save(tmp_path / "r.json", rows, {"gpu": "none"})
    assert bank_conflicts.restore(tmp_path / "r.json") == (rows, {"gpu": "none"})
    assert json.loads((tmp_path / "r.json").read_text())["measured"]["micro"] == ["z"]


def test_differences_are_shown(capsys):
    metric = "smsp__inst_executed_op_shared_ld.sum"
    row = {"group": "micro", "kind": "ld_shared_4", "pattern": "reversed", "name": "n", "measured": {metric: 2}}
    assert bank_conflicts.show([row | {"ours": {"ld_shared.requests": 1}}]) == 1
    assert "reversed: 1, GPU 2" in capsys.readouterr().out
    assert bank_conflicts.show([row | {"ours": {"ld_shared.requests": 2}}]) == 0


STAND_IN = """#!{python}
import pickle, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import bench.bank_conflicts as bench
sys.modules["__main__"].Case = bench.Case
arguments = sys.argv[1:]
if "--query-metrics" in arguments:
    print("l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld  Counter  wavefronts")
elif "--import" in arguments:
    print(Path(arguments[arguments.index("--import") + 1]).read_text())
else:
    if "smsp" in arguments[arguments.index("--metrics") + 1]:
        sys.exit("==ERROR== Failed to find metric")
    plan = Path(arguments[arguments.index("--launch") + 1])
    cases, cubins = pickle.loads(plan.read_bytes())
    report = Path(arguments[arguments.index("-o") + 1])
    rows = ['"ID","Kernel Name","l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"', '"","",""']
    rows += [f'"{{i}}","{{case.kernel}}","{{7 + i}}"' for i, case in enumerate(cases[:-1])]
    report.write_text("\\n".join(rows))
    outputs = [[case.arguments[i].tobytes() for i in case.written] for case in cases[:-1]]
    plan.with_suffix(".outputs").write_bytes(pickle.dumps(outputs))
"""


def test_launches_and_measurements_meet(tmp_path, monkeypatch):
    """A stand-in for Nsight Compute refuses the first list of metrics, and runs out of time before the last launch."""
    tool = tmp_path / "ncu"
    tool.write_text(STAND_IN.format(python=sys.executable, root=str(Path(bank_conflicts.__file__).parents[1])))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("tessera.runtime.api.device_arch", lambda device: "sm_90a")
    monkeypatch.setattr("tessera.runtime.nvrtc.compile_cubin", lambda *_: SimpleNamespace(cubin=b"code"))
    cases = [case for case in bank_conflicts.micro_cases() if case.facts["kind"] == "ld_shared_4"][:3]
    profiler = bank_conflicts.Profiler(str(tool), tmp_path)
    assert profiler.hardware() == ["l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"]
    measured, written = profiler.measure("m", cases, [["smsp__a.sum"], profiler.hardware()], 5.0)
    assert measured == [{"l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": 7 + i} for i in range(2)]
    assert (tmp_path / "m_refused_0.txt").exists() and (tmp_path / "m_raw.csv").exists()
    data = cases[0].arguments[1]
    assert not bank_conflicts.different([data], written[0])
    assert bank_conflicts.different([data + 1], written[0]) == "3072 of 3072 elements differ, by at most 1"
    assert pickle.loads(pickle.dumps(cases[0])).written == [1]


def test_the_emulator_counts_an_instruction_as_its_address_says():
    """One legal launch per kind without a fault; a row of 32 words is one wavefront, 32 rows of 128 bytes are 32."""
    cases = {case.name: case for case in bank_conflicts.micro_cases()}
    for kind in access_patterns.KINDS:
        _, faults, _ = bank_conflicts.count(cases[f"{kind.name}: contiguous"])
        assert not faults, kind.name
    for pattern, wavefronts in (("contiguous", 1), ("stride 32 words", 32), ("same address", 1)):
        ours, _, _ = bank_conflicts.count(cases[f"ld_shared_4: {pattern}"])
        assert ours["ld_shared.wavefronts"] == wavefronts, pattern
