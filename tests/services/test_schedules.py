"""Lists by name, schedulers, thresholds, aspects: against diffusers' own pipelines with the same lists and schedulers, bit for bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.pipelines.deepfloyd_if import timesteps as published
from ifmesh_services import loading, recipes, samplers
from ifmesh_services.schedules import Plan, planned, scheduled

from ifmesh import respacing, wishes
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.request import Request, Settings
from ifmesh.samplers import SAMPLERS
from ifmesh.stage import Stage
from tests.services import oracle
from tests.services.chained import compare, drawn, file, loaded
from tests.services.pairwise import Case, pairwise, shared, whole
from tests.services.photos import photo, saved, stencil
from tests.services.test_loading import rewritten

# numpy's word to torch, within the solvers of diffusers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

FOX = "a red fox in the snow, oil on canvas"
ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
FEW = {ONE: Settings(steps=3), TWO: Settings(steps=2), UP: Settings(steps=1)}
DDPM = oracle.SCHEDULERS["ddpm"]


@cache
def sketch(task: str) -> dict[str, Any]:
    return ({} if task == "generate" else {"source": file(saved(photo(96, 64)))}) | (
        {"mask": file(saved(stencil(96, 64)))} if task == "inpaint" else {}
    )


# ---- named lists


@pytest.mark.parametrize("name", respacing.NAMED)
def test_the_names_are_diffusers_lists(name: str) -> None:
    assert list(respacing.timesteps(name)) == getattr(published, f"{name}_timesteps")


def test_every_list_of_diffusers_has_its_name() -> None:
    assert {n.removesuffix("_timesteps") for n in dir(published) if n.endswith("_timesteps")} == set(respacing.NAMED)


@pytest.mark.parametrize("schedule", ["fast27", "smart27", "super27", "7", "2,0,3,1", "ddim6"])
def test_a_schedule_is_its_list(stages16: dict[str, Stage], nano16: Path, schedule: str) -> None:
    """On both stages that take one; "as its list" is the pipeline's word, which never hears of the name."""
    settings = {ONE: Settings(schedule=schedule), TWO: Settings(schedule="2,1,1" if "2" in schedule else schedule)}
    made = compare(stages16, nano16, Request(FOX, 60, settings=settings, last_stage=TWO))
    usual = drawn(stages16, Request(FOX, 60, last_stage=TWO))
    assert not torch.equal(made["image64"], usual["image64"])
    assert not torch.equal(made["image256"], usual["image256"])


def test_strength_cuts_a_schedule(stages16: dict[str, Stage], nano16: Path) -> None:
    settings = {ONE: Settings(schedule="fast27", strength=0.3), TWO: Settings(schedule="3,3", strength=0.5)}
    compare(stages16, nano16, Request(FOX, 61, "vary", settings=settings, last_stage=TWO), sketch("vary"))
    plan = planned(Settings(steps=9, strength=0.7), Settings(schedule="fast27", strength=0.3))
    assert (plan.steps, plan.begin(DDPM()), plan.schedule) == (27, 19, "fast27")


# ---- schedulers

FACTORS: dict[str, tuple[object, ...]] = {
    "task": ("generate", "vary", "inpaint"),
    "Stage I": SAMPLERS,
    "Stage II": SAMPLERS,
    "upscaler": SAMPLERS,
    "walk": ("steps", "list"),
    "thresholds": (False, True),
}


def draw(stages: dict[str, Stage], folder: Path, case: Case) -> None:
    task, one, two, up, walk, thresholds = cast(tuple[str, str, str, str, str, bool], case)
    cut: dict[str, Any] = {"threshold_ratio": 0.8, "threshold_max": 3.0} if thresholds else {}
    first: dict[str, Any] = {"steps": 6} if walk == "steps" or one == "ddim" else {"timesteps": (999, 800, 500, 200, 0)}
    second: dict[str, Any] = {"steps": 5} if walk == "steps" or two == "ddim" else {"schedule": "2,1,1"}
    settings = {
        ONE: Settings(scheduler=one, **cut, **first),
        TWO: Settings(scheduler=two, **cut, **second),
        UP: Settings(scheduler=up, steps=3),
    }
    compare(stages, folder, Request(FOX, 62, task, settings=settings), sketch(task))


def named(case: Case) -> str:
    return "-".join(map(str, case))


@pytest.mark.parametrize("case", shared(pairwise(FACTORS)), ids=named)
def test_every_pair(stages16: dict[str, Stage], nano16: Path, case: Case) -> None:
    draw(stages16, nano16, case)


