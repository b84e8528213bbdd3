"""diffusers' own pipelines, made of a stage's models: what the stages are measured against."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline
from torch import Tensor

from ifmesh.cascade import EMBEDS, IMAGE64, IMAGE256
from ifmesh.request import Request
from ifmesh.stage import Bag

from ..schedules import Plan, planned
from ..tensors import to_torch

PLAIN = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
Asked = Sequence[tuple[Request, Bag]]


def pipeline(name: str, stage: Any) -> Any:
    """The stage's pipeline; schedulers of its own, for it changes them."""
    kind: Any
    if name == "encoder":
        kind = IFPipeline
        made = kind(tokenizer=stage._tokenizer, text_encoder=stage._model, unet=None, scheduler=None, **PLAIN)
    elif name == "upscaler":
        kind = StableDiffusionUpscalePipeline
        parts = {"vae": stage._vae, "text_encoder": stage._text, "tokenizer": stage._tokenizer, "unet": stage._unet}
        made = kind(**parts, scheduler=copy.deepcopy(stage._scheduler), low_res_scheduler=copy.deepcopy(stage._noising))
    else:
        kind, noising = IFPipeline, {}
        if name == "stage_two":
            kind, noising = IFSuperResolutionPipeline, {"image_noising_scheduler": copy.deepcopy(stage._noising)}
        parts = {"tokenizer": None, "text_encoder": None, "unet": stage._unet, "scheduler": copy.deepcopy(stage._scheduler)}
        made = kind(**parts, **noising, **PLAIN)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(name: str, stage: Any, pipe: Any, asked: Asked) -> Tensor:
    """The requests' pictures, [B, 3, h, w], about -1 to 1 (the upscaler's 0 to 1), as one static batch; all want what the first wants."""
    want = plan(name, stage, asked[0][0])
    walk: dict[str, Any] = {"num_inference_steps": want.steps} if want.timesteps is None else {"timesteps": list(want.timesteps)}
    sources = [torch.Generator("cpu").manual_seed(request.seed) for request, _ in asked]
    walk |= {"guidance_scale": want.guidance, "generator": sources, "output_type": "pt"}
    if name == "upscaler":
        low = (_stacked(stage, asked, IMAGE256.name) / 2 + 0.5).clamp(0, 1)  # it takes 0 to 1
        texts = {"prompt": [request.prompt for request, _ in asked], "negative_prompt": [request.negative for request, _ in asked]}
        walk |= {"image": low, **texts, "noise_level": want.noise_level}
    else:
        both = _stacked(stage, asked, EMBEDS.name)
        walk |= {"negative_prompt_embeds": both[:, 0], "prompt_embeds": both[:, 1]}
    if name == "stage_two":
        walk |= {"image": _stacked(stage, asked, IMAGE64.name), "noise_level": want.noise_level}
    pictures: Tensor = pipe(**walk).images
    return pictures


def plan(name: str, stage: Any, request: Request) -> Plan:
    return planned(stage._defaults[request.task], request.settings.get(name))


def _stacked(stage: Any, asked: Asked, name: str) -> Tensor:
    return torch.stack([to_torch(bag[name]) for _, bag in asked]).to(stage._device, stage._dtype)
