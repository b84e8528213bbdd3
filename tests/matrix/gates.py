"""Toy stages that stop where a test wants to strike, and go on when it has.

A prompt with `gate=stage_one:here` stops in Stage I before its second step, until the gate `here` is open.  With `die=stage_one` the
process kills itself after the last step, before anybody hears that it is done; once.  Both are files in the folder that the option `gates`
names, so they hold over lives; a stage that waits at a gate still takes orders and beats.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from ifmesh import toy
from ifmesh.stage import Advance, Bag, Setup

GATE = re.compile(r"gate=(\w+):(\w+)")


class Gates:
    """The test's side of them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def settings(self, *stages: str) -> dict[str, str]:
        """These stages have gates."""
        run = {f"services__{stage}__run": f"tests.matrix.gates:{toy_of(stage)}" for stage in stages}
        return run | {f"services__{stage}__options__gates": str(self.folder) for stage in stages}

    def open(self, name: str) -> None:
        (self.folder / name).touch()


def toy_of(stage: str) -> str:
    return "".join(part.capitalize() for part in stage.split("_"))


class _Gated(toy.Toy):
    _gates = Path()

    def load(self, setup: Setup) -> str:
        self._gates = Path(str((setup.options or {})["gates"]))
        return super().load(setup)

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        waiting = {job for job, work in self._work.items() if work.step and self._shut(work.request.prompt)}
        if waiting:
            time.sleep(0.005)  # else it would take the whole of a core
        return super().step({*paused, *waiting})

    def draw(self, work: toy.Work) -> Bag:
        drawn = super().draw(work)
        struck = self._gates / f"died-{self.name}"
        if f"die={self.name}" in work.request.prompt and not struck.exists():
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn

    def _shut(self, prompt: str) -> bool:
        return any(stage == self.name and not (self._gates / name).exists() for stage, name in GATE.findall(prompt))


class Encoder(_Gated, toy.Encoder):
    pass


class StageOne(_Gated, toy.StageOne):
    pass


class StageTwo(_Gated, toy.StageTwo):
    pass


class Upscaler(_Gated, toy.Upscaler):
    pass


class Guard(_Gated, toy.Guard):
    pass
