"""Asynchronous copies in CUDA: what a turn adds to the one before is a constant where the threads share out rows."""

import re

from tessera.compiler import compile_kernel
from tests.suite import load

STEP = re.compile(r"ts_cp_async<\d+, \w+>\(.*, (source \+ turn \* \(\(ts_i64\)\d+ \* \w+\)), ")


def copies(name, dims):
    return [line for line in compile_kernel(load(name), dims).cuda[0].text.split("\n") if "ts_cp_async<" in line]


def test_turns_of_a_copy_are_steps_from_the_first():
    lines = copies("difference_matmul", {"M": 130, "N": 72, "K": 104})
    assert lines and all(STEP.search(line) for line in lines)


def test_one_axis_of_many_rows_needs_no_division():
    text = compile_kernel(load("batched_matmul"), {"B": 2, "M": 64, "N": 64, "K": 64}).cuda[0].text
    assert "ts_cp_async<" in text and "= row /" not in text
