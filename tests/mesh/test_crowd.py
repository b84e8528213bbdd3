"""Fifty clients at once: some steady, some killed, some stopped for a while, some coming back by job id.  Every job's end is delivered,
with its own pictures, and the coordinator is none the larger for it."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import psutil
import pytest

from ifmesh import Client
from ifmesh.cascade import DRAWN, PICTURE
from ifmesh.request import Request
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Process, expected

Kind = Literal["steady", "slow", "killed", "back"]
CROWD: dict[Kind, int] = {"steady": 20, "slow": 15, "killed": 15}  # those killed come back, as new processes
EACH = 2
GROWTH = 4e6  # bytes: a hundred remembered endings are less than one of these; the pictures of the jobs would be 300


def request(number: int) -> Request:
    return Request(f"picture {number % 10}", seed=number % 10)


def fingerprint(pngs: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(pngs)).hexdigest()


def client(kind: Kind, name: str, first: int, state: str) -> None:
    """What each client process runs: one JSON line when its jobs are accepted, and one for each end."""

    def tell(**what: object) -> None:
        os.write(1, json.dumps({"client": name, "kind": kind, **what}).encode() + b"\n")  # one write, because the pipe is shared

    with Client(state=state, timeout=LIMIT / 6) as mesh:
        numbers = range(first, first + EACH)
        jobs = [mesh.job(f"job-{n}") if kind == "back" else mesh.ask(request(n), f"job-{n}") for n in numbers]
        for job in jobs:
            next(job.events(previews=False))
        tell(accepted=True)
        if kind == "killed":
            sys.stdin.read()  # until it is
        for job in mesh.as_completed(jobs):
            tell(job=job.id, pictures=fingerprint([picture.data for picture in job.result().stages.values()]))


def start(mesh: Mesh, kind: Kind, name: str, first: int, out: int) -> Process:
    source = f"from tests.mesh.test_crowd import client; client({kind!r}, {name!r}, {first}, {str(mesh.state)!r})"
    with open(mesh.logs / f"{name}.log", "wb") as log:
        popen = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=out, stderr=log, env=mesh.environ)
    mesh.processes.append(Process(popen, mesh.logs / f"{name}.log"))
    return mesh.processes[-1]


def wave(mesh: Mesh, first: int) -> Iterator[dict[str, Any]]:
    """All the clients at once; what they tell.  Those to be killed are, once their jobs are accepted; the slow ones are stopped then,
    and go on when every other job has ended."""
    hear, say = os.pipe()
    crowd: dict[str, Process] = {}
    begins: dict[str, int] = {}
    for kind, count in CROWD.items():
        for n in range(count):
            name, begins_at = f"{kind}-{first}-{n}", first + len(crowd) * EACH
            crowd[name], begins[name] = start(mesh, kind, name, begins_at, say), begins_at
    waiting = (CROWD["steady"] + CROWD["killed"]) * EACH
    stopped: list[Process] = []
    rest, open_ = b"", sum(CROWD.values()) * EACH
    try:
        while open_:
            assert select.select([hear], [], [], LIMIT)[0], f"the clients are silent, {open_} jobs have not been told"
            *whole, rest = (rest + os.read(hear, 1 << 16)).split(b"\n")
            for line in whole:
                told = json.loads(line)
                name = told["client"]
                if "job" in told:
                    yield told
                    open_ -= 1
                    waiting -= told["kind"] != "slow"
                elif told["kind"] == "killed":
                    crowd[name].signal(signal.SIGKILL)
                    back = name.replace("killed", "back")
                    crowd[back] = start(mesh, "back", back, begins[name], say)
                elif told["kind"] == "slow" and waiting:
                    crowd[name].signal(signal.SIGSTOP)
                    stopped.append(crowd[name])
                if not waiting:
                    while stopped:
                        stopped.pop().signal(signal.SIGCONT)
    finally:
        os.close(say)
        os.close(hear)
    codes = {name: process.code() for name, process in crowd.items()}
    assert codes == {name: -signal.SIGKILL if name.startswith("killed") else 0 for name in crowd}


def size(coordinator: Process) -> int:
    return int(psutil.Process(coordinator.pid).memory_info().rss)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_crowd_of_clients_gets_every_end(mesh: Make) -> None:
    one = mesh()
    coordinator = one.all()["coordinator"]
    crowd = sum(CROWD.values()) * EACH
    told = list(wave(one, 0))
    warm = size(coordinator)
    told += list(wave(one, crowd))
    assert Counter(line["job"] for line in told) == {f"job-{n}": 1 for n in range(2 * crowd)}
    names = {blob.name: stage for stage, blob in PICTURE.items()}
    pictures = defaultdict(set)
    for line in told:
        pictures[int(line["job"].removeprefix("job-")) % 10].add(line["pictures"])
    for number, found in pictures.items():
        pngs = {names[name]: data for name, (_, _, data) in expected(request(number)).items() if name in names}
        assert found == {fingerprint([pngs[stage] for stage in DRAWN])}
    one.wait_for(lambda: size(coordinator) <= warm + GROWTH)
    with one.speaker() as speaker:
        speaker.when(lambda books: not books.jobs or all(row.state == "finished" for row in books.jobs))
