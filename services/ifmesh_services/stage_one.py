"""Stage I: embeddings to the base picture, as diffusers' IFPipeline, IFImg2ImgPipeline and IFInpaintingPipeline draw it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from ifmesh.cascade import IMAGE64
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .denoising import Draw, embeddings, noise, noise_source, rows
from .pictures import sketched
from .pooled import Pooling
from .schedules import planned, scheduled
from .terms import OPTIONS, Terms

NAME = "stage_one"


class StageOne:
    """Needs embeds and rng, and, for vary and inpaint, source and mask; gives image64 [3, h, w], about -1 to 1, and rng.

    One denoising step for each admitted job per step().
    """

    slots: int = 1

    def weighs(self, setup: Setup) -> int:
        """Bytes of its weights in memory, without loading them."""
        repo, dtype = recipes.read(setup.cascade).repos[NAME], loading.dtype_of(setup)
        return loading.weight(repo, "unet", UNet2DConditionModel, dtype, Terms.read(NAME, setup.options, setup.device))

    def load(self, setup: Setup) -> str:
        pooling = Pooling.read(NAME, setup.options, beside=OPTIONS[NAME])
        terms = loading.agreed(NAME, setup)
        recipe = recipes.read(setup.cascade)
        repo, self._defaults = recipe.repos[NAME], recipe.settings(NAME)
        self._dtype, self._device = loading.dtype_of(setup), torch.device(setup.device)
        self._unet: Any = loading.component(repo, "unet", UNet2DConditionModel, self._dtype, setup.device, terms)
        self._scheduler: Any = loading.scheduler(repo, "scheduler", DDPMScheduler)
        self._pool, self.slots = pooling.pool(self._unet), pooling.slots
        return loading.numeric_class(setup, self._dtype, self._unet, self._scheduler, terms=terms) + pooling.numeric

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        plan = planned(self._defaults[request.task], request.settings.get(NAME))
        scheduler = scheduled(self._scheduler, plan, NAME)
        begin = plan.begin(scheduler)
        side = self._unet.config.sample_size
        sketch = sketched(bag, side, recipes.TIMES * side, dtype=self._dtype, device=self._device)
        size = sketch.size if sketch else (request.height or side, request.width or side)
        embeds = rows(embeddings(request, bag, self._unet), plan.guidance)
        source = noise_source(request, bag)
        x = noise((1, self._unet.config.in_channels, *size), source, self._dtype, self._device)
        x = sketch.noised(scheduler, begin, x) if sketch else x * scheduler.init_noise_sigma
        mixer = plan.positive_mixer if request.style else None
        draw = Draw(x, embeds, plan.guidance, scheduler, source, begin=begin, mask=sketch.mask if sketch else None, mixer=mixer)
        return self._pool.admit(job, draw, saved)

    def step(self, paused: Collection[str] = ()) -> list[Advance]:
        return self._pool.advance(IMAGE64, paused)

    def save(self, job: str) -> Bag | None:
        return self._pool.save(job)

    def drop(self, job: str) -> None:
        self._pool.drop(job)
