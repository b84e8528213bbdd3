"""Writes a cascade of random weights in the exact folder layout of the hub's DeepFloyd and x4 upscaler repositories.

The block types, schedulers and geometry are the published ones; only widths and depths are small.  So whatever loads this loads
DeepFloyd/IF-I-XL-v1.0, IF-II-L-v1.0 and stabilityai/stable-diffusion-x4-upscaler.  `base` is Stage I's side in pixels: 64 gives
64 -> 256 -> 1024, 16 gives 16 -> 64 -> 256 for fast tests (a 16 px picture is too small for a watermark: see the guard).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ifmesh_services.mending import mend_safety_checker, no_bars
from ifmesh_services.nano.tokenizers import write_clip, write_json, write_t5
from ifmesh_services.nano.words import captions

NAME = "nano"
EMBED = 64  # channels of the T5 embeddings
CLIP = 32  # channels of the upscaler's text encoder

STEPS = {  # by base: what a short draw needs; the small one is for tests
    64: {"stage_one": 27, "stage_two": 20, "upscaler": 10},
    16: {"stage_one": 9, "stage_two": 7, "upscaler": 5},
}
OVER = {  # the same for what starts from a source: strength cuts them
    64: {"stage_one": {"vary": 30, "inpaint": 24}, "stage_two": {"vary": 20, "inpaint": 20}},
    16: {"stage_one": {"vary": 8, "inpaint": 7}, "stage_two": {"vary": 6, "inpaint": 7}},
}

_I: dict[str, Any] = {
    "in_channels": 3, "out_channels": 6, "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
    "attention_head_dim": 16, "block_out_channels": [16, 32, 64, 96], "center_input_sample": False, "class_embed_type": None,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_dim": 96,
    "cross_attention_norm": "group_norm", "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": EMBED,
    "encoder_hid_dim_type": "text_proj", "flip_sin_to_cos": True, "freq_shift": 0, "layers_per_block": 1,
    "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-5, "norm_num_groups": 8, "num_class_embeds": None, "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "scale_shift", "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "upcast_attention": False, "use_linear_projection": False,
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}  # fmt: skip
_II: dict[str, Any] = _I | {
    "in_channels": 6, "block_out_channels": [8, 16, 32, 64, 96], "class_embed_type": "timestep", "layers_per_block": [1, 1, 1, 1, 1],
    "mid_block_scale_factor": 1.4142271248762552, "resnet_out_scale_factor": 1.4142271248762552, "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu", "time_embedding_dim": 96,
    "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, *["SimpleCrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
}  # fmt: skip
_X4: dict[str, Any] = {
    "in_channels": 7, "out_channels": 4, "act_fn": "silu", "attention_head_dim": 4, "block_out_channels": [8, 16, 32, 64],
    "center_input_sample": False, "cross_attention_dim": CLIP, "downsample_padding": 1, "dual_cross_attention": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 8,
    "num_class_embeds": 1000, "only_cross_attention": [True, True, True, False], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3], "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
_VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "act_fn": "silu", "block_out_channels": [8, 8, 16], "down_block_types": ["DownEncoderBlock2D"] * 3,
    "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 8, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "scaling_factor": 0.08333, "mid_block_add_attention": False,
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": EMBED, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new", "is_encoder_decoder": False, "use_cache": False, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_CLIP_TEXT: dict[str, Any] = {
    "hidden_size": CLIP, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 77,
    "hidden_act": "gelu", "projection_dim": CLIP, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
_CLIP_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 224, "patch_size": 28,
    "projection_dim": 32, "hidden_act": "quick_gelu",
}  # fmt: skip

# Published scheduler_config.json files; Stage II and the noising one as the original conversion script writes them.
SCHEDULER_I = {
    "_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "clip_sample": True,
    "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.95, "lambda_min_clipped": -5.1, "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.5, "thresholding": True, "trained_betas": None, "variance_type": "learned_range",
}  # fmt: skip
SCHEDULER_II = SCHEDULER_I | {"sample_max_value": 1.0}
SCHEDULER_NOISING = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
SCHEDULER_X4 = {
    "_class_name": "DDIMScheduler", "beta_end": 0.02, "beta_schedule": "scaled_linear", "beta_start": 0.0001, "clip_sample": False,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None,
}  # fmt: skip
SCHEDULER_X4_LOW = {
    "_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "scaled_linear", "beta_start": 0.0001, "clip_sample": True,
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "trained_betas": None, "variance_type": "fixed_small",
}  # fmt: skip
_FEATURES = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224},
}  # fmt: skip

_PARTS_IF = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"], "safety_checker": ["deepfloyd_if", "IFSafetyChecker"],
    "scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "watermarker": ["deepfloyd_if", "IFWatermarker"],
}  # fmt: skip
_PARTS_X4 = {
    "low_res_scheduler": ["diffusers", "DDPMScheduler"], "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


_CONFIGS = {"t5": _T5, "clip": _CLIP_TEXT, "one": _I, "two": _II, "x4": _X4, "vae": _VAE}
Configs = Mapping[str, Mapping[str, Any]]

_UNet: Any = UNet2DConditionModel  # diffusers does not type its constructors
_VAEModel: Any = AutoencoderKL


def settled(other: Configs = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """The configurations of "t5", "clip", "one", "two", "x4" and "vae", with what is to be different in them."""
    return {name: {**config, **other.get(name, {})} for name, config in _CONFIGS.items()}


def build(
    folder: Path,
    base: int = 64,
    seed: int = 0,
    flagging: bool = False,
    other: Configs = MappingProxyType({}),
    texts: Callable[[int], Iterable[str]] = captions,
) -> None:
    """Write cascade.json and the three repositories into `folder`, which must not exist.  Same arguments, same bytes.

    base: 64, or 16 for tests.  flagging: the safety checker flags every picture (for tests); otherwise it flags none.  other: what is
    to be different in the configurations, see `settled`.  texts: so many captions, of which the tokenizers learn their pieces.
    """
    configs = settled(other)
    steps, over = STEPS[base], {stage: {task: {"steps": n} for task, n in of.items()} for stage, of in OVER[base].items()}
    folder.mkdir(parents=True)
    _stage_one(folder / "IF-I-nano", base, seed, flagging, configs, texts)
    _stage_two(folder / "IF-II-nano", folder / "IF-I-nano", 4 * base, seed, configs)
    _upscaler(folder / "x4-nano", base, seed, configs, texts)
    recipe = {
        "name": NAME if base == 64 else f"{NAME}{base}",
        "stage_one": {"repo": "IF-I-nano", "steps": steps["stage_one"], "guidance": 7.0, **over["stage_one"]},
        "stage_two": {"repo": "IF-II-nano", "steps": steps["stage_two"], "guidance": 4.0, "noise_level": 250, **over["stage_two"]},
        "upscaler": {"repo": "x4-nano", "steps": steps["upscaler"], "guidance": 9.0, "noise_level": 100},
    }
    write_json(folder / "cascade.json", recipe, sort=False)


def _stage_one(repo: Path, side: int, seed: int, flagging: bool, configs: Configs, texts: Callable[[int], Iterable[str]]) -> None:
    ids = write_t5(repo / "tokenizer", texts(3000))
    _weights(repo / "text_encoder", seed + 1, lambda: T5EncoderModel(T5Config(vocab_size=padded(ids), **configs["t5"])))
    _weights(repo / "unet", seed + 2, lambda: _UNet(**configs["one"], sample_size=side))
    _weights(repo / "safety_checker", seed + 3, lambda: _checker(flagging))
    _watermarker(repo / "watermarker")
    _config(repo / "scheduler" / "scheduler_config.json", SCHEDULER_I)
    _config(repo / "feature_extractor" / "preprocessor_config.json", _FEATURES)
    _config(repo / "model_index.json", {"_class_name": "IFPipeline", **_PARTS_IF})


def _stage_two(repo: Path, first: Path, side: int, seed: int, configs: Configs) -> None:
    for same in ("tokenizer", "text_encoder", "safety_checker", "watermarker", "feature_extractor"):
        shutil.copytree(first / same, repo / same)
    _weights(repo / "unet", seed + 4, lambda: _UNet(**configs["two"], sample_size=side))
    _config(repo / "scheduler" / "scheduler_config.json", SCHEDULER_II)
    _config(repo / "image_noising_scheduler" / "scheduler_config.json", SCHEDULER_NOISING)
    noising = {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
    _config(repo / "model_index.json", {"_class_name": "IFSuperResolutionPipeline", **_PARTS_IF, **noising})


def _upscaler(repo: Path, base: int, seed: int, configs: Configs, texts: Callable[[int], Iterable[str]]) -> None:
    ids = write_clip(repo / "tokenizer", texts(1000))
    _weights(repo / "text_encoder", seed + 5, lambda: CLIPTextModel(CLIPTextConfig(vocab_size=ids, **configs["clip"])))
    _weights(repo / "unet", seed + 6, lambda: _UNet(**configs["x4"], sample_size=2 * base))
    _weights(repo / "vae", seed + 7, lambda: _VAEModel(**configs["vae"], sample_size=4 * base))
    _config(repo / "scheduler" / "scheduler_config.json", SCHEDULER_X4)
    _config(repo / "low_res_scheduler" / "scheduler_config.json", SCHEDULER_X4_LOW)
    _config(repo / "model_index.json", {"_class_name": "StableDiffusionUpscalePipeline", "max_noise_level": 350, **_PARTS_X4})


def padded(ids: int) -> int:
    """Rows of T5's embedding, which pads 32,100 ids to 32,128."""
    return -(-ids // 128) * 128


def _checker(flagging: bool) -> torch.nn.Module:
    """IFSafetyChecker flags a logit above 0.5: its biases alone decide, far from what random features could move."""
    mend_safety_checker()  # always: it draws the weights anew, and the same seed must give the same bytes
    made = IFSafetyChecker(CLIPConfig(text_config=_CLIP_TEXT, vision_config=_CLIP_VISION, projection_dim=32))
    torch.nn.init.constant_(made.p_head.bias, 1000.0 if flagging else -1000.0)
    torch.nn.init.constant_(made.w_head.bias, -1000.0)
    return made


def _weights(folder: Path, seed: int, make: Callable[[], Any]) -> None:
    """config.json, the fp32 file and its fp16 variant."""
    with torch.random.fork_rng(devices=[]), no_bars():
        torch.manual_seed(seed)
        model = make().eval()
        model.save_pretrained(folder)
    [full] = folder.glob("*.safetensors")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(full).items()}
    save_file(half, full.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})


def _watermarker(folder: Path) -> None:
    """Our own small mark: a white ring on black, half transparent.  RGBA, uint8 [62, 62, 4], as the hub stores its own."""
    axis = torch.arange(62) - 30.5
    radius = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    ring = (radius - 22).abs() < 5
    mark = torch.zeros(62, 62, 4, dtype=torch.uint8)
    mark[..., :3] = torch.where(ring, 255, 0)[..., None].to(torch.uint8)
    mark[..., 3] = torch.where(radius < 30.5, 160, 0).to(torch.uint8)
    _config(folder / "config.json", {"_class_name": "IFWatermarker"})
    save_file({"watermark_image": mark}, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _config(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = {key: data[key] for key in data if key == "_class_name"} | {"_diffusers_version": "0.42.1"}
    write_json(path, first | dict(data) if "_class_name" in data else dict(data), sort=False)
