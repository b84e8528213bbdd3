"""What a worker runs, written where its parent can read it: when it dies, that is what died with it.

The coordinator may be down when it happens, and another that starts later has never heard of that life.  The file is in memory
(memfd_create, Linux) and belongs to these two processes alone; a write that has begun is whole, however the writer ends.
"""

from __future__ import annotations

import json
import os

LIMIT = 1 << 20  # bytes: of more jobs than ever step together


class Testament:
    """file: a descriptor that the worker inherits; -1: there is no parent to read it."""

    def __init__(self, file: int = -1) -> None:
        self.file = file
        self._left: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> Testament:
        return cls(os.memfd_create("ifmesh"))

    def leave(self, jobs: tuple[str, ...]) -> None:
        """These run now, and nothing else."""
        if jobs != self._left and self.file >= 0:
            os.pwrite(self.file, json.dumps(jobs).encode() + b"\n", 0)
        self._left = jobs

    def read(self) -> tuple[str, ...] | None:
        """What was left last.  None: it cannot be read."""
        text, newline, _ = os.pread(self.file, LIMIT, 0).partition(b"\n")
        try:
            return tuple(map(str, json.loads(text))) if newline else ()
        except ValueError:
            return None
