"""The sizes that a verb compiles a kernel for, where it does not run it."""

from __future__ import annotations

from tessera.cli.target import Target
from tessera.runtime import api, execute, inputs


def sizes_of(target: Target, given: dict[str, int] | None) -> tuple[dict[str, int], dict[str, int]]:
    """The dims of a kernel, as given or their defaults, and the lengths of its lists by "len(name)".

    Raises ArgumentError TS605 for dims that it does not have or that are missing.
    """
    if target.definition is not None:
        signature = api.KernelState(target.definition).signature
        dims = inputs.choose_dims(target.name, inputs.dims_of(signature), given)
        return dims, inputs.choose_lengths(target.name, signature, target.args)
    assert target.module is not None
    parameters = execute.parameters_of(target.module.kernel(target.name))
    return inputs.choose_dims(target.name, inputs.dims_of(parameters), given), {}


__all__ = ["sizes_of"]
