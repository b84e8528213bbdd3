"""Steps and pictures per second of every stage, for one request and many: exact, pooled, and diffusers' own pipelines beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ifmesh.request import Settings

from ..ddpm import together
from ..denoising import Pool, exact
from ..pooled import Pooled
from . import crowd, rivals
from .meter import Meter, Taken, Way, median
from .workbench import SMALL, Wanted, setup

EXACT, POOLED, FIXED = "exact", "pooled", "pooled, fixed rows"
LOOP, BATCH = "diffusers, one by one", "diffusers, one batch"
CACHED = "cached"
COMPILED = ("exact, compiled", "pooled, fixed rows, compiled")
AT_ONCE = (POOLED, FIXED, BATCH, COMPILED[1])  # all requests take their steps together
OVERLAP = 6  # requests of the comparison that the issue of the pool was settled by
GUIDANCE = 7.0
Tell = Callable[[str], None]


def measured(wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """The whole report, as JSON would have it.  tell: hears what is being measured.

    rows: stage, requests, way, seconds (the median of `rounds`), steps and images (texts) per second, ms for one step of all that take
    it together, peak in bytes, and how many times as fast as diffusers one by one, and as its batch.
    """
    meter = Meter(wanted.chosen, wanted.threads)
    report: dict[str, Any] = {
        "machine": meter.machine(),
        "cascade": wanted.name,
        "steps": wanted.taken,
        "numeric": {},
        "rows": [],
        "share": [],
    }
    with setup(wanted) as made:
        for name in wanted.stages:
            tell(f"{name}: loading")
            stage, report["numeric"][name] = crowd.loaded(name, made)
            for number in wanted.requests:
                tell(f"{name}: {number} request{'s' * (number > 1)}")
                report["rows"] += _rows(name, stage, number, wanted, meter)
            if name in crowd.DRAWING:
                tell(f"{name}: the share of the models")
                report["share"] += _shares(name, stage, wanted, meter)
            if name == "stage_one":
                tell(f"{name}: the first picture")
                report["first_picture"] = _first_picture(stage, wanted, meter)
                tell(f"{name}: what the pool costs one request")
                report["overhead"] = _overhead(stage, wanted, meter)
                tell(f"{name}: {OVERLAP} overlapping requests")
                report["overlapping"] = [_overlapping(stage, wanted, meter)]
            del stage
    if "overlapping" in report and wanted.cascade == SMALL and not wanted.real:  # how it is with a picture of the usual size
        with setup(wanted, "") as made:
            stage, _ = crowd.loaded("stage_one", made)
            report["overlapping"].append(_overlapping(stage, wanted, meter))
    return report


def _rows(name: str, stage: Any, number: int, wanted: Wanted, meter: Meter) -> list[dict[str, Any]]:
    ways = _texts(stage, number) if name == "encoder" else _draws(name, stage, number, wanted)
    warm = wanted.compile or meter.device.type == "cuda" or number == wanted.requests[0]
    return compared(name, number, 1 if name == "encoder" else wanted.taken, meter.in_turn(ways, wanted.rounds, wanted.seconds, warm))


def _draws(name: str, stage: Any, number: int, wanted: Wanted) -> dict[str, Way]:
    """The ways in which so many guided requests get their pictures."""
    jobs, pipe = _crowd(name, stage, number, wanted.taken), rivals.pipeline(name, stage)
    asked, rows = list(jobs.values()), max(4, crowd.ROWS * number)
    pooled, fixed = crowd.pooled(stage), crowd.pooled(stage, rows)
    ways: dict[str, Way] = {
        EXACT: lambda: crowd.one_by_one(stage, jobs),
        POOLED: lambda: crowd.at_once(pooled, jobs),
        FIXED: lambda: crowd.at_once(fixed, jobs),
        LOOP: lambda: [rivals.drawn(name, stage, pipe, [one]) for one in asked],
        BATCH: lambda: rivals.drawn(name, stage, pipe, asked),
    }
    if wanted.compile:
        unet: Any = torch.compile(stage._unet, dynamic=False)
        alone, all_fixed = crowd.with_pool(stage, Pool(exact(unet))), crowd.with_pool(stage, Pool(Pooled(unet, rows), together, fine=True))
        ways[COMPILED[0]] = lambda: crowd.one_by_one(alone, jobs)
        ways[COMPILED[1]] = lambda: crowd.at_once(all_fixed, jobs)
    return ways


def _texts(stage: Any, number: int) -> dict[str, Way]:
    """The ways in which so many prompts are read; the empty negative is known to all but diffusers, which is not asked for it either."""
    jobs, pipe = crowd.requests("encoder", stage, number, Settings()), rivals.pipeline("encoder", stage)
    texts = [request.prompt for request, _ in jobs.values()]
    one, all_at_once, knows = crowd.reading(stage, False, 0), crowd.reading(stage, True, 0), crowd.reading(stage, True, 1 << 30)
    crowd.at_once(knows, jobs)

    def read(prompts: list[str]) -> object:
        with torch.no_grad():
            return pipe.encode_prompt(prompts, do_classifier_free_guidance=False)

    return {
        EXACT: lambda: crowd.one_by_one(one, jobs),
        POOLED: lambda: crowd.at_once(all_at_once, jobs),
        CACHED: lambda: crowd.at_once(knows, jobs),
        LOOP: lambda: [read([text]) for text in texts],
        BATCH: lambda: read(texts),
    }


def compared(stage: str, number: int, steps: int, taken: Mapping[str, list[Taken]]) -> list[dict[str, Any]]:
    """A row for each way, with its ratios to diffusers' in the same rounds."""
    seconds = {way: median(rounds) for way, rounds in taken.items()}
    return [
        {
            "stage": stage,
            "requests": number,
            "way": way,
            "seconds": seconds[way],
            "rounds": [one.seconds for one in rounds],
            "steps_per_s": number * steps / seconds[way],
            "images_per_s": number / seconds[way],
            "ms_per_step": 1000 * seconds[way] / steps / (1 if way in AT_ONCE else number),
            "peak": max((one.peak for one in rounds if one.peak is not None), default=None),
            "of_one_by_one": seconds[LOOP] / seconds[way],
            "of_one_batch": seconds[BATCH] / seconds[way],
        }
        for way, rounds in taken.items()
    ]


