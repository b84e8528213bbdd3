"""What Client and AsyncClient have in common: the connection, and the Talks that ask the mesh for something."""

from __future__ import annotations

import os
import re
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ifmesh import caller, cascade, config, credentials, wishes
from ifmesh.case import Case, refusal
from ifmesh.connection import Connection
from ifmesh.embeds import Embeds
from ifmesh.errand import probed
from ifmesh.errors import BadRequest, Lost, MeshError, Misconfigured
from ifmesh.file import Event, File
from ifmesh.identity import Identity
from ifmesh.image import Image
from ifmesh.protocol import Books, Ended, Probe, Probed
from ifmesh.request import Request
from ifmesh.talk import Talk, Work
from ifmesh.wishes import Brought

Tie = Callable[[Connection], Callable[[], object]]
"""Told of a new connection; gives what ends it when nobody holds the client any more."""


class Asker:
    """Connects at the first question, and again when a connection broke."""

    def __init__(
        self, coordinator: str | None, state: str | Path | None, identity: str | Path | Literal[False] | None, timeout: float, tie: Tie
    ) -> None:
        self._coordinator, self._state, self._identity, self.timeout, self._tie = coordinator, state, identity, timeout, tie
        self.watch: Callable[[Event], None] | None = None  # told every event of a picture that is waited for without a timeout
        self._line: Connection | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._let_go: weakref.finalize[..., Asker] | None = None

    @property
    def address(self) -> str:
        """The coordinator's control URL: in use, or as it would be."""
        return self._line.address if self._line is not None else credentials.control(*self._found(strict=False))

    def connected(self) -> Talk[Connection]:
        """Several may ask at once: one connection is made, and all wait for its Welcome."""
        with self._lock:
            if self._closed:
                raise MeshError("this client is closed")
            line = self._line
            if line is None or line.over:
                line = self._line = self._opened()
        mesh = line.mesh
        if mesh.welcome is None:
            try:
                yield from line.wait(mesh, lambda: mesh.welcome is not None or mesh.refused is not None, self._patience, None, "")
                if mesh.welcome is None:
                    assert mesh.refused is not None
                    raise refusal(mesh.refused, None)
            except MeshError as error:
                yield from line.closing(error if isinstance(error, Lost) else None)
                raise
        return line

    def closing(self) -> Talk[None]:
        with self._lock:
            self._closed, line = True, self._line
        if line is not None:
            yield from line.closing()
            self._release()

    def submit(self, prompt: object, source: object, mask: object, job: str | None, given: Mapping[str, Any]) -> Talk[Case]:
        request, brought = yield from self.wished(prompt, source, mask, given)
        return (yield from self.ask(request, job, brought))

    def wished(self, prompt: object, source: object, mask: object, given: Mapping[str, Any]) -> Talk[tuple[Request, Brought]]:
        make = partial(wishes.made, prompt, source, mask, given)
        if source is None and given.get("embeds") is None:
            return make()
        made: tuple[Request, Brought] = yield Work(make)  # files, URLs, large arrays
        return made

    def ask(self, request: Request, job: str | None, brought: Brought) -> Talk[Case]:
        cascade.IF.check(request)
        job = secrets.token_hex(8) if job is None else checked(job)
        line = yield from self.connected()
        file = line.file(job)
        with file.lock:
            if file.refused is not None:
                file = line.file(job, anew=True)  # it was not taken; this is another try
            if file.request not in (None, request):
                raise BadRequest("job", job, "this id was used for another request: leave it out, or take another")
            file.request, file.source, file.mask, file.continues = request, brought.source, brought.mask, brought.continues
        line.submit(file, request, brought.frame)
        return Case(line, file, self.timeout, self)

    def drawn(self, prompt: object, source: object, mask: object, timeout: float | None, given: Mapping[str, Any]) -> Talk[Image]:
        job = secrets.token_hex(8)
        with self._ours(job):
            case = yield from self.submit(prompt, source, mask, job, given)
            if self.watch is not None and timeout is None:
                yield from self._watched(case, self.watch)
            return (yield from case.result(timeout))

    def _watched(self, case: Case, watch: Callable[[Event], None]) -> Talk[None]:
        case.look()
        seen, news = yield from case.news(0, True)
        while news:
            for event in news:
                watch(event)
            seen, news = yield from case.news(seen, True)

    def encoded(self, prompt: str, negative: str, timeout: float | None) -> Talk[Embeds]:
        job = secrets.token_hex(8)
        with self._ours(job):
            case = yield from self.ask(wishes.encoding(prompt, negative), job, wishes.NOTHING)
            return (yield from case.embeds(timeout))

    @contextmanager
    def _ours(self, job: str) -> Iterator[None]:
        """Interrupted, ask the mesh to cancel the job: nobody else knows its id, and it would be drawn for nobody."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            self.forsake(job)
            raise

    def forsake(self, job: str) -> None:
        """Ask for its end, and do not wait for it."""
        if self._line is not None:
            self._line.cancel(job)

    def job(self, job: str) -> Talk[Case]:
        line = yield from self.connected()
        file = _file(line, job)
        if file.ending is None:
            line.post(lambda mind, now: mind.watch(now, job))
        return Case(line, file, self.timeout, self)

    def cancel(self, job: str) -> Talk[Ended]:
        line = yield from self.connected()
        return (yield from Case(line, _file(line, job), self.timeout, self).cancel())

    def status(self, job: str, page: int) -> Talk[Books]:
        line = yield from self.connected()
        mesh = line.mesh
        about = partial(line.wait, mesh, patience=self._patience, limit=None, late="")

        def turn() -> bool:
            """Ours?  Then take it: whoever comes next waits."""
            if mesh.asked:
                return False
            mesh.asked, mesh.books, mesh.refused = True, None, None
            return True

        yield from about(ready=turn)
        try:
            line.post(lambda mind, now: mind.inspect(now, page, job))
            yield from about(ready=lambda: mesh.books is not None or mesh.refused is not None)
            if mesh.books is not None:
                return mesh.books
            assert mesh.refused is not None
            raise refusal(mesh.refused, None)
        finally:
            mesh.asked = False
            mesh.changed()

    def probe(self, source: str, target: str, size: int, count: int) -> Talk[Probed]:
        line = yield from self.connected()
        if line.me is not None and line.me.role != "operator":
            who = f"this is {line.me.name}, {line.me.role}"
            raise Misconfigured(f"mesh.identity: {who}: links are probed for an operator: `ifmesh invite --role operator` there")
        asked = Probe(secrets.randbits(62), source, target, size, count)
        name = probed(asked.number)
        file = line.file(name)

        def forget(mind: caller.Caller, now: float) -> list[caller.Command]:
            mind.forget(name)
            return []

        line.post(lambda mind, now: mind.probe(now, asked))
        try:
            yield from line.wait(file, lambda: file.probed is not None or file.refused is not None, self._patience, None, "")
        finally:
            line.post(forget)
        if file.probed is None:
            assert file.refused is not None
            raise refusal(file.refused, None)
        return file.probed

    def _patience(self) -> float:
        return self.timeout

    def _opened(self) -> Connection:
        # Two or three tries fit into the time given, however short it is.
        mind = caller.Caller(min(3.0, self.timeout / 2.5), min(2.0, self.timeout / 4))
        found, me = self._found()
        line = Connection(partial(credentials.control, found, me), mind, me)
        line.start()
        line.post(lambda mind, now: mind.hi(now))
        self._release()
        self._let_go = weakref.finalize(self, self._tie(line))
        return line

    def _release(self) -> None:
        """Of a connection that has ended nothing is kept."""
        if self._let_go is not None:
            self._let_go()
            self._let_go = None

    def _found(self, strict: bool = True) -> tuple[config.Config, Identity | None]:
        """How we are configured, and who we are.  Misconfigured, Lost, if strict: as `credentials.of_client`."""
        told = {"mesh.coordinator": self._coordinator, "mesh.state": None if self._state is None else str(self._state)}
        found = config.read(None, os.environ, {key: value for key, value in told.items() if value})
        try:
            return found, None if self._identity is False else credentials.of_client(found, self._identity)
        except MeshError:
            if strict:
                raise
            return found, None


def _file(line: Connection, job: str) -> File:
    """The job's file; a fresh one where all it says is that the job was not taken once: it may have been since."""
    file = line.file(checked(job))
    return line.file(job, anew=True) if file.ending is None and file.refused is not None else file


def checked(job: object) -> str:
    if not isinstance(job, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job):
        raise BadRequest("job", job, "an id is 1 to 64 letters, digits, _ or -")
    return job
