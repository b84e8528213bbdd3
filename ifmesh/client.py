"""The door to the mesh: Client and Job, synchronous, safe to use from any thread.

What they do is in `ifmesh.asker` and `ifmesh.case`, which they share with their asynchronous twins in `ifmesh.aclient`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Unpack

from ifmesh import wishes as wished
from ifmesh.asker import Asker
from ifmesh.case import Case
from ifmesh.embeds import Embeds
from ifmesh.file import Event
from ifmesh.image import Image
from ifmesh.many import Race, Series
from ifmesh.protocol import Books, Ended, Probed
from ifmesh.request import Request
from ifmesh.talk import lead
from ifmesh.wishes import Brought, Wishes


class Job:
    """A job in the mesh.  Made by Client.submit and Client.job; its id outlives this object and this process."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

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

    def events(self, previews: bool = True) -> Generator[Event, None, None]:
        """Queued, Started, Progress and Preview as they come, then Finished, Failed or Cancelled, and the end.  From the beginning,
        each time.

        previews: ask for the early pictures, of 64 and 256 px; they come when the mesh has time for them, or not at all.  Of a job that
        ran while nobody watched only the ending is known.  Raises what `result` raises for a job that was refused.
        """
        if previews:
            self._case.look()
        seen, news = lead(self._case.news(0, previews))
        while news:
            yield from news
            seen, news = lead(self._case.news(seen, previews))

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the end and fetch the pictures.  timeout: seconds; None: as long as it takes.

        TimeoutError: not yet; the job goes on and its id stays good.  BadRequest, JobFailed, DeadlineExceeded, JobCancelled: how it
        ended.  MeshBusy: it was not taken.  Lost: the mesh is silent; asking again with the same id is safe.
        """
        return lead(self._case.result(timeout))

    def embeds(self, timeout: float | None = None) -> Embeds:
        """`result`, of a job that encodes texts.  Raises what `result` raises."""
        return lead(self._case.embeds(timeout))

    def cancel(self) -> Ended:
        """Ask for its end, and wait for it: Cancelled, or the ending that was there before.  Lost, BadRequest (no such job)."""
        return lead(self._case.cancel())


class Client:
    """A door to the mesh.

    coordinator: its control URL; None: IFMESH_COORDINATOR, else as the invitation says, else what a coordinator wrote into the state
    folder, else tcp://127.0.0.1:7640.  state: that folder.  identity: the file of an invitation (`ifmesh invite`), or its text; None:
    IFMESH_IDENTITY, else that of `ifmesh join`, else the operator's of the mesh in the state folder; False: none, for a mesh without
    keys (mesh.curve).  timeout: seconds without an answer after which the mesh counts as lost; six times as long for a job that it has
    accepted.  Connects at the first question.  Closed by `close` or `with`; then every question is an error.

    What can be wished for is told by `ifmesh.wishes.Wishes`.  source, mask: a path, http(s) URL, bytes, Pillow image or numpy array:
    PNG, JPEG or WebP, at most 16 MiB and 25 megapixels.  Whatever waits may raise Lost; whatever asks for a picture BadRequest.
    """

    def __init__(
        self,
        coordinator: str | None = None,
        *,
        state: str | Path | None = None,
        identity: str | Path | Literal[False] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._asker = Asker(coordinator, state, identity, timeout, lambda line: line.stop)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Jobs go on, unless they are tied; their ids stay good.  Whoever waits here gets a MeshError."""
        lead(self._asker.closing())

    @property
    def address(self) -> str:
        """The coordinator's control URL: in use, or as it would be."""
        return self._asker.address

    def generate(self, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """Draw it, and wait: `submit` and `Job.result(timeout)`.  Interrupted (Ctrl-C), it asks the mesh to cancel the job.

        The prompt may be left out when `embeds` know their own.
        """
        return lead(self._asker.drawn(prompt, None, None, timeout, wishes))

    def vary(self, source: object, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """Draw the source anew, after the prompt; the smaller the strength, the more of it stays.  Waits as `generate` does."""
        wished.need("source", source)
        return lead(self._asker.drawn(prompt, source, None, timeout, wishes))

    def inpaint(self, source: object, mask: object, prompt: str = "", *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """Draw what is white in the mask anew, after the prompt.  The mask has the source's aspect.  Waits as `generate` does."""
        wished.need("source", source)
        wished.need("mask", mask)
        return lead(self._asker.drawn(prompt, source, mask, timeout, wishes))

    def encode(self, prompt: str, negative: str = "", *, timeout: float | None = None) -> Embeds:
        """What the encoder makes of the texts, for `embeds=`.  Waits as `generate` does."""
        return lead(self._asker.encoded(prompt, negative, timeout))

    def upscale(
        self, source: object, prompt: str = "", *, alone: bool = False, timeout: float | None = None, **wishes: Unpack[Wishes]
    ) -> Image:
        """Draw the source larger, after the prompt, which says what it shows; four times by each stage.  Waits as `generate` does.

        By Stage II and the upscaler: at most 256 pixels a side; alone: by the upscaler alone, at most 1024.
        """
        wished.need("source", source)
        return lead(self._asker.drawn(prompt, source, None, timeout, {"upscale": "alone" if alone else True, **wishes}))

    def candidates(
        self,
        prompt: str = "",
        n: int = 8,
        *,
        source: object = None,
        mask: object = None,
        timeout: float | None = None,
        **wishes: Unpack[Wishes],
    ) -> list[Image]:
        """n pictures by Stage I alone, with the seeds seed, seed + 1, ..., kept for an hour or as `keep` says: `proceed` with the best.

        With a source and a mask as in `submit`.  Waits for all; interrupted, late (TimeoutError), or when one of them ends without a
        picture, it asks the mesh to cancel the rest.  size=256: by Stage II as well.
        """
        shared = {"size": 64, "keep": 3600.0, **wishes, "source": source, "mask": mask}
        return lead(Series(self._asker, [{"prompt": prompt}], n, n, shared, timeout).all())

    def proceed(self, image: Image, *, timeout: float | None = None, **wishes: Unpack[Wishes]) -> Image:
        """Go on where a picture that was kept ended: the pixels are those of drawing it whole.  Waits as `generate` does.

        Whatever was asked for it holds, settings of the later stages too, but for what is wished anew.  BadRequest: it is kept no more.
        """
        return lead(self._asker.drawn("", None, None, timeout, {**wishes, "continues": image}))

    def submit(
        self, prompt: str = "", *, source: object = None, mask: object = None, job: str | None = None, **wishes: Unpack[Wishes]
    ) -> Job:
        """Ask for a picture, and do not wait for it.  With a source it is `vary`, with a mask `inpaint`, with upscale=... `upscale`, with
        continues=... `proceed`, else `generate`.

        job: its id, to ask again for the same; None: a new one.
        """
        return Job(lead(self._asker.submit(prompt, source, mask, job, wishes)))

    def ask(self, request: Request, job: str | None = None, upload: bytes | Brought = b"") -> Job:
        """`submit`, for a Request that is made already.  upload: what was made with it, or the safetensors frame of what it brings."""
        return Job(lead(self._asker.ask(request, job, upload if isinstance(upload, Brought) else wished.unpacked(request, upload))))

    def job(self, job: str) -> Job:
        """Come back to a job by its id.  That there is no such job is told by its `events` and `result`: BadRequest."""
        return Job(lead(self._asker.job(job)))

    def cancel(self, job: str | Job) -> Ended:
        """Ask for a job's end, and wait for it.  Returns how it ended; raises BadRequest when there is no such job."""
        return lead(self._asker.cancel(job.id if isinstance(job, Job) else job))

    def map(
        self,
        prompts: str | Iterable[str | Mapping[str, object]],
        *,
        n: int = 1,
        source: object = None,
        mask: object = None,
        ahead: int = 8,
        **wishes: Unpack[Wishes],
    ) -> Generator[Image, None, None]:
        """Pictures of each prompt, in order, with at most `ahead` jobs under way.  A prompt may be a mapping with wishes of its own.

        n: pictures of each, with the seeds seed, seed + 1, ...  A full mesh is waited for.  Closed early, or when one job ends without
        a picture (it raises what `Job.result` raises), the rest is cancelled.
        """
        return self._pictures(Series(self._asker, prompts, n, ahead, {**wishes, "source": source, "mask": mask}))

    def as_completed(self, jobs: Iterable[Job], timeout: float | None = None) -> Generator[Job, None, None]:
        """The jobs, each as soon as it has ended, well or not: its `result` need not wait.  TimeoutError says how many are open."""
        race = Race([(job, job._case) for job in jobs], timeout)
        try:
            while (job := lead(race.next())) is not None:
                yield job
        finally:
            race.close()

    def status(self, job: str = "", page: int = 0) -> Books:
        """The mesh's books: services, and a page of jobs; or one job with its story.  BadRequest: no such job."""
        return lead(self._asker.status(job, page))

    def probe(self, source: str, target: str, size: int = 0, count: int = 0) -> Probed:
        """Try the way from one service to another: names as in `status`, or "coordinator".  Figures: round trips of small frames, and how
        fast count frames of size bytes (at most 8 MiB each, 256 MiB in all) come there.  count 0: the round trips alone.

        For operators.  That a way does not work is told in `error`, after some seconds; Misconfigured: this is no operator's key.
        """
        return lead(self._asker.probe(source, target, size, count))

    @staticmethod
    def _pictures(series: Series) -> Generator[Image, None, None]:
        try:
            while (image := lead(series.next())) is not None:
                yield image
        finally:
            series.close()
