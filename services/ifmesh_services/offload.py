"""Weights that are not where they compute: in RAM beside a card, or on disk.

What the published scripts do with enable_model_cpu_offload, enable_sequential_cpu_offload and device_map, by accelerate's hooks.  The
arithmetic is the same at the same place, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from accelerate.hooks import ModelHook, add_hook_to_module  # type: ignore[import-untyped]
from torch import Tensor

from .shelf import hooked


class Guest(ModelHook):  # type: ignore[misc]
    """A model that comes to the card when it is called, and leaves when another of this process is, or when it is sent away.

    As accelerate's cpu_offload_with_hook, without an order in which the models must be called.
    """

    here: ClassVar[tuple[Guest, torch.nn.Module] | None] = None
    no_grad = True

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def pre_forward(self, module: torch.nn.Module, *args: Any, **named: Any) -> tuple[Any, Any]:
        if Guest.here is None or Guest.here[0] is not self:
            leave()
            Guest.here = self, module
            module.to(self._device)
        return args, named


def leave() -> None:
    """Send the model that is on the card back to RAM, if one came as a Guest: nothing is to be done for now."""
    if Guest.here is not None:
        _, module = Guest.here
        Guest.here = None
        module.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def offloaded(model: Any, how: str, device: str, shelf: Mapping[str, Tensor] | None = None) -> Any:
    """The model under `how`: "model" or "sequential" (its weights are in RAM), or "disk" (it is a skeleton; shelf: its weights)."""
    if how == "model":
        made = add_hook_to_module(model, Guest(device))
    else:
        made = hooked(model, shelf if shelf is not None else dict(model.state_dict()), device)
    return computing_on(made, device)


def computing_on(model: Any, device: str) -> Any:
    """The model, whose `device` is where it computes: that of its first weight would send its inputs to where there is nothing."""
    kind, at = type(model), torch.device(device)
    model.__class__ = type(kind.__name__, (kind,), {"device": property(lambda self: at), "__module__": kind.__module__})
    return model
