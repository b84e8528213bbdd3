"""The journal: on disk before anybody is told, once, and through a real kill -9."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ifmesh import bags, schema
from ifmesh import journal as journal_file
from ifmesh.broker import Blame, Book, Close, Closed, Command, Hold, Note
from ifmesh.errors import Misconfigured
from ifmesh.journal import Journal
from ifmesh.protocol import VERSION, Cancelled, Ended, Failed, Finished, StageRun
from ifmesh.request import Request, Settings

ROOT = Path(journal_file.__file__).parents[1]
FOX = Request("a fox", 2**63 - 1, settings={"stage_one": Settings(timesteps=(999, 0), guidance=7.0)}, deadline=60.0)
RUN = StageRun("encoder", "encoder-0", 7, "cpu", 0.1, 0.2, 1, 0, 1000, 1)
STORY = ((0.0, "accepted"), (1.5, "encoder: assigned"))


def finished(job: str) -> Finished:
    return Finished(job, "ff" * 32, 3, 4, True, (RUN,))


@contextmanager
def opened(state: Path, durability: str = "full") -> Iterator[Journal]:
    it = Journal.open(state, durability)
    try:
        yield it
    finally:
        it.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with opened(tmp_path / "state") as it:
        yield it


def test_what_was_booked_comes_back_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as it:
        it.commit([Book("a", FOX), Book("b", replace(FOX, prompt="an owl")), Note("a", "not for the journal")])
        it.commit([Book("c", FOX), Close("b", Failed("b", "error", "guard", "w", "boom"), STORY, (RUN,)), Blame("c", 2, "SIGSEGV")])
    with opened(tmp_path) as it:
        booked, closed = it.recover()
        assert [(b.job, b.request, b.blame) for b in booked] == [("a", FOX, 0), ("c", FOX, 2)]
        assert all(0 <= b.age < 60 for b in booked)
        assert closed == [Closed("b", replace(FOX, prompt="an owl"), Failed("b", "error", "guard", "w", "boom"), STORY, (RUN,))]


def test_each_start_raises_the_epoch(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        with opened(tmp_path) as it:
            epochs.append(it.epoch)
    assert epochs == [1, 2, 3]


def test_a_job_ends_once(journal: Journal) -> None:
    journal.commit([Book("a", FOX), Close("a", finished("a"), STORY, (RUN,))])
    journal.commit([Close("a", Cancelled("a"), (), ())])
    assert journal.ending("a") == Closed("a", FOX, finished("a"), STORY, (RUN,))
    assert journal.recover() == ([], [Closed("a", FOX, finished("a"), STORY, (RUN,))])


def test_a_job_is_booked_once(journal: Journal) -> None:
    journal.commit([Book("a", FOX)])
    journal.commit([Book("a", replace(FOX, prompt="an owl"))])
    assert [b.request for b in journal.recover()[0]] == [FOX]


@pytest.mark.parametrize("ending", [finished("a"), Failed("a", "poison", "guard", "w", "SIGSEGV \N{GRINNING FACE}"), Cancelled("a")])
def test_every_kind_of_ending_comes_back(journal: Journal, ending: Ended) -> None:
    assert journal.ending("a") is None
    journal.commit([Book("a", FOX), Close("a", ending, STORY, ())])
    assert journal.ending("a") == Closed("a", FOX, ending, STORY, ())


def test_blame_can_be_given_back(journal: Journal) -> None:
    journal.commit([Book("a", FOX), Blame("a", 3, "SIGSEGV")])
    journal.commit([Blame("a", 4, "SIGABRT", "w.1"), Blame("a", 5, "SIGABRT", "w.2")])
    assert journal.recover()[0][0].lives == ("w.1", "w.2")
    journal.commit([Blame("a", 0, "the worker was put aside")])
    assert journal.recover()[0][0].blame == 0


def test_the_newest_endings_come_back_oldest_first(journal: Journal) -> None:
    for n in range(10):
        journal.commit([Book(f"j{n}", FOX)])
    for n in (3, 1, 4, 5, 9, 2):
        journal.commit([Close(f"j{n}", Cancelled(f"j{n}"), (), ())])
    booked, closed = journal.recover(remember=3)
    assert [c.job for c in closed] == ["j5", "j9", "j2"]
    assert [b.job for b in booked] == ["j0", "j6", "j7", "j8"]
    assert journal.ending("j3") is not None


def test_a_batch_is_written_whole_or_not_at_all(journal: Journal) -> None:
    bad = Close("a", Failed("a", "error", "x", "w", "half a pair \ud800"), (), ())
    with pytest.raises(Exception, match="cannot be encoded"):
        journal.commit([Book("a", FOX), bad])
    assert journal.recover() == ([], [])
    journal.commit([Book("b", FOX)])
    assert [b.job for b in journal.recover()[0]] == ["b"]


def test_nothing_to_write_is_no_transaction(journal: Journal) -> None:
    before = (journal.state / "journal.db-wal").stat().st_size
    nothing: list[Command] = [Note("", "x")]
    journal.commit(nothing)
    journal.commit([])
    assert (journal.state / "journal.db-wal").stat().st_size == before


def test_every_commit_is_on_disk(journal: Journal) -> None:
    assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)


# ---- one at a time


def test_a_second_coordinator_is_refused_and_told_who_the_first_is(journal: Journal) -> None:
    with pytest.raises(Misconfigured, match=rf"a coordinator runs here already \(pid {os.getpid()}\)"):
        Journal.open(journal.state)
    journal.commit([Book("a", FOX)])


def test_another_process_is_refused_as_well(journal: Journal) -> None:
    code = "import sys; from pathlib import Path; from ifmesh.journal import Journal; Journal.open(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal.state)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"(pid {os.getpid()})" in done.stderr


def test_one_whose_lock_was_taken_away_can_write_nothing_more(journal: Journal) -> None:
    (journal.state / "journal.lock").unlink()
    with opened(journal.state) as newer:
        assert newer.epoch == journal.epoch + 1
        with pytest.raises(Misconfigured, match="another coordinator has taken this journal over"):
            journal.commit([Book("a", FOX)])
        newer.commit([Book("b", FOX)])
        assert [b.job for b in newer.recover()[0]] == ["b"]


# ---- damage


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Misconfigured, match=r"journal\.db: the journal cannot be read: .*`ifmesh journal restore` saves"):
        Journal.open(tmp_path)
    (tmp_path / "journal.db").unlink()
    with opened(tmp_path) as it:  # the lock was given back
        assert it.epoch == 1


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as it:
        it.commit([Book(f"j{n}", FOX) for n in range(500)])
    path = tmp_path / "journal.db"
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(data)
    with pytest.raises(Misconfigured, match="cannot be read"):
        Journal.open(tmp_path)


def test_a_record_of_another_protocol_version_is_refused_with_both(journal: Journal) -> None:
    journal.commit([Book("a", FOX)])
    journal._database.execute("UPDATE requests SET request = ?", (schema._sealed(b"\x82\xa1v\x63\xa2is\xa7Request"),))
    with pytest.raises(Misconfigured, match=f"protocol version 99, but this side speaks version {VERSION}"):
        journal.recover()


def test_a_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    database = sqlite3.connect(tmp_path / "journal.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(Misconfigured, match="a journal of version 99"):
        Journal.open(tmp_path)


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(Misconfigured, match=r"cannot be used as state folder: .*mesh\.state"):
        Journal.open(tmp_path / "state")


# ---- results


def test_a_result_is_stored_whole_under_its_job(journal: Journal) -> None:
    frame = os.urandom(3_000_000)
    assert journal.store("a-B_9", memoryview(frame)) == (bags.digest(frame), len(frame))
    assert journal.load("a-B_9") == frame
    assert [p.name for p in (journal.state / "results").iterdir()] == ["a-B_9.safetensors"]
    assert journal.store("a-B_9", frame) == (bags.digest(frame), len(frame))
    assert journal.load("b") is None


@pytest.mark.parametrize("job", ["", ".", "..", "../x", "a/b", "a\n", "a\0", "a" * 65, "ä", "a.b", "/etc/passwd"])
def test_a_job_id_is_checked_before_it_becomes_a_path(journal: Journal, job: str) -> None:
    with pytest.raises(ValueError, match="a job id has"):
        journal.store(job, b"x")
    assert journal.load(job) is None
    assert list((journal.state / "results").iterdir()) == []


def test_a_write_that_fails_leaves_nothing(journal: Journal) -> None:
    (journal.state / "results" / "a.safetensors").mkdir()
    with pytest.raises(OSError, match=r"a\.safetensors"):
        journal.store("a", b"x")
    assert [p.name for p in (journal.state / "results").iterdir()] == ["a.safetensors"]


# ---- uploads

FRAME = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(FRAME).hexdigest()


def test_an_upload_outlives_the_process_until_it_is_discarded(tmp_path: Path) -> None:
    with opened(tmp_path) as it:
        assert it.uploads() == {}
        it.store_upload(DIGEST, FRAME)
        it.store_upload(DIGEST, memoryview(FRAME))
    with opened(tmp_path) as it:
        assert it.uploads() == {DIGEST: len(FRAME)}
        assert it.load_upload(DIGEST) == FRAME
        assert it.load_upload("0" * 64) is None
        it.discard_upload(DIGEST)
        it.discard_upload(DIGEST)
        assert it.uploads() == {}
        assert it.load_upload(DIGEST) is None
    assert list((tmp_path / "uploads").iterdir()) == []


def test_with_durability_none_nothing_but_the_epoch_is_on_disk(tmp_path: Path) -> None:
    with opened(tmp_path, "none") as it:
        assert it.store("a", memoryview(FRAME)) == (bags.digest(FRAME), len(FRAME))
        it.store_upload(DIGEST, FRAME)
        assert (it.load("a"), it.load("b"), it.load_upload(DIGEST)) == (FRAME, None, FRAME)
        assert (list(it.shelf.stored()), it.uploads()) == ([("a", len(FRAME))], {DIGEST: len(FRAME)})
        it.sync()
        it.shelf.discard("a")
        it.discard_upload(DIGEST)
        assert (it.load("a"), it.uploads()) == (None, {})
        assert [path for path in tmp_path.rglob("*") if path.suffix == ".safetensors"] == []
    with opened(tmp_path) as it:
        assert (it.epoch, it.uploads()) == (2, {})


def test_what_a_death_has_left_half_written_is_no_upload(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / f".{DIGEST}.0011aabb.part").write_bytes(FRAME[:1000])
    (folder / "README").write_text("somebody's note")
    with opened(tmp_path) as it:
        assert it.uploads() == {}
    assert [p.name for p in folder.iterdir()] == ["README"]


def test_what_is_held_is_known_after_a_restart_and_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: wall)
    with opened(tmp_path) as it:
        it.commit([Hold("a" * 64, ("embeds", "rng"), 10.0), Hold("b" * 64, ("source",), 0.5)])
        wall += 1.0
        it.commit([Hold("c" * 64, ("image256",), 3.0)])
    with opened(tmp_path) as it:
        assert it.held() == [Hold("a" * 64, ("embeds", "rng"), 9.0), Hold("c" * 64, ("image256",), 3.0)]
        it.commit([Hold("a" * 64, ("embeds", "rng"), 20.0)])  # another job keeps the same, for longer
        wall -= 500.0  # a clock that is put back keeps nothing for longer than was said
        assert it.held() == [Hold("a" * 64, ("embeds", "rng"), 20.0), Hold("c" * 64, ("image256",), 3.0)]
        wall += 503.5
        assert it.held() == [Hold("a" * 64, ("embeds", "rng"), 16.5)]
        it.commit([Hold("d" * 64, ("rng",), 1.0)])
        assert it._database.execute("SELECT count(*) FROM holds").fetchone() == (2,), "what is over is forgotten"


def test_a_hold_is_on_disk_with_the_ending_or_not_at_all(journal: Journal) -> None:
    bad = Close("a", Failed("a", "error", "x", "w", "half a pair \ud800"), (), ())
    with pytest.raises(Exception, match="cannot be encoded"):
        journal.commit([Book("a", FOX), Hold(DIGEST, ("rng",), 9.0), bad])
    assert journal.held() == []


@pytest.mark.parametrize("digest", ["", ".", "../x", DIGEST.upper(), DIGEST + "0", DIGEST[:-1], f"{DIGEST}\n", "../" + "0" * 61])
def test_a_digest_is_checked_before_it_becomes_a_path(journal: Journal, digest: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        journal.store_upload(digest, FRAME)
    assert journal.load_upload(digest) is None
    journal.discard_upload(digest)
    assert list((journal.state / "uploads").iterdir()) == []
    assert (journal.state / "journal.db").exists()


def test_an_upload_that_cannot_be_written_leaves_nothing(journal: Journal) -> None:
    (journal.state / "uploads" / f"{DIGEST}.safetensors").mkdir()
    with pytest.raises(OSError, match=DIGEST):
        journal.store_upload(DIGEST, FRAME)
    assert [p.name for p in (journal.state / "uploads").iterdir()] == [f"{DIGEST}.safetensors"]


# ---- kill -9

COMMITS = """
import sys
from pathlib import Path
from ifmesh.broker import Book, Close
from ifmesh.journal import Journal
from ifmesh.protocol import Finished, Request

