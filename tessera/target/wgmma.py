"""The products of a warpgroup (wgmma, sm_90a) as data: what operands they take, and how deep and wide they are.

One instruction multiplies 64 rows of A by `k` columns, by N columns of B, and adds to f32 accumulators. Four warps hold
A, when it lies in registers, and the accumulators as four warps stacked along the rows hold those of mma.sync.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "MOST_IN_LINE",
    "REGISTERS_BESIDE",
    "THREE_WARPGROUPS",
    "WGMMA_INSTRUCTIONS",
    "WGMMA_K_BYTES",
    "WGMMA_ROWS",
    "WGMMA_WARPS",
    "WgmmaInstruction",
]

WGMMA_ROWS = 64
WGMMA_WARPS = 4
THREE_WARPGROUPS = (
    3 * WGMMA_WARPS
)  # the one number of warps that is no power of two: 192 rows, in a block of 512 threads
WGMMA_K_BYTES = 32  # of one instruction, whatever the operands
MOST_IN_LINE = 32  # instructions of one straight line: the time of ptxas explodes beyond
# Of a thread, beside the sums of one instruction. ptxas (13.0) holds it against what a thread starts with, not what
# setmaxnreg asks for: it names 154 registers for 256 columns and 138 for 224 (C7602).
REGISTERS_BESIDE = 26
_N_STEP = 8


@dataclass(frozen=True)
class WgmmaInstruction:
    """`name` stands for the operands' types in device functions; `k` is the depth of one instruction and `most_n` the
    largest N; `transposes` says whether shared operands may run along m or n (16-bit types), not only along k.
    """

    name: str
    k: int
    most_n: int
    transposes: bool

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's element."""
        return WGMMA_K_BYTES // self.k

    def takes_columns(self, n: int) -> bool:
        """Whether there is an instruction of `n` columns."""
        return _N_STEP <= n <= self.most_n and n % _N_STEP == 0

    def columns(self, n: int, registers: int) -> int:
        """The N of the instructions of a product of `n` columns, by threads that start with so many registers: the
        largest that divides it; 0 where none does.
        """
        most = min(n, self.most_n, max(_N_STEP, 2 * (registers - REGISTERS_BESIDE)))
        return next((size for size in range(most, 0, -1) if n % size == 0 and self.takes_columns(size)), 0)

    def declaration(self, n: int) -> str:
        """What a text says once, at file scope, before it calls the functions of `n` columns."""
        return f"TS_WGMMA({self.name}, {n})"

    def function(self, n: int, registers: bool) -> str:
        """The device function of `n` columns, with A in registers or in shared memory; its template arguments are the
        transposition bits of the operands that lie in shared memory.
        """
        return f"ts_wgmma_{self.name}_n{n}_{'rs' if registers else 'ss'}"


# By the dtypes of the left and of the right operand.
WGMMA_INSTRUCTIONS: dict[tuple[str, str], WgmmaInstruction] = {
    ("bf16", "bf16"): WgmmaInstruction("bf16", 16, 256, True),
    ("f16", "f16"): WgmmaInstruction("f16", 16, 256, True),
    ("fp8_e4m3", "fp8_e4m3"): WgmmaInstruction("e4m3", 32, 256, False),
    ("fp8_e5m2", "fp8_e5m2"): WgmmaInstruction("e5m2", 32, 256, False),
    ("fp8_e4m3", "fp8_e5m2"): WgmmaInstruction("e4m3_e5m2", 32, 256, False),
    ("fp8_e5m2", "fp8_e4m3"): WgmmaInstruction("e5m2_e4m3", 32, 256, False),
}
