"""Which timesteps a request walks through: its settings over the cascade's defaults, and a scheduler of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from ifmesh import rules, samplers
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Settings

from .samplers import alike, thresholded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """How one stage draws one request, all decided.  timesteps: the explicit list, else `steps` of the scheduler's own choice.

    guidance: 1 or less is none.  noise_level: 0 to 999, put on the low-resolution input, where the stage has one.  strength: (0, 1],
    how much of the list runs; 1 where there is no source.  schedule: what the list came of, if of a name.  scheduler, threshold_ratio,
    threshold_max: None is the cascade's own.  positive_mixer: of a style, if there is one.
    """

    steps: int
    timesteps: tuple[int, ...] | None
    guidance: float
    noise_level: int
    strength: float = 1.0
    schedule: str | None = None
    scheduler: str | None = None
    threshold_ratio: float | None = None
    threshold_max: float | None = None
    positive_mixer: float = 0.0

    def begin(self, scheduler: Any) -> int:
        """The index of the first timestep that runs.  Formula: diffusers' get_timesteps."""
        return int((self.steps - rules.steps_left(self.steps, self.strength)) * scheduler.order)


def planned(default: Settings, given: Settings | None) -> Plan:
    """The request's settings over the cascade's, field by field.  steps, timesteps and schedule replace each other."""
    given = given or Settings()
    walk = given if given.steps is not None or rules.listed(given) is not None else default
    steps, timesteps = walk.steps, rules.listed(walk)
    if steps is None and timesteps is None:
        raise Misconfigured("the cascade names neither steps nor timesteps for this stage: see its cascade.json")
    return Plan(
        steps=len(timesteps) if timesteps is not None else steps or 0,
        timesteps=timesteps,
        guidance=_either(given.guidance, default.guidance, 1.0),
        noise_level=_either(given.noise_level, default.noise_level, 0),
        strength=_either(given.strength, default.strength, 1.0),
        schedule=walk.schedule,
        scheduler=given.scheduler or default.scheduler,
        threshold_ratio=_either(given.threshold_ratio, default.threshold_ratio, None),
        threshold_max=_either(given.threshold_max, default.threshold_max, None),
        positive_mixer=_either(given.positive_mixer, default.positive_mixer, 0.0),
    )


def _either(given: T | None, default: T | None, last: T) -> T:
    """The first that says something; 0 does."""
    return next((value for value in (given, default) if value is not None), last)


def scheduled(template: Any, plan: Plan, stage: str) -> Any:
    """A scheduler of the request's own, all its timesteps set, on the CPU (step() reads them one by one, from plan.begin on).

    template: a diffusers scheduler.  The copy shares its tables (or those of its kin, where the request asks for another kind); its list
    it must not share, because a step looks the next timestep up in it.  BadRequest when the list leaves what the model was trained for,
    strength leaves nothing of it, or the settings, together with the cascade's, do not go together.
    """
    rules.check_steps_left(stage, plan.steps, plan.strength)
    if plan.scheduler is not None:
        samplers.check(stage, plan.scheduler, listed=plan.timesteps is not None)  # of the cascade's own list only the stage knows
    own = copy.copy(alike(template, plan.scheduler))
    thresholded(own, plan.threshold_ratio, plan.threshold_max)
    if plan.threshold_ratio is not None and own.config.sample_max_value <= 1:
        most = own.config.sample_max_value
        remedy = f"without effect while threshold_max is {most:g}: everything is cut at -1 and 1; give a threshold_max above 1, too"
        raise BadRequest(f"settings.{stage}.threshold_ratio", plan.threshold_ratio, remedy)
    trained = template.config.num_train_timesteps
    named, value = _said(plan)
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
    if len(own.timesteps.unique()) < len(own.timesteps):  # the solvers' spacing rounds; a stride of nothing divides by nothing
        remedy = f"{plan.scheduler} would visit a timestep twice: at most {int(own.timesteps.max())}"
        raise BadRequest(f"settings.{stage}.{named}", value, remedy)
    if hasattr(own, "set_begin_index"):
        own.set_begin_index(plan.begin(own))  # the multistep solvers would otherwise look it up, wrongly when a timestep comes twice
    return own


def _said(plan: Plan) -> tuple[str, object]:
    """The setting that decided on the timesteps, and its value."""
    if plan.schedule is not None:
        return "schedule", plan.schedule
    return ("steps", plan.steps) if plan.timesteps is None else ("timesteps", plan.timesteps)
