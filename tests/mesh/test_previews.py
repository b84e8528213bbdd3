"""Early pictures: through the guard to those who look, and never waited for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import zmq

from ifmesh import bags
from ifmesh.cascade import FLAGGED, PICTURE
from ifmesh.protocol import Finished, Header, Preview, Progress, Watch
from ifmesh.request import STAGES, Request
from ifmesh.stage import Tensor
from ifmesh.wire import HEADER
from tests.mesh.conftest import Make
from tests.mesh.kit import Speaker, expected, plain, published

FOX = Request("a fox", seed=7)
EARLY = ("stage_one", "stage_two")


def seen(speaker: Speaker) -> dict[str, bytes]:
    """The pictures that came early, by stage: each is whole, and, should it come again, the same."""
    out: dict[str, bytes] = {}
    for told, frame in speaker.previews:
        picture = bytes(bags.decode(frame, (PICTURE[told.stage], FLAGGED))[PICTURE[told.stage].name].data)
        assert out.setdefault(told.stage, picture) == picture
    return out


def test_who_looks_sees_the_pictures_before_the_end(mesh: Make, tmp_path: Path) -> None:
    """The same bytes as in the result.  Who does not look sees none; who comes later sees the one that is there."""
    one = mesh(services__stage_two__options__step_ms=200, services__upscaler__options__step_ms=300, mesh__keep_bags=str(tmp_path / "kept"))
    one.all()
    with one.speaker() as fan, one.speaker() as blind, one.speaker() as late:
        fan.submit("a", FOX, previews=True)
        fan.until(Preview, lambda m: (m.job, m.stage) == ("a", "stage_one"))
        blind.send(Watch("a"))
        late.send(Watch("a", previews=True))
        late.until(Preview, lambda m: (m.job, m.stage) == ("a", "stage_one"))
        for speaker in (fan, late, blind):
            speaker.finished("a")
        pictures = [seen(speaker) for speaker in (fan, late, blind)]
        result = published(fan.result("a"))
        assert result == expected(FOX)
        early = {stage: result[PICTURE[stage].name][2] for stage in EARLY}
        assert pictures == [early, early, {}]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {f"a.{stage}.safetensors" for stage in STAGES}


def test_the_last_picture_does_not_come_early(mesh: Make) -> None:
    one = mesh(services__guard__options__step_ms=100)
    one.all(("encoder", "stage_one", "guard"))
    with one.speaker() as fan:
        fan.submit("a", Request("a fox", 7, last_stage="stage_one"), previews=True)
        fan.finished("a")
        assert fan.previews == []


def test_a_guard_that_dies_of_it_costs_nothing(mesh: Make) -> None:
    one = mesh(services__stage_two__options__step_ms=200, services__guard__options__step_ms=200)
    one.all()
    with one.speaker() as fan:
        guard = one.ready(fan, "guard-0")["guard-0"].pid
        fan.submit("a", FOX, previews=True)
        fan.until(Progress, lambda m: m.stage == "stage_two" and m.step >= 2)  # the guard has begun with the picture of Stage I
        os.kill(guard, signal.SIGKILL)
        one.worker("guard", "guard-1")
        finished = fan.finished("a")
        assert published(fan.result("a")) == expected(FOX)
        assert all(run.runs == 1 for run in finished.runs)
        assert not any("blamed" in line for _, line in fan.books("a").story)


def test_a_job_does_not_wait_for_pictures_of_others(mesh: Make) -> None:
    """A guard has pictures of many jobs to make when the first of them is done: that comes before."""
    one = mesh(services__guard__options__step_ms=100)
    one.all()
    with one.speaker() as fan:
        for number in range(6):
            fan.submit(f"j{number}", Request("a fox", number), previews=True)
        order = [fan.until(Finished).job for _ in range(6)]
        assert sorted(order) == [f"j{number}" for number in range(6)]
        assert published(fan.result("j3")) == expected(Request("a fox", 3))
        for told, frame in fan.previews:
            bags.decode(frame, (PICTURE[told.stage], FLAGGED))
    one.processes[0].signal(signal.SIGTERM)
    assert [process.code() for process in one.processes] == [0] * 6


def test_what_is_no_picture_is_not_shown(mesh: Make) -> None:
    """A guard knows the job and what was granted, and lies: the coordinator looks at what it passes on."""
    one = mesh()
    processes = one.all(("encoder", "stage_one", "guard"))
    small = bags.encode({"image64": Tensor("F16", (3, 8, 8), bytes(3 * 8 * 8 * 2))})
    with one.speaker() as fan:
        fan.submit("a", FOX, previews=True)
        fan.until(Preview, lambda m: m.stage == "stage_one")
        headers = [Header("preview", "a", stage, (1, n), bags.digest(small)) for n in range(9) for stage in (*EARLY, "guard", "nobody")]
        headers += [Header("preview", "nobody's", "stage_one", (1, 1), bags.digest(small))]
        inlet = fan.inlet()
        with one.raw(zmq.PUSH, inlet.url, one.identity("worker-guard"), inlet.key) as push:
            for header in headers:
                push.send_multipart([HEADER.encode(header), small])
            # While it is under way, as it is until there is a Stage II: of one that has ended nothing is looked at.
            one.wait_for(lambda: "dropped what stage_one, for job a, sent (1 so far)" in processes["coordinator"].log.read_text())
        one.worker("stage_two")
        one.worker("upscaler")
        fan.finished("a")
        assert plain(bags.decode(fan.result("a"))) == expected(FOX)
        result = published(fan.payload)
        assert all(picture == result[PICTURE[stage].name][2] for stage, picture in seen(fan).items())
