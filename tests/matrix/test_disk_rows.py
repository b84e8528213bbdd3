"""The rows of the failure matrix about the coordinator's disk, with real processes: 6, 10, 13, 14, 15."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ifmesh import exits
from ifmesh.journal import Journal
from ifmesh.protocol import Accepted, Cancel, Cancelled, Finished, Refused
from ifmesh.request import Request
from tests.mesh.kit import LIMIT, Mesh, Process, Speaker, expected, published

FOX = Request("a fox", 7, last_stage="stage_one")
STAGES = ("encoder", "stage_one", "guard")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Mesh]:
    with Mesh(tmp_path / "mesh", {"mesh.grace": 1.0}) as mesh:
        yield mesh


@contextmanager
def no_commit(state: Path) -> Iterator[None]:
    """Whatever the coordinator wants to write waits meanwhile, and results still reach the disk."""
    with closing(sqlite3.connect(state / "journal.db", isolation_level=None, timeout=LIMIT)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def killed_before_the_commit(one: Mesh, job: str) -> dict[str, Process]:
    """The result of this job is on disk under its name; its ending is not, and the coordinator is dead."""
    processes = one.all(("encoder", "stage_one"))
    with one.speaker() as fan:
        fan.submit(job, FOX)
        fan.until(Accepted)
        with no_commit(one.state):
            processes["guard"] = one.worker("guard")
            one.wait_for((one.state / "results" / f"{job}.safetensors").exists)
            assert not any(isinstance(m, Finished) for m in fan.heard)
            processes["coordinator"].signal(signal.SIGKILL)
            processes["coordinator"].code()
    return processes


def rows(state: Path, job: str) -> int:
    with closing(sqlite3.connect(f"file:{state}/journal.db?mode=ro", uri=True)) as database:
        count: int = database.execute("SELECT count(*) FROM endings WHERE job = ?", (job,)).fetchone()[0]
        return count


@pytest.mark.matrix
def test_row_06_killed_between_a_submit_and_its_commit(one: Mesh) -> None:
    first = one.coordinator()
    with one.speaker() as fan:
        with no_commit(one.state):
            assert answer(fan, "a", 2.0) is None
            first.signal(signal.SIGKILL)
            first.code()
        one.coordinator()
        with one.speaker() as again:
            assert again.books().jobs == (), "it was never accepted"
            assert isinstance(answer(again, "a", LIMIT), Accepted)
            assert isinstance(answer(again, "a", LIMIT), Accepted)
            assert [row.job for row in again.books().jobs] == ["a"]


def test_row_10_killed_between_the_file_and_its_commit(one: Mesh) -> None:
    killed_before_the_commit(one, "a")
    early = (one.state / "results" / "a.safetensors").read_bytes()
    assert rows(one.state, "a") == 0
    one.coordinator()
    with one.speaker() as fan:
        fan.submit("a", FOX)
        finished = fan.finished("a")
        assert fan.result("a") == early
        assert published(early) == expected(FOX)
        assert finished.size == len(early)
    assert rows(one.state, "a") == 1


@pytest.mark.matrix
def test_row_10_a_file_whose_job_is_cancelled_is_swept(one: Mesh) -> None:
    processes = killed_before_the_commit(one, "a")
    for name in ("encoder", "stage_one", "guard"):
        processes[name].kill()
    again = one.coordinator()
    path = one.state / "results" / "a.safetensors"
    with one.speaker() as fan:
        assert path.exists(), "its job is open: it is no orphan"
        fan.send(Cancel("a"))
        fan.until(Cancelled)
    again.signal(signal.SIGKILL)
    again.code()
    one.coordinator()
    one.wait_for(lambda: not path.exists())


def test_row_13_two_coordinators_on_one_journal(one: Mesh) -> None:
    """Where locks do not work, as between two hosts: the older one writes nothing more, and ends within seconds, idle as it is."""
    older = one.all(STAGES)["coordinator"]
    (one.state / "journal.lock").unlink()
    newer = one.coordinator()
    assert older.code() == exits.CONFIGURATION
    assert "another coordinator has taken this journal over" in older.log.read_text()
    with one.speaker() as fan:
        one.ready(fan, *(f"{stage}-0" for stage in STAGES))
        fan.submit("a", FOX)
        fan.finished("a")
        assert published(fan.result("a")) == expected(FOX)
    assert newer.popen.poll() is None


def test_row_13_where_locks_work_the_second_is_refused(one: Mesh) -> None:
    first = one.coordinator()
    second = one.start("second", "coordinator")
    assert second.code() == exits.CONFIGURATION
    assert f"a coordinator runs here already (pid {first.pid})" in second.log.read_text()
    assert first.popen.poll() is None


def limit(process: Process, size: int) -> None:
    """No file of this process may grow beyond so many bytes: each write fails, that of the log, too."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def answer(fan: Speaker, job: str, seconds: float) -> Accepted | Refused | None:
    """To a Submit."""
    fan.submit(job, FOX)
    end = time.monotonic() + seconds
    while (message := fan.hear(max(0.0, end - time.monotonic()))) is not None:
        if isinstance(message, Accepted | Refused) and message.job == job:
            return message
    return None


