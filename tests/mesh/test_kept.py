"""Best of N, as the mesh sees it: what the next stage needs is kept beside a result, and another job goes on with it."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from ifmesh import bags
from ifmesh.bell import Bell
from ifmesh.cascade import BROUGHT, kept
from ifmesh.journal import Journal
from ifmesh.log import Garbage
from ifmesh.protocol import Accepted, Cancel, Cancelled, Finished, Wanted
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.writer import Landed, Stored, Unstored, Writer
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh, Process, Speaker, bringing, expected, published, uploaded
from tests.mesh.test_uploads import SOURCE, on_disk

SKETCH = Request("a fox", seed=7, last_stage="stage_one", keep=600.0)
SMALL = ("encoder", "stage_one", "guard")


def brings(request: Request) -> tuple[str, ...]:
    """What a job that goes on from this one brings."""
    names = {blob.name for blob in kept(request)}
    return tuple(name for name in BROUGHT if name in names)


def onwards(sketch: Request, digest: str) -> Request:
    """From there to the end."""
    return replace(sketch, first_stage="stage_two", last_stage="upscaler", keep=0.0, brings=brings(sketch), upload=digest)


def straight(sketch: Request, upload: bytes = b"") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The later pictures of the same, drawn without a stop."""
    whole = expected(replace(sketch, last_stage="upscaler", keep=0.0), upload=upload)
    return {name: whole[name] for name in ("picture_stage_two", "picture_upscaler", "flagged")}


def shown(sketch: Request, upload: bytes = b"") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What a client gets of it: all but what is kept."""
    return {name: blob for name, blob in expected(sketch, upload=upload).items() if name not in brings(sketch)}


def bag(sketch: Request, upload: bytes = b"") -> bytes:
    """What is kept of it."""
    whole = expected(sketch, upload=upload)
    return bags.encode({name: Tensor(*whole[name]) for name in brings(sketch)})


def files(*endings: Finished) -> set[str]:
    return {f"{ending.kept}.safetensors" for ending in endings}


def finished(fan: Speaker, *jobs: str) -> list[Finished]:
    """All of them, in whatever order they end."""
    ended = {ending.job: ending for ending in (fan.until(Finished) for _ in jobs)}
    return [ended[job] for job in jobs]


def went_on(fan: Speaker, job: str, request: Request) -> Finished:
    """Taken without being asked for what it brings, and finished."""
    fan.submit(job, request)
    assert fan.until(Accepted | Wanted, lambda m: m.job == job) == Accepted(job)  # type: ignore[arg-type]
    return fan.finished(job)


def killed_and_started(mesh: Mesh, coordinator: Process) -> Process:
    coordinator.signal(signal.SIGKILL)
    coordinator.code()
    return mesh.coordinator()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with Mesh(tmp_path_factory.mktemp("calm")) as mesh:
        mesh.all()
        yield mesh


def test_eight_are_sketched_and_one_goes_on_though_the_coordinator_dies_between(mesh: Make) -> None:
    """Eight times Stage I, and one time everything behind it; the pictures are those of drawing that one without a stop."""
    one = mesh()
    processes = one.all()
    sketches = [replace(SKETCH, seed=seed) for seed in range(8)]
    with one.speaker() as fan:
        for sketch in sketches:
            fan.submit(f"sketch-{sketch.seed}", sketch)
        endings = finished(fan, *(f"sketch-{sketch.seed}" for sketch in sketches))
        for sketch in sketches:
            assert published(fan.result(f"sketch-{sketch.seed}")) == shown(sketch)
    assert len(files(*endings)) == 8
    killed_and_started(one, processes["coordinator"])
    assert on_disk(one) == files(*endings)
    with one.speaker() as fan:
        best = went_on(fan, "best", onwards(sketches[5], endings[5].kept))
        assert published(fan.result("best")) == straight(sketches[5])
    steps = [(run.stage, run.steps) for ending in (*endings, best) for run in ending.runs]
    assert sorted(step for step in steps if step[0] not in ("encoder", "guard")) == [
        *[("stage_one", 5)] * 8,
        ("stage_two", 5),
        ("upscaler", 5),
    ]
    assert on_disk(one) == files(*endings)


def test_what_is_kept_is_an_upload_like_any_other(calm: Mesh) -> None:
    """Also of a varied picture, whose source goes on with it, and behind Stage II; and without a generator where every stage makes one."""
    varied, source = bringing(replace(SKETCH, task="vary"), source=SOURCE)
    cases = {
        "varied": (varied, source),
        "middle": (replace(SKETCH, last_stage="stage_two"), b""),
        "fresh": (replace(SKETCH, seeding="per_stage"), b""),
    }
    with calm.speaker() as fan:
        for job, (sketch, upload) in cases.items():
            fan.bring(job, sketch, upload) if upload else fan.submit(job, sketch)
            ending = fan.finished(job)
            frame = (calm.state / "uploads" / f"{ending.kept}.safetensors").read_bytes()
            assert frame == bag(sketch, upload)
            assert hashlib.sha256(frame).hexdigest() == ending.kept
            result = fan.result(job)
            assert bags.digest(result) == ending.digest
            assert published(result) == shown(sketch, upload)
            assert len(result) == ending.size
            next_stage = "upscaler" if job == "middle" else "stage_two"
            went_on(fan, f"{job}-on", replace(onwards(sketch, ending.kept), first_stage=next_stage))
            if job != "fresh":  # the toys do not know of it
                assert published(fan.result(f"{job}-on")).items() <= straight(sketch, upload).items()


def test_two_that_keep_the_same_keep_it_once_and_without_keep_the_result_is_the_same(calm: Mesh) -> None:
    before = on_disk(calm)
    with calm.speaker() as fan:
        for number, keep in enumerate((600.0, 500.0, 0.0)):
            fan.submit(f"same-{number}", replace(SKETCH, seed=40, keep=keep))
        first, second, without = finished(fan, "same-0", "same-1", "same-2")
    assert first.kept == second.kept != without.kept == ""
    assert first.digest == second.digest == without.digest
    assert on_disk(calm) - before == files(first)


def test_a_client_brings_what_the_mesh_keeps_already(calm: Mesh) -> None:
    """One upload, whoever made it: the client's own changes nothing in how long it is there."""
    sketch = replace(SKETCH, seed=50)
    frame = bag(sketch)
    with calm.speaker() as fan:
        fan.bring("brought", onwards(sketch, hashlib.sha256(frame).hexdigest()), frame)
        fan.submit("sketched", sketch)
        assert files(finished(fan, "sketched", "brought")[0]) <= on_disk(calm)
        assert published(fan.result("brought")) == straight(sketch)


