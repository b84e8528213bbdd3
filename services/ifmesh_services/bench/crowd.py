"""Stages to be measured, in every mode with the same weights, and requests for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ifmesh.cascade import EMBEDS, IMAGE64, IMAGE256, Blob
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup

from ..cache import Cache
from ..denoising import Pool
from ..encoder import Encoder
from ..pooled import Pooling
from ..stage_one import StageOne
from ..stage_two import StageTwo
from ..tensors import to_blob
from ..upscaler import Upscaler
from .meter import Meter, Timed

KINDS: Mapping[str, Callable[[], Any]] = {"encoder": Encoder, "stage_one": StageOne, "stage_two": StageTwo, "upscaler": Upscaler}
DRAWING: Mapping[str, str] = {"stage_one": "image64", "stage_two": "image256", "upscaler": "image1024"}  # and what each gives
ROWS = 2  # of a guided request
Jobs = Mapping[str, tuple[Request, Bag]]


def loaded(name: str, setup: Setup) -> tuple[Any, str]:
    """The stage, in exact mode, and its numeric class."""
    stage = KINDS[name]()
    return stage, stage.load(setup)


def pooled(stage: Any, rows: int = 0) -> Any:
    """A drawing stage with the same weights in pooled mode; rows: fixed, or 0."""
    return with_pool(stage, Pooling("pooled", rows=rows).pool(stage._unet))


def with_pool(stage: Any, pool: Pool) -> Any:
    made = copy.copy(stage)
    made._pool = pool
    return made


def reading(encoder: Any, pooled: bool, cache: int) -> Any:
    """The encoder with the same weights in that mode, with a cache of so many bytes of its own, in which is the empty text."""
    made = copy.copy(encoder)
    made._pooled, made.cache = pooled, Cache(cache, frozenset({made._key("")}))
    made._texts([""])
    return made


def watched(stage: Any, mode: str, meter: Meter) -> tuple[Any, list[Timed]]:
    """A drawing stage with the same weights whose models are timed."""
    made, timed = copy.copy(stage), []
    for name in ("_unet", "_vae", "_text"):
        if model := getattr(stage, name, None):
            timed.append(Timed(model, meter))
            setattr(made, name, timed[-1])
    made._pool = Pooling(mode).pool(made._unet)
    return made, timed


def requests(name: str, stage: Any, number: int, settings: Settings) -> dict[str, tuple[Request, Bag]]:
    """Guided or not, as `settings` say.  The tensors in the bags are noise: speed does not depend on what is drawn."""
    source = torch.Generator().manual_seed(0)

    def blob(of: Blob, *shape: int) -> Bag:
        return {of.name: to_blob(torch.randn(shape, generator=source).clamp(-1, 1).to(stage._dtype))}

    made: dict[str, tuple[Request, Bag]] = {}
    for seed in range(number):
        bag: dict[str, Any] = {}
        if name in ("stage_one", "stage_two"):
            bag |= blob(EMBEDS, 2, 77, stage._unet.config.encoder_hid_dim)
        if name == "stage_two":
            side = stage._unet.config.sample_size // 4
            bag |= blob(IMAGE64, 3, side, side)
        if name == "upscaler":  # its UNet's configuration says half of the size that it is used with
            side = 2 * stage._unet.config.sample_size
            bag |= blob(IMAGE256, 3, side, side)
        made[str(seed)] = (Request(f"a red fox, number {seed}", seed, settings={name: settings} if name in DRAWING else {}), bag)
    return made


def overlapped(stage: Any, jobs: Jobs) -> dict[str, Bag]:
    """What the stage gives them.  With every step one more request comes."""
    given: dict[str, Bag] = {}
    for job, asked in jobs.items():
        stage.admit(job, *asked)
        given |= _stepped(stage)
    return given | _finished(stage, len(jobs) - len(given))


def at_once(stage: Any, jobs: Jobs) -> dict[str, Bag]:
    for job, asked in jobs.items():
        stage.admit(job, *asked)
    return _finished(stage, len(jobs))


def _finished(stage: Any, number: int) -> dict[str, Bag]:
    given: dict[str, Bag] = {}
    while len(given) < number:
        given |= _stepped(stage)
    return given


def _stepped(stage: Any) -> dict[str, Bag]:
    return {advance.job: advance.output for advance in stage.step() if advance.output is not None}


def one_by_one(stage: Any, jobs: Jobs) -> dict[str, Bag]:
    return {job: at_once(stage, {job: asked})[job] for job, asked in jobs.items()}
