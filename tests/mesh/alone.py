"""What the coordinator alone carries: `python -m tests.mesh.alone` prints it.

A real coordinator; one other process is all the clients and workers there are, over real sockets, and does at once what it is told, with
tensors of some bytes.  Bags between workers stay within it: the coordinator never sees those.  It speaks plain msgpack, without the checks
of our own sides, so that it takes as little as it can of the processors that both share.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgpack  # type: ignore[import-untyped]
import psutil
import zmq

from ifmesh import bags, sockets, typed
from ifmesh.bench import stages
from ifmesh.bench.floor import REQUEST
from ifmesh.protocol import VERSION, Endpoint, Header, Hello, Token
from ifmesh.request import STAGES
from ifmesh.wire import HEADER
from tests.mesh.kit import LIMIT, Mesh, Process

FRAME = bags.encode(stages.bag("guard", REQUEST, tiny=True))
DIGEST = bags.digest(FRAME)
DONE = {"digest": DIGEST, "size": len(FRAME), "steps": 1, "seconds": 0.001}
ASKED = typed.plain(REQUEST)


def say(socket: sockets.Socket, kind: str, **fields: object) -> None:
    frame = msgpack.packb({"v": VERSION, "is": kind, **fields})
    try:
        socket.send(frame)
    except zmq.Again:  # the coordinator is behind
        assert socket.poll(int(LIMIT * 1000), zmq.POLLOUT)
        socket.send(frame)


@dataclass(slots=True)
class Hand:
    """A worker.  here: grants whose bag has come, of all workers; runs: what it was told to run; kept: what it holds for others."""

    stage: str
    life: str
    socket: sockets.Socket
    here: set[tuple[str, Token]]
    runs: dict[str, Token] = field(default_factory=dict)
    kept: dict[str, Token] = field(default_factory=dict)
    beats: int = 0

    def beat(self) -> None:
        self.beats += 1
        held: list[dict[str, object]] = [{"job": job, "token": token, "state": "waiting"} for job, token in self.runs.items()]
        held += [{"job": job, "token": token, "state": "done", **DONE} for job, token in self.kept.items()]
        say(self.socket, "Beat", life=self.life, number=self.beats, state="ready", held=held)

    def work(self, job: str) -> None:
        """If it was told to, and the bag has come."""
        token = self.runs.get(job)
        if token is None or (job, token) not in self.here:
            return
        del self.runs[job]
        self.here.discard((job, token))
        self.kept[job] = token
        grant = {"life": self.life, "job": job, "token": token}
        say(self.socket, "Received", **grant)
        say(self.socket, "Step", **grant, step=0, steps=0)
        say(self.socket, "Done", **grant, **DONE)


class Swarm:
    """All workers, and one client."""

    def __init__(self, ctx: sockets.Context, url: str, inlet: sockets.Socket, at: Endpoint, copies: int, stack: ExitStack) -> None:
        self._inlet, self._poller = inlet, zmq.Poller()
        self._poller.register(inlet, zmq.POLLIN)
        self.client = sockets.control_client(ctx, url, b"client")
        stack.callback(self.client.close, 0)
        self._poller.register(self.client, zmq.POLLIN)
        self._hands: dict[object, Hand] = {}
        self._here: set[tuple[str, Token]] = set()
        for stage in STAGES:
            for number in range(copies):
                life = f"{stage}-{number}.1"
                hand = Hand(stage, life, sockets.control_client(ctx, url, life.encode()), self._here)
                stack.callback(hand.socket.close, 0)
                self._poller.register(hand.socket, zmq.POLLIN)
                self._hands[hand.socket] = hand
                assert hand.socket.poll(int(LIMIT * 1000), zmq.POLLOUT)
                hello = Hello(stage, life, f"{stage}-{number}", os.getpid(), "", "cpu", (at,), 2, "still/1")
                say(hand.socket, "Hello", **typed.plain(hello))
                hand.beat()
        self._by_life = {hand.life: hand for hand in self._hands.values()}
        self._out: sockets.Socket | None = None
        self._ctx, self._stack = ctx, stack
        self._beat_at = time.monotonic() + 1.0
        self.began: dict[str, float] = {}
        self.took: list[float] = []
        self.messages = 0

    def submit(self, number: int) -> None:
        job = f"alone-{number}"
        self.began[job] = time.monotonic()
        say(self.client, "Submit", job=job, request=ASKED)

    def turn(self) -> None:
        ready = dict(self._poller.poll(1000))
        assert ready, "the mesh stands still"
        for socket in ready:
            if socket is self._inlet:
                for m in self._all(self._inlet):
                    self._here.add((m["job"], tuple(m["token"])))
                    for hand in self._hands.values():
                        hand.work(m["job"])
            elif socket is self.client:
                for m in self._all(self.client):
                    self._answered(m)
            else:
                for m in self._all(self._hands[socket].socket):
                    self._told(self._hands[socket], m)
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + 1.0
            for hand in self._hands.values():
                hand.beat()

    # ---- inside

    def _all(self, socket: sockets.Socket) -> Iterator[dict[str, Any]]:
        while True:
            try:
                first, *_ = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.messages += 1
            yield msgpack.unpackb(first)

    def _answered(self, m: dict[str, Any]) -> None:
        if m["is"] == "Finished":
            say(self.client, "Fetch", job=m["job"])
        elif m["is"] == "Result":
            self.took.append(time.monotonic() - self.began.pop(m["job"]))
        else:
            assert m["is"] in ("Accepted", "Queued", "Started", "Progress"), m

    def _told(self, hand: Hand, m: dict[str, Any]) -> None:
        match m["is"]:
            case "Run":  # again, if a Beat crossed the first
                job, token = m["job"], tuple(m["token"])
                if hand.kept.get(job) != token:
                    hand.runs[job] = token
                    hand.work(job)
            case "Push" if m["kind"] == "bag":
                self._here.add((m["job"], tuple(m["token"])))
                self._by_life[m["life"]].work(m["job"])
            case "Push":
                out = self._outlet(tuple(Endpoint(**end) for end in m["to"]))
                assert out.poll(int(LIMIT * 1000), zmq.POLLOUT)
                out.send_multipart([HEADER.encode(Header("result", m["job"], hand.stage, tuple(m["token"]), DIGEST)), FRAME])
            case "Release":
                hand.kept.pop(m["job"], None)
            case "Verdicts":
                for job, _ in m["drop"]:
                    hand.runs.pop(job, None)
                for job, _ in m["release"]:
                    hand.kept.pop(job, None)
            case other:
                raise AssertionError(f"{hand.life} was told {other}")

    def _outlet(self, to: tuple[Endpoint, ...]) -> sockets.Socket:
        if self._out is None:
            self._out = sockets.outlet(self._ctx, sockets.choose(to, sockets.host_id()).url)
            self._stack.callback(self._out.close, 0)
        return self._out


@contextmanager
def alone(folder: Path, durability: str, keep: float, copies: int) -> Iterator[tuple[Process, Swarm]]:
    settings: dict[str, str | int | float] = {
        "mesh.curve": "false",
        "mesh.durability": durability,
        "mesh.keep_results": keep,
        "mesh.max_jobs": 5000,
    }
    with Mesh(folder, settings) as mesh, ExitStack() as stack:
        coordinator = mesh.coordinator()
        ctx = sockets.context()
        stack.callback(ctx.term)
        inlet, (url,) = sockets.inlet(ctx, [sockets.at("127.0.0.1")])
        stack.callback(inlet.close, 0)
        yield coordinator, Swarm(ctx, mesh.config.control(), inlet, Endpoint("", url), copies, stack)


def measure(coordinator: Process, swarm: Swarm, jobs: int, in_flight: int) -> dict[str, object]:
    """In a closed loop.  The first tenth is not measured."""
    its, asked, rss = psutil.Process(coordinator.pid), 0, list[int]()
    began, first, cpu = 0.0, 0, 0.0
    while len(swarm.took) < jobs:
        while asked < jobs and len(swarm.began) < in_flight:
            swarm.submit(asked)
            asked += 1
        swarm.turn()
        if not began and len(swarm.took) >= jobs // 10:
            began, first, used = time.monotonic(), len(swarm.took), its.cpu_times()
            cpu = used.user + used.system
        if len(swarm.took) >= len(rss) * jobs // 20:
            rss.append(its.memory_info().rss)
            print(f"{len(swarm.took)} of {jobs} jobs, {rss[-1] / 1e6:.1f} MB", file=sys.stderr)
    seconds, done, used = time.monotonic() - began, jobs - first, its.cpu_times()
    third = len(rss) // 3
    return {
        "jobs": jobs,
        "in_flight": in_flight,
        "jobs_per_s": round(done / seconds, 1),
        "coordinator_ms_of_cpu_per_job": round(1000 * (used.user + used.system - cpu) / done, 3),
        "latency_p50_ms": round(1000 * sorted(swarm.took)[len(swarm.took) // 2], 1),
        "messages_from_it_per_job": round(swarm.messages / jobs, 1),
        "rss_mb": [round(size / 1e6, 1) for size in rss],
        "rss_growth": round(sum(rss[-third:]) / max(1, sum(rss[third : 2 * third])) - 1, 4),
    }


@click.command()
@click.option("--jobs", default=20_000, show_default=True)
@click.option("--in-flight", default=64, show_default=True)
@click.option("--copies", default=4, show_default=True, help="Workers of each stage.")
@click.option("--durability", default="none", show_default=True)
@click.option("--keep", default=5.0, show_default=True, help="mesh.keep_results: seconds.")
def main(jobs: int, in_flight: int, copies: int, durability: str, keep: float) -> None:
    """Prints one JSON object.  rss_growth: the last third over the middle one, minus one."""
    with tempfile.TemporaryDirectory() as folder, alone(Path(folder), durability, keep, copies) as (coordinator, swarm):
        print(json.dumps({"durability": durability, "copies": copies, **measure(coordinator, swarm, jobs, in_flight)}, indent=2))


if __name__ == "__main__":
    main()
