"""Rows 40, 41 and 49 on real processes: cancelled, too late, and leaving."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ifmesh.protocol import Cancel, Cancelled, Failed, Finished, Progress, Refused
from ifmesh.request import STAGES, Request
from tests.matrix.conftest import Figure
from tests.matrix.gates import Gates
from tests.matrix.plot import BRISK, SMALL, crew, pid, right, small, told, under_way
from tests.mesh.conftest import Make
from tests.mesh.kit import Speaker

FEW = tuple(f"{stage}-0" for stage in SMALL)
EACH = tuple(f"{stage}-0" for stage in STAGES)


def idle(fan: Speaker) -> None:
    """Nobody runs or holds anything."""
    fan.when(lambda books: all(row.running == row.held == 0 for row in books.services))


def test_row_40_cancelled_while_queued_and_while_running(mesh: Make, gates: Gates, figure: Figure) -> None:
    """Without the gate being opened: the worker is free all the same."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW)
    with one.speaker() as fan:
        for job in ("runs", "next", "waits"):
            fan.submit(job, small("gate=stage_one:never"))
        under_way(fan, "stage_one")
        fan.when(told("stage_one: assigned"), "next")
        fan.when(told("encoder: advanced"), "waits")
        for job in ("waits", "runs", "next"):
            began = time.monotonic()
            fan.send(Cancel(job))
            assert isinstance(fan.ending(job), Cancelled)
            figure(f"Cancel of one that {job} -> Cancelled", time.monotonic() - began)
            fan.send(Cancel(job))
            assert isinstance(fan.ending(job), Cancelled), "once, however often it is asked"
        idle(fan)
        right(fan, "after", small())


@pytest.mark.matrix
def test_row_40_cancelled_while_it_is_published(mesh: Make) -> None:
    """Twenty times, each as the last stage says that it is done: one end, which is the one in the journal, with its picture or without."""
    one = mesh(**BRISK)
    crew(one, *FEW)
    with one.speaker() as fan:
        for n in range(20):
            job = f"job-{n}"
            fan.submit(job, small())
            fan.until(Progress, lambda m, job=job: m.job == job and m.stage == "guard" and m.step == m.steps)  # type: ignore[misc]
            fan.send(Cancel(job))
            ending = fan.ending(job)
            fan.submit(job, small())
            assert fan.ending(job) == ending
            if isinstance(ending, Finished):
                assert fan.result(job)
        idle(fan)
        assert len([m for m in fan.heard if isinstance(m, Finished | Cancelled)]) >= 40


def expired(fan: Speaker, job: str, figure: Figure, since: float, deadline: float) -> None:
    ending = fan.ending(job)
    assert isinstance(ending, Failed)
    assert ending.cause == "expired"
    figure(f"the deadline of one that {job} -> Failed", time.monotonic() - since - deadline)


@pytest.mark.matrix
def test_row_41_the_deadline_passes(mesh: Make, gates: Gates, figure: Figure) -> None:
    """While it waits, while it runs, and while its bag is on the way; the gate stays shut, and the workers are free all the same."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW)
    with one.speaker() as fan:
        since = {"runs": time.monotonic()}
        fan.submit("runs", small("gate=stage_one:never", deadline=4.0))
        under_way(fan, "stage_one")
        for job in ("follows", "waits"):
            since[job] = time.monotonic()
            fan.submit(job, small("a fox", deadline=2.0))
        for job, deadline in (("follows", 2.0), ("waits", 2.0), ("runs", 4.0)):
            expired(fan, job, figure, since[job], deadline)
        idle(fan)
        victim = pid(fan, "stage_one-0")
        os.kill(victim, signal.SIGSTOP)  # its bag is pushed, and does not arrive
        try:
            since["travels"] = time.monotonic()
            fan.submit("travels", small("a fox", deadline=1.0))
            fan.when(told("stage_one: assigned"), "travels")
            expired(fan, "travels", figure, since["travels"], 1.0)
        finally:
            os.kill(victim, signal.SIGCONT)
        idle(fan)
        right(fan, "after", small())


@pytest.mark.matrix
def test_row_49_drained_while_it_runs(mesh: Make, gates: Gates) -> None:
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW)
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        under_way(fan, "stage_one")
        processes["stage_one-0"].signal(signal.SIGTERM)
        fan.when(lambda books: any(row.state == "draining" for row in books.services))
        gates.open("here")
        right(fan, "a", request)
        assert processes["stage_one-0"].code() == 0


@pytest.mark.matrix
def test_row_49_drained_with_something_in_the_outbox(mesh: Make) -> None:
    """There is nobody of the next stage: it stays until it has handed over, and what it had does not run again."""
    one = mesh(**BRISK)
    processes = crew(one, *(name for name in EACH if name != "stage_two-0"))
    request = Request("a fox", 7)
    with one.speaker() as fan:
        fan.submit("a", request)
        fan.when(told("stage_one: advanced"), "a")
        processes["stage_one-0"].signal(signal.SIGTERM)
        fan.when(lambda books: any(row.service == "stage_one-0" and row.state == "draining" for row in books.services))
        assert processes["stage_one-0"].popen.poll() is None
        one.worker("stage_two")
        assert processes["stage_one-0"].code() == 0
        right(fan, "a", request)


@pytest.mark.matrix
def test_row_49_told_to_end_a_second_time(mesh: Make, gates: Gates) -> None:
    """It leaves things undone, with an exit code of its own; that is held against nobody."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW)
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        under_way(fan, "stage_one")
        processes["stage_one-0"].signal(signal.SIGTERM)
        fan.when(lambda books: any(row.state == "draining" for row in books.services))
        processes["stage_one-0"].signal(signal.SIGTERM)
        assert processes["stage_one-0"].code() == 75
        fan.when(told("stage_one: retried"), "a")
        one.worker("stage_one")
        gates.open("here")
        right(fan, "a", request, stage_one=2)
        assert not told("blamed")(fan.books("a"))
        assert not [m for m in fan.heard if isinstance(m, Refused)]
