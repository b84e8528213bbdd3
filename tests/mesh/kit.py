"""A mesh of real processes for one test: toy stages, a state folder of its own, loopback only; whatever happens, nothing stays."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil
import zmq

from ifmesh import authorized, bags, config, identity, sockets, toy
from ifmesh.authorized import Entry
from ifmesh.cascade import BROUGHT, IF
from ifmesh.config import Config
from ifmesh.credentials import called
from ifmesh.identity import Identity
from ifmesh.protocol import (
    NEVER,
    Accepted,
    Books,
    Cancelled,
    Ended,
    Endpoint,
    Failed,
    Fetch,
    Finished,
    Header,
    Hi,
    Inspect,
    Preview,
    Result,
    ServiceRow,
    Submit,
    ToClient,
    ToCoordinator,
    Wanted,
    Welcome,
)
from ifmesh.request import STAGES, Request
from ifmesh.stage import Bag, Setup, Stage, Tensor
from ifmesh.wire import HEADER, TO_CLIENT, TO_COORDINATOR

LIMIT = 60.0
"""Seconds after which a test that waits has failed.  Generous: the machine may be busy."""

M = TypeVar("M")


class Speaker:
    """Speaks raw control messages with the coordinator, as a client does.  me: whose keys; None: in the clear."""

    def __init__(self, ctx: zmq.Context[zmq.Socket[bytes]], url: str, name: str, me: Identity | None) -> None:
        self._ctx, self._keys = ctx, me.keys if me else None
        self.socket = sockets.control_client(ctx, url, name.encode(), self._keys, me.server if me else "")
        self.heard: list[ToClient] = []
        self.payload = b""  # the second part of the last Result
        self.previews: list[tuple[Preview, bytes]] = []  # each with its frame
        self._outs: list[zmq.Socket[bytes]] = []

    def say(self, *parts: bytes) -> None:
        assert self.socket.poll(int(LIMIT * 1000), zmq.POLLOUT), "no connection to the coordinator"
        self.socket.send_multipart(parts)

    def send(self, message: ToCoordinator) -> None:
        self.say(TO_COORDINATOR.encode(message))

    def hear(self, limit: float = LIMIT) -> ToClient | None:
        """The next message; None when there is none in so many seconds."""
        if not self.socket.poll(int(limit * 1000)):
            return None
        parts = self.socket.recv_multipart()
        message = TO_CLIENT.decode(parts[0])
        if isinstance(message, Result):
            self.payload = parts[1]
        if isinstance(message, Preview):
            self.previews.append((message, parts[1]))
        self.heard.append(message)
        return message

    def until(self, kind: type[M], fits: Callable[[M], bool] = lambda _: True) -> M:
        """The next message of this kind that fits; what comes before it is only kept in `heard`."""
        end = time.monotonic() + LIMIT
        while (message := self.hear(max(0.0, end - time.monotonic()))) is not None:
            if isinstance(message, kind) and fits(message):
                return message
        raise AssertionError(f"no {kind.__name__}; so far {self.heard}")

    def ending(self, job: str) -> Ended:
        end = time.monotonic() + LIMIT
        while (message := self.hear(max(0.0, end - time.monotonic()))) is not None:
            if isinstance(message, Finished | Failed | Cancelled) and message.job == job:
                return message
        raise AssertionError(f"{job} does not end; so far {self.heard}")

    def finished(self, job: str) -> Finished:
        ending = self.ending(job)
        assert isinstance(ending, Finished), ending
        return ending

    def submit(self, job: str, request: Request, previews: bool = False) -> None:
        self.send(Submit(job, request, previews))

    def inlet(self) -> Endpoint:
        """Where uploads are pushed to."""
        self.send(Hi())
        return sockets.choose(self.until(Welcome).inlet, sockets.host_id())

    def bring(self, job: str, request: Request, upload: bytes, previews: bool = False) -> None:
        """Submitted, asked for what it brings, given it, and accepted."""
        self.submit(job, request, previews)
        assert self.until(Wanted, lambda m: m.job == job).digest == hashlib.sha256(upload).hexdigest() == request.upload
        self.push(uploaded(upload))
        self.until(Accepted, lambda m: m.job == job)

    def push(self, *deliveries: list[bytes]) -> None:
        """Each with its header, to the inlet of the coordinator; taken by libzmq when it returns.

        The socket stays open: of what a reader at its high-water mark has not yet read, libzmq loses the rest when the sender closes.
        """
        inlet = self.inlet()
        out = sockets.outlet(self._ctx, inlet.url, self._keys, inlet.key)
        self._outs.append(out)
        for delivery in deliveries:
            assert out.poll(int(LIMIT * 1000), zmq.POLLOUT)
            out.send_multipart(delivery)

    def close(self) -> None:
        for socket in (self.socket, *self._outs):
            socket.close(linger=int(LIMIT * 1000))

    def result(self, job: str) -> bytes:
        """The published frame."""
        self.send(Fetch(job))
        self.until(Result, lambda m: m.job == job)
        return self.payload

    def books(self, job: str = "") -> Books:
        self.send(Inspect(job=job))
        return self.until(Books)

    def when(self, holds: Callable[[Books], bool], job: str = "") -> Books:
        """The first books of which this holds."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            books = self.books(job)
            if holds(books):
                return books
            self.socket.poll(20)
        raise AssertionError(f"never came true; the last: {books}")


