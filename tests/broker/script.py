"""The interpreter of the stories: a transcript of inputs, and below each what the mind did.

A line of input is `TIME WHO WHAT`; a line that starts with `#` is a remark; what is indented was recorded.  Lives are written as
they are (`enc.1`, its parent `enc.1/parent`), clients by a plain name, or with their owner (`phone@ann`).  Before each input the
clock ticks as often as the mind asked for, and what comes of it stands under a line of its own.

    mesh                       five workers, one for each stage, are there and have said that they hold nothing
    policy transfer=2.0        other numbers for the broker (first line)
    asleep                     the process was stopped: before the next input the clock does not tick
    keeper one.1 stage_one     the story is about a worker's mind, not the coordinator's (first line)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ifmesh import protocol
from ifmesh.broker import Broker
from ifmesh.cascade import BROUGHT, IF, kept
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Discard, Forget, Give, Hand, Hold, Note, Policy, Restore, Send
from ifmesh.prober import Cast
from ifmesh.protocol import NEVER, Beat, Done, Endpoint, Exited, Header, Held, Hello, Raised, Received, Step, Token
from ifmesh.request import Request
from tests.broker.keeper_script import KeeperStory
from tests.broker.teller import CREW, INLET, UPLOADS, Teller, numbers, show
from tests.broker.world import Minds


class BrokerStory(Teller):
    """The story of a coordinator."""

    def __init__(self, broker: type[Broker] = Broker) -> None:
        super().__init__()
        self._type, self._epoch, self._policy = broker, 1, Policy()
        self._broker = broker(IF, 1, INLET, self._policy)
        self._beats: dict[str, int] = {}
        self._rows: dict[str, tuple[float, Request, int, str, tuple[str, ...]]] = {}
        self._closed: dict[str, Closed] = {}
        self._uploads: dict[str, int] = {}  # on disk
        self._kept: dict[str, bool] = {}  # by job: what was said of the room for what is kept of it
        self._holds: dict[str, tuple[tuple[str, ...], float]] = {}  # of what tensors, and until when

    def begin(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word == "policy":
            self._policy = replace(self._policy, **numbers(rest))
            self._broker = self._type(IF, 1, INLET, self._policy)
        elif word == "mesh":
            for life, stage in CREW.items():
                self.hear(life, f"Hello({stage!r})")
                self.hear(life, "Beat()")
        return word in ("policy", "mesh")

    def wakeup(self) -> float | None:
        return self._broker.wakeup()

    def tick(self) -> list[str]:
        return self._said(self._broker.tick(self.now))

    def hear(self, who: str, what: str) -> list[str]:
        if who == "everyone":  # "everyone beats", "everyone but one.1 beats": holding what the broker believes
            missing = what.split()[1:-1] if what.startswith("but") else []
            return [
                line for life in list(self._broker.roster.lives) if life not in missing for line in self.hear(life, self._as_believed(life))
            ]
        if who == "hub":
            doing: dict[str, Callable[..., list[str]]] = {
                "wait": list, "restart": self._restart, "landed": self._landed, "expects": self._expects, "gone": self._gone,
                "keeps": self._keeps, "wants": self._wants, "stored": self._stored, "unstored": self._unstored,
                "unreadable": self._unreadable, "lookers": self._lookers, "relay": self._relay,
                "saved": self._saved, "unsaved": self._unsaved,
                "probed": self._probed, "drain": self._drain, "farewell": self._farewell,
            }  # fmt: skip
            verb, _, rest = what.partition(" ")
            return doing[verb](*rest.split())
        peer, _, owner = who.partition("@")
        message = eval(what, {"__builtins__": {}}, self.names | self._voice(peer))
        return self._said(self._broker.receive(self.now, peer.encode(), message, owner or None))

    def _voice(self, life: str) -> dict[str, object]:
        """The messages of this worker, with what goes without saying filled in."""
        name = life.partition(".")[0]

        def hello(stage: str, capacity: int = 2, numeric: str = "cpu", needs: int = 0, budget: int = 0) -> Hello:
            return Hello(stage, life, name, 1, "here", "cpu", (Endpoint("", f"tcp://{life}"),), capacity, numeric, needs, budget)

        def beat(*held: Held, state: Any = "ready", full: bool = False, number: int = 0, lease: Token = NEVER) -> Beat:
            self._beats[life] = self._beats.get(life, 0) + 1
            return Beat(life, number or self._beats[life], state, held, full, lease=lease)

        def has(state: Any) -> Callable[..., Held]:
            def held(job: str, token: Token, step: int = 0, steps: int = 0) -> Held:
                if state == "done":
                    return Held(job, token, state, 2, 2, f"{name}-{job}", 100, 1.0)
                return Held(job, token, state, step, steps)

            return held

        return {
            "Hello": hello, "Beat": beat, **{state: has(state) for state in ("waiting", "ready", "running", "done")},
            "Step": lambda *a: Step(life, *a), "Received": lambda *a: Received(life, *a), "Raised": lambda *a: Raised(life, *a),
            "Done": lambda job, token: Done(life, job, token, f"{name}-{job}", 100, 2, 1.0),
            "Arrived": lambda token: protocol.Arrived(life, token), "Reached": lambda *a, **more: protocol.Reached(life, *a, **more),
            "Bye": lambda: protocol.Bye(life),
            "Lives": lambda: protocol.Lives(life.partition("/")[0]),
            "Exited": lambda cause, detail="", ran=None: Exited(life.partition("/")[0], cause, detail, name, ran),
        }  # fmt: skip

    def _as_believed(self, life: str) -> str:
        worker = self._broker.roster.lives[life]
        held = []
        for job_id, token in worker.tasks.items():
            job = self._broker.jobs[job_id]
            state = "running" if job.running else "ready" if job.received else "waiting"
            held.append(f"{state}({job_id!r}, {token}, {job.step}, {job.steps})")
        for job_id in sorted(worker.outputs):
            held += [f"done({job_id!r}, {o.token})" for o in self._broker.jobs[job_id].outputs.values() if o.life == life]
        lent = self._broker.leases.get(life)
        if worker.hello.needs:
            held += [f"state={worker.state!r}", f"lease={lent.token if lent is not None and worker.state != 'swapped' else NEVER}"]
        return f"Beat({', '.join(held)})"

    def _restart(self) -> list[str]:
        """The coordinator was killed and started again at once; the journal is all that it knows."""
        self._epoch += 1
        self._broker = self._type(IF, self._epoch, INLET, self._policy)
        open_rows = {job: row for job, row in self._rows.items() if job not in self._closed}
        rows = [Booked(job, asked, self.now - at, *more) for job, (at, asked, *more) in open_rows.items()]  # type: ignore[arg-type]
        held = [Hold(digest, names, until - self.now) for digest, (names, until) in self._holds.items() if until > self.now]
        return self._said(self._broker.recover(self.now, rows, self._closed.values(), dict(self._uploads), held))

    def _expects(self, job: str, epoch: str, number: str) -> list[str]:
        return [f"expects: {self._broker.expects(job, (int(epoch), int(number)))}"]

    def _keeps(self, job: str, size: str) -> list[str]:
        self._kept[job] = self._broker.keeps(self.now, job, int(size))
        return [f"keeps: {self._kept[job]}"]

    def _landed(self, job: str, epoch: str, number: str, beside: str = "") -> list[str]:
        """beside: what was to be kept of it, under which name; it is, unless the mesh has said that there is no room."""
        token, upload, out = (int(epoch), int(number)), UPLOADS.get(beside, ""), []
        if upload and self._kept.get(job, True):
            blobs = {blob.name for blob in kept(self._rows[job][1])}
            out = self._stored(beside, *(name for name in BROUGHT if name in blobs))
        return out + self._said(self._broker.landed(self.now, job, token, f"sha-{job}", 1000, upload))

    def _wants(self, name: str) -> list[str]:
        return [f"wants: {self._broker.wants(UPLOADS[name])}"]

    def _stored(self, name: str, *names: str) -> list[str]:
        self._uploads[UPLOADS[name]] = 1000
        return self._said(self._broker.stored(self.now, UPLOADS[name], 1000, names))

    def _unstored(self, name: str, reason: Literal["invalid", "busy"], *why: str) -> list[str]:
        return self._said(self._broker.unstored(self.now, UPLOADS[name], reason, " ".join(why)))

    def _unreadable(self, job: str, *why: str) -> list[str]:
        return self._said(self._broker.unreadable(self.now, job, " ".join(why)))

    def _lookers(self, job: str, stage: str, epoch: str, number: str) -> list[str]:
        return [f"lookers: {', '.join(peer.decode() for peer in self._broker.lookers(job, stage, (int(epoch), int(number))))}"]

    def _relay(self, job: str, epoch: str, number: str) -> list[str]:
        way = self._broker.relay(job, (int(epoch), int(number)))
        return [f"relay: to {way[0]} at {show(way[1])}" if way else "relay: nobody waits for it"]

    def _saved(self, job: str, epoch: str, number: str, step: str) -> list[str]:
        token = int(epoch), int(number)
        if not self._broker.saves(job, token, int(step)):
            return ["saves: False"]
        return self._said(self._broker.saved(self.now, job, token, int(step)))

    def _unsaved(self, job: str) -> list[str]:
        return self._said(self._broker.unsaved(self.now, job))

    def _probed(self, epoch: str, number: str, step: str, frame: str = "") -> list[str]:
        """A frame of a probe came to the coordinator; frame: "answer", or that of who sends."""
        told = struct.pack("<d", 0.0) if frame == "answer" else frame.encode()
        header = Header("probe", f"{number}.{step}", "", (int(epoch), int(number)), "", int(step))
        return self._said(self._broker.probed(self.now, header, told))

    def _gone(self, peer: str) -> list[str]:
        self._broker.gone(self.now, peer.encode())
        return []

    def _drain(self) -> list[str]:
        return [*self._said(self._broker.drain(self.now)), f"drained: {self._broker.drained}"]

    def _farewell(self) -> list[str]:
        return [f"drained: {self._broker.drained}", *self._said(self._broker.farewell())]

    def _said(self, commands: list[Any]) -> list[str]:
        self._broker.check()
        out = []
        for c in commands:
            if isinstance(c, Send):
                out.append(f"{c.to.decode()} < {show(c.message)}")
            elif isinstance(c, Give):
                out.append(f"hub > {c.life}: first bag of {c.job!r} under {c.token}" + (f": {show(c.upload)}" if c.upload else ""))
            elif isinstance(c, Cast):
                out.append(f"hub > {c.life}: frame {c.header.step} of probe {c.header.token}, {len(c.frame)} bytes, to {show(c.to)}")
            elif isinstance(c, Restore):
                out.append(f"hub > {c.life}: checkpoint of {c.job!r} under {c.token}")
            elif isinstance(c, Forget):
                out.append(f"memory: forget the checkpoint of {c.job!r}")
            elif isinstance(c, Discard):
                assert c.digest in self._uploads, "discarded, and not on disk"
                del self._uploads[c.digest]
                out.append(f"disk: discard {show(c.digest)}")
            elif isinstance(c, Hand):
                out.append(f"{c.to.decode()} < Result(job={c.job!r}, request={show(c.request)}) and the frame {c.digest}")
            elif isinstance(c, Note):
                out.append(f"* {c.job or 'mesh'}: {c.text}")
            elif isinstance(c, Book):
                self._rows[c.job] = (self.now, c.request, 0, c.owner, ())
                out.append(f"journal: book {c.job!r}, {show(c.request)}" + (f", of {c.owner}" if c.owner else ""))
            elif isinstance(c, Hold):
                self._holds[c.digest] = c.names, self.now + c.seconds
                out.append(f"journal: hold {show(c.digest)} of {', '.join(c.names)} for {c.seconds:g} s")
            elif isinstance(c, Blame):
                at, asked, _, owner, lives = self._rows[c.job]
                self._rows[c.job] = (at, asked, c.count, owner, (*lives, c.life) if c.life else lives)
                out.append(f"journal: blame {c.job!r}, {c.count}: {c.cause}")
            else:
                assert isinstance(c, Close), c
                assert c.job not in self._closed, f"{c.job} is closed twice"
                self._closed[c.job] = Closed(c.job, self._rows[c.job][1], c.ending, c.story, c.runs, self._rows[c.job][3])
                out.append(f"journal: close {c.job!r}, {type(c.ending).__name__}")
        return out


def play(text: str, minds: Minds | None = None) -> str:
    """The story as it really goes."""
    minds = minds or Minds()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    return (KeeperStory(minds.keeper) if first.startswith("keeper ") else BrokerStory(minds.broker)).tell(text)
