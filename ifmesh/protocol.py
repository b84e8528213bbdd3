"""Every message on the wire, grouped by direction.

Past tense: it happened (`Done`).  Imperative: an order (`Run`).  Every message carries what fences it: `token`, a new one for every
grant, totally ordered; `life`, one start of one worker process.  One union per door: a message at the wrong door does not decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ifmesh.request import Request

VERSION = 8

Token = tuple[int, int]
"""(coordinator epoch, number).  Issuing a newer one is what invalidates the older; (0, 0) is older than any."""

NEVER: Token = (0, 0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a PULL listens.  host: id of the host on which only it can be reached (ipc), "" for everywhere (tcp).

    key: CURVE public key (Z85) of who listens there; "": it speaks in the clear.
    """

    host: str
    url: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class StageRun:
    """What one stage did for one job, as published.  Seconds and bytes; runs: how often it was started."""

    stage: str
    worker: str
    pid: int
    device: str
    queued_s: float
    run_s: float
    steps: int
    bytes_in: int
    bytes_out: int
    runs: int


# ---- client -> coordinator


@dataclass(frozen=True, slots=True)
class Hi:
    """A client is here.  Answered by Welcome."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Please run this, once, whatever happens.  Repeating it is safe: the job id is the client's own.

    Answered by Accepted or Refused; or by Wanted, when the coordinator does not have the upload.  previews: as in Watch.
    """

    job: str
    request: Request
    previews: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    job: str


@dataclass(frozen=True, slots=True)
class Watch:
    """Tell me of this job from now on; answered at once with where it stands.  previews: show me the early pictures, too."""

    job: str
    previews: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """Send the published result."""

    job: str


@dataclass(frozen=True, slots=True)
class Inspect:
    """Show the books: a page of jobs (job == ""), or one job with its whole story."""

    page: int = 0
    job: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Try the way from one service to another, and tell how it went: answered by Probed, later by Welcome as long as it is under way.

    number: the client's own, another for each.  source, target: names of services, or "coordinator".  First small frames go there and
    back, one by one; then `count` frames of `size` bytes go there, as fast as they can.  Journalled nowhere, retried by nobody.
    """

    number: int
    source: str
    target: str
    size: int = 0
    count: int = 0


# ---- coordinator -> client


@dataclass(frozen=True, slots=True)
class Welcome:
    """stages: of the running cascade.  epoch: of the coordinator.  max_prompt: characters; a client can check before it sends.

    inlet: where uploads are pushed to.
    """

    stages: tuple[str, ...]
    epoch: int
    max_prompt: int
    inlet: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """It is on disk; it will end."""

    job: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Not taken yet: PUSH the upload with this SHA-256 to the inlet.  When it is on disk, the Submit counts, as if said again."""

    job: str
    digest: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken.  reason "invalid" is the request's fault, "busy" says when to come back; job "" is about the connection."""

    job: str
    reason: Literal["busy", "conflict", "invalid", "unknown", "version"]
    detail: str
    retry_after: float = 0.0
    field: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """position: how many jobs of this stage go before it; 0 is next."""

    job: str
    stage: str
    position: int


@dataclass(frozen=True, slots=True)
class Started:
    job: str
    stage: str
    worker: str


@dataclass(frozen=True, slots=True)
class Progress:
    """step of steps is done."""

    job: str
    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """An early picture, checked and marked by the guard.  Its safetensors frame (picture_STAGE, flagged) follows as the next part.

    May never come, and come twice: whoever wants all the pictures fetches the result.
    """

    job: str
    stage: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The result is on disk.  digest: xxh3-128 (hex) of the published frame, size: its bytes.

    reproducible: every stage stayed within one numeric class over all its runs, and that class promises equal bits.  kept: SHA-256
    (hex) of the upload that the mesh has made of what the next stage needs, for Request.keep seconds from now on; "" for none.
    """

    job: str
    digest: str
    size: int
    seed: int
    reproducible: bool
    runs: tuple[StageRun, ...]
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """It has ended without a picture.  cause: "request", "error" (attempts used up), "poison" or "expired"."""

    job: str
    cause: Literal["request", "error", "poison", "expired"]
    stage: str
    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    job: str


@dataclass(frozen=True, slots=True)
class Result:
    """Answers Fetch.  The published safetensors frame follows as the next part of the same message.  request: what was asked."""

    job: str
    digest: str
    request: Request


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One process of the mesh, as `ifmesh ps` shows it.  state: loading, ready, busy, draining, aside, starting or lost; of one in swap
    also swapped (its weights are not in memory) and unloading.

    slots: how many requests step together there.  needs: bytes of memory that it takes when it is loaded, of one in swap; 0: of no other.
    """

    service: str
    stage: str
    pid: int
    host: str
    device: str
    state: str
    running: int
    held: int
    done: int
    seen_s: float
    numeric: str
    slots: int = 1
    needs: int = 0

    @property
    def serves(self) -> bool:
        """Does it take work, at once or when its turn comes?"""
        return self.state in ("ready", "busy") or (self.needs > 0 and self.state in ("swapped", "loading", "unloading"))