@pytest.mark.parity
@pytest.mark.parametrize("case", whole({name: FACTORS[name] for name in ("task", "Stage I", "walk", "thresholds")}), ids=named)
def test_the_whole_matrix(stages16: dict[str, Stage], nano16: Path, case: Case) -> None:
    """The same scheduler in all stages: of each other they know nothing."""
    task, name, walk, thresholds = case
    draw(stages16, nano16, (task, name, name, name, walk, thresholds))


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # the pipeline warns of itself
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision(nano16: Path, name: str) -> None:
    settings = {stage: Settings(steps=2, scheduler=name) for stage in (ONE, TWO, UP)}
    compare(loaded(nano16, "bf16"), nano16, Request(FOX, 63, settings=settings), dtype=torch.bfloat16)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_odd_number_of_steps_and_one(stages16: dict[str, Stage], nano16: Path, name: str, guidance: float) -> None:
    """The singlestep solver walks in pairs."""
    settings = {
        ONE: Settings(steps=5, scheduler=name, guidance=guidance),
        TWO: Settings(steps=1, scheduler=name, guidance=guidance),
        UP: Settings(steps=1, scheduler=name, guidance=guidance),
    }
    compare(stages16, nano16, Request(FOX, 64, settings=settings))


def test_every_scheduler_draws_another_picture_and_its_own_is_its_own(stages16: dict[str, Stage]) -> None:
    for stage, last, own, image in ((ONE, ONE, "ddpm", "image64"), (TWO, TWO, "ddpm", "image256"), (UP, UP, "ddim", "image1024")):
        made = {
            name: drawn(stages16, Request(FOX, 65, settings=FEW | {stage: Settings(steps=4, scheduler=name)}, last_stage=last))[image]
            for name in (None, *SAMPLERS)
        }
        assert torch.equal(made.pop(None), made[own])
        assert len({bytes(picture.contiguous().view(torch.uint8).numpy()) for picture in made.values()}) == len(SAMPLERS)


def test_every_name_has_its_class() -> None:
    assert {name: oracle.SCHEDULERS[name] for name in SAMPLERS} == samplers.KINDS


def test_requests_of_other_schedulers_live_side_by_side(stages16: dict[str, Stage]) -> None:
    """What one has edited no other sees: each alone, then all at once in one stage."""
    jobs = {
        **{name: Settings(steps=4, scheduler=name) for name in SAMPLERS},
        "cut": Settings(steps=4, scheduler="dpm++", threshold_ratio=0.6, threshold_max=4.0),
        "own": Settings(steps=4),
    }
    requests = {job: Request(FOX, 66, settings={ONE: s}, last_stage=ONE) for job, s in jobs.items()}
    alone = {job: drawn(stages16, request)["image64"] for job, request in requests.items()}
    template = DDPM.from_config(dict(oracle_config()))
    together = {job: scheduled(template, planned(Settings(steps=9), s), ONE) for job, s in jobs.items()}
    again = {job: scheduled(template, planned(Settings(steps=9), s), ONE) for job, s in jobs.items()}
    assert all(dict(together[job].config) == dict(again[job].config) for job in jobs)
    assert together["dpm++"].config.sample_max_value == together["own"].config.sample_max_value == 1.5
    assert dict(template.config) == dict(DDPM.from_config(dict(oracle_config())).config)
    assert all(torch.equal(alone[job], drawn(stages16, request)["image64"]) for job, request in reversed(requests.items()))


def oracle_config() -> dict[str, Any]:
    return {
        "beta_schedule": "squaredcos_cap_v2",
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.95,
        "sample_max_value": 1.5,
        "variance_type": "learned_range",
    }


def test_what_a_configuration_leaves_out_is_edited_all_the_same() -> None:
    """diffusers drops edits of values that were defaults (`_use_default_values`), and a configuration without -5.1 gets it."""
    template = DDPM.from_config({"beta_schedule": "squaredcos_cap_v2"})
    solver, strided = samplers.alike(template, "dpm++"), samplers.alike(template, "ddim")
    assert solver.config.lambda_min_clipped == -5.1
    assert strided.config.variance_type == "fixed_small"
    assert samplers.alike(template, "dpm++") is solver
    assert samplers.alike(template, "ddpm") is samplers.alike(template, None) is template
    own = scheduled(template, Plan(3, None, 1.0, 0, threshold_ratio=0.9, threshold_max=2.0, scheduler="ddim"), ONE)
    assert (own.config.thresholding, own.config.dynamic_thresholding_ratio, own.config.sample_max_value) == (True, 0.9, 2.0)
    assert not strided.config.thresholding


# ---- thresholds


