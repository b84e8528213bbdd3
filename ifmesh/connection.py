"""A client's connection: a Caller behind a DEALER, the thread that owns both, and the files that others wait on."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import zmq

from ifmesh import caller, sockets, wire
from ifmesh.errors import Lost, MeshError, Misconfigured
from ifmesh.image import Image
from ifmesh.protocol import (
    Accepted,
    Books,
    Cancelled,
    ClientMessage,
    Ended,
    Failed,
    Finished,
    Progress,
    Queued,
    Refused,
    Request,
    Result,
    Started,
    ToClient,
    Welcome,
)

log = logging.getLogger(__name__)

NEWS = 1000  # events kept for each job; whoever reads more slowly misses the oldest
PROMISED = 6  # an accepted job outlives its coordinator: a restart is waited for so many times as long as a first answer
REMEDY = "start it with `ifmesh up`, or say where it is (IFMESH_COORDINATOR, --coordinator)"

Event = Queued | Started | Progress | Ended
Wish = Callable[[caller.Caller, float], list[caller.Command]]


class File:
    """What is known of one job, or (id "") of the mesh.  Everything but the id is under `changed`."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.changed = threading.Condition()
        self.request: Request | None = None
        self.accepted = False
        self.events: deque[Event] = deque(maxlen=NEWS)
        self.heard = 0  # events so far, those that fell out of the deque included
        self.ending: Ended | None = None
        self.refused: Refused | None = None
        self.frame: bytes | None = None
        self.image: Image | None = None
        self.welcome: Welcome | None = None
        self.books: Books | None = None

    def add(self, message: ToClient, payload: bytes) -> None:
        with self.changed:
            match message:
                case Accepted():
                    self.accepted = True
                case Refused():
                    self.refused = message
                case Result():
                    self.frame = payload
                case Welcome():
                    self.welcome = message
                case Books():
                    self.books = message
                case _ if self.ending is None:
                    self.accepted = True
                    self.events.append(message)
                    self.heard += 1
                    if isinstance(message, Finished | Failed | Cancelled):
                        self.ending = message
                case _:
                    return  # it has ended, and that was told
            self.changed.notify_all()