@dataclass(slots=True)
class Process:
    """One command of the mesh.  log: its stderr and stdout; keys: whose it has."""

    popen: subprocess.Popen[bytes]
    log: Path
    keys: str = "operator"
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def code(self) -> int:
        """Its exit code, once it has ended."""
        return self.popen.wait(LIMIT)

    def remember(self) -> None:
        """Take note of its children, so that they can be ended even when it is gone."""
        with suppress(psutil.NoSuchProcess):
            self.family = psutil.Process(self.pid).children(recursive=True) or self.family

    def kill(self) -> None:
        self.remember()
        if self.popen.poll() is None:
            self.popen.kill()
        for process in self.family:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def buried(self) -> bool:
        """Killed, and nothing of it lives: a zombie that nobody has fetched does not."""
        return self.popen.poll() is not None and not any(_lives(process) for process in self.family)


class Mesh:
    """settings: by dotted key, as in ifmesh.toml."""

    prefix: tuple[str, ...] = ()
    """Before each command: where it is to run."""

    def __init__(self, folder: Path, settings: Mapping[str, str | int | float] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.logs = folder / "logs"
        self._settings = {"mesh.state": str(self.state), "mesh.listen": "tcp://127.0.0.1:0", "cascade.toy": "true", **(settings or {})}
        self.processes: list[Process] = []
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._speakers = 0
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("IFMESH")}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            self.wait_for(process.buried)
            assert process.popen.stdin is not None
            process.popen.stdin.close()
        self._ctx.destroy(linger=0)
        shutil.rmtree(sockets.run_dir(self.state), ignore_errors=True)
        if kind is not None:
            for path in sorted(self.logs.iterdir()):
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-4000:]}")

    @property
    def config(self) -> Config:
        return config.read(None, self.environ, self._settings)

    @property
    def where(self) -> tuple[str, ...]:
        """The flags by which a command with a state folder of its own finds this mesh, and is let in."""
        return ("--coordinator", self.config.control(), "--set", f"mesh.identity={self.state / 'keys' / 'operator.key'}")

    def start(self, log: str, *arguments: str, program: tuple[str, ...] = ("ifmesh",)) -> Process:
        """`ifmesh ARGUMENTS`, tied to this process.  program: another module that does as much, with its own first arguments."""
        flags = [part for key, value in self._settings.items() for part in ("--set", f"{key}={value}")]
        command = [*self.prefix, sys.executable, "-m", *program, *arguments, "--tied", *flags]
        with open(self.logs / f"{log}.log", "ab") as out:
            popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=self.environ, process_group=0)
        process = Process(popen, self.logs / f"{log}.log")
        self.processes.append(process)
        return process

    def coordinator(self, program: tuple[str, ...] = ("ifmesh",)) -> Process:
        """Started and bound."""
        process = self.start("coordinator", "coordinator", program=program)
        process.keys = "coordinator"
        self.wait_for(lambda: f'"pid": {process.pid}' in _text(self.state / "endpoint.json"), process)
        return process

    def worker(self, stage: str, name: str = "") -> Process:
        process = self.start(name or f"{stage}-0", "worker", stage, "--name", name or f"{stage}-0")
        process.keys = f"worker-{stage}"
        return process

    def all(self, stages: tuple[str, ...] = STAGES) -> dict[str, Process]:
        """A coordinator and one ready worker of each stage."""
        processes = {"coordinator": self.coordinator(), **{stage: self.worker(stage) for stage in stages}}
        with self.speaker() as speaker:
            self.ready(speaker, *(f"{stage}-0" for stage in stages))
        return processes

    def identity(self, name: str = "operator") -> Identity | None:
        """Of this name, as the coordinator wrote it down; None: this mesh has no keys."""
        return identity.read(self.state / "keys" / f"{name}.key") if self.config.mesh.curve else None

    def invite(self, name: str, role: str = "client") -> Identity:
        """A new key that the coordinator knows, or is about to know."""
        made = Identity(name, role, identity.generate(), self._server(), self.config.control())
        authorized.add(self.state / "keys" / authorized.FILE, Entry(name, role, made.keys.public))
        return made

    @contextmanager
    def speaker(self, me: Identity | None = None, name: str = "") -> Iterator[Speaker]:
        """me: the operator, if nobody is named.  name: its routing id, instead of one of its own."""
        self._speakers += 1
        me = me or self.identity()
        speaker = Speaker(self._ctx, self.config.control(), name or called(me, f"kit-{os.getpid()}-{self._speakers}"), me)
        try:
            yield speaker
        finally:
            speaker.close()

    def ready(self, speaker: Speaker, *names: str) -> dict[str, ServiceRow]:
        """These services, once all of them are ready."""
        books = speaker.when(lambda b: set(names) <= {r.service for r in b.services if r.state in ("ready", "busy")})
        for process in self.processes:
            process.remember()
        return {row.service: row for row in books.services}

    def socket_files(self) -> list[Path]:
        return [path for path in sockets.run_dir(self.state).iterdir() if path.is_socket()]

    def inlets(self) -> list[Endpoint]:
        """The PULL of every process, by its ipc file and by tcp, with the key that it has there."""
        found: list[Endpoint] = []
        ours = {str(path) for path in self.socket_files()}
        for process in self.processes:
            me = self.identity(process.keys)
            key = me.keys.public if me else ""
            for one in [psutil.Process(process.pid), *process.family]:
                files = {c.laddr for c in one.net_connections("unix") if c.laddr in ours}
                ports = {c.laddr.port for c in one.net_connections("tcp4") if c.status == psutil.CONN_LISTEN}
                found += [Endpoint("here", f"ipc://{path}", key) for path in sorted(files)]
                found += [Endpoint("", f"tcp://127.0.0.1:{port}", key) for port in sorted(ports)]
        return [end for end in found if end.url != self.config.control()]

    @contextmanager
    def raw(self, kind: int, url: str, me: Identity | None = None, server: str = "") -> Iterator[zmq.Socket[bytes]]:
        """A socket of this kind, connected; me: with these keys, to who has the key `server`; None: in the clear."""
        socket = self._ctx.socket(kind)
        if me is not None:
            socket.curve_publickey, socket.curve_secretkey = me.keys.public.encode(), me.keys.secret.encode()
            socket.curve_serverkey = server.encode()
        socket.connect(url)
        try:
            yield socket
        finally:
            socket.close(linger=int(LIMIT * 1000))

    @contextmanager
    def pushing(self, end: Endpoint) -> Iterator[zmq.Socket[bytes]]:
        """A PUSH to this inlet, with the keys of one who may connect there: the coordinator, or to it a worker."""
        me, coordinator = self.identity("worker-encoder"), self.identity("coordinator")
        if me is not None and coordinator is not None and end.key != coordinator.keys.public:
            me = coordinator
        with self.raw(zmq.PUSH, end.url, me, end.key) as socket:
            yield socket

    def _server(self) -> str:
        me = self.identity()
        assert me is not None
        return me.server

    @staticmethod
    def wait_for(holds: Callable[[], bool], process: Process | None = None) -> None:
        """Until it holds; not for something that has no event of its own to wait for."""
        end = time.monotonic() + LIMIT
        while not holds():
            assert process is None or process.popen.poll() is None, f"it ended: {process.log.read_text()}"
            assert time.monotonic() < end, "never came true"
            select.select([], [], [], 0.01)  # a Poller of nothing would not wait


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def uploaded(frame: bytes, digest: str = "") -> list[bytes]:
    """An upload as it is pushed.  digest: under which name; its SHA-256, if nothing is said."""
    header = Header("upload", digest or hashlib.sha256(frame).hexdigest(), "", NEVER, bags.digest(frame))
    return [HEADER.encode(header), frame]