@dataclass(frozen=True, slots=True)
class JobRow:
    job: str
    state: str
    stage: str
    step: int
    steps: int
    worker: str
    age_s: float
    prompt: str


@dataclass(frozen=True, slots=True)
class Books:
    """Answers Inspect.  story: [(seconds since acceptance, what happened)], for one job only; missing: stages without a worker."""

    page: int
    pages: int
    services: tuple[ServiceRow, ...]
    jobs: tuple[JobRow, ...]
    queued: dict[str, int]
    missing: tuple[str, ...]
    story: tuple[tuple[float, str], ...] = ()
    runs: tuple[StageRun, ...] = ()
    ending: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """Answers Probe.  arrived: the target has got something.  url: the address that the source tries first; "": it has none.

    trips: seconds there and back, of each small frame, by the source's clock.  size: bytes that came within `seconds` after the first large
    frame, by the target's.  error: what did not work, and why as far as that is known; "": it all did.
    """

    number: int
    arrived: bool = False
    url: str = ""
    trips: tuple[float, ...] = ()
    size: int = 0
    seconds: float = 0.0
    error: str = ""


# ---- worker -> coordinator


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker lives.  life: one start of one process, never reused; name: the service it is, kept over restarts.

    capacity: jobs it may hold unfinished (running and prefetched).  numeric: its numeric class; equal strings, equal bits.
    needs: of a worker in swap, bytes of memory that it takes when it is loaded; budget: what it and all others in swap on the same device
    of the same host may take together.  0: its weights stay where they are.
    """

    stage: str
    life: str
    name: str
    pid: int
    host: str
    device: str
    endpoints: tuple[Endpoint, ...]
    capacity: int
    numeric: str
    needs: int = 0
    budget: int = 0

    @property
    def slots(self) -> int:
        """How many of its jobs step together; one more is prefetched."""
        return max(1, self.capacity - 1)


@dataclass(frozen=True, slots=True)
class Held:
    """One thing a worker has.  waiting: granted, no bag yet; ready: the bag is here; running: stepping; done: in the outbox.

    digest (xxh3-128, hex), size (bytes) and seconds (spent stepping) belong to done.
    """

    job: str
    token: Token
    state: Literal["waiting", "ready", "running", "done"]
    step: int = 0
    steps: int = 0
    digest: str = ""
    size: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Beat:
    """Everything that this worker holds and runs.  Sent each second; answered by Verdicts.  full: the outbox takes no more.

    trusts: the number of the newest Trusted that it has heard; 0: none.  lease: under which Load its weights are in memory, or on their
    way there or out; NEVER: they are not, or they are not swapped.
    """

    life: str
    number: int
    state: Literal["loading", "ready", "draining", "swapped", "unloading"]
    held: tuple[Held, ...]
    full: bool = False
    trusts: int = 0
    lease: Token = NEVER


@dataclass(frozen=True, slots=True)
class Step:
    """Progress between beats.  step 0: it begins now."""

    life: str
    job: str
    token: Token
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Received:
    """The bag is here, whole, and of the right shape."""

    life: str
    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Done:
    """The stage's bag is in the outbox."""

    life: str
    job: str
    token: Token
    digest: str
    size: int
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Raised:
    """The stage raised.  fault "request": it can never work; "stage": try elsewhere."""

    life: str
    job: str
    token: Token
    error: str
    fault: Literal["request", "stage"]


@dataclass(frozen=True, slots=True)
class Arrived:
    """The first frame of this probe is here."""

    life: str
    token: Token


@dataclass(frozen=True, slots=True)
class Reached:
    """How the probe went that Reach ordered; the figures are those of Probed."""

    life: str
    token: Token
    trips: tuple[float, ...] = ()
    size: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Bye:
    """A drained worker leaves; it holds nothing."""

    life: str


@dataclass(frozen=True, slots=True)
class Exited:
    """From a worker's parent, repeated until Noted: that life is over.

    cause: "ended" (as asked), "killed" (from outside), "crashed" (of its own making: exit code, SEGV, ABRT), "stalled" (by our Kill).
    name: of the service; ran: the jobs that were running in it, None: that is not known.
    """

    life: str
    cause: Literal["ended", "killed", "crashed", "stalled"]
    detail: str
    name: str = ""
    ran: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Lives:
    """From a worker's parent, each 10 s: the process of that life is there, whether it says anything itself or not."""

    life: str


