"""Stages that share a device and do not fit together: real processes take turns, and nothing that befalls one of them stops the rest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifmesh.protocol import Accepted, Books, Cancel, Cancelled, Finished
from ifmesh.request import STAGES, Request
from tests.mesh.kit import Mesh, Process, Speaker, expected, published

pytestmark = pytest.mark.timeout(240)

SLOW = "stage_two"
"""It takes some time to load."""
LONG = 120.0
"""Seconds: the minute in which a silent life counts as one that may come back, and twice ten until its parent says that it is there."""
IDLE = ("swapped", "ready")
SETTINGS: dict[str, str | int | float] = {
    "memory.cpu": "5kB",
    "mesh.max_phase": 20.0,
    f"services.{SLOW}.options.load_ms": 1500,
    "services.stage_one.options.step_ms": 30,
    "services.stage_one.options.unload_ms": 1000,
    "services.stage_one.patience": 2.0,
    **{f"services.{stage}.residency": "swap" for stage in STAGES},
    **{f"services.{stage}.needs": "3kB" for stage in STAGES},
    "services.guard.needs": "2kB",
}


Running = tuple[Mesh, Speaker, dict[str, Process]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mesh, dict[str, Process]]]:
    """Two of five fit, if one of them is the guard."""
    with Mesh(tmp_path_factory.mktemp("swap"), SETTINGS) as made:
        coordinator = made.coordinator()
        yield made, {"coordinator": coordinator, **{stage: made.worker(stage) for stage in STAGES}}


@pytest.fixture
def mesh(running: tuple[Mesh, dict[str, Process]]) -> Iterator[Running]:
    """All are there, and have nothing to do."""
    made, processes = running
    with made.speaker() as speaker:
        speaker.when(lambda books: {row.service for row in books.services if row.state in IDLE} == {f"{s}-0" for s in STAGES})
        for process in made.processes:
            process.remember()
        yield made, speaker, processes


def state(books: Books, stage: str) -> str:
    return next((row.state for row in books.services if row.stage == stage), "")


def accept(speaker: Speaker, job: str, request: Request) -> None:
    speaker.submit(job, request)
    speaker.until(Accepted, lambda m: m.job == job)


def all_right(speaker: Speaker, wanted: dict[str, Request]) -> None:
    """Each has finished, with the pixels that one process alone would draw."""
    for job, request in wanted.items():
        speaker.when(lambda books: books.ending == "finished", job)
        assert published(speaker.result(job)) == expected(request)


def loads(processes: dict[str, Process]) -> dict[str, int]:
    """How often each stage has come into memory, as the logs tell it."""
    return {stage: processes[stage].log.read_text().count("is loaded: ") for stage in STAGES}


def test_each_is_loaded_once_for_all(mesh: Running) -> None:
    _, speaker, processes = mesh
    before = loads(processes)
    wanted = {f"eight-{n}": Request(f"a fox, {n}", n) for n in range(8)}
    for job, request in wanted.items():
        speaker.submit(job, request)
    all_right(speaker, wanted)
    told = {stage: times - before[stage] for stage, times in loads(processes).items()}
    print(f"loads of 8 jobs: {told}")
    assert sum(told.values()) <= 12, told
    books = speaker.books()
    assert sum(row.needs for row in books.services if row.state in ("ready", "busy")) <= 5000
    assert not books.missing


@pytest.mark.parametrize("when", ["loading", "resident", "unloading"])
def test_killed(mesh: Running, when: str) -> None:
    """Its memory is free at once, and it is loaded again when it is there again."""
    made, speaker, processes = mesh
    wanted = {f"{when}-{n}": Request(f"a fox, {n}", n) for n in range(3)}
    for job, request in wanted.items():
        accept(speaker, job, request)
    stage = SLOW if when == "loading" else "stage_one"
    books = speaker.when(lambda books: state(books, stage) in ({"resident": ("ready", "busy")}.get(when, (when,))))
    os.kill(next(row.pid for row in books.services if row.stage == stage), signal.SIGKILL)
    assert processes[stage].code() != 0
    processes[stage] = made.worker(stage)
    all_right(speaker, wanted)


def test_the_lease_of_one_that_is_only_stopped_is_not_given_away(mesh: Running) -> None:
    """Nothing that does not fit beside it is loaded before its death is witnessed, which the coordinator asks for."""
    made, speaker, processes = mesh
    request = Request("a fox in the snow", 7)
    accept(speaker, "stopped", request)
    books = speaker.when(lambda books: state(books, "stage_one") in ("ready", "busy"))
    pid = next(row.pid for row in books.services if row.stage == "stage_one")
    os.kill(pid, signal.SIGSTOP)
    code = processes["stage_one"].code()  # its parent is told to kill it
    assert code != 0
    processes["stage_one"] = made.worker("stage_one")
    all_right(speaker, {"stopped": request})
    assert "no room" not in processes[SLOW].log.read_text()


def restarted(running: Running) -> None:
    """The coordinator, by SIGKILL, and started again."""
    made, _, processes = running
    processes["coordinator"].popen.kill()
    assert processes["coordinator"].code() != 0
    processes["coordinator"] = made.coordinator()


@pytest.mark.parametrize("when", ["loading", "resident", "unloading"])
def test_the_books_of_what_is_lent_are_lost(mesh: Running, when: str) -> None:
    """Those of the coordinator: it lends nothing before all have said what they hold."""
    _, speaker, processes = mesh
    before = {stage: processes[stage].log.read_text().count("no room") for stage in STAGES}
    wanted = {f"lost-{when}-{n}": Request(f"a fox, {n}", n) for n in range(3)}
    for job, request in wanted.items():
        accept(speaker, job, request)
    stage = SLOW if when == "loading" else "stage_one"
    speaker.when(lambda books: state(books, stage) in ({"resident": ("ready", "busy")}.get(when, (when,))))
    restarted(mesh)
    all_right(speaker, wanted)
    assert {stage: processes[stage].log.read_text().count("no room") for stage in STAGES} == before


@pytest.mark.slow
def test_one_that_stopped_before_the_coordinator_did_gives_its_memory_back(mesh: Running) -> None:
    """No coordinator has heard of it, so its host refuses to others what it holds, until its parent is told to end it, after a minute."""
    made, speaker, processes = mesh
    request = Request("a fox that stands still", 8)
    accept(speaker, "still", request)
    books = speaker.when(lambda books: state(books, "stage_one") in ("ready", "busy"))
    os.kill(next(row.pid for row in books.services if row.stage == "stage_one"), signal.SIGSTOP)
    restarted(mesh)
    began = time.monotonic()
    assert processes["stage_one"].popen.wait(LONG) != 0
    print(f"ended after {time.monotonic() - began:.0f} s")
    processes["stage_one"] = made.worker("stage_one")
    all_right(speaker, {"still": request})


def test_an_urgent_job_cuts_the_phase(mesh: Running) -> None:
    _, speaker, _ = mesh
    many = {f"many-{n}": Request(f"a fox, {n}", n) for n in range(30)}
    for job, request in many.items():
        speaker.submit(job, request)
    speaker.when(lambda books: state(books, "stage_one") == "busy" and books.queued["stage_one"] > 10)
    urgent = Request("an owl, at once", 99, priority=5)
    accept(speaker, "urgent", urgent)
    all_right(speaker, {"urgent": urgent})
    books = speaker.books("many-29")
    assert books.ending != "finished", "it overtook"
    story = [what for _, what in speaker.books("urgent").story]
    assert any("leaves for it" in what and "is loaded again later" in what for what in story), story
    all_right(speaker, many)


def test_the_last_of_a_phase_is_cancelled(mesh: Running) -> None:
    """The weights that nobody waits for any more are in nobody's way."""
    _, speaker, _ = mesh
    accept(speaker, "alone", Request("a fox", 1))
    speaker.when(lambda books: state(books, SLOW) == "loading")
    speaker.send(Cancel("alone"))
    assert isinstance(speaker.ending("alone"), Cancelled)
    request = Request("an owl", 2)
    accept(speaker, "next", request)
    assert isinstance(speaker.ending("next"), Finished)
    all_right(speaker, {"next": request})


def test_a_stage_that_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    with Mesh(tmp_path, {**SETTINGS, "services.encoder.needs": "9kB"}) as mesh:
        mesh.coordinator()
        worker = mesh.worker("encoder")
        assert worker.code() == 3
        assert "services.encoder: it needs 9000 bytes, and all in swap on cpu may take 5000" in worker.log.read_text()
