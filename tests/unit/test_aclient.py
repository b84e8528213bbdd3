"""AsyncClient against a stand-in coordinator: every method, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psutil
import pytest

from ifmesh import aclient, wishes
from ifmesh.aclient import AsyncClient, AsyncJob
from ifmesh.client import Client, Job
from ifmesh.connection import Connection
from ifmesh.errors import BadRequest, JobCancelled, JobFailed, Lost, MeshError
from ifmesh.image import Preview
from ifmesh.protocol import Accepted, Cancel, Cancelled, ClientMessage, Failed, Finished, Inspect, Progress, Submit, ToClient, Watch
from ifmesh.protocol import Preview as Shown
from ifmesh.request import Request
from ifmesh.talk import Work
from tests.unit.stand_in import BOOKS, StandIn, finished, heard, kept, on, png, until

SOURCE, MASK = png(64), png(128)


@pytest.fixture
def mesh() -> Iterator[StandIn]:
    made = StandIn()
    yield made
    made.close()


def connection(client: AsyncClient) -> Connection:
    line = client._asker._line
    assert line is not None
    return line


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ifmesh-client"]


@asynccontextmanager
async def quiet() -> AsyncIterator[None]:
    """The loop has nothing to complain of, and nothing is left running in it."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    yield
    assert not complaints
    assert asyncio.all_tasks() == {asyncio.current_task()}


def endless(mesh: StandIn, beyond: int = -1) -> None:
    """Jobs whose seed is beyond this are accepted, and do not end."""

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit) and message.request.seed > beyond:
            return [Accepted(message.job)]
        return [Accepted(message.job)] if isinstance(message, Watch) and message.job not in mesh.requests else None

    mesh.rules.append(rule)


def told(mesh: StandIn, kind: type[ClientMessage], count: int = 1) -> threading.Event:
    """Set when so many of them have come."""
    event = threading.Event()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if len(heard(mesh, kind)) >= count:
            event.set()
        return [Cancelled(message.job)] if isinstance(message, Cancel) else None

    mesh.rules.insert(0, rule)
    return event


