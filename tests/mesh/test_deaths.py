"""`kill -9` of every process of a running mesh, one after the other, in the middle of its work: every job ends, with the same pixels."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ifmesh import Image, Request, Settings
from ifmesh.request import STAGES
from tests.mesh.kit import Mesh
from tests.mesh.real import LIMIT, Real, cascade, reached

pytestmark = pytest.mark.timeout(300)

FOX = "a red fox in the snow, oil on canvas"
DRAWING = ("stage_one", "stage_two", "upscaler")
SAVED = "stage_two"
"""It leaves checkpoints."""
LONG = {"stage_one": 100, "stage_two": 60, "upscaler": 50}
"""Steps that take two seconds: enough to hear of the third one and to strike before the last."""


def request(*long: str, seed: int = 7, last_stage: str = "upscaler") -> Request:
    """Two steps in every stage, but many in those named."""
    steps = {stage: Settings(steps=LONG[stage] if stage in long else 2) for stage in DRAWING}
    return Request(FOX, seed, settings=steps, last_stage=last_stage)


@pytest.fixture(scope="module")
def folder16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cascade 16 -> 64 -> 256."""
    return cascade(tmp_path_factory.getbasetemp(), 16)


@pytest.fixture(scope="module")
def running(folder16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with Real(tmp_path_factory.mktemp("deaths"), folder16, settings={f"services.{SAVED}.checkpoint_steps": 2}) as mesh:
        mesh.up()
        yield mesh


@pytest.fixture
def mesh(running: Real) -> Iterator[Real]:
    """One worker for each stage, all of them ready."""
    running.ready()
    yield running
    running.show()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def in_order(story: Sequence[str], *beginnings: str) -> None:
    """The story holds lines that begin so, in this order."""
    lines = iter(story)
    for beginning in beginnings:
        assert any(line.startswith(beginning) for line in lines), f"no {beginning!r}, or not in this place: {story}"


def calm(mesh: Real, asked: Request, known: dict[tuple[int, str], Image] = {}) -> Image:  # noqa: B006  it remembers
    """What an undisturbed run gives; each is run once."""
    key = id(mesh), repr(asked)
    if key not in known:
        known[key] = mesh.client.ask(asked).result()
    return known[key]


def same(mesh: Real, image: Image, undisturbed: Image) -> None:
    """Every bag and every picture, bit by bit."""
    assert mesh.kept(image.job) == mesh.kept(undisturbed.job)
    assert {name: picture.data for name, picture in image.stages.items()} == {name: p.data for name, p in undisturbed.stages.items()}
    assert image.reproducible


@pytest.mark.parametrize("stage", STAGES)
def test_the_death_of_a_worker(mesh: Real, stage: str) -> None:
    """In mid-step; the encoder and the guard, which are too quick for that, with the job in their hands."""
    asked = request(stage if stage in DRAWING else "upscaler")
    undisturbed = calm(mesh, asked)
    before = mesh.pids()
    name, victim = f"{stage}-0", before[f"{stage}-0"]
    if stage == "encoder":
        os.kill(victim, signal.SIGSTOP)
    job = mesh.client.ask(asked)
    if stage in DRAWING:
        reached(job, stage, 20 if stage == SAVED else 3)
    else:
        if stage == "guard":
            reached(job, "upscaler", LONG["upscaler"] - 6)  # a stopped worker counts as dead after 5 s of silence
            os.kill(victim, signal.SIGSTOP)
        mesh.when(lambda books: any(what.startswith(f"{stage}: assigned") for _, what in books.story), job.id)
    finished = mesh.written(job.id)
    kill(victim)
    image = job.result()

    same(mesh, image, undisturbed)
    assert {run.stage: run.runs for run in image.timings} == {s: 1 + (s == stage) for s in STAGES}
    assert {s: mesh.written(job.id)[s] for s in finished} == finished, "a finished stage ran again"
    after = mesh.pids()
    assert {service for service in before if after[service] != before[service]} == {name}
    assert [run.pid for run in image.timings if run.stage == stage] == [after[name]]
    told = mesh.story(job.id)
    again = (
        f"{stage}: assigned: {name}",
        f"{stage}: begun on {name}",
        f"{stage}: {'done on' if stage == 'guard' else 'advanced: done on'} {name}",
    )
    in_order(told, f"{stage}: assigned: {name}", f"{stage}: retried: {name} killed: SIGKILL", *again)
    assert sum(": retried" in line for line in told) == 1
    assert sum(f"{SAVED}: to go on after step" in line for line in told) == (stage == SAVED)
    assert f"{name} killed: SIGKILL" in mesh.ifmesh("show", job.id)
    log = mesh.log("coordinator")
    assert f"{name} is lost: killed: SIGKILL" in log
    assert f"{job.id} {stage}: retried: {name} killed: SIGKILL" in log
    assert f"{name}: SIGKILL from outside; again at once" in mesh.said


def test_the_death_of_a_workers_parent(mesh: Real) -> None:
    """Then nobody tells of the worker's death: it dies with its parent, and the next one under its name is the witness."""
    asked = request("stage_one")
    undisturbed = calm(mesh, asked)
    victim = psutil.Process(mesh.pids()["stage_one-0"])
    job = mesh.client.ask(asked)
    reached(job, "stage_one", 3)
    kill(victim.ppid())
    image = job.result()

    same(mesh, image, undisturbed)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    assert {run.stage: run.runs for run in image.timings} == {s: 1 + (s == "stage_one") for s in STAGES}
    in_order(mesh.story(job.id), "stage_one: begun", "stage_one: retried", "stage_one: assigned", "stage_one: begun", "stage_one: advanced")


def test_the_death_of_the_coordinator(mesh: Real) -> None:
    """With three jobs under way in three stages, and two that wait: the workers go on, and no stage runs twice."""
    asked = {stage: request(stage, seed=seed) for seed, stage in enumerate(reversed(DRAWING))}
    waiting = [request(seed=seed) for seed in (11, 12)]
    expected = [calm(mesh, one) for one in (*asked.values(), *waiting)]
    before = mesh.pids()
    jobs = {stage: mesh.client.ask(one) for stage, one in asked.items()}
    behind = [mesh.client.ask(one) for one in waiting]
    for stage, job in jobs.items():
        reached(job, stage, 3)
    there = [("running", stage) for stage in jobs] + [("running", "stage_one"), ("queued", "stage_one")]  # one is prefetched
    books = mesh.client.status()
    assert [(row.state, row.stage) for row in books.jobs] == there, "too late: give it more steps"
    everybody = [*jobs.values(), *behind]
    finished = {job.id: mesh.written(job.id) for job in everybody}
    assert [list(finished[job.id]) for job in everybody] == [list(STAGES[: STAGES.index(stage)]) for _, stage in there]
    kill(before["coordinator"])
    images = [job.result() for job in everybody]

    for image, undisturbed in zip(images, expected, strict=True):
        same(mesh, image, undisturbed)
        files = mesh.written(image.job)
        assert {s: files[s] for s in finished[image.job]} == finished[image.job], "a finished stage ran again"
        assert all(run.runs == 1 for run in image.timings)
    for stage, job in jobs.items():
        told = mesh.story(job.id)
        in_order(told, "accepted", "the coordinator was started again", f"{stage}: adopted: {stage}-0 has", f"{stage}: advanced")
        assert not [line for line in told if ": retried" in line or line.startswith(f"{stage}: assigned")]
    after = mesh.pids()
    assert {service for service in before if after[service] != before[service]} == {"coordinator"}
    assert "coordinator: SIGKILL from outside; again at once" in mesh.said


def test_a_worker_that_is_told_to_end_finishes_first(mesh: Real) -> None:
    asked = request("stage_one")
    undisturbed = calm(mesh, asked)
    worker = psutil.Process(mesh.pids()["stage_one-0"])
    job = mesh.client.ask(asked)
    reached(job, "stage_one", 3)
    os.kill(worker.ppid(), signal.SIGTERM)
    image = job.result()

    same(mesh, image, undisturbed)
    assert [(run.runs, run.pid) for run in image.timings if run.stage == "stage_one"] == [(1, worker.pid)]
    mesh.when(lambda books: any(r.service == "stage_one-0" and r.pid != worker.pid for r in books.services))
    assert "stage_one-0 is lost: said good-bye" in mesh.log("coordinator")


@pytest.fixture(scope="module")
def few(folder16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with Real(tmp_path_factory.mktemp("few"), folder16, stages=("encoder", "stage_one", "guard")) as mesh:
        yield mesh


@pytest.fixture
def small(few: Real) -> Iterator[Real]:
    """The services of a picture of Stage I, all of them ready."""
    if not few.is_up:
        few.up()
    yield few
    few.show()


def test_the_death_of_all(small: Real) -> None:
    """Nothing outlives `ifmesh up`; the next one on the same state folder finishes what was accepted."""
    long, short = request("stage_one", last_stage="stage_one"), request(last_stage="stage_one", seed=8)
    undisturbed = [calm(small, asked) for asked in (long, short)]
    jobs = [small.client.ask(asked) for asked in (long, short, short)]
    reached(jobs[0], "stage_one", 3)
    pids, old = small.pids(), small.process
    assert {process.pid for process in old.family} >= {pid for service, pid in pids.items() if service != "supervisor"}
    kill(pids["supervisor"])
    Mesh.wait_for(old.buried)
    assert len(small.kept(jobs[0].id)) < 2, "too late: give it more steps"

    small.up()
    images = [job.result() for job in jobs]
    for image, expected in zip(images, (undisturbed[0], undisturbed[1], undisturbed[1]), strict=True):
        same(small, image, expected)
        assert [run.runs for run in image.timings] == [1, 1, 1]  # since the start
    in_order(small.story(jobs[0].id), "accepted", "the coordinator was started again", "encoder: assigned", "guard: completed")


def test_down_lets_the_job_under_way_end(small: Real) -> None:
    """And whoever waits for it still gets its picture."""
    asked = request("stage_one", last_stage="stage_one")
    undisturbed = calm(small, asked)
    process = small.process
    job = small.client.ask(asked)
    reached(job, "stage_one", 3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result, LIMIT)
        small.ifmesh("down")
        assert process.buried()
        assert process.code() == 0
        image = waiting.result()
    same(small, image, undisturbed)
    assert [run.runs for run in image.timings] == [1, 1, 1]
    assert f"{job.id} guard: completed" in small.log("coordinator").partition("draining")[2]
