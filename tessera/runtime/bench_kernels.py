"""Kernels as a benchmark calls them: under the choice that tuning makes for a call, or the one without measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.frontend.definition import KernelDefinition
from tessera.runtime import api
from tessera.runtime.autotune_calls import Bench, Chooser, Compiled, note_of
from tessera.runtime.autotune_report import Choice, settings_text
from tessera.target.arch import BASE_LANE
from tessera.target.schedule import WARPGROUP_LANE


def tuned(definition: KernelDefinition, arguments: Sequence[Any]) -> tuple[KernelDefinition, str]:
    """A kernel under the schedule that `tessera tune` finds for these arguments, or has found; and which that is.

    `TESSERA_TUNE` says whether it may measure. A kernel with a tuning space stays as it is: it does this when it is
    called, and `choice_of` tells what it took.
    """
    if definition.space is not None:
        return definition, ""
    chooser, compiled, scalars, bench = _call(definition, arguments)
    choice = chooser.choose(compiled, scalars, bench).choice
    return definition.scheduled(choice.schedule or {}), _text(definition, choice)


def untuned(definition: KernelDefinition, arguments: Sequence[Any]) -> tuple[KernelDefinition, str]:
    """A kernel as it runs where nothing was measured, and what that is: of a tuning space the predicted point."""
    if definition.space is None:
        return definition, ""
    from tessera.runtime.autotune import predict

    chooser, compiled, scalars, _ = _call(definition, arguments)
    choice = predict(chooser.subject(compiled, {**scalars, **compiled.dims}))
    return definition.pinned(choice.constants).scheduled(choice.schedule or {}), _text(definition, choice)


def choice_of(definition: KernelDefinition) -> str:
    """What the last call of a kernel with a tuning space ran with, and the lane of its schedule; empty where there was
    none.
    """
    choice = getattr(api.last_run(definition), "choice", None)
    if choice is None:
        return ""
    return _text(definition, choice) + (f"; lane {lane_of(choice.schedule)}" if choice.schedule else "")


def lane_of(schedule: Mapping[str, Any]) -> str:
    """The lane that a schedule is a point of."""
    on_lane = schedule.get("family") == "wgmma" and schedule.get("copies") == "tma"
    return WARPGROUP_LANE if on_lane else BASE_LANE


def _text(definition: KernelDefinition, choice: Choice) -> str:
    if definition.space is not None:
        return note_of(choice)
    return f"{settings_text(choice.schedule or {})}, {choice.origin}: {choice.note}"


def _call(
    definition: KernelDefinition, arguments: Sequence[Any]
) -> tuple[Chooser, Compiled, Mapping[str, Any], Bench | None]:
    """What a choice is made for, as for a call with these arguments; where they live on a GPU it can be measured."""
    state = api.KernelState(definition).for_arguments(tuple(arguments), {})
    binding, _ = api._bind(state, None, tuple(arguments), {})
    device = binding.device
    arch = api.choose_arch(None) if device is None else api.device_arch(device)
    bench = None if device is None else Bench(device, binding.stream(), lambda: binding)
    compiled = state.compiled_for(binding, arch, on_gpu=device is not None)
    return Chooser(state.definition, state.kernel), compiled, binding.scalars, bench


__all__ = ["choice_of", "lane_of", "tuned", "untuned"]
