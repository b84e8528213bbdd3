"""diffusers' own pipelines, chained with one CPU generator: what the cascade must give, bit for bit.

It reads a cascade folder by itself (from_pretrained and cascade.json) and shares no code with the services.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import (
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL import Image

from ifmesh.protocol import Settings

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
    if dtype == torch.float16:  # on a CPU torch takes other fp16 kernels for weights that could be trained; the mesh's are frozen
        for part in loaded.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
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
    last_stage: str = "upscaler",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """embeds [2, 77, C], image64 and image256 [3, h, w], image1024 U8 [3, H, W], up to last_stage; on one thread.

    Every call starts from the cascade's own settings; `settings` replaces them field by field, steps and timesteps each other.  What
    neither says is the pipeline's own default.  source, mask: as load_image gives them.  state: of a generator that goes on from there.
    """
    torch.set_num_threads(1)
    generator = torch.Generator("cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(state)

    def source_of_noise() -> torch.Generator:
        return torch.Generator("cpu").manual_seed(seed) if seeding == "per_stage" else generator

    def arguments(stage: str) -> dict[str, Any]:
        return _arguments(folder, task, stage, settings) | {"generator": source_of_noise()}

    one = pipeline(folder, "stage_one", dtype, task)
    with torch.no_grad():
        positive, negative_embeds = one.encode_prompt(prompt, negative_prompt=negative)
    texts = {"prompt_embeds": positive, "negative_prompt_embeds": negative_embeds}
    bag = {"embeds": torch.cat([negative_embeds, positive])}

    size = {"width": width, "height": height} if task == "generate" else {}
    over = {} if mask is None else {"mask_image": mask}
    first = {} if source is None else {"image": source}
    drawn = one(**texts, **size, **first, **over, **arguments("stage_one"), output_type="pt").images
    bag["image64"] = drawn[0]
    if last_stage == "stage_one":
        return bag

    wide = {name: 4 * pixels if pixels else None for name, pixels in size.items()}
    two = pipeline(folder, "stage_two", dtype, task)
    first = {} if source is None else {"original_image": source}
    drawn = two(image=drawn, **texts, **wide, **first, **over, **arguments("stage_two"), output_type="pt").images
    bag["image256"] = drawn[0]
    if last_stage == "stage_two":
        return bag

    up = pipeline(folder, "upscaler", dtype)
    low = (drawn / 2 + 0.5).clamp(0, 1)  # it takes 0 to 1
    texts = {"prompt": prompt, "negative_prompt": negative}
    pictures = up(image=low, **texts, **arguments("upscaler"), output_type="pil").images
    bag["image1024"] = torch.from_numpy(numpy.array(pictures[0])).permute(2, 0, 1).contiguous()
    return bag


def _arguments(folder: Path, task: str, stage: str, settings: Mapping[str, Settings] | None) -> dict[str, Any]:
    """A pipeline's keywords for the cascade's settings, overridden by the request's."""
    default, given = recipe(folder)[stage], (settings or {}).get(stage, Settings())
    if task != "generate" and stage != "upscaler":
        default = default.get(task, {})
    arguments: dict[str, Any] = {}
    for name, keyword in (("guidance", "guidance_scale"), ("noise_level", "noise_level"), ("strength", "strength")):
        value = default.get(name) if getattr(given, name) is None else getattr(given, name)
        if value is not None:
            arguments[keyword] = value
    if given.timesteps is not None:
        return arguments | {"timesteps": list(given.timesteps)}
    return arguments | {"num_inference_steps": given.steps or default["steps"]}
