"""`ifmesh bench baseline --notebook`: the published sequence, each part loaded, used and freed for each picture, beside a mesh."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ifmesh import config
from ifmesh.bench import sides
from ifmesh.bench.alone import Alone
from ifmesh.bench.head import Report, configuration, head
from ifmesh.bench.load import PROMPTS
from ifmesh.bench.meshes import measured
from ifmesh.bench.peaks import Peaks
from ifmesh.bench.statistics import median
from ifmesh.client import Client
from ifmesh.config import Config
from ifmesh.own import Settings
from ifmesh.request import STAGES, Request
from ifmesh.request import Settings as Drawn

COLUMNS = (
    *(("seconds_per_image", "seconds per image"), ("loads", "loads"), ("ram_gb", "most memory, GB"), ("vram_gb", "of the cards, GB")),
    *(("times", "seconds, times ifmesh's"), ("loads_times", "loads, times ifmesh's")),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """prompts: at once, as the mesh is asked.  last: the stage that draws last.  steps: of each stage, 0: the cascade's own.  repeat: so
    often, after one picture that does not count."""

    prompts: int = 8
    last: str = "stage_two"
    steps: int = 0
    repeat: int = 1
    settings: Settings = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES[: STAGES.index(self.last) + 1]

    def requests(self, turn: int) -> list[Request]:
        """All different, as everybody's are."""
        settings = {stage: Drawn(steps=self.steps) for stage in self.stages[1:]} if self.steps else {}
        numbers = range(turn * self.prompts, (turn + 1) * self.prompts)
        return [
            Request(f"{PROMPTS[n % len(PROMPTS)]}, number {n}", n, settings=settings, last_stage=self.last, stages=False) for n in numbers
        ]


class Notebook:
    """tell, over: as of `bench.load.Load`."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._head: Report = head("baseline", None)
        self._found: dict[str, Report] = {}

    def measure(self) -> None:
        """Misconfigured: the settings are not right.  MeshError: one of the two cannot draw."""
        wanted = self._wanted
        read = config.read(None, os.environ, wanted.settings)
        read.check_weights()
        self._head["configuration"] = configuration(read)
        # one after the other: each has the whole machine, and its memory
        with Alone(read, wanted.stages, self._over) as alone, Peaks(lambda: [alone.pid]) as peaks:
            self._alone(alone, read)
        self._found["notebook"] |= sides.memory(peaks)
        if self._over():
            return
        with ExitStack() as stack:
            self._tell("the mesh starts", 0.5)
            mesh = stack.enter_context(measured(wanted.settings))
            peaks = stack.enter_context(Peaks(lambda: mesh.pids))
            client = stack.enter_context(mesh.ready().client())
            self._served(client, self._warm())
            before = sides.loads(mesh.state, wanted.stages)
            seconds = [self._timed("ifmesh", turn, lambda asked: self._served(client, asked)) for turn in range(wanted.repeat)]
            if self._over():
                return
            loads = sides.loads(mesh.state, wanted.stages)
            self._found["ifmesh"] = self._side(seconds, {stage: loads[stage] - before[stage] for stage in loads})
        self._found["ifmesh"] |= sides.memory(peaks)

    def report(self) -> Report:
        wanted = self._wanted
        ours = self._found.get("ifmesh")
        rows = [self._row(f"diffusers, {name}" if name == "notebook" else name, found, ours) for name, found in self._found.items()]
        notes = [f"Loads of {name}: {_listed(found['loads'])}." for name, found in self._found.items()]
        if ours:
            kept = [stage for stage, count in ours["loads"].items() if not count]
            notes += [f"ifmesh had {_and(kept)} in memory already."] if kept else []
        notes.append("Before each, one picture that does not count; diffusers ends before the mesh starts.")
        asked = {"prompts": wanted.prompts, "last": wanted.last, "steps": wanted.steps, "repeat": wanted.repeat}
        return {**self._head, "asked": asked, "columns": COLUMNS, "rows": rows, "notes": notes, "interrupted": self._over()}

    def _row(self, name: str, found: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Report:
        loads = sum(found["loads"].values())
        gigabytes = {f"{key}_gb": found[key] / 1e9 if found.get(key) is not None else None for key in ("ram", "vram")}
        row: Report = {"name": name, "seconds_per_image": found["seconds"], "loads": loads, "loads_by_stage": found["loads"], **gigabytes}
        if ours is not None and found is not ours:
            most = sum(ours["loads"].values())
            row |= {"times": found["seconds"] / ours["seconds"], "loads_times": loads / most if most else None}
        return {**row, "rounds": {"seconds_per_image": found["rounds"]}}

    def _alone(self, alone: Alone, read: Config) -> None:
        self._tell("diffusers starts", 0.0)
        alone.open(read.cascade.path)
        told: dict[str, int] = {}

        def drawn(asked: list[Request]) -> None:
            nonlocal told
            for request in asked:
                _, told = alone.draw(request)

        drawn(self._warm())
        before = told
        seconds = [self._timed("diffusers", turn, drawn) for turn in range(self._wanted.repeat)]
        self._found["notebook"] = self._side(seconds, {stage: told[stage] - before[stage] for stage in told})

    def _warm(self) -> list[Request]:
        return self._wanted.requests(self._wanted.repeat)[:1]

    def _timed(self, side: str, turn: int, draw: Callable[[list[Request]], None]) -> float:
        """Seconds per image."""
        wanted = self._wanted
        self._tell(
            f"{side}: {wanted.prompts} prompts, round {turn + 1} of {wanted.repeat}", (turn / wanted.repeat + (side == "ifmesh")) / 2
        )
        began = time.monotonic()
        draw(wanted.requests(turn))
        return (time.monotonic() - began) / wanted.prompts

    def _served(self, client: Client, asked: list[Request]) -> None:
        """All at once."""
        for job in [client.ask(request) for request in asked]:
            sides.waited(job, self._over)

    def _side(self, seconds: list[float], loads: Mapping[str, int]) -> Report:
        return {"seconds": median(seconds), "rounds": seconds, "loads": dict(loads)}


def _listed(loads: Mapping[str, int]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in loads.items())


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
