"""The coordinator process: the Broker behind a ROUTER, a PULL for results, a PUSH per first-stage worker, a journal.

It decides nothing.  What must survive is on disk before anybody is told.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import zmq

from ifmesh import bags, exits, log, sockets, tied
from ifmesh.bell import Bell
from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.commands import Blame, Book, Close, Command, Give, Hand, Note, Policy, Send
from ifmesh.config import Config
from ifmesh.errors import Misconfigured
from ifmesh.inlet import deliveries
from ifmesh.journal import Journal
from ifmesh.log import Garbage, logger
from ifmesh.outlets import Outlets
from ifmesh.places import announce, remembered, socket_file, sweep, withdraw
from ifmesh.protocol import (
    Cancel,
    Endpoint,
    Fetch,
    Finished,
    Header,
    Inspect,
    Refused,
    Result,
    Submit,
    ToClient,
    ToCoordinator,
    Token,
    ToParent,
    ToWorker,
    Watch,
)
from ifmesh.wire import TO_CLIENT, TO_COORDINATOR, TO_PARENT, TO_WORKER, Door, Garbled, VersionMismatch

TURN = 256  # control messages in one turn: then what they led to is carried out
FAREWELL, AGAIN = 3.0, 0.5  # seconds in which all workers should have left, and between two farewells
HANDED = 4  # results of up to 64 MiB that may wait for one client to read them
# Seconds from the last word to a client to the end.  A DEALER that is IMMEDIATE drops what it has received, but its thread has not yet
# read, when the connection closes: one of ten results was lost so.
READ = 0.5
WRITING = 16  # results on their way to disk; the broker asks again for what is turned away


def run(config: Config, tied_: bool) -> int:
    """Serve until told to end; the exit code.

    0 drained; 1 a bug or a failing disk, told loudly; 3 the port or the state folder is taken; 75 told to stop twice.
    """
    log.start()
    if tied_:
        tied.to_stdin()
    try:
        return Coordinator(config).serve()
    except Misconfigured as error:
        logger.error("%s", error)
        return exits.CONFIGURATION
    except Exception as error:  # IllegalMove, a full disk: nobody was told what is not in the journal, so the next start is sound
        logger.critical("the coordinator stops: %s", error, exc_info=error)
        return exits.FAILURE


class Writer:
    """A thread that puts results on disk, so that the loop does not wait for the disk; it reports back by ringing."""

    def __init__(self, journal: Journal, bell: Bell) -> None:
        self._journal, self._bell = journal, bell
        self._todo: SimpleQueue[tuple[str, Token, bytes] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[str, Token, tuple[str, int] | OSError]] = SimpleQueue()
        self._busy: set[tuple[str, Token]] = set()
        self._thread = Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    def write(self, job: str, token: Token, frame: bytes) -> None:
        if (job, token) not in self._busy and len(self._busy) < WRITING:
            self._busy.add((job, token))
            self._todo.put((job, token, frame))

    def landed(self) -> list[tuple[str, Token, str, int]]:
        """Job, token, SHA-256 and size of each result that is on disk since the last time."""
        out = []
        with suppress(Empty):
            while True:
                job, token, what = self._done.get_nowait()
                self._busy.discard((job, token))
                if isinstance(what, OSError):
                    logger.error("the result cannot be written: %s", what, extra={"job": job})
                else:
                    out.append((job, token, *what))
        return out

    def stop(self) -> None:
        """Finish what is begun."""
        self._todo.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._todo.get()) is not None:
            job, token, frame = item
            try:
                self._done.put((job, token, self._journal.store(job, frame)))
            except OSError as error:
                self._done.put((job, token, error))
            self._bell.ring()


class Coordinator:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._garbage = Garbage()
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._bell = Bell()
        self._commands: list[Command] = []
        self._stops = 0
        self._end_by: float | None = None  # draining: when to say farewell at the latest
        self._gone_by: float | None = None  # farewell was said: when to end at the latest
        self._farewell_at = 0.0  # when to say it again
        self._handing: dict[bytes, list[zmq.MessageTracker]] = {}  # results that are still on their way, by client
        self._unfetched: set[tuple[bytes, str]] = set()  # draining: who was told of a picture and has not come for it
        self._read_at = 0.0  # when each client has read what it was told
        self._code: int | None = None

    def serve(self) -> int:
        self._journal = Journal.open(self._config.mesh.state)
        try:
            return self._serve()
        finally:
            self._journal.close()

    def _serve(self) -> int:
        state = self._config.mesh.state
        self._bell.answer((signal.SIGTERM, signal.SIGINT))
        self._control, url = self._bind()
        host = sockets.host_id()
        sweep(state)
        path = socket_file(state, "coordinator")
        self._inlet, urls = sockets.inlet(self._ctx, [f"ipc://{path}", "tcp://127.0.0.1:*"])
        inlet = tuple(Endpoint(host if u.startswith("ipc:") else "", u) for u in urls)
        patience = {stage: s.patience for stage, s in self._config.services.items() if s.patience > 0}
        policy = Policy(max_jobs=self._config.mesh.max_jobs, patience=patience)
        self._broker = Broker(IF, self._journal.epoch, inlet, policy)
        self._outlets = Outlets(self._ctx, host)
        self._writer = Writer(self._journal, self._bell)
        self._writer.start()
        known = self._journal.recover(policy.remember)  # it may take its time: the grace of the broker begins behind it
        self._commands += self._broker.recover(time.monotonic(), *known)
        self._carry_out()
        announce(state, url)
        logger.info("listening on %s, epoch %d, pid %d", url, self._journal.epoch, os.getpid())
        try:
            while self._code is None:
                self._turn()
        finally:
            self._writer.stop()
            self._outlets.close()
            self._inlet.close()
            self._control.close()
            with suppress(OSError):
                path.unlink()
        withdraw(state)
        self._ctx.term()  # the last words leave
        logger.info("ended, %d frames of garbage dropped", self._garbage.total)
        return self._code

    def _bind(self) -> tuple[zmq.Socket[bytes], str]:
        listen = self._config.mesh.listen
        again = remembered(self._config.mesh.state, listen)
        if again is not None:
            with suppress(Misconfigured):  # taken meanwhile: then any other
                return sockets.control_server(self._ctx, again)
        return sockets.control_server(self._ctx, listen)

    def _turn(self) -> None:
        """Wait for something, one round of everything, commit once, then carry out."""
        self._wait()
        self._outlets.flush(time.monotonic())
        for number in self._bell.hear():
            self._stop(number)
        self._hear()
        for header, frame in deliveries(self._inlet, "result", self._garbage):
            self._result(header, frame)
        for job, token, digest, size in self._writer.landed():
            self._commands += self._broker.landed(time.monotonic(), job, token, digest, size)
        wakeup = self._broker.wakeup()
        if wakeup is not None and wakeup <= time.monotonic():
            self._commands += self._broker.tick(time.monotonic())
        self._carry_out()
        if self._end_by is not None:
            self._leave(time.monotonic(), self._end_by)

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._inlet, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        for socket in self._outlets.waiting:
            poller.register(socket, zmq.POLLOUT)
        now = time.monotonic()
        mine = self._end_by if self._gone_by is None else self._farewell_at
        read = self._read_at if self._read_at > now else None
        until = min(t for t in (now + 1.0, self._broker.wakeup(), mine, read) if t is not None)
        poller.poll(int(max(0.0, until - now) * 1000) + 1)

    def _hear(self) -> None:
        for _ in range(TURN):
            try:
                peer, *parts = self._control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                if len(parts) != 1:
                    raise Garbled(f"{len(parts)} parts")
                message = TO_COORDINATOR.decode(parts[0])
            except VersionMismatch as error:
                self._garbage.dropped(repr(peer), error)
                self._commands.append(Send(peer, Refused("", "version", str(error))))
            except Garbled as error:
                self._garbage.dropped(repr(peer), error)
            else:
                self._recall(message)
                self._commands += self._broker.receive(time.monotonic(), peer, message)

    def _recall(self, message: ToCoordinator) -> None:
        """Does somebody ask about a job whose ending only the journal still knows?"""
        if not isinstance(message, Submit | Watch | Cancel | Fetch | Inspect) or not message.job:
            return
        if message.job in self._broker.jobs or message.job in self._broker.ended:
            return
        if (closed := self._journal.ending(message.job)) is not None:
            self._broker.recall(closed)

    def _result(self, header: Header, frame: bytes) -> None:
        """A finished job's pictures: to disk, if the broker waits for them and they are what the last stage gives."""
        if not self._broker.expects(header.job, header.token):
            return
        job = self._broker.jobs[header.job]
        try:
            bags.decode(frame, IF.carries(job.request, job.route[-1]))
        except Garbled as error:
            self._garbage.dropped(f"{header.stage}, for job {header.job},", error)
        else:
            self._writer.write(header.job, header.token, frame)

    def _carry_out(self) -> None:
        """One branch for each kind; the journal first."""
        commands, self._commands = self._commands, []
        self._journal.commit(commands)
        for command in commands:
            match command:
                case Send(peer, message):
                    if self._end_by is not None and isinstance(message, Finished):
                        self._unfetched.add((peer, message.job))
                    try:
                        self._say(peer, message)
                    except Garbled as error:  # what a stranger made us say is no reason to stop serving the others
                        self._garbage.dropped(repr(peer), error)
                case Give(job, token, stage, life, to):
                    frame = bags.encode({})
                    header = Header("bag", job, stage, token, bags.digest(frame))
                    self._outlets.send(time.monotonic(), life, to, header, frame)
                case Hand(peer, job, digest):
                    self._unfetched.discard((peer, job))
                    self._hand(peer, job, digest)
                case Note(job, text):
                    log.note(job, text)
                case Book() | Close() | Blame():
                    pass  # on disk already

    def _hand(self, peer: bytes, job: str, digest: str) -> None:
        """The picture, unless this client has not even taken the last few: it asks again, ever more slowly."""
        self._handing = {who: left for who, all_ in self._handing.items() if (left := [t for t in all_ if not t.done])}
        if len(self._handing.get(peer, ())) >= HANDED:
            return
        try:
            payload = self._journal.load(job)
        except OSError as error:
            logger.error("the result cannot be read: %s", error, extra={"job": job})
            payload = None
        if payload is None:
            self._say(peer, Refused(job, "unknown", "the result is no longer on disk"))
        else:
            self._say(peer, Result(job, digest), payload)

    def _say(self, peer: bytes, message: ToClient | ToWorker | ToParent, *payload: bytes) -> None:
        if self._end_by is not None and isinstance(message, ToClient):
            self._read_at = time.monotonic() + READ
        try:
            tracker = self._control.send_multipart([peer, _encode(message), *payload], zmq.DONTWAIT, copy=not payload, track=bool(payload))
            if tracker is not None:
                self._handing.setdefault(peer, []).append(tracker)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._broker.gone(time.monotonic(), peer)
            self._unfetched = {(waiting, job) for waiting, job in self._unfetched if waiting != peer}

    def _stop(self, received: signal.Signals) -> None:
        """The first time: finish what is under way.  The second time: now; the journal knows the rest."""
        self._stops += 1
        if self._stops > 1:
            logger.warning("%s again: ending at once", received.name)
            self._end(exits.AT_ONCE)
        else:
            logger.info("%s: draining for at most %g s", received.name, self._config.mesh.drain)
            self._end_by = time.monotonic() + self._config.mesh.drain
            self._commands += self._broker.drain(time.monotonic())

    def _leave(self, now: float, end_by: float) -> None:
        """Nothing is under way, or its time is over: farewell, until all workers have left and the last pictures were fetched, or for a
        few seconds.

        Said once it may be lost with the connection that is closed behind it, and a worker that waits for a Release needs an answer.
        """
        if self._gone_by is None:
            if now < end_by and not (self._broker.drained and not self._writer.busy):
                return
            self._gone_by = now + FAREWELL
        if (now >= self._read_at and not (self._broker.roster.lives or self._unfetched)) or now >= self._gone_by:
            self._end(0)
        elif now >= self._farewell_at:
            self._farewell_at = now + AGAIN
            self._commands += self._broker.farewell()
            self._carry_out()

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code


def _encode(message: ToClient | ToWorker | ToParent) -> bytes:
    """Through the door that this kind of message goes through."""
    door: Door[Any] = TO_CLIENT if isinstance(message, ToClient) else TO_WORKER if isinstance(message, ToWorker) else TO_PARENT
    return door.encode(message)
