"""An urgent request in a running mesh in exact mode: what runs makes way between two steps, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ifmesh.protocol import Cancel, Cancelled, Finished, Progress, Started
from ifmesh.request import STAGES, Request, Settings
from tests.mesh.kit import Mesh, Speaker, expected, published

SHORT = {stage: Settings(steps=2) for stage in ("stage_one", "stage_two", "upscaler")}
LONG = Request("a long walk", 1, settings={**SHORT, "stage_one": Settings(steps=100)})
NEXT = Request("the next in turn", 2, settings=SHORT)
URGENT = Request("quick, an owl", 3, priority=5, settings=SHORT)
SLOW_URGENT = replace(URGENT, settings={**SHORT, "stage_one": Settings(steps=1000)})


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One worker of each stage; 100 steps of Stage I take two seconds."""
    with Mesh(tmp_path_factory.mktemp("urgent"), {"services.stage_one.options.step_ms": 20}) as mesh:
        mesh.all()
        yield mesh


def advanced(job: str, step: int = 3) -> Callable[[Progress], bool]:
    """In the middle of Stage I."""
    return lambda m: m.job == job and m.stage == "stage_one" and step <= m.step < m.steps


def at(speaker: Speaker, job: str) -> int:
    """The last step of Stage I that was told of."""
    return max(m.step for m in speaker.heard if isinstance(m, Progress) and m.job == job and m.stage == "stage_one")


def ends_right(speaker: Speaker, job: str, request: Request, runs: int = 1) -> None:
    """The very pixels that it would have had alone.  runs: of its Stage I."""
    ending = next((m for m in speaker.heard if isinstance(m, Finished) and m.job == job), None) or speaker.finished(job)
    assert {run.stage: run.runs for run in ending.runs} == {stage: runs if stage == "stage_one" else 1 for stage in STAGES}
    assert ending.reproducible
    assert published(speaker.result(job)) == expected(request)


def test_an_urgent_request_overtakes(mesh: Mesh) -> None:
    """Its worker runs one and has fetched another; the urgent one is through the whole cascade before the first is through Stage I."""
    with mesh.speaker() as speaker:
        speaker.submit("long", LONG)
        speaker.until(Progress, advanced("long"))
        speaker.submit("next", NEXT)
        speaker.when(lambda b: any(what.startswith("stage_one: assigned") for _, what in b.story), "next")
        speaker.submit("urgent", URGENT)
        speaker.finished("urgent")
        begun = {(m.job, m.stage) for m in speaker.heard if isinstance(m, Started)}
        assert ("urgent", "guard") in begun
        assert ("long", "stage_two") not in begun, "too late: give it more steps"
        assert ("next", "stage_one") not in begun
        assert any("makes way" in what for _, what in speaker.books("long").story)
        for job, request in (("urgent", URGENT), ("long", LONG), ("next", NEXT)):
            ends_right(speaker, job, request)


def test_what_makes_way_stands_still_and_goes_on(mesh: Mesh) -> None:
    """While the urgent one runs, not a step; when it is cancelled, from where it was."""
    with mesh.speaker() as speaker:
        speaker.submit("still", LONG)
        speaker.until(Progress, advanced("still"))
        speaker.submit("stopped", SLOW_URGENT)
        speaker.until(Progress, advanced("stopped", 60))  # over a second: with a Beat between, which tells of every step there was
        before = at(speaker, "still")
        speaker.until(Progress, advanced("stopped", 120))
        assert at(speaker, "still") == before
        speaker.send(Cancel("stopped"))
        speaker.until(Cancelled)
        again = speaker.until(Progress, lambda m: m.job == "still")
        assert before < again.step < 50
        ends_right(speaker, "still", LONG)


def test_a_death_takes_both_and_both_end_right(mesh: Mesh) -> None:
    """kill -9 of the process in which one runs and the other makes way."""
    with mesh.speaker() as speaker:
        victim = mesh.ready(speaker, "stage_one-0")["stage_one-0"].pid
        speaker.submit("waits", LONG)
        speaker.until(Progress, advanced("waits"))
        speaker.submit("runs", SLOW_URGENT)
        speaker.until(Progress, advanced("runs"))
        os.kill(victim, signal.SIGKILL)
        mesh.worker("stage_one")
        ends_right(speaker, "runs", SLOW_URGENT, runs=2)
        assert not any(isinstance(m, Finished) and m.job == "waits" for m in speaker.heard), "the urgent one is first again"
        ends_right(speaker, "waits", LONG, runs=2)
