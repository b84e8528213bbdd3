"""Rows 28, 29 and 36 to 38 on real processes: workers that wedge, spin and die, by a request's fault or by their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ifmesh import exits
from ifmesh.protocol import Books, Failed, Started
from ifmesh.request import Request
from tests.mesh.kit import Mesh, Process, Speaker, expected, published

SMALL = ("encoder", "stage_one", "guard")
BAD = "stage_one-bad"
ABORTED = 128 + signal.SIGABRT

Crew = Callable[..., Mesh]


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """A mesh with these settings, and a ready worker of each of these names."""
    with ExitStack() as stack:

        def made(*names: str, **settings: str | int | float) -> Mesh:
            mesh = stack.enter_context(Mesh(tmp_path / "mesh", {key.replace("__", "."): value for key, value in settings.items()}))
            mesh.coordinator()
            for name in names:
                mesh.worker(name.rpartition("-")[0], name)
            with mesh.speaker() as fan:
                mesh.ready(fan, *names)
            return mesh

        yield made


def bad(mesh: Mesh, trouble: str) -> Process:
    """A worker of Stage I to which this happens in the second step of every job."""
    return mesh.start(BAD, "worker", "stage_one", "--name", BAD, "--set", f"services.stage_one.options.trouble={trouble}")


def small(prompt: str = "a fox", seed: int = 7) -> Request:
    return Request(prompt, seed, last_stage="stage_one")


def told(books: Books, words: str) -> int:
    return sum(words in line for _, line in books.story)


def right(fan: Speaker, job: str, request: Request) -> dict[str, int]:
    """It has ended well, with the pixels of an undisturbed run; how often each stage ran."""
    fan.submit(job, request)
    finished = fan.finished(job)
    assert published(fan.result(job)) == expected(request)
    return {run.stage: run.runs for run in finished.runs}


def stalls(crew: Crew, trouble: str) -> Mesh:
    """The job begins where it stalls, and ends on another worker, which comes later."""
    mesh = crew("encoder-0", "guard-0", services__stage_one__patience=1.0, mesh__silence=2.0)
    stalling = bad(mesh, trouble)
    with mesh.speaker() as fan:
        mesh.ready(fan, BAD)
        fan.submit("a", small())
        fan.until(Started, lambda m: m.worker == BAD)
        assert stalling.code() == exits.STALLED
        books = fan.when(lambda b: told(b, "blamed, 1 of 4") == 1, "a")
        assert told(books, "stalled")
        good = mesh.worker("stage_one")
        assert right(fan, "a", small()) == {"encoder": 1, "stage_one": 2, "guard": 1}
        assert good.popen.poll() is None
    assert f"{BAD} is stalled: killing it" in stalling.log.read_text()
    return mesh


@pytest.mark.matrix
def test_row_28_a_worker_hangs_with_the_gil_held(crew: Crew) -> None:
    """It cannot even beat: lost by its silence, it is killed when its patience is over, and only then blamed."""
    mesh = stalls(crew, "wedge")
    assert f"{BAD} is lost: silent for" in mesh.processes[0].log.read_text()


@pytest.mark.matrix
def test_row_29_a_worker_spins_in_python(crew: Crew) -> None:
    """Its beats are fine, its steps are not."""
    mesh = stalls(crew, "spin")
    assert f"{BAD} is lost: stalled: no step for" in mesh.processes[0].log.read_text()


def test_row_36_a_poison_kills_four_workers_at_most(crew: Crew) -> None:
    """What waits behind it and beside it is unharmed."""
    mesh = crew("encoder-0", "stage_one-0", "guard-0")
    worker, deaths = mesh.processes[2], 0
    with mesh.speaker() as fan:
        fan.submit("poison", small("toy:abort=stage_one"))
        for number in range(4):
            fan.submit(f"innocent-{number}", small(seed=number))
        while deaths < 4:
            assert worker.code() == ABORTED
            deaths += 1
            worker = mesh.worker("stage_one")
        ending = fan.ending("poison")
        assert isinstance(ending, Failed)
        assert (ending.cause, ending.stage) == ("poison", "stage_one")
        assert ending.error.startswith("4 workers died of it; the last: stage_one-0 crashed: SIGABRT")
        for number in range(4):
            right(fan, f"innocent-{number}", small(seed=number))
            assert not told(fan.books(f"innocent-{number}"), "blamed")
        assert [told(fan.books("poison"), f"blamed, {n} of 4") for n in range(1, 5)] == [1, 1, 1, 1]
    assert worker.popen.poll() is None


def test_row_37_what_is_too_large_for_every_worker_fails_and_they_live(crew: Crew) -> None:
    mesh = crew("encoder-0", "stage_one-0", "stage_one-1", "guard-0")
    with mesh.speaker() as fan:
        before = {row.service: row.pid for row in fan.books().services}
        fan.submit("large", small("toy:oom=stage_one"))
        for number in range(3):
            fan.submit(f"beside-{number}", small(seed=number))
        ending = fan.ending("large")
        assert isinstance(ending, Failed)
        assert (ending.cause, ending.stage) == ("error", "stage_one")
        assert ending.error == "MemoryError: the prompt asked stage_one for more than there is"
        for number in range(3):
            assert set(right(fan, f"beside-{number}", small(seed=number)).values()) == {1}
        assert {row.service: row.pid for row in fan.books().services} == before
    tries = [process.log.read_text().count("large stage_one failed") for process in mesh.processes[2:4]]
    assert sum(tries) == 3
    assert min(tries) >= 1, "it was not tried elsewhere"


@pytest.mark.matrix
def test_row_38_a_worker_that_dies_of_everything_is_put_aside(crew: Crew) -> None:
    """After three different requests, which the other one finishes; then it is given nothing."""
    mesh = crew("encoder-0", "stage_one-0", "guard-0", services__stage_one__options__step_ms=100)
    with mesh.speaker() as fan:
        worker = bad(mesh, "abort")
        for number in range(3):
            mesh.ready(fan, BAD)
            pair = {f"{side}-{number}": small(seed=10 * number + seed) for seed, side in enumerate(("left", "right"))}
            for job, request in pair.items():  # one for each worker of Stage I
                fan.submit(job, request)
            assert worker.code() == ABORTED
            assert sorted(right(fan, job, request)["stage_one"] for job, request in pair.items()) == [1, 2]
            worker = bad(mesh, "abort")
        fan.when(lambda b: any((row.service, row.state) == (BAD, "aside") for row in b.services))
        for number in range(3):
            assert set(right(fan, f"after-{number}", small(seed=number)).values()) == {1}
    assert worker.popen.poll() is None
    assert f"{BAD} is put aside: 3 deaths in it, of different requests" in mesh.processes[0].log.read_text()
