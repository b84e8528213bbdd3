"""The coordinator's shell in the simulated mesh: one process at a time behind a disk that survives it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ifmesh.broker import Broker
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Discard, Give, Hand, Hold, Note, Send
from ifmesh.protocol import (
    Cancelled,
    Ended,
    Endpoint,
    Failed,
    Finished,
    Header,
    Preview,
    Result,
    StageRun,
    Submit,
    ToCoordinator,
    Token,
    Wanted,
    Watch,
)
from ifmesh.request import Request
from tests.broker.service import first_bag, from_hub
from tests.broker.toyland import EMPTY, apart, digest, left, names, published, sha

if TYPE_CHECKING:
    from tests.broker.world import World


BEGINS = (": begun on ", ": done on ", "stage_one: adopted: ", "stage_two: adopted: ", "upscaler: adopted: ", "guard: adopted: ")
"""Words of a story from which on a stage has begun."""


@dataclass(slots=True)
class Record:
    """One row of the simulated journal.  accepted: by the wall clock of the world; given_back: blames that were taken back."""

    request: Request
    accepted: float
    ended: float = 0.0
    blame: int = 0
    given_back: int = 0
    ending: Ended | None = None
    owner: str = ""
    story: tuple[tuple[float, str], ...] = ()
    runs: tuple[StageRun, ...] = ()


@dataclass(slots=True)
class Disk:
    rows: dict[str, Record] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    brought: dict[str, bytes] = field(default_factory=dict)  # all uploads that ever were on it
    rotten: set[str] = field(default_factory=set)  # those that it has lost
    holds: dict[str, tuple[tuple[str, ...], float]] = field(default_factory=dict)  # of what tensors, and until when by the wall clock

    def lose(self, upload: str) -> None:
        del self.uploads[upload]
        self.rotten.add(upload)

    def discard(self, now: float, upload: str) -> None:
        held = 0.0 if upload in self.rotten else self.held(now, upload)  # else somebody may have brought it anew
        assert not held, f"{upload} is discarded, and held for {held:.2f} s more"
        users = [job for job, row in self.rows.items() if row.ending is None and row.request.upload == upload]
        assert not users, f"the upload of {users} is discarded"
        assert upload in self.uploads or upload in self.rotten, "an upload is discarded that was never there"
        self.uploads.pop(upload, None)

    def held(self, now: float, upload: str) -> float:
        """For so many seconds more; 0: it is not."""
        return max(0.0, self.holds[upload][1] - now - 1e-6) if upload in self.holds else 0.0

    def first_bag(self, upload: str) -> bytes | None:
        return self.uploads.get(upload) if upload else EMPTY

    def commit(self, now: float, disturbed: float, roomy: bool, commands: list[Command]) -> None:
        """One transaction for all that a batch wants remembered.  roomy: there is room for all that is to be kept."""
        for command in commands:
            if isinstance(command, Hold):
                self.holds[command.digest] = command.names, now + command.seconds
        for command in commands:
            if isinstance(command, Book):
                assert command.job not in self.rows, f"{command.job} is booked twice"
                here = command.request.upload in (*self.uploads, *self.rotten, "")
                over = any(isinstance(c, Close) and c.job == command.job for c in commands)
                assert here or over, f"{command.job} is booked, and its upload is not here"
                self.rows[command.job] = Record(command.request, now, owner=command.owner)
            elif isinstance(command, Blame):
                assert command.job in self.rows, f"blame for {command.job}, which was never booked"
                row = self.rows[command.job]
                row.given_back += max(0, row.blame - command.count)
                row.blame = command.count
            elif isinstance(command, Close):
                row = self.rows[command.job]
                assert row.ending is None, f"{command.job} is closed twice: {row.ending}, then {command.ending}"
                row.ended = now
                row.ending, row.story, row.runs = command.ending, command.story, command.runs
                self._check_deadlines(now, disturbed, row)
                if isinstance(command.ending, Finished):
                    frame = self.results.get(command.job)
                    assert frame is not None, f"{command.job} is finished, but nothing is on disk"
                    assert sha(frame) == command.ending.digest, f"{command.job}: digest of something else"
                    first = self.brought[row.request.upload] if row.request.upload else EMPTY
                    assert frame == published(row.request, first), f"{command.job}: wrong bytes were published"
                    self._check_kept(now, command.job, row.request, command.ending.kept, left(row.request, first), roomy)

    def _check_deadlines(self, now: float, disturbed: float, row: Record) -> None:
        """Of the three only one that has passed ends a job, and no job finishes after one of them.  The story says when it began."""
        asked, told = row.request, list(row.story)
        starts = [n for n, (_, text) in enumerate(told) if text == "the coordinator was started again"]
        begun = [at for at, text in told[starts[-1] if starts else 0 :] if any(words in text for words in BEGINS)]
        passes = {"deadline": row.accepted + asked.deadline} if asked.deadline else {}
        if asked.deadline_queued and not begun:
            passes["deadline_queued"] = row.accepted + asked.deadline_queued
        if asked.deadline_running and begun:
            passes["deadline_running"] = row.accepted + begun[0] + asked.deadline_running
        if isinstance(row.ending, Finished):
            late = {name: now - at for name, at in passes.items() if now > max(at + 0.01, disturbed)}
            assert not late, f"finished, and too late: {late}; {told}"
        elif isinstance(row.ending, Failed) and row.ending.cause == "expired":
            passed = [name for name, at in passes.items() if f"its {name} of " in row.ending.error and now >= at - 0.01]
            assert passed, f"{row.ending} of {passes} at {now:.2f}; {told}"

    def _check_kept(self, now: float, job: str, request: Request, kept: str, right: bytes, roomy: bool) -> None:
        """What a Finished promises."""
        assert kept in ((sha(right),) if roomy else (sha(right), "")) if right else not kept, f"{job}: kept {kept!r}"
        if kept:
            assert self.brought[kept] == right, f"{job}: the wrong bytes are kept"
            assert kept in self.uploads or kept in self.rotten, f"{job}: what it has kept is not on disk"
            assert self.holds[kept][0] == names(right), f"{job}: others are held than were kept"
            assert self.held(now, kept) >= request.keep - 1e-3, f"{job}: it is not kept for {request.keep} s"


class Hub:
    """Broker, inbox, disk.  A crash may come before the commit, between commit and sends, or in the middle of the sends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.disk = Disk()
        self.epoch = 0
        self.alive = False
        self.crashes = 0
        self.doom: str = ""
        self.disturbed = 0.0  # until then it was late for reasons of its own
        self.broker: Broker
        self._inbox: list[tuple[bytes, ToCoordinator] | tuple[str, int, tuple[str, ...]] | tuple[str, Token, str, int, str]] = []
        self._storing: Counter[str] = Counter()  # uploads on their way to disk
        self._watching: defaultdict[bytes, set[str]] = defaultdict(set)  # what each client has asked to be told of
        self._heard: dict[str, float] = {}  # when somebody who had asked for this job was last heard
        self._since = 0.0
        self._turn_at = float("inf")
        self._paused = 0.0
        self._skew = 0.0

    def clock(self) -> float:
        return self.world.now + self._skew

    @property
    def inlet(self) -> Endpoint:
        return Endpoint("", f"tcp://hub/{self.epoch}")

    def start(self) -> None:
        world = self.world
        self.epoch += 1
        self.alive, self.disturbed, self._since = True, world.now + 0.1, world.now
        self._storing.clear()
        self._watching.clear()
        self._heard.clear()
        self._skew = world.rng.uniform(0, 1e6)
        self.broker = world.minds.broker(world.cascade, self.epoch, (self.inlet,), world.policy)
        world.say("hub", f"starts, epoch {self.epoch}")
        rows = self.disk.rows.items()
        open_jobs = [Booked(job, r.request, world.now - r.accepted, r.blame, r.owner) for job, r in rows if r.ending is None]
        ended = [Closed(job, r.request, r.ending, r.story, r.runs, r.owner) for job, r in rows if r.ending is not None]
        uploads = {upload: len(frame) for upload, frame in self.disk.uploads.items()}
        held = [Hold(upload, of, self.disk.held(world.now, upload)) for upload, (of, until) in self.disk.holds.items() if until > world.now]
        commands = self.broker.recover(self.clock(), open_jobs, ended, uploads, held)
        self.broker.check()
        self._finish(commands)
        world.links.reopen()

    def crash(self) -> None:
        if self.alive:
            self.world.say("hub", "CRASHES")
            self.crashes += 1
            self.disturbed = float("inf")
            self.world.proving.clear()
            self.alive, self.doom, self._inbox, self._turn_at, self._paused = False, "", [], float("inf"), 0.0
            self.world.links.reset()

    def stop(self, epoch: int) -> None:
        """The same end, as asked; it may be alive no more, or another."""
        if epoch == self.epoch:
            self.crash()

    def pause(self, seconds: float) -> None:
        self._paused = self.disturbed = self.world.now + seconds
        self.world.at(self._paused, self._turn)

    # ---- what comes in

    def hears(self, peer: bytes, message: ToCoordinator) -> None:
        self._inbox.append((peer, message))
        self._soon(self.world.rng.uniform(0.0, 0.002))

    def arrives(self, epoch: int, header: Header, frame: bytes) -> None:
        """A bag on the inlet."""
        if not self.alive or epoch != self.epoch:
            return
        if digest(frame) != header.digest:
            self.world.say("hub", "drops a frame of the wrong digest:", header)
        elif header.kind == "preview":
            self._show(header, frame)
        elif header.kind == "upload":
            self._take(epoch, header, frame)
        elif header.kind == "relay":
            if (way := self.broker.relay(header.job, header.token)) is not None:
                self.world.relays += 1
                from_hub(self.world, way[0], replace(header, kind="bag"), frame)
        elif self.broker.expects(header.job, header.token):
            self.world.say("hub", "stores", header)
            pictures, kept = apart(frame)
            keeps = self.broker.keeps(self.clock(), header.job, len(frame))
            self._storing[sha(kept)] += keeps
            self.world.later(self.world.rng.uniform(0.002, 0.2), self._stored, epoch, header, pictures, kept, keeps)
        else:
            self.world.say("hub", "does not expect", header)

    def _show(self, header: Header, frame: bytes) -> None:
        """An early picture, to whoever looks."""
        for peer in self.broker.lookers(header.job, header.stage, header.token):
            if not self.world.links.down(peer, Preview(header.job, header.stage), frame):
                self._gone(peer)

    def _take(self, epoch: int, header: Header, frame: bytes) -> None:
        """An upload."""
        if self.broker.wants(header.job) and not self._storing[header.job]:
            assert sha(frame) == header.job
            self.world.say("hub", "stores", header)
            self._storing[header.job] += 1
            self.world.later(self.world.rng.uniform(0.002, 0.5), self._taken, epoch, header.job, frame)
        else:
            self.world.say("hub", "does not want", header)

    def _taken(self, epoch: int, upload: str, frame: bytes) -> None:
        if self.alive and epoch == self.epoch:
            self.disk.uploads[upload] = self.disk.brought[upload] = frame
            self._inbox.append((upload, len(frame), names(frame)))
            self._soon(0.0)

    def _stored(self, epoch: int, header: Header, frame: bytes, kept: bytes, keeps: bool) -> None:
        if self.alive and epoch == self.epoch:
            row = self.disk.rows.get(header.job)
            if row is None or row.ending is None or header.job not in self.disk.results:
                self.disk.results[header.job] = frame
            if keeps:
                self.disk.uploads[sha(kept)] = self.disk.brought[sha(kept)] = kept
                self._inbox.append((sha(kept), len(kept), names(kept)))
            self._inbox.append((header.job, header.token, sha(frame), len(frame), sha(kept) if kept else ""))
            self._soon(0.0)

    def _soon(self, delay: float) -> None:
        at = self.world.now + delay
        if at < self._turn_at:
            self._turn_at = at
            self.world.at(at, self._turn)

    # ---- one turn of the loop

    def _turn(self) -> None:
        world = self.world
        if not self.alive or world.now < self._paused or (world.now < self._turn_at and world.now != self._paused):
            return
        self._turn_at = float("inf")
        inbox, self._inbox = self._inbox, []
        commands: list[Command] = []
        for item in inbox:
            if len(item) == 2:
                world.say("hub", f"{item[0].decode()} >", item[1])
                world.watch(item[1])
                self._note(*item)
                commands += self.broker.receive(self.clock(), *item, world.owner(item[0]))
            elif len(item) == 3:
                world.say("hub", f"has stored {item[0]}")
                self._storing[item[0]] -= 1
                commands += self.broker.stored(self.clock(), *item)
            else:
                world.say("hub", f"landed {item[0]} {item[1]}")
                commands += self.broker.landed(self.clock(), *item)
        wakeup = self.broker.wakeup()
        if wakeup is not None and wakeup <= self.clock():
            commands += self.broker.tick(self.clock())
        self.broker.check()
        world.events += 1
        self._finish(commands)

    def _note(self, peer: bytes, message: ToCoordinator) -> None:
        """Who was heard, and which jobs are watched by whom; counted apart from the broker."""
        if isinstance(message, Submit | Watch):
            self._watching[peer].add(message.job)
        for job in self._watching.get(peer, ()):
            self._heard[job] = self.world.now

    def _gone(self, peer: bytes) -> None:
        self._watching.pop(peer, None)
        self.broker.gone(self.clock(), peer)

    def _check_tethers(self, commands: list[Command]) -> None:
        """Only what nobody was heard of for long is cut loose."""
        world = self.world
        for command in commands:
            if not isinstance(command, Close) or not isinstance(command.ending, Cancelled) or world.cancelled_by_somebody(command.job):
                continue
            assert self.disk.rows[command.job].request.tied, f"nobody cancelled {command.job}, and it is not tied"
            silent = world.now - max(self._since, self._heard.get(command.job, 0.0))
            assert silent > world.policy.tether - 0.01, f"{command.job} was cut loose after {silent:.2f} s"
            world.loose += 1

    def _check_wanted(self, message: object) -> None:
        """What no client can bring is not asked for."""
        if isinstance(message, Wanted) and message.digest not in self.disk.rotten:
            assert not self.disk.held(self.world.now, message.digest), f"{message.job}: its upload is wanted, and held here"

    def command(self, commands: list[Command]) -> None:
        """Carry out what somebody asked of the broker directly."""
        self.broker.check()
        self._finish(commands)

    def _finish(self, commands: list[Command]) -> None:
        world = self.world
        doom = self.doom if len(commands) > 1 or any(isinstance(c, Book | Close | Hold | Blame) for c in commands) else ""
        if doom == "before the commit":
            return self.crash()
        self.disk.commit(world.now, self.disturbed, world.policy.max_uploads > 1000, commands)
        self._check_tethers(commands)
        world.proved.update(world.proving)
        world.proving.clear()
        if doom == "after the commit":
            return self.crash()
        more: list[Command] = []
        stop = world.rng.randrange(len(commands)) if doom else -1
        for n, command in enumerate(commands):
            if n == stop:
                return self.crash()
            more += self._carry_out(command)
        if more:
            return self._finish(more)
        wakeup = self.broker.wakeup()
        if wakeup is not None:
            self._soon(max(0.0, wakeup - self.clock()) + 1e-6)
        return None

    def _carry_out(self, command: Command) -> list[Command]:
        world = self.world
        if isinstance(command, Send):
            world.say("hub", f"  {command.to.decode()} <", command.message)
            self._check_wanted(command.message)
            if not world.links.down(command.to, command.message):
                self._gone(command.to)
        elif isinstance(command, Give):
            world.say("hub", "  gives", command)
            frame = self.disk.first_bag(command.upload)
            if frame is None:
                return self.broker.unreadable(self.clock(), command.job, "it is no longer on disk")
            first_bag(world, command, frame)
        elif isinstance(command, Discard):
            world.say("hub", "  discards", command)
            if not self._storing[command.digest]:
                self.disk.discard(world.now, command.digest)
        elif isinstance(command, Hand):
            frame = self.disk.results[command.job]
            assert sha(frame) == command.digest
            if not world.links.down(command.to, Result(command.job, command.digest, command.request), frame):
                self._gone(command.to)
        elif isinstance(command, Note):
            world.say("hub", f"  # {command.job}: {command.text}")
        else:
            assert isinstance(command, Book | Close | Hold | Blame), command
            world.say("hub", "  journal:", command)
        return []
