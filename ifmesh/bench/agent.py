"""A client process, `ifmesh bench client`: asks as it is told, on the real client, and tells what it saw; see `orders`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ifmesh import typed
from ifmesh.aclient import AsyncClient, AsyncJob
from ifmesh.bench.orders import Record, Report, Run, Spell
from ifmesh.errors import Lost, MeshBusy, MeshError
from ifmesh.image import Preview
from ifmesh.protocol import Finished

Message = dict[str, Any]


def serve() -> None:
    """Until stdin ends."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve())


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    client: AsyncClient | None = None
    agent: Agent | None = None
    running: asyncio.Task[None] | None = None
    try:
        while line := await reader.readline():
            match json.loads(line):
                case {"mesh": {"coordinator": url, "state": state, "identity": identity}}:
                    client = AsyncClient(url, state=state or None, identity=identity)
                    await client.status()
                    _tell({"ready": True})
                case {"run": order} if client is not None:
                    agent = Agent(client, typed.build(Run, order, "run", unknown="error"))
                    running = asyncio.create_task(_run(agent))
                case {"stop": True}:
                    if agent is not None:
                        agent.stop()
                case other:
                    raise ValueError(f"no such order: {str(other)[:100]}")
    except MeshError as error:
        _tell({"error": str(error)})
    finally:
        if running is not None:
            running.cancel()
        if client is not None:
            await client.close()


async def _run(agent: Agent) -> None:
    try:
        _tell({"report": asdict(await agent.run())})
    except MeshError as error:
        _tell({"error": str(error)})


def _tell(message: Message) -> None:
    print(json.dumps(message), flush=True)


class Agent:
    def __init__(self, client: AsyncClient, run: Run) -> None:
        self._client, self._run = client, run
        self._asks = [json.loads(ask) for ask in run.asks]
        self._records: list[Record] = []
        self._stopped = asyncio.Event()
        self._asked = 0
        self._began = 0.0

    async def run(self) -> Report:
        self._began = time.perf_counter()
        tasks: set[asyncio.Task[Any]] = {asyncio.create_task(self._loop()) for _ in range(self._run.in_flight)}
        for at in self._run.at:
            await self._until(at)
            if self._stopped.is_set():
                break
            tasks.add(asyncio.create_task(self._ask(at)))
        await self._until(self._run.seconds)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._run.settle)
            for task in late:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(done, Exception):
                    raise done
        return Report(tuple(self._records), self._now())

    def stop(self) -> None:
        self._stopped.set()

    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def _until(self, at: float) -> None:
        if (pause := at - self._now()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), pause)

    async def _loop(self) -> None:
        """One of the requests that are always under way.  A refusal is waited out, as it asks for."""
        while not self._stopped.is_set() and (self._now() < self._run.seconds or self._asked < self._run.least):
            record = await self._ask(self._now())
            if record.how == "refused":
                await self._until(self._now() + record.retry_after)
            elif record.how == "lost":
                await self._until(self._now() + 1.0)

    async def _ask(self, at: float) -> Record:
        number, self._asked = self._asked, self._asked + 1
        wishes: Mapping[str, Any] = {"seed": self._run.seed + number, **self._asks[number % len(self._asks)]}
        sent = self._now()
        seen: list[float] = []
        try:
            job = await self._client.submit(**wishes)
            spells = await self._watched(job, seen)
            record = Record(at, sent, self._now(), "finished", min(seen, default=self._now()), spells=spells)
        except MeshBusy as busy:
            record = Record(at, sent, self._now(), "refused", retry_after=busy.retry_after)
        except Lost as lost:
            record = Record(at, sent, self._now(), "lost", error=str(lost))
        except MeshError as error:
            record = Record(at, sent, self._now(), "failed", error=str(error))
        except asyncio.CancelledError:
            self._records.append(Record(at, sent, self._now(), "lost", error=f"not ended {self._run.settle:g} s after the last was asked"))
            raise
        self._records.append(record)
        return record

    async def _watched(self, job: AsyncJob, seen: list[float]) -> tuple[Spell, ...]:
        """To its end, with the picture in hand.  seen: gets the time of the first preview."""
        if self._run.previews:
            async for event in job.events():
                if isinstance(event, Preview) and not seen:
                    seen.append(self._now())
                elif isinstance(event, Finished):
                    break
        image = await job.result()
        return tuple(Spell(r.stage, r.worker, r.device, r.queued_s, r.run_s, r.bytes_in, r.bytes_out) for r in image.timings)
