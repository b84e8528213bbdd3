"""mosec: a process for each stage behind its HTTP server, bodies in msgpack; the client keeps its connections open."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import local

from ifmesh.bench.peers.payload import Drive, looped

STARTING = 120.0


def start() -> Drive:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    words = ["-m", "ifmesh.bench.peers.mosec", "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000", "--log-level", "error"]
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    until = time.monotonic() + STARTING
    own, pool = local(), ThreadPoolExecutor(64)

    def whole() -> bytes:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port)
        own.connection.request("POST", "/inference", body=b"\xb5a red fox in the snow")  # msgpack: 21 characters
        answer = own.connection.getresponse()
        body: bytes = answer.read()
        if answer.status != 200:
            raise OSError(f"mosec answers {answer.status}: {body[:200]!r}")
        return body

    while True:
        with suppress(OSError, http.client.HTTPException):
            whole()
            break
        own.__dict__.clear()
        if server.poll() is not None or time.monotonic() > until:
            raise OSError("mosec's server does not come up")
        time.sleep(0.2)

    def ended(begun: list[Future[bytes]]) -> set[Future[bytes]]:
        done = wait(begun, return_when=FIRST_COMPLETED).done
        for one in done:
            one.result()
        return done

    return lambda in_flight, seconds, least: looped(in_flight, seconds, least, lambda: pool.submit(whole), ended)
