"""The published models' configurations, with random weights: their speed and memory without their licence or download.

Exact, as on the hub: the UNets of IF-I-XL, IF-II-L and the x4 upscaler, its VAE.  IF-I-L and IF-I-M follow from the published numbers of
parameters; of IF-II-M too little is known, IF-II-L stands in for it.  T5-XXL and the upscaler's text encoder: as published elsewhere.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ..nano import builder

_IF: dict[str, Any] = {
    "in_channels": 3, "out_channels": 6, "sample_size": 64, "act_fn": "gelu", "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64, "attention_head_dim": 64, "cross_attention_norm": "group_norm", "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj", "layers_per_block": 3, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift", "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}  # fmt: skip
_II_L: dict[str, Any] = _IF | {
    "in_channels": 6, "sample_size": 256, "class_embed_type": "timestep", "mid_block_scale_factor": 1.4142271248762552,
    "resnet_out_scale_factor": 1.4142271248762552, "resnet_skip_time_act": True, "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 1280, "block_out_channels": [160, 320, 640, 960, 1280], "cross_attention_dim": 1280,
    "layers_per_block": [2, 2, 3, 5, 5], "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, *["SimpleCrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
}  # fmt: skip
_X4: dict[str, Any] = {
    "sample_size": 128, "in_channels": 7, "out_channels": 4, "attention_head_dim": 8, "block_out_channels": [256, 512, 512, 1024],
    "cross_attention_dim": 1024, "num_class_embeds": 1000, "only_cross_attention": [True, True, True, False],
    "use_linear_projection": True, "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512], "down_block_types": ["DownEncoderBlock2D"] * 3, "latent_channels": 4, "layers_per_block": 2,
    "sample_size": 256, "scaling_factor": 0.08333, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False, "use_cache": False, "tie_word_embeddings": False,
}  # fmt: skip
_CLIP: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 512, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip

Configs = Mapping[tuple[str, str], Mapping[str, Any]]
"""By stage and the part's folder in its repository."""


def _cascade(widths: list[int]) -> Configs:
    return {
        ("encoder", "text_encoder"): _T5,
        ("stage_one", "unet"): _IF | {"block_out_channels": widths, "cross_attention_dim": widths[-1]},
        ("stage_two", "unet"): _II_L,
        ("upscaler", "unet"): _X4,
        ("upscaler", "vae"): _VAE,
        ("upscaler", "text_encoder"): _CLIP,
    }


CASCADES: Mapping[str, Configs] = {
    "if-xl": _cascade([704, 1408, 2112, 2816]),
    "if-l": _cascade([320, 640, 960, 1280]),
    "if-m": _cascade([192, 384, 576, 768]),
}
REPOS = {"encoder": "IF-I-nano", "stage_one": "IF-I-nano", "stage_two": "IF-II-nano", "upscaler": "x4-nano"}  # where the builder puts them
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # safetensors' names


def build(folder: Path, configs: Configs, dtypes: Mapping[str, torch.dtype], device: str = "cpu", seed: int = 0) -> None:
    """A cascade's folder, as builder.build writes it, whose models for the stages in `dtypes` are those of `configs`.

    dtypes: of each stage's files.  device: where the weights are drawn; a card is much quicker.
    """
    builder.build(folder)
    recipe = {"name": "random weights"} | {stage: {"repo": REPOS[stage]} for stage in ("stage_one", "stage_two", "upscaler")}
    (folder / "cascade.json").write_text(json.dumps(recipe))  # without settings of its own: those of the published pipelines
    source = torch.Generator(device).manual_seed(seed)
    for (stage, part), config in configs.items():
        if stage in dtypes:
            _write(folder / REPOS[stage] / part, blank(part, config), dtypes[stage], source)


def blank(part: str, config: Mapping[str, Any]) -> Any:
    """The model without memory for its weights."""
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        if part in kinds:
            return kinds[part](**config)
        return T5EncoderModel(T5Config(**config)) if "d_model" in config else CLIPTextModel(CLIPTextConfig(**config))


def parameters(cascade: str, stage: str) -> int:
    """Of all models of the stage."""
    parts = [blank(part, config) for (of, part), config in CASCADES[cascade].items() if of == stage]
    return sum(weight.numel() for model in parts for weight in model.parameters())


def _write(folder: Path, model: Any, dtype: torch.dtype, source: torch.Generator) -> None:
    """config.json and one safetensors file; in memory is one tensor at a time."""
    shutil.rmtree(folder)
    folder.mkdir()
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}  # those that are tied, once
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    name = "diffusion_pytorch_model" if hasattr(model, "save_config") else "model"
    with (folder / f"{name}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in _weights(shapes, source):
            file.write(weight.to(dtype).cpu().view(torch.uint8).numpy().data)


def _weights(shapes: Mapping[str, tuple[int, ...]], source: torch.Generator) -> Iterator[torch.Tensor]:
    """As torch's layers start: uniform by the inputs that a value sums up; norms keep, biases are nothing."""
    for name, shape in shapes.items():
        if len(shape) > 1:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            yield torch.empty(shape, device=source.device).uniform_(-bound, bound, generator=source)
        else:
            yield (torch.zeros if name.endswith("bias") else torch.ones)(shape)


def size(cascade: str, stages: Collection[str], itemsize: int) -> int:
    """Bytes of the weights of those stages."""
    return sum(itemsize * parameters(cascade, stage) for stage in stages)