@pytest.mark.parametrize("scheduler", [None, *SAMPLERS])
@pytest.mark.parametrize("task", ["generate", "inpaint"])
def test_thresholds(stages16: dict[str, Stage], nano16: Path, task: str, scheduler: str | None) -> None:
    settings = {
        ONE: Settings(steps=4, scheduler=scheduler, threshold_ratio=0.5, threshold_max=5.0),
        TWO: Settings(steps=3, scheduler=scheduler, threshold_ratio=0.99, threshold_max=1.75),
    }
    compare(stages16, nano16, Request(FOX, 67, task, settings=settings, last_stage=TWO), sketch(task))


def test_each_threshold_has_an_effect(stages16: dict[str, Stage], nano16: Path) -> None:
    """In Stage I each by itself, in Stage II, which is published with a most of 1, the most, and then the ratio."""

    def image(stage: str, **given: Any) -> bytes:
        request = Request(FOX, 68, settings=FEW | {stage: Settings(steps=3, **given)}, last_stage=stage)
        made = compare(stages16, nano16, request)
        return made["image64" if stage == ONE else "image256"].numpy().tobytes()

    one: list[dict[str, float]] = [{}, {"threshold_ratio": 0.5}, {"threshold_max": 1.0}, {"threshold_max": 4.0}]
    two: list[dict[str, float]] = [{}, {"threshold_max": 4.0}, {"threshold_max": 4.0, "threshold_ratio": 0.5}]
    assert len({image(ONE, **given) for given in one}) == len(one)
    assert len({image(TWO, **given) for given in two}) == len(two)
    assert image(ONE, threshold_ratio=0.95, threshold_max=1.5) == image(ONE), "those that are published"
    assert image(TWO, threshold_max=1.0) == image(TWO)


# ---- what does not go together


def refused(settings: Settings, default: Settings = Settings(steps=9), stage: str = ONE, most: float = 1.5) -> BadRequest:  # noqa: B008
    template = DDPM.from_config(oracle_config() | {"sample_max_value": most})
    with pytest.raises(BadRequest) as caught:
        scheduled(template, planned(default, settings), stage)
    return caught.value


def test_a_ratio_that_could_do_nothing_is_refused() -> None:
    error = refused(Settings(threshold_ratio=0.9), stage=TWO, most=1.0)
    assert (error.field, error.value) == ("settings.stage_two.threshold_ratio", 0.9)
    assert "without effect while threshold_max is 1" in error.remedy
    assert "without effect" in refused(Settings(threshold_ratio=0.9, threshold_max=1.0)).remedy


def test_ddim_does_not_walk_the_cascades_own_list() -> None:
    error = refused(Settings(scheduler="ddim"), Settings(timesteps=(900, 500, 0)))
    assert (error.field, error.value) == ("settings.stage_one.scheduler", "ddim")
    assert "give steps" in error.remedy


@pytest.mark.parametrize("name", ["dpm++", "dpm++-single"])
def test_more_steps_than_a_solver_has_timesteps(name: str) -> None:
    """Twice the same timestep would be a step of nothing, and a picture of NaN."""
    error = refused(Settings(scheduler=name, steps=1000))
    most = int(error.remedy.rpartition(" ")[2])
    assert (error.field, error.value) == ("settings.stage_one.steps", 1000)
    template = DDPM.from_config(oracle_config())
    assert len(scheduled(template, planned(Settings(), Settings(scheduler=name, steps=most)), ONE).timesteps) == most > 900
    assert "twice" in refused(Settings(scheduler=name, steps=most + 1)).remedy


def test_a_list_beyond_the_model_is_told_by_its_name() -> None:
    template = DDPM(num_train_timesteps=500)
    with pytest.raises(BadRequest, match=r"settings\.stage_one\.schedule: 'fast27': this model knows timesteps 0 to 499"):
        scheduled(template, planned(Settings(), Settings(schedule="fast27")), ONE)


def test_steps_timesteps_and_schedule_replace_each_other() -> None:
    listed, by_name = Settings(timesteps=(900, 0)), Settings(schedule="3", scheduler="dpm++", threshold_max=2.0)
    assert planned(listed, Settings(schedule="2")) == Plan(2, (999, 0), 1.0, 0, schedule="2")
    assert planned(by_name, Settings(steps=4)) == Plan(4, None, 1.0, 0, scheduler="dpm++", threshold_max=2.0)
    assert planned(by_name, Settings(timesteps=(5, 1), scheduler="ddpm")) == Plan(2, (5, 1), 1.0, 0, scheduler="ddpm", threshold_max=2.0)
    assert planned(by_name, None) == Plan(3, (999, 500, 0), 1.0, 0, schedule="3", scheduler="dpm++", threshold_max=2.0)


