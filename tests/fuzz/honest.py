"""An honest client in a process of its own: one job after the other, each with the right pixels, while others do as they like."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import zmq

from ifmesh import identity
from ifmesh.credentials import called
from ifmesh.protocol import Accepted
from ifmesh.request import Request
from tests.mesh.kit import Speaker, expected, published

REQUESTS = tuple(Request("a fox", seed=seed, last_stage=last) for seed, last in enumerate(("stage_one", "stage_two", "upscaler")))


@dataclass(slots=True)
class Tally:
    """accepted_s: from Submit to Accepted, of each job.  wrong: jobs whose pixels were not those of an undisturbed run."""

    accepted_s: list[float] = field(default_factory=list)
    right: int = 0
    wrong: int = 0
    error: str = ""

    def quantile(self, q: float) -> float:
        """Seconds."""
        ordered = sorted(self.accepted_s)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def _serve(pipe: Connection, url: str, key: Path | None) -> None:
    me = identity.read(key) if key is not None else None
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    speaker = Speaker(ctx, url, called(me, f"honest-{os.getpid()}"), me)
    pixels = [expected(request) for request in REQUESTS]
    number, tally, told = 0, Tally(), "go"
    try:
        while told != "end":
            which = number % len(REQUESTS)
            job = f"honest-{os.getpid()}-{number}"
            began = time.perf_counter()
            speaker.submit(job, REQUESTS[which])
            speaker.until(Accepted, lambda m, job=job: m.job == job)  # type: ignore[misc]
            tally.accepted_s.append(time.perf_counter() - began)
            speaker.finished(job)
            same = published(speaker.result(job)) == pixels[which]
            tally.right += same
            tally.wrong += not same
            speaker.heard.clear()
            number += 1
            if pipe.poll():
                told = pipe.recv()
                pipe.send(tally)
                tally = Tally()
    except Exception as error:
        tally.error = f"{type(error).__name__}: {error}"[:2000]
        pipe.send(tally)
    ctx.destroy(linger=0)


class Honest:
    """url: of the coordinator.  key: the file of its identity; None: in the clear."""

    def __init__(self, url: str, key: Path | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, url, key), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def so_far(self, last: bool = False) -> Tally:
        """What came out since it was asked before."""
        self._pipe.send("end" if last else "go")
        if not self._pipe.poll(120):
            raise AssertionError("the honest client hangs")
        tally: Tally = self._pipe.recv()
        if tally.error:
            raise AssertionError(f"the honest client failed: {tally.error}")
        return tally
