"""Multiply fp8 operands as fp8 where warpgroups compute the product: twice the rate of f16, and half the registers.

Not exact: the instruction sums k-blocks of another depth, and each 128 of k, or with the author's leave all of it, in
the matrix unit. Products that warpgroups cannot take, such as those whose operands do not run along k, stay exact.
"""

from __future__ import annotations

from tessera.ir.core import Kernel, clone_kernel, is_strict
from tessera.ir.products import AS_FP8
from tessera.passes.warpgroup import takes_fp8, why_not
from tessera.target.schedule import Schedule


def choose_formats(kernel: Kernel, schedule: Schedule) -> Kernel:
    """A strict kernel stays as it is."""
    if schedule.family != "wgmma" or is_strict(kernel):
        return kernel
    new, _ = clone_kernel(kernel)
    chosen = [
        op
        for op in new.body.walk()
        if op.name == "mma" and takes_fp8(op) and op.attributes["precision"] in AS_FP8 and why_not(op, schedule) is None
    ]
    for op in chosen:
        op.attributes["precision"] = AS_FP8[op.attributes["precision"]]
    return new if chosen else kernel
