"""The checkpoints that the coordinator keeps: in memory, the newest of each job.  Pure.

They are lost with it, which costs time alone.
"""

from __future__ import annotations

from dataclasses import replace

from ifmesh.protocol import Header, Token

Frame = bytes | memoryview


class Checkpoints:
    """most: bytes; beyond, what was begun first goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._kept: dict[str, tuple[Header, Frame]] = {}  # by job, in the order in which they had their first

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def keep(self, header: Header, frame: Frame) -> list[str]:
        """In the place of the one before.  The jobs whose checkpoint had to go for it; this one, too, if it is too large alone."""
        before = self._kept.get(header.job)
        self._size += len(frame) - (len(before[1]) if before else 0)
        self._kept[header.job] = header, frame
        gone = []
        while self._size > self._most:
            gone.append(next(iter(self._kept)))
            self.drop(gone[-1])
        return gone

    def drop(self, job: str) -> None:
        if (kept := self._kept.pop(job, None)) is not None:
            self._size -= len(kept[1])

    def under(self, job: str, token: Token) -> tuple[Header, Frame] | None:
        """To be pushed to the worker of that grant.  None: there is none."""
        kept = self._kept.get(job)
        return None if kept is None else (replace(kept[0], token=token), kept[1])
