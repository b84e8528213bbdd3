"""The client's mind: pure.  It repeats what was not answered.

Level-triggered: nothing that it sends or hears is needed exactly once.  Every wish stays until the mesh has answered it, is sent
again after `again` seconds of silence about it, and all of them at once when the coordinator turns out to be another than before.
Uploads are pushed when the mesh says that it wants them, however often it says so, and whatever number of jobs bring the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from ifmesh.errand import Errand, probed
from ifmesh.luggage import Luggage
from ifmesh.protocol import (
    Accepted,
    Books,
    Cancel,
    Cancelled,
    ClientMessage,
    Failed,
    Finished,
    Hi,
    Preview,
    Probe,
    Probed,
    Refused,
    Result,
    ToClient,
    Wanted,
    Welcome,
)
from ifmesh.request import Request

KEEPALIVE: Final = 10.0  # seconds between two Hi while a job is open: who is silent for long counts as gone
BURST: Final = 20  # repeats leave in groups of so many ...
GAP: Final = 0.1  # ... so many seconds apart: 1,000 silent jobs cost 200 messages a second, not a storm every two
SLOW: Final = 60.0  # seconds: the longest wait before a Fetch, or an upload, is sent again; a picture may be on a slow link


@dataclass(frozen=True, slots=True)
class Send:
    message: ClientMessage


@dataclass(frozen=True, slots=True)
class Tell:
    """To whoever waits for this job ("": for the Welcome or the Books; `errand.probed`: for a probe): this came.

    payload: the frame behind a Result or Preview.
    """

    job: str
    message: ToClient
    payload: bytes | memoryview = b""


@dataclass(frozen=True, slots=True)
class Upload:
    """PUSH the upload with this SHA-256 to the inlet that Welcome named, now."""

    digest: str


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nothing was heard for too long: close the socket and make a new one."""


Command = Send | Tell | Upload | Rebuild


@dataclass(slots=True)
class _Line:
    """What is known of the other side.  quiet: since when nothing was heard; probing: after a Rebuild, until anything is heard."""

    epoch: int | None = None
    quiet: float = 0.0
    hi: float | None = None  # when to say Hi again; None: Welcome came
    alive: float = 0.0  # when to say Hi because a job is open
    probing: bool = False
    pause: float = 0.0  # no repeats before this
    slow: float = 0.0  # the longest wait of a Fetch under way: so much silence may be a picture that still comes
    heap: list[tuple[float, int, Errand]] = field(default_factory=list)
    pushed: int = 0


