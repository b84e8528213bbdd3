"""`ifmesh verify`: the published cases by diffusers' own pipelines and by a mesh, on the same weights, compared stage by stage."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ifmesh import bags, config, wishes
from ifmesh.bench import sides
from ifmesh.bench.alone import Alone
from ifmesh.bench.cases import CASES
from ifmesh.bench.difference import Difference, apart
from ifmesh.bench.head import Report, configuration, head
from ifmesh.bench.meshes import measured
from ifmesh.bench.peaks import Peaks
from ifmesh.cascade import DRAWN, EMBEDS
from ifmesh.client import Client
from ifmesh.errors import Misconfigured
from ifmesh.image import Image
from ifmesh.own import Settings
from ifmesh.request import STAGES, Request
from ifmesh.wishes import LAST, Brought
from ifmesh.worker import device

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels

TENSORS = {"encoder": EMBEDS.name} | {stage: blob.name for stage, blob in DRAWN.items()}
RANGE = 127.5
"""Levels of the upscaler's pictures for 1 of the others'."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """cases: names of CASES.  size: of the last picture, pixels.  steps: of each stage, 0: the cascade's own.  real: the published sizes
    with random weights ("if-xl", "if-l", "if-m"), "": the cascade of the settings.  reference: another cascade for diffusers, "": the same.
    tolerance: how far a stage may be from diffusers, in pictures of -1 to 1 (and in embeddings as they are).
    """

    cases: tuple[str, ...] = tuple(CASES)
    size: int = 1024
    steps: int = 0
    real: str = ""
    reference: str = ""
    tolerance: float = 0.0
    settings: Settings = field(default_factory=dict)
    file: Path | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES[: STAGES.index(LAST[self.size]) + 1]


@dataclass(slots=True)
class Trial:
    """One case.  seconds: diffusers', and the mesh's; apart: by stage; pictures: what both show at the end."""

    request: Request
    brought: Brought
    folder: Path
    seconds: list[float] = field(default_factory=list)
    apart: dict[str, Difference] = field(default_factory=dict)
    pictures: list[Pixels] = field(default_factory=list)


class Verify:
    """tell, over: as of `bench.load.Load`."""

    def __init__(self, wanted: Wanted, tell: Callable[[str, float], None], over: Callable[[], bool]) -> None:
        self._wanted, self._tell, self._over = wanted, tell, over
        self._head: Report = head("verify", None)
        self._trials: dict[str, Trial] = {}
        self._sides: dict[str, Report] = {}
        self._name = ""

    def measure(self) -> None:
        """Misconfigured: the settings are not right.  MeshError: one of the two cannot draw."""
        wanted = self._wanted
        with TemporaryDirectory(prefix="ifmesh-verify-") as above:
            settings = {**wanted.settings, "mesh.keep_bags": str(Path(above) / "bags")}
            read = config.read(wanted.file, os.environ, settings)
            if wanted.real:
                if read.services["stage_one"].device == "auto" and device(read, "stage_one") == "cpu":
                    remedy = "on a CPU each step takes seconds to minutes; --device cpu if that is meant"
                    raise Misconfigured(f"--real {wanted.real}: there is no card here, and {remedy}")
                settings["cascade.path"] = str(Path(above) / "random")
                self._tell(f"random weights of {wanted.real}", 0.0)
                with Alone(read, wanted.stages, self._over) as builder:
                    builder.build(wanted.real, Path(above) / "random")
            else:
                read.check_weights()
            self._head["configuration"] = configuration(read)
            for name in wanted.cases:
                self._trials[name] = self._trial(name, Path(above) / name)
            # one after the other: each has the whole machine, and its memory
            with Alone(read, wanted.stages, self._over) as alone, Peaks(lambda: [alone.pid]) as peaks:
                self._reference(alone, wanted.reference or str(settings.get("cascade.path", read.cascade.path)))
            self._sides["diffusers"] |= sides.memory(peaks)
            if not self._over():
                self._mesh(settings)

    def report(self) -> Report:
        """As far as it came."""
        wanted = self._wanted
        asked = {"size": wanted.size, "steps": wanted.steps, "real": wanted.real, "tolerance": wanted.tolerance}
        rows = []
        for name, trial in self._trials.items():
            said = {stage: str(far) for stage, far in trial.apart.items()}
            seconds = dict(zip(self._sides, trial.seconds, strict=False))
            rows.append({"case": name, "prompt": trial.request.prompt, "task": trial.request.task, "seed": trial.request.seed,
                         "stages": said, "most": {stage: far.most for stage, far in trial.apart.items()}, "seconds": seconds})  # fmt: skip
        return {
            **self._head,
            "cascade": self._name,
            "asked": asked,
            "stages": list(wanted.stages),
            "cases": rows,
            "sides": self._sides,
            "wrong": self.wrong(),
            "verdict": self.verdict(),
            "interrupted": self._over(),
        }

    def wrong(self) -> list[str]:
        """What is not as it should be, the case and the stage first."""
        return [
            f"{name}: {stage}: {TENSORS[stage]} {far}"
            for name, trial in self._trials.items()
            for stage, far in trial.apart.items()
            if not far.within(self._wanted.tolerance * (RANGE if stage == "upscaler" else 1))
        ]

    def verdict(self) -> str:
        compared = sum(len(trial.apart) for trial in self._trials.values())
        if not compared:
            return "nothing was compared"
        of = f"of {compared} tensors of {sum(bool(trial.apart) for trial in self._trials.values())} cases"
        if wrong := len(self.wrong()):
            return f"{wrong} {of} are not what diffusers makes"
        equal = sum(not far.values for trial in self._trials.values() for far in trial.apart.values())
        if equal == compared:
            return f"all {of} are diffusers' own, bit by bit"
        return f"{equal} {of} are diffusers' own, bit by bit, the others within the tolerance of {self._wanted.tolerance:g}"

    def sheet(self) -> Pixels:
        """RGB: of each case that was drawn diffusers' picture, and the mesh's with its mark.  Imports Pillow."""
        from ifmesh import sheet

        cells = [
            (picture, f"{name}: {title}", trial.request.prompt)
            for name, trial in self._trials.items()
            for picture, title in zip(trial.pictures, self._sides, strict=False)
        ]
        return sheet.gathered(self._name, self.verdict(), cells)

    def _trial(self, name: str, folder: Path) -> Trial:
        case = CASES[name]
        folder.mkdir()
        files: dict[str, Path | None] = {"source": None, "mask": None}
        for key, draw in (("source", case.source), ("mask", case.mask)):
            if draw is not None:
                files[key] = folder / f"{key}.png"
                draw().save(folder / f"{key}.png")
        steps = {stage: {"steps": self._wanted.steps} for stage in self._wanted.stages[1:]} if self._wanted.steps else None
        asked = {"seed": case.seed, "negative": case.negative, "size": self._wanted.size, "settings": steps}
        request, brought = wishes.made(case.prompt, files["source"], files["mask"], asked)
        return Trial(request, brought, folder)

    def _reference(self, alone: Alone, cascade: str) -> None:
        self._tell("diffusers starts", 0.0)
        named = alone.open(cascade)
        self._name = f"{self._wanted.real}, random weights" if self._wanted.real else named
        loads: dict[str, int] = {}
        for trial in self._each("diffusers"):
            source, mask = (trial.folder / f"{key}.png" for key in ("source", "mask"))
            seconds, loads = alone.draw(trial.request, source if source.exists() else None, mask if mask.exists() else None, trial.folder)
            trial.seconds.append(seconds)
            trial.pictures.append(_opened(trial.folder / "picture.png"))
        self._sides["diffusers"] = {"ready_s": None, "loads": loads}

    def _mesh(self, settings: Settings) -> None:
        began = time.monotonic()
        self._tell("the mesh starts", 0.5)
        with ExitStack() as stack:
            mesh = stack.enter_context(measured(settings, file=self._wanted.file))
            peaks = stack.enter_context(Peaks(lambda: mesh.pids))
            client = stack.enter_context(mesh.ready().client())
            self._sides["ifmesh"] = {"ready_s": time.monotonic() - began}
            for trial in self._each("ifmesh"):
                image = self._asked(client, trial)
                if image is None:
                    break
                trial.pictures.append(image.pil)
                self._compare(trial, Path(str(settings["mesh.keep_bags"])), image.job)
            self._sides["ifmesh"] |= {"loads": sides.loads(mesh.state, self._wanted.stages)}
        self._sides["ifmesh"] |= sides.memory(peaks)

    def _each(self, side: str) -> Iterator[Trial]:
        """The cases, until all is over."""
        base = 0.5 * (side == "ifmesh")
        for place, (name, trial) in enumerate(self._trials.items()):
            if self._over():
                return
            self._tell(f"{side}: {name}", base + place / len(self._trials) / 2)
            yield trial

    def _asked(self, client: Client, trial: Trial) -> Image | None:
        """None: it is over before."""
        began = time.monotonic()
        image = sides.waited(client.ask(trial.request, upload=trial.brought), self._over)
        trial.seconds.append(time.monotonic() - began)
        return image

    def _compare(self, trial: Trial, kept: Path, job: str) -> None:
        for stage in self._wanted.stages:
            name = TENSORS[stage]
            theirs = bags.decode((trial.folder / f"{stage}.safetensors").read_bytes())[name]
            ours = bags.decode((kept / f"{job}.{stage}.safetensors").read_bytes())[name]
            trial.apart[stage] = apart(ours, theirs)


def _opened(path: Path) -> Pixels:
    from PIL import Image as pillow

    with pillow.open(path) as opened:
        return opened.convert("RGB")
