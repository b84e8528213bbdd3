"""The shells with real processes, sockets, signals and disks; only the models are toys."""

from __future__ import annotations

import os
import signal
import socket as sockets_of_python
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import psutil
import pytest
import zmq

from ifmesh import bags, exits
from ifmesh.credentials import called
from ifmesh.mail import RESULTS
from ifmesh.parent import classify
from ifmesh.protocol import (
    VERSION,
    Accepted,
    Beat,
    Books,
    Cancel,
    Failed,
    Fetch,
    Finished,
    Header,
    Hi,
    Progress,
    Refused,
    Result,
    Run,
    Started,
    Welcome,
    Who,
)
from ifmesh.request import STAGES, Request, Settings
from ifmesh.wire import HEADER, TO_COORDINATOR, TO_WORKER
from tests.mesh.conftest import Make
from tests.mesh.kit import Mesh, Speaker, expected, published

FOX = Request("a fox", seed=7)
SMALL = ("encoder", "stage_one", "guard")


def small(prompt: str = "a fox", seed: int = 7) -> Request:
    """Through three stages only."""
    return Request(prompt, seed, last_stage="stage_one")


def told(books: Books, words: str) -> bool:
    return any(words in line for _, line in books.story)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One whole mesh for the tests that leave it as they found it."""
    with Mesh(tmp_path_factory.mktemp("calm"), {"mesh.keep_bags": str(tmp_path_factory.mktemp("kept"))}) as mesh:
        mesh.all()
        yield mesh


def test_a_job_goes_through_all_stages(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.submit("one", FOX)
        finished = fan.finished("one")
        assert isinstance(fan.heard[0], Accepted)
        for stage in STAGES:
            assert any(isinstance(m, Started) and m.stage == stage for m in fan.heard)
            assert any(isinstance(m, Progress) and (m.stage, m.step, m.steps) == (stage, 5, 5) for m in fan.heard)
        assert tuple(run.stage for run in finished.runs) == STAGES
        assert len({run.pid for run in finished.runs}) == 5
        assert all(run.runs == 1 and run.steps == 5 and run.bytes_out > 0 for run in finished.runs)
        assert finished.reproducible
        assert finished.seed == 7
        frame = fan.result("one")
        assert (bags.digest(frame), len(frame)) == (finished.digest, finished.size)
        assert published(frame) == expected(FOX)


def test_asking_again_runs_nothing_again(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.submit("again", small())
        first = fan.finished("again")
        fan.submit("again", small())
        assert fan.finished("again") == first
        fan.submit("again", small(seed=8))
        assert fan.until(Refused).reason == "conflict"


def test_many_results_that_are_asked_for_at_once_all_come(calm: Mesh) -> None:
    """More than may be under way to one client, each asked for once."""
    with calm.speaker() as fan:
        fan.submit("whole", FOX)
        fan.finished("whole")
        jobs = [f"many-{number}" for number in range(3 * RESULTS)]
        for number, job in enumerate(jobs):
            fan.submit(job, small(seed=number))
        for job in jobs:
            if not any(isinstance(m, Finished) and m.job == job for m in fan.heard):
                fan.finished(job)
        for job in ("whole", *jobs):
            fan.send(Fetch(job))
        came = [fan.until(Result).job for _ in range(1 + len(jobs))]
        assert came == ["whole", *jobs]


def test_finished_bags_are_kept_for_the_curious(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.submit("kept", small())
        fan.finished("kept")
        folder = calm.config.mesh.keep_bags
        assert folder is not None
        assert {p.name for p in folder.glob("kept.*")} == {f"kept.{stage}.safetensors" for stage in SMALL}
        assert published((folder / "kept.guard.safetensors").read_bytes()) == expected(small())
        assert published((folder / "kept.guard.safetensors").read_bytes()) == published(fan.result("kept"))


def test_a_wrong_request_ends_at_once_with_the_reason(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.submit("wrong", small("toy:bad=stage_one"))
        ending = fan.ending("wrong")
        assert isinstance(ending, Failed)
        assert (ending.cause, ending.stage, ending.worker) == ("request", "stage_one", "stage_one-0")
        assert "leave that word out" in ending.error


def test_a_stage_that_raises_is_tried_again_then_the_job_fails(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.submit("raises", small("toy:raise=stage_one"))
        ending = fan.ending("raises")
        assert isinstance(ending, Failed)
        assert (ending.cause, ending.error) == ("error", "RuntimeError: the prompt asked stage_one to raise this")
        fan.submit("after", small())
        fan.finished("after")


def test_many_jobs_at_once(calm: Mesh) -> None:
    with calm.speaker() as fan:
        for number in range(40):
            fan.submit(f"many-{number}", small(seed=number))
        open_jobs = {f"many-{number}" for number in range(40)}
        while open_jobs:
            open_jobs.remove(fan.until(Finished).job)
        assert published(fan.result("many-33")) == expected(small(seed=33))


def test_another_protocol_version_is_answered_with_both(calm: Mesh) -> None:
    with calm.speaker() as fan:
        fan.say(msgpack.packb({"v": 99, "is": "Hi"}))
        refused = fan.until(Refused)
        assert refused.reason == "version"
        assert "99" in refused.detail
        assert f"version {VERSION}" in refused.detail


GARBAGE = (
    b"",
    b"\0",
    b"\xff" * 64,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x80" * 5000,
    b"\xdf\xff\xff\xff\xff",
    os.urandom(300),
    msgpack.packb({"v": VERSION}),
    msgpack.packb({"v": str(VERSION), "is": "Hi"}),
    msgpack.packb({"v": VERSION, "is": "Submit", "job": 7, "request": None}),
    msgpack.packb({"v": VERSION, "is": "Beat", "life": "x" * 70000, "number": 1, "state": "ready", "held": []}),
    TO_WORKER.encode(Run("j", (1, 1), FOX)),  # at the wrong door
)


def test_garbage_on_every_socket_stops_nothing(calm: Mesh) -> None:
    frame = bags.encode({})
    header = Header("bag", "strange", "encoder", (9, 9), bags.digest(frame))
    with calm.speaker() as fan:
        before = calm.ready(fan, *(f"{stage}-0" for stage in STAGES))
        for junk in GARBAGE:
            fan.say(junk)
            fan.say(junk, junk)
        inlets = calm.inlets()
        assert [end.host for end in inlets] == ["here", ""] * 6
        for end in inlets:
            url = end.url
            with calm.pushing(end) as push:
                for junk in GARBAGE:
                    push.send(junk)
                    push.send_multipart([junk, junk, junk])
                    push.send_multipart([HEADER.encode(header), junk])  # whose digest is wrong
                push.send_multipart([HEADER.encode(header), frame])  # for nobody
                push.send_multipart([HEADER.encode(Header("result", "strange", "guard", (9, 9), bags.digest(frame))), frame])
                assert push.poll(10_000, zmq.POLLOUT)
            if url.startswith("tcp:"):
                with sockets_of_python.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as plain:
                    plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(500))
        port = int(calm.config.control().rpartition(":")[2])
        with sockets_of_python.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(os.urandom(500))
        fan.submit("amid-garbage", FOX)
        assert published_of(fan, "amid-garbage") == expected(FOX)
        assert {row.service: row.pid for row in fan.books().services} == {name: row.pid for name, row in before.items()}
    assert "dropped what" in (calm.logs / "coordinator.log").read_text()
    assert "dropped what" in (calm.logs / "encoder-0.log").read_text()


def published_of(fan: Speaker, job: str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    fan.finished(job)
    return published(fan.result(job))


def test_a_parent_is_small(calm: Mesh) -> None:
    with calm.speaker() as fan:
        children = {row.pid for row in calm.ready(fan, "encoder-0").values()}
    parents = [psutil.Process(process.pid) for process in calm.processes[1:]]
    assert {child.pid for parent in parents for child in parent.children()} == children
    for parent in parents:
        assert not [m.path for m in parent.memory_maps() if "torch" in m.path or "numpy" in m.path or "safetensors" in m.path]


def test_kill_nine_of_a_worker_in_mid_step(mesh: Make) -> None:
    one = mesh(services__stage_two__options__step_ms=300)
    one.all()
    one.worker("stage_two", "stage_two-1")
    with one.speaker() as fan:
        rows = one.ready(fan, "stage_two-0", "stage_two-1")
        fan.submit("a", FOX)
        victim = fan.until(Started, lambda m: m.stage == "stage_two").worker
        fan.until(Progress, lambda m: m.stage == "stage_two" and m.step >= 2)
        os.kill(rows[victim].pid, signal.SIGKILL)
        other = fan.until(Started, lambda m: m.stage == "stage_two").worker
        assert other != victim
        finished = fan.finished("a")
        assert published(fan.result("a")) == expected(FOX)
        assert [run.runs for run in finished.runs] == [1, 1, 2, 1, 1]
        books = fan.books("a")
        assert told(books, f"{victim} killed: SIGKILL")
        assert not told(books, "blamed")
    parent = one.processes[1 + STAGES.index("stage_two") if victim == "stage_two-0" else -1]
    assert parent.code() == 128 + signal.SIGKILL


def test_a_worker_that_aborts_is_blamed(mesh: Make) -> None:
    one = mesh()
    processes = one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("a", small("toy:abort=stage_one"))
        assert processes["stage_one"].code() == 128 + signal.SIGABRT
        books = fan.when(lambda b: told(b, "stage_one-0 crashed: SIGABRT"), "a")
        assert told(books, "blamed, 1 of 4")
        fan.send(Cancel("a"))
        fan.ending("a")


def test_a_worker_that_hangs_is_killed_and_blamed(mesh: Make) -> None:
    one = mesh(services__stage_one__patience=1.0)
    processes = one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("a", small("toy:hang=stage_one"))
        assert processes["stage_one"].code() == exits.STALLED
        books = fan.when(lambda b: told(b, "blamed, 1 of 4"), "a")
        assert told(books, "stalled")
        assert "stalled" in processes["stage_one"].log.read_text()


def test_sigterm_drains_the_coordinator_and_its_workers(mesh: Make) -> None:
    one = mesh(services__stage_one__options__step_ms=200)
    processes = one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("a", small())
        fan.until(Progress, lambda m: m.stage == "stage_one")
        processes["coordinator"].signal(signal.SIGTERM)
        one.wait_for(lambda: "SIGTERM: draining" in processes["coordinator"].log.read_text())
        fan.submit("b", small())
        assert fan.until(Refused).reason == "busy"
        fan.finished("a")
    assert [process.code() for process in processes.values()] == [0, 0, 0, 0]
    assert not (one.state / "endpoint.json").exists()
    assert one.socket_files() == []


def test_sigterm_of_a_worker_finishes_what_runs(mesh: Make) -> None:
    one = mesh(services__stage_one__options__step_ms=200)
    processes = one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("a", small())
        fan.until(Progress, lambda m: m.stage == "stage_one")
        processes["stage_one"].signal(signal.SIGTERM)
        finished = fan.finished("a")
        assert [run.runs for run in finished.runs] == [1, 1, 1]
        assert processes["stage_one"].code() == 0
        fan.when(lambda b: "stage_one-0" not in {row.service for row in b.services if row.state != "lost"})


def test_a_second_signal_ends_at_once(mesh: Make) -> None:
    one = mesh()
    processes = one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("a", small("toy:hang=stage_one"))
        fan.until(Started, lambda m: m.stage == "stage_one")
        processes["stage_one"].signal(signal.SIGTERM)
        fan.when(lambda b: any(row.state == "draining" for row in b.services))
        processes["stage_one"].signal(signal.SIGTERM)
        assert processes["stage_one"].code() == 75
        processes["coordinator"].signal(signal.SIGTERM)
        one.wait_for(lambda: "SIGTERM: draining" in processes["coordinator"].log.read_text())
        processes["coordinator"].signal(signal.SIGTERM)
        assert processes["coordinator"].code() == 75


def test_kill_nine_of_the_coordinator_costs_no_stage(mesh: Make) -> None:
    one = mesh(services__stage_one__options__step_ms=150)
    processes = one.all(SMALL)
    before = one.config.control()
    with one.speaker() as fan:
        for job in ("a", "b", "c"):
            fan.submit(job, small(job))
        fan.until(Progress, lambda m: m.stage == "stage_one")
        processes["coordinator"].signal(signal.SIGKILL)
        processes["coordinator"].code()
    one.coordinator()
    assert one.config.control() == before
    with one.speaker() as fan:
        for job in ("a", "b", "c"):
            fan.submit(job, small(job))
        endings = [fan.until(Finished) for _ in range(3)]
        assert all(run.runs == 1 for ending in endings for run in ending.runs)
        assert published(fan.result("c")) == expected(small("c"))


def test_a_child_ends_with_its_parent(mesh: Make) -> None:
    one = mesh()
    processes = one.all(SMALL)
    with one.speaker() as fan:
        child = psutil.Process(one.ready(fan, "stage_one-0")["stage_one-0"].pid)
    processes["stage_one"].signal(signal.SIGKILL)
    assert psutil.wait_procs([child], timeout=30)[1] == []


def test_the_mesh_ends_with_its_pipes(mesh: Make) -> None:
    one = mesh()
    processes = one.all(("encoder",))
    children = one.processes[1].family
    for process in processes.values():
        assert process.popen.stdin is not None
        process.popen.stdin.close()
    assert all(process.code() != 0 for process in processes.values())
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_taken_port_is_said(mesh: Make) -> None:
    with sockets_of_python.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one = mesh(mesh__listen=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        process = one.start("coordinator", "coordinator")
        assert process.code() == 3
    assert "mesh.listen" in process.log.read_text()
    assert "Traceback" not in process.log.read_text()


def test_a_stage_that_cannot_be_loaded_is_said(mesh: Make) -> None:
    one = mesh(services__stage_one__run="ifmesh.toy:Nothing")
    one.coordinator()
    process = one.worker("stage_one")
    assert process.code() == 3
    assert "ifmesh.toy:Nothing" in process.log.read_text()


def test_a_worker_that_comes_first_waits_for_the_coordinator(mesh: Make, tmp_path: Path) -> None:
    one = mesh()
    one.worker("encoder")
    one.coordinator()
    with one.speaker() as fan:
        one.ready(fan, "encoder-0")
        fan.send(Hi())
        assert fan.until(Welcome).stages == STAGES


def test_a_cancelled_job_is_dropped_within_a_step(mesh: Make) -> None:
    one = mesh(services__stage_one__options__step_ms=100)
    one.all(SMALL)
    with one.speaker() as fan:
        fan.submit("long", Request("a fox", 7, last_stage="stage_one", settings={"stage_one": Settings(steps=1000)}))
        fan.until(Progress, lambda m: m.stage == "stage_one" and m.step >= 2)
        fan.send(Cancel("long"))
        fan.ending("long")
        fan.submit("next", small())
        fan.finished("next")


def test_messages_of_strangers_are_for_the_broker(calm: Mesh) -> None:
    """A worker that nobody knows is asked who it is; the mesh goes on."""
    me = calm.identity("worker-encoder")
    life = called(me, "stranger.1")
    with calm.speaker(me, life) as fan:
        fan.say(TO_COORDINATOR.encode(Beat(life, 1, "ready", ())))
        assert fan.socket.poll(10_000)
        assert TO_WORKER.decode(fan.socket.recv()) == Who()


@pytest.mark.parametrize(
    ("code", "asked", "stalled", "cause"),
    [
        (0, False, False, "ended"),
        (3, False, False, "ended"),
        (75, True, False, "ended"),
        (1, False, False, "crashed"),
        (1, True, False, "ended"),
        (-signal.SIGTERM, True, False, "ended"),
        (-signal.SIGKILL, False, False, "killed"),
        (-signal.SIGTERM, False, False, "killed"),
        (-signal.SIGKILL, False, True, "stalled"),
        (-signal.SIGSEGV, False, True, "crashed"),
        (-signal.SIGSEGV, False, False, "crashed"),
        (-signal.SIGABRT, False, False, "crashed"),
        (-signal.SIGBUS, False, False, "crashed"),
        (-signal.SIGFPE, False, False, "crashed"),
        (-signal.SIGILL, False, False, "crashed"),
        (-40, False, False, "crashed"),
    ],
)
def test_an_ending_has_a_cause(code: int, asked: bool, stalled: bool, cause: str) -> None:
    assert classify(code, asked, stalled)[0] == cause
    assert "\n" not in classify(code, asked, stalled)[1]