# ---- coordinator -> worker, and its parent


@dataclass(frozen=True, slots=True)
class Run:
    """Do this.  The bag comes over PULL, under the same job and token.

    resume: a checkpoint comes, too, taken after this step of the stage: go on from there.  0: none does, and none is waited for.
    inlet: where to push your own checkpoints; (): none are wanted.  Said again under the same token, the newest word counts.
    """

    job: str
    token: Token
    request: Request
    resume: int = 0
    inlet: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Push:
    """Send the bag you hold for this job to `life`, under its `token`, and keep yours until Release.

    kind: bag; result (to the coordinator); preview (its picture alone, to a guard); relay: the bag, to the coordinator, which passes
    it on: the direct way does not work.
    """

    job: str
    token: Token
    life: str
    to: tuple[Endpoint, ...]
    kind: Literal["bag", "result", "preview", "relay"] = "bag"


@dataclass(frozen=True, slots=True)
class Look:
    """To a guard: the picture that `stage` has drawn comes under this token.  If you have time, check it, and PUSH it as a preview.

    Nobody waits for it, and nothing is held: whatever is lost on the way is not missed.
    """

    job: str
    stage: str
    token: Token
    to: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the task under this token: cancelled, or given to another."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Release:
    """The finished bag that you made under this token is needed no more."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Reach:
    """Probe the way to that life, under this token: see Probe.  Answered by Reached."""

    token: Token
    life: str
    to: tuple[Endpoint, ...]
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class Echo:
    """Frames of this probe come from that life ("": the coordinator): PUSH a small one back for each."""

    token: Token
    life: str
    to: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Bring your weights into memory, under this lease.  Said again until a Beat names it."""

    lease: Token


@dataclass(frozen=True, slots=True)
class Unload:
    """The lease is over: give the memory back.  Whatever is still in hand is forgotten.  Said again until a Beat does not name it."""

    lease: Token


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Answers a Beat: it was heard.  Whatever of it is to go: `drop` tasks, `release` bags."""

    number: int
    drop: tuple[tuple[str, Token], ...] = ()
    release: tuple[tuple[str, Token], ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """Who may push to a worker.  key: its CURVE public key (Z85); stage: whose bags it may push, "" for any (the coordinator)."""

    key: str
    stage: str


@dataclass(frozen=True, slots=True)
class Trusted:
    """Who may push to you, all of them, from now on.  Said again until a Beat names this number."""

    number: int
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """No new work; finish what runs, hand over the outbox, say Bye, end."""


@dataclass(frozen=True, slots=True)
class Who:
    """I do not know you: say Hello, then Beat."""


@dataclass(frozen=True, slots=True)
class Kill:
    """To the parent: that life is stalled; end it."""

    life: str


@dataclass(frozen=True, slots=True)
class Noted:
    """To the parent: its Exited was booked."""

    life: str


ClientMessage = Hi | Submit | Cancel | Watch | Fetch | Inspect | Probe
WorkerMessage = Hello | Beat | Step | Received | Done | Raised | Arrived | Reached | Bye | Exited | Lives
ToCoordinator = ClientMessage | WorkerMessage
ToClient = (
    Welcome | Accepted | Wanted | Refused | Queued | Started | Progress | Preview | Finished | Failed | Cancelled | Result | Books | Probed
)
ToWorker = Run | Push | Look | Drop | Release | Load | Unload | Reach | Echo | Verdicts | Trusted | Drain | Who | Refused
ToParent = Kill | Noted | Refused
Ended = Finished | Failed | Cancelled


# ---- data: the first frame of every PUSH, before the safetensors frame


Kind = Literal["bag", "result", "preview", "upload", "relay", "checkpoint", "probe"]


@dataclass(frozen=True, slots=True)
class Header:
    """kind: "bag", "preview" or "checkpoint" to a worker; "result", "preview", "upload", "relay" (a bag to be passed on, under the token
    of the grant it is for) or "checkpoint" to the coordinator; "probe" to either.  stage: who made it.  step: of a checkpoint, after which
    it was taken; of a probe, which of its frames it is, or answers.

    token: of the grant it is for; of a preview, of the grant that drew it; of a probe, its own.  digest: xxh3-128 (hex) of the frame.  An
    upload belongs to no job, stage or grant: in the place of the job stands its SHA-256.
    """

    kind: Kind
    job: str
    stage: str
    token: Token
    digest: str
    step: int = 0
