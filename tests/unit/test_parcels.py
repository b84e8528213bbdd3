"""Uploads and early pictures, through a real connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psutil
import pytest

from ifmesh import wishes
from ifmesh.client import Client
from ifmesh.connection import Connection
from ifmesh.errors import BadRequest, MeshBusy
from ifmesh.image import Preview
from ifmesh.protocol import Accepted, ClientMessage, Finished, Progress, Refused, Started, Submit, ToClient, Wanted, Watch
from ifmesh.protocol import Preview as Shown
from ifmesh.request import Request
from tests.unit.stand_in import SHOWN, StandIn, finished, on, png, until

SOURCE, MASK = png(64), png(128)


@pytest.fixture
def mesh() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


@pytest.fixture
def client(mesh: StandIn) -> Iterator[Client]:
    with Client(mesh.url) as made:
        yield made


def line(client: Client) -> Connection:
    assert client._asker._line is not None
    return client._asker._line


def settled(client: Client) -> Connection:
    """The connection, after its thread has gone all through what came before the next answer."""
    client.status()
    client.status()
    return line(client)


# ---- uploads


def test_vary_and_inpaint_send_their_files(client: Client, mesh: StandIn) -> None:
    image = client.vary(SOURCE, "a fox", seed=5, strength=0.4)
    assert (image.source, image.mask) == (SOURCE, None)
    assert image.request is not None
    assert (image.request.task, image.request.settings["stage_two"].strength) == ("vary", 0.4)
    image = client.inpaint(SOURCE, MASK, "a hat")
    assert (image.source, image.mask) == (SOURCE, MASK)
    assert list(mesh.pushed.values()) == [1, 1]
    with pytest.raises(BadRequest, match="source: None"):
        client.vary(None, "a fox")
    with pytest.raises(BadRequest, match="mask: None"):
        client.inpaint(SOURCE, None, "a fox")


def test_jobs_that_share_an_upload_push_it_once(client: Client, mesh: StandIn) -> None:
    jobs = [client.submit(f"fox {n}", source=SOURCE, mask=MASK) for n in range(20)]
    assert {job.result(20).source for job in jobs} == {SOURCE}
    assert list(mesh.pushed.values()) == [1]
    assert len(settled(client)._parcels) == 0, "the mesh has it: let go"
    client.submit("again", source=SOURCE, mask=MASK).result(20)
    assert list(mesh.pushed.values()) == [1], "not wanted, so not sent"


def test_a_frame_is_kept_until_the_mesh_has_taken_the_job(client: Client, mesh: StandIn) -> None:
    mesh.rules.append(on(Submit, Refused("?", "busy", "full", 1.0), times=1))
    job = client.submit("a fox", source=SOURCE)
    with pytest.raises(MeshBusy):
        job.result(20)
    assert len(settled(client)._parcels) == 0
    silent = on(Submit)
    mesh.rules.append(silent)
    client.submit("a fox", source=SOURCE)
    assert len(settled(client)._parcels) == 1


def test_a_submit_whose_job_object_is_dropped_brings_its_upload_through(client: Client, mesh: StandIn) -> None:
    job = client.submit("a fox", source=SOURCE).id
    assert client.job(job).result(20).job == job
    assert len(settled(client)._parcels) == 0


def test_another_coordinator_gets_the_upload_again() -> None:
    first = StandIn(on(Submit, Wanted("?", wishes.made("a fox", SOURCE, None, {})[1].digest)))
    with Client(first.url, timeout=3.0) as client:
        job = client.submit("a fox", source=SOURCE, seed=6)
        client.status()
        first.close()
        until(lambda: line(client).rebuilt > 0)
        second = StandIn(url=first.url, epoch=2)
        assert job.result(60).seed == 6
        assert list(second.pushed.values()) == [1]
    second.close()


def test_a_large_upload_leaves_nothing_open(mesh: StandIn) -> None:
    from PIL import Image as pillow

    noise = pillow.effect_noise((1024, 1024), 90)  # a megabyte, which does not compress
    process = psutil.Process()

    def use() -> None:
        with Client(mesh.url) as client:
            client.vary(noise, "a fox")
            mesh.uploads.clear()

    use()  # pyzmq starts a thread of its own for large frames, once
    before = threading.active_count(), process.num_fds()
    for _ in range(3):
        use()
    until(lambda: threading.active_count() <= before[0] and process.num_fds() <= before[1])


def test_a_request_made_already_and_its_upload(client: Client, mesh: StandIn) -> None:
    request, brought = wishes.made("a fox", SOURCE, None, {"seed": 4})
    image = client.ask(request, "mine", brought.frame).result(20)
    assert (image.job, image.seed, image.source) == ("mine", 4, SOURCE)
    with pytest.raises(BadRequest, match="SHA-256"):
        client.ask(request, upload=brought.frame[:-1])


def test_embeddings_come_and_go(client: Client, mesh: StandIn) -> None:
    embeds = client.encode("an owl", "blurry")
    assert (embeds.prompt, embeds.negative, embeds.tensor.shape) == ("an owl", "blurry", (2, 77, 8))
    image = client.generate(embeds=embeds, seed=3, size=64)
    assert image.request is not None
    assert (image.request.prompt, image.request.first_stage, image.request.brings) == ("an owl", "stage_one", ("embeds",))


def test_each_kind_of_job_says_how_to_ask_for_its_result(client: Client) -> None:
    encoding = client.ask(Request("an owl", 0, "encode", last_stage="encoder"))
    assert encoding.embeds(20).prompt == "an owl"
    with Client(client.address) as other:
        for job in (encoding, other.job(encoding.id)):
            with pytest.raises(Exception, match=r"encodes texts.*use embeds\(\)"):
                job.result(20)
        picture = client.submit("a fox")
        picture.result(20)
        for job in (picture, other.job(picture.id)):
            with pytest.raises(Exception, match=r"draws a picture: use result\(\)"):
                job.embeds(20)


# ---- early pictures


def test_events_show_early_pictures_in_their_place(mesh: StandIn) -> None:
    looking = threading.Event()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit):
            mesh.requests[message.job] = message.request
        if isinstance(message, Submit) and not message.previews:
            return [Accepted(message.job), Started(message.job, "stage_one", "w")]
        if isinstance(message, Submit | Watch) and message.previews and not looking.is_set():
            looking.set()
            return [Shown(message.job, "stage_one"), Progress(message.job, "stage_two", 1, 2), Shown(message.job, "stage_two")]
        return None

    mesh.rules.append(rule)
    with Client(mesh.url) as client:
        job = client.submit("a fox", seed=5)
        events = job.events()
        assert next(events) == Started(job.id, "stage_one", "w")
        early = next(events)
        assert isinstance(early, Preview)
        assert (early.job, early.stage, early.size, early.flagged) == (job.id, "stage_one", (64, 64), False)
        assert next(events) == Progress(job.id, "stage_two", 1, 2)
        early = next(events)
        assert isinstance(early, Preview)
        assert early.size == (256, 256)
        client.job(job.id)  # a Watch: it has ended by now
        assert next(events) == finished(job.id, 5)
        assert next(events, None) is None
        kinds = [type(event) for event in job.events()]
        assert kinds == [Started, Preview, Progress, Preview, Finished], "read again, without asking again"
        assert [type(event) for event in job.events(previews=False)] == [Started, Progress, Finished]


def test_who_does_not_look_is_shown_nothing(client: Client, mesh: StandIn) -> None:
    job = client.submit("a fox")
    assert not any(isinstance(event, Preview) for event in job.events(previews=False))
    assert not any(m.previews for m in mesh.heard if isinstance(m, Submit | Watch))


def test_a_spoilt_preview_is_dropped(
    client: Client, mesh: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(SHOWN, "stage_one", b"no frame")
    mesh.rules.append(
        lambda m: (
            [Accepted(m.job), Shown(m.job, "stage_one"), Shown(m.job, "stage_two"), finished(m.job, 1)] if isinstance(m, Submit) else None
        )
    )
    events = list(client.submit("a fox", seed=1).events())
    assert [event.stage for event in events if isinstance(event, Preview)] == ["stage_two"]
    assert "dropped a preview" in caplog.text
