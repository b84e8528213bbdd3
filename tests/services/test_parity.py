"""Our stages against diffusers' own pipelines: equal in every bit, after every stage.

Here generate, and every task on two cascades of different widths; more of vary and inpaint: test_tasks.py, of schedulers, lists and
shapes: test_schedules.py, of upscale: test_upscale.py.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from ifmesh_services import denoising
from ifmesh_services.loading import DTYPES
from ifmesh_services.schedules import Plan, planned
from ifmesh_services.tensors import to_torch

from ifmesh import bags
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Request, Settings
from ifmesh.respacing import NAMED
from ifmesh.samplers import SAMPLERS
from ifmesh.stage import Bag, Stage
from tests.services.chained import assert_equal, compare, drawn, file, loaded, run
from tests.services.pairwise import Case, pairs, pairwise, whole
from tests.services.photos import photo, saved, stencil

# numpy's word to torch, within the solvers of diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

FOX = "a red fox in the snow, oil on canvas"
OWL = "  An OWL reading the newspaper\n"
FEW = {"stage_one": Settings(steps=3), "stage_two": Settings(steps=2), "upscaler": Settings(steps=2)}


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("prompt", [FOX, OWL])
def test_seeds_and_prompts(stages16: dict[str, Stage], nano16: Path, seed: int, prompt: str) -> None:
    """With the cascade's own steps, guidance and noise levels."""
    compare(stages16, nano16, Request(prompt, seed))


ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
CASES: dict[str, Request] = {
    "negative": Request(FOX, 3, negative="Blurry, low quality", settings=FEW),
    "timesteps": Request(FOX, 4, settings={ONE: Settings(timesteps=(990, 711, 400, 37, 0)), TWO: Settings(timesteps=(998, 500, 12))}),
    "timesteps from the very top": Request(FOX, 4, settings=FEW | {ONE: Settings(timesteps=(999, 500, 0))}),
    "one timestep": Request(FOX, 4, settings=FEW | {ONE: Settings(timesteps=(700,)), TWO: Settings(timesteps=(0,))}),
    "guidance": Request(FOX, 5, settings={s: Settings(steps=3, guidance=g) for s, g in ((ONE, 2.5), (TWO, 1.01), (UP, 15.0))}),
    "no guidance": Request(FOX, 6, negative="red", settings={s: Settings(steps=3, guidance=1.0) for s in (ONE, TWO, UP)}),
    "guidance zero": Request(FOX, 6, settings=FEW | {s: Settings(steps=2, guidance=0.0) for s in (TWO, UP)}),
    "guidance in stage one only": Request(FOX, 6, settings=FEW | {TWO: Settings(steps=2, guidance=1.0)}),
    "steps": Request(FOX, 7, settings={ONE: Settings(steps=11), TWO: Settings(steps=1), UP: Settings(steps=4)}),
    "least noise": Request(FOX, 8, settings=FEW | {s: Settings(steps=2, noise_level=0) for s in (TWO, UP)}),
    "most noise": Request(FOX, 8, settings=FEW | {TWO: Settings(steps=2, noise_level=999), UP: Settings(steps=2, noise_level=350)}),
    "per stage": Request(FOX, 9, settings=FEW, seeding="per_stage"),
    "stage one is all": Request(FOX, 10, settings=FEW, last_stage=ONE),
    "stage two is all": Request(FOX, 10, settings=FEW, last_stage=TWO),
    "more words than tokens": Request("a fox and " * 60, 11, negative="no owl, " * 60, settings=FEW),
    "no known word": Request("一只袋鼠 🦊 \t Ωμ", 12, negative="</s> <pad>", settings=FEW),
    "other size": Request(FOX, 13, settings=FEW, width=24, height=24),
    "wide": Request(FOX, 13, settings=FEW, width=32, height=16),
}


@pytest.mark.parametrize("case", CASES)
def test_settings(stages16: dict[str, Stage], nano16: Path, case: str) -> None:
    compare(stages16, nano16, CASES[case])


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # the pipeline warns of itself
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # fp16 is 30 times slower on a CPU
def test_half_precision(nano16: Path, dtype: str) -> None:
    """As the pipelines do it too, the VAE's own precision included."""
    compare(loaded(nano16, dtype), nano16, Request(FOX, 17, negative="blurry", settings=FEW), dtype=DTYPES[dtype])


