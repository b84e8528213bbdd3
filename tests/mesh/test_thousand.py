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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ifmesh import Client
from ifmesh.cascade import DRAWN, PNG
from ifmesh.protocol import STAGES, Cancelled, Failed, Finished, Request
from tests.mesh.conftest import Make
from tests.mesh.kit import LIMIT, Mesh, Process, expected

CLIENTS = 4
EACH = 250
IN_FLIGHT = 16
WARM = 300  # endings after which every buffer of every process has been as large as it will be


def request(number: int) -> Request:
    """The clients ask for the same pictures, under ids of their own."""
    return Request(f"picture {number}", seed=1000 + number)


def fingerprint(pngs: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(pngs[stage] for stage in DRAWN)).hexdigest()


def client(name: str, state: str) -> None:
    """What each client process runs: one JSON line for each job; then it stays until its stdin ends, to be measured."""
    with Client(state=state) as mesh, ThreadPoolExecutor(IN_FLIGHT) as threads:

        def one(number: int) -> dict[str, object]:
            job = mesh.ask(request(number), f"{name}-{number}")
            endings = [type(event).__name__ for event in job.events() if isinstance(event, Finished | Failed | Cancelled)]
            image = job.result()
            pictures = fingerprint({stage: picture.png for stage, picture in image.stages.items()})
            return {"job": job.id, "number": number, "endings": endings, "pictures": pictures}

        for told in threads.map(one, range(EACH)):
            os.write(1, json.dumps(told).encode() + b"\n")  # one write: the pipe is shared
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


def sizes(mesh: Mesh) -> dict[str, tuple[float, int]]:
    """Resident MB and open files, of each process of the mesh and of the clients."""
    found = {}
    for process in mesh.processes:
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            name = " ".join(a for a in one.cmdline()[3:6] if a.isascii())[:40]
            found[f"{process.log.stem}: {name} ({one.pid})"] = (one.memory_info().rss / 1e6, one.num_fds())
    return found


def test_a_thousand_jobs_end_once_and_no_process_grows(mesh: Make) -> None:
    one = mesh()
    one.all()
    hear, say = os.pipe()
    clients = [start(one, f"client-{n}", say) for n in range(CLIENTS)]
    os.close(say)
    told: list[dict[str, Any]] = []
    warm: dict[str, tuple[float, int]] = {}
    import time
    t0 = time.perf_counter()
    for line in lines(hear):
        told.append(line)
        if len(told) % 100 == 0:
            print(len(told), time.perf_counter() - t0)
            for k, v in sizes(one).items():
                print("   ", k, v)
        if len(told) == CLIENTS * EACH:
            break
    print(time.perf_counter() - t0)
    for p in one.processes:
        for o in [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]:
            print(p.log.stem, o.pid, o.cpu_times())
    assert 0
