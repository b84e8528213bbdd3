"""The client's mind: pure.  It repeats what was not answered.

Level-triggered: nothing that it sends or hears is needed exactly once.  Every wish stays until the mesh has answered it, is sent
again after `again` seconds of silence about it, and all of them at once when the coordinator turns out to be another than before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Literal

from ifmesh.protocol import (
    Accepted,
    Books,
    Cancel,
    Cancelled,
    ClientMessage,
    Failed,
    Fetch,
    Finished,
    Hi,
    Inspect,
    Progress,
    Refused,
    Request,
    Result,
    Submit,
    ToClient,
    Watch,
    Welcome,
)

BURST: Final = 20  # repeats leave in groups of so many ...
GAP: Final = 0.1  # ... so many seconds apart: 1,000 silent jobs cost 200 messages a second, not a storm every two
SLOW: Final = 60.0  # seconds: the longest wait before a Fetch is sent again; a picture may be on a slow link


@dataclass(frozen=True, slots=True)
class Send:
    message: ClientMessage


@dataclass(frozen=True, slots=True)
class Tell:
    """To whoever waits for this job ("": for the Welcome or the Books): this came.  payload: the frame behind a Result."""

    job: str
    message: ToClient
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nothing was heard for too long: close the socket and make a new one."""


Command = Send | Tell | Rebuild


@dataclass(slots=True, eq=False)
class _Wish:
    """One thing that is not yet answered.  due: when to repeat it; wait: seconds between two tries.

    Of a job: request until it is accepted, then None; told: what of the news still holds, by kind; forgotten: nobody waits.
    """

    kind: Literal["job", "fetch", "inspect"]
    job: str
    due: float
    wait: float
    page: int = 0
    request: Request | None = None
    cancel: bool = False
    forgotten: bool = False
    told: dict[type, ToClient] = field(default_factory=dict)
    open: bool = True

    def messages(self) -> list[ClientMessage]:
        if self.kind == "fetch":
            return [Fetch(self.job)]
        if self.kind == "inspect":
            return [Inspect(self.page, self.job)]
        first: ClientMessage = Watch(self.job) if self.request is None else Submit(self.job, self.request)
        return [first, Cancel(self.job)] if self.cancel else [first]


@dataclass(slots=True)
class _Line:
    """What is known of the other side.  quiet: since when nothing was heard; probing: after a Rebuild, until anything is heard."""

    epoch: int | None = None
    quiet: float = 0.0
    hi: float | None = None  # when to say Hi again; None: Welcome came
    probing: bool = False
    pause: float = 0.0  # no repeats before this
    slow: float = 0.0  # the longest wait of a Fetch under way: so much silence may be a picture that still comes
    heap: list[tuple[float, int, _Wish]] = field(default_factory=list)
    pushed: int = 0


