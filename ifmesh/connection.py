"""A client's connection: a Caller behind a DEALER, the thread that owns both, and how to wait for what it hears."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf

import zmq

from ifmesh import bags, caller, credentials, sockets, wire
from ifmesh.errors import Lost, MeshError, Misconfigured
from ifmesh.file import File
from ifmesh.identity import Identity
from ifmesh.line import Line
from ifmesh.parcels import Parcels
from ifmesh.protocol import ClientMessage, Refused, Result, ToClient, Welcome
from ifmesh.request import Request
from ifmesh.sockets import Socket, Witness
from ifmesh.talk import Pause, Signal, Talk

log = logging.getLogger(__name__)

LINGER = 2.0  # seconds for the last words, where somebody takes them ...
SOONEST, LATEST = 0.2, 5.0  # seconds between which a link that was refused is tried again
LAST_WORDS = 2.5  # ... and for the thread to end, when the program does
PROMISED = 6  # an accepted job outlives its coordinator: a restart is waited for so many times as long as a first answer
REMEDY = "start it with `ifmesh up`, or say where it is (IFMESH_COORDINATOR, --coordinator)"

Wish = Callable[[caller.Caller, float], list[caller.Command]]


class Connection:
    """One connection and the thread that owns it.  Others only post wishes and wait on files.  Starts when told, not before."""

    def __init__(self, find: Callable[[], str], mind: caller.Caller, me: Identity | None = None) -> None:
        self.address = find()
        self.heard = time.monotonic()
        self.rebuilt = 0  # new sockets since anything was heard
        self.failure: MeshError | None = None
        self.ended = Signal()
        self.mesh = File("")
        self._find = find
        self._mind = mind
        self.me = me
        self._files: weakref.WeakValueDictionary[str, File] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()  # over _files, _wishes and _wake; the garbage collector may call stop() while we hold it
        self._wishes: deque[Wish] = deque()
        self._stopping = False
        self._unsent: deque[ClientMessage] = deque()
        self._name = credentials.called(me, f"client.{secrets.token_hex(8)}")
        self._opened = 0
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._line = Line(self._made, SOONEST, LATEST)
        self._parcels = Parcels(self._ctx, me.keys if me is not None else None)
        self._wake = self._ctx.socket(zmq.PAIR)
        self._woken = self._ctx.socket(zmq.PAIR)
        self._thread = threading.Thread(target=self._run, name="ifmesh-client", daemon=True)

    # ---- any thread

    @property
    def over(self) -> bool:
        """It has ended, or is about to: whoever has a question needs another."""
        return self._stopping or self.failure is not None

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

    def submit(self, file: File, request: Request, frame: bytes) -> None:
        """frame: what the request brings, kept until the mesh has it; b"" for nothing, or for what only the mesh has."""
        job = file.job

        def wish(mind: caller.Caller, now: float) -> list[caller.Command]:
            if frame:
                self._parcels.keep(request.upload, frame)
            return mind.submit(now, job, request, kept=not frame)

        self.post(wish)

    def cancel(self, job: str) -> None:
        self.post(lambda mind, now: mind.cancel(now, job))

    def end(self, why: MeshError | None = None) -> None:
        """What was asked so far is still sent, if somebody takes it; then the thread ends.  why: told to all who wait."""
        with self._lock:
            self.failure = self.failure or why
            self._stopping = True
            self._poke()

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def farewell(self) -> None:
        """The program ends, and with it the thread: it gets a moment to say what it has to."""
        if self._thread.is_alive():
            self.end()
            self._thread.join(LAST_WORDS)

    def closing(self, why: MeshError | None = None) -> Talk[None]:
        """`stop`, for those who must not block."""
        self.end(why)
        yield Pause(self.ended, 0, None)
        self._thread.join()

    def wait(
        self, file: Signal, ready: Callable[[], bool], patience: Callable[[], float], limit: float | None, late: str, about: str = ""
    ) -> Talk[None]:
        """Until `ready`, asked under the file's lock.

        TimeoutError(late): not before `limit`, on the monotonic clock; Lost: the mesh was silent for `patience` seconds.
        """
        began = time.monotonic()
        while True:
            with file.lock:
                if ready():
                    return
                seen = file.changes
            if self.failure is not None:
                raise type(self.failure)(*self.failure.args)
            now = time.monotonic()
            if limit is not None and now >= limit:
                raise TimeoutError(late)
            since = max(began, self.heard)
            lost = since + patience()
            # A silence counts when the thread has found it as well: after a sleep of the whole process the mail is only unread.
            if now >= lost and self.rebuilt:
                raise Lost(f"no answer{about} from the mesh at {self.address} for {now - since:.0f} s: {self._remedy()}")
            pauses = [lost - now if lost > now else 0.1]
            if limit is not None:
                pauses.append(limit - now)
            yield Pause(file, seen, min(pauses))

    def _remedy(self) -> str:
        trouble = self._line.trouble
        if not trouble or self.me is None:
            return trouble or REMEDY
        return f"{trouble}; this is {self.me.name}, {self.me.role} ({self.me.keys.public}): `ifmesh invite` on its host makes another"

    def _poke(self) -> None:
        if not self._wake.closed:
            with suppress(zmq.ZMQError):  # full: there are wakes enough under way
                self._wake.send(b"", zmq.DONTWAIT)

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping and self.failure is None:
                self._turn()
            self._wished()
            self._say_last()
            self.failure = self.failure or MeshError("this client is closed")
        except Exception as error:
            log.exception("the connection to the mesh broke")
            self.failure = MeshError(f"the client's own connection broke: {error!r}")
        with self._lock:
            self._wake.close(linger=0)
            self._woken.close(linger=0)
            files = [self.mesh, *self._files.values()]
        self._parcels.reset()
        self._line.close(linger=int(LINGER * 1000))  # if anybody listens
        self._ctx.term()
        for file in files:
            file.changed()
            file.over.changed()
        self.ended.changed()

    def _turn(self) -> None:
        """Wait for a wish, a message or the time; do what the mind says."""
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        self._line.register(poller, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))
        self._parcels.register(poller)
        wakeup = min(inf if t is None else t for t in (self._mind.wakeup(), self._line.wakeup(), self._parcels.wakeup()))
        poller.poll(None if wakeup == inf else max(0, int((wakeup - time.monotonic()) * 1000) + 1))
        while self._woken.poll(0):
            self._woken.recv(zmq.DONTWAIT)
        self._receive()  # before the time is looked at: what lay here while we slept counts as heard
        self._wished()
        self._carry_out(self._mind.tick(time.monotonic()))
        self._redial()
        self._send()
        self._parcels.sift(self._mind.needs)
        self._parcels.flush(time.monotonic())

    def _wished(self) -> None:
        with self._lock:
            wishes, self._wishes = self._wishes, deque()
        for wish in wishes:
            self._carry_out(wish(self._mind, time.monotonic()))

    def _receive(self) -> None:
        for _ in range(100):
            if self._line.socket is None:
                return
            try:
                first, *rest = sockets.received(self._line.socket, 1)
            except zmq.Again:
                return
            try:
                if len(rest) > 1:
                    raise wire.Garbled("more than two parts")
                message, payload = wire.TO_CLIENT.decode(first.bytes), rest[0].buffer if rest else b""  # not copied
                if isinstance(message, Result) and not bags.intact(payload, message.digest):
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
                case caller.Upload(digest):
                    self._parcels.push(time.monotonic(), digest)
                case caller.Rebuild():
                    self.rebuilt += 1
                    self._parcels.reset()  # their links may be as dead
                    self._unsent.clear()  # the mind asks for all of it again
                    try:
                        self._open()
                    except zmq.ZMQError as error:  # no descriptor left, say: the next Rebuild tries again
                        log.warning("no socket to %s: %s", self.address, error)

    def _tell(self, job: str, message: ToClient, payload: wire.Frame) -> None:
        if isinstance(message, Refused) and message.reason == "version":
            self.failure = versions(self.address, message.detail)
            return
        if isinstance(message, Welcome):
            self._parcels.welcome(message.epoch, message.inlet)
        with self._lock:
            file = self._files.get(job) if job else self.mesh
        if file is None:
            self._mind.forget(job)  # nobody holds it any more
        else:
            file.add(message, payload)

    def _open(self) -> None:
        self._line.close(linger=0)
        self.address = self._find()  # a coordinator that came back may listen elsewhere
        if not self.address.endswith(":0"):  # "any port", and it has not said yet which
            self._line.dial()

    def _redial(self) -> None:
        """If the link was given up, and it is time."""
        try:
            self._line.tend(time.monotonic())
        except zmq.ZMQError as error:
            log.warning("no socket to %s: %s", self.address, error)

    def _made(self, witness: Witness) -> Socket:
        self._opened += 1  # a new name each time: the other side may still hold the old one for alive
        keys, server = (None, "") if self.me is None else (self.me.keys, self.me.server)
        return sockets.control_client(self._ctx, self.address, f"{self._name}.{self._opened}".encode(), keys, server, witness)

    def _send(self) -> None:
        while self._unsent and self._line.socket is not None:
            try:
                self._line.socket.send(wire.TO_COORDINATOR.encode(self._unsent[0]), zmq.DONTWAIT)
            except zmq.Again:
                return
            self._unsent.popleft()

    def _say_last(self) -> None:
        """What is still unsaid.  There may be more of it than the socket takes at once: wait for one who was heard."""
        end = time.monotonic() + LINGER
        self._send()
        while self._unsent and self._line.socket is not None and self.mesh.welcome is not None and not self.rebuilt:
            if not self._line.socket.poll(max(0, int((end - time.monotonic()) * 1000)), zmq.POLLOUT):
                return
            self._send()


def versions(address: str, detail: str) -> MeshError:
    return MeshError(f"{address}: {detail}")
