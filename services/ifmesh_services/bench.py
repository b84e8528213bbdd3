"""What the pool is worth: pooled beside exact and diffusers, in the same run.  For `ifmesh bench stages`.

By hand: python -m ifmesh_services.bench FOLDER.  FOLDER: a cascade's, as for cascade.path.  One thread; times are of the processor,
the best of several rounds that take turns, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import IFPipeline

from ifmesh.protocol import Request, Settings
from ifmesh.stage import Bag, Setup, Stage

from . import recipes
from .encoder import Encoder
from .pooled import Pooled
from .stage_one import StageOne
from .stage_two import StageTwo
from .tensors import to_torch
from .upscaler import Upscaler

STAGES: Mapping[str, tuple[Callable[[], Stage], str]] = {
    "stage_one": (StageOne, "image64"),
    "stage_two": (StageTwo, "image256"),
    "upscaler": (Upscaler, "image1024"),
}
ALONE = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
Jobs = Mapping[str, tuple[Request, Bag]]


def loaded(cascade: str, kind: Callable[[], Stage], **options: str | int) -> Stage:
    stage = kind()
    stage.load(Setup(cascade=cascade, options=options))
    return stage


def encoded(cascade: str, requests: Mapping[str, Request]) -> dict[str, tuple[Request, Bag]]:
    encoder = loaded(cascade, Encoder)
    return {job: (request, overlapped(encoder, {job: (request, {})})[job]) for job, request in requests.items()}


def overlapped(stage: Stage, jobs: Jobs, gap: int = 1) -> dict[str, Bag]:
    """Every `gap` steps one more request comes; gap 0: all at once."""
    given: dict[str, Bag] = {}
    waiting, steps = list(jobs), 0
    while len(given) < len(jobs):
        while waiting and (not gap or steps % gap == 0):
            job = waiting.pop(0)
            stage.admit(job, *jobs[job])
            if gap:
                break
        given |= {advance.job: advance.output for advance in stage.step() if advance.output is not None}
        steps += 1
    return given


def one_by_one(stage: Stage, jobs: Jobs) -> dict[str, Bag]:
    return {job: overlapped(stage, {job: asked})[job] for job, asked in jobs.items()}


def tolerance(cascade: str, steps: Sequence[int] = (3, 4, 5), guidance: Sequence[float] = (7.0, 3.0, 1.0)) -> list[dict[str, Any]]:
    """Per stage: the largest difference between pooled and exact, with and without the care for skinny layers, fixed rows or none.

    Of pictures of about -1 to 1; the upscaler's in levels of 256.
    """
    asked = {
        f"{n}-{scale}": Request("a red fox", n, settings={stage: Settings(steps=n, guidance=scale) for stage in STAGES})
        for n, scale in zip(steps, guidance, strict=True)
    }
    bags = {job: bag for job, (_, bag) in encoded(cascade, asked).items()}
    table: list[dict[str, Any]] = []
    for name, (kind, picture) in STAGES.items():
        jobs = {job: (request, bags[job]) for job, request in asked.items()}
        exact = one_by_one(loaded(cascade, kind), jobs)
        for rows in (0, 2 * len(asked)):
            for skinny in (True, False):
                stage: Any = loaded(cascade, kind, mode="pooled", slots=len(asked), **({"rows": rows} if rows else {}))
                if not skinny:
                    stage._pool._predict = Pooled(stage._unet, rows)
                made = overlapped(stage, jobs)
                far = {job: float((_picture(made[job], picture) - _picture(exact[job], picture)).abs().max()) for job in asked}
                guided = {job: asked[job].settings[name].guidance or 0 for job in asked}
                table.append(
                    {
                        "stage": name,
                        "rows": rows or "any",
                        "skinny": "apart" if skinny else "together",
                        "guided": max(far[job] for job in far if guided[job] > 1),
                        "unguided": max((far[job] for job in far if guided[job] <= 1), default=None),
                    }
                )
        bags = {job: {**bags[job], **exact[job]} for job in asked}
    return table


def throughput(cascade: str, requests: int = 6, steps: int = 9, rounds: int = 5) -> dict[str, float]:
    """Stage I, processor seconds for so many requests: diffusers and exact one after another, pooled overlapping and all at once."""
    settings = {"stage_one": Settings(steps=steps, guidance=7.0)}
    jobs = encoded(cascade, {str(seed): Request("a red fox", seed, settings=settings) for seed in range(requests)})
    kind: Any = IFPipeline
    pipe = kind.from_pretrained(recipes.read(cascade).repos["stage_one"], **ALONE)
    pipe.set_progress_bar_config(disable=True)

    def diffusers() -> None:
        for request, bag in jobs.values():
            both = to_torch(bag["embeds"])
            source = torch.Generator("cpu").manual_seed(request.seed)
            texts = {"negative_prompt_embeds": both[:1], "prompt_embeds": both[1:]}
            pipe(**texts, num_inference_steps=steps, guidance_scale=7.0, generator=source, output_type="pt")

    exact, pooled = loaded(cascade, StageOne), loaded(cascade, StageOne, mode="pooled", slots=requests)
    fixed = loaded(cascade, StageOne, mode="pooled", slots=requests, rows=2 * requests)
    return _best(
        {
            "diffusers, one after another": diffusers,
            "exact, one after another": lambda: one_by_one(exact, jobs),
            "pooled, overlapping": lambda: overlapped(pooled, jobs),
            "pooled, at once": lambda: overlapped(pooled, jobs, gap=0),
            f"pooled, at once, rows {2 * requests}": lambda: overlapped(fixed, jobs, gap=0),
        },
        rounds,
    )


def overhead(cascade: str, steps: int = 20, rounds: int = 10) -> float:
    """What the pool costs a single request in Stage I: median over steps taken in turn, pooled over exact, less 1."""
    [job] = encoded(cascade, {"fox": Request("a red fox", 0, settings={"stage_one": Settings(steps=steps)})}).values()
    stages = [loaded(cascade, StageOne), loaded(cascade, StageOne, mode="pooled", slots=2)]
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for stage in stages:
            stage.admit("fox", *job)
        for step in range(steps):
            order = (0, 1) if (turn + step) % 2 else (1, 0)
            for which in order:
                began = time.process_time()
                list(stages[which].step())
                took[which].append(time.process_time() - began)
    return statistics.median(took[1]) / statistics.median(took[0]) - 1


def _best(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):  # the first one warms up
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                best[name] = min(best[name], time.process_time() - began)
    return best


def _picture(bag: Bag, name: str) -> torch.Tensor:
    return to_torch(bag[name]).double()


if __name__ == "__main__":
    folder = sys.argv[1]
    print(json.dumps({"throughput": throughput(folder), "overhead": overhead(folder), "tolerance": tolerance(folder)}, indent=1))
