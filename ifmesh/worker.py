"""A worker process: the I/O thread (this one, the main thread) owns every socket and the Keeper; the stage computes beside it.

It decides nothing: what came goes to the Keeper, and what the Keeper returns is carried out.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import zmq

from ifmesh import bags, credentials, exits, keeper, lender, log, memory, modes, sockets, tied
from ifmesh.bell import Bell
from ifmesh.cascade import IF
from ifmesh.chores import Carry, Clear, Command, Fill, Forget, Rebuild, Send, Stop
from ifmesh.commands import peer_of
from ifmesh.compute import Cleared, Compute, Denied, Ended, Event, Free, Loaded, Over, Saved, Spoilt, Stepped, Swap, Threw, Weighed
from ifmesh.config import Config
from ifmesh.errors import Misconfigured
from ifmesh.inlet import deliveries
from ifmesh.keeper import Keeper
from ifmesh.log import Garbage, logger
from ifmesh.meter import Meter
from ifmesh.outlets import TRIES, Outlets
from ifmesh.packer import Made
from ifmesh.places import socket_file
from ifmesh.prober import Cast
from ifmesh.protocol import Endpoint, Hello, Kind, Trusted
from ifmesh.stage import Setup
from ifmesh.testament import Testament
from ifmesh.trust import Trust
from ifmesh.uplink import Uplink
from ifmesh.wire import TO_COORDINATOR, TO_WORKER, Garbled, VersionMismatch
from ifmesh.zap import Zap

INLET: tuple[Kind, ...] = ("bag", "preview", "checkpoint", "probe")


def run(stage: str, name: str, life: str, config: Config, tied_: bool, testament: int = -1) -> int:
    """Serve one stage until the end of this life.  life: the routing id, never used before; testament: see there.  The exit code:

    0 drained; 3 the stage cannot be loaded, or the coordinator refused; 75 told to stop twice; 1 a bug.
    """
    log.start()
    if tied_:
        tied.to_parent()
        tied.to_stdin()
    try:
        code = Worker(stage, name, life, config, Testament(testament)).serve()
    except Misconfigured as error:
        logger.error("%s", error)
        code = exits.CONFIGURATION
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the compute thread may be deep in native code; an interpreter that waits for it, or not, may crash


def device(config: Config, stage: str) -> str:
    """ "auto" is the first CUDA card, else the CPU.  Decided without torch, because Hello says it before anything is loaded."""
    wanted = config.services[stage].device
    if wanted != "auto":
        return wanted
    card = Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    return "cuda:0" if card and not config.cascade.toy else "cpu"


def swap(config: Config, stage: str, where: str, life: str) -> Swap | None:
    """How the stage shares its device by turns; None: it does not.  Misconfigured: nobody knows how much memory the device has."""
    service = config.services[stage]
    if service.residency != "swap":
        return None
    limit = config.memory.get(where) or lender.budget(where, memory.of_device(where))
    if not limit:
        raise Misconfigured(f"memory.{where}: how much those in swap may take together on {where} cannot be found out: say so")
    return Swap(lender.Lender(sockets.run_dir(config.mesh.state), where, life), limit, service.needed)


class Worker:
    def __init__(self, stage: str, name: str, life: str, config: Config, testament: Testament) -> None:
        self._stage, self._name, self._life, self._config = stage, name, life, config
        self._testament = testament
        self._ctx = sockets.context()
        self._bell = Bell()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._garbage = Garbage()
        self._wanted = 0  # tasks that the compute thread has asked for
        self._rung = False  # the bell was rung, and its events are not looked at yet
        self._stepped = 0.0  # when a step rang it last
        self._stops = 0
        self._used = False  # something was made since the memory was tidied
        self._code: int | None = None

    def serve(self) -> int:
        service = self._config.services[self._stage]
        host = sockets.host_id()
        where = device(self._config, self._stage)
        self._bell.answer((signal.SIGTERM, signal.SIGINT))
        me = credentials.of_worker(self._config, self._stage)
        if not self._life.startswith(credentials.called(me, "")):
            raise Misconfigured("mesh.identity: the key was changed while this worker started: start it again")
        keys, public = (None, "") if me is None else (me.keys, me.keys.public)
        self._trust = Trust(me)
        self._zap = Zap(self._ctx, self._trust.lets)
        self._zap.start()
        path = socket_file(self._config.mesh.state, self._life)
        address = sockets.own_address(self._config.mesh.address, credentials.control(self._config, me) if me is not None else "")
        self._inlet, urls = sockets.inlet(self._ctx, [f"ipc://{path}", sockets.at(address)], keys)
        self._meter = Meter(sockets.bounds(urls, sockets.UNHEARD))
        endpoints = tuple(Endpoint(host if url.startswith("ipc:") else "", url, public) for url in urls)
        capacity = 1 + modes.slots(service.options)  # one more is prefetched
        hello = Hello(self._stage, self._life, self._name, os.getpid(), host, where, endpoints, capacity, "")
        self._keeper = Keeper(hello, service.outbox_bytes)
        self._uplink = Uplink(self._ctx, self._config, me, partial(peer_of, self._life))
        self._outlets = Outlets(self._ctx, host, keys, TRIES * self._config.mesh.transfer, slowest=self._config.mesh.slowest_link)
        setup = Setup(self._config.cascade.path, where, service.dtype, service.threads, service.options)
        factory = self._config.factory(self._stage)
        keep_bags, leave = self._config.mesh.keep_bags, self._testament.leave
        self._swap = swap(self._config, self._stage, where, self._life)
        self._compute = Compute(self._stage, factory, setup, IF, keep_bags, self._told, service.checkpoint_steps, leave, self._swap)
        self._uplink.dial()
        self._carry_out(self._keeper.start(time.monotonic()))
        self._compute.start()
        try:
            while self._code is None:
                self._turn()
        finally:
            self._uplink.hang_up()
            self._outlets.close()
            self._inlet.close()
            with suppress(OSError):
                path.unlink()
        self._ctx.term()  # the last words leave
        logger.info("ended, %d frames of garbage dropped", self._garbage.total)
        return self._code

    def _told(self, event: Event) -> None:
        """Called in the compute thread, and in its packer's.  A step that the Keeper would not tell at once wakes nobody."""
        self._events.put(event)
        if isinstance(event, Stepped):
            now = time.monotonic()
            if event.step == 0 or now < self._stepped + keeper.TELL:
                return
            self._stepped = now
        if not self._rung:
            self._rung = True
            self._bell.ring()

    def _turn(self) -> None:
        """Wait for something, then one round of everything."""
        ready = self._wait()
        if self._bell.fileno() in ready:
            for received in self._bell.hear():
                self._stop(received)
        self._rung = False  # before they are looked at: what comes now rings again
        while not self._events.empty():
            self._happened(self._events.get_nowait())
        self._begin()  # first: the compute thread may have nothing to do
        self._zap.tend(time.monotonic())
        self._used |= self._meter.look(time.monotonic())
        self._uplink.tend(ready)
        self._outlets.flush(time.monotonic(), ready)
        if self._uplink.socket in ready:
            for parts in self._uplink.received():
                self._heard(parts)
        if self._inlet in ready:
            for header, frame in deliveries(self._inlet, INLET, self._garbage, self._trust.wants, self._meter.heard):
                self._carry_out(self._keeper.arrived(time.monotonic(), header, frame))
        if time.monotonic() >= self._keeper.wakeup():
            self._carry_out(self._keeper.tick(time.monotonic()))
        self._begin()
        if not ready and self._used and not self._keeper.tasks and not self._keeper.outbox:
            self._used = False
            memory.tidy()

    def _begin(self) -> None:
        """Give the compute thread what it may begin with."""
        while True:
            task, commands = self._keeper.take(time.monotonic(), urgent=not self._wanted)
            self._carry_out(commands)
            self._compute.expecting = self._keeper.ready
            if task is None:
                return
            self._wanted -= not task.urgent
            self._compute.give(task)

    def _wait(self) -> set[object]:
        """The sockets and descriptors on which something has happened."""
        poller = zmq.Poller()
        poller.register(self._inlet, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        self._uplink.register(poller)
        self._outlets.register(poller)
        until = min(self._uplink.wakeup(), self._outlets.wakeup(), self._keeper.wakeup())
        pause = max(0.0, until - time.monotonic())
        return {who for who, _ in poller.poll(int(pause * 1000) + 1)}

    def _heard(self, parts: list[bytes]) -> None:
        try:
            if len(parts) != 1:
                raise Garbled(f"{len(parts)} parts")
            message = TO_WORKER.decode(parts[0])
        except VersionMismatch as error:
            self._end(exits.CONFIGURATION, f"the coordinator speaks protocol version {error.theirs}, this worker {error.ours}")
        except Garbled as error:
            self._garbage.dropped("the coordinator", error)
        else:
            if isinstance(message, Trusted):
                self._trust.learn(message)
            self._carry_out(self._keeper.receive(time.monotonic(), message))

    def _happened(self, event: Event) -> None:
        """One branch for each kind of event of the compute thread."""
        now = time.monotonic()
        match event:
            case Loaded(numeric):
                logger.info("%s is loaded: %s", self._name, numeric)
                self._carry_out(self._keeper.loaded(now, numeric))
            case Weighed(needs):
                assert self._swap is not None
                logger.info("%s takes %d bytes of %s when it is its turn", self._name, needs, self._keeper.hello.device)
                self._carry_out(self._keeper.weighed(now, needs, self._swap.budget))
            case Denied(holders):
                logger.warning("no room on %s now: %s has it", self._keeper.hello.device, holders)
                self._carry_out(self._keeper.denied(now))
            case Cleared():
                logger.info("%s has given its memory back", self._name)
                self._wanted = 0
                self._carry_out(self._keeper.cleared(now))
            case Free():
                self._wanted += 1
            case Stepped(job, token, step, steps):
                self._carry_out(self._keeper.advanced(now, job, token, step, steps))
            case Saved(job, token, step, frame, digest):
                self._carry_out(self._keeper.saved(now, job, token, step, frame, digest))
            case Over(job, token):
                self._keeper.over(job, token)
            case Made(job, token, frame, digest, seconds):
                self._used = True
                self._carry_out(self._keeper.completed(now, job, token, frame, digest, seconds))
            case Spoilt(job, token, error):
                self._garbage.dropped(f"the sender of job {job}", error)
                self._carry_out(self._keeper.spoiled(now, job, token, error))
            case Threw(job, token, error, fault):
                self._carry_out(self._keeper.raised(now, job, token, error, fault))
            case Ended(code, error):
                self._end(code, error)

    def _carry_out(self, commands: list[Command]) -> None:
        now = time.monotonic()
        for command in commands:
            match command:
                case Send(message):
                    self._uplink.send(TO_COORDINATOR.encode(message))
                case Carry():
                    self._carry(now, command)
                case Cast(life, to, header, frame):
                    self._outlets.send(now, life, to, replace(header, digest=bags.digest(frame)), frame)
                case Forget() | Fill() | Clear():
                    self._compute.give(command)
                case Rebuild():
                    logger.info("no word from the coordinator: dialling again")
                    self._uplink.dial()
                case Stop(detail):
                    self._end(exits.CONFIGURATION if detail else 0, detail)

    def _carry(self, now: float, order: Carry) -> None:
        """The bag, or one tensor of it."""
        header, frame = order.header, order.frame
        if order.only:
            try:
                frame = bags.only(frame, (order.only,))
            except Garbled as error:  # an early picture of a stage that draws none: nobody waits for it
                self._garbage.dropped("the coordinator", error)
                return
            header = replace(header, digest=bags.digest(frame))
        self._outlets.send(now, order.life, order.to, header, frame)

    def _stop(self, received: signal.Signals) -> None:
        """The first time: finish what runs, hand over, leave.  The second time: now."""
        self._stops += 1
        if self._stops > 1:
            self._end(exits.AT_ONCE, f"{received.name} again: leaving at once")
        else:
            logger.info("%s: finishing what runs", received.name)
            self._carry_out(self._keeper.drain(time.monotonic()))

    def _end(self, code: int, why: str) -> None:
        if self._code is None:
            self._code = code
            if why:
                logger.error("%s", why)
