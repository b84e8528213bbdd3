"""Upscale: anybody's picture through Stage II and the upscaler, or the upscaler alone, against diffusers' own pipelines, bit by bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from ifmesh_services import pictures
from ifmesh_services.tensors import to_blob
from PIL import Image

from ifmesh.errors import BadRequest
from ifmesh.request import Request, Settings
from ifmesh.stage import Stage
from tests.services import oracle
from tests.services.chained import bringing, compare, drawn, file, loaded, passed
from tests.services.photos import photo, saved, turned

FOX = "a red fox in the snow, oil on canvas"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
FEW = {TWO: Settings(steps=2), UP: Settings(steps=1)}
Seeding = Literal["chained", "per_stage"]


@cache
def picture(width: int, height: int, kind: str = "PNG") -> dict[str, Any]:
    return {"source": file(saved(photo(width, height), kind))}


def asked(**more: Any) -> Request:
    return Request(FOX, 80, "upscale", "blurry", **{"settings": FEW, **more})


@pytest.mark.parametrize("seeding", ["chained", "per_stage"])
@pytest.mark.parametrize(
    ("size", "seen"), [((16, 16), (16, 16)), ((24, 16), (24, 16)), ((16, 24), (16, 24)), ((30, 21), (32, 24)), ((9, 30), (16, 32))]
)
def test_through_both(stages16: dict[str, Stage], nano16: Path, size: tuple[int, int], seen: tuple[int, int], seeding: Seeding) -> None:
    made = compare(stages16, nano16, asked(seeding=seeding), picture(*size))
    width, height = seen
    assert [made[name].shape[1:] for name in ("image256", "image1024")] == [(n * height, n * width) for n in (4, 16)]
    assert "image64" not in made


def test_stage_two_alone(stages16: dict[str, Stage], nano16: Path) -> None:
    made = compare(stages16, nano16, asked(last_stage=TWO), picture(100, 75, "JPEG"))
    assert made["image256"].shape == (3, 4 * 72, 4 * 96)


@pytest.mark.parametrize("seeding", ["chained", "per_stage"])
@pytest.mark.parametrize("size", [(64, 64), (32, 48), (100, 75)])
def test_the_upscaler_alone(stages16: dict[str, Stage], nano16: Path, size: tuple[int, int], seeding: Seeding) -> None:
    """It needs no embeddings: its prompt is CLIP's."""
    made = compare(stages16, nano16, asked(seeding=seeding, first_stage=UP), picture(*size))
    assert set(made) == {"image1024"}


@pytest.mark.parametrize("first", ["encoder", UP])
def test_settings(stages16: dict[str, Stage], nano16: Path, first: str) -> None:
    """Without guidance, and with the cascade's own, which are generate's."""
    plain = {TWO: Settings(steps=3, guidance=1.0, noise_level=0), UP: Settings(steps=2, guidance=1.0, noise_level=20)}
    compare(stages16, nano16, asked(first_stage=first, settings=plain), picture(24, 16))
    compare(stages16, nano16, asked(first_stage=first, settings={}), picture(16, 16))


@pytest.mark.parametrize("first", ["encoder", UP])
def test_half_precision(nano16: Path, first: str) -> None:
    compare(loaded(nano16, "bf16"), nano16, asked(first_stage=first), picture(24, 16, "WEBP"), torch.bfloat16)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # the pipeline warns of itself
@pytest.mark.parametrize("first", ["encoder", UP])
def test_fp16(nano16: Path, first: str) -> None:
    compare(loaded(nano16, "fp16"), nano16, asked(first_stage=first), picture(16, 16), torch.float16)


@pytest.mark.parity
def test_true_geometry(nano64: Path) -> None:
    few = {TWO: Settings(steps=1), UP: Settings(steps=1)}
    made = compare(loaded(nano64), nano64, asked(settings=few), picture(96, 64, "JPEG"))
    assert [list(made[name].shape) for name in ("image256", "image1024")] == [[3, 256, 384], [3, 1024, 1536]]


@pytest.mark.parametrize("first", ["encoder", UP])
def test_a_brought_generator_goes_on_from_where_it_was(stages16: dict[str, Stage], nano16: Path, first: str) -> None:
    used = torch.Generator("cpu").manual_seed(5)
    torch.randn(1000, generator=used)
    compare(stages16, nano16, asked(first_stage=first), {**picture(16, 16), "rng": to_blob(used.get_state())})


