"""A key that has changed under the workers that `ifmesh up` runs: they are started again with the new one, one after another.

A worker has read its key when it started, and its lives begin with it; so nothing less than a new start will do.  Whose turn it is
finishes what runs; the next one's comes when that one has loaded its stage again.
"""

from __future__ import annotations

import signal
from pathlib import Path

from ifmesh.config import Config
from ifmesh.kept import Service

LEAVING = 10.0
"""Seconds beyond mesh.drain until a worker that does not leave is killed."""
LOADING = 600.0
"""Seconds until the next one's turn comes all the same."""

Mark = tuple[int, ...]


class Renewal:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._marks: dict[str, Mark] = {}  # of the key's file when the service was started
        self._killed: dict[str, int] = {}  # by which start
        self._turn: Service | None = None
        self._starts = 0  # of the one whose turn it is, when that began
        self._until = 0.0  # it has to have ended, or to be loaded again

    def started(self, now: float, service: Service) -> None:
        """Say so before its process can have read its key."""
        self._marks[service.name] = self._mark(service)
        if service is self._turn and service.starts == self._starts:
            self._until = now + LOADING

    def asked(self, service: Service) -> bool:
        """It ends because its turn has come: it is to start again at once."""
        return service is self._turn and service.starts == self._starts

    def next(self, now: float, services: list[Service]) -> tuple[Service, signal.Signals] | None:
        """Who is to be sent what now, if anybody.  Whoever is refused has nothing to finish, and waits for nobody."""
        old = [service for service in services if self._old(service)]
        for service in old:
            if service.refused:
                return self._kill(service)
        turn = self._turn
        if turn is not None and turn.starts == self._starts:  # it is about to end
            return self._kill(turn) if now >= self._until else None
        if turn is not None and not turn.loaded and now < self._until:
            return None
        self._turn = next(iter(old), None)
        if self._turn is None:
            return None
        self._starts, self._until = self._turn.starts, now + self._config.mesh.drain + LEAVING
        return self._turn, signal.SIGTERM

    def _kill(self, service: Service) -> tuple[Service, signal.Signals] | None:
        """Once for each start."""
        if not self._runs(service):
            return None
        self._killed[service.name] = service.starts
        return service, signal.SIGKILL

    def _runs(self, service: Service) -> bool:
        return service.process is not None and self._killed.get(service.name) != service.starts

    def _old(self, service: Service) -> bool:
        """Does it run with another key than the one that is there now?"""
        return self._runs(service) and self._mark(service) not in ((), self._marks.get(service.name, ()))

    def _mark(self, service: Service) -> Mark:
        """(): it has no key, or its file is not there."""
        if not service.stage or not self._config.mesh.curve:
            return ()
        return mark(self._config.identity_file(f"worker:{service.stage}"))


def mark(path: Path) -> Mark:
    """What changes when a file is replaced; (): it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
