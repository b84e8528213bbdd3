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

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, Literal

from ifmesh import keeper, protocol
from ifmesh.broker import Broker
from ifmesh.cascade import BROUGHT, IF, kept
from ifmesh.commands import Blame, Book, Booked, Close, Closed, Discard, Give, Hand, Hold, Note, Policy, Send
from ifmesh.keeper import Keeper
from ifmesh.protocol import Beat, Done, Endpoint, Exited, Header, Held, Hello, Raised, Received, StageRun, Step, Token
from ifmesh.request import Request
from tests.broker.world import Minds

INLET = (Endpoint("", "tcp://hub"),)
CREW = {"enc.1": "encoder", "one.1": "stage_one", "two.1": "stage_two", "up.1": "upscaler", "guard.1": "guard"}
UPLOADS = {"cat": "c" * 64, "dog": "d" * 64, "egg": "e" * 64}  # SHA-256 of what clients bring, and of what is kept
REQUESTS = {
    "fox": Request("a fox", 1, last_stage="stage_one"),
    "owl": Request("an owl", 2, last_stage="stage_one"),
    "elk": Request("an elk", 3, last_stage="stage_one", priority=5),
    "hare": Request("a hare", 4, last_stage="stage_one", deadline=3.0),
    "tern": Request("a tern", 15, last_stage="stage_one", deadline_queued=3.0),
    "swift": Request("a swift", 16, last_stage="stage_one", deadline_running=3.0),
    "shrike": Request("a shrike", 17, last_stage="stage_one", deadline=2.0, deadline_running=3.0),
    "whole": Request("a whole cascade", 5),
    "empty": Request(" ", 6),
    "cat_1": Request("a cat", 7, "vary", last_stage="stage_one", brings=("source",), upload=UPLOADS["cat"]),
    "cat_2": Request("another cat", 8, "vary", last_stage="stage_one", brings=("source",), upload=UPLOADS["cat"]),
    "dog": Request("a dog", 9, "inpaint", last_stage="stage_one", brings=("source", "mask"), upload=UPLOADS["dog"]),
    "kite": Request("a kite", 10, last_stage="stage_one", tied=True),
    "verse": Request("a verse", 11, "encode", last_stage="encoder"),
    "hen": Request("a hen", 13, last_stage="stage_one", keep=100.0),
    "duck": Request("a hen", 13, last_stage="stage_one", keep=300.0),
    "goose": Request("a goose", 14, last_stage="stage_one", keep=100.0),
    "bird": Request(
        "a bird", 13, first_stage="stage_two", last_stage="stage_two", brings=("embeds", "image64", "rng"), upload=UPLOADS["egg"]
    ),
    "vector": Request("a vector", 12, brings=("embeds",), upload=UPLOADS["dog"], first_stage="stage_one"),
}


def show(value: object) -> str:
    """A value in few words: what is as usual is left out."""
    if isinstance(value, Request):
        return next((name for name, request in REQUESTS.items() if request == value), repr(value))
    if isinstance(value, Endpoint):
        return value.url
    if value in UPLOADS.values():
        return next(name for name, digest in UPLOADS.items() if digest == value)
    if isinstance(value, StageRun):
        return f"{value.stage} on {value.worker}" + (f" x{value.runs}" if value.runs > 1 else "")
    if is_dataclass(value):
        said = []
        for field in fields(value):
            what = getattr(value, field.name)
            usual = field.default_factory() if field.default_factory is not MISSING else field.default
            if what != usual:
                said.append(f"{field.name}={show(what)}")
        return f"{type(value).__name__}({', '.join(said)})"
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return "[" + ", ".join(show(v) for v in value) + "]"
    return repr(round(value, 3)) if isinstance(value, float) else repr(value)


def _frame(job: str) -> bytes:
    return f"bag of {job}".encode()


def _numbers(words: str) -> dict[str, Any]:
    return {name: float(number) if "." in number else int(number) for name, number in (w.split("=") for w in words.split())}


