"""One step for all of a pool's DDPM requests, against each one's own scheduler: equal in every bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from ifmesh_services import ddpm
from ifmesh_services.denoising import Draw, each
from ifmesh_services.nano.builder import SCHEDULER_I
from ifmesh_services.schedules import planned, scheduled
from torch import Tensor

from ifmesh.request import Settings

ONE = "stage_one"
PUBLISHED: dict[str, Any] = {key: value for key, value in SCHEDULER_I.items() if key not in ("_class_name", "lambda_min_clipped")}
CONFIGS: dict[str, dict[str, Any]] = {
    "Stage I": {},
    "Stage II": {"sample_max_value": 1.0},
    "clipped": {"thresholding": False},
    "clipped wide": {"thresholding": False, "clip_sample_range": 2.5},
    "neither": {"thresholding": False, "clip_sample": False},
    "fixed variance": {"variance_type": "fixed_small"},
    "linear": {"beta_schedule": "linear"},
    "v": {"prediction_type": "v_prediction", "thresholding": False},
    "sample": {"prediction_type": "sample", "variance_type": "fixed_small"},
}
SETTINGS = (
    Settings(steps=100),
    Settings(steps=7),
    Settings(schedule="fast27"),
    Settings(timesteps=(999, 998, 500, 3, 1, 0)),
    Settings(timesteps=(1,)),
    Settings(steps=20, threshold_ratio=0.8, threshold_max=3.0),
    Settings(steps=20, threshold_ratio=0.99),
    Settings(steps=20, threshold_max=1.2),
    Settings(steps=9, guidance=1.0),
)
BESIDE = (Settings(steps=9, scheduler="ddim"), Settings(steps=9, scheduler="dpm++"))


def template(**config: Any) -> Any:
    made: Any = DDPMScheduler
    return made(**{**PUBLISHED, **config})


def draws(kind: Any, settings: Sequence[Settings], seed: int, size: tuple[int, int] = (8, 8)) -> list[Draw]:
    """One of each, in an order and at places in their lists that the seed decides; some inpaint."""
    dice, made = random.Random(seed), []
    for n, said in enumerate(dice.sample(list(settings), len(settings))):
        source = torch.Generator().manual_seed(100 * seed + n)
        plan = planned(Settings(steps=10, guidance=7.0), said)
        x = torch.randn(1, 3, *size, generator=source)
        mask = (torch.rand(1, 1, *size, generator=source) > 0.5).float() if n % 3 == 0 else None
        rows = torch.zeros(2 if plan.guidance > 1 else 1, 4, 8)
        draw = Draw(x, rows, plan.guidance, scheduled(copy.copy(kind), plan, ONE), source, mask=mask)
        solver = said.scheduler == "dpm++"  # it remembers its last answers
        draw.done = 0 if solver else dice.choice([0, draw.steps - 1, dice.randrange(draw.steps)])
        made.append(draw)
    return made


def answers(ours: Sequence[Draw], seed: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(len(draw.embeds), 6, *draw.x.shape[2:], generator=source) for draw in ours]


def differing(kind: Any, settings: Sequence[Settings], seeds: Sequence[int]) -> list[int]:
    """The requests, by their place, that came out otherwise; each takes as many steps as all have left."""
    found: list[int] = []
    for seed in seeds:
        ours, theirs = draws(kind, settings, seed), draws(kind, settings, seed)
        for turn in range(min(draw.steps - draw.done for draw in ours)):
            told = answers(ours, seed + turn)
            with torch.inference_mode():
                ddpm.together(ours, told)
                each(theirs, told)
        for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            alike = torch.equal(one.x, other.x) and torch.equal(one.source.get_state(), other.source.get_state())
            if not alike or one.done != other.done:
                found.append(n)
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_every_bit_of_the_scheduler(config: str) -> None:
    settings = SETTINGS[:5] if config == "Stage II" else SETTINGS  # where all is cut at 1, a ratio is refused
    assert differing(template(**CONFIGS[config]), settings, range(8)) == []


def test_every_timestep() -> None:
    """All that the model was trained for, and wherever the one before may lie."""
    kind, dice = template(), random.Random(1)
    lists = [tuple(sorted(dice.sample(range(1000), 40), reverse=True)) for _ in range(3)]
    every = [tuple(range(top, top - 100, -1)) for top in range(999, 0, -100)]
    for timesteps in (*lists, *every):
        ours, theirs = ([Draw(*fresh(kind, timesteps, n)) for n in range(len(timesteps))] for _ in range(2))
        for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.done = other.done = n
        told = answers(ours, 5)
        with torch.inference_mode():
            ddpm.together(ours, told)
            each(theirs, told)
        assert [n for n, (one, other) in enumerate(zip(ours, theirs, strict=True)) if not torch.equal(one.x, other.x)] == []


def fresh(kind: Any, timesteps: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, float, Any, torch.Generator]:
    plan, source = planned(Settings(), Settings(timesteps=timesteps, guidance=5.0)), torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 8, 8, generator=source), torch.zeros(2, 4, 8), 5.0, scheduled(kind, plan, ONE), source


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # diffusers and numpy
def test_other_kinds_go_by_their_own_scheduler() -> None:
    """In the same pool, and in between."""
    assert differing(template(), (*SETTINGS[:4], *BESIDE), range(6)) == []


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # diffusers and numpy
def test_who_steps_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that differ in timestep only; a threshold, a shape or a kind of its own is a step of its own."""
    sizes: list[int] = []
    stepped = ddpm.stepped

    def counted(draws: Sequence[Draw], told: Tensor) -> Tensor:
        sizes.append(len(draws))
        return stepped(draws, told)

    monkeypatch.setattr(ddpm, "stepped", counted)
    kind = template()
    several = [*draws(kind, [*SETTINGS[:4], *SETTINGS[5:6], *BESIDE], 1), *draws(kind, SETTINGS[:2], 2, (8, 16))]
    with torch.inference_mode():
        ddpm.together(several, answers(several, 1))
    assert sorted(sizes) == [1, 2, 4]
    assert all(draw.x.shape == (1, 3, *draw.x.shape[2:]) for draw in several)


def test_a_broken_neighbour_stays_alone() -> None:
    kind = template()
    ours, theirs = draws(kind, SETTINGS[:4], 3), draws(kind, SETTINGS[:4], 3)
    told = answers(ours, 3)
    told[1][:] = torch.nan
    with torch.inference_mode():
        ddpm.together(ours, told)
        each(theirs, told)
    assert [torch.equal(one.x, other.x) for one, other in zip(ours, theirs, strict=True)] == [True, False, True, True]
    assert ours[1].x.isnan().any()


def test_what_it_does_not_know_it_leaves() -> None:
    """A formula of another's own, another variance, half precision."""

    class Other(DDPMScheduler):
        pass

    [known] = draws(template(), SETTINGS[:1], 1)
    assert ddpm.covered(known)
    other: Any = Other
    [unknown] = draws(other(**PUBLISHED), SETTINGS[:1], 1)
    [large] = draws(template(variance_type="fixed_large"), SETTINGS[:1], 1)
    known.x = known.x.half()
    assert not any(map(ddpm.covered, (unknown, large, known)))


def same_noise(draws: Sequence[Draw], noisy: Sequence[bool], like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=draws[0].source)


def first_timestep(draws: Sequence[Draw]) -> Tensor:
    return _coefficients([draws[0]] * len(draws))


_coefficients = ddpm._coefficients
FAULTS = {"noise of one source": ("_noise", same_noise), "all at one timestep": ("_coefficients", first_timestep)}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpm, *FAULTS[fault])
    assert differing(template(), SETTINGS, [1])
