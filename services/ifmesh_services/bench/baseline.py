"""`python -m ifmesh_services.bench.baseline`: diffusers' pipelines in one process, one request after the other: what a mesh must beat.

One JSON object a line, on stdin and stdout:

    -> {"load": {"cascade", "device", "dtype", "threads", "stages"}}     <- {"ready": true}
    -> {"balance": seconds}                                              <- {"steps": {stage: steps that take about so long}}
    -> {"run": {"asks": [Request's fields], "seconds", "steps"}}         <- {"ends": [seconds since its begin, of each image]}
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from ifmesh.cascade import EMBEDS, IMAGE64, IMAGE256
from ifmesh.request import Request, Settings
from ifmesh.stage import Bag, Setup

from ..tensors import to_blob
from . import crowd, rivals

FEW, MORE = 2, 6
"""Steps between which the time of one is measured."""


class Baseline:
    """stages: from the encoder on, as far as is drawn.  threads: torch's."""

    def __init__(self, cascade: str, device: str, dtype: str, threads: int, stages: list[str]) -> None:
        torch.set_num_threads(threads)
        self._device = device
        setup = Setup(cascade, device, dtype, threads)
        self._stages = {name: crowd.loaded(name, setup)[0] for name in stages}
        self._pipes = {name: rivals.pipeline(name, stage) for name, stage in self._stages.items()}

    def draw(self, request: Request) -> None:
        """One request, from the text to the last picture."""
        bag: dict[str, Any] = {}
        with torch.no_grad():
            given = self._pipes["encoder"].encode_prompt(request.prompt, negative_prompt=request.negative)
            bag[EMBEDS.name] = to_blob(torch.cat([given[1], given[0]]).contiguous())
            for name in list(self._stages)[1:]:
                made = self._drawn(name, request, bag)
                if name != "upscaler":
                    bag[{"stage_one": IMAGE64, "stage_two": IMAGE256}[name].name] = to_blob(made[0].contiguous())

    def balanced(self, seconds: float) -> dict[str, int]:
        """How many steps of each stage that draws take about so long; on a CPU, of the processor's seconds."""
        now = time.perf_counter if self._device.startswith("cuda") else time.process_time
        bag: dict[str, Any] = {}
        found = {}
        request = Request("a red fox", 1)
        for name in list(self._stages)[1:]:
            ((_, bag),) = crowd.requests(name, self._stages[name], 1, Settings()).values()  # type: ignore[assignment]
            taken = []
            for steps in (FEW, FEW, MORE):  # the first warms up
                began = now()
                self._drawn(name, _with(request, {name: steps}), bag)
                taken.append(now() - began)
            each = max(1e-6, (taken[2] - taken[1]) / (MORE - FEW))
            found[name] = max(1, min(1000, round(seconds / each)))
        return found

    def run(self, asks: list[dict[str, Any]], seconds: float, steps: dict[str, int]) -> list[float]:
        began, ends = time.perf_counter(), list[float]()
        while time.perf_counter() - began < seconds or len(ends) < 2:
            ask = asks[len(ends) % len(asks)]
            request = Request(ask["prompt"], int(ask.get("seed", len(ends))), negative=ask.get("negative", ""))
            self.draw(_with(request, steps))
            ends.append(time.perf_counter() - began)
        return ends

    def _drawn(self, name: str, request: Request, bag: Bag) -> torch.Tensor:
        return rivals.drawn(name, self._stages[name], self._pipes[name], [(request, bag)])


def _with(request: Request, steps: dict[str, int]) -> Request:
    settings = {name: Settings(steps=count) for name, count in steps.items()}
    return Request(request.prompt, request.seed, negative=request.negative, settings=settings)


def main() -> None:
    """Until stdin ends."""
    baseline: Baseline | None = None
    for line in sys.stdin:
        match json.loads(line):
            case {"load": wanted}:
                baseline = Baseline(**wanted)
                told: dict[str, Any] = {"ready": True}
            case {"balance": seconds} if baseline is not None:
                told = {"steps": baseline.balanced(seconds)}
            case {"run": run} if baseline is not None:
                told = {"ends": baseline.run(**run)}
            case other:
                raise ValueError(f"no such order: {str(other)[:100]}")
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
