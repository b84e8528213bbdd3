"""The built-in cascade: deterministic, complete, and what diffusers' own pipelines load and draw with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from ifmesh_services import loading, mending
from ifmesh_services.nano import builder
from ifmesh_services.nano.words import captions
from safetensors.torch import load_file
from transformers import CLIPTokenizer, T5Tokenizer

PROMPT = "a photo of a small red fox wearing a blue hat"
pipelines: Any = DiffusionPipeline


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(nano16: Path, tmp_path: Path) -> None:
    builder.build(tmp_path / "again", base=16)
    builder.build(tmp_path / "other", base=16, seed=1)
    first, again, other = files(nano16), files(tmp_path / "again"), files(tmp_path / "other")
    assert first == again
    assert first.keys() == other.keys()
    assert {Path(name).parent.name for name in first if first[name] != other[name]} == {"unet", "text_encoder", "safety_checker", "vae"}


def test_the_layout_is_the_hubs(nano64: Path) -> None:
    names = set(files(nano64))
    for repo, parts in {
        "IF-I-nano": ("text_encoder/model", "unet/diffusion_pytorch_model", "safety_checker/model"),
        "IF-II-nano": ("text_encoder/model", "unet/diffusion_pytorch_model", "safety_checker/model"),
        "x4-nano": ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"),
    }.items():
        for part in parts:
            assert {f"{repo}/{part}.safetensors", f"{repo}/{part}.fp16.safetensors"} <= names
    assert "IF-I-nano/tokenizer/spiece.model" in names
    assert {Path(name).suffix for name in names} == {".json", ".model", ".safetensors", ".txt"}
    assert not any(name.endswith("/tokenizer.json") for name in names)  # the hub's T5 has none
    mark = load_file(nano64 / "IF-I-nano/watermarker/diffusion_pytorch_model.safetensors")["watermark_image"]
    assert (mark.dtype, tuple(mark.shape)) == (torch.uint8, (62, 62, 4))


def test_the_t5_tokenizer_has_t5s_ids(nano64: Path) -> None:
    made = loading.tokenizer(str(nano64 / "IF-I-nano"), T5Tokenizer)
    assert made.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert made.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [len(made) - 1, len(made) - 100]
    for caption in captions(50, seed=1):
        ids = made(caption).input_ids
        assert ids[-1] == 1
        assert 2 not in ids
        assert len(ids) <= 77 * 2
    assert 2 not in made("Zyx 123 !?&").input_ids  # spelled out
    assert 2 in made("袋鼠").input_ids


def test_the_clip_tokenizer_has_sd2s_ids(nano64: Path) -> None:
    made = loading.tokenizer(str(nano64 / "x4-nano"), CLIPTokenizer)
    assert made.model_max_length == 77
    assert made.pad_token_id == 0
    ids = made(PROMPT, padding="max_length", max_length=77).input_ids
    assert (ids[0], ids[12], ids[13:]) == (len(made) - 2, len(made) - 1, [0] * 64)  # one id for each of the eleven known words
    assert str(made.decode(ids, skip_special_tokens=True)).rstrip("!") == PROMPT


@pytest.mark.parametrize("cascade", ["nano16", "nano64"])
def test_diffusers_own_pipelines_draw_with_it(cascade: str, request: pytest.FixtureRequest) -> None:
    """Three stages chained, few steps: finite, of the right size, not of one colour, and moved by the prompt."""
    folder: Path = request.getfixturevalue(cascade)
    base = int(cascade.removeprefix("nano"))
    mending.mend_safety_checker()
    one, two, three = (pipelines.from_pretrained(folder / name) for name in ("IF-I-nano", "IF-II-nano", "x4-nano"))
    assert [type(p).__name__ for p in (one, two, three)] == ["IFPipeline", "IFSuperResolutionPipeline", "StableDiffusionUpscalePipeline"]
    for pipeline in (one, two, three):
        pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> list[np.ndarray[Any, Any]]:
        source = torch.Generator().manual_seed(3)
        embeds, negative = one.encode_prompt(prompt)
        assert embeds.shape == (1, 77, builder.EMBED)
        both = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "generator": source, "output_type": "pt"}
        small = one(**both, num_inference_steps=3).images
        middle = two(**both, image=small, num_inference_steps=2).images
        bright = (middle / 2 + 0.5).clamp(0, 1)
        large = three(prompt=prompt, image=bright, generator=source, noise_level=100, num_inference_steps=2, output_type="np").images
        return [small[0].permute(1, 2, 0).numpy(), middle[0].permute(1, 2, 0).numpy(), large[0]]

    fox, owl = draw(PROMPT), draw("an oil painting of a huge green owl under the sea")
    assert [picture.shape for picture in fox] == [(n * base, n * base, 3) for n in (1, 4, 16)]
    for picture, other in zip(fox, owl, strict=True):
        assert np.isfinite(picture).all()
        assert picture.std() > 0.05
        assert np.abs(picture - other).mean() > 1e-4


def test_the_fp16_variant_holds_the_same_weights(nano64: Path) -> None:
    for path in nano64.rglob("*.fp16.safetensors"):
        half, full = load_file(path), load_file(path.with_name(path.name.replace(".fp16", "")))
        assert half.keys() == full.keys()
        assert all(torch.equal(half[name], full[name].half()) for name in full)
