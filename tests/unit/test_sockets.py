"""Real sockets: the options, the refusals, and what strangers can do to them."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zmq

from ifmesh import identity, sockets
from ifmesh.errors import Misconfigured
from ifmesh.protocol import Endpoint
from ifmesh.sockets import Context, Socket, choose, control_client, control_server, host_id, inlet, outlet, run_dir

SOON = 10_000  # ms; a limit, not a pause


class Keeping(zmq.Context[Socket]):
    """Holds on to its sockets: one that is merely forgotten would be closed by the garbage collector, in the middle of a test."""

    _kept: ClassVar[list[Socket]] = []

    def socket(self, *args: Any, **kwargs: Any) -> Socket:
        self._kept.append(super().socket(*args, **kwargs))
        return self._kept[-1]


@pytest.fixture
def ctx() -> Iterator[Context]:
    made = Keeping()
    yield made
    made.destroy(linger=0)
    Keeping._kept.clear()


def come(s: Socket) -> list[bytes]:
    assert s.poll(SOON), "nothing came"
    return s.recv_multipart()


def come_last(s: Socket, frame: bytes) -> None:
    """Wait for the message that ends with this frame, past whatever a stranger has sent."""
    while come(s)[-1] != frame:
        pass


def send(s: Socket, *frames: bytes) -> None:
    assert s.poll(SOON, zmq.POLLOUT), "nobody there to send to"
    s.send_multipart(frames)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


# ---- control


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://localhost:0"])
def test_control_goes_both_ways_and_the_port_is_told(ctx: Context, url: str) -> None:
    server, bound = control_server(ctx, url)
    assert bound.startswith("tcp://127.0.0.1:")
    assert port_of(bound) > 0
    client = control_client(ctx, bound, b"stage_one-0.ab12")
    send(client, b"hello")
    assert come(server) == [b"stage_one-0.ab12", b"hello"]
    server.send_multipart([b"stage_one-0.ab12", b"result", b"payload"])
    assert come(client) == [b"result", b"payload"]


def test_ipv6_loopback(ctx: Context) -> None:
    try:
        server, bound = control_server(ctx, "tcp://[::1]:0")
    except Misconfigured:
        pytest.skip("this machine has no IPv6")
    client = control_client(ctx, bound, b"c")
    send(client, b"hello")
    assert come(server) == [b"c", b"hello"]


def test_a_port_that_is_taken_is_named_with_the_remedy(ctx: Context) -> None:
    _, bound = control_server(ctx, "tcp://127.0.0.1:0")
    with pytest.raises(Misconfigured, match=rf"^{bound}: this address is taken: .*--listen, mesh\.listen$"):
        control_server(ctx, bound)
    with pytest.raises(Misconfigured, match="taken"):
        inlet(ctx, ["tcp://127.0.0.1:0", bound])


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1", "[::]", "example.org", "eth0", "[2001:db8::1]"])
def test_without_keys_only_loopback(ctx: Context, host: str) -> None:
    for bind in (lambda url: control_server(ctx, url), lambda url: inlet(ctx, [url])):
        with pytest.raises(Misconfigured, match="without keys"):
            bind(f"tcp://{host}:0")


@pytest.mark.parametrize(
    "url",
    ["", "7640", "127.0.0.1:7640", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://127.0.0.1:1", "ipc://", "tcp://[::1:5"],
)
def test_what_is_no_address_is_refused(ctx: Context, url: str) -> None:
    with pytest.raises(Misconfigured, match="not an address to listen on"):
        control_server(ctx, url)


def test_a_folder_that_is_not_there_is_refused(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot listen there"):
        inlet(ctx, [f"ipc://{tmp_path}/nowhere/x"])


def test_who_cannot_be_reached_is_told_at_once(ctx: Context) -> None:
    server, _ = control_server(ctx, "tcp://127.0.0.1:0")
    with pytest.raises(zmq.ZMQError) as caught:
        server.send_multipart([b"nobody", b"x"], zmq.DONTWAIT)
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_nobody_takes_over_a_living_peer(ctx: Context) -> None:
    server, url = control_server(ctx, "tcp://127.0.0.1:0")
    first = control_client(ctx, url, b"same")
    send(first, b"one")
    come(server)
    second = control_client(ctx, url, b"same")
    if second.poll(200, zmq.POLLOUT):  # its pipe may come up before the server turns it away
        second.send(b"two")
    send(first, b"three")
    assert come(server) == [b"same", b"three"]
    server.send_multipart([b"same", b"for the first"])
    assert come(first) == [b"for the first"]


def test_options_are_as_the_facts_demand(ctx: Context) -> None:
    server, url = control_server(ctx, "tcp://127.0.0.1:0")
    client = control_client(ctx, url, b"c")
    pull, urls = inlet(ctx, ["tcp://127.0.0.1:0"])
    push = outlet(ctx, urls[0])
    for each in (server, client, pull, push):
        assert each.getsockopt(zmq.HANDSHAKE_IVL) == 3000
        assert 0 < int(each.getsockopt(zmq.MAXMSGSIZE)) <= 64 << 20
    assert (client.getsockopt(zmq.HEARTBEAT_IVL), client.getsockopt(zmq.HEARTBEAT_TIMEOUT)) == (1000, 4000)
    assert client.getsockopt(zmq.RCVHWM) == 0, "libzmq aborts when a socket that pings is full and its link ends"
    assert server.getsockopt(zmq.HEARTBEAT_IVL) == 0, "the same; it hears the PINGs of the client, and their TTL"
    for each in (pull, push):
        assert each.getsockopt(zmq.HEARTBEAT_IVL) == 0, "behind a tensor a PING comes too late"
        assert each.getsockopt(zmq.LINGER) == 0
    for each in (client, push):
        assert each.getsockopt(zmq.IMMEDIATE) == 1
        assert each.getsockopt(zmq.SNDTIMEO) == 0
        assert each.getsockopt(zmq.CONNECT_TIMEOUT) == 2000
        assert (each.getsockopt(zmq.RECONNECT_IVL), each.getsockopt(zmq.RECONNECT_IVL_MAX)) == (500, 0)
    assert server.getsockopt(zmq.MAXMSGSIZE) == 256 << 10
    assert client.getsockopt(zmq.MAXMSGSIZE) == 64 << 20
    assert push.getsockopt(zmq.SNDHWM) == 1
    assert pull.getsockopt(zmq.RCVHWM) == sockets.WAITING


FLOOD = """
import os, time, zmq
from ifmesh import sockets
ctx = sockets.context()
router, url = sockets.control_server(ctx, "tcp://127.0.0.1:0")
made = zmq.Context()
rude = made.socket(zmq.DEALER)
rude.set(zmq.SNDHWM, 0)
rude.connect(url)
for _ in range(20_000):
    rude.send(bytes(100))
