"""A thousand jobs, 64 in flight, from four client processes: each ends once, with its own pictures, and no process grows by it."""

from __future__ import annotations

import hashlib
import json
import os
import select
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from ifmesh import Client
from ifmesh.cascade import DRAWN, PICTURE
from ifmesh.protocol import Cancelled, Failed, Finished
from ifmesh.request import STAGES, Request
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Process, expected

CLIENTS, EACH, IN_FLIGHT = 4, 250, 16
WARM = 75  # of each client: after so many every buffer of every process has been as large as it gets
GROWTH = 15e6  # bytes; the coordinator remembers its last 1,000 endings, about 6 kB each
REST = 50e6  # bytes: no process is larger once all is quiet, not even with Python's own 25e6; the upscaler's 64 bags are 200e6
FILES, THREADS = 10, 3  # pyzmq opens seven files and starts three threads at once, when the first frame of more than 64 KiB leaves


def request(number: int) -> Request:
    """All clients ask for the same pictures, under ids of their own."""
    return Request(f"picture {number}", seed=1000 + number)


def fingerprint(pngs: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(pngs[stage] for stage in DRAWN)).hexdigest()


def client(name: str, state: str) -> None:
    """What each client process runs: one JSON line for each job.  It waits for a line after the warm-up, and stays until its stdin
    ends, to be measured."""
    with Client(state=state) as mesh, ThreadPoolExecutor(IN_FLIGHT) as threads:

        def one(number: int) -> None:
            job = mesh.ask(request(number), f"{name}-{number}")
            endings = [type(event).__name__ for event in job.events() if isinstance(event, Finished | Failed | Cancelled)]
            pictures = fingerprint({stage: picture.data for stage, picture in job.result().stages.items()})
            told = {"job": job.id, "number": number, "endings": endings, "pictures": pictures}
            os.write(1, json.dumps(told).encode() + b"\n")  # one write, because the pipe is shared

        list(threads.map(one, range(WARM)))
        sys.stdin.readline()
        list(threads.map(one, range(WARM, EACH)))
        sys.stdin.read()


def start(mesh: Mesh, name: str, out: int) -> Process:
    source = f"from tests.mesh.test_thousand import client; client({name!r}, {str(mesh.state)!r})"
    with open(mesh.logs / f"{name}.log", "wb") as log:
        popen = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=out, stderr=log, env=mesh.environ)
    mesh.processes.append(Process(popen, mesh.logs / f"{name}.log"))
    return mesh.processes[-1]


def lines(hear: int) -> Iterator[dict[str, Any]]:
    """What the clients write, line by line, until all have closed their end."""
    rest = b""
    while True:
        assert select.select([hear], [], [], LIMIT)[0], "the clients are silent"
        if not (some := os.read(hear, 1 << 16)):
            return
        *whole, rest = (rest + some).split(b"\n")
        yield from (json.loads(line) for line in whole)


@dataclass(frozen=True, slots=True)
class Size:
    """Of one process.  resident: bytes."""

    resident: int
    files: int
    threads: int


def sizes(mesh: Mesh) -> dict[str, Size]:
    """Of each process: the mesh, the parents of its workers, the clients."""
    found = {}
    for process in mesh.processes:
        for depth, one in enumerate([psutil.Process(process.pid), *process.family]):
            size = Size(one.memory_info().rss, one.num_fds(), one.num_threads())
            found[f"{process.log.stem}{' child' * depth} {one.pid}"] = size
    return found


def settled(mesh: Mesh, limit: Callable[[str], float]) -> dict[str, Size]:
    """Once no process is larger than its limit: a worker without work gives its memory back within a second or two."""
    last: dict[str, Size] = {}

    def quiet() -> bool:
        last.update(sizes(mesh))
        return all(size.resident <= limit(name) for name, size in last.items())

    try:
        mesh.wait_for(quiet)
    except AssertionError:
        raise AssertionError({name: (size, limit(name)) for name, size in last.items() if size.resident > limit(name)}) from None
    return last


def overlap(mesh: Mesh) -> int:
    """The most jobs that were under way at once, by the journal."""
    with closing(sqlite3.connect(f"file:{mesh.state / 'journal.db'}?mode=ro", uri=True)) as journal:
        began = [(wall, 1) for (wall,) in journal.execute("SELECT wall FROM requests")]
        ended = [(wall, -1) for (wall,) in journal.execute("SELECT wall FROM endings")]
    most = now = 0
    for _, change in sorted(began + ended):
        now += change
        most = max(most, now)
    return most


def count(mesh: Mesh, table: str) -> int:
    with closing(sqlite3.connect(f"file:{mesh.state / 'journal.db'}?mode=ro", uri=True)) as journal:
        found: int = journal.execute(f"SELECT count(DISTINCT job) FROM {table}").fetchone()[0]
    return found


@pytest.mark.timeout(300)
def test_a_thousand_jobs_end_once_and_no_process_grows(mesh: Make) -> None:
    one = mesh()
    one.all()
    hear, say = os.pipe()
    clients = [start(one, f"client-{n}", say) for n in range(CLIENTS)]
    os.close(say)
    told = []
    try:
        for line in lines(hear):
            told.append(line)
            if len(told) == CLIENTS * WARM:
                warm = settled(one, lambda name: REST)
                for each in clients:
                    assert each.popen.stdin
                    each.popen.stdin.write(b"\n")
                    each.popen.stdin.flush()
            if len(told) == CLIENTS * EACH:
                break
        late = settled(one, lambda name: warm[name].resident + GROWTH)
        for each in clients:
            assert each.popen.stdin
            each.popen.stdin.close()
        told += list(lines(hear))
        assert [each.code() for each in clients] == [0] * CLIENTS
    finally:
        os.close(hear)

    assert Counter(line["job"] for line in told) == {f"client-{c}-{n}": 1 for c in range(CLIENTS) for n in range(EACH)}
    assert {tuple(line["endings"]) for line in told} == {("Finished",)}
    assert (count(one, "requests"), count(one, "endings")) == (CLIENTS * EACH, CLIENTS * EACH)
    said = (one.logs / "coordinator.log").read_text().splitlines()
    completed = Counter(line.split()[2] for line in said if " completed: " in line)  # the journal would not show a second time
    assert completed == {line["job"]: 1 for line in told}
    assert overlap(one) == CLIENTS * IN_FLIGHT

    names = {blob.name: stage for stage, blob in PICTURE.items()}
    for number in range(EACH):
        pictures = fingerprint({names[name]: data for name, (_, _, data) in expected(request(number)).items() if name in names})
        assert {line["pictures"] for line in told if line["number"] == number} == {pictures}

    assert warm.keys() == late.keys()
    assert len(warm) == 1 + 2 * len(STAGES) + CLIENTS
    both = {name: (warm[name], late[name]) for name in warm}
    assert not {name: pair for name, pair in both.items() if pair[1].files - pair[0].files > FILES}
    assert not {name: pair for name, pair in both.items() if pair[1].threads - pair[0].threads > THREADS}
