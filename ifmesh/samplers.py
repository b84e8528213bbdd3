"""Which schedulers a request may ask for, and why no others.  Pure; the classes themselves are the heavy half's."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from ifmesh.errors import BadRequest

SAMPLERS: Final = ("ddpm", "dpm++", "dpm++-single", "ddim")
STEPS_ONLY: Final = ("ddim",)  # strides evenly: the step it takes follows from their number
_BURNS = "does not apply dynamic thresholding: pictures burn out"
_NOT = "is not offered here"
REFUSED: Final = {  # by a part of the name
    "euler": _BURNS, "kdpm2": _BURNS, "pndm": _BURNS, "tcd": _BURNS, "sde": "needs torchsde", "lms": "needs scipy",
    "unipc": _NOT, "deis": _NOT, "heun": _NOT, "lcm": _NOT, "edm": _NOT, "sa-solver": _NOT, "sasolver": _NOT,
}  # fmt: skip


def check(stage: str, name: str, listed: bool) -> None:
    """BadRequest: no stage draws by a scheduler of that name, or it knows no lists.  listed: the timesteps are given as a list."""
    field = f"settings.{stage}.scheduler"
    if name not in SAMPLERS:
        # The upscaler draws latents, which nobody thresholds.
        why = next((_NOT if stage == "upscaler" else why for part, why in REFUSED.items() if part in name[:64].lower()), "")
        near = get_close_matches(name.lower(), SAMPLERS, n=1, cutoff=0.5) if not why and len(name) <= 64 else []
        raise BadRequest(
            field, name, (f"{why}; " if why else "") + f"one of {', '.join(SAMPLERS)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    if listed and name in STEPS_ONLY:
        raise BadRequest(field, name, "strides evenly and takes no list of timesteps: give steps, or another scheduler")
