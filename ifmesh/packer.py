"""Packs what a stage has made, beside the stage, which goes on with its next job meanwhile: a frame of 3 MB takes some milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event as Mark
from threading import Thread

from ifmesh import bags
from ifmesh.cascade import Cascade
from ifmesh.chores import Task
from ifmesh.log import logger
from ifmesh.protocol import Token
from ifmesh.stage import Bag


@dataclass(frozen=True, slots=True)
class Made:
    """The stage's bag, whole.  digest: xxh3-128; seconds: spent stepping."""

    job: str
    token: Token
    frame: bytes
    digest: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unmade:
    """What the stage gave is not what it has to give."""

    job: str
    token: Token
    error: Exception


Packed = Made | Unmade


@dataclass(frozen=True, slots=True)
class _Output:
    """What one job gave, and the bag that it came with: what later stages need of that rides along."""

    task: Task
    came: Bag
    gave: Bag
    seconds: float


class Packer:
    """tell: is called in its thread, in the order of `pack`.

    keep_bags: also write each bag, but those of early pictures, into this folder, as JOB.STAGE.safetensors.
    """

    def __init__(self, stage: str, cascade: Cascade, keep_bags: Path | None, tell: Callable[[Packed], None]) -> None:
        self._stage, self._cascade, self._keep_bags, self._tell = stage, cascade, keep_bags, tell
        self._outputs: SimpleQueue[_Output | Mark] = SimpleQueue()

    def start(self) -> None:
        Thread(target=self._run, name="packer", daemon=True).start()

    def pack(self, task: Task, came: Bag, gave: Bag, seconds: float) -> None:
        self._outputs.put(_Output(task, came, gave, seconds))

    def settle(self) -> None:
        """Wait until all is packed and told, and nothing of it is held here."""
        mark = Mark()
        self._outputs.put(mark)
        mark.wait()

    def _run(self) -> None:
        while True:
            output = self._outputs.get()
            if isinstance(output, Mark):
                output.set()
            else:
                self._tell(self._packed(output))
            del output

    def _packed(self, output: _Output) -> Packed:
        """What the stage gives and what rides along, as one frame, checked as its receiver will."""
        task = output.task
        carried = self._cascade.carries(task.request, self._stage)
        given = {blob.name for blob in self._cascade[self._stage].gives(task.request)}
        try:
            if missing := [b.name for b in carried if b.name in given and b.name not in output.gave]:
                raise ValueError(f"{self._stage} gave no {', '.join(missing)}")
            frame = bags.encode({b.name: (output.gave if b.name in given else output.came)[b.name] for b in carried})
            bags.decode(frame, carried)
        except Exception as error:
            return Unmade(task.job, task.token, error)
        if not task.preview:
            self._keep(task.job, frame)
        return Made(task.job, task.token, frame, bags.digest(frame), output.seconds)

    def _keep(self, job: str, frame: bytes) -> None:
        if self._keep_bags is None:
            return
        path = self._keep_bags / f"{job}.{self._stage}.safetensors"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._keep_bags.mkdir(parents=True, exist_ok=True)
            part.write_bytes(frame)
            part.replace(path)
        except OSError as error:  # a copy for the curious: the job goes on
            logger.warning("keep_bags: %s", error, extra={"job": job})
