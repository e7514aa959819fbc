"""Write the schedule into the kernel: the caller's, or the default point for its sizes and the architecture.

What the author has fixed, the kernel's attribute "pins", holds in both.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from tessera.ir.core import Kernel, clone_kernel
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule
from tessera.target.schedules import check_arch, check_streamed, own_point, pins_of


def choose_schedule(kernel: Kernel, arch: Arch, schedule: Schedule | None = None) -> Kernel:
    """Sets the kernel's attribute "schedule". Raises SourceError TS501 when its buffers fit no placement on `arch`,
    TS512 for a field that `arch` cannot do, and TS201 for a pinned buffer that the kernel does not have.
    """
    new, _ = clone_kernel(kernel)
    if schedule is not None:
        check_streamed(kernel, pins_of(kernel))
    chosen = own_point(kernel, arch) if schedule is None else replace(schedule, **pins_of(kernel))
    check_arch(kernel, chosen, arch)
    new.attributes["schedule"] = asdict(chosen)
    return new
