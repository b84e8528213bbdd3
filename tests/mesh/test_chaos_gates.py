"""Gates between real sockets: what passes, what is held, what breaks, and what comes after."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from ifmesh.chaos.gates import Gates
from tests.mesh.kit import LIMIT, Mesh


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that gives back whatever it hears."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(made: socket.socket) -> None:
            with made:
                while some := _received(made):
                    made.sendall(some)

        def accept() -> None:
            while True:
                try:
                    made, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(made,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


def _received(made: socket.socket) -> bytes:
    try:
        return made.recv(4096)
    except OSError:
        return b""


def dialled(url: str) -> socket.socket:
    host, port = url.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT)


def silent(made: socket.socket) -> bool:
    made.settimeout(0.3)
    try:
        made.recv(1, socket.MSG_PEEK)
        return False
    except TimeoutError:
        return True
    finally:
        made.settimeout(LIMIT)


@pytest.mark.parametrize("state", ["both", "up", "down"])
def test_a_closed_gate_holds_what_is_said_until_it_heals(echo: tuple[str, int], tmp_path: Path, state: str) -> None:
    with Gates(lambda: echo, tmp_path) as gates, dialled(gates.url("a")) as made, dialled(gates.url("b")) as other:
        made.sendall(b"before")
        assert made.recv(6) == b"before"
        gates.set("a", state)
        assert gates.url("a") == gates.url("a")  # by now it is closed
        made.sendall(b"during")
        assert silent(made)
        other.sendall(b"beside")
        assert other.recv(6) == b"beside"
        gates.set("a", "open")
        assert made.recv(6) == b"during"


def test_a_cut_breaks_connections_and_refuses_new_ones(echo: tuple[str, int], tmp_path: Path) -> None:
    with Gates(lambda: echo, tmp_path) as gates, dialled(gates.url("a")) as made:
        made.sendall(b"before")
        assert made.recv(6) == b"before"
        gates.set("a", "cut")
        assert _received(made) == b""
        with dialled(gates.url("a")) as late:
            assert _received(late) == b""
        gates.set("a", "open")
        with dialled(gates.url("a")) as again:
            again.sendall(b"after")
            assert again.recv(5) == b"after"


def test_nobody_behind_it_is_a_broken_connection(tmp_path: Path) -> None:
    with Gates(lambda: ("127.0.0.1", 1), tmp_path) as gates, dialled(gates.url("a")) as made:
        assert _received(made) == b""


def test_a_socket_file_gets_a_gate_and_whoever_binds_it_anew_another(tmp_path: Path) -> None:
    file = tmp_path / "inlet"
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with Gates(lambda: ("127.0.0.1", 1), tmp_path) as gates:
            for _ in range(2):
                pull, push = ctx.socket(zmq.PULL), ctx.socket(zmq.PUSH)
                pull.bind(f"ipc://{file}")
                Mesh.wait_for(lambda: (tmp_path / "inlet.x").exists() and gates.deafen(file, "open"))
                push.connect(f"ipc://{file}")
                push.send(b"one")
                assert pull.poll(int(LIMIT * 1000))
                assert pull.recv() == b"one"
                assert gates.deafen(file, "both")
                push.send(b"two")
                assert not pull.poll(300)
                assert gates.deafen(file, "open")
                assert pull.poll(int(LIMIT * 1000))
                assert pull.recv() == b"two"
                push.close(linger=0)
                pull.close(linger=0)
                Mesh.wait_for(lambda: not gates.deafen(file, "open"))
            assert list(tmp_path.iterdir()) == []
    finally:
        ctx.destroy(linger=0)
