"""Write the schedule into the kernel: the caller's, or the default point for its sizes and the architecture."""

from __future__ import annotations

from dataclasses import asdict

from tessera.ir.core import Kernel, clone_kernel
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule, default_schedule


def choose_schedule(kernel: Kernel, arch: Arch, schedule: Schedule | None = None) -> Kernel:
    """Sets the kernel's attribute "schedule". Raises SourceError TS501 when its buffers fit no placement on `arch`."""
    new, _ = clone_kernel(kernel)
    new.attributes["schedule"] = asdict(schedule or default_schedule(kernel, arch))
    return new
