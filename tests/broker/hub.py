"""The coordinator's shell in the simulated mesh: one process at a time behind a disk that survives it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from ifmesh.broker import Broker
from ifmesh.checkpoints import Checkpoints
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Command, Discard, Forget, Give, Hand, Hold, Note, Restore, Send
from ifmesh.prober import Cast
from ifmesh.protocol import (
    Cancelled,
    Endpoint,
    Header,
    Preview,
    Result,
    Submit,
    ToCoordinator,
    Token,
    Wanted,
    Watch,
)
from tests.broker.disk import Disk
from tests.broker.service import first_bag, from_hub
from tests.broker.toyland import apart, digest, names, sha

if TYPE_CHECKING:
    from tests.broker.world import World


class Hub:
    """Broker, inbox, disk.  A crash may come before the commit, between commit and sends, or in the middle of the sends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.disk = Disk()
        self.epoch = 0
        self.alive = False
        self.crashes = 0
        self.unsynced = 0  # writes that a crash has taken along before they were committed
        self.doom: str = ""
        self.disturbed = 0.0  # until then it was late for reasons of its own
        self.broker: Broker
        self.checkpoints: Checkpoints
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
        self.checkpoints = Checkpoints(world.checkpoint_bytes)
        self.broker = world.minds.broker(world.cascade, self.epoch, (self.inlet,), world.policy)
        world.say("hub", f"starts, epoch {self.epoch}")
        rows = self.disk.rows.items()
        open_jobs = [Booked(job, r.request, world.now - r.accepted, r.blame, r.owner, r.lives) for job, r in rows if r.ending is None]
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
        if self.world.now < self._paused:
            self.world.at(self._paused, self.arrives, epoch, header, frame)
            return
        if digest(frame) != header.digest:
            self.world.say("hub", "drops a frame of the wrong digest:", header)
        elif header.kind == "preview":
            self._show(header, frame)
        elif header.kind == "upload":
            self._take(epoch, header, frame)
        elif header.kind == "checkpoint":
            if self.broker.saves(header.job, header.token, header.step):
                self._save(header, frame)
        elif header.kind == "probe":
            if self.broker.probes(header.token):
                self.command(self.broker.probed(self.clock(), header, frame))
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

    def _save(self, header: Header, frame: bytes) -> None:
        commands: list[Command] = []
        gone = self.checkpoints.keep(header, frame)
        commands += self.broker.saved(self.clock(), header.job, header.token, header.step)
        for job in gone:
            commands += self.broker.unsaved(self.clock(), job)
        self.command(commands)

    def _restore(self, order: Restore) -> list[Command]:
        kept = self.checkpoints.under(order.job, order.token)
        if kept is None:
            return self.broker.unsaved(self.clock(), order.job)
        from_hub(self.world, order.life, kept[0], bytes(kept[1]))
        return []

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
            self._inbox.append((header.job, header.token, digest(frame), len(frame), sha(kept) if kept else ""))
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
            self.broker.check()
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
        self.broker.check()

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
        writes = sum(isinstance(c, Book | Close | Hold | Blame) for c in commands)
        doom = self.doom if writes or (len(commands) > 1 and self.doom != "before a write") else ""
        if doom in ("before the commit", "before a write"):
            self.unsynced += writes
            return self.crash()
        self.disk.commit(world.now, self.disturbed, world.policy.max_uploads > 1000, commands)
        self._check_tethers(commands)
        world.prove()
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
                commands = self.broker.unreadable(self.clock(), command.job, "it is no longer on disk")
                self.broker.check()
                return commands
            first_bag(world, command, frame)
        elif isinstance(command, Cast):
            from_hub(world, command.life, replace(command.header, digest=digest(command.frame)), command.frame)
        elif isinstance(command, Restore):
            world.say("hub", "  restores", command)
            return self._restore(command)
        elif isinstance(command, Forget):
            assert self.checkpoints.under(command.job, (0, 0)), f"there is no checkpoint of {command.job} to forget"
            self.checkpoints.drop(command.job)
        elif isinstance(command, Discard):
            world.say("hub", "  discards", command)
            if not self._storing[command.digest]:
                self.disk.discard(world.now, command.digest)
        elif isinstance(command, Hand):
            frame = self.disk.results[command.job]
            assert digest(frame) == command.digest
            if not world.links.down(command.to, Result(command.job, command.digest, command.request), frame):
                self._gone(command.to)
        elif isinstance(command, Note):
            world.say("hub", f"  # {command.job}: {command.text}")
        else:
            assert isinstance(command, Book | Close | Hold | Blame), command
            world.say("hub", "  journal:", command)
        return []
