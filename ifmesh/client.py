"""The door to the mesh: Client and Job, synchronous, safe to use from any thread."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from ifmesh import caller, cascade, config, typed, wire
from ifmesh.connection import Connection, Event, File
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, MeshBusy, MeshError
from ifmesh.image import Image
from ifmesh.protocol import Books, Cancelled, Ended, Failed, Finished, Refused, Request, Settings

LAST = {64: "stage_one", 256: "stage_two", 1024: "upscaler"}  # pixels -> the stage that draws them


class Job:
    """A job in the mesh.  Made by Client.submit and Client.job; its id outlives this object and this process."""

    def __init__(self, client: Client, line: Connection, file: File, patience: float) -> None:
        self._client = client  # kept: a client that nobody holds is closed
        self._line, self._file, self._patience = line, file, patience

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @property
    def id(self) -> str:
        return self._file.job

    @property
    def request(self) -> Request | None:
        """What was asked; None for a job that was found again by its id."""
        return self._file.request

    @property
    def seed(self) -> int | None:
        """Of the job's generator.  None while it is not known: found again by its id, and not finished."""
        file = self._file
        return file.request.seed if file.request else file.ending.seed if isinstance(file.ending, Finished) else None

    def events(self) -> Iterator[Event]:
        """Queued, Started, Progress as they come, then Finished, Failed or Cancelled, and the end.  From the beginning, each time.

        Of a job that ran while nobody watched only the ending is known.  Raises what `result` raises for a job that was refused.
        """
        file, seen = self._file, 0
        while True:
            # seen is a loop's own: the lambda is called before it changes
            self._wait(lambda: file.heard > seen or file.refused is not None, None)  # noqa: B023
            with file.changed:
                if file.heard == seen:
                    break
                news = list(file.events)[seen - file.heard :]
                seen = file.heard
            for event in news:
                yield event
                if isinstance(event, Finished | Failed | Cancelled):
                    return
        self._check_refused()

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the end and fetch the pictures.  timeout: seconds; None: as long as it takes.

        TimeoutError: not yet; the job goes on and its id stays good.  BadRequest, JobFailed, DeadlineExceeded, JobCancelled: how it
        ended.  MeshBusy: it was not taken.  Lost: the mesh is silent; asking again with the same id is safe.
        """
        file = self._file
        if file.image is not None:
            return file.image
        began = time.monotonic()
        self._wait(lambda: file.ending is not None or file.refused is not None, timeout)
        self._check_refused()
        match file.ending:
            case Finished() as finished:
                left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
                return self._fetched(finished, left)
            case Failed() as failed:
                raise _failure(failed, file.request)
            case _:
                raise JobCancelled(self.id)

    def cancel(self) -> Ended:
        """Ask for its end, and wait for it: Cancelled, or the ending that was there before.  Lost, BadRequest (no such job)."""
        file = self._file
        if file.ending is None:
            self._line.post(lambda mind, now: mind.cancel(now, file.job))
            self._wait(lambda: file.ending is not None or file.refused is not None, None)
            self._check_refused()
        assert file.ending is not None
        return file.ending

    def _fetched(self, finished: Finished, timeout: float | None) -> Image:
        file = self._file
        if file.frame is None:
            self._line.post(lambda mind, now: mind.fetch(now, file.job))
            self._wait(lambda: file.frame is not None or file.refused is not None, timeout)
            self._check_refused()
        with file.changed:
            if file.image is None:
                assert file.frame is not None
                try:
                    file.image = Image.published(finished, file.frame)
                except wire.Garbled as error:
                    raise MeshError(str(error)) from None
                finally:
                    file.frame = None
            return file.image

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        self._line.wait(self._file, ready, self._patience, timeout, f" about job {self.id}")

    def _check_refused(self) -> None:
        if (refused := self._file.refused) is not None:
            raise _refusal(refused, self._file.request)


class Client:
    """A door to the mesh.

    coordinator: its control URL; None: IFMESH_COORDINATOR, else what a coordinator wrote into the state folder, else
    tcp://127.0.0.1:7640.  state: that folder.  timeout: seconds without an answer after which the mesh counts as lost; six times as
    long for a job that it has accepted.  Connects at the first question.  Closed by `close` or `with`; then every question is an error.
    """

    def __init__(self, coordinator: str | None = None, *, state: str | Path | None = None, timeout: float = 10.0) -> None:
        self._coordinator, self._state, self._timeout = coordinator, state, timeout
        self._line: Connection | None = None
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Jobs go on; their ids stay good.  Whoever waits here gets a MeshError."""
        with self._lock:
            self._closed, line = True, self._line
        if line is not None:
            line.stop()

    def generate(
        self,
        prompt: str,
        *,
        negative: str = "",
        seed: int | None = None,
        size: int = 1024,
        settings: Mapping[str, Settings | Mapping[str, object]] | None = None,
        stages: bool = True,
        priority: int = 0,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Image:
        """Draw it, and wait: `submit` and `Job.result(timeout)`.  Interrupted (Ctrl-C), it asks the mesh to cancel the job."""
        job = secrets.token_hex(8)
        try:
            return self.submit(
                prompt,
                negative=negative,
                seed=seed,
                size=size,
                settings=settings,
                stages=stages,
                priority=priority,
                deadline=deadline,
                job=job,
            ).result(timeout)
        except Exception:
            raise
        except BaseException:  # nobody else knows the id: without this it would be drawn for nobody
            if self._line is not None:
                self._line.post(lambda mind, now: mind.cancel(now, job))
            raise

    def submit(
        self,
        prompt: str,
        *,
        negative: str = "",
        seed: int | None = None,
        size: int = 1024,
        settings: Mapping[str, Settings | Mapping[str, object]] | None = None,
        stages: bool = True,
        priority: int = 0,
        deadline: float | None = None,
        job: str | None = None,
    ) -> Job:
        """Ask for a picture; does not wait for an answer.

        seed: 0 to 2**63 - 1; None: drawn here.  size: pixels, 64, 256 or 1024: where the cascade stops.  settings: by stage name, as
        Settings or plain data, e.g. {"stage_one": {"steps": 50, "guidance": 7.0}}.  stages: the earlier pictures too.  deadline:
        seconds from acceptance to the end.  job: its id, to ask again for the same; None: a new one.

        Raises BadRequest at once when it can never work, Lost when nobody answers.
        """
        if size not in LAST:
            raise BadRequest("size", size, "64, 256 or 1024 pixels")
        parts = {"prompt": prompt, "negative": negative, "seed": secrets.randbits(32) if seed is None else seed, "stages": stages}
        plain = {stage: typed.plain(s) if isinstance(s, Settings) else s for stage, s in (settings or {}).items()}
        whole = {**parts, "settings": plain, "priority": priority, "deadline": deadline, "last_stage": LAST[size]}
        try:
            request = typed.build(Request, whole, unknown="error")
        except typed.Mismatch as error:
            raise BadRequest(error.where, error.value, error.remedy) from None
        return self.ask(request, job)

    def ask(self, request: Request, job: str | None = None) -> Job:
        """`submit`, for a Request that is made already."""
        cascade.IF.check(request)
        job = secrets.token_hex(8) if job is None else _checked(job)
        line = self._connected()
        file = line.file(job)
        if file.refused is not None:
            file = line.file(job, anew=True)  # it was not taken; this is another try
        if file.request not in (None, request):
            raise BadRequest("job", job, "this id was used for another request: leave it out, or take another")
        file.request = request
        line.post(lambda mind, now: mind.submit(now, job, request))
        return Job(self, line, file, self._timeout)

    def job(self, job: str) -> Job:
        """Come back to a job by its id.  That there is no such job is told by its `events` and `result`: BadRequest."""
        line = self._connected()
        file = line.file(_checked(job))
        if file.ending is None:
            if file.refused is not None:
                file = line.file(job, anew=True)
            line.post(lambda mind, now: mind.watch(now, job))
        return Job(self, line, file, self._timeout)

    def cancel(self, job: str) -> Ended:
        """Ask for a job's end, and wait for it.  Returns how it ended; raises BadRequest when there is no such job."""
        line = self._connected()
        return Job(self, line, line.file(_checked(job)), self._timeout).cancel()

    def inspect(self, page: int = 0, job: str = "") -> Books:
        """The mesh's books: services, a page of jobs; or one job with its story.  BadRequest: no such job."""
        line = self._connected()
        mesh = line.mesh
        with self._asking:
            with mesh.changed:
                mesh.books = mesh.refused = None
            line.post(lambda mind, now: mind.inspect(now, page, job))
            line.wait(mesh, lambda: mesh.books is not None or mesh.refused is not None, self._timeout, None)
            with mesh.changed:
                books, refused = mesh.books, mesh.refused
        if refused is not None or books is None:
            assert refused is not None
            raise _refusal(refused, None)
        return books

    @property
    def address(self) -> str:
        """The coordinator's control URL: in use, or as it would be."""
        return self._line.address if self._line is not None else self._configured().control()

    def _configured(self) -> config.Config:
        told = {"mesh.coordinator": self._coordinator, "mesh.state": None if self._state is None else str(self._state)}
        return config.read(None, os.environ, {key: value for key, value in told.items() if value})

    def _connected(self) -> Connection:
        with self._lock:
            if self._closed:
                raise MeshError("this client is closed")
            if self._line is not None and self._line.failure is None:
                return self._line
            # Two or three tries fit into the time given, however short it is.
            mind = caller.Caller(min(3.0, self._timeout / 2.5), min(2.0, self._timeout / 4))
            line = Connection(self._configured().control, mind)
            line.start()
            try:
                mesh = line.mesh
                line.post(lambda mind, now: mind.hi(now))
                line.wait(mesh, lambda: mesh.welcome is not None or mesh.refused is not None, self._timeout, None)
                if mesh.refused is not None:
                    raise _refusal(mesh.refused, None)
            except BaseException:
                line.stop()
                raise
            weakref.finalize(self, line.stop)
            self._line = line
            return line


def _checked(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job):
        raise BadRequest("job", job, "an id is 1 to 64 letters, digits, _ or -")
    return job


def _refusal(refused: Refused, request: Request | None) -> MeshError:
    match refused.reason:
        case "busy":
            return MeshBusy(refused.detail, refused.retry_after)
        case "invalid":
            return _bad(refused.field or "request", refused.detail, request)
        case "version":
            return MeshError(refused.detail)
        case _:
            return BadRequest("job", refused.job, refused.detail)


def _failure(failed: Failed, request: Request | None) -> MeshError:
    match failed.cause:
        case "request":
            found = re.match(r"([a-z_0-9.]+): ", failed.error)
            return _bad(found[1] if found else "request", failed.error, request)
        case "expired":
            return DeadlineExceeded(failed.job)
        case _:
            return JobFailed(failed.job, failed.stage, failed.worker, failed.error)


def _bad(field: str, detail: str, request: Request | None) -> BadRequest:
    """The BadRequest that the other side had: its text says field and value already, so only the remedy is taken from it."""
    value: object = request
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    said = str(BadRequest(field, value, ""))
    return BadRequest(field, value, detail.removeprefix(said))