def bringing(request: Request, **brought: Tensor) -> tuple[Request, bytes]:
    """The request with these tensors of its own, and the upload."""
    frame = bags.encode(brought)
    names = tuple(name for name in BROUGHT if name in brought)
    return replace(request, brings=names, upload=hashlib.sha256(frame).hexdigest()), frame


def expected(
    request: Request, options: Mapping[str, Mapping[str, int]] | None = None, upload: bytes = b""
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the mesh is to publish for this request: the stages one after the other, in this process."""
    stages: dict[str, Stage] = {s.name: s for s in (toy.Encoder(), toy.StageOne(), toy.StageTwo(), toy.Upscaler(), toy.Guard())}
    bag = bags.decode(upload) if upload else {}
    for name in IF.route(request):
        stage = stages[name]
        stage.load(Setup(options=(options or {}).get(name)))
        stage.admit("expected", request, bag)
        output: Bag | None = None
        while output is None:
            output = next(iter(stage.step())).output
        bag = {**bag, **output}
        bag = {blob.name: bag[blob.name] for blob in IF.carries(request, name)}
    return plain(bag)


def plain(bag: Bag) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A bag in values that compare."""
    return {name: (t.dtype, tuple(t.shape), bytes(t.data)) for name, t in sorted(bag.items())}


def published(frame: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return plain(bags.decode(frame))