async def when(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


# ---- every method


def test_both_clients_have_the_same_names() -> None:
    for one, other in ((AsyncClient, Client), (AsyncJob, Job)):
        names = [{name for name in dir(cls) if not name.startswith("_")} for cls in (one, other)]
        assert names[0] == names[1]


def test_every_method(mesh: StandIn) -> None:
    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            assert client.address == mesh.url
            assert (await client.generate("a fox", seed=5)).seed == 5
            image = await client.vary(SOURCE, "a fox", strength=0.5)
            assert image.source == SOURCE
            image = await client.inpaint(SOURCE, MASK, "a hat")
            assert (image.source, image.mask) == (SOURCE, MASK)
            image = await client.upscale(SOURCE, "a fox", alone=True)
            assert image.request is not None
            assert (image.request.task, image.request.first_stage) == ("upscale", "upscaler")
            sketches = await client.candidates("a fox", 2, seed=5, keep=60)
            assert [(sketch.seed, sketch.kept) for sketch in sketches] == [(5, kept(sketches[0].job)), (6, kept(sketches[1].job))]
            image = await client.proceed(sketches[1], size=256)
            assert (image.seed, list(image.stages)) == (6, ["stage_one", "stage_two"])
            assert (await (await client.submit(continues=sketches[0])).result(20)).seed == 5
            del mesh.uploads[sketches[1].kept]
            with pytest.raises(BadRequest, match="no longer"):
                await client.proceed(sketches[1], timeout=20)
            embeds = await client.encode("an owl", "blurry")
            assert (embeds.prompt, embeds.negative) == ("an owl", "blurry")

            job = await client.submit(embeds=embeds, seed=3)
            assert (job.seed, job.request and job.request.prompt) == (3, "an owl")
            assert repr(job) == f"AsyncJob('{job.id}')"
            assert (await job.result()).job == job.id
            assert await (await client.job(job.id)).result() is await job.result(0)
            encoding = await client.ask(Request("an owl", 0, "encode", last_stage="encoder"))
            assert (await encoding.embeds(20)).prompt == "an owl"
            request, brought = wishes.made("a fox", SOURCE, None, {})
            assert (await (await client.ask(request, "mine", brought.frame)).result(20)).job == "mine"

            images = [image async for image in client.map(["a fox", "an owl"], n=2, seed=1, source=SOURCE)]
            assert [(image.request.prompt, image.seed) for image in images if image.request] == [
                ("a fox", 1),
                ("a fox", 2),
                ("an owl", 1),
                ("an owl", 2),
            ]
            jobs = [await client.submit("a fox") for _ in range(3)]
            assert {job.id async for job in client.as_completed(jobs)} == {job.id for job in jobs}
            assert await client.status() == BOOKS
            assert (await client.status(job.id)).story
            assert await client.cancel(job.id) == await job.cancel() == finished(job.id, 3)
            with pytest.raises(BadRequest, match="no such job"):
                await client.cancel("unknown")

    asyncio.run(main())


def test_events_with_early_pictures_in_order(mesh: StandIn) -> None:
    def rule(message: ClientMessage) -> list[ToClient] | None:
        if not isinstance(message, Submit | Watch) or not message.previews:
            return [Accepted(message.job)] if isinstance(message, Submit) else None
        mesh.requests[message.job] = Request("a fox", 5)
        step = Progress(message.job, "stage_two", 1, 2)
        return [Shown(message.job, "stage_one"), step, Shown(message.job, "stage_two"), finished(message.job, 5)]

    mesh.rules.append(rule)

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            job = await client.submit("a fox", seed=5)
            events = [event async for event in job.events()]
            assert [type(event) for event in events] == [Preview, Progress, Preview, Finished]
            assert [(event.stage, event.size[0]) for event in events if isinstance(event, Preview)] == [
                ("stage_one", 64),
                ("stage_two", 256),
            ]
            assert [event async for event in job.events()] == events
            assert [type(event) async for event in job.events(previews=False)] == [Progress, Finished]

    asyncio.run(main())


def test_how_it_ended_is_an_error(mesh: StandIn) -> None:
    mesh.rules.append(on(Submit, Failed("?", "error", "guard", "w", "boom"), times=1))
    mesh.rules.append(on(Submit, Cancelled("?"), times=1))

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            with pytest.raises(JobFailed):
                await client.generate("a fox")
            with pytest.raises(JobCancelled):
                await client.generate("a fox")
            with pytest.raises(BadRequest, match="source: None"):
                await client.vary(None, "a fox")
            with pytest.raises(BadRequest, match="mask: None"):
                await client.inpaint(SOURCE, None, "a fox")
            with pytest.raises(BadRequest, match="did you mean seed"):
                await client.generate("a fox", sede=5)  # type: ignore[call-arg]
            with pytest.raises(BadRequest, match="no such file"):
                await client.vary("nowhere.png", "a fox")

    asyncio.run(main())


def test_nobody_there(mesh: StandIn) -> None:
    mesh.close()

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url, timeout=0.5) as client:
            for answer in await asyncio.gather(*(client.generate("a fox") for _ in range(5)), return_exceptions=True):
                assert isinstance(answer, Lost)
                assert mesh.url in str(answer)
            assert not client_threads()

    asyncio.run(main())


