"""Stage II: the base picture to four times its size, as diffusers' IFSuperResolutionPipeline draws it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional

from ifmesh.cascade import EMBEDS, IMAGE64, IMAGE256, RNG
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .denoising import Draw, Pool, noise, noise_source, rows
from .schedules import planned, scheduled
from .tensors import take, to_blob

NAME = "stage_two"
TIMES = 4  # the pipeline draws its UNet's sample_size whatever comes in; for the base size the cascade was made for, that is the same


class StageTwo:
    """Needs embeds, image64 [3, h, w] and rng; gives image256 [3, 4h, 4w], about -1 to 1, and rng."""

    slots: int = 1

    def load(self, setup: Setup) -> str:
        recipe = recipes.read(setup.cascade)
        repo, self._defaults = recipe.repos[NAME], recipe.defaults[NAME]
        self._dtype, self._device = loading.dtype_of(setup), torch.device(setup.device)
        self._unet: Any = loading.component(repo, "unet", UNet2DConditionModel, self._dtype, setup.device)
        self._scheduler: Any = loading.scheduler(repo, "scheduler", DDPMScheduler)
        self._noising: Any = loading.scheduler(repo, "image_noising_scheduler", DDPMScheduler)
        self._pool = Pool(self._unet)
        return loading.numeric_class(setup, self._dtype, self._unet, self._scheduler, self._noising)

    def admit(self, job: str, request: Request, bag: Bag) -> int:
        plan = planned(self._defaults, request.settings.get(NAME))
        scheduler = scheduled(self._scheduler, plan, NAME)
        source = noise_source(request, bag)
        base = take(bag, IMAGE64).to(self._device, self._dtype)[None]
        size = (TIMES * base.shape[2], TIMES * base.shape[3])
        # The order of the draws is the pipeline's: first the picture's noise, then the low resolution's.
        x = noise((1, 3, *size), source, self._dtype, self._device) * scheduler.init_noise_sigma
        low = functional.interpolate(base, size, mode="bilinear", align_corners=True)
        level = torch.tensor([plan.noise_level], device=self._device)
        low = self._noising.add_noise(low, noise(low.shape, source, self._dtype, self._device), level)
        embeds = rows(take(bag, EMBEDS), plan.guidance).to(self._device, self._dtype)
        draw = Draw(x, embeds, plan.guidance, scheduler, source, low, level.repeat(len(embeds)))
        self._pool.admit(job, draw)
        return draw.steps

    def step(self) -> list[Advance]:
        """One denoising step for each admitted job."""
        return [Advance(job, draw.done, draw.steps, self._output(draw)) for job, draw in self._pool.step()]

    def drop(self, job: str) -> None:
        self._pool.drop(job)

    def _output(self, draw: Draw) -> Bag | None:
        if draw.done < draw.steps:
            return None
        return {IMAGE256.name: to_blob(draw.x[0]), RNG.name: to_blob(draw.source.get_state())}