# ---- two cascades

FACTORS: dict[str, tuple[object, ...]] = {
    "task": ("generate", "vary", "inpaint", "upscale", "upscale alone"),  # the six IF pipelines, the upscaler, and it by itself
    "walk": ("steps", "named", "explicit"),  # DDIM takes no list: then steps again
    "guidance": (1.0, 6.0),
    "shape": ((16, 16), (24, 16)),
    "seed": (0, 2**40 + 1),
    "cascade": ("nano16", "other16"),
    "scheduler": SAMPLERS,
}
WALKS: dict[str, dict[str, dict[str, Any]]] = {
    "steps": {ONE: {"steps": 4}, TWO: {"steps": 3}},
    "named": {ONE: {"schedule": "fast27"}, TWO: {"schedule": "2,1,1"}},  # of Stage II a string of the original's
    "explicit": {ONE: {"timesteps": (999, 740, 401, 33, 0)}, TWO: {"timesteps": (995, 510, 7)}},
}


@cache
def sketch(task: str, shape: tuple[int, int]) -> dict[str, Any]:
    """What the task brings: of the size that Stage II or the upscaler make larger, else somewhat larger and of that aspect."""
    width, height = shape if task == "upscale" else (3 * shape[0], 3 * shape[1])
    needs = {"generate": (), "inpaint": ("source", "mask")}.get(task, ("source",))
    made = {"source": photo(width, height), "mask": stencil(width, height)}
    return {name: file(saved(made[name])) for name in needs}


def cell(request: pytest.FixtureRequest, case: Case) -> None:
    task, walk, guidance, shape, seed, cascade, scheduler = cast(tuple[str, str, float, tuple[int, int], int, str, str], case)
    task, _, alone = task.partition(" ")
    steps = WALKS["steps" if scheduler == "ddim" else walk]
    more: dict[str, Any] = {"guidance": guidance, "scheduler": scheduler}
    settings = {stage: Settings(**steps[stage], **more) for stage in (ONE, TWO)} | {UP: Settings(steps=2, **more)}
    size = {"width": shape[0], "height": shape[1]} if task == "generate" else {}
    asked = Request(FOX, seed, task, "blurry", settings, first_stage=UP if alone else "encoder", **size)  # type: ignore[arg-type]
    stages = request.getfixturevalue({"nano16": "stages16", "other16": "others16"}[cascade])
    made = compare(stages, request.getfixturevalue(cascade), asked, sketch(task, shape))
    times = 4 if alone else 16
    assert made["image1024"].shape == (3, times * shape[1], times * shape[0])


def named(case: Case) -> str:
    return "-".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part).replace(" ", "_") for part in case)


@pytest.mark.parametrize("case", pairwise(FACTORS), ids=named)
def test_every_pair_on_two_cascades(request: pytest.FixtureRequest, case: Case) -> None:
    cell(request, case)


@pytest.mark.parity
@pytest.mark.parametrize("case", whole(FACTORS), ids=named)
def test_the_whole_matrix(request: pytest.FixtureRequest, case: Case) -> None:
    cell(request, case)


def test_the_selection_holds_every_pair_and_is_small() -> None:
    chosen, every = pairwise(FACTORS), whole(FACTORS)
    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, every))
    assert len(every) == 960
    assert len(chosen) <= 26


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("task", ["generate", "vary", "inpaint", "upscale"])
@pytest.mark.parametrize("cascade", ["nano16", "other16"])
def test_every_named_list(request: pytest.FixtureRequest, cascade: str, task: str, name: str) -> None:
    """In Stage I, and to upscale in Stage II."""
    last = TWO if task == "upscale" else ONE
    stages = request.getfixturevalue({"nano16": "stages16", "other16": "others16"}[cascade])
    asked = Request(FOX, 18, task, settings={last: Settings(schedule=name)}, last_stage=last)
    compare(stages, request.getfixturevalue(cascade), asked, sketch(task, (16, 16)))


