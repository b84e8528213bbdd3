"""File descriptors: as many as the system allows, and a word in the log while they are running out.

Without any left libzmq lets nobody new in, and keeps who is in (measured); whatever else needs one gets an error and tries again.
"""

from __future__ import annotations

import os
import resource

from ifmesh.log import logger

WANTED = 65536
MUCH = 0.8
"""Of all there may be: from there on it is said."""
OFTEN = 1.0
"""Seconds between two counts."""


def claim() -> None:
    """As many as this process may have.  Before the first socket is made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Count:
    """Looks once in a while, and says when it becomes tight, and when it is over."""

    def __init__(self) -> None:
        self._looked = float("-inf")
        self._tight = False

    def look(self, now: float) -> None:
        if now - self._looked < OFTEN:
            return
        self._looked = now
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            used = len(os.listdir("/proc/self/fd"))
        except OSError:  # none left to look with, or another system
            used = limit if os.path.isdir("/proc/self") else 0
        tight = limit != resource.RLIM_INFINITY and used >= MUCH * limit
        if tight and not self._tight:
            logger.error("%d of %d file descriptors are in use: soon nobody new can come in; raise the limit (ulimit -n)", used, limit)
        elif self._tight and not tight:
            logger.info("%d of %d file descriptors are in use: newcomers are welcome again", used, limit)
        self._tight = tight
