"""Stage II: the base picture to four times its size, as diffusers' IFSuperResolutionPipeline and its two relatives draw it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional

from ifmesh.cascade import IMAGE64, IMAGE256
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .denoising import Draw, embeddings, noise, noise_source, rows
from .pictures import drawn, enlarging, normal, sketched
from .pooled import Pooling
from .schedules import planned, scheduled
from .terms import OPTIONS, Terms

NAME = "stage_two"


class StageTwo:
    """Needs embeds, image64 [3, h, w] and rng, and, for vary and inpaint, source and mask; gives image256, about -1 to 1, and rng.

    To upscale it needs source in the place of image64, as enlarging makes it.  image256 is [3, 4h, 4w], or follows what is drawn over:
    see geometry.fitted.  One denoising step for each admitted job per step().
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
        self._noising: Any = loading.scheduler(repo, "image_noising_scheduler", DDPMScheduler)
        self._pool, self.slots = pooling.pool(self._unet), pooling.slots
        return loading.numeric_class(setup, self._dtype, self._unet, self._scheduler, self._noising, terms=terms) + pooling.numeric

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        plan = planned(self._defaults[request.task], request.settings.get(NAME))
        scheduler = scheduled(self._scheduler, plan, NAME)
        begin = plan.begin(scheduler)
        enlarges = request.task == "upscale"
        sketch = None if enlarges else sketched(bag, self._unet.config.sample_size, dtype=self._dtype, device=self._device)
        base = normal(enlarging(bag, NAME)) if enlarges else drawn(request, bag, IMAGE64, NAME, self._dtype)
        base = base.to(self._device, self._dtype)
        size = sketch.size if sketch else (recipes.TIMES * base.shape[2], recipes.TIMES * base.shape[3])
        embeds = rows(embeddings(request, bag, self._unet), plan.guidance)
        source = noise_source(request, bag)
        # The order of the draws is the pipeline's: first the picture's noise, then the low resolution's.
        x = noise((1, 3, *size), source, self._dtype, self._device)
        x = sketch.noised(scheduler, begin, x) if sketch else x * scheduler.init_noise_sigma
        low = functional.interpolate(base, size, mode="bilinear", align_corners=True)
        level = torch.tensor([plan.noise_level], device=self._device)
        low = self._noising.add_noise(low, noise(low.shape, source, self._dtype, self._device), level)
        labels = level.repeat(len(embeds))
        mixer = plan.positive_mixer if request.style else None
        draw = Draw(x, embeds, plan.guidance, scheduler, source, low, labels, begin, sketch.mask if sketch else None, mixer)
        return self._pool.admit(job, draw, saved)

    def step(self, paused: Collection[str] = ()) -> list[Advance]:
        return self._pool.advance(IMAGE256, paused)

    def save(self, job: str) -> Bag | None:
        return self._pool.save(job)

    def drop(self, job: str) -> None:
        self._pool.drop(job)
