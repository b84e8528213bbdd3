"""The thread that puts what came over the data links on disk, so that the coordinator's loop does not wait for the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Literal

from ifmesh import bags
from ifmesh.bell import Bell
from ifmesh.cascade import BROUGHT
from ifmesh.inlet import brought
from ifmesh.journal import Journal
from ifmesh.log import Garbage, logger
from ifmesh.protocol import Token
from ifmesh.wire import Garbled

RESULTS = 16  # on their way to disk; then nothing more is read from the data links
UPLOADS = 4  # the same; the next is turned away, and its client pushes again


@dataclass(frozen=True, slots=True)
class Landed:
    """This job's result is on disk.  digest: xxh3-128 (hex) of the frame; size: bytes; kept: SHA-256 of what was to be kept beside it; it
    is Stored, if there was room.  "": nothing was."""

    job: str
    token: Token
    digest: str
    size: int
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """This upload, a client's or one kept beside a result, is on disk.  names: of its tensors, in the order of `cascade.BROUGHT`."""

    digest: str
    size: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unstored:
    """This upload came, whole, and is not on disk.  "invalid": it holds what no client brings; "busy": the disk did not take it."""

    digest: str
    reason: Literal["invalid", "busy"]
    detail: str


_Done = Landed | Stored | Unstored

_Key = tuple[str, Token] | tuple[str, str]
"""(job, token) of a result; (SHA-256 it came under, xxh3-128 of the frame) of an upload: a false one is not in the way of the true."""


class Writer:
    """Reports back by ringing; then `landed` tells.  All but the thread itself is for the loop's thread."""

    def __init__(self, journal: Journal, bell: Bell, garbage: Garbage) -> None:
        self._journal, self._bell, self._garbage = journal, bell, garbage
        self._todo: SimpleQueue[tuple[_Key, Callable[[], list[_Done]]] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[_Key, list[_Done] | OSError | Garbled]] = SimpleQueue()
        self._results: set[_Key] = set()
        self._uploads: set[_Key] = set()
        self._beside: dict[_Key, str] = {}  # of results: under which SHA-256 a part of them is kept
        self._lock = Lock()  # over the last: the thread enters it before the file is there
        self._thread = Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._results or self._uploads)

    @property
    def full(self) -> bool:
        """As many results as there may be are on their way to disk: others wait in the links."""
        return len(self._results) >= RESULTS

    def storing(self, digest: str) -> bool:
        """Is an upload that came under this SHA-256 on its way to disk, or a kept one, and not yet told?"""
        return any(key[0] == digest for key in self._uploads) or digest in self._beside.values()

    def discard(self, digest: str) -> None:
        """Remove this upload; not while one of the same name is on its way to disk: that one will count anew.  OSError: the disk."""
        with self._lock:
            if not self.storing(digest):
                self._journal.discard_upload(digest)

    def result(self, job: str, token: Token, frame: bytes | memoryview, apart: Collection[str] = (), keep: bool = True) -> None:
        """apart: names of its tensors that are no part of what is published; keep: on disk, then, as an upload: there is room."""
        if len(self._results) < RESULTS:
            self._begin(self._results, (job, token), partial(self._store, (job, token), frame, apart, keep))

    def upload(self, digest: str, hop: str, frame: bytes | memoryview) -> None:
        """hop: xxh3-128 (hex) of the frame.  What it holds is checked in the thread."""
        if len(self._uploads) < UPLOADS:
            self._begin(self._uploads, (digest, hop), partial(self._store_upload, digest, frame))

    def remove(self, jobs: Collection[str]) -> None:
        """The results of these jobs, which nobody will ask for any more."""
        self._todo.put((("", ""), partial(self._remove, jobs)))

    def sync(self) -> None:
        """What was written is to be on disk soon: see `Journal.sync`."""
        if self._journal.durability == "lazy":
            self._todo.put((("", ""), self._sync))

    def landed(self) -> list[_Done]:
        """What became of what was begun, since the last time."""
        out: list[_Done] = []
        with suppress(Empty):
            while True:
                key, what = self._done.get_nowait()
                self._results.discard(key)
                self._uploads.discard(key)
                with self._lock:
                    self._beside.pop(key, None)
                if isinstance(what, OSError):
                    logger.error("the result cannot be written: %s", what, extra={"job": key[0]})
                elif isinstance(what, Garbled):
                    self._garbage.dropped("somebody (upload)", what)
                else:
                    out += what
        return out

    def stop(self) -> None:
        """Finish what is begun."""
        self._todo.put(None)
        self._thread.join()

    def _begin(self, under_way: set[_Key], key: _Key, work: Callable[[], list[_Done]]) -> None:
        if key not in under_way:
            under_way.add(key)
            self._todo.put((key, work))

    def _run(self) -> None:
        while (item := self._todo.get()) is not None:
            key, work = item
            try:
                self._done.put((key, work()))
            except (OSError, Garbled) as error:
                self._done.put((key, error))
            del item, work  # and with it the frame
            if key[0]:
                self._bell.ring()

    def _store(self, key: tuple[str, Token], frame: bytes | memoryview, apart: Collection[str], keep: bool) -> list[_Done]:
        """What is kept beside it comes last: without the result nothing of it stays on disk untold."""
        if not apart:
            return [Landed(*key, *self._journal.store(key[0], frame))]
        bag = bags.decode(frame)
        landed = Landed(*key, *self._journal.store(key[0], bags.encode({name: bag[name] for name in bag if name not in apart})))
        kept = bags.encode({name: bag[name] for name in apart})
        digest = hashlib.sha256(kept).hexdigest()
        landed = replace(landed, kept=digest)
        if not keep:
            return [landed]
        with self._lock:
            self._beside[key] = digest
        self._journal.store_upload(digest, kept)
        return [Stored(digest, len(kept), tuple(name for name in BROUGHT if name in apart)), landed]

    def _remove(self, jobs: Collection[str]) -> list[_Done]:
        for job in jobs:
            try:
                self._journal.shelf.discard(job)
            except OSError as error:  # it is swept at the next start
                logger.error("a result that is over cannot be removed: %s", error, extra={"job": job})
        return []

    def _sync(self) -> list[_Done]:
        try:
            self._journal.sync()
        except OSError as error:
            logger.error("what was written in the last second may not be on disk: %s", error)
        return []

    def _store_upload(self, digest: str, frame: bytes | memoryview) -> list[_Done]:
        if hashlib.sha256(frame).hexdigest() != digest:  # a stranger's: the true one may still come
            raise Garbled(f"an upload whose SHA-256 is not that of the {len(frame)} bytes")
        try:
            names = brought(frame)
            self._journal.store_upload(digest, frame)
        except Garbled as error:
            return [Unstored(digest, "invalid", str(error))]
        except OSError as error:
            logger.error("the upload cannot be written: %s", error)
            return [Unstored(digest, "busy", f"the mesh cannot store the upload: {error.strerror or error}")]
        return [Stored(digest, len(frame), names)]