class Caller:
    """Feed it wishes, what arrived and the time; carry out what it returns, in order; call tick() no later than wakeup().

    patience: seconds without any message, although something is asked, until the socket is made anew.  again: seconds of silence
    about one wish until it is repeated.  Every call costs O(log n) of the open jobs, but for the moment of a new coordinator.
    """

    def __init__(self, patience: float = 3.0, again: float = 2.0) -> None:
        self._patience, self._again = patience, again
        self._line = _Line()
        self._jobs: dict[str, Errand] = {}
        self._fetches: dict[str, Errand] = {}
        self._inspect: Errand | None = None
        self._probes: dict[str, Errand] = {}
        self._luggage = Luggage(again, SLOW)

    # ---- wishes

    def hi(self, now: float) -> list[Command]:
        """Is anybody there?  Repeated until Welcome."""
        self._begin(now)
        self._line.hi = now + self._again
        self._line.alive = now + KEEPALIVE
        return [Send(Hi())]

    def submit(self, now: float, job: str, request: Request, previews: bool = False, kept: bool = False) -> list[Command]:
        """Repeated until Accepted or Refused; from then on the job is watched to its end.  previews: as in `watch`.

        kept: what it brings is not here, the mesh keeps it.  Should the mesh want it all the same, that is told, and the answer:
        the job is cancelled.
        """
        return self._wish_job(now, job, request, previews, kept=kept)

    def watch(self, now: float, job: str, previews: bool = False) -> list[Command]:
        """Come back to a job by its id.  previews: and see its early pictures; once asked for, they are until the job has ended."""
        known = self._jobs.get(job)
        return self._wish_job(now, job, known.request if known else None, previews, kept=known is not None and known.kept)

    def cancel(self, now: float, job: str) -> list[Command]:
        """Repeated until the job has ended, one way or another."""
        known = self._jobs.get(job)
        return self._wish_job(now, job, known.request if known else None, cancel=True, kept=known is not None and known.kept)

    def fetch(self, now: float, job: str) -> list[Command]:
        """Repeated until the Result is here; ever more slowly, because it may be on its way."""
        self._begin(now)
        if job in self._fetches:
            return []
        wish = self._fetches[job] = Errand("fetch", job, now + self._again, self._again)
        return self._first(wish)

    def inspect(self, now: float, page: int, job: str) -> list[Command]:
        """Repeated until Books or Refused.  One at a time: a new one takes the place of the one before."""
        self._begin(now)
        if self._inspect is not None:
            self._inspect.open = False
        self._inspect = Errand("inspect", job, now + self._again, self._again, page)
        return self._first(self._inspect)

    def probe(self, now: float, message: Probe) -> list[Command]:
        """Repeated until Probed: the coordinator answers what is said again while it is under way with a sign of life."""
        self._begin(now)
        name = probed(message.number)
        wish = self._probes[name] = Errand("probe", name, now + self._again, self._again, probe=message)
        return self._first(wish)

    def forget(self, job: str) -> None:
        """Nobody waits for this job any more; it goes on.  What was asked (Submit, Cancel) is still brought through.

        A tied job is watched to its end all the same: it lives as long as this client is heard, whoever waits.
        """
        if asked := self._fetches.get(job) or self._probes.get(job):
            self._answered(asked)
        if wish := self._jobs.get(job):
            wish.forgotten = True
            self._let_go(wish)

    def needs(self, digest: str) -> bool:
        """May this upload still be asked for?  Some Submit that brings it is not answered yet."""
        return digest in self._luggage

    # ---- what arrived

    def receive(self, now: float, message: ToClient, payload: bytes | memoryview = b"") -> list[Command]:
        line = self._line
        line.quiet = now
        fresh, line.probing = line.probing, False
        match message:
            case Welcome():
                fresh = fresh or line.epoch not in (None, message.epoch)
                line.epoch, line.hi = message.epoch, None
                if fresh:
                    self._luggage.hurry()
                out: list[Command] = [Tell("", message)]
            case Books():
                out = self._books(message)
            case Result():
                out = self._result(message, payload)
            case Refused():
                out = self._refused(now, message)
            case Wanted():
                out = self._wanted(now, message)
            case Probed(number):
                out = self._told(probed(number), message)
            case Preview():
                out = self._preview(message, payload)
            case _:
                out = self._news(now, message)
        return out + (self._everything(now) if fresh else [])

    # ---- time

    def tick(self, now: float) -> list[Command]:
        line = self._line
        if not self._outstanding:
            return []
        if now >= line.quiet + self._silence:  # as wakeup() says it: the difference would round otherwise, and the shell spin
            # Until anybody answers, one Hi is asked instead of everything: a dead address is not to be flooded.
            line.quiet, line.probing, line.hi, line.alive = now, True, now + self._again, now + KEEPALIVE
            self._luggage.hurry()  # what was on its way may be lost
            return [Rebuild(), Send(Hi())]
        out: list[Command] = []
        if line.hi is not None and line.hi <= now:
            line.hi, line.alive = now + self._again, now + KEEPALIVE
            out.append(Send(Hi()))
        elif self._jobs and line.alive <= now:  # heard or not: the next one follows
            line.alive = now + KEEPALIVE
            out.append(Send(Hi()))
        if not line.probing and line.pause <= now:
            out += self._repeats(now)
        return out

    def wakeup(self) -> float | None:
        """When tick() next has work; None: never."""
        line = self._line
        if not self._outstanding:
            return None
        times = [line.quiet + self._silence]
        if line.hi is not None:
            times.append(line.hi)
        if self._jobs:
            times.append(line.alive)
        if line.heap and not line.probing:
            times.append(max(line.heap[0][0], line.pause))
        return min(times)

    # ---- inside

    @property
    def _outstanding(self) -> bool:
        return bool(self._jobs or self._fetches or self._inspect or self._probes or self._line.hi is not None)

    @property
    def _silence(self) -> float:
        return max(self._patience, 1.5 * self._line.slow)

    def _begin(self, now: float) -> None:
        if not self._outstanding:
            self._line.quiet = now  # silence counts from the first question
            self._line.heap.clear()

    def _first(self, wish: Errand) -> list[Command]:
        self._push(wish)
        # While nobody answers, it waits with the rest for the first sign of life.
        return [] if self._line.probing else [Send(m) for m in wish.messages()]

    def _push(self, wish: Errand) -> None:
        self._line.pushed += 1
        heappush(self._line.heap, (wish.due, self._line.pushed, wish))

    def _wish_job(
        self, now: float, job: str, request: Request | None, previews: bool = False, cancel: bool = False, kept: bool = False
    ) -> list[Command]:
        self._begin(now)
        if not self._jobs:
            self._line.alive = now + KEEPALIVE
        wish = self._jobs.get(job)
        if wish is None:
            wish = self._jobs[job] = Errand("job", job, now + self._again, self._again, previews=previews, cancel=cancel)
            self._ask(wish, request, kept)
            return self._first(wish)
        # A wish has one place in the heap; `due` may only move later, and the place is looked up again when its time comes.
        self._ask(wish, request, kept)
        wish.previews, wish.cancel, wish.forgotten = wish.previews or previews, wish.cancel or cancel, False
        wish.told, wish.shown = {}, set()
        wish.due = now + self._again
        return [] if self._line.probing else [Send(m) for m in wish.messages()]

    def _ask(self, wish: Errand, request: Request | None, kept: bool = False) -> None:
        """What is asked of this job from now on; None: that was answered."""
        before, wish.request, wish.kept = wish.request, request, kept
        if before is not None and (request is None or request.upload != before.upload):
            self._luggage.settled(wish.job, before.upload)
        if request is not None:
            wish.tied = request.tied
        if request is not None and request.upload and not kept:
            self._luggage.brought(wish.job, request.upload)

    def _answered(self, wish: Errand) -> None:
        wish.open = False
        if wish.kind == "job":
            self._ask(wish, None)
            del self._jobs[wish.job]
        elif wish.kind == "fetch":
            del self._fetches[wish.job]
            if not self._fetches:
                self._line.slow = 0.0
        elif wish.kind == "probe":
            del self._probes[wish.job]
        else:
            self._inspect = None

    def _let_go(self, wish: Errand) -> None:
        if wish.forgotten and wish.request is None and not wish.cancel and not wish.tied:
            self._answered(wish)

    def _news(self, now: float, message: ToClient) -> list[Command]:
        """Of one job.  Whatever it says, the coordinator has the job: that is as good as Accepted."""
        assert not isinstance(message, Welcome | Books | Result | Refused | Wanted | Preview | Probed)
        wish = self._jobs.get(message.job)
        if wish is None:
            return []  # ended, forgotten, or never asked for: late or doubled
        known = wish.request is None
        self._ask(wish, None)
        wish.due = now + wish.wait
        if isinstance(message, Finished | Failed | Cancelled):
            self._answered(wish)
            return [Tell(message.job, message)]
        self._let_go(wish)
        if isinstance(message, Accepted):
            return [] if known else [Tell(message.job, message)]
        return [Tell(message.job, message)] if wish.news(message) else []

    def _wanted(self, now: float, message: Wanted) -> list[Command]:
        """The Submit was heard, but for the upload.  It goes on being repeated: the answer says whether the upload is there."""
        wish = self._jobs.get(message.job)
        if wish is not None and wish.kept and wish.request is not None and wish.request.upload == message.digest:
            self._answered(wish)
            return [Send(Cancel(message.job)), Tell(message.job, message)]  # or the Submit would wait there, and run for nobody
        if wish is None or not self._luggage.wanted(message.job, message.digest):
            return []
        wish.due = now + wish.wait
        if not self._luggage.push(now, message.digest):
            return []
        # Once did not do: the coordinator may be another by now, with another inlet, and its Welcome tells.
        return [Upload(message.digest), *([Send(Hi())] if self._luggage.repeated(message.digest) else [])]

    def _preview(self, message: Preview, payload: bytes | memoryview) -> list[Command]:
        """An extra: it answers nothing, and puts nothing off."""
        wish = self._jobs.get(message.job)
        return [Tell(message.job, message, payload)] if wish is not None and wish.news(message) else []

    def _result(self, message: Result, payload: bytes | memoryview) -> list[Command]:
        wish = self._fetches.get(message.job)
        if wish is None:
            return []
        self._answered(wish)
        return [Tell(message.job, message, payload)]

    def _told(self, name: str, message: Probed) -> list[Command]:
        if (wish := self._probes.get(name)) is None:
            return []
        self._answered(wish)
        return [Tell(name, message)]

    def _books(self, message: Books) -> list[Command]:
        wish = self._inspect
        if wish is None:
            return []
        # A page has no story, and the books of one job name no other: a late answer to the question before is not believed.
        if wish.job:
            fits = any(row.job == wish.job for row in message.jobs) or bool(message.story or message.ending)
            fits = fits and all(row.job == wish.job for row in message.jobs)
        else:
            fits = not message.story and message.page <= wish.page
        if not fits:
            return []
        self._answered(wish)
        return [Tell("", message)]

    def _refused(self, now: float, message: Refused) -> list[Command]:
        # 1. It is about the connection, and final: everybody is told.
        if message.reason == "version":
            told = {"", *self._jobs, *self._fetches, *self._probes}
            for wish in [*self._jobs.values(), *self._fetches.values(), *self._probes.values()]:
                self._answered(wish)
            if self._inspect:
                self._answered(self._inspect)
            self._line.hi = None
            return [Tell(job, message) for job in sorted(told)]
        # 2. It is about the books, or about the connection.
        out: list[Command] = []
        if self._inspect and self._inspect.job == message.job and (message.reason == "unknown" or not message.job):
            self._answered(self._inspect)
            out.append(Tell("", message))
        elif not message.job:
            out.append(Tell("", message))
        # 3. It is about a job.  Unknown answers Watch, Cancel and Fetch, all else answers Submit: whichever was not asked is late.
        asked = [self._fetches.get(message.job)] if message.reason == "unknown" else []
        job = self._jobs.get(message.job)
        if job and (job.request is None) == (message.reason == "unknown"):
            asked.append(job)
        found = [wish for wish in asked if wish]
        for wish in found:
            self._answered(wish)
        return [*out, Tell(message.job, message)] if found else out

    def _everything(self, now: float) -> list[Command]:
        """Another coordinator, or the same after a silence: ask for all of it at once."""
        wishes = [*self._jobs.values(), *self._fetches.values(), *([self._inspect] if self._inspect else []), *self._probes.values()]
        for wish in wishes:
            wish.due = now + wish.wait
        return [Send(m) for wish in wishes for m in wish.messages()]

    def _repeats(self, now: float) -> list[Command]:
        line, out, count = self._line, list[Command](), 0
        while line.heap and line.heap[0][0] <= now and count < BURST:
            _, _, wish = heappop(line.heap)
            if not wish.open:
                continue
            if wish.due <= now:
                count += 1
                out += [Send(m) for m in wish.messages()]
                if wish.kind == "fetch":
                    wish.wait = min(SLOW, 2 * wish.wait)
                    line.slow = max(line.slow, wish.wait)
                wish.due = now + wish.wait
            self._push(wish)
        if count == BURST:
            line.pause = now + GAP
        return out
