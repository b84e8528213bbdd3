"""The far end of `crews`: the client processes of a benchmark on another host, which end with whoever has the other end of stdin.

    -> {"name": NAME, "clients": N, "mesh": as in `orders`}       <- {"ready": machine}, or {"error": TEXT, "kind": its class}
    -> {"run": [Run, ...]}, one for each client                   <- {"report": [Report, ...]}
    -> {"stop": true}
    -> an empty line, every few seconds

Standard output and input both belong to these lines alone.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import Any, NoReturn

from ifmesh import exits, log, typed
from ifmesh.bench.clients import Clients, here
from ifmesh.bench.head import machine
from ifmesh.bench.lines import Message
from ifmesh.bench.orders import Run
from ifmesh.config import CONFIG
from ifmesh.errors import Lost, MeshError
from ifmesh.hosted import REACH, reach

SILENCE = 20.0
"""Seconds without a line after which nobody asks any more: a connection can die without a word."""
STOP = {"stop": True}


class Ear:
    """Lines of JSON from a descriptor.  silence: seconds without any, empty ones included, that are its end."""

    def __init__(self, file: int, silence: float = SILENCE) -> None:
        self._file, self._silence = file, silence
        self._rest, self._orders = b"", deque[Message]()
        self._heard = time.monotonic()

    def next(self) -> Message:
        """The next order.  EOFError: there will be none."""
        while not self._orders:
            self._listen(max(0.0, self._heard + self._silence - time.monotonic()))
        return self._orders.popleft()

    def now(self) -> Message | None:
        """The order that is here already.  EOFError: nobody is there any more to give one."""
        self._listen(0.0)
        return self._orders.popleft() if self._orders else None

    def _listen(self, seconds: float) -> None:
        if not select.select([self._file], [], [], seconds)[0]:
            if time.monotonic() >= self._heard + self._silence:
                raise EOFError
            return
        self._heard = time.monotonic()
        if not (some := os.read(self._file, 1 << 16)):
            raise EOFError
        *lines, self._rest = (self._rest + some).split(b"\n")
        self._orders.extend(json.loads(line) for line in lines if line)


def run() -> NoReturn:
    """Until nobody asks any more."""
    log.start()
    os.environ[CONFIG] = os.devnull  # the clients know all that they need; a file in this folder is none of theirs
    try:
        serve(Ear(0))
    except EOFError:
        sys.exit(exits.OK)
    except MeshError as error:
        _tell({"error": str(error), "kind": type(error).__name__})
        sys.exit(exits.FAILURE)


def serve(ear: Ear) -> NoReturn:
    """EOFError: nobody asks any more.  Lost: from here there is no way to the coordinator.  MeshError: a client has ended."""
    order = ear.next()
    url = order["mesh"]["coordinator"]
    if why := reach(url, REACH):
        remedy = "open that port for this host; with several addresses, say by mesh.listen or mesh.address which one is meant"
        raise Lost(f"hosts.{order['name']}: from there the coordinator at {url} cannot be reached ({why}): {remedy}")
    with Clients([here()] * order["clients"], order["mesh"]) as clients:
        _tell({"ready": machine()})
        while True:
            if runs := ear.next().get("run"):
                reports = clients.run([typed.build(Run, run, "run", unknown="error") for run in runs], lambda: ear.now() == STOP)
                _tell({"report": [asdict(report) for report in reports]})


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)