def test_brought_embeddings_take_the_encoders_place(stages16: dict[str, Stage]) -> None:
    whole = passed(stages16, bringing(asked(), picture(16, 16)), picture(16, 16))
    brought = {**picture(16, 16), "embeds": whole["embeds"]}
    part = passed(stages16, bringing(asked(first_stage=TWO), brought), brought)
    assert part == {name: whole[name] for name in ("image256", "image1024", "rng")}


@pytest.mark.parametrize("first", ["encoder", UP])
def test_a_file_is_read_as_load_image_reads_it(stages16: dict[str, Stage], nano16: Path, first: str) -> None:
    """EXIF orientation applied, transparency dropped."""
    veiled = photo(24, 16).convert("RGBA")
    veiled.paste((255, 0, 0, 0), (0, 0, 12, 16))
    for data in (turned(photo(24, 16), 6), saved(veiled), saved(photo(24, 16).convert("L"))):
        compare(stages16, nano16, asked(first_stage=first), {"source": file(data)})


# ---- bright pictures: the one place where the upscaler's pipeline guesses


def bright() -> torch.Tensor:
    """[3, 16, 24], no value below 0.2."""
    return 0.2 + 0.8 * torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(1))


def by_the_pipeline(folder: Path, image: torch.Tensor) -> torch.Tensor:
    """[3, h, w], U8.  image: in whatever range."""
    source = torch.Generator("cpu").manual_seed(80)
    [made] = oracle.pipeline(folder, UP)(
        FOX, image[None], num_inference_steps=1, negative_prompt="blurry", generator=source, noise_level=100
    ).images
    return torch.from_numpy(np.array(made)).permute(2, 0, 1)


def test_a_bright_file_is_as_bright_for_us(stages16: dict[str, Stage], nano16: Path) -> None:
    pixels = ((bright() / 2 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    compare(stages16, nano16, asked(first_stage=UP), {"source": file(saved(Image.fromarray(pixels)))})


def test_a_bright_tensor_is_not_guessed_at(stages16: dict[str, Stage], nano16: Path) -> None:
    """Where the pipeline reads -1 to 1 as 0 to 1; told 0 to 1 it draws the same."""
    bag = {"image256": to_blob(bright())}
    request = bringing(Request(FOX, 80, negative="blurry", settings=FEW, first_stage=UP), bag)
    made = drawn(stages16, request, bag)["image1024"]
    assert torch.equal(made, by_the_pipeline(nano16, bright() / 2 + 0.5))
    assert not torch.equal(made, by_the_pipeline(nano16, bright()))


# ---- sizes


def seen(data: bytes, stage: str) -> tuple[int, int]:
    return pictures.enlarging({"source": file(data)}, stage).size


@pytest.mark.parametrize(("stage", "most", "name"), [(TWO, 256, "Stage II"), (UP, 1024, "the upscaler")])
def test_at_most_so_many_pixels_a_side(stage: str, most: int, name: str) -> None:
    assert seen(saved(photo(most, most // 2)), stage) == (most, most // 2)
    assert seen(saved(photo(most - 3, most)), stage) == (most, most)
    for size in ((most + 1, 300), (300, most + 1)):
        with pytest.raises(BadRequest) as caught:
            seen(saved(photo(*size), "JPEG"), stage)
        assert (caught.value.field, caught.value.value) == ("source", f"JPEG {size[0]} x {size[1]}")
        assert caught.value.remedy == f"at most {most} pixels a side for {name}: make it smaller"


@pytest.mark.parametrize(("first", "size"), [("encoder", (257, 256)), (UP, (1025, 700))])
def test_a_picture_too_large_leaves_nothing_behind(stages16: dict[str, Stage], first: str, size: tuple[int, int]) -> None:
    with pytest.raises(BadRequest, match="pixels a side"):
        drawn(stages16, bringing(asked(first_stage=first), picture(*size)), picture(*size))
    assert not any(list(stage.step()) for stage in stages16.values())


def test_a_long_picture_is_refused_as_everywhere() -> None:
    with pytest.raises(BadRequest, match="more than 4 times the shorter"):
        seen(saved(photo(160, 32)), TWO)


# ---- broken on purpose

FAULTS: dict[str, tuple[str, object]] = {
    "cut off, not rounded": ("ifmesh.geometry.gridded", lambda width, height: (width // 8 * 8, height // 8 * 8)),
    "too bright for Stage II": ("ifmesh_services.stage_two.normal", pictures.bright),
    "too dark for the upscaler": ("ifmesh_services.upscaler.bright", pictures.normal),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    where, broken = FAULTS[fault]
    monkeypatch.setattr(where, broken)
    with pytest.raises(AssertionError):
        compare(stages16, nano16, asked(first_stage=UP if "upscaler" in where else "encoder"), picture(30, 23))
