"""Disks that are full, read-only or failing, under real processes: nothing untrue is told, nobody gives up, and all goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ifmesh import exits
from ifmesh.protocol import Accepted, Fetch, Finished, Refused, Result
from ifmesh.request import Request
from tests.mesh.conftest import Make
from tests.mesh.disk import MeshOnDisk, SmallDisk, missing, small_disk
from tests.mesh.kit import LIMIT, Mesh, Speaker, expected, published

FOX = Request("a fox", 7, last_stage="stage_one")
OnDisk = Callable[..., tuple[MeshOnDisk, SmallDisk]]


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[OnDisk]:
    """A mesh with these settings (dotted keys) on a small disk."""
    if why := missing():
        pytest.skip(why)
    with ExitStack() as stack:

        def make(**settings: str | int | float) -> tuple[MeshOnDisk, SmallDisk]:
            disk = stack.enter_context(small_disk(tmp_path / "disk"))
            keys = {key.replace("__", "."): value for key, value in settings.items()}
            return stack.enter_context(MeshOnDisk(tmp_path / "mesh", disk, keys)), disk

        yield make


def answer(fan: Speaker, job: str, limit: float = LIMIT) -> Accepted | Refused | None:
    """To its Submit."""
    end = time.monotonic() + limit
    while (message := fan.hear(max(0.0, end - time.monotonic()))) is not None:
        if isinstance(message, Accepted | Refused) and message.job == job:
            return message
    return None


def tried(fan: Speaker, name: str, least: float = 0.0) -> tuple[list[str], list[str], Refused]:
    """Jobs, submitted until one is refused, for so many seconds at least: those that were accepted, those of which nothing is told
    because their commit waits, and the refusal of the last."""
    accepted: list[str] = []
    silent: list[str] = []
    end = time.monotonic() + least
    while True:
        job = f"{name}{len(accepted) + len(silent)}"
        fan.submit(job, FOX)
        match answer(fan, job, 0.5):
            case None:
                silent.append(job)
            case Accepted():
                assert not silent, "accepted, although one before it waits"
                accepted.append(job)
            case refused:
                if time.monotonic() >= end:
                    return accepted, silent, refused
                fan.hear(0.05)


def all_finished(fan: Speaker, jobs: list[str]) -> None:
    ended = {m.job: m for m in fan.heard if isinstance(m, Finished)}
    for job in jobs:
        if job not in ended:
            fan.finished(job)
    for job in jobs:
        assert published(fan.result(job)) == expected(FOX)


def lives(one: Mesh, fan: Speaker) -> dict[str, int]:
    return {name: row.pid for name, row in one.ready(fan, *(f"{stage}-0" for stage in ("encoder", "stage_one", "guard"))).items()}


def test_a_full_disk_refuses_new_jobs_and_when_there_is_room_all_goes_on(on_disk: OnDisk) -> None:
    one, disk = on_disk(mesh__reserve_bytes=0)
    coordinator = one.all()["coordinator"]
    with one.speaker() as fan:
        before = lives(one, fan)
        fan.submit("first", FOX)
        fan.finished("first")
        disk.fill()
        accepted, silent, refused = tried(fan, "full", least=7.0)  # longer than any worker is believed without a word
        assert refused.reason == "busy"
        assert refused.detail.startswith("the disk does not take the journal (")
        assert refused.retry_after > 0
        assert "/" not in refused.detail, "no path is told"
        disk.free()
        all_finished(fan, accepted + silent)
        fan.submit(refused.job, FOX)
        all_finished(fan, ["first", refused.job])
        assert lives(one, fan) == before
    log = coordinator.log.read_text()
    assert "the disk does not take the journal" in log
    assert "the disk takes the journal again" in log
    assert "silent for" not in log


def test_a_result_that_cannot_be_written_is_asked_for_again(on_disk: OnDisk) -> None:
    one, disk = on_disk(mesh__reserve_bytes=0)
    coordinator = one.all(("encoder", "stage_one", "guard"))["coordinator"]
    with one.speaker() as fan:
        disk.read_only("results")
        fan.submit("a", FOX)
        one.wait_for(lambda: coordinator.log.read_text().count("Read-only file system") == 2, coordinator)
        assert [row.job for row in fan.books().jobs] == ["a"]
        disk.writable("results")
        fan.finished("a")
        all_finished(fan, ["a"])


def test_with_little_room_nothing_new_is_taken_and_what_is_under_way_goes_on(on_disk: OnDisk) -> None:
    one, disk = on_disk(mesh__reserve_bytes=16 << 20)
    one.coordinator()
    with one.speaker() as fan:
        fan.submit("under-way", FOX)
        fan.until(Accepted)
        disk.fill(leave=8 << 20)
        _, silent, refused = tried(fan, "new", least=1.5)
        assert not silent
        assert refused.detail.endswith("MiB free, and mesh.reserve_bytes keeps that")
        fan.submit("under-way", FOX)
        fan.until(Accepted, lambda m: m.job == "under-way")
        for stage in ("encoder", "stage_one", "guard"):
            one.worker(stage)
        fan.finished("under-way")
        disk.free()
        one.wait_for(lambda: not refused_again(fan, refused.job))
        all_finished(fan, ["under-way", refused.job])


def test_a_coordinator_does_not_start_on_a_full_disk_and_says_why(on_disk: OnDisk) -> None:
    """As a failure, after which its supervisor tries again: not as a configuration that never works."""
    one, disk = on_disk(mesh__reserve_bytes=0)
    first = one.coordinator()
    with one.speaker() as fan:
        fan.submit("a", FOX)
        fan.until(Accepted)
    first.kill()
    first.code()
    disk.fill()
    second = one.start("second", "coordinator")
    assert second.code() == exits.FAILURE
    assert "the journal cannot be opened: database or disk is full" in second.log.read_text()
    disk.free()
    one.coordinator()
    with one.speaker() as fan:
        assert [row.job for row in fan.books().jobs] == ["a"]


def refused_again(fan: Speaker, job: str) -> bool:
    fan.submit(job, FOX)
    return isinstance(answer(fan, job), Refused)


@pytest.mark.parametrize("durability", ["full", "none"])
def test_after_their_time_jobs_and_results_are_gone_and_the_answer_says_why(mesh: Make, durability: str) -> None:
    one = mesh(mesh__keep_results=1.0, mesh__durability=durability)
    coordinator = one.all(("encoder", "stage_one", "guard"))["coordinator"]
    folder = one.state / "results"
    with one.speaker() as fan:
        fan.submit("a", FOX)
        fan.finished("a")
        assert published(fan.result("a")) == expected(FOX)
        assert files(folder) == (1 if durability == "full" else 0)
        one.wait_for(lambda: gone(fan, "a"))
        one.wait_for(lambda: not files(folder))
        fan.submit("a", FOX)  # its id is free again
        fan.finished("a")
        assert published(fan.result("a")) == expected(FOX)
    coordinator.signal(signal.SIGTERM)
    assert coordinator.code() in (0, 75)
    if durability == "none":
        assert not folder.exists()
        assert "jobs and results are gone when this process ends" in coordinator.log.read_text()


def files(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


def gone(fan: Speaker, job: str) -> bool:
    fan.send(Fetch(job))
    while not isinstance(message := fan.hear(1.0), Result | Refused | None):
        pass
    if not isinstance(message, Refused):
        return False  # there; or asked too quickly, and so not answered
    assert message.reason == "unknown"
    assert "mesh.keep_results" in message.detail
    return True
