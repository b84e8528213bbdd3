"""Which timesteps a request walks through: its settings over the cascade's defaults, and a scheduler of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from ifmesh import rules
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.protocol import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """How one stage draws one request, all decided.  timesteps: the explicit list, else `steps` of the scheduler's own choice.

    guidance: 1 or less is none.  noise_level: 0 to 999, put on the low-resolution input, where the stage has one.  strength: (0, 1],
    how much of the list runs; 1 where there is no source.
    """

    steps: int
    timesteps: tuple[int, ...] | None
    guidance: float
    noise_level: int
    strength: float = 1.0

    def begin(self, scheduler: Any) -> int:
        """The index of the first timestep that runs.  Formula: diffusers' get_timesteps."""
        return int((self.steps - rules.steps_left(self.steps, self.strength)) * scheduler.order)


def planned(default: Settings, given: Settings | None) -> Plan:
    """The request's settings over the cascade's, field by field.  steps and timesteps replace each other."""
    given = given or Settings()
    own_list = given.steps is not None or given.timesteps is not None
    steps, timesteps = (given.steps, given.timesteps) if own_list else (default.steps, default.timesteps)
    if steps is None and timesteps is None:
        raise Misconfigured("the cascade names neither steps nor timesteps for this stage: see its cascade.json")
    guidance = default.guidance if given.guidance is None else given.guidance
    noise_level = default.noise_level if given.noise_level is None else given.noise_level
    strength = default.strength if given.strength is None else given.strength
    return Plan(
        steps=len(timesteps) if timesteps is not None else steps or 0,
        timesteps=timesteps,
        guidance=1.0 if guidance is None else guidance,
        noise_level=0 if noise_level is None else noise_level,
        strength=1.0 if strength is None else strength,
    )


def scheduled(template: Any, plan: Plan, stage: str) -> Any:
    """A scheduler of the request's own, all its timesteps set, on the CPU (step() reads them one by one, from plan.begin on).

    template: a diffusers scheduler.  The copy shares its tables; its list it must not share, because a step looks the next timestep
    up in it.  BadRequest when the list leaves what the model was trained for, or strength leaves nothing of it.
    """
    rules.check_steps_left(stage, plan.steps, plan.strength)
    own = copy.copy(template)
    trained = template.config.num_train_timesteps
    named, value = ("steps", plan.steps) if plan.timesteps is None else ("timesteps", plan.timesteps)
    wrong = BadRequest(f"settings.{stage}.{named}", value, f"this model knows timesteps 0 to {trained - 1}: stay within, or take fewer")
    try:
        if plan.timesteps is None:
            own.set_timesteps(plan.steps, device="cpu")
        else:
            own.set_timesteps(timesteps=list(plan.timesteps), device="cpu")
    except ValueError:
        raise wrong from None
    # An offset pushes the first of very many steps past the end, unnoticed (DDIM with steps_offset=1 and 1000 steps).
    if int(own.timesteps.max()) >= trained:
        raise wrong
    if hasattr(own, "set_begin_index"):
        own.set_begin_index(plan.begin(own))  # the multistep solvers would otherwise look it up, wrongly when a timestep comes twice
    return own
