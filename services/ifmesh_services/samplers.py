"""Schedulers of another kind than the cascade's own, made of its configuration."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

KINDS: dict[str, Any] = {  # the names of ifmesh.samplers
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "dpm++-single": DPMSolverSinglestepScheduler,
    "ddim": DDIMScheduler,
}
LEAST_LAMBDA = -5.1  # lambda_min_clipped, as published with IF: below it the cosine's half log signal to noise ratio runs away


@lru_cache(maxsize=64)
def alike(template: Any, name: str | None) -> Any:
    """A scheduler of that kind that noises as the template does; the template itself where it is one, or nobody asked.

    Made once for each template: it takes a millisecond, and a request's own is a copy of it anyway.
    """
    kind = type(template) if name is None else KINDS[name]
    return template if kind is type(template) else kind.from_config(_edited(dict(template.config), kind))


def _edited(config: dict[str, Any], kind: Any) -> dict[str, Any]:
    edits: dict[str, Any] = {}
    if kind is DDIMScheduler:
        # Without it the pipelines' door would leave the UNet's variance on: the template's entry lives on, though DDIM knows none.
        edits["variance_type"] = "fixed_small"
    elif kind is not DDPMScheduler:
        if config.get("beta_schedule") == "squaredcos_cap_v2":
            edits["lambda_min_clipped"] = config.get("lambda_min_clipped", LEAST_LAMBDA)
        if kind is DPMSolverSinglestepScheduler:
            edits["lower_order_final"] = True  # as it would set itself, with a warning for every request
    defaults = [key for key in config.get("_use_default_values", ()) if key not in edits]  # diffusers drops what is named there
    return config | edits | {"_use_default_values": defaults}


def thresholded(own: Any, ratio: float | None, most: float | None) -> None:
    """Give a request's own scheduler the request's dynamic thresholding; None: as the cascade has it."""
    edits: dict[str, Any] = {"dynamic_thresholding_ratio": ratio, "sample_max_value": most}
    if said := {key: value for key, value in edits.items() if value is not None}:
        own.register_to_config(thresholding=True, **said)  # a new configuration of the copy's own; the template keeps its
