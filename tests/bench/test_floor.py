"""The bare chain, and processes that are as if on hosts of their own."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest

from ifmesh import sockets
from ifmesh.bench import apart
from ifmesh.bench.floor import CHAINS, Chain
from ifmesh.bench.taken import Taken, ratios, row


@pytest.mark.parametrize(("name", "transport"), [("relayed", "ipc"), ("chain", "tcp"), ("guarded", "tcp+curve")])
def test_every_request_comes_through(name: str, transport: str) -> None:
    with Chain(name, transport) as chain:
        taken = chain.drive(in_flight=8, seconds=0.0, least=24)
        assert chain.drive(1, 60.0, 1, lambda: True).seconds == [], "told to end: nothing is asked"
        pids = [process.pid for process in chain.processes]
        assert len(pids) == len(CHAINS[name])
    assert len(taken.seconds) >= 24
    assert all(0 < seconds < end for seconds, end in zip(taken.seconds, taken.ends, strict=True))
    assert all(process.poll() is not None for process in chain.processes), "none is left"


def test_a_row_leaves_out_what_filled_the_pipe() -> None:
    first = Taken(2, [9.0, 9.0, 1.0, 1.0, 1.0], [9.0, 9.1, 10.0, 11.0, 12.0])
    found = row([first, Taken(2)])
    assert (found["p50_ms"], found["p95_ms"], found["requests_per_s"], found["requests"]) == (1000.0, 1000.0, 1.0, 3)
    assert row([Taken(1)]) == {}
    assert ratios(found, {"p50_ms": 500.0, "requests_per_s": 4.0}) == {"p50": 2.0, "requests_per_s": 0.25}


def _told(pipe: Connection) -> None:
    apart.leave()
    pipe.send(sockets.host_id())


@pytest.mark.skipif(bool(apart.lacks()), reason="no mount namespace of one's own here")
def test_apart_is_another_host() -> None:
    """Then the mesh itself chooses TCP, where it would take a file (`sockets.choose`)."""
    spawn = multiprocessing.get_context("spawn")
    hear, tell = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_told, args=(tell,))
    process.start()
    assert hear.poll(60)
    assert hear.recv() != sockets.host_id()
    process.join(60)
    assert process.exitcode == 0
