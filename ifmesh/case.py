"""What Job and AsyncJob have in common: one job, its file, and the Talks about it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from ifmesh.connection import PROMISED, Connection
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, MeshBusy, MeshError
from ifmesh.file import Event, File
from ifmesh.image import Image, Preview
from ifmesh.protocol import Ended, Failed, Finished, Refused
from ifmesh.request import Request
from ifmesh.talk import Talk


class Case:
    """One job, as one connection knows it.  patience: seconds without an answer after which the mesh counts as lost.

    keeper: whatever must live as long as somebody asks after this job.
    """

    def __init__(self, line: Connection, file: File, patience: float, keeper: object) -> None:
        self.line, self.file, self.patience = line, file, patience
        self._keeper = keeper

    @property
    def id(self) -> str:
        return self.file.job

    @property
    def request(self) -> Request | None:
        return self.file.request

    @property
    def seed(self) -> int | None:
        file = self.file
        return file.request.seed if file.request else file.ending.seed if isinstance(file.ending, Finished) else None

    @property
    def over(self) -> bool:
        """Nothing more will be heard of it: it has ended, was not taken, or nobody listens."""
        return self.file.ending is not None or self.file.refused is not None or self.line.failure is not None

    @property
    def busy(self) -> bool:
        """It was not taken because the mesh was full: asking again may help."""
        return self.file.refused is not None and self.file.refused.reason == "busy"

    def look(self) -> None:
        """Ask for the early pictures of a job that is under way."""
        job = self.id
        if not self.over:
            self.line.post(lambda mind, now: mind.watch(now, job, previews=True))

    def news(self, seen: int, previews: bool) -> Talk[tuple[int, list[Event]]]:
        """The events after the first `seen`, and how many there are by now; no events: it is over."""
        file = self.file
        while True:
            yield from self._wait(lambda: file.heard > seen or file.ending is not None or file.refused is not None, None)  # noqa: B023
            with file.lock:
                news = list(file.events)[seen - file.heard :] if file.heard > seen else []
                seen = file.heard
            if not news:
                self._check_refused()
                return seen, []
            if shown := [event for event in news if previews or not isinstance(event, Preview)]:
                return seen, shown

    def result(self, timeout: float | None) -> Talk[Image]:
        if self.request is not None and self.request.task == "encode":
            raise MeshError(f"job {self.id} encodes texts, and draws no picture: use embeds()")
        result = yield from self._result(timeout)
        if not isinstance(result, Image):
            raise MeshError(f"job {self.id} encodes texts, and draws no picture: use embeds()")
        return result

    def embeds(self, timeout: float | None) -> Talk[Embeds]:
        if self.request is not None and self.request.task != "encode":
            raise MeshError(f"job {self.id} draws a picture: use result()")
        result = yield from self._result(timeout)
        if not isinstance(result, Embeds):
            raise MeshError(f"job {self.id} draws a picture: use result()")
        return result

    def cancel(self) -> Talk[Ended]:
        file = self.file
        if file.ending is None:
            self.line.cancel(self.id)
            yield from self._wait(lambda: file.ending is not None or file.refused is not None, None)
            self._check_refused()
        assert file.ending is not None
        return file.ending

    def _result(self, timeout: float | None) -> Talk[Image | Embeds]:
        file = self.file
        if file.result is not None:
            return file.result
        limit = None if timeout is None else (time.monotonic() + timeout, f"not finished within {timeout:g} s")
        yield from self._wait(lambda: file.ending is not None or file.refused is not None, limit)
        self._check_refused()
        match file.ending:
            case Finished():
                return (yield from self._fetched(limit))
            case Failed() as failed:
                raise failure(failed, file.request)
            case _:
                raise JobCancelled(self.id)

    def _fetched(self, limit: tuple[float, str] | None) -> Talk[Image | Embeds]:
        file, job = self.file, self.id
        if file.result is None and not file.spoilt:
            self.line.post(lambda mind, now: mind.fetch(now, job))
            yield from self._wait(lambda: file.result is not None or bool(file.spoilt) or file.refused is not None, limit)
            self._check_refused()
        if file.result is None:
            raise MeshError(file.spoilt)
        return file.result

    def _wait(self, ready: Callable[[], bool], limit: tuple[float, str] | None) -> Talk[None]:
        until, late = limit or (None, "")
        late = f"job {self.id}: {late}; it goes on, its id stays good"
        yield from self.line.wait(self.file, ready, self.longest, until, late, f" about job {self.id}")

    def longest(self) -> float:
        """Seconds of silence after which it counts as lost: an accepted job outlives its coordinator."""
        return self.patience * (PROMISED if self.file.accepted else 1)

    def _check_refused(self) -> None:
        if (refused := self.file.refused) is not None:
            raise refusal(refused, self.file.request)


def refusal(refused: Refused, request: Request | None) -> MeshError:
    match refused.reason:
        case "busy":
            return MeshBusy(refused.detail, refused.retry_after)
        case "invalid":
            return _bad(refused.field or "request", refused.detail, request)
        case "version":
            return MeshError(refused.detail)
        case _:
            return BadRequest("job", refused.job, refused.detail)


def failure(failed: Failed, request: Request | None) -> MeshError:
    match failed.cause:
        case "request":
            found = re.match(r"([a-z_0-9.]+): ", failed.error)
            return _bad(found[1] if found else "request", failed.error, request)
        case "expired":
            return DeadlineExceeded(failed.job, failed.error)
        case _:
            return JobFailed(failed.job, failed.stage, failed.worker, failed.error)


def _bad(field: str, detail: str, request: Request | None) -> BadRequest:
    """The BadRequest that the other side had: its text says field and value already, so only the remedy is taken from it.

    Of what was uploaded the request knows no value; then the other side's words for it stand there.
    """
    value: object = request
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    if value is None and (found := re.fullmatch(rf"{re.escape(field)}: (.+?): (.+)", detail, re.DOTALL)):
        return BadRequest(field, found[1].strip("'"), found[2])
    said = str(BadRequest(field, value, ""))
    return BadRequest(field, value, detail.removeprefix(said))
