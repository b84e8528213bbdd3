"""What an event costs the broker, of few workers and of many: `python -m tests.broker.scale` prints one JSON object.

Every worker has all that it takes, and more waits.  Processor time, so that a busy machine changes little.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from time import process_time

import click

from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Close, Command, Policy, Send
from ifmesh.protocol import Beat, Done, Endpoint, Held, Hello, Push, Received, Run, Step, Submit, Token
from ifmesh.request import STAGES, Request

INLET = (Endpoint("", "tcp://127.0.0.1:1"),)


class Mill:
    """A broker, and workers that do at once what they are told."""

    def __init__(self, workers: int) -> None:
        self.broker = Broker(IF, 1, INLET, Policy(max_jobs=10**6, max_workers=10**6))
        self.now, self.events, self.ended = 0.0, 0, 0
        self._runs: deque[tuple[bytes, Run]] = deque()
        self._results: deque[tuple[str, Token]] = deque()
        for stage in STAGES:
            for number in range(workers // len(STAGES)):
                life = f"{stage}-{number}.1"
                self._hear(life.encode(), Hello(stage, life, f"{stage}-{number}", 1, "h", "cpu", INLET, 2, "n"))
                self._hear(life.encode(), Beat(life, 1, "ready", ()))

    def submit(self, number: int) -> None:
        self._hear(b"client", Submit(f"j{number}", Request("a fox", number)))

    def turn(self) -> None:
        """One task done, one result on disk; each second everybody beats."""
        if self._results:
            self.events += 1
            self._do(self.broker.landed(self.now, *self._results.popleft(), "e" * 64, 1000))
        if self._runs:
            peer, run = self._runs.popleft()
            life = peer.decode()
            self._hear(peer, Received(life, run.job, run.token))
            self._hear(peer, Step(life, run.job, run.token, 0, 0))
            self._hear(peer, Done(life, run.job, run.token, "d" * 32, 1000, 1, 0.001))
        before, self.now = int(self.now), self.now + 0.0001
        if int(self.now) > before:
            for life in list(self.broker.roster.lives):
                self._beat(life)

    def _beat(self, life: str) -> None:
        worker, jobs = self.broker.roster.lives[life], self.broker.jobs
        held = [Held(job, token, "waiting") for job, token in worker.tasks.items()]
        made = [output for job in worker.outputs for output in jobs[job].outputs.items() if output[1].life == life]
        held += [Held(job, o.token, "done", 1, 1, o.digest, o.size, 0.001) for job, (_, o) in zip(worker.outputs, made, strict=True)]
        self._hear(life.encode(), Beat(life, 2 + int(self.now), "ready", tuple(held)))

    def _hear(self, peer: bytes, message: Hello | Beat | Submit | Received | Step | Done) -> None:
        self.events += 1
        self._do(self.broker.receive(self.now, peer, message, None))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(to, Run() as run):
                    self._runs.append((to, run))
                case Send(_, Push(job, token, _, _, "result")):
                    self._results.append((job, token))
                case Close():
                    self.ended += 1
                case _:
                    pass


def cost(workers: int, jobs: int, waiting: int) -> float:
    """Microseconds of the processor for one event, once a fifth of the jobs is over; so many are under way at any time."""
    mill, asked, began, events = Mill(workers), 0, 0.0, 0
    while mill.ended < jobs:
        while asked - mill.ended < waiting:
            mill.submit(asked)
            asked += 1
        mill.turn()
        if not events and mill.ended >= jobs // 5:
            began, events = process_time(), mill.events
    return 1e6 * (process_time() - began) / (mill.events - events)


@click.command()
@click.option("--jobs", default=10_000, show_default=True)
def main(jobs: int) -> None:
    few, many = cost(10, jobs, 100), cost(1000, jobs, 3000)
    json.dump({"jobs": jobs, "us_10_workers": round(few, 1), "us_1000_workers": round(many, 1), "ratio": round(many / few, 2)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
