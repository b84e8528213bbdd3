"""The books of uploads: which are wanted, which are on disk, and which open jobs refer to them.  Pure; nothing here decides.

An upload is known by the SHA-256 (hex) of its frame.  A Submit whose upload is not here waits for it; nothing of it is booked, so
it may be forgotten at any time: the client says it again.  What the mesh keeps beside a result (`Request.keep`) is an upload that no
client has pushed, and that none can: it is held, whether a job refers to it or not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from ifmesh.errors import BadRequest
from ifmesh.job import Job
from ifmesh.protocol import Submit
from ifmesh.request import Request

WAITING = 1000  # Submits that wait for their uploads; beyond, the one that was said longest ago is forgotten, of who has most of them
FILES = 10_000  # uploads on disk, however small

Said = tuple[bytes, Submit, str | None]
"""Who said it, what, and who it is said for: see `Broker.receive`."""


@dataclass(slots=True)
class Stored:
    """One upload on disk.  size: bytes; names: of its tensors, in the order of `cascade.BROUGHT`; idle: since when no open job
    refers to it, or, in the future, until when it is held; sound: False when it could not be read, and is wanted again."""

    size: int
    names: tuple[str, ...]
    idle: float
    sound: bool = True


class Uploads:
    """most: bytes on disk from which on no more are wanted."""

    def __init__(self, most: int) -> None:
        self.stored: dict[str, Stored] = {}
        self.users: dict[str, set[str]] = {}  # digest -> open jobs that refer to it, whether it is on disk or not
        self.size = 0
        self._most = most
        # By peer and job; the last said is last: when, and then as in `Said`.
        self._waiting: OrderedDict[tuple[bytes, str], tuple[float, Submit, str | None]] = OrderedDict()
        self._wanted: dict[str, dict[tuple[bytes, str], None]] = {}  # digest -> who waits for it, the first comer first

    # ---- wanted

    def __len__(self) -> int:
        """How many Submits wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.size >= self._most or len(self.stored) >= FILES

    def roomy(self, now: float, size: int) -> bool:
        """Is there room for so many bytes that are held?  Such take at most half of it: clients can always bring their own."""
        held = [stored.size for stored in self.stored.values() if stored.idle > now]
        return not self.full and 2 * (sum(held) + size) <= self._most and 2 * len(held) < FILES

    def wants(self, digest: str) -> bool:
        return digest in self._wanted and not self.full

    def wait(self, now: float, peer: bytes, submit: Submit, owner: str | None = None) -> None:
        """In place of what this peer said of the same job before."""
        place, digest = (peer, submit.job), submit.request.upload
        if place in self._waiting and self._waiting[place][1].request.upload != digest:
            self._pop(place)
        self._waiting[place] = now, submit, owner
        self._waiting.move_to_end(place)
        self._wanted.setdefault(digest, {})[place] = None
        if len(self._waiting) > WAITING:
            mine = [place for place, (_, _, whose) in self._waiting.items() if whose == owner]
            self._pop(mine[0] if 2 * len(mine) > WAITING else next(iter(self._waiting)))

    def settled(self, peer: bytes, job: str) -> None:
        """What this peer said of this job is answered."""
        if (peer, job) in self._waiting:
            self._pop((peer, job))

    def left(self, peer: bytes) -> None:
        """This peer cannot be reached."""
        for place in [place for place in self._waiting if place[0] == peer]:
            self._pop(place)

    def withdrawn(self, job: str, owner: str | None = None) -> list[Said]:
        """Whatever waits under this job id, and now does no more.  owner: of him alone; None: of all."""
        said = [(place, whose) for place, (_, _, whose) in self._waiting.items() if place[1] == job and owner in (None, whose)]
        return [(place[0], self._pop(place), whose) for place, whose in said]

    def arrived(self, digest: str) -> list[Said]:
        """Whatever waits for this upload, and now does no more."""
        said = [(place, self._waiting[place][2]) for place in self._wanted.get(digest, ())]
        return [(place[0], self._pop(place), whose) for place, whose in said]

    def tire(self, now: float, patience: float) -> float | None:
        """Forget what was not said again for so long.  When to look again; None: nothing waits."""
        while self._waiting:
            place, (said, _, _) = next(iter(self._waiting.items()))
            if now < said + patience:
                return said + patience
            self._pop(place)
        return None

    def _pop(self, place: tuple[bytes, str]) -> Submit:
        _, submit, _ = self._waiting.pop(place)
        others = self._wanted[submit.request.upload]
        del others[place]
        if not others:
            del self._wanted[submit.request.upload]
        return submit

    # ---- on disk, and referred to

    def sound(self, digest: str) -> Stored | None:
        """The upload, if it is on disk and can be read."""
        stored = self.stored.get(digest)
        return stored if stored is not None and stored.sound else None

    def fits(self, request: Request) -> None:
        """BadRequest when it brings something else than its upload, which is here, holds."""
        stored = self.sound(request.upload)
        if stored is not None and stored.names != request.brings:
            raise BadRequest("brings", request.brings, f"the upload holds {', '.join(stored.names)}: say so")

    def size_of(self, digest: str) -> int:
        """0: it brings nothing, or the disk has lost it."""
        return self.stored[digest].size if digest in self.stored else 0

    def store(self, now: float, digest: str, size: int, names: tuple[str, ...]) -> None:
        """It is on disk, for the first time or again."""
        before = self.stored.get(digest)
        self.drop(digest)
        self.stored[digest] = Stored(size, names, now if before is None else max(now, before.idle))
        self.size += size

    def hold(self, digest: str, until: float) -> Stored:
        """It is here, and stays until then, whoever refers to it."""
        stored = self.stored[digest]
        stored.idle = max(stored.idle, until)
        return stored

    def drop(self, digest: str) -> None:
        """It is not on disk any more."""
        if (stored := self.stored.pop(digest, None)) is not None:
            self.size -= stored.size

    def use(self, digest: str, job: str) -> None:
        if digest:
            self.users.setdefault(digest, set()).add(job)

    def leave(self, now: float, digest: str, job: str) -> bool:
        """The job has ended.  True: nobody refers to its upload any more."""
        if not digest:
            return False
        self.users[digest].discard(job)
        if self.users[digest]:
            return False
        del self.users[digest]
        if digest not in self.stored:
            return False
        self.hold(digest, now)
        return True

    def check(self, jobs: Mapping[str, Job]) -> None:
        """The books balance, or AssertionError."""
        uses = 0
        for job in jobs.values():
            if job.request.upload:
                assert job.id in self.users.get(job.request.upload, ()), f"uploads: {job.id} refers to one, and nobody knows"
                uses += 1
        for digest, users in self.users.items():
            assert users, f"uploads: a place is kept for nobody: {digest}"
            uses -= len(users)
        assert uses == 0, "uploads: references of no open job"
        assert self.size == sum([stored.size for stored in self.stored.values()]), "uploads: the bytes do not add up"
        waits = len(self._waiting)
        for digest, who in self._wanted.items():
            assert who, f"uploads: {digest} is wanted by nobody"
            assert self.sound(digest) is None, f"uploads: {digest} is waited for, and here"
            for place in who:
                assert self._waiting[place][1].request.upload == digest, f"uploads: {place} waits for another than {digest}"
            waits -= len(who)
        assert waits == 0, "uploads: who waits for what?"
        assert len(self._waiting) <= WAITING, "uploads: too many wait"