def test_row_14_a_disk_that_fails_every_write_is_waited_for(one: Mesh) -> None:
    coordinator = one.all(STAGES)["coordinator"]
    with one.speaker() as fan:
        before = {name: row.pid for name, row in one.ready(fan, *(f"{stage}-0" for stage in STAGES)).items()}
        assert isinstance(answer(fan, "first", LIMIT), Accepted)
        fan.finished("first")
        limit(coordinator, 0)
        assert answer(fan, "waits", 3.0) is None, "not accepted, and not refused: it may be accepted yet"
        refused = answer(fan, "new", LIMIT)
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.detail) == ("busy", "the disk does not take the journal (disk I/O error)")
        limit(coordinator, resource.RLIM_INFINITY)
        fan.finished("waits")
        assert isinstance(answer(fan, "new", LIMIT), Accepted)
        fan.finished("new")
        for job in ("first", "waits", "new"):
            assert published(fan.result(job)) == expected(FOX)
        assert {name: row.pid for name, row in one.ready(fan, *before).items()} == before


def ifmesh(one: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ifmesh", *arguments, "--state", str(one.state)]
    return subprocess.run(command, env=one.environ, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_row_15_a_damaged_journal_is_refused_checked_and_restored(one: Mesh) -> None:
    first = one.coordinator()
    with one.speaker() as fan:
        for n in range(3):
            assert isinstance(answer(fan, f"open-{n}", LIMIT), Accepted)
    running = ifmesh(one, "journal", "check", "--json")
    assert running.returncode == exits.OK, running.stderr
    assert json.loads(running.stdout)["open"] == 3
    assert ifmesh(one, "journal", "restore").returncode == exits.CONFIGURATION, "a coordinator runs"
    first.signal(signal.SIGKILL)
    first.code()
    with closing(Journal.open(one.state)):  # the log goes into the database
        pass
    path = one.state / "journal.db"
    data = bytearray(path.read_bytes())
    data[data.rindex(b"a fox")] ^= 1  # the record that was written last lies first in its page
    path.write_bytes(data)
    refused = one.start("refused", "coordinator")
    assert refused.code() == exits.CONFIGURATION
    assert "the journal cannot be read: its checksum is wrong: `ifmesh journal check`" in refused.log.read_text()
    checked = ifmesh(one, "journal", "check")
    assert checked.returncode == exits.FAILURE
    assert "its request cannot be read: its checksum is wrong" in checked.stdout
    restored = ifmesh(one, "journal", "restore")
    assert restored.returncode == exits.OK, restored.stderr
    assert "its request: its checksum is wrong" in restored.stdout
    one.coordinator()
    for stage in STAGES:
        one.worker(stage)
    with one.speaker() as fan:
        fan.when(lambda books: not books.jobs)
        for n in range(3):  # the lost one is a new job
            fan.submit(f"open-{n}", FOX)
            fan.finished(f"open-{n}")
