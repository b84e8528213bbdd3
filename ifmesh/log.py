"""One line per event on stderr: ``HH:MM:SS.mmm level job text``.  What strangers sent is shown escaped, and seldom."""

from __future__ import annotations

import logging
import sys
from collections import Counter

LINE = 2000
"""Characters of a line, before any are escaped; a traceback of our own is shown whole."""

logger = logging.getLogger("ifmesh")


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(level)s %(job)s %(message)s", "%H:%M:%S", defaults={"job": "-"})

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        line = super().format(record)
        if record.exc_info:  # our own bug: the whole traceback
            return line
        line = line if len(line) <= LINE else f"{line[:LINE]} ... ({len(line)} characters)"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def start() -> None:
    """Log this process's events to its stderr, from "info" upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def note(job: str, text: str) -> None:
    """job "": about the mesh."""
    logger.info(text, extra={"job": job or "-"})


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