def test_when_its_time_is_over_it_goes_and_is_asked_for(mesh: Make) -> None:
    """What is kept for longer stays."""
    one = mesh()
    processes = one.all(SMALL)
    short, long = replace(SKETCH, seed=1, keep=0.001), replace(SKETCH, seed=2)
    with one.speaker() as fan:
        fan.submit("short", short)
        fan.submit("long", long)
        endings = finished(fan, "short", "long")
    assert on_disk(one) == files(*endings)
    killed_and_started(one, processes["coordinator"])
    one.wait_for(lambda: on_disk(one) == files(endings[1]))
    with one.speaker() as fan:
        late = onwards(short, endings[0].kept)
        fan.submit("late", late)
        assert fan.until(Wanted).digest == endings[0].kept
        fan.push(uploaded(bag(short)))  # who has it by other ways may bring it
        fan.until(Accepted, lambda m: m.job == "late")


def test_a_disk_that_does_not_take_what_is_kept_has_not_taken_the_result(mesh: Make) -> None:
    """It is asked for again until both are there; a job that is cancelled meanwhile leaves nothing that counts."""
    one = mesh()
    processes = one.all(SMALL)
    uploads = one.state / "uploads"
    uploads.rename(one.state / "elsewhere")
    uploads.write_text("no folder")
    with one.speaker() as fan:
        fan.submit("a", SKETCH)
        fan.submit("b", replace(SKETCH, seed=8))
        one.wait_for(lambda: processes["coordinator"].log.read_text().count("the result cannot be written") >= 2)
        fan.send(Cancel("b"))
        fan.until(Cancelled)
        assert [row.job for row in fan.books().jobs] == ["a"]
        uploads.unlink()
        uploads.mkdir()
        ending = fan.finished("a")
        assert published(fan.result("a")) == shown(SKETCH)
    assert on_disk(one) == files(ending)


# ---- the thread that writes


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[Writer, Bell, Journal]]:
    bell, journal = Bell(), Journal.open(tmp_path)
    made = Writer(journal, bell, Garbage())
    made.start()
    yield made, bell, journal
    made.stop()
    journal.close()
    bell.close()


def landed(write: Writer, bell: Bell) -> list[Landed | Stored | Unstored]:
    out: list[Landed | Stored | Unstored] = []
    while write.busy:
        assert zmq.select([bell], [], [], 20)[0]
        bell.hear()
        out += write.landed()
    return out


def test_what_is_kept_is_told_before_its_result_and_not_discarded_until_then(writer: tuple[Writer, Bell, Journal]) -> None:
    write, bell, journal = writer
    frame = bags.encode({"picture": Tensor("U8", (3,), b"png"), "rng": Tensor("U8", (2,), b"no"), "embeds": Tensor("U8", (1,), b"e")})
    picture, of = bags.only(frame, ["picture"]), bags.only(frame, ["rng", "embeds"])
    digest, told = hashlib.sha256(of).hexdigest(), bags.digest(picture)
    write.result("a", (1, 1), frame, ["rng", "embeds"])
    write.result("b", (1, 2), frame, ["rng", "embeds"])
    write.result("c", (1, 3), frame, ["rng", "embeds"], keep=False)
    zmq.select([bell], [], [], 20)
    Mesh.wait_for(lambda: journal.load("c") is not None)  # the others are on disk, and nobody was told
    assert journal.load("a") == journal.load("b") == journal.load("c") == picture
    write.discard(digest)
    assert journal.load_upload(digest) == of
    kept = Stored(digest, len(of), ("embeds", "rng"))
    assert landed(write, bell) == [
        kept, Landed("a", (1, 1), told, len(picture), digest),
        kept, Landed("b", (1, 2), told, len(picture), digest),
        Landed("c", (1, 3), told, len(picture), digest),
    ]  # fmt: skip
    write.discard(digest)
    assert journal.uploads() == {}


def test_what_cannot_be_kept_is_not_in_the_way_of_the_next_time(writer: tuple[Writer, Bell, Journal]) -> None:
    write, bell, journal = writer
    frame = bags.encode({"picture": Tensor("U8", (3,), b"png"), "rng": Tensor("U8", (2,), b"no")})
    digest = hashlib.sha256(bags.only(frame, ["rng"])).hexdigest()
    path = journal.state / "uploads" / f"{digest}.safetensors"
    path.mkdir()
    write.result("a", (1, 1), frame, ["rng"])
    assert landed(write, bell) == []
    assert not write.storing(digest)
    path.rmdir()
    write.result("a", (1, 1), frame, ["rng"])
    assert [type(done) for done in landed(write, bell)] == [Stored, Landed]
    assert journal.uploads() == {digest: len(bags.only(frame, ["rng"]))}
