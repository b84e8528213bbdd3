"""What is paused between two steps, to make way for an urgent request, goes on afterwards with the bits that it would have had."""

from __future__ import annotations

from pathlib import Path

import pytest
from ifmesh_services.guard import Guard

from ifmesh.cascade import IF
from ifmesh.request import STAGES, Request
from ifmesh.stage import Bag, Setup, Stage
from tests.services.chained import run
from tests.services.together import every, pooled

LONG, URGENT = (Request(prompt, seed, settings=every(steps=3), priority=seed) for seed, prompt in enumerate(("a red fox", "an owl")))


@pytest.fixture(scope="module")
def stages(nano16: Path, stages16: dict[str, Stage]) -> dict[str, Stage]:
    guard = Guard()
    guard.load(Setup(cascade=str(nano16)))
    return {**stages16, "guard": guard}


Alone = dict[str, tuple[dict[str, Bag], dict[str, Bag]]]


@pytest.fixture(scope="module")
def alone(stages: dict[str, Stage]) -> Alone:
    """By stage, what enters, and what it gives to each when nobody else is there."""
    bags: dict[str, Bag] = {"long": {}, "urgent": {}}
    made: Alone = {}
    for name in STAGES:
        entered: dict[str, Bag] = {
            job: {blob.name: bags[job][blob.name] for blob in IF.enters(request, name)}
            for job, request in (("long", LONG), ("urgent", URGENT))
        }
        given = {job: run(stages[name], job, request, entered[job]) for job, request in (("long", LONG), ("urgent", URGENT))}
        bags = {job: {**bags[job], **given[job]} for job in bags}
        made[name] = entered, given
    return made


def finish(stage: Stage, job: str, *paused: str) -> Bag:
    """Every step is this job's."""
    for _ in range(10):
        [advance] = stage.step(paused)
        assert advance.job == job
        if advance.output is not None:
            return advance.output
    raise AssertionError("it does not end")


@pytest.mark.parametrize("name", STAGES)
def test_it_goes_on_as_if_nothing_had_been(stages: dict[str, Stage], alone: Alone, name: str) -> None:
    """After each of its steps but the last, which in the upscaler is the decode."""
    stage, (entered, given) = stages[name], alone[name]
    steps = stage.admit("long", LONG, entered["long"]) + (name == "upscaler")
    for _ in range(steps - 1):
        assert [advance.job for advance in stage.step()] == ["long"]
        stage.admit("urgent", URGENT, entered["urgent"])
        assert finish(stage, "urgent", "long") == given["urgent"]
    if steps == 1:
        stage.admit("urgent", URGENT, entered["urgent"])
        assert finish(stage, "urgent", "long") == given["urgent"]
    assert finish(stage, "long") == given["long"]
    assert not list(stage.step())


def test_in_a_pool_too(nano16: Path, alone: Alone) -> None:
    entered, given = alone["stage_one"]
    stage = pooled(nano16, "stage_one")
    for job, request in (("long", LONG), ("urgent", URGENT)):
        stage.admit(job, request, entered[job])
    assert [advance.job for advance in stage.step()] == ["long", "urgent"]
    assert finish(stage, "urgent", "long") == given["urgent"]
    assert finish(stage, "long") == given["long"]
