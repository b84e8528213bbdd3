"""`ifmesh bench baseline`: the same prompts through diffusers' pipelines in one process, beside the mesh on the same devices, in turns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ifmesh.bench.head import Report, configuration, head
from ifmesh.bench.lines import Lines
from ifmesh.bench.load import PROMPTS, Load
from ifmesh.bench.load import Wanted as Loaded
from ifmesh.bench.meshes import measured
from ifmesh.bench.statistics import mean, rate
from ifmesh.config import Config
from ifmesh.own import Own, Settings
from ifmesh.request import STAGES

SIZES = {"stage_one": 64, "stage_two": 256, "upscaler": 1024}
LIMIT = 3600.0
"""Seconds in which diffusers has to draw."""
COLUMNS = (("images_per_s", "images/s"), ("seconds_per_image", "seconds per image"), ("ifmesh_times", "ifmesh makes, times"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """last: the stage that draws last.  threads: of torch, of each process that the mesh is compared with.  balance: seconds that each
    drawing stage is to take, by its number of steps; 0: the steps of the cascade.  seconds: of each measurement, `repeat` times.
    """

    last: str = "stage_two"
    threads: tuple[int, ...] = (1, 2)
    balance: float = 1.0
    in_flight: int = 6
    seconds: float = 30.0
    warm: float = 10.0
    repeat: int = 3
    device: str = "cpu"
    settings: Settings | None = None

    @property
    def stages(self) -> list[str]:
        return list(STAGES[: STAGES.index(self.last) + 1])


class Baseline:
    """tell, over: as of `Load`."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._rates: dict[str, list[float]] = {}
        self._steps: dict[str, int] = {}
        self._head: Report = head("baseline", None)

    def measure(self) -> None:
        wanted = self._wanted
        with ExitStack() as stack:
            self._tell("the mesh starts", 0.0)
            mesh = stack.enter_context(measured(wanted.settings or {})).ready()
            self._head["configuration"] = configuration(mesh.config)
            alone: dict[str, Lines] = {}
            for threads in wanted.threads:
                self._tell(f"diffusers with {threads} thread{'s' * (threads > 1)} loads", 0.0)
                name = f"diffusers, one process, {threads} thread{'s' * (threads > 1)}"
                alone[name] = self._loaded(stack, mesh.config, threads)
            if wanted.balance:
                self._tell("how many steps make the stages equally heavy", 0.0)
                order = {"balance": wanted.balance}
                self._steps = next(iter(alone.values())).ask(order, "steps", LIMIT, self._over)
            for turn in range(wanted.repeat):
                for place, name in enumerate((*alone, "ifmesh")):
                    if self._over():
                        return
                    done = (turn + place / (len(alone) + 1)) / wanted.repeat
                    self._tell(f"{name}, round {turn + 1} of {wanted.repeat}", done)
                    per_second = self._mesh(mesh, turn) if name == "ifmesh" else self._alone(alone[name])
                    self._rates.setdefault(name, []).append(per_second)

    def report(self) -> Report:
        wanted = self._wanted
        ours = mean(self._rates["ifmesh"]) if self._rates.get("ifmesh") else None
        rows = []
        for name, values in self._rates.items():
            found = mean(values)
            row: Report = {"name": name, "images_per_s": found, "seconds_per_image": 1 / found if found else None}
            row["ifmesh_times"] = ours / found if ours and found and name != "ifmesh" else None
            rows.append({**row, "rounds": {"images_per_s": values}})
        asked = {
            "last": wanted.last,
            "steps": self._steps,
            "in_flight": wanted.in_flight,
            "seconds": wanted.seconds,
            "repeat": wanted.repeat,
        }
        steps = ", ".join(f"{stage} {count}" for stage, count in self._steps.items())
        notes = [f"Steps that make the stages equally heavy: {steps}."] if steps else []
        notes.append("diffusers draws and does not check; in the mesh every picture passes the guard, too.")
        return {**self._head, "asked": asked, "columns": COLUMNS, "rows": rows, "notes": notes, "interrupted": self._over()}

    def _loaded(self, stack: ExitStack, config: Config, threads: int) -> Lines:
        safe = ["-P"] if sys.flags.safe_path else []
        line = Lines([sys.executable, *safe, "-W", "ignore", "-m", "ifmesh_services.bench.baseline"], "diffusers", quiet=True)
        stack.callback(line.end)
        service = config.services[self._wanted.last]
        load = {"cascade": config.cascade.path, "device": self._wanted.device, "dtype": service.dtype, "threads": threads}
        line.ask({"load": {**load, "stages": self._wanted.stages}}, "ready", LIMIT, self._over)
        line.ask(
            {"run": {"asks": self._asks(), "seconds": 0, "steps": dict.fromkeys(self._wanted.stages[1:], 1)}}, "ends", LIMIT, self._over
        )
        return line

    def _asks(self) -> list[dict[str, Any]]:
        return [{"prompt": prompt, "negative": "blurry"} for prompt in PROMPTS]

    def _alone(self, line: Lines) -> float:
        """Images per second."""
        order = {"run": {"asks": self._asks(), "seconds": self._wanted.seconds, "steps": self._steps}}
        ends: Sequence[float] = line.ask(order, "ends", LIMIT, self._over)
        return rate(ends)

    def _mesh(self, mesh: Own, turn: int) -> float:
        wanted = self._wanted
        settings = {stage: {"steps": count} for stage, count in self._steps.items()}
        more = {"size": SIZES[wanted.last], "settings": settings, "stages": False}
        load = Load(
            Loaded(
                in_flight=wanted.in_flight,
                seconds=wanted.seconds,
                warm=wanted.warm,
                seed=turn * 1000,
                previews=False,
                unloaded=0,
                asks=tuple(json.dumps({**ask, **more}) for ask in self._asks()),
            ),
            mesh.door,
            lambda line, done: None,
            self._over,
        )
        load.measure()
        runs = load.figures()["runs"]
        return float(runs[0]["images_per_s"]) if runs else 0.0
