"""What the keeper has its worker do: commands, and the tasks of the compute thread."""

from __future__ import annotations

from dataclasses import dataclass

from ifmesh.prober import Cast
from ifmesh.protocol import Endpoint, Header, Token, WorkerMessage
from ifmesh.request import Request

Frame = bytes | memoryview
"""A bag as one safetensors frame."""


@dataclass(frozen=True, slots=True)
class Send:
    """To the coordinator."""

    message: WorkerMessage


@dataclass(frozen=True, slots=True)
class Carry:
    """PUSH this bag to that life ("": the coordinator).  only: this one of its tensors, and the digest made anew."""

    life: str
    to: tuple[Endpoint, ...]
    header: Header
    frame: Frame
    only: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """To the compute thread: drop this job, before its next step."""

    job: str
    token: Token


@dataclass(frozen=True, slots=True)
class Fill:
    """To the compute thread: bring the weights into memory.  Told back with `loaded`, or `denied`."""


@dataclass(frozen=True, slots=True)
class Clear:
    """To the compute thread: forget all jobs, and give the memory of the weights back.  Told back with `cleared`."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nothing was heard for too long: close the control socket and make a new one."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of this life.  Refused with detail, or drained (detail "")."""

    detail: str


Command = Send | Carry | Cast | Forget | Fill | Clear | Rebuild | Stop


@dataclass(frozen=True, slots=True)
class Task:
    """For the compute thread: start this.

    saved: a checkpoint to go on from.  preview: an early picture; job is the name under which it runs, and nobody waits for it.
    urgent: beyond its slots; what it has in hand is to make way.
    """

    job: str
    token: Token
    request: Request
    frame: Frame
    preview: bool = False
    urgent: bool = False
    saved: Frame | None = None
