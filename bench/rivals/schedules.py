"""The schedules that a rival in Triton is searched over: what an expert tries for a fused product on an H100.

Plain Python, so that a machine without Triton can count them.
"""

ROWS, COLUMNS, DEPTHS = (64, 128, 256), (64, 128, 256), (32, 64)
STAGES, WARPS = (2, 3, 4), (4, 8)
SHARED_BYTES = 227 * 1024  # that a block may have on an H100
GROUPS = (1, 4, 16)  # blocks of rows whose programs run next to one another, column by column: 1 is row by row


def schedules(d, operands):
    """Of a product with D x D weights in bf16. `operands`: tiles of BM x BK in flight beside the one of weights."""
    found = []
    for bm in ROWS:
        for bn in COLUMNS:
            for bk in DEPTHS:
                for stages in STAGES:
                    # Triton 3.6 keeps one stage fewer of an operand that is computed. What does not fit after all
                    # fails at its launch and is counted as impossible.
                    shared = (operands * bm * (stages - 1) + bn * stages) * bk * 2
                    for warps in WARPS:
                        # A thread holds at most 128 f32 of the accumulator; the sum over layers takes as many again.
                        if d % bn == 0 and d % bk == 0 and shared <= SHARED_BYTES and bm * bn <= 128 * 32 * warps:
                            found.append(dict(BM=bm, BN=bn, BK=bk, GROUP=1, num_warps=warps, num_stages=stages))
    return tuple(found)


def refine(schedule):
    """The same tiles in other orders of programs."""
    return [{**schedule, "GROUP": group} for group in GROUPS if group != schedule["GROUP"]]
