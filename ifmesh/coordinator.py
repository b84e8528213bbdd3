"""The coordinator process: the Broker behind a ROUTER, a PULL for results, early pictures and uploads, a PUSH per first-stage worker,
a journal.

It decides nothing.  What must survive is on disk before anybody is told.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import zmq

from ifmesh import authorized, bags, credentials, exits, log, sockets, tied
from ifmesh.bell import Bell
from ifmesh.broker import Broker
from ifmesh.cascade import IF
from ifmesh.checkpoints import Checkpoints
from ifmesh.commands import Blame, Book, Close, Command, Discard, Forget, Give, Hand, Hold, Note, Policy, Restore, Send
from ifmesh.config import Config
from ifmesh.counter import Counter
from ifmesh.descriptors import Count
from ifmesh.disk import Disk
from ifmesh.errors import Misconfigured
from ifmesh.farewell import Farewell
from ifmesh.gate import Gate
from ifmesh.identity import Keys
from ifmesh.intake import Intake
from ifmesh.journal import Journal
from ifmesh.log import Garbage, logger
from ifmesh.mail import NEWS, PREVIEWS, Mail, Message
from ifmesh.memory import Tidy
from ifmesh.meter import Meter
from ifmesh.outlets import TRIES, Outlets
from ifmesh.places import announce, remembered, socket_file, sweep, withdraw
from ifmesh.prober import Cast
from ifmesh.protocol import (
    Cancel,
    Endpoint,
    Fetch,
    Header,
    Inspect,
    Preview,
    Refused,
    Result,
    Submit,
    ToClient,
    ToCoordinator,
    Watch,
)
from ifmesh.retention import Retention
from ifmesh.schema import Unwritable
from ifmesh.wire import TO_COORDINATOR, Garbled, VersionMismatch
from ifmesh.writer import Landed, Stored, Unstored, Writer
from ifmesh.zap import Zap

TURN = 256  # control messages in one turn: then what they led to is carried out
PAUSE = 0.5  # seconds at most between two looks at who may speak
EMPTY = bags.encode({})  # the first bag of a job that brings nothing
TIDY = 1.0  # seconds between two looks at the disk
VOLATILE = 1 << 30  # bytes of all results together, at the most, where they are in memory
LOST = {
    "lazy": "a loss of power may lose what was accepted and finished in the last second; the death of a process loses nothing",
    "none": "jobs and results are gone when this process ends, however it ends",
}


def run(config: Config, tied_: bool) -> int:
    """Serve until told to end; the exit code.

    0 drained; 1 a bug, told loudly, or a disk that failed at the start; 3 the port or the journal is taken, or the journal is damaged;
    75 told to stop twice.
    """
    log.start()
    if tied_:
        tied.to_stdin()
    try:
        return Coordinator(config).serve()
    except Misconfigured as error:
        logger.error("%s", error)
        return exits.CONFIGURATION
    except Unwritable as error:  # at the start; later it is waited for
        logger.error("%s: the journal cannot be opened: %s", config.mesh.state, error)
        return exits.FAILURE
    except Exception as error:  # IllegalMove: nobody was told what is not in the journal, so the next start is sound
        logger.critical("the coordinator stops: %s", error, exc_info=error)
        return exits.FAILURE


class Coordinator:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._garbage = Garbage()
        self._descriptors = Count()
        self._memory = Tidy()
        self._ctx = sockets.context()
        self._bell = Bell()
        self._commands: list[Command] = []
        self._stops = 0
        self._tidied = 0.0
        self._farewell = Farewell()
        self._code: int | None = None

    def serve(self) -> int:
        mesh = self._config.mesh
        self._journal = Journal.open(mesh.state, mesh.durability)
        self._disk = Disk(self._journal, mesh.reserve_bytes)
        if mesh.durability != "full":
            logger.warning("mesh.durability is %r: %s", mesh.durability, LOST[mesh.durability])
        try:
            return self._serve()
        finally:
            self._journal.close()

    def _serve(self) -> int:
        state = self._config.mesh.state
        self._bell.answer((signal.SIGTERM, signal.SIGINT))
        me = credentials.of_coordinator(self._config)
        keys, public = (None, "") if me is None else (me.keys, me.keys.public)
        table = None if me is None else authorized.Authorized(state / "keys" / authorized.FILE)
        self._gate = Gate(table, public, self._journal.epoch)
        self._gate.refresh(time.monotonic())
        self._zap = Zap(self._ctx, self._gate.lets)
        self._zap.start()
        self._control, url = self._bind(keys)
        self._mail = Mail(self._control)
        self._counter = Counter(self._mail, self._journal.load, self._say)
        host = sockets.host_id()
        sweep(state)
        path = socket_file(state, "coordinator")
        address = sockets.own_address(self._config.mesh.address, url)
        self._inlet, urls = sockets.inlet(self._ctx, [f"ipc://{path}", sockets.at(address)], keys)
        self._meter = Meter({**sockets.bounds(urls, sockets.UNHEARD), **sockets.bounds([url], sockets.UNHEARD_CONTROL)})
        inlet = tuple(Endpoint(host if u.startswith("ipc:") else "", u, public) for u in urls)
        url = sockets.dialled(url, address)
        patience = {stage: s.patience for stage, s in self._config.services.items() if s.patience > 0}
        mesh = self._config.mesh
        policy = Policy(
            max_jobs=mesh.max_jobs,
            patience=patience,
            silence=mesh.silence,
            grace=mesh.grace,
            transfer=mesh.transfer,
            slowest=mesh.slowest_link,
            checkpoints=mesh.checkpoint_bytes > 0,
            max_phase=mesh.max_phase,
        )
        self._broker = Broker(IF, self._journal.epoch, inlet, policy)
        self._outlets = Outlets(self._ctx, host, keys, TRIES * mesh.transfer, slowest=mesh.slowest_link)
        self._checkpoints = Checkpoints(self._config.mesh.checkpoint_bytes)
        self._writer = Writer(self._journal, self._bell, self._garbage)
        self._writer.start()
        edges = self._inlet, self._meter, self._gate
        self._intake = Intake(*edges, self._broker, self._writer, self._checkpoints, self._outlets, self._garbage, self._show)
        most = min(mesh.results_bytes, VOLATILE) if mesh.durability == "none" else mesh.results_bytes
        self._retention = Retention(self._journal, self._writer, mesh.keep_results, most)
        known = self._journal.recover(policy.remember)  # it may take its time: the grace of the broker begins behind it
        self._commands += self._broker.recover(time.monotonic(), *known, self._journal.uploads(), self._journal.held())
        self._retention.begin()
        self._carry_out()
        announce(state, url)
        logger.info("listening on %s, epoch %d, pid %d", url, self._journal.epoch, os.getpid())
        try:
            while self._code is None:
                self._turn()
        finally:
            self._writer.stop()
            if self._disk.waiting:
                logger.error("ending, and the disk has not taken the last of the journal: nobody was told of that")
            self._mail.flush()
            self._outlets.close()
            self._inlet.close()
            self._control.close()
            with suppress(OSError):
                path.unlink()
        withdraw(state)
        self._ctx.term()  # the last words leave
        logger.info("ended, %d frames of garbage dropped", self._garbage.total)
        return self._code

    def _bind(self, keys: Keys | None) -> tuple[zmq.Socket[bytes], str]:
        listen = self._config.mesh.listen
        again = remembered(self._config.mesh.state, listen)
        if again is not None:
            with suppress(Misconfigured):  # taken meanwhile: then any other
                return sockets.control_server(self._ctx, again, keys)
        return sockets.control_server(self._ctx, listen, keys)

    def _turn(self) -> None:
        """Wait for something, one round of everything, commit once, then carry out."""
        ready = self._wait()
        log.tend(time.monotonic())
        self._outlets.flush(time.monotonic(), ready)
        self._gossip(time.monotonic())
        for number in self._bell.hear():
            self._stop(number)
        self._zap.tend(time.monotonic())
        self._descriptors.look(time.monotonic())
        self._meter.look(time.monotonic())
        self._memory.look(time.monotonic())
        self._reread()
        if self._disk.waiting:
            self._bide()
            return
        self._landed()  # first: what is begun in this turn counts as busy until its end, and so is not discarded
        self._hear()
        self._commands += self._intake.unload(time.monotonic())
        wakeup = self._broker.wakeup()
        if wakeup is not None and wakeup <= time.monotonic():
            self._commands += self._broker.tick(time.monotonic())
        self._carry_out()
        self._counter.serve(time.monotonic())
        self._tidy(time.monotonic())
        self._leave(time.monotonic())

    def _bide(self) -> None:
        """A turn in which the disk does not take what was decided: nothing more is."""
        self._hear()
        self._carry_out()
        if not self._disk.waiting:
            self._broker.slept(time.monotonic())
        self._leave(time.monotonic())

    def _tidy(self, now: float) -> None:
        """What is over, once in a while."""
        if now >= self._tidied + TIDY:
            self._tidied = now
            self._disk.watch()
            self._writer.sync()
        if not self._disk.waiting:
            self._broker.forget(self._retention.turn(now, self._broker.jobs))

    def _wait(self) -> set[object]:
        """The sockets and descriptors on which something has happened."""
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        if not self._disk.waiting and self._intake.open:
            poller.register(self._inlet, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        self._outlets.register(poller)
        now = time.monotonic()
        mine = (self._disk.due,) if self._disk.waiting else (self._broker.wakeup(), self._retention.due)
        theirs = (self._outlets.wakeup(), self._mail.due, self._counter.due, self._farewell.wakeup(now), log.wakeup())
        until = min(t for t in (now + PAUSE, *mine, *theirs) if t is not None)
        return {who for who, _ in poller.poll(int(max(0.0, until - now) * 1000) + 1)}

    def _reread(self) -> None:
        """Who may speak, as the table has it now.  Whose key was revoked is lost at once: what it does counts for nothing."""
        if self._gate.refresh(time.monotonic()):
            for life in self._gate.revoked(self._broker.roster.lives):
                self._commands += self._broker.revoked(time.monotonic(), life)

    def _hear(self) -> None:
        for _ in range(TURN):
            try:
                first, *parts = sockets.received(self._control, 2)
            except zmq.Again:
                return
            self._meter.heard(first)
            peer = first.bytes
            try:
                self._heard(peer, parts)
            except VersionMismatch as error:
                self._garbage.dropped(repr(peer), error)
                self._commands.append(Send(peer, Refused("", "version", str(error))))
            except Garbled as error:
                self._garbage.dropped(repr(peer), error)

    def _heard(self, peer: bytes, parts: list[zmq.Frame]) -> None:
        """Garbled: it is no message, or not one that the speaker may say."""
        speaker = self._gate.speaker(peer, sockets.speaker(parts[0]))
        if len(parts) != 1:
            raise Garbled("more than one part")
        message = TO_COORDINATOR.decode(parts[0].bytes)
        owner = self._gate.owner(speaker, peer, message)
        if self._gate.misplaced(speaker, message):
            self._commands.append(Send(peer, Refused("", "invalid", "Hello: endpoints with a key that is not the speaker's")))
            return
        if not self._recall(message) or self._answered(peer, message):
            return
        self._commands += self._broker.receive(time.monotonic(), peer, message, owner)
        if (trusted := self._gate.trusted(message)) is not None:
            self._commands.append(Send(peer, trusted))

    def _recall(self, message: ToCoordinator) -> bool:
        """Does somebody ask about a job whose ending only the journal still knows?  False: it cannot be read now."""
        if not isinstance(message, Submit | Watch | Cancel | Fetch | Inspect) or not message.job:
            return True
        if message.job in self._broker.jobs or message.job in self._broker.ended:
            return True
        try:
            closed = self._journal.ending(message.job)
        except Unwritable as error:
            logger.error("the journal cannot be read: %s", error, extra={"job": message.job})
            return False
        if closed is not None:
            self._broker.recall(closed)
        return True

    def _answered(self, peer: bytes, message: ToCoordinator) -> bool:
        """While the disk fails the broker hears nothing, and while there is no room on it, of no new jobs."""
        new = isinstance(message, Submit) and not self._broker.knows(message.job)
        if not self._disk.waiting and not (new and self._disk.refuses):
            return False
        answer = self._disk.answer(message, not new, self._broker.welcome())
        if answer is not None:
            self._say(peer, answer)
        return True

    def _restore(self, order: Restore) -> None:
        """A checkpoint, to whoever is to go on from it."""
        kept = self._checkpoints.under(order.job, order.token)
        if kept is None:
            self._commands += self._broker.unsaved(time.monotonic(), order.job)
        else:
            self._outlets.send(time.monotonic(), order.life, order.to, *kept)

    def _show(self, header: Header, frame: memoryview) -> None:
        """An early picture, to those who look and have read what came before."""
        for peer in self._broker.lookers(header.job, header.stage, header.token):
            if self._mail.room(peer, PREVIEWS):
                self._say(peer, Preview(header.job, header.stage), frame)

    def _landed(self) -> None:
        """What became of what the writer was given."""
        for done in self._writer.landed():
            match done:
                case Landed(job, token, digest, size, beside):
                    self._retention.landed(job)
                    self._commands += self._broker.landed(time.monotonic(), job, token, digest, size, beside)
                case Stored(digest, size, names):
                    self._commands += self._broker.stored(time.monotonic(), digest, size, names)
                case Unstored(digest, reason, detail):
                    self._commands += self._broker.unstored(time.monotonic(), digest, reason, detail)

    def _carry_out(self) -> None:
        """All that was decided, and what that leads to; the journal first."""
        while True:
            commands, self._commands = self._commands, []
            if not (commands := self._disk.through(time.monotonic(), commands)):
                return
            for command in commands:
                self._do(command)

    def _do(self, command: Command) -> None:
        """One branch for each kind."""
        match command:
            case Send(peer, message):
                self._say(peer, message)
            case Give():
                self._give(command)
            case Cast(life, to, header, frame):
                self._outlets.send(time.monotonic(), life, to, replace(header, digest=bags.digest(frame)), frame)
            case Restore():
                self._restore(command)
            case Forget(job):
                self._checkpoints.drop(job)
            case Discard(digest):
                self._discard(digest)
            case Hand(peer, job, digest, request):
                self._counter.ask(peer, Result(job, digest, request))
            case Note(job, text):
                log.note(job, text)
            case Book() | Close() | Hold() | Blame():
                pass  # on disk already

    def _give(self, order: Give) -> None:
        """The first bag: what the client brought, or nothing."""
        try:
            frame = self._journal.load_upload(order.upload) if order.upload else EMPTY
            why = "what the client brought is no longer on disk"
        except OSError as error:
            frame, why = None, f"what the client brought cannot be read: {error.strerror}"
        if frame is None:
            self._commands += self._broker.unreadable(time.monotonic(), order.job, why)
            return
        header = Header("bag", order.job, order.stage, order.token, bags.digest(frame))
        self._outlets.send(time.monotonic(), order.life, order.to, header, frame)

    def _discard(self, digest: str) -> None:
        """An upload that no job needs."""
        try:
            self._writer.discard(digest)
        except OSError as error:
            logger.error("an upload cannot be removed: %s", error)

    def _say(self, peer: bytes, message: Message, payload: bytes | memoryview | None = None) -> None:
        if isinstance(message, ToClient):
            self._farewell.told(time.monotonic(), peer, message)
        try:
            if isinstance(message, NEWS):
                self._mail.later(time.monotonic(), peer, message)
                return
            if self._mail.send(peer, message, payload):
                return
        except Garbled as error:  # what a stranger made us say is no reason to stop serving the others
            self._garbage.dropped(repr(peer), error)
            return
        self._gone(peer)

    def _gone(self, peer: bytes) -> None:
        self._broker.gone(time.monotonic(), peer)
        self._farewell.gone(peer)
        self._counter.gone(peer)

    def _gossip(self, now: float) -> None:
        """The news that have waited for their moment."""
        if self._mail.due is not None and self._mail.due <= now:
            for peer in self._mail.flush():
                self._gone(peer)

    def _stop(self, received: signal.Signals) -> None:
        """The first time: finish what is under way.  The second time: now; the journal knows the rest."""
        self._stops += 1
        if self._stops > 1:
            logger.warning("%s again: ending at once", received.name)
            self._end(exits.AT_ONCE)
        else:
            logger.info("%s: draining for at most %g s", received.name, self._config.mesh.drain)
            self._farewell.begin(time.monotonic(), self._config.mesh.drain)
            self._commands += self._broker.drain(time.monotonic())

    def _leave(self, now: float) -> None:
        idle = self._broker.drained and not self._writer.busy
        match self._farewell.next(now, idle, alone=not self._broker.roster.lives):
            case "end":
                self._end(0)
            case "speak":
                self._commands += self._broker.farewell()
                self._carry_out()

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
