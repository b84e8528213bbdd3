"""diffusers' own pipelines, chained with one CPU generator: what the cascade must give, bit for bit.

It reads a cascade folder by itself (from_pretrained and cascade.json) and shares no code with the services.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.pipelines.deepfloyd_if import timesteps as published
from PIL import Image

from ifmesh import respacing
from ifmesh.request import Settings

ALONE = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
EXTRA: dict[str, dict[str, Any]] = {
    "stage_one": ALONE,
    "stage_two": {**ALONE, "text_encoder": None, "tokenizer": None},
    "upscaler": {},
}
CLASSES: dict[str, dict[str, Any]] = {
    "generate": {"stage_one": IFPipeline, "stage_two": IFSuperResolutionPipeline},
    "vary": {"stage_one": IFImg2ImgPipeline, "stage_two": IFImg2ImgSuperResolutionPipeline},
    "inpaint": {"stage_one": IFInpaintingPipeline, "stage_two": IFInpaintingSuperResolutionPipeline},
}
SCHEDULERS: dict[str, Any] = {
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "dpm++-single": DPMSolverSinglestepScheduler,
    "ddim": DDIMScheduler,
}


def recipe(folder: Path) -> dict[str, dict[str, Any]]:
    """cascade.json: {"stage_one": {"repo", "steps", "guidance", "vary": {"steps"}, ...}, ...}"""
    read: dict[str, dict[str, Any]] = json.loads((folder / "cascade.json").read_text())
    return read


@cache
def pipeline(folder: Path, stage: str, dtype: torch.dtype = torch.float32, task: str = "generate") -> Any:
    """The stage's pipeline, loaded from the cascade's folder as anybody would load it (in fp16: the variant of that name)."""
    kind, extra = CLASSES[task].get(stage, StableDiffusionUpscalePipeline), EXTRA[stage]
    variant = "fp16" if dtype == torch.float16 else None
    repo = folder / recipe(folder)[stage]["repo"]
    loaded = kind.from_pretrained(repo, use_safetensors=True, variant=variant, dtype=dtype, **extra)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def chain(
    folder: Path,
    prompt: str,
    negative: str = "",
    seed: int = 0,
    settings: Mapping[str, Settings] | None = None,
    *,
    task: str = "generate",
    source: Image.Image | None = None,
    mask: Image.Image | None = None,
    state: torch.Tensor | None = None,
    seeding: str = "chained",
    width: int | None = None,
    height: int | None = None,
    first_stage: str = "encoder",
    last_stage: str = "upscaler",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """embeds [2, 77, C], image64 and image256 [3, h, w], image1024 U8 [3, H, W], from first_stage to last_stage; on one thread.

    Every call starts from the cascade's own settings; `settings` replaces them field by field, steps and timesteps each other.  What
    neither says is the pipeline's own default.  source, mask: as load_image gives them.  state: of a generator that goes on from there.
    Upscale is generate with the source, its sides made multiples of 8, in the place of what the stage before has drawn.
    """
    torch.set_num_threads(1)
    generator = torch.Generator("cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(state)

    def source_of_noise() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(seed) if seeding == "per_stage" else generator

    def draw(stage: str, **inputs: Any) -> Any:
        kind = "generate" if stage == "upscaler" or task == "upscale" else task
        pipe, given = pipeline(folder, stage, dtype, kind), (settings or {}).get(stage, Settings())
        with _scheduled(pipe, given):
            return pipe(**inputs, **_arguments(folder, kind, stage, given), generator=source_of_noise()).images

    bag: dict[str, torch.Tensor] = {}
    low: Any = source
    if source is not None and task == "upscale":
        low = source.resize([max(16, 8 * round(side / 8)) for side in source.size], Image.Resampling.BICUBIC)
        width, height = low.size
    if first_stage == "encoder":
        with torch.no_grad():
            positive, other = pipeline(folder, "stage_one", dtype).encode_prompt(prompt, negative_prompt=negative)
        bag["embeds"] = torch.cat([other, positive])
        texts = {"prompt_embeds": positive, "negative_prompt_embeds": other, "output_type": "pt"}
        over = {} if mask is None else {"mask_image": mask}
        if task != "upscale":
            first = {"width": width, "height": height} if source is None else {"image": source}
            low = draw("stage_one", **texts, **first, **over)
            bag["image64"] = low[0]
            if last_stage == "stage_one":
                return bag
        size = {"width": 4 * width if width else None, "height": 4 * height if height else None}
        first = size if source is None or task == "upscale" else {"original_image": source}
        drawn = draw("stage_two", image=low, **texts, **first, **over)
        bag["image256"] = drawn[0]
        if last_stage == "stage_two":
            return bag
        low = (drawn / 2 + 0.5).clamp(0, 1)  # the upscaler takes 0 to 1
    [picture] = draw("upscaler", image=low, prompt=prompt, negative_prompt=negative, output_type="pil")
    bag["image1024"] = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()
    return bag


@contextmanager
def _scheduled(pipe: Any, given: Settings) -> Iterator[None]:
    """The pipeline's scheduler replaced as anybody would, by diffusers' from_config and an edited configuration."""
    own = pipe.scheduler
    config = dict(own.config)
    if given.threshold_ratio is not None:
        config["dynamic_thresholding_ratio"] = given.threshold_ratio
    if given.threshold_max is not None:
        config["sample_max_value"] = given.threshold_max
    if given.scheduler == "ddim" and "variance_type" in config:
        config["variance_type"] = "fixed_small"
    pipe.scheduler = (SCHEDULERS[given.scheduler] if given.scheduler else type(own)).from_config(config)
    try:
        yield
    finally:
        pipe.scheduler = own


def listed(given: Settings) -> list[int] | None:
    """diffusers' own list for a name; of the rest only what follows no name."""
    if given.schedule is None:
        return None if given.timesteps is None else list(given.timesteps)
    return list(getattr(published, f"{given.schedule}_timesteps", None) or respacing.timesteps(given.schedule))


def _arguments(folder: Path, task: str, stage: str, given: Settings) -> dict[str, Any]:
    """A pipeline's keywords for the cascade's settings, overridden by the request's."""
    default = recipe(folder)[stage]
    if task != "generate" and stage != "upscaler":
        default = default.get(task, {})
    arguments: dict[str, Any] = {}
    for name, keyword in (("guidance", "guidance_scale"), ("noise_level", "noise_level"), ("strength", "strength")):
        value = default.get(name) if getattr(given, name) is None else getattr(given, name)
        if value is not None:
            arguments[keyword] = value
    if (timesteps := listed(given)) is not None:
        return arguments | {"timesteps": timesteps}
    if given.steps is None and "timesteps" in default:
        return arguments | {"timesteps": default["timesteps"]}
    return arguments | {"num_inference_steps": given.steps or default["steps"]}