it, n = Journal.open(Path(sys.argv[1])), 0
while True:
    job = f"e{it.epoch}j{n}"
    it.commit([Book(job, Request("a fox", n))])
    print("booked", job, flush=True)
    digest, size = it.store(job, job.encode() * 50_000)
    it.commit([Close(job, Finished(job, digest, size, n, True, ()), (), ())])
    print("closed", job, flush=True)
    n += 1
"""


def test_nothing_that_was_told_is_lost_through_kill_9(tmp_path: Path) -> None:
    told: dict[str, set[str]] = {"booked": set(), "closed": set()}
    for round_ in range(4):
        child = subprocess.Popen([sys.executable, "-c", COMMITS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(11 + 7 * round_):
            what, job = child.stdout.readline().split()
            told[what].add(job)
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=60)
        for line in rest.splitlines():
            if len(words := line.split()) == 2:
                told[words[0]].add(words[1])
        assert child.returncode == -signal.SIGKILL
    with opened(tmp_path) as it:
        assert it.epoch == 5
        booked, closed = it.recover()
        ended = {c.job for c in closed}
        assert told["closed"] <= ended
        assert told["booked"] <= ended | {b.job for b in booked}
        assert not ended & {b.job for b in booked}
        for c in closed:
            assert isinstance(c.ending, Finished)
            frame = it.load(c.job)
            assert frame is not None
            assert bags.digest(frame) == c.ending.digest
        assert not list((tmp_path / "results").glob(".*"))
