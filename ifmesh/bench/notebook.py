"""`ifmesh bench baseline --notebook`: the published sequence, each part loaded, used and freed for each picture, beside a mesh."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from ifmesh import config
from ifmesh.bench import sides
from ifmesh.bench.alone import Alone
from ifmesh.bench.head import Report, configuration, head
from ifmesh.bench.load import PROMPTS
from ifmesh.bench.meshes import measured
from ifmesh.bench.peaks import Peaks
from ifmesh.bench.statistics import median
from ifmesh.client import Client
from ifmesh.own import Settings
from ifmesh.request import STAGES, Request
from ifmesh.request import Settings as Drawn

COLUMNS = (
    *(("seconds_per_image", "seconds per image"), ("processor_s_per_image", "of a processor"), ("loads", "loads")),
    *(("ready_s", "seconds until it draws"), ("ram_gb", "most memory, GB"), ("vram_gb", "of the cards, GB")),
    *(("times", "seconds, times ifmesh's"), ("processor_times", "of a processor"), ("loads_times", "loads, times ifmesh's")),
)
SIDES = {"notebook": "diffusers, notebook", "ifmesh": "ifmesh"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """prompts: at once, as the mesh is asked.  last: the stage that draws last.  steps: of each stage, 0: the cascade's own.  repeat: so
    many rounds, after one picture that does not count.  turns: both are there, and take turns, round by round; else one has ended
    before the other starts.  inflated: with random weights of 1.4 GB instead of the cascade's."""

    prompts: int = 8
    last: str = "stage_two"
    steps: int = 0
    repeat: int = 1
    turns: bool = False
    inflated: bool = False
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


@dataclass(slots=True)
class Side:
    """One of the two, ready to draw.

    draw: these requests; pids: its processes; told: how often it has loaded each stage so far.  ready_s: seconds from its start on.
    before: what was told then.  seconds, processor: of each round, per image; loads: in all of them; peaks: of all that time.
    """

    draw: Callable[[list[Request]], None]
    pids: Callable[[], list[int]]
    told: Callable[[], dict[str, int]]
    ready_s: float
    peaks: Peaks
    before: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    loads: dict[str, int] = field(default_factory=dict)

    def warm(self, asked: list[Request]) -> None:
        """What does not count."""
        self.draw(asked)
        self.before = self.told()

    def round(self, asked: list[Request]) -> None:
        pids = self.pids()
        began, worked = time.monotonic(), sides.processor(pids)
        self.draw(asked)
        self.seconds.append((time.monotonic() - began) / len(asked))
        self.processor.append((sides.processor(pids) - worked) / len(asked))
        self.loads = {stage: count - self.before[stage] for stage, count in self.told().items()}


