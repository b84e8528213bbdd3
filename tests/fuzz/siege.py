"""Thousands of hostile connections to every kind of socket of a mesh, a hundred at a time, from one thread."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

from ifmesh import identity, sockets
from ifmesh.identity import Identity, tag
from tests.fuzz import guests, strangers
from tests.fuzz.between import Between
from tests.fuzz.mutants import damaged
from tests.fuzz.strangers import Overheard, Talk
from tests.mesh.kit import Mesh

OPEN = 100  # at once
PATIENCE = 4.0  # seconds of one that says nothing: one more than the mesh has
TYPES = (zmq.DEALER, zmq.REQ, zmq.PUSH, zmq.PULL, zmq.SUB, zmq.PAIR, zmq.ROUTER)
NOBODY = ("null", "plain", "unknown key", "wrong server key")
INSIDERS = ("operator", "client", "gateway", "supervisor", "worker")


@dataclass(frozen=True, slots=True)
class Door:
    """kind: what is reported of it.  key: its public key; "": it speaks in the clear.  heard: a handshake that was good there."""

    kind: str
    url: str
    key: str
    heard: Overheard

    @property
    def control(self) -> bool:
        return self.kind == "control"


@dataclass(slots=True)
class _Plain:
    """A plain connection.  left: what of this part has not been sent."""

    made: socket.socket
    talk: Talk
    until: float
    number: int = -1
    left: bytes = b""
    next: float = 0.0


@dataclass(slots=True)
class _Guest:
    """A ZeroMQ peer."""

    made: zmq.Socket[bytes]
    who: str
    messages: list[guests.Message]
    until: float
    sent: bool = False


class Siege:
    """counts: connections by class and kind of door.  sent: messages that libzmq took, answered: those that heard one; by who they are."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self.mesh = mesh
        self.counts: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._dice = random.Random(seed)
        self._ctx = sockets.context()
        self._open: list[_Plain | _Guest] = []
        self._insiders: dict[str, list[Identity]] = {}
        curve = self.mesh.config.mesh.curve
        if curve:
            own = [self.mesh.identity(f"worker-{stage}") for stage in ("encoder", "stage_one", "guard")]
            made = [self.mesh.invite(f"rude-{role}", role) for role in ("client", "gateway", "supervisor")]
            everybody = [me for me in (self.mesh.identity(), *own, *made) if me is not None]
            self._insiders = {who: [me for me in everybody if me.role.startswith(who)] for who in INSIDERS}
        with self.mesh.speaker() as speaker:
            speaker.books()
        self._lives = ["encoder-0", "guard-0", "nobody.0123"]
        self._doors = self._found()

    def close(self) -> None:
        self._ctx.destroy(linger=0)

    # ---- connections, class by class

    def plain(self, count: int) -> None:
        """Of those who do not speak ZeroMQ, or not to the end."""
        names = list(strangers.CLASSES)
        for number in range(count):
            door, name = self._door(), names[number % len(names)]
            self.counts[name, door.kind] += 1
            talk = strangers.CLASSES[name](self._dice, door.heard)
            self._room()
            made = _connected(door.url)
            self._open.append(_Plain(made, talk, time.monotonic() + PATIENCE))

    def peers(self, count: int, who: Sequence[str]) -> None:
        """Of those who speak ZeroMQ.  who: `NOBODY`, `INSIDERS`."""
        for number in range(count):
            door, name = self._door(), who[number % len(who)]
            self.counts[name, door.kind] += 1
            self._room()
            self._open.append(self._guest(door, name))

    def spoilt(self, count: int) -> None:
        """Good clients, with somebody on the wire between them and the mesh."""
        keys: list[Identity | None] = [me for all_ in self._insiders.values() for me in all_]
        for _ in range(count):
            door = self._doors[0]
            self.counts["spoilt on the wire", door.kind] += 1
            me = self._dice.choice(keys or [None])
            with Between(int(door.url.rpartition(":")[2]), self._spoils(self._dice.randint(1, 9))) as between:
                routing = (f"{tag(me.keys.public)}." if me else "") + f"spoilt.{self._dice.random()}"
                made = sockets.control_client(self._ctx, between.url, routing.encode(), me.keys if me else None, door.key)
                for message in ([b"\x80"], *[[one] for one in guests.SPOKEN[:6]]):
                    if not made.poll(100, zmq.POLLOUT):
                        break
                    with suppress(zmq.Again):
                        made.send_multipart(message, zmq.DONTWAIT)
                made.close(0)

    def endless(self) -> bool:
        """In the clear, to the coordinator: a message that never ends.  True: it was hung up on."""
        self.counts["without end", "control"] += 1
        with _connected(self._doors[0].url) as made:
            made.settimeout(20)
            made.sendall(strangers.greeting() + strangers.ready())
            told = b""
            while b"READY" not in told:
                told += made.recv(4096)
            part = strangers.frame(bytes(500), 1) * 100
            try:
                for _ in range(64_000_000 // len(part)):
                    made.sendall(part)
                while made.recv(4096):
                    pass
            except TimeoutError:
                return False
            except OSError:
                pass
        return True

    def _spoils(self, since: int) -> Callable[[int, bytes], bytes]:
        dice = random.Random(self._dice.random())
        return lambda number, part: damaged(dice, [part]) if number >= since else part

    def finish(self) -> None:
        """Until the last has left."""
        while self._open:
            self._tend()

    # ---- inside

    def _found(self) -> list[Door]:
        """One of each kind, and more of the workers."""
        ends = self.mesh.inlets()
        control = self.mesh.config.control()
        keys = {name: self.mesh.identity(name) for name in ("coordinator", "worker-encoder", "worker-stage_one")}
        known = {me.keys.public: me for me in keys.values() if me is not None}
        coordinator, operator = keys["coordinator"], self.mesh.identity()
        server = coordinator.keys.public if coordinator else ""
        heard = self._listened(control, operator, server, zmq.DEALER)
        doors = [Door("control", control, server, heard)]
        for number, end in enumerate(ends):
            whose, way = "coordinator" if number < 2 else "worker", end.url[:3]
            there = heard
            if end.key and end.key != server and way == "tcp" and end.key in known:
                there = self._listened(end.url, keys["worker-encoder"], end.key, zmq.PUSH)
            doors.append(Door(f"{whose} {way}", end.url, end.key, there))
        return doors

    def _listened(self, url: str, me: Identity | None, server: str, kind: int) -> Overheard:
        if me is None:
            return Overheard()
        with Between(int(url.rpartition(":")[2])) as between, self.mesh.raw(kind, between.url, me, server) as made:
            if kind == zmq.DEALER:
                made.send(b"")
            assert made.poll(20_000, zmq.POLLOUT), "no handshake to listen to"
            made.send(b"")
            end = time.monotonic() + 20
            while len(between.overheard().parts) < 4:
                assert time.monotonic() < end, "no handshake was heard"
                time.sleep(0.005)
            return between.overheard()

    def _door(self) -> Door:
        kinds = sorted({door.kind for door in self._doors})
        kind = self._dice.choice(kinds)
        return self._dice.choice([door for door in self._doors if door.kind == kind])

    def _guest(self, door: Door, who: str) -> _Guest:
        dice = self._dice
        right = zmq.DEALER if door.control else zmq.PUSH
        made = self._ctx.socket(right if dice.random() < 0.9 else dice.choice(TYPES))
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.IMMEDIATE, 1)
        made.setsockopt(zmq.SNDHWM, 5000)
        me: Identity | None = None
        if who == "plain":
            made.setsockopt(zmq.PLAIN_USERNAME, b"admin")
            made.setsockopt(zmq.PLAIN_PASSWORD, b"admin")
        elif who != "null":
            me = dice.choice(self._insiders[who]) if who in self._insiders else None
            keys = me.keys if me else identity.generate()
            server = identity.generate().public if who == "wrong server key" or not door.key else door.key
            made.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
            made.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            made.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        lives = [*(f"{tag(me.keys.public)}.{life}" for me in self._insiders.get("worker", []) for life in self._lives), *self._lives]
        if made.type in (zmq.DEALER, zmq.REQ, zmq.ROUTER):
            made.setsockopt(zmq.ROUTING_ID, guests.name(dice, f"{tag(me.keys.public)}." if me else "", lives))
        made.connect(door.url)
        messages = guests.words(dice, lives) if door.control else guests.deliveries(dice)
        return _Guest(made, who, messages, time.monotonic() + (1.0 if who in NOBODY else 3.0))

    def _room(self) -> None:
        self._tend()
        while len(self._open) >= OPEN:
            self._tend()

    def _tend(self) -> None:
        now = time.monotonic()
        left: list[_Plain | _Guest] = []
        for one in self._open:
            stays = self._speaks(one, now) if isinstance(one, _Plain) else self._pushes(one, now)
            if stays:
                left.append(one)
            else:
                one.made.close()
        if len(left) == len(self._open) >= OPEN // 2:
            time.sleep(0.002)
        self._open = left

    def _speaks(self, one: _Plain, now: float) -> bool:
        """One step of it.  False: it is over, for it or for the mesh."""
        with suppress(BlockingIOError):
            try:
                while said := one.made.recv(65536):
                    one.next = 0.0 if said else one.next
                if not said:
                    self.counts["hung up on", ""] += 1
                    return False
            except BlockingIOError:
                pass
            except OSError:
                self.counts["hung up on", ""] += 1
                return False
        if now >= one.until:
            return False
        if one.left and now >= one.next:
            some = one.left[:1] if one.talk.pace == "byte by byte" else one.left
            try:
                one.left = one.left[one.made.send(some) :]
            except BlockingIOError:
                pass
            except OSError:
                return False
            one.next = now + (0.02 if one.talk.pace == "byte by byte" else 0.1)
        elif not one.left and now >= one.next:
            one.number += 1
            if one.number >= len(one.talk.parts):
                return one.talk.pace == "silent"
            one.left = one.talk.parts[one.number]
        return True

    def _pushes(self, one: _Guest, now: float) -> bool:
        events = one.made.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        if events & zmq.POLLIN:
            self.answered[one.who] += 1
            with suppress(zmq.ZMQError):
                while True:
                    one.made.recv_multipart(zmq.DONTWAIT)
        if not one.sent and events & zmq.POLLOUT:
            with suppress(zmq.ZMQError):
                for message in one.messages:
                    one.made.send_multipart(message, zmq.DONTWAIT)
                    self.sent[one.who] += one.made.type != zmq.ROUTER  # which takes everything, for nobody
            one.sent, one.messages = True, []
            one.until = now + 0.2
        return now < one.until


def _connected(url: str) -> socket.socket:
    end = time.monotonic() + 20
    while True:
        try:
            if url.startswith("ipc://"):
                made = socket.socket(socket.AF_UNIX)
                made.settimeout(5)
                made.connect(url.removeprefix("ipc://"))
            else:
                host, _, port = url.removeprefix("tcp://").rpartition(":")
                made = socket.create_connection((host, int(port)), 5)
            made.setblocking(False)
            return made
        except OSError:  # its queue of newcomers is full
            assert time.monotonic() < end, f"{url}: cannot be reached"
            time.sleep(0.01)
