"""The built-in cascade draws what captions say, and a sampler that is broken is seen by its pictures.

The captions are some that training never saw, the judge knows no model.  Seeds are fixed; other processors give other last bits, and so
now and then another picture: between the least that is asked for here and what is reached lies room for several.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import pytest
import torch
from ifmesh_services import denoising
from ifmesh_services.denoising import Draw, Predict
from ifmesh_services.nano.batches import picture
from ifmesh_services.nano.exam import Score, questions, score
from ifmesh_services.nano.judge import grain
from ifmesh_services.nano.shipped import FOLDER
from ifmesh_services.tensors import to_torch

from ifmesh.request import Request
from ifmesh.stage import Stage
from tests.services.chained import loaded, passed

CAPTIONS, BROKEN = 30, 8
LEAST, MOST = 0.75, 0.5  # of all right: what is asked for, and what a sampler does not reach that draws something else
ROUGH = 8.5  # levels of 255: the mean grain of the backgrounds is less, unless a sampler leaves noise where it was


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return loaded(FOLDER)


def drawn(stages: dict[str, Stage], count: int) -> tuple[Score, float]:
    """The first of the held-out captions at 64 px, judged, and their mean grain."""
    said = questions()[:count]
    requests = [Request(one["caption"], i, last_stage="stage_one") for i, one in enumerate(said)]
    pictures = [picture(to_torch(passed(stages, one)["image64"])) for one in requests]
    return score(pictures, said), fmean(map(grain, pictures))


def test_it_draws_what_captions_say(stages: dict[str, Stage]) -> None:
    found, rough = drawn(stages, CAPTIONS)
    assert found.shape >= LEAST, found
    assert found.colours >= LEAST, found
    assert found.all >= LEAST, found
    assert rough < ROUGH


def turned(both: torch.Tensor, scale: float, channels: int) -> torch.Tensor:
    """Guidance away from the prompt."""
    plain, prompted = both.chunk(2)
    return torch.cat([plain[:, :channels] - scale * (prompted[:, :channels] - plain[:, :channels]), prompted[:, channels:]], dim=1)


def swapped(embeds: torch.Tensor, guidance: float) -> torch.Tensor:
    """The prompt in the negative's row."""
    return embeds.flip(0)


def late(unet: Any) -> Predict:
    """The UNet is told the timestep that comes next."""

    def predict(draws: Sequence[Draw]) -> Iterator[torch.Tensor]:
        for draw in draws:
            t = draw.scheduler.timesteps[min(draw.begin + draw.done + 1, len(draw.scheduler.timesteps) - 1)]
            yield unet(draw.seen(), t, encoder_hidden_states=draw.embeds, class_labels=draw.labels, return_dict=False)[0]

    return predict


@pytest.mark.parametrize(
    ("name", "broken"), [("guide", turned), ("rows", swapped), ("exact", late)], ids=["guidance", "embeddings", "timestep"]
)
def test_a_broken_sampler_is_seen(name: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (denoising, *_users(name)):
        monkeypatch.setattr(module, name, broken)
    found, rough = drawn(loaded(FOLDER), BROKEN)
    assert found.all <= MOST or rough >= ROUGH, found


def _users(name: str) -> list[Any]:
    """The modules that took the name into their own."""
    return [module for at, module in list(sys.modules.items()) if at.startswith("ifmesh_services.") and hasattr(module, name)]


def test_the_folder_is_small_and_whole() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} == {".json", ".md", ".model", ".safetensors", ".txt"}
    assert (FOLDER / "README.md").exists()
