"""Rows 50, 52, 53, 61 and 63 on real processes: the mesh as a whole, under `ifmesh up` or under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ifmesh import Client, MeshBusy
from ifmesh.protocol import Accepted, Failed, Fetch, Finished, Inspect, Refused
from ifmesh.request import Request
from tests.matrix.conftest import Figure
from tests.matrix.gates import Gates
from tests.matrix.plot import BRISK, SMALL, crew, pid, right, small, strike, under_way
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Process, expected, published

FEW = tuple(f"{stage}-0" for stage in SMALL)
ALONE = {"services__stage_two__copies": 0, "services__upscaler__copies": 0}


def up(mesh: Mesh, *names: str) -> Process:
    """`ifmesh up`, with these workers ready."""
    process = mesh.start("up", "up")
    mesh.wait_for((mesh.state / "endpoint.json").exists, process)
    with mesh.speaker() as fan:
        mesh.ready(fan, *names)
    return process


def kept(mesh: Mesh) -> dict[str, tuple[int, int]]:
    """By service: pid of what `up` runs for it, and how often it was started."""
    told = json.loads((mesh.state / "up.json").read_text())
    return {row["service"]: (row["pid"], row["starts"]) for row in told["services"]}


@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_row_50_every_process_is_restarted_under_load(mesh: Make, figure: Figure) -> None:
    """One after the other is told to end, the coordinator last; nobody notices, but for a Submit that is put off."""
    one = mesh(**BRISK, **ALONE, services__stage_one__copies=2, services__stage_one__options__step_ms=10)
    names = (*FEW, "stage_one-1")
    up(one, *names)
    over, busy, seeds = threading.Event(), Counter[str](), iter(range(100_000))

    def ask(client: Client) -> list[int]:
        """One picture after the other, until it is over."""
        done = []
        while not over.is_set():
            seed = next(seeds)
            while True:
                try:
                    client.ask(small(seed=seed), f"job-{seed}").result(LIMIT)
                    break
                except MeshBusy as refused:
                    busy["refused"] += 1
                    over.wait(refused.retry_after)
            done.append(seed)
        return done

    with Client(state=one.state, timeout=LIMIT) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, client) for _ in range(4)]
        began = time.monotonic()
        try:
            with one.speaker() as fan:
                for name in (*names, "coordinator"):
                    before = kept(one)[name]
                    os.kill(before[0], signal.SIGTERM)
                    one.wait_for(lambda name=name, before=before: kept(one)[name][1] > before[1])  # type: ignore[misc]
                    one.ready(fan, *names)
        finally:
            figure("all processes restarted, one after the other", time.monotonic() - began)
            over.set()
        done = [seed for one_of in asking for seed in one_of.result()]
    assert len(done) >= 10
    with one.speaker() as fan:
        for seed in done:
            fan.submit(f"job-{seed}", small(seed=seed))
            assert isinstance(fan.ending(f"job-{seed}"), Finished)
        seed = done[-1]
        assert published(fan.result(f"job-{seed}")) == expected(small(seed=seed))
        assert not [m for m in fan.heard if isinstance(m, Failed)]


@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_row_52_more_jobs_than_there_is_room_for(mesh: Make, figure: Figure) -> None:
    """Two thousand; a thousand are accepted, the rest is told when to come back; all that were accepted end."""
    one = mesh(**BRISK)
    one.coordinator()
    with one.speaker() as fan:
        began = time.monotonic()
        for n in range(2000):
            fan.submit(f"job-{n}", Request("a fox", n, "encode", last_stage="encoder"))
            if n % 50 == 49:  # what is answered is read
                fan.until(Accepted if n < 1000 else Refused, lambda m, n=n: m.job == f"job-{n}")  # type: ignore[misc]
        figure("2,000 jobs submitted, a thousand of them accepted", time.monotonic() - began)
        accepted = {m.job for m in fan.heard if isinstance(m, Accepted)}
        refused = [m for m in fan.heard if isinstance(m, Refused)]
        assert accepted == {f"job-{n}" for n in range(1000)}
        assert {m.job for m in refused} == {f"job-{n}" for n in range(1000, 2000)}
        assert all(m.reason == "busy" and m.retry_after > 0 for m in refused)
        for stage in ("encoder", "guard"):
            one.worker(stage)
        while accepted:
            accepted.remove(fan.until(Finished).job)
        figure("2,000 jobs submitted -> a thousand have ended", time.monotonic() - began)


@pytest.mark.matrix
def test_row_53_a_client_that_does_not_read(mesh: Make, figure: Figure) -> None:
    """It asks for a thousand pictures and for the books ten thousand times, and reads nothing: nobody else notices, nor does the memory."""
    one = mesh(**BRISK)
    processes = crew(one, *(f"{stage}-0" for stage in ("encoder", "stage_one", "stage_two", "upscaler", "guard")))
    request = Request("a fox", 7)
    with one.speaker() as fan, one.speaker() as silent:
        right(fan, "a", request)
        coordinator = psutil.Process(processes["coordinator"].pid)
        before = coordinator.memory_info().rss
        for n in range(11_000):
            silent.send(Fetch("a") if n % 11 == 0 else Inspect())
        began = time.monotonic()
        fan.submit("b", request)
        fan.finished("b")
        assert published(fan.result("b")) == expected(request)
        figure("beside a client that does not read: a whole picture", time.monotonic() - began)
        grown = coordinator.memory_info().rss - before
        assert grown < 100e6, f"{grown / 1e6:.0f} MB"


@pytest.mark.matrix
def test_row_61_the_supervisor_is_killed(mesh: Make, gates: Gates, figure: Figure) -> None:
    """`ifmesh up` itself, in the middle of a step: nothing of the mesh stays behind."""
    one = mesh(**BRISK, **ALONE, **gates.settings("stage_one"))
    process = up(one, *FEW)
    with one.speaker() as fan:
        fan.submit("a", small("gate=stage_one:never"))
        under_way(fan, "stage_one")
        assert psutil.pid_exists(pid(fan, "stage_one-0"))
    process.remember()
    assert len(process.family) == 1 + 2 * len(FEW)
    began = strike(process.pid)
    process.code()
    one.wait_for(process.buried)
    figure("`ifmesh up` killed -> nothing of it lives", time.monotonic() - began)


def test_row_63_all_workers_of_a_stage_are_dead(mesh: Make, figure: Figure) -> None:
    """It answers, and says which stage is missing; and that it is ready again.  (/healthz and /readyz are the gateway's.)"""
    one = mesh(**BRISK)
    processes = crew(one, *FEW)

    def ps(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ifmesh", "ps", *flags, "--state", str(one.state)]
        return subprocess.run(command, env=one.environ, capture_output=True, text=True, timeout=LIMIT, check=False)

    with one.speaker() as fan:
        fan.when(lambda books: set(books.missing) == {"stage_two", "upscaler"})
        began = strike(pid(fan, "stage_one-0"))
        fan.when(lambda books: "stage_one" in books.missing)
        figure("the last worker of a stage killed -> the books name the stage", time.monotonic() - began)
        assert processes["stage_one-0"].code() != 0
        alive, ready = ps("--json"), ps("--ready")
        assert alive.returncode == 0
        assert "stage_one" in json.loads(alive.stdout)["missing"]
        assert ready.returncode == 4
        assert "no ready worker for stage_one" in ready.stderr
        one.worker("stage_one")
        fan.when(lambda books: "stage_one" not in books.missing)
        right(fan, "a", small())
