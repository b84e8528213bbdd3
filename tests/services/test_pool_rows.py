"""Fixed rows: a request's bytes do not depend on who else is in the pool, nor on when and in which order they come."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from ifmesh_services.pooled import Pooled

from ifmesh.request import Request
from ifmesh.stage import Bag, Stage
from tests.services.chained import run
from tests.services.together import ONE, TWO, UP, Jobs, alone, every, pooled, requests, together

FEW = ("three steps", "listed", "no guidance", "wide")  # of the upscaler, which takes long


@pytest.fixture(scope="module")
def jobs(stages16: dict[str, Stage]) -> dict[str, Jobs]:
    """By stage: of every task, with and without guidance, and one of another shape.  The bags are those of exact mode."""
    asked = requests()
    asked["wide"] = (Request("a wide fox", 8, settings=every(steps=2), width=24, height=16), {})
    bags: dict[str, Bag] = {job: {**bag, **run(stages16["encoder"], job, request, bag)} for job, (request, bag) in asked.items()}
    made: dict[str, Jobs] = {}
    for stage in (ONE, TWO, UP):
        made[stage] = {job: (asked[job][0], bags[job]) for job in asked}
        if stage != UP:
            bags = {job: {**bags[job], **run(stages16[stage], job, asked[job][0], bags[job])} for job in asked}
    return made


@pytest.fixture(scope="module")
def slim16(nano16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano16 with a Stage I of the same kinds of layers, but fewer, and 8 px: for many short draws."""
    folder = tmp_path_factory.mktemp("slim") / "slim16"
    shutil.copytree(nano16, folder)
    unet = folder / "IF-I-nano" / "unet"
    kind: Any = UNet2DConditionModel
    config = kind.load_config(unet) | {"block_out_channels": [16, 32], "cross_attention_dim": 32, "sample_size": 8}
    for blocks in ("down_block_types", "up_block_types"):
        config[blocks] = [config[blocks][0], config[blocks][-1]]
    shutil.rmtree(unet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(config).save_pretrained(unet)
    return folder


def compositions(jobs: Jobs, number: int, seed: int) -> list[tuple[tuple[str, ...], random.Random]]:
    """Who comes, in which order (no two alike), and the dice that say when."""
    dice = random.Random(seed)
    orders: dict[tuple[str, ...], random.Random] = {}
    while len(orders) < number:
        orders[tuple(dice.sample(list(jobs), dice.randint(2, len(jobs))))] = random.Random(dice.random())
    return list(orders.items())


def differing(stage: Stage, jobs: Jobs, number: int, seed: int) -> list[str]:
    """The requests whose bytes, in any of so many compositions, were not those that they have alone."""
    wanted = alone(stage, jobs)
    found: list[str] = []
    for order, dice in compositions(jobs, number, seed):
        given = together(stage, {job: jobs[job] for job in order}, order, dice)
        assert set(given) == set(order)
        found += [job for job in order if given[job] != wanted[job]]
    return found


def as_on_a_card(folder: Path, stage: str, rows: int) -> Stage:
    """With all layers in one product: fixed rows alone make the bytes the same."""
    made: Any = pooled(folder, stage)
    made._pool._predict = Pooled(made._unet, rows)
    return cast(Stage, made)


def test_a_hundred_compositions_and_orders(slim16: Path, jobs: dict[str, Jobs]) -> None:
    assert differing(as_on_a_card(slim16, ONE, 8), jobs[ONE], 70, 1) == []
    assert differing(pooled(slim16, ONE, rows=6), jobs[ONE], 30, 2) == []


@pytest.mark.parametrize(("stage", "rows", "number"), [(ONE, 8, 5), (ONE, 6, 3), (TWO, 8, 2), (TWO, 5, 1), (UP, 6, 1)])
def test_every_stage(nano16: Path, jobs: dict[str, Jobs], stage: str, rows: int, number: int) -> None:
    some = {job: jobs[stage][job] for job in (FEW if stage == UP else jobs[stage])}
    assert differing(as_on_a_card(nano16, stage, rows), some, number, rows) == []


def test_the_comparison_notices(nano16: Path, slim16: Path, jobs: dict[str, Jobs]) -> None:
    """Without fixed rows the neighbours show: at least in a request without guidance, whose convolutions see one row when it is alone."""
    assert differing(as_on_a_card(nano16, ONE, 0), jobs[ONE], 5, 1)
    assert differing(as_on_a_card(slim16, ONE, 0), jobs[ONE], 5, 1)