def test_a_time_limit_leaves_the_id_good(mesh: StandIn) -> None:
    endless(mesh)

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            job = await client.submit("a fox")
            with pytest.raises(TimeoutError, match=f"{job.id}.*0.01 s.*stays good"):
                await job.result(0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await job.result()
            with pytest.raises(TimeoutError, match="1 of 1 jobs"):
                await anext(client.as_completed([job], timeout=0.01))

    asyncio.run(main())


def test_two_hundred_at_once(mesh: StandIn) -> None:
    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            threads = threading.active_count()
            images = await asyncio.gather(*(client.generate("a fox", seed=seed, size=64) for seed in range(200)))
            assert [image.seed for image in images] == list(range(200))
            assert threading.active_count() <= threads + 1, "one thread for all, beside the client's own"
            books = await asyncio.gather(*(client.status(image.job) for image in images[:20]))
            assert [book.jobs[0].job for book in books] == [image.job for image in images[:20]], "answers find their question"

    asyncio.run(main())


def test_slow_work_is_not_done_in_the_loop(mesh: StandIn) -> None:
    """While a thread reads, tasks go on."""
    go = threading.Event()

    def slow() -> str:
        assert go.wait(20)
        return "read"

    def talk() -> Any:
        return (yield Work(slow))

    async def main() -> None:
        reading = asyncio.create_task(aclient.lead(talk()))
        async with AsyncClient(mesh.url) as client:
            await client.generate("a fox")
        assert not reading.done()
        go.set()
        assert await reading == "read"

    asyncio.run(main())


# ---- interrupted


def test_a_cancelled_task_cancels_what_nobody_else_knows(mesh: StandIn) -> None:
    endless(mesh, beyond=0)
    asked, cancelled = told(mesh, Submit, 3), told(mesh, Cancel, 3)

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            tasks = [
                asyncio.create_task(client.generate("a fox", seed=1)),
                asyncio.create_task(client.inpaint(SOURCE, MASK, "a fox", seed=2)),
                asyncio.create_task(anext(client.map("a fox", seed=3))),
            ]
            await when(asked)
            for task in tasks:
                task.cancel()
            assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
            await when(cancelled)
            jobs = {m.job for m in mesh.heard if isinstance(m, Submit)}
            assert {m.job for m in mesh.heard if isinstance(m, Cancel)} == jobs

    asyncio.run(main())


def test_a_cancelled_wait_leaves_no_listener_and_no_cancel(mesh: StandIn) -> None:
    endless(mesh)

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            job = await client.submit("a fox")
            file = job._case.file

            async def events() -> None:
                async for _ in job.events():
                    pass

            async def race() -> None:
                async for _ in client.as_completed([job]):
                    pass

            for waiting in (job.result(), events(), race()):
                task = asyncio.create_task(waiting)
                while not (file._listeners or file.over._listeners):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                gc.collect()
                await asyncio.sleep(0)
                assert not file._listeners
                assert not file.over._listeners
            assert await client.status() == BOOKS
            assert not heard(mesh, Cancel), "it has a job object: it is somebody's"

    asyncio.run(main())


def test_a_cancelled_question_does_not_stop_the_next(mesh: StandIn) -> None:
    asked = told(mesh, Inspect)
    mesh.rules.append(on(Inspect, times=1))

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url, timeout=5.0) as client:
            tasks = [asyncio.create_task(client.status()) for _ in range(3)]
            await when(asked)
            tasks[0].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(answers[0], asyncio.CancelledError)
            assert answers[1:] == [BOOKS, BOOKS]

    asyncio.run(main())


def test_map_left_early_cancels_the_rest(mesh: StandIn) -> None:
    endless(mesh, beyond=1)
    cancelled = told(mesh, Cancel, 3)

    async def main() -> None:
        async with quiet(), AsyncClient(mesh.url) as client:
            async with aclosing(client.map("a fox", n=9, ahead=4, seed=1)) as images:
                async for image in images:
                    assert image.seed == 1
                    break
            await when(cancelled)

    asyncio.run(main())


# ---- the end


def test_close_ends_those_who_wait(mesh: StandIn) -> None:
    endless(mesh)

    async def main() -> None:
        client = AsyncClient(mesh.url)
        async with quiet():
            job = await client.submit("a fox")
            waiting = asyncio.create_task(job.result())
            await client.status()
            await client.close()
            await client.close()
            assert not client_threads()
            with pytest.raises(MeshError, match="this client is closed"):
                await waiting
            with pytest.raises(MeshError, match="this client is closed"):
                await client.status()

    asyncio.run(main())


def test_nothing_is_left_open(mesh: StandIn) -> None:
    process = psutil.Process()

    async def use() -> None:
        async with AsyncClient(mesh.url) as client:
            await client.vary(SOURCE, "a fox")

    asyncio.run(use())
    before = threading.active_count(), process.num_fds()
    for _ in range(5):
        asyncio.run(use())
    until(lambda: threading.active_count() <= before[0] and process.num_fds() <= before[1])