class Connection:
    """One connection and the thread that owns it.  Others only post wishes and wait on files.  Starts when told, not before."""

    def __init__(self, find: Callable[[], str], mind: caller.Caller) -> None:
        self.address = find()
        self.heard = time.monotonic()
        self.rebuilt = 0  # new sockets since anything was heard
        self.failure: MeshError | None = None
        self.mesh = File("")
        self._find = find
        self._mind = mind
        self._files: weakref.WeakValueDictionary[str, File] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()  # over _files, _wishes and _wake; the garbage collector may call stop() while we hold it
        self._wishes: deque[Wish] = deque()
        self._stopping = False
        self._unsent: deque[ClientMessage] = deque()
        self._name = f"client.{secrets.token_hex(8)}"
        self._opened = 0
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control: zmq.Socket[bytes] | None = None
        self._wake = self._ctx.socket(zmq.PAIR)
        self._woken = self._ctx.socket(zmq.PAIR)
        self._thread = threading.Thread(target=self._run, name="ifmesh-client", daemon=True)

    # ---- any thread

    def start(self) -> None:
        """Misconfigured: no such address."""
        self._woken.bind("inproc://wake")
        self._wake.connect("inproc://wake")
        try:
            self._open()
        except zmq.ZMQError as error:
            self._ctx.destroy(linger=0)
            raise Misconfigured(f"mesh.coordinator: {self.address!r}: {error}; tcp://HOST:PORT") from None
        self._thread.start()

    def post(self, wish: Wish) -> None:
        with self._lock:
            self._wishes.append(wish)
            self._poke()

    def file(self, job: str, anew: bool = False) -> File:
        """The job's file; there is one as long as anybody holds it.  anew: a fresh one, whatever the old one says."""
        with self._lock:
            found = None if anew else self._files.get(job)
            if found is None:
                found = self._files[job] = File(job)
            return found

    def stop(self) -> None:
        """What was asked so far is still sent, if somebody takes it at once; then the thread ends."""
        with self._lock:
            self._stopping = True
            self._poke()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def wait(self, file: File, ready: Callable[[], bool], patience: float, timeout: float | None, about: str = "") -> None:
        """Until `ready`, asked under file.changed.  TimeoutError: not within timeout; Lost: the mesh was silent for `patience`."""
        began = time.monotonic()
        with file.changed:
            while not ready():
                if self.failure is not None:
                    raise type(self.failure)(*self.failure.args)
                now = time.monotonic()
                if timeout is not None and now - began >= timeout:
                    raise TimeoutError(f"job {file.job}: not finished within {timeout:g} s; it goes on, its id stays good")
                since = max(began, self.heard)
                lost = since + patience * (PROMISED if file.accepted else 1)
                # A silence counts when the thread has found it as well: after a sleep of the whole process the mail is only unread.
                if now >= lost and self.rebuilt:
                    raise Lost(f"no answer{about} from the mesh at {self.address} for {now - since:.0f} s: {REMEDY}")
                pauses = [lost - now if lost > now else 0.1]
                if timeout is not None:
                    pauses.append(began + timeout - now)
                file.changed.wait(min(pauses))

    def _poke(self) -> None:
        if not self._wake.closed:
            with suppress(zmq.ZMQError):  # full: there are wakes enough under way
                self._wake.send(b"", zmq.DONTWAIT)

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping and self.failure is None:
                self._turn()
            self._wished()  # the last words
            self._send()
            self.failure = self.failure or MeshError("this client is closed")
        except Exception as error:
            log.exception("the connection to the mesh broke")
            self.failure = MeshError(f"the client's own connection broke: {error!r}")
        with self._lock:
            self._wake.close(linger=0)
            self._woken.close(linger=0)
            files = [self.mesh, *self._files.values()]
        if self._control is not None:
            self._control.close(linger=500)  # milliseconds, if anybody listens
        self._ctx.term()
        for file in files:
            with file.changed:
                file.changed.notify_all()

    def _turn(self) -> None:
        """Wait for a wish, a message or the time; do what the mind says."""
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        if self._control is not None:
            poller.register(self._control, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
        wakeup = self._mind.wakeup()
        poller.poll(None if wakeup is None else max(0, int((wakeup - time.monotonic()) * 1000) + 1))
        while self._woken.poll(0):
            self._woken.recv(zmq.DONTWAIT)
        self._receive()  # before the time is looked at: what lay here while we slept counts as heard
        self._wished()
        self._carry_out(self._mind.tick(time.monotonic()))
        self._send()

    def _wished(self) -> None:
        with self._lock:
            wishes, self._wishes = self._wishes, deque()
        for wish in wishes:
            self._carry_out(wish(self._mind, time.monotonic()))

    def _receive(self) -> None:
        for _ in range(100):
            if self._control is None:
                return
            try:
                parts = self._control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message, payload = wire.TO_CLIENT.decode(parts[0]), b"".join(parts[1:])
                if isinstance(message, Result) and hashlib.sha256(payload).hexdigest() != message.digest:
                    raise wire.Garbled(f"result of {message.job}: not the bytes that were published")
            except wire.VersionMismatch as error:
                self.failure = versions(self.address, str(error))
                return
            except wire.Garbled as error:
                log.warning("dropped a frame from %s: %s", self.address, error)
                continue
            self.heard, self.rebuilt = time.monotonic(), 0
            self._carry_out(self._mind.receive(self.heard, message, payload))

    def _carry_out(self, commands: list[caller.Command]) -> None:
        for command in commands:
            match command:
                case caller.Send(message):
                    self._unsent.append(message)
                case caller.Tell(job, message, payload):
                    self._tell(job, message, payload)
                case caller.Rebuild():
                    self.rebuilt += 1
                    self._unsent.clear()  # the mind asks for all of it again
                    try:
                        self._open()
                    except zmq.ZMQError as error:  # no descriptor left, say: the next Rebuild tries again
                        log.warning("no socket to %s: %s", self.address, error)

    def _tell(self, job: str, message: ToClient, payload: bytes) -> None:
        if isinstance(message, Refused) and message.reason == "version":
            self.failure = versions(self.address, message.detail)
            return
        with self._lock:
            file = self._files.get(job) if job else self.mesh
        if file is None:
            self._mind.forget(job)  # nobody holds it any more
        else:
            file.add(message, payload)

    def _open(self) -> None:
        if self._control is not None:
            self._control.close(linger=0)
            self._control = None
        self.address = self._find()  # a coordinator that came back may listen elsewhere
        if self.address.endswith(":0"):  # "any port", and it has not said yet which
            return
        self._opened += 1  # a new name each time: the other side may still hold the old one for alive
        self._control = sockets.control_client(self._ctx, self.address, f"{self._name}.{self._opened}".encode())

    def _send(self) -> None:
        while self._unsent and self._control is not None:
            try:
                self._control.send(wire.TO_COORDINATOR.encode(self._unsent[0]), zmq.DONTWAIT)
            except zmq.Again:
                return
            self._unsent.popleft()


def versions(address: str, detail: str) -> MeshError:
    return MeshError(f"{address}: {detail}")
