"""Toy stages that write down what they run: every step, and every time they are about to die of a request.

Option `history` (the stage's section of ifmesh.toml): the folder of the run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ifmesh import toy
from ifmesh.chaos.history import WORK, History
from ifmesh.stage import Advance, Setup


class Told(toy.Toy):
    def load(self, setup: Setup) -> str:
        self._history = History(Path(str((setup.options or {})["history"])) / WORK, self.name)
        return super().load(setup)

    def step(self, paused: Collection[str] = ()) -> Iterable[Advance]:
        for advance in super().step(paused):
            self._history.say("stepped", job=advance.job, step=advance.step, of=advance.steps)
            yield advance

    def _trouble(self, prompt: str) -> None:
        if f"toy:abort={self.name}" in prompt and (found := re.search(r"job (\S+)", prompt)):
            self._history.say("poisoned", job=found[1], pid=os.getpid(), parent=os.getppid())
        super()._trouble(prompt)


class Encoder(Told, toy.Encoder):
    pass


class StageOne(Told, toy.StageOne):
    pass


class StageTwo(Told, toy.StageTwo):
    pass


class Upscaler(Told, toy.Upscaler):
    pass


class Guard(Told, toy.Guard):
    pass