@pytest.mark.parametrize("keep_loop", [True, False])
def test_a_closed_loop_ends_the_client(mesh: StandIn, keep_loop: bool, caplog: pytest.LogCaptureFixture) -> None:
    endless(mesh, beyond=1)
    client = AsyncClient(mesh.url)
    loop = asyncio.new_event_loop()
    jobs = [loop.run_until_complete(client.submit("a fox", seed=seed)) for seed in (1, 2)]
    [thread] = client_threads()
    loop.close()
    if not keep_loop:
        del loop
        gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    assert not caplog.records
    # The client can be used again, in another loop; its old jobs by their ids.
    assert asyncio.run(client.generate("a fox", seed=0)).seed == 0
    until(lambda: not client_threads())
    assert len(jobs) == 2


def test_a_second_loop_does_not_take_a_connection_that_is_ending(mesh: StandIn) -> None:
    client = AsyncClient(mesh.url)
    assert asyncio.run(client.status()) == BOOKS

    async def again() -> None:
        async with asyncio.timeout(20):
            assert await client.status() == BOOKS

    async def first() -> Connection:
        await client.status()
        return connection(client)

    loop = asyncio.new_event_loop()
    old = loop.run_until_complete(first())
    with old._lock:  # its thread does not get to its end meanwhile
        loop.close()
        asyncio.run(again())
        assert old.failure is None
        assert connection(client) is not old
    until(lambda: not client_threads())


def test_a_loop_that_closes_while_somebody_waits(mesh: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """The connection has news for a task whose loop is gone: nobody minds."""
    endless(mesh)
    client = AsyncClient(mesh.url)
    loop = asyncio.new_event_loop()
    job = loop.run_until_complete(client.submit("a fox"))
    waiting = job.result()
    waiting_task = loop.create_task(waiting)
    loop.run_until_complete(client.status())
    waiting_task.cancel()  # never gets to know: the loop is closed first
    file = job._case.file
    assert file._listeners
    loop.close()
    file.changed()
    until(lambda: not client_threads())
    waiting.close()
    waiting_task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert not file._listeners
    assert not caplog.records


def test_a_forgotten_client_ends(mesh: StandIn) -> None:
    async def main() -> None:
        async with quiet():
            assert (await (await AsyncClient(mesh.url).submit("a fox")).result()).request, "a job keeps its connection"
            gc.collect()
            until(lambda: not client_threads())
            assert not [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]

    asyncio.run(main())


def test_ctrl_c_without_async_with_still_cancels_the_jobs(mesh: StandIn) -> None:
    """The program ends as soon as its loop is closed, and what it has to say is said before."""
    cancelled, asked, jobs = threading.Event(), set[str](), set[str]()

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if isinstance(message, Submit) and message.job not in asked:
            asked.add(message.job)
            if len(asked) == 300:
                os.kill(child.pid, signal.SIGINT)
        if isinstance(message, Cancel):
            jobs.add(message.job)
            if len(jobs) == 300:
                cancelled.set()
            return [Cancelled(message.job)]
        return [Accepted(message.job)] if isinstance(message, Submit | Watch) else None

    mesh.rules.append(rule)
    code = (
        "import asyncio\nfrom ifmesh import AsyncClient\n"
        f"c = AsyncClient({mesh.url!r})\n"
        "async def main():\n    await asyncio.gather(*(c.generate('a fox') for _ in range(300)))\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as child:
        _, error = child.communicate(timeout=60)
    assert child.returncode == -2
    assert error.count(b"\nKeyboardInterrupt") == 1
    assert cancelled.wait(10), f"{len(jobs)} of 300"


def test_nothing_waits_for_the_end_of_a_connection_that_has_ended(mesh: StandIn) -> None:
    async def main() -> None:
        async with AsyncClient(mesh.url) as client:
            await client.status()
        forgotten = AsyncClient(mesh.url)
        await forgotten.status()

    waiting = weakref.finalize._registry  # type: ignore[attr-defined]
    gc.collect()
    before = len(waiting)
    asyncio.run(main())
    until(lambda: not client_threads())
    gc.collect()
    assert len(waiting) <= before


def test_a_program_that_forgets_to_close_ends(mesh: StandIn) -> None:
    code = (
        "import asyncio\nfrom ifmesh import AsyncClient\n"
        f"c = AsyncClient({mesh.url!r})\n"
        "async def main():\n"
        "    print((await c.generate('a fox', seed=8)).seed)\n"
        "    return await c.submit('a fox')\n"
        "job = asyncio.run(main())"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "8\n", "")
