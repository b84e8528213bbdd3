"""Many requests through one stage at once: they come and go between the steps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ifmesh_services.tensors import to_torch

from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup, Stage
from tests.services.chained import KINDS, bringing, file, run
from tests.services.photos import photo, saved, stencil

ONE, TWO, UP = "stage_one", "stage_two", "upscaler"
PICTURES = {ONE: "image64", TWO: "image256", UP: "image1024"}
Jobs = Mapping[str, tuple[Request, Bag]]
"""By name: what is asked, and what has arrived."""


def every(**settings: Any) -> dict[str, Settings]:
    """The same for each stage; strength for those that have one."""
    return {ONE: Settings(**settings), TWO: Settings(**settings), UP: Settings(**{k: v for k, v in settings.items() if k != "strength"})}


def requests() -> dict[str, tuple[Request, Bag]]:
    """Of every task, with and without guidance, each with steps of its own; their pictures are all of one size."""
    source = file(saved(photo(128, 128), "PNG"))
    mask = file(saved(stencil(128, 128), "PNG"))
    asked: dict[str, tuple[Request, Bag]] = {
        "three steps": (Request("a red fox", 1, settings=every(steps=3)), {}),
        "four steps": (Request("an owl", 2, negative="blurry", settings=every(steps=4, guidance=3.0)), {}),
        "listed": (Request("a red fox", 3, settings=every(timesteps=(950, 500, 40, 0)) | {UP: Settings(steps=2, guidance=2.5)}), {}),
        "vary": (Request("a red fox", 4, "vary", settings=every(steps=4, strength=0.8)), {"source": source}),
        "inpaint": (Request("an owl", 5, "inpaint", settings=every(steps=3, strength=1.0)), {"source": source, "mask": mask}),
        "no guidance": (Request("a red fox", 6, settings=every(steps=3, guidance=1.0)), {}),
        "vary, no guidance": (Request("an owl", 7, "vary", settings=every(steps=3, guidance=1.0, strength=0.7)), {"source": source}),
    }
    return {name: (bringing(request, bag), bag) for name, (request, bag) in asked.items()}


GUIDED = ("three steps", "four steps", "listed", "vary", "inpaint")


def pooled(folder: Path, stage: str, dtype: str = "fp32", **options: str | int) -> Stage:
    made = KINDS[stage]()
    made.load(Setup(cascade=str(folder), dtype=dtype, options={"mode": "pooled", "slots": 8, **options}))
    return made


def alone(stage: Stage, jobs: Jobs) -> dict[str, Bag]:
    return {job: run(stage, job, request, bag) for job, (request, bag) in jobs.items()}


def together(stage: Stage, jobs: Jobs, order: Sequence[str] = (), dice: random.Random | None = None) -> dict[str, Bag]:
    """Admitted in that order, one after every step; with dice by chance, several or none."""
    given: dict[str, Bag] = {}
    waiting, inside = list(order or jobs), 0
    while waiting or inside:
        for _ in range(dice.choice((0, 1, 1, 2, 3)) if dice else 1):
            if waiting:
                job = waiting.pop(0)
                stage.admit(job, *jobs[job])
                inside += 1
        for advance in stage.step():
            assert advance.output is None or advance.step == advance.steps
            if advance.output is not None:
                given[advance.job] = advance.output
                inside -= 1
    return given


def apart(ours: Mapping[str, Bag], theirs: Mapping[str, Bag], stage: str) -> dict[str, float]:
    """The largest difference of each picture; of the noise sources there may be none."""
    assert set(ours) == set(theirs)
    made: dict[str, float] = {}
    for job in ours:
        assert ours[job]["rng"] == theirs[job]["rng"], job
        one, other = to_torch(ours[job][PICTURES[stage]]), to_torch(theirs[job][PICTURES[stage]])
        assert one.dtype == other.dtype
        assert other.float().std() > 0.01, "a picture is flat"
        made[job] = float((one.double() - other.double()).abs().max()) if one.isfinite().all() else torch.inf
    return made
