"""Rows 3, 6 to 9, 11, 16 and 51 on real processes: the coordinator is killed at its worst moments, stopped, and away."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from ifmesh import Client, Image
from ifmesh.protocol import Accepted, Started
from tests.matrix.conftest import Figure
from tests.matrix.gates import Gates
from tests.matrix.plot import BRISK, SMALL, crew, right, small, stopped, strike, told, under_way
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Process

FEW = tuple(f"{stage}-0" for stage in SMALL)


def booked(mesh: Mesh) -> list[str]:
    """The jobs in the journal of a coordinator that is dead."""
    with closing(sqlite3.connect(mesh.state / "journal.db")) as journal:
        return [job for (job,) in journal.execute("SELECT job FROM requests ORDER BY number")]


def ended(mesh: Mesh) -> list[str]:
    with closing(sqlite3.connect(mesh.state / "journal.db")) as journal:
        return [job for (job,) in journal.execute("SELECT job FROM endings ORDER BY number")]


def doomed(mesh: Mesh, moment: str, kind: str) -> Process:
    """A coordinator that will kill itself."""
    return mesh.coordinator(program=("tests.matrix.doomed", moment, kind))


def killed(process: Process) -> None:
    assert process.code() == -signal.SIGKILL


def test_row_06_the_coordinator_is_killed_between_submit_and_commit(mesh: Make, figure: Figure) -> None:
    """Nobody was told of the job, and it is in no journal; the client says it again."""
    killed_around_the_commit(mesh(**BRISK), figure, "before", [])


@pytest.mark.matrix
def test_row_07_the_coordinator_is_killed_between_commit_and_accepted(mesh: Make, figure: Figure) -> None:
    """It is there once, although the client says it again."""
    killed_around_the_commit(mesh(**BRISK), figure, "after", ["a"])


def killed_around_the_commit(one: Mesh, figure: Figure, moment: str, there: list[str]) -> None:
    first = doomed(one, moment, "Book")
    for name in FEW:
        one.worker(name.removesuffix("-0"), name)
    with Client(state=one.state, timeout=LIMIT) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: client.ask(small(), "a").result(LIMIT))
        killed(first)
        assert booked(one) == there
        began = time.monotonic()
        one.coordinator()
        figure(f"coordinator killed {moment} the commit of a job -> bound again", time.monotonic() - began)
        image: Image = asked.result()
        figure(f"coordinator killed {moment} the commit of a job -> its picture", time.monotonic() - began)
    assert {run.stage: run.runs for run in image.timings} == dict.fromkeys(SMALL, 1)
    with one.speaker() as fan:
        right(fan, "a", small())


@pytest.mark.matrix
def test_row_08_the_coordinator_is_killed_between_a_grant_and_its_run(mesh: Make, figure: Figure) -> None:
    one = mesh(**BRISK)
    first = doomed(one, "after", "Run")
    with one.speaker() as fan:
        fan.submit("a", small())
        fan.until(Accepted)
        for name in FEW:
            one.worker(name.removesuffix("-0"), name)
        killed(first)
    began = time.monotonic()
    one.coordinator()
    with one.speaker() as fan:
        fan.submit("a", small())
        fan.until(Started)
        figure("coordinator killed right after a grant -> granted and running", time.monotonic() - began)
        right(fan, "a", small())


def test_row_09_the_coordinator_is_killed_while_eight_tasks_run(mesh: Make, gates: Gates, figure: Figure) -> None:
    """All eight are adopted, and none runs again."""
    pooled = {"services__stage_one__options__slots": 4, "services__stage_one__options__mode": "pooled"}
    one = mesh(**BRISK, **gates.settings("stage_one"), **pooled)
    processes = crew(one, *FEW, "stage_one-1")
    requests = {f"job-{n}": small("gate=stage_one:here", seed=n) for n in range(8)}
    with one.speaker() as fan:
        for job, request in requests.items():
            fan.submit(job, request)
        for job in requests:
            fan.when(told("stage_one: begun"), job)
    processes["coordinator"].signal(signal.SIGKILL)
    killed(processes["coordinator"])
    began = time.monotonic()
    one.coordinator()
    figure("coordinator killed -> bound again", time.monotonic() - began)
    with one.speaker() as fan:
        for job in requests:
            fan.when(told("stage_one: adopted"), job)
        figure("coordinator killed -> all eight running tasks adopted", time.monotonic() - began)
        gates.open("here")
        for job, request in requests.items():
            right(fan, job, request)
        figure("coordinator killed -> eight pictures", time.monotonic() - began)


@pytest.mark.matrix
def test_row_11_the_coordinator_is_killed_between_the_published_commit_and_its_news(mesh: Make, figure: Figure) -> None:
    """The client was not told; it asks, and hears of the end.  The worker is told to let go."""
    one = mesh(**BRISK)
    first = doomed(one, "after", "Close")
    for name in FEW:
        one.worker(name.removesuffix("-0"), name)
    with Client(state=one.state, timeout=LIMIT) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: client.ask(small(), "a").result(LIMIT))
        killed(first)
        assert ended(one) == ["a"]
        assert not asked.done()
        before = sorted(path.name for path in (one.state / "results").iterdir())
        began = time.monotonic()
        one.coordinator()
        image = asked.result()
        figure("coordinator killed before it told of an end -> told", time.monotonic() - began)
    assert {run.runs for run in image.timings} == {1}
    with one.speaker() as fan:
        one.ready(fan, *FEW)
        fan.when(lambda books: all(r.held == 0 for r in books.services))
        right(fan, "a", small())
    assert sorted(path.name for path in (one.state / "results").iterdir()) == before


@pytest.mark.matrix
def test_row_16_the_coordinator_is_stopped(mesh: Make, gates: Gates, figure: Figure) -> None:
    """Until a worker has given up the connection twice, which is longer than the silence that counts as death: nobody is lost by it."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    processes = crew(one, *FEW)
    log = processes["stage_one-0"].log
    with one.speaker() as fan:
        request = small("gate=stage_one:here")
        fan.submit("a", request)
        under_way(fan, "stage_one")
        with stopped(processes["coordinator"].pid):
            one.wait_for(lambda: log.read_text().count("dialling again") >= 2)
        woke = time.monotonic()
        gates.open("here")
        fan.submit("a", request)
        fan.finished("a")
        figure("a stopped coordinator wakes -> the job under way has ended", time.monotonic() - woke)
        right(fan, "a", request)
        story = fan.books("a").story
    assert not [line for _, line in story if "retried" in line]
    assert "is lost" not in processes["coordinator"].log.read_text()


