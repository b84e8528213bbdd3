"""How far pooled is from exact, and exact from diffusers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ifmesh.request import Request, Settings
from ifmesh.stage import Bag

from ..ddpm import together
from ..denoising import Pool
from ..pooled import Pooled
from ..tensors import to_torch
from . import crowd, rivals
from .meter import Meter
from .workbench import Wanted, setup

ASKED: Mapping[str, Settings] = {
    "guided": Settings(steps=5, guidance=7.0),
    "guided, too": Settings(steps=4, guidance=3.0),
    "unguided": Settings(steps=3, guidance=1.0),
    "from 999": Settings(timesteps=(999, 700, 400, 100, 0), guidance=7.0),  # where the last bits are amplified most
}
KINDS = {"guided": ("guided", "guided, too"), "unguided": ("unguided",), "from 999": ("from 999",)}
ROWS = 8  # fixed: more than all requests have together
LEVELS = 255


def measured(wanted: Wanted, tell: Callable[[str], None]) -> dict[str, Any]:
    """The table: for each stage and dtype, by kind of request, the largest and the mean difference from exact.

    Pictures are of about -1 to 1; the upscaler's of 0 to 255.  way: "diffusers" (its pipelines, each request alone), "pooled" as it
    is, "pooled, fixed rows", and "as on a card": without the care that a CPU's skinny layers get.
    """
    meter = Meter(wanted.chosen, wanted.threads)
    dtypes = [wanted.dtype] if wanted.dtype else ["fp32", "bf16"]
    rows: list[dict[str, Any]] = []
    with setup(wanted) as made:
        for name in wanted.stages:
            for dtype in dtypes if name in crowd.DRAWING else ():
                tell(f"{name}: {dtype}")
                stage, _ = crowd.loaded(name, replace(made, dtype=dtype))
                rows += [{"stage": name, "dtype": dtype, "way": way, **far} for way, far in _distances(name, stage).items()]
    return {"machine": meter.machine(), "cascade": wanted.name, "rows": rows}


def _distances(name: str, stage: Any) -> dict[str, dict[str, dict[str, float]]]:
    jobs = _jobs(name, stage)
    exact = _pictures(name, crowd.one_by_one(stage, jobs))
    pipe = rivals.pipeline(name, stage)
    theirs = {job: _drawn(name, stage, pipe, asked) for job, asked in jobs.items()}

    def apart(others: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        far = {job: (others[job] - exact[job]).abs() for job in jobs}
        return {
            kind: {
                "most": max(float(far[job].max()) for job in members if job in far),
                "mean": statistics.mean(float(far[job].mean()) for job in members if job in far),
            }
            for kind, members in KINDS.items()
            if members[0] in jobs
        }

    ways: dict[str, Any] = {"pooled": crowd.pooled(stage), "pooled, fixed rows": crowd.pooled(stage, ROWS)}
    if stage._device.type == "cpu":
        ways["as on a card"] = crowd.with_pool(stage, Pool(Pooled(stage._unet), together, fine=True))
    return {"diffusers": apart(theirs)} | {way: apart(_pictures(name, crowd.overlapped(made, jobs))) for way, made in ways.items()}


def _jobs(name: str, stage: Any) -> dict[str, tuple[Request, Bag]]:
    """The upscaler's scheduler takes no explicit list."""
    asked = {job: said for job, said in ASKED.items() if name != "upscaler" or said.timesteps is None}
    made = crowd.requests(name, stage, len(asked), Settings())
    return {
        job: (Request(request.prompt, request.seed, settings={name: said}), bag)
        for (job, said), (request, bag) in zip(asked.items(), made.values(), strict=True)
    }


def _pictures(name: str, bags: Mapping[str, Bag]) -> dict[str, Tensor]:
    return {job: to_torch(bag[crowd.DRAWING[name]]).double() for job, bag in bags.items()}


def _drawn(name: str, stage: Any, pipe: Any, asked: tuple[Request, Bag]) -> Tensor:
    made = rivals.drawn(name, stage, pipe, [asked])[0].cpu()
    return (made.float() * LEVELS).round().double() if name == "upscaler" else made.double()
