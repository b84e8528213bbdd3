"""Who knocks at a mesh of the kit: those it knows, strangers, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ifmesh import authorized, identity
from ifmesh.identity import Identity
from tests.mesh.kit import LIMIT, Mesh

REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def stranger(mesh: Mesh, name: str = "mallory", role: str = "client") -> Identity:
    """A good key of which the coordinator knows nothing."""
    me = mesh.identity()
    server = me.server if me is not None else identity.generate().public
    return Identity(name, role, identity.generate(), server, mesh.config.control())


def known(mesh: Mesh, name: str) -> Identity:
    me = mesh.identity(name)
    assert me is not None
    return me


def table(mesh: Mesh) -> Path:
    return mesh.state / "keys" / authorized.FILE


def own_words(mesh: Mesh, log: str, text: str, times: int = 1) -> None:
    """Until this process has said so."""
    mesh.wait_for(lambda: (mesh.logs / f"{log}.log").read_text().count(text) >= times)


def turned_away(ctx: zmq.Context[zmq.Socket[bytes]], kind: int, url: str, me: Identity | None, server: str) -> None:
    """The handshake fails, and nothing can be sent."""
    made = ctx.socket(kind)
    made.setsockopt(zmq.IMMEDIATE, 1)
    if me is not None:
        made.curve_publickey, made.curve_secretkey = me.keys.public.encode(), me.keys.secret.encode()
        made.curve_serverkey = server.encode()
    monitor = made.get_monitor_socket(REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    made.connect(url)
    try:
        assert monitor.poll(int(LIMIT * 1000)), f"neither in nor out at {url}"
        assert recv_monitor_message(monitor)["event"] & REFUSED, f"{url} is open"
        with pytest.raises(zmq.Again):
            made.send(b"a word", zmq.DONTWAIT)
    finally:
        made.disable_monitor()
        monitor.close(0)
        made.close(0)
