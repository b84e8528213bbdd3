"""What a client's open Submits bring, and when it is pushed: pure.

The mesh asks for an upload once for every Submit that it hears; a push takes its time.  So the first asking is answered at once, and
the next ones after waits that double, whatever number of jobs bring the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Piece:
    """One upload.  jobs: whose open Submits bring it.  wait: seconds from the last push to the next, 0 before the first."""

    jobs: set[str] = field(default_factory=set)
    wait: float = 0.0
    due: float = 0.0


class Luggage:
    """By digest.  again, slow: the shortest and the longest wait, in seconds."""

    def __init__(self, again: float, slow: float) -> None:
        self._again, self._slow = again, slow
        self._pieces: dict[str, _Piece] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._pieces

    def brought(self, job: str, digest: str) -> None:
        """An open Submit brings it."""
        self._pieces.setdefault(digest, _Piece()).jobs.add(job)

    def settled(self, job: str, digest: str) -> None:
        """That Submit is answered.  What no other brings is forgotten."""
        if (piece := self._pieces.get(digest)) is not None:
            piece.jobs.discard(job)
            if not piece.jobs:
                del self._pieces[digest]

    def wanted(self, job: str, digest: str) -> bool:
        """May the mesh want it for this job?  Else it was answered since, or never brought."""
        return digest in self._pieces and job in self._pieces[digest].jobs

    def push(self, now: float, digest: str) -> bool:
        """Push it now?  Else it is on its way: for another job, or over a slow link."""
        piece = self._pieces[digest]
        if now < piece.due:
            return False
        piece.wait = min(self._slow, 2 * piece.wait) or self._again
        piece.due = now + piece.wait
        return True

    def repeated(self, digest: str) -> bool:
        """Was it pushed before the last time, too?"""
        return self._pieces[digest].wait > self._again

    def hurry(self) -> None:
        """What is on its way may be lost, or went to another: whoever asks next is answered at once."""
        for piece in self._pieces.values():
            piece.wait = piece.due = 0.0
