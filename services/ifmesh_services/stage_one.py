"""Stage I: embeddings to the base picture, as diffusers' IFPipeline draws it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from ifmesh.cascade import EMBEDS, IMAGE64, RNG
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .denoising import Draw, Pool, noise, noise_source, rows
from .schedules import planned, scheduled
from .tensors import take, to_blob

NAME = "stage_one"


class StageOne:
    """Needs embeds and rng; gives image64 [3, h, w], about -1 to 1, and rng.  One denoising step for each admitted job per step()."""

    slots: int = 1

    def load(self, setup: Setup) -> str:
        recipe = recipes.read(setup.cascade)
        repo, self._defaults = recipe.repos[NAME], recipe.defaults[NAME]
        self._dtype, self._device = loading.dtype_of(setup), torch.device(setup.device)
        self._unet: Any = loading.component(repo, "unet", UNet2DConditionModel, self._dtype, setup.device)
        self._scheduler: Any = loading.scheduler(repo, "scheduler", DDPMScheduler)
        self._pool = Pool(self._unet)
        return loading.numeric_class(setup, self._dtype, self._unet, self._scheduler)

    def admit(self, job: str, request: Request, bag: Bag) -> int:
        plan = planned(self._defaults, request.settings.get(NAME))
        scheduler = scheduled(self._scheduler, plan, NAME)
        source = noise_source(request, bag)
        side = self._unet.config.sample_size
        shape = (1, self._unet.config.in_channels, request.height or side, request.width or side)
        x = noise(shape, source, self._dtype, self._device) * scheduler.init_noise_sigma
        embeds = rows(take(bag, EMBEDS), plan.guidance).to(self._device, self._dtype)
        draw = Draw(x, embeds, plan.guidance, scheduler, source)
        self._pool.admit(job, draw)
        return draw.steps

    def step(self) -> list[Advance]:
        return [Advance(job, draw.done, draw.steps, self._output(draw)) for job, draw in self._pool.step()]

    def drop(self, job: str) -> None:
        self._pool.drop(job)

    def _output(self, draw: Draw) -> Bag | None:
        if draw.done < draw.steps:
            return None
        return {IMAGE64.name: to_blob(draw.x[0]), RNG.name: to_blob(draw.source.get_state())}
