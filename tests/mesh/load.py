"""What the coordinator carries: `python -m tests.mesh.load` fills it to its bound, then lets it run, and prints what that took.

First 1,000 jobs of 200 connected clients wait for 32 workers, and what comes beyond is refused; then the jobs of a closed loop pass
through for some minutes, while memory, descriptors and the WAL of the coordinator are watched.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
import zmq

from ifmesh.protocol import Accepted, Cancelled, Failed, Finished, Hi, Refused, ToClient
from ifmesh.request import Request
from tests.mesh.kit import LIMIT, Mesh, Process, Speaker

COPIES = {"encoder": 4, "stage_one": 10, "stage_two": 8, "upscaler": 6, "guard": 4}
BEYOND = 50  # Submits above the bound
AGAIN = 2.0  # seconds; so often a client says that it is there


@dataclass(frozen=True, slots=True)
class Sample:
    """Of the coordinator.  at: seconds since the soak began; rss, wal: bytes; cpu: seconds of CPU so far."""

    at: float
    rss: int
    descriptors: int
    wal: int
    cpu: float


@dataclass(slots=True)
class Crowd:
    """Many clients behind one poller."""

    speakers: list[Speaker]
    endings: dict[str, ToClient] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    refused: dict[str, Refused] = field(default_factory=dict)

    def submit(self, number: int, job: str) -> None:
        self.speakers[number % len(self.speakers)].submit(job, Request(f"picture {number}", seed=number))

    def listen(self, seconds: float) -> None:
        """Take what comes within this time; all of them say now and then that they are there."""
        poller = zmq.Poller()
        by_socket = {speaker.socket: speaker for speaker in self.speakers}
        for socket in by_socket:
            poller.register(socket, zmq.POLLIN)
        end = time.monotonic() + seconds
        greet = time.monotonic() + AGAIN
        while (left := end - time.monotonic()) > 0:
            for socket, _ in poller.poll(int(min(left, AGAIN) * 1000)):
                self._take(by_socket[socket])
            if time.monotonic() >= greet:
                greet = time.monotonic() + AGAIN
                for speaker in self.speakers:
                    speaker.send(Hi())

    def until(self, done: Callable[[], bool], limit: float = LIMIT * 20) -> None:
        end = time.monotonic() + limit
        while not done():
            assert time.monotonic() < end, f"{len(self.accepted)} accepted, {len(self.endings)} ended, {len(self.refused)} refused"
            self.listen(0.2)

    def _take(self, speaker: Speaker) -> None:
        while (message := speaker.hear(0)) is not None:
            speaker.heard.clear()
            match message:
                case Accepted(job):
                    self.accepted.add(job)
                case Refused(job):
                    self.refused[job] = message
                case Finished(job) | Failed(job) | Cancelled(job):
                    self.endings[job] = message


@contextmanager
def crowd(mesh: Mesh, count: int) -> Iterator[Crowd]:
    with ExitStack() as stack:
        yield Crowd([stack.enter_context(mesh.speaker()) for _ in range(count)])


def sample(process: Process, mesh: Mesh, began: float) -> Sample:
    its = psutil.Process(process.pid)
    wal = mesh.state / "journal.db-wal"
    cpu = its.cpu_times()
    size = wal.stat().st_size if wal.exists() else 0
    return Sample(time.monotonic() - began, its.memory_info().rss, its.num_fds(), size, cpu.user + cpu.system)


def fill(mesh: Mesh, coordinator: Process, clients: Crowd, jobs: int, seconds: float) -> dict[str, object]:
    """`jobs` wait, more are refused, and for so many seconds we look at what that costs."""
    for number in range(jobs):
        clients.submit(number, f"fill-{number}")
        clients.listen(0)
    clients.until(lambda: len(clients.accepted) >= jobs)
    for number in range(BEYOND):
        clients.submit(number, f"beyond-{number}")
    clients.until(lambda: len(clients.accepted) + len(clients.refused) >= jobs + BEYOND)
    began = time.monotonic()
    first = sample(coordinator, mesh, began)
    clients.listen(seconds)
    last = sample(coordinator, mesh, began)
    waiting = len(clients.accepted) - len(clients.endings)
    clients.until(lambda: len(clients.endings) >= len(clients.accepted))
    return {
        "jobs": jobs,
        "clients": len(clients.speakers),
        "workers": sum(COPIES.values()),
        "accepted": len(clients.accepted),
        "refused_busy": sum(r.reason == "busy" and r.retry_after > 0 for r in clients.refused.values()),
        "still_waiting_at_the_end_of_the_look": waiting,
        "cpu_of_one_core": round((last.cpu - first.cpu) / (last.at - first.at), 3),
        "rss_mb": round(max(first.rss, last.rss) / 1e6, 1),
        "finished": sum(isinstance(e, Finished) for e in clients.endings.values()),
        "ended_otherwise": sum(not isinstance(e, Finished) for e in clients.endings.values()),
    }


def soak(mesh: Mesh, coordinator: Process, clients: Crowd, minutes: float, in_flight: int, say: bool) -> dict[str, object]:
    """A closed loop.  Growth: the median of the last third over that of the first, minus one."""
    clients.endings.clear()
    clients.accepted.clear()
    began, number, samples = time.monotonic(), 0, list[Sample]()
    while (now := time.monotonic() - began) < 60 * minutes or len(clients.endings) < number:
        while now < 60 * minutes and number - len(clients.endings) < in_flight:
            clients.submit(number, f"soak-{number}")
            number += 1
        clients.listen(0.1)
        if not samples or time.monotonic() - began - samples[-1].at >= min(10.0, 6 * minutes):
            samples.append(sample(coordinator, mesh, began))
            if say:
                one = samples[-1]
                print(f"{one.at:7.0f} s  {number} jobs  rss {one.rss / 1e6:.1f} MB  fds {one.descriptors}  wal {one.wal / 1e6:.2f} MB",
                      file=sys.stderr)  # fmt: skip
    third = max(1, len(samples) // 3)

    def growth(values: list[float]) -> float:
        return round(statistics.median(values[-third:]) / max(1.0, statistics.median(values[:third])) - 1, 4)

    return {
        "minutes": minutes,
        "jobs": number,
        "finished": sum(isinstance(e, Finished) for e in clients.endings.values()),
        "rss_mb_first_last": [round(samples[0].rss / 1e6, 1), round(samples[-1].rss / 1e6, 1)],
        "rss_growth": growth([s.rss for s in samples]),
        "descriptors_first_last": [samples[0].descriptors, samples[-1].descriptors],
        "wal_mb_most": round(max(s.wal for s in samples) / 1e6, 2),
        "wal_mb_last": round(samples[-1].wal / 1e6, 2),
    }


@click.command()
@click.option("--jobs", default=1000, show_default=True, help="Unfinished jobs at once: the mesh's bound.")
@click.option("--clients", default=200, show_default=True, help="Connections.")
@click.option("--look", default=60.0, show_default=True, help="Seconds of the full mesh.")
@click.option("--minutes", default=30.0, show_default=True, help="Of the closed loop; 0 for none.")
@click.option("--in-flight", default=8, show_default=True, help="Jobs at once in the closed loop.")
@click.option("--step-ms", default=400, show_default=True, help="Of each of the five steps of each stage, while the mesh is full.")
def main(jobs: int, clients: int, look: float, minutes: float, in_flight: int, step_ms: int) -> None:
    """Prints one JSON object."""
    told: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        if jobs:
            slow = {f"services.{stage}.options.step_ms": step_ms for stage in COPIES}
            with Mesh(Path(folder) / "full", {"mesh.max_jobs": jobs, **slow}) as mesh:
                coordinator = mesh.coordinator()
                names = [f"{stage}-{n}" for stage, copies in COPIES.items() for n in range(copies)]
                for name in names:
                    mesh.worker(name.rpartition("-")[0], name)
                with crowd(mesh, clients) as full:
                    mesh.ready(full.speakers[0], *names)
                    told["full"] = fill(mesh, coordinator, full, jobs, look)
        if minutes:
            with Mesh(Path(folder) / "soak") as mesh:
                coordinator = mesh.all()["coordinator"]
                with crowd(mesh, 8) as few:
                    told["soak"] = soak(mesh, coordinator, few, minutes, in_flight, say=True)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