class Notebook:
    """tell, over: as of `bench.load.Load`."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._head: Report = head("baseline", None)
        self._sides: dict[str, Side] = {}

    def measure(self) -> None:
        """Misconfigured: the settings are not right.  MeshError: one of the two cannot draw."""
        wanted = self._wanted
        settings = dict(wanted.settings)
        with ExitStack() as stack:
            if wanted.inflated:
                settings["cascade.path"] = str(self._inflated(Path(stack.enter_context(TemporaryDirectory(prefix="ifmesh-inflated-")))))
            read = config.read(None, os.environ, settings)
            read.check_weights()
            self._head["configuration"] = configuration(read)
            if wanted.turns:
                both = [stack.enter_context(self._diffusers(settings)), stack.enter_context(self._mesh(settings))]
                for turn in range(wanted.repeat):
                    for side in both:
                        self._round(side, turn)
                return
            for opened in (self._diffusers, self._mesh):  # one after the other: each has the whole machine, and its memory
                if self._over():
                    return
                with opened(settings) as side:
                    for turn in range(wanted.repeat):
                        self._round(side, turn)

    def report(self) -> Report:
        wanted = self._wanted
        found = {name: side for name, side in self._sides.items() if side.seconds}
        rows = [self._row(name, side, found.get("ifmesh")) for name, side in found.items()]
        notes = [f"Loads of {name}: {_listed(side.loads)}." for name, side in found.items()]
        if (ours := found.get("ifmesh")) is not None:
            kept = [stage for stage, count in ours.loads.items() if not count]
            notes += [f"ifmesh had {_and(kept)} in memory already."] if kept else []
        order = "both are there, and take turns" if wanted.turns else "diffusers ends before the mesh starts"
        notes.append(f"Before each, one picture that does not count; {order}.")
        asked = {name: getattr(wanted, name) for name in ("prompts", "last", "steps", "repeat", "turns", "inflated")}
        return {**self._head, "asked": asked, "columns": COLUMNS, "rows": rows, "notes": notes, "interrupted": self._over()}

    def _row(self, name: str, side: Side, ours: Side | None) -> Report:
        loads = sum(side.loads.values())
        rounds = {"seconds_per_image": side.seconds, "processor_s_per_image": side.processor}
        medians = {key: median(values) for key, values in rounds.items()}
        gigabytes = {f"{key}_gb": count / 1e9 if count is not None else None for key, count in sides.memory(side.peaks).items()}
        row: Report = {"name": SIDES[name], **medians, "loads": loads, "loads_by_stage": side.loads, "ready_s": side.ready_s, **gigabytes}
        if ours is not None and side is not ours:
            row |= {"times": _times(side.seconds, ours.seconds), "processor_times": _times(side.processor, ours.processor)}
            most = sum(ours.loads.values())
            row["loads_times"] = loads / most if most else None
        return {**row, "rounds": rounds}

    @contextmanager
    def _diffusers(self, settings: Settings) -> Iterator[Side]:
        read = config.read(None, os.environ, settings)
        self._tell("diffusers starts", 0.0)
        began = time.monotonic()
        with Alone(read, self._wanted.stages, self._over) as alone, Peaks(lambda: [alone.pid]) as peaks:
            told: dict[str, int] = {}

            def drawn(asked: list[Request]) -> None:
                for request in asked:
                    told.update(alone.draw(request)[1])

            alone.open(read.cascade.path)
            side = Side(drawn, lambda: [alone.pid], lambda: dict(told), time.monotonic() - began, peaks)
            side.warm(self._warm())
            self._sides["notebook"] = side
            yield side

    @contextmanager
    def _mesh(self, settings: Settings) -> Iterator[Side]:
        self._tell("the mesh starts", 0.0 if self._wanted.turns else 0.5)
        began = time.monotonic()
        with ExitStack() as stack:
            mesh = stack.enter_context(measured(settings))
            peaks = stack.enter_context(Peaks(lambda: mesh.pids))
            client = stack.enter_context(mesh.ready().client())
            loads = lambda: sides.loads(mesh.state, self._wanted.stages)  # noqa: E731
            side = Side(lambda asked: self._served(client, asked), lambda: mesh.pids, loads, time.monotonic() - began, peaks)
            side.warm(self._warm())
            self._sides["ifmesh"] = side
            yield side

    def _inflated(self, above: Path) -> Path:
        self._tell("random weights of 1.4 GB", 0.0)
        with Alone(config.read(None, os.environ, self._wanted.settings), self._wanted.stages, self._over) as builder:
            builder.inflate(above / "inflated")
        return above / "inflated"

    def _warm(self) -> list[Request]:
        return self._wanted.requests(self._wanted.repeat)[:1]

    def _round(self, side: Side, turn: int) -> None:
        """Unless all is over."""
        wanted = self._wanted
        name = next(name for name, one in self._sides.items() if one is side)
        later = (turn + (name == "ifmesh") / 2 if wanted.turns else (turn + wanted.repeat * (name == "ifmesh")) / 2) / wanted.repeat
        if not self._over():
            self._tell(f"{SIDES[name]}: {wanted.prompts} prompts, round {turn + 1} of {wanted.repeat}", later)
            side.round(wanted.requests(turn))

    def _served(self, client: Client, asked: list[Request]) -> None:
        """All at once."""
        for job in [client.ask(request) for request in asked]:
            sides.waited(job, self._over)


def _times(theirs: list[float], ours: list[float]) -> float:
    """The median of the rounds' ratios: those of one round had the same weather."""
    return median(a / b for a, b in zip(theirs, ours, strict=False))


def _listed(loads: dict[str, int]) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in loads.items())


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