def test_the_cascades_differ_in_every_width(stages16: dict[str, Stage], others16: dict[str, Stage]) -> None:
    """Of encoder, UNets and the upscaler's parts; and an embedding of one is none of the other's."""
    for name, parts in {"encoder": ("_model",), ONE: ("_unet",), TWO: ("_unet",), UP: ("_unet", "_text", "_vae")}.items():
        for part in parts:
            shapes = [
                {key: list(value.shape) for key, value in getattr(of[name], part).state_dict().items()} for of in (stages16, others16)
            ]
            same = [key for key in shapes[0].keys() & shapes[1].keys() if shapes[0][key] == shapes[1][key]]
            assert len(same) < 0.2 * len(shapes[0]), f"{name}{part}: {same}"


@pytest.fixture(scope="module")
def true_geometry(nano64: Path) -> dict[str, torch.Tensor]:
    """64 -> 256 -> 1024, very few steps."""
    few = {ONE: Settings(steps=2), TWO: Settings(steps=2), UP: Settings(steps=1)}
    return compare(loaded(nano64), nano64, Request(FOX, 14, negative="blurry", settings=few))


def test_true_geometry(true_geometry: dict[str, torch.Tensor]) -> None:
    assert {name: list(t.shape) for name, t in true_geometry.items() if name != "embeds"} == {
        "image64": [3, 64, 64],
        "image256": [3, 256, 256],
        "image1024": [3, 1024, 1024],
    }
    assert true_geometry["embeds"].shape[:2] == (2, 77)


def prompted_first(both: torch.Tensor, scale: float, channels: int) -> torch.Tensor:
    return denoising_guide(both.flip(0), scale, channels)


def wrong_variance(both: torch.Tensor, scale: float, channels: int) -> torch.Tensor:
    right = denoising_guide(both, scale, channels)
    return torch.cat([right[:, :channels], both[:1, channels:]], dim=1)


def guided_variance(both: torch.Tensor, scale: float, channels: int) -> torch.Tensor:
    return both[:1] + scale * (both[1:] - both[:1])


def unchained(request: Request, bag: Bag) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(request.seed)


def chained_too_well(request: Request, bag: Bag) -> torch.Generator:
    """A generator that has drawn once more than it should."""
    made = denoising_noise_source(request, bag)
    torch.randn(1, generator=made)
    return made


