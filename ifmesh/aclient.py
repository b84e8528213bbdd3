"""AsyncClient and AsyncJob: the names and meanings of `ifmesh.client`, for asyncio.

What they do is in `ifmesh.asker` and `ifmesh.case`; here is only the task's way of waiting.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar, Unpack, cast

from ifmesh import wishes as wished
from ifmesh.asker import Asker
from ifmesh.case import Case
from ifmesh.connection import Connection
from ifmesh.embeds import Embeds
from ifmesh.file import Event
from ifmesh.image import Image
from ifmesh.many import Race, Series
from ifmesh.protocol import Books, Ended, Probed
from ifmesh.request import Request
from ifmesh.talk import Pause, Talk, Work
from ifmesh.wishes import Brought, Wishes

T = TypeVar("T")
NEVER = 1e9  # seconds


class AsyncJob:
    """A job in the mesh.  Made by AsyncClient.submit and AsyncClient.job; its id outlives this object and this process."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    @property
    def id(self) -> str:
        return self._case.id

    @property
    def request(self) -> Request | None:
        """What was asked.  None while it is not known: found again by its id, and no result yet."""
        return self._case.request

    @property
    def seed(self) -> int | None:
        """Of the job's generator.  None while it is not known: found again by its id, and not finished."""
        return self._case.seed

    async def events(self, previews: bool = True) -> AsyncGenerator[Event, None]:
        """As Job.events."""
        if previews:
            self._case.look()
        seen, news = await lead(self._case.news(0, previews))
        while news:
            for event in news:
                yield event
            seen, news = await lead(self._case.news(seen, previews))

    async def result(self, timeout: float | None = None) -> Image:
        """As Job.result."""
        return await lead(self._case.result(timeout))

    async def embeds(self, timeout: float | None = None) -> Embeds:
        """As Job.embeds."""
        return await lead(self._case.embeds(timeout))

    async def cancel(self) -> Ended:
        """As Job.cancel."""
        return await lead(self._case.cancel())


