"""A process that calls an autotuned kernel on a make-believe GPU: `python -m tests.runtime.second_process [keep]`.

With `keep` it puts a result of tuning on disk first. It prints the seconds of CPU time from the call to its launch,
where the choice came from, and the modules that no process needs which finds a result.
"""

import sys
import time

import tessera as ts
from tessera import Tensor, tile
from tessera.runtime import api, arrays, autotune_calls, autotune_store, launch
from tessera.runtime.autotune_report import MEASURED, Choice, Report
from tests.runtime import fake_cuda

UNNEEDED = ("tessera.search", "tessera.compiler", "tessera.runtime.autotune", "tessera.passes", "jinja2", "rich")


@ts.kernel.autotune(space=dict(BLOCK=[32, 64, 128], num_warps=[4, 8]), key=["N"])
def double(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    start = tile.program_id(0) * tile.context().BLOCK
    tile.store(x[start : start + tile.context().BLOCK] * 2.0, out[start : start + tile.context().BLOCK])


def keep(size):
    schedule = api.KernelState(double).chosen({"N": size}, "sm_80")[1].schedule
    question = autotune_store.ask(double, api.KernelState(double).kernel({"N": size}), {"N": size}, "sm_80")
    choice = Choice({"BLOCK": 64, "num_warps": 8}, {**schedule, "warps": 8}, MEASURED, "the fastest")
    report = Report("double", {"N": size}, {"N": size}, "sm_80", "Fake GPU", choice)
    assert autotune_store.Store().write(question, report)


def main():
    library, driver = fake_cuda.Library(), fake_cuda.Driver()
    arrays.ADAPTERS.insert(0, library)
    launch.LAUNCHER = launch.Launcher(driver)
    api.device_arch = lambda device: "sm_80"
    autotune_calls.gpu_name = lambda ordinal: "Fake GPU"
    autotune_calls.make_device = None
    x = fake_cuda.aligned((1000,))
    if "keep" in sys.argv:
        keep(1000)
    start = time.process_time()
    double(x)
    seconds = time.process_time() - start
    (launched,) = driver.launches
    choice = api.last_run(double).choice
    assert launched[1] == (16, 1, 1) and choice.constants == {"BLOCK": 64, "num_warps": 8}
    print(seconds, choice.origin, *(name for name in UNNEEDED if name in sys.modules))


if __name__ == "__main__":
    main()
