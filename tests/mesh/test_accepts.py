"""How fast jobs are accepted: a real coordinator, its journal on the disk of this machine, many clients at once.  Prints; judges little."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from ifmesh.protocol import Accepted, Submit
from ifmesh.request import Request
from ifmesh.wire import TO_CLIENT
from tests.mesh.kit import Mesh, Speaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FOX = Request("a red fox in the snow, oil on canvas", 7)
CLIENTS, WINDOW, SECONDS = 8, 16, 10.0
PACE = 50.0  # a second


def drive(fans: list[Speaker], window: int, pace: float | None) -> list[float]:
    """Submit for some seconds, at most so many under way for each client, or at this pace together; how long each Accepted took."""
    poller, sent, took, number = zmq.Poller(), dict[str, float](), list[float](), 0
    under_way = dict.fromkeys(range(len(fans)), 0)
    for fan in fans:
        poller.register(fan.socket, zmq.POLLIN)
    began = time.monotonic()
    while (now := time.monotonic()) < began + SECONDS or sent:
        due = int((now - began) * pace) if pace else number + len(fans)
        while number < due and now < began + SECONDS:
            who = min(under_way, key=under_way.__getitem__)
            if under_way[who] >= window:
                break
            job = f"j{pace or 0:.0f}-{number}"
            sent[job] = time.monotonic()
            fans[who].send(Submit(job, FOX))
            under_way[who] += 1
            number += 1
        ready = dict(poller.poll(int(1000 / pace) if pace else 1000))
        for who, fan in enumerate(fans):
            while fan.socket in ready and fan.socket.poll(0):
                message = TO_CLIENT.decode(fan.socket.recv_multipart()[0])
                if isinstance(message, Accepted):
                    took.append(time.monotonic() - sent.pop(message.job))
                    under_way[who] -= 1
        assert now < began + 6 * SECONDS, f"{len(sent)} are never answered"
    return took


@pytest.mark.parametrize("durability", ["full", "lazy", "none"])
def test_accepts(tmp_path: Path, durability: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Mesh(tmp_path, {"mesh.durability": durability, "mesh.max_jobs": 1_000_000}) as one, ExitStack() as stack:
        one.coordinator()
        fans = [stack.enter_context(one.speaker()) for _ in range(CLIENTS)]
        paced = sorted(drive(fans, 1000, PACE))
        at_most = drive(fans, WINDOW, None)
    p50, p99 = statistics.median(paced), paced[int(len(paced) * 0.99)]
    with capsys.disabled():
        rate = len(at_most) / SECONDS
        print(f"\n{durability}: at {PACE:.0f}/s p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms; at most {rate:.0f} accepts/s")
    assert len(paced) > 0.9 * PACE * SECONDS
