"""The upscaler: four times larger again, through a latent space, as diffusers' StableDiffusionUpscalePipeline draws it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ifmesh.cascade import IMAGE256, IMAGE1024, RNG, SOURCE
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .denoising import Draw, noise, noise_source
from .pictures import bright, drawn, enlarging
from .pooled import Pooling
from .schedules import planned, scheduled
from .tensors import to_blob
from .terms import OPTIONS, Terms

NAME = "upscaler"
SCALING = 0.08333  # of the latents.  The pipeline sets it, whatever the VAE's configuration says


class Upscaler:
    """Needs image256 [3, h, w], about -1 to 1, and rng; gives image1024 U8 [3, 4h, 4w] and rng.  One step more decodes the latents.

    Alone it needs source in the place of image256, as enlarging makes it.  The prompt comes with the request: this model was trained
    with CLIP, not T5.

    image256 is always taken for -1 to 1, where the pipeline guesses from its least value: of a tensor without a negative one, which
    means a picture brighter than middle grey throughout, it takes -1 to 1 for 0 to 1.  There, and only there, we differ, unless it is
    given (x / 2 + 0.5).clamp(0, 1), as our tests do.  A picture file is never guessed at: both know its range.
    """

    slots: int = 1

    def weighs(self, setup: Setup) -> int:
        """Bytes of its weights in memory, without loading them."""
        repo, dtype = recipes.read(setup.cascade).repos[NAME], loading.dtype_of(setup)
        how = Terms.read(NAME, setup.options, setup.device)
        parts = ("text_encoder", CLIPTextModel, dtype), ("unet", UNet2DConditionModel, dtype), ("vae", AutoencoderKL, torch.float32)
        return sum(loading.weight(repo, name, kind, of, how) for name, kind, of in parts)  # the VAE decodes in fp32

    def load(self, setup: Setup) -> str:
        pooling = Pooling.read(NAME, setup.options, beside=OPTIONS[NAME])
        terms = loading.agreed(NAME, setup)
        recipe = recipes.read(setup.cascade)
        repo, self._defaults = recipe.repos[NAME], recipe.settings(NAME)
        self._dtype, self._device = loading.dtype_of(setup), torch.device(setup.device)
        self._tokenizer: CLIPTokenizer = loading.tokenizer(repo, CLIPTokenizer)
        self._text: CLIPTextModel = loading.component(repo, "text_encoder", CLIPTextModel, self._dtype, setup.device, terms)
        self._unet: Any = loading.component(repo, "unet", UNet2DConditionModel, self._dtype, setup.device, terms)
        self._vae: Any = _upcast(loading.component(repo, "vae", AutoencoderKL, self._dtype, setup.device, terms))
        self._scheduler: Any = loading.scheduler(repo, "scheduler", DDIMScheduler)
        self._noising: Any = loading.scheduler(repo, "low_res_scheduler", DDPMScheduler)
        self._pool, self.slots = pooling.pool(self._unet), pooling.slots
        self._drawn: dict[str, Draw] = {}  # latents that wait for their decode
        parts = (self._text, self._unet, self._vae, self._scheduler, self._noising)
        return loading.numeric_class(setup, self._dtype, *parts, terms=terms) + pooling.numeric

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        plan = planned(self._defaults[request.task], request.settings.get(NAME))
        scheduler = scheduled(self._scheduler, plan, NAME)
        source = noise_source(request, bag)
        if SOURCE.name in bag:
            low = bright(enlarging(bag, NAME))
        else:
            low = (drawn(request, bag, IMAGE256, NAME, self._dtype) / 2 + 0.5).clamp(0, 1)
        low = (2 * low - 1).to(self._device, self._dtype)  # the pipeline wants 0 to 1, and its image processor -1 to 1
        level = torch.tensor([plan.noise_level], device=self._device)
        # The order of the draws is the pipeline's: first the low resolution's noise, then the latents'.
        low = self._noising.add_noise(low, noise(low.shape, source, self._dtype, self._device), level)
        shape = (1, self._vae.config.latent_channels, *low.shape[2:])
        latents = noise(shape, source, self._dtype, self._device) * scheduler.init_noise_sigma
        texts = [request.negative, request.prompt] if plan.guidance > 1 else [request.prompt]
        embeds = torch.cat([self._embeds(text) for text in texts])
        draw = Draw(latents, embeds, plan.guidance, scheduler, source, low, level.repeat(len(embeds)))
        return self._pool.admit(job, draw, saved)

    def step(self, paused: Collection[str] = ()) -> list[Advance]:
        """One denoising step, or the decode, which counts as none, for each admitted job that is not paused."""
        decoded = {job: self._drawn.pop(job) for job in list(self._drawn) if job not in paused}
        made = [Advance(job, draw.steps, draw.steps, self._output(draw)) for job, draw in decoded.items()]
        for job, draw in self._pool.step(paused):
            if draw.done == draw.steps:
                self._drawn[job] = draw
            made.append(Advance(job, draw.done, draw.steps))
        return made

    def save(self, job: str) -> Bag | None:
        return self._pool.save(job)

    def drop(self, job: str) -> None:
        self._pool.drop(job)
        self._drawn.pop(job, None)

    @torch.no_grad()
    def _embeds(self, text: str) -> torch.Tensor:
        """[1, 77, C].  As the pipeline does it: each text in a call of its own; SD's text encoders attend to the padding."""
        length = self._tokenizer.model_max_length
        tokens = self._tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self._device) if getattr(self._text.config, "use_attention_mask", False) else None
        embeds: torch.Tensor = self._text(tokens.input_ids.to(self._device), attention_mask=mask)[0]
        return embeds.to(self._dtype)

    @torch.no_grad()
    def _output(self, draw: Draw) -> Bag:
        latents = draw.x.to(next(self._vae.post_quant_conv.parameters()).dtype)
        image = self._vae.decode(latents / SCALING, return_dict=False)[0]
        image = (image * 0.5 + 0.5).clamp(0, 1).float().cpu()
        pixels = (image[0] * 255).round().to(torch.uint8)  # as output_type="pil" rounds: half to even
        return {IMAGE1024.name: to_blob(pixels), RNG.name: to_blob(draw.source.get_state())}


def _upcast(vae: Any) -> Any:
    """The VAE in fp32 when it overflows in fp16.  The pipeline goes there and back for every picture: the same weights."""
    return vae.float() if vae.dtype == torch.float16 and vae.config.force_upcast else vae
