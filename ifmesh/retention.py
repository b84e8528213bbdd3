"""Which ended jobs are forgotten, and which results are nobody's."""

from __future__ import annotations

from collections.abc import Container

from ifmesh.journal import Journal
from ifmesh.log import logger
from ifmesh.schema import Unwritable
from ifmesh.writer import Writer

PAUSE = 5.0  # seconds between two looks ...
HURRY = 0.05  # ... and where there was more to do than ...
BATCH = 50  # ... so many jobs at once: a few milliseconds of the loop
MORE = 1.05  # times what all results together may have: then they do not wait for the next look


class Retention:
    """keep: seconds that a job and its result stay after its end; most: bytes of all results."""

    def __init__(self, journal: Journal, writer: Writer, keep: float, most: int) -> None:
        self._journal, self._writer, self._keep, self._most = journal, writer, keep, most
        self._landed: set[str] = set()
        self.due = 0.0  # when to look again ...
        self._soonest = 0.0  # ... and when at the soonest, if there is much more than there may be

    def begin(self) -> None:
        """Once, at the start: results that a death or a cancel has left without an owner.  Unwritable, OSError."""
        strays = self._journal.unclaimed(job for job, _ in self._journal.shelf.stored())
        if strays:
            logger.info("%d results belong to no job: removed", len(strays))
            self._writer.remove(strays)

    def landed(self, job: str) -> None:
        """Its result is on disk.  Whether it counts is to be seen: it may have been cancelled meanwhile."""
        self._landed.add(job)

    def turn(self, now: float, under_way: Container[str]) -> list[str]:
        """The jobs that are forgotten from now on.  under_way: the open ones."""
        if now < (self._soonest if self._journal.bytes > MORE * self._most else self.due):
            return []
        self.due, self._soonest = now + PAUSE, now + HURRY
        try:
            over = {job for job in self._landed if job not in under_way}
            strays = self._journal.unclaimed(over)
            self._landed -= over
            gone = self._journal.prune(self._keep, self._most, BATCH)
            if not gone:
                self._journal.rest()
        except Unwritable as error:
            logger.error("nothing can be removed: %s", error)
            self._soonest = self.due
            return []
        if gone or strays:
            self._writer.remove([*gone, *strays])
        if gone:
            logger.info("%d ended jobs are forgotten, the newest of them %s", len(gone), gone[-1])
        if len(gone) == BATCH:
            self.due = now + HURRY
        return gone
