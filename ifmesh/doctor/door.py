"""From here to the coordinator, step by step: each takes the one before for granted, so the first that is broken is the last tried."""

from __future__ import annotations

import socket as network
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import zmq

from ifmesh import credentials, sockets
from ifmesh.config import Config
from ifmesh.doctor.finding import Finding, broken, well
from ifmesh.errors import MeshError
from ifmesh.identity import Identity
from ifmesh.line import Line
from ifmesh.protocol import VERSION, Hi, Refused, Welcome
from ifmesh.wire import TO_CLIENT, TO_COORDINATOR, Garbled, VersionMismatch

LIMIT = 5.0
"""Seconds for each step."""
WHO, TCP, HANDSHAKE, SPEECH = "identity", "client -> coordinator, tcp", "client -> coordinator, keys", "client -> coordinator, protocol"
INVITED = "`ifmesh invite` on the coordinator's host makes another; here: `ifmesh join`, or --identity FILE"
SAME = "install the same ifmesh on both sides (`ifmesh --version` tells it), and start it again"


def door(config: Config) -> Iterator[Finding]:
    """The last of them is not ok, or all are."""
    try:
        me = credentials.of_client(config, config.mesh.identity)
        url = credentials.control(config, me)
    except MeshError as error:
        said, _, remedy = str(error).rpartition(": ")
        yield broken(WHO, said or remedy, remedy)
        return
    yield well(WHO, "none: this mesh has no keys (mesh.curve)" if me is None else f"{me.name}, {me.role}, key {me.keys.public}")
    first = _port(url)
    yield first
    if first.ok:
        yield from _speech(url, me)


def _port(url: str) -> Finding:
    """Does anybody listen there?"""
    if url.startswith("ipc:"):
        there = Path(url.removeprefix("ipc://")).is_socket()
        return well(TCP, url) if there else broken(TCP, f"{url}: no such socket", "start it (`ifmesh up`), on this very host")
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 0
    start = "start it there (`ifmesh up`), or say where it is: --coordinator, mesh.coordinator, IFMESH_COORDINATOR"
    if not port:
        return broken(TCP, f"{url}: it listens on any free port, and has not said yet on which", start)
    try:
        with network.create_connection((host, port), LIMIT):
            return well(TCP, url)
    except ConnectionRefusedError:
        return broken(TCP, f"{url}: the port is closed: nothing listens there", start)
    except TimeoutError:
        return broken(TCP, f"{url}: no answer within {LIMIT:g} s", f"is the address right, and does a firewall let port {port} pass?")
    except network.gaierror:
        return broken(TCP, f"{url}: no host of the name {host!r}", "mesh.coordinator: an address in numbers, or a name that is known here")
    except OSError as error:
        return broken(TCP, f"{url}: {error.strerror or error}", "is there a way to that host? (`ip route get` tells it)")


def _speech(url: str, me: Identity | None) -> Iterator[Finding]:
    """A Hi, and what is said to it."""
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keys, server = (None, "") if me is None else (me.keys, me.server)
    name = credentials.called(me, f"doctor.{token_hex(8)}").encode()
    line = Line(lambda witness: sockets.control_client(ctx, url, name, keys, server, witness), LIMIT, LIMIT)
    try:
        line.dial()
        if not _send(line):
            yield _shut(url, me, line.trouble)
            return
        yield well(HANDSHAKE, "in the clear" if me is None else "each side is who it should be, and all is encrypted")
        yield _heard(url, line)
    except zmq.ZMQError as error:
        yield broken(HANDSHAKE, f"{url}: {error.strerror}", "mesh.coordinator: tcp://HOST:PORT")
    finally:
        line.close(0)
        ctx.destroy(linger=0)


def _send(line: Line) -> bool:
    """True: the handshake is over, and it was taken."""
    for _ in _until(line, zmq.POLLOUT):
        if line.trouble or line.socket is None:
            return False
        try:
            line.socket.send(TO_COORDINATOR.encode(Hi()), zmq.DONTWAIT)
        except zmq.Again:
            continue
        return True
    return False


def _shut(url: str, me: Identity | None, trouble: str) -> Finding:
    if not trouble:
        return broken(HANDSHAKE, f"{url}: no handshake within {LIMIT:g} s", "something else listens there: mesh.coordinator, mesh.listen")
    if me is None:
        return broken(HANDSHAKE, f"{url}: {trouble}", "set mesh.curve as it is there")
    if "authorised" in trouble:
        return broken(HANDSHAKE, f"{url}: {trouble}: {me.keys.public} ({me.name})", f"the wrong key, or it was revoked: {INVITED}")
    remedy = f"the wrong key: that of the coordinator is not the one that came with {me.name} (another mesh, or keys made anew): {INVITED}"
    return broken(HANDSHAKE, f"{url}: {trouble}", f"{remedy}; or mesh.curve is not the same on both sides")


def _heard(url: str, line: Line) -> Finding:
    answer = broken(SPEECH, f"{url}: no answer within {LIMIT:g} s", "its log tells why: `ifmesh logs coordinator`")
    for _ in _until(line, zmq.POLLIN):
        if line.socket is None:
            continue
        try:
            message = TO_CLIENT.decode(sockets.received(line.socket, 1)[0].bytes)
        except zmq.Again:
            continue
        except VersionMismatch as error:
            return broken(SPEECH, f"{url}: protocol version {error.theirs} there, {error.ours} here", SAME)
        except Garbled as error:
            return broken(SPEECH, f"{url}: {error}", "something else listens there: mesh.coordinator, mesh.listen")
        match message:
            case Welcome():
                return well(SPEECH, f"version {VERSION} on both sides")
            case Refused(reason="version"):
                return broken(SPEECH, f"{url}: {message.detail}", SAME)
    return answer


def _until(line: Line, flags: int) -> Iterator[None]:
    """Each time that something has happened on this line, until the limit."""
    end = time.monotonic() + LIMIT
    while (left := end - time.monotonic()) > 0:
        poller = zmq.Poller()
        line.register(poller, flags)
        poller.poll(int(left * 1000) + 1)
        line.tend(time.monotonic())
        yield