denoising_guide, denoising_noise_source = denoising.guide, denoising.noise_source
FAULTS: dict[str, tuple[str, object]] = {
    "guidance the wrong way round": ("denoising.guide", prompted_first),
    "variance of the negative's row": ("denoising.guide", wrong_variance),
    "guidance on the variance": ("denoising.guide", guided_variance),
    "stage two starts from the seed again": ("stage_two.noise_source", unchained),
    "stage one draws once too often": ("stage_one.noise_source", chained_too_well),
    "always two rows": ("stage_one.rows", lambda embeds, guidance: embeds),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Break it on purpose: a comparison that cannot fail proves nothing."""
    where, broken = FAULTS[fault]
    monkeypatch.setattr(f"ifmesh_services.{where}", broken)
    guidance = 1.0 if fault == "always two rows" else 7.0
    settings = FEW | {ONE: Settings(steps=3, guidance=guidance)}
    with pytest.raises(AssertionError, match=r"image\d+ differs by"):
        compare(stages16, nano16, Request(FOX, 16, negative="blurry", settings=settings, last_stage=TWO))


def test_fewer_stages_draw_the_same_beginning(stages16: dict[str, Stage]) -> None:
    whole, part = (drawn(stages16, Request(FOX, 15, settings=FEW, last_stage=last)) for last in ("upscaler", "stage_two"))
    assert_equal(part, {name: whole[name] for name in part})


def test_the_seed_and_the_seeding_matter(stages16: dict[str, Stage]) -> None:
    def image(seed: int, seeding: Literal["chained", "per_stage"]) -> torch.Tensor:
        return drawn(stages16, Request(FOX, seed, settings=FEW, seeding=seeding, last_stage=TWO))["image256"]

    pictures = [image(0, "chained"), image(1, "chained"), image(0, "per_stage"), image(1, "per_stage")]
    assert not any(torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    assert torch.equal(pictures[0], image(0, "chained"))


def test_neighbours_at_other_timesteps_change_nothing(stages16: dict[str, Stage]) -> None:
    """Exact mode holds one job, but nothing in a stage depends on that: each request keeps its own clock, noise and pixels."""
    requests = {
        "a": Request(FOX, 20, settings=FEW),
        "b": Request(OWL, 21, negative="fox", settings={s: Settings(steps=4, guidance=3.0) for s in (ONE, TWO, UP)}),
        "c": Request(FOX, 22, settings={s: Settings(steps=1, guidance=1.0) for s in (ONE, TWO, UP)}),
    }
    entering: dict[str, Bag] = {job: {} for job in requests}
    for name, stage in stages16.items():
        alone = {job: run(stage, job, request, entering[job]) for job, request in requests.items()}
        together: dict[str, Bag] = {}
        steps = {"a": stage.admit("a", requests["a"], entering["a"])}
        for late in ("b", "c", ""):
            if late:
                steps[late] = stage.admit(late, requests[late], entering[late])
            for advance in stage.step():
                together |= {advance.job: advance.output} if advance.output else {}
        while len(together) < 3:
            together |= {advance.job: advance.output for advance in stage.step() if advance.output}
        assert together == alone, name
        entering = {job: {**entering[job], **together[job]} for job in requests}


def test_a_dropped_job_is_gone_and_may_come_again(stages16: dict[str, Stage]) -> None:
    request = Request(FOX, 23, settings=FEW)
    bag: Bag = {}
    for name, stage in stages16.items():
        steps = stage.admit("job", request, bag) + (name == UP)
        for taken in range(steps):  # dropped after every possible step, and in the upscaler also before the decode
            if taken:
                stage.admit("job", request, bag)
            for _ in range(taken):
                list(stage.step())
            stage.drop("job")
            assert not list(stage.step())
        stage.drop("a stranger")
        bag = {**bag, **run(stage, "job", request, bag)}
    assert torch.equal(to_torch(bag["image1024"]), drawn(stages16, request)["image1024"])


def test_a_list_beyond_the_training_is_the_requests_fault(stages16: dict[str, Stage]) -> None:
    """1000 steps of the upscaler's DDIM start at timestep 1000: its own table ends at 999, and its pipeline dies of it."""
    request = Request(FOX, 0, settings=FEW | {UP: Settings(steps=1000)})
    bag: Bag = {}
    for name in ("encoder", ONE, TWO):
        bag = {**bag, **run(stages16[name], "job", request, bag)}
    with pytest.raises(BadRequest, match=r"settings\.upscaler\.steps: 1000"):
        stages16[UP].admit("job", request, bag)
    assert not list(stages16[UP].step())


def test_a_bag_of_another_cascade_is_refused(stages16: dict[str, Stage]) -> None:
    """A worker of the wrong cascade must say so, not draw noise."""
    request = Request(FOX, 0, settings=FEW)
    bag = run(stages16["encoder"], "job", request, {})
    wrong = {**bag, "embeds": bags.decode(bags.encode({"embeds": bag["rng"]}))["embeds"]}
    with pytest.raises(ValueError, match="embeds: U8"):
        stages16[ONE].admit("job", request, wrong)


def test_settings_replace_the_cascades_field_by_field() -> None:
    """And steps and timesteps each other."""
    default = Settings(steps=27, guidance=7.0, noise_level=250)
    listed = Settings(timesteps=(900, 0), guidance=7.0)
    assert planned(default, None) == Plan(27, None, 7.0, 250)
    assert planned(default, Settings(guidance=0.0, noise_level=0)) == Plan(27, None, 0.0, 0)
    assert planned(default, Settings(timesteps=(5, 1, 0))) == Plan(3, (5, 1, 0), 7.0, 250)
    assert planned(listed, Settings(steps=9)) == Plan(9, None, 7.0, 0)
    assert planned(Settings(steps=9, strength=0.7), Settings(guidance=2.0)) == Plan(9, None, 2.0, 0, 0.7)
    assert planned(Settings(steps=9, strength=0.7), Settings(steps=3, strength=1.0)) == Plan(3, None, 1.0, 0, 1.0)
    with pytest.raises(Misconfigured, match="neither steps nor timesteps"):
        planned(Settings(), Settings(guidance=2.0))
