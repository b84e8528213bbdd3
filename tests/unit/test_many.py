"""Client.map and Client.as_completed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ifmesh import many, source
from ifmesh.client import Client
from ifmesh.errors import BadRequest, JobFailed, MeshBusy, MeshError
from ifmesh.protocol import Accepted, Cancel, Cancelled, ClientMessage, Failed, Refused, Submit, ToClient, Watch
from ifmesh.request import Request, Settings
from ifmesh.talk import Pause
from tests.unit.stand_in import StandIn, finished, heard, kept, on, png


@pytest.fixture
def mesh() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@pytest.fixture
def client(mesh: StandIn) -> Iterator[Client]:
    with Client(mesh.url) as made:
        yield made


def asked(mesh: StandIn) -> list[Request]:
    return [m.request for m in heard(mesh, Submit) if isinstance(m, Submit)]


def is_cancelled(mesh: StandIn, count: int) -> threading.Event:
    """Set when so many jobs were to be cancelled."""
    told, jobs = threading.Event(), set[str]()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if not isinstance(message, Cancel):
            return None
        jobs.add(message.job)
        if len(jobs) == count:
            told.set()
        return [Cancelled(message.job)]

    mesh.rules.append(rule)
    return told


# ---- map


def test_map_is_in_order_with_n_of_each(client: Client, mesh: StandIn) -> None:
    images = list(client.map(["a fox", {"prompt": "an owl", "seed": 40, "size": 64}], n=2, seed=10, size=256))
    assert [(i.request.prompt, i.seed) for i in images if i.request] == [("a fox", 10), ("a fox", 11), ("an owl", 40), ("an owl", 41)]
    assert [r.last_stage for r in asked(mesh)] == ["stage_two"] * 2 + ["stage_one"] * 2


def test_map_draws_seeds(client: Client) -> None:
    first, second, third, fourth = [image.seed for image in client.map(["a fox", "an owl"], n=2)]
    assert (second, fourth) == (first + 1, third + 1)
    assert first != third
    assert [image.seed for image in client.map("a fox", n=3, seed=1)] == [1, 2, 3]


def test_map_looks_only_so_far_ahead(client: Client, mesh: StandIn) -> None:
    taken: list[int] = []

    def prompts() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield f"fox {number}"

    images = client.map(prompts(), ahead=3)
    for done in range(1, 5):
        next(images)
        assert len(taken) == done + 2
    images.close()


def endless(mesh: StandIn, beyond: int) -> None:
    """Jobs whose seed is beyond this are accepted, and do not end."""

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit) and message.request.seed > beyond:
            return [Accepted(message.job)]
        return [Accepted(message.job)] if isinstance(message, Watch) and message.job not in mesh.requests else None

    mesh.rules.append(rule)


def test_map_closed_early_cancels_the_rest(client: Client, mesh: StandIn) -> None:
    endless(mesh, 1)
    told = is_cancelled(mesh, 3)
    images = client.map("a fox", n=10, ahead=4, seed=1)
    assert next(images).seed == 1
    images.close()
    assert told.wait(20)
    assert [r.seed for r in asked(mesh)] == [1, 2, 3, 4]


def test_map_that_is_only_dropped_cancels_the_rest(client: Client, mesh: StandIn) -> None:
    endless(mesh, 1)
    told = is_cancelled(mesh, 3)
    for image in client.map("a fox", n=10, ahead=4, seed=1):
        assert image.seed == 1
        break
    assert told.wait(20)


def test_ctrl_c_in_map_cancels_the_rest(client: Client, mesh: StandIn) -> None:
    endless(mesh, 0)
    told = is_cancelled(mesh, 4)
    interrupted: list[str] = []

    def interrupt(message: ClientMessage) -> None:
        if isinstance(message, Submit) and message.request.seed == 4 and not interrupted:
            interrupted.append(message.job)  # a second one may go before the Cancel
            os.kill(os.getpid(), signal.SIGINT)

    mesh.rules.insert(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(client.map("a fox", n=4, ahead=4, seed=1))
    assert told.wait(20)


def test_one_that_fails_ends_the_map(client: Client, mesh: StandIn) -> None:
    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit) and message.request.seed == 2:
            return [Failed(message.job, "error", "stage_two", "w-0", "boom")]
        return None

    mesh.rules.append(rule)
    endless(mesh, 2)
    told = is_cancelled(mesh, 1)
    images = client.map("a fox", n=9, ahead=2, seed=1)
    assert next(images).seed == 1
    with pytest.raises(JobFailed, match="boom"):
        next(images)
    assert told.wait(20)
    assert next(images, None) is None


def test_map_waits_out_a_full_mesh(client: Client, mesh: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "LEAST", 0.01)
    mesh.rules.append(on(Submit, Refused("?", "busy", "full", 0.02), times=7))
    assert [image.seed for image in client.map("a fox", n=4, ahead=3, seed=1)] == [1, 2, 3, 4]
    assert len({m.job for m in mesh.heard if isinstance(m, Submit)}) == 4, "asked again with the same ids"
    assert len(asked(mesh)) == 11


@pytest.mark.parametrize("said", [0.0, 1e9])
def test_the_wait_for_a_full_mesh_is_bounded(client: Client, mesh: StandIn, monkeypatch: pytest.MonkeyPatch, said: float) -> None:
    pauses: list[float] = []

    def pause(signal: object, seen: int, seconds: float) -> Pause:
        pauses.append(seconds)
        return Pause(None, 0, 0.01)

    monkeypatch.setattr(many, "Pause", pause)
    mesh.rules.append(on(Submit, Refused("?", "busy", "full", said), times=2))
    assert len(list(client.map("a fox"))) == 1
    assert pauses == [0.1 if said == 0 else 60.0] * 2


def test_a_source_of_many_is_read_and_pushed_once(client: Client, mesh: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = source.read

    def counted(what: object, field: str) -> source.File:
        reads.append(field)
        return read(what, field)

    monkeypatch.setattr(source, "read", counted)
    images = list(client.map(["a fox", "an owl"], n=3, source=png(64), mask=png(128), size=64))
    assert [i.request.task for i in images if i.request] == ["inpaint"] * 6
    assert {i.source for i in images} == {png(64)}
    assert reads == ["source", "mask"]
    assert list(mesh.pushed.values()) == [1]


def test_what_one_brings_of_its_own_is_not_shared(client: Client) -> None:
    prompts: list[Any] = ["a fox", {"prompt": "an owl", "generator": bytes(5056)}, {"prompt": "a hare", "source": png(128)}, "a bear"]
    images = list(client.map(prompts, source=png(64), size=64))
    assert [i.request.brings for i in images if i.request] == [("source",), ("source", "rng"), ("source",), ("source",)]
    assert [i.source for i in images] == [png(64), png(64), png(128), png(64)]


@pytest.mark.parametrize(
    ("field", "prompts", "wishes"),
    [
        ("n", "a fox", {"n": 0}),
        ("n", "a fox", {"n": 2.0}),
        ("n", "a fox", {"n": 2, "generator": bytes(5056)}),
        ("ahead", "a fox", {"ahead": 0}),
        ("prompts", 7, {}),
        ("prompts", {"prompt": "a fox"}, {}),
        ("prompts", [7], {}),
        ("colour", [{"prompt": "a fox", "colour": "red"}], {}),
        ("prompt", [{"seed": 1}], {}),
        ("seed", "a fox", {"seed": "1", "n": 2}),
        ("strength", "a fox", {"strength": 0.5}),
        ("continues", "a fox", {"continues": "any"}),
    ],
)
def test_a_bad_map(client: Client, mesh: StandIn, field: str, prompts: Any, wishes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as error:
        list(client.map(prompts, **wishes))
    assert error.value.field == field
    assert not asked(mesh)


# ---- candidates, and what becomes of them


def test_candidates_are_kept_with_seeds_that_count_on(client: Client, mesh: StandIn) -> None:
    images = client.candidates("a fox", 3, seed=10, source=png(64), strength=0.6, priority=2)
    assert [(i.seed, i.stage, i.size, i.kept) for i in images] == [
        (n, "stage_one", (64, 64), kept(i.job)) for n, i in enumerate(images, 10)
    ]
    assert {(r.task, r.last_stage, r.keep, r.priority) for r in asked(mesh)} == {("vary", "stage_one", 3600.0, 2)}
    assert list(mesh.pushed.values()) == [1]
    assert len(client.candidates("a fox")) == 8
    [image] = client.candidates("a fox", 1, size=256, keep=5)
    assert image.request is not None
    assert (image.stage, image.request.keep) == ("stage_two", 5.0)


def test_proceed_goes_on_and_shows_the_whole_row(client: Client, mesh: StandIn) -> None:
    first = client.candidates("a fox", 2, seed=10, source=png(64))[1]
    image = client.proceed(first, settings={"upscaler": {"steps": 3}})
    assert image.request is not None
    assert first.request is not None
    assert (image.request.task, image.request.first_stage, image.request.upload) == ("vary", "encoder", first.request.upload)
    assert (image.request.last_stage, image.request.settings, image.seed) == ("upscaler", {"upscaler": Settings(steps=3)}, 11)
    assert (image.request.keep, image.kept) == (0, "")
    assert list(image.stages) == ["stage_one", "stage_two", "upscaler"]
    assert (image.source, image.stages["stage_one"].data) == (first.source, first.data)
    assert image.sheet().width == 2200, "source, 64, 256, 1024"
    assert list(mesh.pushed.values()) == [1], "the source of the candidates alone"
    job = client.submit(continues=first, size=256, keep=60)
    second = job.result(20)
    assert list(second.stages) == ["stage_one", "stage_two"]
    last = client.proceed(second)
    assert last.request is not None
    assert last.request == replace(image.request, settings={}), "as if it had been drawn in one go"
    assert list(last.stages) == ["stage_one", "stage_two", "upscaler"]
    assert list(client.proceed(first, stages=False).stages) == ["stage_two", "upscaler"]
    assert list(client.job(job.id).result(20).stages) == ["stage_one", "stage_two"], "while somebody holds the job"


def test_what_is_kept_no_more_cannot_be_continued(client: Client, mesh: StandIn) -> None:
    """And another picture can."""
    lost, found = client.candidates("a fox", 2, seed=10)
    del mesh.uploads[lost.kept]
    told = f"^continues: '{lost.job}': the mesh keeps its bag no longer: draw it whole, with seed=10$"
    with pytest.raises(BadRequest, match=told) as error:
        client.proceed(lost, timeout=20)
    assert (error.value.field, error.value.value) == ("continues", lost.job)
    job = client.submit(continues=lost)
    over = client.as_completed([job], timeout=20)
    assert next(over) is job
    with pytest.raises(BadRequest, match=told):
        job.result(20)
    with pytest.raises(BadRequest, match=told):
        list(job.events())
    assert client.proceed(found, timeout=20).seed == 11
    assert not mesh.pushed


def test_candidates_that_are_late_are_cancelled(client: Client, mesh: StandIn) -> None:
    endless(mesh, 1)
    told = is_cancelled(mesh, 2)
    with pytest.raises(TimeoutError, match=r"^not all were drawn within 0.2 s; the rest is cancelled$"):
        client.candidates("a fox", 3, seed=1, timeout=0.2)
    assert told.wait(20)


def test_a_full_mesh_is_waited_for_no_longer_than_said(client: Client, mesh: StandIn) -> None:
    mesh.rules.append(on(Submit, Refused("?", "busy", "full", 50.0)))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0.2 s"):
        client.candidates("a fox", 2, timeout=0.2)
    assert time.monotonic() - began < 20, "it said 50"


def test_ctrl_c_in_candidates_cancels_all(client: Client, mesh: StandIn) -> None:
    endless(mesh, 0)
    told = is_cancelled(mesh, 3)
    interrupted: list[str] = []

    def interrupt(message: ClientMessage) -> None:
        if isinstance(message, Submit) and message.request.seed == 3 and not interrupted:
            interrupted.append(message.job)
            os.kill(os.getpid(), signal.SIGINT)

    mesh.rules.insert(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.candidates("a fox", 3, seed=1)
    assert told.wait(20)


@pytest.mark.parametrize(
    ("field", "wishes"),
    [("n", {"n": 0}), ("prompt", {"prompt": ""}), ("keep", {"size": 1024}), ("keep", {"keep": -1}), ("n", {"generator": bytes(5056)})],
)
def test_bad_candidates(client: Client, mesh: StandIn, field: str, wishes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as error:
        client.candidates(**{"prompt": "a fox", **wishes})
    assert error.value.field == field
    assert not asked(mesh)


def test_upscale_is_a_task_of_its_own(client: Client, mesh: StandIn) -> None:
    client.upscale(png(64), "a fox", size=256, keep=60)
    client.upscale(png(64), "a fox", alone=True)
    client.submit("a fox", source=png(64), upscale="alone")
    assert {(r.task, r.first_stage, r.last_stage) for r in asked(mesh)} == {
        ("upscale", "encoder", "stage_two"),
        ("upscale", "upscaler", "upscaler"),
    }
    for given, field in ((None, "source"), (png(300), "source"), (png(64), "prompt")):
        with pytest.raises(BadRequest) as error:
            client.upscale(given)
        assert error.value.field == field


# ---- as_completed


def test_jobs_come_as_they_end_well_or_not(mesh: StandIn) -> None:
    held: list[str] = []

    def rule(message: ClientMessage) -> list[ToClient] | None:
        match message:
            case Submit(job, Request(prompt="slow")):
                held.append(job)
                return [Accepted(job)]
            case Submit(job, Request(prompt="bad")):
                return [Failed(job, "error", "guard", "w", "boom")]
            case Submit(job, Request(prompt="full")):
                return [Refused(job, "busy", "full", 1.0)]
            case Submit(job, Request(prompt="last")):
                mesh.requests[held[0]] = Request("slow", 1)
                return [Accepted(job), finished(job, 1), finished(held[0], 1)]
        return None

    mesh.rules.append(rule)
    with Client(mesh.url) as client:
        slow = client.submit("slow", seed=1)
        jobs = [slow, *(client.submit(prompt) for prompt in ("bad", "full", "good"))]
        over = client.as_completed([*jobs, slow])
        first = [next(over), next(over), next(over)]
        assert {job.id for job in first} == {job.id for job in jobs[1:]}
        client.submit("last")
        assert list(over) == [slow, slow]
        assert slow.result(20).seed == 1
        with pytest.raises(JobFailed):
            jobs[1].result()
        with pytest.raises(MeshBusy):
            jobs[2].result()
        assert list(client.as_completed([])) == []
        assert list(client.as_completed(iter(jobs[:2]))) == jobs[:2], "those that have ended already"


def test_a_time_limit_says_how_many_are_open(client: Client, mesh: StandIn) -> None:
    endless(mesh, 1)
    jobs = [client.submit("a fox", seed=seed) for seed in (1, 2, 3)]
    jobs[0].result(20)
    over = client.as_completed(jobs, timeout=0.05)
    assert next(over) is jobs[0]
    with pytest.raises(TimeoutError, match=r"2 of 3 jobs .* 0.05 s"):
        next(over)
    for job in jobs:
        assert not job._case.file.over._listeners


def test_a_closed_client_ends_the_race(mesh: StandIn) -> None:
    endless(mesh, 0)
    with Client(mesh.url) as client:
        job = client.submit("a fox", seed=1)
        over = client.as_completed([job, client.submit("a fox", seed=2)])
        threading.Thread(target=client.close).start()
        assert {next(over).id, next(over).id} >= {job.id}
        with pytest.raises(MeshError, match="closed"):
            job.result()
