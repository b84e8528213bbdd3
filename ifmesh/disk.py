"""Between the broker and a disk that may fail: what was decided waits here until the journal has it.

While it waits, nothing more is decided: the coordinator is to its mind as if it slept.  Its shell alone is awake, so that nobody gives
up: Beats are answered, new jobs are refused, and all else is said again by whoever said it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ifmesh.commands import Command, Send
from ifmesh.journal import Journal
from ifmesh.log import logger
from ifmesh.protocol import Beat, Hi, Inspect, Refused, Submit, ToCoordinator, Verdicts, Welcome
from ifmesh.schema import Unwritable

AGAIN = 1.0  # seconds between two tries, and between two looks at the free space
REMIND = 60.0  # seconds between two lines of the log
RETRY = 5.0  # seconds after which a refused client is to come back


class Disk:
    """reserve: bytes that are to stay free: with less, no new jobs; what is under way goes on."""

    def __init__(self, journal: Journal, reserve: int) -> None:
        self._journal, self._reserve = journal, reserve
        self._waiting: list[Command] = []
        self._since = self._again = self._remind = 0.0
        self._failing = ""  # why what waits does
        self._short = ""  # why there is no room for new jobs

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def due(self) -> float:
        """When what waits is tried again."""
        return self._again

    def through(self, now: float, commands: Sequence[Command]) -> list[Command]:
        """These, in their order, behind those that wait: on disk, and so to be carried out; or none of them, yet."""
        if self._waiting:  # whatever is said now is said again: the memory stays as it is, however long it takes
            self._waiting += [command for command in commands if not isinstance(command, Send)]
            if now < self._again:
                return []
            commands = self._waiting
        try:
            self._journal.commit(commands)
        except Unwritable as error:
            self._fails(now, str(error), list(commands))
            return []
        if self._waiting:
            logger.info("the disk takes the journal again, after %.1f s", now - self._since)
            self._waiting = []
        return list(commands)

    def watch(self) -> None:
        """Asked from time to time: is there room, and is the journal still ours?  Misconfigured: another coordinator's."""
        self._look()
        try:
            self._journal.held_by_us()
        except Unwritable as error:
            logger.error("the journal cannot be read: %s", error)

    @property
    def refuses(self) -> str:
        """Why no new job can be taken; "": it can."""
        return f"the disk does not take the journal ({self._failing})" if self._waiting else self._short

    def answer(self, message: ToCoordinator, known: bool, welcome: Welcome) -> Welcome | Verdicts | Refused | None:
        """What is said at once to what the broker does not hear; None: nothing, it will be asked again.  known: that job is."""
        match message:
            case Beat(number=number):
                return Verdicts(number)
            case Hi():
                return welcome
            case Submit(job=job) if not known:
                return Refused(job, "busy", self.refuses, RETRY)
            case Inspect(job=""):
                return Refused("", "busy", self.refuses, RETRY)
        return None

    def _fails(self, now: float, why: str, commands: list[Command]) -> None:
        if not self._waiting:
            self._since = self._remind = now
        self._waiting, self._failing, self._again = commands, why, now + AGAIN
        if now >= self._remind:
            self._remind = now + REMIND
            logger.error("the disk does not take the journal: %s; no new jobs, and nothing goes on: tried again each second", why)

    def _look(self) -> None:
        before = self._short
        try:
            free = os.statvfs(self._journal.state)
            left = free.f_bavail * free.f_frsize
            self._short = "" if left >= self._reserve else f"the disk has {left >> 20} MiB free, and mesh.reserve_bytes keeps that"
        except OSError as error:
            self._short = f"the disk cannot be looked at: {error.strerror}"
        if bool(before) != bool(self._short):
            logger.warning("%s", f"no new jobs: {self._short}" if self._short else "the disk has room again: new jobs are taken")
