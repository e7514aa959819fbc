"""Runs a kernel given as source on both CPU lanes, and compiles it for the architectures that every kernel must fit."""

import textwrap

import numpy as np

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel
from tessera.frontend.document import execute, parse_document
from tessera.frontend.grid import launch_grid
from tessera.ir.ops.effects import order_dependent
from tessera.runtime import emulator
from tessera.runtime.compare import check
from tessera.runtime.execute import emulated_arguments
from tessera.runtime.interpreter import interpret
from tessera.runtime.interpreter_output import capture
from tessera.runtime.nvrtc import compile_cubin
from tessera.runtime.reference import reference
from tests.text_law import held_to_its_text

PRELUDE = {"ts": ts, "tile": tile, "Tensor": Tensor}


def define(text: str):
    """The kernel `k` of a source text."""
    return execute(parse_document("case.py", textwrap.dedent(text).strip("\n") + "\n"), PRELUDE)["k"]


def copied(arguments):
    return {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in arguments.items()}


def emulate(compilation, arguments, dims, seed=0):
    """Runs the emitted CUDA in place."""
    kernel, text = compilation.target.kernel(), compilation.cuda[0]
    (step,) = compilation.program.launches
    values = emulated_arguments(compilation.program, step, arguments, dims)
    library = emulator.build(text.text, [text.name])
    library.launch(text.name, launch_grid(kernel, dims), text.threads, text.shared_bytes, values, seed=seed)


def run(text, arguments, dims, archs=("sm_80", "sm_90a"), seeds=(0, 7)):
    """Runs `k` at every stage of the pipeline and on the emulator; all must agree. Returns outputs and printed lines.

    Sums of floats by atomics are compared with the reference's bars instead of bit for bit.
    """
    compilation = compile_kernel(define(text), dims)
    kernel = compilation.stages[0].module.kernel()
    loose = order_dependent(kernel)
    bars = reference(kernel, copied(arguments), dims)
    written = [name for name, role in kernel.attributes["parameters"] if role != "in"]
    expected, lines, before = None, None, ""
    for stage in compilation.stages:
        told = held_to_its_text(stage.module, stage.name)
        if told == before:
            continue
        before = told
        given = copied(arguments)
        with capture() as printed:
            interpret(stage.module.kernel(), given, dims, level=stage.module.level)
        if expected is None:
            expected, lines = given, printed
        same(expected, given, written, (), stage.name)
        assert printed == lines, stage.name
    for seed in seeds:
        given = copied(arguments)
        with capture() as printed:
            emulate(compilation, given, dims, seed)
        same(expected, given, written, loose, f"emulator, seed {seed}")
        assert sorted(printed) == sorted(lines) if seed else printed == lines
        for name in loose:
            assert check(given[name], bars[name]).ok
    for name in written:
        assert check(expected[name], bars[name]).ok, name
    for arch in archs:
        source = compile_kernel(define(text), dims, arch=arch).cuda[0]
        resources = compile_cubin(source.text, arch, source.name).resources[source.name]
        # None in a loop, and at most eight registers elsewhere.
        assert max(resources.spill_stores, resources.spill_loads) <= (0 if "for (ts_i64" in source.text else 32)
    return {name: expected[name] for name in written}, lines


def same(expected, given, written, loose, what):
    for name in written:
        if name not in loose:
            assert expected[name].tobytes() == given[name].tobytes(), f"{what} differs in {name}"
