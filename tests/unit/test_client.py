"""The client against a stand-in coordinator: a real ROUTER and the real codecs, answers as the test wants them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
from PIL import Image as pillow

from ifmesh import bags, wire
from ifmesh.client import Client
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError
from ifmesh.image import Image
from ifmesh.protocol import (
    VERSION,
    Accepted,
    Cancel,
    Cancelled,
    ClientMessage,
    Failed,
    Fetch,
    Finished,
    Hi,
    Inspect,
    Progress,
    Queued,
    Refused,
    Started,
    Submit,
    ToClient,
    Watch,
)
from ifmesh.request import Request, Settings
from tests.unit.stand_in import BOOKS, RUN, StandIn, finished, flat, heard, named, on, png


@pytest.fixture
def mesh() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@pytest.fixture
def client(mesh: StandIn) -> Iterator[Client]:
    with Client(mesh.url) as made:
        yield made


# ---- the good case


def test_generate_gives_the_pictures(client: Client, tmp_path: Path) -> None:
    image = client.generate("a fox", seed=5)
    assert (image.seed, image.stage, image.size, image.flagged, image.reproducible) == (5, "upscaler", (1024, 1024), False, True)
    assert image.timings == (RUN,)
    assert {name: picture.size[0] for name, picture in image.stages.items()} == {"stage_one": 64, "stage_two": 256, "upscaler": 1024}
    assert list(image.stages) == ["stage_one", "stage_two", "upscaler"]
    assert image.data == image._repr_png_() == png(1024)
    assert image.pil.getpixel((0, 0)) == (0, 90, 30)
    assert image.save(tmp_path / "a.png", parameters=False).read_bytes() == image.data
    with pillow.open(image.stages["stage_one"].save(tmp_path / "a.jpg")) as saved:
        assert (saved.format, saved.size) == ("JPEG", (64, 64))
    with pytest.raises(ValueError, match="no picture format"):
        image.save(tmp_path / "a.fox")
    assert len({image, image}) == 1


def test_the_request_is_what_was_asked(client: Client, mesh: StandIn) -> None:
    settings: dict[str, Settings | dict[str, object]] = {"stage_one": {"steps": 9, "guidance": 2}, "stage_two": Settings(timesteps=(9, 3))}
    job = client.submit("a fox", negative="a dog", size=256, settings=settings, stages=False, priority=3, deadline=60, job="mine")
    job.result(10)
    asked = Request(
        "a fox",
        job.seed or 0,
        negative="a dog",
        settings={"stage_one": Settings(steps=9, guidance=2.0), "stage_two": Settings(timesteps=(9, 3))},
        last_stage="stage_two",
        stages=False,
        priority=3,
        deadline=60.0,
    )
    assert heard(mesh, Submit) == [Submit("mine", asked)]
    assert job.request == asked


def test_ids_and_seeds_are_drawn(client: Client) -> None:
    jobs = [client.submit("a fox") for _ in range(5)]
    assert len({job.id for job in jobs}) == 5
    assert len({job.seed for job in jobs}) == 5
    assert [job.result(10).seed for job in jobs] == [job.seed for job in jobs]


def test_events_end_after_the_ending_and_can_be_read_again(client: Client) -> None:
    job = client.submit("a fox", seed=5)
    expected = [Started(job.id, "encoder", "w"), Progress(job.id, "encoder", 1, 1), finished(job.id, 5)]
    assert list(job.events()) == expected
    assert list(job.events()) == expected


def test_coming_back_by_id(mesh: StandIn) -> None:
    with Client(mesh.url) as first:
        job = first.submit("a fox", seed=9).id
        first.job(job).result(10)
    with Client(mesh.url) as second:
        found = second.job(job)
        assert (found.request, found.result(10).seed, found.seed) == (None, 9, 9)
        assert found.request == Request("a fox", 9), "the result tells what was asked"
        assert found.result().request == found.request


def test_two_who_wait_get_the_same(client: Client) -> None:
    job = client.submit("a fox")
    assert client.job(job.id).result(10) is job.result(10)


def test_a_submit_whose_job_object_is_dropped_still_gets_through() -> None:
    lost = on(Submit, times=1)
    mesh = StandIn(lost)
    with Client(mesh.url, timeout=2.0) as client:
        job = client.submit("a fox").id
        assert client.job(job).result(10).job == job
    mesh.close()


def test_a_tied_job_whose_job_object_is_dropped_is_still_watched() -> None:
    mesh, watched = StandIn(), threading.Event()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit):
            return [Accepted(message.job), Queued(message.job, "encoder", 3)]
        if isinstance(message, Watch):
            if len(heard(mesh, Watch)) == 3:
                watched.set()
            return [Queued(message.job, "encoder", 3 - len(heard(mesh, Watch)))]
        return None

    mesh.rules.append(rule)
    with Client(mesh.url, timeout=0.8) as client:
        assert client.submit("a fox", tied=True).id
        assert watched.wait(20), "it is cancelled when nobody watches it"
    mesh.close()


def test_many_at_once_from_many_threads(client: Client) -> None:
    results: list[Image] = []

    def work(number: int) -> None:
        results.extend(job.result(30) for job in [client.submit("a fox", seed=number * 100 + i) for i in range(20)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(image.seed for image in results) == sorted(n * 100 + i for n in range(4) for i in range(20))


def test_status(client: Client, mesh: StandIn) -> None:
    assert client.status() == BOOKS
    with pytest.raises(BadRequest, match="no such job") as error:
        client.status("x")
    assert error.value.field == "job"
    assert client.status(page=2) == BOOKS
    assert heard(mesh, Inspect) == [Inspect(0, ""), Inspect(0, "x"), Inspect(2, "")]


# ---- what goes wrong


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("prompt", {"prompt": "  "}),
        ("prompt", {"prompt": 7}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": "5"}),
        ("size", {"size": 512}),
        ("settings", {"settings": {"stage_nine": {"steps": 3}}}),
        ("settings.stage_one.stepz", {"settings": {"stage_one": {"stepz": 3}}}),
        ("settings.stage_one.steps", {"settings": {"stage_one": {"steps": 0}}}),
        ("deadline", {"deadline": 0.0}),
        ("job", {"job": "not/an id"}),
    ],
)
def test_a_bad_request_is_told_before_anything_is_sent(client: Client, mesh: StandIn, field: str, options: dict[str, object]) -> None:
    with pytest.raises(BadRequest) as error:
        client.submit(**{"prompt": "a fox", **options})  # type: ignore[arg-type]
    assert error.value.field == field
    assert not heard(mesh, Submit)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Failed("?", "error", "stage_two", "w-0", "boom"), JobFailed),
        (Failed("?", "poison", "stage_two", "w-0", "it killed four workers"), JobFailed),
        (Failed("?", "expired", "stage_two", "", ""), DeadlineExceeded),
        (Failed("?", "request", "stage_one", "w-0", "prompt: 'a fox': no foxes"), BadRequest),
        (Cancelled("?"), JobCancelled),
        (Refused("?", "busy", "1000 jobs are waiting", 2.5), MeshBusy),
        (Refused("?", "invalid", "prompt: 'a fox': too red", field="prompt"), BadRequest),
        (Refused("?", "conflict", "used for another request"), BadRequest),
    ],
)
def test_how_it_ended_is_an_error_by_type(answer: ToClient, expected: type[MeshError]) -> None:
    mesh = StandIn(on(Submit, answer))
    with Client(mesh.url) as client:
        job = client.submit("a fox")
        with pytest.raises(expected) as error:
            job.result(10)
        if isinstance(answer, Refused):
            with pytest.raises(expected):
                list(job.events())
        else:
            assert list(job.events())[-1:] == [named(answer, job.id)]
    match error.value:
        case JobFailed() as failed:
            assert (failed.job, failed.stage, failed.worker) == (job.id, "stage_two", "w-0")
        case MeshBusy() as busy:
            assert busy.retry_after == 2.5
        case BadRequest() as bad:
            assert bad.field == ("job" if isinstance(answer, Refused) and answer.reason == "conflict" else "prompt")
            assert str(bad).count("a fox") <= 1
    mesh.close()


def test_a_busy_mesh_can_be_asked_again_with_the_same_id() -> None:
    mesh = StandIn(on(Submit, Refused("?", "busy", "full", 1.0), times=1))
    with Client(mesh.url) as client:
        job = client.submit("a fox", job="mine", seed=3)
        with pytest.raises(MeshBusy):
            job.result(10)
        assert client.submit("a fox", job="mine", seed=3).result(10).seed == 3
    mesh.close()


def test_why_a_job_was_not_taken_is_not_forgotten() -> None:
    """A late answer to a question before says that there is no such job."""
    mesh = StandIn(on(Submit, Refused("?", "busy", "full", 1.0)))
    with Client(mesh.url) as client:
        job = client.submit("a fox")
        with pytest.raises(MeshBusy):
            job.result(10)
        job._case.line.cancel(job.id)
        client.status()  # answered after the Cancel
        with pytest.raises(MeshBusy):
            job.result(10)
    mesh.close()


def test_cancel_by_id_asks_the_mesh_whatever_it_said_before() -> None:
    mesh = StandIn(on(Submit, Refused("?", "busy", "full", 1.0)), on(Watch, Accepted("?")), on(Cancel, Cancelled("?")))
    with Client(mesh.url) as client:
        job = client.submit("a fox")
        with pytest.raises(MeshBusy):
            job.result(10)
        assert client.cancel(job.id) == Cancelled(job.id), "another client has handed it in meanwhile"
    mesh.close()


def test_an_id_in_use_for_another_request(client: Client) -> None:
    job = client.submit("a fox", job="mine")
    with pytest.raises(BadRequest, match="another request"):
        client.submit("a dog", job="mine")
    job.result(10)


def test_an_unknown_job(client: Client) -> None:
    for ask in (lambda: client.job("x").result(10), lambda: list(client.job("x").events()), lambda: client.cancel("x")):
        with pytest.raises(BadRequest, match="no such job") as error:
            ask()
        assert error.value.field == "job"


def test_a_time_limit_leaves_the_id_good() -> None:
    mesh = StandIn(on(Submit, Accepted("?"), times=1), on(Watch, Queued("?", "encoder", 0), times=1))
    with Client(mesh.url, timeout=2.0) as client:
        job = client.submit("a fox", seed=1)
        with pytest.raises(TimeoutError, match=job.id):
            job.result(0.05)
        mesh.requests[job.id] = job.request or Request("", 1)
        assert job.result(20).seed == 1
    mesh.close()


def test_cancel_waits_for_the_end() -> None:
    mesh = StandIn(on(Submit, Accepted("?")), on(Watch, Accepted("?")), on(Cancel, Cancelled("?")))
    with Client(mesh.url) as client:
        job = client.submit("a fox")
        assert job.cancel() == Cancelled(job.id)
        assert client.cancel(job.id) == Cancelled(job.id)
        with pytest.raises(JobCancelled):
            job.result(10)
    mesh.close()


def test_a_refused_version_names_both() -> None:
    detail = "this coordinator speaks version 2, you speak version 1"
    mesh = StandIn(on(Hi, Refused("", "version", detail)))
    with Client(mesh.url) as client, pytest.raises(MeshError, match=detail):
        client.status()
    mesh.close()


def test_another_version_on_the_wire_names_both(mesh: StandIn) -> None:
    mesh.raw = [[msgpack.packb({"v": VERSION + 41, "is": "Welcome"})]]
    with Client(mesh.url) as client, pytest.raises(MeshError, match=rf"{VERSION + 41}.*{VERSION}"):
        client.status()


def test_garbage_is_dropped_and_asked_again(mesh: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    with Client(mesh.url, timeout=2.0) as client:
        client.status()
        mesh.raw = [[b"\xc1garbage"], [b""], [wire.TO_CLIENT.encode(BOOKS)]]
        assert client.status() == BOOKS
    assert caplog.text.count("dropped a frame") == 2


def test_a_spoilt_result_is_fetched_again() -> None:
    mesh = StandIn()
    mesh.bare = 1
    with Client(mesh.url, timeout=2.0) as client:
        assert client.generate("a fox", seed=4, timeout=20).seed == 4
    assert len(heard(mesh, Fetch)) == 2
    mesh.close()


# ---- nobody there, and somebody else


def test_not_reachable_names_the_address_and_the_remedy() -> None:
    gone = StandIn()
    gone.close()
    with Client(gone.url, timeout=0.5) as client:
        for _ in range(2):
            with pytest.raises(Lost, match=rf"{gone.url}.*ifmesh up"):
                client.generate("a fox")
        assert not [t for t in threading.enumerate() if t.name == "ifmesh-client"]


def test_a_silent_mesh_is_lost_also_in_the_middle() -> None:
    mesh = StandIn(on(Submit))
    with Client(mesh.url, timeout=0.5) as client:
        client.status()
        mesh.close()
        with pytest.raises(Lost, match="ifmesh up"):
            client.submit("a fox").result()


def test_an_accepted_job_outlives_its_coordinator() -> None:
    first = StandIn(on(Submit, Accepted("?")), on(Watch, Accepted("?")))
    with Client(first.url, timeout=3.0) as client:
        job = client.submit("a fox", seed=6)
        client.status()
        first.close()
        second = StandIn(url=first.url, epoch=2)
        second.requests[job.id] = job.request or Request("", 6)
        assert job.result(60).seed == 6
        assert not heard(second, Submit), "it was accepted: asking after it is enough"
    second.close()


def test_a_coordinator_that_comes_back_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IFMESH_COORDINATOR", raising=False)
    monkeypatch.chdir(tmp_path)
    first = StandIn(on(Submit, Accepted("?")), on(Watch, Accepted("?")))
    (tmp_path / "endpoint.json").write_text(json.dumps({"control": first.url, "pid": 1}))
    with Client(state=tmp_path, timeout=3.0) as client:
        job = client.submit("a fox", seed=6)
        client.status()
        second = StandIn()
        second.requests[job.id] = job.request or Request("", 6)
        (tmp_path / "endpoint.json").write_text(json.dumps({"control": second.url, "pid": 2}))
        first.close()
        assert job.result(60).seed == 6
        assert client.address == second.url
    second.close()


def test_the_address_comes_from_the_argument_the_environment_or_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFMESH_COORDINATOR", "tcp://127.0.0.1:7001")
    assert Client("tcp://127.0.0.1:7000").address == "tcp://127.0.0.1:7000"
    assert Client().address == "tcp://127.0.0.1:7001"
    monkeypatch.delenv("IFMESH_COORDINATOR")
    assert Client(state=tmp_path).address == "tcp://127.0.0.1:7640"
    (tmp_path / "endpoint.json").write_text('{"control": "tcp://127.0.0.1:7002", "pid": 1}')
    assert Client(state=tmp_path).address == "tcp://127.0.0.1:7002"


# ---- the end


def test_a_closed_client_leaves_no_thread_and_takes_no_question(mesh: StandIn) -> None:
    mesh.rules.append(on(Submit, Accepted("?")))
    mesh.rules.append(on(Watch, Accepted("?")))
    client = Client(mesh.url)
    job = client.submit("a fox")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            job.result()
        except MeshError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    client.close()
    client.close()
    waiter.join(20)
    assert [str(e) for e in errors] == ["this client is closed"]
    with pytest.raises(MeshError, match="closed"):
        client.status()
    assert not [t for t in threading.enumerate() if t.name == "ifmesh-client"]


def test_a_forgotten_client_leaves_no_thread(mesh: StandIn) -> None:
    assert Client(mesh.url).submit("a fox").result(10), "a Job keeps its client"
    assert Client(mesh.url).status() == BOOKS
    assert not [t for t in threading.enumerate() if t.name == "ifmesh-client"]


def test_ctrl_c_in_generate_cancels_the_job(mesh: StandIn) -> None:
    told = threading.Event()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit):
            if len(heard(mesh, Submit)) == 1:  # a second one goes before the Cancel
                os.kill(child.pid, signal.SIGINT)
            return [Accepted(message.job)]
        if isinstance(message, Cancel):
            told.set()
        return [] if isinstance(message, Watch) else None

    mesh.rules.append(rule)
    code = f"from ifmesh import Client\nwith Client({mesh.url!r}) as c:\n    c.generate('a fox')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env={**os.environ}) as child:
        _, error = child.communicate(timeout=60)
    assert child.returncode == -2
    assert error.count(b"KeyboardInterrupt") == 1
    assert told.wait(10)


def test_a_program_that_forgets_to_close_ends(mesh: StandIn) -> None:
    code = f"from ifmesh import Client\nc = Client({mesh.url!r})\nprint(c.submit('a fox', seed=8).result(20).seed)\nc.submit('a fox')"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")


def test_import_is_light() -> None:
    code = (
        "import sys, ifmesh\nassert 'zmq' not in sys.modules\nassert 'PIL' not in sys.modules\n"
        "from ifmesh import *\nimport ifmesh.demo\nheavy = {'torch', 'numpy', 'PIL'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- images


def test_an_image_is_only_made_of_what_a_guard_publishes() -> None:
    def made(frame: bytes, size: int | None = None) -> Image:
        return Image.published(Finished("a", "", len(frame) if size is None else size, 1, True, ()), frame)

    good = {"picture_stage_one": flat(png(64)), "flagged": flat(b"\1")}
    assert made(bags.encode(good)).flagged
    with pytest.raises(wire.Garbled, match="announced"):
        made(bags.encode(good), 5)
    for bad in (
        {"flagged": flat(b"\0")},
        {"picture_stage_one": flat(png(64))},
        {**good, "embeds": flat(b"1")},
        {**good, "flagged": flat(b"00")},
        {**good, "picture_stage_one": flat(b"GIF89a")},
    ):
        with pytest.raises(wire.Garbled):
            made(bags.encode(bad))
