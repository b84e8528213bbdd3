"""The published cascades: the hub's repositories they are made of, and what each stage reads of its own."""

from __future__ import annotations

from collections.abc import Mapping

UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
PUBLISHED: Mapping[str, tuple[str, str]] = {  # by name: the repositories of Stage I, where the encoder and the guard live too, and II
    "if-xl": ("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0"),
    "if-l": ("DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-II-L-v1.0"),
    "if-m": ("DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0"),
}
PARTS: Mapping[str, tuple[str, ...]] = {  # by stage: the folders of its repository
    "encoder": ("tokenizer", "text_encoder"),
    "stage_one": ("scheduler", "unet"),
    "stage_two": ("scheduler", "image_noising_scheduler", "unet"),
    "upscaler": ("tokenizer", "scheduler", "low_res_scheduler", "text_encoder", "unet", "vae"),
    "guard": ("feature_extractor", "watermarker", "safety_checker"),
}


def stages(repo: str) -> tuple[str, ...]:
    """Which stages read a published repository; () of any other."""
    if repo == UPSCALER:
        return ("upscaler",)
    if any(repo == one for one, _ in PUBLISHED.values()):
        return ("encoder", "stage_one", "guard")
    return ("stage_two",) if any(repo == two for _, two in PUBLISHED.values()) else ()


def whole(stage: str, part: str) -> bool:
    """Does a variant that was asked for have to be there?  Smaller parts may have one file for all."""
    return part in ("unet", "safety_checker") or (stage, part) == ("encoder", "text_encoder")
