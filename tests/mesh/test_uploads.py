"""What clients bring: it is asked for, checked, on disk before the job is accepted, and gone when no job needs it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import PIL.Image
import pytest

from ifmesh import Client, MeshBusy, bags
from ifmesh.cascade import DRAWN, PICTURE
from ifmesh.geometry import FILE_BYTES
from ifmesh.protocol import Accepted, Failed, Progress, Refused, Wanted
from ifmesh.request import Request
from ifmesh.stage import Tensor
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, bringing, expected, published, uploaded

FOX = Request("a fox", seed=7)
SMALL = ("encoder", "stage_one", "guard")
SOURCE = Tensor("U8", (70_000,), bytes(range(250)) * 280)
MASK = Tensor("U8", (900,), b"mask file" * 100)
EMBEDS = Tensor("F16", (2, 77, 4096), b"\x01\x3c" * (2 * 77 * 4096))
RNG = Tensor("U8", (5056,), bytes(5056))
TASKS = {
    "vary": bringing(replace(FOX, task="vary"), source=SOURCE),
    "inpaint": bringing(replace(FOX, task="inpaint"), source=SOURCE, mask=MASK),
    "generate from embeddings": bringing(replace(FOX, first_stage="stage_one"), embeds=EMBEDS, rng=RNG),
    "inpaint from all": bringing(replace(FOX, task="inpaint", first_stage="stage_one"), source=SOURCE, mask=MASK, embeds=EMBEDS, rng=RNG),
}


def variation(number: int, last_stage: str = "stage_one") -> tuple[Request, bytes]:
    """Its upload is like no other."""
    return bringing(replace(FOX, task="vary", last_stage=last_stage), source=Tensor("U8", (9,), b"picture%2d" % number))


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (96, 64), colour).save(file, "PNG")
    return file.getvalue()


def on_disk(mesh: Mesh) -> set[str]:
    return {path.name for path in (mesh.state / "uploads").iterdir()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all()
        yield mesh


@pytest.mark.parametrize("task", TASKS)
def test_a_job_runs_on_what_its_client_brought(calm: Mesh, task: str) -> None:
    request, upload = TASKS[task]
    with calm.speaker() as fan:
        fan.bring(task.replace(" ", "-"), request, upload)
        assert f"{request.upload}.safetensors" in on_disk(calm)
        fan.finished(task.replace(" ", "-"))
        assert published(fan.result(task.replace(" ", "-"))) == expected(request, upload=upload)


def test_the_client_brings_what_its_caller_gives(calm: Mesh) -> None:
    source, mask = png((200, 40, 10)), png((255, 255, 255))
    with Client(state=str(calm.state), timeout=LIMIT / 6) as client:
        image = client.inpaint(source, mask, "a fox", seed=7)
    assert image.request is not None
    upload = bags.encode({"source": Tensor("U8", (len(source),), source), "mask": Tensor("U8", (len(mask),), mask)})
    assert image.request.upload == hashlib.sha256(upload).hexdigest()
    want = expected(image.request, upload=upload)
    assert [picture.data for picture in image.stages.values()] == [want[PICTURE[stage].name][2] for stage in DRAWN]


def test_embeddings_are_a_result_of_their_own(calm: Mesh) -> None:
    request = replace(FOX, task="encode", last_stage="encoder")
    with calm.speaker() as fan:
        fan.submit("encode", request)
        assert [run.stage for run in fan.finished("encode").runs] == ["encoder"]
        got = published(fan.result("encode"))
        assert got == expected(request)
        assert got.keys() == {"embeds", "tokens"}


def test_one_upload_is_for_all_who_want_it(calm: Mesh) -> None:
    request, upload = variation(1)
    with calm.speaker() as one, calm.speaker() as two:
        one.submit("first", request)
        one.until(Wanted)
        two.submit("second", replace(request, seed=8))
        two.until(Wanted)
        one.push(uploaded(upload))
        one.until(Accepted)
        two.until(Accepted)
        two.submit("third", replace(request, seed=9))
        two.until(Accepted, lambda m: m.job == "third")
        assert len([m for m in two.heard if isinstance(m, Wanted)]) == 1
        two.finished("third")
        assert published(two.result("third")) == expected(replace(request, seed=9), upload=upload)


def test_what_no_client_brings_is_refused_and_what_is_not_the_upload_is_dropped(calm: Mesh) -> None:
    """The first is its sender's fault, who is told; the second may be a stranger's, under a name that is waited for: the true one is
    still taken.  Nothing of either reaches the disk."""
    strange = {
        "a stranger's tensor": bags.encode({"source": SOURCE, "image64": SOURCE}),
        "nothing": bags.encode({}),
        "no bag": b"no bag at all",
        "too large": bags.encode({"source": Tensor("U8", (FILE_BYTES + 1,), bytes(FILE_BYTES + 1))}),
        "another dtype": bags.encode({"source": Tensor("I8", (9,), b"picture 2")}),
    }
    request, upload = variation(2)
    log = calm.logs / "coordinator.log"
    before = on_disk(calm)
    with calm.speaker() as fan:
        for number, frame in enumerate(strange.values()):
            fan.submit(f"strange-{number}", replace(request, upload=hashlib.sha256(frame).hexdigest()))
            fan.until(Wanted, lambda m, job=f"strange-{number}": m.job == job)  # type: ignore[misc]
        fan.submit("true", request)
        fan.until(Wanted, lambda m: m.job == "true")
        for number, frame in enumerate(strange.values()):
            fan.push(uploaded(frame))
            refused = fan.until(Refused)
            assert (refused.job, refused.reason, refused.field) == (f"strange-{number}", "invalid", "upload")
        fan.push(uploaded(b"false", request.upload))
        calm.wait_for(lambda: "dropped what somebody (upload) sent (1 so far)" in log.read_text())
        fan.push(uploaded(variation(3)[1], request.upload))  # whole, but another
        calm.wait_for(lambda: "dropped what somebody (upload) sent (2 so far)" in log.read_text())
        calm.wait_for(lambda: "an upload whose SHA-256 is not that of the" in log.read_text())
        fan.push(uploaded(variation(4)[1]), uploaded(upload))  # nobody has asked for the first
        fan.until(Accepted)
        assert on_disk(calm) == before | {f"{request.upload}.safetensors"}
        fan.finished("true")
        assert published(fan.result("true")) == expected(request, upload=upload)
        assert {row.state for row in fan.books().services} == {"ready"}
    assert "Traceback" not in log.read_text()


def test_an_upload_that_holds_something_else_is_refused(calm: Mesh) -> None:
    request, upload = bringing(replace(FOX, task="vary"), source=SOURCE, rng=RNG)
    with calm.speaker() as fan:
        fan.submit("else", replace(request, brings=("source",)))
        fan.until(Wanted)
        fan.push(uploaded(upload))
        refused = fan.until(Refused)
        assert (refused.job, refused.reason, refused.field) == ("else", "invalid", "brings")


def test_kill_nine_of_the_coordinator_after_the_upload(mesh: Make) -> None:
    """Once before anything has begun, so that the upload is given out by the next one, from disk; once while the job runs."""
    one = mesh(services__stage_one__options__step_ms=150)
    coordinator = one.coordinator()
    request, upload = variation(5)
    with one.speaker() as fan:
        fan.bring("a", request, upload)
    coordinator.signal(signal.SIGKILL)
    coordinator.code()
    coordinator = one.coordinator()
    assert on_disk(one) == {f"{request.upload}.safetensors"}
    for stage in SMALL:
        one.worker(stage)
    with one.speaker() as fan:
        fan.submit("a", request)
        fan.until(Progress, lambda m: m.stage == "stage_one")
        coordinator.signal(signal.SIGKILL)
        coordinator.code()
    one.coordinator()
    with one.speaker() as fan:
        fan.submit("a", request)
        assert all(run.runs == 1 for run in fan.finished("a").runs)
        assert published(fan.result("a")) == expected(request, upload=upload)
        assert not [m for m in fan.heard if isinstance(m, Wanted)]


def test_kill_nine_of_a_worker_that_had_the_upload(mesh: Make) -> None:
    """It is given out again."""
    one = mesh(services__encoder__options__step_ms=200)
    one.all(SMALL)
    request, upload = variation(7)
    with one.speaker() as fan:
        fan.bring("a", request, upload)
        fan.until(Progress, lambda m: m.stage == "encoder")
        os.kill(one.ready(fan, "encoder-0")["encoder-0"].pid, signal.SIGKILL)
        one.worker("encoder", "encoder-1")
        fan.finished("a")
        assert published(fan.result("a")) == expected(request, upload=upload)


def test_an_upload_that_the_disk_has_lost_fails_its_job(mesh: Make) -> None:
    one = mesh()
    one.coordinator()
    (request, upload), (other, its) = variation(8), variation(9)
    with one.speaker() as fan:
        fan.bring("lost", request, upload)
        fan.bring("unreadable", other, its)
        (one.state / "uploads" / f"{request.upload}.safetensors").unlink()
        path = one.state / "uploads" / f"{other.upload}.safetensors"
        path.unlink()
        path.mkdir()
        for stage in SMALL:
            one.worker(stage)
        endings = [fan.until(Failed) for _ in range(2)]
        assert {m.job: m.cause for m in endings} == {"lost": "error", "unreadable": "error"}
        assert {m.error for m in endings} == {
            "what the client brought is no longer on disk",
            "what the client brought cannot be read: Is a directory",
        }
        again, upload = variation(10)
        fan.bring("after", again, upload)
        fan.finished("after")


def test_what_no_job_needs_is_gone_after_a_restart(mesh: Make) -> None:
    one = mesh()
    processes = one.all(SMALL)
    request, upload = variation(11)
    with one.speaker() as fan:
        fan.bring("a", request, upload)
        fan.finished("a")
    assert on_disk(one) == {f"{request.upload}.safetensors"}
    processes["coordinator"].signal(signal.SIGKILL)
    processes["coordinator"].code()
    one.coordinator()
    one.wait_for(lambda: on_disk(one) == set())
    with one.speaker() as fan:
        again = replace(request, seed=8)
        fan.bring("b", again, upload)  # it is asked for anew
        fan.finished("b")
        assert published(fan.result("b")) == expected(again, upload=upload)


def test_a_disk_that_takes_no_upload_is_told_and_does_better_later(mesh: Make) -> None:
    """Nobody waits for ever, or pushes again and again: the client hears why."""
    one = mesh()
    one.all(SMALL)
    uploads = one.state / "uploads"
    uploads.rename(one.state / "elsewhere")
    uploads.write_text("no folder")
    with Client(state=str(one.state), timeout=LIMIT / 6) as client:
        with pytest.raises(MeshBusy, match="cannot store the upload: Not a directory"):
            client.vary(png((1, 2, 3)), "a fox", size=64)
        uploads.unlink()
        uploads.mkdir()
        assert client.vary(png((1, 2, 3)), "a fox", size=64).stage == "stage_one"
