"""What happens to hosts in mid-run: whatever it is, every job ends with the bytes of an undisturbed run, and the host is taken in again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ifmesh import Client
from tests.hosts.far import Asked, Far, ask, far_pids, why_no_ssh
from tests.hosts.kit import Hosts, Process, last, until
from tests.hosts.mesh import story, when

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(400)]

Start = Callable[[dict[str, dict[str, int]]], Far]
THREE = {"two": {"stage_one": 2}, "three": {"stage_two": 1, "upscaler": 1, "guard": 1}}
FOUR = {**THREE, "four": {"stage_one": 1}}
JOBS = 9


@pytest.fixture
def start(hosts: Hosts) -> Start:
    """A mesh with these stages on these hosts, whose stages take 20 ms for a step."""
    if why := why_no_ssh():
        pytest.skip(why)

    def make(places: dict[str, dict[str, int]]) -> Far:
        far = Far(hosts, places, step_ms=20)
        far.open()
        return far

    return make


def begun(client: Client, stage: str) -> None:
    """Wait until some job is in this stage."""
    when(client, lambda books: any((row.stage, row.state) == (stage, "running") for row in books.jobs))


def connections(up: Process, host: str) -> int:
    """How often this host was reached."""
    return sum(line.startswith(f"{host} ") and "connected to" in line for line in up.log.read_text().splitlines())


def check(client: Client, asked: list[Asked]) -> None:
    for one in asked:
        one.check()
        told = story(client, one.job.id)
        print(one.job.id, told)
        assert sum(": completed: " in line for line in told) == 1, told
    assert client.status().jobs == ()


def test_up_says_which_host_cannot_run_and_why(start: Start) -> None:
    far = start({"two": {"stage_one": 1}})
    far.extra["two"] = {"key": "/run/mine/gone"}
    far.configure()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        far.here("up", "--detach", "--wait")
    assert caught.value.returncode == 3
    assert "two cannot run: ifmesh: hosts.two.key: '/run/mine/gone': no such file" in caught.value.stderr
    far.here("down", "--now")


def test_a_link_that_is_down_for_five_seconds(start: Start) -> None:
    far = start(THREE)
    up = far.start()
    with far.client("one") as client:
        far.works(client)
        asked = ask(client, "link", JOBS)
        begun(client, "stage_one")
        far.hosts.isolate("two")
        last(5.0)
        far.hosts.heal()
        check(client, asked)
        far.works(client)
    assert connections(up, "two") == connections(up, "three") == 1


def test_a_host_that_is_gone_for_good(start: Start) -> None:
    far = start(FOUR)
    far.start()
    with far.client("one") as client:
        far.works(client)
        asked = ask(client, "gone", JOBS)
        begun(client, "stage_one")
        far.hosts.remove("two")
        check(client, asked)

    def states() -> dict[str, str]:
        return {row["service"]: row["state"] for row in json.loads(far.here("ps", "--json"))["services"]}

    until(lambda: states().get("two") == "down", "`ifmesh ps` does not show it as down")
    assert states()["four"] == "up"


def test_an_sshd_that_is_restarted_and_its_sessions_killed(start: Start) -> None:
    far = start(THREE)
    up = far.start()
    with far.client("one") as client:
        far.works(client)
        asked = ask(client, "sshd", JOBS)
        begun(client, "stage_two")
        for process in far.sshds["three"].family():
            with suppress(psutil.NoSuchProcess):  # one may end with another
                if process.name() == "sshd":
                    process.kill()
        far.sshd("three")
        check(client, asked)
        until(lambda: connections(up, "three") == 2, "it is not reached again")
        far.works(client)


def test_a_host_that_disappears_and_comes_back(start: Start, tmp_path: Path) -> None:
    far = start(THREE)
    up = far.start()
    with far.client("one") as client:
        far.works(client)
        asked = ask(client, "back", JOBS)
        begun(client, "stage_two")
        shutil.copytree(far.hosts["three"].files / "run/ssh", tmp_path / "ssh")
        address = far.hosts["three"].address
        far.hosts.remove("three")
        far.hosts.add("three")
        assert far.hosts["three"].address == address
        shutil.copytree(tmp_path / "ssh", far.hosts["three"].files / "run/ssh")
        far.sshd("three")
        check(client, asked)
        far.works(client)
    assert connections(up, "three") == 2


def test_a_host_that_was_cut_off_for_long_is_taken_over(start: Start) -> None:
    """Its workers went on without a connection; a new one ends them, and starts others."""
    far = start(THREE)
    up = far.start()
    with far.client("one") as client:
        far.works(client)
        asked = ask(client, "long", JOBS)
        begun(client, "stage_one")
        before = far_pids(far.hosts["two"], "ifmesh worker")
        assert len(before) == 4  # two workers, and the parent of each
        far.hosts.isolate("two")
        until(lambda: "hosts.two: the connection to" in up.log.read_text(), "the connection is never given up", 120.0)
        far.hosts.heal()
        check(client, asked)
        until(lambda: "an older `ifmesh up`" in up.log.read_text(), "nobody takes over")
        far.works(client)
    assert not set(before) & set(far_pids(far.hosts["two"], "ifmesh worker"))
