"""One thing that a client has asked for and that is not yet answered: pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ifmesh.protocol import Cancel, ClientMessage, Fetch, Inspect, Preview, Probe, Progress, Submit, ToClient, Watch
from ifmesh.request import Request


@dataclass(slots=True, eq=False)
class Errand:
    """due: when to repeat it; wait: seconds between two tries; open: it is not answered.

    Of a job: request until it is accepted, then None; kept: the mesh has what the request brings, and nobody here; tied: it said that
    the job ends when nobody who watches it is heard; previews: somebody wants the early pictures; told: what of the news still holds,
    by kind; shown: the stages whose early pictures were told; forgotten: nobody waits.

    Of a probe: what is asked; the job is the name under which its answer is told (`probed`).
    """

    kind: Literal["job", "fetch", "inspect", "probe"]
    job: str
    due: float
    wait: float
    page: int = 0
    request: Request | None = None
    kept: bool = False
    tied: bool = False
    previews: bool = False
    cancel: bool = False
    forgotten: bool = False
    probe: Probe | None = None
    told: dict[type, ToClient] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    open: bool = True

    def messages(self) -> list[ClientMessage]:
        """What to say, and to say again."""
        if self.probe is not None:
            return [self.probe]
        if self.kind == "fetch":
            return [Fetch(self.job)]
        if self.kind == "inspect":
            return [Inspect(self.page, self.job)]
        first: ClientMessage = Watch(self.job, self.previews)
        if self.request is not None:
            first = Submit(self.job, self.request, self.previews)
        return [first, Cancel(self.job)] if self.cancel else [first]

    def news(self, message: ToClient) -> bool:
        """Was this not told before?  A Watch is answered with where the job stands: Started and the newest step."""
        if isinstance(message, Preview):
            known = message.stage in self.shown
            self.shown.add(message.stage)
            return not known
        if self.told.get(type(message)) == message:
            return False
        if not isinstance(message, Progress):
            self.told.clear()
        self.told[type(message)] = message
        return True


def probed(number: int) -> str:
    """The name under which the answer to this probe is told: none that a job can have."""
    return f"probe {number}"