time.sleep(1)  # ever more comes, and nobody reads
rude.close(0)
made.term()
time.sleep(3)  # a PING would be due
heard = 0
while heard < 1000:
    assert router.poll(20_000)
    router.recv_multipart()
    heard += 1
os._exit(0)
"""


def test_a_flood_and_a_good_bye_while_nobody_reads_end_nothing() -> None:
    """libzmq aborts the process (issues 3937, 4364) if the full socket pings: so it is another process that tries."""
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


# ---- data


def test_a_bag_goes_over_tcp_and_over_ipc(ctx: Context, tmp_path: Path) -> None:
    path = run_dir(tmp_path) / "x"
    pull, urls = inlet(ctx, [f"ipc://{path}", "tcp://127.0.0.1:0"])
    assert urls[0] == f"ipc://{path}"
    for url in urls:
        push = outlet(ctx, url)
        send(push, b"header", b"x" * 3_000_000)
        assert come(pull) == [b"header", b"x" * 3_000_000]
        push.close()
    pull.close()
    path.unlink(missing_ok=True)
    path.parent.rmdir()


def test_nothing_is_queued_for_nobody(ctx: Context) -> None:
    with socket.socket() as held:  # taken, but nobody listens
        held.bind(("127.0.0.1", 0))
        push = outlet(ctx, f"tcp://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(zmq.Again):
            push.send(b"x")


def test_an_outlet_to_no_address_raises(ctx: Context) -> None:
    with pytest.raises(zmq.ZMQError):
        outlet(ctx, "nonsense")


# ---- strangers


def frame(body: bytes, flags: int = 0) -> bytes:
    """A ZMTP 3 frame."""
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def greeted(port: int, kind: bytes) -> socket.socket:
    """A plain TCP connection on which the handshake of a ZMTP 3.0 peer of this kind is over.

    Over on both sides: a frame that comes before libzmq has said its own READY is "an unexpected command", and the link ends.
    """
    wire = socket.create_connection(("127.0.0.1", port), timeout=SOON / 1000)
    wire.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    taken(wire, 64)
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    wire.sendall(b"\x04" + bytes([len(ready)]) + ready)
    assert taken(wire, taken(wire, 2)[1]).startswith(b"\x05READY")
    return wire


def taken(wire: socket.socket, length: int) -> bytes:
    """So many bytes, however they come."""
    with wire.makefile("rb", buffering=0) as file:
        found = b""
        while len(found) < length and (more := file.read(length - len(found))):
            found += more
    assert len(found) == length, "the other side hung up"
    return found


def test_garbage_on_the_wire_stops_nothing(ctx: Context) -> None:
    server, url = control_server(ctx, "tcp://127.0.0.1:0")
    pull, urls = inlet(ctx, ["tcp://127.0.0.1:0"])
    dice = random.Random(1)
    for number in range(60):
        for port in (port_of(url), port_of(urls[0])):
            with socket.create_connection(("127.0.0.1", port), timeout=SOON / 1000) as wire:
                wire.sendall(
                    [dice.randbytes(200), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(100), b"\xff" + bytes(200)][number % 4]
                )
    client = control_client(ctx, url, b"c")
    send(client, b"hello")
    come_last(server, b"hello")
    push = outlet(ctx, urls[0])
    send(push, b"header", b"frame")
    come_last(pull, b"frame")


def test_a_frame_above_the_limit_ends_only_its_own_link(ctx: Context) -> None:
    server, url = control_server(ctx, "tcp://127.0.0.1:0")
    client = control_client(ctx, url, b"c")
    with greeted(port_of(url), b"DEALER") as rogue:
        rogue.sendall(frame(b"small"))
        assert come(server)[-1] == b"small"
        rogue.sendall(bytes([2]) + (2**62).to_bytes(8, "big") + b"x")
        rogue.settimeout(SOON / 1000)
        ended = b"x"
        while ended:  # until the server hangs up
            try:
                ended = rogue.recv(4096)
            except ConnectionError:
                break
    send(client, b"hello")
    assert come(server) == [b"c", b"hello"]


# ---- where


HERE = Endpoint("here", "ipc://x")
AWAY = Endpoint("there", "ipc://x")
ANYWHERE = Endpoint("", "tcp://127.0.0.1:5")


def test_within_a_host_ipc_else_tcp() -> None:
    assert choose((ANYWHERE, HERE), "here") is HERE
    assert choose((AWAY, ANYWHERE), "here") is ANYWHERE
    assert choose((ANYWHERE,), "") is ANYWHERE


@pytest.mark.parametrize(
    "told",
    [
        (),
        (AWAY,),
        (Endpoint("", "ipc://x"),),
        (Endpoint("here", "tcp://127.0.0.1:5"),),
        (Endpoint("here", "inproc://x"),),
        (Endpoint("", "pgm://x"),),
    ],
)
def test_no_way_there_is_a_lookup_error(told: tuple[Endpoint, ...]) -> None:
    with pytest.raises(LookupError):
        choose(told, "here")


def test_an_endpoint_without_a_key_is_for_those_without_keys(ctx: Context) -> None:
    with pytest.raises(LookupError, match="speaks in the clear"):
        outlet(ctx, ANYWHERE.url, identity.generate(), "")
    with pytest.raises(zmq.ZMQError):
        outlet(ctx, ANYWHERE.url, identity.generate(), "no key")


@pytest.mark.parametrize(
    ("told", "coordinator", "address"),
    [
        ("", "tcp://127.0.0.1:7640", "127.0.0.1"),
        ("", "tcp://localhost:7640", "127.0.0.1"),
        ("", "tcp://[::1]:7640", "127.0.0.1"),
        ("", "ipc:///run/x", "127.0.0.1"),
        ("", "", "127.0.0.1"),
        ("10.0.0.7", "tcp://127.0.0.1:7640", "10.0.0.7"),
        ("[2001:db8::7]", "tcp://10.0.0.1:7640", "2001:db8::7"),
    ],
)
def test_where_the_others_find_this_host(told: str, coordinator: str, address: str) -> None:
    assert sockets.own_address(told, coordinator) == address


def test_the_way_to_a_coordinator_elsewhere_begins_at_an_address_of_ours() -> None:
    try:
        found = sockets.own_address("", "tcp://192.0.2.1:7640")
    except Misconfigured as error:
        assert "mesh.address: no way to the coordinator at tcp://192.0.2.1:7640" in str(error)  # noqa: PT017
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.bind((found, 0))
    for told in ("0.0.0.0", "eth0", "example.org"):
        with pytest.raises(Misconfigured, match=r"mesh\.address: .*in numbers"):
            sockets.own_address(told, "")


def test_what_is_bound_everywhere_is_dialled_at_the_own_address() -> None:
    assert sockets.dialled("tcp://0.0.0.0:5", "10.0.0.7") == "tcp://10.0.0.7:5"
    assert sockets.dialled("tcp://10.0.0.8:5", "10.0.0.7") == "tcp://10.0.0.8:5"
    assert sockets.at("::1") == "tcp://[::1]:*"


@pytest.mark.parametrize("host", ["*", "example.org", "eth0"])
def test_with_keys_any_address_in_numbers(ctx: Context, host: str) -> None:
    keys = identity.generate()
    _, url = control_server(ctx, "tcp://0.0.0.0:0", keys)
    assert url.startswith("tcp://0.0.0.0:")
    with pytest.raises(Misconfigured, match="in numbers"):
        control_server(ctx, f"tcp://{host}:0", keys)


def test_what_is_bound_asks_for_a_key_and_enforces_it(ctx: Context) -> None:
    keys = identity.generate()
    for made in (control_server(ctx, "tcp://127.0.0.1:0", keys)[0], inlet(ctx, ["tcp://127.0.0.1:0"], keys)[0]):
        assert made.getsockopt(zmq.CURVE_SERVER) == 1
        assert made.getsockopt(zmq.ZAP_DOMAIN) == b"ifmesh"
        assert made.getsockopt(zmq.ZAP_ENFORCE_DOMAIN) == 1


def test_a_libzmq_without_curve_is_said(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda name: name != "curve")
    for make in (lambda: control_server(ctx, "tcp://127.0.0.1:0", identity.generate()), lambda: outlet(ctx, "x", identity.generate(), "y")):
        with pytest.raises(Misconfigured, match="built without CURVE: reinstall pyzmq"):
            make()


def test_no_host_matches_no_host() -> None:
    with pytest.raises(LookupError):
        choose((Endpoint("", "ipc://x"),), "")


def test_the_host_id_is_stable_and_tells_nothing() -> None:
    code = "from ifmesh.sockets import host_id; print(host_id())"
    root = Path(sockets.__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    assert other == host_id()
    assert len(other) == 16
    assert int(other, 16) >= 0
    raw = Path("/etc/machine-id")
    if raw.is_file() and raw.read_text().strip():
        assert other not in raw.read_text()


def test_run_dir_is_our_own_short_and_one_per_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as short:  # tmp_path is too long for sockets
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        one = run_dir(tmp_path / "a")
        assert one.parent == Path(short)
        assert len(os.fsencode(one)) <= 80
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        assert run_dir(tmp_path / "a") == one != run_dir(tmp_path / "b")
        one.chmod(0o755)
        assert stat.S_IMODE(run_dir(tmp_path / "a").stat().st_mode) == 0o700
        one.rmdir()
        one.symlink_to(tmp_path)
        with pytest.raises(Misconfigured, match="somebody else"):
            run_dir(tmp_path / "a")


def test_run_dir_falls_back_and_then_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    made = run_dir(tmp_path)
    assert made.parent != tmp_path / "gone"
    made.rmdir()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(Misconfigured, match="set XDG_RUNTIME_DIR to a short path"):
        run_dir(tmp_path)


def test_an_old_libzmq_is_refused(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(Misconfigured, match=r"4\.3\.5 or newer"):
        control_server(ctx, "tcp://127.0.0.1:0")
