"""The only file with socket options, and the reasons for each.

Control is ROUTER/DEALER, tensors are PUSH/PULL.  No link is trusted to deliver: whatever sits in a dead peer's pipe is gone although
`send` said yes, so one PUSH per (peer, life), few messages in a pipe, and the outbox of the sender is the truth.

Who is given keys speaks CURVE, over ipc too: what binds asks ZAP (`zap`) about every newcomer, and what connects knows whom it expects.
Without keys all is in the clear, and nothing is bound beyond loopback and files.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket as network
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from ifmesh import descriptors
from ifmesh.errors import Misconfigured
from ifmesh.identity import Keys
from ifmesh.protocol import Endpoint

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

Witness = Callable[[Socket], None]
"""Is shown a connecting socket before it connects: a handshake may have failed, for ever, before whoever made it gets it back."""

_Options = Mapping[int, int | bytes]

CONTROL_LIMIT = 256 << 10  # bytes of a frame to the coordinator
DATA_LIMIT = 64 << 20  # bytes of a bag, or of a result to a client
WAITING = 4  # bags of one connection that wait to be read
UNHEARD = (WAITING + 1) * (DATA_LIMIT + 65536)  # bytes that may come over one data link before they make a message: `meter`
UNHEARD_CONTROL = 16 << 20  # and over a control link: a thousand long requests may wait there
DOMAIN = b"ifmesh"  # of ZAP: with an empty one, or unless it is enforced, CURVE lets anybody in when nobody answers for ZAP (measured)
_LONGEST = 80  # bytes of run_dir: a socket's whole path has at most 107, and its name needs some of them

_TCP = re.compile(r"tcp://(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]):\d{1,5}")  # no names: libzmq looks them up while all sockets wait

_EVERY: _Options = {
    zmq.HANDSHAKE_IVL: 3000,  # ms; a silent stranger is dropped after this, not after 30 s
}
# Control only: behind a large tensor a PING comes too late, and a slow link would deliver nothing at all.  And only who connects pings:
# the TTL has the other side listen for it.  libzmq 4.3.5 aborts the whole process when a socket that pings is at its high-water mark and
# that link ends (issues 3937, 4364, 4767): 1,001 messages and a good-bye ended a coordinator that was busy for a second (measured).
_HEART: _Options = {
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
    zmq.RCVHWM: 0,  # see _HEART; it hears the coordinator alone, which sends a thousand messages ahead, and a few pictures
    zmq.LINGER: 2000,  # ms; Bye is such a last word
}
_PULL: _Options = {
    zmq.MAXMSGSIZE: DATA_LIMIT,
    zmq.RCVHWM: WAITING,  # bounds memory; credits are the broker's
    zmq.LINGER: 0,
}
_PUSH: _Options = {
    zmq.MAXMSGSIZE: 1 << 10,  # nothing comes back
    zmq.SNDHWM: 1,
    zmq.TCP_MAXRT: 10_000,  # ms without any word that bytes arrive; a slow link says so all the time
    zmq.LINGER: 0,  # the outbox is the truth
}


_WATCHED = (
    zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def context() -> Context:
    """Of a long-lived process, which may have many connections: it gets as many descriptors as it may have."""
    descriptors.claim()
    made: Context = zmq.Context()
    made.set(zmq.MAX_SOCKETS, 4096)
    return made


def control_server(ctx: Context, url: str, keys: Keys | None = None) -> tuple[Socket, str]:
    """ROUTER, bound; with its URL, in which port 0 has become the real one.

    Misconfigured: no such address, taken, or beyond loopback without keys.
    """
    made = _made(ctx, zmq.ROUTER, _ROUTER, _serving(keys))
    return made, _bound(made, url, keys, "another coordinator? stop it (ifmesh down), or choose another: --listen, mesh.listen")


def control_client(
    ctx: Context, url: str, routing_id: bytes, keys: Keys | None = None, server: str = "", witness: Witness | None = None
) -> Socket:
    """DEALER, connecting to the coordinator with this public key.  It may die for ever without a sign (one malformed or oversize frame
    is enough): see `line`."""
    made = _made(ctx, zmq.DEALER, _DEALER, _HEART, _CONNECTS, {zmq.ROUTING_ID: routing_id}, _asking(keys, server))
    return _connected(made, url, witness)


def inlet(ctx: Context, urls: Iterable[str], keys: Keys | None = None) -> tuple[Socket, tuple[str, ...]]:
    """PULL, bound to each of the URLs; with them as they are bound.  Misconfigured, as `control_server`."""
    made = _made(ctx, zmq.PULL, _PULL, _serving(keys))
    return made, tuple([_bound(made, url, keys, "choose another, or port 0 for any free one") for url in urls])


def outlet(ctx: Context, url: str, keys: Keys | None = None, server: str = "", witness: Witness | None = None) -> Socket:
    """PUSH, connecting to one life of one peer, never to two: what is queued for the dead goes with it.  server: the peer's public key.
    ZMQError: no such address."""
    return _connected(_made(ctx, zmq.PUSH, _PUSH, _CONNECTS, _asking(keys, server)), url, witness)


def monitored(made: Socket) -> Socket:
    """A PAIR that tells how the links of a connecting socket fare, for `zmq.utils.monitor`.  To be ended by `unmonitored`, before it."""
    return made.get_monitor_socket(_WATCHED)


def unmonitored(made: Socket, monitor: Socket) -> None:
    """An open monitor would keep the whole context from ending."""
    made.disable_monitor()
    monitor.close(0)


def received(made: Socket, most: int) -> list[zmq.Frame]:
    """The next message; of one with more parts only the first most + 1 are kept.  Again: there is none."""
    parts = [made.recv(zmq.DONTWAIT, copy=False)]
    while parts[-1].more and len(parts) <= most:
        parts.append(made.recv(zmq.DONTWAIT, copy=False))
    more = parts[-1].more
    while more:
        more = made.recv(zmq.DONTWAIT, copy=False).more
    return parts


def speaker(part: zmq.Frame) -> str:
    """The public key of who sent this, as the handshake proved it; "": it came in the clear."""
    try:
        found = part.get("User-Id")
    except zmq.ZMQError:
        return ""
    return found if isinstance(found, str) else ""


def bounds(urls: Iterable[str], most: int) -> dict[int, int]:
    """The same for the port of each of these that has one."""
    return {port: most for url in urls if url.startswith("tcp:") and (port := urlsplit(url).port) is not None}


def choose(endpoints: Iterable[Endpoint], host: str) -> Endpoint:
    """Where to reach a PULL from this host: ipc within it, else tcp.  LookupError: nowhere."""
    told = tuple(endpoints)
    for endpoint in told:
        if endpoint.host == host and host and endpoint.url.startswith("ipc://"):
            return endpoint
    for endpoint in told:
        if not endpoint.host and _TCP.fullmatch(endpoint.url):
            return endpoint
    raise LookupError("no address that can be reached from this host")


def own_address(told: str, coordinator: str) -> str:
    """A number by which the others reach this host: as told (mesh.address), or the one from which it reaches the coordinator.

    coordinator: its URL.  Misconfigured: no number, or there is no way to the coordinator.
    """
    if told:
        try:
            address = ipaddress.ip_address(told.strip("[]"))
        except ValueError:
            address = None
        if address is None or address.is_unspecified:
            raise Misconfigured(f"mesh.address: {told!r}: an address of this host in numbers, as in 10.0.0.7")
        return str(address)
    host = "" if coordinator.startswith("ipc:") else urlsplit(coordinator).hostname or ""
    if _loopback(host) or host in ("", "localhost"):
        return "127.0.0.1"
    if _unspecified(host):
        host = "192.0.2.1"  # nobody's (RFC 5737): the way there is the one to everybody
    try:
        kind, _, _, _, there = network.getaddrinfo(host, urlsplit(coordinator).port or 1, type=network.SOCK_DGRAM)[0]
        with network.socket(kind, network.SOCK_DGRAM) as probe:
            probe.connect(there)  # nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        why = f"no way to the coordinator at {coordinator} ({error.strerror or error})"
        raise Misconfigured(f"mesh.address: {why}: say by which address of this host the others reach it") from None


def dialled(bound: str, address: str) -> str:
    """The URL under which others find what is bound there: on all addresses of this host, it is found at its own."""
    host, port = urlsplit(bound).hostname or "", bound.rpartition(":")[2]
    return at(address).replace("*", port) if _unspecified(host) else bound


def at(address: str) -> str:
    """The URL of any free port there."""
    return f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*"


def host_id() -> str:
    """16 hex digits: equal for processes that see the same files on the same machine since its last start, and thus for those that
    an ipc socket can join.  Tells nothing of the machine."""
    parts = [_read(Path("/proc/sys/kernel/random/boot_id")), _read(Path("/etc/machine-id"))]
    try:
        parts.append(os.readlink("/proc/self/ns/mnt"))
    except OSError:
        parts.append("")
    if not any(parts):
        parts.append(network.gethostname())
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
    try:
        for each in (_EVERY, *options):
            for option, value in each.items():
                made.setsockopt(option, value)
    except BaseException:
        made.close(0)
        raise
    return made


def _serving(keys: Keys | None) -> _Options:
    """Whoever comes is asked for a key that ZAP knows; without an answer from ZAP nobody comes in."""
    if keys is None:
        return {}
    _can_curve()
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_SECRETKEY: keys.secret.encode(),
        zmq.ZAP_DOMAIN: DOMAIN,
        zmq.ZAP_ENFORCE_DOMAIN: 1,
    }


def _asking(keys: Keys | None, server: str) -> _Options:
    if keys is None:
        return {}
    _can_curve()
    if not server:
        raise LookupError("it has no key: it speaks in the clear, and this process does not (mesh.curve)")
    return {
        zmq.CURVE_SERVERKEY: server.encode(),
        zmq.CURVE_PUBLICKEY: keys.public.encode(),
        zmq.CURVE_SECRETKEY: keys.secret.encode(),
    }


def _can_curve() -> None:
    if not zmq.has("curve"):
        raise Misconfigured("this libzmq was built without CURVE: reinstall pyzmq from its wheel, or set mesh.curve = false")


def _connected(made: Socket, url: str, witness: Witness | None) -> Socket:
    try:
        if witness is not None:
            witness(made)
        if "[" in url:
            made.setsockopt(zmq.IPV6, 1)
        made.connect(url)
    except BaseException:
        made.close(0)
        raise
    return made


def _bound(made: Socket, url: str, keys: Keys | None, remedy: str) -> str:
    try:
        made.bind(_address(made, url, keys))
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


def _address(made: Socket, url: str, keys: Keys | None) -> str:
    """As libzmq wants it.  Everything but loopback and files is for those with keys."""
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
        ipaddress.ip_address(host)
    except ValueError:
        if keys is not None:
            raise Misconfigured(f"{url}: not an address to listen on: one of this host in numbers, as in tcp://10.0.0.7:{port}") from None
    if keys is None and not _loopback(host):
        remedy = f"set mesh.curve = true, or listen on tcp://127.0.0.1:{port}"
        raise Misconfigured(f"{url}: refusing to listen beyond this machine without keys: {remedy}")
    if ":" in host:
        made.setsockopt(zmq.IPV6, 1)
        host = f"[{host}]"
    return f"tcp://{host}:{port}"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
