"""What the tests on real processes have in common: a small cascade, timers scaled down, and how to strike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from ifmesh.protocol import Books, Finished, Progress, Started
from ifmesh.request import Request
from tests.mesh.kit import Mesh, Process, Speaker, expected, published

SMALL = ("encoder", "stage_one", "guard")
"""The services that a picture of Stage I needs."""

BRISK = {"mesh__silence": 2.0, "mesh__grace": 2.0, "mesh__transfer": 2.0}
"""Seconds; a mesh is published with 5 for each."""


def small(prompt: str = "a fox", seed: int = 7, **more: object) -> Request:
    return Request(prompt, seed, last_stage="stage_one", **more)  # type: ignore[arg-type]


def crew(mesh: Mesh, *workers: str) -> dict[str, Process]:
    """A coordinator and these workers, all ready; `stage_one-1` is the second of that stage."""
    processes = {"coordinator": mesh.coordinator(), **{name: mesh.worker(name.rpartition("-")[0], name) for name in workers}}
    with mesh.speaker() as fan:
        mesh.ready(fan, *workers)
    return processes


def pid(fan: Speaker, name: str) -> int:
    """Of the worker itself, not of its parent."""
    return next(row.pid for row in fan.books().services if row.service == name and row.state != "lost")


def strike(number: int, what: signal.Signals = signal.SIGKILL) -> float:
    """When it was done (monotonic)."""
    os.kill(number, what)
    return time.monotonic()


@contextmanager
def stopped(number: int) -> Iterator[None]:
    """It sleeps; and wakes, if it still can."""
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        if psutil.pid_exists(number):
            os.kill(number, signal.SIGCONT)


def told(words: str) -> Callable[[Books], bool]:
    """Of the books of one job: does a line of its story say so?"""
    return lambda books: any(words in line for _, line in books.story)


def right(fan: Speaker, job: str, request: Request, **runs: int) -> Finished:
    """It has ended well, with the pixels of an undisturbed run; each stage ran once, but for those named."""
    fan.submit(job, request)
    finished = fan.finished(job)
    assert {run.stage: run.runs for run in finished.runs} == {run.stage: runs.get(run.stage, 1) for run in finished.runs}
    assert published(fan.result(job)) == expected(request)
    return finished


def under_way(fan: Speaker, stage: str) -> str:
    """Somebody works on it; who."""
    fan.until(Progress, lambda m: m.stage == stage and m.step >= 1)
    return next(m.worker for m in reversed(fan.heard) if isinstance(m, Started) and m.stage == stage)
