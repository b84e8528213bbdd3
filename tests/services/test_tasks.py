"""Vary and inpaint, against diffusers' own pipelines: equal in every bit, after every stage."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import pytest
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
from ifmesh_services import pictures, recipes
from ifmesh_services.loading import DTYPES
from ifmesh_services.pictures import Sketch
from PIL import Image

from ifmesh.errors import BadRequest
from ifmesh.geometry import fitted
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Stage
from tests.services.chained import bringing, compare, drawn, file, loaded, run
from tests.services.pairwise import Case, pairs, pairwise, shared, whole
from tests.services.photos import photo, saved, stencil

FOX = "a red fox in the snow, oil on canvas"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
FACTORS: dict[str, tuple[object, ...]] = {
    "task": ("vary", "inpaint L", "inpaint RGB", "inpaint other"),  # of the masks: the mode, or another resolution
    "source": ((512, 512), (768, 512), (512, 768), (500, 768)),
    "strength": (0.3, 0.7, 1.0),
    "list": ("steps", "timesteps"),
    "seeding": ("chained", "per_stage"),
    "upscaler's noise": (20, 100),
}
LISTS = {
    "steps": {ONE: Settings(steps=10), TWO: Settings(steps=5)},
    "timesteps": {ONE: Settings(timesteps=(999, 870, 700, 520, 333, 100, 0)), TWO: Settings(timesteps=(995, 700, 250, 3))},
}


@cache
def source(width: int, height: int) -> bytes:
    return saved(photo(width, height), {512: "JPEG", 768: "WEBP", 500: "PNG"}[width])


@cache
def mask(width: int, height: int, kind: str) -> bytes:
    if kind == "other":
        return saved(stencil(width // 2, height // 2))
    return saved(stencil(width, height, kind), "JPEG" if kind == "RGB" else "PNG")


def brought(size: tuple[int, int], kind: str = "") -> dict[str, Any]:
    """What the client uploads; kind: of its mask, "" for none."""
    return {"source": file(source(*size))} | ({"mask": file(mask(*size, kind))} if kind else {})


def named(case: Case) -> str:
    return "-".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part).replace(" ", "_") for part in case)


def draw(stages: dict[str, Stage], folder: Path, case: Case) -> None:
    task, size, strength, listed, seeding, level = cast(tuple[str, tuple[int, int], float, str, Literal["chained", "per_stage"], int], case)
    task, _, kind = task.partition(" ")
    settings = {
        stage: Settings(steps=given.steps, timesteps=given.timesteps, strength=strength) for stage, given in LISTS[listed].items()
    } | {UP: Settings(steps=1, noise_level=level)}
    request = Request(FOX, 40, task, "blurry", settings, seeding=seeding)
    made = compare(stages, folder, request, brought(size, kind))
    width, height = {(512, 512): (16, 16), (768, 512): (24, 16), (512, 768): (16, 24), (500, 768): (16, 24)}[size]
    assert [tuple(made[n].shape[1:]) for n in ("image64", "image256", "image1024")] == [(n * height, n * width) for n in (1, 4, 16)]


@pytest.mark.parametrize("case", shared(pairwise(FACTORS)), ids=named)
def test_every_pair(stages16: dict[str, Stage], nano16: Path, case: Case) -> None:
    draw(stages16, nano16, case)


@pytest.mark.parity
@pytest.mark.parametrize("case", whole(FACTORS), ids=named)
def test_the_whole_matrix(stages16: dict[str, Stage], nano16: Path, case: Case) -> None:
    draw(stages16, nano16, case)


def test_the_selection_holds_every_pair_and_is_small() -> None:
    chosen, every = pairwise(FACTORS), whole(FACTORS)
    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, every))
    assert len(every) == 384
    assert len(chosen) <= 20


TRUE: dict[str, tuple[str, tuple[int, int], str, list[list[int]]]] = {
    "vary": ("vary", (768, 512), "", [[3, 64, 96], [3, 256, 384], [3, 1024, 1536]]),
    "inpaint": ("inpaint", (500, 768), "L", [[3, 96, 64], [3, 392, 256], [3, 1568, 1024]]),  # 392: diffusers alone cannot
}


@pytest.mark.parity
@pytest.mark.parametrize("case", TRUE)
def test_true_geometry(nano64: Path, case: str) -> None:
    task, size, kind, shapes = TRUE[case]
    settings = {ONE: Settings(steps=3), TWO: Settings(steps=2, strength=0.5), UP: Settings(steps=1)}
    made = compare(loaded(nano64), nano64, Request(FOX, 41, task, settings=settings), brought(size, kind))
    assert [list(picture.shape) for name, picture in made.items() if name != "embeds"] == shapes


@pytest.mark.parametrize("task", ["vary", "inpaint"])
def test_the_cascades_own_settings(stages16: dict[str, Stage], nano16: Path, task: str) -> None:
    """What neither the request nor cascade.json says is the pipelines' own default: guidance, strength, Stage II's noise."""
    compare(stages16, nano16, Request(FOX, 42, task), brought((768, 512), "L" if task == "inpaint" else ""))


@pytest.mark.parametrize("task", ["vary", "inpaint"])
def test_no_guidance(stages16: dict[str, Stage], nano16: Path, task: str) -> None:
    settings = {stage: Settings(steps=3, guidance=1.0) for stage in (ONE, TWO, UP)}
    compare(stages16, nano16, Request(FOX, 43, task, settings=settings), brought((500, 768), "L" if task == "inpaint" else ""))


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # the pipeline warns of itself
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # fp16 is 30 times slower on a CPU
def test_half_precision(nano16: Path, dtype: str) -> None:
    settings = {ONE: Settings(steps=3), TWO: Settings(steps=2), UP: Settings(steps=1)}
    compare(loaded(nano16, dtype), nano16, Request(FOX, 44, "inpaint", settings=settings), brought((512, 768), "L"), DTYPES[dtype])


def test_steps_are_those_that_run(stages16: dict[str, Stage]) -> None:
    settings = {ONE: Settings(steps=10, strength=0.3), TWO: Settings(timesteps=(900, 500, 200, 0), strength=0.5), UP: Settings(steps=1)}
    bag: Bag = brought((512, 512))
    request = bringing(Request(FOX, 45, "vary", settings=settings), bag)
    bag = {**bag, **run(stages16["encoder"], "job", request, {})}
    assert stages16[ONE].admit("job", request, bag) == 3
    stages16[ONE].drop("job")
    bag = {**bag, **run(stages16[ONE], "job", request, bag)}
    assert stages16[TWO].admit("job", request, bag) == 2
    stages16[TWO].drop("job")


@pytest.mark.parametrize(
    ("stage", "strength", "remedy"), [(ONE, 0.1, "no step of 8: at least 0.125"), (TWO, 0.15, "of 6: at least 0.1667")]
)
def test_a_strength_that_leaves_no_step_of_the_cascades_own(stages16: dict[str, Stage], stage: str, strength: float, remedy: str) -> None:
    """Only the stage knows how many they are."""
    settings = {ONE: Settings(timesteps=(500, 0), strength=1.0), stage: Settings(strength=strength)}
    with pytest.raises(BadRequest, match=remedy) as caught:
        drawn(stages16, bringing(Request(FOX, 46, "vary", settings=settings), brought((512, 512))), brought((512, 512)))
    assert (caught.value.field, caught.value.value) == (f"settings.{stage}.strength", strength)


def test_what_the_mask_keeps_is_the_source(stages16: dict[str, Stage]) -> None:
    """And the prompt moves the rest."""
    bag = brought((768, 512), "L")
    request = bringing(Request(FOX, 47, "inpaint", settings={ONE: Settings(steps=3)}, last_stage=ONE), bag)
    made = drawn(stages16, request, bag)["image64"]
    seen = pictures.sketched(bag, 16, dtype=torch.float32, device=torch.device("cpu"))
    assert seen is not None
    assert seen.mask is not None
    kept = (seen.mask[0] == 0).expand_as(made)
    assert 0.2 < kept.float().mean() < 0.9
    assert torch.equal(made[kept], seen.image[0][kept])
    assert not (made == seen.image[0])[~kept].any()


def all_noised(self: Sketch, scheduler: Any, begin: int, noise: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = scheduler.add_noise(self.image, noise, scheduler.timesteps[begin : begin + 1])
    return made


def noised_from_the_top(self: Sketch, scheduler: Any, begin: int, noise: torch.Tensor) -> torch.Tensor:
    return sketch_noised(self, scheduler, 0, noise)


def bilinear(shown: Image.Image, side: int) -> Image.Image:
    return shown.resize(fitted(*shown.size, side), resample=Image.Resampling.BILINEAR)


sketch_noised = Sketch.noised
FAULTS: dict[str, tuple[str, object]] = {
    "strength cuts nothing": ("schedules.Plan.begin", lambda plan, scheduler: 0),
    "noised as if it began at the top": ("pictures.Sketch.noised", noised_from_the_top),
    "what is kept is noised, too": ("pictures.Sketch.noised", all_noised),
    "another filter": ("pictures._fitted", bilinear),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Break it on purpose: a comparison that cannot fail proves nothing."""
    where, broken = FAULTS[fault]
    monkeypatch.setattr(f"ifmesh_services.{where}", broken)
    settings = {ONE: Settings(steps=5, strength=0.7)}
    with pytest.raises(AssertionError, match=r"image\d+ differs by"):
        compare(stages16, nano16, Request(FOX, 48, "inpaint", settings=settings, last_stage=ONE), brought((768, 512), "L"))


PIPELINES: dict[str, dict[str, Any]] = {
    "generate": {ONE: IFPipeline, TWO: IFSuperResolutionPipeline},
    "upscale": {TWO: IFSuperResolutionPipeline},
    "vary": {ONE: IFImg2ImgPipeline, TWO: IFImg2ImgSuperResolutionPipeline},
    "inpaint": {ONE: IFInpaintingPipeline, TWO: IFInpaintingSuperResolutionPipeline},
}


@pytest.mark.parametrize("task", PIPELINES)
def test_the_published_defaults_are_the_pipelines(task: str) -> None:
    """But for the upscaler's noise: 100, as the published scripts pass it; and the mixers, which they do not have."""
    for stage, kind in {**PIPELINES[task], UP: StableDiffusionUpscalePipeline}.items():
        said = {name: given.default for name, given in inspect.signature(kind.__call__).parameters.items()}
        level = 100 if stage == UP else said.get("noise_level")
        assert recipes.DEFAULTS[task][stage] == Settings(
            steps=said["num_inference_steps"],
            guidance=said["guidance_scale"],
            strength=said.get("strength"),
            noise_level=level,
            positive_mixer={ONE: 0.25, TWO: 0.5}.get(stage),
        )