class AsyncClient:
    """A door to the mesh, for the tasks of one event loop.  Arguments, errors and wishes: as Client.

    A cancelled task does what Ctrl-C does to Client.  Closed by `close` or `async with`; left open, it ends with its event loop, or
    when nobody holds it any more.
    """

    def __init__(
        self,
        coordinator: str | None = None,
        *,
        state: str | Path | None = None,
        identity: str | Path | Literal[False] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._asker = Asker(coordinator, state, identity, timeout, _tied)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """As Client.close."""
        await lead(self._asker.closing())

    @property
    def address(self) -> str:
        """The coordinator's control URL: in use, or as it would be."""
        return self._asker.address

    async def generate(self, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """As Client.generate."""
        return await lead(self._asker.drawn(prompt, None, None, timeout, wishes))

    async def vary(self, source: object, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """As Client.vary."""
        wished.need("source", source)
        return await lead(self._asker.drawn(prompt, source, None, timeout, wishes))

    async def inpaint(
        self, source: object, mask: object, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]
    ) -> Image:
        """As Client.inpaint."""
        wished.need("source", source)
        wished.need("mask", mask)
        return await lead(self._asker.drawn(prompt, source, mask, timeout, wishes))

    async def encode(self, prompt: str, negative: str = "", *, timeout: float | None = None) -> Embeds:
        """As Client.encode."""
        return await lead(self._asker.encoded(prompt, negative, timeout))

    async def upscale(
        self, source: object, prompt: str = "", *, alone: bool = False, timeout: float | None = None, **wishes: Unpack[Wishes]
    ) -> Image:
        """As Client.upscale."""
        wished.need("source", source)
        return await lead(self._asker.drawn(prompt, source, None, timeout, {"upscale": "alone" if alone else True, **wishes}))

    async def candidates(
        self,
        prompt: str = "",
        n: int = 8,
        *,
        source: object = None,
        mask: object = None,
        timeout: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> list[Image]:
        """As Client.candidates."""
        shared = {"size": 64, "keep": 3600.0, **wishes, "source": source, "mask": mask}
        return await lead(Series(self._asker, [{"prompt": prompt}], n, n, shared, timeout).all())

    async def proceed(self, image: Image, *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """As Client.proceed."""
        return await lead(self._asker.drawn("", None, None, timeout, {**wishes, "continues": image}))

    async def submit(
        self, prompt: str = "", *, source: object = None, mask: object = None, job: str | None = None, **wishes: Unpack[Wishes]
    ) -> AsyncJob:
        """As Client.submit."""
        return AsyncJob(await lead(self._asker.submit(prompt, source, mask, job, wishes)))

    async def ask(self, request: Request, job: str | None = None, upload: bytes | Brought = b"") -> AsyncJob:
        """As Client.ask."""
        return AsyncJob(
            await lead(self._asker.ask(request, job, upload if isinstance(upload, Brought) else wished.unpacked(request, upload)))
        )

    async def job(self, job: str) -> AsyncJob:
        """As Client.job."""
        return AsyncJob(await lead(self._asker.job(job)))

    async def cancel(self, job: str | AsyncJob) -> Ended:
        """As Client.cancel."""
        return await lead(self._asker.cancel(job.id if isinstance(job, AsyncJob) else job))

    def map(
        self,
        prompts: str | Iterable[str | Mapping[str, object]],
        *,
        n: int = 1,
        source: object = None,
        mask: object = None,
        ahead: int = 8,
        **wishes: Unpack[Wishes],
    ) -> AsyncGenerator[Image, None]:
        """As Client.map.  Left early, it is closed by its event loop, or at once by `contextlib.aclosing`."""
        return self._pictures(Series(self._asker, prompts, n, ahead, {**wishes, "source": source, "mask": mask}))

    async def as_completed(self, jobs: Iterable[AsyncJob], timeout: float | None = None) -> AsyncGenerator[AsyncJob, None]:
        """As Client.as_completed."""
        race = Race([(job, job._case) for job in jobs], timeout)
        try:
            while (job := await lead(race.next())) is not None:
                yield job
        finally:
            race.close()

    async def status(self, job: str = "", page: int = 0) -> Books:
        """As Client.status."""
        return await lead(self._asker.status(job, page))

    async def probe(self, source: str, target: str, size: int = 0, count: int = 0) -> Probed:
        """As Client.probe."""
        return await lead(self._asker.probe(source, target, size, count))

    @staticmethod
    async def _pictures(series: Series) -> AsyncGenerator[Image, None]:
        try:
            while (image := await lead(series.next())) is not None:
                yield image
        finally:
            series.close()


async def lead(talk: Talk[T]) -> T:
    """To its end, in this task; the thread's way is in `ifmesh.talk`."""
    step: Callable[[], Pause | Work] = partial(next, talk)
    try:
        while True:
            try:
                asked = step()
            except StopIteration as end:
                return cast(T, end.value)
            try:
                step = partial(talk.send, await (asyncio.to_thread(asked.call) if isinstance(asked, Work) else _waited(asked)))
            except BaseException as error:
                step = partial(talk.throw, error)
    finally:
        talk.close()


async def _waited(pause: Pause) -> None:
    loop, rung = asyncio.get_running_loop(), asyncio.Event()

    def ring() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(rung.set)

    timer = None if pause.seconds is None else loop.call_later(pause.seconds, rung.set)
    try:
        if pause.signal is not None:
            pause.signal.listen(pause.seen, ring)
        await rung.wait()
    finally:
        if timer is not None:
            timer.cancel()
        if pause.signal is not None:
            pause.signal.unlisten(ring)


def _tied(line: Connection) -> Callable[[], object]:
    """The connection ends with the event loop.  A loop tells nobody that it is closed, but it lets go of its timers: so one is set that
    never rings, and is missed when it is gone.  Nobody waits for that end, but the program does, a moment, when it ends itself."""
    timer = weakref.ref(asyncio.get_running_loop().call_later(NEVER, _nothing, context=Context()))
    gone = timer()
    assert gone is not None
    missed = weakref.finalize(gone, line.end)
    weakref.finalize(line, _farewell, weakref.ref(line))  # called at the program's end, too; of a connection that is gone, with nothing

    def end() -> None:
        line.end()
        missed.detach()
        if (found := timer()) is not None:
            found.cancel()

    return end


def _farewell(found: weakref.ref[Connection]) -> None:
    if (line := found()) is not None:
        line.farewell()


def _nothing() -> None:
    pass
