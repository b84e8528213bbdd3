"""One client process in the simulated mesh, with the real Caller.  It may vanish, and come back with its job ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ifmesh.caller import Caller, Command, Rebuild, Send, Tell, Upload
from ifmesh.protocol import NEVER, Accepted, Cancelled, Endpoint, Failed, Finished, Header, Preview, Refused, Result, Welcome
from ifmesh.request import Request
from tests.broker.links import Down, Link
from tests.broker.toyland import EMPTY, digest, left, names, previewed, published

if TYPE_CHECKING:
    from tests.broker.world import World

ONWARDS = {"stage_one": "stage_two", "stage_two": "upscaler"}
"""After which last stage something is kept, and where a job goes on with it."""


@dataclass(slots=True)
class Wish:
    """One job of this client.  first: what it brings; previews: it looks; ending: what it was told, once; refused: how often the
    mesh was full."""

    job: str
    request: Request
    first: bytes = EMPTY
    previews: bool = False
    submitted: float = -1.0
    accepted: bool = False
    cancelled: bool = False
    ending: Finished | Failed | Cancelled | None = None
    ended: float = 0.0
    fetched: bool = False
    refused: int = 0


class Patron:
    """A client, session after session."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.sessions = 0
        self.alive = False
        self.deserted = False  # gone for good
        self.inlet: tuple[Endpoint, ...] = ()
        self.wishes: dict[str, Wish] = {}
        self.told: set[str] = set()  # jobs whose ending this session was told
        self.caller: Caller
        self.link: Link
        self._tick_at = float("inf")

    def start(self) -> None:
        if self.deserted:
            return
        self.inlet = ()
        self.sessions += 1
        self.alive, self.told, self._tick_at = True, set(), float("inf")
        self.caller = self.world.minds.caller()
        peer = f"{self.name}.{self.sessions}"
        self.link = self.world.links.join(peer.encode(), peer, self._hear)
        self.world.say(peer, "starts")
        self._do(self.caller.hi(self.world.now))
        for wish in self.wishes.values():
            if isinstance(wish.ending, Finished) and not wish.fetched:
                self._do(self.caller.fetch(self.world.now, wish.job))
            if wish.submitted >= 0 and wish.ending is None:
                if wish.accepted and self.world.rng.random() < 0.7:
                    self._do(self.caller.watch(self.world.now, wish.job, wish.previews))
                else:
                    self._do(self.caller.submit(self.world.now, wish.job, wish.request, wish.previews))
                if wish.cancelled:
                    self._do(self.caller.cancel(self.world.now, wish.job))

    def vanish(self) -> None:
        if self.alive:
            self.world.say(self.link.name, "VANISHES")
            self.alive = False
            self.world.links.leave(self.link)

    def desert(self) -> None:
        """And it never comes back."""
        self.vanish()
        self.deserted = True

    def submit(self, wish: Wish) -> None:
        if wish.job not in self.wishes:
            self._submit(wish)

    def _submit(self, wish: Wish) -> None:
        wish.submitted = self.world.now
        self.wishes[wish.job] = wish
        if self.alive:
            self._do(self.caller.submit(self.world.now, wish.job, wish.request, wish.previews))

    def _go_on(self, wish: Wish, kept: str) -> None:
        """Another job brings what this one has kept: at once, or too late, when it is asked for (no client of flesh has it)."""
        rng, request, first = self.world.rng, wish.request, left(wish.request, wish.first)
        onwards = Request(
            f"fox:{request.last_stage}", request.seed, request.task if request.last_stage == "stage_one" else "generate",
            first_stage=ONWARDS[request.last_stage], last_stage=rng.choice(("upscaler", ONWARDS[request.last_stage])),
            brings=names(first), upload=kept,
        )  # fmt: skip
        goes_on = Wish(f"fox-on-{self.name}-{wish.job}", onwards, first, previews=rng.random() < 0.3)
        self.wishes[goes_on.job] = goes_on
        self.world.later(rng.choice((0.0, 0.0, 3.0, 20.0)), self._submit, goes_on)

    def look(self, job: str) -> None:
        """From now on it wants to see previews, too."""
        wish = self.wishes.get(job)
        if wish is not None and wish.ending is None and wish.submitted >= 0:
            wish.previews = True
            if self.alive:
                self._do(self.caller.watch(self.world.now, job, previews=True))

    def cancel(self, job: str) -> None:
        wish = self.wishes.get(job)
        if wish is not None and wish.ending is None and wish.submitted >= 0:
            wish.cancelled = True
            if self.alive:
                self.world.say(self.link.name, f"cancels {job}")
                self._do(self.caller.cancel(self.world.now, job))

    def _again(self, job: str, session: int) -> None:
        if self.alive and session == self.sessions and self.wishes[job].ending is None:
            self._do(self.caller.submit(self.world.now, job, self.wishes[job].request, self.wishes[job].previews))

    def _hear(self, message: Down, payload: bytes) -> None:
        if self.alive:
            self._do(self.caller.receive(self.world.now, message, payload))  # type: ignore[arg-type]

    def _tick(self, session: int, at: float) -> None:
        if self.alive and session == self.sessions and at == self._tick_at:
            self._tick_at = float("inf")
            self._do(self.caller.tick(self.world.now))

    def _do(self, commands: list[Command]) -> None:
        world = self.world
        for command in commands:
            if isinstance(command, Send):
                world.links.up(self.link, command.message)
            elif isinstance(command, Rebuild):
                world.rebuilds += 1
                world.links.rebuild(self.link)
            elif isinstance(command, Upload):
                self._upload(command.digest)
            else:
                assert isinstance(command, Tell), command
                self._told(command)
        wakeup = self.caller.wakeup()
        if self.alive and wakeup is not None and wakeup < self._tick_at - 1e-9:
            self._tick_at = max(wakeup, world.now) + 1e-6
            world.at(self._tick_at, self._tick, self.sessions, self._tick_at)

    def _upload(self, upload: str) -> None:
        """It may be lost on its way, doubled, or late."""
        world, rng = self.world, self.world.rng
        assert self.caller.needs(upload)
        frame = next(w.first for w in self.wishes.values() if w.request.upload == upload)
        header = Header("upload", upload, "", NEVER, digest(frame))
        world.say(self.link.name, "uploads", header)
        world.uploads += 1
        for late in rng.choice(((), (0.0, 0.0), (0.0, 1.0), (3.0,), (0.0,), (0.0,))) if world.storm else (0.0,):
            world.later(late, self._push, self.sessions, header, frame)

    def _push(self, session: int, header: Header, frame: bytes) -> None:
        world = self.world
        if self.alive and self.sessions == session and self.inlet:  # until a Welcome has come it does not know where to
            epoch = int(self.inlet[0].url.rpartition("/")[2])
            world.links.pipe(
                self.name, lambda: self.sessions == session or world.rng.random() < 0.5, "hub",
                lambda h, f: world.hub.arrives(epoch, h, f), header, frame,
            )  # fmt: skip

    def _told(self, tell: Tell) -> None:
        world, message, wish = self.world, tell.message, self.wishes.get(tell.job)
        world.say(self.link.name, "is told", message)
        if isinstance(message, Welcome):
            self.inlet = message.inlet
        if wish is None:
            return
        if isinstance(message, Accepted):
            wish.accepted = True
        elif isinstance(message, Refused):
            assert message.reason in ("busy", "unknown"), message
            if message.reason == "busy":
                wish.refused += 1
                world.refused += 1
                assert message.retry_after > 0
            else:
                assert not wish.accepted, f"{wish.job} was accepted, and now nobody knows it"
            world.later(max(message.retry_after, 0.1), self._again, wish.job, self.sessions)
        elif isinstance(message, Finished | Failed | Cancelled):
            assert wish.job not in self.told, f"{self.link.name} is told twice of the end of {wish.job}: {wish.ending}, then {message}"
            assert wish.ending is None or wish.ending == message, f"{wish.job} ended as {wish.ending} and as {message}"
            self.told.add(wish.job)
            first, wish.ending, wish.accepted, wish.ended = wish.ending is None, message, True, world.now
            if isinstance(message, Finished):
                self._do(self.caller.fetch(world.now, wish.job))
                if message.kept and first:
                    self._go_on(wish, message.kept)
                world.onwards += wish.job.startswith("fox-on-")
        elif isinstance(message, Preview):
            assert wish.previews, f"{wish.job}: nobody asked for a preview"
            assert tell.payload == previewed(wish.request, message.stage, wish.first), f"{wish.job}: a preview of something else"
            assert message.stage != wish.request.last_stage, f"{wish.job}: a preview of the result"
            world.previews += 1
        elif isinstance(message, Result):
            assert tell.payload == published(wish.request, wish.first), f"{wish.job}: the client got the wrong bytes"
            assert message.request == wish.request
            wish.fetched = True
