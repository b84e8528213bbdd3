"""The only file with socket options, and the reasons for each.

Control is ROUTER/DEALER, tensors are PUSH/PULL.  No link is trusted to deliver: whatever sits in a dead peer's pipe is gone although
`send` said yes, so one PUSH per (peer, life), few messages in a pipe, and the outbox of the sender is the truth.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket as host_names
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from ifmesh.errors import Misconfigured
from ifmesh.protocol import Endpoint

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

_Options = Mapping[int, int | bytes]

CONTROL_LIMIT = 256 << 10  # bytes of a frame to the coordinator
DATA_LIMIT = 64 << 20  # bytes of a bag, or of a result to a client
_LONGEST = 80  # bytes of run_dir: a socket's whole path has at most 107, and its name needs some of them

_TCP = re.compile(r"tcp://(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]):\d{1,5}")  # no names: libzmq looks them up while all sockets wait

_EVERY: _Options = {
    zmq.HANDSHAKE_IVL: 3000,  # ms; a silent stranger is dropped after this, not after 30 s
}
_HEART: _Options = {  # control only: behind a large tensor a PING comes too late, and a slow link would deliver nothing at all
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 4000,
    zmq.HEARTBEAT_TTL: 4000,
}
_CONNECTS: _Options = {
    zmq.IMMEDIATE: 1,  # nothing is queued for nobody: it would go to whatever process binds the port later
    zmq.SNDTIMEO: 0,  # a send that would wait raises Again
    zmq.CONNECT_TIMEOUT: 2000,  # ms; else the SYN's own back-off adds up to 8 s after a partition
    zmq.RECONNECT_IVL: 500,  # ms
    zmq.RECONNECT_IVL_MAX: 0,  # any other value takes the jitter away
}
_ROUTER: _Options = {
    zmq.ROUTER_MANDATORY: 1,  # EHOSTUNREACH and EAGAIN instead of silence
    zmq.ROUTER_HANDOVER: 0,  # nobody takes over a living peer's id
    zmq.MAXMSGSIZE: CONTROL_LIMIT,
    zmq.SNDHWM: 1000,
    zmq.RCVHWM: 1000,
    zmq.SNDTIMEO: 0,
    zmq.BACKLOG: 512,
    zmq.LINGER: 2000,  # ms; last words
}
_DEALER: _Options = {
    zmq.MAXMSGSIZE: DATA_LIMIT,  # a client's Result comes this way
    zmq.SNDHWM: 200,
    zmq.RCVHWM: 1000,
    zmq.LINGER: 2000,  # ms; Bye is such a last word
}
_PULL: _Options = {
    zmq.MAXMSGSIZE: DATA_LIMIT,
    zmq.RCVHWM: 4,  # bounds memory; credits are the broker's
    zmq.LINGER: 0,
}
_PUSH: _Options = {
    zmq.MAXMSGSIZE: 1 << 10,  # nothing comes back
    zmq.SNDHWM: 1,
    zmq.LINGER: 0,  # the outbox is the truth
}


def control_server(ctx: Context, url: str) -> tuple[Socket, str]:
    """ROUTER, bound; with its URL, in which port 0 has become the real one.  Misconfigured: no such address, taken, or not loopback."""
    made = _made(ctx, zmq.ROUTER, _ROUTER, _HEART)
    return made, _bound(made, url, "another coordinator? stop it (ifmesh down), or choose another: --listen, mesh.listen")


def control_client(ctx: Context, url: str, routing_id: bytes) -> Socket:
    """DEALER, connecting.  It may die for ever without a sign (one malformed or oversize frame is enough): whoever hears nothing
    closes it and makes another."""
    return _connected(_made(ctx, zmq.DEALER, _DEALER, _HEART, _CONNECTS, {zmq.ROUTING_ID: routing_id}), url)


def inlet(ctx: Context, urls: Iterable[str]) -> tuple[Socket, tuple[str, ...]]:
    """PULL, bound to each of the URLs; with them as they are bound.  Misconfigured, as `control_server`."""
    made = _made(ctx, zmq.PULL, _PULL)
    return made, tuple([_bound(made, url, "choose another, or port 0 for any free one") for url in urls])


def outlet(ctx: Context, url: str) -> Socket:
    """PUSH, connecting to one life of one peer, never to two: what is queued for the dead goes with it.  ZMQError: no such address."""
    return _connected(_made(ctx, zmq.PUSH, _PUSH, _CONNECTS), url)


def choose(endpoints: Iterable[Endpoint], host: str) -> str:
    """Where to reach a PULL from this host: ipc within it, else tcp.  LookupError: nowhere."""
    told = tuple(endpoints)
    for endpoint in told:
        if endpoint.host == host and host and endpoint.url.startswith("ipc://"):
            return endpoint.url
    for endpoint in told:
        if not endpoint.host and _TCP.fullmatch(endpoint.url):
            return endpoint.url
    raise LookupError("no address that can be reached from this host")


def host_id() -> str:
    """16 hex digits: equal for processes that see the same files on the same machine since its last start, and thus for those that
    an ipc socket can join.  Tells nothing of the machine."""
    parts = [_read(Path("/proc/sys/kernel/random/boot_id")), _read(Path("/etc/machine-id"))]
    try:
        parts.append(os.readlink("/proc/self/ns/mnt"))
    except OSError:
        parts.append("")
    if not any(parts):
        parts.append(host_names.gethostname())
    return hashlib.sha256("\n".join(("ifmesh", *parts)).encode()).hexdigest()[:16]


def run_dir(state: Path) -> Path:
    """A folder of our own with a short path for the ipc sockets of the mesh in `state`; made when it is not there.

    Misconfigured: it belongs to somebody else, or its path is too long.
    """
    name = f"ifmesh-{os.getuid()}-{hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:12]}"
    above = [p for p in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()) if p and os.access(p, os.W_OK | os.X_OK)]
    fitting = [Path(p).absolute() / name for p in above]
    fitting = [p for p in fitting if len(os.fsencode(p)) <= _LONGEST]
    if not fitting:
        raise Misconfigured(f"no folder for sockets: set XDG_RUNTIME_DIR to a short path (at most {_LONGEST - len(name) - 1} bytes)")
    folder = fitting[0]
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Misconfigured(f"{folder}: belongs to somebody else: remove it, or set XDG_RUNTIME_DIR to a folder of your own")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


# ---- inside


def _made(ctx: Context, kind: int, *options: _Options) -> Socket:
    if zmq.zmq_version_info() < (4, 3, 5):
        raise Misconfigured(f"libzmq {zmq.zmq_version()} is too old: 4.3.5 or newer; reinstall pyzmq from its wheel")
    made: Socket = ctx.socket(kind)
    for each in (_EVERY, *options):
        for option, value in each.items():
            made.setsockopt(option, value)
    return made


def _connected(made: Socket, url: str) -> Socket:
    try:
        if "[" in url:
            made.setsockopt(zmq.IPV6, 1)
        made.connect(url)
    except BaseException:
        made.close(0)
        raise
    return made


def _bound(made: Socket, url: str, remedy: str) -> str:
    try:
        made.bind(_address(made, url))
        found = made.getsockopt(zmq.LAST_ENDPOINT)
    except zmq.ZMQError as error:
        made.close(0)
        if error.errno == zmq.EADDRINUSE:
            raise Misconfigured(f"{url}: this address is taken: {remedy}") from None
        raise Misconfigured(f"{url}: cannot listen there: {error.strerror}") from None
    except BaseException:
        made.close(0)
        raise
    assert isinstance(found, bytes)
    return found.rstrip(b"\0").decode()


def _address(made: Socket, url: str) -> str:
    """As libzmq wants it.  Everything but loopback and files waits for keys."""
    if url.startswith("ipc://") and len(url) > len("ipc://"):
        return url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, "*" if parts.netloc.endswith(":*") else parts.port
    except ValueError:
        host = port = None
    if not url.startswith("tcp://") or host is None or port is None:
        raise Misconfigured(f"{url}: not an address to listen on: tcp://127.0.0.1:PORT or ipc://PATH")
    if host == "localhost":
        host = "127.0.0.1"  # libzmq binds to numbers and interfaces only
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise Misconfigured(f"{url}: refusing to listen beyond this machine without keys: listen on tcp://127.0.0.1:{port}")
    if ":" in host:
        made.setsockopt(zmq.IPV6, 1)
        host = f"[{host}]"
    return f"tcp://{host}:{port}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