class _Teller:
    """Reads a story line by line, and writes it again with what really happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asleep = False
        self.names: dict[str, object] = {**REQUESTS, **{n: getattr(protocol, n) for n in dir(protocol) if n[0].isupper()}}

    def wakeup(self) -> float | None:
        raise NotImplementedError

    def tick(self) -> list[str]:
        raise NotImplementedError

    def hear(self, who: str, what: str) -> list[str]:
        raise NotImplementedError

    def begin(self, line: str) -> bool:
        """A first line without a time."""
        raise NotImplementedError

    def tell(self, text: str) -> str:
        out: list[str] = []
        for line in text.splitlines():
            if line.startswith("    "):
                continue
            out.append(line)
            self.asleep = self.asleep or line == "asleep"
            if not line or line.startswith("#") or line == "asleep" or self.begin(line):
                continue
            when, who, what = line.split(maxsplit=2)
            before = out.pop()
            out += [] if self.asleep else self.pass_time(float(when))
            self.now, self.asleep = float(when), False
            out.append(before)
            out += [f"    {said}" for said in self.hear(who, what)]
        return "\n".join(out) + "\n"

    def pass_time(self, until: float) -> list[str]:
        out: list[str] = []
        for _ in range(10000):
            due = self.wakeup()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            if said := self.tick():
                out += [f"    -- {self.now:g}, the clock", *(f"    {line}" for line in said)]
        else:
            raise AssertionError("the mind asks to be woken again and again, and does nothing")
        self.now = until
        return out


class BrokerStory(_Teller):
    """The story of a coordinator."""

    def __init__(self, broker: type[Broker] = Broker) -> None:
        super().__init__()
        self._type, self._epoch, self._policy = broker, 1, Policy()
        self._broker = broker(IF, 1, INLET, self._policy)
        self._beats: dict[str, int] = {}
        self._rows: dict[str, tuple[float, Request, int, str]] = {}
        self._closed: dict[str, Closed] = {}
        self._uploads: dict[str, int] = {}  # on disk
        self._kept: dict[str, bool] = {}  # by job: what was said of the room for what is kept of it
        self._holds: dict[str, tuple[tuple[str, ...], float]] = {}  # of what tensors, and until when

    def begin(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word == "policy":
            self._policy = replace(self._policy, **_numbers(rest))
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
                "drain": self._drain, "farewell": self._farewell,
            }  # fmt: skip
            verb, _, rest = what.partition(" ")
            return doing[verb](*rest.split())
        peer, _, owner = who.partition("@")
        message = eval(what, {"__builtins__": {}}, self.names | self._voice(peer))
        return self._said(self._broker.receive(self.now, peer.encode(), message, owner or None))

    def _voice(self, life: str) -> dict[str, object]:
        """The messages of this worker, with what goes without saying filled in."""
        name = life.partition(".")[0]

        def hello(stage: str, capacity: int = 2, numeric: str = "cpu") -> Hello:
            return Hello(stage, life, name, 1, "here", "cpu", (Endpoint("", f"tcp://{life}"),), capacity, numeric)

        def beat(*held: Held, state: Any = "ready", full: bool = False, number: int = 0) -> Beat:
            self._beats[life] = self._beats.get(life, 0) + 1
            return Beat(life, number or self._beats[life], state, held, full)

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
            "Bye": lambda: protocol.Bye(life), "Exited": lambda cause, detail="": Exited(life.partition("/")[0], cause, detail),
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
        return f"Beat({', '.join(held)})"

    def _restart(self) -> list[str]:
        """The coordinator was killed and started again at once; the journal is all that it knows."""
        self._epoch += 1
        self._broker = self._type(IF, self._epoch, INLET, self._policy)
        open_rows = {job: row for job, row in self._rows.items() if job not in self._closed}
        rows = [Booked(job, asked, self.now - at, blame, owner) for job, (at, asked, blame, owner) in open_rows.items()]
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
            elif isinstance(c, Discard):
                assert c.digest in self._uploads, "discarded, and not on disk"
                del self._uploads[c.digest]
                out.append(f"disk: discard {show(c.digest)}")
            elif isinstance(c, Hand):
                out.append(f"{c.to.decode()} < Result(job={c.job!r}, request={show(c.request)}) and the frame {c.digest}")
            elif isinstance(c, Note):
                out.append(f"* {c.job or 'mesh'}: {c.text}")
            elif isinstance(c, Book):
                self._rows[c.job] = (self.now, c.request, 0, c.owner)
                out.append(f"journal: book {c.job!r}, {show(c.request)}" + (f", of {c.owner}" if c.owner else ""))
            elif isinstance(c, Hold):
                self._holds[c.digest] = c.names, self.now + c.seconds
                out.append(f"journal: hold {show(c.digest)} of {', '.join(c.names)} for {c.seconds:g} s")
            elif isinstance(c, Blame):
                at, asked, _, owner = self._rows[c.job]
                self._rows[c.job] = (at, asked, c.count, owner)
                out.append(f"journal: blame {c.job!r}, {c.count}: {c.cause}")
            else:
                assert isinstance(c, Close), c
                assert c.job not in self._closed, f"{c.job} is closed twice"
                self._closed[c.job] = Closed(c.job, self._rows[c.job][1], c.ending, c.story, c.runs, self._rows[c.job][3])
                out.append(f"journal: close {c.job!r}, {type(c.ending).__name__}")
        return out


class KeeperStory(_Teller):
    """The story of a worker.  WHO is hub (a message), data (a bag over PULL), compute (the compute thread) or shell."""

    def __init__(self, keeper_type: type[Keeper] = Keeper) -> None:
        super().__init__()
        self._type = keeper_type
        self._keeper: Keeper | None = None
        self._stage = ""

    def begin(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        if word == "keeper":
            life, self._stage, *numbers = rest.split()
            hello = Hello(self._stage, life, life.partition(".")[0], 1, "here", "cpu", (Endpoint("", f"tcp://{life}"),), 2, "")
            self._keeper = self._type(hello, **_numbers(" ".join(numbers)))
        return word == "keeper"

    def wakeup(self) -> float | None:
        assert self._keeper is not None
        return self._keeper.wakeup() if self.now or self._started else None

    _started = False

    def tick(self) -> list[str]:
        assert self._keeper is not None
        return self._said(self._keeper.tick(self.now))

    def hear(self, who: str, what: str) -> list[str]:
        mind = self._keeper
        assert mind is not None
        if who == "hub":
            names = self.names | {"to": lambda life: (Endpoint("", f"tcp://{life}"),)}
            return self._said(mind.receive(self.now, eval(what, {"__builtins__": {}}, names)))
        doing: dict[str, Callable[..., list[Any]]] = {
            "bag": lambda job, token: mind.arrived(self.now, Header("bag", job, self._stage, token, "d"), _frame(job)),
            "start": lambda: mind.start(self.now),
            "loaded": lambda numeric: mind.loaded(self.now, numeric),
            "advanced": lambda *a: mind.advanced(self.now, *a),
            "completed": lambda job, token: mind.completed(self.now, job, token, _frame(job), f"{self._stage}-{job}", 1.0),
            "raised": lambda *a: mind.raised(self.now, *a),
            "spoiled": lambda *a: mind.spoiled(self.now, *a),
            "drain": lambda: mind.drain(self.now),
            "wait": list,
            "take": list,
        }
        self._started = True
        if what == "take()":
            task, commands = mind.take(self.now)
            return [f"task: {task.job!r} under {task.token}" if task else "task: none", *self._said(commands)]
        return self._said(eval(what, {"__builtins__": {}}, self.names | doing))

    def _said(self, commands: list[Any]) -> list[str]:
        out = []
        for c in commands:
            if isinstance(c, keeper.Send):
                out.append(f"hub < {show(c.message)}")
            elif isinstance(c, keeper.Carry):
                out.append(f"{c.life or 'hub'} << {c.header.kind} of {c.header.job!r} under {c.header.token} to {show(c.to)}")
            elif isinstance(c, keeper.Forget):
                out.append(f"compute: forget {c.job!r} under {c.token}")
            else:
                out.append(f"shell: {show(c)}")
        return out


def play(text: str, minds: Minds | None = None) -> str:
    """The story as it really goes."""
    minds = minds or Minds()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    return (KeeperStory(minds.keeper) if first.startswith("keeper ") else BrokerStory(minds.broker)).tell(text)
