"""What a client knows of one job: written by the connection's thread, read by all."""

from __future__ import annotations

import logging
from collections import deque

from ifmesh import wire
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest
from ifmesh.image import Image, Preview
from ifmesh.protocol import (
    Accepted,
    Books,
    Cancelled,
    Ended,
    Failed,
    Finished,
    Probed,
    Progress,
    Queued,
    Refused,
    Result,
    Started,
    ToClient,
    Wanted,
    Welcome,
)
from ifmesh.protocol import Preview as Shown
from ifmesh.request import Request
from ifmesh.talk import Signal

log = logging.getLogger(__name__)

NEWS = 1000  # events kept for each job; whoever reads more slowly misses the oldest

Event = Queued | Started | Progress | Preview | Ended


class File(Signal):
    """Of one job, or (id "") of the mesh, or (`errand.probed`) of a probe.  Everything but the id is under `lock`.

    over: changes when the job has ended or was not taken; for those who do not want to be woken by every step.
    """

    def __init__(self, job: str) -> None:
        super().__init__()
        self.job = job
        self.over = Signal()
        self.request: Request | None = None
        self.source: bytes | None = None
        self.mask: bytes | None = None
        self.continues: Image | None = None
        self.accepted = False
        self.events: deque[Event] = deque(maxlen=NEWS)
        self.heard = 0  # events so far, those that fell out of the deque included
        self.ending: Ended | None = None
        self.refused: Refused | None = None
        self.result: Image | Embeds | None = None
        self.spoilt = ""  # what is wrong with the result
        self.welcome: Welcome | None = None
        self.books: Books | None = None
        self.probed: Probed | None = None
        self.asked = False  # somebody waits for the books: one question at a time, answers do not say whose they are

    def add(self, message: ToClient, payload: wire.Frame) -> None:
        with self.lock:
            match message:
                case Accepted():
                    self.accepted = True
                case Refused():
                    self.refused = self.refused or message  # the first says why; what is asked of a job that was not taken is unknown
                case Result():
                    self._keep(message, payload)
                case Welcome():
                    self.welcome = message
                case Books():
                    self.books = message
                case Probed():
                    self.probed = message
                case Wanted():
                    self._miss()
                case _ if self.ending is not None:
                    return  # it has ended, and that was told
                case Shown():
                    self._show(message, payload)
                case _:
                    self._tell(message)
        self.changed()
        if isinstance(message, Refused | Wanted | Finished | Failed | Cancelled):
            self.over.changed()

    def _miss(self) -> None:
        """The mesh wants what only the mesh has had: a picture that it kept for a while."""
        seed = f"seed={self.request.seed}" if self.request is not None else "the same seed"
        gone = BadRequest(
            "continues", self.continues and self.continues.job, f"the mesh keeps its bag no longer: draw it whole, with {seed}"
        )
        self.refused = self.refused or Refused(self.job, "invalid", str(gone), field=gone.field)

    def _tell(self, event: Event) -> None:
        self.accepted = True
        self.events.append(event)
        self.heard += 1
        if isinstance(event, Finished | Failed | Cancelled):
            self.ending = event

    def _show(self, message: Shown, payload: wire.Frame) -> None:
        self.accepted = True
        try:
            preview = Preview.published(message.job, message.stage, payload)
        except wire.Garbled as error:
            log.warning("dropped a preview: %s", error)
            return
        if preview not in self.events:  # a stage that ran again draws the same
            self._tell(preview)

    def _keep(self, message: Result, payload: wire.Frame) -> None:
        if not isinstance(self.ending, Finished) or self.result is not None:
            return
        self.request = self.request or message.request
        try:
            if message.request.task == "encode":
                self.result = Embeds.published(message.request, payload)
            else:
                image = Image.published(self.ending, payload, message.request, self.source, self.mask)
                self.result = image if self.continues is None else image.after(self.continues)
        except wire.Garbled as error:
            self.spoilt = str(error)
