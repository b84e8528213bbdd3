"""A client process: asks for its share, writes down what it sees, and comes back to the same jobs after whatever became of it."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ifmesh.aclient import AsyncClient, AsyncJob
from ifmesh.chaos.asks import Ask, asks, made
from ifmesh.chaos.history import SEEN, STATE, History, lines
from ifmesh.chaos.oracle import Oracle, Pictures, of, pictures
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError
from ifmesh.image import Preview
from ifmesh.protocol import Cancelled, Failed, Finished
from ifmesh.request import Request
from ifmesh.wishes import Brought

PLAN = "plan.json"
CLOCK = "clock"  # a file that says how many seconds of weather there have been; there is none until all are ready ...
CALM = "calm"  # ... and one that is there when nothing more will be done to them
AT_ONCE = 48  # jobs of one client under way
THROUGH = "through"


@dataclass(frozen=True, slots=True)
class Plan:
    """What all processes of a run know.

    curve: the mesh has keys.  known: of real stages, the file with what an undisturbed run gave; "": toy stages.  calm: this is that
    run; all is asked at once, and nothing is to fail.
    """

    seed: int
    requests: int
    seconds: float
    clients: int
    real: bool
    curve: bool
    known: str = ""
    calm: bool = False

    @property
    def asks(self) -> tuple[Ask, ...]:
        every = asks(self.seed, self.requests, self.seconds, self.clients, self.real)
        return tuple(replace(ask, at=0.0, fate="fine", deadline=None) for ask in every) if self.calm else every

    def write(self, folder: Path) -> None:
        (folder / PLAN).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        return cls(**json.loads((folder / PLAN).read_text()))


def run(folder: Path, name: str, coordinator: str) -> None:
    """Until all is asked, ended and looked at once more; then until somebody ends this process.  name: "client-N"."""
    asyncio.run(Agent(folder, name, coordinator).run())


class Agent:
    def __init__(self, folder: Path, name: str, coordinator: str) -> None:
        self._folder, self._number = folder, int(name.rpartition("-")[2])
        self._plan = Plan.read(folder)
        self._history = History(folder / SEEN, name)
        self._client = AsyncClient(coordinator, state=folder / STATE, identity=None if self._plan.curve else False)
        self._oracle = Oracle()
        self._over: set[str] = set()
        self._known: dict[str, Pictures] = json.loads(Path(self._plan.known).read_text()) if self._plan.known else {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        mine = [ask for ask in self._plan.asks if self._number in ask.clients]
        for record in lines(self._folder / SEEN):  # what an earlier life of ours has seen
            if record["what"] == "over" and record["by"] == f"client-{self._number}":
                self._over.add(record["job"])
        watching = asyncio.create_task(self._progress(len(mine)))
        async with asyncio.TaskGroup() as group:
            for ask in mine:
                while not (self._folder / CALM).exists() and self._clock() < ask.at:
                    await asyncio.sleep(0.1)
                if ask.job not in self._over:
                    await self._room.acquire()
                    group.create_task(self._through(ask))
        while not (self._folder / CALM).exists():
            await asyncio.sleep(0.1)
        for ask in mine:
            await self._look_again(ask)
        watching.cancel()
        print(THROUGH, flush=True)
        await asyncio.Event().wait()

    def _clock(self) -> float:
        """Seconds of weather so far; -1: all are not ready yet."""
        with suppress(OSError, ValueError):
            return float((self._folder / CLOCK).read_text())
        return -1.0

    async def _progress(self, count: int) -> None:
        while True:
            print(f"{len(self._over)} of {count}", flush=True)
            await asyncio.sleep(2)

    async def _through(self, ask: Ask) -> None:
        try:
            request, brought = made(ask)
            self._plan_said(ask, request, brought)
            self._history.say("invoked", job=ask.job)
            cancelling = asyncio.create_task(self._cancel(ask)) if ask.fate == "cancel" else None
            while not await self._asked(ask, request, brought):
                pass
            if cancelling is not None:
                cancelling.cancel()
            self._history.say("over", job=ask.job)
            self._over.add(ask.job)
        finally:
            self._room.release()

    def _plan_said(self, ask: Ask, request: Request, brought: Brought) -> None:
        """Everything that the checker is to know of a request."""
        if self._plan.known:
            expected = self._known.get(ask.job, {})
        else:
            expected = {} if self._plan.real or ask.fate in ("raise", "bad", "poison") else self._oracle.expected(request, brought.frame)
        told = {"task": ask.task, "size": ask.size, "fate": ask.fate, "stage": ask.stage, "deadline": ask.deadline}
        self._history.say("planned", job=ask.job, **told, whole=ask.stages, pictures=expected)

    async def _asked(self, ask: Ask, request: Request, brought: Brought) -> bool:
        """Ask, and follow it to its end.  False: ask again."""
        try:
            job = await self._client.ask(request, ask.job, brought)
            await self._follow(ask, job)
        except MeshBusy as busy:
            self._history.say("busy", job=ask.job)
            await asyncio.sleep(busy.retry_after * random.uniform(0.5, 1.5))
            return False
        except Lost:
            self._history.say("silence", job=ask.job)
            return False
        except (JobFailed, DeadlineExceeded, JobCancelled):
            return True  # and that was told by its last event
        except BadRequest as error:
            if ask.fate != "bad":
                self._history.say("refused", job=ask.job, error=str(error)[:300])
            return True
        except MeshError as error:
            self._history.say("broken", job=ask.job, error=str(error)[:300])
            await asyncio.sleep(1)
            return False
        return True

    async def _follow(self, ask: Ask, job: AsyncJob) -> None:
        accepted = False
        async for event in job.events(previews=ask.previews):
            if not accepted:
                accepted = True
                self._history.say("accepted", job=ask.job)
            if isinstance(event, Preview):
                self._history.say("previewed", job=ask.job, stage=event.stage, picture=of(event))
            elif isinstance(event, Finished):
                self._history.say("ended", job=ask.job, how="finished", digest=event.digest, steps={r.stage: r.steps for r in event.runs})
            elif isinstance(event, Failed):
                self._history.say("ended", job=ask.job, how="failed", cause=event.cause, error=event.error[:300])
            elif isinstance(event, Cancelled):
                self._history.say("ended", job=ask.job, how="cancelled")
        came = await (job.embeds() if ask.task == "encode" else job.result())
        self._history.say("fetched", job=ask.job, pictures=pictures(came))

    async def _cancel(self, ask: Ask) -> None:
        await asyncio.sleep(ask.after)
        self._history.say("thought better", job=ask.job)
        while True:
            with suppress(Lost, BadRequest, MeshError):
                await self._client.cancel(ask.job)
                return
            await asyncio.sleep(0.5)

    async def _look_again(self, ask: Ask) -> None:
        """After all is calm: is it still what it was?"""
        while True:
            try:
                await self._follow(ask, await self._client.job(ask.job))
                return
            except (JobFailed, DeadlineExceeded, JobCancelled):
                return
            except BadRequest as error:
                if ask.fate != "bad":
                    self._history.say("refused", job=ask.job, error=str(error)[:300])
                return
            except MeshError as error:
                self._history.say("broken", job=ask.job, error=str(error)[:300])
                await asyncio.sleep(0.5)