class Caller:
    """Feed it wishes, what arrived and the time; carry out what it returns, in order; call tick() no later than wakeup().

    patience: seconds without any message, although something is asked, until the socket is made anew.  again: seconds of silence
    about one wish until it is repeated.  Every call costs O(log n) of the open jobs, but for the moment of a new coordinator.
    """

    def __init__(self, patience: float = 3.0, again: float = 2.0) -> None:
        self._patience, self._again = patience, again
        self._line = _Line()
        self._jobs: dict[str, _Wish] = {}
        self._fetches: dict[str, _Wish] = {}
        self._inspect: _Wish | None = None

    # ---- wishes

    def hi(self, now: float) -> list[Command]:
        """Is anybody there?  Repeated until Welcome."""
        self._begin(now)
        self._line.hi = now + self._again
        return [Send(Hi())]

    def submit(self, now: float, job: str, request: Request) -> list[Command]:
        """Repeated until Accepted or Refused; from then on the job is watched to its end."""
        return self._wish_job(now, job, request)

    def watch(self, now: float, job: str) -> list[Command]:
        """Come back to a job by its id."""
        known = self._jobs.get(job)
        return self._wish_job(now, job, known.request if known else None)

    def cancel(self, now: float, job: str) -> list[Command]:
        """Repeated until the job has ended, one way or another."""
        known = self._jobs.get(job)
        return self._wish_job(now, job, known.request if known else None, cancel=True)

    def fetch(self, now: float, job: str) -> list[Command]:
        """Repeated until the Result is here; ever more slowly, because it may be on its way."""
        self._begin(now)
        if job in self._fetches:
            return []
        wish = self._fetches[job] = _Wish("fetch", job, now + self._again, self._again)
        return self._first(wish)

    def inspect(self, now: float, page: int, job: str) -> list[Command]:
        """Repeated until Books or Refused.  One at a time: a new one takes the place of the one before."""
        self._begin(now)
        if self._inspect is not None:
            self._inspect.open = False
        self._inspect = _Wish("inspect", job, now + self._again, self._again, page)
        return self._first(self._inspect)

    def forget(self, job: str) -> None:
        """Nobody waits for this job any more; it goes on.  What was asked (Submit, Cancel) is still brought through."""
        if fetch := self._fetches.get(job):
            self._answered(fetch)
        if wish := self._jobs.get(job):
            wish.forgotten = True
            self._let_go(wish)

    # ---- what arrived

    def receive(self, now: float, message: ToClient, payload: bytes = b"") -> list[Command]:
        line = self._line
        line.quiet = now
        fresh, line.probing = line.probing, False
        match message:
            case Welcome():
                fresh = fresh or line.epoch not in (None, message.epoch)
                line.epoch, line.hi = message.epoch, None
                out: list[Command] = [Tell("", message)]
            case Books():
                out = self._books(message)
            case Result():
                out = self._result(message, payload)
            case Refused():
                out = self._refused(now, message)
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
            line.quiet, line.probing, line.hi = now, True, now + self._again
            return [Rebuild(), Send(Hi())]
        out: list[Command] = []
        if line.hi is not None and line.hi <= now:
            line.hi = now + self._again
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
        if line.heap and not line.probing:
            times.append(max(line.heap[0][0], line.pause))
        return min(times)

    # ---- inside

    @property
    def _outstanding(self) -> bool:
        return bool(self._jobs or self._fetches or self._inspect or self._line.hi is not None)

    @property
    def _silence(self) -> float:
        return max(self._patience, 1.5 * self._line.slow)

    def _begin(self, now: float) -> None:
        if not self._outstanding:
            self._line.quiet = now  # silence counts from the first question
            self._line.heap.clear()

    def _first(self, wish: _Wish) -> list[Command]:
        self._push(wish)
        # While nobody answers, it waits with the rest for the first sign of life.
        return [] if self._line.probing else [Send(m) for m in wish.messages()]

    def _push(self, wish: _Wish) -> None:
        self._line.pushed += 1
        heappush(self._line.heap, (wish.due, self._line.pushed, wish))

    def _wish_job(self, now: float, job: str, request: Request | None, cancel: bool = False) -> list[Command]:
        self._begin(now)
        wish = self._jobs.get(job)
        if wish is None:
            wish = self._jobs[job] = _Wish("job", job, now + self._again, self._again, request=request, cancel=cancel)
            return self._first(wish)
        # A wish has one place in the heap; `due` may only move later, and the place is looked up again when its time comes.
        wish.request, wish.cancel, wish.forgotten, wish.told = request, wish.cancel or cancel, False, {}
        wish.due = now + self._again
        return [] if self._line.probing else [Send(m) for m in wish.messages()]

    def _answered(self, wish: _Wish) -> None:
        wish.open = False
        if wish.kind == "job":
            del self._jobs[wish.job]
        elif wish.kind == "fetch":
            del self._fetches[wish.job]
            if not self._fetches:
                self._line.slow = 0.0
        else:
            self._inspect = None

    def _let_go(self, wish: _Wish) -> None:
        if wish.forgotten and wish.request is None and not wish.cancel:
            self._answered(wish)

    def _news(self, now: float, message: ToClient) -> list[Command]:
        """Of one job.  Whatever it says, the coordinator has the job: that is as good as Accepted."""
        assert not isinstance(message, Welcome | Books | Result | Refused)
        wish = self._jobs.get(message.job)
        if wish is None:
            return []  # ended, forgotten, or never asked for: late or doubled
        known, wish.request = wish.request is None, None
        wish.due = now + wish.wait
        if isinstance(message, Finished | Failed | Cancelled):
            self._answered(wish)
            return [Tell(message.job, message)]
        self._let_go(wish)
        if isinstance(message, Accepted):
            return [] if known else [Tell(message.job, message)]
        # A Watch is answered with where the job stands: Started and the newest step, which were told already.
        if wish.told.get(type(message)) == message:
            return []
        if not isinstance(message, Progress):
            wish.told.clear()
        wish.told[type(message)] = message
        return [Tell(message.job, message)]

    def _result(self, message: Result, payload: bytes) -> list[Command]:
        wish = self._fetches.get(message.job)
        if wish is None:
            return []
        self._answered(wish)
        return [Tell(message.job, message, payload)]

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
            told = {"", *self._jobs, *self._fetches}
            for wish in [*self._jobs.values(), *self._fetches.values()]:
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
        wishes = [*self._jobs.values(), *self._fetches.values(), *([self._inspect] if self._inspect else [])]
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