@pytest.mark.matrix
def test_row_51_there_is_no_coordinator_for_long(mesh: Make, gates: Gates, figure: Figure) -> None:
    """What ran is finished meanwhile, and kept; nothing runs again."""
    one = mesh(**BRISK, **gates.settings("stage_one"), mesh__keep_bags=str(gates.folder / "bags"))
    processes = crew(one, *FEW, "stage_one-1")
    requests = {name: small(f"gate=stage_one:{name}") for name in ("first", "second", "third")}
    with one.speaker() as fan:
        for job, request in requests.items():
            fan.submit(job, request)
        for job in ("first", "second"):
            fan.when(told("stage_one: begun"), job)
        fan.when(told("stage_one: assigned"), "third")
    processes["coordinator"].signal(signal.SIGKILL)
    killed(processes["coordinator"])
    for job in requests:
        gates.open(job)
    for job in requests:
        one.wait_for((gates.folder / "bags" / f"{job}.stage_one.safetensors").exists)
    one.wait_for(lambda: processes["stage_one-0"].log.read_text().count("dialling again") >= 3)
    began = time.monotonic()
    one.coordinator()
    with one.speaker() as fan:
        for job, request in requests.items():
            right(fan, job, request)
        figure("a coordinator after a long absence -> what was finished meanwhile is published", time.monotonic() - began)


@pytest.mark.matrix
def test_row_03_a_client_is_killed_after_accepted(mesh: Make, gates: Gates, figure: Figure) -> None:
    """It had its job id from the start; another process comes back with it."""
    one = mesh(**BRISK, **gates.settings("stage_one"))
    crew(one, *FEW)
    request = small("gate=stage_one:here")
    source = f"from tests.matrix.test_process_coordinator import waiting; waiting({str(one.state)!r})"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, env=one.environ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"a runs\n"
        strike(client.pid)
        assert client.wait(LIMIT) == -signal.SIGKILL
    gates.open("here")
    began = time.monotonic()
    with Client(state=one.state, timeout=LIMIT) as again:
        image = again.job("a").result(LIMIT)
    figure("a client killed, another asks for its job -> the picture", time.monotonic() - began)
    assert {run.runs for run in image.timings} == {1}
    with one.speaker() as fan:
        right(fan, "a", request)


def waiting(state: str) -> None:
    """What the client process does until it is killed."""
    with Client(state=state, timeout=LIMIT) as mesh:
        for event in mesh.ask(small("gate=stage_one:here"), "a").events():
            if isinstance(event, Started) and event.stage == "stage_one":
                print("a runs", flush=True)
