"""A rival whose schedules compile by leaving a file behind: `dims["folder"]` is where, and a tile of 16 does not."""

import os
from pathlib import Path


def compile_schedule(schedule, dims):
    if schedule["tile"] == 16:
        raise ValueError("too small")
    if schedule["tile"] == 7:
        os._exit(1)
    Path(dims["folder"], str(schedule["tile"])).write_text(str(os.getpid()))