def _shares(name: str, stage: Any, wanted: Wanted, meter: Meter) -> list[dict[str, Any]]:
    """How much of the time is spent in the models: all else is what the stage itself costs."""
    made: list[dict[str, Any]] = []
    for number in sorted({wanted.requests[0], min(wanted.requests[-1], OVERLAP)}):
        jobs = _crowd(name, stage, number, wanted.taken)
        row: dict[str, Any] = {"stage": name, "requests": number}
        for way, draw in ((EXACT, crowd.one_by_one), (POOLED, crowd.at_once)):
            watched, models = crowd.watched(stage, way, meter)
            whole = meter.take(partial(draw, watched, jobs)).seconds
            row[way] = sum(model.seconds for model in models) / whole
        made.append(row)
    return made


def _first_picture(stage: Any, wanted: Wanted, meter: Meter) -> dict[str, Any]:
    """Seconds from the embeddings to Stage I's picture, for a single request; without --steps with the cascade's own settings."""
    jobs, pooled = crowd.requests("stage_one", stage, 1, Settings(steps=wanted.steps or None)), crowd.pooled(stage)
    pipe, [asked] = rivals.pipeline("stage_one", stage), jobs.values()
    ways: dict[str, Way] = {
        EXACT: lambda: crowd.one_by_one(stage, jobs),
        POOLED: lambda: crowd.one_by_one(pooled, jobs),
        LOOP: lambda: rivals.drawn("stage_one", stage, pipe, [asked]),
    }
    steps = rivals.plan("stage_one", stage, asked[0]).steps
    return {"steps": steps, "seconds": {way: median(taken) for way, taken in meter.in_turn(ways, wanted.rounds, wanted.seconds).items()}}


def _overhead(stage: Any, wanted: Wanted, meter: Meter) -> dict[str, Any]:
    """What the pool costs a single request in Stage I: its seconds over those of diffusers' pipeline, less 1."""
    jobs, pipe, pooled = _crowd("stage_one", stage, 1, 3 * wanted.taken), rivals.pipeline("stage_one", stage), crowd.pooled(stage)
    [asked] = jobs.values()
    ways: dict[str, Way] = {
        POOLED: lambda: crowd.one_by_one(pooled, jobs),
        LOOP: lambda: rivals.drawn("stage_one", stage, pipe, [asked]),
    }
    took = {way: median(taken) for way, taken in meter.in_turn(ways, 4 * wanted.rounds, 2 * wanted.seconds).items()}
    return {"pooled_s": took[POOLED], "diffusers_s": took[LOOP], "share": took[POOLED] / took[LOOP] - 1}


def _overlapping(stage: Any, wanted: Wanted, meter: Meter) -> dict[str, Any]:
    """One more request comes with every step, against one after another in diffusers."""
    jobs = _crowd("stage_one", stage, OVERLAP, 3 * wanted.taken)
    pipe, pooled = rivals.pipeline("stage_one", stage), crowd.pooled(stage)
    ways: dict[str, Way] = {
        POOLED: lambda: crowd.overlapped(pooled, jobs),
        LOOP: lambda: [rivals.drawn("stage_one", stage, pipe, [one]) for one in jobs.values()],
    }
    took = {way: median(taken) for way, taken in meter.in_turn(ways, wanted.rounds, 2 * wanted.seconds).items()}
    side = stage._unet.config.sample_size
    return {"requests": OVERLAP, "side": side, "pooled_s": took[POOLED], "diffusers_s": took[LOOP], "ratio": took[LOOP] / took[POOLED]}


def _crowd(name: str, stage: Any, number: int, steps: int) -> crowd.Jobs:
    return crowd.requests(name, stage, number, Settings(steps=steps, guidance=GUIDANCE))