# ---- a cascade's own


def test_a_cascade_may_start_from_a_schedule_and_a_scheduler(nano16: Path, tmp_path: Path) -> None:
    one = {"repo": "IF-I-nano", "schedule": "fast27", "scheduler": "dpm++", "threshold_ratio": 0.9, "threshold_max": 2}
    two = {"repo": "IF-II-nano", "scheduler": "ddim", "vary": {"schedule": "2,3"}}
    folder = rewritten(nano16, tmp_path / "own", stage_one=one, stage_two=two)
    made = recipes.read(folder)
    assert made.defaults["generate"][ONE] == Settings(
        schedule="fast27", guidance=7.0, scheduler="dpm++", threshold_ratio=0.9, threshold_max=2.0, positive_mixer=0.25
    )
    assert made.defaults["generate"][TWO] == Settings(steps=50, guidance=4.0, noise_level=250, scheduler="ddim", positive_mixer=0.5)
    assert made.defaults["vary"][TWO] == Settings(schedule="2,3", guidance=4.0, noise_level=250, strength=0.8, positive_mixer=0.5)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"schedule": 27}, "stage_one.schedule: 27: a name"),
        ({"schedule": "fast28"}, "did you mean fast27"),
        ({"schedule": "fast27", "steps": 3}, "give schedule or steps, not both"),
        ({"schedule": "fast27", "timesteps": [3]}, "give schedule or timesteps, not both"),
        ({"scheduler": "euler"}, "pictures burn out"),
        ({"scheduler": "ddim", "schedule": "fast27"}, "strides evenly"),
        ({"threshold_max": "2"}, "stage_one.threshold_max: '2': a number"),
        ({"threshold_ratio": 0}, "settings.stage_one.threshold_ratio: 0.0"),
    ],
)
def test_a_wrong_cascade_json_is_told(nano16: Path, tmp_path: Path, entry: dict[str, object], said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        recipes.read(rewritten(nano16, tmp_path / "wrong", stage_one={"repo": "IF-I-nano", **entry}))
    assert said in str(caught.value)


# ---- shapes


def test_an_aspect_is_drawn_natively(nano64: Path) -> None:
    """3:2 is 96 x 64 in Stage I, as the original draws it, and 1536 x 1024 in the end."""
    request, _ = wishes.made(FOX, None, None, {"seed": 69, "aspect_ratio": "3:2", "settings": {s: {"steps": 1} for s in (ONE, TWO, UP)}})
    made = compare(loaded(nano64), nano64, request)
    assert [list(made[name].shape) for name in ("image64", "image256", "image1024")] == [[3, 64, 96], [3, 256, 384], [3, 1024, 1536]]


@pytest.mark.parametrize(("width", "height"), [(8, 8), (40, 8), (24, 56), (16, 72)])
def test_any_multiple_of_eight(stages16: dict[str, Stage], nano16: Path, width: int, height: int) -> None:
    made = compare(stages16, nano16, Request(FOX, 70, settings=FEW, width=width, height=height))
    assert [made[name].shape[1:] for name in ("image64", "image256", "image1024")] == [(n * height, n * width) for n in (1, 4, 16)]


# ---- broken on purpose

FAULTS: dict[str, tuple[str, object, Settings]] = {
    "every name is the same list": ("schedules.rules.listed", lambda s: (900, 500, 0), Settings(schedule="2,1,1")),
    "another class": ("schedules.alike", lambda template, name: template, Settings(steps=4, scheduler="dpm++")),
    "thresholds unheard": ("schedules.thresholded", lambda *_: None, Settings(steps=4, threshold_ratio=0.5)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(stages16: dict[str, Stage], nano16: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    where, broken, settings = FAULTS[fault]
    monkeypatch.setattr(f"ifmesh_services.{where}", broken)
    with pytest.raises(AssertionError, match=r"image\d+ differs by"):
        compare(stages16, nano16, Request(FOX, 71, settings={ONE: settings}, last_stage=ONE))


def test_the_published_threshold_is_where_it_is_said(nano16: Path) -> None:
    """0.95, and 1.5 in Stage I, 1 in Stage II: the remedies of rules.py say so."""
    for stage, most in ((ONE, 1.5), (TWO, 1.0)):
        config = loading.scheduler(recipes.read(str(nano16)).repos[stage], "scheduler", DDPM).config
        assert (config.dynamic_thresholding_ratio, config.sample_max_value) == (0.95, most)
