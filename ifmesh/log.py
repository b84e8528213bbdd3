"""One line per event on stderr: ``HH:MM:SS.mmm level job text``.  What strangers sent is shown escaped, and seldom."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import TextIO

LINE = 2000
"""Characters of a line, before any are escaped; a traceback of our own is shown whole."""

MOMENT = 0.05
"""Seconds that a note waits for others."""

logger = logging.getLogger("ifmesh")


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._second, self._clock = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelname.lower(), getattr(record, "job", "-"), record.getMessage())
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"  # our own bug: the whole traceback

    def line(self, when: float, level: str, job: str, text: str) -> str:
        """when: of the wall clock."""
        second = int(when)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%H:%M:%S", time.localtime(second))
        line = f"{self._clock}.{int(1000 * (when - second)):03d} {level} {job} {text}"
        line = line if len(line) <= LINE else f"{line[:LINE]} ... ({len(line)} characters)"
        return line if line.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class _Notes(logging.StreamHandler[TextIO]):
    """Notes wait a moment, and are written together: a job has a dozen, and each write would wake whoever reads."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._lines = _Lines()
        self.setFormatter(self._lines)
        self._notes: list[str] = []
        self.due: float | None = None
        self._mine = Lock()  # other threads have lines of their own, before which these are written

    def note(self, job: str, text: str) -> None:
        line = self._lines.line(time.time(), "info", job, text)
        with self._mine:
            self._notes.append(line)
            if self.due is None:
                self.due = time.monotonic() + MOMENT

    def write(self) -> None:
        with self._mine:
            notes, self._notes, self.due = self._notes, [], None
        if notes:
            with suppress(OSError):  # nobody reads any more
                self.stream.write("\n".join(notes) + "\n")
                self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.write()  # in the order in which it happened
        super().emit(record)


def start() -> None:
    """Log this process's events to its stderr, from "info" upwards."""
    logger.handlers[:] = [_Notes()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # nobody looks at them, and
    logging._srcfile = None  # nobody asks who called: together half the time of a line


def note(job: str, text: str) -> None:
    """What happened to a job, or, with job "", in the mesh: to be written soon, by `tend` or before the next line of another kind."""
    for handler in _noting():
        handler.note(job or "-", text)


def tend(now: float) -> None:
    """The notes whose moment is over, and those that came since."""
    for handler in _noting():
        if handler.due is not None and handler.due <= now:
            handler.write()


def wakeup() -> float | None:
    """When `tend` has something to do (monotonic); None: never."""
    return min((handler.due for handler in _noting() if handler.due is not None), default=None)


def _noting() -> list[_Notes]:
    return [handler for handler in logger.handlers if isinstance(handler, _Notes)]


class Garbage:
    """What did not decode: counted by sender; the first ten are logged, then one of each thousand."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._counts.total()

    def dropped(self, sender: str, why: object) -> None:
        if len(self._counts) >= 1000 and sender not in self._counts:
            sender = "others"  # senders can be invented without end
        self._counts[sender] += 1
        count = self._counts[sender]
        if count <= 10 or count % 1000 == 0:
            logger.warning("dropped what %s sent (%d so far): %s", sender, count, str(why)[:300])
